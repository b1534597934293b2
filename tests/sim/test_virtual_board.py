"""The complete system's RTL behind a pseudo-terminal: the board's driver and sessions, unchanged, run against it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from nnloom.arch.artifact import REPORT_FILE, Artifact
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import DeviceError
from nnloom.arch.isa import HostAddress
from nnloom.arch.link import FrameSplitter, Request
from nnloom.boards import get
from nnloom.compiler import zoo
from nnloom.runtime import DeviceWarning, InferenceSession
from nnloom.runtime.devices.serial import SerialDevice, SerialLink, open_serial, parse_serial
from nnloom.sim.golden import GoldenModel
from nnloom.sim.virtual_board import VirtualBoard
from tests.artifacts import SMALL, make_artifact
from tests.graphs import random_graph
from tests.terminal import interruptible

pytestmark = pytest.mark.verilator


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Artifact:
    path = tmp_path_factory.mktemp("virtual") / "artifact"
    make_artifact(path, random_graph(np.random.default_rng(8), ["conv", "depthwise", "conv", "conv"]))
    return Artifact.load(path)


@pytest.fixture(scope="module")
def board():
    with VirtualBoard(SMALL) as running:
        yield running


def open_device(board: VirtualBoard) -> SerialDevice:
    port, baud, seconds = parse_serial(board.device.removeprefix("serial:"))
    return open_serial(port, baud, frame_seconds=seconds)


def check(device: SerialDevice, artifact: Artifact, *seeds: int) -> None:
    """A batch of inferences has the results of the golden model."""
    (region,) = artifact.manifest.regions
    batch = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        batch.append([rng.integers(-128, 128, location.shape, np.int8) for location in region.inputs])
    model = GoldenModel(artifact.manifest.config, artifact.program, artifact.weights, artifact.tables)
    for inputs, got in zip(batch, device.run_batch(region, batch), strict=True):
        for location, value in zip(region.inputs, inputs, strict=True):
            model.write_tensor(location, value)
        model.run(region.program_start)
        for value, location in zip(got.outputs, region.outputs, strict=True):
            np.testing.assert_array_equal(value, model.read_tensor(location))
        assert got.cycles > 0


def test_a_region_runs_and_drivers_come_and_go(board, artifact):
    for seed in range(2):
        with open_device(board) as device:
            device.load(artifact)
            check(device, artifact, seed)
            check(device, artifact, *range(seed + 10, seed + 20))
            with pytest.raises(DeviceError, match="cannot open the serial port"):
                open_device(board).load(artifact)
            assert device.stats == type(device.stats)() and device.clock_hz == 100_000_000


def test_layers_are_counted(board, artifact):
    """The counters of the hardware are the cost model's cycles, to one or two at the ends."""
    layers = json.loads((artifact.path / REPORT_FILE).read_text())["layers"]
    (region,) = artifact.manifest.regions
    with open_device(board) as device:
        device.load(artifact)
        zeros = [np.zeros(location.shape, np.int8) for location in region.inputs]
        result = device.run_region(region, zeros, count_layers=True)
        counted = result.layer_cycles
    assert sum(counted) == result.cycles and len(counted) == len(layers) == 4
    assert all(abs(n - layer["cycles_estimated"]) <= 2 for n, layer in zip(counted, layers, strict=True))


def test_another_configuration_is_refused(board, tmp_path):
    other = AcceleratorConfig(lanes=8, taps=5, requant_units=4, activation_bytes=8192, weight_words=256)
    make_artifact(tmp_path / "other", random_graph(np.random.default_rng(8), ["conv"]), other)
    with open_device(board) as device, pytest.raises(DeviceError, match="program the artifact's own bitstream"):
        device.load(Artifact.load(tmp_path / "other"))


def test_the_compact_engine_over_the_line(tmp_path):
    """Loaded, run and read over the serial line with the iCEBreaker's configuration."""
    config = get("icebreaker").config
    make_artifact(
        tmp_path / "compact", random_graph(np.random.default_rng(8), ["conv", "depthwise", "average"]), config
    )
    artifact = Artifact.load(tmp_path / "compact")
    with VirtualBoard(config) as running, open_device(running) as device:
        device.load(artifact)
        check(device, artifact, 0)
        check(device, artifact, 1)
        assert device.stats == type(device.stats)()


class Meddler:
    """A serial port that damages one frame: the n-th in a direction since `arm`."""

    def __init__(self, port) -> None:
        self._port = port
        self._splitter = FrameSplitter()
        self.count = {True: 0, False: 0}
        self.fault = None
        self.hit = False

    def arm(self, to_board: bool | None = None, number: int = 0, change=None) -> None:
        self.count = {True: 0, False: 0}
        self.fault, self.hit = (to_board, number, change), False

    def _pass(self, frame: bytes, to_board: bool) -> bytes:
        number = self.count[to_board]
        self.count[to_board] += 1
        if self.fault is not None and self.fault[:2] == (to_board, number):
            self.hit = True
            return self.fault[2](frame)
        return frame

    @property
    def in_waiting(self) -> int:
        return self._port.in_waiting

    def read(self, size: int) -> bytes:
        frames = self._splitter.feed(self._port.read(size))
        return b"".join(self._pass(frame + b"\0", False) for frame in frames)

    def write(self, data: bytes) -> int:
        self._port.write(self._pass(data, True) if len(data) > 1 else data)
        return len(data)

    def close(self) -> None:
        self._port.close()


