"""Operators that move or order values, or make them up: any type, and no change of quantization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dtypes import UINT8
from ..operation import Operation, Quantization
from .support import check_axis, operand, parameters, refuse, refuse_values, round_half_away, to_int32, type_name

__all__ = [
    "batch_to_space_nd",
    "broadcast_args",
    "broadcast_to",
    "concatenation",
    "cumsum",
    "densify",
    "depth_to_space",
    "dilate",
    "dynamic_update_slice",
    "embedding_lookup",
    "expand_dims",
    "fill",
    "gather",
    "gather_nd",
    "matrix_diag",
    "matrix_set_diag",
    "mirror_pad",
    "one_hot",
    "pack",
    "pad",
    "padv2",
    "range_",
    "rank",
    "rescaled_uint8",
    "reshape",
    "reverse_sequence",
    "reverse_v2",
    "scatter_nd",
    "segment_sum",
    "shape",
    "slice_",
    "space_to_batch_nd",
    "space_to_depth",
    "sparse_to_dense",
    "split",
    "split_v",
    "squeeze",
    "strided_index",
    "strided_slice",
    "tile",
    "topk_v2",
    "transpose",
    "unpack",
    "zeros_like",
]


def _integers(op: Operation, inputs: Sequence[NDArray | None], index: int) -> list[int]:
    return [int(v) for v in operand(op, inputs, index).reshape(-1)]


def _scalar(op: Operation, inputs: Sequence[NDArray | None], index: int) -> int:
    values = _integers(op, inputs, index)
    if len(values) != 1:
        refuse(op, f"{len(values)} values as operand {index}")
    return values[0]


def reshape(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """The same values in the output's shape."""
    return [operand(op, inputs, 0).reshape(op.outputs[0].shape)]


squeeze = expand_dims = reshape


