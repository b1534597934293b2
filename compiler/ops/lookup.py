"""Functions of one int8 value as tables: what the engine looks results up in before it writes them.

Any elementwise operator of one tensor, its other operands constant and the same for all channels, is such a function;
so is one of two tensors that both are functions of the same one. The reference answers for each of the 256 values.
`nnloom.compiler.partition` has the layer before do the function where nobody reads what is between, so that a chain of
them takes no time; alone it is a copy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.errors import InputError, UnsupportedOperatorError
from nnloom.arch.operation import TensorType
from nnloom.arch.reference import evaluate

from ..affine import VALUES
from ..copies import copy_layer
from ..elementwise import BINARY, ELEMENTWISE
from ..graph import Layer, Table
from ..ir import Graph, Node
from .operator import Operands, Operator, Refusal, int8_type, output_tensor
from .pointwise import function_of, operand_of

__all__ = [
    "LOOKUP",
    "SQUARED_DIFFERENCE",
    "OneValue",
    "copy_with_table",
    "function_of_one_value",
    "lookup_layer",
    "table_of",
]


def table_of(graph: Graph, node: Node) -> tuple[int, Table]:
    """The operand of a function of one int8 value, and its table.

    Raises
    ------
    Refusal
        If the node is none.
    """
    if node.kind == "TABLE":
        return _given(graph, node)
    if node.kind not in ELEMENTWISE:
        raise Refusal(f"{node.kind} is no function of one value")
    if node.kind == "SQUARED_DIFFERENCE" and len(graph.operands(node)) == 2:
        raise Refusal("the difference of two tensors has more than eight bits before it is squared")
    index, answers, _ = function_of(graph, node)
    if (answers != answers[:, :1]).any():
        raise Refusal("a function for each channel")
    _, q = int8_type(graph.values[index].type, "the operand")
    return index, Table.of(answers[:, 0], q.scale, q.zero_point, (node.kind,))


def _given(graph: Graph, node: Node) -> tuple[int, Table]:
    """The table of a TABLE."""
    index, entries = node.inputs[0], graph.constant(node.inputs[1])
    _, q = int8_type(node.operation.inputs[0], "the operand")
    int8_type(node.operation.outputs[0], "the output")
    if index is None or entries is None or entries.dtype != np.int8:
        raise Refusal("the table is not constant")
    return index, Table.of(entries, q.scale, q.zero_point, (node.kind,))


@dataclass(frozen=True)
class OneValue:
    """A node as a function of one int8 value."""

    value: int
    """of the graph"""
    table: Table
    between: tuple[Node, ...] = ()
    """nodes that make its operands of the value"""


def function_of_one_value(graph: Graph, node: Node, producers: Mapping[int, Node]) -> OneValue:
    """What a node computes from one int8 value: also one of two tensors that both come from the same one.

    x * RELU6(x + 3) / 6, say, as exporters write HARD_SWISH.

    Raises
    ------
    Refusal
        If it is no such function.
    """
    if node.kind not in BINARY or len(graph.operands(node)) != 2:
        return OneValue(*table_of(graph, node))
    out, _ = int8_type(node.operation.outputs[0], "the output")
    types = [int8_type(t, "an operand")[0] for t in node.operation.inputs]
    if any(t.shape != out.shape for t in types):
        raise Refusal("operands of several shapes")
    a, b = (list(_origins(graph, index, producers)) for index in graph.operands(node))
    common = [(x, y) for x in a for y in b if x.value == y.value]
    if not common:
        raise Refusal("operands of several origins")
    (value, before, left), (_, other, right) = ((o.value, o.answers, o.between) for o in common[0])
    shape = before.shape
    flat = dataclasses.replace(
        node.operation,
        inputs=tuple(TensorType(shape, t.dtype, t.quantization) for t in types),
        outputs=(TensorType(shape, out.dtype, out.quantization),),
    )
    try:
        (answers,) = evaluate(flat, [before, other])
    except (InputError, UnsupportedOperatorError) as error:
        raise Refusal(str(error)) from error
    _, q = int8_type(graph.values[value].type, "the operand")
    between = tuple({n.outputs[0]: n for n in (*left, *right)}.values())
    kinds = (*(n.kind for n in reversed(between)), node.kind)
    return OneValue(value, Table.of(answers, q.scale, q.zero_point, kinds), between)


@dataclass(frozen=True)
class _Origin:
    value: int
    answers: NDArray[np.int8]
    """what becomes of each of its values"""
    between: tuple[Node, ...]


def _origins(graph: Graph, value: int, producers: Mapping[int, Node]) -> Iterator[_Origin]:
    """The values that a value is a function of, itself first."""
    origin = _Origin(value, VALUES.astype(np.int8), ())
    while True:
        yield origin
        node = producers.get(origin.value)
        if node is None or len(graph.operands(node)) != 1:
            return
        try:
            index, table = table_of(graph, node)
        except Refusal:
            return
        before = np.roll(table.values, 128)
        origin = _Origin(index, origin.answers[before.astype(np.int64) + 128], (*origin.between, node))


def lookup_layer(graph: Graph, node: Node, operands: Operands) -> Layer:
    """A copy whose results are looked up.

    Raises
    ------
    Refusal
        If the node is no function of one int8 value.
    """
    return copy_with_table(graph, node, operands, OneValue(*table_of(graph, node)))


def copy_with_table(graph: Graph, node: Node, operands: Operands, function: OneValue) -> Layer:
    """A copy of the value that a node is a function of."""
    source = operand_of(graph, operands, function.value, 1)
    output = output_tensor(graph, node, (source.rows, source.columns, source.channels))
    return dataclasses.replace(copy_layer(node.name, source, output), table=function.table)


LOOKUP = Operator(layer=lookup_layer, follows=True, takes="int8, as a table", roundings=("tflite", "onnx"))
"""An operator that the engine does in no other way"""
SQUARED_DIFFERENCE = dataclasses.replace(LOOKUP, takes="int8 and a constant, as a table")
"""Of two tensors it is not exact on the engine: what LiteRT squares is a difference in steps of a 128th of the greater
scale, and even of equal scales one of nine bits; SUB gives eight."""
