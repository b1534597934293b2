"""Networks that do not fit: which layers run on the CPU, and where regions are cut, so that the rest does.

A layer whose own tensors, or the weights of one of whose channel groups, exceed a memory runs on the CPU. Where each
layer fits but a region does not (a tensor lives long, or many live together), the region is cut in its sequence of
layers: between two pieces the host carries the tensors that later ones read. On a board with external memory regions
are not cut: they run in strips (`compiler.strips`), and only what does not fit a row at a time runs on the CPU. What
cuts cost is, in this order,

1. the multiply-accumulates that the accelerator loses to the CPU,
2. the bytes that cross the host link for each inference,
3. the operators on the CPU,
4. the pieces.

So a layer without multiplications (a sum, a pool) moves to the CPU where that saves bytes. The costs of pieces add up,
so dynamic programming over the sequence finds the cheapest cuts.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nnloom.arch.artifact import TensorLocation
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import CapacityError

from .cost import operation_macs
from .emit import Emitted, emit, prepared
from .graph import LayerGraph
from .ir import Graph
from .lower import lower_layers
from .memory import fits_memory, lifetimes, plan_memory, region_bytes
from .orientation import turned
from .partition import Cuts, Partitioned, Region, is_sequence, partition
from .parts import group_too_large
from .strips import misfits, sliced
from .transfers import MemoryTiming

__all__ = ["Fitted", "Form", "fit"]


@dataclass(frozen=True)
class Form:
    """In which form a network is partitioned, of those that `fit` chooses among."""

    more_tables: bool = False
    """see `partition`"""
    tall: bool = False
    """rows for columns (`compiler.orientation`), a vector of a sequence in each row"""


@dataclass(frozen=True)
class Fitted:
    """A partition whose regions fit the memories, with their programs."""

    partitioned: Partitioned
    emitted: Emitted
    form: Form = Form()

    @property
    def is_cut(self) -> bool:
        """Whether the memories made cuts necessary, or kept a layer on the CPU."""
        return bool(self.partitioned.cuts.on_cpu or self.partitioned.cuts.after)

    @property
    def engine_macs(self) -> int:
        """Multiply-accumulates of an inference on the accelerator."""
        return sum(operation_macs(node.operation) for node in self.partitioned.graph.nodes) - self.cpu_macs

    @property
    def cpu_macs(self) -> int:
        """Multiply-accumulates of an inference on the CPU."""
        return sum(operation_macs(node.operation) for stage in self.partitioned.stages for node in stage.nodes)

    @property
    def engine_share(self) -> float:
        """Share of the multiply-accumulates that the accelerator does: 0 to 1, and 0 if there are none."""
        return self.engine_macs / max(1, self.engine_macs + self.cpu_macs)

    @property
    def link_bytes(self) -> int:
        """Bytes of the tensors that regions exchange with the host, in and out, for one inference."""
        return sum(t.elements for graph in self.partitioned.graphs for t in (*graph.inputs, *graph.outputs))

    @property
    def rank(self) -> tuple[float, int]:
        """Of two, the one with the greater rank suits the network better."""
        return self.engine_share, -self.link_bytes


def fit(
    graph: Graph,
    config: AcceleratorConfig,
    *,
    memory: MemoryTiming | None = None,
    turn: bool = True,
    form: Form | None = None,
) -> Fitted:
    """Partition a network so that every region fits the configuration's memories.

    Of more functions than tables, some stay on the CPU or tables are loaded in turn: what leaves the accelerator more
    of the multiply-accumulates, to a hundredth, or else moves fewer bytes.

    Where memories make cuts necessary, the other direction is tried, too: images with rows for columns
    (`compiler.orientation`), a vector of a sequence in each row. It is taken where the accelerator does more of the
    network by a hundredth, or a tenth fewer bytes are moved.

    Parameters
    ----------
    memory
        See `emit`.
    turn
        Whether images may have rows for columns: the user's tensors are then permuted.
    form
        The only one that is tried.
    """
    if form is not None:
        upright = turned(graph) if turn and form.tall else None
        return _fit(upright or graph, config, memory, form)
    fitted = _with_tables(graph, config, memory)
    if not fitted.is_cut:
        return fitted
    other = turned(graph) if turn else None
    if other is None and not any(is_sequence(value.type.shape) for value in graph.values if value.data is None):
        return fitted
    found = _with_tables(other or graph, config, memory, tall=True)
    more = found.engine_share - fitted.engine_share
    moved, before = (f.link_bytes + (0 if memory else f.emitted.loaded_bytes(config)) for f in (found, fitted))
    return found if more >= 0.01 or (more >= 0 and moved < 0.9 * before) else fitted


def _with_tables(graph: Graph, config: AcceleratorConfig, memory: MemoryTiming | None, *, tall: bool = False) -> Fitted:
    """With tables that are loaded in turn, or without, whichever suits the network better."""
    fitted = _fit(graph, config, memory, Form(tall=tall))
    if not fitted.partitioned.lacks_tables:
        return fitted

    def rank(item: Fitted) -> tuple[float, int]:
        loaded = 0 if memory else item.emitted.loaded_bytes(config)
        return round(item.engine_share, 2), -item.link_bytes - loaded

    return max(fitted, _fit(graph, config, memory, Form(more_tables=True, tall=tall)), key=rank)


def _fit(
    graph: Graph,
    config: AcceleratorConfig,
    memory: MemoryTiming | None,
    form: Form,
) -> Fitted:
    """Each turn keeps another layer on the CPU or makes another cut; at worst, single layers are left."""
    cuts = Cuts()
    in_strips = memory is not None
    while True:
        partitioned = partition(graph, config, cuts, more_tables=form.more_tables, tall=form.tall)
        try:
            return Fitted(partitioned, emit(config, partitioned.graphs, memory=memory, in_strips=in_strips), form)
        except CapacityError:
            more = _further_cuts(config, partitioned, in_strips)
            if more == cuts and in_strips:
                in_strips = False  # no plan of strips was found
            elif more == cuts:
                raise
            cuts = more


def _further_cuts(config: AcceleratorConfig, partitioned: Partitioned, in_strips: bool) -> Cuts:
    """The cuts so far and those for operators that do not fit even alone or, if there are none, for regions.

    in_strips: regions may run in strips.
    """
    cuts = partitioned.cuts
    regions = [stage.region for stage in partitioned.stages if stage.region]
    reasons = (item for region in regions for item in _reasons(config, region, in_strips))
    too_large = {value: reason for value, reason in reasons if reason}
    if too_large:
        return dataclasses.replace(cuts, on_cpu={**cuts.on_cpu, **too_large})
    if in_strips:
        return cuts
    macs = {node.outputs[0]: operation_macs(node.operation) for node in partitioned.graph.nodes}
    too_wide = [region for region in regions if not _fits(config, region.layers)]
    more = cuts
    for region in too_wide:
        more = _cut(config, region, macs, more)
    if more == cuts and too_wide:
        # The partition did not follow a cut: what is widest leaves the region instead.
        more = dataclasses.replace(cuts, on_cpu={**cuts.on_cpu, **dict(_widest(config, r) for r in too_wide)})
    return more


def _fits(config: AcceleratorConfig, graph: LayerGraph) -> bool:
    """Whether `emit` can place the tensors of a region."""
    return any(fits_memory(config, form) for form in prepared(config, graph))


def _widest(config: AcceleratorConfig, region: Region) -> tuple[int, str]:
    """The operator whose own tensors are largest, by its value, and why it leaves the region."""
    sizes = {v: region_bytes(config, _piece(region.layers, first, end)) for v, first, end in _units(region)}
    return max(sizes, key=sizes.__getitem__), _why(config, region)


def _why(config: AcceleratorConfig, region: Region) -> str:
    return (
        f"its region needs {region_bytes(config, region.layers):,} bytes of activation memory, the configuration has "
        f"{config.activation_bytes:,}, and to cut it here moves the fewest"
    )


def _units(region: Region) -> list[tuple[int, int, int]]:
    """What cannot be cut, the layers of a node: (the node's first value, first layer, end)."""
    ends = [i + 1 for i, (a, b) in enumerate(itertools.pairwise(region.makers)) if a != b]
    bounds = [0, *ends, len(region.makers)]
    return [(region.makers[first], first, end) for first, end in itertools.pairwise(bounds)]


def _reasons(config: AcceleratorConfig, region: Region, in_strips: bool) -> Iterator[tuple[int, str | None]]:
    """Why each operator of a region, by its value, is too large even alone, or None."""
    in_region = _locations(config, region.layers)
    tall = misfits(config, sliced(config, region.layers)) if in_strips else {}
    for value, first, end in _units(region):
        alone = _piece(region.layers, first, end)
        reason = None
        if in_strips:
            needed = max((tall.get(layer.name, 0) for layer in alone.layers), default=0)
            if needed:
                reason = (
                    f"a row of its tensors needs {needed:,} bytes of activation memory, the configuration has "
                    f"{config.activation_bytes:,}"
                )
        elif not _fits(config, alone):
            reason = (
                f"its tensors need {region_bytes(config, alone):,} bytes of activation memory, the configuration has "
                f"{config.activation_bytes:,}"
            )
        yield (
            value,
            reason
            or _engine_reason(config, alone, _locations(config, alone))
            or _engine_reason(config, alone, in_region),
        )


def _locations(config: AcceleratorConfig, graph: LayerGraph) -> dict[str, TensorLocation]:
    """Where the tensors lie; if they do not fit, all at the beginning."""
    try:
        return plan_memory(config, graph).locations
    except CapacityError:
        return lifetimes(config, graph)[0]


def _engine_reason(config: AcceleratorConfig, alone: LayerGraph, locations: dict[str, TensorLocation]) -> str | None:
    """Why layers whose tensors fit are too large all the same: the weights, or the fields of a descriptor."""
    try:
        lowered = lower_layers(config, alone, locations)
    except CapacityError as error:
        return str(error).split(": ", 1)[-1]
    return next(filter(None, (group_too_large(config, layer) for layer in lowered)), None)


def _piece(graph: LayerGraph, first: int, end: int) -> LayerGraph:
    """Layers `first` to `end` - 1 as a region of their own."""
    layers = graph.layers[first:end]
    made = {layer.output.name: layer.output.entire for layer in layers}
    read = {t.name: t.entire for layer in layers for t in layer.inputs}
    wanted = {t.name for t in graph.outputs} | {t.name for layer in graph.layers[end:] for t in layer.inputs}
    return LayerGraph(
        name=graph.name,
        inputs=tuple(t for name, t in read.items() if name not in made),
        outputs=tuple(t for name, t in made.items() if name in wanted),
        layers=layers,
    )


def _bytes_of_pieces(graph: LayerGraph, end: int) -> Iterator[tuple[int, int]]:
    """Bytes in and out of each piece that ends at `end`, the shortest first: (first layer, bytes)."""
    wanted = {t.name for t in graph.outputs} | {t.name for layer in graph.layers[end:] for t in layer.inputs}
    read: dict[str, int] = {}
    written: dict[str, int] = {}
    for first in range(end - 1, -1, -1):
        layer = graph.layers[first]
        read.pop(layer.output.name, None)
        read |= {t.name: t.entire.elements for t in layer.inputs}
        if layer.output.name in wanted:
            written[layer.output.name] = layer.output.entire.elements
        yield first, sum(read.values()) + sum(written.values())


@dataclass(frozen=True, order=True)
class _Cost:
    """What cuts cost: less is better, and what comes first counts most."""

    cpu_macs: int = 0
    link_bytes: int = 0
    cpu_operators: int = 0
    pieces: int = 0

    def __add__(self, other: _Cost) -> _Cost:
        return _Cost(*map(operator.add, dataclasses.astuple(self), dataclasses.astuple(other)))


@dataclass(frozen=True)
class _Run:
    """Units `first` to `end` - 1: a piece, or one that the CPU runs. `cost` is that of all units up to here."""

    cost: _Cost
    first: int
    end: int
    on_cpu: bool = False


def _cheapest_runs(config: AcceleratorConfig, region: Region, macs: Mapping[int, int]) -> list[_Run]:
    """The pieces, and operators on the CPU, that a region is best cut into, in order.

    macs: multiply-accumulates of each operator, by its first value.
    """
    graph = region.layers
    units = _units(region)
    index_of = {first: index for index, (_, first, _) in enumerate(units)}
    best = [_Run(_Cost(), 0, 0)]
    for end, (value, _, end_layer) in enumerate(units, 1):
        options = [_Run(best[end - 1].cost + _Cost(cpu_macs=macs[value], cpu_operators=1), end - 1, end, on_cpu=True)]
        for layer, size in _bytes_of_pieces(graph, end_layer):
            if layer in index_of:
                first = index_of[layer]
                options.append(_Run(best[first].cost + _Cost(link_bytes=size, pieces=1), first, end))
        options.sort(key=lambda run: run.cost)
        best.append(next(r for r in options if r.on_cpu or _fits(config, _piece(graph, units[r.first][1], end_layer))))
    runs = []
    while best[-1].end:
        runs.append(best[-1])
        del best[best[-1].first + 1 :]
    return runs[::-1]


def _cut(config: AcceleratorConfig, region: Region, macs: Mapping[int, int], cuts: Cuts) -> Cuts:
    """`cuts` and those of a region that does not fit."""
    on_cpu, after = dict(cuts.on_cpu), dict(cuts.after)
    units = _units(region)
    last: int | None = None
    for run in _cheapest_runs(config, region, macs):
        value = units[run.first][0]
        if run.on_cpu:
            on_cpu[value] = _why(config, region)
            continue
        if last is not None:
            after[value] = tuple(dict.fromkeys((*after.get(value, ()), last)))
        last = units[run.end - 1][0]
    return Cuts(on_cpu, after)
