"""Operators that move values without changing them: as parts of tensors where they lie, else as layers that copy.

The reference tells which value of the operand each output is. If outputs are rows, columns and channels of the operand
at even distances, they are a part of it, or a copy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.dtypes import RECENTRED
from nnloom.arch.errors import InputError, UnsupportedOperatorError
from nnloom.arch.operation import Quantization
from nnloom.arch.reference import evaluate
from nnloom.arch.reference.data_movement import rescaled_uint8

from ..affine import VALUES
from ..copies import copy_layer, selection_layer
from ..graph import Layer, Padding, Tensor
from ..ir import Graph, Node
from .operator import (
    Made,
    Operands,
    Operator,
    Refusal,
    inner_tensor,
    int8_type,
    natural_layout,
    output_tensor,
    unchanged_types,
)
from .pointwise import ratio, straight_layer

__all__ = ["CONCATENATION", "CUT", "PAD", "origins_of"]


@dataclass(frozen=True)
class _Range:
    """Indices along one axis of a tensor in memory."""

    indices: NDArray[np.int64]

    @property
    def start(self) -> int:
        return int(self.indices[0])

    @property
    def step(self) -> int | None:
        """The distance, if all are at the same, forwards."""
        if len(self.indices) == 1:
            return 1
        steps = np.diff(self.indices)
        return int(steps[0]) if steps[0] > 0 and (steps == steps[0]).all() else None


def origins_of(graph: Graph, node: Node, position: int) -> list[NDArray[np.int64]]:
    """For each output, which element of operand `position` each of its elements is.

    Raises
    ------
    Refusal
        If other operands are not constant.
    """
    operands: list[NDArray | None] = []
    types = list(node.operation.inputs)
    for place, index in enumerate(node.inputs):
        known = graph.constant(index)
        if place == position:
            source = types[place]
            assert source
            operands.append(np.arange(source.elements, dtype=np.int32).reshape(source.shape))
            types[place] = dataclasses.replace(source, dtype="int32", quantization=None)
        elif known is None and index is not None:
            raise Refusal("where it moves values to is not constant")
        else:
            operands.append(known)
    outputs = tuple(dataclasses.replace(t, dtype="int32", quantization=None) for t in node.operation.outputs)
    operation = dataclasses.replace(node.operation, inputs=tuple(types), outputs=outputs)
    try:
        return [
            np.asarray(a, np.int64).reshape(t.shape)
            for a, t in zip(evaluate(operation, operands), outputs, strict=True)
        ]
    except (InputError, UnsupportedOperatorError) as error:
        raise Refusal(str(error).removeprefix(f"{node.kind}: ")) from error


def _ranges(origins: NDArray[np.int64], source: Tensor) -> tuple[_Range, _Range, _Range]:
    """Rows, columns and channels of the operand that an output is made of, in order.

    Raises
    ------
    Refusal
        If it is another selection.
    """
    size = source.rows, source.columns, source.channels
    axes = np.unravel_index(origins.reshape(-1), size)
    chosen = tuple(_Range(values[np.sort(np.unique(values, return_index=True)[1])]) for values in axes)
    counts = tuple(len(r.indices) for r in chosen)
    if np.prod(counts) != origins.size:
        raise Refusal("values in another order")
    grid = np.ravel_multi_index(np.ix_(*(r.indices for r in chosen)), size)
    if not np.array_equal(origins.reshape(counts), grid):
        raise Refusal("values in another order")
    rows, columns, channels = chosen
    if rows.step is None or columns.step is None:
        raise Refusal("rows or columns at uneven distances")
    return rows, columns, channels


def _cut(graph: Graph, node: Node, operands: Operands) -> Made:
    """Outputs that are parts of one operand."""
    variable = [i for i, index in enumerate(node.inputs) if index is not None and graph.constant(index) is None]
    if len(variable) != 1:
        raise Refusal("where it moves values to is not constant")
    (position,) = variable
    _, q_in = int8_type(node.operation.inputs[position], "the operand")
    index = node.inputs[position]
    assert index is not None
    origins = origins_of(graph, node, position)
    source = operands.tensor(index)
    layers: list[Layer] = []
    outputs: list[Tensor] = []
    for value, which in zip(node.outputs, origins, strict=True):
        out, q_out = int8_type(graph.values[value].type, "an output")
        if q_in != q_out:
            raise Refusal("data movement that changes the quantization")
        if np.array_equal(which.reshape(-1), np.arange(source.elements)):
            outputs.append(dataclasses.replace(source, shape=out.shape))
            continue
        rows, columns, channels = _ranges(which, source)
        tensor, copies = _taken(operands, source, rows, columns, channels, graph.values[value].name, out.shape)
        layers += copies
        outputs.append(tensor)
    return Made(tuple(layers), tuple(outputs))


def _taken(
    operands: Operands,
    source: Tensor,
    rows: _Range,
    columns: _Range,
    channels: _Range,
    name: str,
    shape: tuple[int, ...],
) -> tuple[Tensor, Sequence[Layer]]:
    """Some rows, columns and channels of a tensor: a part of it, or a tensor called `name` and its layer."""
    config = operands.config
    if not config.depthwise:
        raise Refusal("the configuration has no window operand (depthwise=False)")
    size = len(rows.indices), len(columns.indices), len(channels.indices)
    steps = rows.step or 1, columns.step or 1
    whole_channels = channels.step == 1 and not (source.origin[2] + channels.start) % config.granule
    if whole_channels and steps[0] == 1 and not (source.origin[0] + rows.start) % config.row_banks:
        return source.part((rows.start, columns.start, channels.start), size, shape, steps[1]), ()
    output = Tensor(
        name=name,
        rows=size[0],
        columns=size[1],
        channels=size[2],
        scale=source.scale,
        zero_point=source.zero_point,
        shape=shape,
    )
    skipped = Padding(top=-rows.start, left=-columns.start)
    if whole_channels:
        part = source.part((0, 0, channels.start), (source.rows, source.columns, size[2]))
        return output, (copy_layer(name, part, output, steps, skipped),)
    weights, room = source.channels * size[2], config.weight_words * config.weight_word_bytes
    if weights > room:
        raise Refusal(
            f"values in another order, {size[2]:,} of {source.channels:,} channels: that takes {weights:,} bytes of "
            f"weights, the configuration has {room:,}"
        )
    return output, (selection_layer(name, source, output, channels.indices, steps, skipped),)


def _concatenation(graph: Graph, node: Node, operands: Operands) -> Made:
    """A copy into each part of the output.

    Channels that do not begin with a granule are put together with gaps, and a convolution closes these.
    """
    _, q_out = int8_type(node.operation.outputs[0], "the output")
    if node.operation.options.get("activation", "NONE") != "NONE":
        raise Refusal(f"fused activation {node.operation.options['activation']}")
    output = output_tensor(graph, node, natural_layout(node.operation.outputs[0].shape))
    axis = _axis(node)
    sources = []
    for index, value_type in zip(node.inputs, node.operation.inputs, strict=True):
        source_type, q = int8_type(value_type, "an operand")
        if index is None or graph.constant(index) is not None:
            raise Refusal("constant operand")
        if q != q_out and not node.operation.options.get("rescales"):
            raise Refusal("operands of several scales")
        size = [output.rows, output.columns, output.channels]
        size[axis] = 1
        size[axis] = source_type.elements // int(np.prod(size))
        sources.append(operands.tensor(index, (size[0], size[1], size[2])))
    granule = operands.config.granule
    if axis == 2 and any(source.channels % granule for source in sources[:-1]):
        return _with_gaps(graph, node, sources, output, granule)
    origin = [0, 0, 0]
    layers: list[Layer] = []
    for source in sources:
        extent = source.rows, source.columns, source.channels
        place = output.part((origin[0], origin[1], origin[2]), extent)
        layers.append(_placed(node, source, place))
        origin[axis] += extent[axis]
    return Made(tuple(layers), (output,))


def _placed(node: Node, source: Tensor, place: Tensor) -> Layer:
    """An operand in its place, in the quantization of the output."""
    if (source.scale, source.zero_point) == (place.scale, place.zero_point):
        return copy_layer(node.name, source, place)
    q_in, q_out = (Quantization.per_tensor(t.scale, t.zero_point + RECENTRED) for t in (source, place))
    answers = rescaled_uint8(VALUES + RECENTRED, q_in, q_out).astype(np.int64) - RECENTRED
    return straight_layer(node.name, source, place, answers[:, None], ratio(q_in, q_out, None))


def _with_gaps(graph: Graph, node: Node, sources: Sequence[Tensor], output: Tensor, granule: int) -> Made:
    """Channels of tensors, each from a granule on, and a convolution that leaves out what is between them."""
    begins = np.cumsum([0, *(-(-source.channels // granule) * granule for source in sources)])
    apart = inner_tensor(graph, node, output, "apart", channels=int(begins[-1]))
    layers: list[Layer] = []
    for source, begin in zip(sources, begins[:-1], strict=True):
        size = source.rows, source.columns, source.channels
        layers.append(_placed(node, source, apart.part((0, 0, int(begin)), size)))
    chosen = np.concatenate([b + np.arange(s.channels) for s, b in zip(sources, begins[:-1], strict=True)])
    layers.append(selection_layer(node.name, apart, output, chosen))
    return Made(tuple(layers), (output,))


def _axis(node: Node) -> int:
    """Along which axis of memory tensors follow each other: 0 rows, 1 columns, 2 channels."""
    shape = node.operation.outputs[0].shape
    axis = int(node.operation.options["axis"]) % len(shape)
    if axis == len(shape) - 1:
        return 2
    if len(shape) == 4 and shape[0] == 1 and axis:
        return axis - 1
    if any(n > 1 for n in shape[:axis]):
        raise Refusal(f"axis {axis} of {list(shape)}")
    return 1


def _pad(graph: Graph, node: Node, operands: Operands) -> Made:
    """A copy with padding, of channels as well."""
    source_type, out = unchanged_types(node)
    assert out.quantization
    zero = out.quantization.zero_point
    widths, value = graph.constant(node.inputs[1]), zero
    if widths is None:
        raise Refusal("the padding is not constant")
    if node.kind == "PADV2":
        given = graph.constant(node.inputs[2])
        value = value if given is None else int(given.reshape(()))
        if given is None or value != zero:
            raise Refusal("padding with another value than zero")
    if len(source_type.shape) != 4 or source_type.shape[0] != 1 or out.shape[0] != 1:
        raise Refusal(
            f"padding of {list(source_type.shape)} to {list(out.shape)}; the accelerator takes one image "
            "[1, rows, columns, channels]"
        )
    (top, bottom), (left, right), (before, after) = (tuple(int(v) for v in pair) for pair in widths[1:])
    assert node.inputs[0] is not None
    source = operands.tensor(node.inputs[0], natural_layout(source_type.shape))
    output = output_tensor(graph, node, natural_layout(out.shape))
    padding = Padding(top, left, bottom, right)
    if not before and not after:
        return Made((copy_layer(node.name, source, output, padding=padding),), (output,))
    channels = np.arange(-before, source.channels + after)
    channels = np.where((channels < 0) | (channels >= source.channels), -1, channels)
    return Made((selection_layer(node.name, source, output, channels, padding=padding),), (output,))


CONCATENATION = Operator(
    layer=_concatenation, follows=True, takes="int8; parts of the output, made in place where that is possible"
)
CUT = Operator(layer=_cut, follows=True, takes="int8; parts of the operand at even distances")
"""SLICE, STRIDED_SLICE, SPLIT, SPLIT_V, UNPACK, GATHER, and TRANSPOSE where nothing moves"""
PAD = Operator(layer=_pad, follows=True, takes="int8; folded into the layer that reads it, else a copy")
