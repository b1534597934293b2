"""The parameters of one accelerator: what RTL, compiler, golden model and driver agree on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError

__all__ = ["AcceleratorConfig"]

PARAMETER_BYTES = 9
"""Bytes of requantization parameters of one output channel (bias, multiplier, shift): see `isa.PARAMETER`."""


FIELD_BITS = range(10, 17)
"""What `field_bits` may be."""

PRODUCT_REGISTER_TAPS = range(9, 19)
"""Lanes that may have `product_registers`: with deeper adder trees, or parameters of several words, a set of parameters
would have to wait longer for its results than until the next one comes."""


MOST_TABLES = 8
"""Tables at most: as many as a block RAM of 2,048 bytes holds."""

_LATER: dict[str, int] = {
    "overlap": True,
    "field_bits": 16,
    "layer_counters": True,
    "row_triples": False,
    "compact": False,
    "product_registers": False,
    "elementwise_mul": False,
    "tables": 0,
    "partial_sums": False,
}
"""Options that came after the first bitstreams, with their defaults."""


_COMPACT: dict[str, int] = {
    "lanes": 4,
    "pixels": 1,
    "requant_units": 1,
    "depthwise": True,
    "max_pool": False,
    "elementwise_add": False,
    "overlap": False,
    "layer_counters": False,
    "row_triples": False,
    "product_registers": False,
    "elementwise_mul": False,
    "tables": 0,
    "partial_sums": False,
}
"""What the compact engine is made for: a granule is then two bytes, the word of a single-port RAM block."""


def _is_power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


@dataclass(frozen=True, kw_only=True)
class AcceleratorConfig:
    """Shape of the engine.

    Raises
    ------
    ConfigError
        If the values do not describe an engine that can be elaborated; the message gives the rule.
    """

    lanes: int = 16
    """Output channels (or depthwise channels) computed side by side; a power of two, 4 to 64."""
    taps: int = 9
    """Multipliers of each lane: bytes of the input window consumed in one cycle."""
    pixels: int = 1
    """Output pixels (neighbours in a column) that a convolution computes side by side with the same weights; 1 or 2."""
    requant_units: int = 16
    """Requantization units; divides `lanes`. Each takes one cycle for a narrow result, two for a wide one."""
    activation_bytes: int = 65536
    """Bytes of activation memory, over all row banks."""
    weight_words: int = 2048
    """Depth of the weight memory in words of `lanes * taps` bytes."""
    program_words: int = 1024
    """Depth of the program memory in 32-bit words."""
    depthwise: bool = True
    """Window operand: depthwise convolution, pooling and addition."""
    max_pool: bool = True
    """Running maximum beside the accumulator."""
    elementwise_add: bool = True
    """Addend queue behind the requantization units: residual addition."""
    overlap: bool = True
    """Descriptors and the requantization parameters of channel groups come in while results of those before are on
    their way. Without, one set of registers for each is enough, and every group and layer waits for the one before."""
    field_bits: int = 16
    """Bits of the sizes, steps and addresses of a descriptor, 10 to 16: what `isa.FIELDS` has 16 bits for."""
    layer_counters: bool = True
    """Cycles and waits of each layer are counted; without, the COUNTERS window reads zero."""
    row_triples: bool = False
    """A step of a convolution can take a third of its bytes from each of three rows: with 9 taps, a 3x3 kernel over
    any number of channels leaves no multiplier idle."""
    product_registers: bool = False
    """A register between each product and the adders: where multipliers are blocks that lie far from the logic. A layer
    takes a cycle more."""
    elementwise_mul: bool = False
    """Products of two tensors: two taps of each lane can have a byte of the window as their weight."""
    tables: int = 0
    """Tables of 256 bytes in which a layer's results can be looked up before they are written: 0, 1, 2, 4 or 8. Each
    requantization unit has a memory with all of them. Results that are looked up take three cycles more."""
    partial_sums: bool = False
    """A layer of one pixel (fully connected) can leave its sums to the next: weights of a channel group that exceed the
    weight memory come in pieces."""
    compact: bool = False
    """The compact engine: a step takes a cycle for each tap, from memories with one port. For 4 lanes, with every
    option left out."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            want: type = bool if field.type == "bool" else int
            if type(value) is not want:
                raise ConfigError(f"config: {field.name} must be {want.__name__}, not {value!r}")
        if not (_is_power_of_two(self.lanes) and 4 <= self.lanes <= 64):
            raise ConfigError(f"config: lanes must be a power of two from 4 to 64, not {self.lanes}")
        if not 3 <= self.taps <= self.granule + 1:
            raise ConfigError(
                f"config: taps must be 3 to lanes / 2 + 1 = {self.granule + 1} "
                f"(one unaligned read spans two granules), not {self.taps}"
            )
        if self.pixels not in (1, 2):
            raise ConfigError(f"config: pixels must be 1 or 2, not {self.pixels}")
        if self.requant_units < 1 or self.lanes % self.requant_units:
            raise ConfigError(f"config: requant_units must divide lanes ({self.lanes}), not {self.requant_units}")
        if not _is_power_of_two(self.activation_bytes) or not 2048 <= self.activation_bytes <= 1 << 20:
            raise ConfigError(
                f"config: activation_bytes must be a power of two from 2048 to 1048576, not {self.activation_bytes}"
            )
        if not 64 <= self.weight_words <= 65536:
            raise ConfigError(f"config: weight_words must be 64 to 65536, not {self.weight_words}")
        if not 32 <= self.program_words <= 16384:
            raise ConfigError(f"config: program_words must be 32 to 16384, not {self.program_words}")
        if self.field_bits not in FIELD_BITS:
            raise ConfigError(f"config: field_bits must be 10 to 16, not {self.field_bits}")
        if self.weight_words > 1 << self.field_bits:
            raise ConfigError(
                f"config: weight_words must be at most {1 << self.field_bits} with field_bits {self.field_bits}, "
                f"not {self.weight_words}"
            )
        if self.bank_granules > 1 << self.field_bits:
            most = self.row_banks * self.granule << self.field_bits
            raise ConfigError(
                f"config: activation_bytes must be at most {most} with field_bits {self.field_bits}, "
                f"not {self.activation_bytes}"
            )
        if self.row_triples and self.taps < 9:
            raise ConfigError(f"config: row_triples needs 9 taps or more, not {self.taps}")
        if self.product_registers and self.taps not in PRODUCT_REGISTER_TAPS:
            raise ConfigError(f"config: product_registers needs 9 to 18 taps, not {self.taps}")
        if self.tables and not (_is_power_of_two(self.tables) and self.tables <= MOST_TABLES):
            raise ConfigError(f"config: tables must be 0, 1, 2, 4 or {MOST_TABLES}, not {self.tables}")
        if (self.max_pool or self.elementwise_add or self.elementwise_mul) and not self.depthwise:
            raise ConfigError(
                "config: max_pool, elementwise_add and elementwise_mul need depthwise (they use the window operand)"
            )
        if self.compact:
            for name, needed in _COMPACT.items():
                value = getattr(self, name)
                if value != needed:
                    raise ConfigError(f"config: compact needs {name}={needed}, not {value}")

    # Derived values: never stored.
    @property
    def row_banks(self) -> int:
        """Banks of the activation memory; row y of a tensor lives in bank y mod `row_banks`."""
        return 4

    @property
    def granule(self) -> int:
        """Bytes of one activation memory word: the alignment of rows and pixels, half the lanes."""
        return self.lanes // 2

    @property
    def host_granules(self) -> int:
        """Granules of a 32-bit word of the host bus, at least 1: the alignment of tensors."""
        return -(-4 // self.granule)

    @property
    def bank_granules(self) -> int:
        """Granules in each row bank."""
        return self.activation_bytes // self.row_banks // self.granule

    @property
    def window_rows(self) -> int:
        """Rows of the depthwise window."""
        return 3

    @property
    def window_columns(self) -> int:
        """Columns of the depthwise window: 3 when a lane has the nine multipliers for 3x3, else 1."""
        return 3 if self.taps >= 9 else 1

    @property
    def newest_tap(self) -> int:
        """Tap of the first row in the newest column of the depthwise window, whose rows max pooling compares."""
        return (self.window_columns - 1) * self.window_rows

    @property
    def multipliers(self) -> int:
        """Multipliers of the array: products in one cycle."""
        return self.lanes if self.compact else self.lanes * self.taps * self.pixels

    @property
    def weight_word_bytes(self) -> int:
        """Bytes of a weight memory word."""
        return self.lanes * self.taps

    @property
    def weight_memory_lanes(self) -> int:
        """Lanes that share one memory and address register: few, for short nets, but without wasting memory bits."""
        return 1 if self.taps % 9 == 0 else 4

    @property
    def parameter_words(self) -> int:
        """Weight memory words that hold the requantization parameters of one group of `lanes` channels."""
        return -(-PARAMETER_BYTES // self.taps)

    @property
    def requant_slots(self) -> int:
        """Turns that the requantization units need for one result of every lane."""
        return self.lanes // self.requant_units

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AcceleratorConfig:
        """Inverse of `to_dict`; unknown keys are refused."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(f"config: unknown key {unknown[0]!r}; known keys: {', '.join(sorted(known))}")
        return cls(**values)

    @property
    def hash(self) -> int:
        """32-bit identity of the configuration, in the bitstream, the program and the report."""
        # Later options count where they are used: what has none of them keeps its identity.
        values = {name: value for name, value in self.to_dict().items() if _LATER.get(name) != value}
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
