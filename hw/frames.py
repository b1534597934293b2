"""COBS frames with a CRC in block RAM: received whole before anyone sees them, kept after they were sent."""

from amaranth.hdl import Cat, Module, Mux, ResetInserter, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.crc.catalog import CRC32_ETHERNET
from amaranth.lib.wiring import In, Out

from nnloom.arch.link import CRC_BYTES

from .technology import RAM_LATENCY, Ram, Technology

__all__ = ["FrameReceiver", "FrameTransmitter"]


class SerialCrc(wiring.Component):
    """CRC-32 of octets, a bit a cycle: small, and a byte of the line takes far longer.

    Members
    -------
    start : In; begin anew, while `idle`
    octet, valid : In; taken while `idle`
    idle : Out; `crc` and `match` are those of all octets so far
    crc : Out(32), match : Out; `match`: the last four octets were the CRC of those before
    """

    def __init__(self) -> None:
        super().__init__(
            {"start": In(1), "octet": In(8), "valid": In(1), "idle": Out(1), "crc": Out(32), "match": Out(1)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # A reset is cheaper than the processor's own start, which allows for data in the same cycle.
        crc = CRC32_ETHERNET(data_width=1).create()
        m.submodules.crc = ResetInserter(self.start)(crc)
        bits = Signal(8, reset_less=True)
        left = Signal(4)
        """Bits that are left, counted up from 8 to 16."""
        m.d.comb += [
            self.idle.eq(~left[-1]),
            crc.data.eq(bits[0]),
            crc.valid.eq(left[-1]),
            self.crc.eq(crc.crc),
            self.match.eq(crc.match_detected),
        ]
        with m.If(left[-1]):
            m.d.sync += [bits.eq(bits >> 1), left.eq(left + 1)]
        with m.Elif(self.valid):
            m.d.sync += [bits.eq(self.octet), left.eq(8)]
        return m


class FrameReceiver(wiring.Component):
    """Decodes frames into one part of a buffer while another one is read; a third part keeps a frame.

    Parameters
    ----------
    buffer_words
        Longest frame with header and CRC, in 32-bit words; a power of two.

    Members
    -------
    octets : In(stream); bytes of the line, taken sooner than a UART has the next
    frame : Out; a good frame waits; what arrives meanwhile is lost and reported as damaged
    take : In; one cycle while `frame`: the waiting frame is the one to read until the next `take`
    words : Out; words of the frame to read, without its CRC
    keep : In; one cycle: the frame to read is the one to keep; nothing is to be read until the next `take`
    kept : In; whether to read the frame that is kept
    address : In; word of the frame to read
    data : Out(32); data(t + 2) = the word at address(t)
    damaged : Out; one cycle at the end of a damaged frame
    """

    def __init__(self, technology: Technology, *, buffer_words: int) -> None:
        if buffer_words < 8 or buffer_words & (buffer_words - 1):
            raise ValueError(f"frame buffer must be a power of two of at least 8 words, not {buffer_words}")
        self.technology = technology
        self.buffer_words = buffer_words
        super().__init__(
            {
                "octets": In(stream.Signature(8)),
                "frame": Out(1),
                "take": In(1),
                "words": Out(range(buffer_words)),
                "keep": In(1),
                "kept": In(1),
                "address": In(range(buffer_words)),
                "data": Out(32),
                "damaged": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.buffer = buffer = self.technology.ram(width=32, depth=4 * self.buffer_words)
        m.submodules.crc = crc = SerialCrc()

        # COBS: at most one octet for each byte. The zero at the end of a block comes with the code of the next one.
        byte = self.octets.payload
        remaining = Signal(8)
        last = Signal(init=1)
        """`remaining` is zero: a code comes next."""
        zero_due = Signal()
        octet, octet_valid = Signal(8, reset_less=True), Signal()
        end, complete = Signal(), Signal(reset_less=True)
        m.d.comb += self.octets.ready.eq(crc.idle & ~octet_valid)
        m.d.sync += [octet_valid.eq(0), end.eq(0)]
        with m.If(self.octets.valid & self.octets.ready):
            with m.If(byte == 0):
                m.d.sync += [end.eq(1), complete.eq(last), last.eq(1), zero_due.eq(0)]
            with m.Elif(last):
                m.d.sync += [octet.eq(0), octet_valid.eq(zero_due)]
                m.d.sync += [remaining.eq(byte - 1), last.eq(byte == 1), zero_due.eq(byte != 255)]
            with m.Else():
                m.d.sync += [octet.eq(byte), octet_valid.eq(1)]
                m.d.sync += [remaining.eq(remaining - 1), last.eq(remaining == 1)]

        # Octets to words.
        count = Signal(range(4 * self.buffer_words + 1))
        full = count[-1]
        bad = Signal()
        word = Signal(32, reset_less=True)
        write, target = Signal(), Signal(range(self.buffer_words), reset_less=True)
        fill, read, kept = (Signal(2, init=i, name=name) for i, name in enumerate(("fill", "read", "kept")))
        """The part that is being filled, the one that is read, and the one that is kept."""
        m.d.comb += [crc.octet.eq(octet), crc.valid.eq(octet_valid), crc.start.eq(end)]
        m.d.sync += [write.eq(octet_valid & (count[:2] == 3)), target.eq(count[2:])]
        with m.If(octet_valid):
            m.d.sync += word.eq(Cat(word[8:], octet))
            # Octets that are not counted make no word, so a frame that waits stays as it is.
            with m.If(full | self.frame):
                m.d.sync += bad.eq(1)
            with m.Else():
                m.d.sync += count.eq(count + 1)
        m.d.comb += [
            buffer.w_en.eq(write),
            buffer.w_addr.eq(Cat(target, fill)),
            buffer.w_data.eq(word),
            buffer.r_addr.eq(Cat(self.address, Mux(self.kept, kept, read))),
            self.data.eq(buffer.r_data),
        ]

        # The verdict.
        length = count[2:]
        words = Signal.like(self.words, reset_less=True)
        with m.If(end):
            m.d.sync += [count.eq(0), bad.eq(0)]
            with m.If(complete & crc.match & ~bad & (count[:2] == 0) & (length > CRC_BYTES // 4)):
                m.d.sync += [self.frame.eq(1), words.eq(length - 1)]
            with m.Elif((count != 0) | bad | ~complete):
                m.d.comb += self.damaged.eq(1)
        with m.If(self.take):
            m.d.sync += [self.frame.eq(0), fill.eq(read), read.eq(fill), self.words.eq(words)]
        with m.If(self.keep):
            m.d.sync += [kept.eq(read), read.eq(kept)]
        return m


class FrameTransmitter(wiring.Component):
    """Builds a frame in a buffer, seals it with its CRC and sends it; can send the last kept one again.

    A frame is sent while it is built, as far as its COBS blocks are complete. The buffer has a place for a kept frame
    and a small one for notices, which are sent once.

    Parameters
    ----------
    buffer_bytes
        Size of the buffer, a quarter of it for notices; a power of two.

    Members
    -------
    idle : Out; nothing is being built or sent
    begin : In; one cycle while `idle`: start a frame
    notice : In; with `begin`: this frame is not kept
    octets : In(stream); bytes of the frame, after `begin`
    finish : In; one cycle after the last octet was taken: close the frame
    repeat : In; one cycle while `idle`: send the kept frame again
    transmit : Out(stream); bytes for the line
    """

    def __init__(self, technology: Technology, *, buffer_bytes: int) -> None:
        if buffer_bytes < 64 or buffer_bytes & (buffer_bytes - 1):
            raise ValueError(f"frame buffer must be a power of two of at least 64 bytes, not {buffer_bytes}")
        self.technology = technology
        self.buffer_bytes = buffer_bytes
        super().__init__(
            {
                "idle": Out(1),
                "begin": In(1),
                "notice": In(1),
                "octets": In(stream.Signature(8)),
                "finish": In(1),
                "repeat": In(1),
                "transmit": Out(stream.Signature(8)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.buffer = buffer = self.technology.ram(width=8, depth=self.buffer_bytes)
        m.submodules.crc = crc = SerialCrc()
        position = Signal(range(self.buffer_bytes))
        """Where the next byte is written."""
        code_position = Signal.like(position, reset_less=True)
        code = Signal(8, reset_less=True)
        block_full = Signal()
        closed = Signal()
        """All of the frame has been written."""
        sending = Signal()
        seal = Signal(8 * CRC_BYTES, reset_less=True)
        index = Signal(range(CRC_BYTES))
        built = Signal()
        m.d.comb += self.idle.eq(built & ~sending)

        # Encoded as it is written: a zero leaves its place to the code of the block after it, which comes later.
        byte, put, put_code = Signal(8), Signal(), Signal()
        w_en = Signal()
        w_addr, w_data = Signal.like(position, reset_less=True), Signal(8, reset_less=True)
        at_code = put_code | (byte == 0)
        m.d.sync += [
            w_en.eq(put | put_code),
            w_addr.eq(Mux(at_code, code_position, position)),
            w_data.eq(Mux(at_code, code, byte)),
        ]
        m.d.comb += [
            buffer.w_en.eq(w_en),
            buffer.w_addr.eq(w_addr),
            buffer.w_data.eq(w_data),
            crc.start.eq(self.begin),
            crc.octet.eq(self.octets.payload),
            crc.valid.eq(self.octets.valid & self.octets.ready),
        ]
        with m.If(put | put_code):
            m.d.sync += position.eq(position + 1)
            with m.If(at_code):
                m.d.sync += [code_position.eq(position), code.eq(1), block_full.eq(0)]
            with m.Else():
                m.d.sync += [code.eq(code + 1), block_full.eq(code == 254)]

        start = Mux(self.begin & self.notice, 3 * self.buffer_bytes // 4, 0)
        with m.If(self.begin | self.repeat):
            m.d.sync += [sending.eq(1), closed.eq(self.repeat)]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += built.eq(1)
                m.d.sync += index.eq(0)
                with m.If(self.begin):
                    m.d.sync += [position.eq(start | 1), code_position.eq(start), code.eq(1), block_full.eq(0)]
                    m.next = "BUILD"
            with m.State("BUILD"):
                m.d.comb += [byte.eq(self.octets.payload), self.octets.ready.eq(~block_full & crc.idle)]
                m.d.comb += [put.eq(self.octets.valid & self.octets.ready), put_code.eq(block_full)]
                with m.If(self.finish):
                    m.next = "TAKE"
            with m.State("TAKE"):
                m.d.comb += put_code.eq(block_full)
                m.d.sync += seal.eq(crc.crc)
                with m.If(crc.idle):
                    m.next = "SEAL"
            with m.State("SEAL"):
                m.d.comb += [byte.eq(seal[:8]), put.eq(~block_full), put_code.eq(block_full)]
                with m.If(~block_full):
                    m.d.sync += [seal.eq(seal >> 8), index.eq(index + 1)]
                    with m.If(index == CRC_BYTES - 1):
                        m.next = "CLOSE"
            with m.State("CLOSE"):
                # The code of the last block, twice if the block is full: another, empty one follows.
                m.d.comb += put_code.eq(1)
                with m.If(~block_full):
                    m.next = "DELIMIT"
            with m.State("DELIMIT"):
                # CLOSE has moved `position` one too far: the delimiter goes to where a next code would be.
                m.d.sync += [w_en.eq(1), w_addr.eq(code_position), w_data.eq(0)]
                m.next = "CLOSED"
            with m.State("CLOSED"):
                m.d.sync += closed.eq(1)
                m.next = "IDLE"
        self._send(m, buffer, start=start, code_position=code_position, closed=closed, sending=sending)
        return m

    def _send(
        self, m: Module, buffer: Ram, *, start: Value, code_position: Signal, closed: Signal, sending: Signal
    ) -> None:
        """Bytes of closed blocks to the line, then the rest."""
        kept_end = Signal.like(code_position)
        kept = Signal()
        position, limit = (Signal.like(code_position, name=name, reset_less=True) for name in ("sent", "limit"))
        """The next byte, and that of the first block that is not closed; once all are, that of the delimiter."""
        wait = Signal(range(RAM_LATENCY + 1))
        m.d.comb += [
            buffer.r_addr.eq(position),
            self.transmit.payload.eq(buffer.r_data),
            self.transmit.valid.eq(wait == RAM_LATENCY),
        ]
        with m.If(self.begin | self.repeat):
            m.d.sync += [position.eq(start), limit.eq(Mux(self.begin, start, kept_end))]
        with m.Elif(~closed):
            # A cycle late, as the writes of what lies before it.
            m.d.sync += limit.eq(code_position)
        with m.If(self.begin):
            m.d.sync += kept.eq(~self.notice)
        with m.If(closed & kept):
            m.d.sync += kept_end.eq(limit)
        with m.If(self.transmit.valid), m.If(self.transmit.ready):
            m.d.sync += [wait.eq(0), position.eq(position + 1)]
            with m.If(closed & (position == limit)):
                m.d.sync += sending.eq(0)
        with m.Elif(sending & (closed | (position != limit))):
            m.d.sync += wait.eq(wait + 1)
