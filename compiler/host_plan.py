"""What runs around the regions, written down in the artifact: see `nnloom.arch.artifact.HostPlan`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from numpy.typing import NDArray

from nnloom.arch.artifact import GIVEN, HostPlan, HostStep

from .cpu.coverage import runs_in_library
from .ir import Graph, Node
from .partition import Partitioned

__all__ = ["PlannedHost", "plan_host"]


@dataclass(frozen=True)
class PlannedHost:
    """The plan, its constants in the order of their numbers, and the step of each node that the library calls back
    for: those on the CPU, then those of regions."""

    plan: HostPlan
    constants: tuple[NDArray, ...]
    steps: dict[Node, int]


def plan_host(partitioned: Partitioned) -> PlannedHost:
    """The partitioned network as a list of steps."""
    graph = partitioned.graph
    numbers = {value: i for i, value in enumerate(graph.sources)}
    count = len(graph.sources)
    on_cpu = dict.fromkeys(node for stage in partitioned.stages for node in stage.nodes)
    inside = [node for node in graph.nodes if node not in on_cpu and not runs_in_library(graph, node)]
    constants: list[NDArray] = []
    for value in _constants(graph, (*on_cpu, *inside)):
        numbers[value] = count + len(constants)
        data = graph.values[value].data
        assert data is not None
        constants.append(data)
    count += len(constants)
    steps: list[HostStep] = []
    of_node: dict[Node, int] = {}

    def number_outputs(values: Iterable[int]) -> None:
        nonlocal count
        for value in values:
            numbers[value] = count
            count += 1

    regions = 0
    for stage in partitioned.stages:
        for node in stage.nodes:
            of_node[node] = len(steps)
            inputs = tuple(None if i is None else numbers[i] for i in node.inputs)
            names = tuple(graph.values[i].name for i in node.outputs)
            steps.append(HostStep(inputs=inputs, operation=node.operation, names=names))
            number_outputs(node.outputs)
        if stage.region:
            steps.append(HostStep(inputs=tuple(numbers[i] for i in stage.region.inputs), region=regions))
            regions += 1
            number_outputs(stage.region.outputs)
    of_node |= {node: len(steps) + i for i, node in enumerate(inside)}
    plan = HostPlan(
        steps=tuple(steps),
        outputs=tuple(numbers[i] for i in graph.outputs),
        states=tuple(numbers[state.written] for state in graph.states),
        constants=len(constants),
        inside=tuple(HostStep(inputs=_within(graph, node, numbers), operation=node.operation) for node in inside),
    )
    return PlannedHost(plan, tuple(constants), of_node)


def _within(graph: Graph, node: Node, numbers: Mapping[int, int]) -> tuple[int | None, ...]:
    """Operands of a node in a region: constants by number."""
    return tuple(None if i is None else GIVEN if graph.constant(i) is None else numbers[i] for i in node.inputs)


def _constants(graph: Graph, nodes: Iterable[Node]) -> list[int]:
    """Constants that nodes read, or with which a run ends."""
    read = [i for node in nodes for i in node.inputs if i is not None]
    return list(dict.fromkeys(i for i in (*read, *graph.results) if graph.values[i].data is not None))
