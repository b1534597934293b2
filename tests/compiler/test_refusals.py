"""Every reason for which the accelerator does not take an operator, or the reader a file: what provokes it, and its
text to the letter.

The last tests of both parts read the reasons off the sources, so that a new one needs a case here.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnloom import boards
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import NnloomError
from nnloom.arch.operation import Quantization
from nnloom.compiler.frontend import read_model
from nnloom.compiler.frontend.model_files import MODEL_FILES
from nnloom.compiler.graph import (
    Add,
    AveragePool2D,
    Conv2D,
    DepthwiseConv2D,
    Layer,
    MaxPool2D,
    Mul,
    Padding,
    Table,
    Tensor,
    WindowSum,
)
from nnloom.compiler.ir import Graph, Node
from nnloom.compiler.lower import unsupported_reason
from nnloom.compiler.partition import Cuts, _assign
from tests.compiler.test_recentre import quantized, uint8_input
from tests.tflite_models import ModelWriter, as_uint8, edited, schema

BOARD = boards.get("ulx3s-85f").config
PLAIN = AcceleratorConfig()
"""Without tables and products"""
FEW = dataclasses.replace(BOARD, tables=1)
NO_WINDOW = dataclasses.replace(PLAIN, depthwise=False, max_pool=False, elementwise_add=False)
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Case:
    """A network, and why the accelerator does not take its operator of a kind."""

    kind: str
    reason: str
    build: Callable[[ModelWriter], list[int]]
    config: AcceleratorConfig = BOARD
    change: Callable[[Graph], Graph] | None = None
    """of the graph that was read"""
    unsigned: bool = False
    """as the uint8 network"""


def image(m: ModelWriter, channels: int = 8, rows: int = 6, columns: int = 6) -> int:
    """A tensor that the accelerator makes."""
    return m.conv(m.input((1, rows, columns, 3)), channels, activation=None)


def like(m: ModelWriter, x: int, shape: tuple[int, ...] | None = None, **changes: Any) -> int:
    """A tensor of the quantization of another."""
    q = m.tensors[x].quantization
    return m.tensor(shape or m.shape(x), **{"scale": q.scale, "zero_point": q.zeroPoint, **changes})


def numbers(m: ModelWriter, *values: int) -> int:
    return m.tensor((len(values),), dtype="INT32", data=np.array(values, np.int32))


def reducer(
    m: ModelWriter, kind: str, x: int, axes: Sequence[int], scale: float = 1.0, operand: int | None = None
) -> int:
    options = schema.ReducerOptionsT()
    options.keepDims = True
    shape = tuple(1 if i in axes else n for i, n in enumerate(m.shape(x)))
    out = m.tensor(shape, scale=m.scale(x) * scale, zero_point=3)
    return m.operator(kind, [x, numbers(m, *axes) if operand is None else operand], out, options)


def blocks(m: ModelWriter, kind: str, x: int, size: int, **changes: Any) -> int:
    options = getattr(schema, "DepthToSpaceOptionsT" if kind == "DEPTH_TO_SPACE" else "SpaceToDepthOptionsT")()
    options.blockSize = size
    n, rows, columns, channels = m.shape(x)
    shape = (n, rows // size, columns // size, channels * size * size)
    if kind == "DEPTH_TO_SPACE":
        shape = (n, rows * size, columns * size, channels // size // size)
    return m.operator(kind, [x], like(m, x, shape, **changes), options)


def resized(m: ModelWriter, kind: str, x: int, rows: int, columns: int, **changes: Any) -> int:
    options = schema.ResizeBilinearOptionsT() if kind == "RESIZE_BILINEAR" else schema.ResizeNearestNeighborOptionsT()
    shape = (m.shape(x)[0], rows, columns, m.shape(x)[3])
    return m.operator(kind, [x, numbers(m, rows, columns)], like(m, x, shape, **changes), options)


def changed_tensor(x: int, m: ModelWriter, **changes: Any) -> int:
    """The tensor with another scale, zero point or type."""
    for name, value in changes.items():
        if name == "dtype":
            m.tensors[x].type = getattr(schema.TensorType, value)
        else:
            setattr(m.tensors[x].quantization, name, np.atleast_1d(value))
    return x


def variable_operand(m: ModelWriter, place: int) -> list[int]:
    """A convolution one of whose constants is an input of the network."""
    y = image(m)
    (op,) = m.operators
    m.tensors[op.inputs[place]].buffer = 0
    m.inputs.append(int(op.inputs[place]))
    return [y]


def as_onnx(graph: Graph) -> Graph:
    """The network with ONNX Runtime's rounding."""

    def turned(node: Node) -> Node:
        return dataclasses.replace(node, operation=dataclasses.replace(node.operation, rounding="onnx"))

    return graph.replace_nodes(map(turned, graph.nodes))


def option(name: str, value: Any) -> Callable[[Graph], Graph]:
    """Every node with an option."""

    def turned(node: Node) -> Node:
        options = {**node.operation.options, name: value}
        return dataclasses.replace(node, operation=dataclasses.replace(node.operation, options=options))

    return lambda graph: graph.replace_nodes(map(turned, graph.nodes))


def without_operand(place: int) -> Callable[[Graph], Graph]:
    """Every node without an operand."""

    def turned(node: Node) -> Node:
        inputs, types = list(node.inputs), list(node.operation.inputs)
        inputs[place] = types[place] = None
        return Node(node.name, dataclasses.replace(node.operation, inputs=tuple(types)), tuple(inputs), node.outputs)

    return lambda graph: graph.replace_nodes(
        turned(n) if n.kind in ("ADD", "MUL", "MAXIMUM") else n for n in graph.nodes
    )


def power_of_two(m: ModelWriter) -> list[int]:
    """A convolution whose sums fall on ties."""
    y = image(m)
    (op,) = m.operators
    for index, scale in zip((op.inputs[0], op.inputs[1], y), (1.0, 1 / 4, 1.0), strict=True):
        q = m.tensors[index].quantization
        q.scale = np.full_like(q.scale, scale)
    return [y]


def sum_of_ties(m: ModelWriter, kind: str, out: float) -> list[int]:
    x = image(m)
    y = m.conv(x, 8, activation=None)
    for index in (x, y):
        changed_tensor(index, m, scale=np.float32(1), zeroPoint=0)
    return [m.binary(kind, x, y, out, zero_point=0)]


def quotient(m: ModelWriter, x: int, y: int) -> int:
    return m.binary("DIV", x, y, m.scale(x))


def gathered(m: ModelWriter, indices: Sequence[int], axis: int, rows: int = 6, x: int | None = None) -> list[int]:
    x = image(m, rows=rows) if x is None else x
    options = schema.GatherOptionsT()
    options.axis = axis
    shape = [*m.shape(x)]
    shape[axis] = len(indices)
    return [m.operator("GATHER", [x, numbers(m, *indices)], like(m, x, tuple(shape)), options)]


