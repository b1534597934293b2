"""AVERAGE_POOL_2D, MAX_POOL_2D and L2_POOL_2D."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ..dtypes import INT8, UINT8
from ..operation import Operation
from .elementwise import activate_plain
from .support import activation_range, operand, require_types

__all__ = ["average_pool_2d", "l2_pool_2d", "max_pool_2d", "window_values"]


def average_pool_2d(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Mean of the window's values within the operand, rounded half away from zero."""
    dtype = require_types(op, 0, INT8, UINT8, "int16", "float32")
    x = operand(op, inputs, 0)
    kind = np.float32 if dtype == "float32" else np.int64
    total = np.zeros(op.outputs[0].shape, kind)
    for values in window_values(op, x.astype(kind), 0):
        total = total + values
    count = np.zeros((1, *op.outputs[0].shape[1:3], 1), kind)
    for values in window_values(op, np.ones((1, *x.shape[1:3], 1), kind), 0):
        count = count + values
    if dtype == "float32":
        return [activate_plain(op, total / count)]
    half = count // 2
    mean = np.where(total > 0, (total + half) // count, -((half - total) // count))
    return [_limit(op, mean)]


def max_pool_2d(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Greatest of the window's values within the operand."""
    dtype = require_types(op, 0, INT8, UINT8, "int16", "float32")
    x = operand(op, inputs, 0)
    kind = np.float32 if dtype == "float32" else np.int64
    least = float(np.finfo(np.float32).min) if dtype == "float32" else -(1 << 15)
    result = np.full(op.outputs[0].shape, least, kind)
    for values in window_values(op, x.astype(kind), least):
        result = np.maximum(result, values)
    return [activate_plain(op, result) if dtype == "float32" else _limit(op, result)]


def l2_pool_2d(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Root of the mean square of the window's values within the operand."""
    require_types(op, 0, "float32")
    x = operand(op, inputs, 0)
    total, count = np.zeros(op.outputs[0].shape, np.float32), np.zeros((1, *op.outputs[0].shape[1:3], 1), np.float32)
    for values in window_values(op, x * x, 0):
        total = total + values
    for values in window_values(op, np.ones((1, *x.shape[1:3], 1), np.float32), 0):
        count = count + values
    return [activate_plain(op, np.sqrt(total / count))]


def _limit(op: Operation, values: NDArray) -> NDArray:
    low, high = activation_range(op, op.outputs[0], op.options.get("activation", "NONE"))
    return np.minimum(np.maximum(values, low), high).astype(op.outputs[0].dtype)


def window_values(op: Operation, x: NDArray, fill: float) -> Iterator[NDArray]:
    """The padded operand's values at each position in the window."""
    top, left, bottom, right = op.options["padding"]
    stride_r, stride_c = op.options["strides"]
    rows, columns = op.outputs[0].shape[1:3]
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    for r in range(op.options["window"][0]):
        for c in range(op.options["window"][1]):
            yield padded[
                :,
                r : r + (rows - 1) * stride_r + 1 : stride_r,
                c : c + (columns - 1) * stride_c + 1 : stride_c,
            ]
