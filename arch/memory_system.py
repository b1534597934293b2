"""External memory behind a host link: addresses, registers and the checksum that RTL, driver and docs share.

The link's addresses below `SystemAddress.MEMORY` are the accelerator's (`isa.HostAddress`); above are the memory, the
registers of this module and, from `dma.DMA_BASE` on, those of the DMA engine that executes lists (`arch.dma`).
"""

from __future__ import annotations

import enum

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CONTENT_WORDS",
    "MEMORY_MAGIC",
    "SDRAM_BEAT_BITS",
    "SELECT_BIT",
    "MemoryRegister",
    "MemoryStatus",
    "SystemAddress",
    "checksum",
]

MEMORY_MAGIC = 0x4D45_4D01
"""Value of `MemoryRegister.ID`: "MEM" and the version of this interface. Accelerators without memory answer 0."""
CONTENT_WORDS = 2
SDRAM_BEAT_BITS = 64
"""Bits of a beat on the bus of an SDRAM: four words of a 16-bit chip."""
SELECT_BIT = 31
"""Address bit that leads beyond the accelerator; the one below it from the memory to the registers."""


class SystemAddress(enum.IntEnum):
    """Byte addresses of the link's windows beyond the accelerator's."""

    MEMORY = 0x8000_0000
    """external memory, byte a at 4 * (a // 4); whole words; read and write"""
    REGISTERS = 0xC000_0000
    """`MemoryRegister`; from 0x1000 on the registers of the DMA engine"""


class MemoryRegister(enum.IntEnum):
    """Registers: byte offsets from SystemAddress.REGISTERS."""

    ID = 0x00
    """read: MEMORY_MAGIC"""
    SIZE = 0x04
    """read: bytes of external memory"""
    STATUS = 0x08
    """read: bits of `MemoryStatus`, bytes of a beat of the memory's bus in bits 8 to 15; write: clears FAULT"""
    CYCLES = 0x0C
    """read: cycles of the last list, from its start to its end"""
    CHECKSUM = 0x10
    """read: of what the DMA has read for the last list, its descriptors included"""
    CONTENT_0 = 0x18
    """read and write: what the driver says of the memory's content; 0 after a reset"""
    CONTENT_1 = 0x1C
    """read and write: the rest of it"""


class MemoryStatus(enum.IntFlag):
    """Bits of the STATUS register."""

    READY = 1
    """the memory has been initialised; accesses before wait"""
    FAULT = 2
    """an access of the link was beyond the memory, or answered with an error; cleared by a write to STATUS"""


def _rotate(words: NDArray[np.uint32], bits: NDArray | int) -> NDArray[np.uint32]:
    bits = np.asarray(bits, np.uint32) % np.uint32(32)
    return (words << bits | words >> (np.uint32(32) - bits) % np.uint32(32)).astype(np.uint32)


def checksum(words: NDArray[np.uint32], beat_words: int) -> int:
    """What CHECKSUM holds after these words were read in beats of `beat_words`.

    With each beat the checksum is rotated by one bit to the left, then the beat's words, word i rotated by 8 * i bits
    to the left, are added to it by exclusive or.

    Parameters
    ----------
    words
        uint32, a multiple of `beat_words` of them.
    """
    beats = words.astype(np.uint32).reshape(-1, beat_words)
    folded = np.bitwise_xor.reduce(_rotate(beats, 8 * np.arange(beat_words)), axis=1)
    return int(np.bitwise_xor.reduce(_rotate(folded, np.arange(len(folded))[::-1] % 32)))
