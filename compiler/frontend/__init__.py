"""Front ends: model files into the graph (`nnloom.compiler.ir`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nnloom.arch.errors import InputError
from nnloom.arch.extras import require

from ..ir import Graph

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from .onnx import Change

__all__ = ["read_model"]


Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of inputs by name, for files that leave them open"""


def read_model(
    path: str | Path | ExportedProgram,
    *,
    shapes: Shapes | None = None,
    watch: Callable[[str, Graph], None] = lambda step, graph: None,
    change: Change | None = None,
) -> Graph:
    """Read a model: a file, TFLite, ONNX or a program of PyTorch by its content, or such a program.

    Parameters
    ----------
    shapes
        Of inputs, by name, where an ONNX file leaves them open.
    watch
        Called with the name of each step, "read" and "simplify", and what it makes.
    change
        What is done to an ONNX network before it is read.

    Raises
    ------
    ModelError
        If the file is missing, of no known kind, damaged, or states what nnloom cannot compile.
    UnsupportedOperatorError
        If it has operators that nnloom has no route for; the message names all of them.
    InputError
        If `shapes` does not fit the file.
    ToolMissingError
        If a package that reads such files is not installed.
    """
    from ..simplify import simplify

    graph = _read(path, shapes, change)
    watch("read", graph)
    graph = simplify(graph)
    watch("simplify", graph)
    return graph


def _read(model: str | Path | ExportedProgram, shapes: Shapes | None, change: Change | None) -> Graph:
    from .onnx import is_onnx, read_onnx
    from .tflite import read_tflite
    from .torch import check_other_formats, exported, is_program

    if is_program(model):
        with exported(model) as file:
            return read_onnx(file, shapes, change)
    assert isinstance(model, str | Path)
    path = Path(model)
    check_other_formats(path)
    try:
        data = path.read_bytes() if path.is_file() else b""
    except OSError:
        data = b""  # the reader says why
    if path.suffix == ".onnx" or is_onnx(data):
        return read_onnx(path, shapes, change)
    require("compiler", "tflite")
    if shapes:
        raise InputError(f"{path}: shapes are given for inputs of ONNX models; a TFLite model has its own")
    return read_tflite(path)
