"""Layers at the limits of the engine's numbers and memories: right to the bit, or refused."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import CapacityError, UnsupportedOperatorError
from nnloom.compiler.graph import (
    Add,
    AveragePool2D,
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    Layer,
    LayerGraph,
    MaxPool2D,
    Tensor,
)
from nnloom.compiler.memory import check_plan, lifetimes, plan_memory
from nnloom.sim.golden import GoldenModel
from tests import exact
from tests.graphs import evaluate, random_layer, tensor
from tests.harness import compile_region

CONFIG = AcceleratorConfig()
LIMIT = 1 << 17
"""A narrow accumulator is one of 18 bits."""
EVERY_VALUE = np.arange(-128, 128, dtype=np.int8)


def single_layer(kind: str, bias: int, factor: float, zero_point: int, weight: int = 1) -> Layer:
    """A layer of one channel whose accumulator is weight * value + bias: [256 values in a row], or for dense [1]."""
    columns = 1 if kind == "dense" else 256
    x = Tensor(name="x", rows=1, columns=columns, channels=1, scale=1.0, zero_point=0, shape=(1, 1, columns, 1))
    y = replace(x, name="y", zero_point=zero_point)
    common = dict(name="layer", inputs=(x,), output=y, act_min=-128, act_max=127)
    common |= dict(weight_scales=np.array([factor]), bias=np.array([bias], np.int32))
    weights = np.array([weight], np.int8)
    if kind == "dense":
        return FullyConnected(**common, weights=weights.reshape(1, 1))
    if kind == "conv":
        return Conv2D(**common, weights=weights.reshape(1, 1, 1, 1))
    return DepthwiseConv2D(**common, weights=weights.reshape(1, 1, 1))


def run(layer: Layer):
    """(descriptor, outputs of the golden model, outputs by definition) for every int8 value."""
    graph = LayerGraph("region", layer.inputs, (layer.output,), (layer,))
    compiled = compile_region(CONFIG, graph)
    (d,) = compiled.descriptors
    got, want = [], []
    for x in EVERY_VALUE.reshape(-1, layer.inputs[0].columns):
        model = GoldenModel(compiled.config, compiled.program, compiled.weights, compiled.tables)
        model.write_tensor(compiled.plan.locations["x"], x)
        model.run()
        got += model.read_tensor(compiled.plan.locations["y"]).ravel().tolist()
        want += evaluate(graph, {"x": x})["y"].ravel().tolist()
    return d, got, want


def step_at(acc: int, kind: str) -> tuple[float, int]:
    """(factor, zero point) with which `acc` and its neighbour towards zero are on two sides of a step, unclamped."""
    function = exact.rescale_once if kind == "dense" else exact.rescale
    inner = acc - 1 if acc > 0 else acc + 1
    # Rounded twice, the step is not where the exact product has it.
    candidates = ((k + 0.5) / (abs(acc) - d) for k in range(60, 90) for d in (0.5, 0.3, 0.7, 0.0, 1.0, 1.5))
    factor = next(f for f in candidates if function(acc, f) != function(inner, f))
    return factor, -70 if acc > 0 else 70


@pytest.mark.parametrize("kind", ["conv", "dense", "depthwise"])
@pytest.mark.parametrize(
    "extreme", [LIMIT - 2, LIMIT - 1, LIMIT, LIMIT + 1, -LIMIT + 1, -LIMIT, -LIMIT - 1, -LIMIT - 2]
)
def test_narrow_to_the_last_accumulator(kind, extreme):
    """Layers whose extreme accumulator is at the limit, and matters."""
    bias = extreme - (127 if extreme > 0 else -128)
    factor, zero_point = step_at(extreme, kind)
    d, got, want = run(single_layer(kind, bias, factor, zero_point))
    assert got == want
    assert d.narrow == (-LIMIT <= extreme < LIMIT)
    assert got[-1 if extreme > 0 else 0] != got[-2 if extreme > 0 else 1]


@pytest.mark.parametrize(("window", "narrow"), [((31, 33), True), ((33, 31), True), ((33, 32), False)])
@pytest.mark.parametrize("value", [-128, 127])
def test_narrow_to_the_last_sum_of_an_average_pool(window, narrow, value):
    """1,023 values sum to 130,944 at most, 1,056 to 135,168: one bit more."""
    rows, columns = window
    x = Tensor(name="x", rows=rows, columns=columns, channels=1, scale=1.0, zero_point=0, shape=(1, *window, 1))
    y = replace(x, name="y", rows=1, columns=1, shape=(1, 1, 1, 1))
    common = dict(name="layer", inputs=(x,), output=y, act_min=-128, act_max=127)
    layer = AveragePool2D(**common, window=window, strides=(1, 1))
    compiled = compile_region(CONFIG, LayerGraph("region", (x,), (y,), (layer,)))
    (d,) = compiled.descriptors
    model = GoldenModel(CONFIG, compiled.program, compiled.weights, compiled.tables)
    model.write_tensor(compiled.plan.locations["x"], np.full((rows, columns, 1), value, np.int8))
    model.run()
    assert model.read_tensor(compiled.plan.locations["y"]).ravel().tolist() == [value]
    assert d.narrow == narrow


@pytest.mark.parametrize("kind", ["conv", "dense", "depthwise"])
@pytest.mark.parametrize(
    "bias", [(1 << 31) - 1, (1 << 31) - 60, -(1 << 31), -(1 << 31) + 60, (1 << 31) - 128, -(1 << 31) + 128]
)
@pytest.mark.parametrize("point", [0, -77, 77])
def test_accumulators_that_can_wrap_wrap_or_are_refused(kind, bias, point):
    """Beyond 32 bits, by the input or by folding its zero point into the bias."""
    layer = single_layer(kind, bias, 2.0**-25 * 0.9, 0)
    layer = replace(layer, inputs=(replace(layer.inputs[0], zero_point=point),))
    try:
        d, got, want = run(layer)
    except UnsupportedOperatorError as error:
        # Without an accumulator that could wrap, a factor may still be one that single rounding cannot do exactly.
        assert "32 bits" in str(error) or "exact multiplier" in str(error)
        return
    assert got == want
    reach = [bias + int(v) - point for v in (-128, 127)]
    if min(reach) < -(1 << 31) or max(reach) >= 1 << 31:
        assert not d.narrow and len(set(got)) == 2


def reader(rng: np.random.Generator, kind: str, x: Tensor) -> Layer:
    y = replace(tensor(rng, f"{kind}_out", x.rows, x.columns, x.channels), scale=x.scale, zero_point=x.zero_point)
    common = dict(name=kind, inputs=(x,), output=y, act_min=-128, act_max=127)
    smaller = replace(y, rows=x.rows - 1, columns=x.columns - 1, shape=(1, x.rows - 1, x.columns - 1, x.channels))
    if kind == "average":
        return AveragePool2D(**{**common, "output": smaller}, window=(2, 2), strides=(1, 1))
    if kind == "maximum":
        return MaxPool2D(**{**common, "output": smaller}, window=(2, 2), strides=(1, 1))
    if kind == "add":
        return Add(**{**common, "inputs": (x, x)})
    return random_layer(rng, kind, x, kind)


@pytest.mark.parametrize("window", ["depthwise", "average", "maximum", "add"])
@pytest.mark.parametrize("dense", ["conv", "dense"])
@pytest.mark.parametrize("first", [0, 1])
def test_an_input_that_a_window_layer_reads_is_not_packed(window, dense, first):
    """Pixels of three channels lie side by side for a convolution alone; lanes of a window need whole granules."""
    rng = np.random.default_rng([first, len(window), len(dense)])
    x = tensor(rng, "x", 5, 4, 3)
    layers = [reader(rng, dense, x), reader(rng, window, x)]
    layers = layers[::-1] if first else layers
    graph = LayerGraph("region", (x,), tuple(layer.output for layer in layers), tuple(layers))
    compiled = compile_region(CONFIG, graph)
    assert compiled.plan.locations["x"].pixel_stride == CONFIG.granule
    values = {"x": rng.integers(-128, 128, (1, 5, 4, 3), np.int8)}
    model = GoldenModel(compiled.config, compiled.program, compiled.weights, compiled.tables)
    model.write_tensor(compiled.plan.locations["x"], values["x"])
    model.run()
    want = evaluate(graph, values)
    for layer in layers:
        got = model.read_tensor(compiled.plan.locations[layer.output.name])
        np.testing.assert_array_equal(got.ravel(), want[layer.output.name].ravel())
    alone = LayerGraph("region", (x,), (layers[first].output,), (layers[first],))
    locations, _ = lifetimes(CONFIG, alone)
    assert locations["x"].pixel_stride == 3


def test_the_checker_takes_the_last_cell_and_not_one_more():
    rng = np.random.default_rng(0)
    layer = random_layer(rng, "conv", tensor(rng, "x", 6, 5, 7))
    graph = LayerGraph("region", layer.inputs, (layer.output,), (layer,))
    plan = plan_memory(CONFIG, graph)
    for name in plan.locations:
        size = plan.locations[name].granules(CONFIG)
        last = CONFIG.bank_granules - size
        moved = {**plan.locations, name: dataclasses.replace(plan.locations[name], base=last)}
        check_plan(moved, plan.lifetimes, CONFIG)
        moved[name] = dataclasses.replace(moved[name], base=last + 1)
        with pytest.raises(CapacityError, match=f"{name} ends beyond"):
            check_plan(moved, plan.lifetimes, CONFIG)


def test_the_checker_takes_neighbours_and_no_shared_cell():
    rng = np.random.default_rng(1)
    layer = random_layer(rng, "conv", tensor(rng, "x", 6, 5, 7))
    graph = LayerGraph("region", layer.inputs, (layer.output,), (layer,))
    plan = plan_memory(CONFIG, graph)
    x, y = plan.locations["x"], plan.locations[layer.output.name]
    end = 100 + x.granules(CONFIG)
    for base in (end, 100 - y.granules(CONFIG)):
        moved = {"x": replace(x, base=100), y.name: replace(y, base=base)}
        check_plan(moved, plan.lifetimes, CONFIG)
    for base in (end - 1, 101 - y.granules(CONFIG)):
        moved = {"x": replace(x, base=100), y.name: replace(y, base=base)}
        with pytest.raises(CapacityError, match="overlaps"):
            check_plan(moved, plan.lifetimes, CONFIG)


def test_a_network_that_fills_the_memory_fits():
    """Input and output take all of it, to the last granule; a row more does not."""
    config = AcceleratorConfig(activation_bytes=2048)

    def graph(rows: int) -> LayerGraph:
        x = Tensor(name="x", rows=rows, columns=4, channels=8, scale=1.0, zero_point=0, shape=(1, rows, 4, 8))
        y = replace(x, name="y")
        layer = Conv2D(
            name="layer", inputs=(x,), output=y, act_min=-128, act_max=127, weights=np.ones((8, 1, 1, 8), np.int8),
            weight_scales=np.full(8, 0.01), bias=np.zeros(8, np.int32),
        )  # fmt: skip
        return LayerGraph("region", (x,), (y,), (layer,))

    plan = plan_memory(config, graph(32))
    assert plan.granules == config.bank_granules == 64 and plan.peak_bytes(config) == 2048
    with pytest.raises(CapacityError, match="activations need 2304 bytes, the configuration has 2048"):
        plan_memory(config, graph(33))
