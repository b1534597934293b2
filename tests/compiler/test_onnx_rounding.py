"""Multipliers that round as ONNX Runtime does: what is proved holds for every accumulator, what is not does not."""

from __future__ import annotations

import numpy as np
import pytest

from nnloom.arch.numerics import requantize
from nnloom.compiler.onnx_rounding import begins, prove, prove_answers


def _cases(seed, count, few_bits):
    rng = np.random.default_rng(seed)
    factors = rng.uniform(2e-4, 2e-2, count).astype(np.float32)
    if few_bits:
        factors = (rng.integers(1, 64, count) * 2.0**-14).astype(np.float32)
    high = rng.integers(1 << 10, 1 << 19, count)
    return factors, -rng.integers(1 << 10, 1 << 19, count), high, int(rng.integers(-128, 128))


@pytest.mark.parametrize("few_bits", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_every_accumulator(seed, few_bits):
    factors, low, high, zero_point = _cases(seed, 24, few_bits)
    limits = -128 - zero_point, 127 - zero_point
    proof = prove(factors, low, high, limits)
    unproved = {d.channel: d for d in proof.differences}
    assert proof.proved + len(unproved) == 24
    for channel, (multiplier, shift) in enumerate(proof.pairs):
        sums = np.arange(low[channel], high[channel] + 1)
        want = np.clip(np.rint(sums.astype(np.float32) * factors[channel]), *limits)
        got = np.clip(requantize(sums, multiplier, shift, double_rounding=False), *limits)
        apart = sums[want != got]
        if channel in unproved:
            assert len(apart) == unproved[channel].accumulators > 0
            assert unproved[channel].first in apart
        else:
            assert not len(apart)


def test_no_other_multiplier_is_exact_where_none_is_found():
    factor = np.array([2.0**-6], np.float32)  # ties to even
    low, high = np.array([-5000]), np.array([5000])
    (difference,) = prove(factor, low, high, (-128, 127)).differences
    assert difference.accumulators >= 60
    sums = np.arange(-5000, 5001)
    want = np.clip(np.rint(sums.astype(np.float32) * factor), -128, 127)
    nominal, shift = 1 << 30, 5
    for multiplier in range(nominal - 2000, nominal + 2001, 7):
        got = np.clip(requantize(sums, multiplier, shift, double_rounding=False), -128, 127)
        assert (want != got).any()


def test_ends_of_the_range():
    starts = begins(np.array([0.5], np.float32), np.array([0]), np.array([3]), np.array([-1, 1, 2, 3]))
    assert starts.tolist() == [[0, 2, 3, 4]]  # 1 * 0.5 is a tie and becomes 0; 3 * 0.5 becomes 2
    assert not prove(np.array([1e-12], np.float32), np.array([-9]), np.array([9]), (-128, 127)).differences


@pytest.mark.parametrize("factor", [1.0, 0.0, np.inf])
def test_factors_that_the_engine_has_not(factor):
    with pytest.raises(ValueError, match="factors below 1"):
        prove(np.array([0.1, factor], np.float32), np.array([0, 0]), np.array([9, 9]), (-128, 127))


def test_answers_of_a_product_with_its_zero_point_added_first():
    products, factor = np.arange(-3000, 3001), 0.01171875  # 3 / 256: ties
    for zero_point in (0, 5, -8):
        rounded = np.rint(products.astype(np.float32) * np.float32(factor) + np.float32(zero_point))
        answers = (np.clip(rounded, -128, 127) - zero_point).astype(np.int64)
        found = prove_answers(products, answers, factor, (-128 - zero_point, 127 - zero_point))
        if found is not None:
            got = requantize(products, *found, double_rounding=False)
            assert np.array_equal(np.clip(got, -128 - zero_point, 127 - zero_point), answers)
    three = np.array([-1, 0, 1])
    assert prove_answers(three, np.array([0, 1, 0]), 0.5, (-128, 127)) is None
    assert prove_answers(three, np.array([-1, 0, 1]), 0.9, (-128, 127)) is not None


def test_only_sums_that_there_can_be_count():
    # Between 100 and 260 the output passes 1.5 somewhere: where, nobody sees.
    sums, answers = np.array([-300, 0, 100, 260]), np.array([-3, 0, 1, 3])
    found = prove_answers(sums, answers, 0.0115, (-128, 127))
    assert found is not None and np.array_equal(requantize(sums, *found, double_rounding=False), answers)
    every = np.arange(-300, 261)
    assert prove_answers(every, answers[np.searchsorted(sums, every)], 0.0115, (-128, 127)) is None
