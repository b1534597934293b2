"""Operators that move values: the same bytes in another order or shape, parts of them, and reductions along axes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.dtypes import RECENTRED, UINT8
from nnloom.arch.operation import TensorType

from .order import Axes, channels_last, inverse, take
from .support import Refusal, attributes
from .tables import Chain
from .values import image_shape

if TYPE_CHECKING:
    from .reader import Reader

__all__ = ["OPERATORS", "keeps_values", "quantized_alike", "reduce"]


def keeps_values(read: Callable[[Reader, Any], None]) -> Callable[[Reader, Any], None]:
    """An operator whose outputs have values of its first operand: of a dequantized tensor it moves the integers, and
    what comes out is dequantized when that is asked for."""

    @functools.wraps(read)
    def read_integers(r: Reader, node: Any) -> None:
        chain = r.lazy.get(node.input[0])
        if not isinstance(chain, Chain) or chain.nodes:
            read(r, node)
            return
        r.integer(chain.source, chain.scale, chain.zero_point)
        inner = type(node)()
        inner.CopyFrom(node)
        inner.input[0] = chain.source
        moved = [(i, name) for i, name in enumerate(node.output) if name and r.dtypes.get(name) == "float32"]
        for place, name in moved:
            inner.output[place] = f"{name} (quantized)"
            r.v.shapes[inner.output[place]], r.dtypes[inner.output[place]] = r.shape(name), chain.dtype
        read(r, inner)
        for place, name in moved:
            r.lazy[name] = dataclasses.replace(chain, source=inner.output[place], dequantized=name)

    return read_integers


def _prepare(r: Reader, name: str) -> Axes:
    """Have an operand computed; the order in which it has its axes."""
    r.force(name)
    if name in r.v.constants:
        return tuple(range(len(r.shape(name))))
    return r.v.near(name)


def _moved(
    r: Reader, node: Any, output: str, kind: str, operands: Sequence[int], like: int, axes: Axes, **options: Any
) -> None:
    """Emit an operator whose output has the type of a value."""
    t = r.v.type(like)
    out = TensorType(take(r.shape(output), axes), t.dtype, t.quantization)
    r.emit(node, output, kind, operands, out, axes, options, "tflite")


def transpose(r: Reader, node: Any) -> None:
    """Transpose: another name for what holds the operand."""
    name, out = node.input[0], node.output[0]
    r.force(name)
    shape = r.shape(name)
    axes = tuple(int(v) for v in attributes(node).get("perm", range(len(shape))[::-1]))
    if name in r.v.constants:
        r.v.constants[out] = r.v.constants[name].transpose(axes)
        return
    held = r.v.axes(name)
    if held is None:
        r.v.plain(name)
        held = tuple(range(len(shape)))
        index = r.v.plain(name)
    else:
        index = r.v.along(name, held)
    # The axes of the output in the order in which the value has them.
    back = inverse(axes)
    r.v.hold(out, index, tuple(back[a] for a in held))


def reshape(r: Reader, node: Any) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: the same elements one after the other."""
    name, out = node.input[0], node.output[0]
    r.force(name)
    if name in r.v.constants:
        r.v.constants[out] = r.v.constants[name].reshape(r.shape(out))
        return
    r.shape(out)
    r.v.same(out, name)


def concat(r: Reader, node: Any) -> None:
    """Concat of tensors of one quantization, or real ones."""
    out, names = node.output[0], [n for n in node.input if 0 not in r.v.shapes.get(n, ())]
    chains = [r.lazy.get(name) for name in names]
    first = chains[0]
    if not isinstance(first, Chain) or not all(_is_alike(c, first) for c in chains):
        _join(r, node, names, out)
        return
    sources = [c.source for c in chains if isinstance(c, Chain)]
    for source in sources:
        r.integer(source, first.scale, first.zero_point)
    joined = f"{out} (quantized)"
    r.v.shapes[joined], r.dtypes[joined] = r.shape(out), first.dtype
    _join(r, node, sources, joined)
    r.lazy[out] = dataclasses.replace(first, source=joined, dequantized=out)


