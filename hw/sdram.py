"""A controller for SDR SDRAM behind an AXI4 port.

Addresses count up through the columns of a row, then through the banks, then through the rows, so that the next row of
a long transfer is in another bank and is opened while the current one is read or written (`docs/sdram.md`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from .axi import AxiSignature
from .delay import delay
from .sdram_axi import AnswerLayout, SdramBuffers, SegmentLayout
from .sdram_pins import PRECHARGE_ALL, SdramCommand, SdramPins
from .sdram_timing import INITIAL_REFRESHES, SdramChip, SdramTiming

__all__ = ["SdramController", "SdramScheduler", "segment_beats"]

TURN_CYCLES = 64
"""Cycles of data in one direction before the other, if it is ready, has its turn."""


def segment_beats(burst: int) -> int:
    """Most beats of a segment: it lasts long enough to open the row of the one after it; a buffer holds four."""
    return 8 if burst == 1 else 4


@dataclass(frozen=True)
class _Next:
    """The segment whose row is being opened."""

    valid: Signal
    write: Signal
    segment: data.View
    settled: Signal
    """`hit` and `closed` are of this segment and of the banks as they are."""
    hit: Signal
    """Its row is open."""
    closed: Signal
    """No row of its bank is open."""

    @property
    def quiet(self) -> Value:
        """An error: nothing goes to the chip."""
        return self.segment.response != 0


@dataclass(frozen=True)
class _Current:
    """The segment whose columns are being read or written."""

    valid: Signal
    write: Signal
    quiet: Signal
    bank: Signal
    column: Signal
    """Counted in beats."""
    left: Signal
    """Beats after the next."""
    ends: Signal
    tag: data.View
    issue: Signal
    """A beat goes now."""
    ending: Signal
    """There is no beat, or it is the last and goes now."""


@dataclass(frozen=True)
class _Banks:
    """What the chip's banks do; all commands but READ and WRITE wait for `timer`."""

    open: Signal
    """A bit a bank."""
    held: list[Signal]
    """Cycles until the bank may be closed."""
    timer: Signal
    """Cycles until the next command."""


class _Phase(enum.IntEnum):
    """What the chip is used for."""

    POWER_UP = 0
    PRECHARGE = 1
    REFRESH = 2
    LOAD_MODE = 3
    RUN = 4


@dataclass(frozen=True)
class _Upkeep:
    """Initialisation and refresh."""

    phase: Signal
    until: Signal
    """Cycles until the next refresh is due."""
    owed: Signal
    """Refreshes that are due."""
    urgent: Signal
    """No more may be postponed."""


@dataclass(frozen=True)
class _Command:
    """What goes to the pins with the next clock; at most one is set."""

    activate: Signal
    precharge: Signal
    precharge_all: Signal
    refresh: Signal
    load_mode: Signal


