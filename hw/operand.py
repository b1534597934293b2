"""From fetched rows to multiplier operands: byte alignment, padding, window registers."""

from dataclasses import dataclass

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch.config import AcceleratorConfig

from .activation_memory import ROW_FETCH_LATENCY, rows_layout
from .delay import delay
from .technology import LANES_OF_A_COPY, Technology

__all__ = ["AHEAD", "OPERAND_LATENCY", "OperandFetch", "description_latency"]

OPERAND_LATENCY = 2
"""Cycles from `rows` to `operands`."""

AHEAD = 2
"""Fewest cycles from the description of a request to its rows."""


def description_latency(config: AcceleratorConfig) -> int:
    """Cycles from the description of a request to its rows."""
    return AHEAD if config.overlap else ROW_FETCH_LATENCY


@dataclass(frozen=True)
class _Validity:
    """Which rows and bytes are valid."""

    few: list[Signal]
    """Bytes before the row's start, and bytes left in it, both limited to 0 .. taps or more."""
    rows_inside: list[Signal]
    row_valid: list[Value]
    byte_valid: Value
    pair_valid: Value


@dataclass(frozen=True)
class _Described:
    """What is known of the bytes, in the cycle in which they are aligned."""

    pad: Value
    pair: Value
    triple: Value


@dataclass(frozen=True)
class _Aligned:
    """Bytes of the fetched rows, from byte `q` on."""

    pixels: list[tuple[list[Signal], list[Signal]]]
    """Of each pixel: [taps] of its row, [half of the taps] of the row below."""
    by_row: list[list[Signal]]


