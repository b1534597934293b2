"""Functions of one value."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..numerics import multiply_by_factor, rounding_divide_by_pot, split_factor, wrap_int32
from ..operation import Operation
from .support import LIMITS, operand, parameters, refuse, require_types, round_half_away, saturate
from .tables import byte_table, correctly_rounded, look_up

__all__ = ["hard_swish", "leaky_relu", "logistic", "prelu", "relu", "relu6", "relu_0_to_1", "relu_n1_to_1", "tanh"]

_exp = correctly_rounded(np.exp)
_tanh = correctly_rounded(np.tanh)


def relu(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """max(x, 0), rescaled."""
    return [_clipped(op, inputs, 0, None, "int8", "uint8", "int16", "float32")]


def relu6(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """x limited to 0 to 6, rescaled."""
    return [_clipped(op, inputs, 0, 6, "int8", "uint8", "int16", "float32")]


def relu_n1_to_1(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """x limited to -1 to 1, rescaled."""
    return [_clipped(op, inputs, -1, 1, "int8", "uint8", "float32")]


def relu_0_to_1(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """x limited to 0 to 1, rescaled."""
    return [_clipped(op, inputs, 0, 1, "int8", "uint8", "float32")]


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
    low = max(low, q_out.zero_point + _quantized(least, q_out.scale))
    if greatest is not None:
        high = min(high, q_out.zero_point + _quantized(greatest, q_out.scale))
    return np.minimum(np.maximum(wrap_int32(value), low), high).astype(dtype)


def _quantized(value: int, scale: float) -> int:
    return int(round_half_away(np.asarray(np.float32(value) / np.float32(scale))))


def leaky_relu(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """x where positive, else alpha * x, each rescaled."""
    dtype = require_types(op, 0, "int8", "uint8", "int16", "float32")
    x = operand(op, inputs, 0)
    alpha = np.float32(op.options["alpha"])
    if dtype == "float32":
        return [np.where(x > 0, x, x * alpha)]
    q_in, q_out = parameters(op, op.inputs[0]), parameters(op, op.outputs[0])
    scale_in, scale_out = np.float32(q_in.scale), np.float32(q_out.scale)
    value = x.astype(np.int64) - q_in.zero_point
    result = np.where(
        value >= 0,
        multiply_by_factor(value, *split_factor(float(scale_in / scale_out))),
        multiply_by_factor(value, *split_factor(float(scale_in * alpha / scale_out))),
    )
    return [saturate(wrap_int32(result + q_out.zero_point), dtype)]


def prelu(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """x where positive, else alpha * x, with alpha a tensor."""
    dtype = require_types(op, 0, "int8", "uint8", "float32")
    require_types(op, 1, dtype)
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
    dtype = require_types(op, 0, "int8", "uint8", "int16", "float32")
    x = operand(op, inputs, 0)
    if dtype == "float32":
        # TFLite's shortcuts for values at which one term vanishes
        result = np.float32(1) / (np.float32(1) + _exp(-x))
        return [np.where(x > np.float32(16.619047164916992), np.float32(1), np.where(x < -9, _exp(x), result))]
    if dtype == "int16":
        return [_logistic_int16(op, x)]
    return [look_up(byte_table(op, lambda v: np.float32(1) / (np.float32(1) + _exp(-v))), x)]


def tanh(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Hyperbolic tangent."""
    dtype = require_types(op, 0, "int8", "uint8", "int16", "float32")
    x = operand(op, inputs, 0)
    if dtype == "float32":
        return [_tanh(x)]
    if dtype == "int16":
        refuse(op, "int16")
    return [look_up(byte_table(op, _tanh), x)]


def _logistic_int16(op: Operation, x: NDArray) -> NDArray:
    refuse(op, "int16")


def hard_swish(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """x * relu6(x + 3) / 6, in 16-bit fixed point."""
    dtype = require_types(op, 0, "int8", "uint8", "float32")
    x = operand(op, inputs, 0)
    if dtype == "float32":
        return [x * np.minimum(np.float32(6), np.maximum(np.float32(0), x + np.float32(3))) / np.float32(6)]
    q_in, q_out = parameters(op, op.inputs[0]), parameters(op, op.outputs[0])
    fine = np.float32(1 / 128) * np.float32(q_in.scale)
    out_multiplier, out_exponent = _split_int16(float(fine / np.float32(q_out.scale)))
    if out_exponent > 0:
        refuse(op, f"input scale {q_in.scale} with output scale {q_out.scale}")
    slope_multiplier, slope_exponent = _split_int16(float(fine / (np.float32(3) / np.float32(32768))))
    value = (x.astype(np.int64) - q_in.zero_point) * 128
    on_output_scale = _high_mul_int16(value, out_multiplier)
    slope = value
    if slope_exponent > 0:
        slope = _clip_int16(slope << (slope_exponent - 1))
    slope = _high_mul_int16(slope, slope_multiplier)
    if slope_exponent > 0:
        slope = _clip_int16(slope << 1)
    elif slope_exponent < 0:
        slope = rounding_divide_by_pot(slope, -slope_exponent)
    slope = (slope + (1 << 15)) >> 1
    product = slope * on_output_scale
    product = np.where(product >= 0, product >> 15, -(-product >> 15))  # towards zero
    return [saturate(rounding_divide_by_pot(product, -out_exponent) + q_out.zero_point, dtype)]


def _split_int16(factor: float) -> tuple[int, int]:
    """`split_factor` with a multiplier of 16 bits."""
    multiplier, exponent = split_factor(factor)
    return min((multiplier + (1 << 15)) >> 16, 32767), exponent


def _clip_int16(x: NDArray) -> NDArray:
    return np.clip(x, -32768, 32767)


def _high_mul_int16(a: NDArray, b: int) -> NDArray:
    """Saturating rounding doubling high multiply of int16."""
    return np.minimum((a * b + (1 << 14)) >> 15, 32767)
