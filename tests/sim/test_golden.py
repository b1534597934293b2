"""Lowering and golden model together, against the operators' definitions and the literal loop nest."""

from dataclasses import replace

import numpy as np
import pytest

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import IllegalProgramError
from nnloom.arch.isa import Descriptor, Kind, encode_parameters, encode_program
from nnloom.compiler.graph import LayerGraph, Padding
from nnloom.sim.golden import GoldenModel, execute_literally
from tests.graphs import EVERY_KIND, KINDS, evaluate, random_graph, random_layer, tensor
from tests.harness import compile_region, random_inputs
from tests.sim.test_illegal_programs import CONFIGS as RANDOM_CONFIGS
from tests.sim.test_illegal_programs import Generator, size

CONFIGS = {
    "16x9": AcceleratorConfig(elementwise_mul=True),
    "8x5": AcceleratorConfig(elementwise_mul=True, lanes=8, taps=5, requant_units=2, weight_words=8192),
    "8x3": AcceleratorConfig(elementwise_mul=True, lanes=8, taps=3, requant_units=8, weight_words=16384),
    "4x3": AcceleratorConfig(elementwise_mul=True, lanes=4, taps=3, requant_units=1, weight_words=32768),
    "2x8x5": AcceleratorConfig(elementwise_mul=True, pixels=2, lanes=8, taps=5, requant_units=2, weight_words=8192),
    "2x16x9": AcceleratorConfig(elementwise_mul=True, pixels=2, tables=8),
    "32x9": AcceleratorConfig(elementwise_mul=True, lanes=32, taps=9, requant_units=8),
    "16x9 with row triples": AcceleratorConfig(elementwise_mul=True, row_triples=True),
    "2x16x9 with row triples": AcceleratorConfig(elementwise_mul=True, pixels=2, row_triples=True),
    "2x32x11 with row triples": AcceleratorConfig(
        elementwise_mul=True, pixels=2, lanes=32, taps=11, requant_units=8, activation_bytes=1 << 18, row_triples=True
    ),
}


def golden_for(compiled, rng):
    model = GoldenModel(compiled.config, compiled.program, compiled.weights, compiled.tables)
    # What the memory held before must not matter.
    model.activations[:] = rng.integers(0, 256, model.activations.shape, np.uint8)
    model.window = rng.integers(-128, 128, model.window.shape, np.int8)
    return model


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_single_layers_equal_their_definition(config, kind):
    rng = np.random.default_rng([EVERY_KIND.index(kind), config.lanes, config.taps])
    for _ in range(12):
        graph = random_graph(rng, [kind], config.tables)
        compiled = compile_region(config, graph)
        inputs = random_inputs(rng, graph)
        model = golden_for(compiled, rng)
        for name, value in inputs.items():
            model.write_tensor(compiled.plan.locations[name], value)
        model.run()
        for t in graph.outputs:
            got = model.read_tensor(compiled.plan.locations[t.name])
            want = evaluate(graph, inputs)[t.name]
            np.testing.assert_array_equal(got.reshape(want.shape), want, err_msg=repr(graph))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_vectorised_equals_the_literal_loop_nest(config, kind):
    rng = np.random.default_rng([99, EVERY_KIND.index(kind), config.lanes, config.taps])
    for _ in range(2):
        graph = random_graph(rng, [kind])
        compiled = compile_region(config, graph)
        fast = golden_for(compiled, rng)
        slow = GoldenModel(config, compiled.program, compiled.weights, compiled.tables)
        slow.activations[:] = fast.activations
        slow.window = fast.window
        for d in compiled.descriptors:
            a, b = fast.execute(d), execute_literally(slow, d)
            np.testing.assert_array_equal(a.bank, b.bank)
            np.testing.assert_array_equal(a.granule, b.granule)
            np.testing.assert_array_equal(a.enable, b.enable)
            np.testing.assert_array_equal(a.data[a.enable > 0], b.data[b.enable > 0])
        np.testing.assert_array_equal(fast.activations, slow.activations)
        np.testing.assert_array_equal(fast.window, slow.window)


