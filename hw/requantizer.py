"""Requantization: int32 accumulators to int8, exactly as `nnloom.arch.numerics.requantize`.

A unit multiplies 18 bits of the accumulator by the 31-bit multiplier each cycle, with two 18-bit
multipliers. Where limiting accumulators to 18 bits is proved to change no output, a result takes one pass,
elsewhere two (low 17 bits, then the rest). See docs/numerics.md for why dropping bits between the passes is exact.
"""

import itertools
from dataclasses import dataclass

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import PARAMETER
from nnloom.arch.loopnest import ADD_BATCH, TABLE_STAGES
from nnloom.arch.numerics import ADD_LEFT_SHIFT

from .lookup import LOOKUP_LATENCY, LookupTables, TableWrite, lookup_copies, table_bits
from .technology import LANES_OF_A_COPY, MULTIPLIER_LATENCY, Technology

__all__ = ["REQUANT_LATENCY", "Requantizer", "mode_layout"]


def mode_layout(config: AcceleratorConfig) -> data.StructLayout:
    """Descriptor fields that hold for all results of a layer; taken over with its parameters."""
    fields = {
        "maximum": 1,
        "double_rounding": 1,
        "narrow": 1,
        "out_zero_point": signed(8),
        "act_min": signed(8),
        "act_max": signed(8),
    }
    return data.StructLayout(fields | ({"table": config.tables.bit_length()} if config.tables else {}))


REQUANT_LATENCY = MULTIPLIER_LATENCY + 12
"""Cycles from `valid` to the bytes of a narrow result with as many units as lanes.

capture, bias, choice of the 18 bits, multiply, add the partial products, first rounding, high half, second
rounding, shift by 8s, shift by 1s, limit to 10 bits, compare and add the zero point, clamp. Each further pass, slot
and pixel takes one more cycle; a lookup in a table takes `TABLE_STAGES` more: the register of what is looked up, the
memory's two. Results of a layer with a table never meet those of the next one without
(`nnloom.arch.loopnest.least_start_delay`).
"""
assert TABLE_STAGES == 1 + LOOKUP_LATENCY

LOW_BITS = 17


def fits_18_bits(value: Value) -> Value:
    """Whether the bits from 17 on of a 32-bit value are equal: four at a time, each with one of those before."""
    fours = (value[i : i + 4] for i in range(17, 32, 3))
    return Cat(four.all() | ~four.any() for four in fours).all()


AT_SLOT, AT_PRODUCT = 2, 3
"""Cycles from `valid` to the turn of a slot, and to its operands in the multipliers (age 0)."""


def pipe(m: Module, value, cycles: int, name: str, shape=None, *, reset: bool = False) -> list:
    """`value` now and after 1 .. cycles cycles."""
    result = [value]
    for i in range(cycles):
        register = Signal(shape or Value.cast(value).shape(), name=f"{name}_{i + 1}", reset_less=not reset)
        m.d.sync += register.eq(result[-1])
        result.append(register)
    return result


def since_slot(m: Module, value, cycles: int, name: str, shape=None, *, ahead: int = 0, reset: bool = False) -> list:
    """Indexed by age, which counts from the cycle in which a unit's multipliers get their operands.

    `ahead`: 1 for a value of the count ahead, 0 for one of the slot.
    """
    return pipe(m, value, cycles + 1 + ahead, name, shape, reset=reset)[1 + ahead :]


@dataclass(frozen=True)
class _Parameters:
    """What a layer, or a group of channels, is requantized with: of each lane, and for all."""

    lanes: data.View
    mode: data.View
    load: Signal
    multipliers: list[Value]
    shifts: list[Value]


@dataclass(frozen=True)
class _Mode:
    """The mode where it is used: lists by age, but for `narrow`, which counts from `valid`."""

    narrow: list
    double_rounding: list
    zero_point: list
    act_min: list
    act_max: list
    tabled: list
    table: list
    clamps: wiring.Component


