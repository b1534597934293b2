"""The external memory of a board behind a serial line: a network is loaded once, an inference is one list.

What the memory holds is noted in two registers of the board (`MemoryRegister.CONTENT_0`), which a reset clears. Each
list is checked by the checksum of what it has read, so an answer never comes from what the memory has lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import Artifact, Region
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.content import content_words
from nnloom.arch.dma import DMA_BASE, DmaControl, DmaRegister, DmaStatus
from nnloom.arch.errors import DeviceError
from nnloom.arch.lists import Lists, RegionList
from nnloom.arch.memory_system import MEMORY_MAGIC, MemoryRegister, MemoryStatus, SystemAddress

from .base import RegionResult
from .content import ContentRegisters, WordBus
from .lists import list_failure, region_result

__all__ = ["ContentLost", "ExternalMemory", "ListBus"]

POLL_SECONDS = 0.01
_NAME = "external memory"
_DMA = SystemAddress.REGISTERS + DMA_BASE
_OUTCOME = [SystemAddress.REGISTERS + MemoryRegister.STATUS + 4 * i for i in range(4)]
_OUTCOME += [_DMA + DmaRegister.STATUS + 4 * i for i in range(4)]
"""What is looked at when a list has ended: two rows of registers, which are read together."""


class ContentLost(DeviceError):
    """A list failed, or read something else than what was loaded: the memory has to be loaded again."""


class ListBus(WordBus, Protocol):
    """What is needed of the device in front of the memory."""

    timeout_seconds: float

    def launch(self, addresses: NDArray[np.uint32], words: NDArray[np.uint32], start: tuple[int, int]) -> None:
        """Write words, then the word that starts a list to its address."""

    def wait_list(self, poll: Callable[[], bool]) -> None:
        """Wait until the board tells that a list has ended, or `poll` says so."""

    def reset(self) -> None:
        """End what runs."""

    def clock(self) -> float:
        """Seconds, ascending."""

    def sleep(self, seconds: float) -> None:
        """Let time pass."""


class ExternalMemory:
    """The memory of a board that has one.

    Parameters
    ----------
    bus
        The device in front of it.
    size
        Bytes.
    """

    def __init__(self, bus: ListBus, size: int) -> None:
        self._bus = bus
        self.size = size
        self._config: AcceleratorConfig | None = None
        self._lists: Lists | None = None
        self._image = np.zeros(0, np.uint32)
        self._beat_words = 1
        self._content = ContentRegisters(bus, SystemAddress.REGISTERS + MemoryRegister.CONTENT_0)

    @classmethod
    def find(cls, bus: ListBus) -> ExternalMemory | None:
        """The board's memory, at rest; None if it has none.

        Raises
        ------
        DeviceError
            If it does not become ready, or a list of another driver does not end.
        """
        identity, size = _read(bus, [SystemAddress.REGISTERS + r for r in (MemoryRegister.ID, MemoryRegister.SIZE)])
        if identity != MEMORY_MAGIC:
            return None
        memory = cls(bus, size)
        memory._come_to_rest()
        return memory

    def _come_to_rest(self) -> None:
        bus = self._bus
        deadline = bus.clock() + bus.timeout_seconds
        while not (status := _read(bus, [SystemAddress.REGISTERS + MemoryRegister.STATUS])[0]) & MemoryStatus.READY:
            if bus.clock() > deadline:
                raise DeviceError("external memory does not become ready; build and program the bitstream again")
            bus.sleep(POLL_SECONDS)
        self._beat_words = (status >> 8 & 0xFF) // 4
        deadline = bus.clock() + bus.timeout_seconds
        while self._runs():
            if bus.clock() > deadline:
                bus.reset()
                if self._runs():
                    raise DeviceError("DMA does not come to rest; reset the board")
            bus.sleep(POLL_SECONDS)

    def _runs(self) -> bool:
        return bool(_read(self._bus, [_DMA + DmaRegister.STATUS])[0] & DmaStatus.BUSY)

    def place(self, artifact: Artifact) -> bool:
        """Take over an artifact's lists; False, and nothing done, if the memory is too small for them."""
        lists = Lists.of(artifact)
        if 4 * (lists.image_words + lists.table_words) > self.size:
            return False
        self._config, self._lists = artifact.manifest.config, lists
        self._image = lists.image(image_address=0, table_address=4 * lists.image_words)
        return True

    @property
    def image(self) -> NDArray[np.uint32]:
        """What is loaded, from address 0 on."""
        return self._image

    @property
    def image_bytes(self) -> int:
        """Size of what is loaded."""
        return self._image.nbytes

    def _image_content(self) -> tuple[int, ...]:
        """What the registers say when the image is there."""
        return content_words(self._image.astype("<u4").tobytes())

    @property
    def is_loaded(self) -> bool:
        """Whether the board still has the image."""
        return self._content.hold(self._image_content())

    def load(self) -> None:
        """Write the image.

        Raises
        ------
        DeviceError
            If the memory answers with an error.
        """
        self.forget()
        status = SystemAddress.REGISTERS + MemoryRegister.STATUS
        _write(self._bus, [status], [0])
        addresses = SystemAddress.MEMORY + 4 * np.arange(len(self._image), dtype=np.uint64)
        self._bus.write_words(addresses.astype(np.uint32), self._image)
        if _read(self._bus, [status])[0] & MemoryStatus.FAULT:
            raise DeviceError("external memory answers with an error; reset the board, or build it again")
        self.note_content()

    def note_content(self) -> None:
        """Have the board know that the image is there."""
        self._content.note(self._image_content())

    def forget(self) -> None:
        """Have the image loaded again by whoever comes next."""
        self._content.forget()

    def run(self, region: Region, inputs: Sequence[NDArray[np.int8]], *, counting: bool) -> RegionResult:
        """Write the inputs, run the region's list, read the outputs.

        Raises
        ------
        ContentLost
            If the list failed, or has read something else than what was loaded and written.
        DeviceError
            If the list does not end within the bus's `timeout_seconds`; the board was reset.
        """
        assert self._lists is not None and self._config is not None
        lists, mine = self._lists, self._lists.regions[region.name]
        words = mine.pack(self._config, inputs)
        addresses, values = self._table_writes(mine, words)
        first = mine.counting_word if counting else mine.list_word
        addresses = np.append(addresses, np.uint32(_DMA + DmaRegister.LIST))
        values = np.append(values, np.uint32(4 * first))
        self._bus.launch(addresses, values, (_DMA + DmaRegister.CONTROL, DmaControl.START))
        cycles, checksum = self._finish()
        if checksum != lists.checksum(mine, self._image, words, counting=counting, beat_words=self._beat_words):
            raise ContentLost("external memory does not hold what was loaded into it")
        moves = [*mine.results, *mine.outputs, *(mine.counters if counting else ())]
        span = slice(min(m.word for m in moves), max(m.words.stop for m in moves))
        table = np.zeros(lists.table_words, np.uint32)
        table[span] = self._bus.read_words(self._table_addresses(span))
        return region_result(self._config, mine, table, counting=counting, list_cycles=cycles)

    def _table_addresses(self, words: slice) -> NDArray[np.uint32]:
        assert self._lists is not None
        numbers = np.arange(words.start, words.stop, dtype=np.uint64) + self._lists.image_words
        return (SystemAddress.MEMORY + 4 * numbers).astype(np.uint32)

    def _table_writes(
        self, region: RegionList, words: Sequence[NDArray[np.uint32]]
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """The inputs with zeros between them, up to the end of the last one's beat."""
        first = region.inputs[0].word
        last = max(move.words.stop for move in region.inputs)
        values = np.zeros(-(-(last - first) // self._beat_words) * self._beat_words, np.uint32)
        for move, data in zip(region.inputs, words, strict=True):
            values[move.word - first : move.words.stop - first] = data
        return self._table_addresses(slice(first, first + len(values))), values

    def _finish(self) -> tuple[int, int]:
        """Wait for the end of the list; its cycles and the checksum."""
        bus = self._bus
        deadline = bus.clock() + bus.timeout_seconds

        def ended() -> bool:
            if not self._runs():
                return True
            if bus.clock() > deadline:
                bus.reset()
                raise DeviceError(f"list did not end within {bus.timeout_seconds:g} s; the device was reset")
            return False

        while True:
            bus.wait_list(ended)
            outcome = dict(zip(_OUTCOME, _read(bus, _OUTCOME), strict=True))
            status = outcome[_DMA + DmaRegister.STATUS]
            if not status & DmaStatus.BUSY:
                break
            # A notice that came late told of a list that a reset had ended.
            if ended():
                continue
            bus.sleep(POLL_SECONDS)
        failure = list_failure(status, outcome[_DMA + DmaRegister.ERROR_ADDRESS], _NAME)
        if failure:
            raise ContentLost(failure)
        registers = (SystemAddress.REGISTERS + r for r in (MemoryRegister.CYCLES, MemoryRegister.CHECKSUM))
        cycles, checksum = (outcome[register] for register in registers)
        return cycles, checksum


def _read(bus: ListBus, addresses: Sequence[int]) -> list[int]:
    return [int(word) for word in bus.read_words(np.array(addresses, np.uint32))]


def _write(bus: ListBus, addresses: Sequence[int], words: Sequence[int]) -> None:
    bus.write_words(np.array(addresses, np.uint32), np.array(words, np.uint32))