def flipped(position: float):
    def change(frame: bytes) -> bytes:
        index = int(position * (len(frame) - 1))
        return frame[:index] + bytes([frame[index] ^ 0x10]) + frame[index + 1 :]

    return change


CHANGES = {
    "lost": lambda frame: b"",
    "first byte lost": lambda frame: frame[1:],
    "end lost": lambda frame: frame[:-1],
    "byte doubled": lambda frame: frame[:4] + frame[3:],
    "cut": lambda frame: frame[: len(frame) // 2],
    "twice": lambda frame: frame + frame,
    "noise before": lambda frame: b"\x5a\xa5\x00\x07" + frame,
    "opcode": lambda frame: frame[:1] + bytes([frame[1] ^ 1]) + frame[2:],
    "header": flipped(0.3),
    "middle": flipped(0.6),
    "crc": flipped(0.97),
}


@pytest.mark.parametrize("to_board", [True, False], ids=["request", "answer"])
def test_each_fault_at_each_step_in_rtl(board, artifact, to_board):
    import serial

    port, baud, _ = parse_serial(board.device.removeprefix("serial:"))
    meddler = Meddler(serial.Serial(port, baud, timeout=0.02, write_timeout=5.0))
    device = SerialDevice(SerialLink(lambda: meddler, baud=baud, frame_seconds=20.0))
    try:
        device.load(artifact)
        meddler.arm()
        check(device, artifact, 0)
        assert meddler.count[to_board] == 1
        meddler.arm()
        check(device, artifact, 0, 1, 2)
        steps = meddler.count[to_board]
        device._link._frame_seconds = 0.5  # until here nothing is lost, only slow
        assert steps == 3
        for name, change in CHANGES.items():
            for number in range(steps):
                meddler.arm(to_board, number, change)
                check(device, artifact, number, number + 1, number + 2)
                assert meddler.hit, (name, number)
        assert device.stats.resets == device.stats.reconnects == 0
        assert device.stats.retries >= 2 * len(CHANGES)
    finally:
        device.close()


def test_reset_button_at_each_step(board, artifact):
    """The board forgets everything; the driver notices, loads it again and starts over."""
    import serial

    port, baud, _ = parse_serial(board.device.removeprefix("serial:"))
    meddler = Meddler(serial.Serial(port, baud, timeout=0.02, write_timeout=5.0))
    device = SerialDevice(SerialLink(lambda: meddler, baud=baud, frame_seconds=20.0))

    def press(frame: bytes) -> bytes:
        time.sleep(0.05)
        board.press_reset()
        time.sleep(0.05)
        return frame

    try:
        device.load(artifact)
        meddler.arm()
        check(device, artifact, 0, 1, 2)
        steps = dict(meddler.count)
        device._link._frame_seconds = 0.5
        for to_board in (True, False):
            for number in range(steps[to_board]):
                before = device.stats.resets
                meddler.arm(to_board, number, press)
                check(device, artifact, number, number + 1, number + 2)
                check(device, artifact, number + 1)
                assert device.stats.resets == before + 1
    finally:
        device.close()


def test_resets_at_random_moments(board, artifact):
    """The button at any time, and the link's reset of one cycle while a program runs: right answers after each."""
    (region,) = artifact.manifest.regions
    rng = np.random.default_rng(5)
    with open_device(board) as device:
        device.load(artifact)
        begin = time.monotonic()
        check(device, artifact, 0)
        taken = time.monotonic() - begin
        for seed in range(4):
            timer = threading.Timer(float(rng.uniform(0, taken)), board.press_reset)
            timer.start()
            check(device, artifact, seed)
            timer.join()
            check(device, artifact, seed + 10)
        assert device.stats.resets > 0
        for seed in range(8):
            device.write_tensors(region.inputs, [np.zeros(location.shape, np.int8) for location in region.inputs])
            device.start(region.program_start)
            time.sleep(float(rng.uniform(0, taken / 4)))
            device.reset()
            check(device, artifact, seed)
            check(device, artifact, seed + 20)


def test_uploads_are_payload(board, tmp_path):
    """Loading: nine tenths of what goes over the line are program and weights."""
    path = tmp_path / "larger"
    make_artifact(path, random_graph(np.random.default_rng(8), ["conv"] * 8))
    artifact = Artifact.load(path)
    assert len(artifact.weights) > 80
    with open_device(board) as device:
        device.load(artifact)
        stream, sent = device._link._stream, 0
        write = stream.write

        def count(data: bytes) -> int:
            nonlocal sent
            sent += len(data)
            return write(data)

        stream.write = count
        device.load(artifact)
    share = (artifact.program.nbytes + artifact.weights.nbytes) / sent
    print(f"{100 * share:.1f} % of {sent} bytes")
    assert share > 0.9


def test_a_damaged_address_writes_nowhere(board, artifact):
    """What a frame says about addresses counts only after its CRC was checked."""
    with open_device(board) as device:
        device.load(artifact)
        addresses = HostAddress.ACTIVATIONS + 4 * np.arange(64, dtype=np.uint32)
        words = np.arange(64, dtype=np.uint32)
        device.write_words(addresses, words)
        link = device._link
        frame = Request(
            opcode=2,
            sequence=link._sequence + 1 & 0xFF,
            session=link._session,
            address=int(addresses[8]),
            words=words[:2],
        ).encode()
        for index in range(len(frame) - 1):
            link._stream.write(frame[:index] + bytes([frame[index] ^ 0x20]) + frame[index + 1 :] + b"\0")
        time.sleep(0.5)
        np.testing.assert_array_equal(device.read_words(addresses), words)


@pytest.mark.model
@pytest.mark.slow
def test_keyword_spotting_end_to_end(artifacts, network_inputs):
    """The whole network on the board's own configuration: upload, inferences, a reset in between, the cable pulled."""
    path = artifacts("keyword_spotting")
    board = VirtualBoard(Artifact.load(path).manifest.config)
    with InferenceSession(path, "cpu") as cpu, InferenceSession(path, board.device, profiling=True) as session:
        (info,) = cpu.get_inputs()
        (output,) = cpu.get_outputs()
        values = network_inputs("keyword_spotting", info)[:3]
        want = [cpu.run(value)[output.name] for value in values]
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeviceWarning)
            for value, expected in zip(values, want, strict=True):
                np.testing.assert_array_equal(session.run(value)[output.name], expected)
            board.press_reset()
            np.testing.assert_array_equal(session.run(values[0])[output.name], want[0])
        stats = session.stats()
        assert (stats.on_device, stats.fallbacks, stats.device.resets) == (4, 0, 1)
        segments = session.profile().segments
        assert [segment.device == "cpu" for segment in segments] == [True, False, True]
        assert segments[1].cycles == session.last_cycles > 10_000
        assert len(segments[1].layers) > 5
        assert sum(cycles for _, cycles in segments[1].layers) == session.last_cycles
        board.close()
        with pytest.warns(DeviceWarning, match="serial port"):
            np.testing.assert_array_equal(session.run(values[1])[output.name], want[1])
        assert session.stats().fallbacks == 1


