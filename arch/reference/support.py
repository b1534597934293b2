"""What the references share: refusals, parameters of quantized tensors, activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from ..dtypes import LIMITS
from ..errors import InputError, UnsupportedOperatorError
from ..numerics import wrap_int32
from ..operation import Operation, Quantization, TensorType

__all__ = [
    "LIMITS",
    "QUANTIZED",
    "activate",
    "activation_range",
    "check_axis",
    "float32",
    "operand",
    "parameters",
    "power_of_two",
    "refuse",
    "refuse_values",
    "require_types",
    "round_half_away",
    "saturate",
    "to_int32",
    "type_name",
]

QUANTIZED = tuple(LIMITS)


def refuse(op: Operation, what: str) -> NoReturn:
    """Raise UnsupportedOperatorError: the operator and what of it is not supported."""
    raise UnsupportedOperatorError(f"{op.kind}: {what} not supported by the reference")


def refuse_values(op: Operation, what: str) -> NoReturn:
    """Raise InputError: what is wrong with the values of the operands; LiteRT refuses them, too."""
    raise InputError(f"{op.kind}: {what}; give other inputs")


def type_name(t: TensorType | None) -> str:
    return "no operand" if t is None else t.dtype


def operand(op: Operation, inputs: Sequence[NDArray | None], index: int) -> NDArray:
    """An operand that must be there."""
    value = inputs[index] if index < len(inputs) else None
    if value is None:
        refuse(op, f"no operand {index}")
    return value


def require_types(op: Operation, index: int, *dtypes: str) -> str:
    """The type of operand `index`, which must be one of `dtypes`."""
    t = op.inputs[index]
    if t is None or t.dtype not in dtypes:
        refuse(op, f"{type_name(t)} as operand {index}")
    return t.dtype


def parameters(op: Operation, t: TensorType | None) -> Quantization:
    """The quantization of a tensor that must have one for the whole tensor."""
    if t is None or t.quantization is None:
        refuse(op, f"{type_name(t)} without quantization")
    if not t.quantization.is_per_tensor:
        refuse(op, f"{t.dtype} quantized per channel")
    return t.quantization


def float32(value: float) -> np.float32:
    return np.float32(value)


def round_half_away(x: NDArray) -> NDArray:
    """C's `round`, of the type of x."""
    whole = np.trunc(x)
    # x - whole is exact
    return np.where(np.abs(x - whole) >= 0.5, whole + np.sign(x), whole).astype(x.dtype)


def to_int32(x: NDArray) -> NDArray[np.int64]:
    """C's cast of floating point to int32, as computers do it: -2**31 where it does not fit."""
    fits = (x >= -(2.0**31)) & (x < 2.0**31)
    return np.where(fits, np.trunc(np.where(fits, x, 0)), -(2.0**31)).astype(np.int64)


def saturate(values: NDArray, dtype: str) -> NDArray:
    """Clamp integers to a type and convert."""
    low, high = LIMITS[dtype]
    return np.clip(values, low, high).astype(dtype)


def activation_range(op: Operation, t: TensorType, activation: str) -> tuple[int, int]:
    """Least and greatest quantized value after a fused activation (TFLite `CalculateActivationRangeQuantized`)."""
    low, high = LIMITS[t.dtype]
    if activation == "NONE":
        return low, high
    bounds = {"RELU": (0, None), "RELU6": (0, 6), "RELU_N1_TO_1": (-1, 1)}.get(activation)
    if bounds is None:
        refuse(op, f"fused activation {activation}")
    q = parameters(op, t)

    def quantize(value: int) -> int:
        scaled = float(round_half_away(np.asarray(np.float32(value) / np.float32(q.scale))))
        if abs(scaled) > (1 << 31) - 1:
            refuse(op, f"{activation} of an output of scale {q.scale}")
        return int(scaled) + q.zero_point

    least, greatest = bounds
    return max(low, quantize(least)), high if greatest is None else min(high, quantize(greatest))


def activate(op: Operation, values: NDArray, output: TensorType) -> NDArray:
    """Add the output's zero point to int32 values, apply the fused activation, convert to the output's type."""
    low, high = activation_range(op, output, op.options.get("activation", "NONE"))
    total = wrap_int32(values + parameters(op, output).zero_point)
    return np.minimum(np.maximum(total, low), high).astype(output.dtype)


def check_axis(op: Operation, axis: int, rank: int) -> int:
    """An axis counted from the front."""
    result = axis + rank if axis < 0 else axis
    if not 0 <= result < max(rank, 1):
        refuse(op, f"axis {axis} of {rank} dimensions")
    return result


def power_of_two(scale: float) -> int | None:
    """The logarithm if the scale is a power of two, as TFLite decides it (`CheckedLog2`)."""
    log2 = np.float32(math.log(scale)) * np.float32(np.float32(1) / np.float32(math.log(2.0)))
    rounded = math.floor(log2 + 0.5) if log2 >= 0 else math.ceil(log2 - 0.5)
    return rounded if abs(log2 - np.float32(rounded)) < 1e-3 else None
