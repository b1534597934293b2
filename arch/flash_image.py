"""A network in a board's SPI flash: the bytes there, and the registers that say what became of them at power-up.

The image is a list of bursts on the host bus, which `nnloom.hw.flash_boot` plays after a reset:

    word  0     FLASH_MAGIC
          1     hash of the configuration
          2     words from the first burst up to the CRC
          3, 4  content (`nnloom.arch.content`)
          ...   bursts: address, shape, number of words, words
          ...   END
          last  CRC-32 (IEEE 802.3) of all bytes before

Words are little endian. `shape` has the words of a run, less 1, in its lower half, and in the upper half the distance
in words from the last address of a run to the first of the next.
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .artifact import EngineImage
from .config import AcceleratorConfig
from .content import engine_content
from .errors import ConfigError
from .isa import TABLE_ENTRIES, HostAddress, weight_stride, weight_word_columns
from .legality import check_image
from .memory_system import CONTENT_WORDS, SystemAddress

__all__ = [
    "BOOT_BASE",
    "BOOT_MAGIC",
    "BURST_HEADER_WORDS",
    "FLASH_MAGIC",
    "HEADER_WORDS",
    "BootOutcome",
    "BootRegister",
    "Burst",
    "FlashImage",
    "flash_image",
    "largest_flash_words",
]

FLASH_MAGIC = 0x4E4E_4601
"""First word of an image: "NNF" and the version of this form."""
END = 0xF000_0000
"""In place of a burst's address, whose window it is not"""
HEADER_WORDS = 3 + CONTENT_WORDS
BURST_HEADER_WORDS = 3

BOOT_BASE = SystemAddress.REGISTERS + 0x2000
"""Byte address of the registers on the link's host bus. Systems that do not load from a flash have others there, or
none, which answer zero."""
BOOT_MAGIC = 0x424F_4F01
"""Value of `BootRegister.ID`: "BOO" and the version of this interface."""


class BootRegister(enum.IntEnum):
    """Registers: byte offsets from BOOT_BASE."""

    ID = 0x0
    """read: BOOT_MAGIC"""
    STATUS = 0x4
    """read: a `BootOutcome`"""
    CONTENT_0 = 0x8
    """read and write: what program, weights and tables hold; 0 after a reset, and after a write to one of them"""
    CONTENT_1 = 0xC
    """read and write: the rest of it"""


class BootOutcome(enum.IntEnum):
    """What became of the flash's image after the last reset."""

    LOADING = 0
    """not known yet: the link waits until it is"""
    LOADED = 1
    """its network was loaded"""
    EMPTY = 2
    """the flash has no image there, or does not answer"""
    OTHER_CONFIGURATION = 3
    """the image is for another configuration of the engine"""
    DAMAGED = 4
    """its CRC is wrong, or it has no end; nothing was loaded (unless the flash answers in two ways: the image is
    read twice, and written the second time)"""


@dataclass(frozen=True, eq=False)
class Burst:
    """Words for runs of `run` consecutive addresses, `jump` words from the last of one to the first of the next.

    `run` is at most the 32-bit words of a weight word; without gaps it is 1.
    """

    address: int
    words: NDArray[np.uint32]
    run: int = 1
    jump: int = 1

    def addresses(self) -> NDArray[np.uint32]:
        """Byte address of each word."""
        index = np.arange(len(self.words), dtype=np.uint64)
        return (self.address + 4 * (index + index // self.run * (self.jump - 1))).astype(np.uint32)


@dataclass(frozen=True, eq=False)
class FlashImage:
    """An image, taken apart."""

    config_hash: int
    content: tuple[int, ...]
    bursts: tuple[Burst, ...]

    def encode(self) -> bytes:
        """The bytes in the flash."""
        body: list[NDArray[np.uint32]] = []
        for burst in self.bursts:
            shape = burst.run - 1 | burst.jump << 16
            body += [np.array([burst.address, shape, len(burst.words)], np.uint32), burst.words]
        body.append(np.array([END], np.uint32))
        length = sum(len(piece) for piece in body)
        head = np.array([FLASH_MAGIC, self.config_hash, length, *self.content], np.uint32)
        data = np.concatenate([head, *body]).astype("<u4").tobytes()
        return data + zlib.crc32(data).to_bytes(4, "little")

    @classmethod
    def decode(cls, data: bytes) -> FlashImage:
        """Inverse of `encode`; what follows the image does not matter.

        Raises
        ------
        ValueError
            If it is none, or damaged.
        """
        words = np.frombuffer(data[: len(data) // 4 * 4], "<u4").astype(np.uint32)
        if len(words) <= HEADER_WORDS or words[0] != FLASH_MAGIC:
            raise ValueError("not a flash image")
        end = HEADER_WORDS + int(words[2])
        if len(words) <= end or zlib.crc32(data[: 4 * end]) != int(words[end]):
            raise ValueError("damaged flash image")
        content = tuple(int(word) for word in words[3:HEADER_WORDS])
        return cls(int(words[1]), content, tuple(_bursts(words[HEADER_WORDS:end])))


def _bursts(words: NDArray[np.uint32]) -> Iterator[Burst]:
    position = 0
    while words[position] != END:
        address, shape, count = (int(word) for word in words[position : position + BURST_HEADER_WORDS])
        position += BURST_HEADER_WORDS
        yield Burst(address, words[position : position + count], (shape & 0xFFFF) + 1, shape >> 16)
        position += count


def flash_image(image: EngineImage) -> FlashImage:
    """What a flash holds to load an engine with all of an image.

    Raises
    ------
    ConfigError
        If the network runs in parts: they do not fit the engine's memories together.
    IllegalProgramError
        If the engine would refuse a program.
    """
    config = image.config
    if not image.is_whole:
        raise ConfigError(
            "the network runs in parts, which a host loads during each inference; only one that fits the engine's "
            "memories as a whole can be loaded from the flash"
        )
    check_image(config, image.program)
    columns = weight_word_columns(config)
    weights = np.zeros((len(image.weights), 4 * columns), np.uint8)
    weights[:, : config.weight_word_bytes] = image.weights
    jump = weight_stride(config) // 4 - columns + 1
    bursts = (
        Burst(HostAddress.TABLES, image.tables.reshape(-1).astype(np.uint32)),
        Burst(HostAddress.PROGRAM, image.program.astype(np.uint32)),
        Burst(HostAddress.WEIGHTS, weights.reshape(-1).view("<u4").astype(np.uint32), columns, jump),
    )
    return FlashImage(config.hash, engine_content(image), tuple(burst for burst in bursts if len(burst.words)))


def largest_flash_words(config: AcceleratorConfig) -> int:
    """Words between content and CRC that an image for a configuration has at most, END among them."""
    sizes = (
        config.tables * TABLE_ENTRIES,
        config.program_words,
        config.weight_words * weight_word_columns(config),
    )
    return sum(size + BURST_HEADER_WORDS for size in sizes) + 1
