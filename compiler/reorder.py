"""A pass that has fully connected layers make their outputs in the order in which they are read.

Decoders begin with a vector that is then seen as an image with channels first. For channels last its values change
places, which is a layer with as many weights as the square of its length; the rows of the layer's weights may as well
be in that order from the beginning. The same bits, and no layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.operation import TensorType

from .ir import Graph, Node, Value

__all__ = ["reordered_products"]

_VIEWS = frozenset(("EXPAND_DIMS", "RESHAPE", "SQUEEZE"))
_ALONE = frozenset(
    (
        *("ABS", "ELU", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "NEG", "QUANTIZE", "TABLE", "TANH"),
        *("RELU", "RELU6", "RELU_0_TO_1", "RELU_N1_TO_1"),
    )
)
"""Operators that compute each value of their one operand by itself, in the same way"""


def reordered_products(graph: Graph) -> Graph:
    """Put the order that a TRANSPOSE makes of a fully connected layer's outputs into its weights."""
    for transpose in [node for node in graph.nodes if node.kind == "TRANSPOSE"]:
        chain = _chain(graph, transpose)
        if chain:
            graph = _reordered(graph, transpose, chain)
    return graph


def _chain(graph: Graph, transpose: Node) -> list[Node]:
    """The nodes from a fully connected layer of one row to a transposition that nothing else reads; none if there are
    others."""
    producers, readers = graph.producers(), graph.readers()
    kept = {*graph.results, *graph.sources}
    chain: list[Node] = []
    value = transpose.inputs[0]
    if graph.constant(transpose.inputs[1]) is None:
        return []
    while value is not None and value not in kept and len(readers[value]) == 1:
        node = producers.get(value)
        if node is None or len(node.outputs) != 1:
            return []
        chain.append(node)
        if node.kind == "FULLY_CONNECTED":
            return chain[::-1] if _one_row(graph, node) else []
        if node.kind not in _VIEWS and not (node.kind in _ALONE and _per_tensor(node)):
            return []
        (value,) = graph.operands(node) or (None,)
    return []


def _per_tensor(node: Node) -> bool:
    types = [t for t in (*node.operation.inputs[:1], *node.operation.outputs) if t is not None]
    return all(t.quantization is None or t.quantization.is_per_tensor for t in types)


def _one_row(graph: Graph, node: Node) -> bool:
    constants = [graph.constant(i) is not None for i in node.inputs[1:] if i is not None]
    weights = node.operation.inputs[1]
    return all(constants) and weights is not None and weights.shape[0] == node.operation.outputs[0].elements


def _reordered(graph: Graph, transpose: Node, chain: list[Node]) -> Graph:
    source, out = transpose.operation.inputs[0], transpose.operation.outputs[0]
    axes = graph.constant(transpose.inputs[1])
    assert source is not None and axes is not None
    places = np.arange(source.elements).reshape(source.shape).transpose(axes.reshape(-1)).reshape(-1)
    values = list(graph.values)
    renamed: dict[int, Node] = {}
    for node in chain:
        (index,) = node.outputs
        values[index] = dataclasses.replace(values[index], name=f"{values[index].name} (reordered)")
        renamed[index] = dataclasses.replace(node, name=f"{node.name} (reordered)")
    product = renamed[chain[0].outputs[0]]
    inputs, types = list(product.inputs), list(product.operation.inputs)
    for position in (i for i in range(1, len(inputs)) if inputs[i] is not None):
        value = _rows(values[inputs[position]], places)  # type: ignore[index]
        inputs[position], types[position] = len(values), value.type
        values.append(value)
    operation = dataclasses.replace(product.operation, inputs=tuple(types))
    renamed[chain[0].outputs[0]] = dataclasses.replace(product, operation=operation, inputs=tuple(inputs))
    view = dataclasses.replace(transpose.operation, kind="RESHAPE", inputs=(source,), outputs=(out,), options={})
    renamed[transpose.outputs[0]] = Node(transpose.name, view, transpose.inputs[:1], transpose.outputs)
    return graph.replace_nodes([_of(node, renamed) for node in graph.nodes], values)


def _of(node: Node, renamed: Mapping[int, Node]) -> Node:
    return renamed.get(node.outputs[0], node) if node.outputs else node


def _rows(value: Value, places: NDArray[np.int64]) -> Value:
    """Weights or biases with their rows in another order."""
    assert value.data is not None
    t = value.type
    if t.quantization is not None and not t.quantization.is_per_tensor:
        q = t.quantization
        scales = tuple(q.scales[int(i)] for i in places)
        q = dataclasses.replace(q, scales=scales, zero_points=tuple(q.zero_points[int(i)] for i in places))
        t = TensorType(t.shape, t.dtype, q)
    return Value(f"{value.name} (reordered)", t, value.data.reshape(len(places), -1)[places].reshape(value.data.shape))
