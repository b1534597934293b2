"""Networks of more functions than the engine has tables: which table lies where, from part to part.

A part names the tables that its program uses (`Part.tables`). Whoever loads parts keeps a `TablePlaces`, and writes
what is not there yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from .artifact import Part
from .config import AcceleratorConfig
from .isa import TABLE_ENTRIES

__all__ = ["TABLE_BYTES", "TablePlaces", "loaded_bytes"]

TABLE_BYTES = 4 * TABLE_ENTRIES
"""Of a table on its way to the engine, an entry a word of the host bus."""


class TablePlaces:
    """What the engine's tables hold, as numbers of the image's; at first nothing that is known."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self._held = [-1] * config.tables
        self._used = [0] * config.tables
        """when each was used last"""
        self._now = 0

    def load(self, part: Part) -> Iterator[tuple[int, int]]:
        """(table of the engine, table of the image) of each that a part needs and that is not there; they are then."""
        for place, number in enumerate(part.tables):
            if number >= 0 and self._held[place] != number:
                self._held[place] = number
                yield place, number

    def place(self, numbers: Iterable[int]) -> list[int]:
        """Give tables of the image their places, over those that were used longest ago; what the engine's tables then
        hold. There are no more of them than the engine has tables."""
        needed = list(dict.fromkeys(numbers))
        assert len(needed) <= len(self._held)
        self._now += 1
        for number in needed:
            if number in self._held:
                self._used[self._held.index(number)] = self._now
        for number in needed:
            if number not in self._held:
                oldest = min(range(len(self._held)), key=self._used.__getitem__)
                self._held[oldest], self._used[oldest] = number, self._now
        return list(self._held)


def loaded_bytes(config: AcceleratorConfig, parts: Sequence[Part]) -> list[int]:
    """Bytes of program, weights and tables that a host loads for each part of an inference that follows another.

    parts: of all regions, in order.
    """
    places = TablePlaces(config)
    for part in parts:
        _ = [*places.load(part)]
    sizes = []
    for before, part in zip([*parts[-1:], *parts[:-1]], parts, strict=True):
        size = 4 * part.program_words + TABLE_BYTES * len([*places.load(part)])
        if part.weights_place != before.weights_place:
            size += part.weights_words * config.weight_word_bytes
        sizes.append(size)
    return sizes
