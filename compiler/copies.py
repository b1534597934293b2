"""Layers that copy: tensors to other places, in other order, and how to do without them.

What an operator moves (CONCATENATION, say) is first a copy. A copy of a tensor that a layer of the same region makes is
left out: that layer writes to the copy's place, and who reads the tensor reads there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.numerics import IDENTITY_MULTIPLIER

from .graph import Add, Conv2D, DepthwiseConv2D, Layer, LayerGraph, Mul, Padding, Tensor

__all__ = ["copy_layer", "is_copy", "repeated_layer", "selection_layer", "without_copies"]

NO_PADDING = Padding()


def copy_layer(
    name: str, source: Tensor, output: Tensor, strides: tuple[int, int] = (1, 1), padding: Padding = NO_PADDING
) -> DepthwiseConv2D:
    """Every channel of the rows and columns that strides and padding choose; padding is the zero point."""
    return DepthwiseConv2D(
        name=name,
        inputs=(source,),
        output=output,
        weights=np.ones((1, 1, source.channels), np.int8),
        strides=strides,
        padding=padding,
        **_unchanged(source.channels),
    )


def repeated_layer(name: str, source: Tensor, output: Tensor) -> DepthwiseConv2D:
    """The row, or column, of a tensor that has one of them for every one of the output."""
    strides = int(source.rows == output.rows), int(source.columns == output.columns)
    return copy_layer(name, source, output, strides)


def selection_layer(
    name: str,
    source: Tensor,
    output: Tensor,
    chosen: np.ndarray,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = NO_PADDING,
    window: tuple[int, int] = (1, 1),
) -> Conv2D:
    """As `copy_layer`, of the values of a window, row by row, in the order given; -1 for one that is the zero point."""
    values = window[0] * window[1] * source.channels
    weights = (chosen[:, None] == np.arange(values)).astype(np.int8)
    return Conv2D(
        name=name,
        inputs=(source,),
        output=output,
        weights=weights.reshape(len(chosen), *window, source.channels),
        strides=strides,
        padding=padding,
        **_unchanged(len(chosen)),
    )


def _unchanged(channels: int) -> dict:
    return dict(
        weight_scales=np.ones(channels),
        bias=np.zeros(channels, np.int32),
        requantization=((IDENTITY_MULTIPLIER, 0),) * channels,
    )


def is_copy(layer: Layer) -> bool:
    """Whether a layer's output is its input, value for value."""
    if not isinstance(layer, DepthwiseConv2D) or layer.requantization is None:
        return False
    (source,), output = layer.inputs, layer.output
    same_size = (source.rows, source.columns, source.channels) == (output.rows, output.columns, output.channels)
    return (
        same_size
        and source.zero_point == output.zero_point
        and layer.weights.shape[:2] == (1, 1)
        and bool((layer.weights == 1).all() and (layer.bias == 0).all())
        and set(layer.requantization) == {(IDENTITY_MULTIPLIER, 0)}
        and (layer.strides, layer.padding) == ((1, 1), NO_PADDING)
        and (layer.act_min, layer.act_max) == (-128, 127)
        and layer.table is None
    )


def without_copies(config: AcceleratorConfig, graph: LayerGraph) -> LayerGraph:
    """The region without the copies into a part of a tensor for which its layers can write there themselves.

    The names of the tensors that are copied go.
    """
    kept = {t.name for t in (*graph.inputs, *graph.outputs)}
    layers = list(graph.layers)
    index = 0
    while index < len(layers):
        copy = layers[index]
        if _can_go(config, copy, layers, kept):
            source, place = copy.inputs[0], copy.output
            layers = [_moved(layer, source.name, place) for layer in layers if layer is not copy]
        else:
            index += 1
    return dataclasses.replace(graph, layers=tuple(layers))


def _can_go(config: AcceleratorConfig, copy: Layer, layers: Sequence[Layer], kept: set[str]) -> bool:
    """Whether the layers that make a copied tensor can write to the copy's place, and take no longer there."""
    if not is_copy(copy) or not copy.output.whole:
        return False
    source = copy.inputs[0]
    if source.whole or source.name in kept:
        return False
    users = [
        layer
        for layer in layers
        if layer is not copy and any(t.name == source.name for t in (*layer.inputs, layer.output))
    ]
    makers = [layer for layer in users if layer.output.name == source.name]
    # What is written over must be written before.
    covered = any(layer is not copy and _overlap(layer.output, copy.output) for layer in layers)
    if not makers or covered or any(isinstance(user, Add | Mul) for user in users):
        return False
    row, step = copy.output.origin[0], copy.output.row_step
    if (row % config.row_banks or step != 1) and len(makers) != len(users):
        return False  # others could not read it there
    if (row % 2 or step != 1) and config.pixels > 1 and any(isinstance(maker, Conv2D) for maker in makers):
        return False  # it would no longer compute two rows at a time
    return all(step * maker.output.row_step <= config.row_banks for maker in makers)


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two parts of one tensor have elements in common."""
    return a.name == b.name and not any(map(set.isdisjoint, map(set, _indices(a)), _indices(b)))


def _indices(t: Tensor) -> tuple[range, range, range]:
    """Rows, columns and channels of the whole that are a part's."""
    row, column, channel = t.origin
    rows = range(row, row + t.rows * t.row_step, t.row_step)
    columns = range(column, column + t.columns * t.column_step, t.column_step)
    return rows, columns, range(channel, channel + t.channels)


def _moved(layer: Layer, name: str, place: Tensor) -> Layer:
    """The layer with a tensor, and parts of it, at another place."""

    def at_place(tensor: Tensor) -> Tensor:
        if tensor.name != name:
            return tensor
        size = tensor.rows, tensor.columns, tensor.channels
        part = place.part(tensor.origin, size, tensor.shape, tensor.column_step, tensor.row_step)
        return dataclasses.replace(part, scale=tensor.scale, zero_point=tensor.zero_point)

    return dataclasses.replace(layer, inputs=tuple(map(at_place, layer.inputs)), output=at_place(layer.output))
