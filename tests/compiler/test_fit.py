"""Networks that do not fit: what runs on the CPU, where regions are cut, and that the answer is LiteRT's."""

from __future__ import annotations

import dataclasses
import itertools
import math
from unittest.mock import patch

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from nnloom import boards
from nnloom.arch.config import AcceleratorConfig
from nnloom.compiler import compile as compile_model
from nnloom.compiler.explore import explore
from nnloom.compiler.fit import _cheapest_runs, _Cost, _fits, _piece, fit
from nnloom.compiler.frontend import read_model
from nnloom.compiler.graph import LayerGraph
from nnloom.compiler.larger import find_larger, with_more_memory
from nnloom.compiler.partition import Region
from nnloom.compiler.transfers import external_timing
from nnloom.runtime import InferenceSession
from nnloom.sim.litert import LiteRtReference
from tests.compiler.litert import exact
from tests.fuzz.check import CONFIGS
from tests.graphs import random_graph
from tests.tflite_models import ModelWriter, random_input

SMALL = AcceleratorConfig(lanes=8, taps=5, requant_units=2, activation_bytes=2048, weight_words=256)


def huge_layer_in_the_middle(m: ModelWriter) -> list[int]:
    a = m.conv(m.input((1, 40, 40, 4)), 8, (3, 3), (2, 2))
    b = m.conv(a, 240, (1, 1))
    return [m.dense(m.conv(m.pool(b, "AVERAGE", (4, 4), (4, 4)), 4, (1, 1)), 5)]


def long_skip(m: ModelWriter) -> list[int]:
    a = m.conv(m.input((1, 32, 32, 4)), 16)
    b = a
    for channels in (24, 32, 24, 16):
        b = m.conv(b, channels)
    return [m.conv(m.add(a, b), 3, strides=(4, 4))]


def big_fully_connected(m: ModelWriter) -> list[int]:
    a = m.conv(m.input((1, 60, 60, 3)), 4)
    return [m.softmax(m.dense(m.dense(m.reshape(a, (1, 60 * 60 * 4)), 20, "relu"), 6))]


def residual_around_what_does_not_fit(m: ModelWriter) -> list[int]:
    a = m.conv(m.input((1, 16, 16, 3)), 16)
    b = m.conv(m.conv(a, 250, (1, 1)), 16, (1, 1))
    return [m.dense(m.add(a, b, "relu"), 4)]


NETWORKS = {
    f.__name__: f for f in (huge_layer_in_the_middle, long_skip, big_fully_connected, residual_around_what_does_not_fit)
}
BOARDS = ("ulx3s-85f", "ulx3s-12f", "icebreaker", "tang-nano-20k")


def read(tmp_path, build):
    m = ModelWriter(0)
    path = tmp_path / "model.tflite"
    path.write_bytes(m.finish(*build(m)))
    return read_model(path)


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_answers_are_those_of_litert(tmp_path, name, board):
    with patch.dict(CONFIGS, board=boards.get(board).config):
        exact(tmp_path, NETWORKS[name], config="board", inputs=1)


def test_a_huge_layer_runs_on_the_cpu(tmp_path):
    graph = read(tmp_path, huge_layer_in_the_middle)
    fitted = fit(graph, boards.get("ulx3s-85f").config)
    reasons = {op.op: op.reason for op in fitted.partitioned.cpu_operators}
    assert reasons == {
        "conv_2d": "its tensors need 99,200 bytes of activation memory, the configuration has 65,536",
        "average_pool_2d": "its tensors need 105,600 bytes of activation memory, the configuration has 65,536",
    }
    first, second = fitted.partitioned.graphs
    assert [len(first.layers), len(second.layers)] == [1, 2]
    macs = 20 * 20 * 8 * 36 + 5 * 5 * 4 * 240 + 5 * 100
    assert fitted.engine_macs == macs and fitted.cpu_macs == 20 * 20 * 240 * 8
    assert fitted.engine_share == macs / (macs + fitted.cpu_macs)
    assert fitted.link_bytes == 40 * 40 * 4 + 20 * 20 * 8 + 5 * 5 * 240 + 5


