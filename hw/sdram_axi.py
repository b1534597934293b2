"""The bus side of the SDRAM controller: AXI4 bursts are cut into segments, and their data is buffered.

A segment is at most a chunk of beats of one row. It is only passed on when all its data has a place, or is there; so
nothing that happens on the bus breaks into a burst of the chip.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from .axi import AxiResponse, AxiSignature
from .sdram_timing import SdramChip

__all__ = ["WRITES_UNDER_WAY", "AnswerLayout", "SdramBuffers", "SegmentCutter", "SegmentLayout"]

WRITES_UNDER_WAY = 4
"""Write bursts that are taken before the first of them is answered."""
_INCREMENTING = 1


class SegmentLayout(data.StructLayout):
    """Beats in a row of the memory, with what their answers need.

    Parameters
    ----------
    chip, data_width
        The address counts beats of so many bits.
    chunk
        Most beats, a power of two; no segment crosses a multiple of it.
    """

    def __init__(self, chip: SdramChip, data_width: int, chunk: int) -> None:
        super().__init__(
            {
                "address": (chip.size * 8 // data_width - 1).bit_length(),
                "further": range(chunk),  # beats after the first
                "ends": 1,  # the burst with it
                "id": 1,
                "response": 2,  # not OKAY: the memory is left alone
            }
        )


class AnswerLayout(data.StructLayout):
    """What the answer to a beat that is read needs."""

    def __init__(self) -> None:
        super().__init__({"last": 1, "id": 1, "response": 2})


class BurstLayout(data.StructLayout):
    """An address channel's signals that matter."""

    def __init__(self) -> None:
        super().__init__({"id": 1, "address": 32, "further": 8, "size": 3, "kind": 2})


