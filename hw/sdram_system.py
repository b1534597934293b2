"""A serial board with SDR SDRAM: the memory system with its controller, and the top of an ECP5 board."""

from __future__ import annotations

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import Out, connect, flipped

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.memory_system import SDRAM_BEAT_BITS

from .memory_system import MemorySystem
from .sdram import SdramController
from .sdram_ecp5 import READ_DELAY, Ecp5SdramPins
from .sdram_pins import SdramPins
from .sdram_timing import SdramChip
from .soc import SerialTop
from .technology import Technology

__all__ = ["SdramSystem", "SdramTop", "sdram_ports"]

_PREFIX = "sdram"


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


def sdram_ports(chip: SdramChip) -> list[str]:
    """Ports of `SdramTop` that lead to the chip."""
    buses = {"a": chip.address_bits, "ba": (chip.banks - 1).bit_length(), "dqm": chip.data_bits // 8}
    buses["d"] = chip.data_bits
    names = ["clk", "cke", "csn", "rasn", "casn", "wen", *(f"{bus}_{i}" for bus, n in buses.items() for i in range(n))]
    return [f"{_PREFIX}_{name}" for name in names]


class SdramTop(SerialTop):
    """`SerialTop` of an ECP5 with the SDRAM's pads, whose ports are not among its members: `sdram_ports`."""

    system: SdramSystem

    def elaborate(self, platform: object) -> Module:
        m = super().elaborate(platform)
        m.submodules.pads = pads = Ecp5SdramPins(self.system.chip, prefix=_PREFIX)
        connect(m, self.system.pins, pads.pins)
        return m
