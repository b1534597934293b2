"""Operators on corresponding elements: QLinearAdd and QLinearMul, and all others on real numbers.

An operator whose operands are quantized and which ONNX Runtime has no quantized kernel for is dequantized, computed in
float32 and quantized.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...dtypes import LIMITS
from ...operation import Operation
from ..support import operand, parameters, refuse
from ..tables import correctly_rounded
from .quantized import limits, quantized, real

__all__ = ["BINARY", "FUNCTIONS", "UNARY", "add", "is_nan", "mul"]

_Reference = Callable[[Operation, Sequence[NDArray | None]], Sequence[NDArray]]


def add(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Sum: of quantized operands as QLinearAdd.

    The option `recentred` is what was taken from the values of a uint8 tensor to hold it as int8: the kernel's float32
    sums are of the values as they are in the file. The option `scalar_first` says that the first operand is a single
    value along the innermost axis of the file: then the kernel takes the other one first.
    """
    if not _is_quantized(op):
        return [quantized(op, real(op, inputs, 0) + real(op, inputs, 1))]
    first, second = (1, 0) if op.options.get("scalar_first") else (0, 1)
    offset = int(op.options.get("recentred", 0))
    scale = np.float32(parameters(op, op.outputs[0]).scale)
    zero = np.float32(parameters(op, op.outputs[0]).zero_point + offset)
    a, ratio_a, zero_a = _scaled(op, inputs, first, scale, offset)
    b, ratio_b, zero_b = _scaled(op, inputs, second, scale, offset)
    fixed = zero - _fused(zero_a, ratio_a, ratio_b * zero_b)
    total = np.rint(_fused(a, ratio_a, _fused(b, ratio_b, fixed)))
    low, high = limits(op)
    return [(np.clip(total, low + offset, high + offset) - offset).astype(op.outputs[0].dtype)]


def _scaled(
    op: Operation, inputs: Sequence[NDArray | None], index: int, scale: np.float32, offset: int
) -> tuple[NDArray, np.float32, np.float32]:
    """An operand's values, its scale over the output's, and its zero point."""
    q = parameters(op, op.inputs[index])
    values = operand(op, inputs, index).astype(np.float64) + offset
    return values, np.float32(q.scale) / scale, np.float32(q.zero_point + offset)


def _fused(a: NDArray | np.float32, b: np.float32, c: NDArray | np.float32) -> NDArray:
    """a * b + c, rounded once to float32: exact in float64, but for what is rounded to 53 bits first."""
    return (np.asarray(a, np.float64) * np.float64(b) + np.asarray(c, np.float64)).astype(np.float32)


