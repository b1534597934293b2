"""Weight memory: words of one byte for every multiplier, written 32 bits at a time."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import weight_stride, weight_word_columns

from .technology import Technology

__all__ = ["WeightMemory"]


class WeightMemory(wiring.Component):
    """Reads a word each cycle (`RAM_LATENCY`); the host shifts a word in and commits it with its last column.

    Members
    -------
    address : In, word : Out; read port
    host_write, host_address, host_data : In; byte offset in the WEIGHTS window and 32 bits of data
    """

    def __init__(self, config: AcceleratorConfig, technology: Technology) -> None:
        self.config = config
        self.technology = technology
        super().__init__(
            {
                "address": In(16),
                "word": Out(8 * config.weight_word_bytes),
                "host_write": In(1),
                "host_address": In(28),
                "host_data": In(32),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        columns = weight_word_columns(config)
        column_bits = (weight_stride(config) // 4 - 1).bit_length()
        m.submodules.ram = ram = self.technology.ram(width=8 * config.weight_word_bytes, depth=config.weight_words)
        shift = Signal(32 * columns, reset_less=True)
        commit = Signal()
        word_address = Signal(16, reset_less=True)
        column = self.host_address[2 : 2 + column_bits] if column_bits else 0
        with m.If(self.host_write):
            m.d.sync += [
                shift.eq(Cat(shift, self.host_data)[32:]),
                word_address.eq(self.host_address[2 + column_bits :]),
            ]
        m.d.sync += commit.eq(self.host_write & (column == columns - 1))
        m.d.comb += [
            ram.r_addr.eq(self.address),
            self.word.eq(ram.r_data),
            ram.w_en.eq(commit),
            ram.w_addr.eq(word_address),
            ram.w_data.eq(shift[: 8 * config.weight_word_bytes]),
        ]
        return m
