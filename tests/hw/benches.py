"""What the tests of blocks have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from amaranth.hdl import Elaboratable
from amaranth.sim import Simulator

__all__ = ["simulate"]


def simulate(dut: Elaboratable, *benches: Callable, background: Sequence[Callable] = ()) -> None:
    """Run a block until its benches have ended; those in the background do not keep it."""
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    for bench in benches:
        sim.add_testbench(bench)
    for bench in background:
        sim.add_testbench(bench, background=True)
    sim.run()
