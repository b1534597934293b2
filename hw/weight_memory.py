"""Weight memory: words of one byte for every multiplier, written 32 bits at a time."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import weight_stride, weight_word_columns

from .delay import SPREAD_LATENCY, spread
from .technology import RAM_LATENCY, Technology

__all__ = ["WEIGHT_LATENCY", "WeightMemory"]

WEIGHT_LATENCY = SPREAD_LATENCY + RAM_LATENCY
"""Cycles from `address` to `word`: the way to each memory, the memory."""


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
        # The long way from the host takes a cycle of its own, and a word has more bits than one register should enable.
        m.submodules.shifts = shifts = self.technology.fanout(width=1, count=memories)
        host_write = Signal()
        host_address, host_data = Signal(28, reset_less=True), Signal(32, reset_less=True)
        m.d.sync += [
            host_write.eq(self.host_write),
            host_address.eq(self.host_address),
            host_data.eq(self.host_data),
        ]
        m.d.comb += shifts.value.eq(self.host_write)
        shift = Signal(32 * columns, reset_less=True)
        column = host_address[2 : 2 + column_bits] if column_bits else 0
        shifted = Cat(shift, host_data)[32:]
        for index in range(memories):
            mine = slice(len(shift) * index // memories, len(shift) * (index + 1) // memories)
            with m.If(shifts.copies[index]):
                m.d.sync += shift[mine].eq(shifted[mine])
        # One address for all memories would be the longest net of the design.
        address_bits = (config.weight_words - 1).bit_length()
        read = spread(m, self.technology, self.address[:address_bits], memories, "read_address")
        m.submodules.write_address = write = self.technology.fanout(width=address_bits + 1, count=memories)
        m.d.comb += [
            write.value.eq(
                Cat(
                    host_write & (column == columns - 1),
                    host_address[2 + column_bits : 2 + column_bits + address_bits],
                )
            ),
        ]
        for index in range(memories):
            ram = self.technology.ram(width=width, depth=config.weight_words)
            m.submodules[f"memory_{index}"] = ram
            mine = slice(index * width, (index + 1) * width)
            m.d.comb += [
                ram.r_addr.eq(read[index]),
                self.word[mine].eq(ram.r_data),
                ram.w_en.eq(write.copies[index][0]),
                ram.w_addr.eq(write.copies[index][1:]),
                ram.w_data.eq(shift[mine]),
            ]
        return m
