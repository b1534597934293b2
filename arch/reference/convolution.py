"""Sums of products of activations with weights: convolutions and FULLY_CONNECTED."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..dtypes import INT4, INT8, UINT8
from ..numerics import multiply_by_factor, multiply_by_factor_int64, rounded_product, split_factor, wrap_int32
from ..operation import Operation
from .elementwise import activate_plain
from .hybrid import integers, is_hybrid, rescale
from .support import activate, operand, parameters, refuse, require_types, to_int32, type_name

__all__ = [
    "batch_matmul",
    "conv_2d",
    "convolve",
    "convolve_transposed",
    "depthwise_conv_2d",
    "fully_connected",
    "product_scale",
    "transpose_conv",
]

# Products of integers and their sums are below 2**53 in magnitude: exact in float64, whose matrix product is fast.
# Those of float32 are added up one after the other, as LiteRT does.


def conv_2d(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Convolution of [n, rows, columns, c] with weights [k, rows, columns, c / groups]."""
    x, weights, finish = _product(op, inputs, 0, 1, 2)
    return [finish(convolve(op, x, weights))]


def convolve(op: Operation, x: NDArray, weights: NDArray) -> NDArray:
    """The sums of products of a CONV_2D, of x's type; operands without their zero points."""
    depth, channels = weights.shape[3], weights.shape[0]
    groups = x.shape[3] // depth
    _, rows, columns, _ = op.outputs[0].shape
    share = channels // groups
    acc = np.zeros((x.shape[0], rows, columns, channels), x.dtype)
    for r, c, patch in _patches(op, x, weights.shape[1:3], (rows, columns)):
        for g in range(groups):
            of_group = slice(g * share, (g + 1) * share)
            _accumulate(acc[..., of_group], patch[..., g * depth : (g + 1) * depth], weights[of_group, r, c])
    return acc


