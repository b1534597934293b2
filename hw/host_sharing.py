"""Host buses that share one, and one that leads to several."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch.dma import DMA_BASE

from .host_bus import HostBus, host_bus

__all__ = ["MOST_READS", "HostArbiter", "HostDecoder"]

MOST_READS = 16
"""Of a host, that wait for their answers."""

_DMA_BIT = (DMA_BASE - 1).bit_length()


class HostArbiter(wiring.Component):
    """Two hosts on one bus; `first` goes first. A host keeps the bus until its reads are answered, and may ask for more
    of them meanwhile: `MOST_READS` at most.

    Parameters
    ----------
    width
        Bits of data of all three.

    Members
    -------
    first, second : In(host_bus(width))
    bus : Out(host_bus(width))
    pause : In; no further request is passed on
    idle : Out; no read waits for its answer
    from_second : Out; with a request on `bus`: it is `second`'s
    """

    def __init__(self, *, width: int = 32) -> None:
        super().__init__(
            {
                "first": In(host_bus(width)),
                "second": In(host_bus(width)),
                "bus": Out(host_bus(width)),
                "pause": In(1),
                "idle": Out(1),
                "from_second": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        request, response = self.bus.request, self.bus.response
        reads = Signal(range(MOST_READS + 1))
        reading, owner, held, choice = Signal(), Signal(), Signal(), Signal()
        m.d.comb += reading.eq(reads != 0)
        # A request that was offered stays, whatever comes meanwhile.
        m.d.comb += choice.eq(Mux(held | reading, owner, ~self.first.request.valid))
        m.d.sync += [held.eq(request.valid & ~request.ready & ~self.pause), owner.eq(choice)]
        for index, host in enumerate((self.first, self.second)):
            with m.If((choice == index) & (reads != MOST_READS) & ~self.pause):
                m.d.comb += [
                    request.payload.eq(host.request.payload),
                    request.valid.eq(host.request.valid),
                    host.request.ready.eq(request.ready),
                ]
            m.d.comb += host.response.payload.eq(response.payload)
            with m.If(reading & (owner == index)):
                m.d.comb += [host.response.valid.eq(response.valid), response.ready.eq(host.response.ready)]
        asked, answered = Signal(), Signal()
        m.d.comb += [
            asked.eq(request.valid & request.ready & ~request.payload.write),
            answered.eq(response.valid & response.ready),
        ]
        m.d.sync += reads.eq(reads + asked - answered)
        m.d.comb += [self.idle.eq(~reading), self.from_second.eq(choice)]
        return m


class HostDecoder(wiring.Component):
    """One host, two address ranges: those with one address bit clear, and set. One read at a time.

    Parameters
    ----------
    bit
        The address bit; default: that of DMA_BASE.

    Members
    -------
    host : In(HostBus)
    low, high : Out(HostBus)
    """

    def __init__(self, *, bit: int = _DMA_BIT) -> None:
        self.bit = bit
        super().__init__({"host": In(HostBus), "low": Out(HostBus), "high": Out(HostBus)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        request = self.host.request
        upper = Signal()
        answers_high = Signal()
        m.d.comb += upper.eq(request.payload.address[self.bit])
        with m.If(request.valid & request.ready & ~request.payload.write):
            m.d.sync += answers_high.eq(upper)
        for index, target in enumerate((self.low, self.high)):
            m.d.comb += target.request.payload.eq(request.payload)
            with m.If(upper == index):
                m.d.comb += [target.request.valid.eq(request.valid), request.ready.eq(target.request.ready)]
            with m.If(answers_high == index):
                m.d.comb += [
                    self.host.response.valid.eq(target.response.valid),
                    self.host.response.payload.eq(target.response.payload),
                    target.response.ready.eq(self.host.response.ready),
                ]
        return m
