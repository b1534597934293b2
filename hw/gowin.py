"""Gowin GW2A primitives: DSP multipliers, block RAM, PLL.

Yosys has no simulation models of the DSP block and of block RAM; `tests/hw/test_gowin.py` checks the wrappers against
behavioural models.
"""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .technology import FanoutRegister, Multiplier, Ram

__all__ = [
    "PORT_WIDTHS",
    "BlockRam",
    "DspMultiplier",
    "FanoutFlipFlops",
    "GowinTechnology",
    "Pll",
    "PllSettings",
    "pll_settings",
]


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


PORT_WIDTHS = {512: 36, 1024: 18, 2048: 9, 4096: 4, 8192: 2, 16384: 1}
"""Data width of a block RAM by depth: the widest port that needs no multiplexer behind it."""


class BlockRam(Ram):
    """Semi-dual-port block RAM side by side, registers behind it.

    The block's own output register does not work on the GW2A-18C (apicula, chip flag NEED_BSRAM_OUTREG_FIX).
    """

    def __init__(self, *, width: int, depth: int) -> None:
        if depth > max(PORT_WIDTHS):
            raise ValueError(f"block RAM depth is at most {max(PORT_WIDTHS)} words, not {depth}")
        super().__init__(width=width, depth=depth)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        depth = min(d for d in PORT_WIDTHS if d >= self.depth)
        port = PORT_WIDTHS[depth]
        count = -(-self.width // port)
        words = Signal(count * port)
        for i in range(count):
            mine = slice(i * port, (i + 1) * port)
            w_data = Signal(port, name=f"w_data_{i}")
            m.d.comb += w_data.eq(self.w_data[mine])
            m.submodules[f"block_{i}"] = self._block(port, w_data, words[mine])
        r_data = Signal(self.width, reset_less=True)
        m.d.sync += r_data.eq(words)
        m.d.comb += self.r_data.eq(r_data)
        return m

    def _block(self, port: int, w_data: Signal, r_data) -> Instance:
        """One SDPB or, with parity bits as data, SDPX9B. Addresses count bits; those of wide ports begin with byte
        enables."""
        shift = {36: 5, 18: 4, 9: 3, 4: 2, 2: 1, 1: 0}[port]
        enables = {36: 4, 18: 2}.get(port, 0)
        pins = 36 if port % 9 == 0 else 32
        output = Signal(pins)
        # `r_data` is a slice of the words: the block drives it and leaves the upper pins open.
        w_address = Cat(Const((1 << enables) - 1, enables), Const(0, shift - enables), self.w_addr)
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
            i_CEA=self.w_en,
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


class FanoutFlipFlops(FanoutRegister):
    """Instances of the flip-flop cell: plain registers with equal inputs would be merged into one."""

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for i in range(self.count):
            for bit in range(self.width):
                q = Signal(name=f"copy_{i}_{bit}")
                m.submodules[f"register_{i}_{bit}"] = Instance("DFF", i_CLK=ClockSignal(), i_D=self.value[bit], o_Q=q)
                m.d.comb += self.copies[i][bit].eq(q)
        return m


class GowinTechnology:
    """Maker of GW2A primitives.

    Parameters
    ----------
    lut_multipliers
        How many of the small multipliers are made of LUTs; they are spread evenly over the lanes. Synthesis must not
        infer DSP blocks.
    small_multipliers
        Number of small multipliers that will be asked for.
    """

    distributed_ram = True

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
        kind = Multiplier if self._made * self._lut // self._total > before else DspMultiplier
        return kind(a_width=a_width, b_width=b_width)

    def ram(self, *, width: int, depth: int) -> BlockRam:
        """Block RAM."""
        return BlockRam(width=width, depth=depth)

    def fanout(self, *, width: int, count: int) -> FanoutFlipFlops:
        """Flip-flop cells."""
        return FanoutFlipFlops(width=width, count=count)


_OUTPUT_DIVIDERS = (2, 4, 8, 16, 32, 48, 64, 80, 96, 112, 128)


@dataclass(frozen=True)
class PllSettings:
    """Dividers of an rPLL: output = input / input_div * feedback_div."""

    input_div: int
    feedback_div: int
    output_div: int

    def output_hz(self, input_hz: float) -> float:
        """Frequency of CLKOUT."""
        return input_hz / self.input_div * self.feedback_div

    def vco_hz(self, input_hz: float) -> float:
        """Frequency of the oscillator."""
        return self.output_hz(input_hz) * self.output_div


def pll_settings(input_hz: float, output_hz: float) -> PllSettings:
    """Dividers for the wanted output, exact if possible, never above it.

    Limits of the speed grade C8/I7 from the GW2A data sheet (DS226): phase detector 3 to 500 MHz, oscillator 500 to
    1250 MHz.

    Raises
    ------
    ValueError
        If no setting comes within 2 % below the wanted frequency.
    """
    best: tuple[float, PllSettings] | None = None
    for input_div in range(1, 65):
        if not 3e6 <= input_hz / input_div <= 500e6:
            continue
        for feedback_div in range(1, 65):
            got = input_hz / input_div * feedback_div
            if got > output_hz * (1 + 1e-9) or got < output_hz * 0.98:
                continue
            for output_div in _OUTPUT_DIVIDERS:
                settings = PllSettings(input_div, feedback_div, output_div)
                if 500e6 <= settings.vco_hz(input_hz) <= 1250e6 and (best is None or output_hz - got < best[0]):
                    best = (output_hz - got, settings)
    if best is None:
        raise ValueError(f"no PLL setting makes {output_hz / 1e6:g} MHz from {input_hz / 1e6:g} MHz")
    return best[1]


class Pll(wiring.Component):
    """rPLL with one output.

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
