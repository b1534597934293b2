"""Weight memory: words of one byte for every multiplier, written 32 bits at a time."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import weight_stride, weight_word_columns

from .delay import SPREAD_LATENCY, delay, spread
from .technology import LANES_OF_A_COPY, RAM_LATENCY, Technology, write_lane

__all__ = ["WEIGHT_LATENCY", "WeightMemory"]

WEIGHT_LATENCY = SPREAD_LATENCY + RAM_LATENCY
"""Cycles from `address` to `word`: the way to each memory, the memory."""


@dataclass(frozen=True)
class _Layout:
    """How a memory holds `count` bytes of a word, from byte `first` on.

    A lane of the memory has a byte and, in shallow memories, a ninth bit, which is a bit of the lowest bytes: these
    have no lanes of their own.
    """

    first: int
    count: int
    lane: int

    @property
    def lanes(self) -> int:
        return -(-8 * self.count // self.lane)

    @property
    def spread(self) -> int:
        """Bytes whose bits are the ninth ones."""
        return self.count - self.lanes if self.lane > 8 else 0

    def byte(self, lane: int) -> int:
        """The byte of the word that a lane has."""
        return self.first + self.spread + lane

    def word(self, stored: Value) -> Value:
        """The bytes, of what the memory has."""
        lanes = [stored[self.lane * i : self.lane * (i + 1)] for i in range(self.lanes)]
        return Cat(*(bits[8] for bits in lanes[: 8 * self.spread]), *(bits[:8] for bits in lanes))


@dataclass(frozen=True)
class _HostWrite:
    """A column on its way to the memories of some lanes."""

    data: Value
    address: Value
    columns: dict[int, Value]
    """Whether it is this column of the word."""
    column_bytes: int

    def column(self, index: int) -> Value:
        """Whether it is the column that has this byte of the word."""
        return self.columns[index // self.column_bytes]

    def byte(self, index: int) -> Value:
        """Where a byte of the word stands in the data."""
        low = 8 * (index % self.column_bytes)
        return self.data[low : low + 8]


class WeightMemory(wiring.Component):
    """Reads a word each cycle (`WEIGHT_LATENCY`); the host writes a word's columns in ascending order.

    Of the lowest bytes of each memory's share the bits are stored with later columns: they are what was written when
    the last column is.

    Parameters
    ----------
    host_width
        Bits of a column: 32, or a multiple of 32 of which a word consists.

    Members
    -------
    address : In, word : Out; read port
    host_write, host_address, host_data : In; byte offset in the WEIGHTS window and a column of data
    """

    def __init__(self, config: AcceleratorConfig, technology: Technology, *, host_width: int = 32) -> None:
        assert host_width == 32 or 8 * config.weight_word_bytes % host_width == 0
        self.column_bytes = host_width // 8
        self.config = config
        self.technology = technology
        super().__init__(
            {
                "address": In(16),
                "word": Out(8 * config.weight_word_bytes),
                "host_write": In(1),
                "host_address": In(28),
                "host_data": In(host_width),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        memories = config.lanes // config.weight_memory_lanes
        count = config.taps * config.weight_memory_lanes
        # One address for all memories would be the longest net of the design.
        address_bits = (config.weight_words - 1).bit_length()
        read = spread(m, self.technology, self.address[:address_bits], memories, "read_address")
        writes = self._host_writes(m, address_bits)
        lane = write_lane(config.weight_words)
        for index in range(memories):
            layout = _Layout(index * count, count, lane)
            ram = self.technology.ram(width=lane * layout.lanes, depth=config.weight_words, lane=lane)
            m.submodules[f"memory_{index}"] = ram
            m.d.comb += [
                ram.r_addr.eq(read[index]),
                self.word[8 * layout.first : 8 * (layout.first + count)].eq(layout.word(ram.r_data)),
            ]
            self._write(m, ram, layout, writes[index * config.weight_memory_lanes // LANES_OF_A_COPY])
        return m

    def _host_writes(self, m: Module, address_bits: int) -> list[_HostWrite]:
        """For each group of `LANES_OF_A_COPY` lanes: the long way from the host takes cycles of its own."""
        config = self.config
        size = self.column_bytes
        column_bits = (weight_stride(config) // size - 1).bit_length()
        columns_of_word = 4 * weight_word_columns(config) // size
        host_write = Signal()
        host_address, host_data = Signal(28, reset_less=True), Signal(8 * size, reset_less=True)
        m.d.sync += [
            host_write.eq(self.host_write),
            host_address.eq(self.host_address),
            host_data.eq(self.host_data),
        ]
        groups = -(-config.lanes // LANES_OF_A_COPY)
        below = (size - 1).bit_length()
        low = below + column_bits
        value = Cat(host_data, host_address[low : low + address_bits])
        copies = spread(m, self.technology, value, groups, "host_copies")
        writes = []
        for group in range(groups):
            first = group * LANES_OF_A_COPY * config.taps // size
            behind = -(-(group + 1) * LANES_OF_A_COPY * config.taps // size)
            columns = {}
            for column in range(first, min(behind, columns_of_word)):
                here = host_address[below:low] == column if column_bits else 1
                columns[column] = delay(m, host_write & here, SPREAD_LATENCY, f"enable_{group}_{column}", reset=True)
            copy = copies[group]
            writes.append(_HostWrite(copy[: 8 * size], copy[8 * size :], columns, size))
        return writes

    def _write(self, m: Module, ram: wiring.Component, layout: _Layout, write: _HostWrite) -> None:
        """A column's bytes into their lanes, each with its ninth bit."""
        held = Signal(8 * layout.spread, name=f"held_{layout.first}", reset_less=True)
        for i in range(layout.spread):
            byte = layout.first + i
            with m.If(write.column(byte)):
                m.d.sync += held[8 * i : 8 * i + 8].eq(write.byte(byte))
        enables, data = [], []
        for lane in range(layout.lanes):
            byte = layout.byte(lane)
            ninth: Value = Const(0, layout.lane - 8)
            if lane < 8 * layout.spread:
                source = layout.first + lane // 8
                # Of a byte that comes with the same column nothing is held yet.
                same = source // write.column_bytes == byte // write.column_bytes
                ninth = write.byte(source)[lane % 8] if same else held[lane]
            enables.append(write.column(byte))
            data.append(Cat(write.byte(byte), ninth))
        m.d.comb += [ram.w_en.eq(Cat(enables)), ram.w_addr.eq(write.address), ram.w_data.eq(Cat(data))]
