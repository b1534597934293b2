"""Which operators have code in the library."""

from __future__ import annotations

from ..ir import Graph, Node
from .operator import read_kernel_op
from .softmax import softmax_of
from .tables import table_of

__all__ = ["VIEWS", "runs_in_library"]

VIEWS = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")
"""Operators that give bytes another shape"""


def runs_in_library(graph: Graph, node: Node) -> bool:
    """Whether a node is compiled into the library; else the library calls the reference for it."""
    return (
        node.kind in VIEWS
        or read_kernel_op(graph, node) is not None
        or softmax_of(node.operation) is not None
        or table_of(graph, node) is not None
    )
