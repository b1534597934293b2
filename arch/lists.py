"""Regions as lists for the DMA engine (`arch.dma`): what lies in its memory, and the descriptors of an inference.

The memory has two pieces: an *image* that is written once (the programs and weights of parts, and every list) and a
*table* of the tensors and counters that each inference exchanges. A region's list is

    LOAD the inputs from the table,
    for each program: LOAD program and weights (those of parts), RUN, STORE the counters into the table,
    STORE the outputs into the table.

Zynq boards execute it from DDR, serial boards from their external memory; the compiler's cost model counts it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .artifact import Artifact, Part, Region, TensorLocation
from .config import AcceleratorConfig
from .dma import BUFFER_ALIGNMENT, DESCRIPTOR_BYTES, DmaCommand, DmaDescriptor, encode_list
from .isa import DESCRIPTOR_WORDS, Counter, HostAddress, Register, weight_stride, weight_word_columns
from .memory_system import checksum

__all__ = [
    "Lists",
    "Move",
    "RegionList",
    "Transfer",
    "aligned_words",
    "tensor_addresses",
    "transfers",
    "weight_transfer",
]

_ALIGNMENT_WORDS = BUFFER_ALIGNMENT // 4
_DESCRIPTOR_WORDS = DESCRIPTOR_BYTES // 4
_RESULTS = (Register.STATUS, Register.CYCLES, Register.LAYERS)
"""Registers that are stored after a program."""
assert all(b - a == 4 for a, b in pairwise(_RESULTS))


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

    def descriptor(self, command: DmaCommand, ddr_address: int) -> DmaDescriptor:
        """The transfer as a descriptor."""
        return DmaDescriptor(
            command=command,
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


def weight_transfer(config: AcceleratorConfig, words: int) -> Transfer:
    """The first `words` words of weight memory; in the DMA's memory a word takes `weight_word_columns`."""
    return Transfer(
        host_address=HostAddress.WEIGHTS,
        row_words=weight_word_columns(config),
        row_step=weight_stride(config) // 4 if words > 1 else 0,
        rows=words,
    )


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

    @property
    def words(self) -> slice:
        """Of its piece."""
        return slice(self.word, self.word + self.transfer.words)


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
    steps: tuple[Move | int, ...]
    """in order; a number is the start of a program"""
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
    def counting_steps(self) -> tuple[Move | int, ...]:
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
        return cls.make(manifest.config, manifest.regions, artifact.program, artifact.weights)

    @classmethod
    def make(
        cls,
        config: AcceleratorConfig,
        regions: Sequence[Region],
        program: NDArray[np.uint32],
        weights: NDArray[np.uint8],
    ) -> Lists:
        """The lists of regions with these program and weight images."""
        image, table = _Space(), _Space()
        contents: dict[int, NDArray[np.uint32]] = {}

        def loads(part: Part) -> list[Move]:
            return list(_loads(config, part, program, weights, image, contents))

        lists = {region.name: _region_list(config, region, image, table, loads) for region in regions}
        return cls(lists, image.words, table.words, contents)

    def descriptors(self, region: RegionList, *, counting: bool, image_address: int, table_address: int) -> list:
        """A region's list for memory at these byte addresses."""
        result = []
        for step in region.counting_steps if counting else region.steps:
            if isinstance(step, int):
                result.append(DmaDescriptor(command=DmaCommand.RUN, host_address=step))
            else:
                base = table_address if step.in_table else image_address
                result.append(step.transfer.descriptor(step.command, base + 4 * step.word))
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
        given = dict(zip(region.inputs, inputs, strict=True))
        word = region.counting_word if counting else region.list_word
        pieces: list[NDArray[np.uint32]] = []
        for step in steps:
            pieces.append(image[word : word + _DESCRIPTOR_WORDS])
            word += _DESCRIPTOR_WORDS
            if isinstance(step, Move) and step.command == DmaCommand.LOAD:
                size = -(-step.transfer.words // beat_words) * beat_words
                data = given[step] if step.in_table else image[step.words]
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


def _region_list(
    config: AcceleratorConfig, region: Region, image: _Space, table: _Space, loads: Callable[[Part], list[Move]]
) -> RegionList:
    def exchange(command: DmaCommand, moved: Sequence[Transfer]) -> tuple[Move, ...]:
        return tuple(Move(command, transfer, table.take(transfer.words)) for transfer in moved)

    def tensors(locations: Sequence[TensorLocation]) -> list[Transfer]:
        addresses = [tensor_addresses(config, location) for location in locations]
        return transfers(np.concatenate(addresses)) if addresses else []

    inputs = exchange(DmaCommand.LOAD, tensors(region.inputs))
    programs = region.parts or (None,)
    start = HostAddress.REGISTERS + _RESULTS[0]
    registers = [Transfer(host_address=start, row_words=len(_RESULTS))] * len(programs)
    results = exchange(DmaCommand.STORE, registers)
    outputs = exchange(DmaCommand.STORE, tensors(region.outputs))
    counters: tuple[Move, ...] = ()
    if config.layer_counters:
        sizes = [p.program_words if p else region.program_words for p in programs]
        counted = [size // DESCRIPTOR_WORDS * len(Counter) for size in sizes]
        counters = exchange(
            DmaCommand.STORE, [Transfer(host_address=HostAddress.COUNTERS, row_words=words) for words in counted]
        )
    steps: list[Move | int] = [*inputs]
    for part, result in zip(programs, results, strict=True):
        if part is None:
            steps.append(region.program_start)
        else:
            steps += [*loads(part), 0]
        steps.append(result)
    steps += outputs
    list_word = image.take(_DESCRIPTOR_WORDS * len(steps))
    counting_word = image.take(_DESCRIPTOR_WORDS * (len(steps) + len(counters))) if counters else list_word
    return RegionList(
        region=region,
        inputs=inputs,
        outputs=outputs,
        results=results,
        counters=counters,
        steps=tuple(steps),
        list_word=list_word,
        counting_word=counting_word,
    )


def _loads(
    config: AcceleratorConfig,
    part: Part,
    programs: NDArray[np.uint32],
    all_weights: NDArray[np.uint8],
    image: _Space,
    contents: dict[int, NDArray[np.uint32]],
) -> Iterator[Move]:
    """Program and weights of a part, put into the image."""
    program = programs[part.program_start : part.program_start + part.program_words]
    weights = all_weights[part.weights_start : part.weights_start + part.weights_words]
    columns = np.zeros((len(weights), 4 * weight_word_columns(config)), np.uint8)
    columns[:, : config.weight_word_bytes] = weights
    program_transfer = Transfer(host_address=HostAddress.PROGRAM, row_words=len(program))
    for transfer, data in (
        (program_transfer, program),
        (weight_transfer(config, len(weights)), columns.reshape(-1).view("<u4")),
    ):
        if len(data):
            word = image.take(len(data))
            contents[word] = data.astype(np.uint32)
            yield Move(DmaCommand.LOAD, transfer, word, in_table=False)
