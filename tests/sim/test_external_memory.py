"""A serial board with external memory: the RTL of the whole system, the driver, and a network larger than the chip."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest

from nnloom.arch.artifact import Artifact
from nnloom.arch.dma import DMA_BASE, DmaRegister, DmaStatus
from nnloom.arch.errors import CapacityError, DeviceError
from nnloom.arch.isa import HostAddress
from nnloom.arch.lists import Lists
from nnloom.arch.memory_system import SystemAddress
from nnloom.boards import get
from nnloom.compiler.fit import fit
from nnloom.compiler.frontend import read_model
from nnloom.compiler.transfers import MemoryTiming, list_cycles, memory_timing
from nnloom.hw.sdram_timing import SDRAM_CHIPS
from nnloom.runtime.devices.model import ModelDevice
from nnloom.runtime.devices.serial import SerialDevice, open_serial, parse_serial
from nnloom.sim.litert import LiteRtReference
from nnloom.sim.scoreboard import GoldenScoreboard
from nnloom.sim.virtual_board import SimulatedMemory, SimulatedSdram, VirtualBoard
from tests.artifacts import SMALL, make_artifact
from tests.compiler.test_strips import tall_graph
from tests.graphs import KINDS, random_graph
from tests.tflite_models import ModelWriter

pytestmark = pytest.mark.verilator
CONFIG = replace(SMALL, weight_words=80)
"""Its weight memory holds a layer or two."""
TIMING = MemoryTiming(data_width=64, latency=13, beat_cycles=1, answer=2)
"""Of the simulated memory: networks are compiled for it."""


@pytest.fixture(scope="module", params=[pytest.param(32, marks=pytest.mark.slow), 64])
def board(request):
    with VirtualBoard(CONFIG, memory=SimulatedMemory(data_width=request.param)) as running:
        yield running


@pytest.fixture(autouse=True)
def calm(request):
    """Stalls and faults do not outlive a test."""
    yield
    if "board" in request.fixturenames:
        running = request.getfixturevalue("board")
        running.set_stalls(0)
        running.set_faults(0, 0)


@dataclass
class Network:
    """A random network in parts, and what it answers."""

    artifact: Artifact
    parts: int

    def __post_init__(self) -> None:
        (self.region,) = self.artifact.manifest.regions
        self._model = ModelDevice()
        self._model.load(self.artifact)
        self.board_golden = GoldenScoreboard(self.artifact.image)

    def check(self, device: SerialDevice, seed: int, board: VirtualBoard | None = None, counting: bool = False):
        """Run it; the model's bits and, with the board, every write of the engine the golden model's."""
        rng = np.random.default_rng(seed)
        inputs = [rng.integers(-128, 128, location.shape, np.int8) for location in self.region.inputs]
        if board:
            board.writes()
        got = device.run_region(self.region, inputs, count_layers=counting)
        for value, want in zip(got.outputs, self._model.run_region(self.region, inputs).outputs, strict=True):
            np.testing.assert_array_equal(value, want)
        if board:
            self.board_golden.check(self.region, inputs, board.writes(), got.program_cycles)
        assert len(got.program_cycles) == self.parts and got.cycles < got.list_cycles
        return got


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> list[Network]:
    folder = tmp_path_factory.mktemp("networks")
    found: list[Network] = []
    for seed in range(40):
        rng = np.random.default_rng([3, seed])
        # With more functions than the engine tables.
        graph = random_graph(rng, [str(k) for k in rng.choice(KINDS, 4)], tables=3)
        try:
            # Every third one loads and runs its parts in turn.
            memory = TIMING if len(found) % 3 else None
            emitted = make_artifact(folder / str(seed), graph, CONFIG, memory=memory)
        except CapacityError:
            continue
        if emitted.parts > 1 and (memory is None or emitted.regions[0].region.steps):
            found.append(Network(Artifact.load(folder / str(seed)), emitted.parts))
        if len(found) == 8:
            assert sum(table_loads(network) > 1 for network in found) > 2
            return found
    raise AssertionError("too few networks in parts")


def table_loads(network: Network) -> int:
    """How many tables its list loads."""
    lists = Lists.of(network.artifact)
    descriptors = lists.descriptors(
        lists.regions[network.region.name], counting=False, image_address=0, table_address=4 * lists.image_words
    )
    return sum(HostAddress.window(d.host_address) == HostAddress.TABLES for d in descriptors)


@pytest.fixture(scope="module")
def strips(tmp_path_factory) -> list[Network]:
    """Networks that exceed the activation memory: rows of tensors come from external memory and go there. What they
    exchange is small, for the line's sake; the last one stores rows of two tensors in 19 strips."""
    folder = tmp_path_factory.mktemp("strips")
    found: list[Network] = []
    for seed, layers in ((175, 3), (502, 3), (806, 3), (111, 5)):
        emitted = make_artifact(folder / str(seed), tall_graph(seed, layers, rows=(40, 100)), CONFIG, memory=TIMING)
        assert emitted.regions[0].region.external
        found.append(Network(Artifact.load(folder / str(seed)), emitted.parts))
    return found


