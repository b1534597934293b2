"""How each ONNX operator ties the channels of its operands and its results, and where it keeps zeros.

What is not in the table has its operands' and results' axes stay as they are; so the table may be incomplete, never
wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .channels import Axis, Channels, Flags, Layer, Reduction, Zeros, describe
from .network import attribute

__all__ = ["tie", "zeros"]


@dataclass(frozen=True)
class Rule:
    """An operator: `tie` is called once for each node, in order; `zero` for each question which channels are zero."""

    tie: Callable[[Channels, Any], None]
    zero: Callable[[Zeros, Any], None]


def tie(channels: Channels) -> None:
    """Tie the channels of a whole network."""
    for node in channels.network.nodes:
        rule = _rule(node)
        if rule is None:
            _stay(channels, node)
        else:
            rule.tie(channels, node)
    for name in channels.network.initializers:
        channels.of(name)
    for name in channels.network.outputs:
        for axis in channels.of(name):
            channels.fix(axis, "it is an output of the network")


def zeros(channels: Channels, masked: dict[str, Flags]) -> Zeros:
    """Which channels are zero with some filters masked."""
    result = Zeros(channels, masked)
    for node in channels.network.nodes:
        rule = _rule(node)
        if rule is not None:
            rule.zero(result, node)
    return result


def _rule(node: Any) -> Rule | None:
    return RULES.get(node.op_type) if node.domain in ("", "ai.onnx", "com.microsoft") else None


def _stay(c: Channels, node: Any) -> None:
    """An operator of which nothing is known."""
    for name in node.input:
        if name:
            for axis in c.of(name):
                c.fix(axis, f"{describe(node)} reads it")
    for name in node.output:
        if name:
            c.axes[name] = [None] * len(c.network.shapes[name])


def _nothing(z: Zeros, node: Any) -> None:
    """No result is known to be zero."""


# Products


def _conv(x: int = 0, w: int = 1, b: int = 2, per_filter: tuple[int, ...] = (), *, transposed: bool = False) -> Rule:
    """A convolution: which operands are its data, weights, bias and what else has a value for each filter."""
    out_axis, in_axis = (1, 0) if transposed else (0, 1)

    def tie(c: Channels, node: Any) -> None:
        group = int(attribute(node, "group", 1))
        if transposed and group != 1:
            _stay(c, node)
            return
        source, weights = c.of(node.input[x]), c.of(node.input[w])
        filters, taps = weights[out_axis], weights[in_axis]
        for axis in (*source[2:], *weights[2:]):
            c.fix(axis, f"{describe(node)} moves over it")
        c.axes[node.output[0]] = [source[0], filters, *[None] * (len(source) - 2)]
        for index in (b, *per_filter):
            if _given(node, index) and c.network.shapes[node.input[index]] not in ((), (1,)):
                c.tie(c.of(node.input[index])[0], filters, node)
        if group == 1:
            c.tie(source[1], taps, node)
            c.reductions.append(Reduction(node, ((node.input[x], 1), (node.input[w], in_axis))))
        else:
            c.fix(taps, f"{describe(node)} has it within a group")
            _tie_groups(c, node, source[1], filters, group)
        _add_layer(c, node, (node.input[w], out_axis), (node.input[b], 0) if _given(node, b) else None, 1)

    def zero(z: Zeros, node: Any) -> None:
        group = int(attribute(node, "group", 1))
        count = z.channels.network.shapes[node.output[0]][1]
        result = _masked(z, node, count)
        if group > 1:
            inputs = z.of(node.input[x], 1).reshape(group, -1).all(axis=1)
            empty = np.repeat(inputs, count // group)
            if not _given(node, b) or z.make_zero(node.input[b], 0, empty):
                result = result | empty
        z.put(node.output[0], 1, result)

    return Rule(tie, zero)


def _tie_groups(c: Channels, node: Any, source: Axis, filters: Axis, group: int) -> None:
    """A convolution in groups: the inputs and filters of each go together, as those of a depthwise one."""
    if source is None or filters is None:
        c.tie(source, filters, node)
        return
    inputs, outputs = source.reshape(group, -1).tolist(), filters.reshape(group, -1).tolist()
    for i, o in zip(inputs, outputs, strict=True):
        c.tie_all([*i, *o])


def _matrix(a: int = 0, b: int = 1, bias: int = -1, per_column: tuple[int, ...] = ()) -> Rule:
    """Gemm and MatMul: [..., m, k] times [..., k, n]."""

    def orders(node: Any) -> tuple[bool, bool]:
        return bool(attribute(node, "transA", 0)), bool(attribute(node, "transB", 0))

    def tie(c: Channels, node: Any) -> None:
        names = node.input[a], node.input[b]
        if any(len(c.network.shapes[name]) < 2 for name in names):
            _stay(c, node)
            return
        flip_a, flip_b = orders(node)
        left, right = c.of(names[0]), c.of(names[1])
        m, k = left[-2:][::-1] if flip_a else left[-2:]
        k2, n = right[-2:][::-1] if flip_b else right[-2:]
        c.tie(k, k2, node)
        output = node.output[0]
        rank = len(c.network.shapes[output])
        c.axes[output] = [*_broadcast(c, node, names, output, 2), m, n]
        sums = (names[0], len(left) - (2 if flip_a else 1)), (names[1], len(right) - (1 if flip_b else 2))
        c.reductions.append(Reduction(node, sums))
        for index in per_column:
            if _given(node, index) and c.network.shapes[node.input[index]] not in ((), (1,)):
                c.tie(c.of(node.input[index])[0], n, node)
        where = None
        if bias >= 0 and _given(node, bias):
            axes, shape = c.of(node.input[bias]), c.network.shapes[node.input[bias]]
            for axis, other, size in zip(axes[::-1], (n, m), shape[::-1], strict=False):
                if size == 1:
                    c.fix(axis, f"{describe(node)} adds it everywhere")
                else:
                    c.tie(axis, other, node)
            where = (node.input[bias], len(shape) - 1) if shape and shape[-1] > 1 else ("", 0)
        if c.network.is_constant(names[1]) and len(right) == 2 and where != ("", 0):
            _add_layer(c, node, (names[1], 0 if flip_b else 1), where, rank - 1)

    def zero(z: Zeros, node: Any) -> None:
        if node.name not in z.channels.layers:
            return
        output = node.output[0]
        shape = z.channels.network.shapes[output]
        z.put(output, len(shape) - 1, _masked(z, node, shape[-1]))

    return Rule(tie, zero)


def _add_layer(c: Channels, node: Any, weights: tuple[str, int], bias: tuple[str, int] | None, axis: int) -> None:
    if c.network.is_constant(weights[0]):
        c.layers[node.name] = Layer(node, weights, bias, (node.output[0], axis))


def _masked(z: Zeros, node: Any, count: int) -> Flags:
    """The filters of a layer that are masked, if they can be."""
    flags = z.masked.get(node.name)
    layer = z.channels.layers.get(node.name)
    if flags is None or layer is None:
        return np.zeros(count, np.bool_)
    if z.make_zero(*layer.weights, flags) and (layer.bias is None or z.make_zero(*layer.bias, flags)):
        return flags
    z.refused.append(node.name)
    return np.zeros(count, np.bool_)


def _given(node: Any, index: int) -> bool:
    return len(node.input) > index and bool(node.input[index])


# Operators of one value at a time


def _aligned(c: Channels, names: Sequence[str], output: str, axis: int) -> list[int | None]:
    """Of each operand, which of its axes is this one of the output; None: it has the same values all along."""
    shapes = c.network.shapes
    rank, size = len(shapes[output]), shapes[output][axis]
    result: list[int | None] = []
    for name in names:
        own = axis - rank + len(shapes[name])
        result.append(own if own >= 0 and shapes[name][own] == size else None)
    return result


def _broadcast(c: Channels, node: Any, names: Sequence[str], output: str, without: int = 0) -> list[Axis]:
    """The axes of a result, but for the last ones, of operands that are broadcast to each other."""
    result: list[Axis] = []
    shapes = c.network.shapes
    for axis in range(len(shapes[output]) - without):
        places = _aligned(c, names, output, axis)
        found = [c.of(name)[own] for name, own in zip(names, places, strict=True) if own is not None]
        for name, own in zip(names, places, strict=True):
            at = axis - len(shapes[output]) + len(shapes[name])
            if own is None and at >= 0:
                c.fix(c.of(name)[at], f"{describe(node)} repeats it")
        first = found[0]
        for other in found[1:]:
            if c.tie(first, other, node) is None:
                first = None
        result.append(first)
    return result


def _elementwise(kind: str, data: Callable[[Any], list[str]] | None = None) -> Rule:
    """A result is zero if all operands are ("all"), one of them is ("any"), the first is ("first"), or never ("none").

    Of operands of which all must be zero, constants are made so where the others are.
    """

    def names(node: Any) -> list[str]:
        return [name for name in (data(node) if data else node.input) if name]

    def tie(c: Channels, node: Any) -> None:
        axes = _broadcast(c, node, names(node), node.output[0])
        for output in node.output:
            if output:
                c.axes[output] = list(axes)

    def zero(z: Zeros, node: Any) -> None:
        c, operands = z.channels, names(node)
        if kind == "none" or all(c.network.is_constant(name) for name in operands):
            return
        for axis, channels in enumerate(c.axes[node.output[0]]):
            if channels is None:
                continue
            places = _aligned(c, operands, node.output[0], axis)
            found = list(zip(operands, places, strict=True))
            if kind == "all":
                flags = _all_zero(z, found, len(channels))
            else:
                read = found[:1] if kind == "first" else found
                flags = np.zeros(len(channels), np.bool_)
                for name, own in read:
                    if own is not None:
                        flags = flags | z.of(name, own)
            z.put(node.output[0], axis, flags)

    return Rule(tie, zero)


def _all_zero(z: Zeros, operands: Sequence[tuple[str, int | None]], count: int) -> Flags:
    network = z.channels.network
    flags = np.ones(count, np.bool_)
    for name, own in operands:
        if not network.is_constant(name):
            flags = flags & (np.False_ if own is None else z.of(name, own))
    for name, own in operands:
        if network.is_constant(name) and (own is None or not z.make_zero(name, own, flags)):
            return np.zeros(count, np.bool_)
    return flags


def _every(step: int, start: int = 0) -> Callable[[Any], list[str]]:
    """Operands of ONNX Runtime's own operators, each with its scale and zero point."""
    return lambda node: list(node.input[start::step])


