"""Cycles, predicted from descriptors alone; multiplications of operators."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import DESCRIPTOR_WORDS, PROGRAM_COLUMNS, Descriptor, Kind
from nnloom.arch.loopnest import START_CYCLES, descriptor_cycles, finish_cycles, issue_cycles
from nnloom.arch.operation import Operation

__all__ = ["CycleShares", "cycle_shares", "layer_cycles", "operation_macs", "program_cycles"]

FETCH_CYCLES = DESCRIPTOR_WORDS // PROGRAM_COLUMNS + 1
"""From taking a descriptor to being able to take the next one, if the layer is shorter."""


def layer_cycles(config: AcceleratorConfig, descriptors: Sequence[Descriptor]) -> list[int]:
    """Cycles of each descriptor, from the end of the one before to its last step.

    The first one's of a program include its start, the last one's its end, so that the sum is the figure of the CYCLES
    register. There may be several programs; each ends with `last`.
    """
    return [start + issue for start, issue in _parts(config, descriptors)]


def _parts(config: AcceleratorConfig, descriptors: Sequence[Descriptor]) -> Iterator[tuple[int, int]]:
    """(cycles before the first step and, of a program's last layer, after the last one; cycles between) of each."""
    previous = 0
    for index, d in enumerate(descriptors):
        first = index == 0 or descriptors[index - 1].last
        after = descriptor_cycles(config, descriptors[index - 1]) if index else 0
        takeover = START_CYCLES if first else after + d.start_delay
        if not first:
            # The descriptor is fetched while the layer before runs.
            takeover = max(takeover, FETCH_CYCLES - previous + after + d.start_delay)
        previous = issue_cycles(config, d)
        ends = d.last or index == len(descriptors) - 1
        yield takeover + (finish_cycles(config, d) if ends else 0), previous


@dataclass(frozen=True, kw_only=True)
class CycleShares:
    """Where the cycles of a layer go; the shares add up to them."""

    ideal: float
    """multiply-accumulates / multipliers"""
    second_pixel: float
    """multipliers of the second pixel without work"""
    lanes: float
    """lanes without an output channel"""
    taps: float
    """multipliers of a lane that have no product of the layer"""
    no_macs: float
    """steps of a layer that has no multiply-accumulates: pools, sums, copies"""
    requantization: float
    """waiting for the requantization units"""
    loads: float
    """parameters of channel groups, and columns of the window that complete none"""
    start: float
    """descriptor, `start_delay`; of a program its start and end"""


def cycle_shares(
    config: AcceleratorConfig, descriptors: Sequence[Descriptor], work: Sequence[tuple[int, int]]
) -> list[CycleShares]:
    """Where the cycles of each descriptor go, as `layer_cycles` counts them.

    work: multiply-accumulates and output channels of each descriptor.
    """
    parts = _parts(config, descriptors)
    return [
        _shares(config, d, start, issue, macs, channels)
        for d, (start, issue), (macs, channels) in zip(descriptors, parts, work, strict=True)
    ]


def _shares(config: AcceleratorConfig, d: Descriptor, start: int, issue: int, macs: int, channels: int) -> CycleShares:
    each = config.taps if config.compact else 1
    """cycles of a step, and of a word of parameters"""
    loads = d.n_g * config.parameter_words * each
    count = d.n_g * d.n_oy * d.n_ox * d.n_ky * d.n_kx
    if d.kind == Kind.ADD:
        loads *= d.n_oy * d.n_ox * d.n_ky
    if d.slide:
        count = d.n_g * d.n_oy * ((d.n_ox - d.slide_first - 1) // d.slide_step + 1)
        loads += (d.n_g * d.n_oy * d.n_ox - count) * each
    busy = count * each
    waiting = issue - busy - loads
    if not macs:
        return CycleShares(
            ideal=0, second_pixel=0, lanes=0, taps=0, no_macs=busy, requantization=waiting, loads=loads, start=start
        )
    pixels = (2 * d.n_oy - d.odd_rows) / d.n_oy if d.pixel_pair else 1
    of_pixels = busy * pixels / config.pixels
    of_lanes = of_pixels * min(1, channels / (d.n_g * config.lanes))
    ideal = min(macs / config.multipliers, of_lanes)
    return CycleShares(
        ideal=ideal,
        second_pixel=busy - of_pixels,
        lanes=of_pixels - of_lanes,
        taps=of_lanes - ideal,
        no_macs=0,
        requantization=waiting,
        loads=loads,
        start=start,
    )


def program_cycles(config: AcceleratorConfig, descriptors: Sequence[Descriptor]) -> int:
    """Cycles from the start command to the done flag; of several programs, their sum."""
    return sum(layer_cycles(config, descriptors))


def operation_macs(operation: Operation) -> int:
    """Multiply-accumulates of an operator as the literature counts them: of convolutions and matrix products."""
    out = operation.outputs[0].elements
    shapes = [t.shape if t else () for t in operation.inputs]
    match operation.kind:
        case "CONV_2D":
            return out * math.prod(shapes[1][1:])
        case "DEPTHWISE_CONV_2D":
            return out * math.prod(shapes[1][1:3])
        case "FULLY_CONNECTED":
            return out * shapes[1][-1]
        case "TRANSPOSE_CONV":
            return math.prod(shapes[2]) * math.prod(shapes[1][:3])
        case "BATCH_MATMUL":
            return out * shapes[0][-2 if operation.options.get("adj_x") else -1]
    return 0
