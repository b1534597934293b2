"""Products of two tensors: in one layout, with a pixel for all of the other, repeated, with themselves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from nnloom.compiler.graph import LayerGraph, Mul
from nnloom.compiler.partition import Partitioned
from nnloom.sim.golden import GoldenModel
from tests.compiler.litert import exact
from tests.fuzz.check import CONFIGS
from tests.graphs import evaluate, tensor
from tests.harness import compile_region
from tests.sim.test_rtl_random import run_on_rtl
from tests.tflite_models import ModelWriter

CONFIGURATIONS = ("2x16x9", "8x5", "4x3 without overlap", "2x32x11")


def products(partitioned: Partitioned) -> list[Mul]:
    return [layer for graph in partitioned.graphs for layer in graph.layers if isinstance(layer, Mul)]


def squeeze_and_excite(m: ModelWriter, x: int, fewer: int, *, swapped: bool = False) -> int:
    channels = m.shape(x)[3]
    options = schema.ReducerOptionsT()
    options.keepDims = True
    axes = m.tensor((2,), dtype="INT32", data=np.array([1, 2], np.int32))
    mean = m.operator("MEAN", [x, axes], m.tensor((1, 1, 1, channels), scale=m.scale(x), zero_point=3), options)
    gate = m.conv(m.conv(mean, fewer, activation="relu"), channels, activation=None)
    gate = m.unary("LOGISTIC", gate, 1 / 256, -128)
    return m.binary("MUL", *((gate, x) if swapped else (x, gate)), m.scale(x) * 0.7)


@pytest.mark.parametrize("config", CONFIGURATIONS)
@pytest.mark.parametrize(
    ("shape", "activation"), [((6, 5, 11), None), ((1, 9, 7), "relu"), ((9, 1, 24), "relu6"), ((4, 4, 16), "relu")]
)
def test_two_tensors(tmp_path, config, shape, activation):
    rows, columns, channels = shape

    def build(m: ModelWriter) -> list[int]:
        x = m.input((1, rows, columns, 3))
        a, b = (m.conv(x, channels, activation=None) for _ in range(2))
        scale = m.scale(a) * m.scale(b) * {None: 40.0, "relu": 1.001, "relu6": 4096.0}[activation]
        return [m.conv(m.binary("MUL", a, b, scale, activation=activation), 4)]

    partitioned = exact(tmp_path, build, channels, config=config)
    assert len(products(partitioned)) == 1 and not partitioned.cpu_operators


@pytest.mark.parametrize("config", ["2x16x9", "8x5"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 27), (1, 6, 1, 27), (1, 1, 5, 1), (1, 6, 5, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("first", [False, True])
def test_operands_that_are_repeated(tmp_path, config, shape, first):
    def build(m: ModelWriter) -> list[int]:
        x = m.conv(m.input((1, 6, 5, 3)), 27, activation=None)
        window = 6 // shape[1], 5 // shape[2]
        small = m.conv(x, shape[3], window, window, "VALID", activation=None)
        scale = m.scale(x) * m.scale(small) * 64
        return [m.conv(m.binary("MUL", *((small, x) if first else (x, small)), scale), 4)]

    partitioned = exact(tmp_path, build, shape[3], config=config)
    (layer,) = products(partitioned)
    assert not partitioned.cpu_operators
    assert layer.pixel == (None if shape[1:3] != (1, 1) else 1 - first)


@pytest.mark.parametrize("config", ["2x16x9", "2x32x11"])
def test_a_tensor_with_itself_and_parts(tmp_path, config):
    def build(m: ModelWriter) -> list[int]:
        x = m.conv(m.input((1, 6, 5, 3)), 32, activation=None)
        squares = m.binary("MUL", x, x, m.scale(x) ** 2 * 100)
        halves = [m.slice(x, (0, 0, 0, k), (1, 6, 5, 16)) for k in (0, 16)]
        pixel = m.slice(x, (0, 4, 2, 0), (1, 1, 1, 16))
        both = m.binary("MUL", *halves, m.scale(x) ** 2 * 80)
        return [m.conv(squares, 3), m.conv(m.binary("MUL", pixel, both, m.scale(x) * m.scale(both) * 60), 4)]

    partitioned = exact(tmp_path, build, config=config)
    # A square is a function of one value: a table, where there are some.
    squares = sum(bool(layer.table) for graph in partitioned.graphs for layer in graph.layers)
    assert squares == bool(CONFIGS[config].tables)
    assert len(products(partitioned)) == 3 - squares and not partitioned.cpu_operators


@pytest.mark.parametrize(("points", "scale"), [((-128, -128), 300.0), ((127, -128), 64.0), ((127, 127), 1e6)])
def test_zero_points_and_scales_at_the_ends(tmp_path, points, scale):
    def build(m: ModelWriter) -> list[int]:
        x = m.input((1, 5, 5, 3))
        a, b = (m.conv(x, 16, activation=None) for _ in range(2))
        for t, point in zip((a, b), points, strict=True):
            m.tensors[t].quantization.zeroPoint = [point]
        return [m.conv(m.binary("MUL", a, b, m.scale(a) * m.scale(b) * scale, zero_point=-128), 4)]

    assert len(products(exact(tmp_path, build))) == 1


def test_what_stays_on_the_cpu(tmp_path):
    def steep(m: ModelWriter) -> list[int]:
        x = m.input((1, 5, 5, 3))
        a, b = (m.conv(x, 8, activation=None) for _ in range(2))
        return [m.conv(m.binary("MUL", a, b, m.scale(a) * m.scale(b) / 3), 4)]

    (item,) = exact(tmp_path, steep).cpu_operators
    assert item.op == "mul" and "below 1" in item.reason

    def alone(m: ModelWriter) -> list[int]:
        a, b = m.input((1, 5, 5, 3)), m.input((1, 5, 5, 3))
        return [m.binary("MUL", a, b, m.scale(a) * m.scale(b) * 50)]

    (item,) = exact(tmp_path, alone).cpu_operators
    assert item.reason == "no operand of it is on the accelerator"

    def plain(m: ModelWriter) -> list[int]:
        x = m.conv(m.input((1, 5, 5, 3)), 8)
        return [m.binary("MUL", x, x, m.scale(x) ** 2 * 50)]

    (item,) = exact(tmp_path, plain, config="16x9").cpu_operators
    assert "elementwise_mul=False" in item.reason


@pytest.mark.parametrize("config", ["2x16x9", "8x5"])
@pytest.mark.parametrize("swapped", [False, True])
def test_squeeze_and_excite(tmp_path, config, swapped):
    def build(m: ModelWriter) -> list[int]:
        x = m.depthwise(m.conv(m.input((1, 7, 6, 3)), 20))
        return [m.conv(squeeze_and_excite(m, x, 5, swapped=swapped), 8)]

    partitioned = exact(tmp_path, build, config=config, native=config == "8x5" and swapped)
    (layer,) = products(partitioned)
    assert layer.pixel == 1 - swapped
    # LOGISTIC is a table, where there are some.
    tables = CONFIGS[config].tables
    assert (len(partitioned.cpu_operators), len(partitioned.graphs)) == ((0, 1) if tables else (1, 2))


def test_an_even_product_is_one_long_row(tmp_path):
    def build(m: ModelWriter) -> list[int]:
        x = m.input((1, 60, 1, 3))
        a, b = (m.conv(x, 8, activation=None) for _ in range(2))
        return [m.conv(m.binary("MUL", a, b, m.scale(a) * m.scale(b) * 50), 4)]

    (graph,) = exact(tmp_path, build).graphs
    (d,) = (d for d in compile_region(CONFIGS["2x16x9"], graph).descriptors if d.product)
    assert (d.n_oy, d.n_ox, d.in_row_bytes) == (4, 8, 120)


def test_products_at_both_ends_of_all_bytes():
    """Every pair of bytes, with zero points at the ends: the sum of the taps is the product of the differences."""
    config = dataclasses.replace(CONFIGS["2x16x9"], activation_bytes=1 << 18)
    rng = np.random.default_rng(0)
    for points in ((-128, 127), (0, -128), (-1, 5)):
        a, b = (tensor(rng, name, 64, 64, 16) for name in "ab")
        a, b = (dataclasses.replace(t, zero_point=p, scale=0.5) for t, p in zip((a, b), points, strict=True))
        out = dataclasses.replace(a, name="out", scale=64.0, zero_point=0)
        layer = Mul(name="mul", inputs=(a, b), output=out)
        graph = LayerGraph("region", (a, b), (out,), (layer,))
        compiled = compile_region(config, graph)
        pairs = np.indices((256, 256)).reshape(2, 64, 64, 16) - 128
        model = GoldenModel(config, compiled.program, compiled.weights)
        values = dict(zip("ab", pairs.astype(np.int8), strict=True))
        for name, value in values.items():
            model.write_tensor(compiled.plan.locations[name], value)
        model.run()
        got = model.read_tensor(compiled.plan.locations["out"])
        np.testing.assert_array_equal(got.reshape(64, 64, 16), evaluate(graph, values)["out"])


@pytest.mark.verilator
def test_squeeze_and_excite_in_rtl(tmp_path):
    def build(m: ModelWriter) -> list[int]:
        x = m.conv(m.input((1, 7, 6, 3)), 12)
        y = squeeze_and_excite(m, x, 5)
        return [m.conv(m.binary("MUL", x, y, m.scale(x) * m.scale(y) * 70), 8)]

    config = "2x16x9 with row triples and product registers"
    partitioned = exact(tmp_path, build, config=config)
    (graph,) = partitioned.graphs
    assert len(products(partitioned)) == 2 and any(layer.table for layer in graph.layers)
    run_on_rtl(CONFIGS[config], graph, np.random.default_rng(1))
