"""Regions whose tensors exceed the activation memory, on boards with external memory: strips of rows.

A tensor lies in activation memory for all of its life, or in external memory. Layers run one after the other, in
*stages*: where a layer reads or writes an external tensor it runs strip by strip, and each strip brings the rows that
it reads into a buffer, runs, and takes the rows that it has made to external memory. Which tensors are external, and
how high the strips of a stage are, is what costs the fewest cycles by the cost model and fits the memory.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from nnloom.arch.artifact import TensorLocation
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.dma import BUFFER_ALIGNMENT
from nnloom.arch.errors import CapacityError
from nnloom.arch.isa import Descriptor
from nnloom.arch.loopnest import issue_cycles

from .graph import Layer, LayerGraph, Tensor, WindowSum
from .lower import located, lower_layer
from .memory import Lifetime, MemoryPlan, check_plan, lifetimes, place_tensors
from .strip_layers import is_elementwise, reads_in_order, rows_read, rows_written
from .transfers import MemoryTiming, load_cycles, run_cycles, store_cycles

__all__ = ["Stage", "StripPlan", "buffer_name", "plan_strips", "strip_bytes"]

_ATTEMPTS = 8
"""Plans that are made until one fits although tensors leave gaps."""


@dataclass(frozen=True)
class Stage:
    """A layer, and the rows of its output that it makes at a time, in order."""

    layer: int
    strips: tuple[tuple[int, int], ...]
    """(first row, end) of each"""


@dataclass(frozen=True)
class StripPlan:
    """What runs in strips, and where everything lies."""

    graph: LayerGraph
    stages: tuple[Stage, ...]
    external: tuple[str, ...]
    """tensors in external memory, in the order in which they are made"""
    memory: MemoryPlan
    """of the tensors on the chip, and of the buffers of each stage (`buffer_name`); time goes by stages"""
    layouts: Mapping[str, TensorLocation]
    """of all tensors of the region, at base 0"""
    cycles: float
    """by the cost model"""

    def is_external(self, name: str) -> bool:
        """Whether a tensor lies in external memory."""
        return name in self._external

    @cached_property
    def _external(self) -> frozenset[str]:
        return frozenset(self.external)


def buffer_name(stage: int, tensor: str) -> str:
    """Name of the buffer in which a stage has rows of an external tensor."""
    return f"{tensor} @ {stage}"


def plan_strips(config: AcceleratorConfig, graph: LayerGraph, timing: MemoryTiming) -> StripPlan:
    """The best plan of a region that is found.

    Raises
    ------
    CapacityError
        If a layer does not fit the activation memory even row by row.
    """
    search = _Search(config, graph, timing)
    available = config.bank_granules
    for _ in range(_ATTEMPTS):
        external = search.external_tensors(available)
        plan = search.plan(external, available)
        if plan.memory.granules <= config.bank_granules:
            check_plan(plan.memory.locations, plan.memory.lifetimes, config)
            return plan
        available -= plan.memory.granules - config.bank_granules
    raise CapacityError(
        f"{graph.name}: no plan of strips fits {config.activation_bytes} bytes of activation memory; use a "
        "configuration with more"
    )


def strip_bytes(config: AcceleratorConfig, graph: LayerGraph) -> int:
    """Bytes of activation memory that a region's layers need if every tensor is in external memory: of the layer that
    needs most for a few rows."""
    search = _Search(config, graph, None)
    everything = frozenset(search.layouts)
    granules = max(search.least_granules(index, everything) for index in range(len(graph.layers)))
    return granules * config.granule * config.row_banks


def _aligned(config: AcceleratorConfig, location: TensorLocation) -> TensorLocation:
    """The layout with rows that begin at multiples of what the DMA's memory asks for."""
    unit = math.lcm(BUFFER_ALIGNMENT, config.granule) // config.granule
    return dataclasses.replace(location, row_stride=-(-location.row_stride // unit) * unit)


def balanced(rows: int, height: int, step: int) -> tuple[tuple[int, int], ...]:
    """As few strips of at most `height` rows as possible, of equal heights if these can be multiples of `step`."""
    count = -(-rows // height)
    even = -(-rows // count)
    even = min(height, -(-even // step) * step)
    return tuple((first, min(first + even, rows)) for first in range(0, rows, even))


@dataclass
class _Costs:
    """Cycles of rows of each layer, from one lowering of each."""

    config: AcceleratorConfig
    layouts: Mapping[str, TensorLocation]
    _descriptors: dict[int, Descriptor] = field(default_factory=dict)
    _known: dict[tuple[int, int], int] = field(default_factory=dict)

    def cycles(self, index: int, layer: Layer, rows: int) -> int:
        """Of so many output rows."""
        key = index, rows
        if key not in self._known:
            if index not in self._descriptors:
                sources = [located(self.config, self.layouts, t) for t in layer.inputs]
                lowered = lower_layer(self.config, layer, sources, located(self.config, self.layouts, layer.output))
                self._descriptors[index] = lowered.descriptor
            d = self._descriptors[index]
            if d.pixel_pair:
                d = dataclasses.replace(d, n_oy=-(-rows // 2), odd_rows=rows % 2)
            elif d.n_oy == layer.output.rows:
                d = dataclasses.replace(d, n_oy=rows)
            cycles = issue_cycles(self.config, d)
            if d.n_oy != rows and not d.pixel_pair:  # one long row of each bank
                cycles = -(-cycles * rows // layer.output.rows)
            self._known[key] = cycles
        return self._known[key]


class _Search:
    """What is external, and the heights of strips."""

    def __init__(self, config: AcceleratorConfig, graph: LayerGraph, timing: MemoryTiming | None) -> None:
        self.config = config
        self.graph = graph
        self.timing = timing
        places, lives = lifetimes(config, graph)
        self.layouts = {name: _aligned(config, place) for name, place in places.items()}
        self.lives = {life.name: (max(life.first, 0), min(life.last, len(graph.layers) - 1)) for life in lives}
        """first and last stage of each tensor"""
        self.granules = {name: place.granules(config) for name, place in self.layouts.items()}
        self._given = {t.name for t in graph.inputs}
        self._wanted = {t.name for t in graph.outputs}
        self._costs = _Costs(config, self.layouts)
        self._cycles: dict[tuple[int, frozenset[str], int], tuple[float, int]] = {}
        self._writers: dict[str, list[int]] = {}
        for index, layer in enumerate(graph.layers):
            self._writers.setdefault(layer.output.name, []).append(index)

    def live(self, stage: int) -> list[str]:
        """Tensors that live during a stage."""
        return [name for name, (first, last) in self.lives.items() if first <= stage <= last]

    def of_stage(self, index: int) -> list[Tensor]:
        """Operands and output of a stage's layer."""
        layer = self.graph.layers[index]
        return [*layer.inputs, layer.output]

    # Rows that a strip has in its buffers

    def needed(self, index: int, external: frozenset[str], first: int, end: int) -> dict[str, tuple[int, int]]:
        """Rows (first, end) of each external tensor that a strip of a layer reads or writes."""
        layer = self.graph.layers[index]
        rows: dict[str, tuple[int, int]] = {}

        def add(name: str, begin: int, stop: int) -> None:
            known = rows.get(name, (begin, stop))
            rows[name] = min(begin, known[0]), max(stop, known[1])

        for operand, tensor in enumerate(layer.inputs):
            if tensor.name in external:
                add(tensor.name, *rows_read(layer, operand, first, end))
        if layer.output.name in external:
            add(layer.output.name, *rows_written(layer, first, end))
        return rows

    def is_partial(self, index: int) -> bool:
        """Whether a layer leaves out elements of the rows that it writes."""
        t = self.graph.layers[index].output
        return t.whole is not None and (t.columns, t.channels, t.row_step) != (*t.whole[1:], 1)

    def loads_output(self, index: int) -> bool:
        """Whether a strip has to bring the rows of its output first: others have written there."""
        name = self.graph.layers[index].output.name
        return self.is_partial(index) and self._writers[name][0] != index

    # Heights

    def step(self, index: int) -> int:
        """Strips begin at multiples of so many rows, if they can."""
        return self.config.row_banks

    def heights(self, index: int, external: frozenset[str]) -> list[int]:
        """Heights of strips to try, falling."""
        rows = self.graph.layers[index].output.rows
        if not any(t.name in external for t in self.of_stage(index)):
            return [rows]
        step = self.step(index)
        found = [rows, *(n for n in range((rows - 1) // step * step, 0, -step))]
        if not self._needs_banks(index, external):
            found += [n for n in (3, 2, 1) if n < rows]
        return found

    def _needs_banks(self, index: int, external: frozenset[str]) -> bool:
        """Whether strips must begin in the bank of row 0: the layer leaves out no rows of what lies on the chip."""
        layer = self.graph.layers[index]
        if isinstance(layer, WindowSum):
            return layer.inputs[0].name not in external
        in_order = [t for i, t in enumerate(layer.inputs) if reads_in_order(layer, i)]
        return is_elementwise(layer) and any(t.name not in external for t in (*in_order, layer.output))

    def buffers(self, index: int, external: frozenset[str], height: int) -> dict[str, int]:
        """Rows of the buffer of each external tensor, for strips of so many rows."""
        found: dict[str, int] = {}
        for first, end in self.strips(index, height):
            for name, (begin, stop) in self.needed(index, external, first, end).items():
                found[name] = max(found.get(name, 0), stop - begin)
        return found

    def strips(self, index: int, height: int) -> tuple[tuple[int, int], ...]:
        """(first, end) of each strip."""
        rows = self.graph.layers[index].output.rows
        return balanced(rows, height, min(self.step(index), height))

    def buffer_granules(self, name: str, rows: int) -> int:
        """Granules of a bank that so many rows of a tensor take."""
        return -(-rows // self.config.row_banks) * self.layouts[name].row_stride

    def least_granules(self, index: int, external: frozenset[str]) -> int:
        """Granules that a stage takes with its lowest strips, buffers and what else it reads and writes."""
        mine = {t.name for t in self.of_stage(index)}
        whole = sum(self.granules[name] for name in mine - external)
        return whole + min(self._stage_granules(index, external, h) for h in self.heights(index, external))

    def _stage_granules(self, index: int, external: frozenset[str], height: int) -> int:
        return sum(self.buffer_granules(name, n) for name, n in self.buffers(index, external, height).items())

    # Costs

    def stage_cost(self, index: int, external: frozenset[str], free: int) -> tuple[float, int]:
        """(cycles, height) of a stage that has so many granules for its buffers; (inf, 0) if they are too few."""
        mine = frozenset(t.name for t in self.of_stage(index)) & external
        key = index, mine, free if mine else 0
        if key not in self._cycles:
            best = (math.inf, 0)
            if free >= 0:
                tried = 0
                for height in self.heights(index, mine):
                    if self._stage_granules(index, mine, height) > free:
                        continue
                    best = min(best, (self.strips_cost(index, mine, height), height))
                    tried += 1
                    if tried == 3:
                        break  # lower ones bring more rows twice
            self._cycles[key] = best
        return self._cycles[key]

    def strips_cost(self, index: int, external: frozenset[str], height: int) -> float:
        """Cycles of a stage in strips of so many rows."""
        assert self.timing is not None
        layer, timing = self.graph.layers[index], self.timing
        total = 0.0
        for first, end in self.strips(index, height):
            total += self._costs.cycles(index, layer, end - first)
            if not external:
                continue
            total += run_cycles(timing)
            for name, (begin, stop) in self.needed(index, external, first, end).items():
                words = self.layouts[name].row_stride * self.config.granule // 4
                pieces = min(stop - begin, self.config.row_banks)
                reads = any(t.name == name for t in layer.inputs) or self.loads_output(index)
                if reads:
                    total += pieces * load_cycles(timing, words * (stop - begin) / pieces)
                if layer.output.name == name:
                    total += pieces * store_cycles(timing, words * (stop - begin) / pieces)
        return total

    def cost(self, external: frozenset[str], available: int) -> tuple[int, float]:
        """(stages that do not fit, cycles of the others) with these tensors in external memory."""
        misfits, total = 0, 0.0
        for name in (self._given | self._wanted) - external:
            total += load_cycles(self.timing, 0) + self._words(name) * self._word_cycles(name)
        for index in range(len(self.graph.layers)):
            cycles, _ = self.stage_cost(index, external, self.free(index, external, available))
            if math.isinf(cycles):
                misfits += 1
            else:
                total += cycles
        return misfits, total

    def _words(self, name: str) -> int:
        return self.granules[name] * self.config.row_banks * self.config.granule // 4

    def _word_cycles(self, name: str) -> float:
        assert self.timing is not None
        if name in self._wanted:
            return store_cycles(self.timing, 1024) / 1024
        return load_cycles(self.timing, 1024) / 1024

    def free(self, stage: int, external: frozenset[str], available: int) -> int:
        """Granules that tensors on the chip leave for buffers."""
        return available - sum(self.granules[name] for name in self._live[stage] if name not in external)

    @cached_property
    def _live(self) -> list[list[str]]:
        return [self.live(stage) for stage in range(len(self.graph.layers))]

    # Choice

    def external_tensors(self, available: int) -> frozenset[str]:
        """Tensors for external memory: as few cycles as single changes find.

        Raises
        ------
        CapacityError
            If a layer does not fit even with all of them there.
        """
        everything = frozenset(self.lives)
        for index, layer in enumerate(self.graph.layers):
            if self.least_granules(index, everything) > available:
                raise CapacityError(
                    f"{layer.name}: does not fit {available * self.config.granule * self.config.row_banks:,} bytes of "
                    "activation memory even a row at a time"
                )
        chosen: frozenset[str] = frozenset()
        cost = self.cost(chosen, available)
        while cost[0]:
            tight = [
                index
                for index in range(len(self.graph.layers))
                if math.isinf(self.stage_cost(index, chosen, self.free(index, chosen, available))[0])
            ]
            candidates = {name for index in tight for name in self._live[index]} - chosen

            def merit(name: str, tight: list[int] = tight) -> float:
                """Granules that stages gain, for the words that are moved."""
                relief = sum(self._relief(index, name) for index in tight if name in self._live[index])
                readers = sum(t.name == name for layer in self.graph.layers for t in layer.inputs)
                moved = self._words(name) * (2 * readers + 10 * len(self._writers.get(name, ())))
                return relief / moved

            chosen |= {max(sorted(candidates), key=merit)}
            cost = self.cost(chosen, available)
        return self._improved(chosen, cost, available)

    def _relief(self, index: int, name: str) -> int:
        """Granules that a stage gains if a tensor is external."""
        if all(t.name != name for t in self.of_stage(index)):
            return self.granules[name]
        return max(0, self.granules[name] - self.buffer_granules(name, 2 * self.config.row_banks))

    def _improved(self, chosen: frozenset[str], cost: tuple[int, float], available: int) -> frozenset[str]:
        """After single changes, as long as one of them saves cycles."""
        names = sorted(self.lives, key=lambda name: -self._words(name))
        changed = True
        while changed:
            changed = False
            for name in names:
                other = chosen ^ {name}
                found = self.cost(other, available)
                if found < cost:
                    chosen, cost, changed = other, found, True
        return chosen

    # Plan

    def plan(self, external: frozenset[str], available: int) -> StripPlan:
        """The plan with these tensors in external memory; its memory may be larger than there is."""
        stages: list[Stage] = []
        lives: list[Lifetime] = []
        places: dict[str, TensorLocation] = {}
        for name, (first, last) in self.lives.items():
            if name not in external:
                last_stage = len(self.graph.layers) if name in self._wanted else last
                lives.append(Lifetime(name, self.granules[name], -1 if name in self._given else first, last_stage))
                places[name] = self.layouts[name]
        for index in range(len(self.graph.layers)):
            _, height = self.stage_cost(index, external, self.free(index, external, available))
            stages.append(Stage(index, self.strips(index, height)))
            for name, rows in self.buffers(index, external, height).items():
                buffer = buffer_name(index, name)
                places[buffer] = _with_rows(self.layouts[name], rows, buffer)
                lives.append(Lifetime(buffer, places[buffer].granules(self.config), index, index))
        placement = place_tensors(lives)
        memory = MemoryPlan(
            {name: dataclasses.replace(place, base=placement.offsets[name]) for name, place in places.items()},
            tuple(lives),
            placement.granules,
            placement.strategy,
        )
        order = tuple(name for name in self.lives if name in external)
        cycles = self.cost(external, available)[1]
        return StripPlan(self.graph, tuple(stages), order, memory, self.layouts, cycles)


def _with_rows(location: TensorLocation, rows: int, name: str) -> TensorLocation:
    shape = (1, rows, location.columns, location.channels)
    return dataclasses.replace(location, rows=rows, name=name, shape=shape)
