"""RESHAPE, SQUEEZE and EXPAND_DIMS: the same bytes under another shape."""

from __future__ import annotations

from ..ir import Graph, Node
from .operator import Operator, Refusal, int8_type

__all__ = ["VIEW"]


def _view(graph: Graph, node: Node) -> None:
    source, source_q = int8_type(node.operation.inputs[0], "the operand")
    out, out_q = int8_type(node.operation.outputs[0], "the output")
    if source.elements != out.elements or source_q != out_q:
        raise Refusal("a reshape that changes values")


VIEW = Operator(view=_view, takes="another shape of the same bytes: no layer")
