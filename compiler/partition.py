"""Partitioning: which part of a network runs on the accelerator.

A pass over the graph in order of execution. Each node the operator table has a layer for, and the configuration can
run, joins the accelerator; reshapes between layers rename memory; everything else runs on the CPU. Accelerator nodes
with equally many changes between CPU and accelerator before them form one region, which runs at once: that gives the
fewest regions, since each node runs as early as its operands allow.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.dtypes import ACTIVATION, UINT8

from .copies import copy_layer
from .graph import DepthwiseConv2D, Layer, LayerGraph, Tensor
from .ir import Graph, Node
from .lower import is_narrow, tables_of, unsupported_reason
from .ops import OPERATORS, LayoutConflict, Made, Operator, Refusal
from .ops.lookup import OneValue, copy_with_table, function_of_one_value, lookup_layer
from .ops.operator import Layout, natural_layout, output_tensor
from .recentre import Recentred, is_renaming, recentre

__all__ = ["CpuOperator", "Cuts", "Partitioned", "Region", "Stage", "is_sequence", "partition"]


@dataclass(frozen=True)
class Cuts:
    """What the sizes of the memories ask of a partition (`fit`). Nodes are named by the first value that they make."""

    on_cpu: Mapping[int, str] = field(default_factory=dict)
    """why each of these stays on the CPU"""
    after: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """nodes that begin a region, and of each the last ones of regions before: those end there"""


@dataclass(frozen=True)
class CpuOperator:
    """An operator that stays on the CPU, and why."""

    name: str
    op: str
    reason: str


@dataclass(frozen=True)
class Region:
    """A part of the network for the accelerator: its layers, and which values of the graph they exchange."""

    layers: LayerGraph
    inputs: tuple[int, ...]
    """values, in the order of `layers.inputs`"""
    outputs: tuple[int, ...]
    """values, in the order of `layers.outputs`"""
    makers: tuple[int, ...]
    """of each layer, the first value that its node makes"""


@dataclass(frozen=True)
class Stage:
    """What runs one after the other: nodes on the CPU, then a region, if there is one."""

    nodes: tuple[Node, ...]
    region: Region | None


@dataclass(frozen=True)
class Partitioned:
    """A network as stages of CPU and accelerator."""

    graph: Graph
    recentred: Graph
    """the network as regions compute it: in int8"""
    stages: tuple[Stage, ...]
    cpu_operators: tuple[CpuOperator, ...]
    cuts: Cuts = field(default_factory=Cuts)
    lacks_tables: bool = False
    """whether operators stay on the CPU because the engine's tables hold other functions"""

    @property
    def graphs(self) -> tuple[LayerGraph, ...]:
        """The layers of each region."""
        return tuple(stage.region.layers for stage in self.stages if stage.region)


