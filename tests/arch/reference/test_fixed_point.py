"""Fixed-point functions and multipliers against real arithmetic and LiteRT's definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nnloom.arch.numerics import (
    multiply_by_factor,
    multiply_by_factor_int64,
    quantize_multiplier,
    rounding_divide_by_any_pot,
    rounding_divide_by_pot,
    split_factor,
)
from nnloom.arch.reference import fixed_point


@pytest.mark.parametrize("factor", [1e-12, 2**-32, 2**-31.5, 0.3, 0.5, 1 - 2**-40, 1.0, 1.7, 300.0, 1e6])
def test_split_factor(factor: float) -> None:
    multiplier, exponent = split_factor(factor)
    assert multiplier == 0 or 1 << 30 <= multiplier < 1 << 31
    assert math.isclose(multiplier * 2.0 ** (exponent - 31), factor, rel_tol=2**-31) or factor < 2**-32
    if factor < 1 - 2**-33:
        assert quantize_multiplier(factor) == (multiplier, -exponent)
    assert split_factor(-factor) in ((-multiplier, exponent), (-(1 << 31), exponent - 1))


def test_split_factor_refuses_infinity() -> None:
    with pytest.raises(ValueError, match="finite"):
        split_factor(math.inf)


def test_multiply_by_factor_shifts_left_and_wraps() -> None:
    multiplier, exponent = split_factor(6.0)
    assert multiply_by_factor([-7, 0, 5], multiplier, exponent).tolist() == [-42, 0, 30]
    # 2**29 * 8 leaves no bit in 32
    assert multiply_by_factor(1 << 29, multiplier, exponent) == 0


def test_multiply_by_factor_int64_rounds_once_half_up() -> None:
    assert multiply_by_factor_int64([-3, -1, 1, 3], *split_factor(0.5)).tolist() == [-1, 0, 1, 2]


def test_exp_on_negative_values_is_near_exp() -> None:
    x = np.linspace(-30, 0, 1001)
    got = fixed_point.exp_on_negative_values(np.round(x * 2**26), 5) / 2**31
    assert np.abs(got - np.exp(x)).max() < 3e-7


def test_reciprocal_is_near_one_over_x() -> None:
    x = np.linspace(0.6, 4000, 999)
    mantissa, bits = fixed_point.reciprocal(np.round(x * 2**19), 12)
    assert np.abs(mantissa / 2**31 / 2.0**bits * x - 1).max() < 1e-5


def test_count_leading_zeros() -> None:
    values = np.array([0, 1, 2, 3, 255, 256, (1 << 31) - 1, 1 << 31, (1 << 32) - 1])
    assert fixed_point.count_leading_zeros(values).tolist() == [32 - int(v).bit_length() for v in values]


@pytest.mark.parametrize("word", [16, 32])
def test_logistic_and_tanh_are_near(word: int) -> None:
    x = np.linspace(-7.9, 7.9, 501)
    raw, one = np.round(x * 2.0 ** (word - 4)), 2.0 ** (word - 1)
    tolerance = 2e-3 if word == 16 else 1e-6
    assert np.abs(fixed_point.logistic(raw, 3, word) / one - 1 / (1 + np.exp(-x))).max() < tolerance
    assert np.abs(fixed_point.tanh(raw, 3, word) / one - np.tanh(x)).max() < tolerance


def test_log_and_inverse_square_root_are_near() -> None:
    x = np.linspace(1, 4000, 777)
    assert np.abs(fixed_point.log(np.round(x * 2**19), 12, 5) / 2**26 - np.log(x)).max() < 1e-5
    values = np.array([2, 3, 1000, 12345, (1 << 31) - 1])
    multiplier, exponent = fixed_point.inverse_square_root(values)
    assert np.abs(multiplier / 2.0**31 * 2.0**exponent * np.sqrt(values) - 1).max() < 1e-5


def test_rounding_divide_by_any_pot_is_the_proper_one_where_that_is_defined() -> None:
    x = np.array([-(1 << 31), -5, -1, 0, 1, 5, (1 << 31) - 1])
    for exponent in (0, 1, 31):
        assert np.array_equal(rounding_divide_by_any_pot(x, exponent), rounding_divide_by_pot(x, exponent))
    # 32 is no shift, and 1 more
    assert rounding_divide_by_any_pot([-3, 0, 7], 32).tolist() == [-3, 1, 8]
