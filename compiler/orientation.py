"""A network with the rows and columns of its images exchanged.

Rows of a tensor lie in four banks of the activation memory, in turn. Lines of text and spectra are wide and low: of a
tensor of two rows, two banks stay empty, and a row may be too long for what is read at once. With the width of such
images as rows they fit. Operators on images are the same either way, with kernels, strides and paddings turned; the
bytes of a single row are those of a single column, and what the user exchanges is permuted at the border.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.operation import Operation, TensorType

from .elementwise import ELEMENTWISE
from .ir import Graph, Node, Value

__all__ = ["turned"]

_IMAGE = (0, 2, 1, 3)
_WINDOWS = ("CONV_2D", "DEPTHWISE_CONV_2D", "AVERAGE_POOL_2D", "MAX_POOL_2D")
_PAIRS = ("strides", "dilation", "window")
"""Options of rows and of columns"""


def turned(graph: Graph) -> Graph | None:
    """The network with rows for columns wherever its images are; None if there are none, or something is in the way."""
    if graph.states:
        return None
    try:
        return _Turn(graph).run()
    except _InTheWay:
        return None


class _InTheWay(Exception):
    """An operator needs rows and columns as they are."""


@dataclass
class _Turn:
    graph: Graph
    values: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    turned: set[int] = field(default_factory=set)
    """values that are images of columns and rows"""
    others: dict[int, int] = field(default_factory=dict)
    """the same values in the other order, as far as somebody needed them"""
    _names: set[str] = field(default_factory=set)

    def run(self) -> Graph | None:
        graph = self.graph
        self.values = list(graph.values)
        self._names = {value.name for value in graph.values}
        for index in graph.inputs:
            if _is_image(graph.values[index].type.shape):
                self._turn(index)
        if not self.turned:
            return None
        for node in graph.nodes:
            self.nodes.append(self._node(node))
        permutations = dict(graph.permutations)
        for index in (*graph.inputs, *graph.outputs):
            if index in self.turned:
                axes = graph.permutations.get(index, (0, 1, 2, 3))
                permutations[index] = tuple(axes[a] for a in _IMAGE)
        made = graph.replace_nodes(self.nodes, self.values)
        return dataclasses.replace(made, permutations=permutations)

    def _turn(self, index: int) -> None:
        """Have a value's columns as its rows."""
        value = self.values[index]
        data = None if value.data is None else np.ascontiguousarray(value.data.transpose(_IMAGE))
        self.values[index] = dataclasses.replace(value, type=_turned_type(value.type), data=data)
        self.turned.add(index)

    def _node(self, node: Node) -> Node:
        """A node of the network that is turned."""
        rule = _RULES.get(node.kind)
        if node.kind == "RESHAPE" and not self._is_same_shape(node):
            rule = None
        images = [i for i in self.graph.operands(node) if i in self.turned]
        if rule is None or not (images or self._begins(node)):
            return self._as_it_is(node)
        out = self.graph.values[node.outputs[0]].type.shape
        if len(node.outputs) != 1 or len(out) != 4:
            return self._as_it_is(node)
        if node.kind not in ELEMENTWISE and any(self.values[i].type.dtype == "float32" for i in images):
            raise _InTheWay  # sums of float32 have an order
        inputs, options = rule(self, node)
        self._turn(node.outputs[0])
        return self._made(node, inputs, options)

    def _is_same_shape(self, node: Node) -> bool:
        return (
            node.operation.inputs[0] is not None and node.operation.inputs[0].shape == node.operation.outputs[0].shape
        )

    def _begins(self, node: Node) -> bool:
        """Whether a window goes over a single row: it is worth to be turned."""
        operands = self.graph.operands(node)
        return node.kind in _WINDOWS and len(operands) == 1 and self._is_line(operands[0])

    def _as_it_is(self, node: Node) -> Node:
        """A node whose operands are what they were."""
        inputs = tuple(self._plain(i) if i in self.turned else i for i in node.inputs)
        return self._made(node, inputs, dict(node.operation.options))

    def _made(self, node: Node, inputs: tuple[int | None, ...], options: dict[str, Any]) -> Node:
        op = node.operation
        types = tuple(None if i is None else self._type(i, t) for i, t in zip(inputs, op.inputs, strict=True))
        outputs = tuple(self._type(i, t) for i, t in zip(node.outputs, op.outputs, strict=True))
        operation = dataclasses.replace(op, inputs=types, outputs=outputs, options=options)
        return dataclasses.replace(node, operation=operation, inputs=inputs)

    def _type(self, index: int, stated: TensorType | None) -> TensorType:
        """As the operator states it, in the shape that the value has now."""
        assert stated is not None
        return dataclasses.replace(stated, shape=self.values[index].type.shape)

    def _is_line(self, index: int) -> bool:
        """Whether a value's bytes are in the same order either way."""
        shape = self.values[index].type.shape
        return len(shape) == 4 and shape[0] == 1 and 1 in shape[1:3]

    def _plain(self, index: int) -> int:
        """A turned value as it was."""
        if not self._is_line(index):
            raise _InTheWay
        return self._other(index)

    def image(self, index: int) -> int:
        """A value, turned."""
        if index in self.turned:
            return index
        if not self._is_line(index):
            raise _InTheWay
        return self._other(index)

    def _other(self, index: int) -> int:
        """A value of one row or one column under the other shape."""
        value = self.values[index]
        made = _turned_type(value.type)
        if made.shape == value.type.shape:
            return index
        if index not in self.others:
            name = self._name(value)
            self.others[index] = len(self.values)
            self.values.append(Value(name, made))
            operation = Operation("RESHAPE", (value.type,), (made,), {"new_shape": made.shape})
            self.nodes.append(Node(name, operation, (index,), (self.others[index],)))
            if index not in self.turned:
                self.turned.add(self.others[index])
        return self.others[index]

    def constant(self, index: int, data: NDArray) -> int:
        """A constant of the same type as another one."""
        value = self.values[index]
        type_ = dataclasses.replace(value.type, shape=data.shape)
        self.values.append(Value(self._name(value), type_, np.ascontiguousarray(data)))
        return len(self.values) - 1

    def _name(self, value: Value) -> str:
        name = f"{value.name} (turned)"
        while name in self._names:
            name += "'"
        self._names.add(name)
        return name

    def operand(self, index: int | None) -> int | None:
        """An operand of an operator on images: an image, or what is the same for all pixels."""
        if index is None:
            return None
        data, shape = self.graph.constant(index), self.values[index].type.shape
        if data is None:
            return self.image(index) if len(shape) == 4 else self._for_all_pixels(index)
        if len(shape) == 4 and shape[1:3] != (1, 1):
            return self.constant(index, data.transpose(_IMAGE))
        return index if len(shape) == 4 else self._for_all_pixels(index)

    def _for_all_pixels(self, index: int) -> int:
        shape = self.values[index].type.shape
        if len(shape) > 1 and any(n != 1 for n in shape[:-1]):
            raise _InTheWay
        return index


