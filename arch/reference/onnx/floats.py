"""Softmax, sums and normalizations: QLinearSoftmax in integers, the others on real numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...dtypes import LIMITS
from ...operation import Operation
from ..support import operand, parameters
from .quantized import quantized, real

__all__ = ["layer_normalization", "log_softmax", "softmax", "sum_"]


def softmax(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Softmax over the axis `axis`."""
    axis = int(op.options.get("axis", -1))
    types = op.inputs[0], op.outputs[0]
    if all(t and t.quantization and t.dtype in LIMITS for t in types):
        return [_softmax_of_integers(op, operand(op, inputs, 0), axis)]
    x = real(op, inputs, 0).astype(np.float64)
    e = np.exp(x - x.max(axis, keepdims=True))
    return [quantized(op, (e / e.sum(axis, keepdims=True)).astype(np.float32))]


def _softmax_of_integers(op: Operation, x: NDArray, axis: int) -> NDArray:
    """QLinearSoftmax: exponentials from a table in integers, which the reciprocal of the output's scale divides."""
    source, out = parameters(op, op.inputs[0]), parameters(op, op.outputs[0])
    largest = min((2.0**32 - 1) / x.shape[axis], float(0x7FFFFF))
    steps = np.exp((np.arange(256) - 255) * float(np.float32(source.scale)))
    table = np.floor(largest * steps + 0.5).astype(np.int64)
    wide = x.astype(np.int64)
    values = table[wide - wide.max(axis, keepdims=True) + 255]
    total = values.sum(axis, keepdims=True)
    factor = int(np.floor(np.float32(1) / np.float32(out.scale)))
    low, high = LIMITS[op.outputs[0].dtype]
    result = (values * factor + total // 2) // total + out.zero_point
    return np.clip(result, low, high).astype(op.outputs[0].dtype)


def log_softmax(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Logarithm of the softmax over the axis `axis`."""
    axis = int(op.options.get("axis", -1))
    x = real(op, inputs, 0).astype(np.float64)
    x = x - x.max(axis, keepdims=True)
    return [quantized(op, (x - np.log(np.exp(x).sum(axis, keepdims=True))).astype(np.float32))]


def sum_(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Sum over the axes of operand 1."""
    x = real(op, inputs, 0)
    axes = tuple(int(a) % x.ndim for a in operand(op, inputs, 1).reshape(-1))
    total = x.astype(np.float64).sum(axes, keepdims=bool(op.options.get("keep_dims", True)))
    return [quantized(op, total.astype(np.float32))]


def layer_normalization(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Values less their mean over the last axes from `axis` on, over the deviation, times operand 1, plus operand 2."""
    x = real(op, inputs, 0).astype(np.float64)
    axis = int(op.options.get("axis", -1)) % x.ndim
    axes = tuple(range(axis, x.ndim))
    centred = x - x.mean(axes, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axes, keepdims=True) + float(op.options.get("epsilon", 1e-5)))
    y = centred / deviation * real(op, inputs, 1)
    if len(inputs) > 2 and inputs[2] is not None:
        y = y + real(op, inputs, 2)
    return [quantized(op, y.astype(np.float32))]
