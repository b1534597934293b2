"""Regions as lists for the DMA engine (`arch.dma`): what lies in its memory, and the descriptors of an inference.

The memory has two pieces: an *image* that is written once (the programs and weights of parts, and every list) and a
*table* of the tensors and counters that each inference exchanges. A region's list is

    LOAD the inputs from the table,
    the region's steps (`arch.steps`): LOAD program and weights of parts, LOAD the tables that they need and that are
    not there yet, RUN, and between two programs STORE the counters of the first into the table,
    STORE the outputs into the table.

Tensors in external memory (`Region.external`) lie in the table, too: steps bring and store rows of them, and those that
are inputs or outputs are exchanged there. Zynq boards execute lists from DDR, serial boards from their external memory;
the compiler's cost model counts them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray

from .artifact import Artifact, Part, Region, Rows, TensorLocation
from .config import AcceleratorConfig
from .dma import BUFFER_ALIGNMENT, DESCRIPTOR_BYTES, DmaCommand, DmaDescriptor, encode_list
from .isa import (
    DESCRIPTOR_WORDS,
    FIELDS,
    TABLE_ENTRIES,
    Counter,
    HostAddress,
    Register,
    weight_stride,
    weight_word_columns,
)
from .memory_system import checksum
from .steps import Step, region_steps
from .table_places import TablePlaces

__all__ = [
    "Lists",
    "Move",
    "RegionList",
    "Run",
    "Transfer",
    "aligned_words",
    "relocated",
    "tensor_addresses",
    "transfers",
    "weight_transfer",
]

_ALIGNMENT_WORDS = BUFFER_ALIGNMENT // 4
_DESCRIPTOR_WORDS = DESCRIPTOR_BYTES // 4
_RESULTS = (Register.STATUS, Register.CYCLES, Register.LAYERS)
"""Registers that are stored after a program."""
assert all(b - a == 4 for a, b in pairwise(_RESULTS))
_WEIGHT_BASE = next(field for field in FIELDS if field.name == "weight_base")
assert _WEIGHT_BASE.offset == 0


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Words that one DMA descriptor can move: `rows` of `row_words`, `row_step` host bus words apart."""

    host_address: int
    row_words: int
    row_step: int = 0
    rows: int = 1

    @property
    def words(self) -> int:
        """All words."""
        return self.rows * self.row_words

    def descriptor(self, command: DmaCommand, ddr_address: int, under_way: int = 0) -> DmaDescriptor:
        """The transfer as a descriptor."""
        return DmaDescriptor(
            command=command,
            under_way=under_way,
            ddr_address=ddr_address,
            host_address=self.host_address,
            words=self.words,
            row_words=self.row_words if self.rows > 1 else 0,
            row_step=self.row_step,
        )


def transfers(addresses: NDArray[np.uint32]) -> list[Transfer]:
    """The fewest transfers, in order, that touch these host bus addresses one after the other."""
    if len(addresses) == 0:
        return []
    values = addresses.astype(np.int64)
    edges = [0, *(np.flatnonzero(np.diff(values) != 4) + 1).tolist(), len(values)]
    result: list[Transfer] = []
    for first, last in pairwise(edges):
        start, words = int(values[first]), last - first
        if result:
            before = result[-1]
            step = (start - before.host_address) // 4
            if before.rows > 1:
                step -= before.row_step * (before.rows - 1)
            # A step goes forward, and fits the descriptor's field, as a row must.
            same = words == before.row_words and words < 1 << 16 and 0 < step < 1 << 16
            if same and (before.rows == 1 or step == before.row_step):
                result[-1] = replace(before, rows=before.rows + 1, row_step=step)
                continue
        result.append(Transfer(host_address=start, row_words=words))
    return result