@pytest.mark.model
@pytest.mark.slow
def test_the_same_script_runs_on_every_device(artifacts, tmp_path):
    """Only the device string differs; what is printed does not."""
    path = artifacts("tflite_micro_speech")
    files = []
    for word, features in zoo.fetch_recordings().items():
        files.append(str(tmp_path / f"{word}.npy"))
        np.save(files[-1], features.reshape(1, 49, 40, 1))
    script = Path(__file__).parents[2] / "examples" / "spot.py"
    printed = {}
    with VirtualBoard(Artifact.load(path).manifest.config) as board:
        for device in ("cpu", "model", "sim", board.device):
            command = [sys.executable, str(script), str(path), *files, "--device", device]
            printed[device] = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    heard = [line.split()[1] for line in printed["cpu"].splitlines()]
    assert heard == [Path(file).stem for file in files] == ["yes", "no"]
    assert len(set(printed.values())) == 1, printed


def test_command_serves_a_board(artifact, tmp_path):
    path = artifact.path
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    arguments = ["simulate", str(path), "--serve", "--json"]
    script = "import sys; from nnloom.cli import main; raise SystemExit(main(sys.argv[1:]))"
    server = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        preexec_fn=interruptible,
    )
    try:
        device = json.loads(server.stdout.readline())["device"]
        with InferenceSession(path, "cpu") as cpu:
            value = np.random.default_rng(2).integers(-128, 128, cpu.get_inputs()[0].shape, np.int8)
            want = cpu.run(value)
        np.save(tmp_path / "x.npy", value)
        arguments = ["run", str(path), "--device", device, "--input", str(tmp_path / "x.npy"), "--json"]
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
        (name,) = want
        assert json.loads(done.stdout)["outputs"][name]["values"] == pytest.approx(
            want[name].reshape(-1).tolist(), abs=0
        )
        server.send_signal(signal.SIGINT)
        rest = server.stdout.read()
        assert server.wait(20) == 0 and json.loads(rest)["cycles"] > 1_000
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def test_files_are_left_nowhere(artifact):
    """Stopping a board leaves no process and no terminal."""
    running = VirtualBoard(SMALL)
    assert Path(running.port).exists()
    running.close()
    assert not Path(running.port).exists()
    with pytest.raises(DeviceError):
        running.press_reset()
