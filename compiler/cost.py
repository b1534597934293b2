"""Cycles, predicted from descriptors alone; multiplications of operators."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import DESCRIPTOR_WORDS, PROGRAM_COLUMNS, Descriptor
from nnloom.arch.loopnest import START_CYCLES, descriptor_cycles, finish_cycles, issue_cycles
from nnloom.arch.operation import Operation

__all__ = ["layer_cycles", "operation_macs", "program_cycles"]

FETCH_CYCLES = DESCRIPTOR_WORDS // PROGRAM_COLUMNS + 1
"""From taking a descriptor to being able to take the next one, if the layer is shorter."""


def layer_cycles(config: AcceleratorConfig, descriptors: Sequence[Descriptor]) -> list[int]:
    """Cycles of each descriptor, from the end of the one before to its last step.

    The first one's of a program include its start, the last one's its end, so that the sum is the figure of the CYCLES
    register. There may be several programs; each ends with `last`.
    """
    result = []
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
        result.append(takeover + previous + (finish_cycles(config, d) if ends else 0))
    return result


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
