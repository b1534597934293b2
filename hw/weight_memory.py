"""Weight memory: words of one byte for every multiplier, written 32 bits at a time."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import weight_stride, weight_word_columns

from .technology import RAM_LATENCY, Technology

__all__ = ["WEIGHT_LATENCY", "WeightMemory"]

WEIGHT_LATENCY = 1 + RAM_LATENCY
"""Cycles from `address` to `word`: a register beside each memory, the memory."""


class WeightMemory(wiring.Component):
    """Reads a word each cycle (`WEIGHT_LATENCY`); the host shifts a word in and commits it with its last column.

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
        memories = config.lanes // config.weight_memory_lanes
        width = 8 * config.taps * config.weight_memory_lanes
        shift = Signal(32 * columns, reset_less=True)
        column = self.host_address[2 : 2 + column_bits] if column_bits else 0
        with m.If(self.host_write):
            m.d.sync += shift.eq(Cat(shift, self.host_data)[32:])
        # One address for all memories would be the longest net of the design.
        address_bits = (config.weight_words - 1).bit_length()
        m.submodules.read_address = read = self.technology.fanout(width=address_bits, count=memories)
        m.submodules.write_address = write = self.technology.fanout(width=address_bits + 1, count=memories)
        m.d.comb += [
            read.value.eq(self.address),
            write.value.eq(
                Cat(
                    self.host_write & (column == columns - 1),
                    self.host_address[2 + column_bits : 2 + column_bits + address_bits],
                )
            ),
        ]
        for index in range(memories):
            ram = self.technology.ram(width=width, depth=config.weight_words)
            m.submodules[f"memory_{index}"] = ram
            mine = slice(index * width, (index + 1) * width)
            m.d.comb += [
                ram.r_addr.eq(read.copies[index]),
                self.word[mine].eq(ram.r_data),
                ram.w_en.eq(write.copies[index][0]),
                ram.w_addr.eq(write.copies[index][1:]),
                ram.w_data.eq(shift[mine]),
            ]
        return m
