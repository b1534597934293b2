"""SOFTMAX of 8-bit values, as `nnloom.arch.reference.softmax`: exponentials from a table, the rest in fixed point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.dtypes import EIGHT_BITS, INT8, UINT8
from nnloom.arch.errors import UnsupportedOperatorError
from nnloom.arch.numerics import rounding_divide_by_pot
from nnloom.arch.operation import Operation
from nnloom.arch.reference.softmax import SUM_BITS, exponentials

__all__ = ["softmax_of"]

LONGEST_ROW = 4095
"""With more values the sum of exponentials may exceed 31 bits."""


def softmax_of(op: Operation) -> tuple[Callable[..., Any], list[NDArray]] | None:
    """A TE function of the operand and constants, and the constants; None where the reference has to do it."""
    source, out = op.inputs[0], op.outputs[0]
    if op.kind != "SOFTMAX" or source is None or source.dtype not in EIGHT_BITS or op.rounding != "tflite":
        return None
    if out.dtype not in (INT8, UINT8, "int16") or not source.shape or source.shape[-1] > LONGEST_ROW:
        return None
    try:
        exps = exponentials(op)
    except UnsupportedOperatorError:
        return None
    return _function(out.shape, out.dtype), [exps, rounding_divide_by_pot(exps, SUM_BITS)]


def _function(shape: tuple[int, ...], dtype: str) -> Callable[..., Any]:
    rows, columns = int(np.prod(shape[:-1], dtype=np.int64)), shape[-1]
    info = np.iinfo(dtype)
    shift = 31 - info.bits + SUM_BITS

    def function(x: Any, exps: Any, terms: Any) -> Any:
        from tvm import te, tirx, topi

        def constant(value: int) -> Any:
            return tirx.const(value, "int64")

        x = topi.reshape(x, (rows, columns))
        k, j = te.reduce_axis((0, columns), "k"), te.reduce_axis((0, columns), "j")
        top = te.compute((rows,), lambda i: te.max(x[i, k].astype("int32"), axis=k), name="top")
        below = te.compute((rows, columns), lambda i, c: top[i] - x[i, c].astype("int32"), name="below")
        total = te.compute((rows,), lambda i: te.sum(terms[below[i, j]], axis=j), name="total")

        def leading_zeros(i: Any) -> Any:
            zeros: Any = constant(0)
            for bit in range(32):
                zeros = zeros + tirx.Select(total[i] < constant(1 << bit), constant(1), constant(0))
            return zeros

        headroom = te.compute((rows,), leading_zeros, name="headroom")
        mantissa = te.compute(
            (rows,), lambda i: _one_over_one_plus_x((total[i] << headroom[i]) - constant(1 << 31)), name="mantissa"
        )

        def element(i: Any, c: Any) -> Any:
            product = _multiply(mantissa[i], exps[below[i, c]])
            bits = constant(shift) - headroom[i]
            value = ((product + (constant(1) << (bits - 1))) >> bits) + constant(int(info.min))
            return tirx.max(tirx.min(value, constant(int(info.max))), constant(int(info.min))).astype(dtype)

        return topi.reshape(te.compute((rows, columns), element, name="softmax"), shape)

    return function


def _multiply(a: Any, b: Any) -> Any:
    """`numerics.saturating_rounding_doubling_high_mul` of int64 expressions."""
    from tvm import tirx

    half, limit = tirx.const(1 << 30, "int64"), tirx.const((1 << 31) - 1, "int64")
    return tirx.min((a * b + half) >> 31, limit)


def _one_over_one_plus_x(x: Any) -> Any:
    """`fixed_point.one_over_one_plus_x` of an int64 expression in [0, 2**31)."""
    from tvm import tirx

    def constant(value: int) -> Any:
        return tirx.const(value, "int64")

    def doubled(value: Any, bits: int) -> Any:
        low, high = constant(-(1 << 31)), constant((1 << 31) - 1)
        return tirx.max(tirx.min(value << bits, high), low)

    half = (x + constant(1 << 31)) >> 1
    result = constant(1515870810) + _multiply(half, constant(-1010580540))
    for _ in range(3):
        error = constant(1 << 29) - _multiply(half, result)
        result = result + doubled(_multiply(result, error), 2)
    return doubled(result, 1)
