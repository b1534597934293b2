"""Descriptor layout and prefetch."""

from amaranth.hdl import Cat, Module, Signal, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import DESCRIPTOR_WORDS, FIELDS, PROGRAM_COLUMNS, field_width
from nnloom.arch.legality import program_memory_words, sign_bits, unseen_bits

from .technology import RAM_LATENCY

__all__ = ["DescriptorFetch", "descriptor_layout"]

READS = DESCRIPTOR_WORDS // PROGRAM_COLUMNS
"""Program memory words of a descriptor."""


def descriptor_layout(config: AcceleratorConfig) -> data.FlexibleLayout:
    """The words of a descriptor, seen as its fields; without those of options that the engine does not have."""
    fields = {}
    for field in FIELDS:
        width = field_width(config, field)
        if not width:
            continue
        fields[field.name] = data.Field(
            signed(width) if field.signed else unsigned(width), 32 * field.word + field.offset
        )
    return data.FlexibleLayout(32 * DESCRIPTOR_WORDS, fields)


class DescriptorFetch(wiring.Component):
    """Reads descriptors one ahead of the sequencer.

    After `start` the descriptor at `program_start` is read; it stands on `descriptor` while `valid`. `take` consumes
    it and starts reading the next one, unless it was the last. A descriptor takes
    `READS` + 3 cycles to arrive.

    Parameters
    ----------
    address_width
        Bits of an address of the program memory.

    Members
    -------
    start, program_start : In; 32-bit word of program memory
    illegal : Out; registered; what is being read is beyond the program memory, has bits without a meaning, or the start
        is not at a word of the memory
    address, word : program memory read port (`RAM_LATENCY` cycles)
    descriptor, valid : Out
    take : In; only while `valid`
    """

    def __init__(self, config: AcceleratorConfig, *, address_width: int) -> None:
        self.config = config
        self.address_width = address_width
        super().__init__(
            {
                "start": In(1),
                "program_start": In(16),
                "illegal": Out(1),
                "address": Out(address_width),
                "word": In(32 * PROGRAM_COLUMNS),
                "descriptor": Out(descriptor_layout(config)),
                "valid": Out(1),
                "take": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # Enough bits that no address comes back into the memory.
        column_bits = (PROGRAM_COLUMNS - 1).bit_length()
        address = Signal(max(self.address_width + 1, len(self.program_start) - column_bits))
        reading = Signal()
        count = Signal(range(READS + RAM_LATENCY + 1))
        words = Signal(32 * DESCRIPTOR_WORDS, reset_less=True)
        begin = Signal()
        capture = Signal()
        m.d.comb += [
            self.address.eq(address),
            self.descriptor.as_value().eq(words),
            begin.eq(self.start | (self.take & ~self.descriptor.last)),
        ]
        with m.If(reading):
            m.d.sync += [address.eq(address + 1), count.eq(count + 1)]
            m.d.sync += capture.eq(count >= RAM_LATENCY - 1)
            with m.If(capture):
                # Words shift in from the top: word 0 ends lowest.
                m.d.sync += words.eq(Cat(words, self.word)[32 * PROGRAM_COLUMNS :])
            with m.If(count == READS + RAM_LATENCY - 1):
                # RAM_LATENCY addresses beyond the descriptor were read ahead: step back.
                m.d.sync += [reading.eq(0), self.valid.eq(1), address.eq(address + 1 - RAM_LATENCY)]
        with m.If(self.take):
            m.d.sync += self.valid.eq(0)
        with m.If(begin):
            m.d.sync += [reading.eq(1), count.eq(0), capture.eq(0)]
        with m.If(self.start):
            m.d.sync += [address.eq(self.program_start >> column_bits), self.valid.eq(0)]

        last_start = program_memory_words(self.config) // PROGRAM_COLUMNS - READS
        beyond = (count == 0) & (address > last_start)
        unseen = Signal()
        words_read = [self.word.word_select(i, 32) for i in range(PROGRAM_COLUMNS)] * READS
        wrong: list[list[Value]] = [
            [word[bit] for bit in range(32) if mask >> bit & 1]
            for word, mask in zip(words_read, unseen_bits(self.config).tolist(), strict=True)
        ]
        for (index, sign), above in sign_bits(self.config).items():
            wrong[index] += [words_read[index][bit] ^ words_read[index][sign] for bit in above]
        with m.Switch(count):
            for read in range(READS):
                with m.Case(RAM_LATENCY + read):
                    found = wrong[read * PROGRAM_COLUMNS : (read + 1) * PROGRAM_COLUMNS]
                    m.d.comb += unseen.eq(Cat(*found).any())
        misplaced = self.start & self.program_start[:column_bits].any()
        m.d.sync += self.illegal.eq((reading & (beyond | unseen)) | misplaced)
        return m
