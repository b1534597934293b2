"""gemmlowp's fixed-point functions on int32, vectorised (int64 arrays of raw values)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..numerics import rounding_divide_by_pot, wrap_int32
from ..numerics import saturating_rounding_doubling_high_mul as multiply

__all__ = [
    "count_leading_zeros",
    "exp_on_negative_values",
    "multiply",
    "one_over_one_plus_x",
    "reciprocal",
    "shift_left_saturating",
]

_MAX = (1 << 31) - 1

_EXP_FACTORS = (
    (-2, 1672461947),
    (-1, 1302514674),
    (0, 790015084),
    (1, 290630308),
    (2, 39332535),
    (3, 720401),
    (4, 242),
)
"""exp(-2**n) in Q0.31, for the bits of the integer part and the first two of the fraction"""


def shift_left_saturating(x: ArrayLike, bits: int) -> NDArray[np.int64]:
    """Multiply by 2**bits and saturate to int32."""
    return np.clip(np.asarray(x, np.int64) << bits, -(1 << 31), _MAX)


def exp_on_negative_values(x: ArrayLike, integer_bits: int) -> NDArray[np.int64]:
    """exp of values of 0 or less with `integer_bits` integer bits (at most 5), in Q0.31."""
    x = np.asarray(x, np.int64)
    fraction_bits = 31 - integer_bits
    quarter = 1 << (fraction_bits - 2)
    within = (x & (quarter - 1)) - quarter
    result = _exp_below_quarter(shift_left_saturating(within, integer_bits))
    remainder = within - x
    for exponent, factor in _EXP_FACTORS:
        if integer_bits > exponent:
            bit = 1 << (fraction_bits + exponent)
            result = np.where(remainder & bit, multiply(result, factor), result)
    return np.where(x == 0, _MAX, result)


def _exp_below_quarter(x: NDArray[np.int64]) -> NDArray[np.int64]:
    """exp in [-1/4, 0), Q0.31: a Taylor expansion of order 4 about -1/8."""
    x = x + (1 << 28)
    square = multiply(x, x)
    cube = multiply(square, x)
    fourth = rounding_divide_by_pot(multiply(square, square), 2)
    tail = rounding_divide_by_pot(multiply(fourth + cube, 715827883) + square, 1)
    constant = 1895147668
    return constant + multiply(constant, x + tail)


def one_over_one_plus_x(x: ArrayLike) -> NDArray[np.int64]:
    """1 / (1 + x) for x in [0, 1), both Q0.31: three Newton steps."""
    total = np.asarray(x, np.int64) + _MAX
    half_denominator = np.where(total >= 0, (total + 1) >> 1, -((1 - total) >> 1))
    result = 1515870810 + multiply(half_denominator, -1010580540)
    for _ in range(3):
        error = (1 << 29) - multiply(half_denominator, result)
        result = wrap_int32(result + shift_left_saturating(multiply(result, error), 2))
    return shift_left_saturating(result, 1)


def count_leading_zeros(x: ArrayLike) -> NDArray[np.int64]:
    """Of values in [0, 2**32), as 32 bits."""
    return 32 - np.frexp(np.asarray(x, np.float64))[1].astype(np.int64)


def reciprocal(x: ArrayLike, integer_bits: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """1 / x for x > 0 with `integer_bits` integer bits: the mantissa in Q0.31 and the number of bits above 1."""
    x = np.asarray(x, np.int64)
    headroom = count_leading_zeros(x)
    return one_over_one_plus_x((x << headroom) - (1 << 31)), integer_bits - headroom
