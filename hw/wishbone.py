"""Wishbone B4 responder in front of a host bus."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .host_bus import HostBus

__all__ = ["WishboneBridge", "WishboneSignature"]


class WishboneSignature(wiring.Signature):
    """Wishbone B4 classic, 32 bits of data in units of bytes; seen from the initiator.

    Parameters
    ----------
    address_width
        Bits of `adr`, which counts 32-bit words (LiteX's `addressing="word"`).
    """

    def __init__(self, *, address_width: int) -> None:
        self.address_width = address_width
        super().__init__(
            {
                "cyc": Out(1),
                "stb": Out(1),
                "we": Out(1),
                "adr": Out(address_width),
                "dat_w": Out(32),
                "sel": Out(4),
                "dat_r": In(32),
                "ack": In(1),
                "err": In(1),
            }
        )


class WishboneBridge(wiring.Component):
    """Turns Wishbone cycles into host bus requests: word `adr` is the host bus's byte address 4 * `adr`.

    A cycle is registered before it is requested, and its end is registered, too, so nothing is combinational between
    the buses. A write ends when the host bus has taken it, two cycles after its begin at the earliest, a read when its
    answer is here. The host bus has no byte enables: a write of some bytes of a word does nothing and ends with `err`,
    one of no bytes does nothing. If the initiator gives a cycle up (`cyc` goes low), what was requested still happens,
    and no `ack` tells of it.

    Members
    -------
    bus : In(WishboneSignature)
    host : Out(HostBus)
    """

    def __init__(self, *, address_width: int = 30) -> None:
        self.address_width = address_width
        super().__init__({"bus": In(WishboneSignature(address_width=address_width)), "host": Out(HostBus)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        bus, request, response = self.bus, self.host.request, self.host.response
        requested = Signal.like(request.payload, name="requested")
        given_up = Signal()
        wanted = bus.cyc & ~given_up
        m.d.comb += request.payload.eq(requested)
        m.d.sync += [bus.ack.eq(0), bus.err.eq(0)]
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [
                    given_up.eq(0),
                    requested.write.eq(bus.we),
                    requested.address.eq(bus.adr << 2),
                    requested.data.eq(bus.dat_w),
                ]
                # In the cycle of the last one's end the initiator still shows it.
                with m.If(bus.cyc & bus.stb & ~bus.ack & ~bus.err):
                    with m.If(~bus.we | bus.sel.all()):
                        m.next = "REQUEST"
                    with m.Else():
                        m.d.sync += [bus.ack.eq(~bus.sel.any()), bus.err.eq(bus.sel.any())]
            with m.State("REQUEST"):
                m.d.comb += request.valid.eq(1)
                m.d.sync += given_up.eq(~wanted)
                with m.If(request.ready):
                    m.next = "IDLE"
                    with m.If(requested.write):
                        m.d.sync += bus.ack.eq(wanted)
                    with m.Else():
                        m.next = "RESPONSE"
            with m.State("RESPONSE"):
                m.d.comb += response.ready.eq(1)
                m.d.sync += given_up.eq(~wanted)
                with m.If(response.valid):
                    m.d.sync += [bus.dat_r.eq(response.payload.data), bus.ack.eq(wanted)]
                    m.next = "IDLE"
        return m