@dataclass
class _Region:
    """A region under construction; the `Operands` of its layers."""

    network: Recentred
    config: AcceleratorConfig
    only_flat: set[int]
    """values that only fully connected layers read"""
    renamed: Mapping[int, int]
    """values of the CPU whose bytes another value has, which a region reads instead"""
    tall: bool = False
    """see `partition`"""
    inputs: dict[int, Tensor] = field(default_factory=dict)
    made: dict[int, Tensor] = field(default_factory=dict)
    """by layers, or as another shape of what a layer makes"""
    layers: list[Layer] = field(default_factory=list)
    makers: list[int] = field(default_factory=list)
    """of each layer, the first value that its node makes"""
    here: set[int] = field(default_factory=set)
    """values that the nodes of its layers make, also those that no tensor holds any more"""
    offered: dict[int, Tensor] = field(default_factory=dict)
    """inputs of the layer that is being made"""

    @property
    def graph(self) -> Graph:
        return self.network.graph

    def dtype(self, value: int) -> str:
        """Type in which the host has it."""
        return UINT8 if value in self.network.unsigned else self.graph.values[value].type.dtype

    def _known(self, value: int) -> Tensor | None:
        return self.made.get(value) or self.inputs.get(value) or self.offered.get(value)

    def layout(self, value: int) -> Layout | None:
        """See `Operands`. An image has one layout; what has other shapes takes that of its first reader, or is tall."""
        value = self.renamed.get(value, value)
        known = self._known(value)
        if known:
            return known.rows, known.columns, known.channels
        shape = self.graph.values[value].type.shape
        if self.tall and is_sequence(shape):
            return math.prod(shape[:-1]), 1, shape[-1]
        return natural_layout(shape) if len(shape) == 4 and value not in self.only_flat else None

    def tensor(self, value: int, layout: Layout | None = None) -> Tensor:
        """See `Operands`."""
        value = self.renamed.get(value, value)
        known = self._known(value)
        if known is None:
            known = self.offered[value] = self._input(value, layout)
        if layout is not None and (known.rows, known.columns, known.channels) != layout:
            raise LayoutConflict(value, f"{known.name} lies in memory as {known.rows} x {known.columns} x "
                                 f"{known.channels}, not {layout[0]} x {layout[1]} x {layout[2]}")  # fmt: skip
        return known

    def _input(self, value: int, layout: Layout | None) -> Tensor:
        item = self.graph.values[value]
        q = item.type.quantization
        if item.type.dtype != ACTIVATION or q is None or not q.is_per_tensor:
            raise Refusal(f"{item.name} is no int8 tensor with one scale")
        flat = (1, 1, item.type.elements) if value in self.only_flat else natural_layout(item.type.shape)
        rows, columns, channels = layout or self.layout(value) or flat
        return Tensor(
            name=item.name,
            rows=rows,
            columns=columns,
            channels=channels,
            scale=q.scale,
            zero_point=q.zero_point,
            shape=item.type.shape,
            dtype=self.dtype(value),
        )

    def accept(self, node: Node, made: Made) -> None:
        """Take a node's layers in, with the inputs that were offered to them."""
        self.inputs |= self.offered
        self.layers += made.layers
        self.makers += [node.outputs[0]] * len(made.layers)
        self.made |= dict(zip(node.outputs, made.outputs, strict=True))
        self.here.update(node.outputs)

    def spared(self, function: OneValue, node: Node, readers: Mapping[int, Sequence[Node]]) -> set[int]:
        """Values between a node and what it is a function of that nobody else reads, and this region makes."""
        spared = {n.outputs[0] for n in function.between} & self.here
        spared -= set(self.graph.results)
        while True:
            last = {node.outputs[0], *spared}
            read = {v for v in spared if any(n.outputs[0] not in last for n in readers.get(v, ()))}
            if not read:
                return spared
            spared -= read

    def makers_of(self, value: int, inside: set[int], readers: Mapping[int, Sequence[Node]]) -> list[int]:
        """Which layers make a value, or parts of it, that only the nodes that make other values read; none if others
        do."""
        tensor = self.made.get(value)
        if tensor is None or tensor.whole:
            return []
        # Under other shapes, too.
        same = {v for v, t in self.made.items() if t.name == tensor.name}
        behind = [node.outputs[0] for v in same for node in readers.get(v, ())]
        if not same.isdisjoint(self.graph.results) or not (same | inside).issuperset(behind):
            return []
        others = [x for x, maker in zip(self.layers, self.makers, strict=True) if maker not in inside]
        if any(t.name == tensor.name for layer in others for t in layer.inputs):
            return []
        return [i for i, layer in enumerate(self.layers) if layer.output.name == tensor.name]

    def drop(self, values: set[int]) -> None:
        """Leave out the layers of nodes that make these values, which nobody reads any more."""
        kept = [i for i, maker in enumerate(self.makers) if maker not in values]
        self.layers, self.makers = [self.layers[i] for i in kept], [self.makers[i] for i in kept]
        self.made = {value: tensor for value, tensor in self.made.items() if value not in values}

    def look_up(self, value: int, output: int, tensor: Tensor, layers: Mapping[int, Layer]) -> None:
        """Have layers, by their number, make the tensor of `output` instead of that of a value."""
        before = self.made[value].name
        self.made = {v: t for v, t in self.made.items() if t.name != before}
        self.made[output] = tensor
        self.here.add(output)
        for index, layer in layers.items():
            self.layers[index] = layer

    def view(self, node: Node) -> None:
        """Give what a layer makes another shape, or another scale."""
        assert node.inputs[0] is not None
        value = self.graph.values[node.outputs[0]]
        source = self.made[node.inputs[0]]
        q = value.type.quantization
        assert q
        self.made[node.outputs[0]] = dataclasses.replace(
            source, shape=value.type.shape, scale=q.scale, zero_point=q.zero_point
        )


class _Restart(Exception):
    """The view that makes `value` has to run on the CPU."""

    def __init__(self, value: int, reason: str) -> None:
        super().__init__(reason)
        self.value = value


