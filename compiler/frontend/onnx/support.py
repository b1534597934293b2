"""Attributes of nodes, the geometry that they state, and refusals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Refusal", "attributes", "edges"]


class Refusal(Exception):
    """What of an operator is not supported, and what would be, in a few words."""


def attributes(node: Any) -> dict[str, Any]:
    """The attributes of a node by name."""
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def edges(
    a: dict[str, Any],
    size: Sequence[int],
    out: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """Padding before all axes, then after them, as a convolution or pool states it; as far as windows reach."""
    kind = a.get("auto_pad", b"NOTSET")
    before = [0] * len(size)
    if kind in (b"SAME_UPPER", b"SAME_LOWER"):
        for axis, n in enumerate(size):
            reach = (window[axis] - 1) * dilation[axis] + 1
            total = max(0, (out[axis] - 1) * strides[axis] + reach - n)
            before[axis] = total // 2 if kind == b"SAME_UPPER" else total - total // 2
    elif kind != b"VALID":
        before = [int(v) for v in a.get("pads", [0] * (2 * len(size)))][: len(size)]
    after = []
    for axis, n in enumerate(size):
        reach = (window[axis] - 1) * dilation[axis] + 1
        after.append(max(0, (out[axis] - 1) * strides[axis] + reach - before[axis] - n))
    return [*before, *after]
