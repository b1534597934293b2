"""Multipliers with which the engine rounds as ONNX Runtime does, proved for every accumulator that there can be.

ONNX Runtime multiplies a sum by a float32 factor and rounds the float32 product, ties to even; the engine multiplies by
an integer and rounds once, half up. Both are monotonic, so each is described by the accumulators at which its outputs
begin, at most 255 of them. A multiplier reproduces all of them if it lies between bounds that they state: what is
found is proved, and what is not found does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["Difference", "Proof", "begins", "prove", "prove_answers"]

_BITS = 31
"""Multipliers are below 2**31."""
_LARGEST_SHIFT = 31
_WIDE_SHIFT = 22
"""Above, products with thresholds exceed int64."""


@dataclass(frozen=True)
class Difference:
    """A channel for which no multiplier is exact."""

    channel: int
    accumulators: int
    """for so many of those that there can be, the nearest multiplier gives another output"""
    first: int
    """one of them"""


@dataclass(frozen=True)
class Proof:
    """Multiplier and shift of each channel, and for which channels they are not exact."""

    pairs: tuple[tuple[int, int], ...]
    nudged: int
    """channels whose multiplier is not that of their factor"""
    differences: tuple[Difference, ...]

    @property
    def proved(self) -> int:
        """Channels that are exact."""
        return len(self.pairs) - len(self.differences)


def begins(
    factors: NDArray[np.float32], low: NDArray[np.int64], high: NDArray[np.int64], outputs: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The least accumulator, from `low` to `high`, of each output or a greater one [channels, outputs]; else high + 1.

    factors, low, high: [channels]; outputs: without the zero point.
    """
    about = (outputs - 0.5) / factors.astype(np.float64)[:, None]
    # Both roundings of float32 together are off by less than 2**-22.
    reach = 2 + np.abs(about) * 2.0**-22
    limit = float(1 << 40)
    below = np.floor(np.clip(about - reach, -limit, limit)).astype(np.int64)
    above = np.ceil(np.clip(about + reach, -limit, limit)).astype(np.int64)
    while (above - below > 1).any():
        middle = (below + above) >> 1
        reached = np.rint(middle.astype(np.float32) * factors[:, None]) >= outputs
        below, above = np.where(reached, below, middle), np.where(reached, middle, above)
    return np.clip(above, low[:, None], high[:, None] + 1)


def prove(
    factors: NDArray[np.float32], low: NDArray[np.int64], high: NDArray[np.int64], limits: tuple[int, int]
) -> Proof:
    """Find multipliers.

    Parameters
    ----------
    factors
        Of each channel.
    low, high
        The smallest and largest accumulator of each channel.
    limits
        Of the outputs, without the zero point.

    Raises
    ------
    ValueError
        If a factor is 1 or more, or not above 0.
    """
    return _prove(factors.astype(np.float32).tobytes(), low.tobytes(), high.tobytes(), limits)


@lru_cache(maxsize=1 << 12)
def _prove(factor_bytes: bytes, low_bytes: bytes, high_bytes: bytes, limits: tuple[int, int]) -> Proof:
    """Kept: a network is partitioned several times."""
    factors = np.frombuffer(factor_bytes, np.float32)
    low, high = np.frombuffer(low_bytes, np.int64), np.frombuffer(high_bytes, np.int64)
    if not (np.isfinite(factors).all() and (factors > 0).all() and (factors < 1).all()):
        worst = next(float(f) for f in factors if not 0 < f < 1)
        raise ValueError(f"requantization factor {worst:g}; the engine has factors below 1")
    mantissas, exponents = np.frexp(factors.astype(np.float64))
    nominal, shifts = (mantissas * (1 << _BITS)).astype(np.int64), -exponents.astype(np.int64)
    outputs = np.arange(limits[0] + 1, limits[1] + 1)
    starts = begins(factors, low, high, outputs)
    pairs, differences, nudged = [], [], 0
    for channel, (multiplier, shift) in enumerate(zip(nominal.tolist(), shifts.tolist(), strict=True)):
        ends = int(low[channel]), int(high[channel])
        if shift > _LARGEST_SHIFT:
            multiplier, shift = multiplier >> (shift - _LARGEST_SHIFT), _LARGEST_SHIFT
        least, greatest = _bounds(starts[channel], starts[channel] - 1, outputs, ends, shift)
        chosen = min(max(multiplier, least), greatest)
        nudged += chosen != multiplier and least <= greatest
        if least > greatest:
            chosen = multiplier
            differences.append(_difference(channel, starts[channel], outputs, ends, multiplier, shift))
        pairs.append((chosen, shift))
    return Proof(tuple(pairs), nudged, tuple(differences))


