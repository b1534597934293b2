"""The bus between a host link (UART, AXI, test bench) and the accelerator."""

from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["HostBus", "HostRequest", "HostResponse"]


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
