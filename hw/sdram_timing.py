"""SDR SDRAM chips: their parameters in nanoseconds, and what those are in cycles of a clock.

The values are of the data sheets that the chips' docstrings name, of the slowest grade that the boards carry.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

__all__ = [
    "AS4C16M16",
    "AS4C32M16",
    "GW2AR_18",
    "INITIAL_REFRESHES",
    "IS42S16160",
    "SDRAM_CHIPS",
    "ULX3S_SDRAM",
    "SdramChip",
    "SdramTiming",
]

REFRESHES_OWED = 8
"""Most refreshes that are postponed, as JEDEC allows for SDRAM's successors; SDR data sheets only give the period."""
INITIAL_REFRESHES = 8
"""AUTO REFRESH commands that a chip wants after power-up, before it is used."""
REFRESH_SLACK = 48
"""Refreshes more than a period needs: so the last of those postponed still comes within it."""


@dataclass(frozen=True)
class SdramChip:
    """A chip, or several beside each other that share all but the data pins.

    Times are in nanoseconds and minima unless said otherwise.
    """

    name: str
    data_bits: int
    """a multiple of 8; one DQM pin a byte"""
    rows: int
    columns: int
    t_rp: float
    """PRECHARGE to ACTIVE of the bank"""
    t_rcd: float
    """ACTIVE to READ or WRITE of the bank"""
    t_ras: float
    """ACTIVE to PRECHARGE of the bank"""
    t_rc: float
    """ACTIVE to ACTIVE of the bank"""
    t_rfc: float
    """AUTO REFRESH to any command"""
    t_wr: float
    """last data word of a WRITE to PRECHARGE of the bank; data sheets: tWR or tDPL"""
    t_rrd: float
    """ACTIVE to ACTIVE of another bank"""
    t_ras_max: float
    """longest time that a row is open"""
    cas_latencies: tuple[tuple[int, float], ...]
    """(CAS latency, highest clock in Hz at which it may be used), the lowest latency first"""
    refresh_commands: int
    """AUTO REFRESH commands that refresh every row once"""
    refresh_ms: float
    """longest time between two refreshes of a row"""
    power_up_us: float
    """stable clock before the first command"""
    t_ac: float = 5.4
    """longest time from clock to data out"""
    t_oh: float = 2.5
    """shortest time that data out stays after the next clock"""
    t_setup: float = 1.5
    """command, address and data in before the clock"""
    t_hold: float = 0.8
    """command, address and data in after the clock"""
    t_mrd_cycles: int = 2
    """LOAD MODE REGISTER to any command; cycles"""
    banks: int = 4

    @property
    def size(self) -> int:
        """Bytes."""
        return self.banks * self.rows * self.columns * self.data_bits // 8

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of one bank."""
        return self.columns * self.data_bits // 8

    @property
    def address_bits(self) -> int:
        """Address pins: for rows, and A10 for PRECHARGE ALL."""
        return max(11, (self.rows - 1).bit_length(), (self.columns - 1).bit_length())

    def peak_bytes_per_second(self, clock_hz: float) -> float:
        """With a word in every cycle."""
        return clock_hz * self.data_bits / 8


IS42S16160 = SdramChip(
    name="IS42S16160",
    data_bits=16,
    rows=8192,
    columns=512,
    t_rp=20,
    t_rcd=20,
    t_ras=45,
    t_rc=67.5,
    t_rfc=70,
    t_wr=14,
    t_rrd=14,
    t_ras_max=100_000,
    cas_latencies=((2, 100e6), (3, 143e6)),
    refresh_commands=8192,
    refresh_ms=64,
    power_up_us=200,
    t_oh=2.7,
)
"""ISSI IS42S16160, 4M x 16 x 4 banks (32 MB), grade -7: the slower of revisions D and G."""

AS4C16M16 = SdramChip(
    name="AS4C16M16",
    data_bits=16,
    rows=8192,
    columns=512,
    t_rp=21,
    t_rcd=21,
    t_ras=42,
    t_rc=63,
    t_rfc=63,
    t_wr=14,
    t_rrd=14,
    t_ras_max=100_000,
    cas_latencies=((2, 100e6), (3, 143e6)),
    refresh_commands=8192,
    refresh_ms=64,
    power_up_us=200,
)
"""Alliance AS4C16M16SA, 4M x 16 x 4 banks (32 MB), grade -7."""

AS4C32M16 = dataclasses.replace(AS4C16M16, name="AS4C32M16", columns=1024)
"""Alliance AS4C32M16SB, 8M x 16 x 4 banks (64 MB), grade -7: the 32 MB chip with twice the columns."""

ULX3S_SDRAM = dataclasses.replace(
    IS42S16160,
    name="ULX3S",
    t_rp=21,
    t_rcd=21,
    t_oh=2.5,
)
"""What every ULX3S can do: of IS42S16160, AS4C16M16 and AS4C32M16 the slowest times and the smallest size (32 MB)."""

GW2AR_18 = SdramChip(
    name="GW2AR-18",
    data_bits=32,
    rows=2048,
    columns=256,
    t_rp=20,
    t_rcd=20,
    t_ras=45,
    t_rc=67.5,
    t_rfc=67.5,
    t_wr=15,
    t_rrd=15,
    t_ras_max=100_000,
    cas_latencies=((2, 100e6), (3, 143e6)),
    refresh_commands=4096,
    refresh_ms=64,
    power_up_us=200,
)
"""The SDRAM die in Gowin's GW2AR-18, 512K x 32 x 4 banks (8 MB).

