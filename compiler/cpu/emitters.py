"""Plain integer code of operators in forms that have no scheduled kernel: batches, groups, padding in pools, ..."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nnloom.arch.dtypes import INT8
from nnloom.arch.numerics import ADD_LEFT_SHIFT

from .operator import KernelOp
from .requantize import clamp, factors, requantize, round_even, scale, split_factor

__all__ = ["emit_generic"]


def emit_generic(op: KernelOp) -> tuple[Callable, list[np.ndarray]]:
    """A TE function of the operands and constants, and the constants."""
    return _EMITTERS[op.kind](op)


def _padded(x: Any, op: KernelOp, fill: int, dtype: str) -> Any:
    from tvm import te, tirx

    top, left, bottom, right = op.padding
    batch, rows, columns, channels = (int(v) for v in x.shape)

    def element(n: Any, y: Any, z: Any, c: Any) -> Any:
        inside = tirx.all(y >= top, y < rows + top, z >= left, z < columns + left)
        value = x[n, y - top, z - left, c].astype(dtype)
        return tirx.if_then_else(inside, value, tirx.const(fill, dtype))

    if not any(op.padding):
        return te.compute(x.shape, lambda *i: x(*i).astype(dtype), name="widened")
    shape = (batch, rows + top + bottom, columns + left + right, channels)
    return te.compute(shape, element, name="padded")


def _emit_product(op: KernelOp) -> tuple[Callable, list[np.ndarray]]:
    """conv2d and dense: TE function and its constant arguments."""
    from tvm import te

    assert op.weights is not None and op.bias is not None
    source, output = op.input_quantization[0], op.output_quantization
    assert source and output
    multiplier, shift = factors(op)
    zero_point = output.zero_point
    weights = op.weights.astype(np.int64)
    dense = op.kind == "dense"
    sums = weights.sum(1) if dense else weights.sum((0, 1, 2))
    bias = (op.bias.astype(np.int64) - source.zero_point * sums).astype(np.int32)

    def finish(acc: Any, b: Any, m: Any, s: Any) -> Any:
        def element(*index: Any) -> Any:
            c = index[-1]
            if op.factors is not None:
                return scale(acc(*index) + b[c], m[c], op.act_min, op.act_max, zero_point)
            y = requantize(acc(*index) + b[c], m[c], s[c], double_rounding=not dense, left=bool(np.any(shift < 0)))
            return clamp(y + zero_point, op.act_min, op.act_max, "int64")

        return te.compute(acc.shape, element, name="requantized")

    if dense:

        def dense_te(x: Any, w: Any, b: Any, m: Any, s: Any) -> Any:
            k = te.reduce_axis((0, int(w.shape[1])), "k")
            acc = te.compute(
                (int(x.shape[0]), int(w.shape[0])),
                lambda i, o: te.sum(x[i, k].astype("int32") * w[o, k].astype("int32"), axis=k),
                name="acc",
            )
            return finish(acc, b, m, s)

        return dense_te, [op.weights, bias, multiplier, shift]

    kernel_rows, kernel_columns, depth, outputs = op.weights.shape
    (stride_y, stride_x), (dilate_y, dilate_x) = op.strides, op.dilation
    per_group = outputs // op.groups
    # Input channels innermost: the reduction then runs over neighbouring bytes.
    packed = np.ascontiguousarray(op.weights.transpose(3, 0, 1, 2))

    def conv_te(x: Any, w: Any, b: Any, m: Any, s: Any) -> Any:
        padded = _padded(x, op, source.zero_point, "int32")
        ky, kx = te.reduce_axis((0, kernel_rows), "ky"), te.reduce_axis((0, kernel_columns), "kx")
        kc = te.reduce_axis((0, depth), "kc")

        def element(n: Any, y: Any, z: Any, o: Any) -> Any:
            channel = kc if op.groups == 1 else (o // per_group) * depth + kc
            value = padded[n, y * stride_y + ky * dilate_y, z * stride_x + kx * dilate_x, channel]
            return te.sum(value * w[o, ky, kx, kc].astype("int32"), axis=[ky, kx, kc])

        return finish(te.compute(op.output_shape, element, name="acc"), b, m, s)

    return conv_te, [packed, bias, multiplier, shift]


def _emit_pool(op: KernelOp) -> tuple[Callable, list[np.ndarray]]:
    from tvm import te, tirx

    rows, columns = op.window
    stride_y, stride_x = op.strides
    top, left, _, _ = op.padding
    _, height, width, _ = op.input_shapes[0]

    def pool_te(x: Any) -> Any:
        ky, kx = te.reduce_axis((0, rows), "ky"), te.reduce_axis((0, columns), "kx")
        if op.kind == "max_pool":
            padded = _padded(x, op, -128, INT8)
            best = te.compute(
                op.output_shape,
                lambda n, y, z, c: te.max(padded[n, y * stride_y + ky, z * stride_x + kx, c], axis=[ky, kx]),
                name="best",
            )
            return te.compute(op.output_shape, lambda *i: clamp(best(*i), op.act_min, op.act_max, INT8), name="clamped")
        padded = _padded(x, op, 0, "int32")
        total = te.compute(
            op.output_shape,
            lambda n, y, z, c: te.sum(padded[n, y * stride_y + ky, z * stride_x + kx, c], axis=[ky, kx]),
            name="total",
        )

        def mean(n: Any, y: Any, z: Any, c: Any) -> Any:
            # Padding does not count.
            first_y, first_z = y * stride_y - top, z * stride_x - left
            count_y = tirx.min(first_y + rows, height) - tirx.max(first_y, 0)
            count_z = tirx.min(first_z + columns, width) - tirx.max(first_z, 0)
            count = (count_y * count_z).astype("int32")
            value = total[n, y, z, c]
            half = tirx.truncdiv(count, tirx.const(2, "int32"))
            rounded = tirx.truncdiv(tirx.Select(value >= 0, value + half, value - half), count)
            return clamp(rounded, op.act_min, op.act_max, "int32")

        return te.compute(op.output_shape, mean, name="mean")

    return pool_te, []


def _emit_add(op: KernelOp) -> tuple[Callable, list[np.ndarray]]:
    from tvm import te, tirx, topi

    a, b = op.input_quantization
    output = op.output_quantization
    assert a and b and output
    twice = 2 * max(a.scale, b.scale)
    factors = [split_factor(f) for f in (a.scale / twice, b.scale / twice)]
    factors.append(split_factor(twice / ((1 << ADD_LEFT_SHIFT) * output.scale)))

    def scaled(value: Any, factor: tuple[int, int]) -> Any:
        multiplier, shift = (tirx.const(v, "int32") for v in factor)
        return requantize(value, multiplier, shift, double_rounding=True, left=factor[1] < 0)

    def add_te(x: Any, y: Any) -> Any:
        x, y = (topi.broadcast_to(v, op.output_shape) for v in (x, y))

        def element(*index: Any) -> Any:
            terms = []
            for value, q, factor in ((x(*index), a, factors[0]), (y(*index), b, factors[1])):
                shifted = (value.astype("int32") - q.zero_point) * (1 << ADD_LEFT_SHIFT)
                terms.append(scaled(shifted, factor))
            total = scaled((terms[0] + terms[1]).astype("int32"), factors[2])
            return clamp(total + output.zero_point, op.act_min, op.act_max, "int64")

        return te.compute(op.output_shape, element, name="added")

    return add_te, []


def _emit_quantize(op: KernelOp) -> tuple[Callable, list[np.ndarray]]:
    """TFLite QUANTIZE of float32. TVM's own rounds half to even.

    Beyond int32 a value becomes -2**31, whatever its sign, as x86 converts it, and a negative zero point wraps that.
    """
    from tvm import te, tirx

    output = op.output_quantization
    assert output
    # Far outside int8 already, and exact in float32 and int32.
    limit, beyond = float(1 << 20), float(1 << 31)
    lost = op.act_min if output.zero_point >= 0 else op.act_max

    def quantize_onnx_te(x: Any) -> Any:
        def element(*index: Any) -> Any:
            scaled = x(*index) / tirx.const(output.scale, "float32")
            return round_even(scaled, op.act_min, op.act_max, output.zero_point)

        return te.compute(op.output_shape, element, name="quantized")

    if op.rounding == "onnx":
        return quantize_onnx_te, []

    def quantize_te(x: Any) -> Any:
        def element(*index: Any) -> Any:
            exact = x(*index) / tirx.const(output.scale, "float32")
            scaled = tirx.max(tirx.min(exact, tirx.const(limit, "float32")), tirx.const(-limit, "float32"))
            whole = tirx.trunc(scaled)
            rest = scaled - whole
            away = tirx.Select(rest >= 0.5, tirx.const(1, "int32"), tirx.const(0, "int32"))
            away = tirx.Select(rest <= -0.5, tirx.const(-1, "int32"), away)
            value = clamp(whole.astype("int32") + away + output.zero_point, op.act_min, op.act_max, "int32")
            inside = tirx.all(exact < tirx.const(beyond, "float32"), exact > tirx.const(-beyond, "float32"))
            return tirx.Select(inside, value, tirx.const(lost, INT8))

        return te.compute(op.output_shape, element, name="quantized")

    return quantize_te, []


_EMITTERS: dict[str, Callable[[KernelOp], tuple[Callable, list[np.ndarray]]]] = {
    "conv2d": _emit_product,
    "dense": _emit_product,
    "average_pool": _emit_pool,
    "max_pool": _emit_pool,
    "add": _emit_add,
    "quantize": _emit_quantize,
}
