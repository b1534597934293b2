"""Padding columns that stay in the window between rows, groups and layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import Kind
from nnloom.arch.loopnest import issue_cycles
from nnloom.compiler.graph import DepthwiseConv2D, LayerGraph, Padding
from nnloom.compiler.padding_columns import keep_padding_columns
from nnloom.sim.golden import GoldenModel, execute_literally
from tests.graphs import evaluate, random_layer, tensor
from tests.harness import compile_region, random_inputs

CONFIGS = {"16x9": AcceleratorConfig(), "2x16x9": AcceleratorConfig(pixels=2)}


def depthwise(rng: np.random.Generator, source, name: str, padding: Padding, stride: int = 1) -> DepthwiseConv2D:
    """3x3 over `source`."""
    layer = random_layer(rng, "depthwise", source, name)
    rows = (source.rows + padding.top + padding.bottom - 3) // stride + 1
    columns = (source.columns + padding.left + padding.right - 3) // stride + 1
    output = replace(layer.output, rows=rows, columns=columns, shape=(1, rows, columns, source.channels))
    weights = rng.integers(-127, 128, (3, 3, source.channels), np.int8)
    return replace(layer, weights=weights, padding=padding, strides=(stride, stride), output=output)


def chain(rng: np.random.Generator, paddings: list[Padding], *, zero_point: int | None = None, stride: int = 1):
    """A region of depthwise layers; with `zero_point`, that of every tensor."""

    def pointed(t):
        return t if zero_point is None else replace(t, zero_point=zero_point)

    source = first = pointed(tensor(rng, "x", 7, 6, 40))
    layers = []
    for index, padding in enumerate(paddings):
        layer = depthwise(rng, source, f"depthwise_{index}", padding, stride)
        layer = replace(layer, output=pointed(layer.output))
        layers.append(layer)
        source = layer.output
    return LayerGraph("region", (first,), (source,), tuple(layers))


def check(config: AcceleratorConfig, graph: LayerGraph, rng: np.random.Generator):
    """The program computes the definition whatever the window held before. Returns its descriptors."""
    compiled = compile_region(config, graph)
    for execute in (GoldenModel.execute, execute_literally):
        model = GoldenModel(config, compiled.program, compiled.weights, compiled.tables)
        for _ in range(2):  # and whatever ran before
            model.activations[:] = rng.integers(0, 256, model.activations.shape, np.uint8)
            model.window = rng.integers(-128, 128, model.window.shape, np.int8)
            inputs = random_inputs(rng, graph)
            for name, value in inputs.items():
                model.write_tensor(compiled.plan.locations[name], value)
            for d in compiled.descriptors:
                execute(model, d)
            for t in graph.outputs:
                got = model.read_tensor(compiled.plan.locations[t.name])
                want = evaluate(graph, inputs)[t.name]
                np.testing.assert_array_equal(got.reshape(want.shape), want)
    return compiled.descriptors


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_step_of_each_row_is_saved_after_the_first_layer(config):
    rng = np.random.default_rng(1)
    first, second, third = check(config, chain(rng, [Padding(1, 1, 1, 1)] * 3, zero_point=-128), rng)
    assert (first.n_ox, first.slide_first, first.q_start) == (8, 2, -first.q_step_ox)
    for d in (second, third):
        assert (d.n_ox, d.slide_first, d.q_start) == (7, 1, 0)
        # A step of each of seven rows in three channel groups.
        assert issue_cycles(config, first) - issue_cycles(config, d) == 7 * 3


@pytest.mark.parametrize(
    ("paddings", "zero_point", "stride"),
    [
        ([Padding(1, 1, 1, 1)] * 2, None, 1),  # another zero point
        ([Padding(1, 1, 1, 0), Padding(1, 1, 1, 1)], 5, 1),  # nothing on the right of the layer before
        ([Padding(1, 1, 1, 1), Padding(1, 1, 1, 0)], 5, 1),  # nothing on the right of this layer
        ([Padding(1, 1, 1, 1), Padding(0, 0, 1, 1)], 5, 1),  # nothing on the left
    ],
)
def test_other_padding_is_loaded(paddings, zero_point, stride):
    rng = np.random.default_rng(2)
    descriptors = check(CONFIGS["16x9"], chain(rng, paddings, zero_point=zero_point, stride=stride), rng)
    last = paddings[-1]
    assert descriptors[-1].slide_first == 2 and descriptors[-1].q_start == -last.left * descriptors[-1].q_step_ox


def test_random_paddings_and_strides():
    rng = np.random.default_rng(3)
    kept = 0
    for _ in range(40):
        paddings = [Padding(*(int(v) for v in rng.integers(0, 3, 4))) for _ in range(3)]
        paddings = [replace(p, top=max(1, p.top), bottom=max(1, p.bottom)) for p in paddings]
        graph = chain(rng, paddings, zero_point=int(rng.integers(-128, 128)), stride=int(rng.integers(1, 3)))
        if any(t.rows < 1 or t.columns < 1 for layer in graph.layers for t in (layer.output,)):
            continue
        descriptors = check(CONFIGS["16x9"], graph, rng)
        kept += sum(d.slide_first < 2 for d in descriptors)
    assert kept > 10


def test_layers_that_load_other_columns_forget_it():
    rng = np.random.default_rng(4)
    (d, _) = check(CONFIGS["16x9"], chain(rng, [Padding(1, 1, 1, 1)] * 2, zero_point=3), rng)
    d = replace(d, last=0)
    dense, other = replace(d, kind=Kind.DENSE, slide=0), replace(d, slide=0)
    assert [x.slide_first for x in keep_padding_columns([d, d])] == [2, 1]
    assert [x.slide_first for x in keep_padding_columns([d, dense, d])] == [2, 2, 1]
    assert [x.slide_first for x in keep_padding_columns([d, other, d])] == [2, 2, 2]
    assert [x.slide_first for x in keep_padding_columns([d, replace(d, kind=Kind.ADD, slide=0), d])] == [2, 2, 2]
    # The same pixels over and over: no padding comes behind them.
    assert [x.slide_first for x in keep_padding_columns([d, replace(d, q_step_ox=0), d])] == [2, 2, 2]
