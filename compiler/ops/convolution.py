"""CONV_2D and DEPTHWISE_CONV_2D on the accelerator."""

from __future__ import annotations

from ..graph import Conv2D, DepthwiseConv2D, Layer, Padding
from ..ir import Graph, Node
from .operator import Operands, Operator, Refusal, bias_of, common, int8_type, natural_layout, weights_of

__all__ = ["CONV_2D", "DEPTHWISE_CONV_2D"]


def _image(node: Node) -> tuple[int, ...]:
    """Shape of the operand.

    Raises
    ------
    Refusal
        If it holds several images.
    """
    shape = int8_type(node.operation.inputs[0], "the operand")[0].shape
    if len(shape) != 4 or shape[0] != 1:
        raise Refusal(f"operand of shape {shape}; the accelerator takes one image [1, rows, columns, channels]")
    if node.operation.options["dilation"] != (1, 1):
        raise Refusal(f"dilation {node.operation.options['dilation']}")
    return shape


def _conv_2d(graph: Graph, node: Node, operands: Operands) -> Layer:
    shape = _image(node)
    weights, scales = weights_of(graph, node, 0)
    if weights.shape[3] != shape[3]:
        raise Refusal(f"{shape[3] // weights.shape[3]} groups")
    return _convolution(graph, node, operands, weights, scales)


def _convolution(graph: Graph, node: Node, operands: Operands, weights, scales) -> Conv2D:
    """weights [outputs, rows, columns, inputs]"""
    shape = int8_type(node.operation.inputs[0], "the operand")[0].shape
    assert node.inputs[0] is not None
    inputs = (operands.tensor(node.inputs[0], natural_layout(shape)),)
    return Conv2D(
        **common(graph, node, inputs, natural_layout(node.operation.outputs[0].shape)),
        weights=weights,
        weight_scales=scales,
        bias=bias_of(graph, node, len(weights)),
        strides=node.operation.options["strides"],
        padding=Padding(*node.operation.options["padding"]),
    )


def _depthwise_conv_2d(graph: Graph, node: Node, operands: Operands) -> Layer:
    shape = _image(node)
    weights, scales = weights_of(graph, node, 3)
    outputs = weights.shape[3]
    if shape[3] == 1:
        # Every output reads the one channel: a convolution.
        return _convolution(graph, node, operands, weights.transpose(3, 1, 2, 0), scales)
    if outputs != shape[3]:
        raise Refusal(f"depth multiplier {outputs // shape[3]}")
    assert node.inputs[0] is not None
    inputs = (operands.tensor(node.inputs[0], natural_layout(shape)),)
    return DepthwiseConv2D(
        **common(graph, node, inputs, natural_layout(node.operation.outputs[0].shape)),
        weights=weights[0],
        weight_scales=scales,
        bias=bias_of(graph, node, outputs),
        strides=node.operation.options["strides"],
        padding=Padding(*node.operation.options["padding"]),
    )


CONV_2D = Operator(layer=_conv_2d)
DEPTHWISE_CONV_2D = Operator(layer=_depthwise_conv_2d)
