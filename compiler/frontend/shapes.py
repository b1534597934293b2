"""Shapes of what an operator makes, from its operands: files often hold those of an earlier state of the network.

The rules are those of the `Prepare` functions of LiteRT's kernels. Operators without a rule, and those whose shape
depends on values that are not known, keep the shape that the file states.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.operation import TensorType
from nnloom.arch.reference.data_movement import strided_index
from nnloom.arch.reference.detection import DETECTION_POSTPROCESS, output_shapes

__all__ = ["infer_shapes", "output_size"]

Shape = tuple[int, ...]


class _Unknown(Exception):
    """The shape depends on values that are not known."""


class _Operands:
    """Operands of an operator, and its options as the file states them."""

    def __init__(
        self, types: Sequence[TensorType | None], constants: Sequence[NDArray | None], options: Mapping[str, Any]
    ) -> None:
        self._types, self._constants, self.options = types, constants, options

    def shape(self, index: int) -> Shape:
        t = self._types[index] if index < len(self._types) else None
        if t is None:
            raise _Unknown
        return t.shape

    def shapes(self) -> list[Shape]:
        return [self.shape(i) for i in range(len(self._types))]

    def integers(self, index: int) -> list[int]:
        """The values of a constant operand."""
        data = self._constants[index] if index < len(self._constants) else None
        if data is None or data.dtype.kind not in "iu":
            raise _Unknown
        return [int(v) for v in np.asarray(data).reshape(-1)]


def infer_shapes(
    kind: str,
    types: Sequence[TensorType | None],
    constants: Sequence[NDArray | None],
    options: Mapping[str, Any],
    outputs: int,
) -> list[Shape] | None:
    """Shapes of the outputs of an operator; None where they are not known.

    Parameters
    ----------
    kind, types, options
        The operator, the types of its operands, its options by their names in the schema.
    constants
        The values of operands that are known, None for others.
    outputs
        How many outputs it has.

    Raises
    ------
    ValueError, IndexError, KeyError, ZeroDivisionError
        If operands do not fit the operator.
    """
    rule = _RULES.get(kind)
    if rule is None:
        return None
    try:
        found = rule(_Operands(types, constants, options))
    except _Unknown:
        return None
    shapes = found if isinstance(found, list) else [found]
    return shapes if len(shapes) == outputs else None


def _axis(axis: int, rank: int) -> int:
    result = axis + rank if axis < 0 else axis
    if not 0 <= result < max(rank, 1):
        raise ValueError(f"axis {axis} of {rank} dimensions")
    return result


def _same(x: _Operands) -> Shape:
    return x.shape(0)


def _broadcast(x: _Operands) -> Shape:
    return tuple(np.broadcast_shapes(*x.shapes()))


def output_size(size: int, reach: int, stride: int, same: bool) -> int:
    """Rows or columns of a window's output (TFLite `ComputeOutSize`); reach: of the dilated window."""
    return -(-size // stride) if same else (size + stride - reach) // stride


def _windowed(x: _Operands, window: tuple[int, int], channels: int) -> Shape:
    source, o = x.shape(0), x.options
    if len(source) != 4:
        raise _Unknown  # refused when the options are read
    reach = [(w - 1) * o.get(f"dilation_{a}_factor", 1) + 1 for w, a in zip(window, "hw", strict=True)]
    rows, columns = (
        output_size(source[1 + i], reach[i], o[f"stride_{a}"], o["padding"] == "SAME") for i, a in enumerate("hw")
    )
    return source[0], rows, columns, channels


def _conv_2d(x: _Operands) -> Shape:
    channels, rows, columns, _ = _four(x.shape(1))
    return _windowed(x, (rows, columns), channels)


def _depthwise_conv_2d(x: _Operands) -> Shape:
    _, rows, columns, channels = _four(x.shape(1))
    return _windowed(x, (rows, columns), channels)


def _four(shape: Shape) -> Shape:
    if len(shape) != 4:
        raise _Unknown
    return shape


def _pool(x: _Operands) -> Shape:
    return _windowed(x, (x.options["filter_height"], x.options["filter_width"]), _four(x.shape(0))[3])


def _fully_connected(x: _Operands) -> Shape:
    source, weights = x.shape(0), x.shape(1)
    if len(weights) != 2:
        raise ValueError(f"weights of shape {tuple(weights)}; they must have 2 dimensions")
    units, depth = weights
    if x.options.get("keep_num_dims"):
        return *source[:-1], units
    return math.prod(source) // depth, units


def _batch_matmul(x: _Operands) -> Shape:
    a, b = x.shape(0), x.shape(1)
    rows = a[-1] if x.options.get("adj_x") else a[-2]
    columns = b[-2] if x.options.get("adj_y") else b[-1]
    return *np.broadcast_shapes(a[:-2], b[:-2]), rows, columns


def _reshape(x: _Operands) -> Shape:
    try:
        wanted = x.integers(1)
        if len(x.shape(1)) != 1:
            raise _Unknown
    except _Unknown:
        if len(x._types) > 1:
            raise
        wanted = [int(v) for v in x.options.get("new_shape", ())]
    elements = math.prod(x.shape(0))
    if wanted.count(-1) == 1:
        rest = -math.prod(wanted)
        wanted[wanted.index(-1)] = elements // rest
    if math.prod(wanted) != elements:
        raise _Unknown  # old files hold a 0 for a scalar, among other things
    return tuple(wanted)


def _squeeze(x: _Operands) -> Shape:
    shape = x.shape(0)
    axes = {_axis(a, len(shape)) for a in x.options.get("squeeze_dims", ())}
    axes = axes or {i for i, n in enumerate(shape) if n == 1}
    return tuple(n for i, n in enumerate(shape) if i not in axes)


def _expand_dims(x: _Operands) -> Shape:
    shape = x.shape(0)
    axis = _axis(x.integers(1)[0], len(shape) + 1)
    return *shape[:axis], 1, *shape[axis:]


def _concatenation(x: _Operands) -> Shape:
    shapes = x.shapes()
    axis = _axis(x.options["axis"], len(shapes[0]))
    return *shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1 :]