@dataclass
class _Assignment:
    """One pass over the graph. Views in `kept_apart` run on the CPU: a layer needs their output in another layout."""

    graph: Graph
    network: Recentred
    """its twin, of which the layers are made"""
    config: AcceleratorConfig
    kept_apart: dict[int, str]
    """by the value that they make"""
    cuts: Cuts
    more_tables: bool = False
    """see `partition`"""
    tall: bool = False
    """see `partition`"""
    lacks_tables: bool = False
    """see `Partitioned`"""
    ended: set[int] = field(default_factory=set)
    """stages whose regions take no more layers"""
    regions: dict[int, _Region] = field(default_factory=dict)
    """by stage"""
    on_cpu: dict[int, list[Node]] = field(default_factory=dict)
    stage: dict[int, int] = field(default_factory=dict)
    """of each value: the earliest in which it can be read, on the side that makes it"""
    accelerated: set[int] = field(default_factory=set)
    """values that regions make"""
    renamed: dict[int, int] = field(default_factory=dict)
    """see `_Region`"""
    reasons: dict[int, str] = field(default_factory=dict)
    """why the node that makes a value first runs on the CPU"""

    def run(self) -> None:
        self._readers = readers = self.graph.readers()
        producers = self.network.graph.producers().items()
        self._producers = {value: node for value, node in producers if value not in self.network.reasons}
        self._pending = self._needed_tables()
        self._views = {n.outputs[0] for n in self.graph.nodes if OPERATORS.get(n.kind) and OPERATORS[n.kind].view}
        self._renamings = {n.outputs[0] for n in self.network.graph.nodes if is_renaming(n)}
        self._only_flat = {v for v in readers if self._is_only_flat(v)}
        for value in self.graph.sources:
            self.stage[value] = 0
        for node, twin in zip(self.graph.nodes, self.network.graph.nodes, strict=True):
            operands = self.graph.operands(node)
            self._pending.pop(node.outputs[0], None)
            try:
                self._accelerate(twin, operands)
            except Refusal as refusal:
                self._keep_apart(refusal, operands)
                self.reasons[node.outputs[0]] = str(refusal)
                stage = max((self.stage[v] + (v in self.accelerated) for v in operands), default=0)
                self.on_cpu.setdefault(stage, []).append(node)
                self.stage.update(dict.fromkeys(node.outputs, stage))

    def _is_only_flat(self, value: int) -> bool:
        """Whether only fully connected layers read a value, under whatever name."""
        return all(
            n.kind == "FULLY_CONNECTED" or (n.outputs[0] in self._renamings and self._is_only_flat(n.outputs[0]))
            for n in self._readers.get(value, ())
        )

    def _keep_apart(self, refusal: Refusal, operands: tuple[int, ...]) -> None:
        """Where a layout is in the way and a view made it, have the view run on the CPU instead: begin again."""
        if isinstance(refusal, LayoutConflict):
            candidates = [v for v in (refusal.value, *operands) if v in self._views and v in self.accelerated]
            if candidates:
                raise _Restart(candidates[0], str(refusal))

    def _accelerate(self, node: Node, operands: tuple[int, ...]) -> None:
        """Have an operator, given as the network's twin has it, run on the accelerator."""
        entry = OPERATORS.get(node.kind)
        if entry is None or node.operation.rounding not in entry.roundings:
            whose = " as ONNX Runtime computes it" if entry else ""
            raise Refusal(f"{node.kind}{whose} has no lowering")
        if node.outputs[0] in self.network.reasons:
            raise Refusal(self.network.reasons[node.outputs[0]])
        stage = max((self.stage[v] for v in operands), default=0)
        if node.outputs[0] in self._renamings and operands:
            if operands[0] not in self.accelerated:
                self.renamed[node.outputs[0]] = self.renamed.get(operands[0], operands[0])
                raise Refusal("the CPU reads it in another type")
            self.regions[stage].view(node)
        elif entry.view:
            if not operands or operands[0] not in self.accelerated:
                raise Refusal("reshape between CPU operators")
            if node.outputs[0] in self.kept_apart:
                raise Refusal(self.kept_apart[node.outputs[0]])
            entry.view(self.network.graph, node)
            self.regions[stage].view(node)
        else:
            assert entry.layer
            if node.outputs[0] in self.cuts.on_cpu:
                raise Refusal(self.cuts.on_cpu[node.outputs[0]])
            self.ended.update(self.stage[last] for last in self.cuts.after.get(node.outputs[0], ()))
            while stage in self.ended:
                stage += 1
            region = self.regions.get(stage) or _Region(
                self.network, self.config, self._only_flat, self.renamed, self.tall
            )
            if not self._look_up_before(node, region):
                made = self._layers(node, entry, region)
                if entry.follows and not self.accelerated.intersection(operands):
                    raise Refusal("no operand of it is on the accelerator")
                self.regions[stage] = region
                region.accept(node, made)
        self.stage.update(dict.fromkeys(node.outputs, stage))
        self.accelerated.update(node.outputs)

    def _needed_tables(self) -> dict[int, bytes]:
        """Tables of the nodes that the engine does in no other way, by the value that they make."""
        nodes = [
            node
            for node in self.network.graph.nodes
            if _is_table_only(node.kind) and node.outputs[0] not in self.network.reasons
        ]
        return {node.outputs[0]: found.table.entries for node in nodes if (found := self._function(node))}

    def _function(self, node: Node) -> OneValue | None:
        """The node as a function of one int8 value; None if it is none, or there are no tables."""
        try:
            return function_of_one_value(self.network.graph, node, self._producers) if self.config.tables else None
        except Refusal:
            return None

    def _has_room(self, node: Node, layers: Iterable[Layer], instead: Sequence[Layer] = ()) -> bool:
        """Whether the engine has tables for a node's layers, which take the place of others; where it could do without,
        for the nodes to come as well that are nothing but tables."""
        gone = {id(layer) for layer in instead}
        kept = [layer for region in self.regions.values() for layer in region.layers if id(layer) not in gone]
        tables = set(tables_of((*kept, *layers)))
        if not _is_table_only(node.kind):
            tables.update(self._pending.values())
        return len(tables) <= self.config.tables

    def _has_table(self, node: Node, layers: Iterable[Layer], instead: Sequence[Layer] = ()) -> bool:
        """As `_has_room`, of a node that the engine does in no other way: it may load its tables again."""
        if self.more_tables or self._has_room(node, layers, instead):
            return True
        self.lacks_tables = True
        return False

    def _look_up_before(self, node: Node, region: _Region) -> bool:
        """Have the layers that make the operand do the node's function, if nobody else reads what they make now."""
        found = self._function(node)
        if not found:
            return False
        spared = region.spared(found, node, self._readers)
        makers = region.makers_of(found.value, {node.outputs[0], *spared}, self._readers)
        if not makers:
            return False
        made, table = region.made[found.value], found.table
        tensor = output_tensor(self.network.graph, node, (made.rows, made.columns, made.channels))
        layers = {}
        for index in makers:
            before = region.layers[index]
            output = tensor
            if before.output.whole:
                output = dataclasses.replace(
                    before.output, name=tensor.name, scale=tensor.scale, zero_point=tensor.zero_point
                )
            alone = dataclasses.replace(table, scale=before.output.scale, zero_point=before.output.zero_point)
            then = before.table.then(table) if before.table else alone
            layers[index] = dataclasses.replace(before, output=output, table=then)
        gone = [x for i, x in enumerate(region.layers) if i in layers or region.makers[i] in spared]
        if not (self._has_room(node, layers.values(), gone) or (self.more_tables and self._needs_table(node, region))):
            return False
        region.look_up(found.value, node.outputs[0], tensor, layers)
        region.drop(spared)
        return True

    def _needs_table(self, node: Node, region: _Region) -> bool:
        """Whether the engine does a node in no other way."""
        if _is_table_only(node.kind):
            return True
        try:
            self._supported(OPERATORS[node.kind], node, region)
        except Refusal:
            return True
        return False

    def _layers(self, node: Node, entry: Operator, region: _Region) -> Made:
        """The layers of a node; raises `Refusal`. A function of one value is a table if nothing else is as fast."""
        assert entry.layer
        refusal: Refusal | None = None
        made = Made((), ())
        try:
            made = self._supported(entry, node, region)
        except LayoutConflict:
            raise
        except Refusal as error:
            refusal = error
        found = None if entry.layer is lookup_layer else self._function(node)
        if found and (refusal or not _is_fast(made)):
            looked_up = self._supported(_copying(found), node, region)
            has_room = self._has_table if refusal else self._has_room
            if has_room(node, looked_up.layers):
                region.drop(region.spared(found, node, self._readers))
                return looked_up
            if not refusal:
                made = self._supported(entry, node, region)
        if refusal:
            raise refusal
        if entry.layer is lookup_layer and not self._has_table(node, made.layers):
            raise Refusal(f"the engine's tables ({self.config.tables}) hold other functions")
        return made

    def _supported(self, entry: Operator, node: Node, region: _Region) -> Made:
        """What the operator table makes of a node, if the configuration can run it."""
        assert entry.layer
        region.offered = {}
        made = _made(entry.layer(self.network.graph, node, region))
        for layer in made.layers:
            reason = unsupported_reason(layer, self.config)
            if reason:
                raise Refusal(reason)
        return made


