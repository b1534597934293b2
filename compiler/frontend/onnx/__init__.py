"""ONNX files into the graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...ir import Graph
from .plan import Change, is_onnx, make_plan
from .reader import Reader

__all__ = ["Change", "is_onnx", "read_onnx"]


def read_onnx(
    path: str | Path, shapes: Mapping[str, tuple[int, ...]] | None = None, change: Change | None = None
) -> Graph:
    """Read an ONNX file.

    Parameters
    ----------
    shapes
        Of inputs, by name, where the file leaves them open.
    change
        What is done to the network before it is read.

    Raises
    ------
    ModelError
        If the file is missing, damaged, has open shapes, or ONNX Runtime refuses it.
    UnsupportedOperatorError
        If it has operators that nnloom has no route for.
    InputError
        If `shapes` does not fit the file.
    ToolMissingError
        If onnx or onnxruntime is not installed.
    """
    path = Path(path)
    return Reader(path, make_plan(path, shapes or {}, change)).read()