@dataclass(frozen=True)
class _Totals:
    """Accumulators plus bias, [pixel][lane], and whether each has 18 bits; what waits for operand X of an ADD."""

    biased: list[list[Signal]]
    shorts: list[list[Signal]]
    addend: data.View
    to_addend: list
    from_addend: list
    pair: Value


@dataclass(frozen=True)
class _Turns:
    """Whose turn it is: passes, slots and pixels. `slot` is now, the lists are by age."""

    parts: wiring.Component
    slot: Signal
    second: Signal
    more: Signal
    is_high: list
    is_only_high: list
    high_passes: wiring.Component
    only_highs: wiring.Component
    completes: list
    goes_to_addend: list
    slots: list
    lasts: list
    tables: LookupTables | None
    looked_up: wiring.Component | None


@dataclass(frozen=True)
class _BesideUnits:
    """The mode for each unit, at the age at which it needs it."""

    doubles_low: list[Value]
    doubles_carry: list[Value]
    zero_points: list[Value]
    minima: list[Value]
    maxima: list[Value]


class Requantizer(wiring.Component):
    """`requant_units` units working through the `lanes` accumulators of a result, pixel after pixel.

    Parameters take effect for results that come after the cycle of a load; results must keep the distance that the
    descriptor's `interval` gives (nothing is buffered, nothing stalls). Without `config.overlap` there is
    no load: parameters and mode stand while they are used. Reset drops the results under way and the addend queue.

    Members
    -------
    load_ahead : In; in the next cycle `parameters` (72 bits a lane, see `nnloom.arch.isa.PARAMETER`) and `mode` are
        taken over
    valid : In; `accumulators` and `maxima` are a finished result
    pair : In; with `valid`: so is that of the second pixel
    to_addend_ahead, from_addend_ahead : In; in the cycle before `valid`: operand Y of an ADD, whose rescaled value goes
        to the addend queue; operand X, which the next value of the queue is added to
    bytes : Out; [lanes] int8, with `done` for results that did not go to the queue
    second : Out; with `done`: the bytes are those of the second pixel
    done_ahead : Out; in the cycle before `done`, with last_ahead : Out; the last pixel of its result
    table_write : In; with `config.tables`, see `LookupTables`
    """

    def __init__(self, config: AcceleratorConfig, technology: Technology) -> None:
        self.config = config
        self.technology = technology
        tables = {"table_write": In(TableWrite(config))} if config.tables else {}
        super().__init__(
            {
                "load_ahead": In(1),
                "parameters": In(data.ArrayLayout(72, config.lanes)),
                "mode": In(mode_layout(config)),
                "valid": In(1),
                "pair": In(1),
                "to_addend_ahead": In(1),
                "from_addend_ahead": In(1),
                "accumulators": In(data.ArrayLayout(data.ArrayLayout(signed(32), config.lanes), config.pixels)),
                "maxima": In(data.ArrayLayout(signed(8), config.lanes)),
                "bytes": Out(8 * config.lanes),
                "second": Out(1),
                "done": Out(1),
                "done_ahead": Out(1),
                "last_ahead": Out(1),
                **tables,
            }
        )

    @property
    def _later(self) -> int:
        """Cycles that a lookup takes."""
        return TABLE_STAGES if self.config.tables else 0

    @property
    def _unit_groups(self) -> int:
        return -(-self.config.requant_units // LANES_OF_A_COPY)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        parameters = self._elaborate_parameters(m)
        mode = self._follow_mode(m, parameters.mode)
        totals = self._elaborate_bias(m, parameters)
        turns = self._elaborate_turns(m, mode, totals)
        beside = self._beside_units(m, mode)
        rescaled, results = [], []
        for unit in range(config.requant_units):
            addend, byte = self._elaborate_unit(m, unit, parameters, totals, turns, beside, mode.clamps)
            rescaled.append(addend)
            results.append(byte)
        self._elaborate_output(m, mode, turns, results)
        if config.elementwise_add:
            self._elaborate_addend_queue(m, totals, turns, rescaled)
        return m

    def _elaborate_parameters(self, m: Module) -> _Parameters:
        """Parameters and mode are taken over; those used later than the bias follow it."""
        config = self.config
        lanes = config.lanes
        fields = {name: slice(low, low + width) for name, low, width in PARAMETER}
        overlapped = config.overlap
        scale_low, scale_high = fields["multiplier"].start, fields["shift"].stop
        parameters, mode = self.parameters, self.mode
        if overlapped:
            parameters = Signal(data.ArrayLayout(72, lanes), reset_less=True)
            mode = Signal(mode_layout(config), reset_less=True)
        scale = [Signal(scale_high - scale_low, name=f"scale_{lane}", reset_less=True) for lane in range(lanes)]
        groups = -(-lanes // LANES_OF_A_COPY)
        m.submodules.loads = loads = self.technology.fanout(width=1, count=groups)
        m.submodules.load_ahead = load_ahead = self.technology.fanout(width=1, count=groups)
        load = Signal()
        m.d.comb += [load_ahead.value.eq(self.load_ahead), loads.value.eq(load)]
        m.d.sync += load.eq(self.load_ahead)
        if overlapped:
            with m.If(load):
                m.d.sync += mode.eq(self.mode)
        for lane in range(lanes):
            if not overlapped:
                m.d.comb += scale[lane].eq(parameters[lane][scale_low:scale_high])
                continue
            with m.If(load_ahead.copies[lane // LANES_OF_A_COPY]):
                m.d.sync += parameters[lane].eq(self.parameters[lane])
            with m.If(loads.copies[lane // LANES_OF_A_COPY]):
                m.d.sync += scale[lane].eq(parameters[lane][scale_low:scale_high])
        multipliers = [scale[lane][: fields["shift"].start - scale_low] for lane in range(lanes)]
        shifts_of = [scale[lane][fields["shift"].start - scale_low :] for lane in range(lanes)]
        return _Parameters(parameters, mode, load, multipliers, shifts_of)

    def _follow_mode(self, m: Module, mode: data.View) -> _Mode:
        """The mode goes with the results that it holds for; without `overlap` it stands."""
        config, mul = self.config, MULTIPLIER_LATENCY
        at_slot, at_product = AT_SLOT, AT_PRODUCT

        def follow(value, cycles: int, name: str) -> list:
            return pipe(m, value, cycles, name) if config.overlap else [value] * (cycles + 1)

        narrow = follow(mode.narrow, at_slot, "narrow")
        double_rounding = follow(mode.double_rounding, at_product + mul + 2, "double_rounding")[at_product:]
        zero_point = follow(mode.out_zero_point, at_product + mul + 6, "zero_point")[at_product:]
        act_min = follow(mode.act_min, at_product + mul + 7, "act_min")[at_product:]
        act_max = follow(mode.act_max, at_product + mul + 7, "act_max")[at_product:]
        tabled: list = []
        table: list = []
        if config.tables:
            tabled = follow(mode.table.any(), at_product + mul + 8 + TABLE_STAGES, "tabled")[at_product:]
            table = follow((mode.table - 1)[: table_bits(config)], at_product + mul + 8, "table")[at_product:]
        m.submodules.clamps = clamps = self.technology.fanout(width=18, count=self._unit_groups)
        low = (act_min[mul + 6] - zero_point[mul + 6])[:9]
        high_limit = (act_max[mul + 6] - zero_point[mul + 6])[:9]
        m.d.comb += clamps.value.eq(Cat(low, high_limit))
        return _Mode(narrow, double_rounding, zero_point, act_min, act_max, tabled, table, clamps)

    def _elaborate_bias(self, m: Module, taken: _Parameters) -> _Totals:
        """Results are captured and what is added to them: the bias, or in an ADD the rescaled operand Y."""
        config, lanes = self.config, self.config.lanes
        fields = {name: slice(low, low + width) for name, low, width in PARAMETER}
        parameters, mode, load = taken.lanes, taken.mode, taken.load
        overlapped, groups = config.overlap, -(-lanes // LANES_OF_A_COPY)
        # Capture the result and choose what is added to it: the bias, or in an ADD the rescaled operand Y.
        addend = Signal(data.ArrayLayout(signed(32), lanes), reset_less=True)
        # What a result is, for each lane: operand Y, operand X, maximum.
        m.submodules.kinds = kinds = self.technology.fanout(width=3, count=lanes)
        m.d.comb += kinds.value.eq(
            Cat(self.to_addend_ahead, self.from_addend_ahead, Mux(load, self.mode.maximum, mode.maximum))
        )
        to_addend, from_addend = (
            pipe(m, value, 1, name) for value, name in ((self.to_addend_ahead, "to"), (self.from_addend_ahead, "from"))
        )
        m.submodules.valids = valids = self.technology.fanout(width=1, count=groups)
        m.d.comb += valids.value.eq(self.valid)
        pair = self.pair if config.pixels > 1 else Const(0, 1)
        biased: list[list[Signal]] = []
        shorts: list[list[Signal]] = []
        for pixel in range(config.pixels):
            biased.append([])
            shorts.append([])
            for lane in range(lanes):
                is_y, is_x, is_maximum = kinds.copies[lane]
                value: Value = self.accumulators[pixel][lane]
                bias: Value = parameters[lane][fields["bias"]].as_signed()
                if pixel == 0 and config.max_pool:
                    value = Mux(is_maximum, self.maxima[lane], value)
                if pixel == 0 and config.elementwise_add:
                    # X has the factor 1/2 exactly, hence one bit less.
                    small = value[:10].as_signed()
                    value = Mux(is_y, small << ADD_LEFT_SHIFT, Mux(is_x, small << (ADD_LEFT_SHIFT - 1), value))
                    bias = Mux(is_x, addend[lane], bias)
                captured = Signal(signed(32), name=f"captured_{pixel}_{lane}", reset_less=True)
                added = bias
                if overlapped or config.elementwise_add:
                    added = Signal(signed(32), name=f"added_{pixel}_{lane}", reset_less=True)
                total = Signal(signed(32), name=f"biased_{pixel}_{lane}", reset_less=True)
                short = Signal(name=f"short_{pixel}_{lane}", reset_less=True)
                m.d.sync += captured.eq(value)
                if added is not bias:
                    m.d.sync += added.eq(bias)
                sum_ = (captured + added)[:32]
                with m.If(valids.copies[lane // LANES_OF_A_COPY]):
                    m.d.sync += [total.eq(sum_), short.eq(fits_18_bits(sum_))]
                biased[pixel].append(total)
                shorts[pixel].append(short)
        return _Totals(biased, shorts, addend, to_addend, from_addend, pair)

    def _elaborate_turns(self, m: Module, mode: _Mode, totals: _Totals) -> _Turns:
        """A count through passes, slots and pixels, and what follows from it for the units and for their results."""
        config, mul = self.config, MULTIPLIER_LATENCY
        slots = config.requant_slots
        # Passes, slots and pixels.
        # This counts one cycle ahead of the slots: what depends on it has a cycle to reach the units.
        active, more = Signal(), Signal(reset_less=True)
        high, only_high, second = (Signal(name=name, reset_less=True) for name in ("high", "only_high", "second"))
        slot_ahead = Signal(range(max(2, slots)), reset_less=True)
        last_slot = slot_ahead == slots - 1
        wide = ~mode.narrow[AT_SLOT - 1]
        final_pass = ~wide | high
        with m.If(active):
            with m.If(~final_pass):
                m.d.sync += high.eq(1)
            with m.Else():
                m.d.sync += [high.eq(only_high), slot_ahead.eq(slot_ahead + 1)]
                with m.If(last_slot):
                    m.d.sync += [slot_ahead.eq(0), second.eq(1), more.eq(0), active.eq(more)]
        with m.If(self.valid):
            m.d.sync += [active.eq(1), slot_ahead.eq(0), second.eq(0), more.eq(totals.pair)]
            m.d.sync += [only_high.eq(totals.to_addend[1]), high.eq(totals.to_addend[1])]
        # Which part of which pixel the units multiply: the upper bits, the lower ones, or all that a narrow one has.
        m.submodules.parts = parts = self.technology.fanout(width=3, count=self._unit_groups)
        upper_ahead = only_high | (wide & high)
        m.d.comb += parts.value.eq(Cat(upper_ahead, wide & ~upper_ahead, second))
        slot = pipe(m, slot_ahead, 1, "slot_ahead")[1]
        # The last registers are copies: each of them selects, or clears, a whole word in every unit.
        is_high = since_slot(m, high & (wide | only_high), mul + 1, "is_high", 1, ahead=1)
        is_only_high = since_slot(m, only_high, mul, "is_only_high", 1, ahead=1)
        m.submodules.high_passes = high_passes = self.technology.fanout(width=1, count=self._unit_groups)
        m.submodules.only_high = only_highs = self.technology.fanout(width=1, count=self._unit_groups)
        m.d.comb += [high_passes.value.eq(is_high[mul + 1]), only_highs.value.eq(is_only_high[mul])]
        # The only one that says that there is something: it moves the addend queue and that of the writes.
        later = self._later
        tables: LookupTables | None = None
        looked_up: wiring.Component | None = None
        completes = since_slot(
            m, active & (final_pass | only_high), mul + 8 + later, "completes", 1, ahead=1, reset=True
        )
        goes_to_addend = since_slot(m, only_high, mul + 8 + later, "goes_to_addend", 1, ahead=1)
        slots_pipe = since_slot(m, slot_ahead, mul + 9 + later, "slot", ahead=1)
        lasts = since_slot(m, last_slot, mul + 8 + later, "last_slot", 1, ahead=1)
        if config.tables:
            m.submodules.tables = tables = LookupTables(config, self.technology)
            m.submodules.table = table = self.technology.fanout(width=table_bits(config), count=lookup_copies(config))
            m.d.comb += [
                tables.write.eq(self.table_write),
                table.value.eq(mode.table[mul + 8]),
                *(tables.table[copy].eq(table.copies[copy]) for copy in range(lookup_copies(config))),
            ]
            m.submodules.looked_up = looked_up = self.technology.fanout(width=1, count=self._unit_groups)
            m.d.comb += looked_up.value.eq(completes[mul + 7 + later] & mode.tabled[mul + 7 + later])
        return _Turns(
            parts,
            slot,
            second,
            more,
            is_high,
            is_only_high,
            high_passes,
            only_highs,
            completes,
            goes_to_addend,
            slots_pipe,
            lasts,
            tables,
            looked_up,
        )

    def _beside_units(self, m: Module, mode: _Mode) -> _BesideUnits:
        """Copies of the mode's registers, each for some of the units."""
        config, mul = self.config, MULTIPLIER_LATENCY
        units = config.requant_units

        def beside_units(values: list, age: int, name: str, units_of_a_copy: int = LANES_OF_A_COPY) -> list[Value]:
            """`values[age]` for each unit: copies of a register, where it is one."""
            if not config.overlap:
                return [values[0]] * units
            copies = self.technology.fanout(width=len(values[age - 1]), count=-(-units // units_of_a_copy))
            m.submodules[name] = copies
            m.d.comb += copies.value.eq(values[age - 1])
            return [copies.copies[unit // units_of_a_copy] for unit in range(units)]

        doubles_low = beside_units(mode.double_rounding, mul, "doubles_low")
        # A long carry chain comes behind it, so that each unit has its own.
        doubles_carry = beside_units(mode.double_rounding, mul + 3, "doubles_carry", 1)
        zero_points = beside_units(mode.zero_point, mul + 7, "zero_points")
        minima, maxima = beside_units(mode.act_min, mul + 8, "minima"), beside_units(mode.act_max, mul + 8, "maxima")
        return _BesideUnits(doubles_low, doubles_carry, zero_points, minima, maxima)

    def _elaborate_unit(
        self,
        m: Module,
        unit: int,
        parameters: _Parameters,
        totals: _Totals,
        turns: _Turns,
        beside: _BesideUnits,
        clamps: wiring.Component,
    ) -> tuple[Signal, Signal]:
        """A unit from the choice of its 18 bits on: its rescaled value for the addend queue, and its byte."""
        config, mul = self.config, MULTIPLIER_LATENCY
        units, slots, group = config.requant_units, config.requant_slots, unit // LANES_OF_A_COPY
        mine = [unit + units * s for s in range(slots)]

        def choose(values: list, mine: list[int] = mine) -> Value:
            return values[mine[0]] if slots == 1 else Array(values[lane] for lane in mine)[turns.slot]

        upper, lower, second_part = turns.parts.copies[group]
        a, is_short = choose(totals.biased[0]), choose(totals.shorts[0])
        if config.pixels > 1:
            a = Mux(second_part, choose(totals.biased[1]), a)
            is_short = Mux(second_part, choose(totals.shorts[1]), is_short)
        part = Signal(signed(18), name=f"part_{unit}", reset_less=True)
        multiplier = Signal(31, name=f"multiplier_{unit}", reset_less=True)
        m.d.sync += multiplier.eq(choose(parameters.multipliers))
        with m.If(upper):
            m.d.sync += part.eq(a[LOW_BITS:].as_signed())
        with m.Elif(lower):
            m.d.sync += part.eq(a[:LOW_BITS])
        with m.Elif(is_short):
            m.d.sync += part.eq(a[:18].as_signed())
        with m.Else():
            # The compiler has shown that the limit already reaches the clamp.
            m.d.sync += part.eq(Cat((~a[31]).replicate(17), a[31]).as_signed())
        m.submodules[f"low_{unit}"] = low_product = self.technology.multiplier(a_width=18, b_width=18)
        m.submodules[f"high_{unit}"] = high_product = self.technology.multiplier(a_width=18, b_width=18)
        m.d.comb += [
            low_product.a.eq(part),
            low_product.b.eq(multiplier[:LOW_BITS]),
            high_product.a.eq(part),
            high_product.b.eq(multiplier[LOW_BITS:]),
        ]
        shift = choose(parameters.shifts)
        shifts = since_slot(m, shift, mul + 5, f"shift_{unit}")
        nonzero = since_slot(m, shift != 0, mul + 3, f"nonzero_{unit}", 1)

        # Age mul: partial products -> product of 18 by 31 bits.
        product = Signal(signed(50), name=f"product_{unit}", reset_less=True)
        m.d.sync += product.eq(low_product.p + (high_product.p << LOW_BITS))
        # Age mul + 1: half of 2**31 before the high half is taken (a single rounding rounds later).
        rounded = Signal(signed(50), name=f"rounded_{unit}", reset_less=True)
        at_low, at_high = (Signal(name=f"{name}_{unit}", reset_less=True) for name in ("at_low", "at_high"))
        nudge = beside.doubles_low[unit] | ~nonzero[mul]
        m.d.sync += [at_low.eq(nudge & ~turns.is_high[mul]), at_high.eq(nudge & turns.is_only_high[mul])]
        m.d.sync += rounded.eq(product + Cat(Const(0, 13), at_high, Const(0, 16), at_low, Const(0, 1)))
        # Age mul + 2: the high half; the low pass of a wide value was here one cycle ago.
        previous = Signal(signed(50), name=f"previous_{unit}", reset_less=True)
        m.d.sync += previous.eq(Mux(turns.only_highs.copies[group], 0, rounded))
        x = Signal(signed(32), name=f"x_{unit}", reset_less=True)
        with m.If(turns.high_passes.copies[group]):
            m.d.sync += x.eq((rounded + (previous >> LOW_BITS)) >> (31 - LOW_BITS))
        with m.Else():
            m.d.sync += x.eq(rounded >> 31)
        # Age mul + 3: half of 2**shift; in double rounding ties go away from zero.
        half_less_one = Signal(31, name=f"half_less_one_{unit}", reset_less=True)
        m.d.sync += half_less_one.eq(Cat(shifts[mul + 2] > i + 1 for i in range(31)))
        carry = nonzero[mul + 3] & ~(beside.doubles_carry[unit] & (x < 0))
        y0 = Signal(signed(33), name=f"y0_{unit}", reset_less=True)
        m.d.sync += y0.eq(x + half_less_one + carry)
        # Ages mul + 4, mul + 5: shift.
        y1 = Signal(signed(33), name=f"y1_{unit}", reset_less=True)
        m.d.sync += y1.eq(y0 >> (shifts[mul + 4] & 0b11000))
        y2 = Signal(signed(33), name=f"y2_{unit}", reset_less=True)
        m.d.sync += y2.eq(y1 >> shifts[mul + 5][:3])
        # Age mul + 6: limit to 10 bits, beyond every clamp. What exceeds 17 bits before the shift by at most 7
        # exceeds them after it.
        large = Signal(name=f"large_{unit}", reset_less=True)
        m.d.sync += large.eq(~(y1[16:].all() | ~y1[16:].any()))
        limited = Signal(signed(10), name=f"limited_{unit}", reset_less=True)
        with m.If(large | ~(y2[9:17].all() | ~y2[9:17].any())):
            m.d.sync += limited.eq(Cat((~y2[32]).replicate(9), y2[32]).as_signed())
        with m.Else():
            m.d.sync += limited.eq(y2[:10].as_signed())
        # Ages mul + 7, mul + 8: clamp, zero point.
        below = Signal(name=f"below_{unit}", reset_less=True)
        above = Signal(name=f"above_{unit}", reset_less=True)
        offset = Signal(8, name=f"offset_{unit}", reset_less=True)
        low_clamp, high_clamp = (clamps.copies[group][9 * i : 9 * i + 9].as_signed() for i in range(2))
        m.d.sync += [
            below.eq(limited < low_clamp),
            above.eq(limited > high_clamp),
            offset.eq(limited + beside.zero_points[unit]),
        ]
        byte = Signal(8, name=f"byte_{unit}", reset_less=True)
        clamped = Mux(below, beside.minima[unit], Mux(above, beside.maxima[unit], offset))
        if turns.tables is not None and turns.looked_up is not None:
            entry = Signal(8, name=f"entry_{unit}", reset_less=True)
            m.d.sync += entry.eq(clamped)
            m.d.comb += turns.tables.bytes[unit].eq(entry)
            clamped = Mux(turns.looked_up.copies[group], turns.tables.values[unit], clamped)
        m.d.sync += byte.eq(clamped)
        return y2, byte

    def _elaborate_output(self, m: Module, mode: _Mode, turns: _Turns, y_bytes: list[Signal]) -> None:
        """The bytes of a result together, and when they leave."""
        config, mul, later = self.config, MULTIPLIER_LATENCY, self._later
        lanes, units, slots = config.lanes, config.requant_units, config.requant_slots
        completes, tabled = turns.completes, mode.tabled

        def leaving(values: list, age: int, name: str) -> Value:
            """What is known of the bytes that leave now, those of a table being `later` cycles older than `age`."""
            if not config.tables:
                return values[age]
            looked_up = completes[age - 1 + later] & tabled[age - 1 + later]
            register = Signal(Value.cast(values[age]).shape(), name=f"{name}_leaving", reset_less=True)
            m.d.sync += register.eq(Mux(looked_up, values[age - 1 + later], values[age - 1]))
            return register

        def leaves(finals: list, age: int) -> Value:
            """Whether bytes leave, of which `finals` tells by age; those that are to be looked up do later."""
            if not config.tables:
                return finals[age]
            register = Signal()
            older = age - 1 + later
            m.d.sync += register.eq((finals[age - 1] & ~tabled[age - 1]) | (finals[older] & tabled[older]))
            return register

        finished = Signal()
        finals = [
            final & last & ~gone for final, last, gone in zip(completes, turns.lasts, turns.goes_to_addend, strict=True)
        ]
        m.d.comb += self.done_ahead.eq(leaves(finals, mul + 8))
        m.d.sync += finished.eq(self.done_ahead)
        m.d.comb += self.done.eq(finished)
        if slots == 1:
            m.d.comb += self.bytes.eq(Cat(y_bytes))
        else:
            held = Signal(8 * lanes, reset_less=True)
            # Without tables each slot is taken in all the time: no other slot's byte is there meanwhile.
            take = leaves(completes, mul + 9) if config.tables else Const(1, 1)
            slot_leaving = leaving(turns.slots, mul + 9, "slot")
            with m.If(take), m.Switch(slot_leaving):
                for s in range(slots):
                    with m.Case(s):
                        m.d.sync += held[8 * units * s : 8 * units * (s + 1)].eq(Cat(y_bytes))
            m.d.comb += self.bytes.eq(Cat(held[: 8 * units * (slots - 1)], *y_bytes))
        if config.pixels > 1:
            seconds = since_slot(m, turns.second, mul + 9 + later, "second", ahead=1)
            mores = since_slot(m, turns.more, mul + 8 + later, "more", ahead=1)
            m.d.comb += self.second.eq(leaving(seconds, mul + 9, "second"))
            m.d.comb += self.last_ahead.eq(~leaving(mores, mul + 8, "more"))
        else:
            m.d.comb += self.last_ahead.eq(1)

    def _elaborate_addend_queue(self, m: Module, totals: _Totals, turns: _Turns, y_addend: list[Signal]) -> None:
        """Rescaled operands Y wait for their X: a queue for each slot and some of the units."""
        mul, units, slots = MULTIPLIER_LATENCY, self.config.requant_units, self.config.requant_slots
        completes, goes_to_addend = turns.completes, turns.goes_to_addend
        # A queue for each slot and some of the units; they advance together, from copies of what moves them.
        push = completes[mul + 5] & goes_to_addend[mul + 5]
        pop = self.valid & totals.from_addend[1]
        width = (ADD_BATCH - 1).bit_length()
        indices, following = ([Signal(width, name=f"{name}_{i}") for i in range(2)] for name in ("index", "next"))
        moves = (completes[mul + 6] & goes_to_addend[mul + 6] & turns.lasts[mul + 6], pop)
        for index, next_, move in zip(indices, following, moves, strict=True):
            m.d.comb += next_.eq(index + move)
            m.d.sync += index.eq(next_)
        groups = -(-units // LANES_OF_A_COPY)
        m.submodules.queue_moves = queue_moves = self.technology.fanout(width=2 * width + slots, count=groups)
        pushes = [push & (turns.slots[mul + 5] == s) for s in range(slots)]
        m.d.comb += queue_moves.value.eq(Cat(following, pushes))
        for s, group in itertools.product(range(slots), range(groups)):
            mine = slice(LANES_OF_A_COPY * group, min(LANES_OF_A_COPY * (group + 1), units))
            values = Cat(y[:32] for y in y_addend[mine])
            queue = memory.Memory(shape=len(values), depth=ADD_BATCH, init=[], attrs={"ram_style": "distributed"})
            m.submodules[f"addend_queue_{s}_{group}"] = queue
            write = queue.write_port()
            read = queue.read_port(domain="comb")
            copy = queue_moves.copies[group]
            m.d.comb += [
                write.addr.eq(copy[:width]),
                read.addr.eq(copy[width : 2 * width]),
                write.en.eq(copy[2 * width + s]),
                write.data.eq(values),
            ]
            # Wide results are two cycles apart: the next value is there in time.
            low = 32 * (units * s + LANES_OF_A_COPY * group)
            m.d.sync += totals.addend.as_value()[low : low + len(values)].eq(read.data)
