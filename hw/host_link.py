"""Serial frames to host bus accesses: the hardware side of `nnloom.arch.link`."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.crc.catalog import CRC32_ETHERNET
from amaranth.lib.wiring import In, Out

from nnloom.arch.isa import HostAddress, Register
from nnloom.arch.link import REQUEST_SYNC, RESPONSE_SYNC, LinkStatus, Opcode

from .host_bus import HostBus

__all__ = ["HostLink"]


class HostLink(wiring.Component):
    """Answers one request at a time.

    A single-word write to the CONTROL register is held back until its CRC was checked, all other writes go to
    the bus as they arrive. A request that pauses for `timeout` cycles is dropped.

    Members
    -------
    receive : In(stream of bytes), transmit : Out(stream of bytes), host : Out(HostBus)
    """

    def __init__(self, *, timeout: int) -> None:
        self.timeout = timeout
        super().__init__(
            {"receive": In(stream.Signature(8)), "transmit": Out(stream.Signature(8)), "host": Out(HostBus)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        host = self.host
        rx, tx = self.receive, self.transmit
        m.submodules.crc = crc = CRC32_ETHERNET(data_width=8).create()

        opcode = Signal(8)
        address, word = Signal(32), Signal(32)
        count = Signal(16)
        index = Signal(4)
        status = Signal(8)
        idle_cycles = Signal(range(self.timeout + 1))
        held = Signal()
        control = HostAddress.REGISTERS + Register.CONTROL

        taken = rx.valid & rx.ready
        sent = tx.valid & tx.ready
        receiving = Signal()
        expired = Signal()
        with m.If(taken | ~receiving):
            m.d.sync += idle_cycles.eq(0)
        with m.Elif(~expired):
            m.d.sync += idle_cycles.eq(idle_cycles + 1)
        m.d.comb += expired.eq(idle_cycles == self.timeout)

        m.d.comb += [
            host.request.payload.address.eq(address),
            host.request.payload.data.eq(word),
            host.request.payload.write.eq(opcode == Opcode.WRITE),
        ]

        def abandon() -> None:
            with m.If(expired):
                m.next = "SYNC"

        with m.FSM():
            with m.State("SYNC"):
                m.d.comb += rx.ready.eq(1)
                m.d.sync += [index.eq(0), held.eq(0), status.eq(LinkStatus.OK)]
                m.d.comb += [crc.start.eq(1), crc.data.eq(rx.payload), crc.valid.eq(taken)]
                with m.If(taken & (rx.payload == REQUEST_SYNC)):
                    m.next = "HEADER"
            with m.State("HEADER"):
                m.d.comb += [receiving.eq(1), rx.ready.eq(1), crc.data.eq(rx.payload), crc.valid.eq(taken)]
                abandon()
                with m.If(taken):
                    header = Cat(opcode, address, count)
                    m.d.sync += [header.eq(Cat(header[8:], rx.payload)), index.eq(index + 1)]
                    with m.If(index == 6):
                        m.d.sync += index.eq(0)
                        m.next = "DISPATCH"
            with m.State("DISPATCH"):
                m.d.comb += receiving.eq(1)
                m.next = "CHECK"
                with m.If((opcode == Opcode.WRITE) & (count != 0)):
                    m.next = "PAYLOAD"
                with m.Elif((opcode != Opcode.WRITE) & (opcode != Opcode.READ)):
                    m.d.sync += status.eq(LinkStatus.BAD_OPCODE)
                    m.next = "STATUS_SYNC"
            with m.State("PAYLOAD"):
                m.d.comb += [receiving.eq(1), rx.ready.eq(1), crc.data.eq(rx.payload), crc.valid.eq(taken)]
                abandon()
                with m.If(taken):
                    m.d.sync += [word.eq(Cat(word[8:], rx.payload)), index.eq(index + 1)]
                    with m.If(index == 3):
                        m.d.sync += [index.eq(0), count.eq(count - 1)]
                        m.next = "WRITE"
                        with m.If((address == control) & (count == 1)):
                            m.d.sync += held.eq(1)
                            m.next = "CHECK"
            with m.State("WRITE"):
                m.d.comb += [receiving.eq(1), host.request.valid.eq(1)]
                with m.If(host.request.ready):
                    m.d.sync += address.eq(address + 4)
                    m.next = "PAYLOAD"
                    with m.If(count == 0):
                        m.next = "CHECK"
            with m.State("CHECK"):
                m.d.comb += [receiving.eq(1), rx.ready.eq(1), crc.data.eq(rx.payload), crc.valid.eq(taken)]
                abandon()
                with m.If(taken):
                    m.d.sync += index.eq(index + 1)
                    with m.If(index == 3):
                        m.d.sync += index.eq(0)
                        m.next = "CHECKED"
            with m.State("CHECKED"):
                m.d.sync += status.eq(Mux(crc.match_detected, LinkStatus.OK, LinkStatus.BAD_CRC))
                m.next = "STATUS_SYNC"
                with m.If(crc.match_detected & held):
                    m.next = "HELD"
            with m.State("HELD"):
                m.d.comb += host.request.valid.eq(1)
                with m.If(host.request.ready):
                    m.next = "STATUS_SYNC"
            with m.State("STATUS_SYNC"):
                m.d.comb += [tx.payload.eq(RESPONSE_SYNC), tx.valid.eq(1)]
                m.d.comb += [crc.start.eq(1), crc.data.eq(RESPONSE_SYNC), crc.valid.eq(sent)]
                with m.If(sent):
                    m.next = "STATUS"
            with m.State("STATUS"):
                m.d.comb += [tx.payload.eq(status), tx.valid.eq(1), crc.data.eq(status), crc.valid.eq(sent)]
                with m.If(sent):
                    m.next = "RESPONSE_CRC"
                    with m.If((opcode == Opcode.READ) & (status == LinkStatus.OK) & (count != 0)):
                        m.next = "READ"
            with m.State("READ"):
                m.d.comb += host.request.valid.eq(1)
                with m.If(host.request.ready):
                    m.d.sync += [address.eq(address + 4), count.eq(count - 1)]
                    m.next = "ANSWER"
            with m.State("ANSWER"):
                m.d.comb += host.response.ready.eq(1)
                m.d.sync += [word.eq(host.response.payload.data), index.eq(0)]
                with m.If(host.response.valid):
                    m.next = "DATA"
            with m.State("DATA"):
                m.d.comb += [tx.payload.eq(word[:8]), tx.valid.eq(1), crc.data.eq(word[:8]), crc.valid.eq(sent)]
                with m.If(sent):
                    m.d.sync += [word.eq(word >> 8), index.eq(index + 1)]
                    with m.If(index == 3):
                        m.d.sync += index.eq(0)
                        m.next = "READ"
                        with m.If(count == 0):
                            m.next = "RESPONSE_CRC"
            with m.State("RESPONSE_CRC"):
                m.d.sync += [word.eq(crc.crc), index.eq(0)]
                m.next = "RESPONSE_CRC_BYTES"
            with m.State("RESPONSE_CRC_BYTES"):
                m.d.comb += [tx.payload.eq(word[:8]), tx.valid.eq(1)]
                with m.If(sent):
                    m.d.sync += [word.eq(word >> 8), index.eq(index + 1)]
                    with m.If(index == 3):
                        m.next = "SYNC"
        return m
