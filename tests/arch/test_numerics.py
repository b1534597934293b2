"""The arithmetic against references that are not ours: LiteRT's kernels, exact fractions, hand computation."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nnloom.arch import numerics
from nnloom.sim.litert import LiteRtReference
from tests import exact
from tests.tflite_models import ModelWriter

INT32 = st.one_of(
    st.integers(-(1 << 31), (1 << 31) - 1),
    st.sampled_from([-(1 << 31), (1 << 31) - 1, -(1 << 30), 1 << 30, (1 << 30) - 1, 0, 1, -1]),
    st.builds(
        lambda bit, off, sign: sign * ((1 << bit) + off),
        st.integers(0, 30),
        st.integers(-1, 1),
        st.sampled_from([1, -1]),
    ),
)
MULTIPLIER = st.one_of(st.integers(1 << 30, (1 << 31) - 1), st.sampled_from([0, 1 << 30, (1 << 31) - 1]))
FACTOR = st.builds(
    lambda mantissa, exponent: math.ldexp(mantissa, -exponent),
    st.one_of(
        st.floats(0.5, 1, exclude_max=True),
        # Mantissas about a tie of the 31st bit, and those that round up to 1.
        st.builds(
            lambda k, off: (k + 0.5) / 2**31 + off * 2.0**-53, st.integers(1 << 30, (1 << 31) - 2), st.integers(-2, 2)
        ),
        st.builds(lambda off: 1 - off * 2.0**-53, st.integers(1, 1 << 22)),
    ),
    st.integers(1, 34),
)


# Fixed point functions.


@given(INT32, INT32)
@example(-(1 << 31), -(1 << 31))
def test_high_mul(a, b):
    assert int(numerics.saturating_rounding_doubling_high_mul(a, b)) == exact.high_mul(a, b)


@given(INT32, st.integers(0, 31))
def test_divide_by_pot(x, exponent):
    assert int(numerics.rounding_divide_by_pot(x, exponent)) == exact.divide_by_pot(x, exponent)
    assert exact.divide_by_pot(x, exponent) == exact.half_away(Fraction(x, 1 << exponent))


@pytest.mark.parametrize(
    ("x", "exponent", "result"),
    [
        *((5, 1, 3), (-5, 1, -3), (4, 3, 1), (-4, 3, -1), (3, 3, 0), (-3, 3, 0), (7, 0, 7), (-7, 0, -7)),
        *((1 << 30, 31, 1), (-(1 << 30), 31, -1), (-(1 << 31), 31, -1), ((1 << 30) - 1, 31, 0)),
    ],
)
def test_divide_by_pot_by_hand(x, exponent, result):
    assert int(numerics.rounding_divide_by_pot(x, exponent)) == result


@pytest.mark.parametrize(
    ("a", "b", "result"),
    # 2ab / 2**32: an eighth of 2**31 times a half; ties at +0.5 and -0.5; saturation.
    [
        *((1 << 28, 1 << 30, 1 << 27), (1, 1 << 30, 1), (-1, 1 << 30, 0), (3, 1 << 30, 2), (-3, 1 << 30, -1)),
        *((-(1 << 31), -(1 << 31), (1 << 31) - 1), (-(1 << 31), (1 << 31) - 1, -(1 << 31) + 1)),
    ],
)
def test_high_mul_by_hand(a, b, result):
    assert int(numerics.saturating_rounding_doubling_high_mul(a, b)) == result


@given(INT32, MULTIPLIER, st.integers(0, 31))
def test_requantize(acc, multiplier, shift):
    twice = exact.divide_by_pot(exact.high_mul(acc, multiplier), shift)
    assert int(numerics.requantize(acc, multiplier, shift, double_rounding=True)) == twice
    once = exact.half_up(Fraction(acc * multiplier, 1 << (31 + shift)))
    assert int(numerics.requantize(acc, multiplier, shift, double_rounding=False)) == once


@pytest.mark.parametrize(
    ("acc", "shift", "twice", "once"),
    # times 0.5 * 2**-shift: half up, and then half away from zero
    [
        *((1, 0, 1, 1), (-1, 0, 0, 0), (3, 0, 2, 2), (-3, 0, -1, -1), (2, 1, 1, 1), (-2, 1, -1, 0)),
        *((1, 1, 1, 0), (6, 2, 1, 1), (-6, 2, -1, -1), (-5, 2, -1, -1), (3, 2, 1, 0)),
    ],
)
def test_requantize_by_hand(acc, shift, twice, once):
    got = [int(numerics.requantize(acc, 1 << 30, shift, double_rounding=double)) for double in (True, False)]
    assert got == [twice, once]


@given(st.integers(0, (1 << 30) - 1), st.sampled_from([1, -1]))
def test_identity_multiplier(magnitude, sign):
    acc = sign * magnitude
    for double in (True, False):
        assert int(numerics.requantize(acc, numerics.IDENTITY_MULTIPLIER, 0, double_rounding=double)) == acc


@given(st.integers(-(1 << 40), 1 << 40))
def test_wrap(x):
    assert int(numerics.wrap_int32(x)) == int.from_bytes((x % (1 << 32)).to_bytes(4, "little"), "little", signed=True)


def test_arrays_broadcast():
    acc = np.array([[1000], [-1000]])
    got = numerics.requantize(acc, np.array([1 << 30, (1 << 31) - 1]), np.array([1, 2]), double_rounding=True)
    assert got.tolist() == [[250, 250], [-250, -250]] and got.dtype == np.int64


# Factors.


@settings(max_examples=500)
@given(FACTOR)
@example(1 - 2.0**-33)
@example((1 - 2.0**-33) / 2)
@example((1 - 2.0**-33) * 2.0**-32)
@example(2.0**-32)
@example(2.0**-33)
@example(0.0)
def test_quantize_multiplier(real):
    if real >= 1 - 2.0**-32:
        with pytest.raises(ValueError, match="below 1"):
            numerics.quantize_multiplier(real)
        return
    assert numerics.quantize_multiplier(real) == exact.quantized_factor(real)
    assert numerics.split_factor(real) == (exact.quantized_factor(real)[0], -exact.quantized_factor(real)[1])


@pytest.mark.parametrize(
    ("real", "pair"),
    [
        (0.5, (1 << 30, 0)),
        (0.25, (1 << 30, 1)),
        (0.75, (3 << 29, 0)),
        (2.0**-32, (1 << 30, 31)),
        (2.0**-33, (0, 0)),
        # 1 - 2**-33 is nearer to 1 than to 1 - 2**-31: 1 becomes a half with one shift less.
        ((1 - 2.0**-33) / 2, (1 << 30, 0)),
        ((1 - 2.0**-33) / 8, (1 << 30, 2)),
        # The flush comes after the renormalisation.
        ((1 - 2.0**-33) * 2.0**-32, (1 << 30, 31)),
        # (2**30 + 0.5) / 2**31 rounds away from zero, just below it does not.
        ((2.0**30 + 0.5) / 2**31, ((1 << 30) + 1, 0)),
        ((2.0**30 + 0.5 - 2.0**-20) / 2**31, (1 << 30, 0)),
    ],
)
def test_quantize_multiplier_by_hand(real, pair):
    assert numerics.quantize_multiplier(real) == pair == exact.quantized_factor(real)


@pytest.mark.parametrize("real", [1.0, 1.5, 1 - 2.0**-33, -0.5, math.inf, math.nan])
def test_quantize_multiplier_refuses(real):
    with pytest.raises(ValueError, match="requantization factor"):
        numerics.quantize_multiplier(real)


# Single operators, by LiteRT's reference kernels.


def renormalising(rng: np.random.Generator, count: int) -> tuple[float, np.ndarray]:
    """A float32 and others whose products with it have a mantissa that rounds up to 1."""
    while True:
        a = np.float32(rng.uniform(1, 2))
        found = []
        for _ in range(40):
            a = np.float32(rng.uniform(1, 2))
            b = np.float32(1 / np.float64(a))
            for candidate in (b, np.nextafter(b, np.float32(0))):
                if 1 - 2.0**-32 <= float(a) * float(candidate) < 1:
                    found.append((a, candidate))
        if found:
            a, b = found[0]
            return float(a), np.float32(b) * np.float32(2.0) ** -rng.integers(1, 12, count).astype(np.float32)


def run(writer: ModelWriter, output: int, folder, value: np.ndarray) -> np.ndarray:
    path = folder / "operator.tflite"
    path.write_bytes(writer.finish(output))
    return LiteRtReference(path).run(value)[0]


def near_ties(rng: np.random.Generator, factors: np.ndarray) -> np.ndarray:
    """Accumulators whose results are within the int8 range, most of them about the middle between two."""
    target = rng.integers(-140, 140, len(factors)) + rng.choice([0.5, 0.5, 0.5, 0.25, 0.0], len(factors))
    acc = np.rint(target / factors) + rng.integers(-1, 2, len(factors))
    return np.clip(acc, -(1 << 31), (1 << 31) - 1).astype(np.int64)


@pytest.mark.parametrize("seed", range(8))
def test_conv_rescales_as_litert(tmp_path, seed):
    """A 1 x 1 convolution of the zero point: the accumulators are the biases, any int32, a factor for each channel."""
    rng, channels = np.random.default_rng(seed), 2048
    m = ModelWriter(seed)
    if seed % 2:
        in_scale, weight_scales = renormalising(rng, channels)
    else:
        in_scale = float(np.float32(rng.uniform(0.001, 1)))
        weight_scales = (2.0 ** rng.uniform(-30, 0, channels)).astype(np.float32)
    x = m.input((1, 1, 1, 1), scale=in_scale)
    zero_point = int(m.tensors[x].quantization.zeroPoint[0])
    factors = in_scale * weight_scales.astype(np.float64)
    bias = near_ties(rng, factors)
    weights = m.tensor((channels, 1, 1, 1), scale=weight_scales, data=rng.integers(-127, 128, channels, np.int8))
    biases = m.tensor(
        (channels,), dtype="INT32", scale=weight_scales * np.float32(in_scale), data=bias.astype(np.int32)
    )
    m.tensors[biases].quantization.quantizedDimension = 0
    output = m.tensor((1, 1, 1, channels), scale=1.0, zero_point=int(rng.integers(-20, 20)))
    m.operator("CONV_2D", [x, weights, biases], output, m._window(schema.Conv2DOptionsT(), (1, 1), "VALID", None))
    m.operators[-1].builtinOptions.dilationHFactor = m.operators[-1].builtinOptions.dilationWFactor = 1
    got = run(m, output, tmp_path, np.full((1, 1, 1, 1), zero_point, np.int8)).ravel()
    point = int(m.tensors[output].quantization.zeroPoint[0])
    pairs = np.array([numerics.quantize_multiplier(real) for real in factors]).T
    want = np.clip(numerics.requantize(bias, *pairs, double_rounding=True) + point, -128, 127)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(got, np.clip(exact.rescale_channels(bias, factors) + point, -128, 127))
    if seed % 2:
        assert (pairs[0] == 1 << 30).all()
    assert len(set(got.tolist())) > 200


@pytest.mark.parametrize("seed", range(24))
def test_fully_connected_rescales_in_double_precision(tmp_path, seed):
    """LiteRT's FULLY_CONNECTED has no integer multiplier: near ties it is another function than the convolution's."""
    rng, channels = np.random.default_rng(100 + seed), 500
    m = ModelWriter(seed)
    if seed % 4 == 0:
        in_scale, weight_scales = renormalising(rng, 1)
        weight_scale = float(weight_scales[0])
    elif seed % 4 == 1:  # powers of two: many ties
        in_scale, weight_scale = (2.0 ** -int(rng.integers(0, 5)) for _ in range(2))
        in_scale /= 2
    else:
        in_scale, weight_scale = (float(np.float32(2.0 ** rng.uniform(-14, 0))) for _ in range(2))
    x = m.input((1, 1), scale=in_scale)
    zero_point = int(m.tensors[x].quantization.zeroPoint[0])
    real = in_scale * weight_scale
    bias = near_ties(rng, np.full(channels, real))
    weights = m.tensor((channels, 1), scale=weight_scale, data=rng.integers(-127, 128, channels, np.int8))
    biases = m.tensor((channels,), dtype="INT32", scale=real, data=bias.astype(np.int32))
    output = m.tensor((1, channels), scale=1.0, zero_point=int(rng.integers(-20, 20)))
    m.operator("FULLY_CONNECTED", [x, weights, biases], output, schema.FullyConnectedOptionsT())
    got = run(m, output, tmp_path, np.full((1, 1), zero_point, np.int8)).ravel()
    point = int(m.tensors[output].quantization.zeroPoint[0])
    want = exact.rescale_channels(bias, [real] * channels, exact.rescale_once)
    np.testing.assert_array_equal(got, np.clip(want + point, -128, 127))
    integer = np.clip(exact.rescale_channels(bias, [real] * channels) + point, -128, 127)
    assert (got != integer).any()


@pytest.mark.parametrize("seed", range(4))
def test_depthwise_rescales_as_the_convolution(tmp_path, seed):
    rng, channels = np.random.default_rng(200 + seed), 2048
    m = ModelWriter(seed)
    in_scale = float(np.float32(rng.uniform(0.001, 1)))
    weight_scales = (2.0 ** rng.uniform(-30, 0, channels)).astype(np.float32)
    x = m.input((1, 1, 1, channels), scale=in_scale)
    zero_point = int(m.tensors[x].quantization.zeroPoint[0])
    factors = in_scale * weight_scales.astype(np.float64)
    bias = near_ties(rng, factors)
    weights = m.tensor((1, 1, 1, channels), scale=weight_scales, data=rng.integers(-127, 128, channels, np.int8))
    m.tensors[weights].quantization.quantizedDimension = 3
    biases = m.tensor(
        (channels,), dtype="INT32", scale=weight_scales * np.float32(in_scale), data=bias.astype(np.int32)
    )
    output = m.tensor((1, 1, 1, channels), scale=1.0, zero_point=3)
    options = m._window(schema.DepthwiseConv2DOptionsT(), (1, 1), "VALID", None)
    options.depthMultiplier = options.dilationHFactor = options.dilationWFactor = 1
    m.operator("DEPTHWISE_CONV_2D", [x, weights, biases], output, options)
    got = run(m, output, tmp_path, np.full((1, 1, 1, channels), zero_point, np.int8)).ravel()
    pairs = np.array([numerics.quantize_multiplier(real) for real in factors]).T
    want = numerics.requantize(bias, *pairs, double_rounding=True)
    np.testing.assert_array_equal(got, np.clip(want + 3, -128, 127))


@pytest.mark.parametrize("seed", range(6))
def test_add_is_litert_s(tmp_path, seed):
    """All pairs of int8 values."""
    rng = np.random.default_rng(seed)
    m = ModelWriter(seed)
    scales = [float(np.float32(2.0 ** rng.uniform(-6, 0))) for _ in range(2)]
    a, b = (m.input((1, 256, 256, 1), scale=scale) for scale in scales)
    output = m.add(a, b)
    x = np.repeat(np.arange(-128, 128), 256).reshape(1, 256, 256, 1).astype(np.int8)
    y = np.tile(np.arange(-128, 128), 256).reshape(1, 256, 256, 1).astype(np.int8)
    path = tmp_path / "add.tflite"
    path.write_bytes(m.finish(output))
    got = LiteRtReference(path).run(x, y)[0]
    points = tuple(int(m.tensors[t].quantization.zeroPoint[0]) for t in (a, b))
    point, out_scale = int(m.tensors[output].quantization.zeroPoint[0]), m.scale(output)
    # Exact arithmetic for some, ours for all.
    chosen = rng.integers(0, 65536, 2000)
    want = [
        exact.add(int(x.flat[i]), int(y.flat[i]), (m.scale(a), m.scale(b)), points, out_scale) + point for i in chosen
    ]
    np.testing.assert_array_equal(got.ravel()[chosen], np.clip(want, -128, 127))
    double = 2 * max(m.scale(a), m.scale(b))
    total = np.int64(0)
    for value, tensor, zero in ((x, a, points[0]), (y, b, points[1])):
        multiplier, shift = numerics.quantize_multiplier(m.scale(tensor) / double)
        shifted = (value.astype(np.int64) - zero) << numerics.ADD_LEFT_SHIFT
        total = total + numerics.requantize(shifted, multiplier, shift, double_rounding=True)
    multiplier, shift = numerics.quantize_multiplier(double / ((1 << numerics.ADD_LEFT_SHIFT) * out_scale))
    ours = numerics.requantize(total, multiplier, shift, double_rounding=True) + point
    np.testing.assert_array_equal(got, np.clip(ours, -128, 127))


@pytest.mark.parametrize("window", [(1, 2), (1, 3), (2, 2), (5, 1), (2, 3), (7, 1), (3, 3), (5, 5), (7, 7), (13, 17)])
def test_average_pool_multiplier_is_litert_s(tmp_path, window):
    """Sums over the whole range, ties among them, in one kernel call."""
    count, channels = math.prod(window), 4096
    rng = np.random.default_rng(count)
    sums = rng.integers(-128 * count, 127 * count + 1, channels)
    tie = count // 2 + count * rng.integers(-120, 120, channels)
    sums = np.where(rng.integers(2, size=channels) == 0, sums, np.clip(tie, -128 * count, 127 * count))
    # Values that add up to the sum: the mean rounded down, and one more in some places.
    low, more = np.divmod(sums, count)
    x = (low + (np.arange(count)[:, None] < more)).reshape(1, *window, channels).astype(np.int8)
    m = ModelWriter(1)
    got = run(m, m.pool(m.input(x.shape), "AVERAGE", window, (1, 1)), tmp_path, x).ravel()
    multiplier, shift = numerics.average_pool_multiplier(count)
    np.testing.assert_array_equal(got, numerics.requantize(sums, multiplier, shift, double_rounding=False))
    assert got.tolist() == [exact.half_away(Fraction(int(s), count)) for s in sums]


@pytest.mark.parametrize("count", [2, 3, 4, 6, 9, 16, 49, 64, 100, 255, 256, 257, 1000, 4095])
def test_average_pool_multiplier_in_fractions(count):
    multiplier, shift = numerics.average_pool_multiplier(count)
    assert 0 < multiplier < 1 << 31 and 0 <= shift <= 31
    rng = np.random.default_rng(count)
    whole = rng.integers(-127, 127, 300)
    sums = np.concatenate(
        [whole * count + count // 2 + d for d in (-1, 0, 1)] + [rng.integers(-128 * count, 127 * count, 300)]
    )
    sums = np.clip([*sums, -128 * count, 127 * count, 0], -128 * count, 127 * count)
    got = numerics.requantize(sums, multiplier, shift, double_rounding=False)
    assert got.tolist() == [exact.half_away(Fraction(int(s), count)) for s in sums]


@pytest.mark.parametrize("count", [-1, 0, 1, (1 << 16) + 1, 1 << 20])
def test_average_pool_multiplier_refuses(count):
    with pytest.raises(ValueError, match="average pool window"):
        numerics.average_pool_multiplier(count)


@pytest.mark.parametrize("seed", range(6))
def test_quantize_is_litert_s(tmp_path, seed):
    rng = np.random.default_rng(seed)
    scale, zero_point = float(np.float32(2.0 ** rng.uniform(-12, 6))), int(rng.integers(-128, 128))
    levels = rng.integers(-300, 300, 20_000) + rng.choice([0.5, -0.5, 0.25, 0], 20_000)
    values = (levels * scale).astype(np.float32)
    # The neighbours of ties, and what is far beyond.
    values = np.concatenate([values, np.nextafter(values, np.float32(1e9)), np.nextafter(values, np.float32(-1e9))])
    values = np.concatenate([values, np.float32([0, -0.0, 1e30, -1e30])])[None]
    values = np.where(np.abs(values / np.float32(scale)) < 2**30, values, np.sign(values) * scale * 2**30)
    values = values.astype(np.float32)
    m = ModelWriter(seed)
    x = m.input(values.shape, dtype="FLOAT32")
    got = run(m, m.quantize(x, scale, zero_point), tmp_path, values)
    np.testing.assert_array_equal(numerics.quantize(values, scale, zero_point), got)
    chosen = rng.integers(0, values.size, 3000)
    want = [exact.quantize(float(v), scale, zero_point) for v in values.ravel()[chosen]]
    np.testing.assert_array_equal(got.ravel()[chosen], want)


@pytest.mark.parametrize(
    ("activation", "name"), [("relu", "RELU"), ("relu6", "RELU6"), ("relu_n1_to_1", "RELU_N1_TO_1")]
)
@pytest.mark.parametrize("seed", range(4))
def test_activation_range_is_litert_s(tmp_path, activation, name, seed):
    """Smallest and largest result of a pool over all values."""
    rng = np.random.default_rng(seed)
    scale, zero_point = float(np.float32(2.0 ** rng.uniform(-8, 2))), int(rng.integers(-128, 128))
    m = ModelWriter(seed)
    x = m.tensor((1, 1, 256, 1), scale=scale, zero_point=zero_point)
    m.inputs.append(x)
    output = m.pool(x, "MAX", (1, 1), (1, 1), activation=activation)
    got = run(m, output, tmp_path, np.arange(-128, 128, dtype=np.int8).reshape(1, 1, 256, 1))
    assert (got.min(), got.max()) == numerics.activation_range(name, scale, zero_point)


# FULLY_CONNECTED by single rounding.


@given(FACTOR, st.integers(-128, 127), st.lists(st.integers(-(1 << 31), (1 << 31) - 1), min_size=1, max_size=20))
@example(0.25, 3, [-2, -6, 2, 6])
@example(2.0**-10, -128, [-512, -1536, 512])
def test_dense_multiplier_gives_the_product_in_double_precision(factor, zero_point, accumulators):
    least, greatest = -128 - zero_point, 127 - zero_point
    try:
        multiplier, shift = numerics.dense_multiplier(factor, least, greatest)
    except ValueError:
        # Some factors round up to 1, some are too small for 31 bits of multiplier, and some make ties (0.35: 10 * 0.35)
        # of which double precision rounds some to below the tie and some not.
        return
    # and both sides of the accumulators at which an output begins
    begins = (
        [int((k - 0.5) / factor) + d for k in range(least, greatest + 1, 7) for d in (-1, 0, 1)] if multiplier else []
    )
    for acc in accumulators + [a for a in begins if -(1 << 31) <= a < 1 << 31]:
        got = int(numerics.requantize(acc, multiplier, shift, double_rounding=False))
        want = exact.rescale_once(acc, factor if multiplier else 0.0)
        assert min(max(got, least), greatest) == min(max(want, least), greatest)
        assert int(numerics.rounded_product(acc, factor)) == exact.rescale_once(acc, factor)


def test_scales_of_networks_have_a_dense_multiplier():
    rng = np.random.default_rng(8)
    for _ in range(200):
        a, b, c = (
            float(np.float32(v)) for v in np.exp(rng.uniform(np.log([5e-3, 1e-3, 2e-2]), np.log([0.1, 0.02, 0.4])))
        )
        numerics.dense_multiplier(a * b / c, -255, 0)


def test_dense_multiplier_of_small_factors_is_exact_for_the_accumulators_that_there_are():
    with pytest.raises(ValueError, match="no exact multiplier"):
        numerics.dense_multiplier(1.004e-05, -128, 127)
    assert numerics.dense_multiplier(1.004e-05, -128, 127, -100_000, 100_000)


@pytest.mark.parametrize("activation", ["TANH", "SIGN_BIT", "relu", ""])
def test_activations_that_are_no_clamp_are_refused(activation):
    with pytest.raises(ValueError, match=f"fused activation {activation}"):
        numerics.activation_range(activation, 0.1, 0)
