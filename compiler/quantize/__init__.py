"""Float models into int8 ones that other runtimes run, too: ONNX by ONNX Runtime's quantizer, TFLite by Google's."""

from __future__ import annotations

from .api import QuantizeResult, quantize

__all__ = ["QuantizeResult", "quantize"]
