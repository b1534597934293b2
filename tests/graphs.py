"""Small random layer graphs, and their results from the definition of each operator, in arithmetic of `tests.exact`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnloom.compiler.graph import (
    Add,
    AveragePool2D,
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    Layer,
    LayerGraph,
    MaxPool2D,
    Mul,
    Padding,
    Table,
    Tensor,
    WindowSum,
)
from tests import exact

KINDS = ("conv", "conv_narrow_rows", "depthwise", "depthwise_large", "dense", "average", "maximum", "add")
EVERY_KIND = (*KINDS, "sum", "rescaled", "subtract", "multiply", "multiply_pixel")
"""With those that only rewritten operators use"""


def tensor(rng: np.random.Generator, name: str, rows: int, columns: int, channels: int) -> Tensor:
    scale = float(np.float32(rng.uniform(0.01, 0.1)))
    return Tensor(
        name=name,
        rows=rows,
        columns=columns,
        channels=channels,
        scale=scale,
        zero_point=int(rng.integers(-128, 128)),
        shape=(1, rows, columns, channels),
    )


def _weights(rng: np.random.Generator, shape: tuple[int, ...], channels: int, depth: int, output: Tensor, i: Tensor):
    weights = rng.integers(-127, 128, shape, np.int8)
    # Scales that keep results within a few times the int8 range.
    base = output.scale / i.scale / (30 * np.sqrt(depth))
    scales = (base * rng.uniform(0.3, 1.0, channels)).astype(np.float32).astype(np.float64)
    bias = rng.integers(-2000, 2000, channels).astype(np.int32)
    return dict(weights=weights, weight_scales=scales, bias=bias)


def random_layer(rng: np.random.Generator, kind: str, source: Tensor | None = None, name: str = "layer") -> Layer:
    """A layer of the kind; reads `source` if given, else a new random tensor `name`_in."""
    i = source or tensor(
        rng,
        f"{name}_in",
        int(rng.integers(1, 9)),
        int(rng.integers(1, 9)),
        1 if kind == "conv_narrow_rows" else int(rng.integers(1, 40)),
    )
    clamp = sorted(int(v) for v in rng.integers(-128, 128, 2)) if rng.integers(2) else [-128, 127]
    common = dict(name=name, inputs=(i,), act_min=clamp[0], act_max=clamp[1])
    pad = Padding(*(int(v) for v in rng.integers(0, 3, 4)))

    def extent(size: int, kernel: int, stride: int, before: int, after: int) -> int:
        return (size + before + after - kernel) // stride + 1

    def out(rows: int, columns: int, channels: int, like: Tensor | None = None) -> Tensor:
        t = tensor(rng, f"{name}_out", rows, columns, channels)
        if like:
            t = Tensor(**{**t.__dict__, "scale": like.scale, "zero_point": like.zero_point})
        return t

    if kind == "dense":
        o = out(1, 1, int(rng.integers(1, 40)))
        return FullyConnected(
            **common, output=o, **_weights(rng, (o.channels, i.elements), o.channels, i.elements, o, i)
        )
    if kind in ("add", "subtract"):
        j = tensor(rng, f"{name}_in2", i.rows, i.columns, i.channels)
        subtract = {}
        if kind == "subtract":
            # Halves of what has the smaller scale may be rounded the other way.
            j, subtract = Tensor(**{**j.__dict__, "scale": 1.5 * i.scale}), dict(subtract=True)
        return Add(**{**common, "inputs": (i, j)}, output=out(i.rows, i.columns, i.channels), **subtract)
    if kind.startswith("multiply"):
        size = (1, 1) if kind == "multiply_pixel" else (i.rows, i.columns)
        j = tensor(rng, f"{name}_in2", *size, i.channels)
        o = out(i.rows, i.columns, i.channels)
        o = Tensor(**{**o.__dict__, "scale": float(np.float32(i.scale * j.scale * rng.choice([1.01, 8, 64, 4096])))})
        return Mul(**{**common, "inputs": (i, j) if rng.integers(2) else (j, i)}, output=o)
    strides = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    if kind in ("average", "maximum", "sum"):
        window = (int(rng.integers(1, i.rows + 1)), int(rng.integers(1, i.columns + 1)))
        if kind != "maximum":
            o = out(
                extent(i.rows, window[0], strides[0], 0, 0),
                extent(i.columns, window[1], strides[1], 0, 0),
                i.channels,
                i if kind == "average" else None,
            )
            geometry = dict(output=o, window=window, strides=strides)
            if kind == "average":
                return AveragePool2D(**common, **geometry)
            factor = dict(multiplier=int(rng.integers(1, 1 << 31)), shift=int(rng.integers(0, 9)))
            return WindowSum(**common, **geometry, weight=int(rng.integers(-128, 128)), **factor)
        # At most window - 1 of padding, so that every window holds a value.
        pad = Padding(
            *(min(p, w - 1) for p, w in zip((pad.top, pad.left, pad.bottom, pad.right), window * 2, strict=True))
        )
        o = out(
            extent(i.rows, window[0], strides[0], pad.top, pad.bottom),
            extent(i.columns, window[1], strides[1], pad.left, pad.right),
            i.channels,
            i,
        )
        return MaxPool2D(**common, output=o, window=window, strides=strides, padding=pad)
    explicit: dict[str, Any] = {}
    limit = {"conv": 4, "conv_narrow_rows": 6, "depthwise": 3, "depthwise_large": 7, "rescaled": 3}[kind]
    kernel = (
        int(rng.integers(1, min(limit, i.rows + pad.top + pad.bottom) + 1)),
        int(rng.integers(1, min(limit, i.columns + pad.left + pad.right) + 1)),
    )
    rows = extent(i.rows, kernel[0], strides[0], pad.top, pad.bottom)
    columns = extent(i.columns, kernel[1], strides[1], pad.left, pad.right)
    depth = kernel[0] * kernel[1]
    if kind.startswith(("depthwise", "rescaled")):
        o = out(rows, columns, i.channels)
        weights = _weights(rng, (*kernel, i.channels), i.channels, depth, o, i)
        if kind == "rescaled":
            pairs = zip(rng.integers(0, 1 << 31, i.channels), rng.integers(0, 20, i.channels), strict=True)
            explicit = dict(
                requantization=tuple((int(m), int(s)) for m, s in pairs), double_rounding=bool(rng.integers(2))
            )
        return DepthwiseConv2D(**common, output=o, strides=strides, padding=pad, **weights, **explicit)
    o = out(rows, columns, int(rng.integers(1, 40)))
    weights = _weights(rng, (o.channels, *kernel, i.channels), o.channels, depth * i.channels, o, i)
    return Conv2D(**common, output=o, strides=strides, padding=pad, **weights)


def random_graph(
    rng: np.random.Generator, kinds: list[str], tables: int = 0, source: Tensor | None = None
) -> LayerGraph:
    """A chain of layers of the given kinds; the second operand of an elementwise layer is a further region input. Some
    have one of so many tables. `source`: what the first layer reads; default: something small."""
    layers: list[Layer] = []
    entries = [rng.integers(0, 256, 256, np.uint8).tobytes() for _ in range(tables)]
    for index, kind in enumerate(kinds):
        layer = random_layer(rng, kind, source, f"{kind}_{index}")
        if tables and rng.integers(2):
            result = layer.output
            table = Table(entries=entries[rng.integers(tables)], scale=result.scale, zero_point=result.zero_point)
            behind = dataclasses.replace(
                result, scale=float(rng.uniform(0.01, 0.1)), zero_point=int(rng.integers(-128, 128))
            )
            layer = dataclasses.replace(layer, output=behind, table=table)
        layers.append(layer)
        source = layer.output
    made = {layer.output.name for layer in layers}
    inputs = tuple({t.name: t for layer in layers for t in layer.inputs if t.name not in made}.values())
    return LayerGraph("region", inputs, (layers[-1].output,), tuple(layers))


def evaluate(graph: LayerGraph, inputs: dict[str, NDArray[np.int8]]) -> dict[str, NDArray[np.int8]]:
    """Every tensor of the graph as int8 [rows, columns, channels], by explicit loops over the output."""
    tensors = [t for layer in graph.layers for t in (*layer.inputs, layer.output)]
    values: dict[str, NDArray[np.int64]] = {}
    for t in (*graph.inputs, *tensors):
        whole = t.entire
        values[t.name] = np.zeros((whole.rows, whole.columns, whole.channels), np.int64)
    for name, value in inputs.items():
        values[name][...] = value.reshape(values[name].shape)
    for layer in graph.layers:
        operands = [values[t.name][_place(t)] for t in layer.inputs]
        result = np.clip(_evaluate(layer, operands), layer.act_min, layer.act_max)
        if layer.table:
            result = np.array([layer.table.entries[v & 0xFF] for v in result.reshape(-1).tolist()], np.uint8)
            result = result.view(np.int8)
        values[layer.output.name][_place(layer.output)] = result.astype(np.int8).reshape(
            layer.output.rows, layer.output.columns, layer.output.channels
        )
    return {name: value.astype(np.int8) for name, value in values.items()}


def _place(t: Tensor) -> tuple[NDArray, ...]:
    """Where a tensor lies in the one that has the memory."""
    row, column, channel = t.origin
    rows, columns = row + t.row_step * np.arange(t.rows), column + t.column_step * np.arange(t.columns)
    return np.ix_(rows, columns, channel + np.arange(t.channels))


def _evaluate(layer: Layer, operands: list[NDArray]) -> NDArray[np.int64]:
    i, o = layer.inputs[0], layer.result
    x = operands[0]
    if isinstance(layer, Add):
        return _evaluate_add(layer, operands)
    if isinstance(layer, Mul):
        a, b = (values - t.zero_point for values, t in zip(operands, layer.inputs, strict=True))
        scales = [np.float32(t.scale) for t in (*layer.inputs, o)]
        factor = float(scales[0] * scales[1] / scales[2])
        return exact.elementwise(lambda product: exact.rescale(product, factor), a * b) + o.zero_point
    if isinstance(layer, FullyConnected):
        acc = layer.weights.astype(np.int64) @ (x.reshape(-1) - i.zero_point) + layer.bias
        return _rescale(acc, layer, exact.rescale_once)
    pad = getattr(layer, "padding", Padding())
    fill = -128 if isinstance(layer, MaxPool2D) else i.zero_point
    more = [[max(0, n) for n in edges] for edges in ((pad.top, pad.bottom), (pad.left, pad.right))]
    x = np.pad(x, (*more, (0, 0)), constant_values=fill)
    # Less than none: rows and columns that are left out.
    x = x[max(0, -pad.top) : len(x) - max(0, -pad.bottom), max(0, -pad.left) : x.shape[1] - max(0, -pad.right)]
    if isinstance(layer, AveragePool2D | MaxPool2D | WindowSum):
        kernel = layer.window
    elif isinstance(layer, DepthwiseConv2D):
        kernel = layer.weights.shape[:2]
    else:
        kernel = layer.weights.shape[1:3]
    result = np.zeros((o.rows, o.columns, o.channels), np.int64)
    for row in range(o.rows):
        for column in range(o.columns):
            top, left = row * layer.strides[0], column * layer.strides[1]
            window = x[top : top + kernel[0], left : left + kernel[1]]
            if isinstance(layer, MaxPool2D):
                result[row, column] = window.max((0, 1))
            elif isinstance(layer, AveragePool2D):
                result[row, column] = [exact.average(channel) for channel in window.reshape(-1, o.channels).T.tolist()]
            elif isinstance(layer, WindowSum):
                result[row, column] = layer.weight * (window - i.zero_point).sum((0, 1))
            elif isinstance(layer, DepthwiseConv2D):
                result[row, column] = ((window - i.zero_point) * layer.weights).sum((0, 1)) + layer.bias
            else:
                result[row, column] = (
                    np.tensordot(layer.weights.astype(np.int64), window - i.zero_point, 3) + layer.bias
                )
    if isinstance(layer, AveragePool2D | MaxPool2D):
        return result
    if isinstance(layer, WindowSum):
        return _requantize(result, [(layer.multiplier, layer.shift)] * o.channels) + o.zero_point
    if layer.requantization is not None:
        return _requantize(result, layer.requantization, double_rounding=layer.double_rounding) + o.zero_point
    return _rescale(result, layer, exact.rescale)


def _requantize(
    acc: NDArray[np.int64], pairs: Sequence[tuple[int, int]], *, double_rounding: bool = True
) -> NDArray[np.int64]:
    """[..., channels] by multiplier and shift of each channel."""

    def one(a: int, multiplier: int, shift: int) -> int:
        if double_rounding:
            return exact.divide_by_pot(exact.high_mul(a, multiplier), shift)
        return math.floor(Fraction(a * multiplier, 1 << (31 + shift)) + Fraction(1, 2))

    rows = [
        [one(exact.wrap(a), m, s) for a, (m, s) in zip(row, pairs, strict=True)]
        for row in acc.reshape(-1, len(pairs)).tolist()
    ]
    return np.array(rows, np.int64).reshape(acc.shape)


def _rescale(acc: NDArray[np.int64], layer, function) -> NDArray[np.int64]:
    factors = [layer.inputs[0].scale * s / layer.result.scale for s in layer.weight_scales]
    wrapped = exact.elementwise(exact.wrap, acc)
    return exact.rescale_channels(wrapped, factors, function) + layer.result.zero_point


def _evaluate_add(layer: Add, operands: list[NDArray]) -> NDArray[np.int64]:
    (x, y), out = layer.inputs, layer.result
    scales, points = (x.scale, y.scale), (x.zero_point, y.zero_point)
    if layer.subtract:
        operands = [operands[0], 2 * y.zero_point - operands[1]]
    return exact.elementwise(lambda a, b: exact.add(a, b, scales, points, out.scale), *operands) + out.zero_point
