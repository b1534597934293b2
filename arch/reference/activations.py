"""Functions of one value."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..dtypes import INT8, UINT8
from ..numerics import multiply_by_factor, rounding_divide_by_pot, split_factor, wrap_int32
from ..operation import Operation
from . import fixed_point
from .reduce import in_order
from .support import (
    LIMITS,
    operand,
    parameters,
    power_of_two,
    refuse,
    refuse_values,
    require_types,
    round_half_away,
    saturate,
    to_int32,
)
from .tables import correctly_rounded, tabulated

__all__ = [
    "abs_",
    "ceil",
    "cos",
    "elu",
    "exp",
    "floor",
    "gelu",
    "hard_swish",
    "l2_normalization",
    "leaky_relu",
    "log",
    "logistic",
    "neg",
    "prelu",
    "relu",
    "relu6",
    "relu_0_to_1",
    "relu_n1_to_1",
    "round_",
    "rsqrt",
    "sign",
    "sin",
    "sqrt",
    "square",
    "tanh",
]

_exp = correctly_rounded(np.exp)
_tanh = correctly_rounded(np.tanh)


def relu(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """max(x, 0), rescaled."""
    return [_clipped(op, inputs, 0, None, INT8, UINT8, "int16", "float32")]


def relu6(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """x limited to 0 to 6, rescaled."""
    return [_clipped(op, inputs, 0, 6, INT8, UINT8, "int16", "float32")]


def relu_n1_to_1(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """x limited to -1 to 1, rescaled."""
    return [_clipped(op, inputs, -1, 1, INT8, UINT8, "float32")]


def relu_0_to_1(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """x limited to 0 to 1, rescaled."""
    return [_clipped(op, inputs, 0, 1, INT8, UINT8, "float32")]


def _clipped(
    op: Operation, inputs: Sequence[NDArray | None], least: int, greatest: int | None, *dtypes: str
) -> NDArray:
    dtype = require_types(op, 0, *dtypes)
    x = operand(op, inputs, 0)
    if dtype == "float32":
        result = np.where(x < least, np.float32(least), x)
        return result if greatest is None else np.where(result > greatest, np.float32(greatest), result)
    q_in, q_out = parameters(op, op.inputs[0]), parameters(op, op.outputs[0])
    factor = np.float32(q_in.scale) / np.float32(q_out.scale)
    value = q_out.zero_point + multiply_by_factor(x.astype(np.int64) - q_in.zero_point, *split_factor(float(factor)))
    low, high = LIMITS[dtype]
    low = max(low, int(wrap_int32(q_out.zero_point + _quantized(least, q_out.scale))))
    if greatest is not None:
        high = min(high, int(wrap_int32(q_out.zero_point + _quantized(greatest, q_out.scale))))
    return np.minimum(np.maximum(wrap_int32(value), low), high).astype(dtype)


def _quantized(value: int, scale: float) -> int:
    return int(to_int32(round_half_away(np.asarray(np.float32(value) / np.float32(scale)))))


def leaky_relu(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """x where positive, else alpha * x, each rescaled."""
    dtype = require_types(op, 0, INT8, UINT8, "int16", "float32")
    x = operand(op, inputs, 0)
    alpha = np.float32(op.options["alpha"])
    if dtype == "float32":
        return [np.where(x > 0, x, x * alpha)]
    q_in, q_out = parameters(op, op.inputs[0]), parameters(op, op.outputs[0])
    scale_in, scale_out = np.float32(q_in.scale), np.float32(q_out.scale)
    value = x.astype(np.int64) - q_in.zero_point
    # Ties of a negative alpha are those of its magnitude.
    slope = float(scale_in * alpha / scale_out)
    negative = multiply_by_factor(value, *split_factor(abs(slope)))
    result = np.where(
        value >= 0,
        multiply_by_factor(value, *split_factor(float(scale_in / scale_out))),
        -negative if slope < 0 else negative,
    )
    return [saturate(wrap_int32(result + q_out.zero_point), dtype)]


def prelu(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """x where positive, else alpha * x, with alpha a tensor."""
    dtype = require_types(op, 0, INT8, UINT8, "int16", "float32")
    require_types(op, 1, INT8 if dtype == "int16" else dtype)
    x, alpha = operand(op, inputs, 0), operand(op, inputs, 1)
    if dtype == "float32":
        return [np.where(x >= 0, x, x * alpha)]
    q_in, q_alpha, q_out = (parameters(op, t) for t in (op.inputs[0], op.inputs[1], op.outputs[0]))
    scale_in, scale_out = np.float32(q_in.scale), np.float32(q_out.scale)
    value = x.astype(np.int64) - q_in.zero_point
    product = value * (alpha.astype(np.int64) - q_alpha.zero_point)
    result = np.where(
        value >= 0,
        multiply_by_factor(value, *split_factor(float(scale_in / scale_out))),
        multiply_by_factor(product, *split_factor(float(scale_in * np.float32(q_alpha.scale) / scale_out))),
    )
    return [saturate(wrap_int32(result + q_out.zero_point), dtype)]


def logistic(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """1 / (1 + exp(-x))."""
    dtype = require_types(op, 0, INT8, UINT8, "int16", "float32")
    x = operand(op, inputs, 0)
    if dtype == "float32":
        # TFLite's shortcuts for values at which one term vanishes
        result = np.float32(1) / (np.float32(1) + _exp(-x))
        return [np.where(x > np.float32(16.619047164916992), np.float32(1), np.where(x < -9, _exp(x), result))]
    if dtype == "int16":
        return [_logistic_int16(op, x)]
    return [tabulated(op, lambda v: np.float32(1) / (np.float32(1) + _exp(-v)), x)]


def tanh(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Hyperbolic tangent."""
    dtype = require_types(op, 0, INT8, UINT8, "int16", "float32")
    x = operand(op, inputs, 0)
    if dtype == "float32":
        return [_tanh(x)]
    return [_tanh_int16(op, x) if dtype == "int16" else tabulated(op, _tanh, x)]


