"""Tables in which result bytes are looked up on their way to the memory."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import TABLE_ENTRIES

from .technology import RAM_LATENCY, Technology

__all__ = ["LOOKUP_LATENCY", "LookupTables", "TableWrite", "lookup_copies", "table_bits"]

LOOKUP_LATENCY = RAM_LATENCY
"""Cycles from `bytes` to `values`."""

UNITS_OF_A_COPY = 4
"""Memories that one copy of the host's write, or of the table's number, drives."""

ENTRY_BITS = (TABLE_ENTRIES - 1).bit_length()


def table_bits(config: AcceleratorConfig) -> int:
    """Bits of the number of a table."""
    return max(1, (config.tables - 1).bit_length())


def lookup_copies(config: AcceleratorConfig) -> int:
    """Copies of what all units have in common."""
    return -(-config.requant_units // UNITS_OF_A_COPY)


def TableWrite(config: AcceleratorConfig) -> data.StructLayout:
    """Write of one entry: `address` is 256 times the table plus the entry."""
    return data.StructLayout({"enable": 1, "address": (config.tables * TABLE_ENTRIES - 1).bit_length(), "value": 8})


class LookupTables(wiring.Component):
    """All tables once for each requantization unit, so that each looks up a byte in every cycle.

    A table of an engine with as many as fit costs no more block RAM than one. Reset does not clear them.

    Members
    -------
    bytes : In; [requant_units]
    table : In; its number, the same for all: [copies], one for `UNITS_OF_A_COPY` units
    values : Out; [requant_units], `LOOKUP_LATENCY` cycles later, from the memories' own registers
    write : In(TableWrite); takes effect a few cycles later; not while anything is looked up
    """

    def __init__(self, config: AcceleratorConfig, technology: Technology) -> None:
        assert config.tables
        self.config = config
        self.technology = technology
        units = data.ArrayLayout(8, config.requant_units)
        super().__init__(
            {
                "bytes": In(units),
                "table": In(data.ArrayLayout(table_bits(config), lookup_copies(config))),
                "values": Out(units),
                "write": In(TableWrite(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        units = self.config.requant_units
        layout = TableWrite(self.config)
        # A cycle for the way: the memories lie beside their units.
        m.submodules.writes = writes = self.technology.fanout(width=layout.size, count=lookup_copies(self.config))
        m.d.comb += writes.value.eq(self.write)
        for unit in range(units):
            ram = self.technology.ram(width=8, depth=self.config.tables * TABLE_ENTRIES)
            m.submodules[f"memory_{unit}"] = ram
            write = Signal(layout, name=f"write_{unit}")
            m.d.comb += [
                write.eq(writes.copies[unit // UNITS_OF_A_COPY]),
                ram.w_en.eq(write.enable),
                ram.w_addr.eq(write.address),
                ram.w_data.eq(write.value),
                ram.r_addr.eq(Cat(self.bytes[unit], self.table[unit // UNITS_OF_A_COPY])),
                self.values[unit].eq(ram.r_data),
            ]
        return m