class SegmentCutter(wiring.Component):
    """Cuts the bursts of one direction into segments, each as soon as enough of its data is available.

    A segment every three cycles at most. Bursts that begin beyond the memory are answered with DECERR; those of several
    beats that are not incrementing, or not of the bus's full width, with SLVERR.

    Members
    -------
    burst : In(stream of BurstLayout)
    available : In; beats that are there (writes) or have a place (reads); falls by this cutter's segments only
    segment : Out(stream of SegmentLayout)
    """

    def __init__(self, chip: SdramChip, *, data_width: int, chunk: int, depth: int) -> None:
        self.chip = chip
        self.beat_bytes = data_width // 8
        self.chunk = chunk
        super().__init__(
            {
                "burst": In(stream.Signature(BurstLayout())),
                "available": In(range(depth + 1)),
                "segment": Out(stream.Signature(SegmentLayout(chip, data_width, chunk))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        burst, segment = self.burst.payload, self.segment
        size = (self.beat_bytes - 1).bit_length()
        memory_bits = (self.chip.size - 1).bit_length()
        active, counted, enough = Signal(), Signal(), Signal()
        address, left = Signal(memory_bits - size), Signal(8)

        # The first segment ends at a multiple of a chunk, or with the burst; those after it begin at one.
        bits = (self.chunk - 1).bit_length()
        first, room, ends, first_ends = Signal(bits), Signal(bits), Signal(), Signal()
        m.d.comb += [
            room.eq(~burst.address[size:][:bits]),
            first_ends.eq(burst.further <= room),
            first.eq(Mux(first_ends, burst.further, room)),
            ends.eq(~left[bits:].any()),
            segment.payload.address.eq(address),
            segment.valid.eq(enough),
            self.burst.ready.eq(~active),
        ]
        with m.If(self.burst.valid & self.burst.ready):
            beyond, odd = burst.address[memory_bits:].any(), (burst.size != size) | (burst.kind != _INCREMENTING)
            m.d.sync += [
                active.eq(1),
                counted.eq(1),
                address.eq(burst.address[size:]),
                left.eq(burst.further),
                segment.payload.further.eq(first),
                segment.payload.ends.eq(first_ends),
                segment.payload.id.eq(burst.id),
                segment.payload.response.eq(
                    Mux(beyond, AxiResponse.DECERR, Mux(odd & burst.further.any(), AxiResponse.SLVERR, 0))
                ),
            ]
        with m.If(active & ~counted):
            m.d.sync += [
                counted.eq(1),
                segment.payload.ends.eq(ends),
                segment.payload.further.eq(Mux(ends, left[:bits], -1)),
            ]
        m.d.sync += enough.eq(counted & (self.available > segment.payload.further))
        with m.If(segment.valid & segment.ready):
            m.d.sync += [
                counted.eq(0),
                enough.eq(0),
                active.eq(~segment.payload.ends),
                address.eq(address + segment.payload.further + 1),
                left.eq(left - segment.payload.further - 1),
            ]
        return m


class SdramBuffers(wiring.Component):
    """Buffers of the data and answers of an AXI4 port.

    All answers come in the order of their addresses, whatever their IDs.

    Parameters
    ----------
    data_width
        Bits of a beat.
    chunk
        Most beats of a segment.
    depth
        Beats that each buffer holds, a power of two.

    Members
    -------
    axi : In(AxiSignature)
    reads, writes : Out(stream of SegmentLayout)
    read_issued, write_issued : In; a beat of a segment goes to the chip now
    tag : In; what the answer to the beat that is read needs
    write_data, write_strobe : Out; of the beat that goes next
    read_valid, read_data : In; a beat has come from the chip
    """

    def __init__(self, chip: SdramChip, *, data_width: int, chunk: int, depth: int) -> None:
        self.chip = chip
        self.data_width = data_width
        self.chunk = chunk
        self.depth = depth
        segments = stream.Signature(SegmentLayout(chip, data_width, chunk))
        super().__init__(
            {
                "axi": In(AxiSignature(address_width=32, data_width=data_width)),
                "reads": Out(segments),
                "writes": Out(segments),
                "read_issued": In(1),
                "write_issued": In(1),
                "tag": In(AnswerLayout()),
                "write_data": Out(data_width),
                "write_strobe": Out(data_width // 8),
                "read_valid": In(1),
                "read_data": In(data_width),
            }
        )

    def _cutter(self) -> SegmentCutter:
        return SegmentCutter(self.chip, data_width=self.data_width, chunk=self.chunk, depth=self.depth)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._elaborate_reads(m)
        self._elaborate_writes(m)
        return m

    def _storage(self, m: Module, name: str, width: int, depth: int) -> tuple[memory.WritePort, memory.ReadPort]:
        """A memory in logic: written in order, read in the same cycle."""
        storage = memory.Memory(shape=unsigned(width), depth=depth, init=[], attrs={"ram_style": "distributed"})
        m.submodules[name] = storage
        write, read = storage.write_port(), storage.read_port(domain="comb")
        with m.If(write.en):
            m.d.sync += write.addr.eq(write.addr + 1)
        return write, read

    def _elaborate_reads(self, m: Module) -> None:
        axi = self.axi
        m.submodules.read_cutter = cutter = self._cutter()
        wiring.connect(m, wiring.flipped(self.reads), cutter.segment)
        m.d.comb += [
            cutter.burst.payload.eq(Cat(axi.arid, axi.araddr, axi.arlen, axi.arsize, axi.arburst)),
            cutter.burst.valid.eq(axi.arvalid),
            axi.arready.eq(cutter.burst.ready),
        ]

        words, word = self._storage(m, "read_words", self.data_width, self.depth)
        tags, tag = self._storage(m, "read_tags", AnswerLayout().size, self.depth)
        filled, room = Signal(range(self.depth + 1)), Signal(range(self.depth + 1), init=self.depth)
        pop, claimed = Signal(), Signal(range(self.chunk + 1))
        m.d.comb += [
            words.data.eq(self.read_data),
            words.en.eq(self.read_valid),
            tags.data.eq(self.tag),
            tags.en.eq(self.read_issued),
            tag.addr.eq(word.addr),
            pop.eq((filled != 0) & (~axi.rvalid | axi.rready)),
            claimed.eq(Mux(self.reads.valid & self.reads.ready, self.reads.payload.further + 1, 0)),
            cutter.available.eq(room),
        ]
        m.d.sync += [filled.eq(filled + self.read_valid - pop), room.eq(room + pop - claimed)]
        with m.If(axi.rready):
            m.d.sync += axi.rvalid.eq(0)
        with m.If(pop):
            answer = AnswerLayout()(tag.data)
            m.d.sync += [
                word.addr.eq(word.addr + 1),
                axi.rvalid.eq(1),
                axi.rdata.eq(word.data),
                axi.rlast.eq(answer.last),
                axi.rid.eq(answer.id),
                axi.rresp.eq(answer.response),
            ]

    def _elaborate_writes(self, m: Module) -> None:
        axi = self.axi
        m.submodules.write_cutter = cutter = self._cutter()
        wiring.connect(m, wiring.flipped(self.writes), cutter.segment)
        unanswered = Signal(range(WRITES_UNDER_WAY + 1))
        accepting = Signal()
        m.d.comb += [
            accepting.eq(unanswered != WRITES_UNDER_WAY),
            cutter.burst.payload.eq(Cat(axi.awid, axi.awaddr, axi.awlen, axi.awsize, axi.awburst)),
            cutter.burst.valid.eq(axi.awvalid & accepting),
            axi.awready.eq(cutter.burst.ready & accepting),
        ]
        m.d.sync += unanswered.eq(unanswered + (axi.awvalid & axi.awready) - (axi.bvalid & axi.bready))

        beat_bytes = self.data_width // 8
        words, word = self._storage(m, "write_words", self.data_width + beat_bytes, self.depth)
        held, ready = Signal(range(self.depth + 1)), Signal(range(self.depth + 1))
        claimed = Signal(range(self.chunk + 1))
        taken = Signal()
        m.d.comb += [
            axi.wready.eq(held != self.depth),
            taken.eq(axi.wvalid & axi.wready),
            words.en.eq(taken),
            words.data.eq(Cat(axi.wdata, axi.wstrb)),
            Cat(self.write_data, self.write_strobe).eq(word.data),
            claimed.eq(Mux(self.writes.valid & self.writes.ready, self.writes.payload.further + 1, 0)),
            cutter.available.eq(ready),
        ]
        m.d.sync += [held.eq(held + taken - self.write_issued), ready.eq(ready + taken - claimed)]
        with m.If(self.write_issued):
            m.d.sync += word.addr.eq(word.addr + 1)

        answers, answer = self._storage(m, "answers", 3, WRITES_UNDER_WAY)
        waiting = Signal(range(WRITES_UNDER_WAY + 1))
        answered = Signal()
        m.d.comb += [
            # What is passed on can no longer be overtaken.
            answers.en.eq(self.writes.valid & self.writes.ready & self.writes.payload.ends),
            answers.data.eq(Cat(self.writes.payload.id, self.writes.payload.response)),
            axi.bvalid.eq(waiting != 0),
            Cat(axi.bid, axi.bresp).eq(answer.data),
            answered.eq(axi.bvalid & axi.bready),
        ]
        m.d.sync += waiting.eq(waiting + answers.en - answered)
        with m.If(answered):
            m.d.sync += answer.addr.eq(answer.addr + 1)
