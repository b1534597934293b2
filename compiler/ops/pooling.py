"""AVERAGE_POOL_2D and MAX_POOL_2D on the accelerator."""

from __future__ import annotations

from ..graph import AveragePool2D, Layer, MaxPool2D, Padding
from ..ir import Graph, Node
from .operator import Operands, Operator, Refusal, common, int8_type, natural_layout

__all__ = ["AVERAGE_POOL_2D", "MAX_POOL_2D"]


def _fields(graph: Graph, node: Node, operands: Operands) -> dict:
    source, source_q = int8_type(node.operation.inputs[0], "the operand")
    _, out_q = int8_type(node.operation.outputs[0], "the output")
    if len(source.shape) != 4 or source.shape[0] != 1:
        raise Refusal(f"operand of shape {source.shape}; the accelerator takes one image [1, rows, columns, channels]")
    if source_q != out_q:
        raise Refusal("pooling that changes the quantization")
    assert node.inputs[0] is not None
    inputs = (operands.tensor(node.inputs[0], natural_layout(source.shape)),)
    fields = common(graph, node, inputs, natural_layout(node.operation.outputs[0].shape))
    return fields | dict(window=node.operation.options["window"], strides=node.operation.options["strides"])


def _average_pool_2d(graph: Graph, node: Node, operands: Operands) -> Layer:
    if any(node.operation.options["padding"]):
        raise Refusal("average pool with padding")
    return AveragePool2D(**_fields(graph, node, operands))


def _max_pool_2d(graph: Graph, node: Node, operands: Operands) -> Layer:
    return MaxPool2D(**_fields(graph, node, operands), padding=Padding(*node.operation.options["padding"]))


AVERAGE_POOL_2D = Operator(layer=_average_pool_2d, takes="int8")
MAX_POOL_2D = Operator(layer=_max_pool_2d, takes="int8")
