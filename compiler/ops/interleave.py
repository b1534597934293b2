"""Operators whose outputs are rows and columns that take turns: a copy for each turn.

RESIZE_NEAREST_NEIGHBOR by a factor of two writes each value four times: to even and odd rows, even and odd columns.
DEPTH_TO_SPACE and BATCH_TO_SPACE_ND put a block of channels, or an image of the batch, at each turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.legality import MOST_ROW_STEP
from nnloom.arch.operation import TensorType

from ..copies import copy_layer, selection_layer
from ..graph import Layer, Padding, Tensor
from ..ir import Graph, Node
from .movement import origins_of
from .operator import Made, Operands, Operator, Refusal, natural_layout, output_tensor, unchanged_types

__all__ = ["BATCH_TO_SPACE_ND", "DEPTH_TO_SPACE", "RESIZE_NEAREST_NEIGHBOR", "Turn", "turns"]

MOST_COPIES = 16
"""Layers that one operator may become."""


@dataclass(frozen=True)
class Turn:
    """Indices along an axis of the output at even distances, made of such of the operand, which may be one for all."""

    start: int
    step: int
    count: int
    source: int
    """the first one's of the operand"""
    source_step: int


def turns(sources: NDArray[np.int64], most: int) -> list[Turn]:
    """The fewest, at most `most`, that cover an axis; `sources` says which index of the operand each of its is.

    Raises
    ------
    Refusal
        If there are none.
    """
    for step in range(1, min(most, len(sources)) + 1):
        classes = [sources[start::step] for start in range(step)]
        steps = [np.diff(taken) for taken in classes]
        if all((s >= 0).all() and (s == s[:1]).all() for s in steps):
            return [
                Turn(start, step, len(taken), int(taken[0]), int(s[0]) if len(s) else 1)
                for start, (taken, s) in enumerate(zip(classes, steps, strict=True))
            ]
    raise Refusal(f"rows or columns that do not take turns of at most {most}")


def _image(node: Node) -> tuple[TensorType, TensorType]:
    """Types of operand and output: images, int8, of one quantization."""
    source, out = unchanged_types(node)
    if len(source.shape) != 4 or out.shape[0] != 1:
        raise Refusal(f"operand of shape {source.shape}; the accelerator makes one image [1, rows, columns, channels]")
    return source, out


def _steps(*steps: int) -> None:
    if steps[0] > MOST_ROW_STEP or np.prod(steps) > MOST_COPIES:
        raise Refusal(f"blocks of {' x '.join(map(str, steps))}; layers write at least every {MOST_ROW_STEP}th row")


