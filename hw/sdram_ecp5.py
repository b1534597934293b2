"""An ECP5's pads for SDRAM: every signal through a register in its pad, the chip's clock from a DDR register.

nextpnr puts a flip-flop into the pad when it is the cell OFS1P3DX, OFS1P3BX or IFS1P3DX and nothing else uses its
output, so each data pad has its own register for the direction. It knows no input or output delays: with the registers
in the pads those are the device's, whatever the placement.
"""

from __future__ import annotations

from amaranth.hdl import ClockSignal, Const, Instance, IOPort, IOValue, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from .sdram_pins import SdramPins
from .sdram_timing import SdramChip

__all__ = ["READ_DELAY", "Ecp5SdramPins", "read_margins"]

READ_DELAY = 2
"""`SdramController.read_delay` with these pads: a register there and one back."""


def read_margins(chip: SdramChip, clock_hz: float, *, round_trip_ns: float) -> tuple[float, float]:
    """Setup and hold margins, in ns, of the registers that take what the chip sends; its clock is half a period late.

    Parameters
    ----------
    round_trip_ns
        From the clock's register in the FPGA to the chip, and from the chip to the data's register: pads, board, and
        the register's setup time.
    """
    period = 1e9 / clock_hz
    # The chip's edge is half a period after the command's; data is taken two periods after the edge that sends it.
    setup = 1.5 * period - chip.t_ac - round_trip_ns
    hold = round_trip_ns + chip.t_oh - 0.5 * period
    return setup, hold


class Ecp5SdramPins(wiring.Component):
    """Between a controller's `SdramPins` and the pads.

    The pads are ports of the design that are called as in `boards/ulx3s.py`: `PREFIX_clk`, `PREFIX_cke`, `PREFIX_csn`,
    `PREFIX_rasn`, `PREFIX_casn`, `PREFIX_wen`, and with a number `PREFIX_a_`, `PREFIX_ba_`, `PREFIX_dqm_`, `PREFIX_d_`.
    The chip's clock rises half a period after the domain's.

    Members
    -------
    pins : In(SdramPins); `dq_i` is `READ_DELAY` cycles late
    """

    def __init__(self, chip: SdramChip, *, prefix: str = "sdram") -> None:
        self.chip = chip
        self.prefix = prefix
        super().__init__({"pins": In(SdramPins(chip))})

    def _register(self, m: Module, cell: str, name: str, value: Value) -> Signal:
        """A register of a pad; those with BX are 1 until the first clock."""
        output = Signal(name=f"{name}_q")
        idle = "PD" if cell.endswith("BX") else "CD"
        m.submodules[name] = Instance(
            cell, i_D=value, i_SCLK=ClockSignal(), i_SP=Const(1), **{f"i_{idle}": Const(0)}, o_Q=output
        )
        return output

    def _output(self, m: Module, name: str, value: Value, *, high: bool = False) -> None:
        register = self._register(m, "OFS1P3BX" if high else "OFS1P3DX", f"{name}_register", value)
        m.submodules[f"{name}_pad"] = Instance("OB", i_I=register, o_O=self._pad(name))

    def _pad(self, name: str) -> IOValue:
        return IOPort(1, name=f"{self.prefix}_{name}")

    def elaborate(self, platform: object) -> Module:
        m = Module()
        pins = self.pins
        clock = Signal()
        m.submodules.clock = Instance(
            "ODDRX1F", i_SCLK=ClockSignal(), i_RST=Const(0), i_D0=Const(0), i_D1=Const(1), o_Q=clock
        )
        m.submodules.clk_pad = Instance("OB", i_I=clock, o_O=self._pad("clk"))
        for name in ("cke", "csn", "rasn", "casn", "wen"):
            value = getattr(pins, name if name == "cke" else f"{name.removesuffix('n')}_n")
            self._output(m, name, value, high=True)
        for name, bus in (("a", pins.a), ("ba", pins.ba), ("dqm", pins.dqm)):
            for bit, value in enumerate(bus):
                self._output(m, f"{name}_{bit}", value, high=name == "dqm")
        for bit in range(self.chip.data_bits):
            incoming = Signal(name=f"d_{bit}_i")
            m.submodules[f"d_{bit}_pad"] = Instance(
                "BB",
                i_I=self._register(m, "OFS1P3DX", f"d_{bit}_out", pins.dq_o[bit]),
                i_T=self._register(m, "OFS1P3BX", f"d_{bit}_off", ~pins.dq_oe),
                o_O=incoming,
                io_B=self._pad(f"d_{bit}"),
            )
            m.d.comb += pins.dq_i[bit].eq(self._register(m, "IFS1P3DX", f"d_{bit}_in", incoming))
        return m
