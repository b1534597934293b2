"""Regions in parts: what to do when weights or program exceed the memories.

Weights and program of a part are loaded, it is run, then comes the next; activations stay on the chip. From external
memory the next parts come while one runs, to where what is in use is not: then smaller parts overlap better, and larger
ones start less often. The cost model of lists chooses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, product

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.dma import DmaCommand
from nnloom.arch.errors import CapacityError
from nnloom.arch.isa import DESCRIPTOR_WORDS, HostAddress
from nnloom.arch.lists import Move, Transfer, weight_transfer
from nnloom.arch.steps import Step
from nnloom.arch.table_places import TablePlaces

from .lower import LoweredLayer, tables_of
from .transfers import MemoryTiming, fetch_cycles, move_cycles

__all__ = [
    "PartSize",
    "PlacedTables",
    "arrangements",
    "cut",
    "cuts",
    "group_too_large",
    "in_pieces",
    "needs_other_tables",
    "programs",
]

_SHARES = (2, 3, 4, 6, 8, 12, 16)
"""Parts of so many that fill the memories, to overlap."""
_LEAST_WORDS = 16
"""Weight words that are loaded ahead at once, at least: a descriptor takes its time, too."""
_FIRST_SHARE = 32
"""Of the first part, if it is smaller than the others: nothing runs while it is loaded."""


def group_too_large(config: AcceleratorConfig, layer: LoweredLayer) -> str | None:
    """Why the weights of a single channel group exceed the weight memory, or None if they do not."""
    size = len(layer.weights) // layer.groups
    if size <= config.weight_words or layer.has_pieces(config):
        return None
    bytes_ = config.weight_word_bytes
    return (
        f"the weights of {config.lanes} output channels need {size * bytes_:,} bytes of weight memory, the "
        f"configuration has {config.weight_words * bytes_:,}"
    )


def in_pieces(config: AcceleratorConfig, layer: LoweredLayer) -> list[LoweredLayer]:
    """The layer, or if the weights of its channel groups are too many to come beside others, pieces that are not."""
    most = config.weight_words * 2 // 5
    if len(layer.weights) // layer.groups <= most or not layer.has_pieces(config):
        return [layer]
    return list(layer.pieces(config, most))


def cut(
    config: AcceleratorConfig, layers: Sequence[LoweredLayer], *, share: int = 1, first_share: int = 1
) -> list[list[LoweredLayer]]:
    """The fewest parts whose weights and programs fit the memories, in order.

    Each part is filled up; where a layer does not fit the rest of it, the layer is cut between channel groups. The
    layers of a part need no more tables than the engine has.

    Parameters
    ----------
    share, first_share
        A part, and the first one, takes this fraction of the memories at most, or one group of one layer.

    Raises
    ------
    CapacityError
        If the weights of a single channel group exceed the weight memory.
    """
    parts: list[list[LoweredLayer]] = [[]]
    most = max(1, config.program_words // DESCRIPTOR_WORDS // share)
    used = 0
    for layer in chain.from_iterable(in_pieces(config, layer) for layer in layers):
        first = 0
        if needs_other_tables(config, parts[-1], layer):
            parts.append([])
            used = 0
        size = len(layer.weights) // layer.groups
        reason = group_too_large(config, layer)
        if reason:
            raise CapacityError(f"{layer.layer.name}: {reason}; run this layer on the CPU")
        while first < layer.groups:
            room = config.weight_words // max(share, first_share if len(parts) == 1 else 1)
            # An empty part takes one group at least.
            count = max(0, min(layer.groups - first, (room - used) // size), int(not used))
            if not count or len(parts[-1]) == most:
                parts.append([])
                used = 0
                continue
            parts[-1].append(layer.take_groups(config, first, count))
            used += count * size
            first += count
    return parts


def programs(config: AcceleratorConfig, layers: Sequence[LoweredLayer]) -> list[list[LoweredLayer]]:
    """The fewest parts whose programs fit the memory, of layers whose weights all do."""
    parts: list[list[LoweredLayer]] = [[]]
    for layer in layers:
        full = len(parts[-1]) == config.program_words // DESCRIPTOR_WORDS
        if full or needs_other_tables(config, parts[-1], layer):
            parts.append([])
        parts[-1].append(layer)
    return parts


def needs_other_tables(config: AcceleratorConfig, before: Iterable[LoweredLayer], layer: LoweredLayer) -> bool:
    """Whether a layer needs a table for which those of the layers before it leave no room in the engine."""
    return len(tables_of(item.layer for item in (*before, layer))) > max(1, config.tables)


class PlacedTables:
    """The tables of a network, and where they lie from program to program; each under its number if all have room."""

    def __init__(self, config: AcceleratorConfig, tables: Sequence[bytes]) -> None:
        self.tables = tables
        self._config = config
        self._places = TablePlaces(config) if len(tables) > config.tables else None

    def again(self) -> PlacedTables:
        """The same, with nothing in its place."""
        return PlacedTables(self._config, self.tables)

    def held(self, layers: Iterable[LoweredLayer]) -> list[bytes]:
        """What the engine's tables hold while a program of these layers runs, which is the next one."""
        if self._places is None:
            return list(self.tables)
        numbers = self._places.place(self.tables.index(table) for table in tables_of(item.layer for item in layers))
        return [self.tables[number] if number >= 0 else b"" for number in numbers]

    def of_part(self, layers: Iterable[LoweredLayer]) -> tuple[int, ...]:
        """`artifact.Part.tables` of a finished program."""
        if self._places is None:
            return ()
        used = {
            item.descriptor.table - 1: self.tables.index(item.layer.table.entries)
            for item in layers
            if item.layer.table
        }
        return tuple(used.get(place, -1) for place in range(max(used, default=-1) + 1))


