"""The integer arithmetic of nnloom, in one place: what every implementation must reproduce bit for bit.

The rules are those of the TFLite reference kernels (gemmlowp fixed point, `tensorflow/lite/kernels/
internal/common.h`). All functions are vectorised over NumPy arrays and exact for the full int32 range
of accumulators and for multipliers in [0, 2**31). See docs/numerics.md.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .dtypes import INT8

__all__ = [
    "ADD_LEFT_SHIFT",
    "IDENTITY_MULTIPLIER",
    "activation_range",
    "average_pool_multiplier",
    "dense_multiplier",
    "multiply_by_factor",
    "multiply_by_factor_int64",
    "quantize",
    "quantize_multiplier",
    "requantize",
    "rounded_product",
    "rounding_divide_by_any_pot",
    "rounding_divide_by_pot",
    "saturating_rounding_doubling_high_mul",
    "split_factor",
    "wrap_int32",
]

ADD_LEFT_SHIFT = 20
"""Left shift of both operands of the int8 ADD before rescaling (TFLite `AddParams.left_shift`)."""

IDENTITY_MULTIPLIER = (1 << 31) - 1
"""With shift 0 this multiplier returns every accumulator below 2**30 in magnitude unchanged."""


def quantize_multiplier(real: float) -> tuple[int, int]:
    """Split a positive real factor into a Q31 multiplier and a right shift: real ~= m * 2**-31 * 2**-shift.

    Follows TFLite `QuantizeMultiplier`: round the mantissa half away from zero, renormalise, flush
    factors below 2**-32 to zero.

    Parameters
    ----------
    real
        The factor as a double; it must be below 1 (the engine shifts right only).

    Returns
    -------
    (multiplier, shift)
        multiplier in [2**30, 2**31) or 0, shift in [0, 31].

    Raises
    ------
    ValueError
        If the factor is negative, not finite, or 1 or more after rounding.
    """
    if not math.isfinite(real) or real < 0:
        raise ValueError(f"requantization factor must be finite and not negative, not {real}")
    if real == 0:
        return 0, 0
    mantissa, exponent = math.frexp(real)
    multiplier = math.floor(mantissa * (1 << 31) + 0.5)
    if multiplier == 1 << 31:
        multiplier //= 2
        exponent += 1
    if exponent < -31:
        return 0, 0
    if exponent > 0:
        raise ValueError(f"requantization factor must be below 1, not {real}")
    return multiplier, -exponent


def split_factor(real: float) -> tuple[int, int]:
    """Split any finite factor into a Q31 multiplier and an exponent: real ~= m * 2**-31 * 2**exponent.

    TFLite `QuantizeMultiplier` without the limits of `quantize_multiplier`: factors of 1 and more have a
    positive exponent, negative factors a negative multiplier.

    Returns
    -------
    (multiplier, exponent)
        magnitude of multiplier in [2**30, 2**31) or 0, exponent of -31 or more.

    Raises
    ------
    ValueError
        If the factor is not finite.
    """
    if not math.isfinite(real):
        raise ValueError(f"requantization factor must be finite, not {real}")
    if real == 0:
        return 0, 0
    mantissa, exponent = math.frexp(abs(real))
    multiplier = math.floor(mantissa * (1 << 31) + 0.5)
    if multiplier == 1 << 31 and real > 0:
        multiplier //= 2
        exponent += 1
    if exponent < -31:
        return 0, 0
    return (multiplier if real > 0 else -multiplier), exponent


def multiply_by_factor(acc: ArrayLike, multiplier: ArrayLike, exponent: ArrayLike) -> NDArray[np.int64]:
    """TFLite `MultiplyByQuantizedMultiplier` of int32: shift left (wrapping), multiply, shift right, rounding twice.

    Parameters
    ----------
    acc, multiplier, exponent
        Broadcastable integers as `split_factor` gives them. Beyond exponents of -31 to 31 the result is what x86
        makes of TFLite's C code: shift distances count modulo 32.
    """
    exponent = np.asarray(exponent, np.int64)
    shifted = wrap_int32(np.asarray(acc, np.int64) << (np.maximum(exponent, 0) & 31))
    product = saturating_rounding_doubling_high_mul(shifted, multiplier)
    return rounding_divide_by_any_pot(product, np.maximum(-exponent, 0))


def multiply_by_factor_int64(acc: ArrayLike, multiplier: ArrayLike, exponent: ArrayLike) -> NDArray[np.int64]:
    """TFLite `MultiplyByQuantizedMultiplier` of int64, for int16 activations: 16-bit multiplier, rounded once, half up.

    Parameters
    ----------
    acc, multiplier, exponent
        Broadcastable integers: accumulators below 2**47 in magnitude, multipliers in [0, 2**31), exponents as
        `split_factor` gives them. Above 14 shift distances count modulo 64, as on x86.

    Returns
    -------
    int64 array of values wrapped to int32.
    """
    multiplier = np.asarray(multiplier, np.int64)
    reduced = np.where(multiplier < 0x7FFF0000, (multiplier + (1 << 15)) >> 16, 0x7FFF)
    shift = 15 - np.asarray(exponent, np.int64)
    rounding = np.int64(1) << ((shift - 1) & 63)
    return wrap_int32((np.asarray(acc, np.int64) * reduced + rounding) >> (shift & 63))


def saturating_rounding_doubling_high_mul(a: ArrayLike, b: ArrayLike) -> NDArray[np.int64]:
    """gemmlowp SRDHM: the high half of 2*a*b, rounded half up, saturated.

    gemmlowp adds a sign-dependent nudge and truncates; for ties that is the same as rounding towards
    plus infinity. It saturates where both operands are -2**31.
    """
    product = np.asarray(a, np.int64) * np.asarray(b, np.int64)
    return np.minimum((product + (1 << 30)) >> 31, (1 << 31) - 1)


def rounding_divide_by_pot(x: ArrayLike, exponent: ArrayLike) -> NDArray[np.int64]:
    """gemmlowp RoundingDivideByPOT: divide by 2**exponent (0 to 31), ties away from zero."""
    x = np.asarray(x, np.int64)
    exponent = np.asarray(exponent, np.int64)
    half = np.where(exponent > 0, np.int64(1) << np.maximum(exponent - 1, 0), 0)
    return (x + half - ((x < 0) & (exponent > 0))) >> exponent


def rounding_divide_by_any_pot(x: ArrayLike, exponent: ArrayLike) -> NDArray[np.int64]:
    """`rounding_divide_by_pot` also for exponents beyond 0 to 31, for which TFLite's C code is what x86 makes of it.

    There the shift distance counts modulo 32, and 1 is added to values that are not negative.
    """
    x, exponent = np.asarray(x, np.int64), np.asarray(exponent, np.int64)
    defined = (exponent >= 0) & (exponent < 32)
    proper = rounding_divide_by_pot(x, np.where(defined, exponent, 0))
    return np.where(defined, proper, wrap_int32((x >> (exponent & 31)) + (x >= 0)))


def requantize(acc: ArrayLike, multiplier: ArrayLike, shift: ArrayLike, *, double_rounding: bool) -> NDArray[np.int64]:
    """Scale int32 accumulators by multiplier * 2**-31 * 2**-shift; no zero point, no clamp.

    Parameters
    ----------
    acc, multiplier, shift
        Broadcastable integers: int32 accumulators, multipliers in [0, 2**31), right shifts in [0, 31].
    double_rounding
        True: round after the high multiply (half up) and again after the shift (half away from zero),
        as CONV_2D, DEPTHWISE_CONV_2D and ADD. False: round once, half up, as FULLY_CONNECTED.

    Returns
    -------
    int64 array of values in the int32 range.
    """
    if double_rounding:
        return rounding_divide_by_pot(saturating_rounding_doubling_high_mul(acc, multiplier), shift)
    product = np.asarray(acc, np.int64) * np.asarray(multiplier, np.int64)
    total = np.asarray(shift, np.int64) + 31
    # |product| < 2**62 and the rounding term is at most 2**61 for shift 31: no overflow of int64.
    return (product + (np.int64(1) << (total - 1))) >> total


def quantize(values: NDArray[np.floating], scale: float, zero_point: int, dtype: str = INT8) -> NDArray:
    """Real values to int8 or uint8, as the TFLite QUANTIZE reference kernel: float32 division, half away from zero."""
    scaled = np.asarray(values, np.float32) / np.float32(scale)
    whole = np.trunc(scaled)
    rounded = whole + np.where(np.abs(scaled - whole) >= 0.5, np.sign(scaled), 0)
    info = np.iinfo(dtype)
    return np.clip(rounded + zero_point, info.min, info.max).astype(dtype)


ACTIVATION_BOUNDS = {"NONE": (None, None), "RELU": (0.0, None), "RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0)}
"""Fused activations of TFLite that are a clamp: their bounds as real numbers"""


def activation_range(activation: str, scale: float, zero_point: int, dtype: str = INT8) -> tuple[int, int]:
    """Smallest and largest quantized value after a fused activation (TFLite `CalculateActivationRangeQuantized`).

    Bounds are divided by the scale in float32 and rounded half away from zero.

    Raises
    ------
    ValueError
        If the activation is not a clamp.
    """
    if activation not in ACTIVATION_BOUNDS:
        raise ValueError(f"fused activation {activation}")
    info = np.iinfo(dtype)
    limits = [int(info.min), int(info.max)]
    for i, bound in enumerate(ACTIVATION_BOUNDS[activation]):
        if bound is not None:
            scaled = np.float32(bound) / np.float32(scale)
            rounded = int(np.trunc(scaled + np.copysign(np.float32(0.5), scaled)))
            limits[i] = max(int(info.min), min(int(info.max), rounded + zero_point))
    return limits[0], limits[1]


def average_pool_multiplier(count: int) -> tuple[int, int]:
    """Multiplier and shift that divide a sum of `count` 8-bit values, half away from zero, by *single* rounding.

    TFLite's AVERAGE_POOL_2D adds half the count and truncates. A multiplier just above 2**k / count turns
    every tie into a value slightly beyond it, away from zero. The result is checked here for every
    possible sum.

    Raises
    ------
    ValueError
        If no multiplier reproduces the division (counts above about 2**20), or count < 2.
    """
    if count < 2:
        raise ValueError(f"average pool window must have at least 2 elements, not {count}")
    shift = max(0, (count - 1).bit_length() - 1)
    multiplier = (1 << (31 + shift)) // count + 1
    if multiplier >= 1 << 31 or count > 1 << 16:
        raise ValueError(f"average pool window of {count} elements is too large")
    sums = np.arange(-128 * count, 255 * count + 1, dtype=np.int64)
    want = np.where(sums >= 0, (sums + count // 2) // count, -((-sums + count // 2) // count))
    if not np.array_equal(requantize(sums, multiplier, shift, double_rounding=False), want):
        raise ValueError(f"average pool window of {count} elements has no exact multiplier")
    return multiplier, shift


def rounded_product(acc: ArrayLike, real: ArrayLike) -> NDArray[np.float64]:
    """TFLite's FULLY_CONNECTED: the product in float64, rounded half away from zero; exact integers."""
    product = np.asarray(acc, np.float64) * np.asarray(real, np.float64)
    whole = np.trunc(product)
    return np.where(np.abs(product - whole) >= 0.5, whole + np.sign(product), whole)


