"""What `nnloom.arch.legality` says of a descriptor's form, as logic; its addresses are watched where they are made."""

from amaranth.hdl import Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import Kind
from nnloom.arch.legality import MOST_ROW_STEP, SIZES, add_fields, legal_kinds
from nnloom.arch.loopnest import LEAST_START_DELAY, least_start_delay_after_table

from .descriptor import descriptor_layout

__all__ = ["DescriptorCheck"]


class DescriptorCheck(wiring.Component):
    """Looks at a descriptor as a whole; a register for each thing that it looks at.

    Members
    -------
    descriptor : In
    first : In; it is the program's first
    after_table : In; the one before it has a table
    illegal : Out; one cycle after
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        super().__init__(
            {"descriptor": In(descriptor_layout(config)), "first": In(1), "after_table": In(1), "illegal": Out(1)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, d = self.config, self.descriptor
        dense, window, add = (d.kind == kind for kind in (Kind.DENSE, Kind.WINDOW, Kind.ADD))
        faults: dict[str, Value] = {
            "kind": ~Const(sum(1 << kind for kind in legal_kinds(config)), 4).bit_select(d.kind, 1),
            **{name: d[name] == 0 for name in SIZES},
            "slide": d.slide & (~window | (d.n_ky != 1) | (d.n_kx != 1) | (d.slide_step == 0)),
            "maximum": d.maximum & (~window | d.slide) if config.max_pool else d.maximum,
            "pixel_pair": d.pixel_pair,
            "out_row_step": (d.out_row_step == 0) | (d.out_row_step > MOST_ROW_STEP),
        }
        if config.elementwise_mul:
            maximum = d.maximum if config.max_pool else Const(0, 1)
            faults["product"] = d.product & (~window | maximum | (d.n_ky != 2) | (d.n_kx != 1))
            faults["broadcast"] = d.broadcast & ~d.product
        triple: Value = d.row_triple if config.row_triples else Const(0, 1)
        if config.pixels > 1:
            strides = (d.row_step_oy == 2) | ((d.row_step_oy == 4) & ~triple)
            faults["pixel_pair"] = d.pixel_pair & ~(dense & strides & (d.out_row_step == 2) & ~d.out_row_start[0])
        if config.row_triples:
            faults["row_triple"] = triple & (~dense | d.row_pair | (d.kernel_rows != 255))
        if config.partial_sums:
            several = (d.n_g != 1) | (d.n_oy != 1) | (d.n_ox != 1)
            faults["partial_sums"] = (d.resume | d.keep) & (~dense | d.pixel_pair | several)
        if config.elementwise_add:
            for name, value in add_fields(config).items():
                faults[f"add_{name}"] = add & (d[name] != value)
        if not config.compact:
            least = Mux(d.narrow & ~add, config.requant_slots, 2 * config.requant_slots)
            faults["interval"] = d.interval < (Mux(d.pixel_pair, least << 1, least) if config.pixels > 1 else least)
        if config.overlap:
            late = Mux(self.after_table, least_start_delay_after_table(config), LEAST_START_DELAY)
            faults["start_delay"] = ~self.first & (d.start_delay < late)
        if config.tables:
            faults["table"] = d.table > config.tables
        found = Signal(len(faults))
        for bit, fault in zip(found, faults.values(), strict=True):
            m.d.sync += bit.eq(fault)
        m.d.comb += self.illegal.eq(found.any())
        return m
