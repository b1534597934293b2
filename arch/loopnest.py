"""What a descriptor means: the loop nest that the sequencer runs, as executable reference.

`steps` yields exactly what the RTL sequencer issues, in order (without bubbles). The golden model
vectorises the same nest, the cost model counts it, and the sequencer's test compares against it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .config import AcceleratorConfig
from .isa import Descriptor, Kind

__all__ = [
    "ADD_BATCH",
    "COMPACT_DRAIN",
    "COMPACT_SPACING",
    "LEAST_START_DELAY",
    "OPERAND_STAGE",
    "PARAMETER_SPACING",
    "REQUANT_STAGES",
    "START_CYCLES",
    "TABLE_STAGES",
    "ParameterLoad",
    "Step",
    "by_word",
    "descriptor_cycles",
    "drain_cycles",
    "finish_cycles",
    "issue_cycles",
    "least_start_delay",
    "least_start_delay_after_table",
    "maximum_taps",
    "parameter_hold",
    "result_latency",
    "result_stage",
    "steps",
    "timed_steps",
    "tree_levels",
    "write_stage",
]

ADD_BATCH = 16
"""Words of one batch of the ADD: depth of the addend queue, and more than the requantization latency."""


PARAMETER_SPACING = 4
"""Fewest cycles between the first words of two parameter loads: a set waits this long for its results' turn."""


LEAST_START_DELAY = 7
"""Least `start_delay` after another layer, with `overlap`: the fields of a descriptor are in use until its last
operands are formed. After a layer with a table see `least_start_delay`."""

COMPACT_SPACING = 14
"""Compact engine: cycles after the last tap of a result in which neither the step that completes the next one nor a
load of parameters begins. Then the requantizer is past all lanes, and the result's address has moved on."""

COMPACT_DRAIN = 27
"""Compact engine: cycles from the last tap of a layer until everything is written and it ends."""


@dataclass(frozen=True)
class ParameterLoad:
    """Read one word of requantization parameters."""

    weight: int


@dataclass(frozen=True)
class Step:
    """Read operands, multiply, accumulate.

    In a `product` two taps of the newest window column have other weights than those of the memory: row 1 the
    complement of what row 0 reads (that is -1 - it), and, in steps of operand X, row 0 what row 0 of the column before
    holds, operand Y. With kernel_rows 1, operands y and x, and no other weights, the sum of both steps is
    x * y - pad_value * (y + 1) - pad_value2 * (x + 1).

    A byte i of window row r is *valid* when 0 <= row + r < in_rows, 0 <= q + i < in_row_bytes and
    kernel_row + r < kernel_rows; other bytes read as `pad`.
    """

    row: int
    """first input row (signed)"""
    q: int
    """first byte within the row (signed)"""
    kernel_row: int
    base: int
    pad: int
    weight: int
    multiply: bool
    """False for a column load that completes no window"""
    first: bool
    """start a new accumulation"""
    result: bool
    """the accumulation is complete"""
    to_addend: bool
    """ADD: the result goes to the addend queue instead of memory"""
    out_bank: int
    out_granule: int
    out_enable: int
    """bit 0, 1: write the lower, upper granule; 0: no write"""
    second_row: int | None
    """first input row of the second pixel; None without one (the same bytes, padding and weights)"""
    pair: bool
    """the second pixel has a result, too: it goes to the next bank, same granule, same enable"""


def by_word(d: Descriptor) -> bool:
    """Whether a result is written as far as its word lies within the row: ADD, and products without `broadcast`."""
    return d.kind == Kind.ADD or bool(d.product and not d.broadcast)


