"""DMA between DDR (AXI4) and the host bus, driven by lists of descriptors in DDR (`nnloom.arch.dma`)."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch.dma import (
    BUFFER_ALIGNMENT,
    DESCRIPTOR_BYTES,
    DMA_MAGIC,
    DmaCause,
    DmaCommand,
    DmaControl,
    DmaRegister,
)
from nnloom.arch.isa import HostAddress, Register, Status

from .axi import AxiResponse, AxiSignature
from .host_bus import HostBus

__all__ = ["DmaEngine"]

IN_FLIGHT = 4
"""Read bursts that may be under way at once: they hide the latency of DDR."""

_NORMAL_MEMORY = 0b0011
"""AxCACHE: modifiable and bufferable, so that interconnects may change the width of beats."""
_INCREMENTING = 1


class DescriptorWords(data.Struct):
    """A descriptor as it lies in DDR."""

    ddr_address: 32
    host_address: 32
    words: 24
    command: 4
    unused: 3
    last: 1
    row_words: 16
    row_step: 16


class DmaEngine(wiring.Component):
    """Fetches and executes a list of descriptors.

    Bursts are of full beats, at most `burst_beats`, and end at multiples of their largest size, so that none crosses
    4 KiB. Reads: up to four bursts under way; of the last beat the surplus is dropped. Writes: a burst is collected
    from the host bus before its address is sent; strobes leave out what is behind the last word.

    An error response, or `DmaControl.ABORT`, ends the list: no further burst begins, those under way are completed (the
    data is dropped), then DONE is set. After an abort the accelerator is reset. A reset of the whole engine forgets
    bursts under way, so the interconnect has to be reset with it.

    Parameters
    ----------
    data_width
        Bits of a beat: 32, 64 or 128.
    burst_beats
        Most beats of a burst, a power of two; 16 is what AXI3 takes too.

    Members
    -------
    registers : In(HostBus); the addresses are those of `DmaRegister`
    host : Out(HostBus); to the accelerator
    axi : Out(AxiSignature)
    engine_reset, engine_reset_done : Out, In; asks for a reset of the accelerator until it is done
    interrupt : Out; level
    """

    def __init__(self, *, data_width: int, burst_beats: int = 16) -> None:
        if data_width not in (32, 64, 128):
            raise ValueError(f"AXI data must be 32, 64 or 128 bits wide, not {data_width}")
        if not 4 <= burst_beats <= 256 or burst_beats & (burst_beats - 1) or burst_beats * data_width > 8 * 4096:
            raise ValueError(f"bursts must be a power of two of beats, 4 to 256 and at most 4 KiB, not {burst_beats}")
        self.data_width = data_width
        self.burst_beats = burst_beats
        super().__init__(
            {
                "registers": In(HostBus),
                "host": Out(HostBus),
                "axi": Out(AxiSignature(address_width=32, data_width=data_width)),
                "engine_reset": Out(1),
                "engine_reset_done": In(1),
                "interrupt": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        axi, request, response = self.axi, self.host.request, self.host.response
        beat_bytes = self.data_width // 8
        beat_words = beat_bytes // 4
        size = (beat_bytes - 1).bit_length()
        burst_bits = (self.burst_beats - 1).bit_length()

        busy, done, error, aborted = (Signal(name=n) for n in ("busy", "done", "error", "aborted"))
        cause = Signal(4)
        list_address, error_address = Signal(32), Signal(32)
        completed = Signal(32)
        start, abort, resetting = Signal(), Signal(), Signal()
        self._registers(
            m,
            Cat(busy, done, error, aborted, Const(0, 4), cause),
            start,
            abort,
            resetting,
            list_address,
            completed,
            error_address,
            [done, error, aborted],
        )
        stopping = Signal()
        m.d.comb += stopping.eq(abort | error)

        def fail(reason: DmaCause, address=None) -> list:
            return [error.eq(1), cause.eq(reason), *([] if address is None else [error_address.eq(address)])]

        m.d.comb += [
            *(getattr(axi, f"{c}size").eq(size) for c in ("aw", "ar")),
            *(getattr(axi, f"{c}burst").eq(_INCREMENTING) for c in ("aw", "ar")),
            *(getattr(axi, f"{c}cache").eq(_NORMAL_MEMORY) for c in ("aw", "ar")),
        ]

        def first_beats(address, left):
            """Beats of the next burst: to the next multiple of the largest burst, or what is left."""
            room = self.burst_beats - address[size : size + burst_bits]
            return Mux(left < room, left, room)[: burst_bits + 1]

        # Read bursts: addresses run ahead of the data.
        read_address, read_left = Signal(32), Signal(25)  # of the next burst; beats not yet asked for
        answer_address = Signal(32)  # of the beat that comes next
        asked = Signal(range(IN_FLIGHT + 1))  # bursts under way
        read_beats = Signal(burst_bits + 1)
        m.d.comb += [
            read_beats.eq(first_beats(read_address, read_left)),
        ]
        burst_ends = Signal()
        m.d.comb += burst_ends.eq(axi.rvalid & axi.rready & axi.rlast)
        ask = Signal()
        m.d.comb += ask.eq(~axi.arvalid & (read_left != 0) & (asked != IN_FLIGHT) & ~stopping)
        with m.If(axi.arvalid & axi.arready):
            m.d.sync += axi.arvalid.eq(0)
        with m.If(ask):
            m.d.sync += [
                axi.arvalid.eq(1),
                axi.araddr.eq(read_address),
                axi.arlen.eq(read_beats - 1),
                read_address.eq(read_address + (read_beats << size)),
                read_left.eq(read_left - read_beats),
            ]
        m.d.sync += asked.eq(asked + ask - burst_ends)
        good = Signal()
        m.d.comb += good.eq((axi.rresp == AxiResponse.OKAY) | (axi.rresp == AxiResponse.EXOKAY))
        with m.If(axi.rvalid & axi.rready):
            m.d.sync += answer_address.eq(answer_address + beat_bytes)

        # The transfer at hand.
        descriptor = Signal(DescriptorWords)
        beats = Signal(25)
        m.d.comb += beats.eq((descriptor.words + (beat_words - 1)) >> (beat_words - 1).bit_length())
        words_left = Signal(24)  # on the host bus
        host_address, row_address = Signal(32), Signal(32)
        row_left = Signal(16)
        taken = Signal()
        m.d.comb += taken.eq(request.valid & request.ready)
        next_row = Signal(32)
        m.d.comb += next_row.eq(row_address + (descriptor.row_step << 2))
        transferred = Signal()  # a request of the transfer was taken, not one of a RUN
        with m.If(transferred):
            m.d.sync += [words_left.eq(words_left - 1), host_address.eq(host_address + 4), row_left.eq(row_left - 1)]
            with m.If((row_left == 1) & (descriptor.row_words != 0)):
                m.d.sync += [
                    host_address.eq(next_row),
                    row_address.eq(next_row),
                    row_left.eq(descriptor.row_words),
                ]
        m.d.comb += request.payload.address.eq(host_address)

        # One beat, towards the host bus or from it.
        beat = Signal(data.ArrayLayout(32, beat_words))
        beat_index = Signal(range(max(beat_words, 2)))
        beat_full = Signal()

        # One burst of a STORE.
        m.submodules.burst = burst = memory.Memory(
            shape=self.data_width, depth=self.burst_beats, init=[], attrs={"ram_style": "distributed"}
        )
        burst_write, burst_read = burst.write_port(), burst.read_port(domain="comb")
        burst_count = Signal(burst_bits + 1)  # beats collected
        sent = Signal(burst_bits + 1)  # beats sent
        write_address, write_left = Signal(32), Signal(25)
        write_beats = Signal(burst_bits + 1)
        m.d.comb += write_beats.eq(first_beats(write_address, write_left))
        beat_last = Signal()
        m.d.comb += [
            burst_write.addr.eq(burst_count),
            burst_write.data.eq(beat.as_value()),
            burst_read.addr.eq(sent),
            axi.wdata.eq(burst_read.data),
            axi.wlast.eq(sent + 1 == burst_count),
            beat_last.eq((write_left == burst_count) & axi.wlast),
        ]
        surplus = descriptor.words[: (beat_words - 1).bit_length()] if beat_words > 1 else Const(0, 1)
        full = (1 << beat_bytes) - 1
        masks = [full, *((1 << 4 * i) - 1 for i in range(1, beat_words))]
        m.d.comb += axi.wstrb.eq(Mux(beat_last, Array(Const(v, beat_bytes) for v in masks)[surplus], full))

        fetched = Signal(range(DESCRIPTOR_BYTES // beat_bytes + 1))
        engine_status = Signal(3)
        with m.FSM():
            with m.State("IDLE"), m.If(start):
                m.d.sync += [
                    *(s.eq(0) for s in (done, error, aborted, completed, error_address, abort)),
                    cause.eq(DmaCause.NONE),
                    busy.eq(1),
                    answer_address.eq(list_address),
                    read_address.eq(list_address),
                    read_left.eq(DESCRIPTOR_BYTES // beat_bytes),
                    fetched.eq(0),
                ]
                with m.If(list_address[: (BUFFER_ALIGNMENT - 1).bit_length()].any()):
                    m.d.sync += [*fail(DmaCause.DESCRIPTOR, list_address), read_left.eq(0)]
                    m.next = "END"
                with m.Else():
                    m.next = "FETCH"
            with m.State("FETCH"):
                m.d.comb += axi.rready.eq(1)
                with m.If(axi.rvalid):
                    m.d.sync += [
                        descriptor.as_value().eq(Cat(descriptor.as_value(), axi.rdata)[-8 * DESCRIPTOR_BYTES :]),
                        fetched.eq(fetched + 1),
                    ]
                    with m.If(~good & ~error):
                        m.d.sync += fail(DmaCause.FETCH, answer_address)
                with m.If(fetched == DESCRIPTOR_BYTES // beat_bytes):
                    m.next = "DECODE"
                with m.Elif(stopping & (asked == 0)):
                    m.next = "END"
            with m.State("DECODE"):
                m.d.sync += [
                    words_left.eq(descriptor.words),
                    host_address.eq(descriptor.host_address),
                    row_address.eq(descriptor.host_address),
                    row_left.eq(descriptor.row_words),
                    answer_address.eq(descriptor.ddr_address),
                    write_address.eq(descriptor.ddr_address),
                    write_left.eq(beats),
                    beat_full.eq(0),
                    beat_index.eq(0),
                    burst_count.eq(0),
                    sent.eq(0),
                ]
                misplaced = Signal()
                m.d.comb += misplaced.eq(
                    descriptor.ddr_address[: (BUFFER_ALIGNMENT - 1).bit_length()].any()
                    | descriptor.host_address[:2].any()
                    | (descriptor.words == 0)
                )
                with m.If(stopping):
                    m.next = "END"
                with m.Elif(descriptor.command == DmaCommand.RUN):
                    m.next = "RUN"
                with m.Elif(misplaced | (descriptor.command > DmaCommand.RUN)):
                    m.d.sync += fail(DmaCause.DESCRIPTOR, list_address + (completed << 4))
                    m.next = "END"
                with m.Elif(descriptor.command == DmaCommand.LOAD):
                    m.d.sync += [read_address.eq(descriptor.ddr_address), read_left.eq(beats)]
                    m.next = "LOAD"
                with m.Else():
                    m.next = "STORE"
            with m.State("LOAD"):
                last_word = Signal()
                m.d.comb += [
                    last_word.eq((beat_index == beat_words - 1) | (words_left == 1)),
                    request.payload.write.eq(1),
                    request.payload.data.eq(beat[beat_index]),
                    request.valid.eq(beat_full),
                    transferred.eq(taken),
                    # The next beat may come as the last word of this one goes.
                    axi.rready.eq(~beat_full | (taken & last_word)),
                ]
                with m.If(taken):
                    m.d.sync += beat_index.eq(Mux(last_word, 0, beat_index + 1))
                    with m.If(last_word):
                        m.d.sync += beat_full.eq(0)
                with m.If(axi.rvalid & axi.rready):
                    m.d.sync += [beat.as_value().eq(axi.rdata), beat_full.eq(good & ~stopping)]
                    with m.If(~good & ~error):
                        m.d.sync += fail(DmaCause.READ, answer_address)
                with m.If(~beat_full & (asked == 0) & ~axi.arvalid & (stopping | (words_left == 0))):
                    m.next = "NEXT"
            with m.State("STORE"):
                # One word after the other: the accelerator answers a read before it takes the next request.
                with m.If(beat_full):
                    m.d.comb += burst_write.en.eq(1)
                    m.d.sync += [beat_full.eq(0), burst_count.eq(burst_count + 1)]
                with m.Elif(stopping):
                    m.next = "NEXT"
                with m.Elif(burst_count == write_beats):
                    m.d.sync += [axi.awvalid.eq(1), axi.awaddr.eq(write_address), axi.awlen.eq(write_beats - 1)]
                    m.d.sync += axi.wvalid.eq(1)
                    m.next = "SEND"
                with m.Else():
                    m.next = "STORE_REQUEST"
            with m.State("STORE_REQUEST"):
                m.d.comb += [request.valid.eq(1), transferred.eq(taken)]
                with m.If(taken):
                    m.next = "STORE_WORD"
            with m.State("STORE_WORD"):
                m.d.comb += response.ready.eq(1)
                with m.If(response.valid):
                    m.d.sync += beat[beat_index].eq(response.payload.data)
                    with m.If((beat_index == beat_words - 1) | (words_left == 0)):
                        m.d.sync += [beat_full.eq(1), beat_index.eq(0)]
                    with m.Else():
                        m.d.sync += beat_index.eq(beat_index + 1)
                    m.next = "STORE"
            with m.State("SEND"):
                with m.If(axi.awready):
                    m.d.sync += axi.awvalid.eq(0)
                with m.If(axi.wready):
                    m.d.sync += sent.eq(sent + 1)
                    with m.If(axi.wlast):
                        m.d.sync += axi.wvalid.eq(0)
                with m.If(~axi.awvalid & ~axi.wvalid):
                    m.d.comb += axi.bready.eq(1)
                    with m.If(axi.bvalid):
                        m.d.sync += [
                            burst_count.eq(0),
                            sent.eq(0),
                            write_address.eq(write_address + (burst_count << size)),
                            write_left.eq(write_left - burst_count),
                        ]
                        with m.If((axi.bresp == AxiResponse.SLVERR) | (axi.bresp == AxiResponse.DECERR)):
                            m.d.sync += fail(DmaCause.WRITE, write_address)
                            m.next = "NEXT"
                        with m.Elif(write_left == burst_count):
                            m.next = "NEXT"
                        with m.Else():
                            m.next = "STORE"
            with m.State("RUN"):
                m.d.comb += [
                    request.valid.eq(1),
                    request.payload.write.eq(1),
                    request.payload.address.eq(HostAddress.REGISTERS + Register.PROGRAM_START),
                    request.payload.data.eq(descriptor.host_address),
                ]
                with m.If(taken):
                    m.next = "RUN_START"
            with m.State("RUN_START"):
                m.d.comb += [
                    request.valid.eq(1),
                    request.payload.write.eq(1),
                    request.payload.address.eq(HostAddress.REGISTERS + Register.CONTROL),
                    request.payload.data.eq(1),
                ]
                with m.If(taken):
                    m.next = "RUN_POLL"
            with m.State("RUN_POLL"):
                m.d.comb += [
                    request.valid.eq(1),
                    request.payload.address.eq(HostAddress.REGISTERS + Register.STATUS),
                ]
                with m.If(taken):
                    m.next = "RUN_STATUS"
            with m.State("RUN_STATUS"):
                m.d.comb += response.ready.eq(1)
                m.d.comb += engine_status.eq(response.payload.data)
                with m.If(response.valid):
                    with m.If((engine_status & Status.BUSY).any() & ~abort):
                        m.next = "RUN_POLL"
                    with m.Else():
                        with m.If((engine_status & Status.ERROR).any() & ~abort):
                            m.d.sync += fail(DmaCause.ENGINE)
                        m.next = "NEXT"
            with m.State("NEXT"):
                # `read_left` is not zero if the list is ended early.
                m.d.sync += [read_left.eq(0), fetched.eq(0)]
                with m.If(stopping):
                    m.next = "END"
                with m.Else():
                    m.d.sync += completed.eq(completed + 1)
                    following = Signal(32)
                    m.d.comb += following.eq(list_address + ((completed + 1) << 4))
                    with m.If(descriptor.last):
                        m.next = "END"
                    with m.Else():
                        m.d.sync += [
                            answer_address.eq(following),
                            read_address.eq(following),
                            read_left.eq(DESCRIPTOR_BYTES // beat_bytes),
                        ]
                        m.next = "FETCH"
            with m.State("END"):
                m.d.sync += read_left.eq(0)
                m.d.comb += self.engine_reset.eq(abort)
                with m.If(~abort | self.engine_reset_done):
                    m.d.sync += [busy.eq(0), done.eq(1), aborted.eq(abort), abort.eq(0)]
                    m.next = "IDLE"
        with m.If(resetting):
            m.d.comb += self.engine_reset.eq(1)
            with m.If(self.engine_reset_done):
                m.d.sync += resetting.eq(0)
        return m

    def _registers(
        self,
        m: Module,
        status,
        start: Signal,
        abort: Signal,
        resetting: Signal,
        list_address: Signal,
        completed: Signal,
        error_address: Signal,
        flags: list[Signal],
    ) -> None:
        """The registers; `abort` and `resetting` stay set until the engine clears them."""
        request, response = self.registers.request, self.registers.response
        busy, done = status[0], status[1]
        enable = Signal()
        answering = Signal()
        answer = Signal(32)
        offset = request.payload.address[:12]
        written = request.payload.data
        m.d.comb += [
            request.ready.eq(~answering & ~resetting),
            response.valid.eq(answering),
            response.payload.data.eq(answer),
            self.interrupt.eq(enable & done),
        ]
        with m.If(response.valid & response.ready):
            m.d.sync += answering.eq(0)
        with m.If(request.valid & request.ready):
            with m.If(request.payload.write), m.Switch(offset):
                with m.Case(DmaRegister.CONTROL):
                    m.d.comb += start.eq((written & DmaControl.START).any() & ~busy)
                    with m.If((written & DmaControl.ABORT).any() & busy):
                        m.d.sync += abort.eq(1)
                    with m.If((written & DmaControl.RESET).any() & ~busy):
                        m.d.sync += resetting.eq(1)
                with m.Case(DmaRegister.STATUS), m.If(~busy):
                    m.d.sync += [flag.eq(0) for flag in flags]
                with m.Case(DmaRegister.LIST), m.If(~busy):
                    m.d.sync += list_address.eq(written)
                with m.Case(DmaRegister.INTERRUPT_ENABLE):
                    m.d.sync += enable.eq(written[0])
            with m.Else():
                m.d.sync += [answering.eq(1), answer.eq(0)]
                with m.Switch(offset):
                    for register, value in (
                        (DmaRegister.ID, Const(DMA_MAGIC, 32)),
                        (DmaRegister.STATUS, status),
                        (DmaRegister.LIST, list_address),
                        (DmaRegister.COMPLETED, completed),
                        (DmaRegister.ERROR_ADDRESS, error_address),
                        (DmaRegister.INTERRUPT_ENABLE, enable),
                    ):
                        with m.Case(register):
                            m.d.sync += answer.eq(value)
