"""AVERAGE_POOL_2D and MAX_POOL_2D on the accelerator.

An average divides by the number of values that its window has in the operand: with padding that is another one at the
edges, so that these are layers of their own.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

from nnloom.arch.dtypes import ACTIVATION

from ..graph import AveragePool2D, Layer, MaxPool2D, Padding
from ..ir import Graph, Node
from .operator import Made, Operands, Operator, Refusal, common, int8_type, natural_layout

__all__ = ["AVERAGE_POOL_2D", "MAX_POOL_2D"]


MOST_LAYERS = 16
"""Layers that an average pool with padding may become: 9 for 3 x 3 windows."""


def _fields(graph: Graph, node: Node, operands: Operands) -> dict:
    source, source_q = int8_type(node.operation.inputs[0], "the operand")
    _, out_q = int8_type(node.operation.outputs[0], "the output")
    if len(source.shape) != 4 or source.shape[0] != 1:
        raise Refusal(f"operand of shape {source.shape}; the accelerator takes one image [1, rows, columns, channels]")
    if source_q != out_q:
        raise Refusal("pooling that changes the quantization")
    assert node.inputs[0] is not None
    inputs = (operands.tensor(node.inputs[0], natural_layout(source.shape)),)
    fields = common(graph, node, inputs, natural_layout(node.operation.outputs[0].shape))
    return fields | dict(window=node.operation.options["window"], strides=node.operation.options["strides"])


@dataclass(frozen=True)
class _Windows:
    """Along one axis: outputs that follow each other, with windows of equally many values at even distances."""

    start: int
    count: int
    values: int
    first: int
    """index of the operand at which the first window begins"""
    step: int


def _windows(window: int, stride: int, padding: int, size: int, out: int) -> list[_Windows]:
    """All outputs of an axis, in order."""
    result: list[_Windows] = []
    for index in range(out):
        first, end = max(0, index * stride - padding), min(size, index * stride - padding + window)
        last = result[-1] if result else None
        if last and last.values == end - first and last.count == 1:
            result[-1] = dataclasses.replace(last, count=2, step=first - last.first)
        elif last and last.values == end - first and first == last.first + last.count * last.step:
            result[-1] = dataclasses.replace(last, count=last.count + 1)
        else:
            result.append(_Windows(index, 1, end - first, first, 1))
    return result


def _average_pool_2d(graph: Graph, node: Node, operands: Operands) -> Layer | Made:
    fields = _fields(graph, node, operands)
    (source,), output = fields["inputs"], fields["output"]
    padding = node.operation.options["padding"]
    fields["half_up"] = node.operation.options.get("rounding") == "UP"
    if not any(padding):
        return AveragePool2D(**fields)
    window, strides = fields["window"], fields["strides"]
    rows = _windows(window[0], strides[0], padding[0], source.rows, output.rows)
    columns = _windows(window[1], strides[1], padding[1], source.columns, output.columns)
    if len(rows) * len(columns) > MOST_LAYERS:
        raise Refusal(f"average pool with padding: {len(rows) * len(columns)} kinds of windows, at most {MOST_LAYERS}")
    layers = []
    for r, c in itertools.product(rows, columns):
        place = output
        if len(rows) * len(columns) > 1:
            place = output.part((r.start, c.start, 0), (r.count, c.count, output.channels))
        geometry = dict(window=(r.values, c.values), strides=(r.step, c.step), padding=Padding(-r.first, -c.first))
        layers.append(AveragePool2D(**{**fields, **geometry, "output": place}))
    return Made(tuple(layers), (output,))


def _max_pool_2d(graph: Graph, node: Node, operands: Operands) -> Layer:
    return MaxPool2D(**_fields(graph, node, operands), padding=Padding(*node.operation.options["padding"]))


AVERAGE_POOL_2D = Operator(layer=_average_pool_2d, takes="int8; with padding up to 16 kinds of windows")
MAX_POOL_2D = Operator(layer=_max_pool_2d, takes=ACTIVATION)
