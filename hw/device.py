"""What device families have in common: how primitives are chosen, the shapes of block RAM, copied registers, PLLs."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from amaranth.hdl import Instance, Module, Signal, Value

from .technology import CompactParts, FanoutRegister, Multiplier, Ram

__all__ = [
    "BLOCK_SHAPES",
    "BlockShape",
    "DeviceTechnology",
    "FanoutCells",
    "PllLimits",
    "PllSettings",
    "block_shape",
]


@dataclass(frozen=True, kw_only=True)
class BlockShape:
    """A port of an 18 Kbit block RAM. ECP5 and Gowin count addresses in bits and have byte enables in the lowest."""

    depth: int
    width: int
    address_shift: int
    """a word's address has so many bits below it"""
    byte_enables: int = 0
    """of the bits below, those that enable a byte each"""


BLOCK_SHAPES = (
    BlockShape(depth=512, width=36, address_shift=5, byte_enables=4),
    BlockShape(depth=1024, width=18, address_shift=4, byte_enables=2),
    BlockShape(depth=2048, width=9, address_shift=3),
    BlockShape(depth=4096, width=4, address_shift=2),
    BlockShape(depth=8192, width=2, address_shift=1),
    BlockShape(depth=16384, width=1, address_shift=0),
)
"""The widest port of each depth: none needs a multiplexer behind it."""


def block_shape(depth: int) -> BlockShape:
    """The widest shape for a memory of `depth` words.

    Raises
    ------
    ValueError
        If the memory is deeper than a block.
    """
    for shape in BLOCK_SHAPES:
        if shape.depth >= depth:
            return shape
    raise ValueError(f"block RAM depth is at most {BLOCK_SHAPES[-1].depth} words, not {depth}")


class FanoutCells(FanoutRegister):
    """Instances of the flip-flop cell: plain registers with equal inputs would be merged into one."""

    @abstractmethod
    def cell(self, value: Value, output: Signal) -> Instance:
        """A flip-flop: output(t + 1) = value(t), one bit."""

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for i in range(self.count):
            for bit in range(self.width):
                q = Signal(name=f"copy_{i}_{bit}")
                m.submodules[f"register_{i}_{bit}"] = self.cell(self.value[bit], q)
                m.d.comb += self.copies[i][bit].eq(q)
        return m


class DeviceTechnology(CompactParts):
    """Maker of a family's primitives; a family says which.

    Parameters
    ----------
    lut_multipliers
        How many of the small multipliers are made of LUTs; they are spread evenly over the lanes.
    small_multipliers
        Number of small multipliers that will be asked for; without LUT multipliers it does not matter.
    """

    dsp: ClassVar[type[Multiplier]]
    logic: ClassVar[type[Multiplier]] = Multiplier
    """multiplier of LUTs, for operands of at most 8 bits"""
    block_ram: ClassVar[type[Ram]]
    registers: ClassVar[type[FanoutCells]]
    distributed_ram = True
    """Small memories are made of LUTs and can be read within a cycle."""
    pairs: bool = False
    """Two products with one factor in common take one DSP block."""

    def __init__(self, *, lut_multipliers: int = 0, small_multipliers: int = 1) -> None:
        self._lut = lut_multipliers
        self._total = small_multipliers
        self._made = 0

    def multiplier(self, *, a_width: int, b_width: int) -> Multiplier:
        """DSP for operands above 8 bits; for the others every n-th is made of LUTs."""
        if a_width > 8 or b_width > 8:
            return self.dsp(a_width=a_width, b_width=b_width)
        before = self._made * self._lut // self._total
        self._made += 1
        kind = self.logic if self._made * self._lut // self._total > before else self.dsp
        return kind(a_width=a_width, b_width=b_width)

    def ram(self, *, width: int, depth: int, lane: int | None = None) -> Ram:
        """Block RAM."""
        return self.block_ram(width=width, depth=depth, lane=lane)

    def fanout(self, *, width: int, count: int) -> FanoutCells:
        """Flip-flop cells."""
        return self.registers(width=width, count=count)


@dataclass(frozen=True)
class PllSettings:
    """Dividers of a PLL with feedback from its output: output = input / input_div * feedback_div."""

    input_div: int
    feedback_div: int
    output_div: int

    def output_hz(self, input_hz: float) -> float:
        """Frequency of the output."""
        return input_hz / self.input_div * self.feedback_div

    def vco_hz(self, input_hz: float) -> float:
        """Frequency of the oscillator."""
        return self.output_hz(input_hz) * self.output_div


@dataclass(frozen=True, kw_only=True)
class PllLimits:
    """What the data sheet of a family allows: dividers, and frequencies from and to, inclusive."""

    input_dividers: range
    feedback_dividers: range
    output_dividers: range | tuple[int, ...]
    detector_hz: tuple[float, float]
    oscillator_hz: tuple[float, float]

    def settings(self, input_hz: float, output_hz: float) -> PllSettings:
        """Dividers for the wanted output, exact if possible, never above it.

        Raises
        ------
        ValueError
            If no setting comes within 2 % below the wanted frequency.
        """
        best: tuple[float, PllSettings] | None = None
        for input_div in self.input_dividers:
            if not self.detector_hz[0] <= input_hz / input_div <= self.detector_hz[1]:
                continue
            for feedback_div in self.feedback_dividers:
                got = input_hz / input_div * feedback_div
                if got > output_hz * (1 + 1e-9) or got < output_hz * 0.98:
                    continue
                for output_div in self.output_dividers:
                    found = PllSettings(input_div, feedback_div, output_div)
                    allowed = self.oscillator_hz[0] <= found.vco_hz(input_hz) <= self.oscillator_hz[1]
                    if allowed and (best is None or output_hz - got < best[0]):
                        best = (output_hz - got, found)
        if best is None:
            raise ValueError(f"no PLL setting makes {output_hz / 1e6:g} MHz from {input_hz / 1e6:g} MHz")
        return best[1]
