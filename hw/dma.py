"""DMA between DDR (AXI4) and the host bus, driven by lists of descriptors in DDR (`nnloom.arch.dma`)."""

from dataclasses import dataclass

from amaranth.hdl import Array, Cat, Const, Module, Mux, ResetInserter, Signal, Value
from amaranth.lib import data, fifo, memory, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nnloom.arch.dma import (
    BUFFER_ALIGNMENT,
    DESCRIPTOR_BYTES,
    DESCRIPTORS_AT_ONCE,
    DMA_MAGIC,
    DmaCause,
    DmaCommand,
    DmaControl,
    DmaRegister,
)

from .axi import AxiResponse, AxiSignature
from .host_bus import HostBus, HostWidener, host_bus
from .host_sharing import HostArbiter
from .program_queue import ProgramQueue

__all__ = ["DmaEngine"]

IN_FLIGHT = 4
"""Read bursts that may be under way at once: they hide the latency of DDR."""

STORES_IN_FLIGHT = 4
"""Write bursts that may wait for their answers, with a wide port."""
STORE_REQUESTS = 32
"""Words, or beats, of a STORE with a wide port that were asked for and have not been sent."""

_NORMAL_MEMORY = 0b0011
"""AxCACHE: modifiable and bufferable, so that interconnects may change the width of beats."""
_INCREMENTING = 1


class DescriptorWords(data.Struct):
    """A descriptor as it lies in DDR."""

    ddr_address: 32
    host_address: 32
    words: 24
    command: 4
    under_way: 3
    last: 1
    row_words: 16
    row_step: 16


@dataclass(frozen=True)
class _Progress:
    """What the registers tell of the list, and what they ask for."""

    busy: Signal
    done: Signal
    error: Signal
    aborted: Signal
    cause: Signal
    list_address: Signal
    error_address: Signal
    completed: Signal
    start: Signal
    abort: Signal
    resetting: Signal
    """`abort` and `resetting` stay set until the engine clears them."""

    @property
    def outcome(self) -> list[Signal]:
        """What the list before has left, but its cause."""
        return [self.done, self.error, self.aborted, self.completed, self.error_address, self.abort]

    def fail(self, reason: DmaCause, address: Value | None = None) -> list:
        """Statements that end the list with an error."""
        return [
            self.error.eq(1),
            self.cause.eq(reason),
            *([] if address is None else [self.error_address.eq(address)]),
        ]


@dataclass(frozen=True)
class _Reads:
    """Read bursts: addresses run ahead of the data."""

    read_address: Signal
    """Of the next burst."""
    read_left: Signal
    """Beats not yet asked for."""
    answer_address: Signal
    """Of the beat that comes next."""
    asked: Signal
    """Bursts under way."""
    good: Signal
    """The beat is no error response."""


@dataclass(frozen=True)
class _Transfer:
    """The transfer at hand."""

    host: wiring.PureInterface
    """The transfer's host bus; programs are started over another one."""
    descriptor: data.View
    beats: Signal
    words_left: Signal
    """On the host bus."""
    host_address: Signal
    row_address: Signal
    row_left: Signal
    taken: Signal
    beat: data.View
    """One beat, towards the host bus or from it."""
    beat_index: Signal
    beat_full: Signal
    wide: Signal | None = None
    """With a wide port: a word on the host bus is a whole beat."""


@dataclass(frozen=True)
class _Burst:
    """One burst of a STORE."""

    burst_write: memory.WritePort | None
    """None with a wide port."""
    burst_count: Signal
    """Beats collected."""
    sent: Signal
    """Beats sent."""
    write_address: Signal
    write_left: Signal
    write_beats: Signal


@dataclass(frozen=True)
class _Ahead:
    """What runs ahead with a wide port."""

    beats: fifo.SyncFIFO
    """Of descriptors that were fetched: whether it is no error response, and the beat."""
    clear: Signal
    """Forget them."""
    bursts: fifo.SyncFIFO
    """Addresses of bursts that wait for their answers."""
    unanswered: Signal
    """How many."""