def _is_alike(chain: Any, other: Chain) -> bool:
    """Whether a tensor is dequantized as another, and nothing else."""
    if not isinstance(chain, Chain):
        return False
    parts = [(c.dtype, c.scale, c.zero_point, c.nodes) for c in (chain, other)]
    return parts[0] == parts[1] and not chain.nodes


def qlinear_concat(r: Reader, node: Any) -> None:
    """QLinearConcat: what has another quantization is quantized anew."""
    out = node.output[0]
    value, zero = r.scale_of(node.input[0], node.input[1])
    dtype = r.dtypes[node.input[1]]
    names = [
        quantized_alike(r, node.input[place : place + 3], (dtype, value, zero), out)
        for place in range(2, len(node.input), 3)
    ]
    _join(r, node, names, out)


def quantized_alike(r: Reader, operand: Sequence[str], into: tuple[str, np.float32, int], out: str) -> str:
    """A name of an operand (its tensor, scale and zero point) in the quantization of the output `out`."""
    name, scale, zero_point = operand
    source = r.integer(name, *r.scale_of(scale, zero_point))
    t = r.quantized_type(r.v.type(source).shape, *into)
    constant = name in r.v.constants
    if r.v.type(source) == t and not constant:
        return name
    alike = f"{out} ({name})"
    target = source
    if r.v.type(source) != t:
        target = r.v.add(alike, t)
        r.v.emit("QUANTIZE", [source], [target], rounding="onnx")
    r.v.shapes[alike] = r.shape(name)
    if constant:
        r.v.hold(alike, target)
    else:
        held = r.v.held[name][0]
        r.v.held[alike] = [type(held)(target, held.order)]
    return alike


def _join(r: Reader, node: Any, names: list[str], out: str) -> None:
    shape = r.shape(out)
    axis = int(attributes(node)["axis"]) % len(shape)
    for name in names:
        r.force(name)
    names = [n for n in names if 0 not in r.shape(n)]
    found = [r.v.axes(n) for n in names if n not in r.v.constants]
    axes = next((a for a in found if a is not None and a != tuple(range(len(shape)))), tuple(range(len(shape))))
    values = [r.v.along(n, axes) for n in names]
    if len({(r.v.type(v).dtype, r.v.type(v).quantization) for v in values}) > 1:
        raise Refusal("operands of several types or quantizations; quantize them with one scale")
    _moved(r, node, out, "CONCATENATION", values, values[0], axes, axis=axes.index(axis), activation="NONE")


def split(r: Reader, node: Any) -> None:
    """Split along an axis."""
    name = node.input[0]
    axes = _prepare(r, name)
    axis = int(attributes(node).get("axis", 0)) % len(axes)
    source = r.v.along(name, axes)
    sizes = [r.shape(o)[axis] for o in node.output]
    operands = [
        source,
        r.v.constant(np.array(sizes, np.int32), name="sizes"),
        r.v.constant(np.array(axes.index(axis), np.int32), name="axis"),
    ]
    t = r.v.type(source)
    outputs = [r.v.add(o, TensorType(take(r.shape(o), axes), t.dtype, t.quantization)) for o in node.output]
    r.v.emit("SPLIT_V", operands, outputs, {"num_splits": len(outputs)}, name=node.name)
    for output, index in zip(node.output, outputs, strict=True):
        r.v.hold(output, index, axes)


def slice_(r: Reader, node: Any) -> None:
    """Slice with constant bounds."""
    name, out = node.input[0], node.output[0]
    axes = _prepare(r, name)
    shape = r.shape(name)
    given = [r.constant(n, "a bound").reshape(-1).tolist() if n else None for n in [*node.input[1:], "", ""][:4]]
    starts, ends = given[0], given[1]
    assert starts is not None and ends is not None
    over = given[2] if given[2] is not None else range(len(starts))
    steps = given[3] if given[3] is not None else [1] * len(starts)
    begin, end, step = [0] * len(shape), list(shape), [1] * len(shape)
    chosen: dict[int, NDArray] = {}
    for axis, first, last, by in zip(over, starts, ends, steps, strict=True):
        which, size = int(axis) % len(shape), shape[int(axis)]
        bounds = slice(int(first), int(last), int(by)).indices(size)
        if by < 0:
            chosen[which] = np.arange(*_backwards(int(first), int(last), size), int(by))
        else:
            begin[which], end[which], step[which] = bounds
    if chosen:
        chosen |= {a: np.arange(begin[a], end[a], step[a]) for a in range(len(shape)) if a not in chosen}
        _select(r, node, name, out, chosen)
        return
    source = r.v.along(name, axes)
    operands = [source, *(r.v.constant(np.array(take(v, axes), np.int32), name="bounds") for v in (begin, end, step))]
    masks = dict.fromkeys(("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask"), 0)
    _moved(r, node, out, "STRIDED_SLICE", operands, source, axes, **masks, offset=False)


