"""On-chip memory planning: where each tensor lives, in granules of every row bank.

The offset strategies of Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference"
(2020): tensors are placed one by one at the lowest offset that is free for their whole life, in order of
size, or of the breadth (sum of live sizes) of the layers that use them. The best plan wins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from nnloom.arch.artifact import TensorLocation
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import CapacityError

from .graph import Conv2D, FullyConnected, LayerGraph
from .lower import tensor_shape

__all__ = ["Lifetime", "MemoryPlan", "check_plan", "lifetimes", "plan_memory"]


@dataclass(frozen=True)
class Lifetime:
    """A tensor's place in time: written by layer `first` (-1: before the first), last used by layer `last`."""

    name: str
    granules: int
    first: int
    last: int

    def overlaps(self, other: Lifetime) -> bool:
        """Both live during some layer; a layer's output and its inputs are."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class MemoryPlan:
    """Locations of a region's tensors and the granules used in each bank."""

    locations: dict[str, TensorLocation]
    lifetimes: tuple[Lifetime, ...]
    granules: int
    strategy: str

    def peak_bytes(self, config: AcceleratorConfig) -> int:
        """Bytes of activation memory that the plan spans, over all banks."""
        return self.granules * config.granule * config.row_banks


def lifetimes(config: AcceleratorConfig, graph: LayerGraph) -> tuple[dict[str, TensorLocation], list[Lifetime]]:
    """Layouts (at base 0) and lifetimes of a region's tensors. Region outputs live to the end."""
    locations: dict[str, TensorLocation] = {}
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for tensor in graph.inputs:
        readers = [layer for layer in graph.layers if tensor in layer.inputs]
        packed = all(isinstance(layer, Conv2D | FullyConnected) for layer in readers)
        locations[tensor.name] = tensor_shape(config, tensor, packed=packed)
        first[tensor.name] = last[tensor.name] = -1
    for index, layer in enumerate(graph.layers):
        for tensor in layer.inputs:
            last[tensor.name] = index
        locations[layer.output.name] = tensor_shape(config, layer.output, packed=False, name=layer.name)
        first[layer.output.name] = last[layer.output.name] = index
    for tensor in graph.outputs:
        last[tensor.name] = len(graph.layers)
    lives = [Lifetime(name, locations[name].granules(config), first[name], last[name]) for name in locations]
    return locations, lives


def _place(order: Sequence[Lifetime]) -> tuple[dict[str, int], int]:
    """Lowest free offset for each tensor in turn. Returns offsets and the total."""
    placed: list[tuple[int, Lifetime]] = []
    for life in order:
        offset = 0
        for base, other in sorted(((b, o) for b, o in placed if o.overlaps(life)), key=lambda item: item[0]):
            if base - offset >= life.granules:
                break
            offset = max(offset, base + other.granules)
        placed.append((offset, life))
    return {life.name: offset for offset, life in placed}, max((o + v.granules for o, v in placed), default=0)


def _by_size(lives: Sequence[Lifetime]) -> list[Lifetime]:
    return sorted(lives, key=lambda life: -life.granules)


def _by_breadth(lives: Sequence[Lifetime]) -> list[Lifetime]:
    times = range(-1, max((life.last for life in lives), default=-1) + 1)
    at = {t: [life for life in lives if life.first <= t <= life.last] for t in times}
    order: dict[str, Lifetime] = {}
    for t in sorted(times, key=lambda t: -sum(life.granules for life in at[t])):
        for life in _by_size(at[t]):
            order.setdefault(life.name, life)
    return list(order.values())


def _by_time(lives: Sequence[Lifetime]) -> list[Lifetime]:
    return sorted(lives, key=lambda life: (life.first, -life.granules))


STRATEGIES = {"greedy by size": _by_size, "greedy by breadth": _by_breadth, "greedy by time": _by_time}


def plan_memory(config: AcceleratorConfig, graph: LayerGraph) -> MemoryPlan:
    """Place every tensor of a region.

    Raises
    ------
    CapacityError
        If no strategy fits the activation memory; the message gives bytes needed and available.
    """
    locations, lives = lifetimes(config, graph)
    offsets, granules, strategy = min(
        ((*_place(order(lives)), name) for name, order in STRATEGIES.items()), key=lambda plan: plan[1]
    )
    plan = MemoryPlan(
        {name: dataclasses.replace(place, base=offsets[name]) for name, place in locations.items()},
        tuple(lives),
        granules,
        strategy,
    )
    if granules > config.bank_granules:
        raise CapacityError(
            f"{graph.name}: activations need {plan.peak_bytes(config)} bytes, the configuration has "
            f"{config.activation_bytes}; use a smaller network or a board with more memory"
        )
    check_plan(plan.locations, plan.lifetimes, config)
    return plan


def check_plan(locations: dict[str, TensorLocation], lives: Sequence[Lifetime], config: AcceleratorConfig) -> None:
    """Independent check: cell by cell, layer by layer, no two live tensors share memory.

    Raises
    ------
    CapacityError
        If a tensor lies outside the memory or two live tensors overlap; the message names them.
    """
    horizon = max((life.last for life in lives), default=-1)
    for time in range(-1, horizon + 1):
        owner: dict[int, str] = {}
        for life in lives:
            if not life.first <= time <= life.last:
                continue
            place = locations[life.name]
            cells = range(place.base, place.base + place.granules(config))
            if cells.stop > config.bank_granules:
                raise CapacityError(f"memory plan: {life.name} ends beyond the activation memory")
            for cell in cells:
                if cell in owner:
                    raise CapacityError(f"memory plan: {life.name} overlaps {owner[cell]} at layer {time}")
                owner[cell] = life.name
