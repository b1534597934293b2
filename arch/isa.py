"""The instruction set, memory map and registers: the only definition of each.

RTL (`nnloom.hw`), compiler, golden model, driver and `docs/isa.md` are all made from these tables.
An instruction is a *layer descriptor*: one descriptor drives a whole loop nest (see `loopnest.py`).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from .config import FIELD_BITS, PARAMETER_BYTES, AcceleratorConfig

__all__ = [
    "DESCRIPTOR_WORDS",
    "ERROR_CAUSE_BIT",
    "ERROR_CAUSE_BITS",
    "FIELDS",
    "MEMORY_WINDOWS",
    "PARAMETER",
    "PROGRAM_COLUMNS",
    "TABLE_ENTRIES",
    "WATCHDOG_BITS",
    "Counter",
    "Descriptor",
    "ErrorCause",
    "Field",
    "HostAddress",
    "Kind",
    "Register",
    "Status",
    "check_descriptor",
    "decode_parameters",
    "decode_program",
    "encode_parameters",
    "encode_program",
    "field_width",
    "last_addresses",
    "needed_field_bits",
]


class Kind(enum.IntEnum):
    """How a descriptor forms its operands."""

    DENSE = 0
    """All lanes share `taps` contiguous bytes of a kernel row; a lane is one output channel."""
    WINDOW = 1
    """Each lane multiplies its own channel's window of 3 rows by 3 columns (depthwise, pooling)."""
    ADD = 2
    """Sum of two tensors: operand Y is rescaled into the addend queue, then operand X is added to it."""


@dataclass(frozen=True)
class Field:
    """One field of a descriptor. `word` is the 32-bit word, `offset` its lowest bit there."""

    name: str
    word: int
    offset: int
    width: int
    signed: bool
    doc: str

    @property
    def minimum(self) -> int:
        return -(1 << (self.width - 1)) if self.signed else 0

    @property
    def maximum(self) -> int:
        return (1 << (self.width - (1 if self.signed else 0))) - 1


DESCRIPTOR_WORDS = 16
PROGRAM_COLUMNS = 4
"""32-bit words of a program memory word: a descriptor is read in four cycles."""


