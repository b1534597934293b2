"""Passes that make the graph smaller without changing a bit: constants and data movement folded, dead nodes dropped.

Exporters compute the shape of a RESHAPE at run time (SHAPE, STRIDED_SLICE, PACK) even where every dimension is fixed.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from nnloom.arch.errors import InputError, UnsupportedOperatorError
from nnloom.arch.reference import evaluate

from .folding import fold
from .ir import Graph, Node, Value
from .reorder import reordered_products
from .tables import collapse

__all__ = ["needed_nodes", "simplify"]

_SHAPE_OPERANDS = {"RESHAPE": 1, "SQUEEZE": 1, "EXPAND_DIMS": 1}
"""Operators whose output shape is all that counts, and how many of their operands carry values."""


def simplify(graph: Graph) -> Graph:
    """Fold constants and data movement, drop operands and nodes that nothing depends on."""
    values = list(graph.values)
    nodes = []
    for node in graph.nodes:
        node = _without_shape_operands(node)
        folded = _fold(node, values)
        if folded is None:
            nodes.append(node)
        else:
            for index, value in zip(node.outputs, folded, strict=True):
                values[index] = value
    folded_graph = fold(collapse(graph.replace_nodes(nodes, values)))
    return reordered_products(folded_graph.replace_nodes(needed_nodes(graph.results, list(folded_graph.nodes))))


def _without_shape_operands(node: Node) -> Node:
    count = _SHAPE_OPERANDS.get(node.kind)
    if count is None:
        return node
    operation = dataclasses.replace(node.operation, inputs=node.operation.inputs[:count])
    return dataclasses.replace(node, operation=operation, inputs=node.inputs[:count])


def _fold(node: Node, values: list[Value]) -> list[Value] | None:
    """The outputs of a node that depends on constants only; None if it does not, or is not known."""
    if node.kind == "SHAPE" and node.inputs[0] is not None:
        shape = values[node.inputs[0]].type.shape
        out = values[node.outputs[0]]
        return [dataclasses.replace(out, data=np.array(shape, out.type.dtype))]
    operands = [None if i is None else values[i].data for i in node.inputs]
    if any(i is not None and data is None for i, data in zip(node.inputs, operands, strict=True)):
        return None
    try:
        results = evaluate(node.operation, operands)
    except (InputError, UnsupportedOperatorError):
        return None  # stays a node: it is refused or compiled like any other
    return [dataclasses.replace(values[i], data=data) for i, data in zip(node.outputs, results, strict=True)]


def needed_nodes(results: tuple[int, ...], nodes: list[Node]) -> list[Node]:
    """Those that results depend on, in order."""
    wanted = set(results)
    result = []
    for node in reversed(nodes):
        if wanted.intersection(node.outputs):
            wanted.update(i for i in node.inputs if i is not None)
            result.append(node)
    return result[::-1]