def transposed(m: ModelWriter, *order: int) -> list[int]:
    x = image(m, rows=4)
    shape = tuple(m.shape(x)[i] for i in order)
    return [m.operator("TRANSPOSE", [x, numbers(m, *order)], like(m, x, shape), schema.TransposeOptionsT())]


def fused_concatenation(m: ModelWriter) -> list[int]:
    x = image(m)
    y = m.concatenate(3, x, x)
    m.operators[-1].builtinOptions.fusedActivationFunction = schema.ActivationFunctionType.RELU
    return [y]


def leaky(m: ModelWriter, x: int, alpha: float) -> int:
    options = schema.LeakyReluOptionsT()
    options.alpha = alpha
    return m.operator("LEAKY_RELU", [x], like(m, x), options)


def two_tables(m: ModelWriter) -> list[int]:
    x = m.unary("HARD_SWISH", image(m), 0.1)
    return [m.unary("TANH", m.conv(x, 8, activation=None), 1 / 128, 0)]


def another_layout(m: ModelWriter) -> list[int]:
    """What a layer makes in one layout, another one reads in another."""
    x = image(m, 8, 4, 4)
    return [m.conv(m.reshape(x, (1, 8, 8, 2)), 4)]


def batch(m: ModelWriter, count: int = 2) -> int:
    x = m.input((count, 4, 4, 4))
    return x


def shuffled(graph: Graph) -> Graph:
    return option("weights_format", "SHUFFLED4x16INT8")(graph)


