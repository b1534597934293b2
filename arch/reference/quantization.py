"""QUANTIZE and DEQUANTIZE."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..numerics import multiply_by_factor, split_factor, wrap_int32
from ..operation import Operation, TensorType
from .support import LIMITS, operand, parameters, refuse, require_types, round_half_away, saturate, to_int32

__all__ = ["dequantize", "quantize"]


def quantize(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Real values to integers, or integers to those of another quantization."""
    dtype = require_types(op, 0, "float32", "int8", "uint8", "int16")
    out = op.outputs[0]
    if out.dtype not in ("int8", "uint8", "int16"):
        refuse(op, f"{dtype} to {out.dtype}")
    x = operand(op, inputs, 0)
    low, high = LIMITS[out.dtype]
    if dtype == "float32":
        scale, zero_point = _along(op, out)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            whole = to_int32(round_half_away(x / scale.astype(np.float32)))
        return [np.minimum(np.maximum(wrap_int32(whole + zero_point), low), high)]
    q_in, q_out = parameters(op, op.inputs[0]), parameters(op, out)
    value = multiply_by_factor(x.astype(np.int64) - q_in.zero_point, *split_factor(q_in.scale / q_out.scale))
    return [saturate(wrap_int32(value + q_out.zero_point), out.dtype)]


def dequantize(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Integers to the real values they stand for."""
    require_types(op, 0, "int8", "uint8", "int16", "int4")
    if op.outputs[0].dtype != "float32":
        refuse(op, f"{op.outputs[0].dtype} as output")
    x = operand(op, inputs, 0)
    t = op.inputs[0]
    assert t
    scale, zero_point = _along(op, t)
    return [(scale * (x.astype(np.int64) - zero_point)).astype(np.float32)]


def _along(op: Operation, t: TensorType) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scales and zero points of a tensor, broadcastable to it."""
    q = t.quantization
    if q is None:
        refuse(op, f"{t.dtype} without quantization")
    shape = [1] * len(t.shape)
    if not q.is_per_tensor:
        shape[q.axis] = len(q.scales)
    return np.array(q.scales, np.float64).reshape(shape), np.array(q.zero_points, np.int64).reshape(shape)