class DmaEngine(wiring.Component):
    """Fetches and executes a list of descriptors.

    A RUN is done when `ProgramQueue` has the program, which runs beside what follows. Each descriptor waits until at
    most `under_way` of the programs before it have not ended; the list ends when all have.

    Bursts are of full beats, at most `burst_beats`, and end at multiples of their largest size, so that none crosses
    4 KiB. Reads: up to four bursts under way; of the last beat the surplus is dropped. Writes: a burst is collected
    from the host bus before its address is sent; strobes leave out what is behind the last word.

    An error response, a program that fails, or `DmaControl.ABORT`, ends the list: no further burst begins, those under
    way are completed (the data is dropped), no further program starts. DONE is set when the one that runs has ended, or
    after an abort when the accelerator was reset. A reset of the whole engine forgets
    bursts under way, so the interconnect has to be reset with it.

    With a wide port (`port_width`) whole beats are exchanged with program, weights and activations, one a cycle, and a
    STORE reads on while bursts are sent and answered. It is done when all is sent: RELOADs and the end of the list wait
    for the answers. Up to four descriptors are fetched at once, those of a block of 64 bytes.

    Parameters
    ----------
    data_width
        Bits of a beat: 32, 64 or 128.
    burst_beats
        Most beats of a burst, a power of two; 16 is what AXI3 takes too.
    port_width
        Bits of data on the host bus: 32, or `data_width` (`nnloom.arch.dma.port_width`).
    in_system
        There are the members `busy` and `reloading`.

    Members
    -------
    registers : In(HostBus); the addresses are those of `DmaRegister`
    host : Out(host_bus(port_width)); to the accelerator
    axi : Out(AxiSignature)
    engine_reset, engine_reset_done : Out, In; asks for a reset of the accelerator until it is done
    engine_busy : In; the accelerator runs a program
    interrupt : Out; level
    busy : Out, with `in_system`; a list is executed
    reloading : Out, with `in_system`; what is read is that of a RELOAD
    """

    def __init__(
        self, *, data_width: int, burst_beats: int = 16, port_width: int = 32, in_system: bool = False
    ) -> None:
        if data_width not in (32, 64, 128):
            raise ValueError(f"AXI data must be 32, 64 or 128 bits wide, not {data_width}")
        if not 4 <= burst_beats <= 256 or burst_beats & (burst_beats - 1) or burst_beats * data_width > 8 * 4096:
            raise ValueError(f"bursts must be a power of two of beats, 4 to 256 and at most 4 KiB, not {burst_beats}")
        if port_width not in (32, data_width):
            raise ValueError(f"the port must be 32 or {data_width} bits wide, as a beat, not {port_width}")
        self.port_width = port_width
        self.data_width = data_width
        self.burst_beats = burst_beats
        self.in_system = in_system
        super().__init__(
            {
                "registers": In(HostBus),
                "host": Out(host_bus(port_width)),
                "axi": Out(AxiSignature(address_width=32, data_width=data_width)),
                "engine_reset": Out(1),
                "engine_reset_done": In(1),
                "engine_busy": In(1),
                "interrupt": Out(1),
                **({"busy": Out(1), "reloading": Out(1)} if in_system else {}),
            }
        )

    @property
    def _is_wide(self) -> bool:
        return self.port_width > 32

    @property
    def _beat_bytes(self) -> int:
        return self.data_width // 8

    @property
    def _beat_words(self) -> int:
        return self._beat_bytes // 4

    @property
    def _size(self) -> int:
        """Bits of an address within a beat."""
        return (self._beat_bytes - 1).bit_length()

    @property
    def _burst_bits(self) -> int:
        return (self.burst_beats - 1).bit_length()

    def elaborate(self, platform: object) -> Module:
        m = Module()
        axi, size = self.axi, self._size
        busy, done, error, aborted = (Signal(name=n) for n in ("busy", "done", "error", "aborted"))
        cause = Signal(4)
        list_address, error_address = (Signal(32) for _ in range(2))
        completed = Signal(32)
        start, abort, resetting = Signal(), Signal(), Signal()
        progress = _Progress(
            busy, done, error, aborted, cause, list_address, error_address, completed, start, abort, resetting
        )
        self._registers(m, progress)
        stopping = Signal()
        m.d.comb += stopping.eq(abort | error)

        m.d.comb += [
            *(getattr(axi, f"{c}size").eq(size) for c in ("aw", "ar")),
            *(getattr(axi, f"{c}burst").eq(_INCREMENTING) for c in ("aw", "ar")),
            *(getattr(axi, f"{c}cache").eq(_NORMAL_MEMORY) for c in ("aw", "ar")),
        ]

        reads = self._elaborate_reads(m, stopping)
        transfer = self._elaborate_transfer(m)
        burst = self._elaborate_burst(m, transfer)
        m.submodules.queue = queue = ResetInserter(self.engine_reset_done)(ProgramQueue())
        m.submodules.sharing = sharing = HostArbiter(width=self.port_width)
        if self._is_wide:
            m.submodules.widener = widener = HostWidener(width=self.port_width)
            connect(m, queue.host, widener.host)
            connect(m, widener.bus, sharing.first)
        else:
            connect(m, queue.host, sharing.first)
        connect(m, transfer.host, sharing.second)
        connect(m, sharing.bus, flipped(self.host))
        m.d.comb += [queue.engine_busy.eq(self.engine_busy), queue.stop.eq(stopping)]
        ahead = self._elaborate_ahead(m, progress) if self._is_wide else None
        fetched = Signal(range(DESCRIPTOR_BYTES // self._beat_bytes + 1))
        # A cycle old: of the descriptor that is decoded, and nothing is started meanwhile.
        waiting = Signal()
        m.d.sync += waiting.eq(queue.under_way > transfer.descriptor.under_way)
        with m.FSM() as state:
            self._start_state(m, progress, reads, fetched, ahead)
            if ahead is not None:
                self._fetch_ahead_states(m, progress, reads, transfer, fetched, stopping, ahead)
            else:
                self._fetch_state(m, progress, reads, transfer, fetched, stopping)
            self._decode_state(m, progress, reads, transfer, burst, stopping, waiting, ahead)
            self._load_state(m, progress, reads, transfer, stopping)
            if ahead is not None:
                self._stream_store_states(m, transfer, burst, stopping, ahead)
            else:
                self._store_states(m, progress, transfer, burst, stopping)
            with m.State("RUN"):
                m.d.comb += [
                    queue.program.valid.eq(~stopping),
                    queue.program.payload.eq(transfer.descriptor.host_address),
                ]
                with m.If(stopping | queue.program.ready):
                    m.next = "NEXT"
            self._end_states(m, progress, reads, transfer, fetched, stopping, queue.under_way, ahead)
        with m.If(queue.failed & ~error):
            m.d.sync += progress.fail(DmaCause.ENGINE)
        if self.in_system:
            reload = transfer.descriptor.command == DmaCommand.RELOAD
            m.d.comb += [self.busy.eq(busy), self.reloading.eq(state.ongoing("LOAD") & reload)]
        with m.If(resetting):
            m.d.comb += self.engine_reset.eq(1)
            with m.If(self.engine_reset_done):
                m.d.sync += resetting.eq(0)
        return m

    def _first_beats(self, address: Signal, left: Signal) -> Value:
        """Beats of the next burst: to the next multiple of the largest burst, or what is left."""
        size, burst_bits = self._size, self._burst_bits
        room = self.burst_beats - address[size : size + burst_bits]
        return Mux(left < room, left, room)[: burst_bits + 1]

    def _elaborate_reads(self, m: Module, stopping: Signal) -> _Reads:
        """Read bursts: addresses run ahead of the data."""
        axi, size, burst_bits, beat_bytes = self.axi, self._size, self._burst_bits, self._beat_bytes
        read_address, read_left = Signal(32), Signal(25)  # of the next burst; beats not yet asked for
        answer_address = Signal(32)  # of the beat that comes next
        asked = Signal(range(IN_FLIGHT + 1))  # bursts under way
        read_beats = Signal(burst_bits + 1)
        m.d.comb += [
            read_beats.eq(self._first_beats(read_address, read_left)),
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
        return _Reads(read_address, read_left, answer_address, asked, good)

    def _elaborate_transfer(self, m: Module) -> _Transfer:
        """The transfer at hand: what is left of it, and its next address on the host bus."""
        beat_words = self._beat_words
        host = host_bus(self.port_width).create(path=("transfer",))
        request = host.request
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
        wide = Signal() if self._is_wide else None
        words: Value | int = 1 if wide is None else Mux(wide, beat_words, 1)
        step: Value | int = 4 if wide is None else Mux(wide, 4 * beat_words, 4)
        with m.If(taken):
            m.d.sync += [
                words_left.eq(words_left - words),
                host_address.eq(host_address + step),
                row_left.eq(row_left - words),
            ]
            with m.If((row_left == words) & (descriptor.row_words != 0)):
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
        return _Transfer(
            host,
            descriptor,
            beats,
            words_left,
            host_address,
            row_address,
            row_left,
            taken,
            beat,
            beat_index,
            beat_full,
            wide,
        )

    def _elaborate_burst(self, m: Module, transfer: _Transfer) -> _Burst:
        """One burst of a STORE: collected, then sent; strobes leave out what is behind the last word.

        With a wide port its beats are in `_stream_store_states`.
        """
        axi, burst_bits, beat_words = self.axi, self._burst_bits, self._beat_words
        burst_write = burst_read = None
        if not self._is_wide:
            m.submodules.burst = burst = memory.Memory(
                shape=self.data_width, depth=self.burst_beats, init=[], attrs={"ram_style": "distributed"}
            )
            burst_write, burst_read = burst.write_port(), burst.read_port(domain="comb")
        burst_count = Signal(burst_bits + 1)  # beats collected
        sent = Signal(burst_bits + 1)  # beats sent
        write_address, write_left = Signal(32), Signal(25)
        write_beats = Signal(burst_bits + 1)
        m.d.comb += write_beats.eq(self._first_beats(write_address, write_left))
        if burst_write is not None and burst_read is not None:
            beat_last = Signal()
            m.d.comb += [
                burst_write.addr.eq(burst_count),
                burst_write.data.eq(transfer.beat.as_value()),
                burst_read.addr.eq(sent),
                axi.wdata.eq(burst_read.data),
                axi.wlast.eq(sent + 1 == burst_count),
                beat_last.eq((write_left == burst_count) & axi.wlast),
            ]
            surplus = transfer.descriptor.words[: (beat_words - 1).bit_length()] if beat_words > 1 else Const(0, 1)
            m.d.comb += axi.wstrb.eq(self._strobes(beat_last, surplus))
        return _Burst(burst_write, burst_count, sent, write_address, write_left, write_beats)

    def _elaborate_ahead(self, m: Module, progress: _Progress) -> _Ahead:
        """Queues of descriptors and of bursts, and the answers to the latter."""
        axi, clear = self.axi, Signal()
        depth = DESCRIPTORS_AT_ONCE * DESCRIPTOR_BYTES // self._beat_bytes
        m.submodules.ahead = beats = ResetInserter(clear)(fifo.SyncFIFO(width=1 + self.data_width, depth=depth))
        m.submodules.bursts = bursts = fifo.SyncFIFO(width=32, depth=STORES_IN_FLIGHT)
        unanswered = Signal(range(STORES_IN_FLIGHT + 1))
        m.d.comb += [axi.bready.eq(1), bursts.r_en.eq(axi.bvalid)]
        m.d.sync += unanswered.eq(unanswered + bursts.w_en - axi.bvalid)
        failed = (axi.bresp == AxiResponse.SLVERR) | (axi.bresp == AxiResponse.DECERR)
        with m.If(axi.bvalid & failed & ~progress.error):
            m.d.sync += progress.fail(DmaCause.WRITE, bursts.r_data)
        return _Ahead(beats, clear, bursts, unanswered)

    def _ask_for_descriptors(self, address: Signal, reads: _Reads, ahead: _Ahead | None) -> list:
        """Statements that ask for the descriptor at an address, or for those of its block from there on."""
        beats = DESCRIPTOR_BYTES // self._beat_bytes
        count: Value | int = beats
        if ahead is not None:
            index = address[(DESCRIPTOR_BYTES - 1).bit_length() :][: (DESCRIPTORS_AT_ONCE - 1).bit_length()]
            count = (DESCRIPTORS_AT_ONCE - index) << (beats - 1).bit_length()
        return [reads.answer_address.eq(address), reads.read_address.eq(address), reads.read_left.eq(count)]

    def _start_state(
        self, m: Module, progress: _Progress, reads: _Reads, fetched: Signal, ahead: _Ahead | None
    ) -> None:
        """A list begins."""
        list_address = progress.list_address
        with m.State("IDLE"), m.If(progress.start):
            m.d.sync += [
                *(s.eq(0) for s in progress.outcome),
                progress.cause.eq(DmaCause.NONE),
                progress.busy.eq(1),
                *self._ask_for_descriptors(list_address, reads, ahead),
                fetched.eq(0),
            ]
            if ahead is not None:
                m.d.comb += ahead.clear.eq(1)
            with m.If(list_address[: (BUFFER_ALIGNMENT - 1).bit_length()].any()):
                m.d.sync += [*progress.fail(DmaCause.DESCRIPTOR, list_address), reads.read_left.eq(0)]
                m.next = "END"
            with m.Else():
                m.next = "FETCH"

    def _fetch_ahead_states(
        self,
        m: Module,
        progress: _Progress,
        reads: _Reads,
        transfer: _Transfer,
        fetched: Signal,
        stopping: Signal,
        ahead: _Ahead,
    ) -> None:
        """Descriptors come from DDR, a block at a time; the next one is taken of those that have come."""
        axi, beats = self.axi, DESCRIPTOR_BYTES // self._beat_bytes
        with m.State("FETCH"):
            m.d.comb += [
                axi.rready.eq(1),
                ahead.beats.w_en.eq(axi.rvalid),
                ahead.beats.w_data.eq(Cat(reads.good, axi.rdata)),
            ]
            with m.If(stopping & (reads.asked == 0)):
                m.next = "END"
            with m.Elif((reads.read_left == 0) & (reads.asked == 0)):
                m.next = "TAKE"
        with m.State("TAKE"):
            m.d.comb += ahead.beats.r_en.eq(fetched != beats)
            with m.If(fetched == beats):
                m.next = "DECODE"
            with m.Elif(ahead.beats.r_rdy):
                word = transfer.descriptor.as_value()
                m.d.sync += [
                    word.eq(Cat(word, ahead.beats.r_data[1:])[-8 * DESCRIPTOR_BYTES :]),
                    fetched.eq(fetched + 1),
                ]
                with m.If(~ahead.beats.r_data[0] & ~progress.error):
                    place = progress.list_address + (progress.completed << 4) + (fetched << self._size)
                    m.d.sync += progress.fail(DmaCause.FETCH, place[:32])

    def _fetch_state(
        self, m: Module, progress: _Progress, reads: _Reads, transfer: _Transfer, fetched: Signal, stopping: Signal
    ) -> None:
        """A descriptor comes from DDR."""
        axi, beat_bytes = self.axi, self._beat_bytes
        with m.State("FETCH"):
            m.d.comb += axi.rready.eq(1)
            with m.If(axi.rvalid):
                m.d.sync += [
                    transfer.descriptor.as_value().eq(
                        Cat(transfer.descriptor.as_value(), axi.rdata)[-8 * DESCRIPTOR_BYTES :]
                    ),
                    fetched.eq(fetched + 1),
                ]
                with m.If(~reads.good & ~progress.error):
                    m.d.sync += progress.fail(DmaCause.FETCH, reads.answer_address)
            with m.If(fetched == DESCRIPTOR_BYTES // beat_bytes):
                m.next = "DECODE"
            with m.Elif(stopping & (reads.asked == 0)):
                m.next = "END"

    def _decode_state(
        self,
        m: Module,
        progress: _Progress,
        reads: _Reads,
        transfer: _Transfer,
        burst: _Burst,
        stopping: Signal,
        waiting: Signal,
        ahead: _Ahead | None,
    ) -> None:
        """What the descriptor asks for, whether it can be done, and whether yet."""
        descriptor = transfer.descriptor
        with m.State("DECODE"):
            m.d.sync += [
                transfer.words_left.eq(descriptor.words),
                transfer.host_address.eq(descriptor.host_address),
                transfer.row_address.eq(descriptor.host_address),
                transfer.row_left.eq(descriptor.row_words),
                reads.answer_address.eq(descriptor.ddr_address),
                burst.write_address.eq(descriptor.ddr_address),
                burst.write_left.eq(transfer.beats),
                transfer.beat_full.eq(0),
                transfer.beat_index.eq(0),
                burst.burst_count.eq(0),
                burst.sent.eq(0),
            ]
            misplaced = Signal()
            aligned_wrong = (
                descriptor.ddr_address[: (BUFFER_ALIGNMENT - 1).bit_length()].any()
                | descriptor.host_address[:2].any()
                | (descriptor.words == 0)
            )
            if transfer.wide is not None:
                # Program, weights and activations are windows 1 to 3.
                in_memory = descriptor.host_address[28:30].any() & ~descriptor.host_address[30:].any()
                bits = (self._beat_words - 1).bit_length()
                counts = descriptor.words[:bits], descriptor.row_words[:bits], descriptor.row_step[:bits]
                m.d.sync += transfer.wide.eq(in_memory)
                uneven = Cat(*counts, descriptor.host_address[2 : 2 + bits]).any()
                m.d.comb += misplaced.eq(aligned_wrong | (in_memory & uneven))
            else:
                m.d.comb += misplaced.eq(aligned_wrong)
            not_yet: Value = waiting
            if ahead is not None:
                not_yet = waiting | ((descriptor.command == DmaCommand.RELOAD) & (ahead.unanswered != 0))
            with m.If(stopping):
                m.next = "END"
            with m.Elif(not_yet):
                m.next = "DECODE"
            with m.Elif(descriptor.command == DmaCommand.RUN):
                m.next = "RUN"
            with m.Elif(misplaced | (descriptor.command > DmaCommand.RELOAD)):
                m.d.sync += progress.fail(DmaCause.DESCRIPTOR, progress.list_address + (progress.completed << 4))
                m.next = "END"
            with m.Elif((descriptor.command == DmaCommand.LOAD) | (descriptor.command == DmaCommand.RELOAD)):
                m.d.sync += [reads.read_address.eq(descriptor.ddr_address), reads.read_left.eq(transfer.beats)]
                m.next = "LOAD"
            with m.Else():
                m.next = "STORE"

    def _load_state(self, m: Module, progress: _Progress, reads: _Reads, transfer: _Transfer, stopping: Signal) -> None:
        """LOAD: from DDR to the host bus."""
        axi = self.axi
        request = transfer.host.request
        beat_words = self._beat_words
        taken, beat_index, beat_full = transfer.taken, transfer.beat_index, transfer.beat_full
        with m.State("LOAD"):
            last_word = Signal()
            last: Value = (beat_index == beat_words - 1) | (transfer.words_left == 1)
            word: Value = transfer.beat[beat_index]
            if transfer.wide is not None:
                last, word = last | transfer.wide, Mux(transfer.wide, transfer.beat.as_value(), word)
            m.d.comb += [
                last_word.eq(last),
                request.payload.write.eq(1),
                request.payload.data.eq(word),
                request.valid.eq(beat_full),
                # The next beat may come as the last word of this one goes.
                axi.rready.eq(~beat_full | (taken & last_word)),
            ]
            with m.If(taken):
                m.d.sync += beat_index.eq(Mux(last_word, 0, beat_index + 1))
                with m.If(last_word):
                    m.d.sync += beat_full.eq(0)
            with m.If(axi.rvalid & axi.rready):
                m.d.sync += [transfer.beat.as_value().eq(axi.rdata), beat_full.eq(reads.good & ~stopping)]
                with m.If(~reads.good & ~progress.error):
                    m.d.sync += progress.fail(DmaCause.READ, reads.answer_address)
            with m.If(~beat_full & (reads.asked == 0) & ~axi.arvalid & (stopping | (transfer.words_left == 0))):
                m.next = "NEXT"

    def _store_states(
        self, m: Module, progress: _Progress, transfer: _Transfer, burst: _Burst, stopping: Signal
    ) -> None:
        """STORE: from the host bus to DDR, a burst after the other."""
        axi = self.axi
        request, response = transfer.host.request, transfer.host.response
        beat_words, size = self._beat_words, self._size
        beat_index, beat_full = transfer.beat_index, transfer.beat_full
        burst_count, sent, write_address = burst.burst_count, burst.sent, burst.write_address
        write_left = burst.write_left
        # Words of the burst that were not asked for yet, and that have not come.
        to_ask, to_come = (Signal(range(self.burst_beats * beat_words + 1), name=n) for n in ("to_ask", "to_come"))
        with m.State("STORE"):
            room = burst.write_beats << (beat_words - 1).bit_length()
            words = Mux(transfer.words_left < room, transfer.words_left, room)
            m.d.sync += [to_ask.eq(words), to_come.eq(words)]
            m.next = "COLLECT"
        with m.State("COLLECT"):
            # Requests run ahead of the words, which are taken as they come.
            m.d.comb += [request.valid.eq((to_ask != 0) & ~stopping), response.ready.eq(1)]
            with m.If(transfer.taken):
                m.d.sync += to_ask.eq(to_ask - 1)
            assert burst.burst_write is not None
            with m.If(beat_full):
                m.d.comb += burst.burst_write.en.eq(1)
                m.d.sync += [beat_full.eq(0), burst_count.eq(burst_count + 1)]
            with m.If(response.valid):
                m.d.sync += [
                    to_come.eq(to_come - 1),
                    transfer.beat[beat_index].eq(response.payload.data),
                    beat_index.eq(beat_index + 1),
                ]
                with m.If((beat_index == beat_words - 1) | (to_come == 1)):
                    m.d.sync += [beat_full.eq(1), beat_index.eq(0)]
            with m.If(stopping & (to_ask == to_come)):
                m.next = "NEXT"
            with m.Elif(~stopping & (to_come == 0) & ~beat_full):
                m.d.sync += [axi.awvalid.eq(1), axi.awaddr.eq(write_address), axi.awlen.eq(burst.write_beats - 1)]
                m.d.sync += axi.wvalid.eq(1)
                m.next = "SEND"
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
                        m.d.sync += progress.fail(DmaCause.WRITE, write_address)
                        m.next = "NEXT"
                    with m.Elif(write_left == burst_count):
                        m.next = "NEXT"
                    with m.Else():
                        m.next = "STORE"

    def _stream_store_states(
        self, m: Module, transfer: _Transfer, burst: _Burst, stopping: Signal, ahead: _Ahead
    ) -> None:
        """STORE through a wide port: requests, beats, bursts and answers each run ahead of the next.

        A burst whose address was sent is completed, also where the list ends early.
        """
        axi, size, beat_words = self.axi, self._size, self._beat_words
        request, response = transfer.host.request, transfer.host.response
        beat, beat_index, beat_full = transfer.beat, transfer.beat_index, transfer.beat_full
        assert transfer.wide is not None
        wide, words_left = transfer.wide, transfer.words_left
        write_address, write_left, write_beats = burst.write_address, burst.write_left, burst.write_beats
        clear = Signal()
        m.submodules.beats = beats = ResetInserter(clear)(fifo.SyncFIFO(width=self.data_width, depth=STORE_REQUESTS))
        kept = Signal(range(STORE_REQUESTS + 1))  # words asked for whose beats were not sent
        to_come, to_send = Signal(range(STORE_REQUESTS + 1)), Signal(25)  # words; beats
        burst_left = Signal(self._burst_bits + 1)  # beats of the burst whose address was sent
        surplus = transfer.descriptor.words[: (beat_words - 1).bit_length()]
        last_words = Mux(surplus == 0, beat_words, surplus)
        sent, begins = Signal(), Signal()
        m.d.comb += [
            beats.w_en.eq(beat_full),
            beats.w_data.eq(beat.as_value()),
            axi.wdata.eq(beats.r_data),
            axi.wlast.eq(burst_left == 1),
            axi.wvalid.eq(beats.r_rdy & (burst_left != 0)),
            axi.wstrb.eq(self._strobes(to_send == 1, surplus)),
            sent.eq(axi.wvalid & axi.wready),
            beats.r_en.eq(sent),
            ahead.bursts.w_en.eq(begins),
            ahead.bursts.w_data.eq(write_address),
        ]
        with m.State("STORE"):
            m.d.comb += clear.eq(1)
            m.d.sync += [
                kept.eq(0),
                to_come.eq(0),
                to_send.eq(transfer.beats),
                burst_left.eq(0),
            ]
            m.next = "STREAM"
        with m.State("STREAM"):
            m.d.comb += [
                request.valid.eq((words_left != 0) & (kept != STORE_REQUESTS) & (~stopping | (burst_left != 0))),
                response.ready.eq(1),
            ]
            leaves = Mux(wide, 1, Mux(to_send == 1, last_words, beat_words))
            m.d.sync += [
                kept.eq(kept + transfer.taken - Mux(sent, leaves, 0)),
                to_come.eq(to_come + transfer.taken - response.valid),
                beat_full.eq(0),
            ]
            with m.If(response.valid):
                with m.If(wide):
                    m.d.sync += [beat.as_value().eq(response.payload.data), beat_full.eq(1)]
                with m.Else():
                    m.d.sync += [beat[beat_index].eq(response.payload.data), beat_index.eq(beat_index + 1)]
                    with m.If((beat_index == beat_words - 1) | ((to_come == 1) & (words_left == 0))):
                        m.d.sync += [beat_full.eq(1), beat_index.eq(0)]
            # The next burst begins as the last beat of this one is sent.
            ends = (burst_left == 0) | (sent & (burst_left == 1))
            room = ahead.unanswered != STORES_IN_FLIGHT
            m.d.comb += begins.eq(~axi.awvalid & ends & (write_left != 0) & room & ~stopping)
            with m.If(axi.awvalid & axi.awready):
                m.d.sync += axi.awvalid.eq(0)
            with m.If(sent):
                m.d.sync += [burst_left.eq(burst_left - 1), to_send.eq(to_send - 1)]
            with m.If(begins):
                m.d.sync += [
                    axi.awvalid.eq(1),
                    axi.awaddr.eq(write_address),
                    axi.awlen.eq(write_beats - 1),
                    burst_left.eq(write_beats),
                    write_left.eq(write_left - write_beats),
                    write_address.eq(write_address + (write_beats << size)),
                ]
            at_rest = ~axi.awvalid & (burst_left == 0) & (to_come == 0)
            with m.If(at_rest & (stopping | (write_left == 0))):
                m.next = "NEXT"

    def _strobes(self, last: Value, surplus: Value) -> Value:
        """Bytes of a beat that are written: of the last one those before the end."""
        full = (1 << self._beat_bytes) - 1
        masks = [full, *((1 << 4 * i) - 1 for i in range(1, self._beat_words))]
        return Mux(last, Array(Const(v, self._beat_bytes) for v in masks)[surplus], full)

    def _end_states(
        self,
        m: Module,
        progress: _Progress,
        reads: _Reads,
        transfer: _Transfer,
        fetched: Signal,
        stopping: Signal,
        under_way: Value,
        ahead: _Ahead | None,
    ) -> None:
        """To the next descriptor, or to the end of the list, when the programs `under_way` have ended."""
        completed, abort = progress.completed, progress.abort
        read_left = reads.read_left
        with m.State("NEXT"):
            # `read_left` is not zero if the list is ended early.
            m.d.sync += [read_left.eq(0), fetched.eq(0)]
            with m.If(stopping):
                m.next = "END"
            with m.Else():
                m.d.sync += completed.eq(completed + 1)
                following = Signal(32)
                m.d.comb += following.eq(progress.list_address + ((completed + 1) << 4))
                with m.If(transfer.descriptor.last):
                    m.next = "END"
                if ahead is not None:
                    with m.Elif(ahead.beats.r_rdy):
                        m.next = "TAKE"
                with m.Else():
                    m.d.sync += self._ask_for_descriptors(following, reads, ahead)
                    m.next = "FETCH"
        with m.State("END"):
            m.d.sync += read_left.eq(0)
            m.d.comb += self.engine_reset.eq(abort)
            at_rest: Value = Mux(abort, self.engine_reset_done, under_way == 0)
            if ahead is not None:
                at_rest = at_rest & (ahead.unanswered == 0)
            with m.If(at_rest):
                m.d.sync += [progress.busy.eq(0), progress.done.eq(1), progress.aborted.eq(abort), abort.eq(0)]
                m.next = "IDLE"

    def _registers(self, m: Module, progress: _Progress) -> None:
        """The registers of the host."""
        request, response = self.registers.request, self.registers.response
        flags = progress.done, progress.error, progress.aborted
        status = Cat(progress.busy, *flags, Const(0, 4), progress.cause)
        busy, done = status[0], status[1]
        enable = Signal()
        answering = Signal()
        answer = Signal(32)
        offset = request.payload.address[:12]
        written = request.payload.data
        m.d.comb += [
            request.ready.eq(~answering & ~progress.resetting),
            response.valid.eq(answering),
            response.payload.data.eq(answer),
            self.interrupt.eq(enable & done),
        ]
        with m.If(response.valid & response.ready):
            m.d.sync += answering.eq(0)
        with m.If(request.valid & request.ready):
            with m.If(request.payload.write), m.Switch(offset):
                with m.Case(DmaRegister.CONTROL):
                    m.d.comb += progress.start.eq((written & DmaControl.START).any() & ~busy)
                    with m.If((written & DmaControl.ABORT).any() & busy):
                        m.d.sync += progress.abort.eq(1)
                    with m.If((written & DmaControl.RESET).any() & ~busy):
                        m.d.sync += progress.resetting.eq(1)
                with m.Case(DmaRegister.STATUS), m.If(~busy):
                    m.d.sync += [flag.eq(0) for flag in flags]
                with m.Case(DmaRegister.LIST), m.If(~busy):
                    m.d.sync += progress.list_address.eq(written)
                with m.Case(DmaRegister.INTERRUPT_ENABLE):
                    m.d.sync += enable.eq(written[0])
            with m.Else():
                m.d.sync += [answering.eq(1), answer.eq(0)]
                with m.Switch(offset):
                    for register, value in (
                        (DmaRegister.ID, Const(DMA_MAGIC, 32)),
                        (DmaRegister.STATUS, status),
                        (DmaRegister.LIST, progress.list_address),
                        (DmaRegister.COMPLETED, progress.completed),
                        (DmaRegister.ERROR_ADDRESS, progress.error_address),
                        (DmaRegister.INTERRUPT_ENABLE, enable),
                    ):
                        with m.Case(register):
                            m.d.sync += answer.eq(value)
