"""The arithmetic of quantized operators in Python's integers and fractions; shares nothing with nnloom.

Written from TFLite's definitions (`kernels/internal/common.h`, `quantization_util.cc`); `tests/arch/test_numerics.py`
compares it with LiteRT's kernels and with `nnloom.arch.numerics`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

INT32 = (-(1 << 31), (1 << 31) - 1)


def wrap(value: int) -> int:
    """The value in 32 bits of two's complement."""
    return (value - INT32[0]) % (1 << 32) + INT32[0]


def half_up(value: Fraction) -> int:
    """Nearest integer, ties towards plus infinity."""
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)


def half_away(value: Fraction) -> int:
    """Nearest integer, ties away from zero."""
    return half_up(value) if value >= 0 else -half_up(-value)


@functools.cache
def quantized_factor(real: float) -> tuple[int, int]:
    """(multiplier, right shift) of a real factor below 1, from its exact value."""
    value, shift = Fraction(real), 0
    if value == 0:
        return 0, 0
    while value < Fraction(1, 2):
        value, shift = 2 * value, shift + 1
    multiplier = half_away(value * (1 << 31))
    if multiplier == 1 << 31:
        multiplier, shift = 1 << 30, shift - 1
    if shift > 31:
        return 0, 0
    assert shift >= 0, f"{real} is not below 1"
    return multiplier, shift


def high_mul(a: int, b: int) -> int:
    """gemmlowp SaturatingRoundingDoublingHighMul, as its C code: a nudge, and a division that truncates."""
    if a == b == INT32[0]:
        return INT32[1]
    nudged = a * b + (1 << 30 if a * b >= 0 else 1 - (1 << 30))
    quotient = abs(nudged) >> 31
    return quotient if nudged >= 0 else -quotient


def divide_by_pot(x: int, exponent: int) -> int:
    """gemmlowp RoundingDivideByPOT, as its C code: a threshold for the remainder."""
    mask = (1 << exponent) - 1
    threshold = (mask >> 1) + (1 if x < 0 else 0)
    return (x >> exponent) + (1 if (x & mask) > threshold else 0)


def rescale(acc: int, real: float) -> int:
    """An int32 accumulator times a real factor below 1, as CONV_2D, DEPTHWISE_CONV_2D and ADD: rounded twice."""
    multiplier, shift = quantized_factor(real)
    return divide_by_pot(high_mul(acc, multiplier), shift)


def rescale_once(acc: int, real: float) -> int:
    """An accumulator times a real factor, as FULLY_CONNECTED: a product in double precision, rounded half away."""
    return half_away(Fraction(float(acc) * real))


def rescale_channels(
    acc: NDArray, reals: Iterable[float], function: Callable[[int, float], int] = rescale
) -> NDArray[np.int64]:
    """`rescale` or `rescale_once` of [..., channels] with a factor for each channel."""
    factors = list(reals)
    rows = acc.reshape(-1, len(factors)).tolist()
    result = [[function(a, real) for a, real in zip(row, factors, strict=True)] for row in rows]
    return np.array(result, np.int64).reshape(acc.shape)


def add(x: int, y: int, scales: tuple[float, float], zero_points: tuple[int, int], out_scale: float) -> int:
    """ADD of two int8 values, without the output's zero point and limits."""
    double = 2 * max(scales)
    total = sum(
        rescale((value - point) * (1 << 20), scale / double)
        for value, scale, point in zip((x, y), scales, zero_points, strict=True)
    )
    return rescale(total, double / ((1 << 20) * out_scale))


def average(values: Iterable[int]) -> int:
    """AVERAGE_POOL_2D of a window."""
    values = list(values)
    return half_away(Fraction(sum(values), len(values)))


def quantize(value: float, scale: float, zero_point: int) -> int:
    """QUANTIZE of a float32 to int8: a division in float32, rounded half away from zero."""
    ratio = Fraction(float(np.float32(value) / np.float32(scale)))
    return min(127, max(-128, half_away(ratio) + zero_point))


def elementwise(function: Callable[..., int], *arrays: NDArray) -> NDArray[np.int64]:
    """A function of integers over arrays of one shape."""
    flat = (a.ravel().tolist() for a in arrays)
    return np.array(list(map(function, *flat)), np.int64).reshape(arrays[0].shape)