def open_device(board: VirtualBoard, told: list[str] | None = None, patience: float = 1) -> SerialDevice:
    """patience: for frames, times what is enough for small networks."""
    port, baud, seconds = parse_serial(board.device.removeprefix("serial:"))
    return open_serial(port, baud, frame_seconds=patience * seconds, progress=None if told is None else told.append)


def test_every_write_is_the_golden_models(board, networks):
    """Networks one after the other, with random stalls of every channel of the memory."""
    with open_device(board) as device:
        for index, network in enumerate(networks[:5]):
            board.set_stalls(20 * index)
            device.load(network.artifact)
            for seed in range(2):
                got = network.check(device, seed, board, counting=seed == 1)
            layers = sum(part.program_words for part in network.region.parts) // 16
            assert len(got.layer_cycles) == layers and sum(got.layer_cycles) == got.cycles


def test_every_write_of_networks_in_strips_is_the_golden_models(board, strips):
    """With random stalls; rows come while programs run, and tensors of an inference are not those of the last."""
    steps = [step for network in strips for step in network.region.steps]
    assert {step.kind for step in steps} == {"program", "weights", "bring", "run", "store"}
    assert any(step.kind == "bring" and step.under_way for step in steps)
    with open_device(board, patience=10) as device:
        for index, network in enumerate(strips):
            board.set_stalls(20 * index)
            device.load(network.artifact)
            for seed in range(2):
                network.check(device, seed, board, counting=seed == 1)


def test_the_bits_are_those_of_litert(board, tmp_path):
    """A network from its file: convolutions, one of them depthwise, and a residual, in parts."""
    m = ModelWriter(4)
    x = m.conv(m.input((1, 9, 8, 5)), 16)
    x = m.add(x, m.conv(m.depthwise(x), 16, (1, 1)), "relu6")
    model = tmp_path / "network.tflite"
    model.write_bytes(m.finish(m.conv(x, 12, strides=(2, 2))))
    fitted = fit(read_model(model), CONFIG)
    (graph,) = fitted.partitioned.graphs
    assert fitted.engine_share == 1 and make_artifact(tmp_path / "artifact", graph, CONFIG).parts > 1
    artifact, reference = Artifact.load(tmp_path / "artifact"), LiteRtReference(model)
    with open_device(board) as device:
        device.load(artifact)
        for seed in range(3):
            value = np.random.default_rng(seed).integers(-128, 128, (1, 9, 8, 5), np.int8)
            got = device.run_region(artifact.manifest.regions[0], [value])
            np.testing.assert_array_equal(got.outputs[0].reshape(-1), reference.run(value)[0].reshape(-1))


def axi_timing(board: VirtualBoard) -> MemoryTiming:
    """Of the memory of a virtual board."""
    memory = board.memory
    return MemoryTiming(
        data_width=memory.data_width, latency=memory.latency + 1, beat_cycles=memory.beat_cycles, answer=2
    )


def test_cycles_are_predicted(board, networks):
    """Of the whole list within 1.5 %, of its transfers within 2 %."""
    timing = axi_timing(board)
    with open_device(board) as device:
        for network in networks[:3]:
            device.load(network.artifact)
            lists = Lists.of(network.artifact).regions[network.region.name]
            for counting in (False, True):
                got = network.check(device, 1, counting=counting)
                want = list_cycles(lists, timing, got.program_cycles, counting=counting, config=CONFIG)
                assert abs(want.total - got.list_cycles) < 0.015 * got.list_cycles
                assert abs(want.total - got.list_cycles) < 0.02 * (got.list_cycles - got.cycles)


def test_a_network_is_loaded_once(board, networks):
    """Sessions come and go; what the memory holds stays, until another network or a reset."""
    first, second = networks[:2]
    told: list[str] = []
    for network, loads in ((first, 1), (first, 1), (second, 2), (first, 3)):
        with open_device(board, told) as device:
            device.load(network.artifact)
            network.check(device, 1)
            network.check(device, 2)
        assert len(told) == loads and "into external memory" in told[0]
    with open_device(board, told) as device:
        device.load(first.artifact)
        board.press_reset()
        first.check(device, 3)
        assert len(told) == 4 and device.stats.resets == 1
        first.check(device, 4)
    assert len(told) == 4


def test_what_the_memory_has_lost_is_loaded_again(board, networks):
    """Lists, programs and weights: the answer is the right one, after one more load."""
    network = networks[2]
    told: list[str] = []
    with open_device(board, told) as device:
        device.load(network.artifact)
        network.check(device, 0)
        told.clear()
        memory = device._memory
        lists = memory._lists.regions[network.region.name]
        loads = [4 * step.word for step in lists.steps if not getattr(step, "in_table", True)]
        places = [4 * lists.list_word, 4 * lists.list_word + 16, *loads[:2]]
        for number, place in enumerate(places, 1):
            board.damage_memory(place, place + 1)
            network.check(device, number)
            assert len(told) == number
        board.damage_memory(0, 1 << 20)
        network.check(device, 99)
        assert len(told) == len(places) + 1


