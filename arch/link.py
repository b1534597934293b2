"""The serial protocol between driver and board: the only declaration of its bytes.

    request    0xA5 opcode address:4 count:2 [count words of 4 bytes if WRITE] crc:4
    response   0x5A status [count words of 4 bytes if READ and OK] crc:4

All numbers are little endian. `address` is a byte address of the host bus, `count` a number of 32-bit words,
at most `MAX_WORDS`. The address advances by 4 after each word. The CRC is CRC-32 (IEEE 802.3) of all
bytes before it, the first one included. Words of a WRITE reach the bus as they arrive; a request whose CRC is
wrong is answered BAD_CRC, and the driver sends it again (writing twice does no harm: a start command is one word
of its own and is held back until the CRC was checked). A request that pauses for longer than `TIMEOUT_BYTES`
byte times is dropped without an answer.
"""

from __future__ import annotations

import enum
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MAX_WORDS",
    "REQUEST_SYNC",
    "RESPONSE_SYNC",
    "TIMEOUT_BYTES",
    "LinkStatus",
    "Opcode",
    "decode_response",
    "encode_read",
    "encode_write",
    "response_length",
]

REQUEST_SYNC = 0xA5
RESPONSE_SYNC = 0x5A
MAX_WORDS = 0xFFFF
TIMEOUT_BYTES = 64
HEADER = struct.Struct("<BBIH")


class Opcode(enum.IntEnum):
    """What a request asks for."""

    WRITE = 1
    READ = 2


class LinkStatus(enum.IntEnum):
    """How a request ended."""

    OK = 0
    BAD_CRC = 1
    BAD_OPCODE = 2


def _seal(data: bytes) -> bytes:
    return data + struct.pack("<I", zlib.crc32(data))


def encode_write(address: int, words: NDArray[np.uint32]) -> bytes:
    """A WRITE request of consecutive words."""
    return _seal(HEADER.pack(REQUEST_SYNC, Opcode.WRITE, address, len(words)) + words.astype("<u4").tobytes())


def encode_read(address: int, count: int) -> bytes:
    """A READ request of consecutive words."""
    return _seal(HEADER.pack(REQUEST_SYNC, Opcode.READ, address, count))


def response_length(count: int, status: int = LinkStatus.OK) -> int:
    """Bytes of a response that carries `count` words (0 for WRITE)."""
    return 6 + (4 * count if status == LinkStatus.OK else 0)


def decode_response(data: bytes) -> tuple[LinkStatus, NDArray[np.uint32]]:
    """Status and words of a response.

    Raises
    ------
    ValueError
        If the bytes are no response, or its CRC is wrong.
    """
    if len(data) < 6 or data[0] != RESPONSE_SYNC:
        raise ValueError("not a response")
    if zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise ValueError("response with a wrong CRC")
    return LinkStatus(data[1]), np.frombuffer(data[2:-4], "<u4").astype(np.uint32)