def _resize_nearest_neighbor(graph: Graph, node: Node, operands: Operands) -> Made:
    """RESIZE_NEAREST_NEIGHBOR: rows, and columns, that take turns."""
    source_type, out = _image(node)
    if source_type.shape[0] != 1:
        raise Refusal(f"operand of shape {source_type.shape}; the accelerator takes one image")
    (origins,) = origins_of(graph, node, 0)
    _, rows, columns, channels = np.unravel_index(origins, source_type.shape)
    if not (rows == rows[:, :, :1, :1]).all() or not (columns == columns[:, :1, :, :1]).all():
        raise Refusal("values in another order")
    assert (channels == np.arange(out.shape[3])).all() and node.inputs[0] is not None
    in_rows = turns(rows[0, :, 0, 0], MOST_ROW_STEP)
    in_columns = turns(columns[0, 0, :, 0], MOST_COPIES // len(in_rows))
    source = operands.tensor(node.inputs[0], natural_layout(source_type.shape))
    output = output_tensor(graph, node, natural_layout(out.shape))
    layers = [_turn_copy(node.name, source, output, row, column) for row in in_rows for column in in_columns]
    return Made(tuple(layers), (output,))


def _turn_copy(name: str, source: Tensor, output: Tensor, row: Turn, column: Turn) -> Layer:
    size = row.count, column.count, output.channels
    place = output
    if size != (output.rows, output.columns, output.channels):
        place = output.part((row.start, column.start, 0), size, column_step=column.step, row_step=row.step)
    skipped = Padding(top=-row.source, left=-column.source)
    return copy_layer(name, source, place, (row.source_step, column.source_step), skipped)


def _places(output: Tensor, block: Sequence[int], crop: Sequence[int]) -> Iterator[tuple[int, Tensor, tuple[int, int]]]:
    """Of each turn of a block: its number, its place in the output, and the operand's first row and column there."""
    for row in range(block[0]):
        for column in range(block[1]):
            # Of positions `turn`, `turn + block` ... of which `crop` are cut off: the first that is left.
            skipped = [
                -(-(c - turn) // b) if c > turn else 0 for turn, b, c in zip((row, column), block, crop, strict=True)
            ]
            start = [turn + s * b - c for turn, s, b, c in zip((row, column), skipped, block, crop, strict=True)]
            size = [
                len(range(first, n, b)) for first, n, b in zip(start, (output.rows, output.columns), block, strict=True)
            ]
            if all(size):
                place = output.part(
                    (start[0], start[1], 0),
                    (size[0], size[1], output.channels),
                    column_step=block[1],
                    row_step=block[0],
                )
                yield row * block[1] + column, place, (skipped[0], skipped[1])


def _depth_to_space(graph: Graph, node: Node, operands: Operands) -> Made:
    """Channels of a block; with a convolution where they do not begin with a granule."""
    source_type, out = _image(node)
    block = int(node.operation.options["block_size"])
    _steps(block, block)
    assert node.inputs[0] is not None
    source = operands.tensor(node.inputs[0], natural_layout(source_type.shape))
    output = output_tensor(graph, node, natural_layout(out.shape))
    channels = output.channels
    layers: list[Layer] = []
    for number, place, _ in _places(output, (block, block), (0, 0)):
        first = number * channels
        if operands.config.depthwise and (source.origin[2] + first) % operands.config.granule == 0:
            part = source.part((0, 0, first), (source.rows, source.columns, channels))
            layers.append(copy_layer(node.name, part, place))
        else:
            layers.append(selection_layer(node.name, source, place, first + np.arange(channels)))
    return Made(tuple(layers), (output,))


def _integers(graph: Graph, index: int | None) -> list[int]:
    """The numbers of a constant operand."""
    data = graph.constant(index)
    if data is None:
        raise Refusal("where it moves values to is not constant")
    return [int(v) for v in data.reshape(-1)]


def _batch_to_space(graph: Graph, node: Node, operands: Operands) -> Made:
    """Images of the batch, which lie below each other."""
    source_type, out = _image(node)
    block, crops = (_integers(graph, index) for index in node.inputs[1:])
    if len(block) != 2:
        raise Refusal(f"blocks of {len(block)} dimensions")
    _steps(*block)
    batch, rows, columns, channels = source_type.shape
    assert node.inputs[0] is not None and batch == block[0] * block[1]
    source = operands.tensor(node.inputs[0], (batch * rows, columns, channels))
    output = output_tensor(graph, node, natural_layout(out.shape))
    layers = [
        copy_layer(node.name, source, place, padding=Padding(top=-(number * rows + skipped[0]), left=-skipped[1]))
        for number, place, skipped in _places(output, block, (crops[0], crops[2]))
    ]
    return Made(tuple(layers), (output,))


DEPTH_TO_SPACE = Operator(layer=_depth_to_space, follows=True, takes="int8, blocks of 2 to 4")
RESIZE_NEAREST_NEIGHBOR = Operator(
    layer=_resize_nearest_neighbor, follows=True, takes="int8, one image; by up to 4, also by 3/2 and 4/3, in rows"
)
BATCH_TO_SPACE_ND = Operator(
    layer=_batch_to_space, follows=True, takes="int8, one image, blocks of up to 4 rows; around a convolution: folded"
)
