"""gemmlowp's fixed-point functions, vectorised: int64 arrays of raw values of 32 bits, or of 16 (`word=16`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..numerics import rounding_divide_by_pot, wrap_int32
from ..numerics import saturating_rounding_doubling_high_mul as multiply

__all__ = [
    "count_leading_zeros",
    "exp_on_negative_values",
    "inverse_square_root",
    "log",
    "logistic",
    "multiply",
    "one_over_one_plus_x",
    "reciprocal",
    "shift_left_saturating",
    "tanh",
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


def shift_left_saturating(x: ArrayLike, bits: ArrayLike, word: int = 32) -> NDArray[np.int64]:
    """Multiply by 2**bits and saturate to the word."""
    return _saturate(np.asarray(x, np.int64) << np.asarray(bits, np.int64), word)


def _saturate(x: NDArray[np.int64], word: int = 32) -> NDArray[np.int64]:
    return np.clip(x, -(1 << (word - 1)), (1 << (word - 1)) - 1)


def _wrap(x: NDArray[np.int64], word: int) -> NDArray[np.int64]:
    half = 1 << (word - 1)
    return ((x + half) & (2 * half - 1)) - half


def _multiply(a: ArrayLike, b: ArrayLike, word: int) -> NDArray[np.int64]:
    """High half of twice the product, rounded half up, saturated."""
    product = np.asarray(a, np.int64) * np.asarray(b, np.int64)
    return np.minimum((product + (1 << (word - 2))) >> (word - 1), (1 << (word - 1)) - 1)


def _constant(value: int, word: int) -> int:
    """A constant of 32 bits in the word."""
    return int(rounding_divide_by_pot(value, 32 - word))


def _half_sum(a: NDArray[np.int64], b: int) -> NDArray[np.int64]:
    """(a + b) / 2, rounded away from zero."""
    total = a + b
    return np.where(total >= 0, (total + 1) >> 1, -((1 - total) >> 1))


def exp_on_negative_values(x: ArrayLike, integer_bits: int, word: int = 32) -> NDArray[np.int64]:
    """exp of values of 0 or less with `integer_bits` integer bits, without integer bits."""
    x = np.asarray(x, np.int64)
    fraction_bits = word - 1 - integer_bits
    quarter = 1 << (fraction_bits - 2)
    within = (x & (quarter - 1)) - quarter
    result = _exp_below_quarter(shift_left_saturating(within, integer_bits, word), word)
    remainder = _wrap(within - x, word)
    for exponent, factor in _EXP_FACTORS:
        if integer_bits > exponent:
            bit = 1 << (fraction_bits + exponent)
            result = np.where(remainder & bit, _multiply(result, _constant(factor, word), word), result)
    if integer_bits > 5:
        result = np.where(x < -(1 << (fraction_bits + 5)), 0, result)
    return np.where(x == 0, (1 << (word - 1)) - 1, result)


def _exp_below_quarter(x: NDArray[np.int64], word: int) -> NDArray[np.int64]:
    """exp in [-1/4, 0): a Taylor expansion of order 4 about -1/8."""
    x = x + (1 << (word - 4))
    square = _multiply(x, x, word)
    cube = _multiply(square, x, word)
    fourth = rounding_divide_by_pot(_multiply(square, square, word), 2)
    tail = rounding_divide_by_pot(_multiply(fourth + cube, _constant(715827883, word), word) + square, 1)
    constant = _constant(1895147668, word)
    return _saturate(constant + _multiply(constant, x + tail, word), word)


def _newton_reciprocal(x: ArrayLike, word: int) -> NDArray[np.int64]:
    """2 / (1 + x) for x in [0, 1) without integer bits, with 2 integer bits: three Newton steps."""
    half_denominator = _half_sum(np.asarray(x, np.int64), (1 << (word - 1)) - 1)
    slope = _constant(-1010580540, word)
    result = _constant(1515870810, word) + _multiply(half_denominator, slope, word)
    for _ in range(3):
        error = (1 << (word - 3)) - _multiply(half_denominator, result, word)
        result = _wrap(result + shift_left_saturating(_multiply(result, error, word), 2, word), word)
    return result


def one_over_one_plus_x(x: ArrayLike, word: int = 32) -> NDArray[np.int64]:
    """1 / (1 + x) for x in [0, 1), both without integer bits."""
    return shift_left_saturating(_newton_reciprocal(x, word), 1, word)


def logistic(x: ArrayLike, integer_bits: int, word: int) -> NDArray[np.int64]:
    """1 / (1 + exp(-x)) of values with `integer_bits` integer bits, without integer bits."""
    x = np.asarray(x, np.int64)
    negative = _wrap(np.where(x > 0, -x, x), word)
    positive = one_over_one_plus_x(exp_on_negative_values(negative, integer_bits, word), word)
    one = (1 << (word - 1)) - 1
    return np.where(x == 0, 1 << (word - 2), np.where(x > 0, positive, one - positive))


def tanh(x: ArrayLike, integer_bits: int, word: int) -> NDArray[np.int64]:
    """Hyperbolic tangent of values with `integer_bits` integer bits, without integer bits."""
    x = np.asarray(x, np.int64)
    negative = _wrap(np.where(x < 0, x, -x), word)
    exps = exp_on_negative_values(negative, integer_bits + 1, word)
    # (1 - exp) / (1 + exp) = 2 / (1 + exp) - 1
    positive = shift_left_saturating(_newton_reciprocal(exps, word) - (1 << (word - 3)), 2, word)
    return np.where(x == 0, 0, np.where(x < 0, -positive, positive))


def count_leading_zeros(x: ArrayLike) -> NDArray[np.int64]:
    """Of values in [0, 2**32), as 32 bits."""
    return 32 - np.frexp(np.asarray(x, np.float64))[1].astype(np.int64)


def reciprocal(x: ArrayLike, integer_bits: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """1 / x for x > 0 with `integer_bits` integer bits: the mantissa in Q0.31 and the number of bits above 1."""
    x = np.asarray(x, np.int64)
    headroom = count_leading_zeros(x)
    return one_over_one_plus_x((x << headroom) - (1 << 31)), integer_bits - headroom


def log(x: ArrayLike, integer_bits: int, result_bits: int) -> NDArray[np.int64]:
    """Natural logarithm of values above 0 with `integer_bits` integer bits; the result has `result_bits`."""
    x = np.asarray(x, np.int64)
    sqrt_half, sqrt_sqrt_half = 1518500250, 1805811301
    bits = result_bits + 1
    one, quarter = 31 - bits, rounding_divide_by_pot(1 << 29, bits)
    # two ways to normalise: to [1/2, 1) * sqrt(1/2), and to less than sqrt(1/2)
    headroom = count_leading_zeros(x)
    first = shift_left_saturating(multiply(shift_left_saturating(x, headroom - 1), sqrt_half), 1)
    first_power = _saturate(shift_left_saturating(integer_bits - headroom, one) + quarter)
    headroom = count_leading_zeros(multiply(x, sqrt_half)) - 1
    second = shift_left_saturating(x, headroom)
    second_power = _saturate(shift_left_saturating(integer_bits - headroom, one) - quarter)
    r, power = np.minimum(first, second), np.maximum(first_power, second_power)
    p = _half_sum(r, sqrt_sqrt_half)
    q = wrap_int32(2 * wrap_int32(r - sqrt_sqrt_half))
    square = multiply(q, q)
    numerator = wrap_int32(multiply(q, r) + multiply(multiply(q, square), 117049297))
    denominator = wrap_int32(multiply(p, 1057819769 + q + multiply(127690142, square)) + multiply(638450708, q))
    quotient = multiply(rounding_divide_by_pot(numerator, bits), one_over_one_plus_x(denominator))
    return shift_left_saturating(wrap_int32(multiply(power, 1488522236) + quotient), 1)


def inverse_square_root(x: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """1 / sqrt(x) of integers: multiplier and exponent for `multiply_by_factor`. 0 counts as 1."""
    x = np.asarray(x, np.int64)
    shift = np.full(x.shape, 11, np.int64)
    value = np.maximum(x, 2)
    while (large := value >= 1 << 29).any():
        value = np.where(large, value >> 2, value)
        shift = shift + large
    pairs = (count_leading_zeros(value) - 1) // 2 - 1
    shift = shift - pairs
    value = (value << (2 * pairs)) >> 1
    half = rounding_divide_by_pot(value, 1)
    result = np.full(x.shape, 1 << 28, np.int64)
    for _ in range(5):
        cube = shift_left_saturating(multiply(multiply(result, result), result), 6)
        step = wrap_int32(multiply((1 << 28) + (1 << 27), result) - multiply(half, cube))
        result = shift_left_saturating(step, 3)
    result = multiply(result, 1518500250)
    result = wrap_int32(result << np.maximum(-shift, 0))
    return np.where(x <= 1, _MAX, result), np.where(x <= 1, 0, -np.maximum(shift, 0))
