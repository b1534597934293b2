"""Lattice ECP5 primitives: DSP multipliers, LUT multipliers, block RAM, PLL.

Everything that names a vendor cell is here. Yosys has no simulation model of the DSP block; `tests/hw/
test_ecp5.py` checks the wrappers against behavioural models.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch.usb import CRYSTAL_HZ

from .device import BlockShape, DeviceTechnology, FanoutCells, PllLimits, PllSettings, block_shape
from .technology import Multiplier, Ram

__all__ = [
    "PLL_LIMITS",
    "BlockRam",
    "DspMultiplier",
    "Ecp5Technology",
    "FanoutFlipFlops",
    "FlashClock",
    "LutMultiplier",
    "Pll",
    "UsbPll",
]


class DspMultiplier(Multiplier):
    """MULT18X18D with its input, pipeline and output registers.

    Parameters
    ----------
    site
        Where it is placed, as nextpnr calls the place; None: anywhere.
    """

    def __init__(self, *, a_width: int, b_width: int, site: str | None = None) -> None:
        self.site = site
        super().__init__(a_width=a_width, b_width=b_width)

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
        attributes = {} if self.site is None else {"a_BEL": self.site}
        m.submodules.dsp = Instance(
            "MULT18X18D",
            **attributes,
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


def _lut4(function: Callable[[int, int, int, int], int]) -> int:
    """Truth table of a LUT with inputs A (lowest), B, C, D."""
    return sum((function(i & 1, i >> 1 & 1, i >> 2 & 1, i >> 3 & 1) & 1) << i for i in range(16))


class LutMultiplier(Multiplier):
    """Multiplier in logic, for small operands when DSP blocks run out; the same latency.

    A carry chain cell (CCU2C) forms and adds a bit of two partial products at once: its LUT computes
    (a_i and b_j) xor (a_(i-1) and b_(j+1)), and generates the carry from its first two inputs. So four chains add the
    eight rows in pairs; the last row counts negative. Registers: operands; the four sums; the product.
    At most 8 bits of `b`.
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
        pairs = [Signal(signed(self.a_width + 2), name=f"pair_{k}", reset_less=True) for k in range(4)]
        for k, pair in enumerate(pairs):
            m.d.sync += pair.eq(self._chain(m, a, b[2 * k], b[2 * k + 1], subtract=k == 3, name=f"chain_{k}"))
        product = Signal.like(self.p, reset_less=True)
        m.d.sync += product.eq((pairs[0] + (pairs[1] << 2)) + ((pairs[2] + (pairs[3] << 2)) << 4))
        m.d.comb += self.p.eq(product)
        return m

    def _chain(self, m: Module, a: Value, low: Value, high: Value, *, subtract: bool, name: str) -> Value:
        """a * low + 2 * a * high, or with `subtract` a * low - 2 * a * high; signed, two bits more than `a`."""
        bits = self.a_width + 2
        cells = -(-bits // 2)
        total = Signal(signed(2 * cells), name=name)
        if subtract:
            table = _lut4(lambda p, q, r, s: (r & s) ^ 1 ^ (p & q))
        else:
            table = _lut4(lambda p, q, r, s: (p & q) ^ (r & s))
        carry: Value = Const(int(subtract), 1)
        for cell in range(cells):
            ports: dict[str, Value] = {}
            for half in range(2):
                i = 2 * cell + half
                row = a[min(i, self.a_width - 1)]
                upper = a[min(i - 1, self.a_width - 1)] if i else Const(0, 1)
                # The carry depends on the first two inputs: of a difference they must be the subtrahend.
                inputs = (upper, high, row, low) if subtract else (row, low, upper, high)
                ports |= {f"i_{pin}{half}": value for pin, value in zip("ABCD", inputs, strict=True)}
                ports[f"o_S{half}"] = total[i]
            following = Signal(name=f"{name}_carry_{cell}")
            m.submodules[f"{name}_{cell}"] = Instance(
                "CCU2C",
                p_INIT0=Const(table, 16),
                p_INIT1=Const(table, 16),
                p_INJECT1_0="NO",
                p_INJECT1_1="NO",
                i_CIN=carry,
                o_COUT=following,
                **ports,
            )
            carry = following
        return total[:bits].as_signed()


def _bits_of_blocks(width: int, port: int) -> list[list[int]]:
    """Which bits of a word each block has.

    A byte stays together, because its multiplier may be far from where the next byte's goes; what does not fill a byte
    in each block takes the bytes that are left.
    """
    blocks, whole = -(-width // port), port // 8 * 8
    bits = [list(range(i * whole, min((i + 1) * whole, width))) for i in range(blocks)]
    rest = iter(range(blocks * whole, width))
    return [[*own, *itertools.islice(rest, port - len(own))] for own in bits]


class BlockRam(Ram):
    """DP16KD blocks side by side, port A writing, port B reading with the output register."""

    def __init__(self, *, width: int, depth: int, lane: int | None = None) -> None:
        self._shape = block_shape(depth)
        super().__init__(width=width, depth=depth, lane=lane)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        port = self._shape.width
        for index, bits in enumerate(self._bits(port)):
            w_data, r_data = Signal(port, name=f"w_data_{index}"), Signal(port, name=f"r_data_{index}")
            m.d.comb += [
                w_data.eq(Cat(self.w_data[bit] for bit in bits)),
                Cat(self.r_data[bit] for bit in bits).eq(r_data),
            ]
            m.submodules[f"block_{index}"] = self._block(self._shape, self._enables(bits), w_data, r_data)
        return m

    def _bits(self, port: int) -> list[list[int]]:
        """Which bits of a word each block has: with lanes as they come, since a block enables them one by one."""
        if self.lane is None:
            return _bits_of_blocks(self.width, port)
        return [list(range(low, min(low + port, self.width))) for low in range(0, self.width, port)]

    def _enables(self, bits: list[int]) -> Value:
        """Of the lanes that a block has."""
        if self.lane is None:
            return self.w_en
        return Cat(self.w_en[lane] for lane in sorted({bit // self.lane for bit in bits}))

    def _block(self, shape: BlockShape, w_en: Value, w_data: Value, r_data: Value) -> Instance:
        port, shift, enables = shape.width, shape.address_shift, shape.byte_enables
        bytes_ = w_en.replicate(enables) if self.lane is None else Cat(w_en if enables else ())
        w_address = Cat(bytes_, Const(0, shift - len(bytes_)), self.w_addr)
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
            i_WEA=Const(1) if wide else w_en if self.lane is None else w_en.any(),
            i_WEB=Const(0),
            i_RSTA=Const(0),
            i_RSTB=Const(0),
            **{f"i_CS{p}{i}": Const(0) for p in "AB" for i in range(3)},
            **ports,
            **outputs,
        )


class FanoutFlipFlops(FanoutCells):
    """TRELLIS_FF cells."""

    def cell(self, value: Value, output: Signal) -> Instance:
        return Instance(
            "TRELLIS_FF",
            p_GSR="DISABLED",
            p_CEMUX="1",
            p_CLKMUX="CLK",
            p_LSRMUX="LSR",
            p_REGSET="RESET",
            p_SRMODE="LSR_OVER_CE",
            i_CLK=ClockSignal(),
            i_LSR=Const(0),
            i_DI=value,
            o_Q=output,
        )


class Ecp5Technology(DeviceTechnology):
    """Maker of ECP5 primitives."""

    dsp = DspMultiplier
    logic = LutMultiplier
    block_ram = BlockRam
    registers = FanoutFlipFlops


PLL_LIMITS = PllLimits(
    input_dividers=range(1, 129),
    feedback_dividers=range(1, 81),
    output_dividers=range(1, 129),
    detector_hz=(3.125e6, 400e6),
    oscillator_hz=(400e6, 800e6),
)
"""ECP5 data sheet (FPGA-DS-02012)."""


class Pll(wiring.Component):
    """EHXPLLL with one output, CLKOP, which is also its feedback.

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


class UsbPll(wiring.Component):
    """EHXPLLL for USB's clocks: CLKOP of 10 MHz is its feedback, CLKOS and CLKOS2 have one phase.

    Members
    -------
    clk_in : In, of `CRYSTAL_HZ`; clk_48 : Out, clk_12 : Out; each edge of `clk_12` is one of `clk_48`
    locked : Out
    """

    def __init__(self) -> None:
        super().__init__({"clk_in": In(1), "clk_48": Out(1), "clk_12": Out(1), "locked": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        feedback = Signal()
        # 25 MHz / 5 * 2 = 10 MHz; the oscillator runs at 48 times that, 480 MHz.
        dividers = {"CLKOP": 48, "CLKOS": 10, "CLKOS2": 40}
        outputs: dict[str, str | int] = {}
        for name, divider in dividers.items():
            outputs |= {f"p_{name}_ENABLE": "ENABLED", f"p_{name}_DIV": divider}
            outputs |= {f"p_{name}_CPHASE": divider - 1, f"p_{name}_FPHASE": 0}
            outputs[f"a_FREQUENCY_PIN_{name}"] = f"{480 / divider:g}"
        m.submodules.pll = Instance(
            "EHXPLLL",
            a_FREQUENCY_PIN_CLKI=f"{CRYSTAL_HZ / 1e6:g}",
            a_ICP_CURRENT="12",
            a_LPF_RESISTOR="8",
            a_MFG_ENABLE_FILTEROPAMP="1",
            a_MFG_GMCREF_SEL="2",
            p_PLLRST_ENA="DISABLED",
            p_INTFB_WAKE="DISABLED",
            p_STDBY_ENABLE="DISABLED",
            p_DPHASE_SOURCE="DISABLED",
            p_OUTDIVIDER_MUXA="DIVA",
            p_OUTDIVIDER_MUXB="DIVB",
            p_OUTDIVIDER_MUXC="DIVC",
            p_FEEDBK_PATH="CLKOP",
            p_CLKI_DIV=5,
            p_CLKFB_DIV=2,
            **outputs,
            i_RST=Const(0),
            i_STDBY=Const(0),
            i_CLKI=self.clk_in,
            o_CLKOP=feedback,
            o_CLKOS=self.clk_48,
            o_CLKOS2=self.clk_12,
            i_CLKFB=feedback,
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


class FlashClock(wiring.Component):
    """USRMCLK: the clock of the flash that the device was configured from, whose pin has no other way.

    Members
    -------
    sck : In
    """

    def __init__(self) -> None:
        super().__init__({"sck": In(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.clock = Instance("USRMCLK", a_keep=1, i_USRMCLKI=self.sck, i_USRMCLKTS=Const(0))
        return m
