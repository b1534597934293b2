"""QuantizeLinear and DequantizeLinear: the ends of chains."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from nnloom.arch.dtypes import EIGHT_BITS

from .parameters import output_scale
from .products import compute_product
from .reader import Product, QuantizedConstant, Reader
from .support import Refusal, attributes
from .tables import Chain

__all__ = ["dequantize_linear", "quantize_linear"]


def quantize_linear(r: Reader, node: Any) -> None:
    """QuantizeLinear of what was computed, or the end of a chain."""
    name, out = node.input[0], node.output[0]
    scale, zero_point, dtype = output_scale(r, node, 1, 2)
    lazy = r.lazy.get(name)
    if isinstance(lazy, Product):
        compute_product(r, out, lazy, (dtype, scale, zero_point))
        return
    if isinstance(lazy, Chain):
        r.of_chain(out, lazy, (dtype, scale, zero_point))
        return
    r.force(name)
    if name in r.v.constants:
        limits = np.iinfo(dtype)
        scaled = np.rint(r.v.constants[name] / scale) + zero_point
        r.v.constants[out] = np.clip(scaled, limits.min, limits.max).astype(dtype)
        r.v.shapes[out] = r.v.constants[out].shape
        return
    held = r.v.held[name][0]
    t = r.quantized_type(r.v.type(held.index).shape, dtype, scale, zero_point)
    r.emit(node, out, "QUANTIZE", [held.index], t, None)
    r.v.held[out] = [dataclasses.replace(held, index=len(r.v.values) - 1)]


def dequantize_linear(r: Reader, node: Any) -> None:
    """DequantizeLinear: of a constant, or the beginning of a chain."""
    name, out = node.input[0], node.output[0]
    scales = r.constant(node.input[1], "the scale").astype(np.float32)
    zero = r.constant(node.input[2], "the zero point") if len(node.input) > 2 and node.input[2] else np.zeros(1)
    if name in r.v.constants:
        data = r.v.constants[name]
        axis = int(attributes(node).get("axis", 1)) % max(data.ndim, 1)
        points = np.broadcast_to(zero.reshape(-1).astype(np.int64), scales.reshape(-1).shape)
        r.quantized[out] = QuantizedConstant(data, scales.reshape(-1), points, axis)
        r.v.shapes[out] = data.shape
        return
    if scales.size != 1:
        raise Refusal("a tensor quantized per channel that is not constant; quantize activations per tensor")
    dtype = r.dtypes[name]
    if dtype not in EIGHT_BITS:
        raise Refusal(f"an operand of {dtype}; quantize activations to int8 or uint8")
    chain = Chain(name, dtype, scales.reshape(-1)[0], int(zero.reshape(-1)[0]), (), out)
    r.lazy[out] = chain
