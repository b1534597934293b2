"""Requantization as TIR expressions, bit for bit `nnloom.arch.numerics`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch import numerics
from nnloom.arch.dtypes import INT8

from .operator import KernelOp, multipliers

__all__ = ["clamp", "factors", "requantize", "requantize_small", "round_even", "scale", "split_factor"]


def split_factor(real: float) -> tuple[int, int]:
    """`numerics.split_factor` as multiplier and right shift; a negative one is a left shift (the CPU has those)."""
    multiplier, exponent = numerics.split_factor(real)
    return multiplier, -exponent


def factors(op: KernelOp) -> tuple[NDArray, NDArray[np.int32]]:
    """(multiplier, shift), int32 [outputs]; with ONNX Runtime's rounding float32 factors and zeros."""
    if op.factors is not None:
        return op.factors, np.zeros(len(op.factors), np.int32)
    multiplier, shift = np.array(multipliers(op), np.int64).T
    return multiplier.astype(np.int32), shift.astype(np.int32)


def requantize(acc: Any, multiplier: Any, shift: Any, *, double_rounding: bool, left: bool = False) -> Any:
    """`numerics.requantize` on int32 expressions; returns int64.

    With `left`, a negative shift means that the accumulator is shifted left before it is multiplied.
    """
    from tvm import tirx

    shift = shift.astype("int64")
    one, zero = tirx.const(1, "int64"), tirx.const(0, "int64")
    if left:
        acc = (acc.astype("int64") << tirx.max(-shift, zero)).astype("int32")
        shift = tirx.max(shift, zero)
    product = acc.astype("int64") * multiplier.astype("int64")
    if not double_rounding:
        total = shift + 31
        return (product + (one << (total - 1))) >> total
    high = (product + (1 << 30)) >> 31
    half = (one << shift) >> 1
    # Ties go away from zero: one less below zero, where there is a shift at all.
    correction = tirx.Select(high < 0, tirx.min(shift, one), zero)
    return (high + half - correction) >> shift


def requantize_small(acc: Any, multiplier: Any, shift: Any, *, always_shifts: bool) -> Any:
    """`requantize` with double rounding of |acc| < 2**30 and no left shift, in int32 but for the product.

    With `always_shifts`, every shift is above zero.
    """
    from tvm import tirx

    product = acc.astype("int64") * multiplier.astype("int64")
    high = ((product + (1 << 30)) >> 31).astype("int32")
    one, zero = tirx.const(1, "int32"), tirx.const(0, "int32")
    half = (one << shift) >> 1
    negative = high >> 31
    if not always_shifts:
        negative = tirx.Select(shift > 0, negative, zero)
    return (high + half + negative) >> shift


def scale(value: Any, factor: Any, low: int, high: int, zero_point: int) -> Any:
    """int8 of an int32 sum times a float32 factor, ties to even, as ONNX Runtime rounds
    (`nnloom.arch.reference.onnx`)."""
    return round_even(value.astype("float32") * factor, low, high, zero_point)


ROUNDER = 1.5 * 2**23
"""Added to a float32 of small magnitude, it leaves the integer nearest to it, ties to even, in the last bits."""


def round_even(scaled: Any, low: int, high: int, zero_point: int) -> Any:
    """int8 of a float32 expression plus the zero point, limited to [low, high]."""
    from tvm import tirx

    least, greatest = (tirx.const(float(v - zero_point), "float32") for v in (low, high))
    limited = tirx.max(tirx.min(scaled, greatest), least)
    # Quicker to compile, by far, than `nearbyint`.
    bits = tirx.reinterpret("int32", limited + tirx.const(ROUNDER, "float32"))
    return (bits + tirx.const(zero_point, "int32")).astype(INT8)


def clamp(value: Any, low: int, high: int, kind: str, *, offset: int = 0) -> Any:
    """int8 of an expression of type `kind`, limited to [low, high], plus an offset."""
    from tvm import tirx

    limited = tirx.max(tirx.min(value, tirx.const(high, kind)), tirx.const(low, kind))
    return (limited + tirx.const(offset, kind)).astype(INT8)
