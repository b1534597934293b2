"""CONV_2D, DEPTHWISE_CONV_2D and TRANSPOSE_CONV on the accelerator.

Dilated kernels become kernels with zeros between their taps, groups one kernel with zeros for the channels of others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.numerics import IDENTITY_MULTIPLIER

from ..graph import Conv2D, DepthwiseConv2D, Layer, Padding, Tensor
from ..ir import Graph, Node
from .operator import Operands, Operator, Refusal, bias_of, common, inner_tensor, int8_type, natural_layout, weights_of

__all__ = ["CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"]

_LARGEST_GROWTH = 8
"""Zeros between the taps of a dilated kernel may make it so many times as large; beyond, the CPU is the better place"""


def _image(node: Node, index: int = 0) -> tuple[int, ...]:
    """Shape of the operand.

    Raises
    ------
    Refusal
        If it holds several images.
    """
    shape = int8_type(node.operation.inputs[index], "the operand")[0].shape
    if len(shape) != 4 or shape[0] != 1:
        raise Refusal(f"operand of shape {shape}; the accelerator takes one image [1, rows, columns, channels]")
    return shape


def _dilated(weights: NDArray[np.int8], node: Node) -> NDArray[np.int8]:
    """Weights [outputs, rows, columns, inputs] with zeros between their taps."""
    rows, columns = node.operation.options["dilation"]
    outputs, kernel_rows, kernel_columns, inputs = weights.shape
    extent = (kernel_rows - 1) * rows + 1, (kernel_columns - 1) * columns + 1
    if extent[0] * extent[1] > _LARGEST_GROWTH * kernel_rows * kernel_columns:
        raise Refusal(f"dilation {(rows, columns)} makes a kernel of {extent[0]} x {extent[1]}, nearly all of it zeros")
    result = np.zeros((outputs, *extent, inputs), np.int8)
    result[:, ::rows, ::columns] = weights
    return result


def _conv_2d(graph: Graph, node: Node, operands: Operands) -> Layer | Sequence[Layer]:
    channels = _image(node)[3]
    weights, scales = weights_of(graph, node, 0)
    weights = _dilated(weights, node)
    groups = channels // weights.shape[3]
    if groups == channels > 1:
        return _depthwise(graph, node, operands, weights[..., 0].transpose(1, 2, 0), scales)
    return _convolution(graph, node, operands, _ungrouped(weights, groups), scales)


def _ungrouped(weights: NDArray[np.int8], groups: int) -> NDArray[np.int8]:
    """Weights [outputs, rows, columns, inputs of a group] with zeros for the inputs of other groups."""
    outputs, rows, columns, depth = weights.shape
    result = np.zeros((groups, outputs // groups, rows, columns, groups, depth), np.int8)
    for group in range(groups):
        result[group, ..., group, :] = weights.reshape(groups, -1, rows, columns, depth)[group]
    return result.reshape(outputs, rows, columns, groups * depth)


def _convolution(
    graph: Graph,
    node: Node,
    operands: Operands,
    weights: NDArray[np.int8],
    scales: NDArray[np.float64],
    *,
    index: int = 0,
    bias: int = 2,
    **geometry,
) -> Conv2D:
    """weights [outputs, rows, columns, inputs]; index, bias: which operands these are."""
    value = node.inputs[index]
    assert value is not None
    inputs = (operands.tensor(value, natural_layout(_image(node, index))),)
    geometry = geometry or _geometry(node)
    return Conv2D(
        **common(graph, node, inputs, natural_layout(node.operation.outputs[0].shape)),
        weights=weights,
        weight_scales=scales,
        bias=bias_of(graph, node, len(weights), bias),
        **geometry,
    )


def _geometry(node: Node) -> dict:
    options = node.operation.options
    return dict(strides=options["strides"], padding=Padding(*options["padding"]))


def _depthwise_conv_2d(graph: Graph, node: Node, operands: Operands) -> Layer | Sequence[Layer]:
    channels = _image(node)[3]
    weights, scales = weights_of(graph, node, 3)
    weights = _dilated(weights.transpose(3, 1, 2, 0), node)
    if channels == 1:
        # Every output reads the one channel: a convolution.
        return _convolution(graph, node, operands, weights, scales)
    return _depthwise(graph, node, operands, weights[..., 0].transpose(1, 2, 0), scales)


def _depthwise(
    graph: Graph, node: Node, operands: Operands, weights: NDArray[np.int8], scales: NDArray[np.float64]
) -> Layer | Sequence[Layer]:
    """weights [rows, columns, outputs], as many outputs side by side for each channel of the operand."""
    shape = _image(node)
    rows, columns, outputs = weights.shape
    channels = shape[3]
    if outputs != channels and rows * columns == 1:
        # No more than the copies of channels, which are the other way, would cost.
        return _convolution(graph, node, operands, _ungrouped(weights.transpose(2, 0, 1)[..., None], channels), scales)
    assert node.inputs[0] is not None
    source = operands.tensor(node.inputs[0], natural_layout(shape))
    copies: list[Layer] = []
    if outputs != channels:
        copies.append(_repeated(graph, node, source, outputs // channels))
        source = copies[0].output
    layer = DepthwiseConv2D(
        **common(graph, node, (source,), natural_layout(node.operation.outputs[0].shape)),
        weights=weights,
        weight_scales=scales,
        bias=bias_of(graph, node, outputs),
        **_geometry(node),
    )
    return (*copies, layer)


def _repeated(graph: Graph, node: Node, source: Tensor, times: int) -> Conv2D:
    """Each channel several times, side by side."""
    output = inner_tensor(graph, node, source, "channels", channels=source.channels * times)
    weights = np.repeat(np.eye(source.channels, dtype=np.int8), times, axis=0)[:, None, None]
    return Conv2D(
        name=output.name,
        inputs=(source,),
        output=output,
        weights=weights,
        weight_scales=np.ones(len(weights)),
        bias=np.zeros(len(weights), np.int32),
        requantization=((IDENTITY_MULTIPLIER, 0),) * len(weights),
    )


def _transpose_conv(graph: Graph, node: Node, operands: Operands) -> Layer:
    """With strides of 1, a convolution with the kernel turned round."""
    shape = _image(node, 2)
    if node.operation.options["strides"] != (1, 1):
        raise Refusal(f"strides {node.operation.options['strides']}; the accelerator writes neighbouring rows only")
    weights, scales = weights_of(graph, node, 0)
    out = node.operation.outputs[0].shape
    before = [k - 1 - p for k, p in zip(weights.shape[1:3], node.operation.options["padding"][:2], strict=True)]
    after = [out[1 + i] - 1 + weights.shape[1 + i] - before[i] - shape[1 + i] for i in (0, 1)]
    return _convolution(
        graph,
        node,
        operands,
        np.ascontiguousarray(weights[:, ::-1, ::-1]),
        scales,
        index=2,
        bias=3,
        padding=Padding(*before, *after),
    )


CONV_2D = Operator(layer=_conv_2d, takes="constant int8 weights, batch 1")
DEPTHWISE_CONV_2D = Operator(layer=_depthwise_conv_2d, takes="constant int8 weights, batch 1")
TRANSPOSE_CONV = Operator(layer=_transpose_conv, takes="constant int8 weights, batch 1")
