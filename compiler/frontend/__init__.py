"""Front ends: model files into the graph (`nnloom.compiler.ir`)."""

from __future__ import annotations

from pathlib import Path

from ..ir import Graph

__all__ = ["read_model"]


def read_model(path: str | Path) -> Graph:
    """Read a model file.

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

    return simplify(read_tflite(path))
