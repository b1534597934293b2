"""RESHAPE, SQUEEZE and EXPAND_DIMS: the same bytes under another shape, or with another scale (x / 6, say)."""

from __future__ import annotations

from ..ir import Graph, Node
from .operator import Operator, int8_type

__all__ = ["VIEW"]


def _view(graph: Graph, node: Node) -> None:
    source, _ = int8_type(node.operation.inputs[0], "the operand")
    out, _ = int8_type(node.operation.outputs[0], "the output")
    assert source.elements == out.elements


VIEW = Operator(view=_view, takes="another shape of the same bytes: no layer")
