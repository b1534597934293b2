"""Rows and columns that nobody reads, and taps that see nothing but padding: they are left out.

A window without padding often ends before its operand does (2 x 2 pooling of 39 rows reads 38), so the layer before
need not compute the rest, and so on backwards. A kernel that is large for its operand (9 rows over 2, with padding) has
taps which lie in the padding at every output; they contribute nothing.
"""

from __future__ import annotations

import dataclasses

from .graph import AveragePool2D, Conv2D, DepthwiseConv2D, Layer, LayerGraph, MaxPool2D, Padding, Tensor, WindowSum

__all__ = ["without_unread"]

_Size = tuple[int, int]
"""rows, columns"""


def without_unread(graph: LayerGraph) -> LayerGraph:
    """The region without what no layer reads, but for its inputs and outputs, and without taps in the padding."""
    sizes = _sizes(graph)
    layers = (
        dataclasses.replace(layer, inputs=tuple(_cut(t, sizes) for t in layer.inputs), output=_cut(layer.output, sizes))
        for layer in graph.layers
    )
    return dataclasses.replace(graph, layers=tuple(map(_without_padding_taps, layers)))


def _sizes(graph: LayerGraph) -> dict[str, _Size]:
    """What is read of each tensor that can be cut: one that a window layer makes, as a whole, for window layers."""
    makers = {layer.output.name: layer for layer in graph.layers}
    # Parts lie in the memory of their wholes.
    parts = {t.name for layer in graph.layers for t in (*layer.inputs, layer.output) if t.whole}
    fixed = {t.name for t in (*graph.inputs, *graph.outputs)} | parts
    fixed |= {name for name, layer in makers.items() if _window(layer) is None}
    sizes: dict[str, _Size] = {}
    for layer in reversed(graph.layers):
        output = layer.output
        whole = output.rows, output.columns
        made = whole if output.name in fixed else sizes.get(output.name, whole)
        for tensor in layer.inputs:
            rows, columns = _read(layer, made, tensor)
            known = sizes.get(tensor.name, (0, 0))
            sizes[tensor.name] = max(known[0], rows), max(known[1], columns)
    return {name: size for name, size in sizes.items() if name in makers and name not in fixed}


def _window(layer: Layer) -> tuple[_Size, _Size, Padding] | None:
    """Rows and columns, strides and padding of a layer's window; None for a layer that has none."""
    match layer:
        case Conv2D():
            return (layer.weights.shape[1], layer.weights.shape[2]), layer.strides, layer.padding
        case DepthwiseConv2D():
            return (layer.weights.shape[0], layer.weights.shape[1]), layer.strides, layer.padding
        case MaxPool2D() | AveragePool2D():
            return layer.window, layer.strides, layer.padding
        case WindowSum():
            return layer.window, layer.strides, Padding()
    return None


def _read(layer: Layer, made: _Size, tensor: Tensor) -> _Size:
    """Rows and columns that a layer reads for so many of its output; at least one."""
    window = _window(layer)
    if window is None:
        return tensor.rows, tensor.columns
    kernel, strides, padding = window
    before = padding.top, padding.left
    ends = [max(1, (n - 1) * s + k - p) for n, s, k, p in zip(made, strides, kernel, before, strict=True)]
    return min(tensor.rows, ends[0]), min(tensor.columns, ends[1])


def _cut(tensor: Tensor, sizes: dict[str, _Size]) -> Tensor:
    rows, columns = sizes.get(tensor.name, (tensor.rows, tensor.columns))
    if (rows, columns) == (tensor.rows, tensor.columns):
        return tensor
    return dataclasses.replace(tensor, rows=rows, columns=columns, shape=(1, rows, columns, tensor.channels))


def _without_padding_taps(layer: Layer) -> Layer:
    if not isinstance(layer, Conv2D | DepthwiseConv2D):
        return layer
    source, output, padding = layer.inputs[0], layer.output, layer.padding
    axis = 1 if isinstance(layer, Conv2D) else 0
    shape = layer.weights.shape
    rows = _taps(shape[axis], layer.strides[0], padding.top, source.rows, output.rows)
    columns = _taps(shape[axis + 1], layer.strides[1], padding.left, source.columns, output.columns)
    if (len(rows), len(columns)) == shape[axis : axis + 2]:
        return layer
    kept = (rows.start, rows.stop), (columns.start, columns.stop)
    index = (slice(None),) * axis + tuple(slice(*ends) for ends in kept)
    padding = dataclasses.replace(padding, top=padding.top - rows.start, left=padding.left - columns.start)
    return dataclasses.replace(layer, weights=layer.weights[index], padding=padding)


def _taps(kernel: int, stride: int, before: int, source: int, output: int) -> range:
    """The taps of a kernel, in one direction, from the first to the last that sees the operand; one at least."""
    last = (output - 1) * stride
    seen = [k for k in range(kernel) if last + k - before >= 0 and k - before < source]
    return range(seen[0], seen[-1] + 1) if seen else range(1)
