"""Lattice ECP5 primitives: DSP multipliers, LUT multipliers, block RAM, PLL.

Everything that names a vendor cell is here. Yosys has no simulation model of the DSP block; `tests/hw/
test_ecp5.py` checks the wrappers against behavioural models.
"""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .technology import Multiplier, Ram

__all__ = ["BlockRam", "DspMultiplier", "Ecp5Technology", "LutMultiplier", "Pll", "PllSettings", "pll_settings"]


class DspMultiplier(Multiplier):
    """MULT18X18D with its input, pipeline and output registers."""

    def elaborate(self, platform: object) -> Module:
        m = Module()
        a, b, p = Signal(signed(18)), Signal(signed(18)), Signal(signed(36))
        m.d.comb += [a.eq(self.a), b.eq(self.b), self.p.eq(p)]
        ports = {f"i_A{i}": a[i] for i in range(18)}
        ports |= {f"i_B{i}": b[i] for i in range(18)}
        ports |= {f"o_P{i}": p[i] for i in range(36)}
        # Pins that no mode uses stay open: each tied one would be another net to route.
        ports |= {"i_CLK0": ClockSignal(), "i_CE0": Const(1), "i_RST0": Const(0)}
        registers = {}
        for name in ("INPUTA", "INPUTB", "PIPELINE", "OUTPUT"):
            registers |= {f"p_REG_{name}_CLK": "CLK0", f"p_REG_{name}_CE": "CE0", f"p_REG_{name}_RST": "RST0"}
        m.submodules.dsp = Instance(
            "MULT18X18D",
            **registers,
            p_REG_INPUTC_CLK="NONE",
            p_GSR="DISABLED",
            p_SOURCEB_MODE="B_SHIFT",
            p_MULT_BYPASS="DISABLED",
            p_RESETMODE="SYNC",
            i_SIGNEDA=Const(1),
            i_SIGNEDB=Const(1),
            i_SOURCEA=Const(0),
            i_SOURCEB=Const(0),
            **ports,
        )
        return m


class LutMultiplier(Multiplier):
    """Radix-4 Booth multiplier in logic, for small operands when DSP blocks run out; the same latency.

    Registers: operands; the sums of pairs of partial products; the product. At most 8 bits of `b`.
    """

    def __init__(self, *, a_width: int, b_width: int) -> None:
        if b_width > 8:
            raise ValueError(f"LUT multiplier takes at most 8 bits of b, not {b_width}")
        super().__init__(a_width=a_width, b_width=b_width)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        a = Signal(signed(self.a_width), reset_less=True)
        b = Signal(signed(8), reset_less=True)
        m.d.sync += [a.eq(self.a), b.eq(self.b)]
        width = self.a_width + 1
        digits = Cat(Const(0, 1), b)
        partial, negative = [], []
        for i in range(4):
            low, middle, high = digits[2 * i], digits[2 * i + 1], digits[2 * i + 2]
            one = low ^ middle
            two = (high & ~middle & ~low) | (~high & middle & low)
            magnitude = Mux(one, a, Mux(two, a << 1, 0))[:width].as_signed()
            # Minus x is its complement plus one; the ones are added with the low bits of other terms.
            partial.append((magnitude ^ high.replicate(width).as_signed()).as_signed())
            negative.append(high)
        low_sum = Signal(signed(width + 3), reset_less=True)
        high_sum = Signal(signed(width + 3), reset_less=True)
        carries = Signal(2, reset_less=True)
        m.d.sync += [
            low_sum.eq(partial[0] + Cat(negative[0], Const(0, 1), partial[1]).as_signed()),
            high_sum.eq(partial[2] + Cat(negative[2], Const(0, 1), partial[3]).as_signed()),
            carries.eq(Cat(negative[1], negative[3])),
        ]
        product = Signal.like(self.p, reset_less=True)
        upper = Cat(Const(0, 2), carries[0], Const(0, 1), high_sum).as_signed()
        m.d.sync += product.eq(low_sum + upper + Cat(Const(0, 6), carries[1]))
        m.d.comb += self.p.eq(product)
        return m