class OperandFetch(wiring.Component):
    """Forms the operand of every multiplier.

    DENSE: bytes q .. q + taps of a row (or half of them from each of two rows, or a third from each of three), shared
    by all lanes.
    Otherwise: a window of `window_rows` x `window_columns` pixels for `lanes` channels; every column load
    shifts it. Bytes outside the tensor or below the kernel read as `pad`. The second of two pixels (DENSE) has the
    bytes of the row that lies `second` rows below; with `row_triple`, where `second` is 2, those of the next row.

    Members
    -------
    rows : In; as the activation memory delivers them
    valid, q, row, kernel_row, pad, in_rows, in_row_bytes, kernel_rows, dense, row_pair, row_triple : In;
        `description_latency` cycles before the `rows` that they belong to
        row_triple: only with `config.row_triples`
    second : In; with them: which row is the third (see `activation_memory.RowRequest`)
    operands : Out; [lanes][taps] int8
    second_operands : Out; [lanes][taps] int8 of the second pixel, equal in all lanes; only with two pixels
    newest, previous : Out; [lanes] int8, with `operands`: row 0 of the newest column of the window, and of the one
        before; only with `config.elementwise_mul`
    """

    def __init__(self, config: AcceleratorConfig, technology: Technology) -> None:
        self.config = config
        self.technology = technology
        super().__init__(
            {
                "second": In(2),
                "rows": In(rows_layout(config)),
                "valid": In(1),
                "row": In(signed(config.field_bits + 1)),
                "q": In(signed(config.field_bits + 2)),
                "kernel_row": In(8),
                "pad": In(8),
                "in_rows": In(config.field_bits),
                "in_row_bytes": In(config.field_bits),
                "kernel_rows": In(8),
                "dense": In(1),
                "row_pair": In(1),
                **({"row_triple": In(1)} if config.row_triples else {}),
                "operands": Out(data.ArrayLayout(data.ArrayLayout(8, config.taps), config.lanes)),
                "second_operands": Out(data.ArrayLayout(data.ArrayLayout(8, config.taps), config.lanes)),
                **({name: Out(8 * config.lanes) for name in ("newest", "previous")} if config.elementwise_mul else {}),
            }
        )

    @property
    def _stands(self) -> bool:
        """A descriptor that stands needs no registers, and the verdicts wait instead of what they are made of."""
        return not self.config.overlap

    @property
    def _late(self) -> int:
        """Cycles that the verdicts wait."""
        return description_latency(self.config) - AHEAD

    def elaborate(self, platform: object) -> Module:
        m = Module()
        validity = self._elaborate_validity(m)
        aligned = self._elaborate_alignment(m)
        described = self._follow_description(m)
        shared = self._elaborate_shared(m, validity, aligned, described)
        if self.config.depthwise:
            self._elaborate_window(m, validity, described, shared)
        else:
            for lane in range(self.config.lanes):
                m.d.comb += self.operands[lane].as_value().eq(shared[0][lane])
        return m

    def _elaborate_validity(self, m: Module) -> _Validity:
        """Which rows and bytes are valid, from two cycles before the rows come: distances, limits, comparison."""
        config, taps = self.config, self.config.taps
        half = taps // 2
        in_rows, kernel_rows = self.in_rows, self.kernel_rows
        if not self._stands:
            in_rows = Signal.like(self.in_rows, reset_less=True)
            kernel_rows = Signal.like(self.kernel_rows, reset_less=True)
            m.d.sync += [in_rows.eq(self.in_rows), kernel_rows.eq(self.kernel_rows)]
        row_valid, rows_inside = [], []
        for r in range(len(self.rows)):
            row = Signal(signed(config.field_bits + 3), name=f"row_{r}", reset_less=True)
            # How far down the kernel: the second pixel has a kernel of its own.
            down = Signal(10, name=f"down_{r}", reset_less=True)
            inside = Signal(name=f"row_inside_{r}", reset_less=True)
            valid = Signal(name=f"row_valid_{r}", reset_less=True)
            m.d.sync += [
                row.eq(self.row + (r if r < 2 else self.second + (r - 2))),
                down.eq(self.kernel_row + (Mux(self.dense, r & 1, r) if config.pixels > 1 else r)),
                inside.eq(~row[-1] & (row < in_rows) & (down < kernel_rows)),
                valid.eq(inside),
            ]
            rows_inside.append(inside)
            row_valid.append(delay(m, valid, self._late, f"row_valid_{r}"))
        # Bytes before the row's start, and bytes left in it, both limited to 0 .. taps or more.
        wide = signed(config.field_bits + 3)
        lead, left = Signal(wide, reset_less=True), Signal(wide, reset_less=True)
        limit = (1 << taps.bit_length()) - 1
        few = [Signal(range(limit + 1), name=name, reset_less=True) for name in ("lead_few", "left_few")]
        m.d.sync += [lead.eq(-self.q), left.eq(self.in_row_bytes - self.q)]
        for limited, distance in zip(few, (lead, left), strict=True):
            with m.If(distance[-1]):
                m.d.sync += limited.eq(0)
            with m.Elif(distance[taps.bit_length() :].any()):
                m.d.sync += limited.eq(limit)
            with m.Else():
                m.d.sync += limited.eq(distance[: taps.bit_length()])
        byte_valid = Signal(taps, reset_less=True)
        pair_valid = Signal(max(1, half), reset_less=True)
        for i in range(taps):
            m.d.sync += byte_valid[i].eq((few[0] <= i) & (few[1] > i))
        for i in range(half):
            m.d.sync += pair_valid[i].eq((few[0] <= i) & (few[1] > i))
        byte_valid, pair_valid = (
            delay(m, value, self._late, name)
            for value, name in ((byte_valid, "byte_valid"), (pair_valid, "pair_valid"))
        )
        return _Validity(few, rows_inside, row_valid, byte_valid, pair_valid)

    def _elaborate_alignment(self, m: Module) -> _Aligned:
        """The byte shift, once for every byte; the rows come in the next cycle."""
        config, taps = self.config, self.config.taps
        half, third = taps // 2, taps // 3
        granule_bits = (config.granule - 1).bit_length()
        shift_1 = Signal(granule_bits, reset_less=True)
        third_row = config.row_triples and config.pixels == 1
        copies_needed = (taps + half) * config.pixels + (third if third_row else 0)
        m.submodules.shifts = shifts = self.technology.fanout(width=granule_bits, count=copies_needed)
        m.d.sync += shift_1.eq(self.q[:granule_bits])
        m.d.comb += shifts.value.eq(delay(m, shift_1, self._late, "shift"))
        copies = iter(shifts.copies)

        def aligned(row, count: int, name: str) -> list:
            result = []
            for i in range(count):
                byte = Signal(8, name=f"{name}_{i}", reset_less=True)
                m.d.sync += byte.eq(Array(row[i + k] for k in range(config.granule))[next(copies)])
                result.append(byte)
            return result

        pixels = [(aligned(self.rows[0], taps, "top"), aligned(self.rows[1], half, "below"))]
        if config.pixels > 1:
            pixels.append((aligned(self.rows[2], taps, "second_top"), aligned(self.rows[3], half, "second_below")))
        by_row = [row for pixel in pixels for row in pixel]
        if third_row:
            by_row.append(aligned(self.rows[2], third, "third"))
        return _Aligned(pixels, by_row)

    @property
    def _since(self) -> int:
        """Cycles from the description of a request to its aligned bytes."""
        return AHEAD + 1 + self._late

    def _follow_description(self, m: Module) -> _Described:
        """What the description says goes with the bytes; without `overlap` it stands."""
        config, stands, since = self.config, self._stands, self._since
        one_pad = stands and not (config.elementwise_add or config.elementwise_mul)
        pad = self.pad if one_pad else delay(m, self.pad, since, "pad")
        pair = self.row_pair if stands else delay(m, self.row_pair, since, "pair")
        triple: Value = Const(0)
        if config.row_triples:
            triple = self.row_triple if stands else delay(m, self.row_triple, since, "triple")
        return _Described(pad, pair, triple)

    def _elaborate_shared(
        self, m: Module, validity: _Validity, aligned: _Aligned, described: _Described
    ) -> list[list[Value]]:
        """Stage 2: padding; the vector that the lanes share. Returns it for each pixel and lane.

        It leaves from copies, each for some of the lanes.
        """
        config, taps, lanes = self.config, self.config.taps, self.config.lanes
        half, third = taps // 2, taps // 3
        row_valid, byte_valid, pair_valid = validity.row_valid, validity.byte_valid, validity.pair_valid
        by_row = aligned.by_row
        pad, pair, triple = described.pad, described.pair, described.triple
        groups = lanes // LANES_OF_A_COPY
        shared = []
        for pixel, (top, below) in enumerate(aligned.pixels):
            m.submodules[f"shared_{pixel}"] = vector = self.technology.fanout(width=8 * taps, count=groups)
            bytes_ = []
            for i in range(taps):
                one_row = Mux(row_valid[2 * pixel] & byte_valid[i], top[i], pad)
                if half <= i < 2 * half:
                    from_pair = Mux(row_valid[2 * pixel + 1] & pair_valid[i - half], below[i - half], pad)
                    value = Mux(pair, from_pair, one_row)
                else:
                    value = one_row
                if config.row_triples and i < 3 * third and (row := pixel + i // third):
                    own = Mux(row_valid[row] & byte_valid[i % third], by_row[row][i % third], pad)
                    value = Mux(triple, own, value)
                bytes_.append(value)
            m.d.comb += vector.value.eq(Cat(bytes_))
            shared.append([vector.copies[lane // LANES_OF_A_COPY] for lane in range(lanes)])
        # The ninth tap of a row pair (odd `taps`) has weight zero.
        if config.pixels > 1:
            for lane in range(lanes):
                m.d.comb += self.second_operands[lane].as_value().eq(shared[1][lane])

        return shared

    def _elaborate_window(
        self, m: Module, validity: _Validity, described: _Described, shared: list[list[Value]]
    ) -> None:
        """Stage 2: the window, which every column load shifts, or what the lanes share."""
        config, taps, lanes, rows = self.config, self.config.taps, self.config.lanes, self.config.window_rows
        groups = lanes // LANES_OF_A_COPY
        since, few = self._since, validity.few
        m.submodules.use_dense = use_dense = self.technology.fanout(width=1, count=lanes)
        m.d.comb += use_dense.value.eq(self.dense if self._stands else delay(m, self.dense, since, "dense"))
        fetched = [Signal(8 * lanes, name=f"fetched_{r}", reset_less=True) for r in range(rows)]
        for r in range(rows):
            m.d.sync += fetched[r].eq(self.rows[r].as_value())
        # Whether a column is loaded, and which of its rows belong to the tensor: every bit of the window depends on it.
        m.submodules.columns = columns = self.technology.fanout(width=rows + 1, count=groups)
        inside = Cat(here & (few[0] == 0) & (few[1] != 0) for here in validity.rows_inside[:rows])
        m.d.comb += columns.value.eq(
            Cat(
                delay(m, self.valid & ~self.dense, since - 1, "load", reset=True),
                delay(m, inside, self._late, "column_inside"),
            )
        )
        padding = Cat([described.pad] * LANES_OF_A_COPY)
        window = [
            [Signal(8 * lanes, name=f"window_{c}_{r}", reset_less=True) for r in range(rows)]
            for c in range(config.window_columns)
        ]
        apart = config.elementwise_mul and config.window_columns == 1
        previous = Signal(8 * lanes, reset_less=True) if apart else window[max(0, config.window_columns - 2)][0]
        for group, (load, *valid) in enumerate(columns.copies):
            mine = slice(8 * LANES_OF_A_COPY * group, 8 * LANES_OF_A_COPY * (group + 1))
            with m.If(load):
                for r in range(rows):
                    for c in range(config.window_columns - 1):
                        m.d.sync += window[c][r][mine].eq(window[c + 1][r][mine])
                    m.d.sync += window[-1][r][mine].eq(Mux(valid[r], fetched[r][mine], padding))
                if apart:
                    m.d.sync += previous[mine].eq(window[-1][0][mine])
        if config.elementwise_mul:
            m.d.comb += [self.newest.eq(window[-1][0]), self.previous.eq(previous)]
        for lane in range(lanes):
            for tap in range(taps):
                column, r = divmod(tap, rows)
                in_window = column < config.window_columns
                own = window[column][r][8 * lane : 8 * lane + 8] if in_window else Const(0, 8)
                m.d.comb += self.operands[lane][tap].eq(
                    Mux(use_dense.copies[lane], shared[0][lane][8 * tap : 8 * tap + 8], own)
                )