def test_error_responses_end_in_a_clear_error(board, networks):
    network = networks[3]
    with open_device(board) as device:
        device.load(network.artifact)
        network.check(device, 0)
        lists = device._memory._lists
        mine, table = lists.regions[network.region.name], 4 * lists.image_words
        load = next(4 * step.word for step in mine.steps if not getattr(step, "in_table", True))
        for place, message in (
            (load, "a read of external memory failed|external memory answers with an error"),
            (4 * mine.list_word, "a descriptor could not be read|external memory answers with an error"),
            (table + 4 * mine.outputs[0].word, "a write to external memory failed"),
        ):
            board.set_faults(place, place + 4)
            with pytest.raises(DeviceError, match=message):
                network.check(device, 1)
            board.set_faults(0, 0)
            network.check(device, 2)


def test_resets_at_random_moments(board, networks):
    """The button in the middle of a list, and the link's reset, which ends it: right answers after each."""
    network = networks[4]
    rng = np.random.default_rng(7)
    with open_device(board) as device:
        device.load(network.artifact)
        begin = time.monotonic()
        network.check(device, 0)
        taken = time.monotonic() - begin
        for seed in range(2):
            timer = threading.Timer(float(rng.uniform(0, taken)), board.press_reset)
            timer.start()
            network.check(device, seed)
            timer.join()
            network.check(device, seed + 10, board)
        assert device.stats.resets > 0
        memory = device._memory
        mine = memory._lists.regions[network.region.name]
        status = np.array([SystemAddress.REGISTERS + DMA_BASE + DmaRegister.STATUS], np.uint32)
        seen = set()
        for seed in range(6):
            board.set_stalls(int(rng.choice([0, 95])))
            list_register = np.array([SystemAddress.REGISTERS + DMA_BASE + DmaRegister.LIST], np.uint32)
            start = SystemAddress.REGISTERS + DMA_BASE + DmaRegister.CONTROL, 1
            device.launch(list_register, np.array([4 * mine.list_word], np.uint32), start)
            time.sleep(float(rng.uniform(0, taken / 8)))
            device.reset()
            seen.add(DmaStatus(int(device.read_words(status)[0]) & 0xF))
            board.set_stalls(0)
            network.check(device, seed)
        assert DmaStatus.DONE | DmaStatus.ABORTED in seen


def test_the_link_uses_the_memory_while_a_list_runs(board, networks):
    network = networks[5]
    rng = np.random.default_rng(8)
    with open_device(board) as device:
        device.load(network.artifact)
        memory = device._memory
        mine = memory._lists.regions[network.region.name]
        free = SystemAddress.MEMORY + (1 << 19) + 4 * np.arange(4, dtype=np.uint32)
        addresses = np.array([SystemAddress.REGISTERS + DMA_BASE + DmaRegister.LIST], np.uint32)
        busy = 0
        board.set_stalls(97)
        for seed in range(3):
            start = SystemAddress.REGISTERS + DMA_BASE + DmaRegister.CONTROL, 1
            device.launch(addresses, np.array([4 * mine.list_word], np.uint32), start)
            words = rng.integers(0, 1 << 32, len(free), dtype=np.uint32)
            device.write_words(free.astype(np.uint32), words)
            busy += memory._runs()
            np.testing.assert_array_equal(device.read_words(free.astype(np.uint32)), words)
            memory._finish()
            network.check(device, seed)
        assert busy


@pytest.mark.slow
def test_with_the_sdram_and_its_controller(networks):
    """The system of `ulx3s-85f-sdram` but for the accelerator's size: every clock edge at the chip's pins is legal,
    every write of the engine the golden model's, and the cycles are those that the compiler predicts."""
    sdram = get("ulx3s-85f-sdram")
    memory = SimulatedSdram(chip=SDRAM_CHIPS[sdram.external_memory], clock_hz=sdram.clock_hz, log=True)
    timing = memory_timing(sdram)
    edges = 0
    with VirtualBoard(CONFIG, memory=memory) as board, open_device(board, patience=20) as device:
        for network in networks[:2]:
            device.load(network.artifact)
            lists = Lists.of(network.artifact).regions[network.region.name]
            for seed in range(2):
                got = network.check(device, seed, board)
                want = list_cycles(lists, timing, got.program_cycles, config=CONFIG)
                assert abs(want.total - got.list_cycles) < 0.03 * got.list_cycles
            edges += board.check_pins()
        board.press_reset()
        network.check(device, 9, board)
        edges += board.check_pins()
    assert edges > 1_000_000
