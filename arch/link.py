"""The frames between driver and board: the only declaration of their bytes (`docs/protocol.md` is made from it).

A frame on the line is COBS-encoded bytes and a zero byte. The bytes are a header, 32-bit words, and the CRC-32
(IEEE 802.3) of both; all numbers are little endian. COBS costs one byte in 254 whatever the data, and the end of a
frame is found again after any damage at the next zero byte.

The board executes a frame only after its CRC was checked, and only if its session is the board's and its sequence
number follows that of the frame executed before. So a frame has happened or it has not, and sending it again is
harmless: a repeated frame is answered with the stored response and not executed again.
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .isa import Register

__all__ = [
    "DEFAULT_BAUD",
    "DONE_REGISTERS",
    "HELLO_REGISTERS",
    "HELLO_WORDS",
    "LARGEST_WORDS",
    "LINK_VERSION",
    "REQUEST",
    "RESPONSE",
    "Answer",
    "FrameSplitter",
    "HeaderField",
    "Hello",
    "Opcode",
    "Request",
    "Response",
    "cobs_decode",
    "cobs_encode",
]

LINK_VERSION = 2
DEFAULT_BAUD = 1_000_000
LARGEST_WORDS = 252
"""Most words of a frame: with header and CRC they fill a buffer of 1 KiB."""
SEQUENCES = 256
"""Sequence numbers count modulo this."""


class Opcode(enum.IntEnum):
    """What a request asks for."""

    HELLO = 1
    """open a session: the board takes over session and sequence number; answered with the words of `HELLO_WORDS`"""
    WRITE = 2
    """write the words of the frame to the burst's addresses; answered without words"""
    READ = 3
    """read the burst's `count` words; answered with them"""
    START = 4
    """a WRITE that starts a program; at its end the board sends a frame DONE with this request's sequence number"""
    RESET = 5
    """reset the accelerator's control state, not its memories, nor the link; answered without words"""


class Answer(enum.IntEnum):
    """What a frame from the board says."""

    OK = 0
    """the request of this sequence number was executed"""
    DONE = 1
    """not a response: the program of the START with this sequence number has ended; words: `DONE_REGISTERS`"""
    BAD_REQUEST = 2
    """unknown opcode; nothing was done"""
    BAD_FRAME = 3
    """a frame was damaged or came too early; nothing was done; the sequence number is that executed last"""
    BAD_SEQUENCE = 4
    """a frame before this one is missing; nothing was done; the sequence number is that executed last"""
    NO_SESSION = 5
    """not the board's session: it was reset, or another driver has opened one; nothing was done"""


@dataclass(frozen=True)
class HeaderField:
    """One field of a header; the fields follow each other from the lowest bit of the first byte on."""

    name: str
    width: int
    doc: str


REQUEST: tuple[HeaderField, ...] = (
    HeaderField("opcode", 8, "`Opcode`"),
    HeaderField("sequence", 8, "one more than that of the request before, modulo 256"),
    HeaderField("session", 16, "chosen by the driver for HELLO, not 0; the same in every request that follows"),
    HeaderField("address", 32, "host bus address of the first word, a multiple of 4"),
    HeaderField("run", 8, "words at consecutive addresses, at least 1"),
    HeaderField("count", 8, "READ: words to read"),
    HeaderField("jump", 16, "from the last address of a run to the first of the next, in words; 1: no gap"),
)
"""Header of a request. A burst is several runs at equal distances, so that weight words, which do not fill their
address range, go in one frame."""

RESPONSE: tuple[HeaderField, ...] = (
    HeaderField("answer", 8, "`Answer`"),
    HeaderField("sequence", 8, "the request's, see `Answer`"),
    HeaderField("session", 16, "the board's session, 0 after its reset"),
)
"""Header of a frame from the board."""

HELLO_REGISTERS = (Register.MAGIC, Register.VERSION, Register.CONFIG_HASH)
DONE_REGISTERS = (Register.STATUS, Register.CYCLES, Register.LAYERS)
for _registers in (HELLO_REGISTERS, DONE_REGISTERS, (Register.PROGRAM_START, Register.CONTROL)):
    assert all(b - a == 4 for a, b in pairwise(_registers)), "one burst reads them"

HELLO_WORDS: tuple[tuple[str, str], ...] = (
    ("limits", "bits 7:0 version of the protocol, bits 31:16 most words of a frame"),
    ("clock", "clock of the accelerator in Hz"),
    ("previous", "bits 15:0 the session before; bit 16 set if there was none since the reset"),
    *((register.name, "the register of that name") for register in HELLO_REGISTERS),
)
"""Words of the answer to HELLO."""

HEADER_BYTES = sum(item.width for item in REQUEST) // 8
RESPONSE_BYTES = sum(item.width for item in RESPONSE) // 8
CRC_BYTES = 4


def cobs_encode(data: bytes) -> bytes:
    """Consistent overhead byte stuffing (Cheshire and Baker, 1999): the same content without zero bytes.

    Each block begins with its length; a block of less than 255 stands for its bytes and a zero, which the last one
    does not have.
    """
    out = bytearray()
    for block in data.split(b"\0"):
        while len(block) >= 254:
            out += b"\xff" + block[:254]
            block = block[254:]
        out.append(len(block) + 1)
        out += block
    return bytes(out)


def cobs_decode(data: bytes) -> bytes:
    """Inverse of `cobs_encode`.

    Raises
    ------
    ValueError
        If a block is not complete, or the data holds a zero byte.
    """
    out = bytearray()
    position, zero_due = 0, False
    while position < len(data):
        if zero_due:
            out.append(0)
        code = data[position]
        block = data[position + 1 : position + code]
        if code == 0 or len(block) != code - 1 or 0 in block:
            raise ValueError("not a COBS frame")
        out += block
        position += code
        zero_due = code != 255
    return bytes(out)


