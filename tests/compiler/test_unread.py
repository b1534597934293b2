"""What no layer reads is not computed, and the outputs stay the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nnloom.arch.config import AcceleratorConfig
from nnloom.compiler.graph import Conv2D, DepthwiseConv2D, LayerGraph, Padding
from nnloom.compiler.unread import without_unread
from tests.graphs import random_graph, random_layer, tensor
from tests.harness import check_outputs, compile_region

CONFIG = AcceleratorConfig(pixels=2)


def window(rng, kind, source, name, kernel, strides, padding, size, channels=None):
    """A layer with this window; size: rows and columns of its output."""
    layer = random_layer(rng, kind, source, name)
    output = replace(
        layer.output,
        rows=size[0],
        columns=size[1],
        channels=channels or source.channels,
        shape=(1, *size, channels or source.channels),
    )
    if kind in ("average", "maximum"):
        fields = dict(window=kernel, padding=padding) if kind == "maximum" else dict(window=kernel)
        return replace(layer, strides=strides, output=output, **fields)
    shape = (channels, *kernel, source.channels) if kind == "conv" else (*kernel, source.channels)
    count = output.channels
    values = dict(
        weights=rng.integers(-127, 128, shape, np.int8),
        weight_scales=np.full(count, 0.002 * output.scale / source.scale),
        bias=rng.integers(-2000, 2000, count).astype(np.int32),
    )
    return replace(layer, strides=strides, padding=padding, output=output, **values)


def run(graph, prepared, rng):
    compiled = compile_region(CONFIG, prepared)
    check_outputs(compiled, graph, rng)
    return compiled


def test_rows_and_columns_that_pools_leave_are_not_computed():
    """As in rock_paper_scissors: 41 rows of which a pool and convolutions without padding use 38."""
    rng = np.random.default_rng(1)
    source = tensor(rng, "x", 22, 23, 5)
    none = Padding()
    a = window(rng, "conv", source, "a", (3, 3), (1, 1), none, (20, 21), 7)
    b = window(rng, "maximum", a.output, "b", (2, 2), (2, 2), none, (10, 10))
    c = window(rng, "depthwise", b.output, "c", (3, 3), (1, 1), none, (8, 8))
    d = window(rng, "average", c.output, "d", (3, 2), (3, 2), none, (2, 4))
    graph = LayerGraph("region", (source,), (d.output,), (a, b, c, d))
    prepared = without_unread(graph)
    sizes = [(x.output.rows, x.output.columns) for x in prepared.layers]
    assert sizes == [(16, 20), (8, 10), (6, 8), (2, 4)]
    assert all(y.inputs[0] == x.output for x, y in zip(prepared.layers, prepared.layers[1:], strict=False))
    before = run(graph, graph, rng)
    after = run(graph, prepared, rng)
    assert [d.n_oy * d.n_ox for d in after.descriptors] < [d.n_oy * d.n_ox for d in before.descriptors]


def test_what_others_read_stays():
    rng = np.random.default_rng(2)
    source = tensor(rng, "x", 9, 9, 4)
    same = Padding(1, 1, 1, 1)
    a = window(rng, "conv", source, "a", (3, 3), (1, 1), same, (9, 9), 6)
    pooled = window(rng, "average", a.output, "p", (2, 2), (2, 2), Padding(), (4, 4))
    padded = window(rng, "conv", a.output, "q", (3, 3), (2, 2), same, (5, 5), 3)
    for outputs, layers in (
        ((pooled.output, padded.output), (a, pooled, padded)),  # padding behind row 9
        ((a.output, pooled.output), (a, pooled)),  # the host reads it
    ):
        graph = LayerGraph("region", (source,), outputs, layers)
        assert without_unread(graph) == graph
    graph = LayerGraph("region", (source,), (pooled.output,), (a, pooled))
    assert without_unread(graph).layers[0].output.rows == 8
    # An output that nobody reads is no reason to leave out what its layer reads.
    graph = LayerGraph("region", (source,), (pooled.output,), (a, pooled, padded))
    assert without_unread(graph).layers[0].output.rows == 9


@pytest.mark.parametrize("kind", ["conv", "depthwise"])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "before", "output", "left"),
    [
        (2, 9, 1, 4, 2, 3),
        (1, 3, 1, 1, 1, 1),
        (3, 7, 2, 3, 2, 5),
        (5, 5, 1, 2, 5, 5),
        (2, 2, 1, 3, 2, 1),  # nothing but padding
    ],
)
def test_taps_that_see_padding_alone_go(kind, size, kernel, stride, before, output, left):
    rng = np.random.default_rng([size, kernel])
    for axis in range(2):

        def both(value, other, axis=axis):
            return (value, other) if axis == 0 else (other, value)

        source = tensor(rng, "x", *both(size, 3), 6)
        padding = Padding(*both(before, 0), *both(9, 0))
        layer = window(rng, kind, source, "a", both(kernel, 1), both(stride, 1), padding, both(output, 3), 6)
        graph = LayerGraph("region", (source,), (layer.output,), (layer,))
        prepared = without_unread(graph)
        (got,) = prepared.layers
        shape = got.weights.shape[1:3] if kind == "conv" else got.weights.shape[:2]
        assert isinstance(got, Conv2D | DepthwiseConv2D) and shape == both(left, 1)
        run(graph, prepared, rng)


def test_random_regions_give_the_same():
    cut = 0
    for seed in range(60):
        rng = np.random.default_rng([7, seed])
        kinds = ["conv", "depthwise", "depthwise_large", "average", "maximum", "add", "dense"]
        graph = random_graph(rng, [str(k) for k in rng.choice(kinds, 5)])
        prepared = without_unread(graph)
        run(graph, prepared, rng)
        cut += prepared.macs < graph.macs
    assert cut > 15
