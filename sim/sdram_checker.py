"""What a data sheet forbids, as logic that watches a controller's pins: for proofs, and for fast simulators.

Times are rounded up to cycles here, independently of `nnloom.hw.sdram_timing`. `sim/sdram_model.py` has the same rules
as a program.
"""

from __future__ import annotations

import math

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from nnloom.hw.sdram_pins import PRECHARGE_ALL, SdramCommand
from nnloom.hw.sdram_timing import SdramChip

__all__ = ["RULES", "SdramChecker"]

RULES = (
    "power_up",
    "tRP",
    "tRCD",
    "tRAS",
    "tRC",
    "tRRD",
    "tRFC",
    "tWR",
    "tMRD",
    "open_twice",
    "closed_bank",
    "not_at_rest",
    "mode",
    "burst_cut",
    "bus",
    "undriven",
    "unknown",
)
"""Bits of `SdramChecker.violation`."""


class SdramChecker(wiring.Component):
    """Watches the pins of a chip that is used with one burst length and CAS latency; a reset is a power-up.

    Stricter than the data sheet in one thing: bursts may not be cut off.

    Members
    -------
    cs_n, ras_n, cas_n, we_n, ba, a, dq_oe : In; as in `SdramPins`
    violation : Out; a bit of each of `RULES`, in the cycle of the command that violates it
    open : Out; banks that are open after this cycle
    initialised : Out; the mode was loaded
    reading : Out; the chip drives the data pins in this cycle
    """

    def __init__(self, chip: SdramChip, clock_hz: float, *, burst: int, cas_latency: int) -> None:
        self.chip = chip
        self.clock_hz = clock_hz
        self.burst = burst
        self.cas_latency = cas_latency
        super().__init__(
            {
                "cs_n": In(1),
                "ras_n": In(1),
                "cas_n": In(1),
                "we_n": In(1),
                "ba": In((chip.banks - 1).bit_length()),
                "a": In(chip.address_bits),
                "dq_oe": In(1),
                "violation": Out(len(RULES)),
                "open": Out(chip.banks),
                "initialised": Out(1),
                "reading": Out(1),
            }
        )

    def _within(self, m: Module, name: str, event: Value, ns: float, *, cycles: int | None = None) -> Signal:
        """Whether an event was less than so long ago; not at the event itself."""
        count = math.ceil(ns * self.clock_hz / 1e9 - 1e-6) if cycles is None else cycles
        past = Signal(max(1, count - 1), name=name)
        if count > 1:
            m.d.sync += past.eq(Cat(event, past)[: count - 1])
        found = Signal(name=f"within_{name}")
        m.d.comb += found.eq(past.any())
        return found

    def elaborate(self, platform: object) -> Module:
        m = Module()
        chip, burst, latency = self.chip, self.burst, self.cas_latency
        code = Cat(self.we_n, self.cas_n, self.ras_n)
        does = {command: Signal(name=command.name.lower()) for command in SdramCommand}
        m.d.comb += [signal.eq(~self.cs_n & (code == command)) for command, signal in does.items()]
        activate, read, write = (does[c] for c in (SdramCommand.ACTIVE, SdramCommand.READ, SdramCommand.WRITE))
        precharge, refresh, mode = (
            does[c] for c in (SdramCommand.PRECHARGE, SdramCommand.REFRESH, SdramCommand.LOAD_MODE)
        )
        column, everything = read | write, self.a[PRECHARGE_ALL]
        any_command = activate | column | precharge | refresh | mode | does[SdramCommand.BURST_STOP]
        broken = {rule: Signal(name=f"rule_{rule}") for rule in RULES}
        m.d.comb += self.violation.eq(Cat(broken.values()))

        is_open, loaded = Signal(chip.banks), Signal()
        m.d.comb += self.initialised.eq(loaded | mode)
        m.d.sync += [is_open.eq(self.open), loaded.eq(self.initialised)]
        # Words of a WRITE after the first, and the cycles from a READ to its last word.
        writing, coming = Signal(max(1, burst - 1)), Signal(latency + burst)
        write_bank, read_bank = Signal.like(self.ba), Signal.like(self.ba)
        if burst > 1:
            m.d.sync += writing.eq(Mux(write, -1, writing >> 1))
        words = (1 << burst) - 1 << latency - 1
        m.d.sync += coming.eq((coming >> 1) | Mux(read, words, 0))
        before = Signal()
        m.d.sync += before.eq(self.reading)
        m.d.comb += self.reading.eq(coming[0])
        with m.If(write):
            m.d.sync += write_bank.eq(self.ba)
        with m.If(read):
            m.d.sync += read_bank.eq(self.ba)
        writes_word = write | writing[0] if burst > 1 else write
        # A burst that is under way: of a READ, the commands that would cut it.
        busy = self._within(m, "column", column, 0, cycles=burst)

        bank_faults: dict[str, list[Value]] = {rule: [] for rule in RULES}
        for bank in range(chip.banks):
            here = self.ba == bank
            opens, closes = activate & here, precharge & (here | everything) & is_open[bank]
            m.d.comb += self.open[bank].eq((is_open[bank] & ~closes) | opens)
            target = Mux(write, self.ba, write_bank) == bank
            recovering = self._within(m, f"wr_{bank}", writes_word & target, chip.t_wr)
            after_activate = {
                name: self._within(m, f"{name}_{bank}", opens, ns)
                for name, ns in (("tRCD", chip.t_rcd), ("tRAS", chip.t_ras), ("tRC", chip.t_rc))
            }
            after_precharge = self._within(m, f"rp_{bank}", closes, chip.t_rp)
            faults = {
                "tRCD": column & here & after_activate["tRCD"],
                "tRAS": closes & after_activate["tRAS"],
                "tRC": opens & after_activate["tRC"],
                "tRP": (opens | refresh | mode) & after_precharge,
                "tWR": closes & recovering,
                "open_twice": opens & is_open[bank],
                "closed_bank": column & here & ~is_open[bank],
                "not_at_rest": (refresh | mode) & is_open[bank],
                "burst_cut": closes & busy & (Mux(writing[0] if burst > 1 else 0, write_bank, read_bank) == bank),
            }
            for rule, fault in faults.items():
                bank_faults[rule].append(fault)
        value = (burst.bit_length() - 1) | latency << 4
        faults = {
            "power_up": activate & ~loaded,
            "tRRD": activate & self._within(m, "rrd", activate, chip.t_rrd),
            "tRFC": any_command & self._within(m, "rfc", refresh, chip.t_rfc),
            "tMRD": any_command & self._within(m, "mrd", mode, 0, cycles=chip.t_mrd_cycles),
            "mode": mode & ((self.a != value) | (self.ba != 0)),
            "burst_cut": column & busy,
            "bus": self.dq_oe & (coming[:2].any() | before),
            "undriven": self.dq_oe != writes_word,
            "unknown": does[SdramCommand.BURST_STOP] | (column & everything),
        }
        for rule, signal in broken.items():
            m.d.comb += signal.eq(Cat(*bank_faults[rule], *([faults[rule]] if rule in faults else [])).any())
        return m
