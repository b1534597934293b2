"""The frames between driver and board: the only declaration of their bytes (`docs/protocol.md` is made from it).

A frame on the line is COBS-encoded bytes and a zero byte. The bytes are a header, what belongs to it, and the CRC-32
(IEEE 802.3) of both; all numbers are little endian. COBS costs one byte in 254 whatever the data, and the end of a
frame is found again after any damage at the next zero byte.

The board executes a frame only after its CRC was checked, and only if its session is the board's and its sequence
number follows that of the frame executed before. So a frame has happened or it has not, and sending it again is
harmless: a repeated frame is answered with the stored response and not executed again.

An inference is one request: the board keeps *scripts*, which say where the bytes of RUN and MORE go, when to start the
program, and what to answer at its end.
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
    "BURST",
    "DEFAULT_BAUD",
    "DONE_REGISTERS",
    "FRAMES_AHEAD",
    "HEAD",
    "HELLO_REGISTERS",
    "HELLO_WORDS",
    "LARGEST_WORDS",
    "LINK_VERSION",
    "RESPONSE",
    "RUN_BYTES",
    "SHORT_OPCODES",
    "STEP",
    "STEP_WORDS",
    "Answer",
    "FrameSplitter",
    "HeaderField",
    "Hello",
    "Opcode",
    "Request",
    "Response",
    "Step",
    "StepKind",
    "cobs_decode",
    "cobs_encode",
    "script_word",
]

LINK_VERSION = 3
DEFAULT_BAUD = 1_000_000
LARGEST_WORDS = 252
"""Most words of a frame: with header and CRC they fill a buffer of 1 KiB."""
SEQUENCES = 256
"""Sequence numbers count modulo this."""
FRAMES_AHEAD = 2
"""Frames that a driver may send behind the last one of a RUN before that is answered: one that the board has taken and
keeps until the program has ended, and one that waits behind it. The board loses more."""


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
    SCRIPT = 6
    """keep this frame, whose words are the steps of scripts, in place of the one kept before; answered without words"""
    RUN = 8
    """begin the script at the word of the kept frame that this frame's first word says, the header counted, with this \
frame's other bytes; not before the program that runs has ended"""
    MORE = 9
    """go on with the script: further bytes of the inputs, or for further bytes of the outputs; refused with \
