"""The system on a board: clock, reset, UART, host link, accelerator."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Cat, ClockDomain, ClockSignal, Const, DomainRenamer, Module, ResetSignal, Signal
from amaranth.lib import wiring
from amaranth.lib.cdc import ResetSynchronizer
from amaranth.lib.wiring import In, Out, connect, flipped

from nnloom.arch.artifact import Region
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.link import LARGEST_WORDS

from .accelerator import make_accelerator
from .flash_boot import BootBus, FlashPins
from .host_link import HostLink
from .stream_ports import STREAM_MEMBERS, StreamEngine
from .technology import Technology
from .uart import UartReceiver, UartTransmitter, baud_divisor

__all__ = ["Line", "LinkedSystem", "SerialSystem", "SerialTop"]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line to the host as a system has it."""

    receive: Any
    """stream of bytes from the host"""
    transmit: Any
    """stream of bytes to the host"""
    pins: Sequence[Any] = ()
    """statements that connect the system's members with it"""


class LinkedSystem(wiring.Component):
    """Host link and accelerator in the system clock domain; what is between the link and the pins is up to subclasses.

    Parameters
    ----------
    line
        The members that lead to the host.
    clock_hz
        Clock of the system.
    max_words, packing
        Of the link, see `HostLink`.
    flash_offset
        Load the network at this byte of an SPI flash after a reset (`flash_boot.BootBus`); None: there is no flash.
    streams
        Give this region of a network streams for logic beside the system (`stream_ports.StreamEngine`); None: no
        streams. A reset of the accelerator, as the link's, is theirs, too; with a flash they wait until it was read.

    Members
    -------
    those of `line`
    busy : Out; a program runs
    flash : Out(FlashPins), with `flash_offset`
    i : In(stream), o : Out(stream), enable : In, failed : Out; with `streams`, those of `StreamPorts`
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        *,
        line: Mapping[str, wiring.Member],
        clock_hz: float,
        technology: Technology | None = None,
        max_words: int = LARGEST_WORDS,
        packing: bool = True,
        flash_offset: int | None = None,
        streams: Region | None = None,
    ) -> None:
        self.config = config
        self.technology = technology
        self.clock_hz = clock_hz
        self.max_words = max_words
        self.packing = packing
        self.flash_offset = flash_offset
        self.streams = None if streams is None else StreamEngine(config, streams, technology)
        added = {} if flash_offset is None else {"flash": Out(FlashPins)}
        if self.streams is not None:
            added |= {name: self.streams.signature.members[name] for name in STREAM_MEMBERS}
        super().__init__({**line, "busy": Out(1), **added})

    @abstractmethod
    def add_line(self, m: Module) -> Line:
        """Add what is between the link and the members of `line`."""

    def elaborate(self, platform: object) -> Module:
        m = Module()
        line = self.add_line(m)
        m.submodules.link = link = HostLink(
            self.technology, clock_hz=self.clock_hz, max_words=self.max_words, packing=self.packing
        )
        accelerator = self.streams or make_accelerator(self.config, self.technology)
        # A domain with the same clock: its reset comes from one register, not from a gate behind two.
        m.domains.engine = engine = ClockDomain(local=True)
        engine_reset = Signal(init=1, reset_less=True)
        boot = None
        if self.flash_offset is not None:
            boot = BootBus(self.config, self.technology, clock_hz=self.clock_hz, offset=self.flash_offset)
            m.submodules.boot = boot
        # Until the flash was read the engine is as after a reset.
        reset = link.reset if boot is None else link.reset & ~boot.busy
        m.d.sync += engine_reset.eq(ResetSignal() | reset)
        m.d.comb += [engine.clk.eq(ClockSignal()), engine.rst.eq(engine_reset)]
        m.submodules.accelerator = DomainRenamer("engine")(accelerator)
        # Of programs of the streams the link tells nothing.
        busy = accelerator.busy if self.streams is None else accelerator.busy & ~self.streams.running
        m.d.comb += [*line.pins, self.busy.eq(accelerator.busy), link.busy.eq(busy)]
        connect(m, line.receive, link.receive)
        connect(m, link.transmit, line.transmit)
        bus = link.host
        if boot is not None:
            connect(m, link.host, boot.link)
            connect(m, boot.flash, flipped(self.flash))
            bus = boot.bus
        connect(m, bus, accelerator.host)
        if self.streams is not None:
            connect(m, flipped(self.i), self.streams.i)
            connect(m, self.streams.o, flipped(self.o))
            m.d.comb += self.streams.enable.eq(self.enable if boot is None else self.enable & ~boot.busy)
            m.d.comb += self.failed.eq(self.streams.failed)
        return m


class SerialSystem(LinkedSystem):
    """Everything in the system clock domain: also what is simulated, UART pins included.

    Parameters
    ----------
    baud
        Bit rate of the line.

    Members
    -------
    rx : In, tx : Out; the serial line
    busy : Out; a program runs
    those of the flash and of the streams, as of `LinkedSystem`
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        *,
        clock_hz: float,
        baud: int,
        technology: Technology | None = None,
        max_words: int = LARGEST_WORDS,
        packing: bool = True,
        flash_offset: int | None = None,
        streams: Region | None = None,
    ) -> None:
        self.divisor = baud_divisor(clock_hz, baud)
        line = {"rx": In(1, init=1), "tx": Out(1, init=1)}
        super().__init__(
            config,
            line=line,
            clock_hz=clock_hz,
            technology=technology,
            max_words=max_words,
            packing=packing,
            flash_offset=flash_offset,
            streams=streams,
        )

    def add_line(self, m: Module) -> Line:
        """The UART."""
        m.submodules.receiver = receiver = UartReceiver(divisor=self.divisor)
        m.submodules.transmitter = transmitter = UartTransmitter(divisor=self.divisor)
        pins = [receiver.rx.eq(self.rx), self.tx.eq(transmitter.tx)]
        return Line(receive=receiver.octets, transmit=transmitter.octets, pins=pins)


