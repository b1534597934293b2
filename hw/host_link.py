"""Frames to host bus accesses: the hardware side of `nnloom.arch.link`."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nnloom.arch.isa import HostAddress
from nnloom.arch.link import (
    DONE_REGISTERS,
    HEAD,
    HELLO_REGISTERS,
    LARGEST_WORDS,
    LINK_VERSION,
    RESPONSE,
    RESPONSE_BYTES,
    SHORT_OPCODES,
    STEP_WORDS,
    Answer,
    Opcode,
    StepKind,
)

from .frames import FrameReceiver, FrameTransmitter
from .host_bus import HostBus
from .technology import RAM_LATENCY, GenericTechnology, Technology

__all__ = ["HostLink"]

FRAME_OVERHEAD_WORDS = 4
"""Header and CRC of a request with a burst."""
_SHORT = 1 << 3
assert STEP_WORDS == 3
assert all((opcode in SHORT_OPCODES) == bool(opcode & _SHORT) for opcode in Opcode)


def _layout(fields: tuple) -> data.StructLayout:
    return data.StructLayout({field.name: field.width for field in fields})


@dataclass(frozen=True)
class _Signals:
    """What the states of the link work with."""

    receiver: FrameReceiver
    tx: FrameTransmitter

    # The request, and the burst of it or of a step.
    head: data.View
    address: Signal
    run: Signal
    """words of a run; of a step: bytes between two chunks"""
    count: Signal
    """READ and steps: words that are left"""
    any_left: Signal
    last_word: Signal
    """`count` is not zero, is one; known a cycle late, long before it counts"""
    jump: Signal
    """words to the next run; of a step: bytes of a chunk"""
    column: Signal
    """words of the run that are left after this one"""
    turn: Signal
    """`column` is zero, and runs count; known a cycle late, long before it counts"""

    # The frame's words.
    position: Signal
    wait: Signal
    fetched: Signal
    """the word at `position`, or of the script at `pointer`, is there"""
    at_end: Signal
    """there is no word at `position`; right as soon as `fetched`"""
    lane: Signal
    """byte of the word that comes next"""

    # The session.
    session: Signal
    previous: Signal
    fresh: Signal
    opened: Signal
    last_sequence: Signal
    next_sequence: Signal
    start_sequence: Signal
    answered: Signal
    """the response that is kept is that of `last_sequence`"""
    ours: Signal
    repeated: Signal
    following: Signal

    # The script.
    pointer: Signal
    """word of the frame that is kept"""
    part: Signal
    """word of the burst or step that is fetched next"""
    kind: Signal
    live: Signal
    """a script has begun and not ended"""
    pending: Signal
    """it waits for the end of a program"""
    answering: Signal
    """it is past that"""
    held: Signal
    """the frame that was taken waits for that"""
    line_word: Signal
    filled: Signal
    """bytes in `line_word`"""
    left: Signal
    """bytes of the chunk, or of the padding behind it, that are left"""
    in_padding: Signal
    chunk_ends: Signal
    """`left` is one; right as soon as `settled`"""
    settled: Signal

    # The response.
    done: Signal
    damaged: Signal
    answer: Signal
    sequence: Signal
    notice: Signal
    bare: Signal
    """no words but those of the header"""
    word: Signal
    index: Signal
    constants_left: Signal
    room: Signal
    """bytes that the frame has room for"""


class HostLink(wiring.Component):
    """Executes each good frame once and answers it; keeps the last response to send it again.

    A frame can arrive while the one before is executed; while a script waits for the end of its program, two.

    Parameters
    ----------
    clock_hz
        What HELLO tells of the clock.
    max_words
        Most words of a frame: 4 less than a power of two, at most `LARGEST_WORDS`.
    packing
        Scripts can leave bytes of words out; else their chunks have no gaps, which saves some 200 cells of logic.

    Members
    -------
    receive : In(stream of bytes), transmit : Out(stream of bytes); the line
    host : Out(HostBus)
    busy : In; a program runs
    reset : Out; one cycle: reset the accelerator
    """

    def __init__(
        self,
        technology: Technology | None = None,
        *,
        clock_hz: float,
        max_words: int = LARGEST_WORDS,
        packing: bool = True,
    ) -> None:
        if not 4 <= max_words <= LARGEST_WORDS:
            raise ValueError(f"link must have frames of 4 to {LARGEST_WORDS} words, not {max_words}")
        self.technology: Technology = technology or GenericTechnology()
        self.clock_hz = round(clock_hz)
        self.max_words = max_words
        self.packing = packing
        super().__init__(
            {
                "receive": In(stream.Signature(8)),
                "transmit": Out(stream.Signature(8)),
                "host": Out(HostBus),
                "busy": In(1),
                "reset": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        s = self._signals(m)
        self._observe(m, s)
        m.d.comb += [
            self.host.request.payload.address.eq(s.address),
            self.host.request.payload.data.eq(s.line_word if self.packing else s.receiver.data),
            s.tx.notice.eq(s.notice),
            s.tx.octets.payload.eq(s.word[:8]),
        ]
        m.d.sync += self.reset.eq(0)
        with m.FSM():
            self._idle(m, s)
            self._judge(m, s)
            self._requests(m, s)
            self._writes(m, s)
            self._steps(m, s)
            self._responses(m, s)
        return m

    def _signals(self, m: Module) -> _Signals:
        buffer_words = self.max_words + FRAME_OVERHEAD_WORDS
        m.submodules.receiver = receiver = FrameReceiver(self.technology, buffer_words=buffer_words)
        m.submodules.transmitter = tx = FrameTransmitter(self.technology, buffer_bytes=8 * buffer_words)
        connect(m, flipped(self.receive), receiver.octets)
        connect(m, tx.transmit, flipped(self.transmit))
        return _Signals(
            receiver=receiver,
            tx=tx,
            head=Signal(_layout(HEAD), name="head", reset_less=True),
            address=Signal(32, name="address", reset_less=True),
            run=Signal(8, name="run", reset_less=True),
            count=Signal(16, name="count", reset_less=True),
            any_left=Signal(name="any_left", reset_less=True),
            last_word=Signal(name="last_word", reset_less=True),
            jump=Signal(16, name="jump", reset_less=True),
            column=Signal(8, name="column", reset_less=True),
            turn=Signal(name="turn", reset_less=True),
            position=Signal(range(buffer_words), name="position"),
            wait=Signal(range(RAM_LATENCY + 1), name="wait"),
            fetched=Signal(name="fetched"),
            at_end=Signal(name="at_end", reset_less=True),
            lane=Signal(2, name="lane"),
            session=Signal(16, name="session"),
            previous=Signal(16, name="previous", reset_less=True),
            fresh=Signal(name="fresh", reset_less=True),
            opened=Signal(name="opened"),
            last_sequence=Signal(8, name="last_sequence"),
            next_sequence=Signal(8, name="next_sequence"),
            start_sequence=Signal(8, name="start_sequence", reset_less=True),
            answered=Signal(name="answered"),
            ours=Signal(name="ours", reset_less=True),
            repeated=Signal(name="repeated", reset_less=True),
            following=Signal(name="following", reset_less=True),
            pointer=Signal(range(2 * buffer_words), name="pointer", reset_less=True),
            part=Signal(2, name="part"),
            kind=Signal(StepKind, name="kind", reset_less=True),
            live=Signal(name="live"),
            pending=Signal(name="pending"),
            answering=Signal(name="answering"),
            held=Signal(name="held"),
            line_word=Signal(32, name="line_word", reset_less=True),
            filled=Signal(2, name="filled"),
            left=Signal(16, name="left", reset_less=True),
            in_padding=Signal(name="in_padding", reset_less=True),
            chunk_ends=Signal(name="chunk_ends", reset_less=True),
            settled=Signal(name="settled"),
            done=Signal(name="done"),
            damaged=Signal(name="damaged"),
            answer=Signal(4, name="answer", reset_less=True),
            sequence=Signal(8, name="sequence", reset_less=True),
            notice=Signal(name="notice", reset_less=True),
            bare=Signal(name="bare"),
            word=Signal(32, name="word", reset_less=True),
            index=Signal(2, name="index"),
            constants_left=Signal(2, name="constants_left"),
            room=Signal(range(4 * self.max_words + RESPONSE_BYTES + 1), name="room", reset_less=True),
        )

    def _observe(self, m: Module, s: _Signals) -> None:
        """What is known a cycle after it changed, or remembered until it is told."""
        m.d.comb += [
            s.receiver.address.eq(Mux(s.receiver.kept, s.pointer[:-1], s.position)),
            s.fetched.eq(s.wait == RAM_LATENCY),
        ]
        m.d.sync += [
            s.turn.eq((s.column == 0) & ~s.live),
            s.any_left.eq(s.count != 0),
            s.last_word.eq(s.live & (s.count == 1)),
            s.at_end.eq(s.position == s.receiver.words),
            s.chunk_ends.eq(s.live & (s.left == 1)),
            s.settled.eq(1),
            s.ours.eq(s.opened & (s.head.session == s.session)),
            s.repeated.eq(s.head.sequence == s.last_sequence),
            s.following.eq(s.head.sequence == s.next_sequence),
        ]
        with m.If(~s.fetched):
            m.d.sync += s.wait.eq(s.wait + 1)
        was_busy = Signal()
        m.d.sync += was_busy.eq(self.busy)
        with m.If(was_busy & ~self.busy):
            m.d.sync += s.done.eq(1)
        with m.If(s.receiver.damaged):
            m.d.sync += s.damaged.eq(1)

    @staticmethod
    def _next_word(m: Module, s: _Signals) -> None:
        """Of the frame, or of the one that is kept."""
        m.d.sync += s.wait.eq(0)
        with m.If(s.receiver.kept):
            m.d.sync += s.pointer.eq(s.pointer + 1)
        with m.Else():
            m.d.sync += s.position.eq(s.position + 1)

    @staticmethod
    def _next_step(m: Module, s: _Signals) -> None:
        m.d.sync += s.wait.eq(0)
        m.next = "FETCH"

    @staticmethod
    def _read_registers(s: _Signals, registers: tuple) -> list:
        # One run: a column count that does not end within it.
        return [
            s.address.eq(HostAddress.REGISTERS + registers[0]),
            s.count.eq(len(registers)),
            s.column.eq(len(registers)),
        ]

    @staticmethod
    def _refuse(m: Module, s: _Signals, kind: Answer) -> None:
        m.d.sync += [s.answer.eq(kind), s.sequence.eq(s.last_sequence), s.notice.eq(1), s.bare.eq(1)]
        m.next = "RESPOND"

    @staticmethod
    def _bad_request(m: Module, s: _Signals) -> None:
        m.d.sync += [s.answer.eq(Answer.BAD_REQUEST), s.bare.eq(1)]
        m.next = "RESPOND"

    @staticmethod
    def _advance(m: Module, s: _Signals) -> None:
        """To the next address of the burst."""
        with m.If(s.turn):
            m.d.sync += s.column.eq(s.run - 1)
        with m.Else():
            m.d.sync += s.column.eq(s.column - 1)
        m.d.sync += [s.address[2:].eq(s.address[2:] + Mux(s.turn, s.jump, 1)), s.count.eq(s.count - 1)]

    @staticmethod
    def _advance_chunk(m: Module, s: _Signals) -> None:
        """To the next byte of a chunk, or of the padding between two."""
        padding = ~s.in_padding & (s.run != 0)
        m.d.sync += [s.left.eq(s.left - 1), s.settled.eq(0)]
        with m.If(s.chunk_ends):
            m.d.sync += [s.left.eq(Mux(padding, s.run, s.jump)), s.in_padding.eq(padding)]

    def _idle(self, m: Module, s: _Signals) -> None:
        with m.State("IDLE"):
            m.d.sync += [s.position.eq(0), s.wait.eq(0), s.lane.eq(0), s.constants_left.eq(0), s.bare.eq(0)]
            m.d.sync += s.part.eq(0)
            with m.If(s.done & s.pending):
                m.d.sync += [s.done.eq(0), s.pending.eq(0), s.answering.eq(1)]
                m.d.sync += [s.answer.eq(Answer.OK), s.sequence.eq(s.last_sequence), s.notice.eq(0), s.count.eq(0)]
                m.next = "RESPOND"
            with m.Elif(s.done & s.tx.idle):
                m.d.sync += [s.done.eq(0), s.answer.eq(Answer.DONE), s.sequence.eq(s.start_sequence), s.notice.eq(1)]
                m.d.sync += self._read_registers(s, DONE_REGISTERS)
                m.next = "RESPOND"
            with m.Elif(s.held & ~s.pending):
                m.next = "HEAD"
            with m.Elif(~s.held & s.receiver.frame):
                m.d.comb += s.receiver.take.eq(1)
                m.d.sync += s.held.eq(1)
                m.next = "HEAD"
            with m.Elif(s.damaged & s.tx.idle):
                m.d.sync += s.damaged.eq(0)
                self._refuse(m, s, Answer.BAD_FRAME)

    def _judge(self, m: Module, s: _Signals) -> None:
        """Whether the frame's request is executed, from its first word."""
        with m.State("HEAD"), m.If(s.fetched):
            m.d.sync += s.head.eq(s.receiver.data)
            self._next_word(m, s)
            m.next = "COMPARE"
        with m.State("COMPARE"):
            m.next = "JUDGE"
        with m.State("JUDGE"):
            m.d.sync += [s.answer.eq(Answer.OK), s.sequence.eq(s.head.sequence), s.notice.eq(0), s.held.eq(0)]
            opcode = s.head.opcode
            accept, hello, short, waits = Signal(), Signal(), Signal(), Signal()
            m.d.comb += [
                hello.eq(opcode == Opcode.HELLO),
                short.eq((opcode & _SHORT).any()),
                waits.eq((s.pending & ~hello & (opcode != Opcode.RESET)) | (short & self.busy)),
            ]
            with m.If(s.ours & s.repeated):
                with m.If(s.pending):
                    self._refuse(m, s, Answer.RUNNING)
                with m.Elif(s.answered):
                    m.next = "REPEAT"
                with m.Else():
                    self._refuse(m, s, Answer.BAD_SEQUENCE)
            with m.Elif(s.ours & s.following & waits):
                m.d.sync += s.held.eq(1)
                m.next = "IDLE"
            with m.Elif((s.ours & s.following) | (hello & ~s.ours)):
                m.d.comb += accept.eq(1)
            with m.Else():
                self._refuse(m, s, Answer.NO_SESSION)
                with m.If(s.ours):
                    m.d.sync += s.answer.eq(Answer.BAD_SEQUENCE)
            with m.If(accept):
                m.d.sync += [s.last_sequence.eq(s.head.sequence), s.next_sequence.eq(s.head.sequence + 1)]
                m.d.sync += [s.session.eq(s.head.session), s.opened.eq(1), s.answered.eq(0), s.pending.eq(0)]
                with m.If(~s.ours):
                    m.d.sync += [s.previous.eq(s.session), s.fresh.eq(~s.opened)]
                with m.If(~short):
                    m.d.sync += [s.live.eq(0), s.answering.eq(0)]
                    m.next = "FETCH"
                with m.Elif(opcode == Opcode.RUN):
                    m.next = "RUN"
                with m.Elif((opcode == Opcode.MORE) & s.answering):
                    m.next = "RESPOND"
                with m.Elif((opcode == Opcode.MORE) & s.live):
                    m.next = "PUMP"
                with m.Elif(opcode == Opcode.SYNC):
                    m.d.sync += s.bare.eq(1)
                    m.next = "RESPOND"
                with m.Else():
                    self._bad_request(m, s)

    def _requests(self, m: Module, s: _Signals) -> None:
        """Requests with a burst, once that was fetched, and the beginning of a script."""
        word = s.receiver.data
        with m.State("EXECUTE"):
            m.d.sync += [s.column.eq(s.run - 1), s.in_padding.eq(0), s.filled.eq(0)]
            with m.Switch(s.head.opcode):
                with m.Case(Opcode.HELLO):
                    m.next = "HELLO"
                with m.Case(Opcode.WRITE):
                    m.next = "PUMP"
                with m.Case(Opcode.SCRIPT):
                    m.d.comb += s.receiver.keep.eq(1)
                    m.d.sync += s.bare.eq(1)
                    m.next = "RESPOND"
                with m.Case(Opcode.START):
                    m.d.sync += s.start_sequence.eq(s.head.sequence)
                    m.next = "PUMP"
                with m.Case(Opcode.READ):
                    m.next = "RESPOND"
                with m.Case(Opcode.RESET):
                    m.d.sync += [self.reset.eq(1), s.bare.eq(1)]
                    m.next = "RESPOND"
                with m.Default():
                    self._bad_request(m, s)
        with m.State("HELLO"):
            m.d.sync += [*self._read_registers(s, HELLO_REGISTERS), s.constants_left.eq(3)]
            m.next = "RESPOND"
        with m.State("RUN"), m.If(s.fetched):
            self._next_word(m, s)
            m.d.sync += [s.pointer.eq(word), s.done.eq(0), s.answering.eq(0)]
            with m.If(s.at_end):
                m.d.sync += s.live.eq(0)
                self._bad_request(m, s)
            with m.Else():
                m.d.sync += s.live.eq(1)
                self._next_step(m, s)

    def _writes(self, m: Module, s: _Signals) -> None:
        """Words of the frame, or of the one that is kept, to their addresses."""
        request, put = self.host.request, Signal()
        # FETCH has another one; in all other states no script is at such a step.
        m.d.comb += [put.eq(s.live & (s.kind == StepKind.PUT)), s.receiver.kept.eq(put)]
        with m.State("PUMP"):
            there = s.fetched & (put | ~s.at_end)
            if self.packing:
                self._pump(m, s, there)
            else:
                m.d.comb += [request.valid.eq(there), request.payload.write.eq(1)]
                with m.If(there & request.ready):
                    self._next_word(m, s)
                    self._stored(m, s)
            with m.If(s.fetched & ~there & ~s.in_padding):
                # A script waits for more.
                m.next = "IDLE"
                with m.If(~s.live):
                    m.d.sync += s.bare.eq(1)
                    m.next = "RESPOND"
        if self.packing:
            with m.State("STORE"):
                m.d.comb += [request.valid.eq(1), request.payload.write.eq(1)]
                with m.If(request.ready):
                    m.next = "PUMP"
                    self._stored(m, s)

    def _pump(self, m: Module, s: _Signals, there: Value) -> None:
        """A byte, or one of those between chunks, into the word that is to be stored."""
        byte = Signal(8)
        m.d.comb += byte.eq(Mux(s.in_padding, 0, s.receiver.data.word_select(s.lane, 8)))
        with m.If(s.settled & (s.in_padding | there)):
            m.d.sync += [s.line_word.eq(Cat(s.line_word[8:], byte)), s.filled.eq(s.filled + 1)]
            self._advance_chunk(m, s)
            with m.If(~s.in_padding):
                m.d.sync += s.lane.eq(s.lane + 1)
                with m.If(s.lane == 3):
                    self._next_word(m, s)
            with m.If(s.filled == 3):
                m.next = "STORE"

    def _stored(self, m: Module, s: _Signals) -> None:
        self._advance(m, s)
        with m.If(s.last_word):
            self._next_step(m, s)

    def _steps(self, m: Module, s: _Signals) -> None:
        """Bursts and a script's steps are fetched, the steps begun. It ends with a step that is out of place."""
        word = s.receiver.data
        with m.State("FETCH"):
            m.d.comb += s.receiver.kept.eq(s.live)
            with m.If(s.fetched):
                self._next_word(m, s)
                m.d.sync += s.part.eq(s.part + 1)
                with m.Switch(s.part):
                    with m.Case(0):
                        m.d.sync += s.address.eq(word)
                    with m.Case(1):
                        m.d.sync += [s.run.eq(word[:8]), s.jump.eq(word[16:])]
                        m.d.sync += [s.count.eq(word[8:16]), s.kind.eq(word[8:16])]
                        with m.If(~s.live):
                            m.next = "EXECUTE"
                    with m.Default():
                        m.d.sync += s.count.eq(word[:16])
                        m.next = "BEGIN"
                with m.If(s.at_end & ~s.live):
                    self._bad_request(m, s)
        with m.State("BEGIN"):
            m.d.sync += [s.left.eq(s.jump), s.in_padding.eq(0), s.settled.eq(0), s.filled.eq(0), s.part.eq(0)]
            with m.Switch(Cat(s.kind, s.answering, s.pointer[-1])):
                with m.Case(StepKind.READ | 1 << len(s.kind)):
                    m.next = "NEXT"
                with m.Case(StepKind.WRITE):
                    m.next = "PUMP"
                with m.Case(StepKind.PUT):
                    m.d.sync += s.lane.eq(0)
                    m.next = "PUMP"
                with m.Case(StepKind.WAIT):
                    m.d.sync += s.pending.eq(1)
                    m.next = "IDLE"
                with m.Default():
                    m.d.sync += [s.live.eq(0), s.answering.eq(0), s.bare.eq(1)]
                    m.next = "RESPOND"
                    with m.If(s.answering):
                        m.next = "NEXT"

    def _responses(self, m: Module, s: _Signals) -> None:
        host, tx = self.host, s.tx
        constants = Array(
            [
                Const(0, 32),
                Cat(s.previous, s.fresh),
                Const(self.clock_hz, 32),
                Const(LINK_VERSION | self.packing << 8 | self.max_words << 16, 32),
            ]
        )
        full = Signal()
        m.d.comb += full.eq(s.answering & (s.room[2:] == 0))
        with m.State("REPEAT"), m.If(tx.idle):
            m.d.comb += tx.repeat.eq(1)
            m.next = "IDLE"
        with m.State("RESPOND"):
            header = Signal(_layout(RESPONSE))
            m.d.comb += [
                tx.begin.eq(tx.idle),
                header.answer.eq(s.answer),
                header.sequence.eq(s.sequence),
                header.session.eq(s.session),
            ]
            m.d.sync += [s.word.eq(header), s.index.eq(0), s.room.eq(4 * self.max_words + RESPONSE_BYTES)]
            with m.If(tx.idle):
                with m.If(~s.notice):
                    m.d.sync += s.answered.eq(1)
                m.next = "OCTETS"
        with m.State("OCTETS"):
            m.d.comb += tx.octets.valid.eq(1)
            with m.If(tx.octets.ready):
                m.d.sync += [s.word.eq(s.word >> 8), s.index.eq(s.index + 1), s.room.eq(s.room - 1)]
                with m.If(s.index == 3):
                    m.next = "NEXT"
        with m.State("NEXT"):
            m.d.sync += s.word.eq(constants[s.constants_left])
            with m.If(s.constants_left != 0):
                m.d.sync += s.constants_left.eq(s.constants_left - 1)
                m.next = "OCTETS"
            with m.Elif(~s.bare & s.any_left & ~full):
                m.next = "READ"
            with m.Elif(~s.bare & s.answering & ~full):
                self._next_step(m, s)
            with m.Else():
                m.d.comb += tx.finish.eq(1)
                m.next = "IDLE"
        with m.State("READ"):
            m.d.comb += host.request.valid.eq(1)
            with m.If(host.request.ready):
                self._advance(m, s)
                m.next = "ANSWER"
        with m.State("ANSWER"):
            m.d.comb += host.response.ready.eq(1)
            m.d.sync += s.word.eq(host.response.payload.data)
            with m.If(host.response.valid):
                m.next = "OCTETS"
                if self.packing:
                    with m.If(s.live):
                        m.next = "PACK"
        if self.packing:
            self._pack(m, s)

    def _pack(self, m: Module, s: _Signals) -> None:
        """Bytes of a word to the answer, but for those between chunks."""
        tx = s.tx
        with m.State("PACK"):
            m.d.comb += tx.octets.valid.eq(s.settled & ~s.in_padding)
            with m.If(s.settled & (s.in_padding | tx.octets.ready)):
                m.d.sync += [s.word.eq(s.word >> 8), s.index.eq(s.index + 1)]
                self._advance_chunk(m, s)
                with m.If(~s.in_padding):
                    m.d.sync += s.room.eq(s.room - 1)
                with m.If(s.index == 3):
                    m.next = "NEXT"
