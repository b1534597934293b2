"""An entry of the operator table, and what it is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.dtypes import ACTIVATION, INT4, INT8, INT9
from nnloom.arch.numerics import activation_range, quantize_multiplier
from nnloom.arch.operation import Quantization, TensorType

from ..graph import Layer, Requantization, Tensor
from ..ir import Graph, Node

__all__ = [
    "LayoutConflict",
    "Made",
    "Operands",
    "Operator",
    "Refusal",
    "bias_of",
    "common",
    "inner_tensor",
    "int8_type",
    "natural_layout",
    "output_tensor",
    "requantization_of",
    "unchanged_types",
    "weights_of",
]

Layout = tuple[int, int, int]
"""rows, columns, channels"""


class Refusal(Exception):
    """The accelerator cannot run an operator; the message says why, in a few words."""


class LayoutConflict(Refusal):
    """A tensor lies in activation memory in another layout than the operator needs."""

    def __init__(self, value: int, message: str) -> None:
        super().__init__(message)
        self.value = value


class Operands(Protocol):
    """The tensors of a region under construction."""

    config: AcceleratorConfig

    def layout(self, value: int) -> Layout | None:
        """How a value lies in activation memory; None if that is still open."""

    def tensor(self, value: int, layout: Layout | None = None) -> Tensor:
        """The layer's operand.

        Parameters
        ----------
        value
            Index of a value.
        layout
            The layout that is needed; None: any.

        Raises
        ------
        LayoutConflict
            If it lies there in another one.
        """


@dataclass(frozen=True)
class Made:
    """What an operator becomes: layers in order, and the tensors of its outputs, which may be parts of others."""

    layers: tuple[Layer, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Operator:
    """How an operator runs on the accelerator."""

    layer: Callable[[Graph, Node, Operands], Layer | Sequence[Layer] | Made] | None = None
    """Makes the layer of a node, or several of which the last makes its output, or raises `Refusal`; None: it has
    none."""
    follows: bool = False
    """It is so little work that it runs on the accelerator only if an operand is there already."""
    view: Callable[[Graph, Node], None] | None = None
    """The output is the input under another shape; raises `Refusal` if it is not in this case."""
    roundings: tuple[str, ...] = ("tflite",)
    """Whose arithmetic it has exactly (`Operation.rounding`)."""
    takes: str = ""
    """What the accelerator takes of it, in a few words for docs/operators.md; the rest it refuses with a reason."""


def int8_type(value_type: TensorType | None, what: str) -> tuple[TensorType, Quantization]:
    """Type and quantization of an int8 tensor with one scale.

    Raises
    ------
    Refusal
        If it is something else.
    """
    if value_type is None:
        raise Refusal(f"{what} is left out")
    if value_type.dtype != ACTIVATION:
        raise Refusal(f"{what} is {value_type.dtype}, not int8")
    q = value_type.quantization
    if q is None or not q.is_per_tensor:
        raise Refusal(f"{what} has no single scale")
    return value_type, q


def unchanged_types(node: Node) -> tuple[TensorType, TensorType]:
    """Types of the operand and the output of an operator that only moves values.

    Raises
    ------
    Refusal
        If they are not int8 with one scale, the same for both.
    """
    source, q = int8_type(node.operation.inputs[0], "the operand")
    out, q_out = int8_type(node.operation.outputs[0], "the output")
    if q != q_out:
        raise Refusal("data movement that changes the quantization")
    return source, out


def natural_layout(shape: tuple[int, ...]) -> Layout:
    """Rows, columns and channels of a shape: one image as it is, all else as one row of its last dimension."""
    if len(shape) == 4 and shape[0] == 1:
        return shape[1], shape[2], shape[3]
    channels = shape[-1] if shape else 1
    return 1, int(np.prod(shape[:-1], dtype=np.int64)) if len(shape) > 1 else 1, channels


def common(graph: Graph, node: Node, inputs: tuple[Tensor, ...], layout: Layout) -> dict[str, Any]:
    """Fields that every layer has: name, inputs, output in `layout`, and the range of its activation."""
    _, q = int8_type(node.operation.outputs[0], "the output")
    options = node.operation.options
    try:
        act_min, act_max = activation_range(options.get("activation", "NONE"), q.scale, q.zero_point)
    except ValueError as error:
        raise Refusal(str(error)) from error
    least, greatest = options.get("limits", (act_min, act_max))
    act_min, act_max = max(act_min, least), min(act_max, greatest)
    output = output_tensor(graph, node, layout)
    return dict(name=node.name, inputs=inputs, output=output, act_min=act_min, act_max=act_max)


def output_tensor(graph: Graph, node: Node, layout: Layout) -> Tensor:
    """The tensor of a node's first output."""
    out, q = int8_type(node.operation.outputs[0], "the output")
    rows, columns, channels = layout
    return Tensor(
        name=node.name,
        rows=rows,
        columns=columns,
        channels=channels,
        scale=q.scale,
        zero_point=q.zero_point,
        shape=out.shape,
    )


