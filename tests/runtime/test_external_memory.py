"""The serial driver and a board with external memory in Python: what a line, another driver and a memory can do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nnloom.arch.artifact import Artifact
from nnloom.arch.dma import DmaStatus
from nnloom.arch.errors import DeviceError
from nnloom.arch.lists import Lists
from nnloom.runtime.devices.model import ModelDevice
from tests.artifacts import SMALL, make_artifact
from tests.board_twin import CYCLES, KINDS, Fault, MemoryBoard, twin_device
from tests.graphs import random_graph

CONFIG = replace(SMALL, weight_words=64)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Artifact:
    path = tmp_path_factory.mktemp("memory") / "artifact"
    graph = random_graph(np.random.default_rng(12), ["conv", "depthwise", "conv", "conv"])
    assert make_artifact(path, graph, CONFIG).parts == 2
    return Artifact.load(path)


@pytest.fixture(scope="module")
def model(artifact) -> ModelDevice:
    device = ModelDevice()
    device.load(artifact)
    return device


def check(device, artifact, model, seed, **options):
    (region,) = artifact.manifest.regions
    rng = np.random.default_rng(seed)
    inputs = [rng.integers(-128, 128, location.shape, np.int8) for location in region.inputs]
    got = device.run_region(region, inputs, **options)
    for value, want in zip(got.outputs, model.run_region(region, inputs).outputs, strict=True):
        np.testing.assert_array_equal(value, want)
    return got


def test_an_inference_is_one_list(artifact, model):
    told: list[str] = []
    board = MemoryBoard(CONFIG)
    line, device = twin_device(CONFIG, board, told.append)
    device.load(artifact)
    lists = Lists.of(artifact)
    assert board.written == lists.image_words and len(told) == 1
    assert f"{4 * lists.image_words:,} bytes into external memory" in told[0]
    for seed in range(3):
        line.arm()
        board.written = 0
        got = check(device, artifact, model, seed, count_layers=seed == 2)
        (mine,) = lists.regions.values()
        exchanged = 4 * sum(move.transfer.words for move in mine.inputs)
        assert board.lists == seed + 1 and exchanged <= 4 * board.written < exchanged + 64
        assert got.program_cycles == (CYCLES, CYCLES) and got.list_cycles == 3 * CYCLES
    assert sum(got.layer_cycles) == got.cycles
    device.load(artifact)
    assert len(told) == 1


def test_line_faults_end_in_the_right_answer_or_a_clear_error(artifact, model):
    """Every kind of fault, either way, in the first bytes, the last ones and at random between, loading included."""
    rng = np.random.default_rng(5)
    line, device = twin_device(CONFIG, MemoryBoard(CONFIG))
    device.load(artifact)
    line.arm()
    check(device, artifact, model, 0)
    run = dict(line.count)
    line.board.reset()
    line.arm()
    check(device, artifact, model, 0)
    load = dict(line.count)
    errors = 0
    for kind in KINDS:
        for to_board in (True, False):
            for loading, size in ((False, run[to_board]), (True, load[to_board])):
                for at in (1, int(rng.integers(2, size - 2)), size - 2):
                    if loading:
                        line.board.reset()
                    seconds = float(rng.choice([0.1, 60]))
                    line.arm(Fault(kind, to_board, at, seconds=seconds, value=int(rng.integers(1, 9))))
                    try:
                        check(device, artifact, model, at)
                    except DeviceError as error:
                        # Only what keeps the board away for longer than the driver waits, or makes it another one.
                        assert kind == "bitstream" or (kind in ("silence", "unplug") and seconds == 60), (kind, error)
                        errors += 1
                    line.arm()
                    line.clock.sleep(100)
                    check(device, artifact, model, at + 1)
    assert errors


def test_memory_that_loses_its_content_is_loaded_again(artifact, model):
    told: list[str] = []
    board = MemoryBoard(CONFIG)
    _, device = twin_device(CONFIG, board, told.append)
    device.load(artifact)
    size = Lists.of(artifact).image_words
    for number, index in enumerate(np.random.default_rng(2).integers(0, size, 12).tolist(), 2):
        board.memory[index] ^= np.uint32(1 << number)
        check(device, artifact, model, number)
        # A bit of a list that does not run, or between two pieces, is not read.
        assert len(told) <= number
    assert len(told) > 6
    board.memory[:] = 0
    check(device, artifact, model, 99)
    # A cell that is broken stays so.
    (mine,) = device._memory._lists.regions.values()
    board.stuck = mine.list_word + 1
    board.memory[board.stuck] ^= np.uint32(0x40)
    with pytest.raises(DeviceError, match=r"external memory does not hold what was loaded|DMA: "):
        check(device, artifact, model, 1)
    board.stuck = None
    check(device, artifact, model, 2)


def test_a_memory_that_is_too_small_leaves_the_parts_to_the_line(artifact, model):
    told: list[str] = []
    board = MemoryBoard(CONFIG, size=1024)
    _, device = twin_device(CONFIG, board, told.append)
    device.load(artifact)
    got = check(device, artifact, model, 1)
    assert board.lists == 0 and got.list_cycles is None and "too small" in told[0] and len(told) == 1


def test_the_driver_waits_for_the_memory_and_for_another_drivers_list(artifact, model):
    board = MemoryBoard(CONFIG)
    _, device = twin_device(CONFIG, board)
    board.unready, board.busy_for = 20, 30
    device.load(artifact)
    assert not board.unready and not board.busy_for and not board.resets
    check(device, artifact, model, 1)
    board.unready = 1 << 30
    with pytest.raises(DeviceError, match="does not become ready"):
        device.load(artifact)
    board.unready = 0
    board.busy_for = 1 << 30  # a list that does not end is ended by a reset
    board.dma_status = int(DmaStatus.BUSY)
    device.load(artifact)
    assert board.resets == 1
    check(device, artifact, model, 2)


def test_a_list_that_does_not_end(artifact, model):
    board = MemoryBoard(CONFIG)
    _, device = twin_device(CONFIG, board)
    device.load(artifact)
    board.hang = True
    with pytest.raises(DeviceError, match="did not end within 10 s; the device was reset"):
        check(device, artifact, model, 1)
    assert board.resets == 1
    board.hang = False
    check(device, artifact, model, 1)


def test_a_network_that_fits_needs_no_memory(tmp_path):
    path = tmp_path / "artifact"
    graph = random_graph(np.random.default_rng(8), ["conv", "depthwise"])
    assert not make_artifact(path, graph, CONFIG).parts
    artifact, model = Artifact.load(path), ModelDevice()
    model.load(artifact)
    board = MemoryBoard(CONFIG)
    _, device = twin_device(CONFIG, board)
    device.load(artifact)
    check(device, artifact, model, 1)
    assert board.lists == board.written == 0
