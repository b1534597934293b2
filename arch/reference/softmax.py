"""SOFTMAX and LOG_SOFTMAX, over the last axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..dtypes import EIGHT_BITS, INT8, LIMITS, UINT8
from ..numerics import multiply_by_factor, rounding_divide_by_pot, split_factor, wrap_int32
from ..operation import Operation
from . import fixed_point
from .reduce import in_order
from .support import operand, parameters, refuse, require_types
from .tables import correctly_rounded, int16_lookup, int16_table

__all__ = ["SUM_BITS", "exponentials", "log_softmax", "softmax"]

_exp = correctly_rounded(np.exp)

_DIFFERENCE_BITS = 5
"""Integer bits of differences from the maximum"""
SUM_BITS = 12
"""Integer bits of the sum of exponentials"""


def softmax(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """exp(beta * x) over its sum; int8, uint8 and int16 in fixed point, float32 in float32."""
    dtype = require_types(op, 0, INT8, UINT8, "int16", "float32")
    x = operand(op, inputs, 0)
    out = op.outputs[0].dtype
    if dtype == "float32" and out == "float32":
        return [_softmax_float32(x, float(op.options["beta"]))]
    if dtype == "int16" and out == "int16":
        return [_softmax_int16(op, x)]
    if dtype in EIGHT_BITS and out in (INT8, UINT8, "int16"):
        return [_softmax_int8(op, x)]
    refuse(op, f"{dtype} to {out}")


def log_softmax(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """x less the logarithm of the sum of exponentials; int8 outputs are of scale 1/16 and zero point 127."""
    dtype = require_types(op, 0, INT8, "float32")
    x = operand(op, inputs, 0)
    if dtype == "float32":
        difference = x - x.max(axis=-1, keepdims=True)
        total = in_order(np.add, _exp(difference), (x.ndim - 1,))[..., None]
        return [difference - correctly_rounded(np.log)(total)]
    multiplier, exponent, count = _difference_scaling(op, 1.0)
    inverse, inverse_exponent = split_factor((1 << (31 - exponent)) / multiplier)
    scaled = multiply_by_factor(-np.arange(256), multiplier, exponent)
    exps = np.where(np.arange(256) < count, fixed_point.exp_on_negative_values(scaled, _DIFFERENCE_BITS), 0)
    below = x.max(axis=-1, keepdims=True).astype(np.int64) - x
    total = wrap_int32(rounding_divide_by_pot(exps, SUM_BITS)[below].sum(axis=-1, keepdims=True))
    log_total = fixed_point.log(total, SUM_BITS, _DIFFERENCE_BITS)
    least = multiply_by_factor(log_total - (1 << 31), inverse, inverse_exponent)
    result = rounding_divide_by_pot(scaled[below] - log_total, 31 - _DIFFERENCE_BITS - 4) + 127
    return [np.where(-below > np.maximum(-count, least), np.clip(result, -128, 127), -128)]


def _difference_scaling(op: Operation, beta: float) -> tuple[int, int, int]:
    """Multiplier and exponent of differences from the maximum, and how many differences count."""
    scale = parameters(op, op.inputs[0]).scale
    factor = min(beta * scale * (1 << (31 - _DIFFERENCE_BITS)), (1 << 31) - 1.0)
    if factor <= 1:
        refuse(op, f"input scale {scale}")
    multiplier, exponent = split_factor(factor)
    radius = math.floor(((1 << _DIFFERENCE_BITS) - 1) * (1 << (31 - _DIFFERENCE_BITS)) / (1 << exponent))
    return multiplier, exponent, radius + 1


def _softmax_float32(x: NDArray, beta: float) -> NDArray:
    exps = _exp((x - x.max(axis=-1, keepdims=True)) * np.float32(beta))
    return exps / in_order(np.add, exps, (x.ndim - 1,))[..., None]


def exponentials(op: Operation) -> NDArray[np.int64]:
    """exp(beta * scale * -d) of an 8-bit softmax in Q0.31 for d = 0 to 255, zero where TFLite counts it as zero."""
    scale = parameters(op, op.inputs[0]).scale
    beta = float(np.float32(op.options["beta"]))
    factor = min(beta * scale * (1 << (31 - _DIFFERENCE_BITS)), (1 << 31) - 1.0)
    if factor <= 1:
        refuse(op, f"beta {beta} with input scale {scale}")
    multiplier, exponent = split_factor(factor)
    least = -math.floor(((1 << _DIFFERENCE_BITS) - 1) * (1 << (31 - _DIFFERENCE_BITS)) / (1 << exponent))
    count = min(256, -least + 1)
    scaled = multiply_by_factor(-np.arange(count), multiplier, exponent)
    exps = np.zeros(256, np.int64)
    exps[:count] = fixed_point.exp_on_negative_values(scaled, _DIFFERENCE_BITS)
    return exps


def _softmax_int8(op: Operation, x: NDArray) -> NDArray:
    exps = exponentials(op)
    below = x.max(axis=-1, keepdims=True).astype(np.int64) - x
    terms = rounding_divide_by_pot(exps, SUM_BITS)[below]
    mantissa, bits = fixed_point.reciprocal(wrap_int32(terms.sum(axis=-1, keepdims=True)), SUM_BITS)
    out = op.outputs[0].dtype
    low, high = LIMITS[out]
    result = rounding_divide_by_pot(fixed_point.multiply(mantissa, exps[below]), bits + 31 - 8 * np.dtype(out).itemsize)
    return np.where(exps[below] > 0, np.clip(result + low, low, high), low).astype(out)


def _softmax_int16(op: Operation, x: NDArray) -> NDArray:
    scale = np.float32(parameters(op, op.inputs[0]).scale)
    factor = float(scale * np.float32(op.options["beta"])) / (10.0 / 65535.0)
    difference = x.astype(np.int64) - x.max(axis=-1, keepdims=True)
    scaled = np.clip(multiply_by_factor(difference, *split_factor(factor)) + 32767, -32768, 32767)
    exp_table = int16_table(np.exp, 10.0 / 65535, 32767, 2.0 / 65535, 0)
    exps = int16_lookup(scaled, exp_table)
    total = exps.sum(axis=-1, keepdims=True)
    headroom = fixed_point.count_leading_zeros(total)
    shifted = ((total << (headroom - 1)) + (1 << 13)) >> 14
    table = int16_table(lambda v: 1.0 / (1.0 + v), 1.0 / 65535, -32768, 2.0 / 65535, 0)
    mantissa = int16_lookup(np.clip(shifted - (1 << 15) - (1 << 16), -32768, 32767), table)
    shift = 31 - headroom
    return np.clip((exps * mantissa + (np.int64(1) << (shift - 1))) >> shift, 0, 32767).astype(np.int16)