CASES = {
    # Operators and types
    "no lowering": Case("SOFTMAX", "SOFTMAX has no lowering", lambda m: [m.softmax(image(m))]),
    "none of ONNX Runtime's rounding": Case(
        "SUB",
        "SUB as ONNX Runtime computes it has no lowering",
        lambda m: [m.binary("SUB", image(m), image(m), 1.0)],
        change=as_onnx,
    ),
    "float": Case(
        "ADD",
        "an operand is float32, not int8",
        lambda m: [m.binary("ADD", *(m.input((1, 4), dtype="FLOAT32") for _ in "ab"), 1.0)],
    ),
    "an operand left out": Case(
        "ADD", "an operand is left out", lambda m: [m.binary("ADD", image(m), image(m), 1.0)], change=without_operand(1)
    ),
    "no twin": Case("ABS", "ABS of uint8 has no int8 twin", lambda m: [m.unary("ABS", image(m), 0.1)], unsigned=True),
    "weights of uint8 that are no constant": Case(
        "CONV_2D", "weights are not constant", lambda m: variable_operand(m, 1), unsigned=True
    ),
    "weights of uint8 with scales": Case(
        "CONV_2D",
        "the operand or its weights have no single scale",
        lambda m: [image(m)],
        unsigned=True,
        change=lambda g: _quantized(g, 1, Quantization((0.1,) * 8, (3,) * 8, 0)),
    ),
    "a view of what the CPU makes": Case(
        "RESHAPE", "reshape between CPU operators", lambda m: [m.reshape(m.softmax(m.input((1, 4))), (4, 1))]
    ),
    "another name": Case(
        "QUANTIZE",
        "the CPU reads it in another type",
        lambda m: [m.conv(quantized(m, uint8_input(m, (1, 4, 4, 3)), "INT8", -128), 4)],
    ),
    "nothing there": Case(
        "LOGISTIC",
        "no operand of it is on the accelerator",
        lambda m: [m.unary("LOGISTIC", m.input((1, 4)), 1 / 256, -128)],
    ),
    "other tables": Case("TANH", "the engine's tables (1) hold other functions", two_tables, FEW),
    "no tables": Case(
        "LOGISTIC",
        "the configuration has no tables (tables=0)",
        lambda m: [m.unary("LOGISTIC", image(m), 1 / 256, -128)],
        PLAIN,
    ),
    "scales by channel": Case(
        "CONV_2D",
        "the operand has no single scale",
        lambda m: [m.conv(m.input((1, 4, 4, 3)), 4)],
        change=lambda g: _quantized(g, 0, Quantization((0.1, 0.2, 0.3), (0, 0, 0), 3)),
    ),
    # Products
    "weights that are no constant": Case("CONV_2D", "weights are not constant", lambda m: variable_operand(m, 1)),
    "int16 weights": Case(
        "CONV_2D",
        "weights are int16, not int8",
        lambda m: [image(m)],
        change=lambda g: _typed(g, 1, "int16"),
    ),
    "weights without a scale": Case(
        "CONV_2D", "weights have no scale", lambda m: [image(m)], change=lambda g: _quantized(g, 1, None)
    ),
    "weights with a zero point": Case(
        "CONV_2D",
        "weights with a zero point",
        lambda m: [image(m)],
        change=lambda g: _quantized(g, 1, Quantization((0.1,) * 8, (1,) * 8, 0)),
    ),
    "scales along another axis": Case(
        "CONV_2D",
        "scales of the weights are for axis 3, not 0",
        lambda m: [image(m, 3)],
        change=lambda g: _quantized(g, 1, Quantization((0.1,) * 3, (0,) * 3, 3)),
    ),
    "a bias that is no constant": Case("CONV_2D", "the bias is not constant", lambda m: variable_operand(m, 2)),
    "a bias of another type": Case(
        "CONV_2D",
        "the bias is int64 of 8, not int32 of 8",
        lambda m: [image(m)],
        change=lambda g: _data(g, 2, np.zeros(8, np.int64)),
    ),
    "several images": Case(
        "CONV_2D",
        "operand of shape (2, 4, 4, 4); the accelerator takes one image [1, rows, columns, channels]",
        lambda m: [m.conv(batch(m), 4)],
    ),
    "dilation": Case(
        "CONV_2D",
        "dilation (4, 4) makes a kernel of 9 x 9, nearly all of it zeros",
        lambda m: [m.conv(m.input((1, 9, 9, 3)), 4, dilation=(4, 4))],
    ),
    "strides": Case(
        "TRANSPOSE_CONV",
        "strides (5, 3); the accelerator takes up to 4 in rows, 16 by product",
        lambda m: [m.transpose_conv(image(m), 4, (5, 3), (5, 3))],
    ),
    "a steep product": Case(
        "CONV_2D",
        "requantization factor must be below 1, not 8994.714500268115",
        lambda m: _rescaled(m, image(m), 1e-7),
    ),
    "a steep uint8 product": Case(
        "CONV_2D",
        "requantization factor must be below 1, not 21431.705822896074",
        lambda m: _rescaled(m, image(m), 1e-7),
        unsigned=True,
    ),
    "an activation that is no clamp": Case(
        "CONV_2D", "fused activation TANH", lambda m: [image(m)], change=option("activation", "TANH")
    ),
    "shuffled weights": Case(
        "FULLY_CONNECTED", "shuffled weights", lambda m: [m.dense(m.input((1, 8)), 4)], change=shuffled
    ),
    "ties of ONNX Runtime": Case(
        "CONV_2D",
        "no multiplier rounds as ONNX Runtime does in 8 of 8 channels (channel 0: sums like -782)",
        power_of_two,
        change=as_onnx,
    ),
    "sums of ties of ONNX Runtime": Case(
        "ADD",
        "no multipliers round as ONNX Runtime does for every pair of values",
        lambda m: sum_of_ties(m, "ADD", 2.0),
        change=as_onnx,
    ),
    "products of ties of ONNX Runtime": Case(
        "MUL", "no multiplier rounds as ONNX Runtime does", lambda m: sum_of_ties(m, "MUL", 4.0), change=as_onnx
    ),
    "means over channels of ONNX Runtime": Case(
        "MEAN", "a mean over channels", lambda m: [reducer(m, "MEAN", image(m), (3,))], change=as_onnx
    ),
    # Windows
    "pools of several images": Case(
        "MAX_POOL_2D",
        "operand of shape (2, 4, 4, 4); the accelerator takes one image [1, rows, columns, channels]",
        lambda m: [m.pool(batch(m, 1), "MAX", (2, 2), (2, 2))],
        change=lambda g: _shaped(g, 0, (2, 4, 4, 4)),
    ),
    "pools that rescale": Case(
        "MAX_POOL_2D",
        "pooling that changes the quantization",
        lambda m: _rescaled(m, m.pool(image(m), "MAX", (2, 2), (2, 2))),
    ),
    "many kinds of windows": Case(
        "AVERAGE_POOL_2D",
        "average pool with padding: 36 kinds of windows, at most 16",
        lambda m: [m.pool(image(m), "AVERAGE", (6, 6), (1, 1), "SAME")],
    ),
    "tall windows": Case(
        "AVERAGE_POOL_2D",
        "kernel of more than 255 rows",
        lambda m: [m.pool(m.input((1, 256, 3, 1)), "AVERAGE", (256, 1), (1, 1))],
    ),
    "variable axes": Case(
        "MEAN",
        "the axes are not constant",
        lambda m: [reducer(m, "MEAN", image(m), (1, 2), operand=m.input((2,), dtype="INT32"))],
    ),
    "axes apart": Case(
        "SUM", "a reduction of [2, 3, 4, 5] over [0, 2]", lambda m: [reducer(m, "SUM", m.input((2, 3, 4, 5)), (0, 2))]
    ),
    "a maximum over channels": Case(
        "REDUCE_MAX",
        "a maximum over channels",
        lambda m: [_as(m, reducer(m, "REDUCE_MAX", x := image(m), (3,)), x)],
    ),
    "a square of two tensors": Case(
        "SQUARED_DIFFERENCE",
        "the difference of two tensors has more than eight bits before it is squared",
        lambda m: [_squared_difference(m, image(m), image(m))],
    ),
    "a steep mean": Case("SUM", "a factor of 2 ** 13 or more", lambda m: [reducer(m, "SUM", image(m), (1, 2), 1e-4)]),
    # Elementwise
    "broadcast along one of two": Case(
        "ADD",
        "broadcasting of [1, 2, 3, 4] to [2, 2, 3, 4]",
        lambda m: [m.add(m.conv(m.input((1, 2, 3, 4)), 4, activation=None), m.input((2, 1, 1, 4)))],
    ),
    "two tensors": Case("DIV", "DIV of two tensors", lambda m: [quotient(m, image(m), image(m))]),
    "a larger constant": Case(
        "MUL",
        "the constant is larger than the operand",
        lambda m: [m.binary("MUL", m.dense(m.input((1, 8)), 4), m.constant((1, 5, 5, 4), 0.1), 1.0)],
    ),
    "a constant of another shape": Case(
        "MUL",
        "constant of shape (6, 1, 8); one value, or one for each channel",
        lambda m: [m.binary("MUL", image(m), m.constant((6, 1, 8), 0.1), 1.0)],
    ),
    "no weight and multiplier": Case(
        "MUL",
        "no weight and multiplier give its bits",
        lambda m: [m.binary("MUL", image(m), m.constant((1,), 7.0), 0.01)],
        PLAIN,
    ),
    "a slope above": Case(
        "LEAKY_RELU", "a slope above that of the values that are kept", lambda m: [leaky(m, image(m), 1.5)], PLAIN
    ),
    "maximum of scales": Case(
        "MAXIMUM", "MAXIMUM of tensors of several scales", lambda m: [m.binary("MAXIMUM", image(m), image(m), 1.0)]
    ),
    "a function for each channel": Case(
        "DIV",
        "a function for each channel",
        lambda m: [quotient(m, image(m), m.tensor((8,), scale=0.1, zero_point=0, data=np.arange(1, 9, dtype=np.int8)))],
    ),
    "a division by zero": Case(
        "DIV",
        "division by 0; give other inputs",
        lambda m: [quotient(m, image(m), m.tensor((1,), scale=0.1, zero_point=3, data=np.array([3], np.int8)))],
    ),
    # Movement
    "a view that lies otherwise": Case(
        "RESHAPE", "tensor_3 lies in memory as 4 x 4 x 8, not 8 x 8 x 2", another_layout
    ),
    "variable indices": Case("SLICE", "where it moves values to is not constant", lambda m: _variable_slice(m)),
    "another order": Case("TRANSPOSE", "values in another order", lambda m: transposed(m, 0, 2, 1, 3)),
    "a wide selection": Case(
        "GATHER",
        "values in another order, 600 of 600 channels: that takes 360,000 bytes of weights, the configuration has "
        "294,912",
        lambda m: gathered(m, range(600)[::-1], 3, x=m.conv(m.input((1, 2, 2, 8)), 600, (1, 1))),
    ),
    "uneven rows": Case("GATHER", "rows or columns at uneven distances", lambda m: gathered(m, (0, 1, 3), 1)),
    "movement that rescales": Case(
        "SLICE",
        "data movement that changes the quantization",
        lambda m: _rescaled(m, m.slice(image(m), (0, 0, 0, 0), (1, 4, 6, 8))),
    ),
    "movement without windows": Case(
        "SLICE",
        "the configuration has no window operand (depthwise=False)",
        lambda m: [m.slice(image(m), (0, 1, 0, 0), (1, 4, 6, 8))],
        NO_WINDOW,
    ),
    "a fused activation": Case("CONCATENATION", "fused activation RELU", fused_concatenation),
    "a constant operand": Case(
        "CONCATENATION",
        "constant operand",
        lambda m: [m.concatenate(3, (x := image(m)), like(m, x, data=np.zeros((1, 6, 6, 8), np.int8)))],
    ),
    "operands of several scales": Case(
        "CONCATENATION", "operands of several scales", lambda m: [m.concatenate(3, image(m), image(m))]
    ),
    "an axis across others": Case(
        "CONCATENATION",
        "axis 1 of [2, 4, 8]",
        lambda m: [m.concatenate(1, *(m.reshape(image(m, 8, 2, 2), (2, 2, 8)),) * 2)],
    ),
    "variable padding": Case("PAD", "the padding is not constant", lambda m: _variable_padding(m)),
    "padding with a value": Case(
        "PADV2",
        "padding with another value than zero",
        lambda m: [m.pad(image(m), ((0, 0), (1, 1), (0, 0), (0, 0)), value=127)],
    ),
    "padding of a batch": Case(
        "PAD",
        "padding of [1, 6, 6, 8] to [2, 6, 6, 8]; the accelerator takes one image [1, rows, columns, channels]",
        lambda m: [m.pad(image(m), ((0, 1), (0, 0), (0, 0), (0, 0)))],
    ),
    "depth to space of large blocks": Case(
        "DEPTH_TO_SPACE",
        "blocks of 5 x 5; layers write at least every 4th row",
        lambda m: [blocks(m, "DEPTH_TO_SPACE", image(m, 25), 5)],
    ),
    "depth to space that rescales": Case(
        "DEPTH_TO_SPACE",
        "data movement that changes the quantization",
        lambda m: [blocks(m, "DEPTH_TO_SPACE", image(m, 8), 2, scale=9.0)],
    ),
    "depth to space of a batch": Case(
        "DEPTH_TO_SPACE",
        "operand of shape (2, 3, 6, 8); the accelerator makes one image [1, rows, columns, channels]",
        lambda m: [blocks(m, "DEPTH_TO_SPACE", m.reshape(image(m, 8), (2, 3, 6, 8)), 2)],
    ),
    "space to depth of a batch": Case(
        "SPACE_TO_DEPTH",
        "operand of shape (2, 2, 6, 8); the accelerator takes one image [1, rows, columns, channels]",
        lambda m: [blocks(m, "SPACE_TO_DEPTH", m.reshape(image(m, 8, 4), (2, 2, 6, 8)), 2)],
    ),
    "batches of one dimension": Case("BATCH_TO_SPACE_ND", "blocks of 1 dimensions", lambda m: _one_dimension(m)),
    "variable blocks": Case(
        "BATCH_TO_SPACE_ND", "where it moves values to is not constant", lambda m: _variable_blocks(m)
    ),
    "resizing of a batch": Case(
        "RESIZE_NEAREST_NEIGHBOR",
        "operand of shape (2, 6, 6, 8); the accelerator takes one image",
        lambda m: [resized(m, "RESIZE_NEAREST_NEIGHBOR", image(m), 12, 12)],
        change=lambda g: _shaped(g, 0, (2, 6, 6, 8), of="RESIZE_NEAREST_NEIGHBOR"),
    ),
    "resizing without turns": Case(
        "RESIZE_NEAREST_NEIGHBOR",
        "rows or columns that do not take turns of at most 4",
        lambda m: [resized(m, "RESIZE_NEAREST_NEIGHBOR", image(m), 37, 6)],
    ),
    "resizing of several pixels": Case(
        "RESIZE_BILINEAR",
        "resizing of [1, 6, 6, 8]; the accelerator repeats a single pixel only",
        lambda m: [resized(m, "RESIZE_BILINEAR", image(m), 12, 12)],
    ),
    "resizing that rescales": Case(
        "RESIZE_BILINEAR",
        "resizing that changes values",
        lambda m: [resized(m, "RESIZE_BILINEAR", m.pool(image(m), "AVERAGE", (6, 6), (1, 1)), 3, 3, scale=9.0)],
    ),
}


