"""The float model that a network was made from, in the runtime of its format."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from numpy.typing import NDArray

__all__ = ["FloatModel", "is_tflite", "model_file", "open_float"]


class FloatModel(Protocol):
    """A float model that can run."""

    def run(self, *inputs: NDArray) -> list[NDArray]:
        """Outputs of an inference."""


@contextlib.contextmanager
def model_file(path: str | Path) -> Iterator[Path]:
    """The model as a file of LiteRT or ONNX Runtime, which a program of PyTorch is made into.

    Raises
    ------
    ModelError, ToolMissingError
    """
    from nnloom.compiler.frontend.torch import exported, is_program

    if not is_program(path):
        yield Path(path)
        return
    with exported(path) as file:
        yield file


def is_tflite(path: Path) -> bool:
    """Whether the file is one of TFLite."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(8)[4:] == b"TFL3"


@contextlib.contextmanager
def open_float(path: str | Path) -> Iterator[FloatModel]:
    """LiteRT with a .tflite file; ONNX Runtime with an .onnx file or a program of torch.export.

    Raises
    ------
    ModelError, ToolMissingError
    """
    from .litert import LiteRtReference
    from .onnx_runtime import OnnxRuntimeReference

    with model_file(path) as file:
        yield LiteRtReference(file) if is_tflite(file) or file.suffix == ".tflite" else OnnxRuntimeReference(file)
