"""The system on a board: clock, reset, UART, host link, accelerator."""

from amaranth.hdl import Cat, ClockDomain, ClockSignal, Const, DomainRenamer, Module, ResetSignal, Signal
from amaranth.lib import wiring
from amaranth.lib.cdc import ResetSynchronizer
from amaranth.lib.wiring import In, Out, connect

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.link import LARGEST_WORDS

from .accelerator import make_accelerator
from .host_link import HostLink
from .technology import Technology
from .uart import UartReceiver, UartTransmitter, baud_divisor

__all__ = ["SerialSystem", "SerialTop"]


class SerialSystem(wiring.Component):
    """Everything in the system clock domain: also what is simulated, UART pins included.

    Parameters
    ----------
    clock_hz, baud
        Clock of the system and bit rate of the line.
    max_words
        Most words of a frame, see `HostLink`.

    Members
    -------
    rx : In, tx : Out; the serial line
    busy : Out; a program runs
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        *,
        clock_hz: float,
        baud: int,
        technology: Technology | None = None,
        max_words: int = LARGEST_WORDS,
    ) -> None:
        self.config = config
        self.technology = technology
        self.clock_hz = clock_hz
        self.max_words = max_words
        self.divisor = baud_divisor(clock_hz, baud)
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1), "busy": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.receiver = receiver = UartReceiver(divisor=self.divisor)
        m.submodules.transmitter = transmitter = UartTransmitter(divisor=self.divisor)
        m.submodules.link = link = HostLink(self.technology, clock_hz=self.clock_hz, max_words=self.max_words)
        accelerator = make_accelerator(self.config, self.technology)
        # A domain with the same clock: its reset comes from one register, not from a gate behind two.
        m.domains.engine = engine = ClockDomain(local=True)
        engine_reset = Signal(init=1, reset_less=True)
        m.d.sync += engine_reset.eq(ResetSignal() | link.reset)
        m.d.comb += [engine.clk.eq(ClockSignal()), engine.rst.eq(engine_reset)]
        m.submodules.accelerator = DomainRenamer("engine")(accelerator)
        m.d.comb += [
            receiver.rx.eq(self.rx),
            self.tx.eq(transmitter.tx),
            self.busy.eq(accelerator.busy),
            link.busy.eq(accelerator.busy),
        ]
        connect(m, receiver.octets, link.receive)
        connect(m, link.transmit, transmitter.octets)
        connect(m, link.host, accelerator.host)
        return m


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
    ) -> None:
        self.system = system
        self.pll = pll
        self.clock_port = clock_port
        self.leds = leds
        self.leds_active_low = leds_active_low
        self.high_ports = high_ports
        super().__init__(
            {
                clock_port: In(1),
                "uart_rx": In(1),
                "uart_tx": Out(1),
                **{port: Out(1) for port in high_ports},
                **{f"led_{i}": Out(1) for i in range(leds)},
            }
        )

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
            system.rx.eq(self.uart_rx),
            self.uart_tx.eq(system.tx),
            *(getattr(self, port).eq(1) for port in self.high_ports),
            Cat(getattr(self, f"led_{i}") for i in range(self.leds)).eq(lit),
        ]
        return m
