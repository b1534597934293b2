"""Convolutions and matrix products, quantized and real."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.dtypes import RECENTRED, UINT8
from nnloom.arch.operation import Quantization, TensorType

from .elementwise import clip_real
from .order import channels_last
from .parameters import Out, geometry_of, optional_output, output_scale
from .reader import Product, QuantizedConstant, Reader
from .support import Refusal, attributes
from .tables import Chain
from .values import image_shape

__all__ = [
    "compute_product",
    "conv",
    "conv_transpose",
    "einsum",
    "gemm",
    "matmul",
    "plain_real",
    "qgemm",
    "qlinear_conv",
    "qlinear_matmul",
]


IN_FLOAT = "ONNX Runtime computes it in float32"


def qlinear_conv(r: Reader, node: Any) -> None:
    """QLinearConv."""
    x, (scale, zero_point) = node.input[0], r.scale_of(node.input[1], node.input[2])
    weights = _constant_weights(r, *node.input[3:6], axis=0)
    out = output_scale(r, node, 6, 7)
    bias = r.constant(node.input[8], "the bias") if len(node.input) > 8 and node.input[8] else None
    _conv(r, node, x, (scale, zero_point), weights, bias, node.output[0], (out[2], out[0], out[1]))


def _constant_weights(r: Reader, data: str, scale: str, zero_point: str, *, axis: int) -> QuantizedConstant:
    values = r.constant(data, "the weights")
    scales = r.constant(scale, "the weights' scale").reshape(-1).astype(np.float32)
    zero = r.constant(zero_point, "the weights' zero point").reshape(-1) if zero_point else np.zeros(1)
    points = np.broadcast_to(zero.astype(np.int64), scales.shape if zero.size == 1 else zero.shape)
    return QuantizedConstant(values, np.broadcast_to(scales, points.shape), points, axis)


def _conv(
    r: Reader,
    node: Any,
    x: str,
    source: tuple[np.float32, int],
    weights: QuantizedConstant,
    bias: NDArray | None,
    output: str,
    out: Out,
    **options: Any,
) -> None:
    """A quantized convolution."""
    shape = r.shape(node.output[0])
    r.v.shapes.setdefault(output, shape)
    index = r.v.reshaped(_quantized_image(r, x, *source), image_shape(r.shape(x)))
    data, q = _held_weights(weights)
    geometry = geometry_of(r, node, x, data.shape[2:])
    values = _last(data if data.ndim == 4 else data[:, :, None])
    constant = r.v.constant(values, q, name=node.input[3] if len(node.input) > 3 else node.input[1])
    operands = [index, constant, _bias(r, bias)]
    t = r.quantized_type(image_shape(shape), *out)
    _image_output(r, node, output, "CONV_2D", operands, t, {**geometry, **options})


def _image_output(
    r: Reader, node: Any, output: str, kind: str, operands: list, t: TensorType, options: Mapping[str, Any]
) -> None:
    """Emit an operator that makes an image [n, rows, columns, channels]."""
    rank = len(r.shape(output))
    target = r.emit(node, output, kind, operands, t, None, dict(options))
    r.v.hold(output, target, channels_last(rank))


def _quantized_image(r: Reader, name: str, scale: np.float32, zero_point: int) -> int:
    r.integer(name, scale, zero_point)
    return r.v.image(name)


def _last(weights: NDArray) -> NDArray:
    """[k, c, rows, columns] to [k, rows, columns, c]."""
    return np.ascontiguousarray(weights.transpose(0, 2, 3, 1))


def _held_weights(w: QuantizedConstant) -> tuple[NDArray, Quantization]:
    """Weights less their zero points, as int8 if these fit, and their quantization along axis 0."""
    shape = [1] * w.data.ndim
    if w.zero_points.size > 1:
        shape[w.axis] = -1
    wide = w.data.astype(np.int64) - w.zero_points.reshape(shape)
    fits = wide.size == 0 or (wide.min() >= -128 and wide.max() <= 127)
    scales = w.scales if (w.scales != w.scales[0]).any() else w.scales[:1]
    q = Quantization(tuple(float(s) for s in scales), (0,) * len(scales), 0)
    return wide.astype(np.int8 if fits else np.int16), q


def _bias(r: Reader, bias: NDArray | None) -> int | None:
    return None if bias is None else r.v.constant(bias.reshape(-1), name="bias")


def qgemm(r: Reader, node: Any) -> None:
    """QGemm with constant weights."""
    a = attributes(node)
    if a.get("transA"):
        raise Refusal("a transposed operand (transA); transpose it before")
    weights = _constant_weights(r, *node.input[3:6], axis=0 if a.get("transB") else 1)
    bias = r.constant(node.input[6], "the bias") if len(node.input) > 6 and node.input[6] else None
    out = optional_output(r, node, 7, 8)
    alpha = np.float32(a.get("alpha", 1.0))
    weights = dataclasses.replace(weights, scales=weights.scales if alpha == 1 else weights.scales * alpha)
    source = r.scale_of(node.input[1], node.input[2])
    _gemm(r, node, node.input[0], source, weights, bool(a.get("transB")), bias, node.output[0], out)


def _gemm(
    r: Reader,
    node: Any,
    x: str,
    source: tuple[np.float32, int],
    weights: QuantizedConstant,
    transposed: bool,
    bias: NDArray | None,
    output: str,
    out: Out | None,
    **options: Any,
) -> None:
    """A product with constant weights [c, k], or [k, c] if transposed."""
    r.integer(x, *source)
    w = dataclasses.replace(weights, data=weights.data if transposed else weights.data.T, axis=0)
    data, q = _held_weights(w)
    index, data = _flat_operand(r, x, data)
    shape = r.shape(node.output[0])
    r.v.shapes.setdefault(output, shape)
    if bias is not None and bias.size != len(data):
        raise Refusal(f"a bias of shape {list(bias.shape)}; one value for each output is supported")
    t = TensorType(shape, "float32") if out is None else r.quantized_type(shape, *out)
    operands = [index, r.v.constant(data, q, name=f"{output} (weights)"), _bias(r, bias)]
    options = {"activation": "NONE", "keep_num_dims": len(shape) > 2, **options}
    target = r.emit(node, output, "FULLY_CONNECTED", operands, t, None, options)
    r.v.hold(output, target)


def _flat_operand(r: Reader, x: str, weights: NDArray) -> tuple[int, NDArray]:
    """The operand of a product, and the weights [k, c] in the order in which it is held."""
    shape = r.shape(x)
    held = None if x in r.v.constants else r.v.held[x][0]
    if held is not None and not held.order.is_plain and math.prod(shape[:-1]) == 1:
        order = held.order.indices()
        return r.v.reshaped(held.index, shape), np.ascontiguousarray(weights[:, order])
    return r.v.plain(x), np.ascontiguousarray(weights)


def qlinear_matmul(r: Reader, node: Any) -> None:
    """QLinearMatMul with constant weights, or of two tensors."""
    a, b = node.input[0], node.input[3]
    value, zero, dtype = output_scale(r, node, 6, 7)
    out = (dtype, value, zero)
    if b in r.v.constants and r.v.constants[b].ndim == 2:
        weights = _constant_weights(r, *node.input[3:6], axis=1)
        _gemm(r, node, a, r.scale_of(node.input[1], node.input[2]), weights, False, None, node.output[0], out)
        return
    x = r.integer(a, *r.scale_of(node.input[1], node.input[2]))
    x = x if a in r.v.constants else r.v.plain(a)
    y = r.integer(b, *r.scale_of(node.input[4], node.input[5]))
    y = y if b in r.v.constants else r.v.plain(b)
    shape = r.shape(node.output[0])
    r.emit(node, node.output[0], "BATCH_MATMUL", [x, y], r.quantized_type(shape, *out), range(len(shape)))


def conv(r: Reader, node: Any) -> None:
    """Conv: of dequantized operands it waits for who quantizes its result."""
    if len(r.shape(node.input[0])) not in (3, 4):
        raise Refusal(f"an operand of {len(r.shape(node.input[0]))} dimensions; 3 or 4 are supported")
    if not _wait(r, node):
        _float_conv(r, node)


def gemm(r: Reader, node: Any) -> None:
    """Gemm, as `conv`."""
    a = attributes(node)
    if a.get("transA"):
        raise Refusal("a transposed operand (transA); transpose it before")
    transposed, alpha, beta = bool(a.get("transB")), float(a.get("alpha", 1)), float(a.get("beta", 1))
    if not all(n in r.v.constants or n in r.quantized for n in node.input[1:] if n):
        _gemm_of_tensors(r, node, transposed, alpha, beta)
    elif (alpha, beta) != (1, 1) or not _wait(r, node):
        _float_gemm(r, node, transposed, alpha, beta)


def matmul(r: Reader, node: Any) -> None:
    """MatMul, as `conv` with constant weights."""
    b = node.input[1]
    quantized = r.quantized.get(b)
    if quantized is not None and quantized.data.ndim == 2 and _wait(r, node):
        return
    constant = b in r.v.constants or b in r.quantized
    if constant and r.constant(b, "the weights").ndim == 2:
        _float_gemm(r, node, False, 1.0, 1.0)
        return
    operands = [plain_real(r, name) for name in node.input]
    r.make(node, node.output[0], "BATCH_MATMUL", operands, range(len(r.shape(node.output[0]))))


def _wait(r: Reader, node: Any) -> bool:
    """Note a product of dequantized operands; False if it is one of real numbers."""
    source, weights = r.lazy.get(node.input[0]), r.quantized.get(node.input[1])
    if not isinstance(source, Chain) or source.nodes or weights is None or r.readers[node.output[0]] != 1:
        return False
    if weights.data.dtype not in (np.int8, np.uint8):
        return False
    bias = None
    if len(node.input) > 2 and node.input[2]:
        name = node.input[2]
        given = r.quantized.get(name)
        whole = given is not None and given.data.dtype == np.int32
        bias = given.data if whole and given else r.constant(name, "the bias")
    r.lazy[node.output[0]] = Product(node, source, weights, bias)
    return True


def compute_product(r: Reader, output: str, product: Product, out: Out | None = None) -> None:
    """A product that waited: in integers if its result is quantized, though ONNX Runtime has it in float32."""
    node = product.node
    if out is None:
        r.lazy.pop(node.output[0], None)
        if node.op_type == "Conv":
            _float_conv(r, node)
        else:
            _float_gemm(r, node, bool(attributes(node).get("transB")), 1.0, 1.0)
        if product.clamp != (None, None):
            clip_real(r, node, node.output[0], output, product.clamp)
        return
    weights, bias = product.weights, product.bias
    axis = 0 if node.op_type == "Conv" or attributes(node).get("transB") else 1
    if weights.scales.size > 1 and weights.axis != axis:
        raise Refusal(f"weights with scales along axis {weights.axis}; quantize them along the output channels")
    if bias is not None and bias.dtype != np.int32:
        scales = product.source.scale * weights.scales
        bias = np.clip(np.rint(bias.reshape(-1) / scales), -(2**31), 2**31 - 1).astype(np.int32)
    options: dict[str, Any] = {"in_float": IN_FLOAT}
    low, high = product.clamp
    if (low, high) != (None, None):
        options["limits"] = _limits(low, high, out)
    source = product.source.scale, product.source.zero_point
    if node.op_type == "Conv":
        _conv(r, node, product.source.source, source, weights, bias, output, out, **options)
    else:
        transposed = bool(attributes(node).get("transB"))
        _gemm(r, node, product.source.source, source, weights, transposed, bias, output, out, **options)


def _limits(low: float | None, high: float | None, out: Out) -> tuple[int, int]:
    """A clamp of real numbers as one of quantized ones, as they are held."""
    dtype, scale, zero_point = out
    info = np.iinfo(dtype)
    shift = RECENTRED if dtype == UINT8 else 0

    def quantize(value: float | None, otherwise: int) -> int:
        if value is None:
            return otherwise - shift
        whole = int(np.rint(np.float32(value) / scale)) + zero_point
        return max(int(info.min), min(int(info.max), whole)) - shift

    return quantize(low, int(info.min)), quantize(high, int(info.max))


def plain_real(r: Reader, name: str) -> int:
    r.force(name)
    return r.v.plain(name)


def _float_conv(r: Reader, node: Any, kind: str = "CONV_2D") -> None:
    x, output = node.input[0], node.output[0]
    r.force(x)
    weights = r.constant(node.input[1], "the weights")
    geometry = geometry_of(r, node, x, weights.shape[2:])
    data = _last(weights if weights.ndim == 4 else weights[:, :, None])
    bias = r.constant(node.input[2], "the bias") if len(node.input) > 2 and node.input[2] else None
    operands = [r.v.image(x), r.v.constant(data, name=node.input[1]), _bias(r, bias)]
    _image_output(r, node, output, kind, operands, TensorType(image_shape(r.shape(output)), "float32"), geometry)


def conv_transpose(r: Reader, node: Any) -> None:
    """ConvTranspose, in float32 as ONNX Runtime has it."""
    x, output = node.input[0], node.output[0]
    a = attributes(node)
    count = len(r.shape(x)) - 2
    if count not in (1, 2):
        raise Refusal(f"{count} dimensions; use one of rows and columns, or of one of them")
    r.force(x)
    weights = _spread(r.constant(node.input[1], "the weights"), int(a.get("group", 1)), a.get("dilations"))
    window = weights.shape[2:]
    strides = [int(v) for v in a.get("strides", [1] * count)]
    size, result = r.shape(x)[2:], r.shape(output)[2:]
    pads = [int(v) for v in a.get("pads", [0] * 2 * count)]
    if a.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or "output_shape" in a:
        total = [max(0, (size[i] - 1) * strides[i] + window[i] - result[i]) for i in range(count)]
        upper = a.get("auto_pad") == b"SAME_UPPER"
        first = [t // 2 if upper else t - t // 2 for t in total]
        pads = [*first, *(t - f for t, f in zip(total, first, strict=True))]
    if count == 1:
        weights, strides, pads = weights[:, :, None], [1, *strides], [0, pads[0], 0, pads[1]]
    data = np.ascontiguousarray(weights.transpose(1, 2, 3, 0))
    bias = r.constant(node.input[2], "the bias") if len(node.input) > 2 and node.input[2] else None
    shape = image_shape(r.shape(output))
    sizes = r.v.constant(np.array(shape, np.int32), name="shape")
    operands = [sizes, r.v.constant(data, name=node.input[1]), r.v.image(x), _bias(r, bias)]
    options = {"strides": tuple(strides), "dilation": (1, 1), "padding": tuple(pads), "activation": "NONE"}
    _image_output(r, node, output, "TRANSPOSE_CONV", operands, TensorType(shape, "float32"), options)


def _spread(weights: NDArray, groups: int, dilation: Sequence[int] | None) -> NDArray:
    """Weights [c, k / groups, ...] of a transposed convolution without groups and dilation: zeros lie between them."""
    channels, each, *window = weights.shape
    by = [int(v) for v in dilation or [1] * len(window)]
    inside = channels // groups
    shape = [channels, each * groups, *((n - 1) * d + 1 for n, d in zip(window, by, strict=True))]
    result = np.zeros(shape, weights.dtype)
    apart = tuple(slice(None, None, d) for d in by)
    for g in range(groups):
        those = slice(g * inside, (g + 1) * inside)
        result[(those, slice(g * each, (g + 1) * each), *apart)] = weights[those]
    return result


def _float_gemm(r: Reader, node: Any, transposed: bool, alpha: float, beta: float) -> None:
    x, output = node.input[0], node.output[0]
    r.force(x)
    weights = r.constant(node.input[1], "the weights").astype(np.float32) * np.float32(alpha)
    index, data = _flat_operand(r, x, weights if transposed else weights.T)
    shape = r.shape(output)
    bias, other = None, None
    if len(node.input) > 2 and node.input[2]:
        given = r.constant(node.input[2], "the bias") * np.float32(beta)
        if given.size == math.prod(given.shape[-1:]):
            bias = np.broadcast_to(given.reshape(-1), shape[-1:])
        else:
            other = r.v.constant(given, name=node.input[2])
    operands = [index, r.v.constant(data, name=node.input[1]), _bias(r, bias)]
    t = TensorType(shape, "float32")
    options = {"activation": "NONE", "keep_num_dims": len(shape) > 2}
    if other is not None:
        product = r.v.add(f"{output} (product)", t)
        r.v.emit("FULLY_CONNECTED", operands, [product], options, rounding="onnx")
        target = r.emit(node, output, "ADD", [product, other], t, None, {"activation": "NONE"})
    else:
        target = r.emit(node, output, "FULLY_CONNECTED", operands, t, None, options)
    r.v.hold(output, target)


def _gemm_of_tensors(r: Reader, node: Any, transposed: bool, alpha: float, beta: float) -> None:
    """A Gemm whose weights or bias are computed: a product, then factors and a sum, as they are asked for."""
    output, shape = node.output[0], r.shape(node.output[0])
    x, y = (plain_real(r, name) for name in node.input[:2])
    y = r.v.transposed(y, (1, 0)) if transposed else y

    def append(kind: str, operands: list[int], size: tuple[int, ...]) -> int:
        target = r.v.add(f"{output} ({kind.lower()})", TensorType(size, "float32"))
        r.v.emit(kind, operands, [target], {"activation": "NONE"}, rounding="onnx")
        return target

    def scaled(value: int, factor: float) -> int:
        if factor == 1:
            return value
        return append("MUL", [value, r.v.constant(np.array(factor, np.float32), name="factor")], r.v.type(value).shape)

    total = scaled(append("BATCH_MATMUL", [x, y], shape), alpha)
    if len(node.input) > 2 and node.input[2]:
        total = append("ADD", [total, scaled(plain_real(r, node.input[2]), beta)], shape)
    r.v.hold(output, r.v.renamed(total, TensorType(shape, "float32"), output))


def einsum(r: Reader, node: Any) -> None:
    """Einsum in float32."""
    operands = [plain_real(r, name) for name in node.input]
    equation = attributes(node)["equation"].decode().replace(" ", "")
    r.make(node, node.output[0], "EINSUM", operands, range(len(r.shape(node.output[0]))), equation=equation)
