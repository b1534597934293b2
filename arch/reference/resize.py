"""RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR. Operand 1 is the size (rows, columns)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..dtypes import INT8, UINT8
from ..operation import Operation
from .support import operand, refuse, require_types, round_half_away

__all__ = ["resize_bilinear", "resize_nearest_neighbor"]


def resize_bilinear(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Bilinear interpolation: 10-bit fractions for int8 and int16, float32 for uint8 and float32."""
    dtype = require_types(op, 0, INT8, "int16", UINT8, "float32")
    x = operand(op, inputs, 0)
    _, rows, columns, _ = op.outputs[0].shape
    if dtype in (INT8, "int16"):
        total = _interpolate(
            x.astype(np.int64),
            1 << 10,
            _fixed_positions(op, x.shape[1], rows),
            _fixed_positions(op, x.shape[2], columns),
        )
        half = 1 << 19
        return [np.where(total > 0, (total + half) >> 20, -((half - total) >> 20)).astype(dtype)]
    total = _interpolate(
        x.astype(np.float32), 1, _float_positions(op, x.shape[1], rows), _float_positions(op, x.shape[2], columns)
    )
    return [np.trunc(total + np.float32(0.5)).astype(dtype) if dtype == UINT8 else total]


Positions = tuple[NDArray, NDArray, NDArray]
"""For each output index the two input indices, and the second's weight"""


def _interpolate(x: NDArray, one: int, rows: Positions, columns: Positions) -> NDArray:
    """Sums of four values with their weights, which add up to `one` squared, in TFLite's order."""
    top, bottom, weight_r = x[:, rows[0]], x[:, rows[1]], rows[2][:, None, None]
    left, right, weight_c = columns[0], columns[1], columns[2][:, None]
    total = top[:, :, left] * (one - weight_r) * (one - weight_c)
    total = total + bottom[:, :, left] * weight_r * (one - weight_c)
    total = total + top[:, :, right] * (one - weight_r) * weight_c
    return total + bottom[:, :, right] * weight_r * weight_c


def _fixed_positions(op: Operation, size: int, out: int) -> Positions:
    """With weights of 1024."""
    if op.options["align_corners"] and out > 1:
        scale = ((size - 1 << 10) + (out - 1) // 2) // (out - 1)
    else:
        scale = ((size << 10) + out // 2) // out
    at = np.arange(out) * scale
    if op.options["half_pixel_centers"]:
        at = at + scale // 2 - (1 << 9)
    below = np.maximum(_towards_zero(at), 0)
    above = np.minimum(_towards_zero(at + 1023), size - 1)
    if below.max() >= size:
        refuse(op, f"size {size} to {out} (reads beyond the operand)")
    return below, above, at - (below << 10)


def _towards_zero(x: NDArray) -> NDArray:
    """Divide by 1024."""
    return np.where(x >= 0, x >> 10, -(-x >> 10))


def _float_positions(op: Operation, size: int, out: int) -> Positions:
    """With weights of 1."""
    at = _float_scaled(op, size, out, np.arange(out, dtype=np.float32))
    if op.options["half_pixel_centers"]:
        at = at - np.float32(0.5)
    below = np.maximum(np.floor(at).astype(np.int64), 0)
    above = np.minimum(np.ceil(at).astype(np.int64), size - 1)
    if below.max() >= size:
        refuse(op, f"size {size} to {out} (reads beyond the operand)")
    return below, above, at - below.astype(np.float32)


def _float_scaled(op: Operation, size: int, out: int, at: NDArray) -> NDArray:
    if op.options["align_corners"] and out > 1:
        scale = np.float32(size - 1) / np.float32(out - 1)
    else:
        scale = np.float32(size) / np.float32(out)
    return (at + np.float32(0.5 if op.options["half_pixel_centers"] else 0)) * scale


def resize_nearest_neighbor(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """The nearest element's value; any type."""
    x = operand(op, inputs, 0)
    _, rows, columns, _ = op.outputs[0].shape
    return [x[:, _nearest(op, x.shape[1], rows)][:, :, _nearest(op, x.shape[2], columns)]]


def _nearest(op: Operation, size: int, out: int) -> NDArray:
    at = _float_scaled(op, size, out, np.arange(out, dtype=np.float32))
    index = (round_half_away(at) if op.options["align_corners"] else np.floor(at)).astype(np.int64)
    return np.clip(index, 0, size - 1)
