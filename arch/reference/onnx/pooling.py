"""QLinearGlobalAveragePool, QLinearAveragePool and Resize, and the means of real numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...operation import Operation
from ..pooling import window_values
from ..support import operand, parameters, refuse
from .quantized import limits, quantized, real, requantized

__all__ = ["average_pool_2d", "mean", "resize"]


def mean(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Mean over the axes of operand 1: of quantized values as QLinearGlobalAveragePool."""
    x = operand(op, inputs, 0)
    axes = tuple(int(a) % x.ndim for a in operand(op, inputs, 1).reshape(-1))
    keep = bool(op.options.get("keep_dims", True))
    if op.inputs[0] and op.inputs[0].quantization is None:
        return [quantized(op, x.astype(np.float64).mean(axes, keepdims=keep).astype(np.float32))]
    source, out = parameters(op, op.inputs[0]), parameters(op, op.outputs[0])
    count = math.prod(x.shape[a] for a in axes)
    total = x.astype(np.int64).sum(axes, keepdims=keep) - count * source.zero_point
    factor = np.float32(source.scale) / (np.float32(out.scale) * np.float32(count))
    return [requantized(op, total.astype(np.float32) * factor)]


def average_pool_2d(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Mean of a window in float32, added up row by row; `count_padding`: what lies in the padding counts as zeros."""
    x = real(op, inputs, 0)
    total = np.zeros(op.outputs[0].shape, np.float32)
    for values in window_values(op, x, 0):
        total = total + values
    counted = np.ones((1, *x.shape[1:3], 1), np.float32)
    count = np.zeros((1, *op.outputs[0].shape[1:3], 1), np.float32)
    for values in window_values(op, counted, 1 if op.options.get("count_padding") else 0):
        count = count + values
    mean = total / count
    return [mean] if op.outputs[0].quantization is None else [_with_zero_point(op, mean)]


def _with_zero_point(op: Operation, mean: NDArray[np.float32]) -> NDArray:
    """Quantized, with the zero point added before it is rounded; `recentred` as for ADD."""
    q, offset = parameters(op, op.outputs[0]), int(op.options.get("recentred", 0))
    total = mean / np.float32(q.scale) + np.float32(q.zero_point + offset)
    low, high = limits(op)
    return (np.clip(np.rint(total), low + offset, high + offset) - offset).astype(op.outputs[0].dtype)


def resize(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Resize of [n, rows, columns, c] by the positions and weights that the options state for rows and columns.

    Options `row_index`, `column_index`: of each output the operand's; with `linear`, those of its two neighbours one
    after the other, and `row_weight`, `column_weight` of the second.
    """
    x = operand(op, inputs, 0)
    if not op.options.get("linear"):
        rows, columns = (np.array(op.options[name], np.int64) for name in ("row_index", "column_index"))
        return [x[:, rows][:, :, columns]]
    if op.inputs[0] is None or op.inputs[0].dtype != "float32":
        refuse(op, "interpolation of integers")
    result = x.astype(np.float64)
    for axis, name in ((1, "row"), (2, "column")):
        index = np.array(op.options[f"{name}_index"], np.int64).reshape(2, -1)
        shape = [1] * 4
        shape[axis] = -1
        weight = np.array(op.options[f"{name}_weight"], np.float64).reshape(shape)
        result = result.take(index[0], axis) * (1 - weight) + result.take(index[1], axis) * weight
    return [result.astype(np.float32)]
