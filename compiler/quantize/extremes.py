"""Channels of a quantized network with weights so large or so small that no integer arithmetic suits them.

Batch normalization leaves such channels behind: one that hardly varied when the network was trained is divided by
almost nothing, one that nothing uses has weights near zero and a bias of ordinary size. In the first a step of the
operand is more than a step of the output (a factor of 1 or more), in the second the bias is so many steps of the
product that sums exceed 32 bits. The scale of such a channel's weights is limited to what the engine has; steep
ones are cut off, where a step or two of the operand run through all outputs anyway.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

__all__ = ["without_extremes"]

_LARGEST_FACTOR = 0.999
_LARGEST_BIAS = 1 << 30
"""Steps: leaves room for products, and for what zero points add"""
_LIMITS = ("Relu", "Clip")


def without_extremes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A network in QDQ form whose products with int8 weights by channel have factors below 1, and sums below 2 ** 31.

    What has no such channel stays as it is.
    """
    from onnx import numpy_helper

    known = {item.name: item for item in model.graph.initializer}
    users = Counter(name for node in model.graph.node for name in node.input)
    for product in _products(model, known, users):
        for name, values in product.moderated().items():
            known[name].CopyFrom(numpy_helper.from_array(values, name))
    return model


@dataclass(frozen=True)
class _Product:
    """A Conv or Gemm, with the names of its constants, which nobody else uses."""

    names: tuple[str, str, str, str]
    """weights, their scales, bias, its scales"""
    weights: NDArray[np.int8]
    """[channels, ...]"""
    scales: NDArray[np.float32]
    bias: NDArray[np.int32]
    source: float
    """scale of the operand"""
    result: float
    """scale of the output"""

    def moderated(self) -> dict[str, NDArray]:
        """Constants that change, by their names."""
        wide = self.scales.astype(np.float64)
        real = self.bias * (self.source * wide)
        largest = _LARGEST_FACTOR * self.result / self.source
        least = np.abs(real) / (self.source * _LARGEST_BIAS)
        scales = np.minimum(np.maximum(wide, least), largest).astype(np.float32)
        changed = scales != self.scales
        if not changed.any():
            return {}
        steps = self.weights.reshape(len(scales), -1) * (wide / scales)[:, None]
        weights = np.clip(np.rint(steps), -127, 127).astype(np.int8).reshape(self.weights.shape)
        units = (np.float32(self.source) * scales).astype(np.float32)
        bias = np.clip(np.rint(real / units), -(1 << 31) + 1, (1 << 31) - 1).astype(np.int32)
        kept = (changed.reshape(-1, *[1] * (weights.ndim - 1)), changed)
        values = (np.where(kept[0], weights, self.weights), scales, np.where(kept[1], bias, self.bias), units)
        return dict(zip(self.names, values, strict=True))


def _products(model: onnx.ModelProto, known: dict[str, Any], users: Counter[str]) -> Iterator[_Product]:
    from onnx import numpy_helper

    makers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def constant(name: str) -> NDArray | None:
        return numpy_helper.to_array(known[name]) if name in known else None

    def dequantized(name: str) -> Any | None:
        node = makers.get(name)
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    for node in model.graph.node:
        turned = any(a.name == "transB" and a.i for a in node.attribute)
        if not (node.op_type == "Conv" or (node.op_type == "Gemm" and turned)) or len(node.input) < 3:
            continue
        operand, kernel, start = (dequantized(name) for name in node.input[:3])
        source = None if operand is None else constant(operand.input[1])
        result = _scale_behind(node.output[0], readers, constant)
        if source is None or source.size != 1 or result is None or kernel is None or start is None:
            continue
        names = (*kernel.input[:2], *start.input[:2])
        weights, scales, bias, units = (constant(name) for name in names)
        if weights is None or scales is None or bias is None or units is None or any(users[n] != 1 for n in names):
            continue
        if weights.dtype != np.int8 or bias.dtype != np.int32 or not scales.size == units.size == len(weights) > 1:
            continue
        yield _Product(names, weights, scales.reshape(-1), bias.reshape(-1), float(source.reshape(())), result)


def _scale_behind(name: str, readers: dict[str, list[Any]], constant: Any) -> float | None:
    """Scale of the QuantizeLinear that alone reads a tensor, perhaps behind its limits."""
    while len(readers.get(name, ())) == 1:
        (node,) = readers[name]
        if node.op_type == "QuantizeLinear":
            scale = constant(node.input[1])
            return float(scale.reshape(())) if scale is not None and scale.size == 1 else None
        if node.op_type not in _LIMITS or node.input[0] != name:
            return None
        name = node.output[0]
    return None