def depthwise_conv_2d(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Convolution of each channel with `multiplier` kernels: weights [1, rows, columns, c * multiplier]."""
    x, weights, finish = _product(op, inputs, 0, 1, 2)
    _, rows, columns, channels = op.outputs[0].shape
    multiplier = channels // x.shape[3]
    acc = np.zeros((x.shape[0], rows, columns, channels), x.dtype)
    for r, c, patch in _patches(op, x, weights.shape[1:3], (rows, columns)):
        acc += np.repeat(patch, multiplier, axis=3) * weights[0, r, c]
    return [finish(acc)]


def transpose_conv(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Each element times its kernel [k, rows, columns, c], added up at stride distance. Operand 0 is the shape."""
    x, weights, finish = _product(op, inputs, 2, 1, 3)
    return [finish(convolve_transposed(op, x, weights))]


def convolve_transposed(op: Operation, x: NDArray, weights: NDArray) -> NDArray:
    """The sums of products of a TRANSPOSE_CONV, of x's type; operands without their zero points."""
    n, rows, columns, channels = op.outputs[0].shape
    stride_r, stride_c = op.options["strides"]
    top, left, _, _ = op.options["padding"]
    kernel_r, kernel_c = weights.shape[1:3]
    reach_r, reach_c = (x.shape[1] - 1) * stride_r, (x.shape[2] - 1) * stride_c
    full = np.zeros(
        (n, max(reach_r + kernel_r, top + rows), max(reach_c + kernel_c, left + columns), channels), x.dtype
    )
    # from the last: so that an element's terms come in the order of the operand's positions
    for r in reversed(range(kernel_r)):
        for c in reversed(range(kernel_c)):
            _accumulate(full[:, r : r + reach_r + 1 : stride_r, c : c + reach_c + 1 : stride_c], x, weights[:, r, c])
    return full[:, top : top + rows, left : left + columns]


def fully_connected(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Product with weights [k, c] of the operand as rows of c."""
    if op.options.get("weights_format", "DEFAULT") != "DEFAULT":
        refuse(op, f"weights format {op.options['weights_format']}")
    x, weights, finish = _product(op, inputs, 0, 1, 2)
    acc = np.zeros((x.shape[0], weights.shape[0]), x.dtype)
    _accumulate(acc, x, weights)
    return [finish(acc).reshape(op.outputs[0].shape)]


def batch_matmul(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Matrix products, with the leading axes broadcast; `adj_x` and `adj_y` transpose an operand."""
    dtype = require_types(op, 0, INT8, "int16", "float32")
    require_types(op, 1, *(("int16", INT8) if dtype == "int16" else (dtype,)))
    out = op.outputs[0].dtype
    a, b = operand(op, inputs, 0), operand(op, inputs, 1)
    if out != dtype:
        refuse(op, f"{dtype} to {out}")
    a = np.swapaxes(a, -1, -2) if op.options.get("adj_x") else a
    b = np.swapaxes(b, -1, -2) if op.options.get("adj_y") else b
    if dtype == "float32":
        total = np.zeros(op.outputs[0].shape, np.float32)
        for d in range(a.shape[-1]):
            total += a[..., d, None] * b[..., d, None, :]
        return [total]
    q_a, q_b, q_out = (parameters(op, t) for t in (op.inputs[0], op.inputs[1], op.outputs[0]))
    total = ((a.astype(np.float64) - q_a.zero_point) @ (b.astype(np.float64) - q_b.zero_point)).astype(np.int64)
    factor = float(np.float32(q_a.scale) * np.float32(q_b.scale)) / q_out.scale
    if dtype == "int16":
        return [activate(op, multiply_by_factor_int64(total, *split_factor(factor)), op.outputs[0])]
    return [activate(op, multiply_by_factor(wrap_int32(total), *split_factor(factor)), op.outputs[0])]


def _accumulate(acc: NDArray, x: NDArray, weights: NDArray) -> None:
    """Add to acc [..., k] the products of x [..., c] and weights [k, c]."""
    if x.dtype == np.float64:
        acc += x @ weights.T
        return
    for d in range(weights.shape[1]):
        acc += x[..., d, None] * weights[:, d]


def _product(
    op: Operation, inputs: Sequence[NDArray | None], activation: int, weight: int, bias: int
) -> tuple[NDArray, NDArray, Callable[[NDArray], NDArray]]:
    """Activations and weights less their zero points as float64 (float32 as it is), and what makes outputs of sums.

    FULLY_CONNECTED has its activations as rows.
    """
    dtype = require_types(op, activation, INT8, UINT8, "int16", "float32")
    hybrid = op.kind != "TRANSPOSE_CONV" and is_hybrid(op, activation, weight)
    allowed = {INT8: (INT8, INT4), UINT8: (UINT8,), "int16": (INT8, INT4), "float32": ("float32",)}
    require_types(op, weight, *((INT8, INT4) if hybrid else allowed[dtype]))
    if op.outputs[0].dtype != dtype:
        refuse(op, f"{dtype} to {op.outputs[0].dtype}")
    x, weights = operand(op, inputs, activation), operand(op, inputs, weight)
    if op.kind == "FULLY_CONNECTED":
        x = x.reshape(-1, weights.shape[-1])
    bias_value = inputs[bias] if bias < len(inputs) else None
    if hybrid:
        values, scales = integers(op, x)
        return (
            values,
            weights.astype(np.float64),
            lambda acc: activate_plain(op, rescale(op, acc, scales, bias_value)),
        )
    if dtype == "float32":
        return x, weights, lambda acc: activate_plain(op, acc if bias_value is None else acc + bias_value)
    if bias_value is not None and bias_value.dtype != (np.int64 if _is_wide(op) else np.int32):
        refuse(op, f"{type_name(op.inputs[bias])} bias with {dtype} activations")
    offset = parameters(op, op.inputs[activation]).zero_point
    return (
        x.astype(np.float64) - offset,
        weights.astype(np.float64) - _weight_offset(op, dtype, weight),
        lambda acc: _requantize(op, acc, bias_value),
    )


def _weight_offset(op: Operation, dtype: str, weight: int) -> int:
    """Zero point of the weights, where the kernel has one."""
    t = op.inputs[weight]
    if dtype != UINT8 and op.kind != "FULLY_CONNECTED":
        return 0
    if t is not None and t.quantization is not None and t.quantization.is_per_tensor:
        return t.quantization.zero_point
    return parameters(op, t).zero_point if dtype == UINT8 else 0


def _patches(op: Operation, x: NDArray, window: tuple[int, ...], out: tuple[int, int]):
    """For each position in the window: its row and column, and the padded operand's values under it."""
    top, left, bottom, right = op.options["padding"]
    stride_r, stride_c = op.options["strides"]
    dilation_r, dilation_c = op.options.get("dilation", (1, 1))
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    for r in range(window[0]):
        for c in range(window[1]):
            at_r, at_c = r * dilation_r, c * dilation_c
            yield (
                r,
                c,
                padded[
                    :,
                    at_r : at_r + (out[0] - 1) * stride_r + 1 : stride_r,
                    at_c : at_c + (out[1] - 1) * stride_c + 1 : stride_c,
                ],
            )


def _factors(op: Operation, activation: int, weight: int) -> NDArray[np.float64]:
    """Input scale * weight scale / output scale, one or one for each channel."""
    t = op.inputs[weight]
    if t is None or t.quantization is None:
        refuse(op, "weights without quantization")
    scale_in, scale_out = parameters(op, op.inputs[activation]).scale, parameters(op, op.outputs[0]).scale
    return np.array([product_scale(op, scale_in, s) / scale_out for s in t.quantization.scales])


def product_scale(op: Operation, input_scale: float, weight_scale: float) -> float:
    """What one step of a sum of products stands for: a product in float64, or in float32 (convolutions of uint8)."""
    if op.kind != "FULLY_CONNECTED" and op.outputs[0].dtype == UINT8:
        return float(np.float32(input_scale) * np.float32(weight_scale))
    return input_scale * weight_scale


def _total(op: Operation, acc: NDArray, bias: NDArray | None) -> NDArray[np.int64]:
    total = acc.astype(np.int64)
    if bias is not None:
        total = total + bias
    return total if _is_wide(op) else wrap_int32(total)


def _is_wide(op: Operation) -> bool:
    """Whether accumulators are of 64 bits: with int16 activations, if the options do not name a bias of 32."""
    return op.outputs[0].dtype == "int16" and op.options.get("quantized_bias_type") != "INT32"


def _requantize(op: Operation, acc: NDArray, bias: NDArray | None) -> NDArray:
    """Bias, requantization and activation of integer sums of products."""
    total = _total(op, acc, bias)
    if op.kind == "FULLY_CONNECTED":
        # float64 arithmetic where the others use integers
        return activate(op, to_int32(rounded_product(total, _factors(op, 0, 1))), op.outputs[0])
    data, weight = (2, 1) if op.kind == "TRANSPOSE_CONV" else (0, 1)
    multipliers, exponents = np.array([split_factor(f) for f in _factors(op, data, weight)]).T
    scaled = (multiply_by_factor_int64 if _is_wide(op) else multiply_by_factor)(total, multipliers, exponents)
    return activate(op, scaled, op.outputs[0])
