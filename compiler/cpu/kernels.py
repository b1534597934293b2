"""Scheduled kernels of the operators that take the time: convolution, depthwise convolution, fully connected, pooling
and addition.

Sums of products are accumulated in float32 where they are exact in it: products of int8 are integers, and so is every
partial sum, so a sum whose absolute terms (bound by the weights) stay below 2**24 is the same in any order. Float32 has
a fused multiply-add on every vector unit; int32 has not. Other sums are accumulated in int32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.cpu_target import CpuTarget
from nnloom.arch.dtypes import INT8, UINT8
from nnloom.arch.numerics import ADD_LEFT_SHIFT

from .operator import KernelOp
from .requantize import clamp, factors, requantize, requantize_small, scale, split_factor

if TYPE_CHECKING:
    import tvm

__all__ = ["Kernel", "kernel_of"]

EXACT_FLOAT = 1 << 24
"""Every integer up to this magnitude is a float32."""
SMALL = 1 << 30
"""Accumulators below this are requantized without 64-bit additions after the product."""


@dataclass(frozen=True)
class Kernel:
    """A scheduled function and its constants."""

    name: str
    function: tvm.tirx.PrimFunc
    constants: tuple[NDArray, ...]
    """arguments after the operands"""


def kernel_of(op: KernelOp, target: CpuTarget) -> Kernel | None:
    """The scheduled kernel of an operator; None where there is none."""
    if op.kind != "add" and op.input_shapes[0][0] != 1:
        return None  # of one image or row
    match op.kind:
        case "conv2d" if op.groups == 1:
            return (_convolution_by_dot_products if _has_dot_products(op, target) else _convolution)(op, target)
        case "conv2d" if op.weights is not None and op.weights.shape[2] == 1 and op.groups == op.output_shape[-1]:
            return _depthwise(op, target)
        case "dense":
            return (_dense_by_dot_products if _has_dot_products(op, target) else _dense)(op, target)
        case "average_pool" if not any(op.padding):
            return _average_pool(op, target)
        case "add" if op.input_shapes[0] == op.input_shapes[1] == op.output_shape:
            return _add(op, target)
    return None


def _accumulators(target: CpuTarget) -> int:
    """Vector registers that hold sums; the others hold operands."""
    return target.registers * 3 // 4


def _largest_divisor(value: int, limit: int) -> int:
    return max(d for d in range(1, max(1, min(value, limit)) + 1) if value % d == 0)


def _tile(rows: int, columns: int, limit: int) -> tuple[int, int]:
    """Rows and columns of the tile with most pixels, at most `limit`; both divide."""
    tiles = ((_largest_divisor(rows, limit // x), x) for x in range(1, min(columns, limit) + 1) if columns % x == 0)
    return max(tiles, key=lambda t: (t[0] * t[1], t[1]))


def _sums(op: KernelOp) -> tuple[NDArray[np.int32], int, str]:
    """(bias with the zero point folded in, bound of the accumulator, dtype in which the products' sum is exact)."""
    source = op.input_quantization[0]
    assert source and op.weights is not None and op.bias is not None
    weights = op.weights.astype(np.int64)
    axes = 1 if op.kind == "dense" else (0, 1, 2)
    bias = op.bias.astype(np.int64) - source.zero_point * weights.sum(axes)
    products = 128 * np.abs(weights).sum(axes)
    dtype = "float32" if int(products.max(initial=0)) <= EXACT_FLOAT else "int32"
    return bias.astype(np.int32), int((products + np.abs(bias)).max(initial=0)), dtype


def _parameters(outputs: int, multiplier: NDArray) -> tuple[Any, Any, Any]:
    """Placeholders of bias, multiplier (or factor) and shift."""
    from tvm import te

    b, s = (te.placeholder((outputs,), "int32", name=name) for name in "bs")
    return b, te.placeholder((outputs,), multiplier.dtype.name, name="m"), s


def _result(op: KernelOp, value: Any, m: Any, s: Any, *, shifts: NDArray[np.int32], bound: int, double: bool) -> Any:
    """int8 of an int32 accumulator."""
    output = op.output_quantization
    assert output
    if op.factors is not None:
        return scale(value, m, op.act_min, op.act_max, output.zero_point)
    if double and bound < SMALL and int(shifts.min()) >= 0:
        y = requantize_small(value, m, s, always_shifts=int(shifts.min()) > 0)
        return clamp(
            y, op.act_min - output.zero_point, op.act_max - output.zero_point, "int32", offset=output.zero_point
        )
    y = requantize(value, m, s, double_rounding=double, left=bool(np.any(shifts < 0)))
    return clamp(y + output.zero_point, op.act_min, op.act_max, "int64")


def _widened(x: Any, op: KernelOp, fill: int, dtype: str) -> Any:
    """[padded rows, padded columns, channels] of the accumulator's type."""
    from tvm import te, tirx

    top, left, bottom, right = op.padding
    _, rows, columns, channels = (int(v) for v in x.shape)

    def element(y: Any, z: Any, c: Any) -> Any:
        value = x[0, y - top, z - left, c]
        value = _unsigned(value) if dtype == UINT8 else value.astype(dtype)
        if not any(op.padding):
            return value
        inside = tirx.all(y >= top, y < rows + top, z >= left, z < columns + left)
        return tirx.if_then_else(inside, value, tirx.const(fill + SIGN if dtype == UINT8 else fill, dtype))

    return te.compute((rows + top + bottom, columns + left + right, channels), element, name="widened")


def _schedule(arguments: Sequence[Any]) -> Any:
    from tvm import te
    from tvm.s_tir import Schedule

    return Schedule(te.create_prim_func(list(arguments)))


def _vectorize_widened(schedule: Any, target: CpuTarget) -> None:
    block = schedule.get_sblock("widened")
    _, _, c = schedule.get_loops(block)
    _vectorize(schedule, c, target)


def _vectorize(schedule: Any, loop: Any, target: CpuTarget) -> None:
    """Vectorize a loop by the widest vector that divides it."""
    extent = int(schedule.get(loop).extent)
    width = _largest_divisor(extent, 2 * target.lanes)
    if width > 1:
        _, inner = schedule.split(loop, [None, width])
        schedule.vectorize(inner)


def _function(schedule: Any) -> Any:
    # Private: the module that takes it gives it a name.
    return schedule.mod["main"].without_attr("global_symbol")


DOT_OUTPUTS, DOT_PRODUCTS = 16, 4
"""Shape of the dot product instruction."""
SIGN = 128
"""Added to int8 to have the uint8 of the instruction."""


def _has_dot_products(op: KernelOp, target: CpuTarget) -> bool:
    assert op.weights is not None
    depth = op.weights.shape[1 if op.kind == "dense" else 2]
    return target.dot_product is not None and depth % DOT_PRODUCTS == 0


def _dot_packed(weights: NDArray[np.int8], block_size: int) -> NDArray[np.int8]:
    """[outputs, ..., depth] to [blocks, ..., depth / 4, outputs of a block, 4], filled up with zeros."""
    outputs, *middle, depth = weights.shape
    blocks = -(-outputs // block_size)
    padded = np.zeros((blocks * block_size, *middle, depth), np.int8)
    padded[:outputs] = weights
    cut = padded.reshape(blocks, block_size, *middle, depth // DOT_PRODUCTS, DOT_PRODUCTS)
    return np.ascontiguousarray(np.moveaxis(cut, 1, -2))


def _dot_schedule(schedule: Any, target: CpuTarget, block_size: int, tile: tuple[int, int]) -> None:
    """As `_convolution`, with the dot product instruction for vectors of outputs and four products each."""
    _vectorize_widened(schedule, target)
    block = schedule.get_sblock("acc")
    o, y, z, i, ky, kx, kc = schedule.get_loops(block)
    y, y_inner = schedule.split(y, [None, tile[0]])
    z, z_inner = schedule.split(z, [None, tile[1]])
    i, i_inner = schedule.split(i, [None, DOT_OUTPUTS])
    kc, kc_inner = schedule.split(kc, [None, DOT_PRODUCTS])
    schedule.reorder(o, y, z, ky, kx, kc, y_inner, z_inner, i, i_inner, kc_inner)
    for loop in (y_inner, z_inner, i):
        schedule.unroll(loop)
    _finish_in(schedule, z)
    init = schedule.decompose_reduction(block, ky)
    *_, rows, columns, vectors, last = schedule.get_loops(init)
    for loop in (rows, columns, vectors):
        if int(schedule.get(loop).extent) > 1:
            schedule.unroll(loop)
    schedule.vectorize(last)
    schedule.set_scope(block, 0, "local")
    assert target.dot_product
    _insert_dot_product(schedule, i_inner, target.dot_product)


def _insert_dot_product(schedule: Any, loop: Any, intrinsic: str) -> None:
    """Replace the loop nest over 16 outputs and four products by the instruction.

    What `Schedule.tensorize` is for: that crashes in TVM 0.26, and its own intrinsics have the operand types of older
    versions of LLVM.
    """
    from tvm import tirx
    from tvm.s_tir import SBlock

    variable = schedule.blockize(loop)
    block = schedule.get(variable)
    sums, pixels, weights = ((region.source, [part.min for part in region.region]) for region in block.reads)
    four = tirx.reinterpret("int32", pixels[0].vload(pixels[1], f"uint8x{DOT_PRODUCTS}"))
    value = tirx.call_llvm_pure_intrin(
        f"int32x{DOT_OUTPUTS}",
        intrinsic,
        sums[0].vload(sums[1], f"int32x{DOT_OUTPUTS}"),
        tirx.reinterpret(f"int8x{DOT_OUTPUTS * DOT_PRODUCTS}", tirx.Broadcast(four, DOT_OUTPUTS)),
        weights[0].vload(weights[1], f"int8x{DOT_OUTPUTS * DOT_PRODUCTS}"),
    )
    body = sums[0].vstore(sums[1], value)
    replacement = SBlock(block.iter_vars, block.reads, block.writes, block.name_hint, body)
    schedule.state.replace(schedule.get_sref(variable), replacement, {block: replacement})


def _dot_block(outputs: int, target: CpuTarget, vectors: int) -> int:
    """Outputs of a block: so many vectors, or fewer."""
    return DOT_OUTPUTS * min(vectors, -(-outputs // DOT_OUTPUTS))


def _convolution_by_dot_products(op: KernelOp, target: CpuTarget) -> Kernel:
    """Direct convolution by the dot product instruction."""
    from tvm import te

    assert op.weights is not None
    source = op.input_quantization[0]
    assert source
    bias, bound, _ = _sums(op)
    bias = (bias - SIGN * op.weights.astype(np.int64).sum((0, 1, 2))).astype(np.int32)
    multiplier, shift = factors(op)
    kernel_rows, kernel_columns, depth, outputs = op.weights.shape
    _, out_rows, out_columns, _ = op.output_shape
    (stride_y, stride_x), (dilate_y, dilate_x) = op.strides, op.dilation
    block_size = _dot_block(outputs, target, 2)
    packed = _dot_packed(op.weights.transpose(3, 0, 1, 2), block_size)

    x = te.placeholder(op.input_shapes[0], INT8, name="x")
    w = te.placeholder(packed.shape, INT8, name="w")
    b, m, s = _parameters(outputs, multiplier)
    widened = _widened(x, op, source.zero_point, UINT8)
    ky, kx = te.reduce_axis((0, kernel_rows), "ky"), te.reduce_axis((0, kernel_columns), "kx")
    kc = te.reduce_axis((0, depth), "kc")
    acc = te.compute(
        (len(packed), out_rows, out_columns, block_size),
        lambda o, y, z, i: te.sum(
            widened[y * stride_y + ky * dilate_y, z * stride_x + kx * dilate_x, kc].astype("int32")
            * w[o, ky, kx, kc // DOT_PRODUCTS, i, kc % DOT_PRODUCTS].astype("int32"),
            axis=[ky, kx, kc],
        ),
        name="acc",
    )

    def element(_: Any, y: Any, z: Any, c: Any) -> Any:
        value = acc[c // block_size, y, z, c % block_size] + b[c]
        return _result(op, value, m[c], s[c], shifts=shift, bound=bound, double=True)

    out = te.compute(op.output_shape, element, name="out")
    schedule = _schedule([x, w, b, m, s, out])
    tile = _tile(out_rows, out_columns, _accumulators(target) * DOT_OUTPUTS // block_size)
    _dot_schedule(schedule, target, block_size, tile)
    return Kernel("conv2d", _function(schedule), (packed, bias, multiplier, shift))


def _dense_by_dot_products(op: KernelOp, target: CpuTarget) -> Kernel:
    """Fully connected as a convolution of one pixel, with as many outputs at once as there are accumulators."""
    from tvm import te

    assert op.weights is not None
    bias, bound, _ = _sums(op)
    bias = (bias - SIGN * op.weights.astype(np.int64).sum(1)).astype(np.int32)
    multiplier, shift = factors(op)
    outputs, depth = op.weights.shape
    block_size = _dot_block(outputs, target, 8)
    packed = _dot_packed(op.weights[:, None, None], block_size)

    x = te.placeholder((1, depth), INT8, name="x")
    w = te.placeholder(packed.shape, INT8, name="w")
    b, m, s = _parameters(outputs, multiplier)
    widened = te.compute((1, 1, depth), lambda _, __, k: _unsigned(x[0, k]), name="widened")
    ky, kx = te.reduce_axis((0, 1), "ky"), te.reduce_axis((0, 1), "kx")
    k = te.reduce_axis((0, depth), "k")
    acc = te.compute(
        (len(packed), 1, 1, block_size),
        lambda o, y, z, i: te.sum(
            widened[y + ky, z + kx, k].astype("int32")
            * w[o, ky, kx, k // DOT_PRODUCTS, i, k % DOT_PRODUCTS].astype("int32"),
            axis=[ky, kx, k],
        ),
        name="acc",
    )

    def element(_: Any, c: Any) -> Any:
        value = acc[c // block_size, 0, 0, c % block_size] + b[c]
        return _result(op, value, m[c], s[c], shifts=shift, bound=bound, double=False)

    out = te.compute((1, outputs), element, name="out")
    schedule = _schedule([x, w, b, m, s, out])
    _dot_schedule(schedule, target, block_size, (1, 1))
    return Kernel("dense", _function(schedule), (packed, bias, multiplier, shift))


def _unsigned(value: Any) -> Any:
    return (value.astype("int32") + SIGN).astype(UINT8)


def _convolution(op: KernelOp, target: CpuTarget) -> Kernel:
    """Direct convolution: a tile of pixels by one or two vectors of outputs stays in registers over the reduction."""
    from tvm import te

    assert op.weights is not None
    source = op.input_quantization[0]
    assert source
    bias, bound, dtype = _sums(op)
    multiplier, shift = factors(op)
    kernel_rows, kernel_columns, depth, outputs = op.weights.shape
    _, out_rows, out_columns, _ = op.output_shape
    (stride_y, stride_x), (dilate_y, dilate_x) = op.strides, op.dilation
    vectors = 2 if outputs > target.lanes else 1
    block_size = min(vectors * target.lanes, 1 << math.ceil(math.log2(max(outputs, 2))))
    blocks = -(-outputs // block_size)
    packed = np.zeros((blocks * block_size, kernel_rows, kernel_columns, depth), np.int8)
    packed[:outputs] = op.weights.transpose(3, 0, 1, 2)
    packed = packed.reshape(blocks, block_size, kernel_rows, kernel_columns, depth).transpose(0, 2, 3, 4, 1)
    packed = np.ascontiguousarray(packed).astype(dtype)

    x = te.placeholder(op.input_shapes[0], INT8, name="x")
    w = te.placeholder(packed.shape, dtype, name="w")
    b, m, s = _parameters(outputs, multiplier)
    widened = _widened(x, op, source.zero_point, dtype)
    ky, kx = te.reduce_axis((0, kernel_rows), "ky"), te.reduce_axis((0, kernel_columns), "kx")
    kc = te.reduce_axis((0, depth), "kc")
    acc = te.compute(
        (blocks, out_rows, out_columns, block_size),
        lambda o, y, z, i: te.sum(
            widened[y * stride_y + ky * dilate_y, z * stride_x + kx * dilate_x, kc] * w[o, ky, kx, kc, i],
            axis=[ky, kx, kc],
        ),
        name="acc",
    )

    def element(_: Any, y: Any, z: Any, c: Any) -> Any:
        value = acc[c // block_size, y, z, c % block_size].astype("int32") + b[c]
        return _result(op, value, m[c], s[c], shifts=shift, bound=bound, double=True)

    out = te.compute(op.output_shape, element, name="out")
    schedule = _schedule([x, w, b, m, s, out])
    _vectorize_widened(schedule, target)
    block = schedule.get_sblock("acc")
    o, y, z, i, ky, kx, kc = schedule.get_loops(block)
    tile_y, tile_x = _tile(out_rows, out_columns, _accumulators(target) * target.lanes // max(block_size, target.lanes))
    y, y_inner = schedule.split(y, [None, tile_y])
    z, z_inner = schedule.split(z, [None, tile_x])
    schedule.reorder(o, y, z, ky, kx, kc, y_inner, z_inner, i)
    schedule.unroll(y_inner)
    schedule.unroll(z_inner)
    schedule.vectorize(i)
    _finish(schedule, z, ky, block_size)
    return Kernel("conv2d", _function(schedule), (packed, bias, multiplier, shift))


def _finish(schedule: Any, tile: Any, reduction: Any, width: int) -> None:
    """Initialise the accumulators before the reduction and requantize after it, all in the loop of the tile."""
    block = schedule.get_sblock("acc")
    _finish_in(schedule, tile)
    init = schedule.decompose_reduction(block, reduction)
    *_, rows, columns, _ = schedule.get_loops(init)
    for loop in (rows, columns):
        if int(schedule.get(loop).extent) > 1:
            schedule.unroll(loop)
    schedule.set_scope(block, 0, "local")


def _finish_in(schedule: Any, tile: Any) -> None:
    """Requantize in the loop of the tile."""
    block = schedule.get_sblock("out")
    schedule.reverse_compute_at(block, tile)
    *_, last = schedule.get_loops(block)
    # Where the tile has a single output, this is the loop of the tiles.
    if not schedule.get(last).same_as(schedule.get(tile)):
        _vectorize_whole(schedule, last)


def _vectorize_whole(schedule: Any, loop: Any) -> None:
    if int(schedule.get(loop).extent) > 1:
        schedule.vectorize(loop)


def _depthwise(op: KernelOp, target: CpuTarget) -> Kernel:
    """A tile of pixels by a vector of channels stays in registers over the window."""
    from tvm import te

    assert op.weights is not None
    source = op.input_quantization[0]
    assert source
    bias, bound, dtype = _sums(op)
    multiplier, shift = factors(op)
    kernel_rows, kernel_columns, _, channels = op.weights.shape
    _, out_rows, out_columns, _ = op.output_shape
    (stride_y, stride_x), (dilate_y, dilate_x) = op.strides, op.dilation
    packed = op.weights[:, :, 0, :].astype(dtype)

    x = te.placeholder(op.input_shapes[0], INT8, name="x")
    w = te.placeholder(packed.shape, dtype, name="w")
    b, m, s = _parameters(channels, multiplier)
    widened = _widened(x, op, source.zero_point, dtype)
    ky, kx = te.reduce_axis((0, kernel_rows), "ky"), te.reduce_axis((0, kernel_columns), "kx")
    acc = te.compute(
        (out_rows, out_columns, channels),
        lambda y, z, c: te.sum(
            widened[y * stride_y + ky * dilate_y, z * stride_x + kx * dilate_x, c] * w[ky, kx, c], axis=[ky, kx]
        ),
        name="acc",
    )

    def element(_: Any, y: Any, z: Any, c: Any) -> Any:
        value = acc[y, z, c].astype("int32") + b[c]
        return _result(op, value, m[c], s[c], shifts=shift, bound=bound, double=True)

    out = te.compute(op.output_shape, element, name="out")
    schedule = _schedule([x, w, b, m, s, out])
    _vectorize_widened(schedule, target)
    block = schedule.get_sblock("acc")
    y, z, c, ky, kx = schedule.get_loops(block)
    width = _largest_divisor(channels, target.lanes)
    _, tile_x = _tile(1, out_columns, _accumulators(target) // 2)
    z, z_inner = schedule.split(z, [None, tile_x])
    c, c_inner = schedule.split(c, [None, width])
    schedule.reorder(c, y, z, ky, kx, z_inner, c_inner)
    schedule.unroll(z_inner)
    schedule.unroll(kx)
    if kernel_rows * kernel_columns <= 9:
        schedule.unroll(ky)
    _vectorize_whole(schedule, c_inner)
    _finish(schedule, z, ky, width)
    return Kernel("depthwise_conv2d", _function(schedule), (packed, bias, multiplier, shift))


def _dense(op: KernelOp, target: CpuTarget) -> Kernel:
    """Each weight is used once, so it is widened where it is used."""
    from tvm import te

    assert op.weights is not None
    bias, bound, dtype = _sums(op)
    multiplier, shift = factors(op)
    outputs, depth = op.weights.shape
    # A power of two, or the code generator takes the vector apart.
    block_size = math.gcd(outputs, 1 << int(math.log2(_accumulators(target) * target.lanes)))
    packed = np.ascontiguousarray(op.weights.reshape(-1, block_size, depth).transpose(0, 2, 1))

    x = te.placeholder((1, depth), INT8, name="x")
    w = te.placeholder(packed.shape, INT8, name="w")
    b, m, s = _parameters(outputs, multiplier)
    widened = te.compute((1, 1, depth), lambda _, __, k: x[0, k].astype(dtype), name="widened")
    k = te.reduce_axis((0, depth), "k")
    acc = te.compute(
        (outputs // block_size, 1, 1, block_size),
        lambda o, _, __, i: te.sum(widened[0, 0, k] * w[o, k, i].astype(dtype), axis=k),
        name="acc",
    )

    def element(_: Any, c: Any) -> Any:
        value = acc[c // block_size, 0, 0, c % block_size].astype("int32") + b[c]
        return _result(op, value, m[c], s[c], shifts=shift, bound=bound, double=False)

    out = te.compute((1, outputs), element, name="out")
    schedule = _schedule([x, w, b, m, s, out])
    _vectorize_widened(schedule, target)
    block = schedule.get_sblock("acc")
    o, _, _, i, k = schedule.get_loops(block)
    schedule.reorder(o, k, i)
    _vectorize_whole(schedule, i)
    _finish(schedule, o, k, block_size)
    return Kernel("dense", _function(schedule), (packed, bias, multiplier, shift))


def _average_pool(op: KernelOp, target: CpuTarget) -> Kernel:
    from tvm import te, tirx

    rows, columns = op.window
    stride_y, stride_x = op.strides
    _, out_rows, out_columns, channels = op.output_shape
    count = rows * columns
    x = te.placeholder(op.input_shapes[0], INT8, name="x")
    ky, kx = te.reduce_axis((0, rows), "ky"), te.reduce_axis((0, columns), "kx")
    acc = te.compute(
        (out_rows, out_columns, channels),
        lambda y, z, c: te.sum(x[0, y * stride_y + ky, z * stride_x + kx, c].astype("int32"), axis=[ky, kx]),
        name="acc",
    )

    def mean(_: Any, y: Any, z: Any, c: Any) -> Any:
        value = acc[y, z, c]
        half = tirx.const(count // 2, "int32")
        rounded = tirx.truncdiv(tirx.Select(value >= 0, value + half, value - half), tirx.const(count, "int32"))
        return clamp(rounded, op.act_min, op.act_max, "int32")

    out = te.compute(op.output_shape, mean, name="out")
    schedule = _schedule([x, out])
    block = schedule.get_sblock("acc")
    y, z, c, ky, kx = schedule.get_loops(block)
    width = _largest_divisor(channels, 2 * target.lanes)
    c, c_inner = schedule.split(c, [None, width])
    schedule.reorder(y, z, c, ky, kx, c_inner)
    _vectorize_whole(schedule, c_inner)
    _finish(schedule, c, ky, width)
    return Kernel("average_pool", _function(schedule), ())


def _add(op: KernelOp, target: CpuTarget) -> Kernel:
    from tvm import te, tirx

    a, b = op.input_quantization
    output = op.output_quantization
    assert a and b and output
    twice = 2 * max(a.scale, b.scale)
    factor_a, factor_b = (split_factor(q.scale / twice) for q in (a, b))
    factor_out = split_factor(twice / ((1 << ADD_LEFT_SHIFT) * output.scale))

    def scaled(value: Any, factor: tuple[int, int]) -> Any:
        multiplier, shift = (tirx.const(v, "int32") for v in factor)
        if factor[1] < 0:
            return requantize(value, multiplier, shift, double_rounding=True, left=True).astype("int32")
        # Below 2**29 before, and factors are at most 1.
        return requantize_small(value, multiplier, shift, always_shifts=factor[1] > 0)

    x, y = (te.placeholder(op.output_shape, INT8, name=name) for name in "xy")

    def element(*index: Any) -> Any:
        terms = [
            scaled((value(*index).astype("int32") - q.zero_point) * (1 << ADD_LEFT_SHIFT), factor)
            for value, q, factor in ((x, a, factor_a), (y, b, factor_b))
        ]
        total = scaled(terms[0] + terms[1], factor_out)
        low, high = op.act_min - output.zero_point, op.act_max - output.zero_point
        return clamp(total, low, high, "int32", offset=output.zero_point)

    out = te.compute(op.output_shape, element, name="out")
    schedule = _schedule([x, y, out])
    fused = schedule.fuse(*schedule.get_loops(schedule.get_sblock("out")))
    _vectorize(schedule, fused, target)
    return Kernel("add", _function(schedule), ())