def _pack(x: _Operands) -> Shape:
    shape, count = x.shape(0), len(x._types)
    axis = _axis(x.options["axis"], len(shape) + 1)
    return *shape[:axis], count, *shape[axis:]


def _unpack(x: _Operands) -> list[Shape]:
    shape = x.shape(0)
    axis = _axis(x.options["axis"], len(shape))
    return [(*shape[:axis], *shape[axis + 1 :])] * shape[axis]


def _split(x: _Operands) -> list[Shape]:
    shape, count = x.shape(1), x.options["num_splits"]
    axis = _axis(x.integers(0)[0], len(shape))
    return [(*shape[:axis], shape[axis] // count, *shape[axis + 1 :])] * count


def _split_v(x: _Operands) -> list[Shape]:
    shape, sizes = x.shape(0), x.integers(1)
    axis = _axis(x.integers(2)[0], len(shape))
    rest = shape[axis] - sum(n for n in sizes if n != -1)
    return [(*shape[:axis], rest if n == -1 else n, *shape[axis + 1 :]) for n in sizes]


def _slice(x: _Operands) -> Shape:
    shape, begin, size = x.shape(0), x.integers(1), x.integers(2)
    return tuple(s - b if n == -1 else n for s, b, n in zip(shape, begin, size, strict=True))


def _strided_slice(x: _Operands) -> Shape:
    shape = x.shape(0)
    index = strided_index(x.options, len(shape), *(x.integers(i) for i in (1, 2, 3)))
    return np.broadcast_to(np.int8(0), shape)[index].shape


def _transpose(x: _Operands) -> Shape:
    return tuple(x.shape(0)[i] for i in x.integers(1))


def _pad(x: _Operands) -> Shape:
    shape, widths = x.shape(0), x.integers(1)
    return tuple(n + before + after for n, before, after in zip(shape, widths[::2], widths[1::2], strict=True))


def _tile(x: _Operands) -> Shape:
    return tuple(n * times for n, times in zip(x.shape(0), x.integers(1), strict=True))


def _gather(x: _Operands) -> Shape:
    shape, indices = x.shape(0), x.shape(1)
    axis = _axis(x.options.get("axis", 0), len(shape))
    batch = x.options.get("batch_dims", 0)
    batch += len(indices) if batch < 0 else 0
    return *shape[:axis], *indices[batch:], *shape[axis + 1 :]


def _gather_nd(x: _Operands) -> Shape:
    shape, indices = x.shape(0), x.shape(1)
    return *indices[:-1], *shape[indices[-1] :]


def _reduce(x: _Operands) -> Shape:
    shape = x.shape(0)
    axes = {_axis(a, len(shape)) for a in x.integers(1)}
    if x.options.get("keep_dims"):
        return tuple(1 if i in axes else n for i, n in enumerate(shape))
    return tuple(n for i, n in enumerate(shape) if i not in axes)


def _arg(x: _Operands) -> Shape:
    shape = x.shape(0)
    axis = _axis(x.integers(1)[0], len(shape))
    return *shape[:axis], *shape[axis + 1 :]


def _resize(x: _Operands) -> Shape:
    batch, _, _, channels = x.shape(0)
    rows, columns = x.integers(1)
    return batch, rows, columns, channels


def _space_to_depth(x: _Operands) -> Shape:
    (batch, rows, columns, channels), b = x.shape(0), x.options["block_size"]
    return batch, rows // b, columns // b, channels * b * b


def _depth_to_space(x: _Operands) -> Shape:
    (batch, rows, columns, channels), b = x.shape(0), x.options["block_size"]
    return batch, rows * b, columns * b, channels // (b * b)


def _space_to_batch_nd(x: _Operands) -> Shape:
    shape, block, pads = x.shape(0), x.integers(1), x.integers(2)
    inner = [(n + sum(pads[2 * i : 2 * i + 2])) // b for i, (n, b) in enumerate(zip(shape[1:], block, strict=False))]
    return shape[0] * math.prod(block), *inner, *shape[1 + len(block) :]


def _batch_to_space_nd(x: _Operands) -> Shape:
    shape, block, crops = x.shape(0), x.integers(1), x.integers(2)
    inner = [n * b - sum(crops[2 * i : 2 * i + 2]) for i, (n, b) in enumerate(zip(shape[1:], block, strict=False))]
    return shape[0] // math.prod(block), *inner, *shape[1 + len(block) :]


def _select(x: _Operands) -> Shape:
    return x.shape(1)


def _by_value(index: int) -> Callable[[_Operands], Shape]:
    """The operand `index` is the shape."""
    return lambda x: tuple(x.integers(index))


def _range(x: _Operands) -> Shape:
    start, limit, step = (x.integers(i)[0] for i in range(3))
    return (len(range(start, limit, step)),)


def _topk(x: _Operands) -> list[Shape]:
    shape = *x.shape(0)[:-1], x.integers(1)[0]
    return [shape, shape]


def _one_hot(x: _Operands) -> Shape:
    shape, depth = x.shape(0), x.integers(1)[0]
    axis = _axis(x.options["axis"], len(shape) + 1)
    return *shape[:axis], depth, *shape[axis:]


def _embedding_lookup(x: _Operands) -> Shape:
    return x.shape(0)[0], *x.shape(1)[1:]


_RULES: dict[str, Callable[[_Operands], Shape | list[Shape]]] = {
    **dict.fromkeys(
        (
            "ABS", "CAST", "CEIL", "COS", "CUMSUM", "DENSIFY", "DEQUANTIZE", "ELU", "EXP", "FLOOR", "GELU",
            "HARD_SWISH", "L2_NORMALIZATION", "LEAKY_RELU", "LOG", "LOGICAL_NOT", "LOGISTIC", "LOG_SOFTMAX", "NEG",
            "PRELU", "QUANTIZE", "RELU", "RELU6", "RELU_0_TO_1", "RELU_N1_TO_1", "REVERSE_SEQUENCE", "REVERSE_V2",
            "ROUND", "RSQRT", "SIGN", "SIN", "SOFTMAX", "SQRT", "SQUARE", "TANH", "ZEROS_LIKE",
        ),
        _same,
    ),
    **dict.fromkeys(
        (
            "ADD", "DIV", "EQUAL", "FLOOR_DIV", "FLOOR_MOD", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL",
            "LOGICAL_AND", "LOGICAL_OR", "MAXIMUM", "MINIMUM", "MUL", "NOT_EQUAL", "POW", "SELECT_V2",
            "SQUARED_DIFFERENCE", "SUB",
        ),
        _broadcast,
    ),
    **dict.fromkeys(
        ("MEAN", "SUM", "REDUCE_ALL", "REDUCE_ANY", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD"), _reduce
    ),
    "ARG_MAX": _arg,
    "ARG_MIN": _arg,
    "AVERAGE_POOL_2D": _pool,
    "BATCH_MATMUL": _batch_matmul,
    "BATCH_TO_SPACE_ND": _batch_to_space_nd,
    "BROADCAST_TO": _by_value(1),
    "CONCATENATION": _concatenation,
    "CONV_2D": _conv_2d,
    "DEPTHWISE_CONV_2D": _depthwise_conv_2d,
    "DEPTH_TO_SPACE": _depth_to_space,
    "EMBEDDING_LOOKUP": _embedding_lookup,
    "EXPAND_DIMS": _expand_dims,
    "FILL": _by_value(0),
    "FULLY_CONNECTED": _fully_connected,
    "GATHER": _gather,
    "GATHER_ND": _gather_nd,
    "L2_POOL_2D": _pool,
    "MAX_POOL_2D": _pool,
    "MIRROR_PAD": _pad,
    "ONE_HOT": _one_hot,
    "PACK": _pack,
    "PAD": _pad,
    "PADV2": _pad,
    "RANGE": _range,
    "RANK": lambda x: (),
    "RESHAPE": _reshape,
    "RESIZE_BILINEAR": _resize,
    "RESIZE_NEAREST_NEIGHBOR": _resize,
    "SELECT": _select,
    "SHAPE": lambda x: (len(x.shape(0)),),
    "SLICE": _slice,
    "SPACE_TO_BATCH_ND": _space_to_batch_nd,
    "SPACE_TO_DEPTH": _space_to_depth,
    "SPLIT": _split,
    "SPLIT_V": _split_v,
    "SQUEEZE": _squeeze,
    "STRIDED_SLICE": _strided_slice,
    DETECTION_POSTPROCESS: lambda x: list(output_shapes(dict(x.options))),
    "TILE": _tile,
    "TOPK_V2": _topk,
    "TRANSPOSE": _transpose,
    "TRANSPOSE_CONV": _by_value(0),
    "UNPACK": _unpack,
}  # fmt: skip