@pytest.mark.parametrize("pixels", [1, 2])
def test_row_triples_leave_no_multiplier_idle(pixels):
    rng = np.random.default_rng(pixels)
    for channels, stride in ((16, 1), (20, 1), (16, 2)):
        source = tensor(rng, "x", 12, 10, channels)
        layer = random_layer(rng, "conv", source)
        weights = rng.integers(-127, 128, (layer.weights.shape[0], 3, 3, channels), np.int8)
        output = tensor(rng, "y", -(-12 // stride), -(-10 // stride), layer.output.channels)
        layer = replace(layer, weights=weights, strides=(stride, stride), padding=Padding(1, 1), output=output)
        graph = LayerGraph("region", (source,), (output,), (layer,))
        config = AcceleratorConfig(pixels=pixels, row_triples=True)
        (d,) = compile_region(config, graph).descriptors
        # Two pixels need five rows with a stride of 2: there are four.
        assert d.row_triple == (pixels == 1 or stride == 1)
        if d.row_triple:
            assert d.n_ky * d.n_kx == channels
        (d,) = compile_region(replace(config, row_triples=False), graph).descriptors
        assert not d.row_triple and d.n_ky * d.n_kx > channels


@pytest.mark.parametrize("seed", range(6))
def test_chains_keep_every_live_tensor(seed):
    rng = np.random.default_rng(seed)
    config = CONFIGS["16x9"]
    graph = random_graph(rng, [str(k) for k in rng.choice(KINDS, 5)])
    compiled = compile_region(config, graph)
    model = golden_for(compiled, rng)
    for _ in range(3):
        inputs = random_inputs(rng, graph)
        for name, value in inputs.items():
            model.write_tensor(compiled.plan.locations[name], value)
        want = evaluate(graph, inputs)
        for layer, d in zip(graph.layers, compiled.descriptors, strict=True):
            model.execute(d)
            name = layer.output.name
            got = model.read_tensor(compiled.plan.locations[name])
            np.testing.assert_array_equal(got.reshape(want[name].shape), want[name])


def test_dense_layers_round_ties_away_from_zero():
    """Scales that are powers of two put products halfway between two integers."""
    rng = np.random.default_rng(6)
    ties = 0
    for shift in range(1, 9):
        graph = random_graph(rng, ["dense"])
        layer = graph.layers[0]
        count = layer.weights.shape[0]
        layer = replace(
            layer,
            inputs=(replace(layer.inputs[0], scale=0.5),),
            output=replace(layer.output, scale=2.0 ** (shift - 2)),
            weights=rng.integers(-2, 3, layer.weights.shape, np.int8),
            weight_scales=np.full(count, 0.5),
            bias=rng.integers(-100, 100, count).astype(np.int32),
            act_min=-128,
            act_max=127,
        )
        graph = LayerGraph(name="ties", inputs=layer.inputs, outputs=(layer.output,), layers=(layer,))
        compiled = compile_region(CONFIGS["16x9"], graph)
        inputs = random_inputs(rng, graph)
        model = golden_for(compiled, rng)
        (value,) = inputs.values()
        model.write_tensor(compiled.plan.locations[layer.inputs[0].name], value)
        model.run()
        got = model.read_tensor(compiled.plan.locations[layer.output.name])
        want = evaluate(graph, inputs)[layer.output.name]
        np.testing.assert_array_equal(got.reshape(want.shape), want)
        acc = (value.astype(int).reshape(-1) - layer.inputs[0].zero_point) @ layer.weights.T.astype(int) + layer.bias
        ties += np.count_nonzero((acc < 0) & (acc % (1 << shift) == 1 << (shift - 1)))
    assert ties > 10


def test_narrow_results_saturate_at_18_bits():
    rng = np.random.default_rng(0)
    graph = random_graph(rng, ["dense"])
    compiled = compile_region(CONFIGS["16x9"], graph)
    inputs = random_inputs(rng, graph)
    outputs = {}
    for bias in ((1 << 17) - 1, 1 << 30):
        model = golden_for(compiled, rng)
        model.weights = np.zeros_like(model.weights)
        words = model.weights[: model.config.parameter_words].view(np.uint8).reshape(model.config.lanes, -1)
        words[:, :4] = np.frombuffer(np.int32(bias).tobytes(), np.uint8)
        words[:, 4:8] = np.frombuffer(np.int32(1 << 30).tobytes(), np.uint8)
        words[:, 8] = 11
        for name, value in inputs.items():
            model.write_tensor(compiled.plan.locations[name], value)
        for narrow in (0, 1):
            d = replace(compiled.descriptors[0], narrow=narrow, act_min=-128, act_max=127, out_zero_point=0)
            outputs[bias, narrow] = model.execute(d).data[0].view(np.int8)
    assert (outputs[(1 << 17) - 1, 0] == 32).all() and (outputs[1 << 30, 0] == 127).all()
    assert (outputs[1 << 30, 1] == 32).all() and (outputs[(1 << 17) - 1, 1] == 32).all()


def test_products_are_float32_only_where_every_sum_is_exact():
    rng = np.random.default_rng(8)
    for rows, dtype in ((1, np.float32), (16, np.float64)):
        source = tensor(rng, "x", rows, 8, 40)
        layer = random_layer(rng, "dense", source)
        # Long runs of one sign: partial sums far beyond what the total needs.
        weights = np.where(np.arange(source.elements) < source.elements // 2, 127, -127)
        weights = np.broadcast_to(weights, layer.weights.shape).astype(np.int8).copy()
        weights[:, ::7] += rng.integers(-3, 1, weights[:, ::7].shape, np.int8) * np.sign(weights[:, ::7])
        layer = replace(layer, weights=weights, act_min=-128, act_max=127)
        graph = LayerGraph("region", (source,), (layer.output,), (layer,))
        compiled = compile_region(AcceleratorConfig(), graph)
        model = golden_for(compiled, rng)
        for value in (rng.integers(100, 128, source.shape, np.int8), rng.integers(-128, -100, source.shape, np.int8)):
            model.write_tensor(compiled.plan.locations["x"], value)
            model.run()
            want = evaluate(graph, {"x": value})[layer.output.name]
            got = model.read_tensor(compiled.plan.locations[layer.output.name])
            np.testing.assert_array_equal(got.reshape(want.shape), want)
        (prepared,) = model._dense_layers.values()
        assert prepared.weights.dtype == dtype


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_model_that_ran_before_equals_a_new_one(kind):
    rng = np.random.default_rng([5, EVERY_KIND.index(kind)])
    graph = random_graph(rng, [kind, kind])
    compiled = compile_region(CONFIGS["16x9"], graph)
    old = golden_for(compiled, rng)
    for _ in range(3):
        new = golden_for(compiled, rng)
        for name, value in random_inputs(rng, graph).items():
            for model in (old, new):
                model.write_tensor(compiled.plan.locations[name], value)
        for a, b in zip(old.run(), new.run(), strict=True):
            np.testing.assert_array_equal(
                np.where(a.enable[:, None] == 3, a.data, 0), np.where(b.enable[:, None] == 3, b.data, 0)
            )
        (output,) = graph.outputs
        location = compiled.plan.locations[output.name]
        np.testing.assert_array_equal(old.read_tensor(location), new.read_tensor(location))


def test_narrow_results_saturate_at_eighteen_bits():
    """Multiplier and shift for which the results of two neighbours at the limit differ by one."""
    config = AcceleratorConfig(lanes=8, taps=5, requant_units=8)
    limit = 1 << 17
    bias = np.array([limit - 1, limit, limit + 1, 2**31 - 1, -limit, -limit - 1, -limit - 2, -(2**31)])
    # Half way from 100 to 101 lies between the largest and the next, and between the smallest and the one before.
    shift = 10
    half_way = np.where(bias > 0, limit - 0.5, limit + 0.5)
    multiplier = np.round(100.5 / half_way * 2 ** (31 + shift)).astype(np.int64)
    # As integers, rounded half up once.
    totals = [min(max(int(b), -limit), limit - 1) for b in bias]
    want = [t * int(m) + (1 << 30 + shift) >> 31 + shift for t, m in zip(totals, multiplier, strict=True)]
    assert want == [100] * 4 + [-100] * 4
    assert (limit * int(multiplier[0]) + (1 << 30 + shift)) >> 31 + shift == 101
    weights = np.zeros((config.parameter_words + 1, config.weight_word_bytes), np.uint8)
    weights[: config.parameter_words] = encode_parameters(config, bias, multiplier, np.full(8, shift))
    d = Descriptor(
        kind=Kind.DENSE, last=1, narrow=1, double_rounding=0, in_base=0, in_rows=1, in_row_bytes=4, in_row_stride=0,
        out_row_stride=0, out_base=16, n_oy=1, n_ox=1, n_g=1, n_ky=1, n_kx=1,
    )  # fmt: skip
    model = GoldenModel(config, encode_program([d]), weights)
    (trace,) = model.run()
    assert trace.data.view(np.int8).reshape(-1).tolist() == want


@pytest.mark.parametrize("name", RANDOM_CONFIGS)
def test_any_legal_descriptor_equals_the_literal_loop_nest(name):
    """Also those that the compiler never makes: windows that go on from group to group, weights that do not."""
    config = RANDOM_CONFIGS[name]
    rng = np.random.default_rng(4)
    generator = Generator(config, 5)
    weights = rng.integers(0, 256, (config.weight_words, config.weight_word_bytes), np.uint8)
    tables = rng.integers(0, 256, (config.tables, 256), np.uint8)
    count = 0
    while count < 60:
        d = replace(generator.changed(generator.layer()), last=1)
        fast = GoldenModel(config, encode_program([d]), weights, tables)
        try:
            fast.descriptors()
        except IllegalProgramError:
            continue
        if size([d]) > 2000:
            continue
        count += 1
        fast.activations[:] = rng.integers(0, 256, fast.activations.shape, np.uint8)
        fast.window = rng.integers(-128, 128, fast.window.shape, np.int8)
        slow = GoldenModel(config, encode_program([d]), weights, tables)
        slow.activations[:] = fast.activations
        slow.window = fast.window
        a, b = fast.execute(d), execute_literally(slow, d)
        for field in ("bank", "granule", "enable"):
            np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=repr(d))
        np.testing.assert_array_equal(a.data[a.enable > 0], b.data[b.enable > 0], err_msg=repr(d))
        np.testing.assert_array_equal(fast.activations, slow.activations, err_msg=repr(d))
        if d.kind != Kind.DENSE:
            np.testing.assert_array_equal(fast.window, slow.window, err_msg=repr(d))


@pytest.mark.parametrize("start", [0, 1, 64, 1 << 20])
def test_programs_without_an_end_are_refused_on_one_line(start):
    config = AcceleratorConfig()
    for program in (np.zeros(0, np.uint32), np.zeros(64, np.uint32), np.full(64, 0xFFFFFFFF, np.uint32)):
        with pytest.raises(IllegalProgramError) as error:
            GoldenModel(config, program, np.zeros((1, config.weight_word_bytes), np.uint8)).run(start)
        assert "\n" not in str(error.value) and f"word {start}" in str(error.value)
