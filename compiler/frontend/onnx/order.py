"""How the elements of a tensor of the file lie in the value that holds it.

ONNX has channels first, the graph has them last. A tensor of the file keeps its shape and its axes; the value that
holds it may have its elements in another order. A transposition of the file is then another name for the same value,
and a reshape, too: it leaves the order of the file's elements as it was.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["PLAIN", "Order", "axes_of", "between", "channels_last", "inverse", "order_of", "take"]

Axes = tuple[int, ...]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Order:
    """The file's elements, one after the other, seen as `base` and transposed by `axes`: so they are held.

    Axes of 1 are left out and those that stay together are one, so that equal orders compare as equal.
    """

    base: Shape = ()
    axes: Axes = ()

    @property
    def is_plain(self) -> bool:
        return not self.axes

    @property
    def held(self) -> Shape:
        """The shape that the transposition gives."""
        return tuple(self.base[a] for a in self.axes)

    def indices(self) -> NDArray[np.int64]:
        """Of each element that is held, its number in the file."""
        return np.arange(int(np.prod(self.base))).reshape(self.base).transpose(self.axes).reshape(-1)


PLAIN = Order()
"""As in the file"""


def order_of(shape: Sequence[int], axes: Sequence[int]) -> Order:
    """The order of a tensor that is held with its axes in another order."""
    groups: list[list[int]] = []
    for axis in (a for a in axes if shape[a] != 1):
        last = groups[-1][-1] if groups else -2
        if last < axis and all(shape[a] == 1 for a in range(last + 1, axis)) and last >= 0:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    ranks = {first: i for i, first in enumerate(sorted(group[0] for group in groups))}
    sizes = {group[0]: int(np.prod([shape[a] for a in group])) for group in groups}
    result = tuple(ranks[group[0]] for group in groups)
    if result == tuple(range(len(result))):
        return PLAIN
    return Order(tuple(sizes[first] for first in sorted(sizes)), result)


def _behind(sizes: Sequence[int]) -> list[int]:
    """How many elements lie behind each axis: from one of its elements to the next."""
    return [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]


def _parts(order: Order, cuts: Sequence[int]) -> list[int]:
    """In which order parts of the file's elements are held, the parts being those between cuts."""
    base = order.base or cuts[:1]
    spans = [(step * n, step) for n, step in zip(base, _behind(base), strict=True)]
    parts = [[k for k in range(len(cuts) - 1) if first >= cuts[k] and cuts[k + 1] >= last] for first, last in spans]
    return [k for axis in (order.axes or range(len(base))) for k in parts[axis]]


def between(source: Order, target: Order, elements: int) -> Order | None:
    """The transposition that brings what is held in one order into another one; None if none does."""
    cuts = sorted({elements, *_behind(source.base), *_behind(target.base), 1}, reverse=True)
    if any(a % b for a, b in itertools.pairwise(cuts)):
        return None
    sizes = [a // b for a, b in itertools.pairwise(cuts)]
    held, wanted = _parts(source, cuts), _parts(target, cuts)
    return order_of([sizes[k] for k in held], [held.index(k) for k in wanted])


def axes_of(shape: Sequence[int], order: Order) -> Axes | None:
    """The axes of a shape in the order in which a tensor has them that is held in this order; None if it is none of
    axes."""
    real = [a for a, n in enumerate(shape) if n != 1]
    cuts = [math.prod(shape), *_behind([shape[a] for a in real])]
    if not set(_behind(order.base)) <= set(cuts):
        return None
    axes = (*(a for a, n in enumerate(shape) if n == 1), *(real[k] for k in _parts(order, cuts)))
    return axes if order_of(shape, axes) == order else None


def channels_last(rank: int) -> Axes:
    """Axes of the file in the order in which a tensor with channels last has them."""
    return (0, *range(2, rank), 1) if rank > 1 else tuple(range(rank))


def inverse(axes: Sequence[int]) -> Axes:
    """The transposition that takes one back."""
    return tuple(int(i) for i in np.argsort(axes))


def take(values: Sequence[int], axes: Sequence[int]) -> Shape:
    """Entries in another order."""
    return tuple(int(values[a]) for a in axes)
