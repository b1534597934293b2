"""What a board says that its memories hold (`nnloom.arch.content`), so that a session loads only what is not there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import EngineImage
from nnloom.arch.content import engine_content
from nnloom.arch.flash_image import BOOT_BASE, BOOT_MAGIC, BootOutcome, BootRegister
from nnloom.arch.memory_system import CONTENT_WORDS

__all__ = ["ContentRegisters", "FlashContent", "WordBus"]


class WordBus(Protocol):
    """A host bus."""

    def write_words(self, addresses: NDArray[np.uint32], words: NDArray[np.uint32]) -> None:
        """Write 32-bit words."""

    def read_words(self, addresses: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Read 32-bit words."""


class ContentRegisters:
    """Registers that hold `arch.content.content_words`, from an address on."""

    def __init__(self, bus: WordBus, address: int) -> None:
        self._bus = bus
        self._addresses = np.array([address + 4 * index for index in range(CONTENT_WORDS)], np.uint32)

    def hold(self, content: Sequence[int]) -> bool:
        """Whether they hold this content."""
        return self._bus.read_words(self._addresses).tolist() == list(content)

    def note(self, content: Sequence[int]) -> None:
        """Write what the memories hold from now on."""
        self._bus.write_words(self._addresses, np.array(content, np.uint32))

    def forget(self) -> None:
        """Have whoever comes next load again."""
        self.note([0] * CONTENT_WORDS)


class FlashContent:
    """Of a board that loads a network from its flash: what came of it, and what the engine holds."""

    def __init__(self, bus: WordBus, outcome: BootOutcome) -> None:
        self.outcome = outcome
        """of the flash, at the last reset"""
        self._registers = ContentRegisters(bus, BOOT_BASE + BootRegister.CONTENT_0)

    @classmethod
    def find(cls, bus: WordBus) -> FlashContent | None:
        """None if the board does not load from a flash."""
        addresses = [BOOT_BASE + register for register in (BootRegister.ID, BootRegister.STATUS)]
        identity, status = bus.read_words(np.array(addresses, np.uint32)).tolist()
        return cls(bus, BootOutcome(status)) if identity == BOOT_MAGIC else None

    def holds(self, image: EngineImage) -> bool:
        """Whether the engine's memories hold all of an image."""
        return self._registers.hold(engine_content(image))

    def note(self, image: EngineImage) -> None:
        """They do now."""
        self._registers.note(engine_content(image))
