"""Functions of one quantized value as tables, as TFLite fills them (`LUTPopulate`)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..operation import Operation
from .support import LIMITS, parameters, round_half_away, to_int32

__all__ = ["Function", "byte_table", "correctly_rounded", "int16_lookup", "int16_table", "look_up"]

Function = Callable[[NDArray], NDArray]


def correctly_rounded(function: Function) -> Function:
    """A float32 function by way of float64: NumPy's own float32 functions are a unit or more off."""
    return lambda x: function(x.astype(np.float64)).astype(np.float32)


def byte_table(op: Operation, function: Function) -> NDArray:
    """The output for each value of an int8 or uint8 input, from the least: float32 arithmetic."""
    q_in, q_out = parameters(op, op.inputs[0]), parameters(op, op.outputs[0])
    low, high = LIMITS[op.outputs[0].dtype]
    values = np.arange(low, high + 1)
    x = np.float32(q_in.scale) * (values - q_in.zero_point).astype(np.float32)
    inverse = np.float32(1) / np.float32(q_out.scale)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        rescaled = round_half_away(function(x) * inverse) + np.float32(q_out.zero_point)
    return np.clip(to_int32(rescaled), low, high).astype(op.outputs[0].dtype)


def look_up(table: NDArray, x: NDArray) -> NDArray:
    """Entries of a table that begins with the least value of x's type."""
    return table[x.astype(np.int64) - LIMITS[x.dtype.name][0]]


def int16_table(
    function: Function, input_scale: float, input_zero_point: int, output_scale: float, output_zero_point: int
) -> NDArray[np.int64]:
    """513 samples of a function over the int16 values, in float64, for interpolation by `int16_lookup`."""
    low, high = LIMITS["int16"]
    least, greatest = input_scale * (low - input_zero_point), input_scale * (high - input_zero_point)
    span = output_scale * (high - output_zero_point) - output_scale * (low - output_zero_point)
    inverse = (high - low + 1) / span
    step = (greatest - least) / 512
    at = np.arange(512)
    value = round_half_away(function(least + at * step) * inverse)
    middle = round_half_away(function(least + at * step + step / 2) * inverse)
    following = function(least + (at + 1) * step) * inverse
    bias = round_half_away((round_half_away((following + value) / 2) - middle) / 2)
    last = round_half_away(function(np.asarray(greatest)) * inverse)
    return np.clip(np.append(value - bias, last), low, high).astype(np.int64)


def int16_lookup(x: NDArray, table: NDArray[np.int64]) -> NDArray[np.int64]:
    """Interpolate a table of `int16_table`."""
    x = np.asarray(x, np.int64)
    index = 256 + (x >> 7)
    base = table[index]
    slope = table[index + 1] - base
    return base + ((slope * (x & 0x7F) + 64) >> 7)
