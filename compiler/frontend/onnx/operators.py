"""How each operator of a planned network is read: a function of the reader and the node."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.operation import Quantization, TensorType

from . import movement, resizing
from .order import Axes, Shape, channels_last, order_of, take
from .reader import Product, QuantizedConstant, Reader, Refusal
from .support import attributes, edges
from .tables import Chain
from .values import RECENTRED, image_shape

__all__ = ["OPERATORS", "compute_product"]

IN_FLOAT = "ONNX Runtime computes it in float32"


def quantize_linear(r: Reader, node: Any) -> None:
    """QuantizeLinear of what was computed, or the end of a chain."""
    name, out = node.input[0], node.output[0]
    scale, zero_point, dtype = _output_scale(r, node, 1, 2)
    lazy = r.lazy.get(name)
    if isinstance(lazy, Product):
        compute_product(r, out, lazy, (dtype, scale, zero_point))
        return
    if isinstance(lazy, Chain):
        r.of_chain(out, lazy, (dtype, scale, zero_point))
        return
    r.force(name)
    if name in r.v.constants:
        limits = np.iinfo(dtype)
        scaled = np.rint(r.v.constants[name] / scale) + zero_point
        r.v.constants[out] = np.clip(scaled, limits.min, limits.max).astype(dtype)
        r.v.shapes[out] = r.v.constants[out].shape
        return
    held = r.v.held[name][0]
    t = r.quantized_type(r.v.type(held.index).shape, dtype, scale, zero_point)
    r.emit(node, out, "QUANTIZE", [held.index], t, None)
    r.v.held[out] = [dataclasses.replace(held, index=len(r.v.values) - 1)]


def _output_scale(r: Reader, node: Any, scale: int, zero_point: int) -> tuple[np.float32, int, str]:
    """Scale, zero point and type that a node quantizes its output to."""
    name = node.input[zero_point] if len(node.input) > zero_point else ""
    value, zero = r.scale_of(node.input[scale], name)
    return value, zero, r.dtypes[name] if name else "uint8"


def dequantize_linear(r: Reader, node: Any) -> None:
    """DequantizeLinear: of a constant, or the beginning of a chain."""
    name, out = node.input[0], node.output[0]
    scales = r.constant(node.input[1], "the scale").astype(np.float32)
    zero = r.constant(node.input[2], "the zero point") if len(node.input) > 2 and node.input[2] else np.zeros(1)
    if name in r.v.constants:
        data = r.v.constants[name]
        axis = int(attributes(node).get("axis", 1)) % max(data.ndim, 1)
        points = np.broadcast_to(zero.reshape(-1).astype(np.int64), scales.reshape(-1).shape)
        r.quantized[out] = QuantizedConstant(data, scales.reshape(-1), points, axis)
        r.v.shapes[out] = data.shape
        return
    if scales.size != 1:
        raise Refusal("a tensor quantized per channel that is not constant; quantize activations per tensor")
    dtype = r.dtypes[name]
    if dtype not in ("int8", "uint8"):
        raise Refusal(f"an operand of {dtype}; quantize activations to int8 or uint8")
    chain = Chain(name, dtype, scales.reshape(-1)[0], int(zero.reshape(-1)[0]), (), out)
    r.lazy[out] = chain


# Products


def qlinear_conv(r: Reader, node: Any) -> None:
    """QLinearConv."""
    x, (scale, zero_point) = node.input[0], r.scale_of(node.input[1], node.input[2])
    weights = _constant_weights(r, *node.input[3:6], axis=0)
    out = _output_scale(r, node, 6, 7)
    bias = r.constant(node.input[8], "the bias") if len(node.input) > 8 and node.input[8] else None
    _conv(r, node, x, (scale, zero_point), weights, bias, node.output[0], (out[2], out[0], out[1]))


def _constant_weights(r: Reader, data: str, scale: str, zero_point: str, *, axis: int) -> QuantizedConstant:
    values = r.constant(data, "the weights")
    scales = r.constant(scale, "the weights' scale").reshape(-1).astype(np.float32)
    zero = r.constant(zero_point, "the weights' zero point").reshape(-1) if zero_point else np.zeros(1)
    points = np.broadcast_to(zero.astype(np.int64), scales.shape if zero.size == 1 else zero.shape)
    return QuantizedConstant(values, np.broadcast_to(scales, points.shape), points, axis)


Out = tuple[str, np.float32, int]
"""Type, scale and zero point of the file"""


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
    geometry = _geometry(r, node, x, data.shape[2:])
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


def _geometry(r: Reader, node: Any, x: str, window: Sequence[int]) -> dict[str, Any]:
    """Strides, dilation and padding of a convolution or pool, for rows and columns."""
    a = attributes(node)
    count = len(window)
    strides = [int(v) for v in a.get("strides", [1] * count)]
    dilation = [int(v) for v in a.get("dilations", [1] * count)]
    pads = edges(a, r.shape(x)[2:], r.shape(node.output[0])[2:], window, strides, dilation)
    if min(pads) < 0:
        raise Refusal(f"pads {pads}; negative padding is not supported, slice the operand first")
    first, last = pads[:count], pads[count:]
    if count == 1:
        strides, dilation, first, last = [1, *strides], [1, *dilation], [0, *first], [0, *last]
    if len(strides) != 2:
        raise Refusal(f"{count} dimensions; use one of rows and columns, or of one of them")
    return {"strides": tuple(strides), "dilation": tuple(dilation), "padding": (*first, *last), "activation": "NONE"}


def qgemm(r: Reader, node: Any) -> None:
    """QGemm with constant weights."""
    a = attributes(node)
    if a.get("transA"):
        raise Refusal("a transposed operand (transA); transpose it before")
    weights = _constant_weights(r, *node.input[3:6], axis=0 if a.get("transB") else 1)
    bias = r.constant(node.input[6], "the bias") if len(node.input) > 6 and node.input[6] else None
    out = _optional_output(r, node, 7, 8)
    alpha = np.float32(a.get("alpha", 1.0))
    weights = dataclasses.replace(weights, scales=weights.scales if alpha == 1 else weights.scales * alpha)
    source = r.scale_of(node.input[1], node.input[2])
    _gemm(r, node, node.input[0], source, weights, bool(a.get("transB")), bias, node.output[0], out)


def _optional_output(r: Reader, node: Any, scale: int, zero_point: int) -> Out | None:
    if len(node.input) <= scale or not node.input[scale]:
        return None
    value, zero, dtype = _output_scale(r, node, scale, zero_point)
    return dtype, value, zero


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
    if weights.data.ndim != 2:
        raise Refusal(f"weights of shape {list(weights.data.shape)}; they must have two dimensions")
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
    value, zero, dtype = _output_scale(r, node, 6, 7)
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
    plain = float(a.get("alpha", 1)) == 1 and float(a.get("beta", 1)) == 1
    if not plain or not _wait(r, node):
        _float_gemm(r, node, bool(a.get("transB")), float(a.get("alpha", 1)), float(a.get("beta", 1)))


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
    operands = [_plain_real(r, name) for name in node.input]
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
        a = attributes(node)
        if product.clamp != (None, None):
            raise Refusal("a clamped product that is not quantized")
        if node.op_type == "Conv":
            _float_conv(r, node)
        else:
            _float_gemm(r, node, bool(a.get("transB")), 1.0, 1.0)
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
    shift = RECENTRED if dtype == "uint8" else 0

    def quantize(value: float | None, otherwise: int) -> int:
        if value is None:
            return otherwise - shift
        whole = int(np.rint(np.float32(value) / scale)) + zero_point
        return max(int(info.min), min(int(info.max), whole)) - shift

    return quantize(low, int(info.min)), quantize(high, int(info.max))


def _plain_real(r: Reader, name: str) -> int:
    r.force(name)
    return r.v.plain(name)


def _float_conv(r: Reader, node: Any, kind: str = "CONV_2D") -> None:
    x, output = node.input[0], node.output[0]
    r.force(x)
    weights = r.constant(node.input[1], "the weights")
    geometry = _geometry(r, node, x, weights.shape[2:])
    data = _last(weights if weights.ndim == 4 else weights[:, :, None])
    bias = r.constant(node.input[2], "the bias") if len(node.input) > 2 and node.input[2] else None
    operands = [r.v.image(x), r.v.constant(data, name=node.input[1]), _bias(r, bias)]
    _image_output(r, node, output, kind, operands, TensorType(image_shape(r.shape(output)), "float32"), geometry)


def conv_transpose(r: Reader, node: Any) -> None:
    """ConvTranspose, in float32 as ONNX Runtime has it."""
    x, output = node.input[0], node.output[0]
    a = attributes(node)
    if len(r.shape(x)) != 4 or int(a.get("group", 1)) != 1:
        raise Refusal("groups, or other than rows and columns; use one group on images")
    r.force(x)
    weights = r.constant(node.input[1], "the weights")  # [c, k, rows, columns]
    window = weights.shape[2:]
    strides = tuple(int(v) for v in a.get("strides", (1, 1)))
    if tuple(a.get("dilations", (1, 1))) != (1, 1):
        raise Refusal("dilation; use 1")
    size, result = r.shape(x)[2:], r.shape(output)[2:]
    pads = [int(v) for v in a.get("pads", (0,) * 4)]
    if a.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        total = [(size[i] - 1) * strides[i] + window[i] - result[i] for i in (0, 1)]
        upper = a["auto_pad"] == b"SAME_UPPER"
        first = [t // 2 if upper else t - t // 2 for t in total]
        pads = [*first, *(t - f for t, f in zip(total, first, strict=True))]
    data = np.ascontiguousarray(weights.transpose(1, 2, 3, 0))
    bias = r.constant(node.input[2], "the bias") if len(node.input) > 2 and node.input[2] else None
    shape = image_shape(r.shape(output))
    sizes = r.v.constant(np.array(shape, np.int32), name="shape")
    operands = [sizes, r.v.constant(data, name=node.input[1]), r.v.image(x), _bias(r, bias)]
    options = {"strides": strides, "dilation": (1, 1), "padding": tuple(pads), "activation": "NONE"}
    _image_output(r, node, output, "TRANSPOSE_CONV", operands, TensorType(shape, "float32"), options)


def _float_gemm(r: Reader, node: Any, transposed: bool, alpha: float, beta: float) -> None:
    x, output = node.input[0], node.output[0]
    r.force(x)
    weights = r.constant(node.input[1], "the weights").astype(np.float32) * np.float32(alpha)
    index, data = _flat_operand(r, x, weights if transposed else weights.T)
    bias = None
    if len(node.input) > 2 and node.input[2]:
        bias = np.broadcast_to(r.constant(node.input[2], "the bias") * np.float32(beta), r.shape(output)[-1:])
    shape = r.shape(output)
    operands = [index, r.v.constant(data, name=node.input[1]), _bias(r, bias)]
    target = r.emit(node, output, "FULLY_CONNECTED", operands, TensorType(shape, "float32"), None,
                    {"activation": "NONE", "keep_num_dims": len(shape) > 2})  # fmt: skip
    r.v.hold(output, target)


# Elementwise


def qlinear_binary(kind: str) -> Callable[[Reader, Any], None]:
    """QLinearAdd and QLinearMul."""

    def read(r: Reader, node: Any) -> None:
        a, b = node.input[0], node.input[3]
        value, zero, dtype = _output_scale(r, node, 6, 7)
        scales = (r.scale_of(node.input[1], node.input[2]), r.scale_of(node.input[4], node.input[5]))
        for name, (scale, zero_point) in zip((a, b), scales, strict=True):
            if name not in r.v.constants:
                r.integer(name, scale, zero_point)
        axes = _common_axes(r, (a, b), node.output[0])
        operands = [_operand(r, n, node.output[0], axes, s) for n, s in zip((a, b), scales, strict=True)]
        options: dict[str, Any] = {"activation": "NONE"}
        if dtype == "uint8":
            options["recentred"] = RECENTRED
        if kind == "ADD":
            options |= _add_options(r.shape(a), r.shape(b))
        t = r.quantized_type(take(r.shape(node.output[0]), axes), dtype, value, zero)
        r.emit(node, node.output[0], kind, operands, t, axes, options)

    return read


def _add_options(a: Shape, b: Shape) -> dict[str, Any]:
    """Whether ONNX Runtime takes the second operand first, and whether that is not known."""
    if math.prod(a) == 1 and math.prod(b) > 1:
        return {"scalar_first": True}
    if a != b and math.prod(b) > 1:
        return {"in_float": "with broadcasting, the order of ONNX Runtime's float32 sums is not known"}
    return {}


def _common_axes(r: Reader, names: Sequence[str], output: str) -> Axes:
    """The order of axes in which an elementwise operator runs: that of an operand that needs no transposition."""
    shape = r.shape(output)
    plain = tuple(range(len(shape)))
    found = [r.v.axes(n) for n in names if n not in r.v.constants and r.shape(n) == shape]
    return next((axes for axes in found if axes not in (None, plain)), None) or plain


def _operand(r: Reader, name: str, output: str, axes: Axes, quantization: tuple[np.float32, int] | None = None) -> int:
    """An operand of an elementwise operator with its axes as the output's, those it lacks are 1."""
    rank = len(r.shape(output))
    shape = (1,) * (rank - len(r.shape(name))) + r.shape(name)
    if name in r.v.constants:
        data = np.ascontiguousarray(r.v.constants[name].reshape(shape).transpose(axes))
        if quantization is None:
            return r.v.constant(data, name=name)
        shift = RECENTRED if data.dtype == np.uint8 else 0
        q = Quantization.per_tensor(float(quantization[0]), quantization[1] - shift)
        return r.v.constant((data.astype(np.int16) - shift).astype(np.int8), q, name=name)
    return r.v.get(name, order_of(shape, axes), take(shape, axes))


