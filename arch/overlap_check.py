"""Proof that the descriptors of a list wait enough: whatever is under way together touches different cells.

It looks at nothing but the list and the image in the DMA's memory, as the hardware does: programs are decoded from what
the list has loaded before, and their cells worked out from their descriptors. Then every state is visited that DMA and
accelerator can reach, each as fast or slow as it likes: the DMA is before some descriptor, some of the programs started
before it have ended. Where a transfer can begin beside programs that have not ended (one runs, others wait for their
turn, and may run before the transfer is done), none of them may read or write what it writes, nor write what it reads.

A state that nothing leads out of, other than the end, would be a deadlock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .config import AcceleratorConfig
from .dma import PROGRAM_QUEUE, DmaCommand, DmaDescriptor
from .errors import IllegalProgramError
from .isa import (
    DESCRIPTOR_WORDS,
    TABLE_ENTRIES,
    Descriptor,
    HostAddress,
    Kind,
    decode_program,
    weight_stride,
)
from .lists import Lists
from .loopnest import by_word

__all__ = ["ListProof", "check_descriptors", "check_lists", "touched_granules"]


@dataclass(frozen=True)
class ListProof:
    """What was proved of a list."""

    states: int
    """reachable ones"""
    beside: int
    """pairs of a transfer and a program that may be under way together"""


class _Space:
    """Numbers of the cells: words of program memory, words of weight memory, tables, granules of activation memory."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        self.weights = config.program_words
        self.tables = self.weights + config.weight_words
        self.activations = self.tables + config.tables
        self.size = self.activations + config.row_banks * config.bank_granules

    def name(self, cell: int) -> str:
        if cell < self.weights:
            return f"program word {cell}"
        if cell < self.tables:
            return f"weight word {cell - self.weights}"
        if cell < self.activations:
            return f"table {cell - self.tables}"
        bank, granule = divmod(cell - self.activations, self.config.bank_granules)
        return f"granule {granule} of bank {bank}"

    def cells(self, addresses: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Those that words on the host bus belong to."""
        config = self.config
        mask = np.zeros(self.size, bool)
        window, offset = addresses >> 28 << 28, addresses & 0xFFF_FFFF
        for base, first, count, size in (
            (HostAddress.PROGRAM, 0, self.weights, 4),
            (HostAddress.WEIGHTS, self.weights, config.weight_words, weight_stride(config)),
            (HostAddress.TABLES, self.tables, config.tables, 4 * TABLE_ENTRIES),
            (HostAddress.ACTIVATIONS, self.activations, self.size - self.activations, config.granule),
        ):
            cells = offset[window == base] // size
            if base == HostAddress.ACTIVATIONS and config.host_granules > 1:
                cells = (cells[:, None] + np.arange(config.host_granules)).reshape(-1)
            if len(cells) and cells.max() >= count:
                raise IllegalProgramError(f"word {cells.max()} of a memory of {count}")
            mask[first + cells] = True
        return mask


@dataclass(frozen=True)
class _Command:
    """A descriptor, and the cells that it, or its program, reads and writes."""

    descriptor: DmaDescriptor
    reads: NDArray[np.bool_]
    writes: NDArray[np.bool_]
    alone: str = ""
    """why it cannot be beside a program at all"""

    @property
    def is_run(self) -> bool:
        return self.descriptor.command == DmaCommand.RUN


def check_lists(
    config: AcceleratorConfig, lists: Lists, program: NDArray[np.uint32] | None = None
) -> dict[str, ListProof]:
    """Prove every list of an artifact; what was proved of each region's, with counters if it has them.

    program: what the program memory holds before, of regions without parts.

    Raises
    ------
    IllegalProgramError
        If one does not wait enough.
    """
    table = 4 * lists.image_words
    image = lists.image(image_address=0, table_address=table)
    proofs = {}
    for name, region in lists.regions.items():
        for counting in (False, True):
            if counting and not region.counters:
                continue
            descriptors = lists.descriptors(region, counting=counting, image_address=0, table_address=table)
            proofs[name] = check_descriptors(config, descriptors, image, None if region.region.parts else program)
    return proofs


def check_descriptors(
    config: AcceleratorConfig,
    descriptors: Sequence[DmaDescriptor],
    image: NDArray[np.uint32],
    program: NDArray[np.uint32] | None = None,
) -> ListProof:
    """Prove one list.

    Parameters
    ----------
    image
        uint32, what lies in the DMA's memory from address 0 on; the list writes beyond it only.
    program
        uint32, of the program memory before; default: nothing, and the list loads all programs and weights.

    Raises
    ------
    IllegalProgramError
        If it does not wait enough, or runs what it has not loaded.
    """
    commands = list(_commands(config, descriptors, image, program))
    return _explore(_Space(config), commands)


def touched_granules(config: AcceleratorConfig, program: Sequence[Descriptor]) -> NDArray[np.bool_]:
    """Granules of activation memory that a program may read or write, bool [bank, granule]."""
    space = _Space(config)
    mask = np.zeros(config.row_banks * config.bank_granules, bool)
    for d in program:
        _inputs(space, d, mask)
        _results(space, d, mask)
    return mask.reshape(config.row_banks, config.bank_granules)


def _commands(
    config: AcceleratorConfig,
    descriptors: Sequence[DmaDescriptor],
    image: NDArray[np.uint32],
    before: NDArray[np.uint32] | None,
) -> Iterator[_Command]:
    """What each descriptor touches, the loads before it done."""
    space = _Space(config)
    program = np.zeros(config.program_words, np.uint32)
    loaded = np.zeros(space.size, bool)
    if before is not None:
        program[: len(before)] = before
        loaded[: space.activations] = True
    if not any(
        d.command != DmaCommand.RUN and HostAddress.window(d.host_address) == HostAddress.TABLES for d in descriptors
    ):
        # The host has loaded all of them.
        loaded[space.tables : space.activations] = True
    none = np.zeros(space.size, bool)
    known: dict[tuple[bytes, int], tuple[NDArray[np.bool_], NDArray[np.bool_]]] = {}
    for index, d in enumerate(descriptors):
        if d.command == DmaCommand.RUN:
            key = program.tobytes(), d.host_address
            if key not in known:
                known[key] = _program_cells(space, program, d.host_address)
            reads, writes = known[key]
            missing = reads[: space.activations] & ~loaded[: space.activations]
            if missing.any():
                where = space.name(int(np.flatnonzero(missing)[0]))
                raise IllegalProgramError(f"list, descriptor {index}: its program reads {where}, which is not loaded")
            yield _Command(d, reads, writes)
            continue
        addresses = _addresses(d)
        cells = space.cells(addresses)
        windows = {int(window) for window in np.unique(addresses >> 28 << 28)}
        if d.command == DmaCommand.STORE:
            if d.ddr_address < image.nbytes:
                raise IllegalProgramError(f"list, descriptor {index}: it stores into what is loaded once")
            yield _Command(d, cells, none, "what it stores changes, or is refused, while a program runs")
            continue
        loaded |= cells
        here = (addresses >= HostAddress.PROGRAM) & (addresses < HostAddress.WEIGHTS)
        if here.any():
            data = image[d.ddr_address // 4 :][: d.words]
            program[(addresses[here] - HostAddress.PROGRAM) // 4] = data[here]
        memories = {HostAddress.PROGRAM, HostAddress.WEIGHTS, HostAddress.ACTIVATIONS}
        refused = config.compact or not windows <= memories
        yield _Command(d, none, cells, "the accelerator refuses it while a program runs" if refused else "")


def _addresses(d: DmaDescriptor) -> NDArray[np.int64]:
    """On the host bus, of each word."""
    index = np.arange(d.words, dtype=np.int64)
    if not d.row_words:
        return d.host_address + 4 * index
    return d.host_address + 4 * (index // d.row_words * d.row_step + index % d.row_words)


def _program_cells(
    space: _Space, program: NDArray[np.uint32], start: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Cells that a program reads and writes."""
    reads, writes = (np.zeros(space.size, bool) for _ in range(2))
    try:
        descriptors = decode_program(program, start)
    except ValueError as error:
        raise IllegalProgramError(f"list: {error}") from error
    reads[start : start + len(descriptors) * DESCRIPTOR_WORDS] = True
    for d in descriptors:
        _weights(space, d, reads[space.weights : space.tables])
        if d.table:
            reads[space.tables + d.table - 1] = True
        _inputs(space, d, reads[space.activations :])
        _results(space, d, writes[space.activations :])
    return reads, writes


def _weights(space: _Space, d: Descriptor, mask: NDArray[np.bool_]) -> None:
    """Parameters and weights of every channel group."""
    steps = d.n_ky * d.n_kx if d.weights_advance else 1
    words = space.config.parameter_words * (2 if d.kind == Kind.ADD else 1) + steps
    for group in range(d.n_g if d.weight_step_g else 1):
        first = d.weight_base + group * d.weight_step_g
        mask[first : first + words] = True


def _inputs(space: _Space, d: Descriptor, mask: NDArray[np.bool_]) -> None:
    """Every byte of the input tensors: others are read as padding."""
    config = space.config
    banks = mask.reshape(config.row_banks, config.bank_granules)
    width = -(-d.in_row_bytes // config.granule)
    for base in (d.in_base, d.in2_base) if d.kind == Kind.ADD or d.product else (d.in_base,):
        for bank in range(min(config.row_banks, d.in_rows)):
            rows = np.arange(-(-(d.in_rows - bank) // config.row_banks))
            granules = base + rows[:, None] * d.in_row_stride + np.arange(width)
            # Of two tensors one may be smaller, and end with the memory.
            banks[bank, granules[granules < config.bank_granules]] = True


def _results(space: _Space, d: Descriptor, mask: NDArray[np.bool_]) -> None:
    """Both granules of every result, or one where it writes one."""
    config = space.config
    banks = mask.reshape(config.row_banks, config.bank_granules)
    columns = d.n_ox
    if d.slide:
        columns = (d.n_ox - d.slide_first - 1) // d.slide_step + 1
    if d.kind == Kind.ADD:
        columns = d.n_ox * d.n_kx
    column, group = np.arange(columns)[:, None], np.arange(d.n_g)
    upper = np.broadcast_to(~(np.bool_(d.half_last) & (group == d.n_g - 1)), (columns, d.n_g))
    lower = np.ones((columns, d.n_g), bool)
    if by_word(d):
        # Words of a row as far as it goes.
        step = d.q_step_kx if d.kind == Kind.ADD else d.q_step_ox
        q = d.q_start + column * step + group * d.q_step_g
        lower, upper = q < d.in_row_bytes, q + config.granule < d.in_row_bytes
    for oy in range(d.n_oy):
        for second in range(2 if d.pixel_pair and not (d.odd_rows and oy == d.n_oy - 1) else 1):
            row = d.out_row_start + oy * d.out_row_step + second
            first = d.out_base + row // config.row_banks * d.out_row_stride
            granules = first + column * d.out_step_ox + group * d.out_step_g
            banks[row % config.row_banks, granules[lower]] = True
            banks[row % config.row_banks, granules[upper] + 1] = True


def _explore(space: _Space, commands: Sequence[_Command]) -> ListProof:
    """Visit every state: (descriptor that is next, programs that have ended)."""
    runs = [index for index, command in enumerate(commands) if command.is_run]
    started = np.cumsum([0, *(command.is_run for command in commands)]).tolist()
    beside: set[tuple[int, int]] = set()
    seen = {(0, 0)}
    states = [(0, 0)]
    while states:
        position, ended = states.pop()
        under_way = started[position] - ended
        following = [(position, ended + 1)] if under_way else []
        if position < len(commands):
            command = commands[position]
            room = not command.is_run or under_way < PROGRAM_QUEUE
            if under_way <= command.descriptor.under_way and room:
                following.append((position + 1, ended))
                if not command.is_run:
                    for run in runs[ended : started[position]]:
                        if (position, run) not in beside:
                            beside.add((position, run))
                            _check_pair(space, commands, position, run)
        elif not under_way:
            continue
        if not following:
            raise IllegalProgramError(f"list, descriptor {position}: it waits for ever")
        states += [state for state in following if state not in seen]
        seen.update(following)
    return ListProof(len(seen), len(beside))


def _check_pair(space: _Space, commands: Sequence[_Command], position: int, run: int) -> None:
    """A transfer and a program that may be under way together."""
    transfer, program = commands[position], commands[run]
    what = f"list, descriptor {position}: it does not wait for the program of descriptor {run}"
    if transfer.alone:
        raise IllegalProgramError(f"{what}; {transfer.alone}")
    both = transfer.writes & (program.reads | program.writes) | transfer.reads & program.writes
    if both.any():
        cell = int(np.flatnonzero(both)[0])
        raise IllegalProgramError(f"{what}, which uses {space.name(cell)}")