def _layout() -> tuple[Field, ...]:
    table: list[tuple[int, list[tuple[str, int, bool, str]]]] = [
        (
            0,
            [
                ("kind", 2, False, "`Kind`: 0 DENSE, 1 WINDOW, 2 ADD"),
                ("last", 1, False, "last descriptor of the program"),
                (
                    "slide",
                    1,
                    False,
                    "WINDOW: every load shifts the window by one column, a result fires once it is full",
                ),
                (
                    "maximum",
                    1,
                    False,
                    "WINDOW: running maximum of the newest column's products, each as int8, instead of the sum",
                ),
                ("row_pair", 1, False, "DENSE: a step takes taps // 2 bytes from each of two rows"),
                ("double_rounding", 1, False, "requantization rounds twice (CONV_2D, ADD) instead of once"),
                ("narrow", 1, False, "accumulators plus bias saturate at 18 bits signed: one cycle per result"),
                ("half_last", 1, False, "the last channel group writes only its lower granule"),
                ("weights_advance", 1, False, "the weight word advances with every step of a result"),
                ("start_delay", 8, False, "cycles to wait after the last step of the previous descriptor"),
                (
                    "pixel_pair",
                    1,
                    False,
                    "DENSE: two output rows at once; `n_oy` counts pairs, `row_step_oy` spans two",
                ),
                ("odd_rows", 1, False, "`pixel_pair`: the last pair has only its first row"),
                ("interval", 8, False, "fewest cycles between two results, and from a result to a parameter load"),
                (
                    "row_triple",
                    1,
                    False,
                    "DENSE, with `row_triples`: a step takes taps // 3 bytes of each of three rows; `kernel_rows` 255",
                ),
            ],
        ),
        (
            1,
            [
                ("in_base", 16, False, "input tensor, granules within each bank (ADD, `product`: operand Y)"),
                ("in2_base", 16, False, "ADD, `product`: operand X"),
            ],
        ),
        (
            2,
            [
                ("in_rows", 16, False, "rows of the input; other rows read as padding"),
                ("in_row_bytes", 16, False, "bytes of an input row; other bytes read as padding"),
            ],
        ),
        (
            3,
            [
                ("in_row_stride", 16, False, "granules between rows of one bank, input"),
                ("out_row_stride", 16, False, "granules between rows of one bank, output"),
            ],
        ),
        (
            4,
            [
                ("out_base", 16, False, "output tensor, granules within each bank"),
                ("n_oy", 16, False, "output rows"),
            ],
        ),
        (
            5,
            [
                ("n_ox", 16, False, "output columns; with `slide`, column loads of a row; ADD: batches of a row"),
                ("n_g", 16, False, "channel groups of `lanes` channels"),
            ],
        ),
        (
            6,
            [
                ("n_ky", 16, False, "steps over kernel rows; ADD, `product`: 2 (operand Y, operand X)"),
                ("n_kx", 16, False, "steps within a kernel row; ADD: words of a batch; `product`: 1"),
            ],
        ),
        (
            7,
            [
                ("row_start", 16, True, "first input row of output row 0 (minus the top padding)"),
                ("q_start", 16, True, "first byte within the row of output column 0 (minus the left padding)"),
            ],
        ),
        (
            8,
            [
                ("row_step_oy", 8, False, "input rows per output row (stride)"),
                ("row_step_ky", 8, False, "input rows per ky step"),
                ("q_step_ox", 16, False, "bytes per ox step"),
            ],
        ),
        (
            9,
            [
                ("q_step_kx", 16, False, "bytes per kx step"),
                ("q_step_g", 16, False, "bytes per channel group (WINDOW: lanes; DENSE: 0)"),
            ],
        ),
        (
            10,
            [
                ("weight_base", 16, False, "first weight memory word: parameters of group 0, then its weights"),
                ("weight_step_g", 16, False, "weight words from one group to the next (0: all groups share)"),
            ],
        ),
        (
            11,
            [
                ("out_step_ox", 16, False, "granules from one output column to the next"),
                ("out_step_g", 16, False, "granules from one channel group to the next"),
            ],
        ),
        (
            12,
            [
                ("pad_value", 8, True, "value of padding (ADD: zero point of Y; `product`: of X)"),
                ("pad_value2", 8, True, "ADD: zero point of X; `product`: of Y"),
                ("out_zero_point", 8, True, "added after requantization"),
                (
                    "kernel_rows",
                    8,
                    False,
                    "kernel rows from here on read as padding (WINDOW: kernel height; ADD, `product`: 1)",
                ),
            ],
        ),
        (
            13,
            [
                ("act_min", 8, True, "lower clamp"),
                ("act_max", 8, True, "upper clamp"),
                ("slide_first", 8, False, "`slide`: loads of a row before its first result"),
                ("slide_step", 8, False, "`slide`: loads between results (stride)"),
            ],
        ),
        (
            14,
            [
                (
                    "table",
                    4,
                    False,
                    "number of the table in which each result byte is looked up after the clamp, plus 1; 0: none",
                ),
                (
                    "product",
                    1,
                    False,
                    "WINDOW, with `elementwise_mul`: product of two tensors: a step for operand Y, one for X",
                ),
                ("broadcast", 1, False, "`product`: operand Y is the same at every result of a channel group"),
                ("out_row_start", 2, False, "bank of output row 0, which lies in the row of granules at `out_base`"),
                (
                    "out_row_step",
                    3,
                    False,
                    "rows of the output tensor from one output row to the next, 1 to 4; `pixel_pair`: 2, from pair to "
                    "pair, and `out_row_start` even",
                ),
                (
                    "resume",
                    1,
                    False,
                    "DENSE, with `partial_sums`: the sums begin with those that the descriptor before has kept",
                ),
                (
                    "keep",
                    1,
                    False,
                    "DENSE, with `partial_sums`: the sums are kept for the next descriptor, and nothing is written",
                ),
            ],
        ),
    ]
    result = []
    for word, entries in table:
        offset = 0
        for name, width, signed, doc in entries:
            result.append(Field(name, word, offset, width, signed, doc))
            offset += width
        assert offset <= 32, f"descriptor word {word} overflows"
    assert table[-1][0] < DESCRIPTOR_WORDS
    return tuple(result)


