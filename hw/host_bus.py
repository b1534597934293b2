"""The bus between a host link (UART, AXI, test bench) and the accelerator."""

from amaranth.hdl import Module
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["HostBus", "HostRequest", "HostResponse", "HostWidener", "host_bus"]


class HostRequest(data.Struct):
    """One 32-bit access; the address map is `nnloom.arch.isa`."""

    write: 1
    address: 32
    """byte address, a multiple of 4"""
    data: 32


class HostResponse(data.Struct):
    """Answer to a read; writes have none."""

    data: 32


HostBus = wiring.Signature(
    {
        "request": Out(stream.Signature(HostRequest)),
        "response": In(stream.Signature(HostResponse)),
    }
)
"""Seen from the host: requests out, responses in. Responses come in the order of the reads."""


def host_bus(width: int = 32) -> wiring.Signature:
    """A `HostBus` with `width` bits of data: those of program, weight and activation memory; other windows use the
    lowest 32. Addresses of these memories are then multiples of `width` / 8."""
    if width == 32:
        return HostBus
    request = data.StructLayout({"write": 1, "address": 32, "data": width})
    response = data.StructLayout({"data": width})
    return wiring.Signature({"request": Out(stream.Signature(request)), "response": In(stream.Signature(response))})


class HostWidener(wiring.Component):
    """A host with 32 bits on a wider bus, for windows that use the lowest 32 bits.

    Members
    -------
    host : In(HostBus)
    bus : Out(host_bus(width))
    """

    def __init__(self, *, width: int) -> None:
        super().__init__({"host": In(HostBus), "bus": Out(host_bus(width))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        host, bus = self.host, self.bus
        m.d.comb += [
            bus.request.valid.eq(host.request.valid),
            host.request.ready.eq(bus.request.ready),
            host.response.valid.eq(bus.response.valid),
            host.response.payload.data.eq(bus.response.payload.data),
            bus.response.ready.eq(host.response.ready),
            *(bus.request.payload[name].eq(host.request.payload[name]) for name in ("write", "address", "data")),
        ]
        return m