def _operand(graph: Graph, place: int, of: str = "") -> int:
    """The value that an operator reads there: the last one of a kind."""
    node = [n for n in graph.nodes if not of or n.kind == of][-1]
    index = node.inputs[place]
    assert index is not None
    return index


def _retyped(graph: Graph, index: int, **changes: Any) -> Graph:
    """The graph with another type of a value, wherever it is used."""
    values = list(graph.values)
    data = changes.pop("data", values[index].data)
    changed = dataclasses.replace(values[index].type, **changes)
    values[index] = dataclasses.replace(values[index], type=changed, data=data)

    def turned(node: Node) -> Node:
        types = tuple(changed if i == index else t for i, t in zip(node.inputs, node.operation.inputs, strict=True))
        out = tuple(changed if i == index else t for i, t in zip(node.outputs, node.operation.outputs, strict=True))
        return dataclasses.replace(node, operation=dataclasses.replace(node.operation, inputs=types, outputs=out))

    return graph.replace_nodes([turned(n) for n in graph.nodes], values)


def _quantized(graph: Graph, place: int, quantization: Quantization | None) -> Graph:
    return _retyped(graph, _operand(graph, place), quantization=quantization)


def _typed(graph: Graph, place: int, dtype: str) -> Graph:
    index = _operand(graph, place)
    return _retyped(graph, index, dtype=dtype, data=graph.values[index].data.astype(dtype))


def _data(graph: Graph, place: int, data: np.ndarray) -> Graph:
    return _retyped(graph, _operand(graph, place), dtype=str(data.dtype), shape=data.shape, data=data)


def _shaped(graph: Graph, place: int, shape: tuple[int, ...], of: str = "") -> Graph:
    return _retyped(graph, _operand(graph, place, of), shape=shape)


def _squared_difference(m: ModelWriter, a: int, b: int) -> int:
    out = m.tensor(m.shape(a), scale=0.1, zero_point=-128)
    return m.operator("SQUARED_DIFFERENCE", [a, b], out, schema.SquaredDifferenceOptionsT())


def _as(m: ModelWriter, x: int, other: int) -> int:
    """With the scale and zero point of another tensor."""
    m.tensors[x].quantization = m.tensors[other].quantization
    return x


def _rescaled(m: ModelWriter, x: int, factor: float = 1.7) -> list[int]:
    q = m.tensors[x].quantization
    q.scale = np.float32(factor) * np.asarray(q.scale, np.float32)
    return [x]


def _variable_slice(m: ModelWriter) -> list[int]:
    x = image(m)
    size = numbers(m, 1, 4, 4, 8)
    begin = m.input((4,), dtype="INT32")
    return [m.operator("SLICE", [x, begin, size], like(m, x, (1, 4, 4, 8)), schema.SliceOptionsT())]


def _variable_padding(m: ModelWriter) -> list[int]:
    x = image(m)
    y = m.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    widths = int(m.operators[-1].inputs[1])
    m.tensors[widths].buffer = 0
    m.inputs.append(widths)
    return [y]


def _variable_blocks(m: ModelWriter) -> list[int]:
    x = m.reshape(image(m, 8, 4, 4), (4, 2, 2, 8))
    y = m.batch_to_space(x, (2, 2), ((0, 0), (0, 0)))
    block = int(m.operators[-1].inputs[1])
    m.tensors[block].buffer = 0
    m.inputs.append(block)
    return [y]


