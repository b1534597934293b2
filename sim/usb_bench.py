"""A system with a USB device, and the two lines between it and a host that a test bench plays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from amaranth.hdl import Cat, Module, Mux
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch.config import AcceleratorConfig
from nnloom.hw.emit import emit_verilog
from nnloom.hw.usb_serial import UsbSystem

from .build import build_simulator, build_verilator, verilator_root

__all__ = ["TOPLEVEL", "UsbBench", "build_usb_bench"]

TOPLEVEL = "usb_bench"
PUBLIC = ("clk", "rst", "usb_clk", "usb_rst", "usb_io_clk", "usb_io_rst", "host", "line", "contention", "busy")


class UsbBench(wiring.Component):
    """`UsbSystem` at a cable; its clock domains are those of the system: sync, usb and usb_io.

    Members
    -------
    host : In(3); D+, D-, and whether the host drives them
    line : Out(2); D+, D-: what the host drives, or the device, or its pull-up against the host's pull-downs
    contention : Out; both drive
    busy : Out; a program runs
    """

    def __init__(self, config: AcceleratorConfig, *, clock_hz: float) -> None:
        self.system = UsbSystem(config, clock_hz=clock_hz)
        super().__init__({"host": In(3), "line": Out(2), "contention": Out(1), "busy": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.system = system = self.system
        pads = system.pads
        rest = Mux(pads.oe, Cat(pads.dp_o, pads.dn_o), Cat(pads.pullup, 0))
        m.d.comb += [
            self.line.eq(Mux(self.host[2], self.host[:2], rest)),
            Cat(pads.dp_i, pads.dn_i).eq(self.line),
            self.contention.eq(pads.oe & self.host[2]),
            self.busy.eq(system.busy),
        ]
        return m


def build_usb_bench(
    config: AcceleratorConfig, *, clock_hz: float = 100e6, progress: Callable[[str], None] | None = None
) -> Path:
    """Program of a `UsbBench` in Verilator for cocotb to drive, built once: later calls find it in the user's cache.

    clock_hz: what the system believes its clock to be.

    Raises
    ------
    ToolMissingError, BuildError
    """
    verilator_root()

    def build(folder: Path) -> None:
        (progress or (lambda _: None))("building the system with its USB device in Verilator")
        (folder / "bench.v").write_text(emit_verilog(UsbBench(config, clock_hz=clock_hz), TOPLEVEL))
        build_verilator(folder, toplevel=TOPLEVEL, sources=["bench.v"], public=PUBLIC)

    return build_simulator("usb", __file__, [str(config.hash), str(clock_hz)], build) / TOPLEVEL
