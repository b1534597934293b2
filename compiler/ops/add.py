"""ADD and SUB on the accelerator: two tensors of as many values in one layout, or one and a constant by channel."""

from __future__ import annotations

from collections.abc import Sequence

from ..graph import Add, Layer
from ..ir import Graph, Node
from .broadcast import elementwise_operands
from .onnx_sums import proved_sum
from .operator import Operands, Operator, common, int8_type
from .pointwise import affine_layer, difference, ratio

__all__ = ["ADD", "SUB"]


def _sum(graph: Graph, node: Node, operands: Operands, *, subtract: bool) -> Layer | Sequence[Layer]:
    if any(graph.constant(index) is not None for index in node.inputs):
        return affine_layer(graph, node, operands, difference if subtract else ratio)
    indices = []
    for index, value_type in zip(node.inputs, node.operation.inputs, strict=True):
        int8_type(value_type, "an operand")
        assert index is not None  # it would have no type
        indices.append(index)
    layout, (inputs, copies) = elementwise_operands(graph, node, operands, indices, whole=True)
    layer = Add(**common(graph, node, inputs, layout), subtract=subtract)
    return (*copies, layer if node.operation.rounding == "tflite" else proved_sum(node, layer))


ADD = Operator(
    layer=lambda graph, node, operands: _sum(graph, node, operands, subtract=False),
    takes="two int8 tensors of equal size",
    roundings=("tflite", "onnx"),
)
SUB = Operator(
    layer=lambda graph, node, operands: _sum(graph, node, operands, subtract=True),
    takes="two int8 tensors of equal size",
)
