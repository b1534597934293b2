"""Configurations of the small engines that many tests use, with the memories that each needs."""

from __future__ import annotations

from typing import Any

from nnloom.arch.config import AcceleratorConfig

__all__ = ["compact", "without_overlap"]


def without_overlap(**changes: Any) -> AcceleratorConfig:
    """Four lanes, one requantization unit, one layer at a time."""
    smallest = dict(lanes=4, taps=3, requant_units=1, overlap=False, layer_counters=False)
    return AcceleratorConfig(**(smallest | changes))


def compact(**changes: Any) -> AcceleratorConfig:
    """The compact engine: a tap a cycle, from memories with one port."""
    return without_overlap(**(dict(max_pool=False, elementwise_add=False, compact=True) | changes))
