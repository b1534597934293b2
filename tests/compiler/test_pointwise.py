"""Functions of one value, and of one and a constant, as layers of one weight: the parameters, and whole networks."""

from __future__ import annotations

import numpy as np
import pytest

from nnloom.arch.numerics import requantize
from nnloom.compiler.affine import VALUES, Affine, fit
from tests.compiler.litert import exact
from tests.tflite_models import ModelWriter


def answers(found: Affine, zero_point: int, limits: tuple[int, int], *, double_rounding: bool = True):
    y = requantize(found.weight * VALUES + found.bias, found.multiplier, found.shift, double_rounding=double_rounding)
    return np.clip(y + zero_point, *limits)


@pytest.mark.parametrize("double_rounding", [True, False])
def test_what_is_found_gives_every_output(double_rounding):
    """Straight lines of all slopes, rounded in another way than the engine: what is found is right."""
    rng = np.random.default_rng(5)
    found = 0
    for _ in range(150):
        slope = float(rng.choice([-1, 1]) * 10 ** rng.uniform(-3, 1.5))
        zero_point = int(rng.integers(-128, 128))
        low, high = sorted(int(v) for v in rng.integers(-128, 128, 2))
        wanted = np.clip(np.floor(slope * VALUES + rng.uniform(-200, 200)).astype(np.int64), low, high)
        parameters = fit(wanted, slope, zero_point, (low, high), double_rounding=double_rounding)
        if parameters is not None:
            found += 1
            assert -128 <= parameters.weight <= 127 and 0 <= parameters.multiplier < 1 << 31
            got = answers(parameters, zero_point, (low, high), double_rounding=double_rounding)
            np.testing.assert_array_equal(got, wanted)
    assert found >= 130


@pytest.mark.parametrize(
    "wanted",
    [VALUES**2 % 100, np.where(VALUES < 0, VALUES // 10, VALUES), np.repeat([-5, 90, 7, 20], 64)],
    ids=["parabola", "two slopes", "up and down"],
)
def test_other_functions_have_none(wanted):
    assert fit(wanted.astype(np.int64), 1.0, 0, (-128, 127)) is None


def image(m: ModelWriter) -> int:
    channels = int(m.rng.integers(2, 20))
    return m.conv(m.input((1, int(m.rng.integers(3, 8)), int(m.rng.integers(3, 8)), 3)), channels, activation=None)


def spread(m: ModelWriter, low: float, high: float) -> float:
    return float(m.rng.uniform(low, high)) if m.rng.integers(3) else 2.0 ** -int(m.rng.integers(-1, 3))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["QUANTIZE", "RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1"])
def test_of_one_value(tmp_path, name, seed):
    def build(m: ModelWriter) -> list[int]:
        x = image(m)
        y = m.unary(name, x, m.scale(x) * spread(m, 0.2, 3.0))
        return [m.conv(y, 4, (1, 1))]

    partitioned = exact(tmp_path, build, seed, config=("16x9", "8x5 with larger memories")[seed % 2])
    assert [len(graph.layers) for graph in partitioned.graphs] == [3]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["ADD", "SUB", "MUL"])
def test_of_one_value_and_a_constant(tmp_path, name, seed):
    def build(m: ModelWriter) -> list[int]:
        x = image(m)
        channels = m.shape(x)[3]
        shape = [(channels,), (1, 1, 1, channels), (), (1,)][seed % 4]
        c = m.constant(shape, m.scale(x) * spread(m, 0.1, 4.0), int(m.rng.integers(-5, 6)) if name == "MUL" else None)
        scale = m.scale(x) * (m.scale(c) * 60 if name == "MUL" else 1) * spread(m, 0.6, 3.0)
        operands = (c, x) if seed % 3 == 0 else (x, c)
        y = m.binary(name, *operands, scale, activation=[None, "relu", "relu6"][seed % 3])
        return [m.conv(y, 4, (1, 1))]

    partitioned = exact(tmp_path, build, seed, config=("16x9", "8x5 with larger memories")[seed % 2])
    assert [len(graph.layers) for graph in partitioned.graphs] == [3], partitioned.cpu_operators


@pytest.mark.parametrize("name", ["MAXIMUM", "MINIMUM"])
def test_limits(tmp_path, name):
    def build(m: ModelWriter) -> list[int]:
        x = image(m)
        point = int(m.tensors[x].quantization.zeroPoint[0])
        c = m.constant((1,), m.scale(x), point)
        return [m.conv(m.binary(name, x, c, m.scale(x), zero_point=point), 4, (1, 1))]

    for seed in range(3):
        assert [len(graph.layers) for graph in exact(tmp_path, build, seed, config="16x9").graphs] == [3]


def test_constants_of_other_shapes_stay_on_the_cpu(tmp_path):
    def build(m: ModelWriter) -> list[int]:
        x = image(m)
        _, rows, columns, channels = m.shape(x)
        whole = m.binary("SUB", x, m.constant((rows, columns, channels), 0.1), m.scale(x))
        point = int(m.tensors[x].quantization.zeroPoint[0])
        limits = m.binary("MAXIMUM", x, m.constant((channels,), m.scale(x), point), m.scale(x), zero_point=point)
        return [m.conv(whole, 4, (1, 1)), m.conv(limits, 4, (1, 1))]

    partitioned = exact(tmp_path, build, 1)
    reasons = {item.op: item.reason for item in partitioned.cpu_operators}
    assert "one value, or one for each channel" in reasons["sub"]
    assert reasons["maximum"] == "no weight and multiplier give its bits"


@pytest.mark.parametrize("seed", range(6))
def test_subtraction_of_two_tensors(tmp_path, seed):
    """The larger scale first, or second; equal ones; a channel count that is no multiple of anything."""

    def build(m: ModelWriter) -> list[int]:
        x = m.input((1, 6, 5, 3))
        a, b = m.conv(x, 21, activation=None), m.conv(x, 21, activation=None)
        m.tensors[b].quantization.scale = m.tensors[a].quantization.scale * np.float32((1.0, 0.37, 2.9)[seed % 3])
        y = m.binary("SUB", a, b, m.scale(a) * 1.4, activation=[None, "relu"][seed % 2])
        return [m.conv(y, 4), m.binary("SUB", y, y, m.scale(y))]

    partitioned = exact(tmp_path, build, seed, config=("16x9", "8x5 with larger memories")[seed % 2])
    assert [len(graph.layers) for graph in partitioned.graphs] == [5]
