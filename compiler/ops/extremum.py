"""Operators that are the greater, or the lesser, of two straight functions: two layers side by side and a maximum pool.

The columns of both results take turns in one tensor, so that a window of two has both. MAXIMUM and MINIMUM of two
tensors, LEAKY_RELU, PRELU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.dtypes import ACTIVATION
from nnloom.arch.numerics import multiply_by_factor, split_factor

from ..affine import VALUES, products
from ..copies import copy_layer
from ..graph import Layer, MaxPool2D, Tensor
from ..ir import Graph, Node
from .broadcast import elementwise_operands
from .operator import Operands, Operator, Refusal, inner_tensor, int8_type, output_tensor
from .pointwise import Hint, affine_layer, function_of, operand_of, ratio, straight_layer

__all__ = ["LEAKY_RELU", "MAXIMUM", "MINIMUM", "PRELU"]


def _side_by_side(graph: Graph, node: Node, like: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """A tensor for two like the one given, and the places of these."""
    both = inner_tensor(graph, node, like, "both", columns=2 * like.columns)
    size = like.rows, like.columns, like.channels
    return both, (both.part((0, 0, 0), size, column_step=2), both.part((0, 1, 0), size, column_step=2))


def _greater(name: str, both: Tensor, output: Tensor) -> MaxPool2D:
    return MaxPool2D(name=name, inputs=(both,), output=output, window=(1, 2), strides=(1, 2))


def _of_two(graph: Graph, node: Node, operands: Operands, *, lesser: bool) -> Layer | Sequence[Layer]:
    if any(graph.constant(index) is not None for index in node.inputs):
        return affine_layer(graph, node, operands, ratio)
    _, q_out = int8_type(node.operation.outputs[0], "the output")
    indices = []
    for index, value_type in zip(node.inputs, node.operation.inputs, strict=True):
        _, q = int8_type(value_type, "an operand")
        assert index is not None  # it would have no type
        if q != q_out:
            raise Refusal(f"{node.kind} of tensors of several scales")
        indices.append(index)
    layout, (sources, brought) = elementwise_operands(graph, node, operands, indices)
    output = output_tensor(graph, node, layout)
    both, places = _side_by_side(graph, node, output)
    if not lesser:
        copies = [copy_layer(node.name, *pair) for pair in zip(sources, places, strict=True)]
        return (*brought, *copies, _greater(node.name, both, output))
    # The lesser of two is the greater one of what is left to -1, seen from there.
    opposite = (-1 - VALUES)[:, None]
    hint: list[Hint] = [(-1.0, ())]
    turned = [straight_layer(node.name, *pair, opposite, hint) for pair in zip(sources, places, strict=True)]
    greater = inner_tensor(graph, node, output, "from -1")
    back = straight_layer(node.name, greater, output, opposite, hint)
    return (*brought, *turned, _greater(node.name, both, greater), back)


def _leaky(graph: Graph, node: Node, operands: Operands) -> Sequence[Layer]:
    """Values rescaled, or times a slope: whichever is greater."""
    index, answers, constant = function_of(graph, node)
    _, q_in = int8_type(graph.values[index].type, "the operand")
    _, q_out = int8_type(node.operation.outputs[0], "the output")
    scale_in, scale_out = np.float32(q_in.scale), np.float32(q_out.scale)
    kept = split_factor(float(scale_in / scale_out))
    branches = [_branch(q_in.zero_point, q_out.zero_point, 1, kept)]
    if constant:
        factor = split_factor(float(scale_in * np.float32(constant.quantization.scale) / scale_out))
        offsets = [int(n) for n in constant.offsets]
    else:
        slope = float(scale_in * np.float32(node.operation.options["alpha"]) / scale_out)
        factor, offsets = split_factor(abs(slope)), [-1 if slope < 0 else 1]
    columns = [_branch(q_in.zero_point, q_out.zero_point, n, factor) for n in offsets]
    branches.append((np.concatenate([c[0] for c in columns], axis=1), [c[1][0] for c in columns]))
    if not np.array_equal(np.maximum(branches[0][0], branches[1][0]), answers):
        raise Refusal("a slope above that of the values that are kept")
    source = operand_of(graph, operands, index, len(offsets))
    output = output_tensor(graph, node, (source.rows, source.columns, source.channels))
    both, places = _side_by_side(graph, node, output)
    layers = [straight_layer(node.name, source, place, *branch) for place, branch in zip(places, branches, strict=True)]
    return (*layers, _greater(node.name, both, output))


def _branch(
    zero_point: int, out_zero_point: int, times: int, factor: tuple[int, int]
) -> tuple[NDArray[np.int64], list[Hint]]:
    """What all values are for one side of zero: answers [256, 1] of so many times a factor, and a hint for them."""
    multiplier, exponent = factor
    answers = multiply_by_factor((VALUES - zero_point) * abs(times), multiplier, exponent)
    answers = np.clip((answers if times >= 0 else -answers) + out_zero_point, -128, 127)
    slope = times * multiplier * 2.0 ** (exponent - 31)
    return answers[:, None], [(slope, products(abs(times), multiplier, exponent))]


LEAKY_RELU = Operator(layer=_leaky, follows=True, takes=ACTIVATION)
PRELU = Operator(layer=_leaky, follows=True, takes="int8, a constant slope")
MAXIMUM = Operator(
    layer=lambda graph, node, operands: _of_two(graph, node, operands, lesser=False),
    follows=True,
    takes="an int8 tensor and a constant, or two",
)
MINIMUM = Operator(
    layer=lambda graph, node, operands: _of_two(graph, node, operands, lesser=True),
    follows=True,
    takes="an int8 tensor and a constant, or two",
)
