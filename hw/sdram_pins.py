"""The pins of an SDR SDRAM."""

from __future__ import annotations

import enum

from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .sdram_timing import SdramChip

__all__ = ["PRECHARGE_ALL", "SdramCommand", "SdramPins"]

PRECHARGE_ALL = 10
"""The address pin that makes PRECHARGE close all banks; with READ and WRITE: close the row after it."""


class SdramCommand(enum.IntEnum):
    """RAS#, CAS#, WE# as a number (RAS# is bit 2) while CS# is low."""

    LOAD_MODE = 0b000
    REFRESH = 0b001
    PRECHARGE = 0b010
    ACTIVE = 0b011
    WRITE = 0b100
    READ = 0b101
    BURST_STOP = 0b110
    NOP = 0b111


class SdramPins(wiring.Signature):
    """A chip's pins as its controller sees them, all sampled by the chip at the clock's rising edge.

    The data bus is three signals; what drives the pins (`hw.ecp5`, a model) makes one of them.

    Members
    -------
    cke, cs_n, ras_n, cas_n, we_n : Out(1)
    ba : Out(bank bits)
    a : Out(`SdramChip.address_bits`)
    dqm : Out(data bits / 8)
    dq_o : Out(data bits)
    dq_oe : Out(1); the controller drives the data bus
    dq_i : In(data bits)
    """

    def __init__(self, chip: SdramChip) -> None:
        self.chip = chip
        super().__init__(
            {
                "cke": Out(1, init=1),
                "cs_n": Out(1),
                "ras_n": Out(1, init=1),
                "cas_n": Out(1, init=1),
                "we_n": Out(1, init=1),
                "ba": Out((chip.banks - 1).bit_length()),
                "a": Out(chip.address_bits),
                "dqm": Out(chip.data_bits // 8, init=(1 << chip.data_bits // 8) - 1),
                "dq_o": Out(chip.data_bits),
                "dq_oe": Out(1),
                "dq_i": In(chip.data_bits),
            }
        )
