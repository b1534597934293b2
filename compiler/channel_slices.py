"""Tensors in slices of channels, for layers that read so many rows at once that these do not fit the memory.

A global average pool reads every row of its operand. Strips of rows do not help there, but pools, sums and depthwise
convolutions keep channels apart: the layer before makes some channels, they are read, and then come the next ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection

from nnloom.arch.config import AcceleratorConfig

from .graph import AveragePool2D, Conv2D, DepthwiseConv2D, Layer, LayerGraph, MaxPool2D, Tensor, WindowSum

__all__ = ["channel_slice", "keeps_channels_apart", "slice_name", "with_channel_slices"]

_MOST = 32
"""Slices of a tensor at most."""


def with_channel_slices(
    config: AcceleratorConfig, graph: LayerGraph, misfits: Callable[[LayerGraph], Collection[str]]
) -> LayerGraph:
    """The region with the operands of layers that do not fit in slices, as few as make them fit.

    misfits: names of the layers of a region that do not fit.
    """
    tall = misfits(graph)
    # From the end on: what is in slices already is made of parts, and read in parts.
    for layer in reversed(graph.layers):
        if layer.name not in tall or not _can_be_sliced(graph, layer.inputs[0].name):
            continue
        tensor = layer.inputs[0]
        groups = -(-tensor.channels // config.lanes)
        for count in range(2, min(groups, _MOST) + 1):
            size = -(-groups // count) * config.lanes
            sliced = _sliced(graph, tensor, size)
            left = misfits(sliced)
            if layer.name not in left:
                graph, tall = sliced, left
                break
    return graph


def keeps_channels_apart(layer: Layer) -> bool:
    """Whether each channel of a layer's output is made of the same channel of its only operand."""
    return isinstance(layer, AveragePool2D | MaxPool2D | WindowSum | DepthwiseConv2D)


def _can_be_sliced(graph: LayerGraph, name: str) -> bool:
    """Whether one layer makes a tensor, and each that reads it keeps its channels apart."""
    makers = [layer for layer in graph.layers if layer.output.name == name]
    readers = [layer for layer in graph.layers if any(t.name == name for t in layer.inputs)]
    if len(makers) != 1 or any(t.name == name for t in (*graph.inputs, *graph.outputs)):
        return False
    (maker,) = makers
    return (
        (isinstance(maker, Conv2D) or keeps_channels_apart(maker))
        and maker.output.whole is None
        and all(keeps_channels_apart(layer) and layer.inputs[0].whole is None for layer in readers)
    )


def _sliced(graph: LayerGraph, tensor: Tensor, size: int) -> LayerGraph:
    """The region with a tensor in slices of so many channels, each read as soon as it is made."""
    readers = [layer for layer in graph.layers if any(t.name == tensor.name for t in layer.inputs)]
    layers: list[Layer] = []
    for layer in graph.layers:
        if layer.output.name == tensor.name:
            for first in range(0, tensor.channels, size):
                channels = range(first, min(first + size, tensor.channels))
                layers.append(channel_slice(layer, channels, tensor.name, made=True))
                layers += [channel_slice(reader, channels, tensor.name, made=False) for reader in readers]
        elif all(layer is not reader for reader in readers):
            layers.append(layer)
    return dataclasses.replace(graph, layers=tuple(layers))


def slice_name(tensor: str, channels: range) -> str:
    """Name of some channels of a tensor."""
    return f"{tensor} [{channels.start}:{channels.stop}]"


def channel_slice(layer: Layer, channels: range, name: str, *, made: bool) -> Layer:
    """Some output channels of a layer. The slice of the tensor `name`, which it makes or reads, is a tensor of its
    own (`slice_name`); others are parts."""

    def cut(tensor: Tensor) -> Tensor:
        if tensor.name == name:
            shape = (1, tensor.rows, tensor.columns, len(channels))
            return dataclasses.replace(tensor, name=slice_name(name, channels), channels=len(channels), shape=shape)
        return tensor.part((0, 0, channels.start), (tensor.rows, tensor.columns, len(channels)))

    source = layer.inputs[0]
    if not (made and isinstance(layer, Conv2D)):
        source = cut(source)
    changes: dict = {"inputs": (source,), "output": cut(layer.output)}
    mine = slice(channels.start, channels.stop)
    if isinstance(layer, Conv2D | DepthwiseConv2D):
        weights = layer.weights[mine] if isinstance(layer, Conv2D) else layer.weights[..., mine]
        changes |= {"weights": weights, "weight_scales": layer.weight_scales[mine], "bias": layer.bias[mine]}
        if layer.requantization is not None:
            changes["requantization"] = layer.requantization[mine]
    return dataclasses.replace(layer, **changes)