def test_a_long_skip_is_carried_by_the_host(tmp_path):
    """Every convolution stays on the accelerator; the sum, which has no multiplications, saves a transfer."""
    config = boards.get("ulx3s-85f").config
    fitted = fit(read(tmp_path, long_skip), config)
    assert fitted.is_cut and fitted.engine_share == 1
    first, middle, last = fitted.partitioned.graphs
    assert [len(graph.layers) for graph in (first, middle, last)] == [1, 4, 1]
    (added,) = fitted.partitioned.cpu_operators
    assert added.op == "add" and added.reason == (
        "its region needs 73,728 bytes of activation memory, the configuration has 65,536, and to cut it here moves "
        "the fewest"
    )
    size = 32 * 32
    assert fitted.link_bytes == size * (4 + 16 + 16 + 16 + 16) + 8 * 8 * 3


def test_weights_of_a_group_that_exceed_the_memory(tmp_path):
    config = dataclasses.replace(boards.get("ulx3s-85f").config, activation_bytes=1 << 17, weight_words=1024)
    fitted = fit(read(tmp_path, big_fully_connected), config)
    (reason,) = (op.reason for op in fitted.partitioned.cpu_operators if op.op == "fully_connected")
    assert reason == (
        "the weights of 16 output channels need 233,424 bytes of weight memory, the configuration has 147,456"
    )


def test_a_layer_that_exceeds_the_fields_of_its_descriptor(tmp_path):
    def wide(m):
        return [m.conv(m.conv(m.input((1, 2, 3000, 1)), 2, (1, 1)), 2, (1, 1), (1, 8))]

    config = dataclasses.replace(boards.get("ulx3s-85f").config, field_bits=12, activation_bytes=1 << 17)
    fitted = fit(read(tmp_path, wide), config, turn=False)
    reasons = [op.reason for op in fitted.partitioned.cpu_operators]
    assert len(reasons) == 1 and "too large for the engine" in reasons[0]


def _as_region(graph: LayerGraph) -> Region:
    return Region(graph, (), (), tuple(range(len(graph.layers))))


def _all_costs(graph: LayerGraph):
    """Of every way to cut a region whose pieces fit: by enumeration."""
    count = len(graph.layers)
    for cuts in itertools.product((False, True), repeat=count - 1):
        ends = [i + 1 for i, cut in enumerate(cuts) if cut] + [count]
        runs = list(zip([0, *ends], ends, strict=False))
        single = [i for i, (first, end) in enumerate(runs) if end == first + 1]
        for on_cpu in itertools.chain.from_iterable(itertools.combinations(single, n) for n in range(len(single) + 1)):
            total = _Cost()
            for index, (first, end) in enumerate(runs):
                piece = _piece(graph, first, end)
                if index in on_cpu:
                    total += _Cost(cpu_macs=graph.layers[first].macs, cpu_operators=1)
                elif _fits(SMALL, piece):
                    size = sum(math.prod((t.rows, t.columns, t.channels)) for t in (*piece.inputs, *piece.outputs))
                    total += _Cost(link_bytes=size, pieces=1)
                else:
                    break
            else:
                yield total


def test_no_cut_is_cheaper():
    """Compared with all of them, on chains with sums of old tensors that exceed the memory."""
    compared, cpu, several = 0, 0, 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        graph = random_graph(rng, [str(k) for k in rng.choice(["conv", "depthwise", "average", "add"], 5)])
        graph = dataclasses.replace(graph, outputs=(graph.layers[int(rng.integers(0, 4))].output, *graph.outputs))
        if _fits(SMALL, graph):
            continue
        runs = _cheapest_runs(SMALL, _as_region(graph), {i: x.macs for i, x in enumerate(graph.layers)})
        assert [run.first for run in runs] == [0, *(run.end for run in runs[:-1])] and runs[-1].end == 5
        assert all(run.on_cpu or _fits(SMALL, _piece(graph, run.first, run.end)) for run in runs)
        assert runs[-1].cost == min(_all_costs(graph))
        compared += 1
        cpu += any(run.on_cpu for run in runs)
        several += sum(not run.on_cpu for run in runs) > 1
    assert compared > 30 and cpu > 10 and several > 5


