"""Lattice iCE40 UltraPlus primitives: DSP multipliers, block RAM, single-port RAM, PLL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .technology import CompactParts, FanoutRegister, Multiplier, MultiplyAccumulate, Product, Ram, SinglePortRam

__all__ = [
    "AccumulatorBlock",
    "BlockRam",
    "Ice40Technology",
    "LaneRam",
    "PairedMultiplier",
    "Pll",
    "PllSettings",
    "ProductBlock",
    "SinglePortBlocks",
    "WideMultiplier",
    "pll_settings",
]


def _mac16_cell(a: Value, b: Value, o: Signal, inputs: Mapping[str, Value], **parameters: Const) -> Instance:
    """SB_MAC16; what `inputs` and `parameters` do not name is zero."""
    unused = (
        *("AHOLD", "BHOLD", "CHOLD", "DHOLD", "IRSTTOP", "IRSTBOT", "ORSTTOP", "ORSTBOT", "OLOADTOP", "OLOADBOT"),
        *("ADDSUBTOP", "ADDSUBBOT", "OHOLDTOP", "OHOLDBOT", "CI", "ACCUMCI", "SIGNEXTIN"),
    )
    return Instance(
        "SB_MAC16",
        **{f"p_{name}": value for name, value in parameters.items()},
        i_CLK=ClockSignal(),
        i_CE=Const(1),
        i_A=a,
        i_B=b,
        i_C=Const(0, 16),
        i_D=Const(0, 16),
        **{f"i_{name}": inputs.get(name, Const(0, 1)) for name in unused},
        o_O=o,
    )


def _mac16(a: Signal, b: Signal, o: Signal, **parameters: Const) -> Instance:
    """SB_MAC16 with its input and pipeline registers, nothing accumulated."""
    registers = {name: Const(1, 1) for name in ("A_REG", "B_REG", "TOP_8x8_MULT_REG", "BOT_8x8_MULT_REG")}
    return _mac16_cell(a, b, o, {}, **registers, **parameters)


class PairedMultiplier(Multiplier):
    """Half of an SB_MAC16 as two 8 x 8 multipliers; the first of a pair has the block, the second uses it.

    Parameters
    ----------
    first
        The other half, or None.
    """

    def __init__(self, *, a_width: int, b_width: int, first: PairedMultiplier | None = None) -> None:
        if a_width > 8 or b_width > 8:
            raise ValueError(f"half a DSP block multiplies 8 bits, not {a_width} and {b_width}")
        super().__init__(a_width=a_width, b_width=b_width)
        self.first = first
        self._upper_a, self._upper_b, self._upper_p = Signal(signed(8)), Signal(signed(8)), Signal(signed(16))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        if self.first is not None:
            m.d.comb += [
                self.first._upper_a.eq(self.a),
                self.first._upper_b.eq(self.b),
                self.p.eq(self.first._upper_p),
            ]
            return m
        a, b, o = Signal(16), Signal(16), Signal(32)
        lower_a, lower_b = Signal(signed(8)), Signal(signed(8))
        m.d.comb += [
            lower_a.eq(self.a),
            lower_b.eq(self.b),
            a.eq(Cat(lower_a, self._upper_a)),
            b.eq(Cat(lower_b, self._upper_b)),
            self.p.eq(o[:16].as_signed()),
            self._upper_p.eq(o[16:].as_signed()),
        ]
        # The third register is that of the adders behind the products, which add zero.
        m.submodules.mac = _mac16(
            a,
            b,
            o,
            A_SIGNED=Const(1, 1),
            B_SIGNED=Const(1, 1),
            MODE_8x8=Const(1, 1),
            TOPADDSUB_UPPERINPUT=Const(1, 1),
            BOTADDSUB_UPPERINPUT=Const(1, 1),
            TOPADDSUB_LOWERINPUT=Const(1, 2),
            BOTADDSUB_LOWERINPUT=Const(1, 2),
            TOPOUTPUT_SELECT=Const(1, 2),
            BOTOUTPUT_SELECT=Const(1, 2),
        )
        return m


def _times(bits: Value, value: Value) -> Value:
    """A signed number of two bits times `value`, in gates and one subtraction."""
    row, twice = (Mux(bits[i], value, 0) for i in range(2))
    return row - (twice << 1)


class WideMultiplier(Multiplier):
    """An SB_MAC16 for the low 16 bits of both operands; the rows of the bits above are added in logic."""

    def elaborate(self, platform: object) -> Module:
        m = Module()
        a, b = Signal(signed(18)), Signal(signed(18))
        m.d.comb += [a.eq(self.a), b.eq(self.b)]
        low = Signal(32)
        m.submodules.mac = _mac16(
            a[:16],
            b[:16],
            low,
            PIPELINE_16x16_MULT_REG1=Const(1, 1),
            PIPELINE_16x16_MULT_REG2=Const(1, 1),
            TOPOUTPUT_SELECT=Const(3, 2),
            BOTOUTPUT_SELECT=Const(3, 2),
        )
        # a * b = a_low * b_low + (a_high * b + a_low * b_high) * 2**16
        a_high, b_high = a[16:].as_signed(), b[16:].as_signed()
        upper = Signal(signed(20), name="a_high_b", reset_less=True)
        lower = Signal(signed(18), name="a_low_b_high", reset_less=True)
        rows, late = Signal(signed(21), reset_less=True), Signal(signed(21), reset_less=True)
        m.d.sync += [
            upper.eq(_times(a_high, b)),
            lower.eq(_times(b_high, a[:16])),
            rows.eq(upper + lower),
            late.eq(rows),
        ]
        m.d.comb += self.p.eq(Cat(low[:16], (low[16:] + late)[:20]).as_signed())
        return m


PORT_WIDTHS = {256: 16, 512: 8, 1024: 4, 2048: 2}
"""Data width of a block RAM by depth."""
_PINS = {16: range(16), 8: range(0, 16, 2), 4: range(1, 16, 4), 2: range(3, 16, 8)}
"""Data pins of each width."""


class BlockRam(Ram):
    """SB_RAM40_4K blocks side by side with a register before the read address."""

    def __init__(self, *, width: int, depth: int) -> None:
        if depth > max(PORT_WIDTHS):
            raise ValueError(f"block RAM depth is at most {max(PORT_WIDTHS)} words, not {depth}")
        super().__init__(width=width, depth=depth)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        port = PORT_WIDTHS[min(d for d in PORT_WIDTHS if d >= self.depth)]
        r_address = Signal(unsigned(11), reset_less=True)
        m.d.sync += r_address.eq(self.r_addr)
        for index in range(-(-self.width // port)):
            mine = slice(index * port, min((index + 1) * port, self.width))
            w_data, r_data = Signal(16, name=f"w_data_{index}"), Signal(16, name=f"r_data_{index}")
            for bit, pin in zip(range(mine.start, mine.stop), _PINS[port], strict=False):
                m.d.comb += [w_data[pin].eq(self.w_data[bit]), self.r_data[bit].eq(r_data[pin])]
            m.submodules[f"block_{index}"] = Instance(
                "SB_RAM40_4K",
                p_READ_MODE=list(_PINS).index(port),
                p_WRITE_MODE=list(_PINS).index(port),
                i_RCLK=ClockSignal(),
                i_RCLKE=Const(1),
                i_RE=Const(1),
                i_RADDR=r_address,
                o_RDATA=r_data,
                i_WCLK=ClockSignal(),
                i_WCLKE=Const(1),
                i_WE=self.w_en,
                i_WADDR=Cat(self.w_addr, Const(0, 11 - len(self.w_addr))),
                i_WDATA=w_data,
                i_MASK=Const(0, 16),
            )
        return m


class LaneRam(Ram):
    """Blocks for each lane, which is written alone."""

    def elaborate(self, platform: object) -> Module:
        m = Module()
        assert self.lane
        for index in range(self.width // self.lane):
            m.submodules[f"lane_{index}"] = ram = BlockRam(width=self.lane, depth=self.depth)
            mine = slice(index * self.lane, (index + 1) * self.lane)
            m.d.comb += [
                ram.w_en.eq(self.w_en[index]),
                ram.w_addr.eq(self.w_addr),
                ram.w_data.eq(self.w_data[mine]),
                ram.r_addr.eq(self.r_addr),
                self.r_data[mine].eq(ram.r_data),
            ]
        return m


class ProductBlock(Product):
    """An SB_MAC16 with the register behind its multiplier."""

    def elaborate(self, platform: object) -> Module:
        m = Module()
        o = Signal(32)
        m.submodules.mac = _mac16_cell(
            self.a.as_unsigned(),
            self.b,
            o,
            {},
            A_SIGNED=Const(int(self.signed_a), 1),
            PIPELINE_16x16_MULT_REG2=Const(1, 1),
            TOPOUTPUT_SELECT=Const(3, 2),
            BOTOUTPUT_SELECT=Const(3, 2),
        )
        m.d.comb += self.p.eq(o)
        return m


class AccumulatorBlock(MultiplyAccumulate):
    """An SB_MAC16 with its input registers and its accumulator, which is loaded with zero."""

    def elaborate(self, platform: object) -> Module:
        m = Module()
        a, b, o = Signal(signed(16)), Signal(signed(16)), Signal(32)
        add, clear = Signal(reset_less=True), Signal(reset_less=True)
        m.d.sync += [add.eq(self.add | self.clear), clear.eq(self.clear)]
        m.d.comb += [a.eq(self.a), b.eq(self.b), self.total.eq(o.as_signed())]
        both = {f"OHOLD{half}": ~add for half in ("TOP", "BOT")} | {f"OLOAD{half}": clear for half in ("TOP", "BOT")}
        m.submodules.mac = _mac16_cell(
            a.as_unsigned(),
            b.as_unsigned(),
            o,
            both,
            A_REG=Const(1, 1),
            B_REG=Const(1, 1),
            A_SIGNED=Const(1, 1),
            B_SIGNED=Const(1, 1),
            TOPADDSUB_LOWERINPUT=Const(2, 2),
            BOTADDSUB_LOWERINPUT=Const(2, 2),
            # The carry of the lower half.
            TOPADDSUB_CARRYSELECT=Const(2, 2),
            TOPOUTPUT_SELECT=Const(1, 2),
            BOTOUTPUT_SELECT=Const(1, 2),
        )
        return m


SINGLE_PORT_WORDS = 16384
"""of 16 bits in a SB_SPRAM256KA"""


class SinglePortBlocks(SinglePortRam):
    """SB_SPRAM256KA side by side.

    Raises
    ------
    ValueError
        If the words are not of 16 bits or a multiple of that, or there are more than a block has.
    """

    def __init__(self, *, width: int, depth: int) -> None:
        if width % 16 or depth > SINGLE_PORT_WORDS:
            raise ValueError(
                f"single-port memory has words of 16 bits side by side, at most {SINGLE_PORT_WORDS}, "
                f"not {depth} of {width}"
            )
        super().__init__(width=width, depth=depth)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        address = Signal(14)
        m.d.comb += address.eq(self.address)
        for i in range(self.width // 16):
            mine = slice(16 * i, 16 * i + 16)
            write = self.write[2 * i : 2 * i + 2]
            m.submodules[f"block_{i}"] = Instance(
                "SB_SPRAM256KA",
                i_CLOCK=ClockSignal(),
                i_ADDRESS=address,
                i_DATAIN=self.w_data[mine],
                # An enable is for four bits.
                i_MASKWREN=Cat(write[0].replicate(2), write[1].replicate(2)),
                # A block whose bytes are not written stays a block that is not read.
                i_WREN=self.write.any(),
                i_CHIPSELECT=Const(1),
                i_STANDBY=Const(0),
                i_SLEEP=Const(0),
                i_POWEROFF=Const(1),  # low: off
                o_DATAOUT=self.r_data[mine],
            )
        return m


@dataclass(frozen=True)
class PllSettings:
    """Fields of SB_PLL40: output = input / (divr + 1) * (divf + 1) / 2 ** divq."""

    divr: int
    divf: int
    divq: int
    filter_range: int

    def output_hz(self, input_hz: float) -> float:
        """Frequency of the output."""
        return input_hz / (self.divr + 1) * (self.divf + 1) / (1 << self.divq)


def pll_settings(input_hz: float, output_hz: float) -> PllSettings:
    """The wanted output, exact if possible, never above it, within the limits of FPGA-TN-02052.

    Raises
    ------
    ValueError
        If no setting comes within 2 % below the wanted frequency.
    """
    best: PllSettings | None = None
    for divr in range(16):
        detector = input_hz / (divr + 1)
        if not 10e6 <= detector <= 133e6:
            continue
        filter_range = 1 + sum(detector >= limit for limit in (17e6, 26e6, 44e6, 66e6, 101e6))
        for divf in range(128):
            for divq in range(1, 7):
                found = PllSettings(divr, divf, divq, filter_range)
                got = found.output_hz(input_hz)
                if not 533e6 <= detector * (divf + 1) <= 1066e6 or not output_hz * 0.98 <= got <= output_hz * (
                    1 + 1e-9
                ):
                    continue
                if best is None or got > best.output_hz(input_hz):
                    best = found
    if best is None:
        raise ValueError(f"no PLL setting makes {output_hz / 1e6:g} MHz from {input_hz / 1e6:g} MHz")
    return best


class Pll(wiring.Component):
    """SB_PLL40_PAD: the clock comes from the pin beside the PLL, and leaves on a global net.

    Members
    -------
    clk_in : In; clk_out : Out; locked : Out
    """

    def __init__(self, *, settings: PllSettings) -> None:
        self.settings = settings
        super().__init__({"clk_in": In(1), "clk_out": Out(1), "locked": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        s = self.settings
        m.submodules.pll = Instance(
            "SB_PLL40_PAD",
            p_FEEDBACK_PATH="SIMPLE",
            p_DIVR=Const(s.divr, 4),
            p_DIVF=Const(s.divf, 7),
            p_DIVQ=Const(s.divq, 3),
            p_FILTER_RANGE=Const(s.filter_range, 3),
            i_PACKAGEPIN=self.clk_in,
            i_RESETB=Const(1),
            i_BYPASS=Const(0),
            o_PLLOUTGLOBAL=self.clk_out,
            o_LOCK=self.locked,
        )
        return m


class Ice40Technology(CompactParts):
    """Maker of iCE40 UltraPlus primitives.

    Parameters
    ----------
    dsp_blocks
        DSP blocks that may be used: two 8-bit products or a wide one in each; what comes when they are used up is made
        of LUTs. Synthesis must not infer DSP blocks.
    """

    distributed_ram = False
    pairs = False

    def __init__(self, *, dsp_blocks: int = 8) -> None:
        self._left = dsp_blocks
        self._half: PairedMultiplier | None = None

    def multiplier(self, *, a_width: int, b_width: int) -> Multiplier:
        """Half a DSP block for at most 8 bits, one for at most 18 bits, LUTs for 16 x 17 bits (addresses)."""
        if max(a_width, b_width) <= 8:
            if self._half is not None:
                made = PairedMultiplier(a_width=a_width, b_width=b_width, first=self._half)
                self._half = None
                return made
            if self._left:
                self._left -= 1
                self._half = PairedMultiplier(a_width=a_width, b_width=b_width)
                return self._half
        elif self._left and min(a_width, b_width) > 16:
            self._left -= 1
            return WideMultiplier(a_width=a_width, b_width=b_width)
        return Multiplier(a_width=a_width, b_width=b_width)

    def ram(self, *, width: int, depth: int, lane: int | None = None) -> Ram:
        """Block RAM."""
        if lane is None:
            return BlockRam(width=width, depth=depth)
        return LaneRam(width=width, depth=depth, lane=lane)

    def fanout(self, *, width: int, count: int) -> FanoutRegister:
        """One register: synthesis merges equal ones."""
        return FanoutRegister(width=width, count=count)

    def single_port_ram(self, *, width: int, depth: int) -> SinglePortBlocks:
        """Single-port blocks."""
        return SinglePortBlocks(width=width, depth=depth)

    def product(self, *, signed_a: bool) -> Product:
        """A DSP block."""
        if self._left:
            self._left -= 1
            return ProductBlock(signed_a=signed_a)
        return Product(signed_a=signed_a)

    def multiply_accumulate(self) -> MultiplyAccumulate:
        """A DSP block."""
        if self._left:
            self._left -= 1
            return AccumulatorBlock()
        return MultiplyAccumulate()
