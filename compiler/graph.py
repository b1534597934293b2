"""The layer graph: what the partitioner hands to the scheduler.

Plain typed dataclasses. Activations are int8 NHWC with batch 1, described as [rows, columns, channels];
a vector is 1 x 1 x channels. Scales are Python floats that hold the model's float32 values exactly.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.dtypes import ACTIVATION

from .onnx_rounding import Proof

__all__ = [
    "Add",
    "AveragePool2D",
    "Conv2D",
    "DepthwiseConv2D",
    "FullyConnected",
    "Layer",
    "LayerGraph",
    "MaxPool2D",
    "Mul",
    "Padding",
    "Requantization",
    "Table",
    "Tensor",
    "WindowSum",
]


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An int8 activation tensor."""

    name: str
    rows: int
    columns: int
    channels: int
    scale: float
    zero_point: int
    shape: tuple[int, ...] = ()
    """shape in the network, e.g. (1, 25, 5, 64) or (1, 640); same number of elements"""
    whole: tuple[int, int, int] | None = None
    """rows, columns and channels of the tensor with this name, if this is a part of it"""
    origin: tuple[int, int, int] = (0, 0, 0)
    """row, column and channel of the whole at which the part begins"""
    column_step: int = 1
    """columns of the whole from one of the part to the next"""
    row_step: int = 1
    """rows of the whole from one of the part to the next; other than 1 only for what a layer writes"""
    dtype: str = ACTIVATION
    """of a region's inputs and outputs: in which type the host has them, int8 or uint8"""

    @property
    def elements(self) -> int:
        return self.rows * self.columns * self.channels

    @property
    def entire(self) -> Tensor:
        """The tensor that has the memory: the whole of a part."""
        if self.whole is None:
            return self
        rows, columns, channels = self.whole
        alone = dict(shape=(), whole=None, origin=(0, 0, 0), column_step=1, row_step=1, dtype=ACTIVATION)
        return dataclasses.replace(self, rows=rows, columns=columns, channels=channels, **alone)  # type: ignore[arg-type]

    def part(
        self,
        origin: tuple[int, int, int],
        size: tuple[int, int, int],
        shape: tuple[int, ...] = (),
        column_step: int = 1,
        row_step: int = 1,
    ) -> Tensor:
        """Some rows, columns and channels of the tensor, from `origin` on: in its memory, under its name."""
        row, column, channel = self.origin
        return dataclasses.replace(
            self,
            rows=size[0],
            columns=size[1],
            channels=size[2],
            shape=shape or (1, *size),
            whole=self.whole or (self.rows, self.columns, self.channels),
            origin=(row + origin[0] * self.row_step, column + origin[1] * self.column_step, channel + origin[2]),
            column_step=self.column_step * column_step,
            row_step=self.row_step * row_step,
        )


@dataclass(frozen=True, kw_only=True)
class Table:
    """A function of one int8 value that a layer's results go through before they are written."""

    entries: bytes
    """256: what an int8 value becomes, by its byte (0, 1, ... 127, -128, ... -1)"""
    scale: float
    zero_point: int
    """quantization of the values that are looked up: the layer's output has the one behind the table"""
    operators: tuple[str, ...] = field(default=(), compare=False)
    """what it computes, for the report: operators, in order"""

    @classmethod
    def of(cls, answers: NDArray[np.integer], scale: float, zero_point: int, operators: tuple[str, ...] = ()) -> Table:
        """The table of a function's answers [256] for the values from -128 on."""
        entries = np.roll(answers, 128).astype(np.int8).tobytes()
        return cls(entries=entries, scale=scale, zero_point=zero_point, operators=operators)

    @property
    def values(self) -> NDArray[np.int8]:
        """`entries`, int8 [256]."""
        return np.frombuffer(self.entries, np.int8)

    def then(self, other: Table) -> Table:
        """This table, then another one."""
        entries = other.values[self.values.view(np.uint8)].tobytes()
        return dataclasses.replace(self, entries=entries, operators=self.operators + other.operators)


Requantization = tuple[tuple[int, int], ...]
"""Multiplier and right shift of each output channel"""


