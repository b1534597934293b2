"""When each descriptor may start: as soon as what it reads first has been written.

A layer's first steps read what the layers before wrote; the pipeline is deep enough that waiting for it to drain
costs small layers dearly. The issue cycle of every step is known (`loopnest.timed_steps`), so the earliest start is
computed instead: each granule that a layer reads in its first cycles must have been written by then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import Descriptor, Kind
from nnloom.arch.loopnest import (
    ParameterLoad,
    Step,
    descriptor_cycles,
    drain_cycles,
    issue_cycles,
    least_start_delay,
    result_latency,
    result_stage,
    timed_steps,
    write_stage,
)

__all__ = ["start_delays"]


def _reads(config: AcceleratorConfig, d: Descriptor, step: Step) -> Iterator[tuple[int, int]]:
    """(bank, granule) of the valid bytes that a step reads."""
    rows = config.window_rows
    if d.kind == Kind.DENSE:
        rows = 3 if d.row_triple else 2 if d.row_pair else 1
    first = step.q // config.granule
    last = (d.in_row_bytes - 1) // config.granule
    for start in (step.row,) if step.second_row is None else (step.row, step.second_row):
        for row in range(start, start + rows):
            if 0 <= row < d.in_rows and step.kernel_row + row - start < d.kernel_rows:
                base = step.base + row // config.row_banks * d.in_row_stride
                for granule in (first, first + 1):
                    if 0 <= granule <= last:
                        yield row % config.row_banks, base + granule


def _last_steps(config: AcceleratorConfig, d: Descriptor, cycles: int) -> list[tuple[int, ParameterLoad | Step]]:
    """The last items of `timed_steps`, at least those of the last so many cycles.

    A nest of only the last channel groups, or of the last rows of the last group, or of the last columns of these,
    ends as the whole one does: after its first column, row, or group, each item follows the one before at the same
    distance.
    """
    groups = next((n for n in range(1, d.n_g) if _issued_after_first(config, d, n_g=n) > cycles), d.n_g)
    rows = d.n_oy
    if groups == 1:
        # Rows of the same banks: leave out a multiple of `row_banks`.
        kept = range(d.n_oy - (d.n_oy - 1) // config.row_banks * config.row_banks, d.n_oy, config.row_banks)
        rows = next((n for n in kept if _issued_after_first(config, d, n_g=1, n_oy=n) > cycles), d.n_oy)
    columns = d.n_ox
    if groups == 1 and not (d.kind == Kind.ADD or d.slide or d.product or config.compact):
        # The last columns of the last row are enough, too; what comes before them is not looked at.
        columns = min(columns, 2 + cycles // max(d.n_ky * d.n_kx, d.interval, 1))
    short = dataclasses.replace(
        d,
        n_g=groups,
        n_oy=rows,
        n_ox=columns,
        row_start=d.row_start + (d.n_oy - rows) * d.row_step_oy,
        q_start=d.q_start + (d.n_g - groups) * d.q_step_g + (d.n_ox - columns) * d.q_step_ox,
        out_base=d.out_base
        + (d.n_oy - rows) * d.out_row_step // config.row_banks * d.out_row_stride
        + (d.n_g - groups) * d.out_step_g
        + (d.n_ox - columns) * d.out_step_ox,
    )
    missing = issue_cycles(config, d) - issue_cycles(config, short)
    return [(missing + cycle, item) for cycle, item in timed_steps(config, short)]


def _issued_after_first(config: AcceleratorConfig, d: Descriptor, *, n_g: int, n_oy: int | None = None) -> int:
    """Cycles of so many groups (of so many rows) of a descriptor after the first group (or row)."""
    part = dataclasses.replace(d, n_g=n_g, n_oy=n_oy or d.n_oy)
    first = dataclasses.replace(part, n_oy=1) if n_g == 1 else dataclasses.replace(part, n_g=1)
    return issue_cycles(config, part) - issue_cycles(config, first)


def start_delays(config: AcceleratorConfig, descriptors: Sequence[Descriptor]) -> list[int]:
    """The least safe `start_delay` of each descriptor of a program; 0 for the first.

    Never more than `drain_cycles`, after which everything is written.
    """
    if not config.overlap:
        return [0] * len(descriptors)
    drain = drain_cycles(config)
    deepest = write_stage(config)
    # The mode is taken over with the parameters: it must stand until the last ones have been.
    mode_stage = result_stage(config)
    written: dict[tuple[int, int], int] = {}
    """when a step that reads the granule may be issued"""
    end = 0
    """cycle of the last step so far"""
    last_load = 0
    result: list[int] = []
    for index, d in enumerate(descriptors):
        last_cycle = issue_cycles(config, d) - 1
        delay = 0
        if index:
            least = least_start_delay(config, descriptors[index - 1])
            delay = max(least, mode_stage - (end - last_load))
            start = end + descriptor_cycles(config) + 1
            for cycle, item in timed_steps(config, d):
                if cycle > deepest:
                    break
                if isinstance(item, Step):
                    for place in _reads(config, d, item):
                        delay = max(delay, written.get(place, 0) - cycle - start)
            delay = min(delay, max(drain, least))
        result.append(delay)
        latency = result_latency(config, d)
        begin = end + descriptor_cycles(config) + 1 + delay
        horizon = begin + last_cycle - deepest
        written = {place: ready for place, ready in written.items() if ready > begin}
        for cycle, item in reversed(_last_steps(config, d, deepest)):
            at = begin + cycle
            if at < horizon:
                break
            if isinstance(item, ParameterLoad):
                last_load = max(last_load, at)
            elif item.out_enable:
                for part in range(2):
                    if item.out_enable >> part & 1:
                        for bank in range(item.out_bank, item.out_bank + 1 + item.pair):
                            place = (bank, item.out_granule + part)
                            written[place] = max(written.get(place, 0), at + latency)
        end = begin + last_cycle
    return result
