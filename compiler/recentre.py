"""A pass that re-centres uint8 networks to int8, which the accelerator computes with.

Every uint8 value has an int8 twin: 128 less, the sign bit flipped, and its zero point as well, so that both stand for
the same real number. Most operators see values less their zero point only, or move them: theirs is the int8 operator on
the twins. Where LiteRT's kernels of uint8 compute something else, the twin says so in its options or its weights:

- weights have a zero point: the twin's are less that, which may need nine bits (`INT9`);
- convolutions multiply the scales of operand and weights in float32 (`product_scale`);
- average pools round halves of 0 to 255, so half up (`rounding`);
- CONCATENATION rescales operands (`rescales`).

The CPU runs the operators of the file. Only a region has the twins, and the host flips the sign bit of what it writes
there and reads from there (`nnloom.arch.artifact.TensorLocation.dtype`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nnloom.arch.dtypes import INT8, INT9, RECENTRED, UINT8
from nnloom.arch.operation import Quantization, TensorType
from nnloom.arch.reference.convolution import product_scale

from .ir import Graph, Node, Value

__all__ = ["SAME", "Recentred", "has_twin", "is_renaming", "recentre"]

_PRODUCTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
_OPTIONS: Mapping[str, Mapping[str, object]] = {
    "AVERAGE_POOL_2D": {"rounding": "UP"},
    "CONCATENATION": {"rescales": True},
}
SAME = frozenset(
    (
        *("ADD", "DIV", "GELU", "HARD_SWISH", "LOGISTIC", "TANH"),
        *("MAXIMUM", "MEAN", "MINIMUM", "MUL", "SUB", "SUM", "MAX_POOL_2D", "QUANTIZE"),
        *("LEAKY_RELU", "PRELU", "RELU", "RELU6", "RELU_0_TO_1", "RELU_N1_TO_1"),
        *("BATCH_TO_SPACE_ND", "DEPTH_TO_SPACE", "EXPAND_DIMS", "GATHER", "PACK", "PAD", "PADV2", "RESHAPE"),
        *("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "SLICE", "SPACE_TO_DEPTH", "SPLIT", "SPLIT_V", "SQUEEZE"),
        *("STRIDED_SLICE", "TRANSPOSE", "UNPACK"),
    )
)
"""Operators whose int8 kernel does to the twins what the uint8 kernel does: tests compare both references.

RESIZE_BILINEAR differs, but not on a single pixel, and the accelerator takes no other."""


@dataclass(frozen=True, eq=False)
class Recentred:
    """A network's twin."""

    graph: Graph
    """Values have the numbers of the network's, the twins of weights come after them. Nodes are the twins, in order."""
    reasons: Mapping[int, str]
    """why a node has none and is the network's own, by the first value that it makes"""
    unsigned: frozenset[int]
    """values that are uint8 in the network"""


def is_renaming(twin: Node) -> bool:
    """Whether an operator's twin leaves every byte as it is: QUANTIZE between uint8 and int8 of one scale, zero points
    128 apart, as converters put it around networks with uint8 inputs and outputs."""
    return twin.kind == "QUANTIZE" and twin.operation.inputs[0] == twin.operation.outputs[0]


def has_twin(kind: str) -> bool:
    """Whether an operator of uint8 has an int8 twin."""
    return kind in SAME or kind in _PRODUCTS or kind in _OPTIONS


def recentre(graph: Graph) -> Recentred:
    """The twin of a network: itself, if it has no uint8."""
    unsigned = frozenset(i for i, value in enumerate(graph.values) if value.type.dtype == UINT8)
    if not unsigned:
        return Recentred(graph, {}, unsigned)
    values = [_twin_value(value) for value in graph.values]
    nodes, reasons = [], {}
    for node in graph.nodes:
        twin: Node | str = node
        if any(t is not None and t.dtype == UINT8 for t in (*node.operation.inputs, *node.operation.outputs)):
            twin = _twin(graph, node, values)
        if isinstance(twin, str):
            reasons[node.outputs[0]] = twin
            twin = node
        nodes.append(twin)
    return Recentred(graph.replace_nodes(nodes, values), reasons, unsigned)


def _twin_type(t: TensorType) -> TensorType:
    if t.dtype != UINT8:
        return t
    q = t.quantization
    if q is not None:
        q = dataclasses.replace(q, zero_points=tuple(point - RECENTRED for point in q.zero_points))
    return TensorType(t.shape, INT8, q)


def _twin_value(value: Value) -> Value:
    data = value.data
    if value.type.dtype != UINT8:
        return value
    return Value(value.name, _twin_type(value.type), None if data is None else (data ^ RECENTRED).view(np.int8))


def _twin(graph: Graph, node: Node, values: list[Value]) -> Node | str:
    """A node's twin, or why it has none; the twins of weights join `values`."""
    op = node.operation
    if not has_twin(node.kind):
        return f"{node.kind} of uint8 has no int8 twin"
    twin = dataclasses.replace(
        op,
        inputs=tuple(t and _twin_type(t) for t in op.inputs),
        outputs=tuple(map(_twin_type, op.outputs)),
        options={**op.options, **_OPTIONS.get(node.kind, {})},
    )
    result = dataclasses.replace(node, operation=twin)
    return _with_weights(graph, node, result, values) if node.kind in _PRODUCTS else result


def _with_weights(graph: Graph, node: Node, twin: Node, values: list[Value]) -> Node | str:
    """The twin of a product with its weights less their zero point."""
    data, source, weights = graph.constant(node.inputs[1]), *_quantized(node)
    if data is None:
        return "weights are not constant"
    if source is None or weights is None:
        return "the operand or its weights have no single scale"
    less = data.astype(np.int16) - weights.zero_point
    wide = less.min(initial=0) < -RECENTRED or less.max(initial=0) >= RECENTRED
    value_type = TensorType(data.shape, INT9 if wide else INT8, Quantization.per_tensor(weights.scale, 0))
    assert node.inputs[1] is not None
    name = f"{graph.values[node.inputs[1]].name} (less its zero point)"
    values.append(Value(name, value_type, less if wide else less.astype(np.int8)))
    types, inputs = list(twin.operation.inputs), list(twin.inputs)
    types[1], inputs[1] = value_type, len(values) - 1
    options = twin.operation.options
    if node.kind != "FULLY_CONNECTED":
        options = options | {"product_scale": product_scale(node.operation, source.scale, weights.scale)}
    operation = dataclasses.replace(twin.operation, inputs=tuple(types), options=options)
    return dataclasses.replace(twin, operation=operation, inputs=tuple(inputs))


def _quantized(node: Node) -> tuple[Quantization | None, Quantization | None]:
    """Of a product's operand and weights, where they have one scale."""
    types = node.operation.inputs[2 if node.kind == "TRANSPOSE_CONV" else 0], node.operation.inputs[1]
    operand, weights = (
        t.quantization if t and t.quantization and t.quantization.is_per_tensor else None for t in types
    )
    return operand, weights
