"""Where the multipliers and memories of a large engine go on an ECP5: each lane's beside each other.

With nearly all DSP blocks and block RAMs in use, nextpnr's placer decides late where each one goes, and the last ones
get what is left, across the chip from what they belong to. Given these places it finds the others by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["SITES", "Sites", "floorplan", "lanes_of"]

LEAST_SHARE = 0.75
"""Of the DSP blocks: a smaller engine would be spread over more of the chip than it needs."""


@dataclass(frozen=True)
class Sites:
    """DSP blocks and block RAMs of a device, in rows that cross it.

    columns
        x of each group of four of them.
    dsp_rows, ram_rows
        y of the rows.
    lane_rows
        y of the middles of two rows of lanes.
    middle, control, link
        x and y: where the activation memory goes, the program and the counters, and the link's buffers (beside the pins
        of the serial line), as near as the lanes leave it.
    """

    columns: tuple[int, ...]
    dsp_rows: tuple[int, ...]
    ram_rows: tuple[int, ...]
    lane_rows: tuple[int, int]
    middle: tuple[int, int]
    control: tuple[int, int]
    link: tuple[int, int]

    def dsp(self) -> Iterator[tuple[int, int, str]]:
        """x, y, and nextpnr's name of each place of a MULT18X18D."""
        for y in self.dsp_rows:
            for x in self.columns:
                for number in (0, 1, 4, 5):
                    yield x + number, y, f"X{x + number}/Y{y}/MULT18_{number}"

    def ram(self) -> Iterator[tuple[int, int, str]]:
        """x, y, and nextpnr's name of each place of a DP16KD."""
        for y in self.ram_rows:
            for x in self.columns:
                for number in range(4):
                    yield x + 2 * number, y, f"X{x + 2 * number}/Y{y}/EBR{number}"

    def lane(self, index: int, lanes: int) -> tuple[float, float]:
        """x and y of a lane: the first half of them in the upper row, neighbours beside each other."""
        half = lanes // 2
        width = self.columns[-1] + self.columns[0] + 8
        return (index % half + 0.5) * width / half, self.lane_rows[index // half]


SITES = {
    "85k": Sites(
        columns=(*range(4, 59, 9), *range(69, 115, 9)),
        dsp_rows=(10, 34, 58),
        ram_rows=(22, 46, 70, 82),
        lane_rows=(18, 66),
        middle=(74, 46),
        control=(38, 46),
        link=(6, 46),
    )
}
"""By nextpnr's name of the device; those of the others are not written down."""

_MULTIPLIER = re.compile(r"\bmac\.multiplier_\d+_(\d+)_\d+\.")
_UNIT = re.compile(r"\brequantizer\.(?:low|high)_(\d+)\.|\brequantizer\.tables\.memory_(\d+)\.")
_WEIGHTS = re.compile(r"\bweights(?:\$\d+)?\.memory_(\d+)\.")


def lanes_of(cells: Mapping[str, str]) -> tuple[int, dict[str, int]]:
    """How many lanes there are, and which lane each DSP block and block RAM of a lane belongs to, by the cell's name.

    A requantization unit or a weight memory that several lanes share belongs to the first of them.
    """
    found: dict[re.Pattern[str], dict[str, int]] = {_MULTIPLIER: {}, _UNIT: {}, _WEIGHTS: {}}
    for cell in cells:
        for pattern, indices in found.items():
            if match := pattern.search(cell):
                indices[cell] = int(next(number for number in match.groups() if number))
    counts = {pattern: 1 + max(indices.values(), default=0) for pattern, indices in found.items()}
    lanes = counts[_MULTIPLIER]
    return lanes, {
        cell: index * lanes // counts[pattern] for pattern, indices in found.items() for cell, index in indices.items()
    }


def floorplan(device: str, cells: Mapping[str, str]) -> dict[str, str]:
    """Places for a netlist's DSP blocks and block RAMs.

    cells
        The types of the netlist's cells by name.

    Returns the place of each cell that gets one by its name; none for a device or an engine that does without.
    """
    sites = SITES.get(device)
    if sites is None:
        return {}
    places = {"MULT18X18D": list(sites.dsp()), "DP16KD": list(sites.ram())}
    used = sum(kind == "MULT18X18D" for kind in cells.values())
    lanes, members = lanes_of({cell: kind for cell, kind in cells.items() if kind in places})
    if used < LEAST_SHARE * len(places["MULT18X18D"]) or lanes < 4:
        return {}
    result: dict[str, str] = {}
    for kind, all_places in places.items():
        targets = {
            cell: sites.lane(members[cell], lanes) if cell in members else _target(sites, cell)
            for cell in sorted(cells)
            if cells[cell] == kind
        }
        if len(targets) > len(all_places):
            return {}
        chosen = _nearest(list(targets.values()), all_places)
        result |= {cell: place[2] for cell, place in zip(targets, chosen, strict=True)}
    return result


def _target(sites: Sites, cell: str) -> tuple[int, int]:
    """Where a block that is of no lane goes."""
    if ".link." in cell:
        return sites.link
    return sites.control if re.search(r"\b(program|counters)\.", cell) else sites.middle


def _nearest(
    targets: Sequence[tuple[float, float]], places: Sequence[tuple[int, int, str]]
) -> list[tuple[int, int, str]]:
    """A place for each target, so that the sum of the distances is least.

    More than proportional ones, so that none is far off for the others' sake.
    """
    at, there = np.array(targets), np.array([place[:2] for place in places])
    return [places[i] for i in _assign(np.abs(at[:, None] - there[None]).sum(2) ** 1.5)]


def _assign(cost: NDArray[np.float64]) -> list[int]:
    """The column of each row, so that the sum of their costs is least; at least as many columns as rows.

    The Hungarian method with shortest augmenting paths (Jonker and Volgenant, Computing 38, 1987).
    """
    rows, columns = cost.shape
    # Index 0 of rows and columns stands for none.
    row_price, column_price = np.zeros(rows + 1), np.zeros(columns + 1)
    owner, before = np.zeros(columns + 1, int), np.zeros(columns + 1, int)
    for row in range(1, rows + 1):
        owner[0], column = row, 0
        distance, done = np.full(columns + 1, np.inf), np.zeros(columns + 1, bool)
        while column == 0 or owner[column]:
            done[column] = True
            reduced = np.concatenate([[np.inf], cost[owner[column] - 1]]) - row_price[owner[column]] - column_price
            shorter = ~done & (reduced < distance)
            distance[shorter], before[shorter] = reduced[shorter], column
            following = int(np.argmin(np.where(done, np.inf, distance)))
            step = distance[following]
            row_price[owner[done]] += step
            column_price[done] -= step
            distance[~done] -= step
            column = following
        while column:
            owner[column] = owner[before[column]]
            column = int(before[column])
    result = [0] * rows
    for column in range(1, columns + 1):
        if owner[column]:
            result[owner[column] - 1] = column - 1
    return result
