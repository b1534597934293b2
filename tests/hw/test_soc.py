"""The system behind its serial pins: the board's driver, unchanged, against RTL over a bit-level serial line."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from amaranth.sim import Simulator

from nnloom.arch.artifact import Region
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import DeviceError
from nnloom.hw.soc import SerialSystem
from nnloom.runtime.devices.serial import SerialDevice, SerialLink
from nnloom.sim.golden import GoldenModel
from tests.graphs import random_graph
from tests.harness import compile_region, random_inputs

CONFIG = AcceleratorConfig(lanes=8, taps=3, requant_units=8, activation_bytes=2048, weight_words=128, program_words=64)
DIVISOR = 8


class SimulatedLine:
    """A serial port (as pyserial's) whose other end is a simulated system; the simulation runs in a thread."""

    def __init__(self, system: SerialSystem) -> None:
        self._system = system
        self._to_board = bytearray()
        self._from_board = bytearray()
        self._change = threading.Condition()
        self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._simulate, daemon=True)
        self._thread.start()
        self.corrupt_next = 0
        """How many of the next bytes to the board get a flipped bit."""

    def _simulate(self) -> None:
        async def send(ctx):
            while not self._closed:
                with self._change:
                    byte = self._to_board.pop(0) if self._to_board else None
                    if byte is not None and self.corrupt_next:
                        self.corrupt_next -= 1
                        byte ^= 0x04
                bits = [1] if byte is None else [0, *(byte >> i & 1 for i in range(8)), 1]
                for bit in bits:
                    ctx.set(self._system.rx, bit)
                    await ctx.tick().repeat(DIVISOR)

        async def receive(ctx):
            while True:
                while ctx.get(self._system.tx):
                    await ctx.tick()
                await ctx.tick().repeat(DIVISOR // 2)
                value = 0
                for i in range(8):
                    await ctx.tick().repeat(DIVISOR)
                    value |= ctx.get(self._system.tx) << i
                await ctx.tick().repeat(DIVISOR)
                with self._change:
                    self._from_board.append(value)
                    self._change.notify_all()

        sim = Simulator(self._system)
        sim.add_clock(1e-6)
        sim.add_testbench(send)
        sim.add_testbench(receive, background=True)
        try:
            sim.run()
        except BaseException as error:
            self._error = error
            raise

    def write(self, data: bytes) -> int:
        with self._change:
            self._to_board += data
        return len(data)

    @property
    def in_waiting(self) -> int:
        with self._change:
            return len(self._from_board)

    def read(self, size: int) -> bytes:
        with self._change:
            self._change.wait_for(lambda: len(self._from_board) >= size or self._error, timeout=0.05)
            data = bytes(self._from_board[:size])
            del self._from_board[: len(data)]
            return data

    def close(self) -> None:
        self._closed = True
        self._thread.join(20)


@pytest.fixture
def line():
    # Clock and baud rate only matter by their ratio.
    port = SimulatedLine(SerialSystem(CONFIG, clock_hz=DIVISOR * 1e6, baud=1_000_000))
    yield port
    port.close()


def small_artifact(seed: int):
    rng = np.random.default_rng(seed)
    while True:
        graph = random_graph(rng, ["maximum"])
        if all(t.elements <= 60 for layer in graph.layers for t in (*layer.inputs, layer.output)):
            break
    compiled = compile_region(CONFIG, graph)
    locations = compiled.plan.locations
    region = Region(
        name="region0",
        program_start=0,
        program_words=len(compiled.program),
        inputs=tuple(locations[t.name] for t in graph.inputs),
        outputs=tuple(locations[t.name] for t in graph.outputs),
    )
    artifact = SimpleNamespace(
        manifest=SimpleNamespace(config=CONFIG), program=compiled.program, weights=compiled.weights
    )
    inputs = list(random_inputs(rng, graph).values())
    golden = GoldenModel(CONFIG, compiled.program, compiled.weights)
    for location, value in zip(region.inputs, inputs, strict=True):
        golden.write_tensor(location, value)
    golden.run()
    return artifact, region, inputs, golden.read_tensor(region.outputs[0])


def driver(line: SimulatedLine) -> SerialDevice:
    """The simulation is far slower than a board: time-outs in proportion."""
    return SerialDevice(SerialLink(lambda: line, frame_seconds=60.0))


@pytest.mark.slow
def test_driver_runs_a_region_over_the_serial_line(line):
    artifact, region, inputs, want = small_artifact(1)
    device = driver(line)
    device.load(artifact)
    (got,), cycles = device.run_region(region, inputs)
    np.testing.assert_array_equal(got, want)
    assert cycles > 0
    # A byte that flips on the way is noticed, and the request sent again.
    line.corrupt_next = 1
    (got,), _ = device.run_region(region, inputs)
    np.testing.assert_array_equal(got, want)
    assert device.stats.crc_errors and device.stats.retries


def test_program_for_another_configuration_is_refused(line):
    artifact, *_ = small_artifact(1)
    artifact.manifest.config = AcceleratorConfig(lanes=8, taps=3, requant_units=4)
    with pytest.raises(DeviceError, match="configuration"):
        driver(line).load(artifact)
