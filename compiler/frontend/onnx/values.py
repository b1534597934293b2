"""The values of the graph under construction, and in which order they hold the tensors of the file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.operation import Operation, Quantization, TensorType

from ...ir import Node, Value
from .order import PLAIN, Axes, Order, Shape, axes_of, between, channels_last, inverse, order_of, take

__all__ = ["Held", "Values"]


@dataclass(frozen=True)
class Held:
    """A value that holds a tensor of the file."""

    index: int
    order: Order


@dataclass
class Values:
    """Values and nodes; tensors of the file by name."""

    values: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    held: dict[str, list[Held]] = field(default_factory=dict)
    """what holds a tensor, in one order or several; the first is what was made"""
    shapes: dict[str, Shape] = field(default_factory=dict)
    """shapes of the file's tensors"""
    constants: dict[str, NDArray] = field(default_factory=dict)
    _used: set[str] = field(default_factory=set)

    def add(self, name: str, value_type: TensorType, data: NDArray | None = None) -> int:
        """A new value with a name of its own."""
        unique, number = name or "value", 1
        while unique in self._used:
            unique, number = f"{name}:{number}", number + 1
        self._used.add(unique)
        self.values.append(Value(unique, value_type, data))
        return len(self.values) - 1

    def constant(self, data: NDArray, quantization: Quantization | None = None, name: str = "constant") -> int:
        """A constant of the graph."""
        data = np.ascontiguousarray(data)
        return self.add(name, TensorType(data.shape, data.dtype.name, quantization), data)

    def type(self, index: int) -> TensorType:
        return self.values[index].type

    def emit(
        self,
        kind: str,
        inputs: Sequence[int | None],
        outputs: Sequence[int],
        options: Mapping[str, Any] | None = None,
        *,
        rounding: str = "tflite",
        name: str = "",
    ) -> None:
        """Append a node; name: by default that of its first output."""
        types = tuple(None if i is None else self.type(i) for i in inputs)
        operation = Operation(kind, types, tuple(self.type(i) for i in outputs), dict(options or {}), rounding)
        self.nodes.append(Node(name or self.values[outputs[0]].name, operation, tuple(inputs), tuple(outputs)))

    def hold(self, name: str, index: int, axes: Sequence[int] | None = None) -> None:
        """Say what holds a tensor of the file: in which order of its axes, or in the file's."""
        shape = self.shapes[name]
        self.held[name] = [Held(index, PLAIN if axes is None else order_of(shape, axes))]

    def same(self, name: str, source: str, order: Order | None = None) -> None:
        """Another tensor of the file with the elements of `source` one after the other, or held in another order."""
        if source in self.constants:
            raise ValueError("of a constant")
        self.held[name] = [
            held if order is None else dataclasses.replace(held, order=order) for held in self.held[source][:1]
        ]

    def axes(self, name: str) -> Axes | None:
        """The order in which the first value that holds a tensor has its axes; None if it is none of axes."""
        shape = self.shapes[name]
        rank = len(shape)
        if name in self.constants:
            return tuple(range(rank))
        order = self.held[name][0].order
        last = channels_last(rank)
        for axes in (tuple(range(rank)), last, inverse(last)):
            if order_of(shape, axes) == order:
                return axes
        return axes_of(shape, order)

    def near(self, name: str) -> Axes:
        """As `axes`; if a tensor is held in another order, channels last if only channels change places for that, else
        as in the file."""
        shape = self.shapes[name]
        axes, last = self.axes(name), channels_last(len(shape))
        if axes is not None:
            return axes
        move = between(self.held[name][0].order, order_of(shape, last), math.prod(shape))
        return last if move is not None and move.axes[:1] == (0,) else tuple(range(len(shape)))

    def plain(self, name: str) -> int:
        """A value that holds a tensor as it is in the file."""
        return self.get(name, PLAIN, self.shapes[name])

    def along(self, name: str, axes: Sequence[int]) -> int:
        """A value that holds a tensor with its axes in this order."""
        return self.get(name, order_of(self.shapes[name], axes), take(self.shapes[name], axes))

    def image(self, name: str) -> int:
        """A value [n, rows, columns, channels] that holds a tensor [n, channels, rows, columns] or
        [n, channels, columns]."""
        shape = self.shapes[name]
        order = order_of(shape, channels_last(len(shape)))
        return self.get(name, order, image_shape(shape))

    def get(self, name: str, order: Order, shape: Shape) -> int:
        """A value that holds a tensor in an order and shape; nodes are made that bring it there, if need be."""
        if name in self.constants:
            data = self.constants[name]
            if not order.is_plain:
                data = data.reshape(order.base).transpose(order.axes)
            index = self.constant(data.reshape(shape), name=name)
            if not shape:  # NumPy makes one dimension of none as it makes data contiguous
                value = self.values[index]
                t = dataclasses.replace(value.type, shape=())
                self.values[index] = dataclasses.replace(value, type=t, data=data.reshape(()))
            return index
        for held in self.held[name]:
            if held.order == order:
                return self.reshaped(held.index, shape)
        held = self.held[name][0]
        index = held.index
        move = between(held.order, order, math.prod(shape))
        if move is None:
            index = self.transposed(self.reshaped(index, held.order.held), inverse(held.order.axes))
            index = self.transposed(self.reshaped(index, order.base), order.axes)
        elif not move.is_plain:
            index = self.transposed(self.reshaped(index, move.base), move.axes)
        index = self.reshaped(index, shape)
        self.held[name].append(Held(index, order))
        return index

    def reshaped(self, index: int, shape: Shape) -> int:
        """A value with the same elements, one after the other, in another shape."""
        t = self.type(index)
        if t.shape == shape:
            return index
        target = self.add(self.values[index].name, dataclasses.replace(t, shape=shape))
        self.emit("RESHAPE", [index], [target])
        return target

    def transposed(self, index: int, axes: Sequence[int]) -> int:
        t = self.type(index)
        target = self.add(self.values[index].name, dataclasses.replace(t, shape=take(t.shape, axes)))
        self.emit("TRANSPOSE", [index, self.constant(np.array(axes, np.int32), name="axes")], [target])
        return target

    def renamed(self, index: int, value_type: TensorType, name: str) -> int:
        """The same bytes as another value."""
        target = self.add(name, value_type)
        self.emit("RESHAPE", [index], [target])
        return target


def image_shape(shape: Shape) -> Shape:
    """[n, rows, columns, channels] of an image or, with one row, of a sequence with channels first."""
    if len(shape) == 3:
        return shape[0], 1, shape[2], shape[1]
    return take(shape, channels_last(4))