def shape(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """The operand's shape."""
    return [np.array(operand(op, inputs, 0).shape)]


def transpose(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Axes in the order of operand 1."""
    x = operand(op, inputs, 0)
    return [x.transpose([check_axis(op, a, x.ndim) for a in _integers(op, inputs, 1)])]


def concatenation(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Operands one after the other along an axis; uint8 operands are rescaled to the output's quantization."""
    if op.options.get("activation", "NONE") != "NONE":
        refuse(op, f"fused activation {op.options['activation']}")
    values = [_rescaled_uint8(op, inputs, i) for i in range(len(inputs))]
    return [np.concatenate(values, axis=check_axis(op, op.options["axis"], len(op.outputs[0].shape)))]


def _rescaled_uint8(op: Operation, inputs: Sequence[NDArray | None], index: int) -> NDArray:
    x, t, out = operand(op, inputs, index), op.inputs[index], op.outputs[0]
    assert t
    if t.quantization == out.quantization or t.quantization is None or out.quantization is None:
        return x
    q_in, q_out = parameters(op, t), parameters(op, out)
    if (q_in.scale, q_in.zero_point) == (q_out.scale, q_out.zero_point):
        return x
    if t.dtype != UINT8:
        refuse(op, f"{t.dtype} operands of several quantizations")
    return rescaled_uint8(x, q_in, q_out)


def rescaled_uint8(x: NDArray, q_in: Quantization, q_out: Quantization) -> NDArray[np.uint8]:
    """Values of 0 to 255 in another quantization, as CONCATENATION rescales them: in float32."""
    scale = np.float32(q_in.scale) * (np.float32(1) / np.float32(q_out.scale))
    bias = np.float32(-q_in.zero_point) * scale
    value = to_int32(round_half_away(x.astype(np.float32) * scale + bias)) + q_out.zero_point
    return np.clip(value, 0, 255).astype(np.uint8)


def pad(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Zeros around the operand: operand 1 has [before, after] for each axis."""
    q = op.outputs[0].quantization
    return [_padded(op, inputs, 0 if q is None else parameters(op, op.outputs[0]).zero_point)]


def padv2(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """As PAD, with the value of operand 2."""
    return [_padded(op, inputs, operand(op, inputs, 2).reshape(()))]


def _padded(op: Operation, inputs: Sequence[NDArray | None], value: int | NDArray) -> NDArray:
    widths = operand(op, inputs, 1).astype(np.int64)
    if widths.min(initial=0) < 0:
        refuse(op, "negative padding")
    return np.pad(operand(op, inputs, 0), widths, constant_values=value)


def mirror_pad(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Mirror images around the operand, with its edge (SYMMETRIC) or without (REFLECT)."""
    x, widths = operand(op, inputs, 0), operand(op, inputs, 1).astype(np.int64)
    if op.options["mode"] == "REFLECT":
        return [np.pad(x, widths, mode="reflect")]
    return [np.pad(x, widths, mode="symmetric")]


def slice_(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """From the indices of operand 1, of the output's shape."""
    x = operand(op, inputs, 0)
    begin = _integers(op, inputs, 1)
    return [x[tuple(slice(b, b + n) for b, n in zip(begin, op.outputs[0].shape, strict=True))]]


def strided_slice(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """NumPy's basic indexing: operands 1 to 3 are begin, end and stride, with bit masks for special entries."""
    x = operand(op, inputs, 0)
    index = strided_index(op.options, x.ndim, *(_integers(op, inputs, i) for i in (1, 2, 3)))
    return [x[index].reshape(op.outputs[0].shape)]


def strided_index(
    options: Mapping[str, Any], rank: int, begins: Sequence[int], ends: Sequence[int], strides: Sequence[int]
) -> tuple[slice | int | None, ...]:
    """NumPy's index for a STRIDED_SLICE of an operand of `rank` dimensions."""
    masks = {name: options[f"{name}_mask"] for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")}
    index: list[slice | int | None] = []
    axis = 0
    for i, (begin, end, stride) in enumerate(zip(begins, ends, strides, strict=True)):
        bit = 1 << i
        if masks["ellipsis"] & bit:
            later = range(i + 1, len(begins))
            rest = sum(not masks["new_axis"] & 1 << j for j in later)
            index += [slice(None)] * (rank - axis - rest)
            axis = rank - rest
        elif masks["new_axis"] & bit:
            index.append(None)
        elif masks["shrink_axis"] & bit:
            index.append(0 if masks["begin"] & bit else begin)
            axis += 1
        else:
            if options.get("offset"):
                end = begin + end
            low, high = (None if masks[k] & bit else v for k, v in (("begin", begin), ("end", end)))
            index.append(slice(low, high, stride))
            axis += 1
    return tuple(index)


def split(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Equal parts along the axis of operand 0 of operand 1."""
    x = operand(op, inputs, 1)
    return np.split(x, len(op.outputs), axis=check_axis(op, _scalar(op, inputs, 0), x.ndim))


def split_v(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Parts of the sizes of operand 1, of which one may be -1, along the axis of operand 2."""
    x, sizes = operand(op, inputs, 0), _integers(op, inputs, 1)
    axis = check_axis(op, _scalar(op, inputs, 2), x.ndim)
    if -1 in sizes:
        sizes[sizes.index(-1)] = x.shape[axis] - (sum(sizes) + 1)
    return np.split(x, np.cumsum(sizes)[:-1], axis=axis)


def pack(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Operands along a new axis."""
    values = [operand(op, inputs, i) for i in range(len(inputs))]
    return [np.stack(values, axis=check_axis(op, op.options["axis"], values[0].ndim + 1))]


def unpack(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """The parts along an axis, without it."""
    x = operand(op, inputs, 0)
    return list(np.moveaxis(x, check_axis(op, op.options["axis"], x.ndim), 0))


def gather(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """The parts along an axis that operand 1 lists; the first `batch_dims` axes are shared."""
    x, index = operand(op, inputs, 0), operand(op, inputs, 1).astype(np.int64)
    axis = check_axis(op, op.options["axis"], x.ndim)
    batch = op.options.get("batch_dims", 0)
    batch = batch + index.ndim if batch < 0 else batch
    if index.size and (index.min() < 0 or index.max() >= x.shape[axis]):
        refuse_values(op, f"index beyond the {x.shape[axis]} of axis {axis}")
    if not batch:
        return [np.take(x, index, axis=axis)]
    flat = x.reshape(-1, *x.shape[batch:])
    rows = index.reshape(-1, *index.shape[batch:])
    parts = [np.take(v, i, axis=axis - batch) for v, i in zip(flat, rows, strict=True)]
    return [np.stack(parts).reshape(op.outputs[0].shape)]


def space_to_batch_nd(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Blocks of the padded operand to the batch: operand 1 is the block's shape, operand 2 the padding."""
    x, block = operand(op, inputs, 0), _integers(op, inputs, 1)
    q = op.outputs[0].quantization
    zero = 0 if q is None else parameters(op, op.outputs[0]).zero_point
    n, last = len(block), x.ndim - len(block) - 1
    widths = [(0, 0), *operand(op, inputs, 2).tolist(), *[(0, 0)] * last]
    x = np.pad(x, widths, constant_values=zero)
    split_shape = [x.shape[0]]
    for size, b in zip(x.shape[1 : n + 1], block, strict=True):
        split_shape += [size // b, b]
    x = x.reshape(*split_shape, *x.shape[n + 1 :])
    order = [*range(2, 2 * n + 1, 2), 0, *range(1, 2 * n + 1, 2), *range(2 * n + 1, x.ndim)]
    return [x.transpose(order).reshape(op.outputs[0].shape)]


def batch_to_space_nd(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Inverse of SPACE_TO_BATCH_ND; operand 2 is cropped."""
    x, block = operand(op, inputs, 0), _integers(op, inputs, 1)
    n = len(block)
    batch = x.shape[0] // int(np.prod(block))
    x = x.reshape(*block, batch, *x.shape[1:])
    order = [n]
    for i in range(n):
        order += [n + 1 + i, i]
    x = x.transpose(*order, *range(2 * n + 1, x.ndim))
    sizes = [x.shape[1 + 2 * i] * block[i] for i in range(n)]
    x = x.reshape(batch, *sizes, *x.shape[2 * n + 1 :])
    crops = operand(op, inputs, 2).tolist()
    return [x[(slice(None), *(slice(a, size - b) for (a, b), size in zip(crops, sizes, strict=True)))]]


def space_to_depth(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Blocks of rows and columns to channels."""
    x, b = operand(op, inputs, 0), op.options["block_size"]
    n, rows, columns, channels = x.shape
    x = x.reshape(n, rows // b, b, columns // b, b, channels).transpose(0, 1, 3, 2, 4, 5)
    return [x.reshape(op.outputs[0].shape)]


def densify(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """The operand as it is: sparse constants are dense when they are read."""
    return [operand(op, inputs, 0)]


def depth_to_space(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Inverse of SPACE_TO_DEPTH."""
    x, b = operand(op, inputs, 0), op.options["block_size"]
    n, rows, columns, channels = x.shape
    x = x.reshape(n, rows, columns, b, b, channels // (b * b)).transpose(0, 1, 3, 2, 4, 5)
    return [x.reshape(op.outputs[0].shape)]


def fill(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """The value of operand 1 in the shape of operand 0."""
    return [np.full(op.outputs[0].shape, operand(op, inputs, 1).reshape(()))]


def range_(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """From operand 0 in steps of operand 2."""
    start, _, step = (operand(op, inputs, i).reshape(()) for i in range(3))
    count = op.outputs[0].elements
    if start.dtype != np.float32:
        return [start + np.arange(count).astype(start.dtype) * step]
    return [np.add.accumulate(np.append(start, np.full(count, step, np.float32)), dtype=np.float32)[:count]]


def rank(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Number of dimensions."""
    return [np.array(operand(op, inputs, 0).ndim)]


def zeros_like(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Zeros in the operand's shape."""
    return [np.zeros_like(operand(op, inputs, 0))]


def tile(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """The operand repeated along each axis."""
    return [np.tile(operand(op, inputs, 0), _integers(op, inputs, 1))]


def dilate(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """The operand's elements at distances of operand 1 along each axis, with the value of operand 2 in between."""
    x, steps = operand(op, inputs, 0), _integers(op, inputs, 1)
    if min(steps, default=1) < 1:
        refuse(op, f"distances {steps}")
    shape = [(n - 1) * step + 1 for n, step in zip(x.shape, steps, strict=True)]
    result = np.full(shape, operand(op, inputs, 2).reshape(()), x.dtype)
    result[tuple(slice(None, None, step) for step in steps)] = x
    return [result]


def broadcast_to(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """The operand in the shape of operand 1."""
    return [np.broadcast_to(operand(op, inputs, 0), op.outputs[0].shape)]


def reverse_v2(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """The axes of operand 1 in reverse order."""
    x = operand(op, inputs, 0)
    return [np.flip(x, tuple(check_axis(op, a, x.ndim) for a in _integers(op, inputs, 1)))]


def topk_v2(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """The greatest values of the last axis and their indices, the lower index first of equals."""
    x = operand(op, inputs, 0)
    count = op.outputs[0].shape[-1]
    order = np.argsort(x[..., ::-1], axis=-1, kind="stable")[..., ::-1]
    index = x.shape[-1] - 1 - order[..., :count]
    return [np.take_along_axis(x, index, axis=-1), index]


def one_hot(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """The value of operand 2 at the indices of operand 0 along a new axis, elsewhere that of operand 3."""
    index, depth = operand(op, inputs, 0), _scalar(op, inputs, 1)
    on, off = (operand(op, inputs, i).reshape(()) for i in (2, 3))
    hits = np.expand_dims(index, -1) == np.arange(depth)
    axis = check_axis(op, op.options["axis"], index.ndim + 1)
    return [np.moveaxis(np.where(hits, on, off), -1, axis)]


def gather_nd(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """The parts at the positions along the last axis of operand 1."""
    x, index = operand(op, inputs, 0), operand(op, inputs, 1).astype(np.int64)
    sizes = x.shape[: index.shape[-1]]
    if index.size and (index.min() < 0 or (index >= np.array(sizes)).any()):
        refuse_values(op, f"index beyond {sizes}")
    return [x[tuple(np.moveaxis(index, -1, 0))]]


def cumsum(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Sums up to each index along the axis of operand 1; wraps."""
    x = operand(op, inputs, 0)
    axis = check_axis(op, _scalar(op, inputs, 1), x.ndim)
    x = np.flip(x, axis) if op.options.get("reverse") else x
    total = np.cumsum(x, axis=axis, dtype=x.dtype)
    if op.options.get("exclusive"):
        total = np.roll(total, 1, axis=axis)
        total[(slice(None),) * axis + (0,)] = 0
    return [np.flip(total, axis) if op.options.get("reverse") else total]


def broadcast_args(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """The shape to which two shapes broadcast."""
    return [np.array(np.broadcast_shapes(tuple(_integers(op, inputs, 0)), tuple(_integers(op, inputs, 1))))]


def embedding_lookup(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """The rows of operand 1 that operand 0 lists."""
    index, table = operand(op, inputs, 0), operand(op, inputs, 1)
    if table.dtype.name != op.outputs[0].dtype:
        refuse(op, f"{type_name(op.inputs[1])} to {op.outputs[0].dtype}")
    if index.size and (index.min() < 0 or index.max() >= table.shape[0]):
        refuse_values(op, f"index beyond {table.shape[0]} rows")
    return [table[index]]


def reverse_sequence(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """The first elements along `seq_dim` in reverse order, as many for each index of `batch_dim` as operand 1 says."""
    x, lengths = operand(op, inputs, 0), operand(op, inputs, 1).astype(np.int64)
    sequence, batch = (check_axis(op, op.options[name], x.ndim) for name in ("seq_dim", "batch_dim"))
    at = np.arange(x.shape[sequence])
    index = np.where(at < lengths[:, None], lengths[:, None] - 1 - at, at)
    shape = [1] * x.ndim
    shape[batch], shape[sequence] = index.shape
    index = (index if batch < sequence else index.T).reshape(shape)
    return [np.take_along_axis(x, index, axis=sequence)]


def scatter_nd(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Zeros, with the values of operand 1 added at the positions along the last axis of operand 0."""
    index, values = operand(op, inputs, 0).astype(np.int64), operand(op, inputs, 1)
    result = np.zeros(op.outputs[0].shape, values.dtype)
    if index.size and (index.min() < 0 or (index >= np.array(result.shape[: index.shape[-1]])).any()):
        refuse_values(op, f"index beyond {result.shape}")
    np.add.at(result, tuple(np.moveaxis(index, -1, 0)), values)
    return [result]


def sparse_to_dense(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """The default (operand 3), with the values of operand 2 at the positions of operand 0."""
    index, values = operand(op, inputs, 0).astype(np.int64), operand(op, inputs, 2)
    result = np.full(op.outputs[0].shape, operand(op, inputs, 3).reshape(()))
    result[tuple(index.reshape(-1, result.ndim).T)] = values
    return [result]


def matrix_diag(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Square matrices with the last axis as diagonal."""
    x = operand(op, inputs, 0)
    return [np.where(np.eye(x.shape[-1], dtype=bool), x[..., None], x.dtype.type(0))]


def matrix_set_diag(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Matrices with another diagonal."""
    result = operand(op, inputs, 0).copy()
    at = np.arange(min(result.shape[-2:]))
    result[..., at, at] = operand(op, inputs, 1)
    return [result]


def dynamic_update_slice(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """The operand with operand 1 in place from the indices of operand 2, moved to where it fits."""
    result, update = operand(op, inputs, 0).copy(), operand(op, inputs, 1)
    begin = [
        min(max(b, 0), n - m) for b, n, m in zip(_integers(op, inputs, 2), result.shape, update.shape, strict=True)
    ]
    result[tuple(slice(b, b + m) for b, m in zip(begin, update.shape, strict=True))] = update
    return [result]


def segment_sum(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Sums of the parts along the first axis that have one number in operand 1."""
    x = operand(op, inputs, 0)
    result = np.zeros(op.outputs[0].shape, x.dtype)
    np.add.at(result, operand(op, inputs, 1), x)
    return [result]
