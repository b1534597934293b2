"""MUL on the accelerator: two tensors, one of them perhaps a pixel for all of the other, or one and a constant."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nnloom.arch.numerics import split_factor
from nnloom.arch.operation import Quantization

from ..affine import products
from ..graph import Layer, Mul
from ..ir import Graph, Node
from .broadcast import elementwise_operands
from .onnx_sums import proved_product
from .operator import Operands, Operator, common, int8_type
from .pointwise import Constant, Hint, affine_layer

__all__ = ["MUL"]


def _mul(graph: Graph, node: Node, operands: Operands) -> Layer | Sequence[Layer]:
    if any(graph.constant(index) is not None for index in node.inputs):
        return affine_layer(graph, node, operands, _slopes)
    indices = []
    for index, value_type in zip(node.inputs, node.operation.inputs, strict=True):
        int8_type(value_type, "an operand")
        assert index is not None  # it would have no type
        indices.append(index)
    layout, (inputs, made) = elementwise_operands(graph, node, operands, indices, whole=True, pixel=True)
    layer = Mul(**common(graph, node, inputs, layout))
    return (*made, layer if node.operation.rounding == "tflite" else proved_product(node, layer))


def _slopes(q_in: Quantization, q_out: Quantization, constant: Constant | None) -> list[Hint]:
    assert constant
    a, b, out = (np.float32(q.scale) for q in (q_in, constant.quantization, q_out))
    factor = float(a * b / out)
    return [(factor * int(n), products(abs(int(n)), *split_factor(factor))) for n in constant.offsets]


MUL = Operator(
    layer=_mul,
    follows=True,
    takes="two int8 tensors, also one pixel for all of the other, or one and a constant",
    roundings=("tflite", "onnx"),
)