_SIGMOID_ABOVE = (
    *(4, 8, 12, 14, 15, 16, 17, 19, 20, 21, 22, 25, 27, 28, 29, 30, 31, 33, 34, 35, 37, 39, 40, 41, 43, 44, 45, 46),
    *(49, 50, 54, 62, 63, 64, 66, 82, 86, 93, 100, 103, 112, 116, 135, 255),
)
"""Where TFLite's table of the logistic function is one above the rounded value"""


def _sigmoid_table() -> NDArray[np.int64]:
    """The logistic function of i / 24 for i from 0 to 255, in 1/65536."""
    table = np.floor(65536 / (1 + np.exp(-np.arange(256) / 24)) + 0.5).astype(np.int64)
    table[list(_SIGMOID_ABOVE)] += 1
    return table


def _interpolate(magnitude: NDArray[np.int64], bits: int, greatest: int) -> NDArray[np.int64]:
    """The logistic function, in 2**-16-bits, of a multiple of 2**-bits / 24."""
    table = _sigmoid_table()
    index = magnitude >> bits
    within = np.minimum(index, 254)
    below, above = table[within], table[within + 1]
    return np.where(index >= 255, greatest, (below << bits) + (magnitude & ((1 << bits) - 1)) * (above - below))


def _int16_scaled(op: Operation, x: NDArray, left_shifts: tuple[int, ...]) -> NDArray[np.int64]:
    """int16 operands of LOGISTIC and TANH in 1 / (3 * 4096).

    Parameters
    ----------
    left_shifts
        What 4096 times an input scale may be a power of two with, for an exact product.
    """
    q_in, q_out = parameters(op, op.inputs[0]), parameters(op, op.outputs[0])
    if (q_in.zero_point, q_out.zero_point) != (0, 0) or q_out.scale != 2.0**-15:
        refuse(op, "int16 with a zero point, or with an output scale other than 2**-15,")
    power = power_of_two(q_in.scale)
    if power is not None and 12 + power in left_shifts:
        return x.astype(np.int64) * (3 << (12 + power))
    factor, shift = q_in.scale * 4096.0 * 3.0, 0
    while factor <= 32767.0 / 2.0 and shift <= 30:
        factor, shift = factor * 2, shift + 1
    return wrap_int32(x.astype(np.int64) * int(factor) + ((1 << shift) >> 1)) >> shift


def _logistic_int16(op: Operation, x: NDArray) -> NDArray:
    scaled = _int16_scaled(op, x, (0,))
    result = _interpolate(np.abs(scaled), 9, 0x7FFF << 10)
    result = np.where(scaled >= 0, result + (1 << 9), (1 << 25) - result + (1 << 9) - 1)
    return (result >> 10).astype(np.int16)


def _tanh_int16(op: Operation, x: NDArray) -> NDArray:
    scaled = _int16_scaled(op, x, (0, 1))
    result = _interpolate(np.abs(scaled), 8, 0xFFFF << 8)
    result = np.where(scaled >= 0, result - (1 << 23) + (1 << 7), -result + (1 << 23) + (1 << 7) - 1)
    return (result >> 8).astype(np.int16)


