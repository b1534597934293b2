"""FULLY_CONNECTED on the accelerator: one row is a product with the whole operand, several are a 1 x 1 convolution."""

from __future__ import annotations

from ..graph import Conv2D, FullyConnected, Layer
from ..ir import Graph, Node
from .operator import Operands, Operator, Refusal, bias_of, common, int8_type, weights_of
from .rounding import rounding_of

__all__ = ["FULLY_CONNECTED"]


def _fully_connected(graph: Graph, node: Node, operands: Operands) -> Layer:
    source, _ = int8_type(node.operation.inputs[0], "the operand")
    weights, scales = weights_of(graph, node, 0)
    if node.operation.options.get("weights_format", "DEFAULT") != "DEFAULT":
        raise Refusal("shuffled weights")
    outputs, depth = weights.shape
    index = node.inputs[0]
    assert index is not None
    bias = bias_of(graph, node, outputs)
    if source.elements == depth:
        # Any layout serves: the kernel has the operand's.
        inputs = (operands.tensor(index),)
        fields = common(graph, node, inputs, (1, 1, outputs))
        rounding = rounding_of(node, weights, bias, inputs[0].zero_point, (fields["act_min"], fields["act_max"]))
        rounding.pop("double_rounding", None)
        return FullyConnected(**fields, **rounding, weights=weights, weight_scales=scales, bias=bias)
    layout = operands.layout(index)
    if layout is None or layout[2] != depth:
        layout = 1, source.elements // depth, depth
    inputs = (operands.tensor(index, layout),)
    fields = common(graph, node, inputs, (*layout[:2], outputs))
    rounding = rounding_of(node, weights, bias, inputs[0].zero_point, (fields["act_min"], fields["act_max"]))
    return Conv2D(
        **fields,
        **{"double_rounding": False, **rounding},
        weights=weights[:, None, None],
        weight_scales=scales,
        bias=bias,
    )


FULLY_CONNECTED = Operator(layer=_fully_connected, takes="constant int8 weights", roundings=("tflite", "onnx"))
