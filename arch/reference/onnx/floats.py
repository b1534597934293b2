"""Softmax, sums and normalizations: QLinearSoftmax in integers, the others on real numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...dtypes import LIMITS
from ...operation import Operation
from ..support import operand, parameters
from .quantized import quantized, real

__all__ = ["REDUCTIONS", "layer_normalization", "log_softmax", "lp_normalization", "normalization", "softmax"]

Reference = Callable[[Operation, Sequence[NDArray | None]], Sequence[NDArray]]


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


def _reduced(function: Callable[[NDArray[np.float64], tuple[int, ...]], NDArray[np.float64]]) -> Reference:
    """A function of the values along the axes of operand 1; it is given these, and keeps them as axes of 1."""

    def reference(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
        x = real(op, inputs, 0).astype(np.float64)
        axes = tuple(int(a) % x.ndim for a in operand(op, inputs, 1).reshape(-1))
        with np.errstate(all="ignore"):
            result = function(x, axes).astype(np.float32)
        return [quantized(op, result.reshape(op.outputs[0].shape))]

    return reference


def _log_sum_exp(x: NDArray[np.float64], axes: tuple[int, ...]) -> NDArray[np.float64]:
    most = x.max(axes, keepdims=True)
    return np.log(np.exp(x - most).sum(axes, keepdims=True)) + most


REDUCTIONS: dict[str, Reference] = {
    "REDUCE_L1": _reduced(lambda x, axes: np.abs(x).sum(axes, keepdims=True)),
    "REDUCE_L2": _reduced(lambda x, axes: np.sqrt((x * x).sum(axes, keepdims=True))),
    "REDUCE_LOG_SUM": _reduced(lambda x, axes: np.log(x.sum(axes, keepdims=True))),
    "REDUCE_LOG_SUM_EXP": _reduced(_log_sum_exp),
    "REDUCE_PROD": _reduced(lambda x, axes: x.prod(axes, keepdims=True)),
    "REDUCE_SUM_SQUARE": _reduced(lambda x, axes: (x * x).sum(axes, keepdims=True)),
    "SUM": _reduced(lambda x, axes: x.sum(axes, keepdims=True)),
}


def lp_normalization(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Values over the norm `p` (1 or 2) along `axis`; zeros where that is zero."""
    x = real(op, inputs, 0).astype(np.float64)
    axis = int(op.options.get("axis", -1))
    total = np.abs(x) if op.options.get("p", 2) == 1 else x * x
    norm = total.sum(axis, keepdims=True)
    norm = norm if op.options.get("p", 2) == 1 else np.sqrt(norm)
    return [quantized(op, np.where(norm == 0, 0, x / np.where(norm == 0, 1, norm)).astype(np.float32))]


def normalization(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Values less their mean over the axes `over`, over the deviation, times operand 1, plus operand 2."""
    x = real(op, inputs, 0).astype(np.float64)
    return [quantized(op, _normalized(op, inputs, x, tuple(op.options["over"])))]


def _normalized(
    op: Operation, inputs: Sequence[NDArray | None], x: NDArray[np.float64], axes: tuple[int, ...]
) -> NDArray[np.float32]:
    centred = x - x.mean(axes, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axes, keepdims=True) + float(op.options.get("epsilon", 1e-5)))
    y = centred / deviation * real(op, inputs, 1)
    if len(inputs) > 2 and inputs[2] is not None:
        y = y + real(op, inputs, 2)
    return y.astype(np.float32)


def layer_normalization(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Values less their mean over the last axes from `axis` on, over the deviation, times operand 1, plus operand 2."""
    x = real(op, inputs, 0).astype(np.float64)
    axis = int(op.options.get("axis", -1)) % x.ndim
    return [quantized(op, _normalized(op, inputs, x, tuple(range(axis, x.ndim))))]
