"""A serial board with SDR SDRAM: the memory system with its controller, and the top of an ECP5 board."""

from __future__ import annotations

from collections.abc import Mapping

from amaranth.hdl import ClockSignal, Const, Instance, IOPort, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.memory_system import SDRAM_BEAT_BITS

from .memory_system import MemorySystem
from .sdram import SdramController
from .sdram_pins import SdramPins
from .sdram_timing import SdramChip
from .soc import SerialTop
from .technology import Technology

__all__ = ["READ_DELAY", "SdramPads", "SdramSystem", "SdramTop", "sdram_ports"]

READ_DELAY = 2
"""Cycles that `SdramPads` adds to the way to the chip and back."""


class SdramSystem(wiring.Component):
    """`MemorySystem` with a controller of SDR SDRAM.

    Parameters
    ----------
    chip
        The memory.
    read_delay
        Cycles of registers between `pins` and the chip's, there and back.

    Members
    -------
    rx : In, tx : Out, busy : Out; as those of `MemorySystem`
    pins : Out(SdramPins)
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        chip: SdramChip,
        *,
        clock_hz: float,
        baud: int,
        technology: Technology | None = None,
        read_delay: int = READ_DELAY,
        observed: bool = False,
    ) -> None:
        self.chip = chip
        self.system = MemorySystem(
            config,
            clock_hz=clock_hz,
            baud=baud,
            size=chip.size,
            data_width=SDRAM_BEAT_BITS,
            technology=technology,
            observed=observed,
        )
        self.controller = SdramController(chip, clock_hz, SDRAM_BEAT_BITS, read_delay=read_delay)
        shown = ("memory", "memory_ready")
        members = {name: member for name, member in self.system.signature.members.items() if name not in shown}
        super().__init__(members | {"pins": Out(SdramPins(chip))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.system = system = self.system
        m.submodules.controller = controller = self.controller
        connect(m, system.memory, controller.axi)
        connect(m, controller.pins, flipped(self.pins))
        m.d.comb += system.memory_ready.eq(controller.ready)
        for name, member in self.signature.members.items():
            if name != "pins":
                inside, outside = getattr(system, name), getattr(self, name)
                m.d.comb += outside.eq(inside) if member.flow is Out else inside.eq(outside)
        return m


class SdramPads(wiring.Component):
    """Registers and buffers of the pins, in an ECP5's IO cells.

    Every pin has a register in its cell. The chip's clock is the system's, inverted, from a cell of the same kind: so
    the chip samples half a cycle after its pins have changed, whatever clock and cells take. What it drives comes back
    to the input registers `READ_DELAY` cycles later than to a chip right at the controller.

    Members
    -------
    pins : In(SdramPins)
    ports : Out(1) each; the one-directional pins, named as in `output_ports`
    """

    def __init__(self, chip: SdramChip, data: list[IOPort]) -> None:
        self.data = data
        self.outputs = _outputs(chip)
        super().__init__({"pins": In(SdramPins(chip)), **{name: Out(1) for name in self.outputs}})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.sdram_clk = Instance(
            "ODDRX1F",
            i_SCLK=ClockSignal(),
            i_RST=Const(0),
            i_D0=Const(0),
            i_D1=Const(1),
            o_Q=self.sdram_clk,
        )
        for name, (member, bit) in self.outputs.items():
            if member:
                m.submodules[name] = self._register("OFS1P3DX", getattr(self.pins, member)[bit], getattr(self, name))
        for bit, port in enumerate(self.data):
            output, input_, off = (Signal(name=f"{name}_{bit}") for name in ("out", "in", "off"))
            m.submodules[f"data_{bit}"] = Instance("BB", i_I=output, i_T=off, o_O=input_, io_B=port)
            m.submodules[f"output_{bit}"] = self._register("OFS1P3DX", self.pins.dq_o[bit], output)
            m.submodules[f"off_{bit}"] = self._register("OFS1P3DX", ~self.pins.dq_oe, off)
            m.submodules[f"input_{bit}"] = self._register("IFS1P3DX", input_, self.pins.dq_i[bit])
        return m

    @staticmethod
    def _register(cell: str, value: object, output: object) -> Instance:
        return Instance(cell, i_SCLK=ClockSignal(), i_SP=Const(1), i_CD=Const(0), i_D=value, o_Q=output)


def _outputs(chip: SdramChip) -> Mapping[str, tuple[str, int]]:
    """Port of the top -> member and bit of `SdramPins`; the clock has none."""
    single = {"cke": "cke", "csn": "cs_n", "rasn": "ras_n", "casn": "cas_n", "wen": "we_n"}
    buses = {"a": ("a", chip.address_bits), "ba": ("ba", (chip.banks - 1).bit_length())}
    buses["dqm"] = ("dqm", chip.data_bits // 8)
    return {
        "sdram_clk": ("", 0),
        **{f"sdram_{port}": (member, 0) for port, member in single.items()},
        **{f"sdram_{port}_{bit}": (member, bit) for port, (member, bits) in buses.items() for bit in range(bits)},
    }


def sdram_ports(chip: SdramChip) -> list[str]:
    """Ports of the top that lead to the chip."""
    return [*_outputs(chip), *(f"sdram_d_{bit}" for bit in range(chip.data_bits))]


class SdramTop(SerialTop):
    """`SerialTop` with the pins of the SDRAM, named as those of the ULX3S in `nnloom.boards`.

    Attributes
    ----------
    io_ports : dict of name to IOPort
        The data pins: ports besides the members.
    """

    def __init__(
        self,
        system: SdramSystem,
        pll: wiring.Component,
        *,
        clock_port: str,
        leds: int,
        leds_active_low: bool,
        high_ports: tuple[str, ...],
    ) -> None:
        super().__init__(
            system,
            pll,
            clock_port=clock_port,
            leds=leds,
            leds_active_low=leds_active_low,
            high_ports=high_ports,
            outputs=tuple(_outputs(system.chip)),
        )
        names = [f"sdram_d_{bit}" for bit in range(system.chip.data_bits)]
        self.io_ports = {name: IOPort(1, name=name) for name in names}

    def elaborate(self, platform: object) -> Module:
        m = super().elaborate(platform)
        assert isinstance(self.system, SdramSystem)
        m.submodules.pads = pads = SdramPads(self.system.chip, list(self.io_ports.values()))
        connect(m, self.system.pins, pads.pins)
        m.d.comb += [getattr(self, name).eq(getattr(pads, name)) for name in pads.outputs]
        return m
