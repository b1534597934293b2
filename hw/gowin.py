"""Gowin GW2A primitives: DSP multipliers, block RAM, PLL.

Yosys has no simulation models of the DSP block and of block RAM; `tests/hw/test_gowin.py` checks the wrappers against
behavioural models.
"""

from __future__ import annotations

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .device import BlockShape, DeviceTechnology, FanoutCells, PllLimits, PllSettings, block_shape
from .technology import Multiplier, Ram

__all__ = ["PLL_LIMITS", "BlockRam", "DspMultiplier", "FanoutFlipFlops", "GowinTechnology", "Pll"]


class DspMultiplier(Multiplier):
    """MULT9X9, or MULT18X18 for more than 9 bits, with its input, pipeline and output registers."""

    def elaborate(self, platform: object) -> Module:
        m = Module()
        width = 9 if max(self.a_width, self.b_width) <= 9 else 18
        a, b, p = Signal(signed(width)), Signal(signed(width)), Signal(signed(2 * width))
        m.d.comb += [a.eq(self.a), b.eq(self.b), self.p.eq(p)]
        m.submodules.dsp = Instance(
            f"MULT{width}X{width}",
            p_AREG=Const(1, 1),
            p_BREG=Const(1, 1),
            p_ASIGN_REG=Const(0, 1),
            p_BSIGN_REG=Const(0, 1),
            p_PIPE_REG=Const(1, 1),
            p_OUT_REG=Const(1, 1),
            p_SOA_REG=Const(0, 1),
            p_MULT_RESET_MODE="SYNC",
            i_CLK=ClockSignal(),
            i_CE=Const(1),
            i_RESET=Const(0),
            i_ASIGN=Const(1),
            i_BSIGN=Const(1),
            i_ASEL=Const(0),
            i_BSEL=Const(0),
            i_A=a,
            i_B=b,
            o_DOUT=p,
        )
        return m


class BlockRam(Ram):
    """Semi-dual-port block RAM side by side, registers behind it.

    The block's own output register does not work on the GW2A-18C (apicula, chip flag NEED_BSRAM_OUTREG_FIX).
    """

    def __init__(self, *, width: int, depth: int, lane: int | None = None) -> None:
        self._shape = block_shape(depth)
        super().__init__(width=width, depth=depth, lane=lane)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        port = self._shape.width
        count = -(-self.width // port)
        words = Signal(count * port)
        for i in range(count):
            mine = slice(i * port, (i + 1) * port)
            w_data = Signal(port, name=f"w_data_{i}")
            m.d.comb += w_data.eq(self.w_data[mine])
            m.submodules[f"block_{i}"] = self._block(self._shape, self._enables(mine), w_data, words[mine])
        r_data = Signal(self.width, reset_less=True)
        m.d.sync += r_data.eq(words)
        m.d.comb += self.r_data.eq(r_data)
        return m

    def _enables(self, bits: slice) -> Value:
        """Of the lanes that a block has."""
        if self.lane is None:
            return self.w_en
        return self.w_en[bits.start // self.lane : -(-min(bits.stop, self.width) // self.lane)]

    def _block(self, shape: BlockShape, w_en: Value, w_data: Signal, r_data: Value) -> Instance:
        """One SDPB or, with parity bits as data, SDPX9B."""
        port, shift, enables = shape.width, shape.address_shift, shape.byte_enables
        pins = 36 if port % 9 == 0 else 32
        output = Signal(pins)
        # `r_data` is a slice of the words: the block drives it and leaves the upper pins open.
        # Without lanes the clock alone is the enable.
        bytes_ = Const((1 << enables) - 1, enables) if self.lane is None else Cat(w_en if enables else ())
        w_address = Cat(bytes_, Const(0, shift - len(bytes_)), self.w_addr)
        r_address = Cat(Const(0, shift), self.r_addr)
        return Instance(
            "SDPX9B" if pins == 36 else "SDPB",
            p_READ_MODE=Const(0, 1),
            p_BIT_WIDTH_0=port,
            p_BIT_WIDTH_1=port,
            p_BLK_SEL_0=Const(0, 3),
            p_BLK_SEL_1=Const(0, 3),
            p_RESET_MODE="SYNC",
            i_CLKA=ClockSignal(),
            i_CLKB=ClockSignal(),
            # The blocks have no write enable: a clock is a write.
            i_CEA=w_en if self.lane is None else w_en.any(),
            i_CEB=Const(1),
            i_OCE=Const(1),
            i_RESETA=Const(0),
            i_RESETB=Const(0),
            i_BLKSELA=Const(0, 3),
            i_BLKSELB=Const(0, 3),
            i_ADA=Cat(w_address, Const(0, 14 - len(w_address))),
            i_ADB=Cat(r_address, Const(0, 14 - len(r_address))),
            i_DI=Cat(w_data, Const(0, pins - port)),
            o_DO=Cat(r_data, output[port:]),
        )


class FanoutFlipFlops(FanoutCells):
    """DFF cells."""

    def cell(self, value: Value, output: Signal) -> Instance:
        return Instance("DFF", i_CLK=ClockSignal(), i_D=value, o_Q=output)


class GowinTechnology(DeviceTechnology):
    """Maker of GW2A primitives. Multipliers of LUTs are plain logic: synthesis must not infer DSP blocks."""

    dsp = DspMultiplier
    block_ram = BlockRam
    registers = FanoutFlipFlops


PLL_LIMITS = PllLimits(
    input_dividers=range(1, 65),
    feedback_dividers=range(1, 65),
    output_dividers=(2, 4, 8, 16, 32, 48, 64, 80, 96, 112, 128),
    detector_hz=(3e6, 500e6),
    oscillator_hz=(500e6, 1250e6),
)
"""GW2A data sheet (DS226), speed grade C8/I7."""


class Pll(wiring.Component):
    """rPLL with one output, CLKOUT.

    Parameters
    ----------
    device
        As the primitive names it, e.g. "GW2AR-18C".

    Members
    -------
    clk_in : In; clk_out : Out; locked : Out
    """

    def __init__(self, *, input_hz: float, settings: PllSettings, device: str) -> None:
        self.input_hz = input_hz
        self.settings = settings
        self.device = device
        super().__init__({"clk_in": In(1), "clk_out": Out(1), "locked": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.pll = Instance(
            "rPLL",
            p_FCLKIN=f"{self.input_hz / 1e6:g}",
            p_DEVICE=self.device,
            p_IDIV_SEL=self.settings.input_div - 1,
            p_FBDIV_SEL=self.settings.feedback_div - 1,
            p_ODIV_SEL=self.settings.output_div,
            p_DYN_IDIV_SEL="false",
            p_DYN_FBDIV_SEL="false",
            p_DYN_ODIV_SEL="false",
            p_CLKFB_SEL="internal",
            i_CLKIN=self.clk_in,
            i_CLKFB=Const(0),
            i_RESET=Const(0),
            i_RESET_P=Const(0),
            i_FBDSEL=Const(0, 6),
            i_IDSEL=Const(0, 6),
            i_ODSEL=Const(0, 6),
            i_PSDA=Const(0, 4),
            i_DUTYDA=Const(0, 4),
            i_FDLY=Const(0, 4),
            o_CLKOUT=self.clk_out,
            o_LOCK=self.locked,
        )
        return m
