"""The serial driver against a board in Python, on a line that does everything a line can do."""

from __future__ import annotations

import os
import pty
import tty
import warnings
from dataclasses import replace

import numpy as np
import pytest
import serial
from hypothesis import given
from hypothesis import strategies as st

from nnloom.arch.artifact import Artifact
from nnloom.arch.errors import ConfigError, DeviceError
from nnloom.arch.isa import HostAddress, Register, Status
from nnloom.arch.link import (
    LARGEST_WORDS,
    LINK_VERSION,
    SEQUENCES,
    Answer,
    FrameSplitter,
    Hello,
    Opcode,
    Request,
    Response,
    Step,
    StepKind,
    script_word,
)
from nnloom.arch.scripts import Exchange, answer_sizes
from nnloom.runtime import DeviceWarning, InferenceSession
from nnloom.runtime.devices.latency import set_low_latency
from nnloom.runtime.devices.runs import AnswerLost, Run
from nnloom.runtime.devices.serial import (
    ATTEMPTS,
    FRAME_SECONDS,
    LIMIT_FRAMES,
    SerialDevice,
    SerialLink,
    bursts,
    open_serial,
    parse_serial,
)
from tests.artifacts import SMALL, make_artifact
from tests.board_twin import CYCLES, KINDS, Fault, twin_device
from tests.graphs import random_graph

LOST = ("silence", "bitstream", "unplug")
"""Kinds that may keep the board away for longer than the driver waits."""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Artifact:
    path = tmp_path_factory.mktemp("serial") / "artifact"
    make_artifact(path, random_graph(np.random.default_rng(8), ["conv", "depthwise", "conv", "conv"]))
    artifact = Artifact.load(path)
    # The memory of the input is used again: a program that starts twice answers wrongly.
    region, inputs = artifact.manifest.regions[0], region_inputs(artifact, np.random.default_rng(1))
    line, device = twin_device(SMALL)
    device.load(artifact)
    (once,) = device.run_region(region, inputs).outputs
    device.start(region.program_start)
    device.wait_done()
    assert not np.array_equal(device.read_tensor(region.outputs[0]), once) and line.board.starts == 2
    return artifact


def region_inputs(artifact: Artifact, rng: np.random.Generator) -> list[np.ndarray]:
    (region,) = artifact.manifest.regions
    return [rng.integers(-128, 128, location.shape, np.int8) for location in region.inputs]


def check(device: SerialDevice, artifact: Artifact, seed: int) -> None:
    """An inference equals that of a board whose line is good."""
    (region,) = artifact.manifest.regions
    inputs = region_inputs(artifact, np.random.default_rng(seed))
    _, other = twin_device(artifact.manifest.config)
    other.load(artifact)
    (want,) = other.run_region(region, inputs).outputs
    got = device.run_region(region, inputs)
    np.testing.assert_array_equal(got.outputs, [want])
    assert got.cycles == CYCLES * max(1, len(region.parts))


def test_a_good_line_needs_each_request_once(artifact):
    line, device = twin_device(SMALL)
    device.load(artifact)
    # A look at STATUS before all writes and one behind them; for an inference the one in its answer.
    assert line.board.looks == 2
    for seed in range(3):
        check(device, artifact, seed)
    assert line.board.starts == 3 and line.board.looks == 2 + 3
    assert device.stats == type(device.stats)()
    assert line.clock.now == 0


