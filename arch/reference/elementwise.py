"""Operators on corresponding elements of two operands, with broadcasting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..numerics import (
    multiply_by_factor,
    rounding_divide_by_pot,
    split_factor,
    wrap_int32,
)
from ..operation import Operation
from .support import activate, activation_range, operand, parameters, refuse, require_types

__all__ = ["add", "maximum", "minimum", "mul", "sub"]

_PLAIN = ("int32", "int64", "float32")
_QUANTIZED = ("int8", "uint8", "int16")


def add(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Sum with a fused activation."""
    return [_sum(op, inputs, 1)]


def sub(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Difference with a fused activation."""
    return [_sum(op, inputs, -1)]


def mul(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Product with a fused activation."""
    a, b = _operands(op, inputs, *_QUANTIZED, *_PLAIN)
    if a.dtype.name in _PLAIN or op.outputs[0].quantization is None:
        return [activate_plain(op, a * b)]
    x, y, output = op.inputs[0], op.inputs[1], op.outputs[0]
    assert x and y
    _require_output(op, output.dtype, x.dtype)
    q_a, q_b, q_out = parameters(op, x), parameters(op, y), parameters(op, output)
    factor = np.float32(q_a.scale) * np.float32(q_b.scale) / np.float32(q_out.scale)
    product = (a.astype(np.int64) - q_a.zero_point) * (b.astype(np.int64) - q_b.zero_point)
    return [activate(op, multiply_by_factor(product, *split_factor(float(factor))), output)]


def maximum(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """The greater of two values of one quantization."""
    a, b = _operands(op, inputs, *_QUANTIZED, *_PLAIN)
    return [np.where(a > b, a, b)]


def minimum(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """The lesser of two values of one quantization."""
    a, b = _operands(op, inputs, *_QUANTIZED, *_PLAIN)
    return [np.where(a < b, a, b)]


def activate_plain(op: Operation, values: NDArray) -> NDArray:
    """The fused activation of values that are not quantized."""
    activation = op.options.get("activation", "NONE")
    bounds = {"NONE": None, "RELU": (0, None), "RELU6": (0, 6), "RELU_N1_TO_1": (-1, 1)}
    if activation not in bounds:
        refuse(op, f"fused activation {activation}")
    bound = bounds[activation]
    if bound is None:
        return values
    least, greatest = bound
    result = np.maximum(values, values.dtype.type(least))
    return result if greatest is None else np.minimum(result, values.dtype.type(greatest))


def _operands(op: Operation, inputs: Sequence[NDArray | None], *dtypes: str) -> tuple[NDArray, NDArray]:
    require_types(op, 0, *dtypes)
    require_types(op, 1, require_types(op, 0, *dtypes))
    return operand(op, inputs, 0), operand(op, inputs, 1)


def _require_output(op: Operation, out: str, dtype: str) -> None:
    if out != dtype:
        refuse(op, f"{dtype} to {out}")


def _sum(op: Operation, inputs: Sequence[NDArray | None], sign: int) -> NDArray:
    """First operand plus or minus the second."""
    a, b = _operands(op, inputs, *_QUANTIZED, *_PLAIN)
    if a.dtype.name in _PLAIN or op.outputs[0].quantization is None:
        return activate_plain(op, a + b if sign > 0 else a - b)
    x, y, output = op.inputs[0], op.inputs[1], op.outputs[0]
    assert x and y
    _require_output(op, output.dtype, x.dtype)
    q_a, q_b, q_out = parameters(op, x), parameters(op, y), parameters(op, output)
    scales = (q_a.scale, q_b.scale, q_out.scale)
    if x.dtype == "int16" and op.options.get("pot_scale_int16", True):
        powers = [_power_of_two(s) for s in scales]
        if None not in powers:
            return _sum_of_powers(op, a, b, sign, powers)
    left_shift = 15 if x.dtype == "int16" else 20
    twice = 2 * max(q_a.scale, q_b.scale)
    total = sign * _scaled(b, q_b.zero_point, left_shift, q_b.scale / twice) + _scaled(
        a, q_a.zero_point, left_shift, q_a.scale / twice
    )
    factor = twice / ((1 << left_shift) * q_out.scale)
    if factor > 1 and op.kind == "ADD":
        refuse(op, f"output scale {q_out.scale} against input scales {q_a.scale} and {q_b.scale}")
    return activate(op, multiply_by_factor(wrap_int32(total), *split_factor(factor)), output)


def _scaled(x: NDArray, zero_point: int, left_shift: int, factor: float) -> NDArray[np.int64]:
    return multiply_by_factor((x.astype(np.int64) - zero_point) << left_shift, *split_factor(factor))


def _power_of_two(scale: float) -> int | None:
    """The logarithm if the scale is a power of two, as TFLite decides it (`CheckedLog2`)."""
    log2 = np.float32(math.log(scale)) * np.float32(np.float32(1) / np.float32(math.log(2.0)))
    rounded = math.floor(log2 + 0.5) if log2 >= 0 else math.ceil(log2 - 0.5)
    return rounded if abs(log2 - np.float32(rounded)) < 1e-3 else None


def _sum_of_powers(op: Operation, a: NDArray, b: NDArray, sign: int, powers: Sequence[int | None]) -> NDArray:
    """int16 with scales that are powers of two: the operand of the other scale is shifted."""
    first, second, out = (p or 0 for p in powers)
    shifts = (out - first, out - second)
    if min(shifts) < 0 or max(shifts) > 15 or 0 not in shifts:
        refuse(op, f"int16 scales 2**{first}, 2**{second} and 2**{out}")
    low, high = activation_range(op, op.outputs[0], op.options.get("activation", "NONE"))
    x = rounding_divide_by_pot(a.astype(np.int64), shifts[0])
    y = rounding_divide_by_pot(b.astype(np.int64), shifts[1])
    total = np.clip(x + sign * y, -32768, 32767)
    return np.minimum(np.maximum(total, low), high).astype(np.int16)


Binary = Callable[[NDArray, NDArray], NDArray]
