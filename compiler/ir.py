"""The graph: a network as its file states it, operator by operator.

Front ends make it, passes rewrite it, the partitioner and the CPU code read it. Values are known by index: names are
for people, and made unique where a file repeats or omits them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import TensorInfo
from nnloom.arch.dtypes import held_as
from nnloom.arch.operation import Operation, TensorType

__all__ = ["Graph", "Node", "State", "Value"]


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the graph."""

    name: str
    type: TensorType
    data: NDArray | None = field(default=None, repr=False)
    """the values of a constant"""


@dataclass(frozen=True, eq=False)
class Node:
    """An operator: values in, values out."""

    name: str
    operation: Operation
    inputs: tuple[int | None, ...]
    """values by index, None where an optional operand is left out"""
    outputs: tuple[int, ...]

    @property
    def kind(self) -> str:
        return self.operation.kind


@dataclass(frozen=True, eq=False)
class State:
    """What lasts from run to run: a resource variable, or a variable tensor.

    Reads and writes are no nodes: who reads a state reads the value that holds it at that moment.
    """

    name: str
    read: int
    """the value that holds it as a run begins; nothing makes it"""
    written: int
    """the value that holds it as the run ends"""
    initial: NDArray = field(repr=False)
    """what it holds before the first run"""


@dataclass(frozen=True, eq=False)
class Graph:
    """A network. Nodes are in an order in which they can run."""

    name: str
    sha256: str
    """of the model file"""
    values: tuple[Value, ...]
    nodes: tuple[Node, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    states: tuple[State, ...] = ()
    format: str = "tflite"
    """of the model file: tflite or onnx"""
    permutations: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """of inputs and outputs that are held with their axes in another order than in the file: which of the file's axes
    each of the value's is"""
    prepared: bytes | None = field(default=None, repr=False)
    """the model as it was read, if the file was changed first"""

    @property
    def sources(self) -> tuple[int, ...]:
        """What a run begins with: inputs, then states."""
        return (*self.inputs, *(state.read for state in self.states))

    @property
    def results(self) -> tuple[int, ...]:
        """What a run ends with: outputs, then the new values of states."""
        return (*self.outputs, *(state.written for state in self.states))

    def constant(self, index: int | None) -> NDArray | None:
        """The data of a constant value, None for others and for operands that are left out."""
        return None if index is None else self.values[index].data

    def operands(self, node: Node) -> tuple[int, ...]:
        """Values that a node computes with, without constants."""
        return tuple(i for i in node.inputs if i is not None and self.values[i].data is None)

    def readers(self) -> dict[int, list[Node]]:
        """Nodes that read each value, in order."""
        result: dict[int, list[Node]] = {}
        for node in self.nodes:
            for index in dict.fromkeys(self.operands(node)):
                result.setdefault(index, []).append(node)
        return result

    def producers(self) -> dict[int, Node]:
        """The node that makes each value; network inputs and constants have none."""
        return {index: node for node in self.nodes for index in node.outputs}

    def input_infos(self) -> tuple[TensorInfo, ...]:
        """The network's inputs as a user sees them; a float one with the quantization of the QUANTIZE that reads it."""
        readers = self.readers()
        result = []
        for index in self.inputs:
            behind = [n for n in readers.get(index, []) if n.kind == "QUANTIZE"]
            result.append(self._info(index, (node.outputs[0] for node in behind)))
        return _with_unique_names(result)

    def output_infos(self) -> tuple[TensorInfo, ...]:
        """The network's outputs as a user sees them; a float one with the quantization of its DEQUANTIZE."""
        producers = self.producers()
        result = []
        for index in self.outputs:
            node = producers.get(index)
            before = self.operands(node) if node and node.kind == "DEQUANTIZE" else ()
            result.append(self._info(index, before))
        return _with_unique_names(result)

    def state_infos(self) -> tuple[TensorInfo, ...]:
        """The network's states as a user sees them."""
        infos = (dataclasses.replace(self._info(s.read, ()), name=s.name) for s in self.states)
        return _with_unique_names(list(infos))

    def _info(self, index: int, neighbours: Iterable[int]) -> TensorInfo:
        value = self.values[index]
        q = value.type.quantization
        if value.type.dtype == "float32":
            q = next((self.values[i].type.quantization for i in neighbours), None)
        scale, zero_point = (q.scale, q.zero_point) if q and q.is_per_tensor else (0.0, 0)
        axes = self.permutations.get(index, ())
        shape = value.type.shape
        return TensorInfo(
            name=value.name,
            shape=tuple(shape[axes.index(i)] for i in range(len(axes))) if axes else shape,
            dtype=value.type.dtype,
            scale=scale,
            zero_point=zero_point,
            permutation=axes,
        )

    def replace_nodes(self, nodes: Iterable[Node], values: Iterable[Value] | None = None) -> Graph:
        """The same network with other nodes, and other values if given."""
        return dataclasses.replace(self, nodes=tuple(nodes), values=self.values if values is None else tuple(values))


def _with_unique_names(infos: list[TensorInfo]) -> tuple[TensorInfo, ...]:
    """A tensor may be an output twice: the second gets a number."""
    used: set[str] = set()
    result = []
    for info in infos:
        name, number = info.name, 1
        while name in used:
            name, number = f"{info.name}:{number}", number + 1
        used.add(name)
        result.append(dataclasses.replace(info, name=name))
    return tuple(result)


def checked_data(values: NDArray, value_type: TensorType) -> NDArray:
    """`values` in the shape and type that a constant states.

    Raises
    ------
    ValueError
        If there are more or fewer.
    """
    dtype = np.dtype(held_as(value_type.dtype))
    if values.size != value_type.elements or values.dtype != dtype:
        raise ValueError(f"constant of {values.size} {values.dtype} instead of {value_type.elements} {dtype}")
    return np.ascontiguousarray(values).reshape(value_type.shape)
