"""Outputs whose rows and columns take turns (every second, third or fourth of a tensor), against LiteRT."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from nnloom.compiler.copies import is_copy
from nnloom.compiler.emit import emit
from nnloom.compiler.ops.interleave import turns
from nnloom.compiler.ops.operator import Refusal
from tests.compiler.litert import exact
from tests.fuzz.check import CONFIGS
from tests.sim.test_rtl_random import run_on_rtl
from tests.tflite_models import ModelWriter


def like(m: ModelWriter, x: int, shape: tuple[int, ...]) -> int:
    q = m.tensors[x].quantization
    return m.tensor(shape, scale=float(q.scale[0]), zero_point=int(q.zeroPoint[0]))


def resized(m: ModelWriter, x: int, rows: int, columns: int, **options: bool) -> int:
    size = m.tensor((2,), dtype="INT32", data=np.array([rows, columns], np.int32))
    values = schema.ResizeNearestNeighborOptionsT()
    for name, value in options.items():
        setattr(values, name, value)
    y = like(m, x, (1, rows, columns, m.shape(x)[3]))
    return m.operator("RESIZE_NEAREST_NEIGHBOR", [x, size], y, values)


def depth_to_space(m: ModelWriter, x: int, block: int) -> int:
    _, rows, columns, channels = m.shape(x)
    values = schema.DepthToSpaceOptionsT()
    values.blockSize = block
    y = like(m, x, (1, rows * block, columns * block, channels // block**2))
    return m.operator("DEPTH_TO_SPACE", [x], y, values)


@pytest.mark.parametrize("config", ["2x16x9", "8x5 with larger memories", "2x16x9 with row triples"])
@pytest.mark.parametrize(
    ("kernel", "strides", "padding"),
    [((2, 2), (2, 2), "VALID"), ((3, 3), (2, 2), "SAME"), ((4, 5), (2, 3), "VALID"), ((1, 2), (3, 1), "SAME"),
     ((5, 3), (4, 4), "SAME"), ((7, 1), (3, 2), "VALID")],
)  # fmt: skip
def test_strided_transposed_convolution(tmp_path, kernel, strides, padding, config):
    def build(m: ModelWriter) -> list[int]:
        x = m.conv(m.input((1, 5, 6, 3)), 12)
        y = m.transpose_conv(x, 10, kernel, strides, padding)
        return [m.conv(y, 4), m.depthwise(y)]

    partitioned = exact(tmp_path, build, sum(kernel), config=config)
    assert not partitioned.cpu_operators
    assert len(partitioned.graphs) == 1


@pytest.mark.parametrize("config", ["2x16x9", "8x5 with larger memories"])
@pytest.mark.parametrize(
    ("size", "options"),
    [((10, 12), {}), ((15, 24), {"halfPixelCenters": True}), ((10, 6), {"alignCorners": True}), ((5, 3), {}),
     ((7, 9), {"halfPixelCenters": True}), ((13, 9), {})],
)  # fmt: skip
def test_nearest_neighbour(tmp_path, size, options, config):
    def build(m: ModelWriter) -> list[int]:
        y = resized(m, m.conv(m.input((1, 5, 6, 3)), 20), *size, **options)
        return [m.conv(y, 4), m.pool(y, "MAX", (2, 2), (2, 2))]

    partitioned = exact(tmp_path, build, size[0], config=config)
    assert bool(partitioned.cpu_operators) == (size == (13, 9))


@pytest.mark.parametrize("config", ["2x16x9", "8x5 with larger memories"])
@pytest.mark.parametrize(("block", "channels"), [(2, 8), (2, 5), (3, 16), (4, 1)])
def test_depth_to_space(tmp_path, block, channels, config):
    def build(m: ModelWriter) -> list[int]:
        x = m.conv(m.input((1, 5, 6, 3)), channels * block**2)
        y = depth_to_space(m, x, block)
        return [m.conv(y, 4), m.depthwise(y)]

    partitioned = exact(tmp_path, build, block, config=config)
    assert not partitioned.cpu_operators


def test_a_copy_to_every_second_row_stays_where_others_read(tmp_path):
    """The first copy to every second column goes, and the second reads there. Nobody reads every second row."""

    def build(m: ModelWriter) -> list[int]:
        x = m.input((1, 5, 6, 3))
        a = m.depthwise(m.conv(x, 8))
        alone = resized(m, a, 5, 12)
        return [m.conv(alone, 4), m.conv(resized(m, m.depthwise(x), 10, 6), 3)]

    partitioned = exact(tmp_path, build)
    (region,) = emit(CONFIGS["2x16x9"], partitioned.graphs).regions
    assert sum(map(is_copy, region.graph.layers)) == 3


def test_turns():
    def found(sources, most=4):
        return [(t.start, t.step, t.count, t.source, t.source_step) for t in turns(np.array(sources), most)]

    assert found([0, 1, 2]) == [(0, 1, 3, 0, 1)]
    assert found([0, 0, 0]) == [(0, 1, 3, 0, 0)]
    assert found([0, 0, 1, 1, 2]) == [(0, 2, 3, 0, 1), (1, 2, 2, 0, 1)]
    assert found([0, 0, 1, 2, 2, 3]) == [(0, 3, 2, 0, 2), (1, 3, 2, 0, 2), (2, 3, 2, 1, 2)]
    assert found([5]) == [(0, 1, 1, 5, 1)]
    assert found([0, 3, 6]) == [(0, 1, 3, 0, 3)]
    with pytest.raises(Refusal, match="at most 4"):
        found([k // 5 for k in range(15)])
    assert len(found([k // 5 for k in range(15)], 5)) == 5
    with pytest.raises(Refusal):
        found([4, 3, 2, 1, 0])


@pytest.mark.verilator
def test_all_of_them_in_rtl(tmp_path):
    def build(m: ModelWriter) -> list[int]:
        x = m.conv(m.input((1, 5, 6, 3)), 12)
        y = m.pool(m.transpose_conv(x, 10, (3, 3), (2, 2)), "MAX", (3, 2), (2, 2), "SAME")
        return [m.conv(resized(m, y, 15, 12), 4), m.conv(depth_to_space(m, x, 2), 3)]

    config = "2x16x9 with row triples and product registers"
    partitioned = exact(tmp_path, build, config=config)
    assert not partitioned.cpu_operators
    (graph,) = partitioned.graphs
    run_on_rtl(CONFIGS[config], graph, np.random.default_rng(1))