def tensor_addresses(config: AcceleratorConfig, location: TensorLocation) -> NDArray[np.uint32]:
    """Host bus addresses of a tensor's words, bank after bank, as `TensorLocation.pack` has them."""
    parts = []
    for bank in range(config.row_banks):
        start = HostAddress.ACTIVATIONS + (bank * config.bank_granules + location.base) * config.granule
        parts.append(start + 4 * np.arange(location.bank_bytes(config, bank) // 4))
    return np.concatenate(parts).astype(np.uint32)


def weight_transfer(config: AcceleratorConfig, words: int, base: int = 0) -> Transfer:
    """`words` words of weight memory from `base` on; in the DMA's memory a word takes `weight_word_columns`."""
    return Transfer(
        host_address=HostAddress.WEIGHTS + base * weight_stride(config),
        row_words=weight_word_columns(config),
        row_step=weight_stride(config) // 4 if words > 1 else 0,
        rows=words,
    )


def relocated(program: NDArray[np.uint32], weights_base: int) -> NDArray[np.uint32]:
    """A program whose weights lie from `weights_base` on, of one whose weights lie from 0 on."""
    descriptors = program.reshape(-1, DESCRIPTOR_WORDS).copy()
    column = descriptors[:, _WEIGHT_BASE.word]
    assert not len(column) or weights_base + int(np.max(column & _WEIGHT_BASE.maximum)) <= _WEIGHT_BASE.maximum
    column += np.uint32(weights_base)
    return descriptors.reshape(-1)


def aligned_words(words: int) -> int:
    """Words rounded up to where the next transfer may begin in the DMA's memory."""
    return -(-words // _ALIGNMENT_WORDS) * _ALIGNMENT_WORDS


@dataclass(frozen=True)
class Move:
    """A transfer from or to a place in one of the two pieces of memory."""

    command: DmaCommand
    transfer: Transfer
    word: int
    """first word of the piece"""
    in_table: bool = True
    under_way: int = 0
    """as that of `dma.DmaDescriptor`"""

    @property
    def words(self) -> slice:
        """Of its piece."""
        return slice(self.word, self.word + self.transfer.words)


@dataclass(frozen=True)
class Run:
    """The start of a program."""

    program_start: int
    under_way: int = 0
    """as that of `dma.DmaDescriptor`"""


@dataclass(frozen=True, kw_only=True)
class RegionList:
    """The lists of a region."""

    region: Region
    inputs: tuple[Move, ...]
    outputs: tuple[Move, ...]
    results: tuple[Move, ...]
    """registers after each program"""
    counters: tuple[Move, ...]
    """of the layers of each program; empty without `layer_counters`"""
    steps: tuple[Move | Run, ...]
    """in order"""
    list_word: int
    """where the list lies in the image"""
    counting_word: int
    """where the one lies that also stores counters; without `layer_counters` the same"""

    def pack(self, config: AcceleratorConfig, values: Sequence[NDArray]) -> list[NDArray[np.uint32]]:
        """The words of each of `inputs`, for values as `TensorLocation.pack` takes them."""
        banks = [b for location, v in zip(self.region.inputs, values, strict=True) for b in location.pack(config, v)]
        words = np.concatenate([bank.view("<u4") for bank in banks]).astype(np.uint32)
        edges = np.cumsum([0, *(move.transfer.words for move in self.inputs)]).tolist()
        return [words[a:b] for a, b in pairwise(edges)]

    def unpack(self, config: AcceleratorConfig, words: Sequence[NDArray[np.uint32]]) -> list[NDArray]:
        """The output tensors from the words of each of `outputs`."""
        data = np.concatenate(words).astype("<u4").view(np.uint8)
        tensors, position = [], 0
        for location in self.region.outputs:
            sizes = [location.bank_bytes(config, bank) for bank in range(config.row_banks)]
            edges = np.cumsum([position, *sizes]).tolist()
            tensors.append(location.unpack(config, [data[a:b] for a, b in pairwise(edges)]))
            position = edges[-1]
        return tensors

    @property
    def counting_steps(self) -> tuple[Move | Run, ...]:
        """`steps` with the counters of each program stored behind its results."""
        behind = dict(zip(self.results, self.counters, strict=True)) if self.counters else {}
        return tuple(s for step in self.steps for s in ((step, behind[step]) if step in behind else (step,)))


class _Space:
    """Words that are given out one after the other."""

    def __init__(self) -> None:
        self.words = 0

    def take(self, words: int) -> int:
        first = self.words
        self.words += aligned_words(words)
        return first


@dataclass(frozen=True, eq=False)
class Lists:
    """The lists of an artifact's regions, and what they move.

    Attributes
    ----------
    regions : dict of name to `RegionList`
    image_words, table_words : int
        Sizes of the two pieces of memory.
    """

    regions: dict[str, RegionList]
    image_words: int
    table_words: int
    _contents: dict[int, NDArray[np.uint32]] = field(repr=False)

    @classmethod
    def of(cls, artifact: Artifact) -> Lists:
        """The lists of an artifact."""
        manifest = artifact.manifest
        return cls.make(manifest.config, manifest.all_regions, artifact.program, artifact.weights, artifact.tables)

    @classmethod
    def make(
        cls,
        config: AcceleratorConfig,
        regions: Sequence[Region],
        program: NDArray[np.uint32] | None = None,
        weights: NDArray[np.uint8] | None = None,
        tables: NDArray[np.uint8] | None = None,
    ) -> Lists:
        """The lists of regions with these images of programs, weights and tables; without them `image` is not
        complete."""
        image, table = _Space(), _Space()
        contents: dict[int, NDArray[np.uint32]] = {}

        lists = {
            region.name: _RegionMaker(
                config, region, image, table, _Images(config, program, weights, tables, image, contents)
            ).make()
            for region in regions
        }
        return cls(lists, image.words, table.words, contents)

    def descriptors(self, region: RegionList, *, counting: bool, image_address: int, table_address: int) -> list:
        """A region's list for memory at these byte addresses."""
        result = []
        for step in region.counting_steps if counting else region.steps:
            if isinstance(step, Run):
                result.append(
                    DmaDescriptor(command=DmaCommand.RUN, host_address=step.program_start, under_way=step.under_way)
                )
            else:
                base = table_address if step.in_table else image_address
                result.append(step.transfer.descriptor(step.command, base + 4 * step.word, step.under_way))
        return result

    def checksum(
        self,
        region: RegionList,
        image: NDArray[np.uint32],
        inputs: Sequence[NDArray[np.uint32]],
        *,
        counting: bool,
        beat_words: int,
    ) -> int:
        """What CHECKSUM of a memory system holds after a region's list; `inputs`: the words of `RegionList.pack`.

        beat_words: 32-bit words of a beat of its bus.
        """
        steps = region.counting_steps if counting else region.steps
        table = np.zeros(self.table_words, np.uint32)
        for move, words in zip(region.inputs, inputs, strict=True):
            table[move.words] = words
        word = region.counting_word if counting else region.list_word
        pieces: list[NDArray[np.uint32]] = []
        for step in steps:
            pieces.append(image[word : word + _DESCRIPTOR_WORDS])
            word += _DESCRIPTOR_WORDS
            if isinstance(step, Move) and step.command == DmaCommand.LOAD:
                size = -(-step.transfer.words // beat_words) * beat_words
                data = (table if step.in_table else image)[step.words]
                pieces.append(np.pad(data, (0, size - len(data))))
        return checksum(np.concatenate(pieces), beat_words)

    def image(self, *, image_address: int, table_address: int) -> NDArray[np.uint32]:
        """The words of the image for memory at these byte addresses."""
        words = np.zeros(self.image_words, np.uint32)
        for first, data in self._contents.items():
            words[first : first + len(data)] = data
        for region in self.regions.values():
            for counting, first in ((False, region.list_word), (True, region.counting_word)):
                if counting and not region.counters:
                    continue
                descriptors = self.descriptors(
                    region, counting=counting, image_address=image_address, table_address=table_address
                )
                data = encode_list(descriptors)
                words[first : first + len(data)] = data
        return words


class _Images:
    """Programs, weights and tables of parts, put into the image once for each place on the chip."""

    def __init__(
        self,
        config: AcceleratorConfig,
        programs: NDArray[np.uint32] | None,
        weights: NDArray[np.uint8] | None,
        tables: NDArray[np.uint8] | None,
        image: _Space,
        contents: dict[int, NDArray[np.uint32]],
    ) -> None:
        self.config = config
        self._programs = programs
        self._weights = weights
        self._tables = tables
        self.image = image
        self._contents = contents
        self._placed: dict[tuple[int | str, ...], int] = {}

    def loads(self, part: Part, step: Step) -> Iterator[Move]:
        """Program and weights of a part, or one of them, to where the step has them."""
        config, columns = self.config, weight_word_columns(self.config)
        if step.kind == "program" or (step.kind == "load" and not step.first_word):
            start = HostAddress.PROGRAM + 4 * step.program_base
            key = (part.program_start, part.program_words, step.weights_base)
            word = self._put(key, part.program_words, lambda: self._program(part, step))
            transfer = Transfer(host_address=start, row_words=part.program_words)
            yield Move(DmaCommand.LOAD, transfer, word, in_table=False, under_way=step.under_way)
        if step.kind == "program":
            return
        words = part.weights_words - step.first_word if step.words is None else step.words
        if words:
            weights = part.weights_start, part.weights_words
            word = self._put(weights, part.weights_words * columns, lambda: self._columns(part))
            transfer = weight_transfer(config, words, part.weights_base + step.weights_base + step.first_word)
            first = word + step.first_word * columns
            yield Move(DmaCommand.LOAD, transfer, first, in_table=False, under_way=step.under_way)

    def table(self, place: int, number: int) -> Move:
        """Load a table of the image into one of the engine's, which takes it at rest only."""

        def words() -> NDArray[np.uint32]:
            assert self._tables is not None
            return self._tables[number].astype(np.uint32)

        word = self._put(("table", number), TABLE_ENTRIES, words)
        start = HostAddress.TABLES + 4 * TABLE_ENTRIES * place
        return Move(DmaCommand.LOAD, Transfer(host_address=start, row_words=TABLE_ENTRIES), word, in_table=False)

    def _program(self, part: Part, step: Step) -> NDArray[np.uint32]:
        assert self._programs is not None
        program = self._programs[part.program_start : part.program_start + part.program_words]
        return relocated(program, step.weights_base)

    def _columns(self, part: Part) -> NDArray[np.uint32]:
        assert self._weights is not None
        weights = self._weights[part.weights_start : part.weights_start + part.weights_words]
        columns = np.zeros((len(weights), 4 * weight_word_columns(self.config)), np.uint8)
        columns[:, : self.config.weight_word_bytes] = weights
        return columns.reshape(-1).view("<u4")

    def _put(self, key: tuple[int | str, ...], size: int, make: Callable[[], NDArray[np.uint32]]) -> int:
        if key not in self._placed:
            self._placed[key] = word = self.image.take(size)
            if self._programs is not None:
                self._contents[word] = make().astype(np.uint32)
        return self._placed[key]


class _RegionMaker:
    """The list of a region, from its steps."""

    def __init__(
        self, config: AcceleratorConfig, region: Region, image: _Space, table: _Space, images: _Images
    ) -> None:
        self._config = config
        self._region = region
        self._image = image
        self._table = table
        self._images = images
        self._bases: dict[int, int] = {}
        """where the program of each part lies"""
        self._external: dict[int, int] = {}
        """first word of each external tensor"""

    def _exchange(self, command: DmaCommand, moved: Sequence[Transfer]) -> tuple[Move, ...]:
        return tuple(Move(command, transfer, self._table.take(transfer.words)) for transfer in moved)

    def _tensors(self, command: DmaCommand, locations: Sequence[TensorLocation]) -> tuple[list[Move], list[Move]]:
        """Moves for all words of some tensors, and those of them that the list does: not of external tensors."""
        moves: list[Move] = []
        done: list[Move] = []
        for is_external, group in groupby(locations, lambda t: self._region.external_number(t) is not None):
            if is_external:
                for location in group:
                    transfer = Transfer(host_address=0, row_words=self._external_words(location))
                    moves.append(Move(command, transfer, self._place(self._region.external_number(location))))
            else:
                addresses = [tensor_addresses(self._config, location) for location in group]
                new = self._exchange(command, transfers(np.concatenate(addresses)))
                moves += new
                done += new
        return moves, done

    def _external_words(self, location: TensorLocation) -> int:
        return sum(location.bank_bytes(self._config, bank) for bank in range(self._config.row_banks)) // 4

    def _place(self, number: int | None) -> int:
        """First word of an external tensor in the table."""
        assert number is not None
        if number not in self._external:
            self._external[number] = self._table.take(self._external_words(self._region.external[number]))
        return self._external[number]

    def make(self) -> RegionList:
        """Places in both pieces of memory, and the steps."""
        config, region, image = self._config, self._region, self._images.image
        middle = region_steps(region)
        # What is exchanged with the host lies together.
        inputs, loads = self._tensors(DmaCommand.LOAD, region.inputs)
        given = {*map(region.external_number, region.inputs)}
        wanted = {*map(region.external_number, region.outputs)}
        for number in range(len(region.external)):
            if number not in wanted:
                self._place(number)
        sizes = [region.parts[step.part].program_words for step in middle if step.kind == "run"]
        sizes = sizes or [region.program_words]
        start = HostAddress.REGISTERS + _RESULTS[0]
        registers = [Transfer(host_address=start, row_words=len(_RESULTS))] * len(sizes)
        results = self._exchange(DmaCommand.STORE, registers)
        outputs, stores = self._tensors(DmaCommand.STORE, region.outputs)
        counters: tuple[Move, ...] = ()
        if config.layer_counters:
            counted = [size // DESCRIPTOR_WORDS * len(Counter) for size in sizes]
            counters = self._exchange(
                DmaCommand.STORE, [Transfer(host_address=HostAddress.COUNTERS, row_words=words) for words in counted]
            )
        steps: list[Move | Run] = [*loads]
        if region.parts:
            steps += self._middle(middle, results, {number for number in given if number is not None})
        else:
            steps += [Run(region.program_start), *results]
        steps += stores
        list_word = image.take(_DESCRIPTOR_WORDS * len(steps))
        counting_word = image.take(_DESCRIPTOR_WORDS * (len(steps) + len(counters))) if counters else list_word
        return RegionList(
            region=region,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            results=results,
            counters=counters,
            steps=tuple(steps),
            list_word=list_word,
            counting_word=counting_word,
        )

    def _middle(self, middle: Sequence[Step], results: Sequence[Move], given: set[int]) -> Iterator[Move | Run]:
        """The region's steps; the registers of a program are stored before the next one starts.

        given: external tensors that are inputs.
        """
        waiting: Move | None = None
        following = iter(results)
        places = TablePlaces(self._config)
        for step in middle:
            part = self._region.parts[step.part]
            match step.kind:
                case "run":
                    if waiting:
                        yield waiting
                    for place, number in places.load(part):
                        yield self._images.table(place, number)
                    yield Run(self._bases[step.part], step.under_way)
                    waiting = next(following)
                case "load" | "program" | "weights":
                    if step.kind != "weights":
                        self._bases[step.part] = step.program_base
                    yield from self._images.loads(part, step)
                case "bring":
                    for rows in part.loads:
                        # The host has written an input; others the list has stored before.
                        command = DmaCommand.LOAD if rows.tensor in given else DmaCommand.RELOAD
                        yield from self._rows(command, rows, step.under_way)
                case "store":
                    for rows in part.stores:
                        yield from self._rows(DmaCommand.STORE, rows, step.under_way)
        if waiting:
            yield waiting

    def _rows(self, command: DmaCommand, rows: Rows, under_way: int) -> Iterator[Move]:
        config = self._config
        place = self._place(rows.tensor)
        for bank, first, size in rows.pieces(config, self._region.external[rows.tensor]):
            start = HostAddress.ACTIVATIONS + (bank * config.bank_granules + rows.base) * config.granule
            yield Move(
                command, Transfer(host_address=start, row_words=size // 4), place + first // 4, under_way=under_way
            )
