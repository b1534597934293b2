"""QuantizeLinear and DequantizeLinear, and what quantized operators share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...dtypes import LIMITS
from ...operation import Operation, Quantization, TensorType
from ..support import operand, parameters, refuse

__all__ = ["dequantize", "limits", "quantize", "quantized", "real", "requantized"]


def dequantize(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """DequantizeLinear: (x - zero point) * scale in float32."""
    if op.inputs[0] is None or op.inputs[0].quantization is None:
        refuse(op, "an operand without quantization")
    return [real(op, inputs, 0)]


def quantize(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """QuantizeLinear of real values, or of integers by way of the real values that they stand for."""
    return [quantized(op, real(op, inputs, 0))]


def real(op: Operation, inputs: Sequence[NDArray | None], index: int) -> NDArray[np.float32]:
    """An operand as float32: dequantized if it is quantized."""
    x, t = operand(op, inputs, index), op.inputs[index]
    assert t is not None
    if t.quantization is None:
        if t.dtype not in ("float32", "float16"):
            refuse(op, f"{t.dtype} as operand {index}")
        return x.astype(np.float32)
    scale, zero_point = _along(t.quantization, t)
    return (x.astype(np.int64) - zero_point).astype(np.float32) * scale


def _along(q: Quantization, t: TensorType) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scales and zero points of a tensor, broadcastable to it."""
    shape = [1] * len(t.shape)
    if not q.is_per_tensor:
        shape[q.axis] = len(q.scales)
    return np.array(q.scales, np.float32).reshape(shape), np.array(q.zero_points, np.int64).reshape(shape)


def quantized(op: Operation, values: NDArray[np.float32]) -> NDArray:
    """Real values as the output states: integers if that is quantized, else the values."""
    t = op.outputs[0]
    if t.quantization is None:
        return values
    q = parameters(op, t)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = values / np.float32(q.scale)
    return requantized(op, scaled)


def limits(op: Operation) -> tuple[int, int]:
    """Least and greatest value of the output: of its type, or the option `limits`."""
    least, greatest = LIMITS[op.outputs[0].dtype]
    low, high = op.options.get("limits", (least, greatest))
    return max(least, int(low)), min(greatest, int(high))


def requantized(op: Operation, scaled: NDArray[np.float32]) -> NDArray:
    """Multiples of the output's scale as integers: ties to even, then the zero point, within the limits."""
    zero_point = parameters(op, op.outputs[0]).zero_point
    low, high = limits(op)
    # As in ONNX Runtime, what is not a number becomes the least value.
    bounded = np.clip(np.where(np.isnan(scaled), low - zero_point, scaled), low - zero_point, high - zero_point)
    return (np.rint(bounded).astype(np.int64) + zero_point).astype(op.outputs[0].dtype)
