"""Changes of type: QUANTIZE, DEQUANTIZE and CAST."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..dtypes import INT4, INT8, LIMITS, UINT8
from ..numerics import multiply_by_factor, split_factor, wrap_int32
from ..operation import Operation, TensorType
from .support import operand, parameters, refuse, require_types, round_half_away, saturate, to_int32

__all__ = ["cast", "dequantize", "quantize"]


def quantize(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Real values to integers, or integers to those of another quantization."""
    dtype = require_types(op, 0, "float32", INT8, UINT8, "int16", "int32")
    out = op.outputs[0]
    if out.dtype not in (INT8, UINT8, "int16"):
        refuse(op, f"{dtype} to {out.dtype}")
    x = operand(op, inputs, 0)
    low, high = LIMITS[out.dtype]
    if dtype == "float32":
        scale, zero_point = _along(op, out)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            whole = to_int32(round_half_away(x / scale.astype(np.float32)))
        return [np.minimum(np.maximum(wrap_int32(whole + zero_point), low), high)]
    q_in, q_out = parameters(op, op.inputs[0]), parameters(op, out)
    value = multiply_by_factor(
        wrap_int32(x.astype(np.int64) - q_in.zero_point), *split_factor(q_in.scale / q_out.scale)
    )
    return [saturate(wrap_int32(value + q_out.zero_point), out.dtype)]


def dequantize(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Integers to the real values they stand for."""
    if require_types(op, 0, INT8, UINT8, "int16", INT4, "float16") == "float16":
        return [operand(op, inputs, 0).astype(np.float32)]
    if op.outputs[0].dtype != "float32":
        refuse(op, f"{op.outputs[0].dtype} as output")
    x = operand(op, inputs, 0)
    t = op.inputs[0]
    assert t
    scale, zero_point = _along(op, t)
    return [(scale * (x.astype(np.int64) - zero_point)).astype(np.float32)]


def cast(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """The same number in another type; quantization does not count."""
    require_types(op, 0, INT8, UINT8, "int16", "int32", "int64", "float32", "bool")
    out = op.outputs[0].dtype
    if out not in (INT8, UINT8, "int16", "int32", "int64", "float32", "bool"):
        refuse(op, f"to {out}")
    x = operand(op, inputs, 0)
    if x.dtype == np.float32 and out not in ("float32", "bool"):
        return [_float_to_integer(x, out)]
    return [x.astype(out)]


def _float_to_integer(x: NDArray, dtype: str) -> NDArray:
    """Truncate; saturate beyond the type, and to the greatest value for what is not a number."""
    least, greatest = np.iinfo(dtype).min, np.iinfo(dtype).max
    whole = np.trunc(np.nan_to_num(x.astype(np.float64), nan=np.inf))
    inside = (whole > least) & (whole < greatest)
    integers = np.where(inside, whole, 0).astype(np.int64)
    return np.where(whole <= least, least, np.where(whole >= greatest, greatest, integers)).astype(dtype)


def _along(op: Operation, t: TensorType) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scales and zero points of a tensor, broadcastable to it."""
    q = t.quantization
    if q is None:
        refuse(op, f"{t.dtype} without quantization")
    shape = [1] * len(t.shape)
    if not q.is_per_tensor:
        shape[q.axis] = len(q.scales)
    return np.array(q.scales, np.float64).reshape(shape), np.array(q.zero_points, np.int64).reshape(shape)