_Operands = tuple[tuple[int | None, ...], dict[str, Any]]
_Rule = Callable[[_Turn, Node], _Operands]
"""A node's operands and options for images of columns and rows"""


def _is_image(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[0] == 1 and shape[1] > 1 and shape[2] > 1


def _turned_type(type_: TensorType) -> TensorType:
    q = type_.quantization
    if q is not None and not q.is_per_tensor and q.axis in (1, 2):
        raise _InTheWay
    return dataclasses.replace(type_, shape=tuple(type_.shape[a] for a in _IMAGE))


def _elementwise(turn: _Turn, node: Node) -> _Operands:
    return tuple(turn.operand(i) for i in node.inputs), dict(node.operation.options)


def _table(turn: _Turn, node: Node) -> _Operands:
    first, *rest = node.inputs
    assert first is not None
    return (turn.image(first), *rest), dict(node.operation.options)


def _window(turn: _Turn, node: Node) -> _Operands:
    """Windows, and the kernels in them."""
    first, *rest = node.inputs
    assert first is not None
    options = dict(node.operation.options)
    options |= {name: options[name][::-1] for name in _PAIRS if name in options}
    before_rows, before_columns, after_rows, after_columns = options["padding"]
    options["padding"] = (before_columns, before_rows, after_columns, after_rows)
    if rest and rest[0] is not None:
        weights = turn.graph.constant(rest[0])
        if weights is None:
            raise _InTheWay
        _turned_type(turn.values[rest[0]].type)
        rest[0] = turn.constant(rest[0], weights.transpose(_IMAGE))
    if node.kind == "AVERAGE_POOL_2D" and node.operation.rounding != "tflite":
        raise _InTheWay  # it adds rows, then columns, in float32
    return (turn.image(first), *rest), options


def _reduction(turn: _Turn, node: Node) -> _Operands:
    first, axes = node.inputs
    given = turn.graph.constant(axes)
    if first is None or axes is None or given is None or not node.operation.options.get("keep_dims"):
        raise _InTheWay
    moved = np.array([_IMAGE[int(a) % 4] for a in given.reshape(-1)], given.dtype)
    return (turn.image(first), turn.constant(axes, moved.reshape(given.shape))), dict(node.operation.options)


def _padding(turn: _Turn, node: Node) -> _Operands:
    first, amounts, *rest = node.inputs
    given = turn.graph.constant(amounts)
    if first is None or amounts is None or given is None:
        raise _InTheWay
    return (turn.image(first), turn.constant(amounts, given[list(_IMAGE)]), *rest), dict(node.operation.options)


def _view(turn: _Turn, node: Node) -> _Operands:
    """The same shape again."""
    first, *_ = node.inputs
    assert first is not None
    return (turn.image(first),), dict(node.operation.options) | {"new_shape": turn.values[first].type.shape}


def _concatenation(turn: _Turn, node: Node) -> _Operands:
    options = dict(node.operation.options)
    options["axis"] = _IMAGE[options["axis"] % 4]
    return tuple(turn.operand(i) for i in node.inputs), options


_RULES: dict[str, _Rule] = {
    **{kind: _elementwise for kind in ELEMENTWISE},
    "TABLE": _table,
    **{kind: _window for kind in _WINDOWS},
    "MEAN": _reduction,
    "SUM": _reduction,
    "PAD": _padding,
    "CONCATENATION": _concatenation,
    "RESHAPE": _view,
}
