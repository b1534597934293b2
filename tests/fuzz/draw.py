"""Recorded random choices: a network is a function of lists of small integers, made again and shrunk at will."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np

__all__ = ["Draw", "Recipe", "Step"]

T = TypeVar("T")


class Draw:
    """Choices of one part of a network: drawn at random and recorded, or read from a record.

    A record that is too short goes on with zeros, and a number beyond its range wraps: every record is a network. Zero
    is always the simplest choice, which is what the shrinker goes for.
    """

    def __init__(self, numbers: Sequence[int] = (), rng: np.random.Generator | None = None) -> None:
        self._numbers = list(numbers)
        self._rng = rng
        self.made: list[int] = []

    def _record(self, drawn: int, count: int) -> int:
        if self._rng is None:
            position = len(self.made)
            drawn = self._numbers[position] % count if position < len(self._numbers) else 0
        self.made.append(int(drawn))
        return int(drawn)

    def below(self, count: int) -> int:
        """0 to count - 1, all alike."""
        return self._record(self._rng.integers(count) if self._rng else 0, count)

    def between(self, first: int, last: int) -> int:
        """first to last; `first` is the simplest."""
        return first + self.below(last - first + 1)

    def chance(self, probability: float) -> bool:
        """True that often; False is the simplest."""
        return bool(self._record(self._rng.random() < probability if self._rng else 0, 2))

    def pick(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """One of the options; the first is the simplest."""
        if self._rng is None or weights is None:
            return options[self.below(len(options))]
        share = np.asarray(weights, np.float64)
        return options[self._record(self._rng.choice(len(options), p=share / share.sum()), len(options))]

    def rng(self) -> np.random.Generator:
        """A generator of bulk data, from one recorded number."""
        return np.random.default_rng(self.below(1 << 16))


@dataclass
class Step:
    """One operator (or a small group): its kind and the choices that were made for it."""

    kind: str
    numbers: list[int]


@dataclass
class Recipe:
    """All choices of a network."""

    profile: str
    head: list[int] = field(default_factory=list)
    """inputs"""
    steps: list[Step] = field(default_factory=list)
    tail: list[int] = field(default_factory=list)
    """outputs, names, how opcodes are written"""
    seed: int | None = None
    """where it was drawn from, if it has not been changed since"""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        values: dict[str, Any] = json.loads(text)
        values["steps"] = [Step(**step) for step in values["steps"]]
        return cls(**values)

    @property
    def size(self) -> tuple[int, int, int]:
        """Operators, choices that are not the simplest, their sum: what the shrinker lowers."""
        numbers = [*self.head, *self.tail, *(n for step in self.steps for n in step.numbers)]
        return len(self.steps), sum(n > 0 for n in numbers), sum(numbers)
