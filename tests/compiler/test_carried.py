"""Depthwise kernels of one column that use the loads of the output row above."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nnloom.arch.config import AcceleratorConfig
from nnloom.compiler.carried import with_carried_rows, with_spare_rows
from nnloom.compiler.carried_steps import carried_steps
from nnloom.compiler.cost import program_cycles
from nnloom.compiler.emit import emit
from nnloom.compiler.graph import LayerGraph, Padding
from nnloom.compiler.memory import plan_memory
from nnloom.sim.golden import GoldenModel
from tests.graphs import evaluate, random_layer, tensor
from tests.harness import check_outputs, compile_region, random_inputs

CONFIG = AcceleratorConfig(pixels=2)


def column(seed, kernel, stride, rows, channels, before, after):
    """A region of one depthwise layer over a tensor of one column."""
    rng = np.random.default_rng(seed)
    source = tensor(rng, "x", rows, 1, channels)
    output = tensor(rng, "y", (rows + before + after - kernel) // stride + 1, 1, channels)
    layer = replace(
        random_layer(rng, "depthwise", source),
        weights=rng.integers(-40, 41, (kernel, 1, channels), np.int8),
        weight_scales=rng.uniform(0.3, 1, channels) * output.scale / source.scale / 100,
        bias=rng.integers(-2000, 2000, channels).astype(np.int32),
        strides=(stride, 1),
        padding=Padding(before, 0, after, 0),
        output=output,
    )
    return rng, LayerGraph("region", (source,), (output,), (layer,))


@pytest.mark.parametrize(("kernel", "stride", "loads"), [(9, 2, 2), (5, 1, 1), (7, 1, 2), (9, 3, 1), (11, 1, 3)])
def test_fewer_loads_and_the_same_answers(kernel, stride, loads):
    carried = 0
    for seed in range(6):
        before, after = seed % kernel, (seed + 3) % 5
        rng, graph = column([kernel, seed], kernel, stride, 60 + seed, 17 * (seed % 3) + 7, before, after)
        form = with_carried_rows(CONFIG, graph)
        if len(form.layers) == 1:
            continue
        carried += 1
        fill, main, first = form.layers
        assert main.macs + first.macs == graph.macs and fill.output.channels == min(16, first.output.channels)
        compiled = compile_region(CONFIG, form)
        _, d, _ = compiled.descriptors
        assert d.n_ky * d.n_kx == loads and first.output.rows == main.carried == (2 if loads == 1 else 1)
        plain = compile_region(CONFIG, graph)
        assert program_cycles(CONFIG, compiled.descriptors) < program_cycles(CONFIG, plain.descriptors)
        model = GoldenModel(compiled.config, compiled.program, compiled.weights, compiled.tables)
        for _ in range(2):
            model.activations[:] = rng.integers(0, 256, model.activations.shape, np.uint8)
            model.window[:] = rng.integers(-128, 128, model.window.shape, np.int8)
            inputs = random_inputs(rng, graph)
            model.write_tensor(compiled.plan.locations["x"], inputs["x"])
            model.run()
            want = evaluate(graph, inputs)["y"]
            np.testing.assert_array_equal(model.read_tensor(compiled.plan.locations["y"]).reshape(want.shape), want)
    assert carried >= 3


def columns(seed, kernel, stride, rows, channels, before, after):
    """A layer that fills the window, one of `column`, and two that read it."""
    rng, graph = column(seed, kernel, stride, rows, channels, before, after)
    (layer,) = graph.layers
    given = tensor(rng, "given", rows, 1, channels)

    def straight(name, source, output):
        return replace(
            layer,
            name=name,
            inputs=(source,),
            output=output,
            weights=np.ones((1, 1, channels), np.int8),
            weight_scales=np.full(channels, 0.9 * output.scale / source.scale),
            bias=np.zeros(channels, np.int32),
            strides=(1, 1),
            padding=Padding(),
        )

    first = straight("first", given, layer.inputs[0])
    output = replace(layer.output, name="z")
    last = straight("last", layer.output, output)
    conv = random_layer(rng, "conv", layer.output, "conv")
    return rng, LayerGraph("region", (given,), (output, conv.output), (first, layer, last, conv))


@pytest.mark.parametrize(
    ("kernel", "stride", "passes", "loads"), [(9, 1, 3, 1), (7, 1, 2, 1), (9, 2, 1, 2), (5, 1, 1, 1), (11, 1, 3, 2)]
)
def test_passes_over_every_so_many_rows(kernel, stride, passes, loads):
    for seed in range(4):
        before, after = (seed * 5) % kernel, (seed + 3) % 5
        rng, graph = columns([kernel, seed], kernel, stride, 61 + seed, 17 * (seed % 3) + 7, before, after)
        form = with_spare_rows(CONFIG, graph)
        made = [layer for layer in form.layers if layer.output.name == "y"]
        assert [layer.output.row_step for layer in made] == [passes] * passes
        assert form.macs == graph.macs and with_carried_rows(CONFIG, form) == form
        compiled = compile_region(CONFIG, form)
        for d in compiled.descriptors[1 : 1 + passes]:
            assert d.n_ky * d.n_kx == loads and d.out_row_step == passes
        slower = compile_region(CONFIG, with_carried_rows(CONFIG, graph))
        assert program_cycles(CONFIG, compiled.descriptors) < program_cycles(CONFIG, slower.descriptors)
        # The passes have the same weights.
        assert len(emit(CONFIG, [graph]).weights) <= len(compiled.weights)
        check_outputs(compiled, graph, rng)


def test_no_spare_rows_where_a_tensor_is_needed_whole_or_memory_is_short():
    _, graph = columns(1, 9, 1, 60, 40, 4, 4)
    first, layer, last, conv = graph.layers
    assert len(emit(CONFIG, [graph]).regions[0].graph.layers) == 6
    output = replace(graph, outputs=(*graph.outputs, layer.output))
    rng = np.random.default_rng(1)
    added = random_layer(rng, "add", layer.output)
    other = next(t for t in added.inputs if t.name != layer.output.name)
    needed = replace(graph, inputs=(*graph.inputs, other), layers=(first, layer, last, conv, added))
    unfilled = replace(graph, inputs=layer.inputs, layers=(layer, last, conv))
    for other_graph in (output, needed, unfilled):
        assert with_spare_rows(CONFIG, other_graph) is other_graph
    config = replace(CONFIG, activation_bytes=16384)
    graphs = (columns(1, 9, 1, rows, 40, 4, 4)[1] for rows in range(60, 200))
    plans = (
        (graph, *(plan_memory(CONFIG, g).granules for g in (graph, with_spare_rows(CONFIG, graph)))) for graph in graphs
    )
    graph = next(graph for graph, least, more in plans if least <= config.bank_granules < more)
    assert len(emit(config, [graph]).regions[0].graph.layers) == 4


def test_where_it_does_not_pay_nothing_changes():
    _, short = column(1, 9, 2, 6, 16, 4, 4)
    _, same = column(2, 9, 1, 60, 16, 4, 4)  # the row above moved by one covers eight rows
    _, long = column(3, 9, 2, 100, 96, 4, 4)
    wide = replace(long.layers[0], output=replace(long.layers[0].output, columns=2))
    for graph in (short, same, replace(long, layers=(wide,))):
        assert with_carried_rows(CONFIG, graph) == graph
    assert with_carried_rows(AcceleratorConfig(lanes=8, taps=5, requant_units=2), long) == long
    # The first layer with a window fills it.
    assert [x.carried for x in with_carried_rows(CONFIG, long).layers] == [0, 1, 0]
    twice = replace(long, layers=long.layers * 2)
    assert [x.carried for x in with_carried_rows(CONFIG, twice).layers] == [0, 1, 0, 1, 0]


def test_not_where_parts_would_be_necessary():
    _, graph = column(3, 9, 2, 100, 300, 4, 4)
    weights = len(emit(CONFIG, [graph]).weights)
    assert len(emit(CONFIG, [graph]).regions[0].layers) == 3
    less = emit(replace(CONFIG, weight_words=weights - 1), [graph])
    assert len(less.regions[0].layers) == 1 and not less.parts


def test_every_kernel_row_has_a_place_of_its_own():
    for kernel in range(1, 30):
        for stride in range(1, 5):
            steps = carried_steps(kernel, stride, 3, 3)
            if steps is not None:
                assert steps.loads < -(-kernel // 3) and len(set(steps.taps)) == kernel
                assert all(load < steps.loads and c < 3 and r < 3 for load, c, r in steps.taps)
