"""The engine as a Wishbone slave of a LiteX SoC (tried with LiteX 2024.12).

    soc.nnloom = Nnloom(soc.platform, "kws_rtl/rtl")
    soc.bus.add_slave("nnloom", soc.nnloom.bus, SoCRegion(origin=0x80000000, size=0x80000000, cached=False))

Addresses of `registers/nnloom.h` are relative to the region.
"""

from pathlib import Path

from litex.gen import LiteXModule
from litex.soc.interconnect import wishbone
from migen import Cat, ClockSignal, Constant, Instance, ResetSignal, Signal


class Nnloom(LiteXModule):
    """bus: Wishbone slave, words of 32 bits; busy: high while the engine runs a program."""

    def __init__(self, platform, rtl):
        self.bus = bus = wishbone.Interface(data_width=32, address_width=32, addressing="word")
        self.busy = Signal()
        self.specials += Instance(
            "nnloom_wishbone",
            i_clk=ClockSignal(),
            i_rst=ResetSignal(),
            i_wb_cyc=bus.cyc,
            i_wb_stb=bus.stb,
            i_wb_we=bus.we,
            i_wb_adr=Cat(bus.adr[:29], Constant(0)),
            i_wb_sel=bus.sel,
            i_wb_dat_w=bus.dat_w,
            o_wb_dat_r=bus.dat_r,
            o_wb_ack=bus.ack,
            o_wb_err=bus.err,
            o_busy=self.busy,
        )
        for name in ("nnloom_engine.v", "nnloom_wishbone.v"):
            platform.add_source(str(Path(rtl) / name))