def _first(node: Any) -> list[str]:
    return [node.input[0]]


def _same(keeps_zero: Callable[[Any, Zeros], bool] = lambda node, z: True) -> Rule:
    """A function of the first operand."""
    plain, never = _elementwise("first", _first), _elementwise("none", _first)
    return Rule(plain.tie, lambda z, node: (plain if keeps_zero(node, z) else never).zero(z, node))


def _clip_keeps_zero(node: Any, z: Zeros) -> bool:
    values = z.channels.network.values
    bounds = [attribute(node, "min"), attribute(node, "max")]
    for i, name in enumerate(node.input[1:3]):
        if name:
            if name not in values:
                return False
            bounds[i] = values[name].item()
    return (bounds[0] is None or bounds[0] <= 0) and (bounds[1] is None or bounds[1] >= 0)


def _quantize() -> Rule:
    plain = _same()

    def tie(c: Channels, node: Any) -> None:
        scales = [name for name in node.input[1:3] if name and c.network.shapes[name] not in ((), (1,))]
        axis = int(attribute(node, "axis", 1))
        if attribute(node, "block_size", 0):
            _stay(c, node)
            return
        for name in scales:
            c.tie(c.of(name)[0], c.of(node.input[0])[axis], node)
        plain.tie(c, node)

    return Rule(tie, plain.zero)