def _backwards(first: int, last: int, size: int) -> tuple[int, int]:
    """Bounds of a slice with a step below 0 as ONNX limits them."""
    first = first + size if first < 0 else first
    last = last + size if last < 0 else last
    return min(max(first, 0), size - 1), min(max(last, -1), size - 1)


def _select(r: Reader, node: Any, name: str, out: str, chosen: Mapping[int, NDArray]) -> None:
    """What indices along axes of the file select, one axis after the other."""
    axes = _prepare(r, name)
    source = r.v.along(name, axes)
    size = r.shape(name)
    changed = {a: i for a, i in chosen.items() if not np.array_equal(i, np.arange(size[a]))}
    if not changed:
        r.v.hold(out, r.v.renamed(source, r.v.type(source), out), axes)
        return
    for place, (axis, indices) in enumerate(changed.items(), 1):
        at, t = axes.index(axis), r.v.type(source)
        shape = (*t.shape[:at], len(indices), *t.shape[at + 1 :])
        target = r.v.add(out if place == len(changed) else f"{out} (axis {axis})", dataclasses.replace(t, shape=shape))
        operands = [source, r.v.constant(indices.astype(np.int32), name="indices")]
        r.v.emit("GATHER", operands, [target], {"axis": at, "batch_dims": 0}, name=node.name or out)
        source = target
    r.v.hold(out, source, axes)


def pad(r: Reader, node: Any) -> None:
    """Pad: of a dequantized tensor in integers, if the padding is one of its values."""
    chain = r.lazy.get(node.input[0])
    if not isinstance(chain, Chain) or chain.nodes:
        _pad(r, node)
        return
    value = r.scalar(node.input[2], "its value") if len(node.input) > 2 and node.input[2] else 0
    info = np.iinfo(chain.dtype)
    scaled = np.clip(np.rint(np.float32(value) / chain.scale) + chain.zero_point, info.min, info.max)
    whole = 0 if np.isnan(scaled) else int(scaled)
    if np.float32(whole - chain.zero_point) * chain.scale != np.float32(value):
        _pad(r, node)
        return
    inner = type(node)()
    inner.CopyFrom(node)
    name = f"{node.output[0]} (padding)"
    r.v.constants[name] = np.array(whole, chain.dtype)
    r.v.shapes[name], r.dtypes[name] = (), chain.dtype
    inner.input[:] = [*node.input[:2], name, *node.input[3:]]
    keeps_values(_pad)(r, inner)


def _pad(r: Reader, node: Any) -> None:
    """Pad with a constant, or with what the operand has."""
    name, out = node.input[0], node.output[0]
    axes = _prepare(r, name)
    mode = attributes(node).get("mode", b"constant").decode()
    rank = len(r.shape(name))
    widths = r.constant(node.input[1], "its widths").reshape(-1).tolist()
    over = list(range(rank))
    if len(node.input) > 3 and node.input[3]:
        over = [int(v) % rank for v in r.constant(node.input[3], "its axes").reshape(-1)]
    pairs = [[0, 0] for _ in range(rank)]
    for axis, before, after in zip(over, widths[: len(over)], widths[len(over) :], strict=True):
        pairs[axis] = [int(before), int(after)]
    if min(min(p) for p in pairs) < 0:
        raise Refusal(f"widths {pairs}; slice instead of padding with less than 0")
    if mode in _INDEXED:
        size = r.shape(name)
        places = {
            a: _INDEXED[mode](np.arange(-first, size[a] + last), size[a]) for a, (first, last) in enumerate(pairs)
        }
        _select(r, node, name, out, places)
        return
    source = r.v.along(name, axes)
    operands = [source, r.v.constant(np.array([pairs[a] for a in axes], np.int32), name="widths")]
    if mode == "reflect":
        _moved(r, node, out, "MIRROR_PAD", operands, source, axes, mode="REFLECT")
        return
    t = r.v.type(source)
    value = 0 if len(node.input) < 3 or not node.input[2] else r.scalar(node.input[2], "its value")
    if t.quantization is not None and r.dtypes.get(name) == UINT8:
        value = int(value) - RECENTRED
    same = t.quantization is not None and value == t.quantization.zero_point
    if same or (t.quantization is None and value == 0):
        _moved(r, node, out, "PAD", operands, source, axes)
        return
    operands.append(r.v.constant(np.array(value, t.dtype), t.quantization, name="value"))
    _moved(r, node, out, "PADV2", operands, source, axes)