def concatenation(m: ModelWriter) -> list[int]:
    """Of parts that the convolutions write themselves; too wide for most."""
    a = m.conv(m.input((1, 32, 32, 4)), 16)
    parts = [m.conv(a, 8, (1, 1)) for _ in range(4)]
    for part in parts:
        m.tensors[part].quantization = m.tensors[parts[0]].quantization
    output = m.tensor((1, 32, 32, 32), scale=m.scale(parts[0]), zero_point=m.tensors[parts[0]].quantization.zeroPoint)
    options = schema.ConcatenationOptionsT()
    options.axis = 3
    return [m.conv(m.operator("CONCATENATION", parts, output, options), 4, (1, 1))]


@pytest.mark.parametrize("activation_bytes", [1 << 15, 1 << 16])
def test_data_movement_in_networks_that_do_not_fit(tmp_path, activation_bytes):
    config = dataclasses.replace(boards.get("ulx3s-85f").config, activation_bytes=activation_bytes)
    with patch.dict(CONFIGS, small=config):
        exact(tmp_path, concatenation, config="small", inputs=1)
    fitted = fit(read(tmp_path, concatenation), config)
    assert fitted.is_cut == (activation_bytes < 1 << 16)
    assert 0.8 < fitted.engine_share <= 1


def test_what_would_take_more_is_named(tmp_path):
    graph = read(tmp_path, huge_layer_in_the_middle)
    for name, config in (("ulx3s-85f", None), ("tang-nano-20k", None), ("ulx3s-85f", SMALL)):
        board = boards.get(name)
        config = config or board.config
        fitted = fit(graph, config)
        larger = find_larger(graph, fitted, config, board)
        assert larger.fitted.rank > fitted.rank
        memory = external_timing(boards.get(larger.board))
        assert larger.fitted.rank == fit(graph, larger.config, memory=memory).rank
        assert larger.board == {"ulx3s-85f": "ulx3s-85f-sdram"}.get(name, "pynq-z2")
        assert not larger.is_searched and not larger.fitted.is_cut
    small = dataclasses.replace(board, config=dataclasses.replace(board.config, activation_bytes=16384))
    (*_, most) = with_more_memory(small)
    assert most.activation_bytes == 65536  # the device's block RAM ends there
    largest = boards.get("ultra96-v2")
    assert find_larger(graph, fit(graph, largest.config), largest.config, largest) is None


def test_report_and_cpu_code(tmp_path):
    m = ModelWriter(3)
    path = tmp_path / "model.tflite"
    path.write_bytes(m.finish(*residual_around_what_does_not_fit(m)))
    report = compile_model(path, output=tmp_path / "artifact").report
    macs = {layer["name"]: layer["macs"] for layer in report["layers"] if layer["target"] == "cpu"}
    assert sum(macs.values()) == report["cpu_macs"] == 2 * 16 * 16 * 16 * 250
    assert report["engine_share"] == round(report["macs"] / (report["macs"] + report["cpu_macs"]), 4)
    assert report["cut"] and report["would_take_more"]["board"] == "ulx3s-85f-sdram"
    assert report["would_take_more"]["engine_share"] == 1 and not report["would_take_more"]["cut"]
    litert = LiteRtReference(path)
    x = random_input(np.random.default_rng(0), (1, 16, 16, 3))
    for device in ("cpu", "model"):
        with InferenceSession(tmp_path / "artifact", device) as session:
            (value,) = session.run(None, {session.get_inputs()[0].name: x})
        np.testing.assert_array_equal(value, litert.run(x)[0])


def test_explore_a_network_that_no_configuration_holds(tmp_path):
    def endless(m):
        return [m.conv(m.conv(m.input((1, 400, 400, 3)), 8, strides=(8, 8)), 8)]

    m = ModelWriter(0)
    path = tmp_path / "model.tflite"
    path.write_bytes(m.finish(*endless(m)))
    found = explore(path, board="ulx3s-85f", workers=1)
    assert found.is_cut and found.chosen is found.best and 0 < found.best.engine_share < 1
    assert found.best.engine_share == fit(read_model(path), found.best.config).engine_share
    assert "none of" in found.reason() and "holds all of model on ulx3s-85f" in found.reason()