def elu(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """x where positive, else exp(x) - 1."""
    dtype = require_types(op, 0, INT8, "float32")
    x = operand(op, inputs, 0)
    return [_elu(x) if dtype == "float32" else tabulated(op, _elu, x)]


def _elu(x: NDArray) -> NDArray:
    return np.where(x < 0, correctly_rounded(np.expm1)(np.minimum(x, 0)), x)


def gelu(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """x times the normal distribution function of x, or an approximation by tanh."""
    dtype = require_types(op, 0, INT8, UINT8, "int16", "float32")
    x = operand(op, inputs, 0)
    function = _gelu_by_tanh if op.options.get("approximate") else _gelu
    return [function(x) if dtype == "float32" else tabulated(op, function, x)]


_erfc = np.frompyfunc(math.erfc, 1, 1)


def _gelu(x: NDArray) -> NDArray:
    tail = np.asarray(_erfc((x * np.float32(-math.sqrt(0.5))).astype(np.float64)), np.float32)
    return np.float32(0.5) * x * tail


def _gelu_by_tanh(x: NDArray) -> NDArray:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.float32(0.5) * x * (np.float32(1) + _tanh(inner))


def exp(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Exponential."""
    dtype = require_types(op, 0, INT8, "int16", "float32")
    x = operand(op, inputs, 0)
    return [_exp(x) if dtype == "float32" else tabulated(op, _exp, x)]


def log(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Natural logarithm; the output's least value where it is not defined."""
    dtype = require_types(op, 0, INT8, "int16", "float32")
    x = operand(op, inputs, 0)
    if dtype == "float32":
        with np.errstate(invalid="ignore", divide="ignore"):
            return [correctly_rounded(np.log)(x)]
    q_out = parameters(op, op.outputs[0])
    least = np.float32(LIMITS[dtype][0] - q_out.zero_point) * np.float32(q_out.scale)
    defined = correctly_rounded(np.log)
    return [tabulated(op, lambda v: np.where(v <= 0, least, defined(np.where(v <= 0, np.float32(1), v))), x)]


def sqrt(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Square root; that of integers is truncated."""
    dtype = require_types(op, 0, INT8, "int16", "float32")
    x = operand(op, inputs, 0)
    if dtype == "float32":
        with np.errstate(invalid="ignore"):
            return [np.sqrt(x)]
    q_in, q_out = parameters(op, op.inputs[0]), parameters(op, op.outputs[0])
    value = x.astype(np.int64) - q_in.zero_point
    if value.size and value.min() < 0:
        refuse_values(op, "a negative value")
    root = np.sqrt(np.float32(q_in.scale) * value.astype(np.float32)) / np.float32(q_out.scale)
    return [saturate(np.minimum(root, np.float32(1 << 20)).astype(np.int64) + q_out.zero_point, dtype)]


def rsqrt(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """One over the square root."""
    dtype = require_types(op, 0, INT8, "int16", "float32")
    x = operand(op, inputs, 0)
    if dtype == "float32":
        with np.errstate(invalid="ignore", divide="ignore"):
            return [np.float32(1) / np.sqrt(x)]
    q_in, q_out = parameters(op, op.inputs[0]), parameters(op, op.outputs[0])
    if dtype == "int16":
        greatest = np.float32(32767) * np.float32(q_out.scale)
        positive = np.float32(1)
        return [
            tabulated(op, lambda v: np.where(v <= 0, greatest, positive / np.sqrt(np.where(v <= 0, positive, v))), x)
        ]
    value = x.astype(np.int64) - q_in.zero_point
    if value.size and value.min() < 0:
        refuse_values(op, "a negative value")
    multiplier, exponent = fixed_point.inverse_square_root(value)
    shift = 20  # keeps 1 an integer
    data = multiply_by_factor(1, multiplier, exponent + shift)
    factor = 1.0 / float(np.sqrt(np.float32(q_in.scale)) * np.float32(q_out.scale))
    multiplier_out, exponent_out = split_factor(factor)
    result = multiply_by_factor(data, multiplier_out, exponent_out - shift) + q_out.zero_point
    return [np.where(value == 0, np.int8(127), saturate(wrap_int32(result), dtype))]


def abs_(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Magnitude, rescaled."""
    dtype = require_types(op, 0, INT8, "int16", "int32", "float32")
    x = operand(op, inputs, 0)
    t = op.inputs[0]
    if dtype in ("int32", "float32") or t is None or t.quantization is None:
        return [np.abs(x)]
    q_in, q_out = parameters(op, op.inputs[0]), parameters(op, op.outputs[0])
    value = np.abs(x.astype(np.int64) - q_in.zero_point)
    if q_in.scale != q_out.scale:
        factor = np.float32(q_in.scale) / np.float32(q_out.scale)
        value = multiply_by_factor(value, *split_factor(float(factor)))
    return [saturate(wrap_int32(value + q_out.zero_point), dtype)]


def neg(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Negative of the number itself: quantization does not count, as in LiteRT."""
    require_types(op, 0, INT8, "int16", "int32", "int64", "float32")
    return [np.negative(operand(op, inputs, 0))]


def square(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Square."""
    require_types(op, 0, "float32")
    x = operand(op, inputs, 0)
    return [x * x]


def floor(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Greatest integer not above."""
    require_types(op, 0, "float32")
    return [np.floor(operand(op, inputs, 0))]


def ceil(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Least integer not below."""
    require_types(op, 0, "float32")
    return [np.ceil(operand(op, inputs, 0))]


def round_(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Nearest integer, the even one of two."""
    require_types(op, 0, "float32")
    return [np.rint(operand(op, inputs, 0))]


def sign(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """-1, 0 or 1."""
    require_types(op, 0, "int32", "float32")
    return [np.sign(operand(op, inputs, 0))]


def sin(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Sine."""
    require_types(op, 0, "float32")
    return [correctly_rounded(np.sin)(operand(op, inputs, 0))]


def cos(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Cosine."""
    require_types(op, 0, "float32")
    return [correctly_rounded(np.cos)(operand(op, inputs, 0))]


def l2_normalization(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """x over its norm along the last axis; quantized outputs are of scale 1/128."""
    dtype = require_types(op, 0, INT8, UINT8, "float32")
    if op.options.get("activation", "NONE") != "NONE":
        refuse(op, f"fused activation {op.options['activation']}")
    x = operand(op, inputs, 0)
    if dtype == "float32":
        norm = np.sqrt(in_order(np.add, x * x, (x.ndim - 1,)))[..., None]
        return [x / np.maximum(norm, np.float32(1e-6))]
    value = x.astype(np.int64) - parameters(op, op.inputs[0]).zero_point
    multiplier, exponent = fixed_point.inverse_square_root(wrap_int32((value * value).sum(axis=-1, keepdims=True)))
    if dtype == INT8:
        return [saturate(multiply_by_factor(value, multiplier, exponent + 7), dtype)]
    return [saturate(128 + multiply_by_factor(128 * value, multiplier, exponent), dtype)]


def hard_swish(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """x * relu6(x + 3) / 6, in 16-bit fixed point."""
    dtype = require_types(op, 0, INT8, UINT8, "float32")
    x = operand(op, inputs, 0)
    if dtype == "float32":
        return [x * np.minimum(np.float32(6), np.maximum(np.float32(0), x + np.float32(3))) / np.float32(6)]
    q_in, q_out = parameters(op, op.inputs[0]), parameters(op, op.outputs[0])
    fine = np.float32(1 / 128) * np.float32(q_in.scale)
    out_multiplier, out_exponent = _split_int16(float(fine / np.float32(q_out.scale)))
    if out_exponent > 0:
        refuse(op, f"input scale {q_in.scale} with output scale {q_out.scale}")
    slope_multiplier, slope_exponent = _split_int16(float(fine / (np.float32(3) / np.float32(32768))))
    if slope_exponent > 31:
        # LiteRT's vector code leaves nothing of such shifts, its scalar code takes the distance modulo 32
        refuse(op, f"input scale {q_in.scale}")
    value = (x.astype(np.int64) - q_in.zero_point) * 128
    on_output_scale = _high_mul_int16(value, out_multiplier)
    slope = value
    if slope_exponent > 0:
        # TFLite shifts an int32
        slope = _clip_int16(slope * int(wrap_int32(1 << slope_exponent - 1)))
    slope = _high_mul_int16(slope, slope_multiplier)
    if slope_exponent > 0:
        slope = _clip_int16(slope << 1)
    elif slope_exponent < 0:
        slope = _divide_int16(slope, -slope_exponent)
    slope = (slope + (1 << 15)) >> 1
    product = slope * on_output_scale
    product = np.where(product >= 0, product >> 15, -(-product >> 15))  # towards zero
    return [saturate(_divide_int16(product, -out_exponent) + q_out.zero_point, dtype)]


def _split_int16(factor: float) -> tuple[int, int]:
    """`split_factor` with a multiplier of 16 bits."""
    multiplier, exponent = split_factor(factor)
    return min((multiplier + (1 << 15)) >> 16, 32767), exponent


def _divide_int16(x: NDArray, exponent: int) -> NDArray:
    """`rounding_divide_by_pot` of int16. Beyond 15 its mask of 16 bits is -1, and a sign is all that is left of x."""
    return rounding_divide_by_pot(x, exponent) if exponent < 16 else np.where(x < 0, -1, 1)


def _clip_int16(x: NDArray) -> NDArray:
    return np.clip(x, -32768, 32767)


def _high_mul_int16(a: NDArray, b: int) -> NDArray:
    """Saturating rounding doubling high multiply of int16."""
    return np.minimum((a * b + (1 << 14)) >> 15, 32767)
