"""Comparisons, logic and choices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nnloom.arch.operation import TensorType

from .elementwise import common_axes, operand_of
from .movement import quantized_alike
from .order import take
from .reader import Reader

__all__ = ["OPERATORS"]


def _comparison(kind: str) -> Callable[[Reader, Any], None]:
    """An operator on corresponding elements whose result is true or false."""

    def read(r: Reader, node: Any) -> None:
        _elements(r, node, kind, list(node.input), rounding="onnx" if kind in _OF_ONNX else "tflite")

    return read


_OF_ONNX = ("IS_NAN",)
"""Kinds that LiteRT lacks"""


def _elements(
    r: Reader, node: Any, kind: str, names: list[str], like: int | None = None, rounding: str = "tflite"
) -> None:
    """Emit an operator on corresponding elements; like: which operand's type the result has."""
    out = node.output[0]
    for name in names:
        r.force(name)
    axes = common_axes(r, names, out)
    operands = [operand_of(r, name, out, axes) for name in names]
    source = None if like is None else r.v.type(operands[like])
    shape = take(r.shape(out), axes)
    t = TensorType(shape, r.dtypes[out]) if source is None else TensorType(shape, source.dtype, source.quantization)
    r.emit(node, out, kind, operands, t, axes, {}, rounding)


def where(r: Reader, node: Any) -> None:
    """Where: one operand or the other, of one quantization or real."""
    _elements(r, node, "SELECT_V2", list(node.input), like=1)


def qlinear_where(r: Reader, node: Any) -> None:
    """QLinearWhere: what has another quantization is quantized anew."""
    out = node.output[0]
    value, zero = r.scale_of(node.input[7], node.input[8])
    dtype = r.dtypes[node.input[8]]
    names = [quantized_alike(r, node.input[place : place + 3], (dtype, value, zero), out) for place in (1, 4)]
    _elements(r, node, "SELECT_V2", [node.input[0], *names], like=1)


OPERATORS: dict[str, Callable[[Reader, Any], None]] = {
    "And": _comparison("LOGICAL_AND"),
    "Equal": _comparison("EQUAL"),
    "Greater": _comparison("GREATER"),
    "GreaterOrEqual": _comparison("GREATER_EQUAL"),
    "IsNaN": _comparison("IS_NAN"),
    "Less": _comparison("LESS"),
    "LessOrEqual": _comparison("LESS_EQUAL"),
    "Not": _comparison("LOGICAL_NOT"),
    "Or": _comparison("LOGICAL_OR"),
    "QLinearWhere": qlinear_where,
    "Where": where,
    "Xor": _comparison("NOT_EQUAL"),
}