def prove_answers(
    sums: NDArray[np.int64], answers: NDArray[np.int64], factor: float, limits: tuple[int, int]
) -> tuple[int, int] | None:
    """Multiplier and shift that give the answer of each accumulator that there can be; None if there are none.

    sums: ascending; answers: of each, without the zero point, within the limits. Raises ValueError as `prove`.
    """
    if not 0 < factor < 1:
        raise ValueError(f"requantization factor {factor:g}; the engine has factors below 1")
    if (np.diff(answers) < 0).any():
        return None
    mantissa, exponent = np.frexp(factor)
    multiplier, shift = int(mantissa * (1 << _BITS)), min(-int(exponent), _LARGEST_SHIFT)
    outputs = np.arange(limits[0] + 1, limits[1] + 1)
    places = np.searchsorted(answers, outputs)
    # Between two accumulators that there can be, an output may begin anywhere.
    bordered = np.concatenate([[sums[0] - 1], sums, [sums[-1] + 1]])
    ends = int(sums[0]), int(sums[-1])
    least, greatest = _bounds(bordered[places + 1], bordered[places], outputs, ends, shift)
    return (min(max(multiplier, least), greatest), shift) if least <= greatest else None


def _scaled(outputs: NDArray[np.int64], shift: int) -> NDArray:
    """What accumulator times multiplier is to reach for each output."""
    kind = np.int64 if shift <= _WIDE_SHIFT else object
    return (2 * outputs - 1).astype(kind) * (1 << (_BITS - 1 + shift))


def _bounds(
    starts: NDArray[np.int64], before: NDArray[np.int64], outputs: NDArray[np.int64], ends: tuple[int, int], shift: int
) -> tuple[int, int]:
    """The least and greatest multiplier with which each output begins at its accumulator, and not at the one before."""
    wanted = _scaled(outputs, shift)
    least, greatest = 0, (1 << _BITS) - 1

    def ratios(points: NDArray[np.int64], chosen: NDArray[np.bool_], *, up: bool) -> NDArray:
        return -(-wanted[chosen] // points[chosen]) if up else wanted[chosen] // points[chosen]

    # Where that accumulator can be: starts * multiplier >= wanted.
    there = starts <= ends[1]
    least = ratios(starts, there & (starts > 0), up=True).max(initial=least)
    greatest = ratios(starts, there & (starts < 0), up=False).min(initial=greatest)
    # The one before: before * multiplier < wanted.
    there = before >= ends[0]
    greatest = (ratios(before, there & (before > 0), up=True) - 1).min(initial=greatest)
    least = (ratios(before, there & (before < 0), up=False) + 1).max(initial=least)
    return int(least), int(greatest)


def _difference(
    channel: int,
    starts: NDArray[np.int64],
    outputs: NDArray[np.int64],
    ends: tuple[int, int],
    multiplier: int,
    shift: int,
) -> Difference:
    """What the nearest multiplier gets wrong."""
    wanted = _scaled(outputs, shift).astype(object)
    own = np.array([min(max(-(-int(w) // multiplier), ends[0]), ends[1] + 1) for w in wanted], np.int64)
    apart = np.abs(own - starts)
    first = int(np.minimum(own, starts)[np.argmax(apart > 0)])
    return Difference(channel, int(apart.sum()), first)