def cuts(config: AcceleratorConfig, layers: Sequence[LoweredLayer]) -> Iterator[list[list[LoweredLayer]]]:
    """Ways to cut a region so that parts can be loaded while others run."""
    seen: set[tuple[int, ...]] = set()
    for share, first in product(_SHARES, (1, _FIRST_SHARE)):
        parts = cut(config, layers, share=share, first_share=first)
        shape = tuple(sum(len(layer.weights) for layer in part) for part in parts)
        if shape not in seen:
            seen.add(shape)
            yield parts


@dataclass(frozen=True, kw_only=True)
class PartSize:
    """What of a part counts for its place and time."""

    program_words: int
    weights_words: int
    cycles: int
    """of its program"""


def arrangements(
    config: AcceleratorConfig, parts: Sequence[PartSize], timing: MemoryTiming
) -> Iterator[tuple[Step, ...]]:
    """Steps that load parts while others run, each to where nothing is that is still needed: by two rules of place."""
    for ring in (True, False):
        yield tuple(_Arrangement(config, parts, timing, ring=ring).steps())


@dataclass(frozen=True)
class _Place:
    """First words of a part in program and weight memory."""

    program: int
    weights: int


class _Arrangement:
    """Loads as early as there is room for them, in pieces that do not delay a program that is ready.

    Times are estimates: they choose the order, whatever is chosen is right. ring: parts follow each other round the
    memories; else each takes the smallest gap.
    """

    def __init__(
        self, config: AcceleratorConfig, parts: Sequence[PartSize], timing: MemoryTiming, *, ring: bool
    ) -> None:
        self._config = config
        self._parts = parts
        self._timing = timing
        self._ring = ring
        self._places: list[_Place] = []
        """of the parts that were loaded, the last one perhaps in part"""
        self._left = 0
        """weight words of the last one that were not"""

    def steps(self) -> Iterator[Step]:
        """In order."""
        timing = self._timing
        fetch = fetch_cycles(timing)
        store = fetch + move_cycles(Move(DmaCommand.STORE, Transfer(host_address=0, row_words=3), 0), timing)
        now = end = 0.0
        for index, part in enumerate(self._parts):
            if index == len(self._places):
                # Nothing is in use: the program before has ended.
                now = max(now, end) + self._cycles(index, part.weights_words)
                place = self._find(range(0))
                assert place is not None
                self._places.append(place)
                yield self._load(part.weights_words, under_way=0)
            if index:
                now = max(now, end) + store
            now += fetch
            yield Step(kind="run", part=index)
            end = now + part.cycles
            while count := self._next_words(index, end - now):
                now += self._cycles(len(self._places) - 1, count)
                yield self._load(count, under_way=1)

    def _next_words(self, running: int, time: float) -> int:
        """Weight words that are loaded next beside a program, in so many cycles; 0: none. The next part gets its place.

        That part has to come; those behind it only while there is time.
        """
        following = len(self._places) - 1
        if not self._left:
            following += 1
            if following == len(self._parts):
                return 0
            place = self._find(range(running, following))
            if place is None:
                return 0
        size = self._parts[following].weights_words
        left = self._left or size
        count = left
        if following > running + 1:
            each = self._cycles(following, size) / size
            count = min(left, int((time - 2 * fetch_cycles(self._timing)) / each))
            if count < left:
                count = count // _LEAST_WORDS * _LEAST_WORDS
        if count <= 0:
            return 0
        if not self._left:
            assert place is not None
            self._places.append(place)
            self._left = size
        return count

    def _load(self, count: int, *, under_way: int) -> Step:
        index, place = len(self._places) - 1, self._places[-1]
        size = self._parts[index].weights_words
        left = self._left or size
        self._left = left - count
        return Step(
            kind="load",
            part=index,
            under_way=under_way,
            program_base=place.program,
            weights_base=place.weights,
            first_word=size - left,
            words=count,
        )

    def _cycles(self, index: int, words: int) -> float:
        """Of loads: so many weight words of a part, with its program before the first."""
        moved = [weight_transfer(self._config, words)]
        if self._left in (0, self._parts[index].weights_words):
            moved.append(Transfer(host_address=HostAddress.PROGRAM, row_words=self._parts[index].program_words))
        moves = (Move(DmaCommand.LOAD, transfer, 0, in_table=False) for transfer in moved)
        return sum(fetch_cycles(self._timing) + move_cycles(move, self._timing) for move in moves)

    def _find(self, in_use: range) -> _Place | None:
        """A place for the next part beside those that are in use, if there is one."""
        size = self._parts[len(self._places)]
        used = [(self._parts[i], self._places[i]) for i in in_use]
        program = self._gap(
            self._config.program_words, size.program_words, [(p.program, s.program_words) for s, p in used]
        )
        weights = self._gap(
            self._config.weight_words, size.weights_words, [(p.weights, s.weights_words) for s, p in used]
        )
        return None if program is None or weights is None else _Place(program, weights)

    def _gap(self, total: int, size: int, used: Sequence[tuple[int, int]]) -> int | None:
        """First word of a gap between (first word, size) of what is in use."""
        gaps = list(_gaps(total, used))
        if self._ring and used:
            # Behind the newest, or from the beginning on.
            newest = used[-1][0]
            gaps.sort(key=lambda gap: (gap[0] < newest, gap[0]))
        else:
            gaps.sort(key=lambda gap: gap[1] - gap[0])
        return next((first for first, end in gaps if end - first >= size), None)


def _gaps(total: int, used: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(first word, end) of what is free, in order."""
    first = 0
    for start, size in sorted(used):
        if start > first:
            yield first, start
        first = max(first, start + size)
    if first < total:
        yield first, total