@pytest.mark.parametrize("to_board", [True, False], ids=["request", "answer"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_fault_at_every_step_changes_no_answer(artifact, kind, to_board):
    """At each byte of an inference in turn: whatever frame it belongs to, in whatever part of it."""
    line, device = twin_device(SMALL)
    device.load(artifact)
    line.arm()
    check(device, artifact, 0)
    step = 2 if kind in ("flip", "drop") or not to_board else 5
    positions = range(0, line.count[to_board], step)
    assert len(positions) >= 15
    for position in positions:
        line.arm(Fault(kind, to_board, position, seconds=0.5, value=1 + position % 7))
        begin = line.clock.now
        for attempt in range(6):  # the driver alone gives up while the board is another one or out of reach
            try:
                check(device, artifact, position)
                break
            except DeviceError:
                assert kind in LOST and attempt < 5
                line.clock.now += 0.2
        assert line.hit == [kind]
        assert line.clock.now - begin < 6
        line.clock.now += 0.5
        check(device, artifact, position + 1)
    assert device.stats.retries + device.stats.resets + device.stats.reconnects > 0


@pytest.mark.parametrize("kind", KINDS)
def test_one_fault_in_every_part_changes_no_answer(kind, tmp_path):
    """The weights of each part are loaded within the inference: what is lost there is loaded again."""
    config = replace(SMALL, weight_words=64)
    graph = random_graph(np.random.default_rng(12), ["conv", "depthwise", "conv", "conv"])
    emitted = make_artifact(tmp_path, graph, config)
    assert emitted.parts == 2
    artifact = Artifact.load(tmp_path)
    line, device = twin_device(config)
    device.load(artifact)
    line.arm()
    check(device, artifact, 0)
    assert line.board.starts == emitted.parts
    totals = dict(line.count)
    for to_board in (True, False):
        for position in range(0, totals[to_board], max(1, totals[to_board] // 25)):
            line.arm(Fault(kind, to_board, position, seconds=0.5, value=1 + position % 7))
            for attempt in range(6):
                try:
                    check(device, artifact, position)
                    break
                except DeviceError:
                    assert kind in LOST and attempt < 5
                    line.clock.now += 0.2
            assert line.hit == [kind]
            line.clock.now += 0.5
            check(device, artifact, position + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_one_fault_at_every_step_of_loading(artifact, kind):
    line, device = twin_device(SMALL)
    line.arm()
    device.load(artifact)
    for to_board in (True, False):
        total = line.count[to_board]
        for position in range(0, total, max(1, total // 40)):
            line, device = twin_device(SMALL)
            line.arm(Fault(kind, to_board, position, seconds=0.4, value=1 + position % 7))
            try:
                device.load(artifact)
            except DeviceError:
                assert kind in LOST
            line.clock.now += 0.5
            check(device, artifact, position)
        line, device = twin_device(SMALL)
        line.arm()
        device.load(artifact)


def test_silence_ends_in_an_error_in_time(artifact):
    line, device = twin_device(SMALL)
    line.arm(Fault("silence", True, 0, seconds=1e9))
    with pytest.raises(DeviceError, match=r"does not answer \(4 tries\); check cable, baud rate and bitstream"):
        device.load(artifact)
    assert (2**ATTEMPTS - 1) * FRAME_SECONDS <= line.clock.now < 2**ATTEMPTS * FRAME_SECONDS


def test_the_time_of_a_request_begins_with_it(artifact):
    """However long the device was there before."""
    line, device = twin_device(SMALL)
    line.clock.now += 1000
    device.load(artifact)
    line.clock.now += 1000
    check(device, artifact, 1)


def run_all(device: SerialDevice, artifact: Artifact, seeds: range) -> None:
    """A batch has the results of one inference after the other."""
    (region,) = artifact.manifest.regions
    batch = [region_inputs(artifact, np.random.default_rng(seed)) for seed in seeds]
    _, other = twin_device(artifact.manifest.config)
    other.load(artifact)
    results = list(device.run_batch(region, iter(batch)))
    assert len(results) == len(batch)
    for inputs, result in zip(batch, results, strict=True):
        (want,) = other.run_region(region, inputs).outputs
        np.testing.assert_array_equal(result.outputs, [want])


def test_an_inference_is_one_request(artifact):
    """One frame of inputs, one answer; of a batch the next ones are on the line before that."""
    line, device = twin_device(SMALL)
    device.load(artifact)
    (region,) = artifact.manifest.regions
    writes: list[bytes] = []
    stream = device._link._stream
    write = stream.write
    stream.write = lambda data: (writes.append(data), write(data))
    check(device, artifact, 0)
    size = sum(location.rows * location.columns * location.channels for location in region.inputs)
    frames = -(-(size + 4) // (4 * LARGEST_WORDS + 8))
    assert len(writes) == frames and sum(map(len, writes)) <= size + 3 + 18 * frames
    before, reads = len(writes), 0
    read = stream.read

    def count(size: int) -> bytes:
        nonlocal reads
        reads += 1
        return read(size)

    stream.read = count
    results = device.run_batch(region, [region_inputs(artifact, np.random.default_rng(seed)) for seed in range(5)])
    next(results)
    assert reads == 1 and len(writes) - before >= frames + 2
    assert len(list(results)) == 4 and len(writes) - before == 5 * frames
    assert line.board.starts == 6 and device.stats == type(device.stats)()


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize(
    "layers", [["conv"], ["depthwise", "conv"], ["maximum", "average"], ["conv", "depthwise", "conv", "conv"]]
)
def test_tensors_of_any_size_over_the_line(layers, packs, tmp_path):
    """Rows and pixels of whatever length, on boards that leave the bytes between them out and on others."""
    for seed in range(3):
        graph = random_graph(np.random.default_rng(100 + seed), layers)
        make_artifact(tmp_path / str(seed), graph)
        artifact = Artifact.load(tmp_path / str(seed))
        line, device = twin_device(SMALL)
        line.board.packs = packs
        device.load(artifact)
        (region,) = artifact.manifest.regions
        assert device._scripts
        inputs = region_inputs(artifact, np.random.default_rng(seed))
        got = device.run_region(region, inputs)
        want = super(SerialDevice, device).run_region(region, inputs)
        np.testing.assert_array_equal(got.outputs, want.outputs)
        script = device._scripts[region.name][1]
        sent = len(script.pack(inputs))
        size = sum(value.size for value in inputs)
        assert sent >= size and (sent == size or not packs)


@pytest.mark.parametrize("to_board", [True, False], ids=["request", "answer"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_fault_at_every_step_of_a_batch_changes_no_answer(artifact, kind, to_board):
    line, device = twin_device(SMALL)
    device.load(artifact)
    run_all(device, artifact, range(1))
    line.arm()
    run_all(device, artifact, range(3))
    for position in range(0, line.count[to_board], 9 if to_board else 4):
        line.arm(Fault(kind, to_board, position, seconds=0.5, value=1 + position % 7))
        for attempt in range(6):
            try:
                run_all(device, artifact, range(position, position + 3))
                break
            except DeviceError:
                assert kind in LOST and attempt < 5
                line.clock.now += 0.2
        assert line.hit == [kind]
        line.clock.now += 0.5


def test_a_batch_that_is_left_in_the_middle(artifact):
    """What is on its way belongs to nobody then; the next request opens a session anew."""
    _, device = twin_device(SMALL)
    device.load(artifact)
    (region,) = artifact.manifest.regions
    check(device, artifact, 0)
    results = device.run_batch(region, [region_inputs(artifact, np.random.default_rng(s)) for s in range(4)])
    next(results)
    results.close()
    check(device, artifact, 1)
    run_all(device, artifact, range(4))


@pytest.mark.parametrize("fault", [None, "flip", "reset", "silence"])
def test_a_session_overlaps_the_inferences_of_a_batch(artifact, fault):
    """Same results as on the CPU, whatever the line does; the CPU answers what a board that fails does not."""
    rng = np.random.default_rng(3)
    line, device = twin_device(SMALL)
    with (
        InferenceSession(artifact.path, "cpu") as cpu,
        InferenceSession(artifact.path, device, clock=line.clock) as session,
    ):
        (info,) = cpu.get_inputs()
        values = rng.integers(-128, 128, (7, *info.shape[1:]), np.int8)
        want = cpu.run(values)
        line.arm()
        session.run(values[0])
        middle = 7 * line.count[True] // 2
        line.arm(*([Fault(fault, True, middle, seconds=100)] if fault else []))
        writes = line.board.starts
        if fault == "silence":
            with pytest.warns(DeviceWarning, match="does not answer"):
                got = session.run(values)
        else:
            got = session.run(values)
        assert line.hit == ([fault] if fault else []) and line.board.starts > writes
        for name, value in want.items():
            np.testing.assert_array_equal(got[name], value)
        stats = session.stats()
        assert stats.requests == 8 == stats.on_device + stats.fallbacks
        assert (stats.fallbacks > 0) == (fault == "silence") and stats.on_device > 2
        assert session.last_cycles == (None if fault == "silence" else CYCLES)
        assert len(session.profile().segments) == (1 if fault == "silence" else 3)


def test_inputs_and_outputs_of_many_frames():
    """More frames than are sent without an answer, and answers of several."""
    line, device = twin_device(SMALL)
    link = device._link
    link.connect()
    size, count = 70_000, 2500
    steps = [
        Step(kind=StepKind.WRITE, address=0x7000_0000, count=size // 4),
        Step(kind=StepKind.WAIT),
        Step(kind=StepKind.READ, address=0x7000_0000, count=count // 4, chunk=5, pad=3),
        Step(kind=StepKind.END),
    ]
    memory: dict[int, int] = {}
    line.board._store_all = lambda request: memory.update(
        zip(request.addresses(len(request.words)), request.words.tolist(), strict=True)
    )
    line.board._fetch = lambda address: memory.get(address, 0)
    link.exchange(
        [Request(opcode=Opcode.SCRIPT, sequence=0, session=0, words=np.concatenate([s.words() for s in steps]))]
    )
    mask = np.arange(count) % 8 < 5
    answers = answer_sizes([Exchange(tuple(steps[2:3]), mask)], LARGEST_WORDS)
    assert len(answers) == 2
    rng = np.random.default_rng(1)
    data = [rng.integers(0, 256, size, np.uint8) for _ in range(2)]
    for fault in (None, Fault("flip", True, 40_000), Fault("drop", True, 69_000), Fault("flip", False, 1500)):
        line.arm(*([fault] if fault else []))
        runs = [Run(word=script_word(0), data=values.tobytes(), answers=answers) for values in data]
        got: list[bytes] = []
        while len(got) < 2:
            try:
                got += link.run(runs[len(got) :])
            except AnswerLost:
                assert fault is not None and link.resume()
        assert got == [values[:count][mask].tobytes() for values in data]


def test_layers_are_counted_only_if_asked_for(artifact):
    (region,) = artifact.manifest.regions
    inputs = region_inputs(artifact, np.random.default_rng(1))
    _, device = twin_device(SMALL)
    device.load(artifact)
    for run in (device.run_region, super(SerialDevice, device).run_region):
        assert run(region, inputs).layer_cycles == ()
        assert len(run(region, inputs, count_layers=True).layer_cycles) == 4


def test_a_program_that_does_not_end(artifact):
    line, device = twin_device(SMALL)
    device.load(artifact)
    line.board.hang = True
    with pytest.raises(DeviceError, match="did not end within 10 s; the device was reset"):
        check(device, artifact, 1)
    assert line.clock.now < LIMIT_FRAMES * FRAME_SECONDS
    line.board.hang = False
    check(device, artifact, 2)


def test_a_board_that_runs_the_program_of_another_driver(artifact):
    """Writes to a busy board are ignored, and the next start clears the flag that tells."""
    line, device = twin_device(SMALL)
    line.board.run_for(polls=7)
    device.load(artifact)
    assert line.board.ignored == line.board.resets == 0
    check(device, artifact, 1)
    # One that does not end is ended by a reset; an error that is left over as well.
    line, device = twin_device(SMALL)
    line.board.run_for(polls=1_000_000)
    device.load(artifact)
    assert line.board.ignored == 0 and line.board.resets == 1
    assert device.timeout_seconds <= line.clock.now < device.timeout_seconds + 1
    check(device, artifact, 2)
    line, device = twin_device(SMALL)
    line.board.status = Status.DONE | Status.ERROR
    device.load(artifact)
    assert line.board.resets == 1 and line.clock.now == 0
    check(device, artifact, 3)


def test_a_board_that_a_reset_does_not_end_is_left_alone(artifact, monkeypatch):
    """Nothing is written to it: another driver's program goes on with its own memories."""
    line, device = twin_device(SMALL)
    line.board.run_for(polls=1_000_000)
    monkeypatch.setattr(device, "reset", lambda: None)
    with pytest.raises(DeviceError, match="runs a program that this driver has not started"):
        device.load(artifact)
    assert line.board.ignored == 0


def test_a_board_that_becomes_busy_between_two_inferences(artifact):
    """It keeps the request until its program has ended: its memories take the inputs then."""
    line, device = twin_device(SMALL)
    device.load(artifact)
    check(device, artifact, 1)
    line.board.run_for(polls=3)
    check(device, artifact, 2)
    assert line.board.ignored == 0 and device.stats.timeouts > 0 and device.stats.resets == 0
    # Where the driver writes itself, it looks whether the words were taken.
    (region,) = artifact.manifest.regions
    line.board.run_for(polls=1)
    with pytest.raises(DeviceError, match="access to its memories while it was running"):
        device.write_tensors(region.inputs, region_inputs(artifact, np.random.default_rng(2)))
    assert line.board.ignored > 0
    check(device, artifact, 3)


def test_the_notice_of_an_earlier_program_ends_no_later_one(artifact):
    line, device = twin_device(SMALL)
    device.load(artifact)

    def come_again() -> None:
        """With cycles that nobody counts now."""
        line._answers += Response(
            answer=Answer.DONE,
            sequence=line.board.start_sequence,
            session=line.board.session,
            words=np.array([Status.DONE, 99, 1], np.uint32),
        ).encode()

    for seed in range(3):
        check(device, artifact, seed)
        come_again()
    # While the next program runs, too.
    line.board.hang = True
    sequence = line.board.start_sequence
    device.start(0)
    line.board.start_sequence = sequence
    come_again()
    with pytest.raises(DeviceError, match="did not end"):
        device.wait_done()


def test_sequence_numbers_come_again(artifact):
    """A START has the number of the one before: the notice of that one is still there."""
    line, device = twin_device(SMALL)
    device.load(artifact)
    check(device, artifact, 1)
    first = line.board.start_sequence
    register = np.array([HostAddress.REGISTERS + Register.STATUS], np.uint32)
    while (line.board.last + 1) % SEQUENCES != first:
        device.read_words(register)
    line.board.hang = True
    device.start(0)
    assert line.board.start_sequence == first
    with pytest.raises(DeviceError, match="did not end"):
        device.wait_done()


@pytest.mark.parametrize("offset", [17, 100, 127, 128, 129, 200, 254, 255])
def test_a_board_that_lost_count(artifact, offset):
    """By more than the window. What it has executed is not known then: the session is opened again."""
    line, device = twin_device(SMALL)
    device.load(artifact)
    for seed in range(4):
        line.board.last = (line.board.last + offset) % SEQUENCES
        check(device, artifact, seed)
        assert device.stats.resets == seed + 1


class Scripted:
    """A port to a board that answers HELLO, and everything else as `answer` says."""

    def __init__(self, answer) -> None:
        self._answer = answer
        self._splitter = FrameSplitter()
        self._bytes = bytearray()

    @property
    def in_waiting(self) -> int:
        return len(self._bytes)

    def read(self, size: int) -> bytes:
        data = bytes(self._bytes[:size])
        del self._bytes[:size]
        return data

    def write(self, data: bytes) -> None:
        for frame in self._splitter.feed(data):
            request = Request.decode(frame)
            if request.opcode == Opcode.HELLO:
                hello = Hello(
                    link_version=LINK_VERSION,
                    max_words=LARGEST_WORDS,
                    clock_hz=1,
                    previous_session=None,
                    packs=True,
                    magic=0,
                    isa_version=0,
                    config_hash=0,
                )
                answer, words = Answer.OK, hello.words()
            else:
                answer, words = self._answer(request)
            self._bytes += Response(
                answer=answer,
                sequence=request.sequence,
                session=request.session,
                words=np.array(words, np.uint32),
            ).encode()

    def close(self) -> None:
        pass


def scripted(answer) -> SerialDevice:
    device = SerialDevice(SerialLink(lambda: Scripted(answer)))
    device.identify()
    return device


@pytest.mark.parametrize("count", [0, 1, 3, 5, 252])
def test_an_answer_of_another_length_is_refused(count):
    device = scripted(lambda request: (Answer.OK, range(count)))
    addresses = np.arange(0, 16, 4, dtype=np.uint32)
    with pytest.raises(DeviceError, match="another number of words"):
        device.read_words(addresses)
    # Two of them that are right together are wrong, too.
    device = scripted(lambda request: (Answer.OK, range(5 if request.address == 0 else 3)))
    with pytest.raises(DeviceError, match="another number of words"):
        device.read_words(np.concatenate([addresses, addresses + 0x2000_0000]))


def test_words_that_were_lost_before_a_damaged_frame_are_asked_for_again():
    """The board has executed the READ, its answer is lost, and what it says next is of a damaged frame."""
    seen = []

    def answer(request):
        seen.append(request.sequence)
        if seen.count(request.sequence) == 1:
            return Answer.BAD_FRAME, ()
        return Answer.OK, [request.address // 4 + i for i in range(request.count)]

    device = scripted(answer)
    addresses = np.concatenate([np.arange(0, 4000, 4), np.arange(8000, 8016, 4)]).astype(np.uint32)
    assert device.read_words(addresses).tolist() == (addresses // 4).tolist()
    assert all(seen.count(sequence) == 2 for sequence in seen)
    assert device.stats.retries == device.stats.crc_errors == len(seen) // 2


def test_a_board_that_is_reset_all_the_time(artifact):
    line, device = twin_device(SMALL)
    device.load(artifact)
    line.arm(*(Fault("reset", True, at) for at in range(30, 20_000, 400)))
    with pytest.raises(DeviceError, match="reset or out of reach 3 times"):
        check(device, artifact, 1)
    line.arm()
    check(device, artifact, 1)


def test_another_configuration_is_refused_at_once(artifact):
    line, device = twin_device(SMALL)
    line.board.config_hash = 7
    line._other_until = 1e9
    with pytest.raises(DeviceError, match="configuration 0x00000007"):
        device.load(artifact)
    assert line.clock.now == 0


def test_a_board_that_speaks_another_version(artifact, monkeypatch):
    monkeypatch.setattr("tests.board_twin.LINK_VERSION", 9)
    _, device = twin_device(SMALL)
    with pytest.raises(DeviceError, match="version 9 of the protocol"):
        device.load(artifact)


def test_run_before_load(artifact):
    _, device = twin_device(SMALL)
    with pytest.raises(DeviceError, match="no artifact"):
        device.run_region(artifact.manifest.regions[0], [])


def test_two_drivers_take_turns(artifact):
    """Another driver's session is noticed, and the board loaded again."""
    line, first = twin_device(SMALL)
    first.load(artifact)
    second = SerialDevice(SerialLink(line.share, clock=line.clock, sleep=line.clock.sleep))
    second.load(artifact)
    check(second, artifact, 1)
    check(first, artifact, 2)
    check(second, artifact, 3)


def test_a_cable_that_is_pulled(artifact):
    ours, theirs = pty.openpty()
    device = open_serial(os.ttyname(theirs), 1_000_000)
    os.close(theirs)
    tty.setraw(ours)
    os.close(ours)
    with pytest.raises(DeviceError, match="serial port") as error:
        device.load(artifact)
    assert "\n" not in str(error.value)
    device.close()


@pytest.mark.parametrize("seconds", [0.05, 0.25, 0.4])
def test_a_port_that_is_away_for_a_moment(artifact, seconds):
    """An adapter that comes back in time is opened and the board loaded again within the request."""
    line, device = twin_device(SMALL)
    device.load(artifact)
    line.arm(Fault("unplug", True, 100, seconds=seconds))
    if seconds < FRAME_SECONDS:
        check(device, artifact, 1)
        assert seconds <= line.clock.now < FRAME_SECONDS and device.stats.reconnects == 1
    else:
        with pytest.raises(DeviceError, match="serial port: device disconnected; check the cable"):
            check(device, artifact, 1)
        assert FRAME_SECONDS <= line.clock.now < FRAME_SECONDS + 0.05
        # The next one does not wait.
        with pytest.raises(DeviceError, match="cannot open the serial port"):
            check(device, artifact, 1)
        assert line.clock.now < FRAME_SECONDS + 0.05
        line.clock.now += 0.1
    check(device, artifact, 2)


def test_a_port_that_is_not_there(artifact, tmp_path):
    with pytest.raises(DeviceError, match="no such port; is the board connected"):
        open_serial(str(tmp_path / "ttyUSB9")).load(artifact)


def test_a_port_that_cannot_be_used_names_the_remedy(artifact, tmp_path, monkeypatch):
    ours, theirs = pty.openpty()
    with serial.Serial(os.ttyname(theirs), exclusive=True), pytest.raises(DeviceError, match="another program has it"):
        open_serial(os.ttyname(theirs)).load(artifact)
    os.close(ours)
    os.close(theirs)
    (tmp_path / "file").write_text("")
    for name in ("file", "."):
        with pytest.raises(DeviceError, match="not a serial port; give that of the board"):
            open_serial(str(tmp_path / name)).load(artifact)

    def deny(path, *arguments, **options):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("serial.serialposix.os.open", deny)
    with pytest.raises(DeviceError, match=r"join the group dialout \('sudo usermod .* or add a udev rule"):
        open_serial("/dev/ttyUSB0").load(artifact)


class Adapter:
    """A port whose driver has the flag, or has not."""

    def __init__(self, timer=None, *, knows: bool = True) -> None:
        self._timer, self._knows = timer, knows

    def set_low_latency_mode(self, low: bool) -> None:
        if not self._knows:
            raise ValueError("Failed to update ASYNC_LOW_LATENCY flag")
        if self._timer is not None and low:
            self._timer.write_text("1\n")


def test_adapters_are_told_to_answer_at_once(tmp_path, monkeypatch):
    folder = tmp_path / "ttyUSB7" / "device"
    folder.mkdir(parents=True)
    timer = folder / "latency_timer"
    port = tmp_path / "by-id"
    port.symlink_to("/dev/ttyUSB7")
    timer.write_text("16\n")
    assert set_low_latency(Adapter(timer), str(port), sysfs=tmp_path) is None and timer.read_text() == "1\n"
    # A driver without the flag; who may write the timer does.
    timer.write_text("16\n")
    assert set_low_latency(Adapter(knows=False), str(port), sysfs=tmp_path) is None and timer.read_text() == "1\n"
    timer.write_text("16\n")

    def deny(self, text: str) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.write_text", deny)
        told = set_low_latency(Adapter(knows=False), str(port), sysfs=tmp_path)
    assert told is not None and "keeps answers for 16 ms" in told and f"sudo tee {timer}" in told
    # Adapters without a timer, and ports that are none.
    assert set_low_latency(Adapter(knows=False), "/dev/ttyACM0", sysfs=tmp_path) is None
    assert set_low_latency(object(), "COM3", sysfs=tmp_path) is None


def test_device_strings():
    assert parse_serial("/dev/ttyUSB0", 3_000_000) == ("/dev/ttyUSB0", 3_000_000, FRAME_SECONDS)
    assert parse_serial("/dev/ttyUSB0?baud=9600", 3_000_000) == ("/dev/ttyUSB0", 9600, FRAME_SECONDS)
    assert parse_serial("/dev/ttyUSB0") == ("/dev/ttyUSB0", 1_000_000, FRAME_SECONDS)
    assert parse_serial("COM3?baud=3000000&timeout=2") == ("COM3", 3_000_000, 2.0)
    with pytest.raises(ConfigError, match="names no port"):
        parse_serial("?baud=9600")
    for bad in ("x?speed=1", "x?baud=fast", "x?baud=0", "x?timeout=-1", "x?timeout=nan", "x?baud"):
        with pytest.raises(ConfigError, match="neither baud=NUMBER nor timeout=SECONDS"):
            parse_serial(bad)


@given(
    st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 300)), max_size=6),
    st.integers(1, 40),
    st.integers(1, 60),
    st.integers(4, LARGEST_WORDS),
)
def test_bursts_cover_the_addresses_in_order(pieces, run, rows, max_words):
    addresses = [4 * (start + i) for start, count in pieces for i in range(count)]
    addresses += [0x2000_0000 + 256 * row + 4 * i for row in range(rows) for i in range(run)]
    array = np.array(addresses, np.uint32)
    got, position = [], 0
    for first, request in bursts(array, max_words):
        assert first == position and 1 <= request.count <= max_words
        position += request.count
        decoded = Request.decode(Request(**{**vars(request), "opcode": Opcode.READ}).encode()[:-1])
        got += decoded.addresses(request.count)
    assert got == addresses


def test_weights_go_in_full_frames():
    """Seven weight words of 144 bytes at distances of 256."""
    addresses = np.array([256 * row + 4 * i for row in range(70) for i in range(36)], np.uint32)
    assert [request.count for _, request in bursts(addresses, LARGEST_WORDS)] == [252] * 10


def random_fault(rng: np.random.Generator, totals: dict[bool, int]) -> Fault:
    to_board = bool(rng.integers(2))
    return Fault(
        kind=KINDS[int(rng.integers(len(KINDS)))],
        to_board=to_board,
        at=int(rng.integers(0, 2 * totals[to_board])),
        seconds=float(10 ** rng.uniform(-2, 1)),
        value=int(rng.integers(1, 20)),
    )


@pytest.mark.slow
def test_random_fault_sequences_lose_and_falsify_nothing(network):
    """10,000 requests, each with up to six faults at random bytes; answered by the board or by the CPU."""
    rng = np.random.default_rng(4)
    sequences = 10_000
    line, device = twin_device(SMALL)
    with InferenceSession(network, "cpu") as cpu, InferenceSession(network, device, clock=line.clock) as session:
        assert len(session.artifact.manifest.regions) == 2
        (info,) = cpu.get_inputs()
        inputs = [rng.integers(-128, 128, info.shape, np.int8) for _ in range(40)]
        want = [cpu.run(value) for value in inputs]
        line.arm()
        session.run(inputs[0])
        totals = dict(line.count)
        longest, hits = 0.0, dict.fromkeys(KINDS, 0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for sequence in range(sequences):
                index = sequence % len(inputs)
                line.arm(*(random_fault(rng, totals) for _ in range(int(rng.integers(1, 7)))))
                begin = line.clock.now
                got = session.run(inputs[index])
                longest = max(longest, line.clock.now - begin)
                for name, value in want[index].items():
                    np.testing.assert_array_equal(got[name], value)
                for kind in line.hit:
                    hits[kind] += 1
                # Mostly longer than any back-off, so that the faults meet the driver.
                line.clock.now += 60.0 if rng.random() < 0.8 else float(rng.uniform(0, 3))
        stats = session.stats()
        print(f"{stats}; longest request {longest:.2f} s; faults {hits}")
        assert stats.requests == stats.on_device + stats.fallbacks == sequences + 1
        assert stats.on_device > 0.5 * sequences and stats.fallbacks > 100
        assert stats.device_failures == len(caught) > 100
        assert all(isinstance(w.message, DeviceWarning) for w in caught)
        assert min(hits.values()) > 100
        # Two regions.
        assert longest < 2 * LIMIT_FRAMES * FRAME_SECONDS + 1
        for count in ("retries", "crc_errors", "timeouts", "resets", "reconnects"):
            assert getattr(stats.device, count) > 100, count