def _normalization(parameters: Sequence[int], shifts: Sequence[int]) -> Rule:
    """A scale and a shift for each channel; the shift, and what it follows, is zero where the channel is."""
    plain = _same()

    def tie(c: Channels, node: Any) -> None:
        for index in parameters:
            c.tie(c.of(node.input[index])[0], c.of(node.input[0])[1], node)
        plain.tie(c, node)

    def zero(z: Zeros, node: Any) -> None:
        flags = z.of(node.input[0], 1)
        if all([z.make_zero(node.input[index], 0, flags) for index in shifts]):
            z.put(node.output[0], 1, flags)

    return Rule(tie, zero)


# Operators that see several values of a channel


def _within_channels() -> Rule:
    """Pools: what moves over rows and columns."""

    def tie(c: Channels, node: Any) -> None:
        source = c.of(node.input[0])
        if attribute(node, "channels_last", 0):
            _stay(c, node)
            return
        for axis in source[2:]:
            c.fix(axis, f"{describe(node)} moves over it")
        if any(node.output[1:]):  # where the largest value was, counted over all channels
            c.fix(source[1], f"{describe(node)} counts it")
        for output in node.output:
            if output:
                c.axes[output] = [*source[:2], *[None] * (len(source) - 2)]

    def zero(z: Zeros, node: Any) -> None:
        z.put(node.output[0], 1, z.of(node.input[0], 1))

    return Rule(tie, zero)


