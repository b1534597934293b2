"""Frames to host bus accesses: the hardware side of `nnloom.arch.link`."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nnloom.arch.isa import HostAddress
from nnloom.arch.link import (
    DONE_REGISTERS,
    HEADER_BYTES,
    HELLO_REGISTERS,
    LARGEST_WORDS,
    LINK_VERSION,
    REQUEST,
    RESPONSE,
    Answer,
    Opcode,
)

from .frames import FrameReceiver, FrameTransmitter
from .host_bus import HostBus
from .technology import RAM_LATENCY, GenericTechnology, Technology

__all__ = ["HostLink"]

FRAME_OVERHEAD_WORDS = 4
"""Header and CRC of a request."""


class HostLink(wiring.Component):
    """Executes each good frame once and answers it; keeps the last response to send it again.

    A frame can arrive while the one before is executed.

    Parameters
    ----------
    clock_hz
        What HELLO tells of the clock.
    max_words
        Most words of a frame: 4 less than a power of two, at most `LARGEST_WORDS`.

    Members
    -------
    receive : In(stream of bytes), transmit : Out(stream of bytes); the line
    host : Out(HostBus)
    busy : In; a program runs
    reset : Out; one cycle: reset the accelerator
    """

    def __init__(
        self, technology: Technology | None = None, *, clock_hz: float, max_words: int = LARGEST_WORDS
    ) -> None:
        if not 4 <= max_words <= LARGEST_WORDS:
            raise ValueError(f"link must have frames of 4 to {LARGEST_WORDS} words, not {max_words}")
        self.technology: Technology = technology or GenericTechnology()
        self.clock_hz = round(clock_hz)
        self.max_words = max_words
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
        host = self.host
        buffer_words = self.max_words + FRAME_OVERHEAD_WORDS
        m.submodules.receiver = receiver = FrameReceiver(self.technology, buffer_words=buffer_words)
        m.submodules.transmitter = tx = FrameTransmitter(self.technology, buffer_bytes=8 * buffer_words)
        connect(m, flipped(self.receive), receiver.octets)
        connect(m, tx.transmit, flipped(self.transmit))

        # What the request asks for. `request` is shifted in word by word; then address and count move on.
        request = Signal(data.StructLayout({field.name: field.width for field in REQUEST}), reset_less=True)
        column = Signal(8, reset_less=True)
        """Words of the run that are left after this one."""
        turn = Signal(reset_less=True)
        """`column` is zero; known a cycle late, long before it counts."""
        m.d.sync += turn.eq(column == 0)
        position = Signal(range(buffer_words))
        wait = Signal(range(RAM_LATENCY + 1))
        fetched = Signal()
        """The word at `position` is there."""
        at_end = Signal(reset_less=True)
        """There is no word at `position`; right as soon as `fetched`."""
        m.d.comb += [receiver.address.eq(position), fetched.eq(wait == RAM_LATENCY)]
        m.d.sync += at_end.eq(position == receiver.words)
        with m.If(~fetched):
            m.d.sync += wait.eq(wait + 1)

        def next_word() -> list:
            return [position.eq(position + 1), wait.eq(0)]

        # The session.
        session = Signal(16)
        previous, fresh = Signal(16, reset_less=True), Signal(reset_less=True)
        opened = Signal()
        last_sequence, next_sequence = Signal(8), Signal(8)
        start_sequence = Signal(8, reset_less=True)
        ours, repeated, following = (Signal(name=name, reset_less=True) for name in ("ours", "repeated", "following"))
        m.d.sync += [
            ours.eq(opened & (request.session == session)),
            repeated.eq(request.sequence == last_sequence),
            following.eq(request.sequence == next_sequence),
        ]

        # What waits to be told.
        done, damaged, was_busy = Signal(), Signal(), Signal()
        m.d.sync += was_busy.eq(self.busy)
        with m.If(was_busy & ~self.busy):
            m.d.sync += done.eq(1)
        with m.If(receiver.damaged):
            m.d.sync += damaged.eq(1)

        # The response.
        response = data.StructLayout({field.name: field.width for field in RESPONSE})
        answer = Signal(4, reset_less=True)
        sequence = Signal(8, reset_less=True)
        notice = Signal(reset_less=True)
        word = Signal(32, reset_less=True)
        index = Signal(2)
        constants_left = Signal(2)
        constants = Array(
            [
                Const(0, 32),
                Cat(previous, fresh),
                Const(self.clock_hz, 32),
                Const(LINK_VERSION | self.max_words << 16, 32),
            ]
        )
        m.d.comb += [
            tx.notice.eq(notice),
            tx.octets.payload.eq(word[:8]),
            host.request.payload.address.eq(request.address),
            host.request.payload.data.eq(receiver.data),
        ]
        m.d.sync += self.reset.eq(0)

        def advance() -> None:
            """To the next address of the burst."""
            with m.If(turn):
                m.d.sync += column.eq(request.run - 1)
            with m.Else():
                m.d.sync += column.eq(column - 1)
            m.d.sync += request.address[2:].eq(request.address[2:] + Mux(turn, request.jump, 1))

        def refuse(kind: Answer) -> None:
            m.d.sync += [answer.eq(kind), sequence.eq(last_sequence), notice.eq(1), request.count.eq(0)]
            m.next = "RESPOND"

        def read_registers(registers: tuple) -> list:
            # One run: a column count that does not end within it.
            return [
                request.address.eq(HostAddress.REGISTERS + registers[0]),
                request.count.eq(len(registers)),
                column.eq(len(registers)),
            ]

        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [position.eq(0), wait.eq(0), constants_left.eq(0)]
                with m.If(done & tx.idle):
                    m.d.sync += [done.eq(0), answer.eq(Answer.DONE), sequence.eq(start_sequence), notice.eq(1)]
                    m.d.sync += read_registers(DONE_REGISTERS)
                    m.next = "RESPOND"
                with m.Elif(receiver.frame):
                    m.d.comb += receiver.take.eq(1)
                    m.next = "HEADER"
                with m.Elif(damaged & tx.idle):
                    m.d.sync += damaged.eq(0)
                    refuse(Answer.BAD_FRAME)
            with m.State("HEADER"), m.If(fetched):
                m.d.sync += [request.eq(Cat(request.as_value()[32:], receiver.data)), *next_word()]
                with m.If(position == HEADER_BYTES // 4 - 1):
                    m.next = "COMPARE"
            with m.State("COMPARE"):
                m.d.sync += column.eq(request.run - 1)
                m.next = "JUDGE"
            with m.State("JUDGE"):
                m.d.sync += [answer.eq(Answer.OK), sequence.eq(request.sequence), notice.eq(0)]
                accept = Signal()
                hello = Signal()
                m.d.comb += hello.eq(request.opcode == Opcode.HELLO)
                with m.If(ours & repeated):
                    m.next = "REPEAT"
                with m.Elif(ours & following):
                    m.d.comb += accept.eq(1)
                with m.Elif(hello & ~ours):
                    m.d.comb += accept.eq(1)
                with m.Else():
                    refuse(Answer.NO_SESSION)
                    with m.If(ours):
                        m.d.sync += answer.eq(Answer.BAD_SEQUENCE)
                with m.If(accept):
                    m.d.sync += [last_sequence.eq(request.sequence), next_sequence.eq(request.sequence + 1)]
                    m.d.sync += [session.eq(request.session), opened.eq(1)]
                    with m.If(~ours):
                        m.d.sync += [previous.eq(session), fresh.eq(~opened)]
                    with m.Switch(request.opcode):
                        with m.Case(Opcode.HELLO):
                            m.next = "HELLO"
                        with m.Case(Opcode.WRITE):
                            m.next = "WRITE"
                        with m.Case(Opcode.START):
                            m.d.sync += start_sequence.eq(request.sequence)
                            m.next = "WRITE"
                        with m.Case(Opcode.READ):
                            m.next = "RESPOND"
                        with m.Case(Opcode.RESET):
                            m.d.sync += [self.reset.eq(1), request.count.eq(0)]
                            m.next = "RESPOND"
                        with m.Default():
                            m.d.sync += [answer.eq(Answer.BAD_REQUEST), request.count.eq(0)]
                            m.next = "RESPOND"
            with m.State("HELLO"):
                m.d.sync += [*read_registers(HELLO_REGISTERS), constants_left.eq(len(constants) - 1)]
                m.next = "RESPOND"
            with m.State("WRITE"):
                m.d.sync += request.count.eq(0)
                with m.If(fetched & at_end):
                    m.next = "RESPOND"
                with m.Elif(fetched):
                    m.d.comb += [host.request.valid.eq(1), host.request.payload.write.eq(1)]
                    with m.If(host.request.ready):
                        m.d.sync += next_word()
                        advance()
            with m.State("REPEAT"), m.If(tx.idle):
                m.d.comb += tx.repeat.eq(1)
                m.next = "IDLE"
            with m.State("RESPOND"):
                m.d.comb += tx.begin.eq(tx.idle)
                header = Signal(response)
                m.d.comb += [
                    header.answer.eq(answer),
                    header.sequence.eq(sequence),
                    header.session.eq(session),
                ]
                m.d.sync += [word.eq(header), index.eq(0)]
                with m.If(tx.idle):
                    m.next = "OCTETS"
            with m.State("OCTETS"):
                m.d.comb += tx.octets.valid.eq(1)
                with m.If(tx.octets.ready):
                    m.d.sync += [word.eq(word >> 8), index.eq(index + 1)]
                    with m.If(index == 3):
                        m.next = "NEXT"
            with m.State("NEXT"):
                m.d.sync += word.eq(constants[constants_left])
                with m.If(constants_left != 0):
                    m.d.sync += constants_left.eq(constants_left - 1)
                    m.next = "OCTETS"
                with m.Elif(request.count != 0):
                    m.next = "READ"
                with m.Else():
                    m.d.comb += tx.finish.eq(1)
                    m.next = "IDLE"
            with m.State("READ"):
                m.d.comb += host.request.valid.eq(1)
                with m.If(host.request.ready):
                    m.d.sync += request.count.eq(request.count - 1)
                    advance()
                    m.next = "ANSWER"
            with m.State("ANSWER"):
                m.d.comb += host.response.ready.eq(1)
                m.d.sync += word.eq(host.response.payload.data)
                with m.If(host.response.valid):
                    m.next = "OCTETS"
        return m
