"""Cycles, predicted from descriptors alone."""

from __future__ import annotations

from collections.abc import Sequence

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import DESCRIPTOR_WORDS, PROGRAM_COLUMNS, Descriptor
from nnloom.arch.loopnest import START_CYCLES, descriptor_cycles, finish_cycles, issue_cycles

__all__ = ["layer_cycles", "program_cycles"]

FETCH_CYCLES = DESCRIPTOR_WORDS // PROGRAM_COLUMNS + 1
"""From taking a descriptor to being able to take the next one, if the layer is shorter."""


def layer_cycles(config: AcceleratorConfig, descriptors: Sequence[Descriptor]) -> list[int]:
    """Cycles of each descriptor, from the end of the one before to its last step.

    The first one's include the start of the program, the last one's its end, so that the sum is the
    figure of the CYCLES register.
    """
    result = []
    previous = 0
    for index, d in enumerate(descriptors):
        takeover = START_CYCLES if index == 0 else descriptor_cycles(config) + d.start_delay
        if index:
            # The descriptor is fetched while the layer before runs.
            takeover = max(takeover, FETCH_CYCLES - previous + descriptor_cycles(config) + d.start_delay)
        previous = issue_cycles(config, d)
        result.append(takeover + previous)
    if result:
        result[-1] += finish_cycles(config)
    return result


def program_cycles(config: AcceleratorConfig, descriptors: Sequence[Descriptor]) -> int:
    """Cycles from the start command to the done flag."""
    return sum(layer_cycles(config, descriptors))
