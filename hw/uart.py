"""UART receiver and transmitter: 8 data bits, no parity, one stop bit."""

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

__all__ = ["UartReceiver", "UartTransmitter", "baud_divisor"]


def baud_divisor(clock_hz: float, baud: int) -> int:
    """Clock cycles of a bit.

    Raises
    ------
    ValueError
        If the rate would be off by more than 2 % (ten bits then drift by a fifth of a bit).
    """
    divisor = round(clock_hz / baud)
    if divisor < 8 or abs(clock_hz / divisor / baud - 1) > 0.02:
        raise ValueError(f"{baud} baud cannot be made from {clock_hz / 1e6:g} MHz within 2 %")
    return divisor


class UartReceiver(wiring.Component):
    """Samples each bit in its middle. A byte is lost if it is not taken before the next one ends.

    Members
    -------
    rx : In; octets : Out(stream); framing_error : Out, one cycle; overflow : Out, one cycle
    """

    def __init__(self, *, divisor: int) -> None:
        self.divisor = divisor
        super().__init__(
            {"rx": In(1, init=1), "octets": Out(stream.Signature(8)), "framing_error": Out(1), "overflow": Out(1)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        rx = Signal(init=1)
        m.submodules.synchronizer = FFSynchronizer(self.rx, rx, init=1)
        timer = Signal(range(self.divisor + self.divisor // 2))
        tick = Signal()
        """The timer is at zero."""
        bits = Signal(range(10))
        shift = Signal(9)
        with m.If(self.octets.ready):
            m.d.sync += self.octets.valid.eq(0)
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [timer.eq(self.divisor // 2 - 1), tick.eq(0), bits.eq(0)]
                with m.If(~rx):
                    m.next = "START"
            with m.State("START"):
                m.d.sync += [timer.eq(timer - 1), tick.eq(timer == 1)]
                with m.If(tick):
                    m.d.sync += [timer.eq(self.divisor - 1), tick.eq(0)]
                    m.next = "DATA"
                    with m.If(rx):  # a glitch
                        m.next = "IDLE"
            with m.State("DATA"):
                m.d.sync += [timer.eq(timer - 1), tick.eq(timer == 1)]
                with m.If(tick):
                    m.d.sync += [
                        timer.eq(self.divisor - 1),
                        tick.eq(0),
                        shift.eq(Cat(shift[1:], rx)),
                        bits.eq(bits + 1),
                    ]
                    with m.If(bits == 8):
                        m.next = "DONE"
            with m.State("DONE"):
                # shift: eight data bits, stop bit on top.
                with m.If(shift[8]):
                    m.d.sync += [self.octets.payload.eq(shift[:8]), self.octets.valid.eq(1)]
                    m.d.comb += self.overflow.eq(self.octets.valid & ~self.octets.ready)
                with m.Else():
                    m.d.comb += self.framing_error.eq(1)
                m.next = "RECOVER"
            with m.State("RECOVER"), m.If(rx):
                m.next = "IDLE"
        return m


class UartTransmitter(wiring.Component):
    """Members: octets : In(stream); tx : Out."""

    def __init__(self, *, divisor: int) -> None:
        self.divisor = divisor
        super().__init__({"tx": Out(1, init=1), "octets": In(stream.Signature(8))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        timer = Signal(range(self.divisor))
        tick = Signal()
        """The timer is at zero."""
        bits = Signal(range(11))
        idle = Signal(init=1)
        shift = Signal(10, init=0x3FF)
        m.d.comb += [self.octets.ready.eq(idle), self.tx.eq(shift[0])]
        with m.If(idle), m.If(self.octets.valid):
            m.d.sync += [shift.eq(Cat(Const(0, 1), self.octets.payload, Const(1, 1))), bits.eq(10), idle.eq(0)]
            m.d.sync += [timer.eq(self.divisor - 1), tick.eq(0)]
        with m.Elif(tick):
            m.d.sync += [timer.eq(self.divisor - 1), tick.eq(0), shift.eq(Cat(shift[1:], Const(1, 1)))]
            m.d.sync += [bits.eq(bits - 1), idle.eq(bits == 1)]
        with m.Else():
            m.d.sync += [timer.eq(timer - 1), tick.eq(timer == 1)]
        return m