def _is_table_only(kind: str) -> bool:
    """Whether the engine does an operator in no other way."""
    entry = OPERATORS.get(kind)
    return entry is not None and entry.layer is lookup_layer


def _copying(function: OneValue) -> Operator:
    """A node as a copy of what it is a function of."""
    return Operator(layer=lambda graph, node, operands: copy_with_table(graph, node, operands, function))


def _is_fast(made: Made) -> bool:
    """Whether a function of one value takes no longer than a copy."""
    (layer, *others) = made.layers
    return not others and isinstance(layer, DepthwiseConv2D) and is_narrow(layer)


def _made(what: Layer | Sequence[Layer] | Made) -> Made:
    if isinstance(what, Made):
        return what
    layers = (what,) if isinstance(what, Layer) else tuple(what)
    return Made(layers, (layers[-1].output,))


def partition(
    graph: Graph,
    config: AcceleratorConfig,
    cuts: Cuts | None = None,
    *,
    more_tables: bool = False,
    tall: bool = False,
) -> Partitioned:
    """Split a network between accelerator and CPU; a network of other operators has no region.

    Sizes of memories do not matter here, but for `cuts`.

    Parameters
    ----------
    more_tables
        More functions than the engine has tables for run there, which then are loaded with parts.
    tall
        Sequences of vectors (`is_sequence`) that come from the CPU lie a vector a row, not all of them in one.
    """
    return _assemble(_assign(graph, config, cuts or Cuts(), more_tables, tall))


