"""Operands that are repeated along axes: by layers that read the same row or column again; resizing of one pixel."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from nnloom.arch.errors import InputError, UnsupportedOperatorError
from nnloom.arch.operation import TensorType
from nnloom.arch.reference import evaluate

from ..affine import VALUES
from ..copies import copy_layer, repeated_layer, selection_layer
from ..graph import Layer, Tensor
from ..ir import Graph, Node
from .operator import Layout, Made, Operands, Operator, Refusal, inner_tensor, int8_type, natural_layout, output_tensor

__all__ = ["RESIZE_BILINEAR", "elementwise_operands"]


def _broadcast(
    graph: Graph, node: Node, operands: Operands, index: int, layout: Layout, what: str, *, pixel: bool
) -> tuple[Tensor, tuple[Layer, ...]]:
    """An operand in the layout of the output, which is the natural one, and the layers that make it so.

    Parameters
    ----------
    what
        The operand, in the names of tensors in between.
    pixel
        An operand of one pixel stays one.

    Raises
    ------
    Refusal
        If it is repeated along some of several dimensions that are one in memory.
    """
    out = node.operation.outputs[0].shape
    shape = graph.values[index].type.shape
    shape = (1,) * (len(out) - len(shape)) + shape
    if len(out) == 4 and out[0] == 1:
        size = shape[1], shape[2], shape[3]
    else:
        size = 1, int(np.prod(shape[:-1], dtype=np.int64)), shape[-1] if shape else 1
        if size[1] not in (1, layout[1]):
            raise Refusal(f"broadcasting of {list(shape)} to {list(out)}")
    tensor = operands.tensor(index, size)
    layers: list[Layer] = []
    if tensor.channels != layout[2]:
        wide = inner_tensor(graph, node, tensor, f"{what}, channels", channels=layout[2])
        layers.append(selection_layer(wide.name, tensor, wide, np.zeros(layout[2], np.int64)))
        tensor = wide
    if (tensor.rows, tensor.columns) != layout[:2] and not (pixel and tensor.rows == tensor.columns == 1):
        whole = inner_tensor(graph, node, tensor, what, rows=layout[0], columns=layout[1])
        layers.append(repeated_layer(whole.name, tensor, whole))
        tensor = whole
    return tensor, tuple(layers)


def elementwise_operands(
    graph: Graph, node: Node, operands: Operands, indices: Sequence[int], *, whole: bool = False, pixel: bool = False
) -> tuple[Layout, tuple[tuple[Tensor, ...], tuple[Layer, ...]]]:
    """Operands in one layout, which the output has, too, with the layers that bring them there.

    Parameters
    ----------
    whole
        Parts of tensors are copied.
    pixel
        An operand that is a pixel of the channels stays one, if the other is none.
    """
    out, _ = int8_type(node.operation.outputs[0], "the output")
    repeated = [graph.values[index].type.elements != out.elements for index in indices]
    layout = natural_layout(out.shape)
    if not any(repeated):
        # Where a value is in memory already, the other one and the output take its layout.
        layout = next((known for known in map(operands.layout, indices) if known), layout)
    tensors: list[Tensor] = []
    layers: list[Layer] = []
    for number, (index, again) in enumerate(zip(indices, repeated, strict=True)):
        if again:
            tensor, more = _broadcast(graph, node, operands, index, layout, f"operand {number}", pixel=pixel)
            layers += more
            pixel &= (tensor.rows, tensor.columns) == layout[:2]
        else:
            tensor = operands.tensor(index, layout)
        if whole and tensor.whole:
            # Rows are read as they lie, without gaps for other channels.
            part, tensor = tensor, inner_tensor(graph, node, tensor, f"operand {number}")
            layers.append(copy_layer(tensor.name, part, tensor))
        tensors.append(tensor)
    return layout, (tuple(tensors), tuple(layers))


def _resize_bilinear(graph: Graph, node: Node, operands: Operands) -> Made:
    """Of an image of one pixel."""
    source_type, q = int8_type(node.operation.inputs[0], "the operand")
    out, q_out = int8_type(node.operation.outputs[0], "the output")
    if source_type.shape[:3] != (1, 1, 1) or len(source_type.shape) != 4:
        raise Refusal(f"resizing of {list(source_type.shape)}; the accelerator repeats a single pixel only")
    values = VALUES.astype(np.int8).reshape(1, 1, 1, -1)
    types = tuple(
        t if i or t is None else TensorType(values.shape, t.dtype, t.quantization)
        for i, t in enumerate(node.operation.inputs)
    )
    wide = TensorType((*out.shape[:3], values.size), out.dtype, out.quantization)
    operation = dataclasses.replace(node.operation, inputs=types, outputs=(wide,))
    try:
        (answers,) = evaluate(operation, [values, *map(graph.constant, node.inputs[1:])])
    except (InputError, UnsupportedOperatorError) as error:
        raise Refusal(str(error).removeprefix(f"{node.kind}: ")) from error
    if q != q_out or not (answers == values).all():
        raise Refusal("resizing that changes values")
    assert node.inputs[0] is not None
    source = operands.tensor(node.inputs[0], natural_layout(source_type.shape))
    output = output_tensor(graph, node, natural_layout(out.shape))
    return Made((repeated_layer(node.name, source, output),), (output,))


RESIZE_BILINEAR = Operator(layer=_resize_bilinear, follows=True, takes="int8, of a single pixel")
