"""Products of float32 activations with integer weights ("dynamic range" quantization).

LiteRT quantizes activations to int8 when it runs, multiplies integers, and scales the sums back; the rounding is that
of its `tensor_utils` (`SymmetricQuantizeFloats`, `AsymmetricQuantizeFloats`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..dtypes import INT4, INT8
from ..operation import Operation
from .support import refuse, round_half_away

__all__ = ["integers", "is_hybrid", "quantize_rows", "rescale"]


def is_hybrid(op: Operation, activation: int, weight: int) -> bool:
    """Whether an operator multiplies float32 activations with integer weights."""
    x, w = op.inputs[activation], op.inputs[weight]
    return x is not None and w is not None and x.dtype == "float32" and w.dtype in (INT8, INT4)


def quantize_rows(x: NDArray[np.float32], *, asymmetric: bool) -> tuple[NDArray, NDArray, NDArray]:
    """Each row of [rows, n] by itself: integers as float64, scales float32 [rows, 1], zero points float64 [rows, 1]."""
    low, high = (f(x, axis=1, initial=0, keepdims=True).astype(np.float64) for f in (np.min, np.max))
    if asymmetric:
        return _asymmetric(x, low, high)
    reach = np.maximum(-low, high).astype(np.float32)
    empty = reach == 0
    with np.errstate(divide="ignore", over="ignore"):
        scales = np.where(empty, np.float32(1), reach / np.float32(127))
        inverse = np.where(empty, np.float32(0), np.float32(127) / reach)
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = x * inverse
    # Of a row so small that the inverse is infinite; the processor's conversion to integers makes the least of it.
    values = np.clip(round_half_away(np.where(np.isfinite(scaled), scaled, np.float32(-127))), -127, 127)
    return values.astype(np.float64), scales, np.zeros_like(low)


def _asymmetric(x: NDArray[np.float32], low: NDArray, high: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    empty = low == high
    scales = np.where(empty, np.float32(1), (high.astype(np.float32) - low.astype(np.float32)) / np.float32(255))
    scale = scales.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        from_low, from_high = -128 - low / scale, 127 - high / scale
        nearer_low = 128 + np.abs(low / scale) < 127 + np.abs(high / scale)
        point = np.clip(round_half_away(np.where(nearer_low, from_low, from_high)), -128, 127)
    point = np.where(empty, 0.0, point)
    inverse = np.float32(1) / scales
    values = point + round_half_away(x * inverse)
    values = np.where(empty, np.float32(0), np.clip(values, -128, 127))
    return values.astype(np.float64), scales, point


def weight_scales(op: Operation, weight: int) -> NDArray[np.float32]:
    """Scale of each output, or one for all; the weights must be symmetric."""
    t = op.inputs[weight]
    if t is None or t.quantization is None:
        refuse(op, "weights without quantization")
    if any(t.quantization.zero_points):
        refuse(op, "weights with a zero point and float32 activations")
    return np.array(t.quantization.scales, np.float32)


def integers(op: Operation, x: NDArray[np.float32]) -> tuple[NDArray, NDArray[np.float32]]:
    """The activations of a product as LiteRT quantizes them, less their zero point, and the scales.

    Parameters
    ----------
    op
        FULLY_CONNECTED quantizes each row by itself, the others each image.
    x
        [images, rows, columns, channels] or [rows, channels]

    Returns
    -------
    Integers as float64, of x's shape; scales that can be broadcast to it.
    """
    if op.kind == "FULLY_CONNECTED":
        asymmetric = bool(op.options.get("asymmetric_quantize_inputs"))
    else:
        asymmetric = op.kind == "DEPTHWISE_CONV_2D" or len(weight_scales(op, 1)) > 1
    values, scales, points = quantize_rows(x.reshape(len(x), -1), asymmetric=asymmetric)
    return (values - points).reshape(x.shape), scales.reshape(-1, *[1] * (x.ndim - 1))


def rescale(op: Operation, acc: NDArray, scales: NDArray[np.float32], bias: NDArray | None) -> NDArray[np.float32]:
    """Sums of integer products [..., outputs] in float32, with the bias, in LiteRT's order of operations."""
    of_weights, sums = weight_scales(op, 1), acc.astype(np.float32)
    if op.kind == "CONV_2D" and len(of_weights) > 1:
        result = sums * of_weights * scales
    else:
        result = sums * (of_weights * scales)
    return result if bias is None else result + bias