_INDEXED: Mapping[str, Callable[[NDArray, int], NDArray]] = {
    "edge": lambda at, size: np.clip(at, 0, size - 1),
    "wrap": lambda at, size: at % size,
}
"""Which values of the operand lie in the padding"""


def gather(r: Reader, node: Any) -> None:
    """Gather along an axis."""
    name, out = node.input[0], node.output[0]
    r.force(name)
    shape = r.shape(name)
    axis = int(attributes(node).get("axis", 0)) % len(shape)
    indices = r.v.constants.get(node.input[1])
    if indices is None:
        r.force(node.input[1])
        source = r.v.plain(name)
        t = dataclasses.replace(r.v.type(source), shape=r.shape(out))
        places = [source, r.v.plain(node.input[1])]
        r.emit(node, out, "GATHER", places, t, range(len(t.shape)), {"axis": axis}, "onnx")
        return
    indices = np.where(indices < 0, indices + shape[axis], indices).astype(np.int32)
    axes = _prepare(r, name) if indices.ndim < 2 else tuple(range(len(shape)))
    operands = [r.v.along(name, axes), r.v.constant(indices, name="indices")]
    # Of the axis one index is nothing left, of many indices as many axes.
    kept = axes if indices.ndim else tuple(a - (a > axis) for a in axes if a != axis)
    if indices.ndim > 1:
        kept = tuple(range(len(r.shape(out))))
    _moved(r, node, out, "GATHER", operands, operands[0], kept, axis=axes.index(axis), batch_dims=0)


def expand(r: Reader, node: Any) -> None:
    """Expand to a constant shape."""
    name, out = node.input[0], node.output[0]
    r.force(name)
    source = r.v.plain(name)
    shape = r.v.constant(np.array(r.shape(out), np.int32), name="shape")
    _moved(r, node, out, "BROADCAST_TO", [source, shape], source, tuple(range(len(r.shape(out)))))


def tile(r: Reader, node: Any) -> None:
    """Tile, so many times along each axis."""
    name, out = node.input[0], node.output[0]
    axes = _prepare(r, name)
    times = r.constant(node.input[1], "its repeats").reshape(-1).tolist()
    source = r.v.along(name, axes)
    operands = [source, r.v.constant(np.array(take(times, axes), np.int32), name="times")]
    _moved(r, node, out, "TILE", operands, source, axes)


def depth_to_space(r: Reader, node: Any) -> None:
    """DepthToSpace; PyTorch's order of channels (CRD) is brought into the other first."""
    name, out = node.input[0], node.output[0]
    r.force(name)
    a = attributes(node)
    block = int(a["blocksize"])
    source = r.v.image(name)
    t = r.v.type(source)
    if a.get("mode", b"DCR") == b"CRD":
        channels = np.arange(t.shape[3]).reshape(-1, block * block).T.reshape(-1).astype(np.int32)
        ordered = r.v.add(f"{out} (channels)", t)
        indices = r.v.constant(channels, name="channels")
        r.v.emit("GATHER", [source, indices], [ordered], {"axis": 3, "batch_dims": 0})
        source = ordered
    _image(r, node, out, "DEPTH_TO_SPACE", source, block_size=block)


