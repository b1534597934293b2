"""Xilinx 7 series and UltraScale+: what synthesis is told so that it infers DSP blocks and block RAM.

Multipliers and memories stay portable Amaranth with attributes; only registers that must not be merged are cells.
"""

from __future__ import annotations

from typing import ClassVar

from amaranth.hdl import ClockSignal, Const, Instance, Signal, Value

from .device import DeviceTechnology, FanoutCells
from .technology import Multiplier, MultiplierPair, Ram

__all__ = ["BlockRam", "DspMultiplier", "DspMultiplierPair", "FanoutFlipFlops", "XilinxTechnology"]


class DspMultiplier(Multiplier):
    """As `Multiplier`, in a DSP block whatever the widths; the block has all its registers."""

    attributes: ClassVar[dict[str, str]] = {"use_dsp": "yes"}


class DspMultiplierPair(MultiplierPair):
    """As `MultiplierPair`, in one DSP block: 25 x 18 bits are the multiplier of a DSP48E1."""

    attributes: ClassVar[dict[str, str]] = {"use_dsp": "yes"}


class BlockRam(Ram):
    """As `Ram`, in block RAM whatever its size."""

    attributes: ClassVar[dict[str, str]] = {"ram_style": "block"}


class FanoutFlipFlops(FanoutCells):
    """FDRE cells."""

    def cell(self, value: Value, output: Signal) -> Instance:
        return Instance(
            "FDRE",
            a_DONT_TOUCH="yes",
            p_INIT=Const(0, 1),
            i_C=ClockSignal(),
            i_CE=Const(1),
            i_R=Const(0),
            i_D=value,
            o_Q=output,
        )


class XilinxTechnology(DeviceTechnology):
    """Maker of what Yosys and Vivado turn into DSP48E1 or DSP48E2 and RAMB36E1 or RAMB36E2."""

    dsp = DspMultiplier
    block_ram = BlockRam
    registers = FanoutFlipFlops
    pairs = True

    def multiplier_pair(self) -> DspMultiplierPair:
        return DspMultiplierPair()