def _one_dimension(m: ModelWriter) -> list[int]:
    x = m.reshape(image(m, 8, 4, 4), (2, 4, 2, 8))
    operands = [x, numbers(m, 2), m.tensor((1, 2), dtype="INT32", data=np.zeros((1, 2), np.int32))]
    return [m.operator("BATCH_TO_SPACE_ND", operands, like(m, x, (1, 8, 2, 8)))]


def reason_of(case: Case, folder: Path) -> str | None:
    """Why the operator stays on the CPU; None if it does not."""
    m = ModelWriter(1)
    data = m.finish(*case.build(m))
    if case.unsigned:
        data = as_uint8(data, np.random.default_rng(1))
    (folder / "network.tflite").write_bytes(data)
    graph = read_model(folder / "network.tflite")
    if case.change:
        graph = case.change(graph)
    made = _assign(graph, case.config, Cuts())
    found = [made.reasons[n.outputs[0]] for n in graph.nodes if n.kind == case.kind and n.outputs[0] in made.reasons]
    return found[-1] if found else None


X = Tensor(name="x", rows=8, columns=6, channels=32, scale=0.1, zero_point=0, shape=(1, 8, 6, 32))
Y = dataclasses.replace(X, name="y")
PRODUCT = dict(
    name="layer", weights=np.ones((32, 1, 1, 32), np.int8), weight_scales=np.full(32, 0.01), bias=np.zeros(32, np.int32)
)
SMALLER = dataclasses.replace(Y, rows=4, columns=3)
PAIR = (X, dataclasses.replace(X, name="x2"))
HALVES = dataclasses.replace(X, name="x2", scale=float(np.float32(0.09)))


class Unknown(Layer):
    """A layer that nothing lowers."""


def conv(source: Tensor = X, output: Tensor = Y, **changes: Any) -> Conv2D:
    return Conv2D(**{**PRODUCT, "inputs": (source,), "output": output, **changes})


def of_two(kind: type[Layer], first: Tensor, second: Tensor, output: Tensor = Y, **changes: Any) -> Layer:
    return kind(name="layer", inputs=(first, second), output=output, **changes)


def pool(kind: type[Layer], output: Tensor = Y, window: tuple[int, int] = (1, 1), **changes: Any) -> Layer:
    return kind(name="layer", inputs=(X,), output=output, window=window, strides=(1, 1), **changes)


LAYERS: dict[str, tuple[Layer, AcceleratorConfig, str]] = {
    "rows from the middle of banks": (
        conv(X.part((2, 0, 0), (4, 6, 32))),
        BOARD,
        "a part from row 2 on; layers read neighbouring rows from multiples of 4 on",
    ),
    "channels within a granule": (
        conv(X.part((0, 0, 5), (8, 6, 8))),
        BOARD,
        "a part from channel 5 on; parts begin at multiples of 8 channels",
    ),
    "results within a granule": (
        conv(output=X.part((0, 0, 5), (8, 6, 8))),
        BOARD,
        "a part from channel 5 on; parts begin at multiples of 8 channels",
    ),
    "every fifth row": (
        conv(output=X.part((0, 0, 0), (1, 6, 32), row_step=5)),
        BOARD,
        "every 5th row of a tensor; layers write at least every 4th",
    ),
    "a table": (
        conv(table=Table(entries=bytes(256), scale=0.1, zero_point=0)),
        PLAIN,
        "the configuration has no tables (tables=0)",
    ),
    "depthwise": (
        DepthwiseConv2D(**{**PRODUCT, "weights": np.ones((1, 1, 32), np.int8)}, inputs=(X,), output=Y),
        NO_WINDOW,
        "the configuration has no window operand (depthwise=False)",
    ),
    "sums beyond 32 bits": (
        conv(bias=np.full(32, (1 << 31) - 1, np.int32)),
        BOARD,
        "accumulators that may exceed 32 bits",
    ),
    "window sums beyond 32 bits": (
        pool(WindowSum, window=(255, 260), weight=1, multiplier=1 << 30, shift=0),
        BOARD,
        "accumulators that may exceed 32 bits",
    ),
    "padded averages": (pool(AveragePool2D, padding=Padding(1, 0, 0, 0)), BOARD, "average pool with padding"),
    "averages that rescale": (
        pool(AveragePool2D, dataclasses.replace(Y, scale=0.2)),
        BOARD,
        "pooling that changes the quantization",
    ),
    "maxima": (
        pool(MaxPool2D),
        dataclasses.replace(PLAIN, max_pool=False),
        "the configuration has no maximum unit (max_pool=False)",
    ),
    "maxima that rescale": (
        pool(MaxPool2D, dataclasses.replace(Y, zero_point=1)),
        BOARD,
        "pooling that changes the quantization",
    ),
    "sums": (
        of_two(Add, *PAIR),
        dataclasses.replace(PLAIN, elementwise_add=False),
        "the configuration has no addend queue (elementwise_add=False)",
    ),
    "sums of parts": (
        of_two(Add, X.part((0, 0, 0), (4, 3, 32)), SMALLER, SMALLER),
        BOARD,
        "addition of parts of tensors",
    ),
    "sums with a pixel": (
        of_two(Add, X, dataclasses.replace(X, rows=1, columns=1)),
        BOARD,
        "addition with broadcasting",
    ),
    "differences of halves": (
        of_two(Add, X, HALVES, subtract=True),
        BOARD,
        "a subtraction that rounds halves of the second operand the other way",
    ),
    "products": (of_two(Mul, *PAIR), PLAIN, "the configuration cannot multiply two tensors (elementwise_mul=False)"),
    "products with a channel": (
        of_two(Mul, X, dataclasses.replace(X, channels=1)),
        BOARD,
        "multiplication with broadcasting of channels",
    ),
    "products with a row": (of_two(Mul, X, dataclasses.replace(X, rows=1)), BOARD, "multiplication with broadcasting"),
    "products of parts": (
        of_two(Mul, X.part((0, 0, 0), (4, 3, 32)), SMALLER, SMALLER),
        BOARD,
        "multiplication of parts of tensors",
    ),
    "another layer": (Unknown(name="layer", inputs=(X,), output=Y), BOARD, "no lowering for Unknown"),
}
GUARDS = {
    r"it is no function of the product": "float32 rounds a product of two scales alike in whatever order",
    r"\w+ is no function of one value": "partition only asks, and takes it for a no",
    r"operands of several (shapes|origins)": "the same",
    r"the table is not constant": "those of the compiler are",
    r"\w+ is no int8 tensor with one scale": "operators say it of their operands first",
}
"""Patterns of reasons that nothing provokes, and why they are there"""


@pytest.mark.parametrize("name", CASES)
def test_operators(name, tmp_path):
    assert reason_of(CASES[name], tmp_path) == CASES[name].reason


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    layer, config, reason = LAYERS[name]
    assert unsupported_reason(layer, config) == reason


