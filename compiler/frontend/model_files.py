"""What messages call the files that nnloom reads."""

from __future__ import annotations

__all__ = ["MODEL_FILES"]

MODEL_FILES = "a .tflite, .onnx or .pt2 (torch.export) file"
