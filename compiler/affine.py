"""Functions of one int8 value as a product with a weight, a bias and a requantization.

Requantization is monotonic: each output begins at some accumulator. A weight, a bias and a multiplier give a function
exactly if every value on one side of each of its steps makes an accumulator on that side. For a weight and a multiplier
the biases that do are an interval, so there is nothing to search for but weights and multipliers near the function's
slope.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.numerics import IDENTITY_MULTIPLIER, quantize_multiplier, split_factor

__all__ = ["VALUES", "Affine", "fit", "products"]

VALUES = np.arange(-128, 128)
"""Every int8 value: a function is its outputs for these"""

_WEIGHTS = range(127, 31, -1)
"""Magnitudes that are tried: large ones place steps finely"""
_DEVIATIONS = (0.0, 1e-6, -1e-6, 8e-6, -8e-6, 3e-5, -3e-5)
"""of the slope, relative, that are tried"""
_LARGEST_SHIFT = 23
"""of the requantization: what is below is in 64 bits"""


@dataclass(frozen=True)
class Affine:
    """weight * value + bias, requantized; the output's zero point and limits come after."""

    weight: int
    bias: int
    multiplier: int
    shift: int


def fit(
    outputs: NDArray[np.int64],
    slope: float,
    zero_point: int,
    limits: tuple[int, int],
    known: Sequence[tuple[int, int, int]] = (),
    *,
    double_rounding: bool = True,
) -> Affine | None:
    """The parameters that give a function of `VALUES` exactly; None if none were found.

    Parameters
    ----------
    outputs
        [256], within the limits.
    slope
        Outputs for each value, about: the factor that the definition states. Of either sign.
    zero_point
        Of the output.
    limits
        Least and greatest output, to which results are clamped.
    known
        Magnitudes of weights with multiplier and shift that are tried first: those of the definition.
    double_rounding
        Of the requantization.
    """
    return _fit(outputs.tobytes(), slope, zero_point, limits, tuple(known), double_rounding)


@lru_cache(maxsize=1 << 14)
def _fit(
    data: bytes,
    slope: float,
    zero_point: int,
    limits: tuple[int, int],
    known: tuple[tuple[int, int, int], ...],
    double_rounding: bool,
) -> Affine | None:
    """Kept: a network is partitioned several times, for several configurations, and each asks the same."""
    outputs = np.frombuffer(data, np.int64)
    low, high = limits
    if (outputs == outputs[0]).all():
        return Affine(0, int(outputs[0]) - zero_point, IDENTITY_MULTIPLIER, 0)
    if not np.isfinite(slope) or slope == 0 or (np.diff(outputs) * np.sign(slope) < 0).any():
        return None
    steps = np.arange(low + 1, high + 1)
    # The first value at or beyond each step, and the last before it, in the direction in which outputs grow.
    growing = outputs if slope > 0 else outputs[::-1]
    values = VALUES if slope > 0 else VALUES[::-1]
    first = np.searchsorted(growing, steps)
    beyond, before = first < len(values), first > 0
    for weight, multiplier, shift in chain(known, _candidates(abs(slope))):
        accumulators = (weight if slope > 0 else -weight) * values
        begins = _begins(steps - zero_point, multiplier, shift, double_rounding=double_rounding)
        least = (begins[beyond] - accumulators[first[beyond]]).max(initial=-(1 << 40))
        greatest = (begins[before] - 1 - accumulators[first[before] - 1]).min(initial=1 << 40)
        bias = _middle(int(least), int(greatest))
        if bias is not None and abs(bias) < 1 << 30:
            return Affine(int(accumulators[0] // values[0]), bias, multiplier, shift)
    return None


def products(weight: int, multiplier: int, exponent: int) -> list[tuple[int, int, int]]:
    """(weight, multiplier, shift) of what LiteRT does to weight * value (`nnloom.arch.numerics.multiply_by_factor`).

    A left shift becomes part of the weight; empty if there is none within int8.
    """
    weight <<= max(exponent, 0)
    possible = multiplier > 0 and 0 < weight < 128 and exponent >= -_LARGEST_SHIFT
    return [(weight, multiplier, max(-exponent, 0))] if possible else []


def _middle(least: int, greatest: int) -> int | None:
    """A number of an interval, the one of least magnitude; None if it is empty."""
    return min(max(0, least), greatest) if least <= greatest else None


def _candidates(slope: float) -> Iterator[tuple[int, int, int]]:
    """(weight, multiplier, shift), those first that the reference kernels' own arithmetic has."""
    yield from products(1, *split_factor(slope))
    for deviation in _DEVIATIONS:
        for weight in _WEIGHTS:
            factor = slope * (1 + deviation) / weight
            if factor < 1:
                nearest, shift = quantize_multiplier(factor)
                if nearest and shift <= _LARGEST_SHIFT:
                    yield weight, nearest, shift


def _begins(outputs: NDArray[np.int64], multiplier: int, shift: int, *, double_rounding: bool) -> NDArray[np.int64]:
    """The least accumulator of each output (`nnloom.arch.numerics.requantize`)."""
    half = (1 << shift) >> 1
    high = (outputs << shift) - half
    if not double_rounding:
        # half of the last place more, at the first rounding's only place
        return -(-(((outputs << shift) << 31) - (1 << (30 + shift))) // multiplier)
    # Halves of negative numbers are rounded down.
    high = high + ((high < 0) & (shift > 0))
    return -(((1 << 30) - (high << 31)) // multiplier)
