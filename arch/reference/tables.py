"""Functions of one quantized value as tables, as TFLite fills them (`LUTPopulate`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..dtypes import INT8, LIMITS, UINT8
from ..operation import Operation
from .support import operand, parameters, refuse, require_types, round_half_away

__all__ = [
    "Function",
    "byte_table",
    "correctly_rounded",
    "int16_lookup",
    "int16_table",
    "look_up",
    "table",
    "tabulated",
]

Function = Callable[[NDArray], NDArray]


def correctly_rounded(function: Function) -> Function:
    """A float32 function by way of float64: NumPy's own float32 functions are a unit or more off."""

    def rounded(x: NDArray) -> NDArray:
        with np.errstate(over="ignore"):
            return np.asarray(function(x.astype(np.float64))).astype(np.float32)

    return rounded


def byte_table(op: Operation, function: Function) -> NDArray:
    """The output for each value of an int8 or uint8 input, from the least: float32 arithmetic."""
    q_in, q_out = parameters(op, op.inputs[0]), parameters(op, op.outputs[0])
    low, high = LIMITS[op.outputs[0].dtype]
    values = np.arange(low, high + 1)
    x = np.float32(q_in.scale) * (values - q_in.zero_point).astype(np.float32)
    inverse = np.float32(1) / np.float32(q_out.scale)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        rescaled = round_half_away(function(x) * inverse) + np.float32(q_out.zero_point)
    return np.clip(rescaled, low, high).astype(op.outputs[0].dtype)


def tabulated(op: Operation, function: Function, x: NDArray) -> NDArray:
    """A float32 function of an int8, uint8 or int16 operand by its table."""
    if x.dtype != np.int16:
        return look_up(byte_table(op, function), x)
    q_in, q_out = parameters(op, op.inputs[0]), parameters(op, op.outputs[0])
    table = int16_table(function, q_in.scale, q_in.zero_point, q_out.scale, q_out.zero_point, np.float32)
    return int16_lookup(x, table).astype(np.int16)


def table(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """TABLE: of each int8 or uint8 value the entry of operand 1, which begins with the least value's."""
    require_types(op, 0, INT8, UINT8)
    entries = operand(op, inputs, 1)
    if entries.shape != (256,):
        refuse(op, f"a table of shape {entries.shape}")
    return [look_up(entries, operand(op, inputs, 0))]


def look_up(table: NDArray, x: NDArray) -> NDArray:
    """Entries of a table that begins with the least value of x's type."""
    return table[x.astype(np.int64) - LIMITS[x.dtype.name][0]]


def int16_table(
    function: Function,
    input_scale: float,
    input_zero_point: int,
    output_scale: float,
    output_zero_point: int,
    kind: type[np.floating] = np.float64,
) -> NDArray[np.int64]:
    """513 samples of a function over the int16 values, for interpolation by `int16_lookup`.

    Parameters
    ----------
    kind
        The type of all arithmetic.
    """
    low, high = LIMITS["int16"]
    scale_in, scale_out, half = kind(input_scale), kind(output_scale), kind(0.5)
    least, greatest = scale_in * kind(low - input_zero_point), scale_in * kind(high - input_zero_point)
    span = scale_out * kind(high - output_zero_point) - scale_out * kind(low - output_zero_point)
    inverse = kind(high - low + 1) / span
    step = (greatest - least) / kind(512)
    at = np.arange(513).astype(kind)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        exact = function(least + at * step) * inverse
        value = round_half_away(exact[:-1])
        middle = round_half_away(function(least + at[:-1] * step + step * half) * inverse)
        bias = round_half_away((round_half_away((exact[1:] + value) * half) - middle) * half)
        last = round_half_away(function(np.asarray([greatest])) * inverse)
        samples = np.clip(np.append(value - bias, last), low, high)
    return np.where(np.isnan(samples), 0, samples).astype(np.int64)


def int16_lookup(x: NDArray, table: NDArray[np.int64]) -> NDArray[np.int64]:
    """Interpolate a table of `int16_table`."""
    x = np.asarray(x, np.int64)
    index = 256 + (x >> 7)
    base = table[index]
    slope = _wrap_int16(table[index + 1] - base)
    return _wrap_int16(base + ((slope * (x & 0x7F) + 64) >> 7))


def _wrap_int16(x: NDArray[np.int64]) -> NDArray[np.int64]:
    return ((x + (1 << 15)) & 0xFFFF) - (1 << 15)
