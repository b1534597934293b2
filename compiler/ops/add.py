"""ADD and SUB on the accelerator: two tensors of as many values in one layout, or one and a constant by channel."""

from __future__ import annotations

from collections.abc import Sequence

from ..copies import copy_layer
from ..graph import Add, Layer
from ..ir import Graph, Node
from .operator import Operands, Operator, Refusal, common, inner_tensor, int8_type, natural_layout
from .pointwise import affine_layer, difference, ratio

__all__ = ["ADD", "SUB"]


def _sum(graph: Graph, node: Node, operands: Operands, *, subtract: bool) -> Layer | Sequence[Layer]:
    out, _ = int8_type(node.operation.outputs[0], "the output")
    if any(graph.constant(index) is not None for index in node.inputs):
        return affine_layer(graph, node, operands, difference if subtract else ratio)
    indices = []
    for index, value_type in zip(node.inputs, node.operation.inputs, strict=True):
        source, _ = int8_type(value_type, "an operand")
        if index is None:
            raise Refusal("an operand is left out")
        if source.elements != out.elements:
            raise Refusal(f"{'subtraction' if subtract else 'addition'} with broadcasting")
        indices.append(index)
    # Where a value is in memory already, the other one and the sum take its layout.
    layout = next((known for known in map(operands.layout, indices) if known), natural_layout(out.shape))
    copies: list[Layer] = []
    inputs = []
    for number, index in enumerate(indices):
        tensor = operands.tensor(index, layout)
        if tensor.whole:
            # Rows are read as they lie, without gaps for other channels.
            part, tensor = tensor, inner_tensor(graph, node, tensor, f"operand {number}")
            copies.append(copy_layer(tensor.name, part, tensor))
        inputs.append(tensor)
    return (*copies, Add(**common(graph, node, tuple(inputs), layout), subtract=subtract))


ADD = Operator(layer=lambda graph, node, operands: _sum(graph, node, operands, subtract=False))
SUB = Operator(layer=lambda graph, node, operands: _sum(graph, node, operands, subtract=True))