FIELDS: tuple[Field, ...] = _layout()
"""Every descriptor field; word 15 is reserved and zero."""


@dataclass(frozen=True, kw_only=True)
class Descriptor:
    """One layer for the engine; the fields are those of `FIELDS`, explained there."""

    kind: int
    last: int = 0
    slide: int = 0
    maximum: int = 0
    row_pair: int = 0
    double_rounding: int = 1
    narrow: int = 0
    half_last: int = 0
    weights_advance: int = 1
    start_delay: int = 0
    pixel_pair: int = 0
    odd_rows: int = 0
    interval: int = 1
    row_triple: int = 0
    in_base: int
    in2_base: int = 0
    in_rows: int
    in_row_bytes: int
    in_row_stride: int
    out_row_stride: int
    out_base: int
    n_oy: int
    n_ox: int
    n_g: int
    n_ky: int
    n_kx: int
    row_start: int = 0
    q_start: int = 0
    row_step_oy: int = 1
    row_step_ky: int = 1
    q_step_ox: int = 0
    q_step_kx: int = 0
    q_step_g: int = 0
    weight_base: int = 0
    weight_step_g: int = 0
    out_step_ox: int = 0
    out_step_g: int = 0
    pad_value: int = 0
    pad_value2: int = 0
    out_zero_point: int = 0
    kernel_rows: int = 1
    act_min: int = -128
    act_max: int = 127
    slide_first: int = 0
    slide_step: int = 1
    table: int = 0
    product: int = 0
    broadcast: int = 0
    out_row_start: int = 0
    out_row_step: int = 1
    resume: int = 0
    keep: int = 0

    def __post_init__(self) -> None:
        for field in FIELDS:
            value = getattr(self, field.name)
            if not field.minimum <= value <= field.maximum:
                raise ValueError(
                    f"descriptor field {field.name} must be {field.minimum} to {field.maximum}, not {value}"
                )

    def encode(self) -> NDArray[np.uint32]:
        """The descriptor as `DESCRIPTOR_WORDS` 32-bit words."""
        words = [0] * DESCRIPTOR_WORDS
        for field in FIELDS:
            words[field.word] |= (int(getattr(self, field.name)) & ((1 << field.width) - 1)) << field.offset
        return np.array(words, np.uint32)

    @classmethod
    def decode(cls, words: Sequence[int] | NDArray[np.uint32]) -> Descriptor:
        """Inverse of `encode`."""
        values = {}
        for field in FIELDS:
            raw = (int(words[field.word]) >> field.offset) & ((1 << field.width) - 1)
            if field.signed and raw >> (field.width - 1):
                raw -= 1 << field.width
            values[field.name] = raw
        return cls(**values)


def field_width(config: AcceleratorConfig, field: Field) -> int:
    """Bits of a field that the engine looks at."""
    if field.name == "row_triple":
        return int(config.row_triples)
    if field.name == "table":
        return config.tables.bit_length()
    if field.name in ("product", "broadcast"):
        return int(config.elementwise_mul)
    if field.name in ("resume", "keep"):
        return int(config.partial_sums)
    return min(field.width, config.field_bits) if field.width == 16 else field.width


def check_descriptor(config: AcceleratorConfig, d: Descriptor) -> None:
    """Check that the engine looks at every bit that is set.

    Raises
    ------
    ValueError
        If a field is too large for `config.field_bits`, or for an option that the engine does not have.
    """
    for field in FIELDS:
        narrow = replace(field, width=field_width(config, field))
        value = getattr(d, field.name)
        if not narrow.minimum <= value <= narrow.maximum:
            raise ValueError(f"descriptor field {field.name} must be {narrow.minimum} to {narrow.maximum}, not {value}")


def last_addresses(d: Descriptor) -> tuple[int, int, int]:
    """(row, row of the kernel, byte of a row) that the last step of a descriptor reads first; no step reads beyond."""
    kernel_row = 0 if d.kind == Kind.ADD else (d.n_ky - 1) * d.row_step_ky
    row = d.row_start + (d.n_oy - 1) * d.row_step_oy + kernel_row
    byte = d.q_start + (d.n_g - 1) * d.q_step_g + (d.n_ox - 1) * d.q_step_ox + (d.n_kx - 1) * d.q_step_kx
    return row, kernel_row, byte


