"""Descriptor layout and prefetch."""

from amaranth.hdl import Cat, Module, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import DESCRIPTOR_WORDS, FIELDS, PROGRAM_COLUMNS, field_width

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

    After `start` the descriptor at `pc` is read; it stands on `descriptor` while `valid`. `take` consumes
    it and starts reading the next one, unless it was the last. A descriptor takes
    `READS` + 3 cycles to arrive.

    Members
    -------
    start, pc : In; program memory word
    address, word : program memory read port (`RAM_LATENCY` cycles)
    descriptor, valid : Out
    take : In; only while `valid`
    """

    def __init__(self, config: AcceleratorConfig, *, address_width: int) -> None:
        self.address_width = address_width
        super().__init__(
            {
                "start": In(1),
                "pc": In(address_width),
                "address": Out(address_width),
                "word": In(32 * PROGRAM_COLUMNS),
                "descriptor": Out(descriptor_layout(config)),
                "valid": Out(1),
                "take": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        address = Signal(self.address_width)
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
            m.d.sync += [address.eq(self.pc), self.valid.eq(0)]
        return m
