"""Functions of one int8 value as tables: what the engine looks results up in before it writes them.

Any elementwise operator of one tensor, its other operands constant and the same for all channels, is such a function;
the reference answers for each of the 256 values. `nnloom.compiler.partition` has the layer before do the function where
nobody reads what is between, so that a chain of them takes no time; alone it is a copy.
"""

from __future__ import annotations

import dataclasses

from ..copies import copy_layer
from ..elementwise import ELEMENTWISE
from ..graph import Layer, Table
from ..ir import Graph, Node
from .operator import Operands, Operator, Refusal, int8_type, output_tensor
from .pointwise import function_of, operand_of

__all__ = ["LOOKUP", "lookup_layer", "table_of"]


def table_of(graph: Graph, node: Node) -> tuple[int, Table]:
    """The operand of a function of one int8 value, and its table.

    Raises
    ------
    Refusal
        If the node is none.
    """
    if node.kind not in ELEMENTWISE:
        raise Refusal(f"{node.kind} is no function of one value")
    index, answers, _ = function_of(graph, node)
    if (answers != answers[:, :1]).any():
        raise Refusal("a function for each channel")
    _, q = int8_type(graph.values[index].type, "the operand")
    return index, Table.of(answers[:, 0], q.scale, q.zero_point)


def lookup_layer(graph: Graph, node: Node, operands: Operands) -> Layer:
    """A copy whose results are looked up.

    Raises
    ------
    Refusal
        If the node is no function of one int8 value.
    """
    index, table = table_of(graph, node)
    source = operand_of(graph, operands, index, 1)
    output = output_tensor(graph, node, (source.rows, source.columns, source.channels))
    return dataclasses.replace(copy_layer(node.name, source, output), table=table)


LOOKUP = Operator(layer=lookup_layer, follows=True, takes="int8, as a table")
"""An operator that the engine does in no other way"""