def is_sequence(shape: tuple[int, ...]) -> bool:
    """Whether a shape is that of several vectors, and no image."""
    return len(shape) in (2, 3) and math.prod(shape[:-1]) > 1


def _assign(
    graph: Graph, config: AcceleratorConfig, cuts: Cuts, more_tables: bool = False, tall: bool = False
) -> _Assignment:
    kept_apart: dict[int, str] = {}
    network = recentre(graph)
    while True:
        assignment = _Assignment(graph, network, config, kept_apart, cuts, more_tables, tall)
        try:
            assignment.run()
            return assignment
        except _Restart as restart:
            kept_apart[restart.value] = str(restart)


def _assemble(assignment: _Assignment) -> Partitioned:
    stages = []
    count = 0
    spared = _spared(assignment)
    for number in range(max(assignment.regions.keys() | assignment.on_cpu.keys(), default=-1) + 1):
        under_construction = assignment.regions.get(number)
        region = None
        if under_construction:
            region = _region(assignment, under_construction, number, f"region{count}")
            count += 1
        nodes = [n for n in assignment.on_cpu.get(number, ()) if n.outputs[0] not in spared]
        stages.append(Stage(tuple(nodes), region))
    operators = tuple(
        CpuOperator(node.name, node.kind.lower(), assignment.reasons[node.outputs[0]])
        for stage in stages
        for node in stage.nodes
        if node.outputs[0] not in assignment._views or node.outputs[0] in assignment.kept_apart
    )
    return Partitioned(
        assignment.graph,
        assignment.network.graph,
        tuple(stages),
        operators,
        assignment.cuts,
        assignment.lacks_tables,
    )


def _spared(assignment: _Assignment) -> set[int]:
    """Values under another name that only regions read, which take what they are made of: nobody has to make them."""
    read, spared = set(assignment.graph.results), set()
    for number in sorted(assignment.on_cpu, reverse=True):
        for node in reversed(assignment.on_cpu[number]):
            if node.outputs[0] in assignment.renamed and node.outputs[0] not in read:
                spared.add(node.outputs[0])
            else:
                read.update(assignment.graph.operands(node))
    return spared


def _region(assignment: _Assignment, region: _Region, number: int, name: str) -> Region:
    graph = assignment.graph

    def is_here(node: Node) -> bool:
        value = node.outputs[0]
        return value in assignment.accelerated and assignment.stage[value] == number

    wanted = set(graph.results)
    wanted.update(v for node in graph.nodes if not is_here(node) for v in graph.operands(node))
    outputs = tuple(value for value in region.made if value in wanted)
    tensors, copies, makers = [], [], list(region.makers)
    producers = graph.producers()
    for value in outputs:
        tensor = region.made[value]
        if tensor.whole:
            # The host reads whole tensors.
            part, tensor = (
                tensor,
                dataclasses.replace(tensor, name=graph.values[value].name, whole=None, origin=(0, 0, 0), column_step=1),
            )
            copies.append(copy_layer(tensor.name, part, tensor))
            makers.append(producers[value].outputs[0])
        tensors.append(dataclasses.replace(tensor, dtype=region.dtype(value)))
    layers = LayerGraph(
        name=name,
        inputs=tuple(region.inputs.values()),
        outputs=tuple(tensors),
        layers=(*region.layers, *copies),
    )
    return Region(layers, tuple(region.inputs), outputs, tuple(makers))