def weights_of(graph: Graph, node: Node, axis: int) -> tuple[NDArray[np.signedinteger], NDArray[np.float64]]:
    """Constant int8 weights (int16 of nine bits in the twin of uint8 ones), and a scale for each index of `axis`.

    Raises
    ------
    Refusal
        If they are of another type, not constant, or not symmetric.
    """
    data, weights_type = graph.constant(node.inputs[1]), node.operation.inputs[1]
    if data is None or weights_type is None:
        raise Refusal("weights are not constant")
    if weights_type.dtype not in (INT8, INT4, INT9):
        raise Refusal(f"weights are {weights_type.dtype}, not int8")
    q = weights_type.quantization
    if q is None:
        raise Refusal("weights have no scale")
    if any(q.zero_points):
        raise Refusal("weights with a zero point")
    if not q.is_per_tensor and q.axis != axis:
        raise Refusal(f"scales of the weights are for axis {q.axis}, not {axis}")
    return data, np.broadcast_to(np.array(q.scales, np.float64), (weights_type.shape[axis],))


def inner_tensor(graph: Graph, node: Node, like: Tensor, what: str, **changes: Any) -> Tensor:
    """A tensor between the layers of one node: as another one, with a name of its own and what `changes` says."""
    taken = {value.name for value in graph.values}
    name = f"{node.name} ({what})"
    while name in taken:
        name += "'"
    alone = dict(shape=(), whole=None, origin=(0, 0, 0), column_step=1, row_step=1, dtype=ACTIVATION)
    tensor = dataclasses.replace(like, name=name, **{**alone, **changes})
    return dataclasses.replace(tensor, shape=(1, tensor.rows, tensor.columns, tensor.channels))


def requantization_of(node: Node, outputs: int) -> Requantization | None:
    """Multiplier and shift of each output of a convolution, where they are not those of its scales in float64.

    Raises
    ------
    Refusal
        If the engine has none for the factor.
    """
    scale = node.operation.options.get("product_scale")
    if scale is None:
        return None
    _, q = int8_type(node.operation.outputs[0], "the output")
    try:
        return (quantize_multiplier(scale / q.scale),) * outputs
    except ValueError as error:
        raise Refusal(str(error)) from error


def bias_of(graph: Graph, node: Node, outputs: int, index: int = 2) -> NDArray[np.int32]:
    """The bias, operand `index`; zeros if there is none.

    Raises
    ------
    Refusal
        If it is not constant int32 for each output.
    """
    if len(node.inputs) <= index or node.inputs[index] is None:
        return np.zeros(outputs, np.int32)
    data = graph.constant(node.inputs[index])
    if data is None:
        raise Refusal("the bias is not constant")
    if data.dtype != np.int32 or data.size != outputs:
        raise Refusal(f"the bias is {data.dtype} of {data.size}, not int32 of {outputs}")
    return data.reshape(-1)
