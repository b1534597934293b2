"""What operators say of their output and their geometry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nnloom.arch.dtypes import UINT8

from .reader import Reader
from .support import Refusal, attributes, edges

__all__ = ["Out", "geometry_of", "optional_output", "output_scale"]


Out = tuple[str, np.float32, int]
"""Type, scale and zero point of the file"""


def output_scale(r: Reader, node: Any, scale: int, zero_point: int) -> tuple[np.float32, int, str]:
    """Scale, zero point and type that a node quantizes its output to."""
    name = node.input[zero_point] if len(node.input) > zero_point else ""
    value, zero = r.scale_of(node.input[scale], name)
    return value, zero, r.dtypes[name] if name else UINT8


def optional_output(r: Reader, node: Any, scale: int, zero_point: int) -> Out | None:
    """Type, scale and zero point of an output; None if a node states none."""
    if len(node.input) <= scale or not node.input[scale]:
        return None
    value, zero, dtype = output_scale(r, node, scale, zero_point)
    return dtype, value, zero


def geometry_of(r: Reader, node: Any, x: str, window: Sequence[int]) -> dict[str, Any]:
    """Strides, dilation and padding of a convolution or pool, for rows and columns."""
    a = attributes(node)
    count = len(window)
    strides = [int(v) for v in a.get("strides", [1] * count)]
    dilation = [int(v) for v in a.get("dilations", [1] * count)]
    pads = edges(a, r.shape(x)[2:], r.shape(node.output[0])[2:], window, strides, dilation)
    first, last = pads[:count], pads[count:]
    if count == 1:
        strides, dilation, first, last = [1, *strides], [1, *dilation], [0, *first], [0, *last]
    if len(strides) != 2:
        raise Refusal(f"{count} dimensions; use one of rows and columns, or of one of them")
    return {"strides": tuple(strides), "dilation": tuple(dilation), "padding": (*first, *last), "activation": "NONE"}
