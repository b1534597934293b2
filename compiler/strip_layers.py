"""Rows of a layer as a layer of their own: what it reads for them, and where the tensors on the chip have that.

A tensor on the chip may hold all rows of a network's tensor or only some, a *strip*. Layers read neighbouring rows from
multiples of `row_banks` on; a window that begins elsewhere leaves rows out, as padding of less than 0 does.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from nnloom.arch.config import AcceleratorConfig

from .graph import (
    Add,
    AveragePool2D,
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    Layer,
    MaxPool2D,
    Mul,
    Padding,
    Tensor,
    WindowSum,
)

__all__ = ["Held", "leaves_out_nothing", "reads_in_order", "rows_read", "rows_written", "strip_layer"]


@dataclass(frozen=True)
class Held:
    """A tensor on the chip that holds rows of another one, from row `first` on."""

    tensor: Tensor
    first: int = 0


def leaves_out_nothing(layer: Layer) -> bool:
    """Whether a layer reads from the first row of its operand on: its window, if it has one, cannot begin elsewhere."""
    return isinstance(layer, Add | Mul | WindowSum)


def reads_in_order(layer: Layer, operand: int) -> bool:
    """Whether the rows of an operand that a strip reads follow from the strip's; else it reads all of them."""
    return not (isinstance(layer, FullyConnected) or (isinstance(layer, Mul) and layer.pixel == operand))


def _window(layer: Layer) -> tuple[int, int, int] | None:
    """Rows, stride and top padding of a layer's window; None for a layer that has none."""
    match layer:
        case Conv2D():
            return layer.weights.shape[1], layer.strides[0], layer.padding.top
        case DepthwiseConv2D():
            return layer.weights.shape[0], layer.strides[0], layer.padding.top
        case MaxPool2D() | AveragePool2D():
            return layer.window[0], layer.strides[0], layer.padding.top
        case WindowSum():
            return layer.window[0], layer.strides[0], 0
    return None


def rows_read(layer: Layer, operand: int, first: int, end: int) -> tuple[int, int]:
    """Rows (first, end) of the whole operand that a layer reads for rows `first` to `end` - 1 of its output; at least
    one."""
    tensor = layer.inputs[operand]
    origin, window = tensor.origin[0], _window(layer)
    if not reads_in_order(layer, operand):
        return origin, origin + tensor.rows
    if window is None:
        return origin + first, origin + end
    rows, stride, top = window
    begin = min(max(0, first * stride - top), tensor.rows - 1)
    stop = max(begin + 1, min(tensor.rows, (end - 1) * stride - top + rows))
    return origin + begin, origin + stop


def rows_written(layer: Layer, first: int, end: int) -> tuple[int, int]:
    """Rows (first, end) of the whole output from the first to the last that a layer writes for these of its own."""
    tensor = layer.output
    begin = tensor.origin[0] + first * tensor.row_step
    return begin, begin + (end - first - 1) * tensor.row_step + 1


def strip_layer(
    config: AcceleratorConfig, layer: Layer, first: int, end: int, inputs: list[Held], output: Held
) -> Layer:
    """Rows `first` to `end` - 1 of a layer's output, between tensors that hold at least what it reads and writes."""
    moved: list[Tensor] = []
    padding: Padding | None = None
    for operand, (tensor, held) in enumerate(zip(layer.inputs, inputs, strict=True)):
        begin, stop = rows_read(layer, operand, first, end)
        at = begin - held.first
        start = at // config.row_banks * config.row_banks
        window = _window(layer)
        if window is None:
            assert at == start, f"{layer.name}: rows of different banks"
        else:
            _, stride, top = window
            # Of the output's first row, counted from the part's first row, which is `at - start` rows before `begin`.
            row = first * stride - top - (begin - tensor.origin[0]) + at - start
            bottom = max(0, end * stride - tensor.rows)
            old = getattr(layer, "padding", Padding())
            padding = Padding(top=-row, left=old.left, bottom=bottom, right=old.right)
        moved.append(_rows_of(tensor, held.tensor, start, stop - held.first - start))
    begin, _ = rows_written(layer, first, end)
    out = _rows_of(layer.output, output.tensor, begin - output.first, end - first)
    changes: dict = {"inputs": tuple(moved), "output": out}
    if padding is not None and not isinstance(layer, WindowSum):
        changes["padding"] = padding
    elif padding is not None:
        # Its window has no padding: nothing can be left out.
        assert padding.top == 0, f"{layer.name}: a sum of rows that begin in another bank"
    return dataclasses.replace(layer, **changes)


def _rows_of(tensor: Tensor, held: Tensor, row: int, rows: int) -> Tensor:
    """Rows of a tensor, or of a part of one, within the tensor that holds them."""
    if tensor.whole is None and row == 0 and rows == held.rows:
        return dataclasses.replace(tensor, name=held.name, rows=rows, shape=(1, rows, tensor.columns, tensor.channels))
    return dataclasses.replace(
        tensor,
        name=held.name,
        rows=rows,
        shape=(1, rows, tensor.columns, tensor.channels),
        whole=(held.rows, held.columns, held.channels),
        origin=(row, *tensor.origin[1:]),
    )
