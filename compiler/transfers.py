"""Cycles of a region's list on a board whose DMA reaches memory, predicted from the list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.dma import DESCRIPTOR_BYTES, DESCRIPTORS_AT_ONCE, PROGRAM_QUEUE, DmaCommand, port_width
from nnloom.arch.isa import DESCRIPTOR_WORDS, HostAddress, granule_columns
from nnloom.arch.lists import Move, RegionList, Run
from nnloom.arch.memory_system import SDRAM_BEAT_BITS
from nnloom.boards import Board
from nnloom.boards.zynq import ZynqBoard
from nnloom.hw.sdram_timing import SDRAM_CHIPS, SdramTiming

from .cost import layer_cycles

if TYPE_CHECKING:
    from .emit import Emitted

__all__ = [
    "ListCycles",
    "MemoryTiming",
    "external_timing",
    "fetch_cycles",
    "list_cycles",
    "load_cycles",
    "memory_timing",
    "move_cycles",
    "region_cycles",
    "run_cycles",
    "store_cycles",
]

BURST_BEATS = 16
"""Of `hw.dma.DmaEngine`; bursts end at multiples of so many beats."""
_BETWEEN = 3
"""DECODE, NEXT, and the cycle in which a command's first state begins."""
_ASK = 2
"""From a command's first state to its address on the bus, and from the last beat to the state's end."""
_START = 4
"""From a program's way into the queue, or the end of the one before, to its start: PROGRAM_START, CONTROL."""
_END = 10
"""From a program's end until it has been seen: a look at the accelerator's status."""
_STORE_WORD = 1
"""Of activation memory; reads follow each other."""
_READ_WORD = 9
"""Of anything else: the accelerator answers before it takes the next read."""
_READ_LATENCY = 9
"""Until the first word of a burst has come."""


@dataclass(frozen=True, kw_only=True)
class MemoryTiming:
    """How fast a memory is, in cycles of the system clock."""

    data_width: int
    """bits of a beat"""
    latency: int
    """from a burst's address to its first beat, with the arbiter on the way"""
    beat_cycles: float
    """of a beat in a long transfer: refresh, rows that are opened and so on included"""
    answer: int
    """from the last beat of a write to its answer"""
    port_words: int = 1
    """words of 32 bits that the accelerator's memories take or give in a cycle; those of a beat: descriptors are
    fetched in blocks, and stores do not wait for the answers of their bursts"""

    @property
    def beat_words(self) -> int:
        """32-bit words of a beat."""
        return self.data_width // 32


def memory_timing(board: Board) -> MemoryTiming | None:
    """How fast a board's external memory is; None if it has none.

    The constants are what the RTL of controller, arbiter and pins showed, with the chip's times in cycles beside them,
    for rows that are open: short transfers of a list lie in few rows. Refreshes do not hide behind long loads.
    """
    chip = SDRAM_CHIPS.get(board.external_memory)
    if chip is None:
        return None
    t = SdramTiming.of(chip, board.clock_hz)
    beat = SDRAM_BEAT_BITS // chip.data_bits
    return MemoryTiming(
        data_width=SDRAM_BEAT_BITS,
        latency=13 + t.cas_latency,
        beat_cycles=beat * (1 + (t.rfc + 1) / t.refresh_interval),
        answer=18,
    )


def external_timing(board: Board, config: AcceleratorConfig | None = None) -> MemoryTiming | None:
    """As `memory_timing`, and for the DDR of Zynq boards about what their DMA takes; None for boards without memory.

    config: of the accelerator, by default the board's.
    """
    if isinstance(board, ZynqBoard):
        words = port_width(config or board.config, board.data_width) // 32
        return MemoryTiming(data_width=board.data_width, latency=30, beat_cycles=1, answer=30, port_words=words)
    return memory_timing(board)


@dataclass(frozen=True, kw_only=True)
class ListCycles:
    """Where a list's cycles go."""

    programs: int
    """the accelerator's"""
    weights: int
    """loading programs and weights of parts"""
    tensors: int
    """loading inputs, storing outputs and counters"""
    control: int
    """fetching descriptors, starting programs and seeing their end"""
    overlapped: int = 0
    """of these: beside a program, or beside a transfer"""

    @property
    def total(self) -> int:
        """Of the list."""
        return self.programs + self.weights + self.tensors + self.control - self.overlapped


def fetch_cycles(timing: MemoryTiming) -> float:
    """Of a descriptor, until its command begins, and from its end to the next; of blocks of them on average."""
    beats = DESCRIPTOR_BYTES // 4 // timing.beat_words
    if timing.port_words > 1:
        return block_cycles(timing) / DESCRIPTORS_AT_ONCE + beats + 1 + _BETWEEN
    return timing.latency + (beats - 1) * timing.beat_cycles + _ASK + _BETWEEN


def block_cycles(timing: MemoryTiming) -> float:
    """Of a block of descriptors, until they have come; each takes a few more, see `fetch_cycles`."""
    beats = DESCRIPTORS_AT_ONCE * DESCRIPTOR_BYTES // 4 // timing.beat_words
    return timing.latency + (beats - 1) * timing.beat_cycles + _ASK