def unary(kind: str, *options: str) -> Callable[[Reader, Any], None]:
    """An operator on one real number; options: attributes that it has."""

    def read(r: Reader, node: Any) -> None:
        name, out = node.input[0], node.output[0]
        if _extend(r, node, (name,)):
            return
        r.force(name)
        a = attributes(node)
        chosen = {o: _plain_attribute(a[o]) for o in options if o in a}
        _of_one(r, node, kind, name, out, chosen)

    return read


def _plain_attribute(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _of_one(r: Reader, node: Any, kind: str, name: str, out: str, options: Mapping[str, Any]) -> None:
    held = r.v.held[name][0]
    t = TensorType(r.v.type(held.index).shape, r.dtypes.get(out, "float32"))
    target = r.emit(node, out, kind, [held.index], t, None, dict(options))
    r.v.held[out] = [dataclasses.replace(held, index=target)]


def _extend(r: Reader, node: Any, names: Sequence[str]) -> bool:
    """Make a node part of the chain before it, if its other operands are constants of one value."""
    chains = [(n, r.lazy[n]) for n in names if isinstance(r.lazy.get(n), Chain)]
    others = [n for n in node.input if n and n not in [c[0] for c in chains]]
    if len(chains) != 1 or any(_size(r, n) != 1 for n in others):
        return False
    name, chain = chains[0]
    assert isinstance(chain, Chain)
    if r.shape(node.output[0]) != r.shape(name):
        return False
    for other in others:
        r.constant(other, "an operand")
    r.lazy[node.output[0]] = dataclasses.replace(chain, nodes=(*chain.nodes, node))
    return True


def _size(r: Reader, name: str) -> int:
    """Elements of a constant; 0 if it is none."""
    if name in r.v.constants:
        return int(r.v.constants[name].size)
    return int(r.quantized[name].data.size) if name in r.quantized else 0


def binary(kind: str) -> Callable[[Reader, Any], None]:
    """An operator on two real numbers."""

    def read(r: Reader, node: Any) -> None:
        if _extend(r, node, list(node.input)):
            return
        for name in node.input:
            r.force(name)
        out = node.output[0]
        if r.dtypes.get(out, "float32") != "float32":
            raise Refusal(f"{r.dtypes[out]}; float32 is supported")
        axes = _common_axes(r, node.input, out)
        operands = [_operand(r, name, out, axes) for name in node.input]
        r.make(node, out, kind, operands, axes, activation="NONE")

    return read


def variadic(kind: str) -> Callable[[Reader, Any], None]:
    """Max, Min and Sum of two operands."""

    def read(r: Reader, node: Any) -> None:
        if len(node.input) != 2:
            raise Refusal(f"{len(node.input)} operands; two are supported")
        binary(kind)(r, node)

    return read


def relu(r: Reader, node: Any) -> None:
    """Relu: of a product that waits, a limit of its result."""
    if not _clamp(r, node, 0.0, None):
        unary("RELU")(r, node)


def clip(r: Reader, node: Any) -> None:
    """Clip of real numbers, as `relu`, or of quantized ones."""
    name = node.input[0]
    bounds = [float(r.scalar(n, "a bound")) if n else None for n in [*node.input[1:], "", ""][:2]]
    if r.dtypes.get(name) in ("int8", "uint8"):
        _clip_integers(r, node, bounds)
        return
    if _clamp(r, node, *bounds) or _extend(r, node, (name,)):
        return
    r.force(name)
    options = {key: value for key, value in zip(("min", "max"), bounds, strict=True) if value is not None}
    _of_one(r, node, "CLIP", name, node.output[0], {k: v for k, v in options.items() if abs(v) < 1 << 32})


def _clamp(r: Reader, node: Any, low: float | None, high: float | None) -> bool:
    product = r.lazy.get(node.input[0])
    if not isinstance(product, Product) or r.readers[node.output[0]] != 1 or product.clamp != (None, None):
        return False
    r.lazy[node.output[0]] = dataclasses.replace(product, clamp=(low, high))
    return True


def _clip_integers(r: Reader, node: Any, bounds: Sequence[float | None]) -> None:
    """A table, or a limit of the operator that makes the operand."""
    name, out = node.input[0], node.output[0]
    shift = RECENTRED if r.dtypes[name] == "uint8" else 0
    low, high = (
        default if bound is None else int(bound) - shift for bound, default in zip(bounds, (-128, 127), strict=True)
    )
    held = r.v.held[name][0]
    maker = next((n for n in r.v.nodes if held.index in n.outputs), None)
    if maker is not None and maker.operation.rounding == "onnx" and r.readers[name] == 1:
        known = maker.operation.options.get("limits", (-128, 127))
        options = {**maker.operation.options, "limits": (max(known[0], low), min(known[1], high))}
        changed = dataclasses.replace(maker, operation=dataclasses.replace(maker.operation, options=options))
        r.v.nodes[r.v.nodes.index(maker)] = changed
        r.v.held[out] = [held]
        return
    table = r.v.constant(np.clip(np.arange(-128, 128), low, high).astype(np.int8), name=f"{out} (table)")
    target = r.emit(node, out, "TABLE", [held.index, table], r.v.type(held.index), None)
    r.v.held[out] = [dataclasses.replace(held, index=target)]


def qlinear_function(r: Reader, node: Any) -> None:
    """QLinearSigmoid, QLinearLeakyRelu: tables that ONNX Runtime fills."""
    from .tables import run_nodes

    name, out = node.input[0], node.output[0]
    scale, zero_point = r.scale_of(node.input[1], node.input[2])
    value, zero, dtype = _output_scale(r, node, 3, 4)
    source = r.integer(name, scale, zero_point)
    from onnx import numpy_helper

    initializers = [numpy_helper.from_array(r.constant(n, "a scale"), n) for n in dict.fromkeys(node.input[1:])]
    values = (np.arange(256) + (0 if r.dtypes[name] == "uint8" else -128)).astype(r.dtypes[name])
    (answers,) = run_nodes(r.plan.planned, [node], initializers, {name: values}, [out])
    if dtype == "uint8":
        answers = (answers.astype(np.int16) - RECENTRED).astype(np.int8)
    t = r.quantized_type(r.v.type(source).shape, dtype, value, zero)
    table = r.v.constant(answers, name=f"{out} (table)")
    target = r.emit(node, out, "TABLE", [source, table], t, None)
    r.v.held[out] = [dataclasses.replace(r.v.held[name][0], index=target)]


def identity(r: Reader, node: Any) -> None:
    """Identity, Dropout: the same under another name."""
    name, out = node.input[0], node.output[0]
    if any(r.readers[o] for o in node.output[1:]):
        raise Refusal("its mask is read; export the model for inference")
    if name in r.lazy:
        r.lazy[out] = r.lazy[name]
    elif name in r.quantized:
        r.quantized[out] = r.quantized[name]
    elif name in r.v.constants:
        r.v.constants[out] = r.v.constants[name]
    else:
        r.v.held[out] = list(r.v.held[name])


def cast(r: Reader, node: Any) -> None:
    """Cast of numbers."""
    name, out = node.input[0], node.output[0]
    r.force(name)
    if r.dtypes.get(name) == r.dtypes.get(out):
        identity(r, node)
        return
    held = r.v.held[name][0]
    t = TensorType(r.v.type(held.index).shape, r.dtypes[out])
    target = r.emit(node, out, "CAST", [held.index], t, None, {}, "tflite")
    r.v.held[out] = [dataclasses.replace(held, index=target)]


def batch_normalization(r: Reader, node: Any) -> None:
    """BatchNormalization in float32: a product and a sum by channel."""
    x, out = node.input[0], node.output[0]
    r.force(x)
    gamma, beta, mean, variance = (r.constant(n, "a parameter").astype(np.float32) for n in node.input[1:5])
    factor = gamma / np.sqrt(variance + np.float32(attributes(node).get("epsilon", 1e-5)))
    shape = r.shape(out)
    axes = r.v.axes(x) or tuple(range(len(shape)))
    by_channel = (1, len(gamma), *(1,) * (len(shape) - 2))
    why = {"activation": "NONE", "in_float": "float32 arithmetic in another order than ONNX Runtime's"}
    t = TensorType(take(shape, axes), "float32")
    product = r.v.add(f"{out} (product)", t)
    constants = [r.v.constant(c.reshape(by_channel).transpose(axes)) for c in (factor, beta - mean * factor)]
    r.v.emit("MUL", [r.v.along(x, axes), constants[0]], [product], why, rounding="onnx")
    r.emit(node, out, "ADD", [product, constants[1]], t, axes, why)


# Pools, sums, softmax


def max_pool(r: Reader, node: Any) -> None:
    """MaxPool of integers or real numbers: padding never wins."""
    if len(node.output) > 1 and node.output[1] and r.readers[node.output[1]]:
        raise Refusal("its indices are read; only the maxima are supported")
    _pool(r, node, "MAX_POOL_2D", rounding="tflite")


def average_pool(r: Reader, node: Any) -> None:
    """AveragePool of real numbers."""
    _pool(r, node, "AVERAGE_POOL_2D", count_padding=bool(attributes(node).get("count_include_pad", 0)))


def qlinear_average_pool(r: Reader, node: Any) -> None:
    """QLinearAveragePool."""
    r.integer(node.input[0], *r.scale_of(node.input[1], node.input[2]))
    value, zero, dtype = _output_scale(r, node, 3, 4)
    counts = bool(attributes(node).get("count_include_pad", 0))
    shift: dict[str, Any] = {"recentred": RECENTRED} if dtype == "uint8" else {}
    _pool(r, node, "AVERAGE_POOL_2D", out=(dtype, value, zero), count_padding=counts, **shift)


def _pool(r: Reader, node: Any, kind: str, *, out: Out | None = None, rounding: str = "onnx", **options: Any) -> None:
    x, output = node.input[0], node.output[0]
    if attributes(node).get("channels_last"):
        raise Refusal("channels last; export the model as ONNX has it")
    r.force(x)
    window = [int(v) for v in attributes(node)["kernel_shape"]]
    geometry = _geometry(r, node, x, window)
    if geometry.pop("dilation") != (1, 1):
        raise Refusal("a dilated pool; use a dilation of 1")
    index = r.v.image(x)
    shape = image_shape(r.shape(output))
    source = r.v.type(index)
    t = TensorType(shape, source.dtype, source.quantization) if out is None else r.quantized_type(shape, *out)
    geometry["window"] = tuple(window) if len(window) == 2 else (1, *window)
    operands: list[int | None] = [index]
    rank = len(r.shape(output))
    target = r.emit(node, output, kind, operands, t, None, {**geometry, **options}, rounding)
    r.v.hold(output, target, channels_last(rank))


def global_pool(kind: str) -> Callable[[Reader, Any], None]:
    """GlobalAveragePool, GlobalMaxPool."""

    def read(r: Reader, node: Any) -> None:
        r.force(node.input[0])
        axes = range(2, len(r.shape(node.input[0])))
        movement.reduce(r, node, kind, tuple(axes), True, "onnx" if kind == "MEAN" else "tflite")

    return read


def qlinear_global_average_pool(r: Reader, node: Any) -> None:
    """QLinearGlobalAveragePool."""
    x = node.input[0]
    if attributes(node).get("channels_last"):
        raise Refusal("channels last; export the model as ONNX has it")
    r.integer(x, *r.scale_of(node.input[1], node.input[2]))
    value, zero, dtype = _output_scale(r, node, 3, 4)
    movement.reduce(r, node, "MEAN", tuple(range(2, len(r.shape(x)))), True, "onnx", (dtype, value, zero))


def reduction(kind: str, rounding: str) -> Callable[[Reader, Any], None]:
    """ReduceMean, ReduceSum, ReduceMax, ReduceMin."""

    def read(r: Reader, node: Any) -> None:
        a = attributes(node)
        r.force(node.input[0])
        rank = len(r.shape(node.input[0]))
        given = a.get("axes")
        if given is None and len(node.input) > 1 and node.input[1]:
            given = r.constant(node.input[1], "its axes").reshape(-1).tolist()
        if given is None and a.get("noop_with_empty_axes"):
            identity(r, node)
            return
        axes = tuple(int(v) % rank for v in given) if given is not None and len(given) else tuple(range(rank))
        movement.reduce(r, node, kind, axes, bool(a.get("keepdims", 1)), rounding)

    return read


def softmax(kind: str) -> Callable[[Reader, Any], None]:
    """Softmax and LogSoftmax of real numbers."""

    def read(r: Reader, node: Any) -> None:
        x, out = node.input[0], node.output[0]
        r.force(x)
        shape = r.shape(out)
        axes = r.v.axes(x) or tuple(range(len(shape)))
        axis = int(attributes(node).get("axis", -1)) % len(shape)
        r.make(node, out, kind, [r.v.along(x, axes)], axes, axis=axes.index(axis))

    return read


def qlinear_softmax(r: Reader, node: Any) -> None:
    """QLinearSoftmax."""
    x, out = node.input[0], node.output[0]
    a = attributes(node)
    r.integer(x, *r.scale_of(node.input[1], node.input[2]))
    value, zero, dtype = _output_scale(r, node, 3, 4)
    shape = r.shape(out)
    axis = int(a.get("axis", -1)) % len(shape)
    if int(a.get("opset", 13)) < 13 and axis != len(shape) - 1:
        raise Refusal("the softmax of opset 12 over several axes; export the model with opset 13 or newer")
    axes = r.v.axes(x) or tuple(range(len(shape)))
    t = r.quantized_type(take(shape, axes), dtype, value, zero)
    r.emit(node, out, "SOFTMAX", [r.v.along(x, axes)], t, axes, {"axis": axes.index(axis)})


def layer_normalization(r: Reader, node: Any) -> None:
    """LayerNormalization in float32."""
    x, out = node.input[0], node.output[0]
    a = attributes(node)
    for name in node.input:
        r.force(name)
    operands = [r.v.plain(x), *(r.v.constant(r.constant(n, "a parameter")) for n in node.input[1:] if n)]
    rank = len(r.shape(out))
    axis, epsilon = int(a.get("axis", -1)), float(a.get("epsilon", 1e-5))
    r.make(node, out, "LAYER_NORMALIZATION", operands, range(rank), axis=axis, epsilon=epsilon)


OPERATORS: dict[str, Callable[[Reader, Any], None]] = {
    **movement.OPERATORS,
    "Abs": unary("ABS"),
    "Add": binary("ADD"),
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Cast": cast,
    "Ceil": unary("CEIL"),
    "Celu": unary("CELU", "alpha"),
    "Clip": clip,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Cos": unary("COS"),
    "DequantizeLinear": dequantize_linear,
    "Div": binary("DIV"),
    "Dropout": identity,
    "Elu": unary("ELU", "alpha"),
    "Erf": unary("ERF"),
    "Exp": unary("EXP"),
    "Floor": unary("FLOOR"),
    "Gelu": unary("GELU", "approximate"),
    "Gemm": gemm,
    "GlobalAveragePool": global_pool("MEAN"),
    "GlobalMaxPool": global_pool("REDUCE_MAX"),
    "HardSigmoid": unary("HARD_SIGMOID", "alpha", "beta"),
    "HardSwish": unary("HARD_SWISH"),
    "Identity": identity,
    "LayerNormalization": layer_normalization,
    "LeakyRelu": unary("LEAKY_RELU", "alpha"),
    "Log": unary("LOG"),
    "LogSoftmax": softmax("LOG_SOFTMAX"),
    "MatMul": matmul,
    "Max": variadic("MAXIMUM"),
    "MaxPool": max_pool,
    "Min": variadic("MINIMUM"),
    "Mish": unary("MISH"),
    "Mul": binary("MUL"),
    "Neg": unary("NEG"),
    "PRelu": binary("PRELU"),
    "Pow": binary("POW"),
    "QGemm": qgemm,
    "QLinearAdd": qlinear_binary("ADD"),
    "QLinearAveragePool": qlinear_average_pool,
    "QLinearConv": qlinear_conv,
    "QLinearGlobalAveragePool": qlinear_global_average_pool,
    "QLinearLeakyRelu": qlinear_function,
    "QLinearMatMul": qlinear_matmul,
    "QLinearMul": qlinear_binary("MUL"),
    "QLinearSigmoid": qlinear_function,
    "QLinearSoftmax": qlinear_softmax,
    "QuantizeLinear": quantize_linear,
    "Reciprocal": unary("RECIPROCAL"),
    "ReduceMax": reduction("REDUCE_MAX", "tflite"),
    "ReduceMean": reduction("MEAN", "onnx"),
    "ReduceMin": reduction("REDUCE_MIN", "tflite"),
    "ReduceSum": reduction("SUM", "onnx"),
    "Relu": relu,
    "Resize": resizing.resize,
    "Round": unary("ROUND"),
    "Selu": unary("SELU", "alpha", "gamma"),
    "Sigmoid": unary("LOGISTIC"),
    "Sign": unary("SIGN"),
    "Sin": unary("SIN"),
    "Softmax": softmax("SOFTMAX"),
    "Softplus": unary("SOFTPLUS"),
    "Softsign": unary("SOFTSIGN"),
    "Sqrt": unary("SQRT"),
    "Sub": binary("SUB"),
    "Sum": variadic("ADD"),
    "Tanh": unary("TANH"),
    "ThresholdedRelu": unary("THRESHOLDED_RELU", "alpha"),
}
"""By the operator's name; those of ONNX Runtime's own domain have names of their own"""
