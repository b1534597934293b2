"""Operators on corresponding elements of two operands, with broadcasting."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..dtypes import INT8, UINT8
from ..numerics import (
    multiply_by_factor,
    rounding_divide_by_any_pot,
    rounding_divide_by_pot,
    split_factor,
    wrap_int32,
)
from ..operation import Operation, Quantization
from . import fixed_point
from .support import (
    activate,
    activation_range,
    operand,
    parameters,
    power_of_two,
    refuse,
    refuse_values,
    require_types,
    to_int32,
)

__all__ = [
    "add",
    "add_n",
    "bitwise_xor",
    "div",
    "equal",
    "floor_div",
    "floor_mod",
    "greater",
    "greater_equal",
    "less",
    "less_equal",
    "logical_and",
    "logical_not",
    "logical_or",
    "maximum",
    "minimum",
    "mul",
    "not_equal",
    "pow_",
    "right_shift",
    "select",
    "select_v2",
    "squared_difference",
    "sub",
]

_PLAIN = ("int32", "int64", "float32")
_QUANTIZED = (INT8, UINT8, "int16")


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


def div(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Quotient with a fused activation; int32 truncates, quantized values are refused where the divisor is 0."""
    a, b = _operands(op, inputs, INT8, UINT8, "int16", "int32", "float32")
    if a.dtype == np.float32:
        with np.errstate(divide="ignore", invalid="ignore"):
            return [activate_plain(op, a / b)]
    if a.dtype == np.int32:
        if (b == 0).any():
            refuse_values(op, "division by 0")
        wide, divisor = a.astype(np.int64), b.astype(np.int64)
        quotient = np.abs(wide) // np.abs(divisor) * np.sign(wide) * np.sign(divisor)
        return [activate_plain(op, wrap_int32(quotient).astype(np.int32))]
    x, y, output = op.inputs[0], op.inputs[1], op.outputs[0]
    assert x and y
    _require_output(op, output.dtype, x.dtype)
    q_a, q_b, q_out = parameters(op, x), parameters(op, y), parameters(op, output)
    dividend, divisor = a.astype(np.int64) - q_a.zero_point, b.astype(np.int64) - q_b.zero_point
    if (divisor == 0).any():
        refuse_values(op, "division by 0")
    dividend, divisor = dividend * np.sign(divisor), np.abs(divisor)
    factor = np.float32(q_a.scale) / (np.float32(q_b.scale) * np.float32(q_out.scale))
    multiplier, exponent = split_factor(float(factor))
    inverse, bits = fixed_point.reciprocal(divisor, 31)
    headroom = fixed_point.count_leading_zeros(np.where(dividend >= 0, dividend, -dividend - 1)) - 1
    quotient = fixed_point.multiply(wrap_int32(dividend << headroom), inverse)
    scaled = fixed_point.multiply(quotient, multiplier)
    return [activate(op, rounding_divide_by_any_pot(scaled, bits + headroom - exponent), output)]


