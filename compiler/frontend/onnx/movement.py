"""Operators that move values: the same bytes in another order or shape, parts of them, and reductions along axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nnloom.arch.dtypes import RECENTRED, UINT8
from nnloom.arch.operation import TensorType

from .order import Axes, channels_last, inverse, take
from .support import attributes
from .values import image_shape

if TYPE_CHECKING:
    from .reader import Reader

__all__ = ["OPERATORS", "reduce"]


def _refusal(text: str) -> Exception:
    from .reader import Refusal

    return Refusal(text)


def _prepare(r: Reader, name: str) -> Axes:
    """Have an operand computed; the order in which it has its axes."""
    r.force(name)
    if name in r.v.constants:
        return tuple(range(len(r.shape(name))))
    return r.v.axes(name) or tuple(range(len(r.shape(name))))


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
    out = node.output[0]
    _join(r, node, list(node.input), out, None)


def qlinear_concat(r: Reader, node: Any) -> None:
    """QLinearConcat: what has another quantization is quantized anew."""
    out = node.output[0]
    value, zero = r.scale_of(node.input[0], node.input[1])
    dtype = r.dtypes[node.input[1]]
    names = []
    for place in range(2, len(node.input), 3):
        name, scale, zero_point = node.input[place : place + 3]
        source = r.integer(name, *r.scale_of(scale, zero_point))
        names.append(name)
        t = r.quantized_type(r.v.type(source).shape, dtype, value, zero)
        if r.v.type(source) != t:
            _requantized(r, name, source, t, f"{out} ({name})")
            names[-1] = f"{out} ({name})"
    _join(r, node, names, out, (dtype, value, zero))


def _requantized(r: Reader, name: str, source: int, t: TensorType, into: str) -> None:
    target = r.v.add(into, t)
    r.v.emit("QUANTIZE", [source], [target], rounding="onnx")
    r.v.shapes[into] = r.shape(name)
    if name in r.v.constants:
        r.v.hold(into, target)
        return
    held = r.v.held[name][0]
    r.v.held[into] = [type(held)(target, held.order)]


def _join(r: Reader, node: Any, names: list[str], out: str, quantized: Any) -> None:
    shape = r.shape(out)
    axis = int(attributes(node)["axis"]) % len(shape)
    for name in names:
        r.force(name)
    names = [n for n in names if 0 not in r.shape(n)]
    found = [r.v.axes(n) for n in names if n not in r.v.constants]
    axes = next((a for a in found if a is not None and a != tuple(range(len(shape)))), tuple(range(len(shape))))
    values = [r.v.along(n, axes) for n in names]
    if len({(r.v.type(v).dtype, r.v.type(v).quantization) for v in values}) > 1:
        raise _refusal("operands of several types or quantizations; quantize them with one scale")
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
    """Slice with constant bounds and steps above 0."""
    name, out = node.input[0], node.output[0]
    axes = _prepare(r, name)
    shape = r.shape(name)
    given = [r.constant(n, "a bound").reshape(-1).tolist() if n else None for n in [*node.input[1:], "", ""][:4]]
    starts, ends = given[0], given[1]
    assert starts is not None and ends is not None
    over = given[2] if given[2] is not None else range(len(starts))
    steps = given[3] if given[3] is not None else [1] * len(starts)
    if min(steps) < 1:
        raise _refusal(f"steps {steps}; steps above 0 are supported")
    begin, end, step = [0] * len(shape), list(shape), [1] * len(shape)
    for axis, first, last, by in zip(over, starts, ends, steps, strict=True):
        begin[int(axis)], end[int(axis)], _ = slice(int(first), int(last)).indices(shape[int(axis)])
        step[int(axis)] = int(by)
    source = r.v.along(name, axes)
    operands = [source, *(r.v.constant(np.array(take(v, axes), np.int32), name="bounds") for v in (begin, end, step))]
    masks = dict.fromkeys(("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask"), 0)
    _moved(r, node, out, "STRIDED_SLICE", operands, source, axes, **masks, offset=False)


def pad(r: Reader, node: Any) -> None:
    """Pad with a constant."""
    name, out = node.input[0], node.output[0]
    axes = _prepare(r, name)
    mode = attributes(node).get("mode", b"constant").decode()
    if mode not in ("constant", "reflect"):
        raise _refusal(f"mode {mode}; constant and reflect are supported")
    rank = len(r.shape(name))
    widths = r.constant(node.input[1], "its widths").reshape(-1).tolist()
    over = list(range(rank))
    if len(node.input) > 3 and node.input[3]:
        over = [int(v) % rank for v in r.constant(node.input[3], "its axes").reshape(-1)]
    pairs = [[0, 0] for _ in range(rank)]
    for axis, before, after in zip(over, widths[: len(over)], widths[len(over) :], strict=True):
        pairs[axis] = [int(before), int(after)]
    if min(min(p) for p in pairs) < 0:
        raise _refusal(f"widths {pairs}; slice instead of padding with less than 0")
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


def gather(r: Reader, node: Any) -> None:
    """Gather of constant indices along an axis."""
    name, out = node.input[0], node.output[0]
    r.force(name)
    indices = r.constant(node.input[1], "its indices")
    shape = r.shape(name)
    axis = int(attributes(node).get("axis", 0)) % len(shape)
    indices = np.where(indices < 0, indices + shape[axis], indices).astype(np.int32)
    operands = [r.v.plain(name), r.v.constant(indices, name="indices")]
    plain = tuple(range(len(r.shape(out))))
    _moved(r, node, out, "GATHER", operands, operands[0], plain, axis=axis, batch_dims=0)


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
    """SpaceToDepth."""
    r.force(node.input[0])
    block = int(attributes(node)["blocksize"])
    _image(r, node, node.output[0], "SPACE_TO_DEPTH", r.v.image(node.input[0]), block_size=block)


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
            raise _refusal("select_last_index; the first of equal values is supported")
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
    if quantized is None and rounding == "onnx" and t.quantization is not None:
        raise _refusal("a reduction of quantized values; dequantize them before")
    r.emit(node, out, kind, [source, places], made, held, {"keep_dims": keep}, rounding)


OPERATORS: dict[str, Callable[[Reader, Any], None]] = {
    "ArgMax": arg_extremum("ARG_MAX"),
    "ArgMin": arg_extremum("ARG_MIN"),
    "Concat": concat,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": reshape,
    "Gather": gather,
    "Pad": pad,
    "QLinearConcat": qlinear_concat,
    "Reshape": reshape,
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": reshape,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": reshape,
}
