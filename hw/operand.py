"""From fetched rows to multiplier operands: byte alignment, padding, window registers."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch.config import AcceleratorConfig

from .activation_memory import rows_layout
from .technology import Technology

__all__ = ["OPERAND_LATENCY", "OperandFetch"]

OPERAND_LATENCY = 2
"""Cycles from `rows` to `operands`."""


class OperandFetch(wiring.Component):
    """Forms the operand of every multiplier.

    DENSE: bytes q .. q + taps of a row (or half of them from each of two rows), shared by all lanes.
    Otherwise: a window of `window_rows` x `window_columns` pixels for `lanes` channels; every column load
    shifts it. Bytes outside the tensor or below the kernel read as `pad`. The second of two pixels (DENSE) has the
    bytes of the row that lies `second` rows below.

    Members
    -------
    rows : In; as the activation memory delivers them
    valid, q, row, kernel_row, pad, in_rows, in_row_bytes, kernel_rows, dense, row_pair : In; with `rows`
    second : In; with `rows`: which row is the third (see `activation_memory.RowRequest`)
    operands : Out; [lanes][taps] int8
    second_operands : Out; [taps] int8 of the second pixel, shared by all lanes; only with two pixels
    """

    def __init__(self, config: AcceleratorConfig, technology: Technology) -> None:
        self.config = config
        self.technology = technology
        super().__init__(
            {
                "second": In(2),
                "rows": In(rows_layout(config)),
                "valid": In(1),
                "row": In(signed(17)),
                "q": In(signed(18)),
                "kernel_row": In(8),
                "pad": In(8),
                "in_rows": In(16),
                "in_row_bytes": In(16),
                "kernel_rows": In(8),
                "dense": In(1),
                "row_pair": In(1),
                "operands": Out(data.ArrayLayout(data.ArrayLayout(8, config.taps), config.lanes)),
                "second_operands": Out(data.ArrayLayout(8, config.taps)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        taps, lanes = config.taps, config.lanes
        half = taps // 2
        rows = config.window_rows
        granule_bits = (config.granule - 1).bit_length()

        # Stage 1: which rows are valid; shift the rows to the byte.
        row_valid = []
        for r in range(len(self.rows)):
            row = Signal(signed(19), name=f"row_{r}")
            valid = Signal(name=f"row_valid_{r}", reset_less=True)
            # How far down the kernel: the second pixel has a kernel of its own.
            down = self.kernel_row + (Mux(self.dense, r & 1, r) if config.pixels > 1 else r)
            m.d.comb += row.eq(self.row + (r if r < 2 else self.second + (r - 2)))
            m.d.sync += valid.eq((row >= 0) & (row < self.in_rows) & (down < self.kernel_rows))
            row_valid.append(valid)
        # Bytes before the row's start, and bytes left in it, both clamped to 0 .. taps.
        q_valid = Signal(reset_less=True)
        lead, left = Signal(signed(19)), Signal(signed(19))
        m.d.comb += [lead.eq(-self.q), left.eq(self.in_row_bytes - self.q)]
        m.d.sync += q_valid.eq((self.q >= 0) & (left > 0))
        byte_valid = Signal(taps, reset_less=True)
        pair_valid = Signal(max(1, half), reset_less=True)
        for i in range(taps):
            m.d.sync += byte_valid[i].eq((lead <= i) & (left > i))
        for i in range(half):
            m.d.sync += pair_valid[i].eq((lead <= i) & (left > i))
        shift = self.q[:granule_bits]

        def aligned(row, count: int, name: str) -> list:
            result = []
            for i in range(count):
                byte = Signal(8, name=f"{name}_{i}", reset_less=True)
                m.d.sync += byte.eq(Array(row[i + k] for k in range(config.granule))[shift])
                result.append(byte)
            return result

        pixels = [(aligned(self.rows[0], taps, "top"), aligned(self.rows[1], half, "below"))]
        if config.pixels > 1:
            pixels.append((aligned(self.rows[2], taps, "second_top"), aligned(self.rows[3], half, "second_below")))
        pad, pair, load = (Signal(n, reset_less=True) for n in (8, 1, 1))
        m.d.sync += [pad.eq(self.pad), pair.eq(self.row_pair), load.eq(self.valid & ~self.dense)]

        # Stage 2: padding; the shared vector and the window.
        shared: list[list[Signal]] = []
        for pixel, (top, below) in enumerate(pixels):
            vector = [Signal(8, name=f"shared_{pixel}_{i}", reset_less=True) for i in range(taps)]
            for i in range(taps):
                one_row = Mux(row_valid[2 * pixel] & byte_valid[i], top[i], pad)
                if half <= i < 2 * half:
                    from_pair = Mux(row_valid[2 * pixel + 1] & pair_valid[i - half], below[i - half], pad)
                    m.d.sync += vector[i].eq(Mux(pair, from_pair, one_row))
                else:
                    m.d.sync += vector[i].eq(one_row)
            shared.append(vector)
        # The ninth tap of a row pair (odd `taps`) has weight zero.
        if config.pixels > 1:
            m.d.comb += self.second_operands.as_value().eq(Cat(shared[1]))

        if not config.depthwise:
            for lane in range(lanes):
                m.d.comb += self.operands[lane].as_value().eq(Cat(shared[0]))
            return m

        dense = Signal(reset_less=True)
        m.submodules.use_dense = use_dense = self.technology.fanout(width=1, count=lanes)
        m.d.sync += dense.eq(self.dense)
        m.d.comb += use_dense.value.eq(dense)
        fetched = [Signal(8 * lanes, name=f"fetched_{r}", reset_less=True) for r in range(rows)]
        for r in range(rows):
            m.d.sync += fetched[r].eq(self.rows[r].as_value())
        padding = Cat([pad] * lanes)
        window = [
            [Signal(8 * lanes, name=f"window_{c}_{r}", reset_less=True) for r in range(rows)]
            for c in range(config.window_columns)
        ]
        with m.If(load):
            for r in range(rows):
                for c in range(config.window_columns - 1):
                    m.d.sync += window[c][r].eq(window[c + 1][r])
                m.d.sync += window[-1][r].eq(Mux(q_valid & row_valid[r], fetched[r], padding))
        for lane in range(lanes):
            for tap in range(taps):
                column, r = divmod(tap, rows)
                in_window = column < config.window_columns
                own = window[column][r][8 * lane : 8 * lane + 8] if in_window else Const(0, 8)
                m.d.comb += self.operands[lane][tap].eq(Mux(use_dense.copies[lane], shared[0][tap], own))
        return m