def _axes_of(c: Channels, node: Any, index: int = 1) -> list[int] | None:
    """Axes as an attribute or a constant operand, not negative; None: all, or unknown."""
    axes = attribute(node, "axes")
    if axes is None and _given(node, index):
        value = c.network.values.get(node.input[index])
        axes = None if value is None else value.tolist()
    rank = len(c.network.shapes[node.input[0]])
    return None if axes is None else [a % rank for a in axes]


def _reduce() -> Rule:
    """Over axes that stay; a maximum or a mean of zeros is zero."""

    def kept(c: Channels, node: Any) -> Iterator[tuple[int, int | None]]:
        """(axis of the operand, axis of the result or None: reduced)"""
        shape = c.network.shapes[node.input[0]]
        axes = _axes_of(c, node)
        if axes is None:
            all_of_it = not attribute(node, "noop_with_empty_axes", 0)
            axes = list(range(len(shape))) if all_of_it else []
        keepdims, at = bool(attribute(node, "keepdims", 1)), 0
        for axis in range(len(shape)):
            yield axis, None if axis in axes else at
            at += keepdims or axis not in axes

    def tie(c: Channels, node: Any) -> None:
        source = c.of(node.input[0])
        result: list[Axis] = [None] * len(c.network.shapes[node.output[0]])
        for axis, target in kept(c, node):
            if target is None:
                c.fix(source[axis], f"{describe(node)} reduces it")
            else:
                result[target] = source[axis]
        c.axes[node.output[0]] = result

    def zero(z: Zeros, node: Any) -> None:
        for axis, target in kept(z.channels, node):
            if target is not None:
                z.put(node.output[0], target, z.of(node.input[0], axis))

    return Rule(tie, zero)


def _softmax() -> Rule:
    """Values along an axis depend on each other."""

    def tie(c: Channels, node: Any) -> None:
        source = c.of(node.input[0])
        axis = int(attribute(node, "axis", -1)) % len(source)
        c.fix(source[axis], f"{describe(node)} compares it")
        c.axes[node.output[0]] = [None if i == axis else a for i, a in enumerate(source)]

    return Rule(tie, _nothing)


# Operators that move values


def _concat(data: Callable[[Any], list[str]] | None = None) -> Rule:
    def names(node: Any) -> list[str]:
        return data(node) if data else list(node.input)

    def tie(c: Channels, node: Any) -> None:
        operands = [c.of(name) for name in names(node)]
        along = int(attribute(node, "axis", 1)) % len(operands[0])
        result: list[Axis] = []
        for axis in range(len(operands[0])):
            rows = [operand[axis] for operand in operands]
            if axis != along:
                first = rows[0]
                for other in rows[1:]:
                    first = c.tie(first, other, node)
                result.append(first)
                continue
            parts = []
            for name, row in zip(names(node), rows, strict=True):
                if row is None:
                    row = c.new(c.network.shapes[name][axis])
                    c.fix(row, f"{describe(node)} takes it from an axis that stays")
                parts.append(row)
            result.append(np.concatenate(parts))
        c.axes[node.output[0]] = result

    def zero(z: Zeros, node: Any) -> None:
        along = int(attribute(node, "axis", 1)) % len(z.channels.axes[node.output[0]])
        for axis in range(len(z.channels.axes[node.output[0]])):
            flags = [z.of(name, axis) for name in names(node)]
            z.put(node.output[0], axis, np.concatenate(flags) if axis == along else np.logical_and.reduce(flags))

    return Rule(tie, zero)


def _split() -> Rule:
    def pieces(c: Channels, node: Any) -> Iterator[tuple[str, int, slice]]:
        """(name, axis, which part of it) of each output"""
        axis = int(attribute(node, "axis", 0)) % len(c.network.shapes[node.input[0]])
        at = 0
        for name in node.output:
            count = c.network.shapes[name][axis]
            yield name, axis, slice(at, at + count)
            at += count

    def tie(c: Channels, node: Any) -> None:
        source = c.of(node.input[0])
        for name, axis, part in pieces(c, node):
            row = source[axis]
            c.axes[name] = [*source[:axis], None if row is None else row[part], *source[axis + 1 :]]

    def zero(z: Zeros, node: Any) -> None:
        for name, along, part in pieces(z.channels, node):
            for axis in range(len(z.channels.axes[name])):
                flags = z.of(node.input[0], axis)
                z.put(name, axis, flags[part] if axis == along else flags)

    return Rule(tie, zero)


