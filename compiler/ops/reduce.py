"""MEAN, SUM and REDUCE_MAX on the accelerator: sums over a window, or over all channels as a convolution with equal
weights; a maximum pool with one window."""

from __future__ import annotations

import math

import numpy as np

from nnloom.arch.reference.reduce import reduction_factor

from ..graph import Conv2D, Layer, MaxPool2D, WindowSum
from ..ir import Graph, Node
from .onnx_sums import proved_mean
from .operator import Layout, Operands, Operator, Refusal, common, int8_type, natural_layout, unchanged_types

__all__ = ["MEAN", "REDUCE_MAX", "SUM", "left_shift_weight"]

LARGEST_SHIFT = 6
"""A weight of 2 ** 6 shifts an operand left; the next power of two is no int8."""


def left_shift_weight(exponent: int) -> tuple[int, int]:
    """Weight and right shift in place of a factor's exponent (`nnloom.arch.numerics.split_factor`).

    Raises
    ------
    Refusal
        If there is none: factors of 64 and more.
    """
    if exponent > LARGEST_SHIFT:
        raise Refusal(f"a factor of 2 ** {exponent - 1} or more")
    return 1 << max(exponent, 0), max(-exponent, 0)


def _reduction(graph: Graph, node: Node, operands: Operands, *, divide: bool) -> Layer:
    source, q_in = int8_type(node.operation.inputs[0], "the operand")
    _, q_out = int8_type(node.operation.outputs[0], "the output")
    axes, rank = _axes(graph, node, source.shape), len(source.shape)
    count = math.prod(source.shape[a] for a in axes)
    exact_to_onnx = node.operation.rounding == "onnx"
    multiplier, weight, shift = 0, 1, 0
    if not exact_to_onnx:
        multiplier, exponent = reduction_factor(q_in.scale, q_out.scale, count if divide else 1)
        weight, shift = left_shift_weight(exponent)
    assert node.inputs[0] is not None
    layout, window = _window(source.shape, axes, operands.layout(node.inputs[0]))
    inputs = (operands.tensor(node.inputs[0], layout),)
    rows, columns, channels = layout
    over_channels = rank - 1 in axes
    out = rows // window[0], columns // window[1], 1 if over_channels else channels
    fields = common(graph, node, inputs, out)
    if not over_channels:
        layer = WindowSum(**fields, window=window, strides=window, weight=weight, multiplier=multiplier, shift=shift)
        return proved_mean(node, layer) if exact_to_onnx else layer
    if exact_to_onnx:
        raise Refusal("a mean over channels")
    return Conv2D(
        **fields,
        weights=np.full((1, *window, channels), weight, np.int8),
        weight_scales=np.ones(1),
        bias=np.zeros(1, np.int32),
        strides=window,
        requantization=((multiplier, shift),),
    )


def _axes(graph: Graph, node: Node, shape: tuple[int, ...]) -> set[int]:
    """The axes that are reduced and have more than one value."""
    given = graph.constant(node.inputs[1])
    if given is None:
        raise Refusal("the axes are not constant")
    axes = {int(a) % len(shape) for a in given.reshape(-1)}
    return {a for a in axes if shape[a] > 1}


def _maximum(graph: Graph, node: Node, operands: Operands) -> Layer:
    source, _ = unchanged_types(node)
    axes = _axes(graph, node, source.shape)
    if len(source.shape) - 1 in axes:
        raise Refusal("a maximum over channels")
    assert node.inputs[0] is not None
    layout, window = _window(source.shape, axes, operands.layout(node.inputs[0]))
    inputs = (operands.tensor(node.inputs[0], layout),)
    fields = common(graph, node, inputs, (layout[0] // window[0], layout[1] // window[1], layout[2]))
    return MaxPool2D(**fields, window=window, strides=window)


def _window(shape: tuple[int, ...], axes: set[int], known: Layout | None) -> tuple[Layout, tuple[int, int]]:
    """Layout of the operand, and over how many rows and columns of it axes other than the last reach."""
    leading = {a for a in range(len(shape) - 1) if shape[a] > 1}
    channels = shape[-1] if shape else 1
    natural = natural_layout(shape)
    if leading <= axes:
        layout = known if known and known[2] == channels else natural
        return layout, layout[:2]
    if len(shape) == 4 and shape[0] == 1:
        return natural, (shape[1] if 1 in axes else 1, shape[2] if 2 in axes else 1)
    # All dimensions but the last lie one after the other as columns: the last ones of these can be reduced.
    reduced = axes & leading
    if reduced and min(reduced) < max(leading - axes):
        raise Refusal(f"a reduction of {list(shape)} over {sorted(axes)}")
    return natural, (1, math.prod(shape[a] for a in reduced))


def _mean(graph: Graph, node: Node, operands: Operands) -> Layer:
    return _reduction(graph, node, operands, divide=True)


def _sum(graph: Graph, node: Node, operands: Operands) -> Layer:
    return _reduction(graph, node, operands, divide=False)


MEAN = Operator(layer=_mean, takes="int8, over axes that lie together", roundings=("tflite", "onnx"))
REDUCE_MAX = Operator(layer=_maximum, takes="int8, over axes that lie together, not over channels")
SUM = Operator(layer=_sum, takes="int8, over axes that lie together")
