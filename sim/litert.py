"""LiteRT with its reference kernels: what a network must answer, by code that is not ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import MODEL_FILE, ONNX_FILE, Artifact
from nnloom.arch.errors import ModelError, ToolMissingError
from nnloom.arch.report import Report

from .onnx_runtime import OnnxRuntimeReference

__all__ = ["LiteRtReference", "open_reference"]

_NOT_AMONG_THE_REFERENCES = ("unresolved custom op", "Didn't find op for builtin opcode")
"""Custom operators and newer versions that only LiteRT's usual kernels have."""


class LiteRtReference:
    """An interpreter of a TFLite file with BUILTIN_REF kernels that keeps every tensor.

    Raises
    ------
    ToolMissingError
        If ai-edge-litert is not installed.
    ModelError
        If LiteRT refuses the file.
    """

    name = "LiteRT's reference kernels"

    def __init__(self, path: Path) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter, OpResolverType
        except ImportError as error:
            raise ToolMissingError("LiteRT is not installed; pip install ai-edge-litert") from error

        def interpreter(kernels: Any) -> Any:
            return Interpreter(
                model_path=str(path),
                experimental_op_resolver_type=kernels,
                experimental_preserve_all_tensors=True,
                num_threads=1,
            )

        try:
            try:
                self._interpreter = interpreter(OpResolverType.BUILTIN_REF)
                self._interpreter.allocate_tensors()
            except (RuntimeError, ValueError) as error:
                if not any(text in str(error) for text in _NOT_AMONG_THE_REFERENCES):
                    raise
                self._interpreter = interpreter(OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
                self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(f"{path}: LiteRT refuses it ({line[:160]})") from error
        self._details = self._interpreter.get_tensor_details()

    def run(self, *inputs: NDArray) -> list[NDArray]:
        """Outputs of the network."""
        for detail, value in zip(self._interpreter.get_input_details(), inputs, strict=True):
            self._interpreter.set_tensor(detail["index"], value)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(d["index"]).copy() for d in self._interpreter.get_output_details()]

    def tensors(self) -> dict[str, NDArray]:
        """Every tensor of the last run that holds something, by name."""
        found = {}
        for detail in self._details:
            try:
                found[detail["name"]] = self._interpreter.get_tensor(detail["index"]).copy()
            except ValueError:  # LiteRT has not allocated it
                continue
        return found

    def candidates(self, elements: int, scale: float, zero_point: int) -> list[NDArray[np.int8]]:
        """Tensors of the last run with this size and quantization (usually one)."""
        found = []
        for detail in self._details:
            if detail["dtype"] is not np.int8 or int(np.prod(detail["shape"])) != elements:
                continue
            if detail["quantization"] == (np.float32(scale), zero_point):
                found.append(self._interpreter.get_tensor(detail["index"]).copy())
        return found

    def differences(self, inputs: Sequence[NDArray], outputs: Sequence[NDArray]) -> list[int]:
        """How many values of each output are not LiteRT's."""
        return [int((a != b).sum()) for a, b in zip(self.run(*inputs), outputs, strict=True)]


def open_reference(artifact: Artifact) -> tuple[LiteRtReference | OnnxRuntimeReference | None, str]:
    """LiteRT or ONNX Runtime with an artifact's model, or None and why it cannot be asked."""
    if ONNX_FILE in artifact.manifest.files:
        return _open_onnx(artifact)
    if MODEL_FILE not in artifact.manifest.files:
        return None, "the artifact does not hold its model"
    try:
        return LiteRtReference(artifact.path / MODEL_FILE), ""
    except (ModelError, ToolMissingError) as error:
        return None, str(error)


def _open_onnx(artifact: Artifact) -> tuple[OnnxRuntimeReference | None, str]:
    if not Report.load(artifact).values.get("exact", True):
        return None, "the report names operators that are not exact to ONNX Runtime"
    try:
        return OnnxRuntimeReference(artifact.path / ONNX_FILE), ""
    except (ModelError, ToolMissingError) as error:
        return None, str(error)