class SerialTop(wiring.Component):
    """Top of a board with a serial port: pins named as in `nnloom.boards`. LED 0: alive, LED 1: busy.

    Parameters
    ----------
    system
        With the members of `SerialSystem`.
    pll
        Source of the system clock: clk_in, clk_out, locked.
    clock_port
        Port of the crystal.
    leds
        How many there are, on ports led_0, led_1 and so on.
    high_ports
        Outputs that stay high.
    flash_clock
        Drives the clock of the system's flash, sck : In; None: the port flash_sck does.
    """

    def __init__(
        self,
        system: wiring.Component,
        pll: wiring.Component,
        *,
        clock_port: str,
        leds: int,
        leds_active_low: bool,
        high_ports: tuple[str, ...],
        flash_clock: wiring.Component | None = None,
    ) -> None:
        self.system = system
        self.pll = pll
        self.clock_port = clock_port
        self.leds = leds
        self.leds_active_low = leds_active_low
        self.high_ports = high_ports
        self.flash_clock = flash_clock
        flash: dict[str, wiring.Member] = {}
        if self._has_flash:
            flash = {"flash_cs_n": Out(1, init=1), "flash_mosi": Out(1), "flash_miso": In(1)}
            flash |= {"flash_sck": Out(1)} if flash_clock is None else {}
        super().__init__(
            {
                clock_port: In(1),
                **self.line_ports(),
                **{port: Out(1) for port in high_ports},
                **{f"led_{i}": Out(1) for i in range(leds)},
                **flash,
            }
        )

    @property
    def _has_flash(self) -> bool:
        return "flash" in self.system.signature.members

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.domains.sync = ClockDomain()
        m.submodules.pll = pll = self.pll
        m.submodules.reset = ResetSynchronizer(~pll.locked, domain="sync")
        m.submodules.system = system = self.system
        alive = Signal(26)
        m.d.sync += alive.eq(alive + 1)
        lit = Cat(alive[-1], system.busy)
        if self.leds_active_low:
            lit = ~Cat(lit, Const(0, max(0, self.leds - len(lit))))
        m.d.comb += [
            pll.clk_in.eq(getattr(self, self.clock_port)),
            ClockSignal("sync").eq(pll.clk_out),
            *self.add_line(m),
            *(getattr(self, port).eq(1) for port in self.high_ports),
            Cat(getattr(self, f"led_{i}") for i in range(self.leds)).eq(lit),
        ]
        if self._has_flash:
            flash = system.flash
            m.d.comb += [
                self.flash_cs_n.eq(flash.cs_n),
                self.flash_mosi.eq(flash.mosi),
                flash.miso.eq(self.flash_miso),
            ]
            if self.flash_clock is None:
                m.d.comb += self.flash_sck.eq(flash.sck)
            else:
                m.submodules.flash_clock = self.flash_clock
                m.d.comb += self.flash_clock.sck.eq(flash.sck)
        return m

    @staticmethod
    def line_ports() -> dict[str, wiring.Member]:
        """Ports that lead to the host."""
        return {"uart_rx": In(1), "uart_tx": Out(1)}

    def add_line(self, m: Module) -> Sequence[Any]:
        """Statements that connect them."""
        return [self.system.rx.eq(self.uart_rx), self.uart_tx.eq(self.system.tx)]
