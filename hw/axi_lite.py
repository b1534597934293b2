"""AXI4-Lite subordinate in front of a host bus."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .axi import AxiLiteSignature, AxiResponse
from .host_bus import HostBus

__all__ = ["AxiLiteBridge"]


class AxiLiteBridge(wiring.Component):
    """Turns AXI4-Lite accesses into host bus requests at the same byte address.

    Every channel has one register, so no ready depends on its valid, nor on another channel's. A write is answered when
    the host bus has taken it, so an access that begins after the answer comes after it. Reads and writes that wait
    together take turns. The host bus has no byte enables: a write of some bytes of a word does nothing and is
    answered with SLVERR, one of no bytes does nothing. The two lowest address bits are ignored.

    Members
    -------
    axi : In(AxiLiteSignature)
    host : Out(HostBus)
    """

    def __init__(self, *, address_width: int) -> None:
        self.address_width = address_width
        super().__init__({"axi": In(AxiLiteSignature(address_width=address_width)), "host": Out(HostBus)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        axi, request, response = self.axi, self.host.request, self.host.response
        write_address, read_address = (Signal(self.address_width, name=f"{n}_address") for n in ("write", "read"))
        write_data, strobes = Signal(32), Signal(4)
        have_address, have_data, have_read, reading, write_last = (
            Signal(name=n) for n in ("have_address", "have_data", "have_read", "reading", "write_last")
        )
        m.d.comb += [axi.awready.eq(~have_address), axi.wready.eq(~have_data), axi.arready.eq(~have_read)]
        with m.If(axi.awvalid & axi.awready):
            m.d.sync += [have_address.eq(1), write_address.eq(axi.awaddr)]
        with m.If(axi.wvalid & axi.wready):
            m.d.sync += [have_data.eq(1), write_data.eq(axi.wdata), strobes.eq(axi.wstrb)]
        with m.If(axi.arvalid & axi.arready):
            m.d.sync += [have_read.eq(1), read_address.eq(axi.araddr)]
        with m.If(axi.bvalid & axi.bready):
            m.d.sync += axi.bvalid.eq(0)
        with m.If(axi.rvalid & axi.rready):
            m.d.sync += axi.rvalid.eq(0)

        can_write, can_read, choose_write = Signal(), Signal(), Signal()
        held = Signal()  # a request that was offered stays
        held_write = Signal()
        m.d.comb += [
            can_write.eq(have_address & have_data & ~axi.bvalid & ~reading),
            can_read.eq(have_read & ~axi.rvalid & ~reading),
            choose_write.eq(Mux(held, held_write, can_write & ~(can_read & write_last))),
            request.payload.write.eq(choose_write),
            request.payload.address.eq(Mux(choose_write, write_address, read_address) & ~3),
            request.payload.data.eq(write_data),
        ]
        m.d.sync += [held.eq(request.valid & ~request.ready), held_write.eq(choose_write)]
        with m.If(choose_write):
            with m.If(strobes.all()):
                m.d.comb += request.valid.eq(can_write)
            with m.If(can_write & (request.ready | ~strobes.all())):
                m.d.sync += [
                    have_address.eq(0),
                    have_data.eq(0),
                    write_last.eq(1),
                    axi.bvalid.eq(1),
                    axi.bresp.eq(Mux(strobes.all() | ~strobes.any(), AxiResponse.OKAY, AxiResponse.SLVERR)),
                ]
        with m.Else():
            m.d.comb += request.valid.eq(can_read)
            with m.If(can_read & request.ready):
                m.d.sync += [have_read.eq(0), reading.eq(1), write_last.eq(0)]
        m.d.comb += [response.ready.eq(reading), axi.rresp.eq(AxiResponse.OKAY)]
        with m.If(response.valid & response.ready):
            m.d.sync += [reading.eq(0), axi.rvalid.eq(1), axi.rdata.eq(response.payload.data)]
        return m
