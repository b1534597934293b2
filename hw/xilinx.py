"""Xilinx 7 series and UltraScale+: what synthesis is told so that it infers DSP blocks and block RAM.

Multipliers and memories stay portable Amaranth with attributes; only registers that must not be merged are cells.
"""

from __future__ import annotations

from amaranth.hdl import ClockSignal, Const, Instance, Module, Signal, signed, unsigned
from amaranth.lib import memory

from .technology import FanoutRegister, Multiplier, Ram

__all__ = ["BlockRam", "DspMultiplier", "FanoutFlipFlops", "XilinxTechnology"]


class DspMultiplier(Multiplier):
    """As `Multiplier`, in a DSP block whatever the widths; the block has all its registers."""

    def elaborate(self, platform: object) -> Module:
        m = Module()
        a = Signal(signed(self.a_width), reset_less=True)
        b = Signal(signed(self.b_width), reset_less=True)
        product = Signal(signed(self.a_width + self.b_width), reset_less=True, attrs={"use_dsp": "yes"})
        p = Signal.like(product)
        m.d.sync += [a.eq(self.a), b.eq(self.b), product.eq(a * b), p.eq(product)]
        m.d.comb += self.p.eq(p)
        return m


class BlockRam(Ram):
    """As `Ram`, in block RAM whatever its size."""

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.storage = storage = memory.Memory(
            shape=unsigned(self.width), depth=self.depth, init=[], attrs={"ram_style": "block"}
        )
        write, read = storage.write_port(), storage.read_port(domain="sync")
        r_data = Signal(self.width, reset_less=True)
        m.d.comb += [
            write.en.eq(self.w_en),
            write.addr.eq(self.w_addr),
            write.data.eq(self.w_data),
            read.addr.eq(self.r_addr),
            self.r_data.eq(r_data),
        ]
        m.d.sync += r_data.eq(read.data)
        return m


class FanoutFlipFlops(FanoutRegister):
    """FDRE cells: plain registers with equal inputs would be merged into one."""

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for i in range(self.count):
            for bit in range(self.width):
                q = Signal(name=f"copy_{i}_{bit}")
                m.submodules[f"register_{i}_{bit}"] = Instance(
                    "FDRE",
                    a_DONT_TOUCH="yes",
                    p_INIT=Const(0, 1),
                    i_C=ClockSignal(),
                    i_CE=Const(1),
                    i_R=Const(0),
                    i_D=self.value[bit],
                    o_Q=q,
                )
                m.d.comb += self.copies[i][bit].eq(q)
        return m


class XilinxTechnology:
    """Maker of what Yosys and Vivado turn into DSP48E1 or DSP48E2 and RAMB36E1 or RAMB36E2."""

    distributed_ram = True

    def multiplier(self, *, a_width: int, b_width: int) -> DspMultiplier:
        """DSP block."""
        return DspMultiplier(a_width=a_width, b_width=b_width)

    def ram(self, *, width: int, depth: int) -> BlockRam:
        """Block RAM."""
        return BlockRam(width=width, depth=depth)

    def fanout(self, *, width: int, count: int) -> FanoutFlipFlops:
        """Flip-flop cells."""
        return FanoutFlipFlops(width=width, count=count)