def needed_field_bits(d: Descriptor) -> int:
    """The least `field_bits` with which an engine looks at every bit of a descriptor that is set, and counts its rows
    and bytes (`nnloom.arch.legality.register_faults`)."""
    row, _, byte = last_addresses(d)
    bits = max(FIELD_BITS[0], max(row, 0).bit_length(), max(byte, 0).bit_length() - 1)
    for field in FIELDS:
        if field.width == 16:
            value = getattr(d, field.name)
            bits = max(bits, (value if value >= 0 else ~value).bit_length() + field.signed)
    return bits


assert [f.name for f in FIELDS] == [f.name for f in fields(Descriptor)][: len(FIELDS)] or {f.name for f in FIELDS} == {
    f.name for f in fields(Descriptor)
}


def encode_program(descriptors: Iterable[Descriptor]) -> NDArray[np.uint32]:
    """Concatenate descriptors into program memory words."""
    parts = [descriptor.encode() for descriptor in descriptors]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint32)


def decode_program(words: NDArray[np.uint32], start: int = 0) -> list[Descriptor]:
    """Decode from word `start` up to and including the descriptor marked `last`.

    Raises
    ------
    ValueError
        If the program ends before a descriptor marked `last`.
    """
    result: list[Descriptor] = []
    while start + DESCRIPTOR_WORDS <= len(words):
        result.append(Descriptor.decode(words[start : start + DESCRIPTOR_WORDS]))
        if result[-1].last:
            return result
        start += DESCRIPTOR_WORDS
    raise ValueError("program ends without a descriptor marked 'last'")


PARAMETER: tuple[tuple[str, int, int], ...] = (("bias", 0, 32), ("multiplier", 32, 31), ("shift", 64, 5))
"""Requantization parameters of one lane: name, lowest bit, width within its 72 bits.

Lane l's 9 bytes are bytes [l * taps, (l + 1) * taps) of `parameter_words` consecutive weight words,
lowest bytes in the first word; bytes beyond the ninth are zero.
"""


