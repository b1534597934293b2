"""Front ends: model files into the graph (`nnloom.compiler.ir`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..ir import Graph

__all__ = ["read_model"]


def read_model(path: str | Path, *, watch: Callable[[str, Graph], None] = lambda step, graph: None) -> Graph:
    """Read a model file.

    Parameters
    ----------
    watch
        Called with the name of each step, "read" and "simplify", and what it makes.

    Raises
    ------
    ModelError
        If the file is missing, of no known kind, damaged, or states what nnloom cannot compile.
    UnsupportedOperatorError
        If it has operators that nnloom has no route for; the message names all of them.
    ToolMissingError
        If a package that reads such files is not installed.
    """
    from ..simplify import simplify
    from .tflite import read_tflite

    graph = read_tflite(path)
    watch("read", graph)
    graph = simplify(graph)
    watch("simplify", graph)
    return graph
