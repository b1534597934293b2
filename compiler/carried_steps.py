"""Where a depthwise kernel of one column finds its rows in a window that keeps earlier loads: see `carried`."""

from __future__ import annotations

import functools
from dataclasses import dataclass

__all__ = ["CarriedSteps", "carried_steps"]


@dataclass(frozen=True)
class CarriedSteps:
    """The loads of an output, and where in the window each kernel row is multiplied."""

    first: int
    """kernel row of the first load's first row"""
    distance: int
    """rows from one load to the next"""
    loads: int
    taps: tuple[tuple[int, int, int], ...]
    """of each kernel row: load, column (0: the oldest) and row of the window"""

    @property
    def wrong(self) -> int:
        """Output rows at the beginning that lack what they need of those before."""
        return 2 if self.loads == 1 else 1


@functools.cache
def carried_steps(kernel_rows: int, stride: int, rows: int, columns: int) -> CarriedSteps | None:
    """The fewest loads for a kernel of one column, if they are fewer than without what was loaded before.

    rows, columns: of the window.
    """
    for loads in range(1, -(-kernel_rows // rows)):
        for distance in range(1, kernel_rows + 1):
            for first in range(-columns * stride, kernel_rows):
                places: dict[int, tuple[int, int, int]] = {}
                for load in range(loads):
                    for age in range(columns):
                        # Loads before the first are those of the outputs before.
                        before, index = divmod(load - age, loads)
                        start = first + index * distance + before * stride
                        for row in range(rows):
                            places.setdefault(start + row, (load, columns - 1 - age, row))
                if all(k in places for k in range(kernel_rows)):
                    taps = tuple(places[k] for k in range(kernel_rows))
                    return CarriedSteps(first, distance, loads, taps)
    return None