PORT_WIDTHS = {512: 36, 1024: 18, 2048: 9, 4096: 4, 8192: 2, 16384: 1}
"""Data width of a block RAM by depth: the widest port that needs no multiplexer behind it."""


class BlockRam(Ram):
    """DP16KD blocks side by side, port A writing, port B reading with the output register."""

    def __init__(self, *, width: int, depth: int) -> None:
        if depth > 16384:
            raise ValueError(f"block RAM depth is at most 16384 words, not {depth}")
        super().__init__(width=width, depth=depth)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        depth = min(d for d in PORT_WIDTHS if d >= self.depth)
        port = PORT_WIDTHS[depth]
        for index in range(-(-self.width // port)):
            part = slice(index * port, min((index + 1) * port, self.width))
            w_data, r_data = Signal(port, name=f"w_data_{index}"), Signal(port, name=f"r_data_{index}")
            m.d.comb += [w_data.eq(self.w_data[part]), self.r_data[part].eq(r_data)]
            m.submodules[f"block_{index}"] = self._block(port, w_data, r_data)
        return m

    def _block(self, port: int, w_data: Value, r_data: Value) -> Instance:
        # Addresses count bits of the narrowest port (in ninths): 2**shift of them make a word.
        shift = {36: 5, 18: 4, 9: 3, 4: 2, 2: 1, 1: 0}[port]
        byte_enables = {36: 4, 18: 2}.get(port, 0)
        w_address = Cat(self.w_en.replicate(byte_enables), Const(0, shift - byte_enables), self.w_addr)
        r_address = Cat(Const(0, shift), self.r_addr)
        ports = {}
        for i in range(14):
            ports[f"i_ADA{i}"] = w_address[i] if i < len(w_address) else Const(0)
            ports[f"i_ADB{i}"] = r_address[i] if i < len(r_address) else Const(0)
        # The 36-bit port borrows the other port's pins for its upper half.
        wide = port == 36
        for i in range(min(port, 18)):
            ports[f"i_DIA{i}"] = w_data[i]
            if wide:
                ports[f"i_DIB{i}"] = w_data[18 + i]
        outputs = {}
        unused = Signal(36)
        for i in range(18):
            if wide:
                outputs |= {f"o_DOA{i}": r_data[i], f"o_DOB{i}": r_data[18 + i]}
            else:
                outputs[f"o_DOB{i}"] = r_data[i] if i < port else unused[i]
        return Instance(
            "DP16KD",
            p_DATA_WIDTH_A=port,
            p_DATA_WIDTH_B=port,
            p_REGMODE_A="OUTREG" if wide else "NOREG",
            p_REGMODE_B="OUTREG",
            p_WRITEMODE_A="NORMAL",
            p_WRITEMODE_B="NORMAL",
            p_RESETMODE="SYNC",
            p_ASYNC_RESET_RELEASE="SYNC",
            p_CSDECODE_A="0b000",
            p_CSDECODE_B="0b000",
            p_GSR="DISABLED",
            p_CLKAMUX="CLKA",
            p_CLKBMUX="CLKB",
            i_CLKA=ClockSignal(),
            i_CLKB=ClockSignal(),
            i_CEA=Const(1),
            i_CEB=Const(1),
            i_OCEA=Const(1),
            i_OCEB=Const(1),
            i_WEA=Const(1) if wide else self.w_en,
            i_WEB=Const(0),
            i_RSTA=Const(0),
            i_RSTB=Const(0),
            **{f"i_CS{p}{i}": Const(0) for p in "AB" for i in range(3)},
            **ports,
            **outputs,
        )


class Ecp5Technology:
    """Maker of ECP5 primitives.

    Parameters
    ----------
    dsp_blocks
        DSP blocks (18 x 18 multipliers) that may be used.
    lut_multipliers
        How many of the small multipliers are made of LUTs; they are spread evenly over the lanes.
    small_multipliers
        Number of small multipliers that will be asked for.
    """

    def __init__(self, *, lut_multipliers: int, small_multipliers: int) -> None:
        self._lut = lut_multipliers
        self._total = small_multipliers
        self._made = 0

    def multiplier(self, *, a_width: int, b_width: int) -> Multiplier:
        """DSP for operands above 8 bits; for the others every n-th is made of LUTs."""
        if a_width > 8 or b_width > 8:
            return DspMultiplier(a_width=a_width, b_width=b_width)
        before = self._made * self._lut // self._total
        self._made += 1
        kind = LutMultiplier if self._made * self._lut // self._total > before else DspMultiplier
        return kind(a_width=a_width, b_width=b_width)

    def ram(self, *, width: int, depth: int) -> BlockRam:
        """Block RAM."""
        return BlockRam(width=width, depth=depth)


@dataclass(frozen=True)
class PllSettings:
    """Dividers of an EHXPLLL with feedback from CLKOP: output = input / input_div * feedback_div."""

    input_div: int
    feedback_div: int
    output_div: int

    def output_hz(self, input_hz: float) -> float:
        """Frequency of CLKOP."""
        return input_hz / self.input_div * self.feedback_div

    def vco_hz(self, input_hz: float) -> float:
        """Frequency of the oscillator."""
        return self.output_hz(input_hz) * self.output_div


def pll_settings(input_hz: float, output_hz: float) -> PllSettings:
    """Dividers for the wanted output, exact if possible, never above it.

    Limits from the ECP5 data sheet (FPGA-DS-02012): phase detector 3.125 to 400 MHz, oscillator 400 to 800 MHz.

    Raises
    ------
    ValueError
        If no setting comes within 2 % below the wanted frequency.
    """
    best: tuple[float, PllSettings] | None = None
    for input_div in range(1, 129):
        if not 3.125e6 <= input_hz / input_div <= 400e6:
            continue
        for feedback_div in range(1, 81):
            got = input_hz / input_div * feedback_div
            if got > output_hz * (1 + 1e-9) or got < output_hz * 0.98:
                continue
            for output_div in range(1, 129):
                settings = PllSettings(input_div, feedback_div, output_div)
                if 400e6 <= settings.vco_hz(input_hz) <= 800e6 and (best is None or output_hz - got < best[0]):
                    best = (output_hz - got, settings)
    if best is None:
        raise ValueError(f"no PLL setting makes {output_hz / 1e6:g} MHz from {input_hz / 1e6:g} MHz")
    return best[1]


class Pll(wiring.Component):
    """EHXPLLL with one output.

    Members
    -------
    clk_in : In; clk_out : Out; locked : Out
    """

    def __init__(self, *, input_hz: float, settings: PllSettings) -> None:
        self.input_hz = input_hz
        self.settings = settings
        super().__init__({"clk_in": In(1), "clk_out": Out(1), "locked": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        s = self.settings
        m.submodules.pll = Instance(
            "EHXPLLL",
            a_FREQUENCY_PIN_CLKI=f"{self.input_hz / 1e6:g}",
            a_FREQUENCY_PIN_CLKOP=f"{s.output_hz(self.input_hz) / 1e6:g}",
            a_ICP_CURRENT="12",
            a_LPF_RESISTOR="8",
            a_MFG_ENABLE_FILTEROPAMP="1",
            a_MFG_GMCREF_SEL="2",
            p_PLLRST_ENA="DISABLED",
            p_INTFB_WAKE="DISABLED",
            p_STDBY_ENABLE="DISABLED",
            p_DPHASE_SOURCE="DISABLED",
            p_OUTDIVIDER_MUXA="DIVA",
            p_CLKOP_ENABLE="ENABLED",
            p_CLKOP_DIV=s.output_div,
            p_CLKOP_CPHASE=s.output_div // 2,
            p_CLKOP_FPHASE=0,
            p_FEEDBK_PATH="CLKOP",
            p_CLKI_DIV=s.input_div,
            p_CLKFB_DIV=s.feedback_div,
            i_RST=Const(0),
            i_STDBY=Const(0),
            i_CLKI=self.clk_in,
            o_CLKOP=self.clk_out,
            i_CLKFB=self.clk_out,
            i_PHASESEL0=Const(0),
            i_PHASESEL1=Const(0),
            i_PHASEDIR=Const(1),
            i_PHASESTEP=Const(1),
            i_PHASELOADREG=Const(1),
            i_PLLWAKESYNC=Const(0),
            i_ENCLKOP=Const(0),
            o_LOCK=self.locked,
        )
        return m