class SdramScheduler(wiring.Component):
    """Executes segments: opens rows, reads and writes columns, refreshes, and initialises the chip.

    While a segment's columns go, the row of the one after it is opened. Reads and writes take turns; the direction
    changes when the other one has nothing ready, or after `TURN_CYCLES` of data. Rows stay open. Refreshes are
    postponed while there is traffic, up to `SdramTiming.refreshes_owed`, and then made up for in a row.

    After a reset all rows are closed and the chip is initialised again; a beat that was being written is undefined,
    everything else keeps its contents.

    Parameters
    ----------
    burst
        Columns of a beat: 1, 2, 4 or 8, the chip's burst length.
    chunk
        Most beats of a segment.
    read_delay
        Cycles of registers between these pins and the chip's, there and back.

    Members
    -------
    reads, writes : In(stream of SegmentLayout)
    read_issued, write_issued, tag, write_data, write_strobe, read_valid, read_data : see `SdramBuffers`
    pins : Out(SdramPins); registers
    ready : Out; the chip is initialised
    """

    def __init__(
        self,
        chip: SdramChip,
        timing: SdramTiming,
        *,
        burst: int,
        chunk: int,
        read_delay: int,
    ) -> None:
        self.chip = chip
        self.timing = timing
        self.burst = burst
        self.chunk = chunk
        self.read_delay = read_delay
        beat_bits = burst * chip.data_bits
        self.segment_layout = SegmentLayout(chip, beat_bits, chunk)
        super().__init__(
            {
                "reads": In(stream.Signature(self.segment_layout)),
                "writes": In(stream.Signature(self.segment_layout)),
                "read_issued": Out(1),
                "write_issued": Out(1),
                "tag": Out(AnswerLayout()),
                "write_data": In(beat_bits),
                "write_strobe": In(beat_bits // 8),
                "read_valid": Out(1),
                "read_data": Out(beat_bits),
                "pins": Out(SdramPins(chip)),
                "ready": Out(1),
            }
        )

    @property
    def _first_refreshes(self) -> int:
        return INITIAL_REFRESHES + self.timing.power_up_intervals

    @property
    def _column_bits(self) -> int:
        """Of a beat's column."""
        return (self.chip.columns // self.burst - 1).bit_length()

    @property
    def _bank_bits(self) -> int:
        return (self.chip.banks - 1).bit_length()

    def _bank(self, segment: data.View) -> Value:
        return segment.address[self._column_bits :][: self._bank_bits]

    def _row(self, segment: data.View) -> Value:
        return segment.address[self._column_bits + self._bank_bits :]

    def elaborate(self, platform: object) -> Module:
        m = Module()
        command = _Command(*(Signal(name=n) for n in _Command.__dataclass_fields__))
        banks, upkeep = self._declare_banks(), self._declare_upkeep()
        following, current = self._declare_segments()
        blocked, idle = Signal(), Signal()
        m.d.comb += idle.eq(~following.valid & ~current.valid & ~self.reads.valid & ~self.writes.valid)
        self._refresh(m, command, banks, upkeep, current, blocked, idle)
        self._choose(m, following, current)
        self._open(m, command, banks, following, current, blocked)
        self._hand_over(m, banks, following, current, blocked)
        self._issue(m, command, banks, current)
        self._drive(m, command, following, current)
        self._collect(m)
        return m

    def _declare_banks(self) -> _Banks:
        t, burst = self.timing, self.burst
        longest = max(t.ras, burst + t.wr)
        return _Banks(
            open=Signal(self.chip.banks),
            held=[Signal(range(longest + 1), name=f"held_{bank}") for bank in range(self.chip.banks)],
            timer=Signal(range(max(t.rp, t.rcd, t.rfc, t.mrd))),
        )

    def _declare_upkeep(self) -> _Upkeep:
        return _Upkeep(
            phase=Signal(_Phase),
            until=Signal(range(self.timing.refresh_interval)),
            owed=Signal(range(self._first_refreshes + 2), init=INITIAL_REFRESHES),
            urgent=Signal(),
        )

    def _declare_segments(self) -> tuple[_Next, _Current]:
        following = _Next(
            valid=Signal(name="next_valid"),
            write=Signal(name="next_write"),
            segment=Signal(self.segment_layout, name="next_segment"),
            settled=Signal(),
            hit=Signal(),
            closed=Signal(),
        )
        current = _Current(
            valid=Signal(name="current_valid"),
            write=Signal(name="current_write"),
            quiet=Signal(name="current_quiet"),
            bank=Signal(self._bank_bits, name="current_bank"),
            column=Signal(self._column_bits, name="current_column"),
            left=Signal(range(self.chunk), name="current_left"),
            ends=Signal(name="current_ends"),
            tag=Signal(AnswerLayout(), name="current_tag"),
            issue=Signal(name="issue"),
            ending=Signal(name="ending"),
        )
        return following, current

    def _refresh(
        self,
        m: Module,
        command: _Command,
        banks: _Banks,
        upkeep: _Upkeep,
        current: _Current,
        blocked: Signal,
        idle: Signal,
    ) -> None:
        """Refreshes that are owed, and the initialisation: the wait after power-up adds to the first ones."""
        t, timer = self.timing, banks.timer
        phase, until, owed, urgent = upkeep.phase, upkeep.until, upkeep.owed, upkeep.urgent
        due = Signal()
        m.d.comb += due.eq(until == 0)
        m.d.sync += [
            until.eq(Mux(due, t.refresh_interval - 1, until - 1)),
            owed.eq(owed + due - command.refresh),
            urgent.eq(owed >= t.refreshes_owed),
        ]
        with m.If(timer != 0):
            m.d.sync += timer.eq(timer - 1)
        at_rest = Signal()
        m.d.comb += at_rest.eq(~current.valid & ~Cat(banks.held).any() & (timer == 0))
        m.d.comb += blocked.eq(1)
        with m.Switch(phase):
            with m.Case(_Phase.POWER_UP), m.If(owed == self._first_refreshes):
                m.d.sync += phase.eq(_Phase.PRECHARGE)
            with m.Case(_Phase.RUN):
                m.d.comb += blocked.eq(urgent | (idle & (owed != 0)))
                with m.If(blocked & at_rest):
                    m.d.sync += phase.eq(_Phase.PRECHARGE)
            with m.Case(_Phase.PRECHARGE):
                m.d.comb += command.precharge_all.eq(1)
                m.d.sync += [banks.open.eq(0), timer.eq(t.rp - 1), phase.eq(_Phase.REFRESH)]
            with m.Case(_Phase.REFRESH), m.If(timer == 0):
                with m.If(owed != 0):
                    m.d.comb += command.refresh.eq(1)
                    m.d.sync += timer.eq(t.rfc - 1)
                with m.Else():
                    m.d.sync += phase.eq(Mux(self.ready, _Phase.RUN, _Phase.LOAD_MODE))
            with m.Case(_Phase.LOAD_MODE):
                m.d.comb += command.load_mode.eq(1)
                m.d.sync += [timer.eq(t.mrd - 1), self.ready.eq(1), phase.eq(_Phase.RUN)]

    def _choose(self, m: Module, following: _Next, current: _Current) -> None:
        """Reads or writes: the next segment."""
        most = max(1, TURN_CYCLES // (self.chunk * self.burst))
        writing, budget = Signal(), Signal(range(most + 1), init=most)
        # Made a cycle ahead: what is offered stays so until it is taken, and then the choice waits a cycle.
        same, other, switch, write = (Signal(name=n) for n in ("same", "other", "switch", "chosen_write"))
        m.d.comb += [
            same.eq(Mux(writing, self.writes.valid, self.reads.valid)),
            other.eq(Mux(writing, self.reads.valid, self.writes.valid)),
            switch.eq(other & Mux(same, budget == 0, current.ending)),
        ]
        m.d.sync += write.eq(writing ^ switch)
        with m.If(~following.valid):
            m.d.comb += [self.writes.ready.eq(write), self.reads.ready.eq(~write)]
            m.d.sync += [following.write.eq(write), following.settled.eq(0)]
            m.d.sync += following.segment.eq(Mux(write, self.writes.payload.as_value(), self.reads.payload.as_value()))
            with m.If(Mux(write, self.writes.valid, self.reads.valid)):
                m.d.sync += [following.valid.eq(1), writing.eq(write)]
                with m.If(write != writing):
                    m.d.sync += budget.eq(most - 1)
                with m.Elif(budget != 0):
                    m.d.sync += budget.eq(budget - 1)

    def _open(
        self, m: Module, command: _Command, banks: _Banks, following: _Next, current: _Current, blocked: Signal
    ) -> None:
        """Opens the next segment's row."""
        t = self.timing
        bank, row = self._bank(following.segment), self._row(following.segment)
        m.submodules.rows = rows = memory.Memory(
            shape=unsigned(len(row)), depth=self.chip.banks, init=[], attrs={"ram_style": "distributed"}
        )
        write, read = rows.write_port(), rows.read_port(domain="comb")
        m.d.comb += [write.addr.eq(bank), write.data.eq(row), write.en.eq(command.activate), read.addr.eq(bank)]
        is_open = banks.open.bit_select(bank, 1)
        m.d.sync += [following.hit.eq(is_open & (read.data == row)), following.closed.eq(~is_open)]

        free, busy = Signal(), Signal()
        # One column a cycle leaves no cycle for other commands, so they go first; else they go between the columns.
        before = Const(1) if self.burst == 1 else ~current.issue
        m.d.comb += [
            free.eq(following.valid & following.settled & ~following.quiet & ~blocked & (banks.timer == 0)),
            busy.eq((current.valid & (current.bank == bank)) | (Array(banks.held)[bank] != 0)),
            command.activate.eq(free & following.closed & before),
            command.precharge.eq(free & ~following.closed & ~following.hit & ~busy & before),
        ]
        with m.If(following.valid):
            m.d.sync += following.settled.eq(~command.activate & ~command.precharge)
        for index, held in enumerate(banks.held):
            with m.If(held != 0):
                m.d.sync += held.eq(held - 1)
            with m.If(command.activate & (bank == index)):
                m.d.sync += [held.eq(t.ras - 1), banks.open[index].eq(1)]
            with m.If(command.precharge & (bank == index)):
                m.d.sync += banks.open[index].eq(0)
        with m.If(command.activate):
            # The segment is handed over in the last of these cycles.
            m.d.sync += banks.timer.eq(max(t.rcd - 2, 0))
        with m.If(command.precharge):
            m.d.sync += banks.timer.eq(t.rp - 1)

    def _hand_over(self, m: Module, banks: _Banks, following: _Next, current: _Current, blocked: Signal) -> None:
        """The next segment becomes the current one."""
        segment = following.segment
        opened = Signal()
        m.d.comb += opened.eq(following.settled & ((following.hit & (banks.timer == 0)) | following.quiet))
        m.d.comb += current.ending.eq(~current.valid | (current.issue & (current.left == 0)))
        with m.If(current.issue):
            m.d.sync += [current.column.eq(current.column + 1), current.left.eq(current.left - 1)]
        with m.If(current.ending):
            m.d.sync += current.valid.eq(0)
            with m.If(following.valid & opened & ~blocked):
                m.d.sync += [
                    current.valid.eq(1),
                    current.write.eq(following.write),
                    current.quiet.eq(following.quiet),
                    current.bank.eq(self._bank(segment)),
                    current.column.eq(segment.address),
                    current.left.eq(segment.further),
                    current.ends.eq(segment.ends),
                    current.tag.id.eq(segment.id),
                    current.tag.response.eq(segment.response),
                    following.valid.eq(0),
                ]

    def _issue(self, m: Module, command: _Command, banks: _Banks, current: _Current) -> None:
        """Columns: one every `burst` cycles, and a cycle's rest of the data bus between reads and writes."""
        t, burst = self.timing, self.burst
        gap, turn = Signal(range(burst)), Signal(range(t.cas_latency + burst + 1))
        go = current.valid & (gap == 0) & (~current.write | (turn == 0))
        if burst == 1:
            go &= ~command.activate & ~command.precharge
        m.d.comb += [
            current.issue.eq(go),
            self.read_issued.eq(current.issue & ~current.write),
            self.write_issued.eq(current.issue & current.write),
            self.tag.eq(current.tag),
            self.tag.last.eq(current.ends & (current.left == 0)),
        ]
        with m.If(gap != 0):
            m.d.sync += gap.eq(gap - 1)
        with m.If(turn != 0):
            m.d.sync += turn.eq(turn - 1)
        with m.If(current.issue):
            m.d.sync += gap.eq(burst - 1)
            with m.If(~current.write & ~current.quiet):
                m.d.sync += turn.eq(t.cas_latency + burst)
            # The row has been open for tRCD. A read after a write must not shorten the write's recovery.
            after_read = max(burst, t.ras - t.rcd, t.wr - 1)
            after_write = max(burst - 1 + t.wr, t.ras - t.rcd)
            for bank, held in enumerate(banks.held):
                with m.If(~current.quiet & (current.bank == bank)):
                    m.d.sync += held.eq(Mux(current.write, after_write - 1, after_read - 1))

    def _drive(self, m: Module, command: _Command, following: _Next, current: _Current) -> None:
        """The pins' registers."""
        pins, chip, burst = self.pins, self.chip, self.burst
        column = current.issue & ~current.quiet
        code = Signal(3)
        m.d.comb += code.eq(SdramCommand.NOP)
        for condition, value in (
            (column & current.write, SdramCommand.WRITE),
            (column & ~current.write, SdramCommand.READ),
            (command.activate, SdramCommand.ACTIVE),
            (command.precharge | command.precharge_all, SdramCommand.PRECHARGE),
            (command.refresh, SdramCommand.REFRESH),
            (command.load_mode, SdramCommand.LOAD_MODE),
        ):
            with m.If(condition):
                m.d.comb += code.eq(value)
        m.d.sync += Cat(pins.we_n, pins.cas_n, pins.ras_n).eq(code)

        address = Signal(chip.address_bits)
        mode = (burst.bit_length() - 1) | self.timing.cas_latency << 4
        m.d.comb += address.eq(Cat(Const(0, burst.bit_length() - 1), current.column))
        m.d.sync += pins.ba.eq(Mux(column, current.bank, self._bank(following.segment)))
        with m.If(command.activate):
            m.d.comb += address.eq(self._row(following.segment))
        with m.If(command.precharge | command.precharge_all):
            m.d.comb += address[PRECHARGE_ALL].eq(command.precharge_all)
        with m.If(command.load_mode):
            m.d.comb += address.eq(mode)
            m.d.sync += pins.ba.eq(0)
        m.d.sync += pins.a.eq(address)

        word, byte = chip.data_bits, chip.data_bits // 8
        writes = column & current.write
        m.d.sync += [
            pins.dq_o.eq(self.write_data[:word]),
            pins.dq_oe.eq(writes),
            pins.dqm.eq(Mux(writes, ~self.write_strobe[:byte], Mux(self.ready, 0, -1))),
        ]
        if burst > 1:
            rest, mask = Signal((burst - 1) * word), Signal((burst - 1) * byte)
            remaining = Signal(burst - 1)  # a bit for each word that is still to come
            m.d.sync += [rest.eq(rest >> word), mask.eq(mask >> byte), remaining.eq(remaining >> 1)]
            with m.If(writes):
                m.d.sync += [
                    rest.eq(self.write_data[word:]),
                    mask.eq(~self.write_strobe[byte:]),
                    remaining.eq(-1),
                ]
            with m.Elif(remaining[0]):
                m.d.sync += [pins.dq_o.eq(rest[:word]), pins.dqm.eq(mask[:byte]), pins.dq_oe.eq(1)]
        m.d.comb += pins.cke.eq(1)

    def _collect(self, m: Module) -> None:
        """Words that come from the chip, as beats."""
        words = Signal(len(self.read_data))
        m.d.sync += words.eq(Cat(words, self.pins.dq_i)[-len(words) :])
        m.d.comb += self.read_data.eq(words)
        # The pins' register, the chip, the words after the first, the register here.
        cycles = 1 + self.timing.cas_latency + self.read_delay + self.burst - 1 + 1
        m.d.comb += self.read_valid.eq(delay(m, self.read_issued, cycles, "reading", reset=True))


class SdramController(wiring.Component):
    """An AXI4 subordinate that is an SDR SDRAM.

    Bursts: incrementing, of beats of the full width, from any address up to the next multiple of 4 KiB; beats are those
    that contain the address. Single beats may be of any size. Others are answered with SLVERR, those beyond the memory
    with DECERR, and touch nothing. All answers to reads come in order, and so do those to writes; a read that is
    asked for after a write's answer sees the write. No combinational path leads from a ready to a valid.
    A reset forgets the bursts under way, so the manager has to be reset with it.

    Parameters
    ----------
    chip
        The memory.
    clock_hz
        Of the domain `sync`, which is the chip's clock too.
    data_width
        Bits of a beat: 32, 64 or 128; not more than 8 words of the chip.
    read_delay
        Cycles of registers between the pins here and the chip's, there and back.

    Members
    -------
    axi : In(AxiSignature); 32-bit addresses, the memory from 0
    pins : Out(SdramPins); registers
    ready : Out(1); the chip is initialised; bursts may be sent before, and wait
    """

    def __init__(self, chip: SdramChip, clock_hz: float, data_width: int, *, read_delay: int = 0) -> None:
        if data_width not in (32, 64, 128):
            raise ValueError(f"AXI data must be 32, 64 or 128 bits wide, not {data_width}")
        burst = data_width // chip.data_bits
        if burst not in (1, 2, 4, 8):
            raise ValueError(f"beats must be 1, 2, 4 or 8 words of {chip.data_bits} bits, not {data_width} bits")
        self.chip = chip
        self.clock_hz = clock_hz
        self.data_width = data_width
        self.read_delay = read_delay
        self.burst = burst
        self.timing = SdramTiming.of(chip, clock_hz)
        super().__init__(
            {
                "axi": In(AxiSignature(address_width=32, data_width=data_width)),
                "pins": Out(SdramPins(chip)),
                "ready": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        chunk = segment_beats(self.burst)
        m.submodules.buffers = buffers = SdramBuffers(
            self.chip, data_width=self.data_width, chunk=chunk, depth=4 * chunk
        )
        m.submodules.scheduler = scheduler = SdramScheduler(
            self.chip,
            self.timing,
            burst=self.burst,
            chunk=chunk,
            read_delay=self.read_delay,
        )
        wiring.connect(m, wiring.flipped(self.axi), buffers.axi)
        wiring.connect(m, wiring.flipped(self.pins), scheduler.pins)
        wiring.connect(m, buffers.reads, scheduler.reads)
        wiring.connect(m, buffers.writes, scheduler.writes)
        m.d.comb += [
            buffers.read_issued.eq(scheduler.read_issued),
            buffers.write_issued.eq(scheduler.write_issued),
            buffers.tag.eq(scheduler.tag),
            buffers.read_valid.eq(scheduler.read_valid),
            buffers.read_data.eq(scheduler.read_data),
            scheduler.write_data.eq(buffers.write_data),
            scheduler.write_strobe.eq(buffers.write_strobe),
            self.ready.eq(scheduler.ready),
        ]
        return m
