"""What lists take on a board with external memory, in the report and in words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nnloom.arch.dma import DmaCommand
from nnloom.arch.isa import HostAddress
from nnloom.arch.lists import Move, Transfer
from nnloom.boards import get
from nnloom.cli.commands import _parts
from nnloom.compiler.cost import program_cycles
from nnloom.compiler.emit import emit
from nnloom.compiler.transfers import external_timing, fetch_cycles, memory_timing, move_cycles, region_cycles
from tests.artifacts import SMALL
from tests.graphs import random_graph

BOARD = get("ulx3s-85f-sdram")


def test_the_timing_is_the_chips():
    """Measured in RTL: a load of 256,000 words 517,573 cycles."""
    timing = memory_timing(BOARD)
    assert (timing.data_width, timing.latency, timing.answer) == (64, 16, 18)
    assert 128_000 * timing.beat_cycles == pytest.approx(517_500, rel=0.001)
    assert memory_timing(get("ulx3s-85f")) is None


def test_the_ultra96_moves_whole_beats():
    """Of weights; a word of registers takes as long as ever. Descriptors come four at a time."""
    board = get("ultra96-v2")
    timing = external_timing(board)
    assert (timing.data_width, timing.port_words) == (128, 4)
    narrow = external_timing(board, replace(SMALL, lanes=4, taps=3, requant_units=4))
    assert narrow == replace(timing, port_words=1)
    load = Move(DmaCommand.LOAD, Transfer(host_address=HostAddress.WEIGHTS, row_words=4000), 0)
    registers = replace(load, transfer=replace(load.transfer, host_address=HostAddress.TABLES))
    assert move_cycles(load, timing) == pytest.approx(1000, abs=40)
    assert move_cycles(load, narrow) == pytest.approx(4000, abs=40) == move_cycles(registers, timing)
    store = replace(
        load, command=DmaCommand.STORE, transfer=replace(load.transfer, host_address=HostAddress.ACTIVATIONS)
    )
    assert move_cycles(store, timing) == pytest.approx(1000, abs=20)
    assert move_cycles(store, narrow) > 5000
    assert 4 * fetch_cycles(timing) < fetch_cycles(narrow) + 30


def test_lists_are_counted_where_there_is_memory():
    config = replace(SMALL, weight_words=64)
    graph = random_graph(np.random.default_rng(12), ["conv", "depthwise", "conv", "conv"])
    emitted = emit(config, [graph])
    assert emitted.parts > 1 and region_cycles(get("ulx3s-85f"), config, emitted) == {}
    (cycles,) = region_cycles(BOARD, config, emitted).values()
    assert cycles.programs == program_cycles(config, emitted.regions[0].descriptors)
    # Weight words of 40 bytes, two bytes a cycle at best, and no more than a twentieth above.
    loaded = emitted.weights.size + 4 * len(emitted.program)
    assert loaded / 2 < cycles.weights < 1.05 * loaded / 2 + 40 * 2 * emitted.parts
    # Beside a program that runs, only the descriptor behind it is fetched.
    assert cycles.total == cycles.programs + cycles.weights + cycles.tensors + cycles.control - cycles.overlapped
    assert cycles.overlapped <= 30 * emitted.parts


def test_the_command_line_says_how_long_an_inference_takes():
    """Not how long the serial line would."""
    lists = [{"region": "region0", "programs": 6000, "weights": 5000, "tensors": 700, "control": 300}]
    memory = {"parts": 2, "bytes_loaded_per_inference": 10_000, "lists": lists, "parts_because": ["weight memory: ..."]}
    said = _parts({"memory": memory, "system": {"clock_mhz": 120.0, "baud": 1_000_000}})
    assert said == (
        "2 parts are loaded for each inference, 10,000 bytes, from external memory: 12,000 cycles with the transfers, "
        "100.0 us at 120 MHz; weight memory: ..."
    )
