"""On-chip memory planning: where each tensor lives, in granules of every row bank.

The offset strategies of Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference"
(2020): tensors are placed one by one into a gap that is free for their whole life, in order of size, or of the
breadth (sum of live sizes) of the layers that use them. Order of execution, size times life and, if none of
these reaches the lower bound, a local search over the order are tried too. The shortest plan wins.
`benchmarks/memory.py` compares them with an exact solver.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from nnloom.arch.artifact import TensorLocation
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import CapacityError

from .graph import Conv2D, FullyConnected, LayerGraph
from .lower import tensor_shape

__all__ = [
    "ORDERS",
    "SEARCH",
    "Lifetime",
    "MemoryPlan",
    "Placement",
    "breadth_bound",
    "check_plan",
    "fits_memory",
    "lifetimes",
    "place_tensors",
    "placements",
    "plan_memory",
    "region_bytes",
]


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
class Placement:
    """Offset of each tensor by name and the end of the last, in granules of every bank."""

    offsets: dict[str, int]
    granules: int
    strategy: str


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
        readers = [layer for layer in graph.layers if any(t.name == tensor.name for t in layer.inputs)]
        parts = any(t.whole for layer in readers for t in layer.inputs if t.name == tensor.name)
        packed = not parts and all(isinstance(layer, Conv2D | FullyConnected) for layer in readers)
        locations[tensor.name] = tensor_shape(config, tensor.entire, packed=packed)
        first[tensor.name] = last[tensor.name] = -1
    for index, layer in enumerate(graph.layers):
        for tensor in layer.inputs:
            last[tensor.name] = index
        # Several layers may write parts of one tensor.
        if layer.output.name not in locations:
            locations[layer.output.name] = tensor_shape(config, layer.output.entire, packed=False, name=layer.name)
            first[layer.output.name] = index
        last[layer.output.name] = index
    for tensor in graph.outputs:
        last[tensor.name] = len(graph.layers)
    lives = [Lifetime(name, locations[name].granules(config), first[name], last[name]) for name in locations]
    return locations, lives


class _Problem:
    """Tensors by number, with what every strategy needs."""

    def __init__(self, lives: Sequence[Lifetime]) -> None:
        self.lives = list(lives)
        self.sizes = [life.granules for life in lives]
        times = range(-1, max((life.last for life in lives), default=-1) + 1)
        self.live = [[i for i, life in enumerate(lives) if life.first <= t <= life.last] for t in times]
        """tensors that live during each layer"""
        self.neighbours: list[set[int]] = [set() for _ in lives]
        """tensors with which each shares a layer"""
        for together in self.live:
            for i in together:
                self.neighbours[i].update(together)

    def breadth(self, together: Sequence[int]) -> int:
        """Granules of tensors that live together."""
        return sum(self.sizes[i] for i in together)

    def place(self, order: Sequence[int], *, smallest_gap: bool = False) -> tuple[list[int], int]:
        """Put each tensor in turn into the lowest (or the smallest) gap that is free for its whole life.

        Returns the offset of each tensor and the end of the last.
        """
        offsets = [-1] * len(order)
        total = 0
        for i in order:
            size, end, chosen, least = self.sizes[i], 0, -1, 0
            for base, length in sorted((offsets[j], self.sizes[j]) for j in self.neighbours[i] if offsets[j] >= 0):
                gap = base - end
                if gap >= size and (chosen < 0 or gap < least):
                    chosen, least = end, gap
                    if not smallest_gap:
                        break
                end = max(end, base + length)
            offsets[i] = end if chosen < 0 else chosen
            total = max(total, offsets[i] + size)
        return offsets, total


def breadth_bound(lives: Sequence[Lifetime]) -> int:
    """Granules that every plan needs: the largest sum of tensors that live together."""
    problem = _Problem(lives)
    return max(map(problem.breadth, problem.live), default=0)


def _by_size(problem: _Problem) -> list[int]:
    return sorted(range(len(problem.lives)), key=lambda i: -problem.sizes[i])


def _by_breadth(problem: _Problem) -> list[int]:
    order: dict[int, None] = {}
    for together in sorted(problem.live, key=problem.breadth, reverse=True):
        order.update(dict.fromkeys(sorted(together, key=lambda i: -problem.sizes[i])))
    return list(order)


def _by_time(problem: _Problem) -> list[int]:
    return sorted(range(len(problem.lives)), key=lambda i: (problem.lives[i].first, -problem.sizes[i]))


def _by_area(problem: _Problem) -> list[int]:
    def area(i: int) -> int:
        return problem.sizes[i] * (problem.lives[i].last - problem.lives[i].first + 1)

    return sorted(range(len(problem.lives)), key=area, reverse=True)


ORDERS: dict[str, Callable[[_Problem], list[int]]] = {
    "greedy by size": _by_size,
    "greedy by breadth": _by_breadth,
    "greedy by time": _by_time,
    "greedy by area": _by_area,
}
SEARCH = "local search"
SEARCH_PLACEMENTS = 200_000
"""tensors that the search places at most, over all its plans: about a second; real networks need far fewer"""


def _greedy(problem: _Problem, order: list[int]) -> tuple[list[int], int]:
    return min((problem.place(order, smallest_gap=rule) for rule in (False, True)), key=lambda plan: plan[1])


def _search(problem: _Problem, order: list[int], enough: int) -> tuple[list[int], int]:
    """Exchange a tensor that ends highest with one placed earlier; keep the order if the plan grows no longer.

    Stops at `enough` granules. The same problem always gives the same plan.
    """
    random = Random(1)
    offsets, total = best = problem.place(order)
    for _ in range(SEARCH_PLACEMENTS // max(len(order), 1)):
        if best[1] <= enough:
            break
        highest = random.choice([i for i in order if offsets[i] + problem.sizes[i] == total])
        position = order.index(highest)
        earlier = [k for k in range(position) if order[k] in problem.neighbours[highest]]
        # Now and then any exchange, and now and then a longer plan, to leave dead ends.
        other = random.choice(earlier) if earlier and random.random() < 0.7 else random.randrange(len(order))
        trial = list(order)
        trial[position], trial[other] = trial[other], trial[position]
        plan = problem.place(trial)
        if plan[1] <= total or random.random() < 0.02:
            order, (offsets, total) = trial, plan
            best = min(best, plan, key=lambda p: p[1])
    return best


def placements(lives: Sequence[Lifetime], enough: int = 0) -> Iterator[Placement]:
    """A plan by each strategy; the search begins with the best order of the others and ends at `enough` granules."""
    problem = _Problem(lives)
    orders = {name: order(problem) for name, order in ORDERS.items()}
    totals: dict[str, int] = {}

    def placement(name: str, offsets: list[int], total: int) -> Placement:
        return Placement({life.name: offset for life, offset in zip(lives, offsets, strict=True)}, total, name)

    for name, order in orders.items():
        offsets, totals[name] = _greedy(problem, order)
        yield placement(name, offsets, totals[name])
    bound = max(map(problem.breadth, problem.live), default=0)
    yield placement(SEARCH, *_search(problem, orders[min(totals, key=totals.__getitem__)], max(bound, enough)))


def place_tensors(lives: Sequence[Lifetime]) -> Placement:
    """The shortest plan of all strategies; the first that reaches `breadth_bound` ends the trials.

    Time: milliseconds for the greedy plans of hundreds of tensors, a second for the search at worst.
    """
    bound = breadth_bound(lives)
    best: Placement | None = None
    for plan in placements(lives):
        if best is None or plan.granules < best.granules:
            best = plan
        if best.granules == bound:
            break
    assert best is not None
    return best


def region_bytes(config: AcceleratorConfig, graph: LayerGraph) -> int:
    """Bytes of activation memory that every plan of a region needs."""
    return breadth_bound(lifetimes(config, graph)[1]) * config.granule * config.row_banks


def fits_memory(config: AcceleratorConfig, graph: LayerGraph) -> bool:
    """Whether `plan_memory` finds a plan; cheaper, since any that fits will do."""
    _, lives = lifetimes(config, graph)
    available = config.bank_granules
    return breadth_bound(lives) <= available and any(p.granules <= available for p in placements(lives, available))


def plan_memory(config: AcceleratorConfig, graph: LayerGraph) -> MemoryPlan:
    """Place every tensor of a region.

    Raises
    ------
    CapacityError
        If no strategy fits the activation memory; the message gives bytes needed and available.
    """
    locations, lives = lifetimes(config, graph)
    placement = place_tensors(lives)
    plan = MemoryPlan(
        {name: dataclasses.replace(place, base=placement.offsets[name]) for name, place in locations.items()},
        tuple(lives),
        placement.granules,
        placement.strategy,
    )
    if plan.granules > config.bank_granules:
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