Gowin names no manufacturer; geometry and refresh are those of Gowin's SDRAM controller guide (IPUG279), the times those
of the slowest 64 Mbit x 32 chips of grade -7 (W9864G2, EM638325).
"""

SDRAM_CHIPS = {chip.name: chip for chip in (IS42S16160, AS4C16M16, AS4C32M16, ULX3S_SDRAM, GW2AR_18)}


def _cycles(ns: float, clock_hz: float) -> int:
    """Fewest cycles that are not shorter than a time; at least 1."""
    return max(1, math.ceil(ns * 1e-9 * clock_hz - 1e-6))


@dataclass(frozen=True)
class SdramTiming:
    """A chip's parameters as cycles of one clock; see `SdramChip`.

    `ras` is long enough that `ras` + `rp` is never less than tRC.
    """

    cas_latency: int
    rp: int
    rcd: int
    ras: int
    rfc: int
    wr: int
    rrd: int
    mrd: int
    refresh_interval: int
    """between two AUTO REFRESH commands on average"""
    refreshes_owed: int
    """that may be postponed: before the next ones no row is open for tRAS(max)"""
    power_up_intervals: int
    """refresh intervals that the wait after power-up takes; their refreshes are made up for as well"""

    @classmethod
    def of(cls, chip: SdramChip, clock_hz: float) -> SdramTiming:
        """The shortest times that the chip allows at a clock.

        Raises
        ------
        ValueError
            If the clock is too fast for the chip, or too slow to refresh it.
        """
        allowed = [latency for latency, most in chip.cas_latencies if clock_hz <= most]
        if not allowed:
            most = max(most for _, most in chip.cas_latencies)
            raise ValueError(f"{chip.name} runs at {most / 1e6:g} MHz at most, not at {clock_hz / 1e6:g} MHz")

        def cycles(ns: float) -> int:
            return _cycles(ns, clock_hz)

        rp, rfc = cycles(chip.t_rp), cycles(chip.t_rfc)
        interval = math.floor(chip.refresh_ms * 1e-3 * clock_hz / (chip.refresh_commands + REFRESH_SLACK))
        if interval < 8 * rfc:
            raise ValueError(f"{clock_hz / 1e6:g} MHz is too slow: {chip.name} would do little but refresh")
        # One more falls due before a segment has ended and all rows are closed.
        owed = min(REFRESHES_OWED, math.floor(chip.t_ras_max * 1e-9 * clock_hz / interval) - 1)
        if owed < 1:
            raise ValueError(f"{chip.name}: a row may be open no longer than a refresh interval; nothing could wait")
        return cls(
            cas_latency=min(allowed),
            rp=rp,
            rcd=cycles(max(chip.t_rcd, chip.t_rrd)),
            ras=max(cycles(chip.t_ras), cycles(chip.t_rc) - rp),
            rfc=rfc,
            # Data sheets of some grades ask for two clocks, whatever their period.
            wr=max(2, cycles(chip.t_wr)),
            rrd=cycles(chip.t_rrd),
            mrd=chip.t_mrd_cycles,
            refresh_interval=interval,
            refreshes_owed=owed,
            power_up_intervals=math.ceil(chip.power_up_us * 1e-6 * clock_hz / interval) + 1,
        )