def dense_multiplier(
    real: float, least: int, greatest: int, low: int = -(1 << 31), high: int = (1 << 31) - 1
) -> tuple[int, int]:
    """Multiplier and shift that give `rounded_product` by *single* rounding, where outputs are limited.

    Both are monotonic, so they are equal for every accumulator if each output begins at the same one. Mostly the
    multiplier is that of `quantize_multiplier`. Where products can lie halfway between two integers (a factor that is
    a power of two) it is one more: every tie then lies slightly beyond, away from zero.

    Parameters
    ----------
    real
        The factor as a double, below 1.
    least, greatest
        Limits of the output, without the zero point.
    low, high
        The accumulators that there can be.

    Raises
    ------
    ValueError
        If the factor is not one of `quantize_multiplier`, or no multiplier near it gives the same outputs.
    """
    nearest, shift = quantize_multiplier(real)
    if not nearest:
        return nearest, shift
    outputs = np.arange(least + 1, greatest + 1)
    # the first accumulator of each output is near (output - 1/2) / factor
    about = np.ceil((outputs - 0.5) / real)[:, None] + np.arange(-4, 5)
    begins = about[:, 0] + np.argmax(rounded_product(about, real) >= outputs[:, None], axis=1)
    wanted = [min(max(int(v), low), high + 1) for v in begins]
    half = 1 << (30 + shift)
    for multiplier in (nearest, nearest + 1, nearest - 1, nearest + 2, nearest - 2):
        # least a with a * multiplier + half >= output * 2 * half
        starts = (-((half - int(k) * 2 * half) // multiplier) for k in outputs)
        if 0 < multiplier < 1 << 31 and [min(max(v, low), high + 1) for v in starts] == wanted:
            return multiplier, shift
    raise ValueError(f"requantization factor {real} has no exact multiplier")


def wrap_int32(x: ArrayLike) -> NDArray[np.int64]:
    """Reduce to 32-bit two's complement, as the accumulators do."""
    return ((np.asarray(x, np.int64) + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)
