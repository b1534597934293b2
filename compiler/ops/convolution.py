"""CONV_2D, DEPTHWISE_CONV_2D and TRANSPOSE_CONV on the accelerator.

Dilated kernels become kernels with zeros between their taps, groups one kernel with zeros for the channels of others.
A transposed convolution is a convolution for each of the rows and columns that take turns by its strides.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.legality import MOST_ROW_STEP
from nnloom.arch.numerics import IDENTITY_MULTIPLIER

from ..graph import Conv2D, DepthwiseConv2D, Layer, Padding, Tensor
from ..ir import Graph, Node
from .operator import (
    Made,
    Operands,
    Operator,
    Refusal,
    bias_of,
    common,
    inner_tensor,
    int8_type,
    natural_layout,
    requantization_of,
    weights_of,
)
from .rounding import rounding_of

__all__ = ["CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"]

MOST_PHASES = 16
"""Convolutions that one transposed convolution may become."""

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


def _dilated(weights: NDArray[np.signedinteger], node: Node) -> NDArray[np.signedinteger]:
    """Weights [outputs, rows, columns, inputs] with zeros between their taps."""
    rows, columns = node.operation.options["dilation"]
    outputs, kernel_rows, kernel_columns, inputs = weights.shape
    extent = (kernel_rows - 1) * rows + 1, (kernel_columns - 1) * columns + 1
    if extent[0] * extent[1] > _LARGEST_GROWTH * kernel_rows * kernel_columns:
        raise Refusal(f"dilation {(rows, columns)} makes a kernel of {extent[0]} x {extent[1]}, nearly all of it zeros")
    result = np.zeros((outputs, *extent, inputs), weights.dtype)
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


def _ungrouped(weights: NDArray[np.signedinteger], groups: int) -> NDArray[np.signedinteger]:
    """Weights [outputs, rows, columns, inputs of a group] with zeros for the inputs of other groups."""
    outputs, rows, columns, depth = weights.shape
    result = np.zeros((groups, outputs // groups, rows, columns, groups, depth), weights.dtype)
    for group in range(groups):
        result[group, ..., group, :] = weights.reshape(groups, -1, rows, columns, depth)[group]
    return result.reshape(outputs, rows, columns, groups * depth)


def _convolution(
    graph: Graph,
    node: Node,
    operands: Operands,
    weights: NDArray[np.signedinteger],
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
    fields = common(graph, node, inputs, natural_layout(node.operation.outputs[0].shape))
    biases = bias_of(graph, node, len(weights), bias)
    limits = fields["act_min"], fields["act_max"]
    return Conv2D(
        **fields,
        **{
            "requantization": requantization_of(node, len(weights)),
            **rounding_of(node, weights, biases, inputs[0].zero_point, limits),
        },
        weights=weights,
        weight_scales=scales,
        bias=biases,
        **(geometry or _geometry(node)),
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
    graph: Graph, node: Node, operands: Operands, weights: NDArray[np.signedinteger], scales: NDArray[np.float64]
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
    fields = common(graph, node, (source,), natural_layout(node.operation.outputs[0].shape))
    bias = bias_of(graph, node, outputs)
    limits = fields["act_min"], fields["act_max"]
    layer = DepthwiseConv2D(
        **fields,
        **{
            "requantization": requantization_of(node, outputs),
            **rounding_of(node, weights.transpose(2, 0, 1), bias, source.zero_point, limits),
        },
        weights=weights,
        weight_scales=scales,
        bias=bias,
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


@dataclass(frozen=True)
class _Taps:
    """Along one axis: the outputs at `start`, `start + stride` ... are a convolution with some of a kernel's taps."""

    start: int
    count: int
    kernel: slice
    """the taps, from the last to the first"""
    before: int
    """padding"""
    after: int


def _transposed(kernel: int, stride: int, padding: int, size: int, out: int) -> list[_Taps]:
    """A transposed convolution along one axis, as `stride` convolutions.

    Output o takes tap k of input i where o = i * stride + k - padding: of the taps those that are (o + padding) mod
    stride, plus multiples of the stride.
    """
    result = []
    for start in range(min(stride, out)):
        first = (start + padding) % stride
        taps = len(range(first, kernel, stride))
        if not taps:
            # Nothing but the bias: a tap of zeros on any input.
            taps, first = 1, kernel
        count = len(range(start, out, stride))
        before = taps - 1 - (start + padding - first) // stride
        if first == kernel:
            before = 0
        # From the last tap down to `first`; slices end before index 0 as None.
        last = first + (taps - 1) * stride
        kept = slice(last, first - stride if first >= stride else None, -stride)
        result.append(_Taps(start, count, kept, before, count - 1 + taps - before - size))
    return result


def _transpose_conv(graph: Graph, node: Node, operands: Operands) -> Made:
    """A convolution with the kernel turned round for each of the rows and columns that take turns."""
    shape = _image(node, 2)
    strides, padding = node.operation.options["strides"], node.operation.options["padding"]
    if strides[0] > MOST_ROW_STEP or strides[0] * strides[1] > MOST_PHASES:
        raise Refusal(
            f"strides {strides}; the accelerator takes up to {MOST_ROW_STEP} in rows, {MOST_PHASES} by product"
        )
    weights, scales = weights_of(graph, node, 0)
    out = node.operation.outputs[0].shape
    axes = [_transposed(weights.shape[1 + i], strides[i], padding[i], shape[1 + i], out[1 + i]) for i in (0, 1)]
    # A kernel that is shorter than the stride leaves outputs without a tap.
    weights = np.pad(weights, ((0, 0), (0, 1), (0, 1), (0, 0)))
    layers = []
    for rows, columns in itertools.product(*axes):
        layer = _convolution(
            graph,
            node,
            operands,
            np.ascontiguousarray(weights[:, rows.kernel, columns.kernel]),
            scales,
            index=2,
            bias=3,
            padding=Padding(rows.before, columns.before, rows.after, columns.after),
        )
        output = layer.output
        if strides != (1, 1):
            size = rows.count, columns.count, output.channels
            origin = rows.start, columns.start, 0
            place = output.part(origin, size, column_step=strides[1], row_step=strides[0])
            layer = dataclasses.replace(layer, output=place)
        layers.append(layer)
    return Made(tuple(layers), (output,))


BOTH = ("tflite", "onnx")
CONV_2D = Operator(layer=_conv_2d, takes="constant int8 weights, batch 1", roundings=BOTH)
DEPTHWISE_CONV_2D = Operator(layer=_depthwise_conv_2d, takes="constant int8 weights, batch 1")
TRANSPOSE_CONV = Operator(layer=_transpose_conv, takes="constant int8 weights, batch 1")