def mul(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Product: of quantized operands as QLinearMul."""
    if not _is_quantized(op):
        return [quantized(op, real(op, inputs, 0) * real(op, inputs, 1))]
    a, b, out = (parameters(op, t) for t in (op.inputs[0], op.inputs[1], op.outputs[0]))
    offset = int(op.options.get("recentred", 0))
    factor = np.float32(a.scale) * np.float32(b.scale) / np.float32(out.scale)
    product = operand(op, inputs, 0).astype(np.int64) - a.zero_point
    product = product * (operand(op, inputs, 1).astype(np.int64) - b.zero_point)
    # The zero point is added in float32, before the result is rounded.
    total = product.astype(np.float32) * factor + np.float32(out.zero_point + offset)
    low, high = limits(op)
    return [(np.clip(np.rint(total), low + offset, high + offset) - offset).astype(op.outputs[0].dtype)]


def is_nan(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Whether real numbers are none."""
    return [np.isnan(real(op, inputs, 0))]


def _is_quantized(op: Operation) -> bool:
    """Whether ONNX Runtime's quantized kernel computes it: operands and output of one 8-bit type."""
    types = (*op.inputs, op.outputs[0])
    return not op.options.get("real") and all(t and t.quantization and t.dtype in LIMITS for t in types)


def _of_two(function: Callable[[NDArray, NDArray], NDArray]) -> _Reference:
    def reference(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
        with np.errstate(all="ignore"):
            return [quantized(op, function(real(op, inputs, 0), real(op, inputs, 1)).astype(np.float32))]

    return reference


def _of_one(function: Callable[[NDArray, Operation], NDArray]) -> _Reference:
    def reference(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
        with np.errstate(all="ignore"):
            return [quantized(op, function(real(op, inputs, 0), op).astype(np.float32))]

    return reference


def _option(op: Operation, name: str, default: float) -> np.float32:
    value = op.options.get(name, default)
    if not isinstance(value, int | float):
        refuse(op, f"{name} {value!r}")
    return np.float32(value)


def _clip(x: NDArray, op: Operation) -> NDArray:
    return np.minimum(np.maximum(x, _option(op, "min", -math.inf)), _option(op, "max", math.inf))


def _hard_sigmoid(x: NDArray, op: Operation) -> NDArray:
    y = _option(op, "alpha", 0.2) * x + _option(op, "beta", 0.5)
    return np.maximum(np.minimum(y, np.float32(1)), np.float32(0))


def _hard_swish(x: NDArray, op: Operation) -> NDArray:
    y = np.float32(1 / 6) * x + np.float32(0.5)
    return x * np.maximum(np.minimum(y, np.float32(1)), np.float32(0))


def _leaky_relu(x: NDArray, op: Operation) -> NDArray:
    return np.where(x >= 0, x, _option(op, "alpha", 0.01) * x)


def _exact(function: Callable[[NDArray], NDArray]) -> Callable[[NDArray, Operation], NDArray]:
    return lambda x, op: function(x)


def _rounded(function: Callable[[NDArray], NDArray]) -> Callable[[NDArray, Operation], NDArray]:
    """A function by way of float64."""
    return lambda x, op: correctly_rounded(function)(x)


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _gelu(x: NDArray, op: Operation) -> NDArray:
    wide = x.astype(np.float64)
    if op.options.get("approximate", "none") == "tanh":
        return 0.5 * wide * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
    return 0.5 * wide * (1 + _erf(wide / math.sqrt(2)))


def _elu(x: NDArray, op: Operation) -> NDArray:
    return np.where(x > 0, x, float(_option(op, "alpha", 1.0)) * np.expm1(np.minimum(x, 0).astype(np.float64)))


def _celu(x: NDArray, op: Operation) -> NDArray:
    alpha = float(_option(op, "alpha", 1.0))
    wide = x.astype(np.float64)
    return np.maximum(wide, 0) + np.minimum(0, alpha * np.expm1(wide / alpha))


def _selu(x: NDArray, op: Operation) -> NDArray:
    alpha, gamma = float(_option(op, "alpha", 1.67326319217681884765625)), float(_option(op, "gamma", 1.05070102214813))
    wide = x.astype(np.float64)
    return gamma * np.where(wide > 0, wide, alpha * np.expm1(np.minimum(wide, 0)))


def _softplus(x: NDArray) -> NDArray:
    return np.logaddexp(x, 0)


FUNCTIONS: dict[str, Callable[[NDArray, Operation], NDArray]] = {
    "ACOS": _rounded(np.arccos),
    "ACOSH": _rounded(np.arccosh),
    "ASIN": _rounded(np.arcsin),
    "ASINH": _rounded(np.arcsinh),
    "ATAN": _rounded(np.arctan),
    "ATANH": _rounded(np.arctanh),
    "CELU": _celu,
    "COS": _rounded(np.cos),
    "COSH": _rounded(np.cosh),
    "ELU": _elu,
    "ERF": _rounded(_erf),
    "EXP": _rounded(np.exp),
    "GELU": _gelu,
    "LOG": _rounded(np.log),
    "LOGISTIC": _rounded(lambda x: 1 / (1 + np.exp(-x))),
    "MISH": _rounded(lambda x: x * np.tanh(_softplus(x))),
    "RSQRT": _rounded(lambda x: 1 / np.sqrt(x)),
    "SELU": _selu,
    "SIN": _rounded(np.sin),
    "SINH": _rounded(np.sinh),
    "SOFTPLUS": _rounded(_softplus),
    "SOFTSIGN": _exact(lambda x: x / (1 + np.abs(x))),
    "SWISH": _rounded(lambda x: x / (1 + np.exp(-x))),
    "TAN": _rounded(np.tan),
    "TANH": _rounded(np.tanh),
}
"""Functions that libraries approximate: here they are rounded correctly"""

UNARY: dict[str, _Reference] = {
    kind: _of_one(function)
    for kind, function in {
        **FUNCTIONS,
        "ABS": _exact(np.abs),
        "CEIL": _exact(np.ceil),
        "CLIP": _clip,
        "FLOOR": _exact(np.floor),
        "HARD_SIGMOID": _hard_sigmoid,
        "HARD_SWISH": _hard_swish,
        "LEAKY_RELU": _leaky_relu,
        "NEG": _exact(np.negative),
        "RECIPROCAL": _exact(lambda x: np.float32(1) / x),
        "RELU": _exact(lambda x: np.maximum(x, np.float32(0))),
        "ROUND": _exact(np.rint),
        "SIGN": _exact(np.sign),
        "SQRT": _exact(np.sqrt),
        "THRESHOLDED_RELU": lambda x, op: np.where(x > _option(op, "alpha", 1.0), x, np.float32(0)),
    }.items()
}

BINARY: dict[str, _Reference] = {
    "ADD": add,
    "DIV": _of_two(np.divide),
    "MAXIMUM": _of_two(np.maximum),
    "MINIMUM": _of_two(np.minimum),
    "MUL": mul,
    "POW": _of_two(lambda x, y: correctly_rounded(lambda v: v ** y.astype(np.float64))(x)),
    "PRELU": _of_two(lambda x, slope: np.where(x >= 0, x, slope * x)),
    "SUB": _of_two(np.subtract),
}
