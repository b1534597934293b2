"""Elementwise operators on 8-bit values as tables: what the reference answers for each value, or pair of values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.dtypes import EIGHT_BITS
from nnloom.arch.errors import InputError, UnsupportedOperatorError
from nnloom.arch.operation import TensorType
from nnloom.arch.reference import evaluate

from ..elementwise import BINARY, ELEMENTWISE, UNARY
from ..ir import Graph, Node

__all__ = ["ELEMENTWISE", "Table", "table_of"]

VALUES = 256


@dataclass(frozen=True)
class Table:
    """An elementwise operator: a TE function of its operands and the table."""

    function: Callable[..., Any]
    values: NDArray
    """[256], or [65536] by the first operand, then the second; of the output's type"""
    operands: tuple[int, ...]
    """values of the graph, constants among them"""


def table_of(graph: Graph, node: Node) -> Table | None:
    """The operator as a table; None if it is not elementwise on 8-bit values, not defined for all, or not known."""
    op = node.operation
    if node.kind == "TABLE":
        return _given(graph, node)
    operands = tuple(i for i in node.inputs if i is not None)
    count = 1 if node.kind in UNARY else 2 if node.kind in BINARY else 0
    types = [graph.values[i].type for i in operands]
    per_tensor = all(t.quantization is None or t.quantization.is_per_tensor for t in (*types, op.outputs[0]))
    if len(operands) != count or not per_tensor or any(t.dtype not in EIGHT_BITS for t in types):
        return None
    grid = [np.arange(np.iinfo(t.dtype).min, np.iinfo(t.dtype).max + 1).astype(t.dtype) for t in types]
    points = grid if count == 1 else [np.repeat(grid[0], VALUES), np.tile(grid[1], VALUES)]
    shape = points[0].shape
    flat = dataclasses.replace(
        op,
        inputs=tuple(TensorType(shape, t.dtype, t.quantization) for t in types),
        outputs=(TensorType(shape, op.outputs[0].dtype, op.outputs[0].quantization),),
    )
    try:
        (values,) = evaluate(flat, points)
    except (InputError, UnsupportedOperatorError):
        return None
    lowest = [int(g[0]) for g in grid]
    return Table(_lookup(op.outputs[0].shape, lowest), values, operands)


def _given(graph: Graph, node: Node) -> Table | None:
    """The table of a TABLE; None if it is computed."""
    source, entries = node.inputs[0], graph.constant(node.inputs[1])
    if source is None or entries is None or entries.shape != (VALUES,):
        return None
    lowest = int(np.iinfo(graph.values[source].type.dtype).min)
    return Table(_lookup(node.operation.outputs[0].shape, [lowest]), entries, (source,))


def _lookup(shape: tuple[int, ...], lowest: list[int]) -> Callable[..., Any]:
    def function(*arguments: Any) -> Any:
        from tvm import te, topi

        *operands, table = arguments
        operands = [topi.broadcast_to(x, shape) for x in operands]

        def element(*index: Any) -> Any:
            position = 0
            for x, low in zip(operands, lowest, strict=True):
                position = position * VALUES + (x(*index).astype("int32") - low)
            return table[position]

        return te.compute(shape, element, name="looked_up")

    return function