def move_cycles(move: Move, timing: MemoryTiming, config: AcceleratorConfig | None = None) -> float:
    """Of a transfer.

    config: of the accelerator, where a program runs beside a load: its results go first to the activations.
    """
    if move.command == DmaCommand.STORE:
        return _store_cycles(move, timing)
    words = move.transfer.words
    beats = -(-words // timing.beat_words)
    port_words = timing.port_words if _is_memory(move) else 1
    each = max(timing.beat_cycles, timing.beat_words / port_words)
    if config and port_words == 1 and HostAddress.window(move.transfer.host_address) == HostAddress.ACTIVATIONS:
        # A granule's last word takes four cycles.
        each = max(each, timing.beat_words * (1 + 3 / granule_columns(config)))
    return timing.latency + _ASK + (beats - 1) * each + timing.beat_words / port_words


def list_cycles(
    region: RegionList,
    timing: MemoryTiming,
    programs: Sequence[int],
    *,
    counting: bool = False,
    config: AcceleratorConfig | None = None,
) -> ListCycles:
    """Cycles of a region's list, as the register CYCLES of the memory system counts them: when the DMA comes to each
    descriptor, and the accelerator to each program.

    programs: cycles of each of its programs. config: as for `move_cycles`.
    """
    fetch = fetch_cycles(timing)
    weights = tensors = control = now = answered = 0.0
    ends: list[float] = []
    first = (region.counting_word if counting else region.list_word) * 4 // DESCRIPTOR_BYTES
    for index, step in enumerate(region.counting_steps if counting else region.steps):
        if timing.port_words > 1:
            fetch = fetch_cycles(timing) - block_cycles(timing) / DESCRIPTORS_AT_ONCE
            if not index or not (first + index) % DESCRIPTORS_AT_ONCE:
                fetch += block_cycles(timing)
        control += fetch
        now += fetch
        most = min(step.under_way, PROGRAM_QUEUE - 1) if isinstance(step, Run) else step.under_way
        if len(ends) > most:
            now = max(now, ends[len(ends) - 1 - most])
        if isinstance(step, Run):
            begin = max(now, ends[-1] if ends else 0) + _START
            ends.append(begin + programs[len(ends)] + _END)
            control += _START + _END
            continue
        if step.command == DmaCommand.RELOAD:
            now = max(now, answered)
        busy = bool(ends) and ends[-1] > now
        cycles = move_cycles(step, timing, config if busy else None)
        now += cycles
        if step.command == DmaCommand.STORE and timing.port_words > 1:
            answered = now + timing.answer
        if step.in_table:
            tensors += cycles
        else:
            weights += cycles
    total = max(now, answered, ends[-1] if ends else 0)
    parts = sum(programs), round(weights), round(tensors), round(control)
    overlapped = max(0, sum(parts) - round(total))
    return ListCycles(programs=parts[0], weights=parts[1], tensors=parts[2], control=parts[3], overlapped=overlapped)


_MEMORIES = HostAddress.PROGRAM, HostAddress.WEIGHTS, HostAddress.ACTIVATIONS


def _is_memory(move: Move) -> bool:
    """Whether it is a memory that is reached through the whole port, not registers, counters or tables."""
    return HostAddress.window(move.transfer.host_address) in _MEMORIES


def _store_cycles(move: Move, timing: MemoryTiming) -> float:
    words = move.transfer.words
    beats = -(-words // timing.beat_words)
    first = move.word // timing.beat_words % BURST_BEATS
    bursts = -(-(first + beats) // BURST_BEATS)
    if timing.port_words > 1:
        reads = words / timing.port_words if _is_memory(move) else words * _READ_WORD
        return _READ_LATENCY + max(reads, beats * timing.beat_cycles)
    if HostAddress.window(move.transfer.host_address) == HostAddress.ACTIVATIONS:
        reads = words * _STORE_WORD + bursts * _READ_LATENCY
    else:
        reads = words * _READ_WORD
    return reads + beats + bursts * (timing.answer + 4)


def load_cycles(timing: MemoryTiming, words: float) -> float:
    """About what a load of so many words takes in a list."""
    each = max(timing.beat_cycles, timing.beat_words / timing.port_words) / timing.beat_words
    return fetch_cycles(timing) + timing.latency + _ASK + words * each


def store_cycles(timing: MemoryTiming, words: float) -> float:
    """About what a store of so many words of activations takes in a list."""
    beats = words / timing.beat_words
    bursts = beats / BURST_BEATS + 0.5
    if timing.port_words > 1:
        return fetch_cycles(timing) + _READ_LATENCY + beats * max(1, timing.beat_cycles)
    return fetch_cycles(timing) + words * _STORE_WORD + beats + bursts * (_READ_LATENCY + timing.answer + 4)


def run_cycles(timing: MemoryTiming) -> float:
    """About what a program of one layer takes in a list, without its own cycles: its load, its start, its results."""
    program = load_cycles(timing, DESCRIPTOR_WORDS)
    results = fetch_cycles(timing) + 3 * _READ_WORD + 2 + timing.answer + 4
    return program + fetch_cycles(timing) + _START + _END + results


def region_cycles(board: Board, config: AcceleratorConfig, emitted: Emitted) -> dict[str, ListCycles]:
    """Cycles of each region's list, by its name; empty if the board has no external memory."""
    timing = external_timing(board, config)
    if timing is None:
        return {}
    lists = emitted.lists(config)
    result = {}
    for item in emitted.regions:
        cycles = layer_cycles(config, item.descriptors)
        ends = [index + 1 for index, descriptor in enumerate(item.descriptors) if descriptor.last]
        programs = [sum(cycles[first:end]) for first, end in pairwise([0, *ends])]
        result[item.region.name] = list_cycles(lists.regions[item.region.name], timing, programs, config=config)
    return result
