"""QLinearConv, QGemm and QLinearMatMul, and Conv, ConvTranspose, Gemm and MatMul on real numbers.

Sums of products are integers. What scales them is one float32 factor, `x_scale * w_scale / y_scale`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...dtypes import INT4, INT8, UINT8
from ...numerics import wrap_int32
from ...operation import Operation, TensorType
from ..convolution import convolve, convolve_transposed
from ..support import operand, parameters, refuse
from .quantized import requantized

__all__ = ["batch_matmul", "conv_2d", "einsum", "factors", "fully_connected", "transpose_conv"]

_INTEGERS = (INT8, UINT8, "int16", INT4)


def conv_2d(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Convolution of [n, rows, columns, c] with weights [k, rows, columns, c / groups]."""
    x, weights, finish = _product(op, inputs, 0, 1, 2, axis=0)
    return [finish(convolve(op, x, weights))]


def transpose_conv(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Each element times its kernel [k, rows, columns, c], added up at stride distance. Operand 0 is the shape."""
    x, weights, finish = _product(op, inputs, 2, 1, 3, axis=0)
    return [finish(convolve_transposed(op, x, weights))]


def fully_connected(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Product with weights [k, c] of the operand as rows of c."""
    x, weights, finish = _product(op, inputs, 0, 1, 2, axis=0)
    return [finish(x.reshape(-1, weights.shape[1]) @ weights.T).reshape(op.outputs[0].shape)]


def batch_matmul(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Matrix products of two operands, with the leading axes broadcast."""
    x, y, finish = _product(op, inputs, 0, 1, 2, axis=-1)
    return [finish(np.matmul(x, y))]


def einsum(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Sums of products of real numbers by the equation `equation`."""
    operands = [operand(op, inputs, i).astype(np.float64) for i in range(len(inputs))]
    try:
        return [np.einsum(op.options["equation"], *operands, optimize=False).astype(np.float32)]
    except ValueError as error:
        refuse(op, f"equation {op.options['equation']} ({error})")


def factors(op: Operation, activation: int = 0, weight: int = 1) -> NDArray[np.float32]:
    """What integer sums are multiplied by: one factor, or one for each output channel."""
    t = op.inputs[weight]
    if t is None or t.quantization is None:
        refuse(op, "weights without quantization")
    scales = np.array(t.quantization.scales, np.float32)
    source = np.float32(parameters(op, op.inputs[activation]).scale)
    return source * scales / np.float32(parameters(op, op.outputs[0]).scale)


def _product(
    op: Operation, inputs: Sequence[NDArray | None], activation: int, weight: int, bias: int, axis: int
) -> tuple[NDArray, NDArray, Callable[[NDArray], NDArray]]:
    """Both operands less their zero points as float64, in which sums of integers are exact, and what makes outputs of
    sums; axis: which one of the weights' is that of the output channels."""
    x, weights = operand(op, inputs, activation), operand(op, inputs, weight)
    t, w = op.inputs[activation], op.inputs[weight]
    assert t and w
    given = inputs[bias] if bias < len(inputs) else None
    if op.outputs[0].dtype == "float32":
        if t.dtype != "float32" or w.dtype != "float32":
            refuse(op, f"{t.dtype} and {w.dtype} to float32")
        return x, weights, lambda total: total if given is None else total + given.astype(np.float32)
    if t.dtype not in _INTEGERS or w.dtype not in _INTEGERS or w.quantization is None:
        refuse(op, f"{t.dtype} and {w.dtype} to {op.outputs[0].dtype}")
    if given is not None and given.dtype != np.int32:
        refuse(op, f"a bias of {given.dtype}")
    scale = factors(op, activation, weight)

    def finish(total: NDArray) -> NDArray:
        acc = total.astype(np.int64)
        if given is not None:
            acc = acc + given
        return requantized(op, wrap_int32(acc).astype(np.float32) * scale)

    return (
        x.astype(np.float64) - parameters(op, t).zero_point,
        weights.astype(np.float64) - _zero_points(w, axis),
        finish,
    )


def _zero_points(t: TensorType, axis: int) -> NDArray[np.int64]:
    assert t.quantization
    values = np.array(t.quantization.zero_points, np.int64)
    if len(values) == 1:
        return values
    shape = [1] * len(t.shape)
    shape[axis] = len(values)
    return values.reshape(shape)