BAD_REQUEST if no script has begun"""
    SYNC = 10
    """nothing; answered without words, so that a driver knows how far the board has come"""


SHORT_OPCODES = frozenset({Opcode.RUN, Opcode.MORE, Opcode.SYNC})
"""Their frames have no burst."""


class StepKind(enum.IntEnum):
    """What a step of a script does. The steps before WAIT are WRITE, then PUT; those behind it READ."""

    END = 0
    """the script ends, and its answer with it"""
    WRITE = 1
    """write `count` words from `address` on: `chunk` bytes of RUN and MORE, then `pad` zeros, and so on"""
    READ = 2
    """read `count` words from `address` on, and answer `chunk` bytes of them, not the next `pad`, and so on"""
    PUT = 3
    """as WRITE, with the bytes of the words that follow the step in the script; behind all WRITE"""
    WAIT = 4
    """wait for the end of the program that a step before has started, then begin the answer"""


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
    RUNNING = 6
    """the script of the RUN or MORE with this sequence number waits for the end of its program"""


@dataclass(frozen=True)
class HeaderField:
    """One field of a header; the fields follow each other from the lowest bit of the first byte on."""

    name: str
    width: int
    doc: str


HEAD: tuple[HeaderField, ...] = (
    HeaderField("opcode", 8, "`Opcode`"),
    HeaderField("sequence", 8, "one more than that of the request before, modulo 256"),
    HeaderField("session", 16, "chosen by the driver for HELLO, not 0; the same in every request that follows"),
)
"""Header of every request."""

BURST: tuple[HeaderField, ...] = (
    HeaderField("address", 32, "host bus address of the first word, a multiple of 4"),
    HeaderField("run", 8, "words at consecutive addresses, at least 1"),
    HeaderField("count", 8, "READ: words to read"),
    HeaderField("jump", 16, "from the last address of a run to the first of the next, in words; 1: no gap"),
)
"""What follows the header but in `SHORT_OPCODES`. A burst is several runs at equal distances, so that weight words,
which do not fill their address range, go in one frame."""

STEP: tuple[HeaderField, ...] = (
    HeaderField("address", 32, "host bus address of the first word, a multiple of 4"),
    HeaderField("pad", 8, "bytes between two chunks, which do not go over the line"),
    HeaderField("kind", 8, "`StepKind`"),
    HeaderField("chunk", 16, "bytes that follow each other, at least 1"),
    HeaderField("count", 32, "words on the host bus, 1 to 65535"),
)
"""A step of a script."""

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
    (
        "limits",
        "bits 7:0 version of the protocol, bit 8 set if a step may have a `pad`, bits 31:16 most words of a frame",
    ),
    ("clock", "clock of the accelerator in Hz"),
    ("previous", "bits 15:0 the session before; bit 16 set if there was none since the reset"),
    *((register.name, "the register of that name") for register in HELLO_REGISTERS),
)
"""Words of the answer to HELLO."""

HEAD_BYTES = sum(item.width for item in HEAD) // 8
HEADER_BYTES = HEAD_BYTES + sum(item.width for item in BURST) // 8
"""Of requests with a burst."""
RUN_BYTES = HEAD_BYTES + 4
"""What comes before the bytes of the inputs in RUN; in MORE it is `HEAD_BYTES`."""
STEP_WORDS = sum(item.width for item in STEP) // 32
RESPONSE_BYTES = sum(item.width for item in RESPONSE) // 8
CRC_BYTES = 4


def script_word(index: int) -> int:
    """What RUN says to begin at a word of SCRIPT."""
    return HEADER_BYTES // 4 + index


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


def _pack(fields: Sequence[HeaderField], values: dict[str, int]) -> bytes:
    number, offset = 0, 0
    for item in fields:
        if not 0 <= values[item.name] < 1 << item.width:
            raise ValueError(f"{item.name} must be below {1 << item.width}, not {values[item.name]}")
        number |= values[item.name] << offset
        offset += item.width
    return number.to_bytes(offset // 8, "little")


def _unpack(fields: Sequence[HeaderField], data: bytes) -> dict[str, int]:
    number, values = int.from_bytes(data, "little"), {}
    for item in fields:
        values[item.name] = number & ((1 << item.width) - 1)
        number >>= item.width
    return values


def _seal(data: bytes) -> bytes:
    return cobs_encode(data + zlib.crc32(data).to_bytes(CRC_BYTES, "little")) + b"\0"


def _open(header: Sequence[HeaderField], frame: bytes) -> tuple[dict[str, int], bytes]:
    """The fields of a header, and the bytes behind it."""
    data = cobs_decode(frame)
    size = sum(item.width for item in header) // 8
    if len(data) < size + CRC_BYTES:
        raise ValueError("frame of a wrong length")
    if zlib.crc32(data[:-CRC_BYTES]).to_bytes(CRC_BYTES, "little") != data[-CRC_BYTES:]:
        raise ValueError("frame with a wrong CRC")
    return _unpack(header, data[:size]), data[size:-CRC_BYTES]


def _words(data: bytes) -> NDArray[np.uint32]:
    return np.frombuffer(data, "<u4").astype(np.uint32)


def _no_words() -> NDArray[np.uint32]:
    return np.zeros(0, np.uint32)


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of a script; the fields are those of `STEP`."""

    kind: StepKind
    address: int = 0
    count: int = 0
    chunk: int = 1
    pad: int = 0
    data: tuple[int, ...] = ()
    """PUT: its words"""

    def words(self) -> NDArray[np.uint32]:
        """What the board keeps of it, uint32."""
        step = _words(_pack(STEP, {item.name: int(getattr(self, item.name)) for item in STEP}))
        return np.concatenate([step, np.array(self.data, np.uint32)])

    @classmethod
    def put(cls, address: int, *words: int) -> Step:
        """A step that writes words of its own."""
        return cls(kind=StepKind.PUT, address=address, count=len(words), data=words)


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """A frame to the board; the fields are those of `HEAD` and `BURST`. `words`: uint32, what follows them."""

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
        fields = HEAD if self.opcode in SHORT_OPCODES else HEAD + BURST
        header = _pack(fields, {item.name: int(getattr(self, item.name)) for item in fields})
        return _seal(header + self.words.astype("<u4").tobytes())

    @classmethod
    def decode(cls, frame: bytes) -> Request:
        """From the bytes between two zero bytes.

        Raises
        ------
        ValueError
            If the frame is damaged or its opcode unknown.
        """
        values, data = _open(HEAD, frame)
        opcode = Opcode(values.pop("opcode"))
        if len(data) % 4 or (opcode not in SHORT_OPCODES and len(data) < HEADER_BYTES - HEAD_BYTES):
            raise ValueError("frame of a wrong length")
        if opcode not in SHORT_OPCODES:
            values |= _unpack(BURST, data[: HEADER_BYTES - HEAD_BYTES])
            data = data[HEADER_BYTES - HEAD_BYTES :]
        return cls(opcode=opcode, words=_words(data), **values)

    def addresses(self, count: int) -> Iterable[int]:
        """Host bus addresses of the burst's first `count` words."""
        for index in range(count):
            yield (self.address + 4 * (index + index // self.run * (self.jump - 1))) & 0xFFFF_FFFF


@dataclass(frozen=True, kw_only=True, eq=False)
class Response:
    """A frame from the board; the fields are those of `RESPONSE`.

    words: uint32; rest: up to three bytes behind them, in answers of scripts.
    """

    answer: Answer
    sequence: int
    session: int
    words: NDArray[np.uint32] = field(default_factory=_no_words)
    rest: bytes = b""

    @property
    def data(self) -> bytes:
        """What follows the header."""
        return self.words.astype("<u4").tobytes() + self.rest

    def encode(self) -> bytes:
        """The bytes on the line, the zero byte at the end included."""
        return _seal(_pack(RESPONSE, {item.name: int(getattr(self, item.name)) for item in RESPONSE}) + self.data)

    @classmethod
    def decode(cls, frame: bytes) -> Response:
        """From the bytes between two zero bytes.

        Raises
        ------
        ValueError
            If the frame is damaged or its answer unknown.
        """
        values, data = _open(RESPONSE, frame)
        whole = len(data) // 4 * 4
        return cls(answer=Answer(values.pop("answer")), words=_words(data[:whole]), rest=data[whole:], **values)


@dataclass(frozen=True, kw_only=True)
class Hello:
    """What a board tells of itself."""

    link_version: int
    max_words: int
    """most words of a frame"""
    packs: bool
    """scripts can leave bytes of words out; else `pad` must be 0"""
    clock_hz: int
    previous_session: int | None
    """None: none since the board's reset, so its memories hold nothing"""
    magic: int
    isa_version: int
    config_hash: int

    def words(self) -> NDArray[np.uint32]:
        """The words of `HELLO_WORDS`."""
        previous = 1 << 16 if self.previous_session is None else self.previous_session
        limits = self.link_version | self.packs << 8 | self.max_words << 16
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
            packs=bool(limits >> 8 & 1),
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
