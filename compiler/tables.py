"""A pass that makes one table of operators on one 8-bit value: x * clip(x + 3) / 6 is a function of x.

Networks in ONNX quantize each operator of such a chain by itself. What every value becomes, step by step, is asked of
the reference, so that the table has the chain's bits. What else reads a value in between keeps what makes it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.dtypes import ACTIVATION
from nnloom.arch.errors import InputError, UnsupportedOperatorError
from nnloom.arch.operation import Operation, TensorType
from nnloom.arch.reference import evaluate

from .elementwise import ELEMENTWISE
from .ir import Graph, Node, Value

__all__ = ["collapse"]

VALUES = np.arange(-128, 128).astype(np.int8)


@dataclass(frozen=True)
class _Function:
    """A value as a function of another."""

    root: int
    answers: NDArray
    """[256]: for the root's values from -128 on"""


def collapse(graph: Graph) -> Graph:
    """Replace operators with ONNX Runtime's rounding that depend on one int8 value alone by tables of it; nodes that
    nothing reads any more stay."""
    functions: dict[int, _Function] = {}
    values, nodes = list(graph.values), []
    for node in graph.nodes:
        function = _function(graph, node, functions)
        if function is not None:
            if any(i in functions for i in node.inputs if i is not None):
                node = _table(graph, node, function, values)
            functions[node.outputs[0]] = function
        nodes.append(node)
    return graph.replace_nodes(nodes, values)


def _function(graph: Graph, node: Node, functions: dict[int, _Function]) -> _Function | None:
    """A node's output as a function of one int8 value; None if it is none."""
    op = node.operation
    if op.rounding != "onnx" or (node.kind not in ELEMENTWISE and node.kind != "TABLE"):
        return None
    if len(op.outputs) != 1 or op.outputs[0].dtype != ACTIVATION:
        return None
    roots = {functions[i].root if i in functions else i for i in graph.operands(node)}
    if len(roots) != 1:
        return None
    (root,) = roots
    if graph.values[root].type.dtype != ACTIVATION or graph.values[root].type.shape != op.outputs[0].shape:
        return None
    operands, types = [], []
    for index, t in zip(node.inputs, op.inputs, strict=True):
        assert index is not None and t is not None
        data = graph.constant(index)
        if data is None:
            data = functions[index].answers if index in functions else VALUES
        elif node.kind == "TABLE":
            pass
        elif data.size != 1:
            return None
        else:
            data = data.reshape(1)
        operands.append(data)
        types.append(TensorType(data.shape, t.dtype, t.quantization))
    out = TensorType(VALUES.shape, op.outputs[0].dtype, op.outputs[0].quantization)
    try:
        (answers,) = evaluate(dataclasses.replace(op, inputs=tuple(types), outputs=(out,)), operands)
    except (InputError, UnsupportedOperatorError):
        return None
    return _Function(root, answers)


def _table(graph: Graph, node: Node, function: _Function, values: list[Value]) -> Node:
    """The node as a table of the root."""
    out = node.operation.outputs[0]
    constant = TensorType((256,), out.dtype)
    values.append(Value(f"{node.name} (table)", constant, function.answers))
    types = graph.values[function.root].type, constant
    operation = Operation("TABLE", types, (out,), {}, "onnx")
    return Node(node.name, operation, (function.root, len(values) - 1), node.outputs)