def floor_div(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Quotient rounded down, of the numbers themselves: quantization does not count."""
    a, b = _operands(op, inputs, INT8, "int16", "int32", "float32")
    if (b == 0).any():
        refuse_values(op, "division by 0")
    if a.dtype == np.float32:
        return [np.floor(a / b)]
    return [(a.astype(np.int64) // b).astype(a.dtype)]  # wraps


def floor_mod(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Remainder with the sign of the divisor, of the numbers themselves: quantization does not count."""
    a, b = _operands(op, inputs, INT8, "int16", "int32", "int64", "float32")
    if (b == 0).any():
        refuse_values(op, "division by 0")
    if a.dtype != np.float32:
        return [np.remainder(a, b)]
    rest = np.fmod(a, b)
    return [np.where((rest != 0) & ((rest < 0) != (b < 0)), rest + b, rest)]


def pow_(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Power."""
    a, b = _operands(op, inputs, "int32", "float32")
    if a.dtype == np.float32:
        with np.errstate(all="ignore"):
            return [np.power(a.astype(np.float64), b.astype(np.float64)).astype(np.float32)]
    if (b < 0).any():
        refuse_values(op, "negative exponents of int32")
    if b.size == 1 and a.shape != b.shape and int(b.reshape(())) > 0:
        with np.errstate(over="ignore"):
            return [np.power(a, b.reshape(()))]  # wraps
    # else TFLite's power is that of float64
    return [to_int32(np.power(a.astype(np.float64), b.astype(np.float64)))]


def squared_difference(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Square of the difference."""
    a, b = _operands(op, inputs, INT8, "int32", "float32")
    if a.dtype != np.int8:
        return [(a - b) * (a - b)]
    q_a, q_b, q_out = (parameters(op, t) for t in (op.inputs[0], op.inputs[1], op.outputs[0]))
    left_shift = 7
    twice = 2 * max(q_a.scale, q_b.scale)
    difference = _scaled(a, q_a.zero_point, left_shift, q_a.scale / twice) - _scaled(
        b, q_b.zero_point, left_shift, q_b.scale / twice
    )
    factor = twice * twice / float(np.float32(1 << 2 * left_shift) * np.float32(q_out.scale))
    if factor >= 1:
        refuse(op, f"output scale {q_out.scale} against input scales {q_a.scale} and {q_b.scale}")
    return [activate(op, multiply_by_factor(wrap_int32(difference**2), *split_factor(factor)), op.outputs[0])]


def add_n(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Sum of all operands."""
    dtype = require_types(op, 0, "int32", "float32")
    total = operand(op, inputs, 0)
    for index in range(1, len(inputs)):
        require_types(op, index, dtype)
        total = activate_plain(op, total + operand(op, inputs, index))
    return [total]


Comparison = Callable[[NDArray, NDArray], NDArray]


def _compared(compare: Comparison, op: Operation, inputs: Sequence[NDArray | None], *others: str) -> list[NDArray]:
    """Compare two operands, quantized ones in fixed point with 8 more bits."""
    a, b = _operands(op, inputs, INT8, UINT8, "int16", "int32", "int64", "float32", *others)
    x, y = op.inputs[0], op.inputs[1]
    assert x and y
    if a.dtype in (np.int8, np.uint8) or (a.dtype == np.int16 and x.quantization and op.kind in ("EQUAL", "NOT_EQUAL")):
        q_a, q_b = parameters(op, x), parameters(op, y)
        a, b = _comparable(op, a, q_a), _comparable(op, b, q_b)
    return [compare(a, b)]


def _comparable(op: Operation, x: NDArray, q: Quantization) -> NDArray[np.int64]:
    """Real values times 256, for scales below 1; for scales above, whether they are negative, as in LiteRT."""
    multiplier, exponent = split_factor(q.scale)
    if exponent > 16:
        refuse(op, f"scale {q.scale}")
    scaled = fixed_point.multiply((x.astype(np.int64) - q.zero_point) << 8, multiplier)
    return rounding_divide_by_any_pot(scaled, -exponent)


def equal(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Whether values are equal."""
    return _compared(np.equal, op, inputs, "bool")


def not_equal(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Whether values differ."""
    return _compared(np.not_equal, op, inputs, "bool")


def less(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Whether the first value is less."""
    return _compared(np.less, op, inputs)


def less_equal(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Whether the first value is not greater."""
    return _compared(np.less_equal, op, inputs)


def greater(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Whether the first value is greater."""
    return _compared(np.greater, op, inputs)


def greater_equal(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Whether the first value is not less."""
    return _compared(np.greater_equal, op, inputs)


def logical_and(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Whether both are true."""
    return [np.logical_and(*_operands(op, inputs, "bool"))]


def logical_or(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Whether one is true."""
    return [np.logical_or(*_operands(op, inputs, "bool"))]


def logical_not(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Whether it is false."""
    require_types(op, 0, "bool")
    return [np.logical_not(operand(op, inputs, 0))]


def bitwise_xor(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Bits in which two integers differ."""
    return [np.bitwise_xor(*_operands(op, inputs, INT8, UINT8, "int16", "uint16", "int32", "uint32"))]


def right_shift(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Arithmetic shift to the right, by at most all bits but the sign."""
    a, b = _operands(op, inputs, INT8, UINT8, "int16", "uint16", "int32", "uint32")
    bits = 8 * a.dtype.itemsize
    return [np.right_shift(a, np.clip(b, 0, bits - 1).astype(a.dtype))]


def select(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Operand 1 where operand 0 is true, else operand 2; a condition of one dimension is for the first axis."""
    require_types(op, 0, "bool")
    condition, a, b = (operand(op, inputs, i) for i in range(3))
    if condition.ndim == 1 and condition.ndim < a.ndim:
        condition = condition.reshape(-1, *[1] * (a.ndim - 1))
    return [np.where(condition, a, b)]


def select_v2(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Operand 1 where operand 0 is true, else operand 2, with broadcasting."""
    require_types(op, 0, "bool")
    condition, a, b = (operand(op, inputs, i) for i in range(3))
    return [np.where(condition, a, b)]


def activate_plain(op: Operation, values: NDArray) -> NDArray:
    """The fused activation of values that are not quantized."""
    activation = op.options.get("activation", "NONE")
    bounds = {"NONE": None, "RELU": (0, None), "RELU6": (0, 6), "RELU_N1_TO_1": (-1, 1)}
    if activation not in bounds:
        refuse(op, f"fused activation {activation}")
    bound = bounds[activation]
    if values.dtype == np.float32:
        # what exceeds the type becomes its largest value, as the kernels clamp to that
        info = np.finfo(np.float32)
        least, greatest = bound or (info.min, None)
        return np.clip(values, np.float32(least), info.max if greatest is None else np.float32(greatest))
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
        powers = [power_of_two(s) for s in scales]
        if None not in powers:
            return _sum_of_powers(op, a, b, sign, powers)
    left_shift = 15 if x.dtype == "int16" else 20
    twice = 2 * max(q_a.scale, q_b.scale)
    total = sign * _scaled(b, q_b.zero_point, left_shift, q_b.scale / twice) + _scaled(
        a, q_a.zero_point, left_shift, q_a.scale / twice
    )
    factor = twice / ((1 << left_shift) * q_out.scale)
    # LiteRT aborts at a factor of 1 in ADD, and shifts by negative distances in SUB: to the sign below 2
    if factor >= (1 if op.kind == "ADD" else 2):
        refuse(op, f"output scale {q_out.scale} against input scales {q_a.scale} and {q_b.scale}")
    multiplier, exponent = split_factor(factor)
    scaled = fixed_point.multiply(wrap_int32(total), multiplier)
    return activate(op, rounding_divide_by_any_pot(scaled, -exponent), output)


def _scaled(x: NDArray, zero_point: int, left_shift: int, factor: float) -> NDArray[np.int64]:
    return multiply_by_factor((x.astype(np.int64) - zero_point) << left_shift, *split_factor(factor))


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