def texts() -> Iterator[tuple[str, str]]:
    """Where the sources give a reason, and a pattern of its text; of texts that come from elsewhere there is none."""
    folder = ROOT / "compiler"
    for path in (
        *sorted((folder / "ops").glob("*.py")),
        folder / "partition.py",
        folder / "recentre.py",
        folder / "lower.py",
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            found: list[ast.expr | None] = []
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
                found = [node.exc.args[-1]] if node.exc.func.id in ("Refusal", "LayoutConflict") else []
            elif isinstance(node, ast.FunctionDef) and node.name in (
                *("unsupported_reason", "_unreadable", "_unwritable"),
                *("_twin", "_with_weights"),
            ):
                found = [inner.value for inner in ast.walk(node) if isinstance(inner, ast.Return)]
            for text in found:
                pattern = _pattern(text)
                if pattern:
                    yield f"{path.name}:{text.lineno}", pattern


def _pattern(text: ast.expr | None) -> str | None:
    if isinstance(text, ast.Constant) and isinstance(text.value, str):
        return re.escape(text.value)
    if isinstance(text, ast.JoinedStr):
        parts = [re.escape(v.value) if isinstance(v, ast.Constant) else ".*" for v in text.values]
        return "".join(parts)
    return None


def test_every_reason_is_provoked():
    provoked = [case.reason for case in CASES.values()] + [reason for *_, reason in LAYERS.values()]
    missing = {
        place: pattern
        for place, pattern in texts()
        if not any(re.fullmatch(pattern, reason) for reason in provoked)
        and not any(re.fullmatch(guard, re.sub(r"\\(.)", r"\1", pattern.replace(".*", "x"))) for guard in GUARDS)
    }
    assert not missing
    assert not [guard for guard in GUARDS if any(re.fullmatch(guard, reason) for reason in provoked)]
    assert len(list(texts())) > 60


def small() -> ModelWriter:
    """A convolution, complete but for `finish`."""
    m = ModelWriter(2)
    m.conv(m.input((1, 6, 5, 3)), 4)
    return m


def small_with(edit: Callable[[Any], None]) -> bytes:
    """The convolution after a change of its file."""
    return edited(small().finish(3), edit)


def of_network(**changes: Any) -> bytes:
    """The convolution with other lists of the network."""
    return small_with(lambda model: [setattr(model.subgraphs[0], name, v) for name, v in changes.items()])


def of_tensor(index: int, **changes: Any) -> bytes:
    """The convolution with another tensor 0 (operand), 1 (weights), 2 (bias) or 3 (output)."""
    return small_with(lambda model: [setattr(model.subgraphs[0].tensors[index], n, v) for n, v in changes.items()])


def of_quantization(index: int, **changes: Any) -> bytes:
    return small_with(
        lambda model: [setattr(model.subgraphs[0].tensors[index].quantization, n, v) for n, v in changes.items()]
    )


def of_options(**changes: Any) -> bytes:
    return small_with(
        lambda model: [setattr(model.subgraphs[0].operators[0].builtinOptions, n, v) for n, v in changes.items()]
    )


def with_weights(kind: str, shape: tuple[int, ...]) -> bytes:
    """A product of an operand [1, 4, 4, 4] with weights of a shape, one scale for all, and a bias of four."""
    m = ModelWriter(2)
    x = m.input((1, 4, 4, 4))
    more = {"conv": (4,), "depthwise": (), "dense": (4,), "transpose_conv": (4, (3, 3), (2, 2))}[kind]
    y = getattr(m, kind)(x, *more)
    weights = m.tensors[m.operators[-1].inputs[1]]
    weights.shape = np.array(shape, np.int32)
    m._buffers[weights.buffer].data = np.ones(int(np.prod(shape)), np.uint8)
    weights.quantization.scale, weights.quantization.zeroPoint = np.ones(1, np.float32), np.zeros(1, np.int64)
    weights.quantization.quantizedDimension = 0
    return m.finish(y)


def pool_of_nothing(m: ModelWriter) -> list[int]:
    y = m.pool(m.input((1, 4, 4, 4)), "MAX", (2, 2), (2, 2), "SAME")
    m.operators[-1].builtinOptions.filterHeight = 0
    return [y]


def transposed_to_another_size(m: ModelWriter) -> list[int]:
    y = m.transpose_conv(m.input((1, 4, 4, 4)), 4, (3, 3), (2, 2))
    m._buffers[m.tensors[m.operators[-1].inputs[0]].buffer].data = np.array([1, 11, 8, 4], np.int32).view(np.uint8)
    return [y]


def transposed_to_two_images(m: ModelWriter) -> list[int]:
    y = m.transpose_conv(m.input((1, 4, 4, 4)), 4, (3, 3), (2, 2))
    m._buffers[m.tensors[m.operators[-1].inputs[0]].buffer].data = np.array([2, 8, 8, 4], np.int32).view(np.uint8)
    return [y]


def with_variables(build: Callable[[ModelWriter], list[int]]) -> bytes:
    m = ModelWriter(3)
    return m.finish(*build(m))


FRAME = (1, 2, 1, 8)
FRAMES = dict(scale=0.05, zero_point=0)


def read_first(m: ModelWriter) -> list[int]:
    return [m.softmax(m.read(m.handle("v"), FRAME, **FRAMES))]


def late_initialization(m: ModelWriter) -> list[int]:
    x = m.input(FRAME)
    m.assign(m.handle("v"), x)
    m.call_once({"v": np.zeros(FRAME, np.int8)})
    return [m.softmax(m.read(m.handle("v"), FRAME, **FRAMES))]


def initialization_with_inputs(m: ModelWriter) -> list[int]:
    m.call_once({"v": np.zeros(FRAME, np.int8)})
    m.subgraphs[0].inputs = np.array([0], np.int32)
    return [m.softmax(m.read(m.handle("v"), FRAME, **FRAMES))]


def computed_initialization(m: ModelWriter) -> list[int]:
    """One that the references do not know with these types."""
    m.call_once({"v": np.zeros(FRAME, np.int8)})
    (graph,) = m.subgraphs
    outer = m.tensors, m.operators
    m.tensors, m.operators = graph.tensors, []
    x = next(i for i, t in enumerate(m.tensors) if t.buffer)
    y = m.operator("SIN", [x], m.tensor(FRAME, **FRAMES))
    graph.operators[-1].inputs[1] = y
    graph.operators = [*graph.operators[:-1], *m.operators, graph.operators[-1]]
    m.tensors, m.operators = outer
    return [m.softmax(m.read(m.handle("v"), FRAME, **FRAMES))]


def another_size(m: ModelWriter) -> list[int]:
    m.call_once({"v": np.zeros((1, 2, 1, 4), np.int8)})
    y = m.read(m.handle("v"), FRAME, **FRAMES)
    m.assign(m.handle("v"), m.input(FRAME))
    return [m.softmax(y)]


def another_type(m: ModelWriter) -> list[int]:
    m.call_once({"v": np.zeros(FRAME, np.int8)})
    y = m.read(m.handle("v"), FRAME, **FRAMES)
    m.assign(m.handle("v"), m.input((1, 4, 1, 8)))
    return [m.softmax(y)]


def read_twice_into_one(m: ModelWriter) -> list[int]:
    m.call_once({"v": np.zeros(FRAME, np.int8)})
    y = m.read(m.handle("v"), FRAME, **FRAMES)
    m.operator("READ_VARIABLE", [m.handle("v")], y)
    return [m.softmax(y)]


def no_handle(m: ModelWriter) -> list[int]:
    x = m.input((1,), dtype="INT32")
    return [m.operator("READ_VARIABLE", [x], m.tensor(FRAME, **FRAMES))]


def a_variable_that_is_an_input(m: ModelWriter) -> list[int]:
    x = m.input((1, 4, 4, 3))
    m.tensors[x].isVariable = True
    return [m.conv(x, 4)]


def svdf_state(state: Callable[[ModelWriter], int]) -> Callable[[ModelWriter], list[int]]:
    def build(m: ModelWriter) -> list[int]:
        x = m.input((1, 4))
        weights = m.tensor((2, 4), scale=0.1, zero_point=0, data=np.ones((2, 4), np.int8))
        time = m.tensor((2, 3), scale=0.1, zero_point=0, dtype="INT16", data=np.ones((2, 3), np.int16))
        bias = m.tensor((2,), dtype="INT32", data=np.zeros(2, np.int32))
        options = schema.SVDFOptionsT()
        options.rank = 1
        out = m.tensor((1, 2), scale=0.1, zero_point=0)
        return [m.operator("SVDF", [x, weights, time, bias, state(m)], out, options)]

    return build


def twice(m: ModelWriter) -> list[int]:
    x = m.input((1, 6, 5, 3))
    y = m.conv(x, 4)
    m.operators.append(m.operators[-1])
    return [y]


def sparse_int4(model: Any) -> None:
    tensor = model.subgraphs[0].tensors[1]
    tensor.type, tensor.sparsity = schema.TensorType.INT4, schema.SparsityParametersT()


def within_another(m: ModelWriter) -> list[int]:
    """A CALL_ONCE in the subgraph that a CALL_ONCE calls."""
    m.call_once({"v": np.zeros(FRAME, np.int8)})
    first = m.operators.pop()
    m.call_once({"w": np.zeros(FRAME, np.int8)})
    m.subgraphs[1].operators.insert(0, first)
    return [m.softmax(m.read(m.handle("w"), FRAME, **FRAMES))]


def no_initializer(m: ModelWriter) -> list[int]:
    m.call_once({"v": np.zeros(FRAME, np.int8)})
    m.subgraphs.clear()
    return [m.softmax(m.read(m.handle("v"), FRAME, **FRAMES))]


FILES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "an empty file": (f"empty or truncated file of 3 bytes; give {MODEL_FILES}", lambda: b"abc"),
    "another file": (
        f"neither a TFLite model (no TFL3 identifier) nor an ONNX model; give {MODEL_FILES}",
        lambda: b"x" * 100,
    ),
    "half a file": (
        "damaged TFLite file (unpack_from requires a buffer of at least 228 bytes for unpacking 4 "
        "bytes at offset 224 (actual buffer size is 200))",
        lambda: small().finish(3)[:200],
    ),
    "no operators": ("the model has no operators", lambda: of_network(operators=[])),
    "no outputs": ("the model has no outputs", lambda: of_network(outputs=np.zeros(0, np.int32))),
    "an output from nowhere": (
        "output 'stray' is made by nothing",
        lambda: of_network(outputs=np.array([3, 4], np.int32), tensors=[*_tensors(), _tensor("stray")]),
    ),
    "an operand from nowhere": (
        "CONV_2D 'tensor_3' reads 'tensor_0', which nothing makes",
        lambda: of_network(inputs=np.zeros(0, np.int32)),
    ),
    "a tensor made twice": ("'tensor_3' is made twice", lambda: with_variables(twice)),
    "an unknown type": (
        "tensor 'tensor_0' is complex64, which nnloom does not know",
        lambda: of_tensor(0, type=schema.TensorType.COMPLEX64),
    ),
    "an open shape": (
        "input 'tensor_0' has a dynamic shape; export it with a fixed one",
        lambda: of_tensor(0, shapeSignature=np.array([1, -1, 5, 3], np.int32)),
    ),
    "a huge shape": (
        "damaged TFLite file (tensor 'tensor_0' has shape (1, 1048576, 1048576, 3))",
        lambda: of_tensor(0, shape=np.array([1, 1 << 20, 1 << 20, 3], np.int32)),
    ),
    "no scale": (
        "tensor 'tensor_0' has the quantization scale nan; scales must be positive numbers",
        lambda: of_quantization(0, scale=np.array([np.nan], np.float32)),
    ),
    "a zero point beyond": (
        "tensor 'tensor_0' has the zero point 300, beyond int8",
        lambda: of_quantization(0, zeroPoint=np.array([300], np.int64)),
    ),
    "too many scales": (
        "tensor 'tensor_1' of shape (4, 3, 3, 3) has 3 scales for axis 0",
        lambda: of_quantization(1, scale=np.ones(3, np.float32), zeroPoint=np.zeros(3, np.int64)),
    ),
    "sparse int4": (
        "tensor 'tensor_1' is sparse int4; convert the model with dense weights",
        lambda: small_with(sparse_int4),
    ),
    "an operand of three dimensions": (
        "CONV_2D 'tensor_3': operand of shape (6, 5, 3); it must have 4 dimensions",
        lambda: of_tensor(0, shape=np.array([6, 5, 3], np.int32)),
    ),
    "weights of three dimensions": (
        "CONV_2D 'tensor_3': weights of shape (4, 9, 3); they must have 4 dimensions",
        lambda: of_tensor(1, shape=np.array([4, 9, 3], np.int32)),
    ),
    "a window of nothing": (
        "MAX_POOL_2D 'tensor_1': strides (2, 2), dilation (1, 1), window (0, 2); they must be positive",
        lambda: with_variables(pool_of_nothing),
    ),
    "a stride of zero": (
        "CONV_2D 'tensor_3' does not fit its operands (a stride or size of 0)",
        lambda: of_options(strideH=0),
    ),
    "no options": (
        "CONV_2D 'tensor_3' lacks the option 'stride_h'",
        lambda: small_with(lambda model: setattr(model.subgraphs[0].operators[0], "builtinOptions", None)),
    ),
    "groups that do not fit": (
        "CONV_2D 'tensor_3': weights of shape (4, 3, 9, 1) do not fit an operand of shape (1, 6, 5, 3)",
        lambda: of_tensor(1, shape=np.array([4, 3, 9, 1], np.int32)),
    ),
    "another depth": (
        "CONV_2D 'tensor_3': weights of shape (6, 3, 3, 3) do not fit an operand of shape (1, 4, 4, 4)",
        lambda: with_weights("conv", (6, 3, 3, 3)),
    ),
    "another depth of a depthwise convolution": (
        "DEPTHWISE_CONV_2D 'tensor_3': weights of shape (2, 3, 3, 6) do not fit an operand of shape (1, 4, 4, 4)",
        lambda: with_weights("depthwise", (2, 3, 3, 6)),
    ),
    "another depth of a transposed convolution": (
        "TRANSPOSE_CONV 'tensor_3': weights of shape (2, 3, 3, 8) do not fit an operand of shape (1, 4, 4, 4)",
        lambda: with_weights("transpose_conv", (2, 3, 3, 8)),
    ),
    "weights of a transposed convolution": (
        "TRANSPOSE_CONV 'tensor_3': weights of shape (4, 9, 4); they must have 4 dimensions",
        lambda: with_weights("transpose_conv", (4, 9, 4)),
    ),
    "another depth of a matrix": (
        "FULLY_CONNECTED 'tensor_3': weights of shape (5, 51) do not fit an operand of shape (1, 4, 4, 4)",
        lambda: with_weights("dense", (5, 51)),
    ),
    "a matrix of three dimensions": (
        "FULLY_CONNECTED 'tensor_3' does not fit its operands (weights of shape (4, 8, 8); they "
        "must have 2 dimensions)",
        lambda: with_weights("dense", (4, 8, 8)),
    ),
    "another bias": (
        "CONV_2D 'tensor_3': a bias of shape (4,) for 5 outputs",
        lambda: with_weights("conv", (5, 3, 3, 4)),
    ),
    "an output that does not follow": (
        "TRANSPOSE_CONV 'tensor_3': output of shape (1, 4, 4, 4) does not follow from operand (1, 11, 8, 4)",
        lambda: with_variables(transposed_to_another_size),
    ),
    "transposed images": (
        "TRANSPOSE_CONV 'tensor_3': output of shape (1, 4, 4, 4) does not follow from operand (2, 8, 8, 4)",
        lambda: with_variables(transposed_to_two_images),
    ),
    "no values": (
        "tensor 'tensor_3' has a dynamic shape or no values; export it with a fixed one",
        lambda: with_variables(lambda m: [m.slice(m.input((1, 4, 4, 3)), (0, 0, 0, 0), (1, 0, 4, 3))]),
    ),
    "a variable that nothing sets": (
        "variable 'v' is read before anything sets it; export the model with the subgraph that "
        "initializes its variables",
        lambda: with_variables(read_first),
    ),
    "a variable that is set late": (
        "CALL_ONCE after variable 'v' is used; only variables that it sets before they are used are supported",
        lambda: with_variables(late_initialization),
    ),
    "an initialization within another": (
        "CALL_ONCE within the subgraph of another; only variables that it sets before they are used are supported",
        lambda: with_variables(within_another),
    ),
    "an initialization with inputs": (
        "the subgraph of CALL_ONCE has inputs, outputs or variable tensors",
        lambda: with_variables(initialization_with_inputs),
    ),
    "an initialization that is not there": (
        "damaged TFLite file (there is no subgraph 1)",
        lambda: with_variables(no_initializer),
    ),
    "an initialization that cannot be computed": (
        "SIN 'tensor_2', which initializes variables, cannot be computed (SIN: int8 as operand 0 "
        "not supported by the reference)",
        lambda: with_variables(computed_initialization),
    ),
    "a variable of another size": (
        "variable 'v' begins as int8[1, 2, 1, 4], and is read as int8[1, 2, 1, 8]",
        lambda: with_variables(another_size),
    ),
    "a variable of another type": (
        "variable 'v' is assigned as int8[1, 4, 1, 8], and read as int8[1, 2, 1, 8]",
        lambda: with_variables(another_type),
    ),
    "a variable read into one tensor twice": ("'tensor_1' is made twice", lambda: with_variables(read_twice_into_one)),
    "no variable": ("READ_VARIABLE of a tensor that no VAR_HANDLE makes", lambda: with_variables(no_handle)),
    "an input that is a variable": (
        "'tensor_0' is an input and a variable tensor, too; convert it again",
        lambda: with_variables(a_variable_that_is_an_input),
    ),
    "a state left out": ("SVDF 'tensor_4': its state is left out", lambda: with_variables(svdf_state(lambda m: -1))),
    "a state that is no variable": (
        "SVDF 'tensor_4': its state is 'tensor_5', which is no variable tensor",
        lambda: with_variables(svdf_state(lambda m: m.input((1, 6), dtype="INT16"))),
    ),
    "operators that nothing runs": (
        "operators that nnloom has no route for: HASHTABLE; control flow is not supported: WHILE; "
        "leave them out of the model",
        lambda: with_variables(lambda m: [m.unary("WHILE", m.unary("HASHTABLE", m.input((1, 4)), 0.1), 0.1)]),
    ),
}


