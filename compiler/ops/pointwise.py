"""Operators on one int8 value, and on one and a constant, that are affine: a depthwise convolution with 1 x 1 kernels.

What an operator answers for each of the 256 values, and for each channel if the constant has channels, is asked of the
reference; `nnloom.compiler.affine` looks for weights, biases and multipliers that answer the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.errors import InputError, UnsupportedOperatorError
from nnloom.arch.operation import Quantization, TensorType
from nnloom.arch.reference import evaluate

from ..affine import VALUES, Affine, fit
from ..graph import DepthwiseConv2D, Layer, Tensor
from ..ir import Graph, Node
from .operator import Operands, Operator, Refusal, int8_type, natural_layout, output_tensor

__all__ = [
    "RESCALING",
    "Constant",
    "Hint",
    "affine_layer",
    "difference",
    "function_of",
    "operand_of",
    "ratio",
    "straight_layer",
]


@dataclass(frozen=True)
class Constant:
    """The other operand."""

    values: NDArray[np.int64]
    """one, or one for each channel"""
    quantization: Quantization
    first: bool
    """it is the first operand"""

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Values less their zero point."""
        return self.values - self.quantization.zero_point


Hint = tuple[float, Sequence[tuple[int, int, int]]]
"""Outputs for each value, about, and `known` of `nnloom.compiler.affine.fit`"""
Hints = Callable[[Quantization, Quantization, Constant | None], list[Hint]]
"""(quantization of the value, of the output, the constant if there is one) -> a hint, or one for each channel"""


def function_of(graph: Graph, node: Node) -> tuple[int, NDArray[np.int64], Constant | None]:
    """The operand, outputs [256, channels or 1] for each of its values, and the constant.

    Raises
    ------
    Refusal
        If it is not a function of one int8 value and perhaps a constant for each channel.
    """
    types = node.operation.inputs
    if None in node.inputs:
        raise Refusal("an operand is left out")
    variable = [i for i, index in enumerate(node.inputs) if graph.constant(index) is None]
    if len(variable) != 1:
        raise Refusal(f"{node.kind} of two tensors")
    (position,) = variable
    source, _ = int8_type(types[position], "the operand")
    out, _ = int8_type(node.operation.outputs[0], "the output")
    if source.shape != out.shape:
        raise Refusal("the constant is larger than the operand")
    operands, flat = [], []
    constant = None
    count = 1
    for place, (index, value_type) in enumerate(zip(node.inputs, types, strict=True)):
        data = graph.constant(index)
        if data is None:
            continue
        _, q = int8_type(value_type, "the constant")
        if data.size != 1 and (data.ndim > len(source.shape) or data.size != data.shape[-1]):
            raise Refusal(f"constant of shape {data.shape}; one value, or one for each channel")
        count = data.size
        constant = Constant(data.reshape(-1).astype(np.int64), q, first=place == 0)
    grid = np.repeat(VALUES[:, None], count, axis=1).astype(np.int8)
    for index, value_type in zip(node.inputs, types, strict=True):
        data = graph.constant(index)
        values = grid if data is None else data.reshape(-1)
        assert value_type
        operands.append(values)
        flat.append(TensorType(values.shape, value_type.dtype, value_type.quantization))
    outputs = (TensorType(grid.shape, out.dtype, out.quantization),)
    operation = dataclasses.replace(node.operation, inputs=tuple(flat), outputs=outputs)
    try:
        (answers,) = evaluate(operation, operands)
    except (InputError, UnsupportedOperatorError) as error:
        raise Refusal(str(error).removeprefix(f"{node.kind}: ")) from error
    index = node.inputs[position]
    assert index is not None
    return index, answers.astype(np.int64), constant


def affine_layer(graph: Graph, node: Node, operands: Operands, hints: Hints) -> Layer:
    """The layer of an operator that grows or falls evenly with its operand.

    Raises
    ------
    Refusal
        If it is none, or nothing gives its bits.
    """
    index, answers, constant = function_of(graph, node)
    _, q_in = int8_type(graph.values[index].type, "the operand")
    _, q_out = int8_type(node.operation.outputs[0], "the output")
    source = operand_of(graph, operands, index, answers.shape[1])
    output = output_tensor(graph, node, (source.rows, source.columns, source.channels))
    return straight_layer(node.name, source, output, answers, hints(q_in, q_out, constant))


def operand_of(graph: Graph, operands: Operands, index: int, channels: int) -> Tensor:
    """An operand in any layout, if it is the same for all channels, else in one with these channels."""
    layout = operands.layout(index)
    if layout is None or channels not in (1, layout[2]):
        layout = natural_layout(graph.values[index].type.shape)
    return operands.tensor(index, layout)


def straight_layer(
    name: str, source: Tensor, output: Tensor, answers: NDArray[np.int64], hints: list[Hint]
) -> DepthwiseConv2D:
    """The layer that gives `answers` [256, channels or 1] for the values of a tensor.

    Raises
    ------
    Refusal
        If no parameters do.
    """
    limits = int(answers.min()), int(answers.max())
    for double_rounding in (True, False):
        fits = _fits(answers, hints, output.zero_point, limits, double_rounding=double_rounding)
        if fits:
            break
    else:
        raise Refusal("no weight and multiplier give its bits")
    fits = fits * source.channels if len(fits) == 1 else fits
    return DepthwiseConv2D(
        name=name,
        inputs=(source,),
        output=output,
        act_min=limits[0],
        act_max=limits[1],
        weights=np.array([[[p.weight for p in fits]]], np.int8),
        weight_scales=np.ones(len(fits)),
        bias=np.array([p.bias + p.weight * source.zero_point for p in fits], np.int32),
        requantization=tuple((p.multiplier, p.shift) for p in fits),
        double_rounding=double_rounding,
    )


def _fits(
    answers: NDArray[np.int64], hints: list[Hint], zero_point: int, limits: tuple[int, int], *, double_rounding: bool
) -> list[Affine]:
    """Parameters of each channel; empty if there are none for one of them."""
    found: dict[tuple[bytes, float], Affine | None] = {}
    fits = []
    for channel, column in enumerate(answers.T):
        slope, known = hints[channel % len(hints)]
        key = column.tobytes(), slope
        if key not in found:
            found[key] = fit(column, slope, zero_point, limits, known, double_rounding=double_rounding)
        parameters = found[key]
        if parameters is None:
            return []
        fits.append(parameters)
    return fits


AFFINE = "an int8 tensor, or one and a constant, where an exact rescaling exists"


def _operator(hints: Hints) -> Operator:
    return Operator(
        layer=lambda graph, node, operands: affine_layer(graph, node, operands, hints),
        follows=True,
        takes=AFFINE,
        roundings=("tflite", "onnx"),
    )


def ratio(q_in: Quantization, q_out: Quantization, _: Constant | None) -> list[Hint]:
    """Hint for what only rescales a value, or adds to it."""
    return [(q_in.scale / q_out.scale, ())]


def difference(q_in: Quantization, q_out: Quantization, constant: Constant | None) -> list[Hint]:
    """Hint for SUB."""
    slope = q_in.scale / q_out.scale
    return [(-slope if constant and constant.first else slope, ())]


RESCALING = _operator(ratio)
"""QUANTIZE, the RELU family"""
