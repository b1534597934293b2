"""Regions in parts: what to do when weights or program exceed the memories.

The host loads the weights and the program of a part, starts it, and goes on to the next; activations stay on the chip.
"""

from __future__ import annotations

from collections.abc import Sequence

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import CapacityError
from nnloom.arch.isa import DESCRIPTOR_WORDS

from .lower import LoweredLayer

__all__ = ["cut", "group_too_large"]


def group_too_large(config: AcceleratorConfig, layer: LoweredLayer) -> str | None:
    """Why the weights of a single channel group exceed the weight memory, or None if they do not."""
    size = len(layer.weights) // layer.groups
    if size <= config.weight_words:
        return None
    bytes_ = config.weight_word_bytes
    return (
        f"the weights of {config.lanes} output channels need {size * bytes_:,} bytes of weight memory, the "
        f"configuration has {config.weight_words * bytes_:,}"
    )


def cut(config: AcceleratorConfig, layers: Sequence[LoweredLayer]) -> list[list[LoweredLayer]]:
    """The fewest parts whose weights and programs fit the memories, in order.

    Each part is filled up; where a layer does not fit the rest of it, the layer is cut between channel groups.

    Raises
    ------
    CapacityError
        If the weights of a single channel group exceed the weight memory.
    """
    parts: list[list[LoweredLayer]] = [[]]
    free = config.weight_words
    for layer in layers:
        first = 0
        size = len(layer.weights) // layer.groups
        reason = group_too_large(config, layer)
        if reason:
            raise CapacityError(f"{layer.layer.name}: {reason}; run this layer on the CPU")
        while first < layer.groups:
            count = min(layer.groups - first, free // size)
            if not count or len(parts[-1]) == config.program_words // DESCRIPTOR_WORDS:
                parts.append([])
                free = config.weight_words
                continue
            parts[-1].append(layer.take_groups(config, first, count))
            free -= count * size
            first += count
    return parts