def _seal(header: Sequence[HeaderField], values: dict[str, int], words: NDArray[np.uint32]) -> bytes:
    number, offset = 0, 0
    for item in header:
        if not 0 <= values[item.name] < 1 << item.width:
            raise ValueError(f"{item.name} must be below {1 << item.width}, not {values[item.name]}")
        number |= values[item.name] << offset
        offset += item.width
    data = number.to_bytes(offset // 8, "little") + words.astype("<u4").tobytes()
    return cobs_encode(data + zlib.crc32(data).to_bytes(CRC_BYTES, "little")) + b"\0"


def _open(header: Sequence[HeaderField], frame: bytes) -> tuple[dict[str, int], NDArray[np.uint32]]:
    data = cobs_decode(frame)
    size = sum(item.width for item in header) // 8
    if len(data) < size + CRC_BYTES or (len(data) - size) % 4:
        raise ValueError("frame of a wrong length")
    if zlib.crc32(data[:-CRC_BYTES]).to_bytes(CRC_BYTES, "little") != data[-CRC_BYTES:]:
        raise ValueError("frame with a wrong CRC")
    number, values = int.from_bytes(data[:size], "little"), {}
    for item in header:
        values[item.name] = number & ((1 << item.width) - 1)
        number >>= item.width
    return values, np.frombuffer(data[size:-CRC_BYTES], "<u4").astype(np.uint32)


def _no_words() -> NDArray[np.uint32]:
    return np.zeros(0, np.uint32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """A frame to the board; the fields are those of `REQUEST`. `words`: uint32, for WRITE and START."""

    opcode: Opcode
    sequence: int
    session: int
    address: int = 0
    run: int = 1
    count: int = 0
    jump: int = 1
    words: NDArray[np.uint32] = field(default_factory=_no_words)

    def encode(self) -> bytes:
        """The bytes on the line, the zero byte at the end included."""
        return _seal(REQUEST, {item.name: int(getattr(self, item.name)) for item in REQUEST}, self.words)

    @classmethod
    def decode(cls, frame: bytes) -> Request:
        """From the bytes between two zero bytes.

        Raises
        ------
        ValueError
            If the frame is damaged or its opcode unknown.
        """
        values, words = _open(REQUEST, frame)
        return cls(opcode=Opcode(values.pop("opcode")), words=words, **values)

    def addresses(self, count: int) -> Iterable[int]:
        """Host bus addresses of the burst's first `count` words."""
        for index in range(count):
            yield (self.address + 4 * (index + index // self.run * (self.jump - 1))) & 0xFFFF_FFFF


@dataclass(frozen=True, kw_only=True, eq=False)
class Response:
    """A frame from the board; the fields are those of `RESPONSE`. `words`: uint32."""

    answer: Answer
    sequence: int
    session: int
    words: NDArray[np.uint32] = field(default_factory=_no_words)

    def encode(self) -> bytes:
        """The bytes on the line, the zero byte at the end included."""
        return _seal(RESPONSE, {item.name: int(getattr(self, item.name)) for item in RESPONSE}, self.words)

    @classmethod
    def decode(cls, frame: bytes) -> Response:
        """From the bytes between two zero bytes.

        Raises
        ------
        ValueError
            If the frame is damaged or its answer unknown.
        """
        values, words = _open(RESPONSE, frame)
        return cls(answer=Answer(values.pop("answer")), words=words, **values)


@dataclass(frozen=True, kw_only=True)
class Hello:
    """What a board tells of itself."""

    link_version: int
    max_words: int
    """most words of a frame"""
    clock_hz: int
    previous_session: int | None
    """None: none since the board's reset, so its memories hold nothing"""
    magic: int
    isa_version: int
    config_hash: int

    def words(self) -> NDArray[np.uint32]:
        """The words of `HELLO_WORDS`."""
        previous = 1 << 16 if self.previous_session is None else self.previous_session
        limits = self.link_version | self.max_words << 16
        return np.array(
            [limits, self.clock_hz, previous, self.magic, self.isa_version, self.config_hash], np.int64
        ).astype(np.uint32)

    @classmethod
    def from_words(cls, words: NDArray[np.uint32]) -> Hello:
        """Inverse of `words`.

        Raises
        ------
        ValueError
            If the number of words is another: the board has another version of the protocol.
        """
        if len(words) != len(HELLO_WORDS):
            raise ValueError(f"answer to HELLO of {len(words)} words, not {len(HELLO_WORDS)}")
        limits, clock, previous, magic, isa_version, config_hash = (int(word) for word in words)
        return cls(
            link_version=limits & 0xFF,
            max_words=limits >> 16,
            clock_hz=clock,
            previous_session=None if previous >> 16 & 1 else previous & 0xFFFF,
            magic=magic,
            isa_version=isa_version,
            config_hash=config_hash,
        )


class FrameSplitter:
    """Cuts a stream of bytes at the zero bytes.

    Parameters
    ----------
    limit
        Longest frame in bytes; of a longer one only the end is kept, so that it is found damaged.
    """

    def __init__(self, limit: int = 2048) -> None:
        self._limit = limit
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that `data` completes, without their zero bytes; empty ones are left out."""
        *frames, self._rest = (self._rest + data).split(b"\0")
        self._rest = self._rest[-self._limit :]
        return [frame for frame in frames if frame]
