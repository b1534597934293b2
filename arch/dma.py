"""The DMA engine's registers and descriptors: what RTL, driver and `docs/zynq.md` share.

A *list* is an array of descriptors in DDR that the engine fetches and executes in order, up to the one marked `last`.
A RUN puts a program into a queue; the accelerator runs them one after the other, beside the transfers that follow.
Descriptors wait for the ends of programs, see `under_way`: so weights of the next program are loaded while one runs.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .config import AcceleratorConfig
from .isa import PROGRAM_COLUMNS

__all__ = [
    "APERTURE_BYTES",
    "AT_ONCE",
    "BUFFER_ALIGNMENT",
    "DESCRIPTORS_AT_ONCE",
    "DESCRIPTOR_BYTES",
    "DMA_BASE",
    "DMA_MAGIC",
    "IP_NAME",
    "PROGRAM_QUEUE",
    "DmaCause",
    "DmaCommand",
    "DmaControl",
    "DmaDescriptor",
    "DmaRegister",
    "DmaStatus",
    "encode_list",
    "port_width",
]

DMA_BASE = 0x1000
"""Byte offset of the DMA registers in the AXI4-Lite aperture; the engine's registers (`isa.Register`) are at 0."""
APERTURE_BYTES = 0x2000
IP_NAME = "nnloom"
"""The module's name in the block design, by which the driver finds its addresses."""
DMA_MAGIC = 0x4D41_4401
"""Value of `DmaRegister.ID`: "DMA" and the version of this interface."""
DESCRIPTOR_BYTES = 16
BUFFER_ALIGNMENT = 16
"""Lists and descriptors' DDR addresses are multiples of so many bytes: of a beat of the widest bus."""


DESCRIPTORS_AT_ONCE = 4
"""Descriptors that are fetched together, with a wide port: those of a block of so many."""
PROGRAM_QUEUE = 4
"""Programs that may be under way: started and not ended. A RUN beyond waits."""
AT_ONCE = 7
"""`DmaDescriptor.under_way` of a descriptor that does not wait for programs."""


class DmaRegister(enum.IntEnum):
    """Registers: byte offsets from DMA_BASE."""

    ID = 0x00
    """read: DMA_MAGIC"""
    CONTROL = 0x04
    """write: bits of `DmaControl`"""
    STATUS = 0x08
    """read: bits of `DmaStatus`, `DmaCause` in bits 8 to 11; write: clears DONE, ERROR, ABORTED and the interrupt"""
    LIST = 0x0C
    """read and write: DDR address of the first descriptor; kept until written again"""
    COMPLETED = 0x10
    """read: descriptors completed since the start"""
    ERROR_ADDRESS = 0x14
    """read: DDR address of the first burst that was answered with an error"""
    INTERRUPT_ENABLE = 0x18
    """read and write: bit 0 raises the interrupt line while DONE"""


class DmaControl(enum.IntFlag):
    """Bits of the CONTROL register."""

    START = 1
    """executes the list; ignored while busy"""
    ABORT = 2
    """ends the list early: bursts that were requested are completed, then the accelerator is reset"""
    RESET = 4
    """resets the accelerator, not its memories; ignored while busy (ABORT does it then)"""


class DmaStatus(enum.IntFlag):
    """Bits of the STATUS register."""

    BUSY = 1
    DONE = 2
    """the list has ended, in whatever way; cleared by a start"""
    ERROR = 4
    """it ended with an error, see the cause; cleared by a start"""
    ABORTED = 8
    """it was ended by ABORT; cleared by a start"""


class DmaCause(enum.IntEnum):
    """Why a list ended with an error."""

    NONE = 0
    FETCH = 1
    """a descriptor could not be read"""
    READ = 2
    """error response to a read burst; words before it are written"""
    WRITE = 3
    """error response to a write burst"""
    DESCRIPTOR = 4
    """unknown command, no words, or an address that is not aligned"""
    ENGINE = 5
    """the accelerator's status shows an error after a program; those that wait for their turn are dropped"""


class DmaCommand(enum.IntEnum):
    """What a descriptor does."""

    LOAD = 0
    """DDR to host bus"""
    STORE = 1
    """host bus to DDR"""
    RUN = 2
    """starts the accelerator's program at `host_address` (a program memory word) when those before it have ended, and
    does not wait"""
    RELOAD = 3
    """as LOAD; what is read does not count in `memory_system.MemoryRegister.CHECKSUM`"""


@dataclass(frozen=True, kw_only=True)
class DmaDescriptor:
    """One command. A transfer of 32-bit words is contiguous in DDR; on the host bus it may consist of rows.

    Raises
    ------
    ValueError
        If a value is outside its field.
    """

    command: DmaCommand
    ddr_address: int = 0
    """byte address, a multiple of BUFFER_ALIGNMENT"""
    host_address: int = 0
    """byte address on the host bus, a multiple of 4 (see `isa.HostAddress`)"""
    words: int = 0
    """32-bit words of the transfer"""
    row_words: int = 0
    """words of a row; 0: all in one row"""
    row_step: int = 0
    """host bus words from the start of a row to that of the next"""
    under_way: int = 0
    """begins when at most so many of the programs started before have not ended"""
    last: bool = False
    """the list ends when all programs have ended"""

    def __post_init__(self) -> None:
        for name, limit in (
            ("ddr_address", 1 << 32),
            ("host_address", 1 << 32),
            ("words", 1 << 24),
            ("row_words", 1 << 16),
            ("row_step", 1 << 16),
            ("under_way", AT_ONCE + 1),
        ):
            if not 0 <= getattr(self, name) < limit:
                raise ValueError(f"DMA descriptor's {name} must be 0 to {limit - 1}, not {getattr(self, name)}")

    def encode(self) -> NDArray[np.uint32]:
        """The descriptor as four words: DDR address, host address, words and command, rows."""
        control = self.words | self.command << 24 | self.under_way << 28 | self.last << 31
        values = [self.ddr_address, self.host_address, control, self.row_words | self.row_step << 16]
        return np.array(values, np.uint32)

    @classmethod
    def decode(cls, words: NDArray[np.uint32]) -> DmaDescriptor:
        """Inverse of `encode`.

        Raises
        ------
        ValueError
            If the command is unknown.
        """
        ddr_address, host_address, control, rows = (int(word) for word in words)
        return cls(
            command=DmaCommand(control >> 24 & 0xF),
            ddr_address=ddr_address,
            host_address=host_address,
            words=control & 0xFFFFFF,
            row_words=rows & 0xFFFF,
            row_step=rows >> 16,
            under_way=control >> 28 & AT_ONCE,
            last=bool(control >> 31),
        )


def port_width(config: AcceleratorConfig, data_width: int) -> int:
    """Bits that the DMA moves in a cycle between its beats of `data_width` bits and program, weight and activation
    memory: whole beats where their words consist of such, else 32."""
    size = data_width // 8
    whole = all(word % size == 0 for word in (4 * PROGRAM_COLUMNS, config.weight_word_bytes, config.granule))
    return data_width if whole and not config.compact else 32


def encode_list(descriptors: Sequence[DmaDescriptor]) -> NDArray[np.uint32]:
    """The words of a list; the last descriptor is marked."""
    marked = [*descriptors[:-1], replace(descriptors[-1], last=True)]
    return np.concatenate([descriptor.encode() for descriptor in marked])
