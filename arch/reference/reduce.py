"""Reductions over axes that operand 1 lists."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..dtypes import INT8, UINT8
from ..numerics import multiply_by_factor, multiply_by_factor_int64, split_factor, wrap_int32
from ..operation import Operation
from .support import check_axis, operand, parameters, require_types, saturate

__all__ = [
    "arg_max",
    "arg_min",
    "mean",
    "reduce_all",
    "reduce_any",
    "reduce_max",
    "reduce_min",
    "reduce_prod",
    "reduction_factor",
    "sum_",
]


def mean(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Mean; integers without quantization truncate."""
    dtype = require_types(op, 0, INT8, UINT8, "int16", "int32", "int64", "float32")
    x, axes = operand(op, inputs, 0), _axes(op, inputs)
    count = math.prod(x.shape[a] for a in axes)
    if dtype == "float32":
        return [in_order(np.add, x, axes) / np.float32(count)]
    total = x.sum(axis=axes, dtype=np.int64)
    if dtype in ("int32", "int64"):
        return [np.where(total >= 0, total // count, -(-total // count))]
    return [_rescaled(op, total, count, divide=True)]


def sum_(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Sum; wraps where it is not quantized."""
    dtype = require_types(op, 0, INT8, UINT8, "int16", "int32", "int64", "float32")
    x, axes = operand(op, inputs, 0), _axes(op, inputs)
    if dtype in ("int32", "int64", "float32"):
        return [in_order(np.add, x, axes)]
    count = math.prod(x.shape[a] for a in axes)
    return [_rescaled(op, x.sum(axis=axes, dtype=np.int64), count, divide=False)]


def in_order(function: np.ufunc, x: NDArray, axes: tuple[int, ...]) -> NDArray:
    """Reduce element by element in the order of memory, as float32 results depend on it; integers wrap."""
    rest = [i for i in range(x.ndim) if i not in axes]
    values = x.transpose(*axes, *rest).reshape(-1, *[x.shape[i] for i in rest])
    if x.dtype != np.float32:
        return np.asarray(function.reduce(values, axis=0, dtype=x.dtype))
    total = values[0]
    for value in values[1:]:
        total = function(total, value)
    return np.asarray(total)


def reduction_factor(scale_in: float, scale_out: float, count: int) -> tuple[int, int]:
    """Multiplier and exponent (`multiply_by_factor`) that make of a sum, less its zero points, the mean of `count`
    values on the output's scale; the sum itself for a count of 1."""
    multiplier, exponent = split_factor(scale_in / scale_out)
    shift = min(count.bit_length() - 1, 32, 31 + exponent)
    return (multiplier << shift) // count, exponent - shift


def _rescaled(op: Operation, total: NDArray, count: int, *, divide: bool) -> NDArray:
    """Sums of `count` quantized values, or their means, in the output's quantization."""
    q_in, q_out = parameters(op, op.inputs[0]), parameters(op, op.outputs[0])
    multiplier, exponent = reduction_factor(q_in.scale, q_out.scale, count if divide else 1)
    values = wrap_int32(wrap_int32(total) - q_in.zero_point * count)
    return saturate(
        wrap_int32(multiply_by_factor(values, multiplier, exponent) + q_out.zero_point), op.outputs[0].dtype
    )


def reduce_prod(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Product; wraps where it is not quantized, else each factor is scaled so that the product fits."""
    dtype = require_types(op, 0, INT8, "int16", "int32", "int64", "float32")
    x, axes = operand(op, inputs, 0), _axes(op, inputs)
    if dtype in ("int32", "int64", "float32"):
        return [in_order(np.multiply, x, axes)]
    q_in, q_out = parameters(op, op.inputs[0]), parameters(op, op.outputs[0])
    count = math.prod(x.shape[a] for a in axes)
    multiplier, exponent = split_factor(q_in.scale / q_out.scale ** (1.0 / count))
    rest = [i for i in range(x.ndim) if i not in axes]
    factors = x.transpose(*axes, *rest).reshape(count, *[x.shape[i] for i in rest]).astype(np.int64) - q_in.zero_point
    product = factors[0]
    for factor in factors[1:]:
        product = multiply_by_factor_int64(product * factor, multiplier, exponent)
    product = multiply_by_factor_int64(product, multiplier, exponent)
    return [saturate(wrap_int32(product + q_out.zero_point), dtype)]


_COMPARED = (INT8, UINT8, "int16", "int32", "int64", "float32")


def reduce_max(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Greatest value."""
    require_types(op, 0, *_COMPARED)
    return [operand(op, inputs, 0).max(axis=_axes(op, inputs))]


def reduce_min(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Least value."""
    require_types(op, 0, *_COMPARED)
    return [operand(op, inputs, 0).min(axis=_axes(op, inputs))]


def reduce_any(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Whether any is true."""
    require_types(op, 0, "bool")
    return [np.asarray(operand(op, inputs, 0).any(axis=_axes(op, inputs)))]


def reduce_all(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Whether all are true."""
    require_types(op, 0, "bool")
    return [np.asarray(operand(op, inputs, 0).all(axis=_axes(op, inputs)))]


def arg_max(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Index of the first greatest value along the axis of operand 1."""
    require_types(op, 0, *_COMPARED, "bool")
    x = operand(op, inputs, 0)
    return [np.argmax(x, axis=check_axis(op, int(operand(op, inputs, 1).reshape(())), x.ndim))]


def arg_min(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Index of the first least value along the axis of operand 1."""
    require_types(op, 0, *_COMPARED, "bool")
    x = operand(op, inputs, 0)
    return [np.argmin(x, axis=check_axis(op, int(operand(op, inputs, 1).reshape(())), x.ndim))]


def _axes(op: Operation, inputs: Sequence[NDArray | None]) -> tuple[int, ...]:
    rank = operand(op, inputs, 0).ndim
    if not rank:
        return ()
    return tuple(sorted({check_axis(op, int(a), rank) for a in operand(op, inputs, 1).reshape(-1)}))