def space_to_depth(r: Reader, node: Any) -> None:
    """SpaceToDepth; the other order of channels (CRD) is made of the usual one."""
    r.force(node.input[0])
    a, out = attributes(node), node.output[0]
    block = int(a["blocksize"])
    _image(r, node, out, "SPACE_TO_DEPTH", r.v.image(node.input[0]), block_size=block)
    if a.get("mode", b"DCR") == b"CRD":
        made = r.v.image(out)
        t = r.v.type(made)
        channels = np.arange(t.shape[3]).reshape(block * block, -1).T.reshape(-1).astype(np.int32)
        ordered = r.v.add(f"{out} (channels)", t)
        indices = r.v.constant(channels, name="channels")
        r.v.emit("GATHER", [made, indices], [ordered], {"axis": 3, "batch_dims": 0})
        r.v.hold(out, ordered, channels_last(4))


def _image(r: Reader, node: Any, out: str, kind: str, source: int, **options: Any) -> None:
    t = r.v.type(source)
    shape = image_shape(r.shape(out))
    target = r.emit(node, out, kind, [source], TensorType(shape, t.dtype, t.quantization), None, options, "tflite")
    r.v.hold(out, target, channels_last(4))


def arg_extremum(kind: str) -> Callable[[Reader, Any], None]:
    """ArgMax, ArgMin: the first of equals."""

    def read(r: Reader, node: Any) -> None:
        name, out = node.input[0], node.output[0]
        a = attributes(node)
        if a.get("select_last_index"):
            raise Refusal("select_last_index; the first of equal values is supported")
        axes = _prepare(r, name)
        axis = int(a.get("axis", 0)) % len(axes)
        source = r.v.along(name, axes)
        shape = r.v.type(source).shape
        at = axes.index(axis)
        reduced = (*shape[:at], *shape[at + 1 :])
        index = r.v.add(out, TensorType(reduced, "int64"))
        place = r.v.constant(np.array(at, np.int32), name="axis")
        r.v.emit(kind, [source, place], [index], {"output_type": "INT64"}, name=node.name or out)
        kept = (*shape[:at], 1, *shape[at + 1 :])
        index = r.v.reshaped(index, kept) if a.get("keepdims", 1) else index
        if a.get("keepdims", 1):
            r.v.hold(out, index, axes)
        else:
            rest = [x for x in axes if x != axis]
            r.v.hold(out, index, tuple(x - (x > axis) for x in rest))

    return read


def reduce(
    r: Reader,
    node: Any,
    kind: str,
    over: Sequence[int],
    keep: bool,
    rounding: str,
    quantized: tuple[str, np.float32, int] | None = None,
) -> None:
    """A reduction along axes of the file."""
    name, out = node.input[0], node.output[0]
    axes = _prepare(r, name)
    source = r.v.along(name, axes)
    t = r.v.type(source)
    shape = tuple(1 if axes[i] in over else n for i, n in enumerate(t.shape))
    places = r.v.constant(np.array(sorted(axes.index(a) for a in over), np.int32), name="axes")
    held: Axes = axes
    if not keep:
        rest = [a for a in axes if a not in over]
        held = tuple(a - sum(x < a for x in over) for a in rest)
        shape = tuple(n for i, n in enumerate(t.shape) if axes[i] not in over)
    made = TensorType(shape, t.dtype, t.quantization) if quantized is None else r.quantized_type(shape, *quantized)
    r.emit(node, out, kind, [source, places], made, held, {"keep_dims": keep}, rounding)


OPERATORS: dict[str, Callable[[Reader, Any], None]] = {
    "ArgMax": keeps_values(arg_extremum("ARG_MAX")),
    "ArgMin": keeps_values(arg_extremum("ARG_MIN")),
    "Concat": concat,
    "DepthToSpace": keeps_values(depth_to_space),
    "Expand": keeps_values(expand),
    "Flatten": keeps_values(reshape),
    "Gather": keeps_values(gather),
    "Pad": pad,
    "QLinearConcat": qlinear_concat,
    "Reshape": keeps_values(reshape),
    "Slice": keeps_values(slice_),
    "SpaceToDepth": keeps_values(space_to_depth),
    "Split": keeps_values(split),
    "Squeeze": keeps_values(reshape),
    "Tile": keeps_values(tile),
    "Transpose": keeps_values(transpose),
    "Unsqueeze": keeps_values(reshape),
}
