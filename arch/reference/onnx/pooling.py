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

    Options `row_index`, `column_index`: of each output the operand's; or, with `row_weight`, `column_weight`, those of
    several elements and their weights, of all outputs the first, then of all the second, and so on.
    """
    x = operand(op, inputs, 0)
    if "row_weight" not in op.options:
        rows, columns = (np.array(op.options[name], np.int64) for name in ("row_index", "column_index"))
        return [x[:, rows][:, :, columns]]
    if op.inputs[0] is None or op.inputs[0].dtype != "float32":
        refuse(op, "interpolation of integers")
    by_row, by_column = _taps(op, 1, "row"), _taps(op, 2, "column")
    if len(by_row) == len(by_column) == 2:
        return [_linear(x, by_row, by_column)]
    result = x.astype(np.float64)
    for axis, taps in ((1, by_row), (2, by_column)):
        result = np.asarray(sum(result.take(i, axis) * w.astype(np.float64) for i, w in taps))
    return [result.astype(np.float32)]


_Taps = list[tuple[NDArray[np.int64], NDArray[np.float32]]]
"""Of each tap: which element each output takes, and its weight, along an axis"""


def _taps(op: Operation, axis: int, name: str) -> _Taps:
    size = op.outputs[0].shape[axis]
    indices = np.array(op.options[f"{name}_index"], np.int64).reshape(-1, size)
    weights = np.array(op.options[f"{name}_weight"], np.float32).reshape(-1, size)
    shape = [1] * 4
    shape[axis] = size
    return [(i, w.reshape(shape)) for i, w in zip(indices, weights, strict=True)]


def _linear(x: NDArray[np.float32], rows: _Taps, columns: _Taps) -> NDArray[np.float32]:
    """The four neighbours as ONNX Runtime adds them up in float32: along the columns first."""
    total: NDArray[np.float32] | None = None
    for row, by_row in rows:
        for column, by_column in columns:
            part = (by_column * by_row).astype(np.float32) * x.take(row, 1).take(column, 2)
            total = part if total is None else total + part
    assert total is not None
    return total
