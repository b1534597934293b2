"""What the lowering makes of a layer's channels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import CapacityError
from nnloom.arch.isa import needed_field_bits
from nnloom.arch.legality import check_image
from nnloom.compiler.graph import Conv2D, FullyConnected, LayerGraph, Padding
from nnloom.compiler.lower import channel_multipliers, unsupported_reason
from nnloom.sim.golden import GoldenModel
from tests.graphs import evaluate, random_graph, random_layer, tensor
from tests.harness import compile_region, random_inputs


@pytest.mark.parametrize("kind", ["conv", "depthwise", "dense"])
@pytest.mark.parametrize("value", [-90, 0, 127])
def test_a_channel_of_one_value_is_narrow_whatever_its_bias(kind, value):
    """Scales of channels that training switched off are tiny, and their biases huge."""
    rng = np.random.default_rng([len(kind), value + 128])
    for _ in range(8):
        layer = random_layer(rng, kind, tensor(rng, "x", 6, 5, 7))
        factor = 2.0**-20
        scales = layer.weight_scales.copy()
        scales[0] = factor * layer.output.scale / layer.inputs[0].scale
        bias = layer.bias.copy()
        bias[0] = (value - layer.output.zero_point) * 2**20
        weights = layer.weights // 64  # sums of 18 bits, so that the first channel decides
        layer = replace(layer, weights=weights, weight_scales=scales, bias=bias, act_min=-128, act_max=127)
        graph = LayerGraph("region", (layer.inputs[0],), (layer.output,), (layer,))
        compiled = compile_region(AcceleratorConfig(), graph)
        inputs = random_inputs(rng, graph)
        model = GoldenModel(compiled.config, compiled.program, compiled.weights, compiled.tables)
        model.write_tensor(compiled.plan.locations["x"], inputs["x"])
        model.run()
        got = model.read_tensor(compiled.plan.locations[layer.output.name])
        want = evaluate(graph, inputs)[layer.output.name]
        np.testing.assert_array_equal(got.reshape(want.shape), want)
        assert np.unique(want[..., 0]) == value
        (d,) = compiled.descriptors
        assert d.narrow and d.interval == 1


def test_a_channel_of_two_values_stays_wide():
    rng = np.random.default_rng(3)
    layer = random_layer(rng, "depthwise", tensor(rng, "x", 6, 5, 7))
    scales = layer.weight_scales.copy()
    scales[0] = 2.0**-16 * layer.output.scale / layer.inputs[0].scale
    bias = layer.bias.copy()
    bias[0] = 40 * 2**16 + 2**15  # on the edge between two
    layer = replace(layer, weight_scales=scales, bias=bias, act_min=-128, act_max=127)
    graph = LayerGraph("region", (layer.inputs[0],), (layer.output,), (layer,))
    (d,) = compile_region(AcceleratorConfig(), graph).descriptors
    assert not d.narrow and d.interval == 2


@pytest.mark.parametrize("rows", [255, 256, 300])
def test_a_kernel_of_more_rows_than_the_engine_counts_is_refused(rows):
    """Rows from 255 on would read as padding."""
    rng = np.random.default_rng(rows)
    source = tensor(rng, "x", rows, 1, 4)
    output = tensor(rng, "y", 1, 1, 8)
    scales = np.full(8, output.scale / source.scale / 3000)
    common = dict(
        name="layer", inputs=(source,), output=output, act_min=-128, act_max=127, weight_scales=scales,
        bias=np.zeros(8, np.int32),
    )  # fmt: skip
    kernel = rng.integers(-127, 128, (8, rows, 1, 4), np.int8)
    layers = [
        FullyConnected(**common, weights=kernel.reshape(8, -1)),
        Conv2D(**common, weights=kernel, strides=(1, 1), padding=Padding(0, 0, 0, 0)),
    ]
    config = AcceleratorConfig()
    for layer in layers:
        reason = unsupported_reason(layer, config)
        assert reason == (None if rows <= 255 else "kernel of more than 255 rows")
        if reason is None:
            graph = LayerGraph("region", (source,), (output,), (layer,))
            compiled = compile_region(config, graph)
            model = GoldenModel(config, compiled.program, compiled.weights, compiled.tables)
            (value,) = random_inputs(rng, graph).values()
            model.write_tensor(compiled.plan.locations["x"], value)
            model.run()
            got = model.read_tensor(compiled.plan.locations["y"])
            np.testing.assert_array_equal(got.reshape(-1), evaluate(graph, {"x": value})["y"].reshape(-1))


def test_rows_behind_the_padding_need_a_bit_of_their_own():
    """The last row that is read lies in the padding below: 1,023 rows and three more do not fit ten bits."""
    rng = np.random.default_rng(1)
    source, output = tensor(rng, "x", 1023, 1, 1), tensor(rng, "y", 1023, 1, 1)
    layer = random_layer(rng, "conv", source)
    kernel = rng.integers(-127, 128, (1, 4, 1, 1), np.int8)
    layer = replace(
        layer,
        weights=kernel,
        weight_scales=layer.weight_scales[:1],
        bias=layer.bias[:1],
        output=output,
        strides=(1, 1),
        padding=Padding(0, 0, 3, 0),
    )
    graph = LayerGraph("region", (source,), (output,), (layer,))
    config = AcceleratorConfig(field_bits=11, activation_bytes=32768, weight_words=1024)
    with pytest.raises(CapacityError, match=r"row 102[45] is beyond the address registers"):
        compile_region(replace(config, field_bits=10), graph)
    compiled = compile_region(config, graph)
    assert needed_field_bits(compiled.descriptors[0]) == 11
    check_image(config, compiled.program)


@pytest.mark.parametrize("ends", [(-(1 << 31), (1 << 31) - 1), (-(1 << 40), 1 << 40)])
def test_a_multiplier_needs_to_be_right_for_accumulators_of_32_bits_alone(ends):
    """The only multiplier near this factor is wrong from 2**31 on, where no accumulator is."""
    factor = 2.4894243111384544e-08
    assert channel_multipliers([factor], ends, (-128, 127), double_rounding=False) == [(1793819264, 25)]


@pytest.mark.parametrize(
    ("shape", "rows", "batches"),
    [
        ((60, 1, 32), 4, 8),  # 15 rows of 32 bytes in a bank are 30 words
        ((59, 1, 32), 59, 59),  # a bank has a row less, and nobody knows what is in its place
        ((32, 32, 16), 32, 64),  # each row is 32 words: nothing to gain
        ((8, 1, 40), 4, 4),
        ((3, 5, 40), 3, 3),
        ((12, 2, 8), 4, 4),
    ],
)
def test_an_addition_sees_the_rows_of_a_bank_as_one(shape, rows, batches):
    rng = np.random.default_rng(list(shape))
    a, b, o = (tensor(rng, name, *shape) for name in "xyz")
    layer = replace(random_graph(rng, ["add"]).layers[0], inputs=(a, b), output=o)
    graph = LayerGraph("region", (a, b), (o,), (layer,))
    compiled = compile_region(AcceleratorConfig(), graph)
    (d,) = compiled.descriptors
    assert (d.in_rows, d.n_oy, d.n_oy * d.n_ox) == (rows, rows, batches)
    model = GoldenModel(compiled.config, compiled.program, compiled.weights, compiled.tables)
    model.activations[:] = rng.integers(0, 256, model.activations.shape, np.uint8)
    inputs = random_inputs(rng, graph)
    for name, value in inputs.items():
        model.write_tensor(compiled.plan.locations[name], value)
    before = model.activations.copy()
    trace = model.execute(d)
    place = compiled.plan.locations["z"]
    written = trace.granule[trace.enable > 0]
    assert written.min() >= place.base and written.max() < place.base + place.granules(compiled.config)
    np.testing.assert_array_equal(model.read_tensor(place).reshape(shape), evaluate(graph, inputs)["z"])
    for name in "xy":
        source = compiled.plan.locations[name]
        span = slice(source.base, source.base + source.granules(compiled.config))
        np.testing.assert_array_equal(model.activations[:, span], before[:, span])


def test_an_addition_takes_what_is_in_the_place_of_a_missing_row_along():
    """If the inference has written something there before: here a tensor of a row more, whose memory is free again."""
    rng = np.random.default_rng(11)
    x, wide, a, b, o = (tensor(rng, name, *size) for name, size in (
        ("x", (8, 1, 8)), ("wide", (60, 1, 80)), ("a", (59, 1, 16)), ("b", (59, 1, 16)), ("o", (59, 1, 16)),
    ))  # fmt: skip
    deep = replace(random_layer(rng, "conv", x), padding=Padding(30, 0, 30, 0))

    def conv(source, output, kernel):
        weights = rng.integers(-127, 128, (output.channels, kernel, 1, source.channels), np.int8)
        scales = np.full(output.channels, 0.001)
        bias = np.zeros(output.channels, np.int32)
        pad = Padding(30, 0, 30, 0) if source is x else Padding()
        return replace(
            deep, name=output.name, inputs=(source,), output=output, weights=weights, weight_scales=scales, bias=bias,
            strides=(1, 1), padding=pad,
        )  # fmt: skip

    add = replace(random_graph(rng, ["add"]).layers[0], inputs=(a, b), output=o)
    layers = (conv(x, wide, 9), conv(wide, a, 2), conv(a, b, 1), add)
    graph = LayerGraph("region", (x,), (o,), layers)
    config = AcceleratorConfig(activation_bytes=8192)
    compiled = compile_region(config, graph)
    rows = compiled.descriptors[-1].n_oy
    plan = compiled.plan.locations
    inside = [plan["wide"].base <= plan[n].base and plan[n].base + plan[n].granules(config)
              <= plan["wide"].base + plan["wide"].granules(config) for n in "ab"]  # fmt: skip
    assert rows == (4 if all(inside) else 59)
    results = []
    for seed in range(2):
        model = GoldenModel(config, compiled.program, compiled.weights, compiled.tables)
        model.activations[:] = np.random.default_rng(seed).integers(0, 256, model.activations.shape, np.uint8)
        value = np.random.default_rng(5).integers(-128, 128, (8, 1, 8), np.int8)
        model.write_tensor(plan["x"], value)
        results.append([t.data for t in model.run()])
        want = evaluate(graph, {"x": value})["o"]
        np.testing.assert_array_equal(model.read_tensor(plan["o"]).reshape(want.shape), want)
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