@dataclass(frozen=True)
class Padding:
    """Rows and columns of padding at each edge; less than 0 where that many are left out instead."""

    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Common part of every layer: one output, clamped to [act_min, act_max] (int8, after the zero point)."""

    name: str
    inputs: tuple[Tensor, ...]
    output: Tensor
    act_min: int = -128
    act_max: int = 127
    proof: Proof | None = None
    """that its rounding is ONNX Runtime's, or for which channels it is not; None: it is LiteRT's"""
    table: Table | None = None
    """what results become after the clamp"""

    @property
    def result(self) -> Tensor:
        """The output as it is before the table."""
        if self.table is None:
            return self.output
        return dataclasses.replace(self.output, scale=self.table.scale, zero_point=self.table.zero_point)

    @property
    def macs(self) -> int:
        """Multiply-accumulates as the literature counts them (pooling and addition: none)."""
        return 0


@dataclass(frozen=True, kw_only=True)
class Conv2D(Layer):
    """2-D convolution, dilation 1 (TFLite CONV_2D; with single rounding FULLY_CONNECTED of several rows)."""

    weights: NDArray[np.signedinteger] = field(repr=False)
    """[output channels, kernel rows, kernel columns, input channels]"""
    weight_scales: NDArray[np.float64] = field(repr=False)
    """[output channels], float32 values"""
    bias: NDArray[np.int32] = field(repr=False)
    strides: tuple[int, int] = (1, 1)
    padding: Padding = Padding()
    double_rounding: bool = True
    """of the requantization"""
    requantization: Requantization | None = None
    """instead of the scales'"""

    @property
    def macs(self) -> int:
        o = self.output
        return o.rows * o.columns * int(np.prod(self.weights.shape))


@dataclass(frozen=True, kw_only=True)
class DepthwiseConv2D(Layer):
    """Depthwise 2-D convolution with channel multiplier 1; double rounding (TFLite DEPTHWISE_CONV_2D)."""

    weights: NDArray[np.signedinteger] = field(repr=False)
    """[kernel rows, kernel columns, channels]"""
    weight_scales: NDArray[np.float64] = field(repr=False)
    bias: NDArray[np.int32] = field(repr=False)
    strides: tuple[int, int] = (1, 1)
    padding: Padding = Padding()
    requantization: Requantization | None = None
    """instead of the scales'"""
    double_rounding: bool = True
    """of the requantization"""
    carried: int = 0
    """so many of the first rows come out wrong, since it uses what the window holds of the row before
    (`nnloom.compiler.carried`); 0: it does not"""

    @property
    def macs(self) -> int:
        o = self.output
        return (o.rows - self.carried) * o.columns * int(np.prod(self.weights.shape))


@dataclass(frozen=True, kw_only=True)
class FullyConnected(Layer):
    """Matrix times the flattened input (row-major NHWC order); single rounding (TFLite FULLY_CONNECTED, QGemm)."""

    weights: NDArray[np.signedinteger] = field(repr=False)
    """[outputs, inputs]"""
    weight_scales: NDArray[np.float64] = field(repr=False)
    """[outputs] (per-tensor scales repeated)"""
    bias: NDArray[np.int32] = field(repr=False)
    requantization: Requantization | None = None
    """instead of the scales'"""
    double_rounding: ClassVar[bool] = False

    @property
    def macs(self) -> int:
        return int(self.weights.size)


@dataclass(frozen=True, kw_only=True)
class AveragePool2D(Layer):
    """Average over a window, rounded half away from zero; same quantization in and out."""

    window: tuple[int, int]
    strides: tuple[int, int]
    padding: Padding = Padding()
    """nothing above 0: every window has as many values"""
    half_up: bool = False
    """rounded half up instead (uint8, which is never below 0)"""


@dataclass(frozen=True, kw_only=True)
class MaxPool2D(Layer):
    """Maximum over a window (padding never wins); same quantization in and out."""

    window: tuple[int, int]
    strides: tuple[int, int]
    padding: Padding = Padding()


@dataclass(frozen=True, kw_only=True)
class WindowSum(Layer):
    """`weight` times the sum of a window's values less the zero point, requantized (TFLite MEAN, SUM); no padding."""

    window: tuple[int, int]
    strides: tuple[int, int]
    weight: int
    """of each value in the window, int8"""
    multiplier: int
    shift: int
    double_rounding: bool = True
    """of the requantization"""


@dataclass(frozen=True, kw_only=True)
class Add(Layer):
    """Elementwise sum of two tensors in one layout (TFLite int8 ADD), or the first less the second (SUB)."""

    subtract: bool = False
    requantization: Requantization | None = None
    """of the operand with the smaller scale and of the sum, instead of the scales'"""


@dataclass(frozen=True, kw_only=True)
class Mul(Layer):
    """Product of two tensors in one layout, or of which one is a pixel for all of the output (TFLite int8 MUL)."""

    requantization: Requantization | None = None
    """of the product, instead of the scales'"""
    double_rounding: bool = True
    """of the requantization"""

    @property
    def pixel(self) -> int | None:
        """Which operand is a single pixel for all of the output, if one is."""
        size = self.output.rows, self.output.columns
        return next((i for i, t in enumerate(self.inputs) if (t.rows, t.columns) == (1, 1) != size), None)


@dataclass(frozen=True)
class LayerGraph:
    """One accelerator region: layers in execution order."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layers: tuple[Layer, ...]

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)