def _transpose() -> Rule:
    def permutation(c: Channels, node: Any) -> list[int]:
        rank = len(c.network.shapes[node.input[0]])
        return [int(a) for a in attribute(node, "perm", range(rank)[::-1])]

    def tie(c: Channels, node: Any) -> None:
        source = c.of(node.input[0])
        c.axes[node.output[0]] = [source[axis] for axis in permutation(c, node)]

    def zero(z: Zeros, node: Any) -> None:
        for target, axis in enumerate(permutation(z.channels, node)):
            z.put(node.output[0], target, z.of(node.input[0], axis))

    return Rule(tie, zero)


def _blocks(source: Sequence[int], target: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Axes before and after a reshape that hold the same values, without those of size 1."""
    result = []
    before = [i for i, n in enumerate(source) if n != 1]
    after = [i for i, n in enumerate(target) if n != 1]
    while before and after:
        block = [before.pop(0)], [after.pop(0)]
        sizes = source[block[0][0]], target[block[1][0]]
        while sizes[0] != sizes[1]:
            side = int(sizes[1] < sizes[0])
            axis = (before, after)[side].pop(0)
            block[side].append(axis)
            grown = math.prod((source, target)[side][i] for i in block[side])
            sizes = (grown, sizes[1]) if side == 0 else (sizes[0], grown)
        result.append(block)
    return result


def _reshape() -> Rule:
    """Reshape, Flatten, Squeeze, Unsqueeze: an axis that becomes part of another is there several times."""

    def tie(c: Channels, node: Any) -> None:
        source, shapes = c.of(node.input[0]), c.network.shapes
        shape, target = shapes[node.input[0]], shapes[node.output[0]]
        result: list[Axis] = [None] * len(target)
        for axis, size in enumerate(shape):
            if size == 1:
                c.fix(source[axis], f"{describe(node)} makes another shape of it")
        for before, after in _blocks(shape, target):
            free = [i for i in before if source[i] is not None]
            if len(free) == 1 and len(after) == 1:
                result[after[0]] = _spread(source[free[0]], shape, before, free[0])
            elif len(free) == 1 and len(before) == 1:
                row = source[free[0]]
                assert row is not None
                parts = row.reshape(target[after[0]], -1)
                for part in parts.tolist():
                    c.tie_all(part)
                result[after[0]] = parts[:, 0]
            else:
                for i in free:
                    c.fix(source[i], f"{describe(node)} mixes it with other axes")
        c.axes[node.output[0]] = result

    def zero(z: Zeros, node: Any) -> None:
        c = z.channels
        shape, target = c.network.shapes[node.input[0]], c.network.shapes[node.output[0]]
        for before, after in _blocks(shape, target):
            free = [i for i in before if c.of(node.input[0])[i] is not None]
            if len(free) == 1 and c.axes[node.output[0]][after[0]] is not None:
                flags = z.of(node.input[0], free[0])
                if len(after) == 1:
                    z.put(node.output[0], after[0], _spread(flags, shape, before, free[0]))
                else:
                    z.put(node.output[0], after[0], np.logical_and.reduce(flags.reshape(target[after[0]], -1), axis=1))

    return Rule(tie, zero)


def _spread(row: Any, shape: Sequence[int], axes: Sequence[int], own: int) -> Any:
    """A row along one of several axes, along the one axis that they become."""
    at = axes.index(own)
    sizes = [shape[i] for i in axes]
    return np.tile(np.repeat(row, math.prod(sizes[at + 1 :])), math.prod(sizes[:at]))


def _where_sizes_stay(
    keeps_zero: Callable[[Any, Zeros], bool], untouched: Callable[[Channels, Any, int], bool]
) -> Rule:
    """Resize, Pad, Slice: axes that it leaves as they are."""

    def tie(c: Channels, node: Any) -> None:
        source = c.of(node.input[0])
        result: list[Axis] = []
        for axis, row in enumerate(source):
            if untouched(c, node, axis):
                result.append(row)
            else:
                c.fix(row, f"{describe(node)} changes its size")
                result.append(None)
        c.axes[node.output[0]] = result

    def zero(z: Zeros, node: Any) -> None:
        if keeps_zero(node, z):
            for axis, row in enumerate(z.channels.axes[node.output[0]]):
                if row is not None:
                    z.put(node.output[0], axis, z.of(node.input[0], axis))

    return Rule(tie, zero)


def _same_size(c: Channels, node: Any, axis: int) -> bool:
    shapes = c.network.shapes
    return shapes[node.input[0]][axis] == shapes[node.output[0]][axis]


def _not_padded(c: Channels, node: Any, axis: int) -> bool:
    pads = c.network.values.get(node.input[1]) if _given(node, 1) else None
    rank = len(c.network.shapes[node.input[0]])
    return pads is not None and not _given(node, 3) and not pads.reshape(2, rank)[:, axis].any()


def _not_sliced(c: Channels, node: Any, axis: int) -> bool:
    if not _given(node, 3):
        starts = c.network.values.get(node.input[1])
        return starts is not None and axis >= starts.size
    axes = _axes_of(c, node, 3)
    return axes is not None and axis not in axes


def _pads_with_zero(node: Any, z: Zeros) -> bool:
    if attribute(node, "mode", b"constant") != b"constant" or not _given(node, 2):
        return True
    value = z.channels.network.values.get(node.input[2])
    return value is not None and not value.any()


def _resizes_zero(node: Any, z: Zeros) -> bool:
    return attribute(node, "coordinate_transformation_mode", b"") != b"tf_crop_and_resize"


_KEEPS_ZERO = (
    "Abs", "Cast", "Ceil", "Celu", "Dropout", "Elu", "Erf", "Floor", "Gelu", "HardSwish", "Identity", "LeakyRelu",
    "Mish", "Neg", "QLinearLeakyRelu", "Relu", "Round", "Selu", "Sign", "Sin", "Softsign", "Sqrt", "Swish", "Tan",
    "Tanh", "ThresholdedRelu", "QuickGelu",
)  # fmt: skip
_LOSES_ZERO = ("Cos", "Exp", "HardSigmoid", "Log", "QLinearSigmoid", "Reciprocal", "Sigmoid", "Softplus")

RULES: dict[str, Rule] = {
    **{kind: _same() for kind in _KEEPS_ZERO},
    **{kind: _same(lambda node, z: False) for kind in _LOSES_ZERO},
    "Add": _elementwise("all"),
    "AveragePool": _within_channels(),
    "BatchNormalization": _normalization((1, 2, 3, 4), (1, 2)),
    "Clip": _same(_clip_keeps_zero),
    "Concat": _concat(),
    "Conv": _conv(),
    "ConvTranspose": _conv(transposed=True),
    "DequantizeLinear": _quantize(),
    "Div": _elementwise("first"),
    "Flatten": _reshape(),
    "Gemm": _matrix(bias=2),
    "GlobalAveragePool": _within_channels(),
    "GlobalMaxPool": _within_channels(),
    "InstanceNormalization": _normalization((1, 2), (1, 2)),
    "LogSoftmax": _softmax(),
    "MatMul": _matrix(),
    "Max": _elementwise("all"),
    "MaxPool": _within_channels(),
    "Mean": _elementwise("all"),
    "Min": _elementwise("all"),
    "Mul": _elementwise("any"),
    "PRelu": _elementwise("first"),
    "Pad": _where_sizes_stay(_pads_with_zero, _not_padded),
    "QGemm": _matrix(0, 3, 6, (4, 5)),
    "QLinearAdd": _elementwise("all", lambda node: [node.input[0], node.input[3]]),
    "QLinearAveragePool": _within_channels(),
    "QLinearConcat": _concat(_every(3, 2)),
    "QLinearConv": _conv(0, 3, 8, (4, 5)),
    "QLinearGlobalAveragePool": _within_channels(),
    "QLinearMatMul": _matrix(0, 3, per_column=(4, 5)),
    "QLinearMul": _elementwise("any", lambda node: [node.input[0], node.input[3]]),
    "QuantizeLinear": _quantize(),
    **{f"Reduce{kind}": _reduce() for kind in ("L1", "L2", "Max", "Mean", "Min", "Sum", "SumSquare")},
    "Reshape": _reshape(),
    "Resize": _where_sizes_stay(_resizes_zero, _same_size),
    "Slice": _where_sizes_stay(lambda node, z: True, _not_sliced),
    "Softmax": _softmax(),
    "Split": _split(),
    "Squeeze": _reshape(),
    "Sub": _elementwise("all"),
    "Sum": _elementwise("all"),
    "Transpose": _transpose(),
    "Unsqueeze": _reshape(),
}
"""By the operator's name. What counts the values of an axis, or compares them, is not among them."""
