"""What runs around the regions, written down in the artifact: see `nnloom.arch.artifact.HostPlan`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from numpy.typing import NDArray

from nnloom.arch.artifact import HostPlan, HostStep

from .ir import Graph, Node
from .partition import Partitioned

__all__ = ["PlannedHost", "plan_host"]


@dataclass(frozen=True)
class PlannedHost:
    """The plan, its constants in the order of their numbers, and the step of each node on the CPU."""

    plan: HostPlan
    constants: tuple[NDArray, ...]
    steps: dict[Node, int]


def plan_host(partitioned: Partitioned) -> PlannedHost:
    """The partitioned network as a list of steps."""
    graph = partitioned.graph
    numbers = {value: i for i, value in enumerate(graph.inputs)}
    count = len(graph.inputs)
    on_cpu = [node for stage in partitioned.stages for node in stage.nodes]
    constants: list[NDArray] = []
    for value in _constants(graph, on_cpu):
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
            steps.append(HostStep(inputs=inputs, operation=node.operation))
            number_outputs(node.outputs)
        if stage.region:
            steps.append(HostStep(inputs=tuple(numbers[i] for i in stage.region.inputs), region=regions))
            regions += 1
            number_outputs(stage.region.outputs)
    plan = HostPlan(steps=tuple(steps), outputs=tuple(numbers[i] for i in graph.outputs), constants=len(constants))
    return PlannedHost(plan, tuple(constants), of_node)


def _constants(graph: Graph, nodes: Iterable[Node]) -> list[int]:
    """Constants that nodes read, or that are outputs of the network."""
    read = [i for node in nodes for i in node.inputs if i is not None]
    return list(dict.fromkeys(i for i in (*read, *graph.outputs) if graph.values[i].data is not None))
