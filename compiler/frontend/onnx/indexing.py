"""Operators that take or put values where indices say, and orders and sums along an axis."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from nnloom.arch.operation import TensorType

from .movement import keeps_values
from .reader import Reader
from .support import Refusal, attributes

__all__ = ["OPERATORS"]


def _held(r: Reader, names: Sequence[str]) -> list[int]:
    """Operands as they lie in the file."""
    for name in names:
        r.force(name)
    return [r.v.plain(name) for name in names]


def _by_indices(kind: str, *options: str) -> Callable[[Reader, Any], None]:
    """An operator whose first operand has the type of the output; options: attributes that it has."""

    def read(r: Reader, node: Any) -> None:
        out, a = node.output[0], attributes(node)
        if a.get("reduction", b"none") != b"none":
            raise Refusal(f"reduction {a['reduction'].decode()}; none is supported")
        operands = _held(r, list(node.input))
        t = dataclasses.replace(r.v.type(operands[0]), shape=r.shape(out))
        chosen = {name: int(a.get(name, 0)) for name in options}
        r.emit(node, out, kind, operands, t, range(len(t.shape)), chosen)

    return read


def top_k(r: Reader, node: Any) -> None:
    """TopK of a constant number: values, the greatest or least first, and where they are."""
    a = attributes(node)
    k = int(r.scalar(node.input[1], "how many"))
    if not a.get("sorted", 1):
        raise Refusal("values in no order; use sorted=1")
    (source,) = _held(r, node.input[:1])
    t = r.v.type(source)
    axis = int(a.get("axis", -1)) % len(t.shape)
    shape = (*t.shape[:axis], k, *t.shape[axis + 1 :])
    outputs = []
    for place, made in enumerate((dataclasses.replace(t, shape=shape), TensorType(shape, "int64"))):
        name = node.output[place] if len(node.output) > place else ""
        outputs.append(r.v.add(name or f"{node.name} (unread {place})", made))
        if name:
            r.v.hold(name, outputs[-1])
    options = {"axis": axis, "largest": bool(a.get("largest", 1))}
    r.v.emit("TOP_K", [source], outputs, options, rounding="onnx", name=node.name or node.output[0])


def cumulative_sum(r: Reader, node: Any) -> None:
    """CumSum along a constant axis."""
    out, a = node.output[0], attributes(node)
    axis = int(r.scalar(node.input[1], "its axis"))
    (source,) = _held(r, node.input[:1])
    t = r.v.type(source)
    options = {"axis": axis % len(t.shape), **{key: bool(a.get(key, 0)) for key in ("exclusive", "reverse")}}
    r.emit(node, out, "CUMULATIVE_SUM", [source], t, range(len(t.shape)), options)


OPERATORS: dict[str, Callable[[Reader, Any], None]] = {
    "CumSum": cumulative_sum,
    "GatherElements": keeps_values(_by_indices("GATHER_ELEMENTS", "axis")),
    "GatherND": keeps_values(_by_indices("GATHER_ND", "batch_dims")),
    "ScatterElements": _by_indices("SCATTER_ELEMENTS", "axis"),
    "ScatterND": _by_indices("SCATTER_ND"),
    "TopK": keeps_values(top_k),
}