def _tensors() -> list[Any]:
    return schema.ModelT.InitFromPackedBuf(small().finish(3), 0).subgraphs[0].tensors


def _tensor(name: str) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.type, tensor.buffer = name, np.array([1], np.int32), schema.TensorType.INT8, 0
    return tensor


def refusal_of(data: bytes, folder: Path) -> str:
    """What the reader says, without the path."""
    path = folder / "network.tflite"
    path.write_bytes(data)
    with pytest.raises(NnloomError) as raised:
        read_model(path)
    return str(raised.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", FILES)
def test_files(name, tmp_path):
    message, make = FILES[name]
    assert refusal_of(make(), tmp_path) == message


NO_FILE = f"No such file or directory; give {MODEL_FILES}"


def test_no_file(tmp_path):
    with pytest.raises(NnloomError) as raised:
        read_model(tmp_path / "none.tflite")
    assert str(raised.value) == f"{tmp_path / 'none.tflite'}: {NO_FILE}"


def test_every_refusal_of_the_reader_is_provoked():
    """What is wrong with the shapes of operands is said in one of its lines."""
    said = [NO_FILE, *(message for message, _ in FILES.values())]
    tree = ast.parse((ROOT / "compiler" / "frontend" / "tflite.py").read_text())
    patterns = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or not node.args:
            continue
        pattern = _pattern(node.args[0])
        if node.func.id in ("ModelError", "UnsupportedOperatorError") and pattern:
            patterns[node.lineno] = pattern.removeprefix(r".*:\ ")
        elif node.func.id == "_Refusal" and pattern:
            patterns[node.lineno] = r"\w+ '\w+': " + pattern
    missing = {n: p for n, p in patterns.items() if not any(re.fullmatch(p, message) for message in said)}
    assert not missing
    assert len(patterns) > 25