def steps(config: AcceleratorConfig, d: Descriptor) -> Iterator[ParameterLoad | Step]:
    """Yield the steps of one descriptor in the order of the hardware."""
    add = d.kind == Kind.ADD
    two = add or bool(d.product)
    for g in range(d.n_g):
        q_group = d.q_start + g * d.q_step_g
        parameters = d.weight_base + g * d.weight_step_g
        weights = parameters + config.parameter_words * (2 if add else 1)
        if not add:
            for i in range(config.parameter_words):
                yield ParameterLoad(parameters + i)
        for oy in range(d.n_oy):
            fired = 0
            for ox in range(d.n_ox):
                weight = weights
                for ky in range(d.n_ky):
                    if add:
                        for i in range(config.parameter_words):
                            yield ParameterLoad(parameters + ky * config.parameter_words + i)
                    for kx in range(d.n_kx):
                        operand_x = two and ky == 1
                        same = bool(d.broadcast) and ky == 0
                        q = q_group if same else q_group + ox * d.q_step_ox + kx * d.q_step_kx
                        if d.slide:
                            multiply = ox >= d.slide_first and (ox - d.slide_first) % d.slide_step == 0
                            first = result = multiply
                        elif add:
                            multiply = first = result = True
                        else:
                            multiply = True
                            first = ky == 0 and kx == 0 and not d.resume
                            result = ky == d.n_ky - 1 and kx == d.n_kx - 1 and not d.keep
                        dead = q >= d.in_row_bytes
                        column = ox * ADD_BATCH + kx if add else fired
                        if by_word(d):
                            enable = 0 if ky == 0 or dead else 3 if q + config.granule < d.in_row_bytes else 1
                        else:
                            enable = 1 if d.half_last and g == d.n_g - 1 else 3
                        y = d.out_row_start + oy * d.out_row_step
                        granule = (
                            d.out_base
                            + (y // config.row_banks) * d.out_row_stride
                            + column * d.out_step_ox
                            + g * d.out_step_g
                        )
                        row = d.row_start + oy * d.row_step_oy + (0 if add else ky * d.row_step_ky)
                        row = 0 if same else row
                        yield Step(
                            row=row,
                            q=q,
                            kernel_row=0 if add else ky * d.row_step_ky,
                            base=d.in2_base if operand_x else d.in_base,
                            pad=d.pad_value2 if operand_x else d.pad_value,
                            weight=weight,
                            multiply=multiply,
                            first=first,
                            result=result,
                            to_addend=add and ky == 0,
                            out_bank=y % config.row_banks,
                            out_granule=granule if result else 0,
                            out_enable=enable if result else 0,
                            second_row=row + d.row_step_oy // 2 if d.pixel_pair else None,
                            pair=bool(d.pixel_pair and result and not (d.odd_rows and oy == d.n_oy - 1)),
                        )
                        if d.weights_advance:
                            weight += 1
                        if result and not add:
                            fired += 1


def tree_levels(taps: int) -> int:
    """Registered levels of a lane's adder tree: the first adds pairs of products, the others three values."""
    values = -(-taps // 2)
    levels = 1
    while values > 1:
        values = -(-values // 3)
        levels += 1
    return levels


def maximum_taps(config: AcceleratorConfig) -> range:
    """Taps of the newest column of the window: the running maximum is that of their products, each of them as int8 (its
    low 8 bits). With a weight of 1 that is the column's value in three rows."""
    return range(config.newest_tap, config.newest_tap + config.window_rows)


OPERAND_STAGE = 10
"""Cycles from a step to its operands at the multipliers."""

REQUANT_STAGES = 15
"""Cycles from a finished accumulation to the write of a narrow result, with as many units as lanes."""


TABLE_STAGES = 3
"""Cycles that a result takes longer that is looked up in a table: to the memory, through it, and back."""


def result_stage(config: AcceleratorConfig) -> int:
    """Cycles from a step to the accumulation that it completes."""
    return OPERAND_STAGE + 4 + config.product_registers + tree_levels(config.taps)


def write_stage(config: AcceleratorConfig, interval: int | None = None, *, table: bool | None = None) -> int:
    """Cycles from a step to the write of its result, the last pixel of it.

    `interval` is the descriptor's, `table` whether it has one; without them, those of the slowest result. On the
    compact engine, cycles from the last tap of a step.
    """
    if config.compact:
        return COMPACT_DRAIN
    if interval is None:
        interval = 2 * config.requant_slots * config.pixels
    looked_up = bool(config.tables) if table is None else table
    return result_stage(config) + REQUANT_STAGES + interval - 1 + (TABLE_STAGES if looked_up else 0)


def result_latency(config: AcceleratorConfig, d: Descriptor) -> int:
    """Fewest cycles from the step that completes a result of a layer to a step that reads it."""
    return write_stage(config, d.interval, table=bool(d.table)) - 2


def parameter_hold(config: AcceleratorConfig) -> int:
    """Cycles from the end of a result's `interval` to a load of the parameters it was still using."""
    return 0 if config.overlap or config.compact else result_stage(config) - OPERAND_STAGE + 4


def drain_cycles(config: AcceleratorConfig) -> int:
    """`start_delay` after which every result of the previous descriptor can be read."""
    return write_stage(config) - 2 - descriptor_cycles(config) - 1 - config.parameter_words


def descriptor_cycles(config: AcceleratorConfig, d: Descriptor | None = None) -> int:
    """Cycles from the last step of a descriptor to the first parameter load of the next, `start_delay` aside.

    Without the descriptor, of the slowest.
    """
    # Without overlap the last result is written, and then the next descriptor read.
    return 4 if config.overlap else write_stage(config, table=None if d is None else bool(d.table)) + 13


def finish_cycles(config: AcceleratorConfig, d: Descriptor) -> int:
    """Cycles from the last step of a program, of its last descriptor, to the done flag."""
    return write_stage(config, table=bool(d.table)) + 2


def least_start_delay(config: AcceleratorConfig, before: Descriptor) -> int:
    """Least `start_delay` of a descriptor after another one, with `overlap`.

    Results without a table take a shorter way to the memory than those with one: the first may not be there before the
    last result of the layer before, the slowest of which keeps the requantization units for so many cycles.
    """
    return least_start_delay_after_table(config) if before.table else LEAST_START_DELAY


def least_start_delay_after_table(config: AcceleratorConfig) -> int:
    """`least_start_delay` after a layer with a table."""
    slowest = 2 * config.requant_slots * config.pixels
    first_step = descriptor_cycles(config) + 1 + config.parameter_words
    return max(LEAST_START_DELAY, slowest + TABLE_STAGES - first_step)


START_CYCLES = 11
"""Cycles from the start command to the first parameter load: the first descriptor is fetched."""


def issue_cycles(config: AcceleratorConfig, d: Descriptor) -> int:
    """Cycles the sequencer needs to issue `steps(config, d)`, pacing bubbles included.

    Pacing: a result, or a parameter load, issues no earlier than `interval` cycles after the previous
    result (operand Y of an ADD: `requant_slots` cycles), a load `parameter_hold` cycles later; everything else issues
    one a cycle.
    """
    load = config.parameter_words
    hold = parameter_hold(config)
    if config.compact:
        return _compact_cycles(config, d)
    interval = max(1, d.interval)
    groups = d.n_g - 1
    if d.kind == Kind.ADD:
        y = max(1, config.requant_slots)
        batch = (load + 1 + (d.n_kx - 1) * y) + (y - 1 + hold) + (load + 1 + (d.n_kx - 1) * interval)
        return d.n_g * d.n_oy * d.n_ox * batch + (d.n_g * d.n_oy * d.n_ox - 1) * (interval - 1 + hold)
    if d.slide:
        fires = (d.n_ox - d.slide_first - 1) // d.slide_step + 1
        lead = d.slide_first + 1
        trail = d.n_ox - lead - (fires - 1) * d.slide_step
        row = (fires - 1) * max(d.slide_step, interval)
        group = load + lead + row + (d.n_oy - 1) * (max(trail + lead, interval) + row) + trail
        return group + groups * max(group + max(0, interval - 1 + hold - trail), PARAMETER_SPACING)
    count = d.n_ky * d.n_kx
    group = load + count + (d.n_oy * d.n_ox - 1) * max(count, interval)
    return group + groups * max(group + interval - 1 + hold, PARAMETER_SPACING)


def _compact_cycles(config: AcceleratorConfig, d: Descriptor) -> int:
    """Cycles from the first parameter load to the last tap of a descriptor, on the compact engine."""
    taps = config.taps
    load = config.parameter_words * taps
    if d.slide:
        # Every step clears the accumulators first.
        *_, (last, _) = timed_steps(config, d)
        return last + taps + 1
    count = d.n_ky * d.n_kx
    # From one last tap to the next. The step that completes a result waits, and with it the accumulators' clearing if
    # it is the only one.
    before = (count - 1) * taps + 1 if count > 1 else 0
    gap = max(before, COMPACT_SPACING) + taps + (count == 1)
    group = load + 1 + count * taps + (d.n_oy * d.n_ox - 1) * gap
    return d.n_g * group + (d.n_g - 1) * COMPACT_SPACING


def _compact_timed_steps(config: AcceleratorConfig, d: Descriptor) -> Iterator[tuple[int, ParameterLoad | Step]]:
    """`timed_steps` on the compact engine: the cycle of the first slot of each."""
    cycle = free = 0
    for item in steps(config, d):
        step = item if isinstance(item, Step) else None
        if step is None or step.result:
            cycle = max(cycle, free)
        yield cycle, item
        cycle += config.taps
        if step is not None:
            cycle += bool(step.first or d.slide)  # a slot that clears the accumulators
            if step.result:
                free = cycle + COMPACT_SPACING


def timed_steps(config: AcceleratorConfig, d: Descriptor) -> Iterator[tuple[int, ParameterLoad | Step]]:
    """`steps` with the cycle in which the sequencer issues each, counted from the first parameter load."""
    if config.compact:
        yield from _compact_timed_steps(config, d)
        return
    interval = max(1, d.interval)
    hold = parameter_hold(config)
    cycle, ready, spaced, in_set = -1, -hold, 0, 0
    for item in steps(config, d):
        cycle += 1
        if isinstance(item, ParameterLoad):
            cycle = max(cycle, ready + hold)
            if in_set == 0:
                cycle = max(cycle, spaced)
                spaced = cycle + PARAMETER_SPACING
            in_set = (in_set + 1) % config.parameter_words
        elif item.result:
            cycle = max(cycle, ready)
            ready = cycle + (max(1, config.requant_slots) if item.to_addend else interval)
        yield cycle, item
