"""ONNX Runtime: what an ONNX network must answer, by code that is not ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from numpy.typing import NDArray

from nnloom.arch.errors import ModelError, ToolMissingError
from nnloom.arch.reference.onnx import ONNX_RUNTIME_SETTINGS

__all__ = ["OnnxRuntimeReference"]


class OnnxRuntimeReference:
    """A session of ONNX Runtime's CPU kernels.

    Raises
    ------
    ToolMissingError
        If onnxruntime is not installed.
    ModelError
        If it refuses the file.
    """

    name = "ONNX Runtime"

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise ToolMissingError("onnxruntime is not installed; pip install 'nnloom[onnx]'") from error
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        for key, value in ONNX_RUNTIME_SETTINGS.items():
            options.add_session_config_entry(key, value)
        try:
            self._session = ort.InferenceSession(path.read_bytes(), options, ["CPUExecutionProvider"])
        except Exception as error:  # of ONNX Runtime's many kinds
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(f"{path}: ONNX Runtime refuses it ({line[:160]})") from error

    def run(self, *inputs: NDArray) -> list[NDArray]:
        """Outputs of the network."""
        names = [i.name for i in self._session.get_inputs()]
        return self._session.run(None, dict(zip(names, inputs, strict=True)))

    def differences(self, inputs: Sequence[NDArray], outputs: Sequence[NDArray]) -> list[int]:
        """How many values of each output are not ONNX Runtime's."""
        return [int((a != b).sum()) for a, b in zip(self.run(*inputs), outputs, strict=True)]