def encode_parameters(
    config: AcceleratorConfig, bias: NDArray, multiplier: NDArray, shift: NDArray
) -> NDArray[np.uint8]:
    """Pack parameters of `lanes` channels into weight words: uint8 [parameter_words, weight_word_bytes]."""
    out = np.zeros((config.parameter_words, config.lanes, config.taps), np.uint8)
    for lane in range(config.lanes):
        value = (int(bias[lane]) & 0xFFFFFFFF) | int(multiplier[lane]) << 32 | int(shift[lane]) << 64
        data = value.to_bytes(PARAMETER_BYTES, "little")
        for index, byte in enumerate(data):
            out[index // config.taps, lane, index % config.taps] = byte
    return out.reshape(config.parameter_words, config.weight_word_bytes)


def decode_parameters(
    config: AcceleratorConfig, words: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Inverse of `encode_parameters`: (bias, multiplier, shift), each int64 [lanes]."""
    data = words.reshape(config.parameter_words, config.lanes, config.taps).transpose(1, 0, 2)
    data = data.reshape(config.lanes, -1)[:, :PARAMETER_BYTES].astype(np.int64)
    value = lambda first, last: sum(data[:, i] << (8 * (i - first)) for i in range(first, last))  # noqa: E731
    bias = value(0, 4)
    return bias - ((bias >> 31) << 32), value(4, 8) & 0x7FFFFFFF, value(8, 9) & 31


class HostAddress(enum.IntEnum):
    """Byte addresses of the host bus windows (32-bit words, little endian)."""

    REGISTERS = 0x0000_0000
    PROGRAM = 0x1000_0000
    WEIGHTS = 0x2000_0000
    ACTIVATIONS = 0x3000_0000
    COUNTERS = 0x4000_0000
    TABLES = 0x5000_0000

    @staticmethod
    def window(address: int) -> int:
        """Where the window of a byte address begins, be it one of these or not."""
        return address >> 28 << 28


MEMORY_WINDOWS = {
    HostAddress.PROGRAM: (
        "32-bit word i at 4 * i; written in ascending words, every fourth one commits itself and the three before it; "
        "write only"
    ),
    HostAddress.WEIGHTS: (
        "weight word k at k * weight_stride, weight_stride = the power of two that holds lanes * taps bytes; "
        "written in ascending 32-bit words; a weight word is valid when its last one is written; write only"
    ),
    HostAddress.ACTIVATIONS: (
        "granule g of bank b at (b * bank_granules + g) * granule; "
        "written in ascending 32-bit words, the last one of a granule commits it (one that holds two, both); "
        "read and write"
    ),
    HostAddress.COUNTERS: (
        "counter c of descriptor i at 16 * i + 4 * c: its value when that descriptor had issued its last step; "
        "as many descriptors as `LAYERS` says, at most program_words / 16; read only; zero without `layer_counters`"
    ),
    HostAddress.TABLES: (
        "entry v of table t at 4 * (256 * t + v), in the lowest byte of the word: what is written instead of a result "
        "whose byte, without sign, is v; write only; ignored without `tables`"
    ),
}


class Counter(enum.IntEnum):
    """Counters of the last program, kept for each descriptor: 32-bit words in the COUNTERS window.

    A cycle in which the sequencer is none of what the last three say issues a step.
    """

    CYCLES = 0
    """cycles since the start command"""
    WAITS_START = 1
    """of these: waiting for a descriptor or for the results of the layer before"""
    WAITS_PARAMETERS = 2
    """of these: loading requantization parameters, or waiting until they may be replaced"""
    WAITS_REQUANTIZATION = 3
    """of these: waiting until the requantization units have taken the last result"""


class Register(enum.IntEnum):
    """Registers: byte offsets in the REGISTERS window."""

    MAGIC = 0x00
    """read: 0x4D4F4F4C ("LOOM")"""
    VERSION = 0x04
    """read: version of this instruction set"""
    CONFIG_HASH = 0x08
    """read: `AcceleratorConfig.hash`"""
    PROGRAM_START = 0x0C
    """read and write: first program memory word; kept until written again"""
    CONTROL = 0x10
    """write: bit 0 starts the program at PROGRAM_START; ignored while busy"""
    STATUS = 0x14
    """read: bits of `Status`; bits 5:4 are an `ErrorCause`"""
    CYCLES = 0x18
    """read: cycles of the last program, from the start command to the done flag"""
    LAYERS = 0x1C
    """read: descriptors completed by the last program"""


class Status(enum.IntFlag):
    """Bits of the STATUS register."""

    BUSY = 1
    DONE = 2
    """set at the end of a program, also of one that was ended by an error; cleared by a start"""
    ERROR = 4
    """something went wrong since the start, `ErrorCause` says what; cleared by a start"""


WATCHDOG_BITS = 30
"""A program that runs for 2 ** 30 cycles is ended: 10 s, as long as a driver waits, at 107 MHz."""
ERROR_CAUSE_BIT = 4
"""Lowest bit of STATUS that holds an `ErrorCause`, the first one since the start."""
ERROR_CAUSE_BITS = 2


class ErrorCause(enum.IntEnum):
    """What `Status.ERROR` means."""

    NONE = 0
    """no error"""
    ACCESS = 1
    """a memory was accessed while busy; the access was ignored, the program goes on"""
    PROGRAM = 2
    """the program asks for what the engine does not have, or has no end (`nnloom.arch.legality`); it was ended"""
    WATCHDOG = 3
    """the program ran for 2 ** 30 cycles; it was ended"""

    @classmethod
    def of(cls, status: int) -> ErrorCause:
        """The cause in a value of the STATUS register."""
        return cls(status >> ERROR_CAUSE_BIT & ((1 << ERROR_CAUSE_BITS) - 1))


MAGIC = 0x4D4F4F4C
ISA_VERSION = 6

TABLE_ENTRIES = 256
"""Bytes of a table: one for each value of a byte."""


def weight_stride(config: AcceleratorConfig) -> int:
    """Host bus bytes from one weight word to the next."""
    return 1 << (config.weight_word_bytes - 1).bit_length()


def weight_word_columns(config: AcceleratorConfig) -> int:
    """32-bit words of one weight word."""
    return -(-config.weight_word_bytes // 4)


def granule_columns(config: AcceleratorConfig) -> int:
    """32-bit words of one granule (a granule below 4 bytes takes one)."""
    return -(-config.granule // 4)
