"""Random files of one operator each: odd shapes, extreme scales and zero points, saturating values.

`cases` yields files that LiteRT's reference kernels take, with inputs. What is checked with them is the caller's
affair: references, compiled code, the accelerator.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.operation import Quantization, TensorType
from tests.one_operator import Case, Operand, Spec, constant, interpret, write

LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767)}


class Draw:
    """Random ingredients of cases.

    prefer: the data type of operands that may have several, if it is one of them.
    """

    def __init__(self, seed: Sequence[int], prefer: str | None = None) -> None:
        self.rng = np.random.default_rng(seed)
        self._prefer = prefer

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def integer(self, low: int, high: int) -> int:
        """Both ends included."""
        return int(self.rng.integers(low, high + 1))

    def dtype(self, *dtypes: str) -> str:
        """The first of them half the time."""
        if self._prefer in dtypes:
            return self._prefer
        return dtypes[0] if self.chance(0.5) else self.pick(*dtypes)

    def scale(self, low: float = 1e-3, high: float = 0.2) -> float:
        """Mostly usual, at times extreme, at times a power of two."""
        if self.chance(0.1):
            return float(np.float32(2.0 ** self.integer(-12, 1)))
        if self.chance(0.1):
            low, high = low * 1e-3, high * 1e3
        elif self.chance(0.03):
            low, high = 1e-7, 1e4
        return float(np.float32(np.exp(self.rng.uniform(np.log(low), np.log(high)))))

    def ratio(self, low: float, high: float) -> float:
        """Of two scales: between the bounds, at times anything."""
        return 10 ** self.rng.uniform(-5, 5) if self.chance(0.06) else self.rng.uniform(low, high)

    def zero_point(self, dtype: str) -> int:
        low, high = LIMITS[dtype]
        if dtype == "int16":
            return 0
        return self.pick(low, high, 0 if dtype == "int8" else 128) if self.chance(0.3) else self.integer(low, high)

    def quantization(self, dtype: str, scale: float | None = None, zero_point: int | None = None) -> Quantization:
        return Quantization.per_tensor(
            self.scale() if scale is None else float(np.float32(scale)),
            self.zero_point(dtype) if zero_point is None else zero_point,
        )

    def shape(self, low: int = 1, high: int = 4, largest: int = 7) -> tuple[int, ...]:
        """Of `low` to `high` dimensions."""
        rank = self.integer(low, high)
        return tuple(self.integer(1, largest) if not self.chance(0.05) else 17 for _ in range(rank))

    def image(self, channels: int | None = None, batch: int | None = None) -> tuple[int, int, int, int]:
        return (
            self.pick(1, 1, 2, 3) if batch is None else batch,
            self.integer(1, 9),
            self.integer(1, 9),
            self.integer(1, 9) if channels is None else channels,
        )

    def type(self, shape: Sequence[int], dtype: str, **quantization: Any) -> TensorType:
        q = self.quantization(dtype, **quantization) if dtype in LIMITS else None
        return TensorType(tuple(shape), dtype, q)

    def values(self, t: TensorType) -> NDArray:
        """Values of the whole range of a type; at times only its ends."""
        if t.dtype == "bool":
            return self.rng.random(t.shape) < 0.5
        if t.dtype == "float32":
            if self.chance(0.03):  # sums and products beyond float32
                return self.rng.choice(np.array([-3e38, -1.0, 0.0, 2.0, 3e38], np.float32), t.shape)
            spread = self.pick(0.5, 5, 60)
            return self.rng.normal(0, spread, t.shape).astype(np.float32)
        if t.dtype == "int4":
            return self.rng.integers(-8, 8, t.shape, np.int8)
        low, high = LIMITS.get(t.dtype, (-1000, 1000))
        if self.chance(0.1):
            return np.where(self.rng.random(t.shape) < 0.5, low, high).astype(t.dtype)
        if self.chance(0.2):
            middle = self.integer(low, high)
            near = self.rng.integers(-3, 4, t.shape) + middle
            return np.clip(near, low, high).astype(t.dtype)
        return self.rng.integers(low, high, t.shape, endpoint=True).astype(t.dtype)

    def operand(self, shape: Sequence[int], dtype: str, **quantization: Any) -> Operand:
        return Operand(self.type(shape, dtype, **quantization))

    def fixed(self, operand: Operand, probability: float) -> Operand:
        """The operand, at times as a constant."""
        return replace(operand, value=self.values(operand.type)) if self.chance(probability) else operand

    def activation(self) -> str:
        return self.pick("NONE", "NONE", "RELU", "RELU6", "RELU_N1_TO_1")


Generator = Callable[[Draw], Spec]


def _like(draw: Draw, operand: Operand, shape: Sequence[int] = (1,)) -> TensorType:
    """An output of the operand's type and quantization."""
    return replace(operand.type, shape=tuple(shape))


# One value


def _unary(kind: str, *dtypes: str, low: float = 1e-3, high: float = 0.2) -> Generator:
    def generate(draw: Draw) -> Spec:
        dtype = draw.dtype(*dtypes)
        shape = draw.shape()
        x = draw.operand(shape, dtype, scale=draw.scale(low, high))
        factor = draw.ratio(0.05, 3)
        scale = x.type.quantization.scale * factor if x.type.quantization else None
        return Spec(kind, [x], [draw.type(shape, dtype, scale=scale)])

    return generate


def _fixed_output(kind: str, scale: float, zero_points: dict[str, int], *dtypes: str) -> Generator:
    def generate(draw: Draw) -> Spec:
        dtype = draw.dtype(*dtypes)
        shape = draw.shape()
        x = draw.operand(shape, dtype)
        step = 1 / 32768 if dtype == "int16" else scale
        return Spec(kind, [x], [draw.type(shape, dtype, scale=step, zero_point=zero_points.get(dtype, 0))])

    return generate


def _hard_swish(draw: Draw) -> Spec:
    low, high = draw.pick((1e-3, 0.2), (1e-3, 0.2), (1e-9, 1e-6), (1e4, 1e6))
    spec = _unary("HARD_SWISH", "int8", "uint8", "float32", low=low, high=high)(draw)
    x = spec.operands[0]
    assert x
    # With one scale the half of an odd value is a tie.
    return replace(spec, outputs=[x.type]) if draw.chance(0.4) else spec


def _leaky_relu(draw: Draw) -> Spec:
    spec = _unary("LEAKY_RELU", "int8", "uint8", "int16", "float32")(draw)
    return replace(spec, options={"alpha": draw.pick(0.1, 0.01, 0.3, 1.0, 1.7, 0.0, -0.5)})


def _gelu(draw: Draw) -> Spec:
    return replace(_unary("GELU", "int8", "uint8", "int16", "float32")(draw), options={"approximate": draw.chance(0.5)})


def _prelu(draw: Draw) -> Spec:
    spec = _unary("PRELU", "int8", "uint8", "int16", "float32")(draw)
    x = spec.operands[0]
    assert x
    shape = tuple(draw.pick(1, n) for n in x.type.shape) if draw.chance(0.5) else x.type.shape[-1:]
    alpha = draw.fixed(draw.operand(shape, "int8" if x.type.dtype == "int16" else x.type.dtype), 0.8)
    return replace(spec, operands=[x, alpha])


def _softmax(draw: Draw) -> Spec:
    dtype = draw.dtype("int8", "int16", "uint8", "float32")
    out = draw.pick("int8", "int16") if dtype == "int8" else dtype
    shape = (*draw.shape(0, 3), draw.pick(1, 2, 10, 300) if draw.chance(0.5) else draw.integer(1, 30))
    x = draw.operand(shape, dtype)
    scales = {"int8": (1 / 256, -128), "uint8": (1 / 256, 0), "int16": (1 / 32768, -32768 if dtype == "int8" else 0)}
    scale, zero_point = scales.get(out, (1, 0))
    beta = draw.pick(1.0, 1.0, 0.5, 2.0, 1.7)
    return Spec("SOFTMAX", [x], [draw.type(shape, out, scale=scale, zero_point=zero_point)], {"beta": beta})


def _quantize(draw: Draw) -> Spec:
    shape = draw.shape()
    dtype = draw.pick("float32", "float32", "int8", "uint8", "int16", "int32")
    out = draw.type(shape, draw.dtype("int8", "uint8", "int16"))
    if dtype == "float32":
        x = Operand(TensorType(shape, dtype))
        values = draw.values(x.type)
        if draw.chance(0.3):
            extreme = draw.rng.choice([np.inf, -np.inf, np.nan, 1e30, -1e30, 3e9, -3e9, 0.0], shape)
            values = np.where(draw.rng.random(shape) < 0.3, extreme, values).astype(np.float32)
        if draw.chance(0.3):
            # halfway between two values
            values = ((np.round(values) + 0.5) * np.float32(out.quantization.scale)).astype(np.float32)
        if draw.chance(0.2) and out.dtype == "int8":
            axis = draw.integer(0, len(shape) - 1)
            out = replace(out, quantization=_per_axis(draw, shape, axis))
        return Spec("QUANTIZE", [replace(x, sample=values)], [out])
    x = draw.operand(shape, dtype)
    if dtype == "int32":
        scale = draw.scale(1e-6, 1e-2)
        x = Operand(TensorType(shape, dtype, Quantization.per_tensor(scale, 0)))
        large = draw.pick(1000, 10**6, (1 << 31) - 1)
        x = replace(x, sample=draw.rng.integers(-large, large, shape).astype(np.int32))
    return Spec("QUANTIZE", [x], [out])


def _per_axis(draw: Draw, shape: Sequence[int], axis: int) -> Quantization:
    """Symmetric quantization with a scale for each index of an axis."""
    scales = tuple(float(np.float32(draw.scale())) for _ in range(shape[axis]))
    return Quantization(scales, (0,) * len(scales), axis)


def _dequantize(draw: Draw) -> Spec:
    shape = draw.shape()
    out = TensorType(shape, "float32")
    kind = draw.pick("per tensor", "per tensor", "per axis", "float16", "int4")
    if kind == "float16":
        return Spec("DEQUANTIZE", [constant(draw.rng.normal(0, 30, shape), "float16")], [out])
    if kind == "per tensor":
        return Spec("DEQUANTIZE", [draw.operand(shape, draw.dtype("int8", "uint8", "int16"))], [out])
    q = _per_axis(draw, shape, draw.integer(0, len(shape) - 1)) if draw.chance(0.7) else draw.quantization("int8")
    t = TensorType(shape, "int4" if kind == "int4" else "int8", q)
    return Spec("DEQUANTIZE", [Operand(t, draw.values(t))], [out])


# Two values


def broadcast_shapes(draw: Draw) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Two shapes that broadcast, and the result's."""
    out = draw.shape()
    if draw.chance(0.4):
        return out, out, out
    if draw.chance(0.3):
        short = draw.pick((), (1,), out[-1:])
        return (out, short, out) if draw.chance(0.7) else (short, out, out)
    a = tuple(n if draw.chance(0.7) else 1 for n in out)
    b = tuple(n if draw.chance(0.7) else 1 for n in out)[draw.integer(0, len(out) - 1) :]
    if draw.chance(0.3):
        a, b = b, a
    return a, b, np.broadcast_shapes(a, b)


def _arithmetic(kind: str, *dtypes: str) -> Generator:
    def generate(draw: Draw) -> Spec:
        dtype = draw.dtype(*dtypes)
        a, b, out = broadcast_shapes(draw)
        x, y = draw.operand(a, dtype), draw.operand(b, dtype)
        options: dict[str, Any] = {"fused_activation_function": draw.activation()}
        scale = None
        if x.type.quantization and y.type.quantization:
            s1, s2 = x.type.quantization.scale, y.type.quantization.scale
            scale = draw.ratio(0.05, 3) * (s1 * s2 * 64 if kind == "MUL" else max(s1, s2))
            if kind != "MUL":
                # LiteRT aborts at less in ADD, and shifts by negative distances in SUB
                scale = max(scale, max(s1, s2) * 2.1 / (1 << (15 if dtype == "int16" else 20)))
        if kind in ("ADD", "SUB"):
            options["pot_scale_int16"] = False
        x = draw.fixed(x, 0.1)
        if x.value is None:
            y = draw.fixed(y, 0.4)
        return Spec(kind, [x, y], [draw.type(out, dtype, scale=scale)], options)

    return generate


def _int16_powers(kind: str) -> Generator:
    """int16 sums of scales that are powers of two."""

    def generate(draw: Draw) -> Spec:
        a = b = out = draw.shape()  # LiteRT does not broadcast these
        scales = [2.0 ** draw.integer(-15, -9)] * 2
        scales[draw.integer(0, 1)] *= 2.0 ** -draw.integer(0, 3)
        x, y = (draw.operand(s, "int16", scale=v) for s, v in zip((a, b), scales, strict=True))
        options = {"fused_activation_function": draw.activation(), "pot_scale_int16": True}
        return Spec(kind, [x, y], [draw.type(out, "int16", scale=max(scales))], options)

    return generate


def _comparable(kind: str, *dtypes: str) -> Generator:
    """Two operands and a result of one quantization."""

    def generate(draw: Draw) -> Spec:
        a, b, out = broadcast_shapes(draw)
        x = draw.operand(a, draw.dtype(*dtypes))
        y = draw.fixed(Operand(replace(x.type, shape=b)), 0.3)
        return Spec(kind, [x, y], [_like(draw, x, out)])

    return generate


def _div(draw: Draw) -> Spec:
    dtype = draw.dtype("int8", "uint8", "int32", "float32")
    a, b, out = broadcast_shapes(draw)
    x, y = draw.operand(a, dtype), draw.operand(b, dtype)
    scale = None
    if x.type.quantization and y.type.quantization:
        scale = x.type.quantization.scale / y.type.quantization.scale * draw.ratio(0.01, 0.5)
    values = draw.values(y.type)
    zero = y.type.quantization.zero_point if y.type.quantization else 0
    y = replace(y, value=np.where(values == zero, zero - 1 if zero > 0 else zero + 1, values).astype(dtype))
    return Spec("DIV", [x, y], [draw.type(out, dtype, scale=scale)], {"fused_activation_function": draw.activation()})


def _divided(kind: str, *dtypes: str) -> Generator:
    """Without quantization, by constants that are not 0."""

    def generate(draw: Draw) -> Spec:
        dtype = draw.dtype(*dtypes)
        a, b, out = broadcast_shapes(draw)
        values = draw.values(TensorType(b, dtype))
        y = constant(np.where(values == 0, 3, values), dtype)
        return Spec(kind, [Operand(TensorType(a, dtype)), y], [TensorType(out, dtype)])

    return generate


def _plain(kind: str, *dtypes: str) -> Generator:
    """Two operands and a result of one type without quantization."""

    def generate(draw: Draw) -> Spec:
        dtype = draw.dtype(*dtypes)
        a, b, out = broadcast_shapes(draw)
        return Spec(kind, [draw.operand(a, dtype), draw.operand(b, dtype)], [TensorType(out, dtype)])

    return generate


def _pow(draw: Draw) -> Spec:
    a, b, out = broadcast_shapes(draw)
    y = constant(draw.rng.integers(0, 5, b), "int32")
    return Spec("POW", [draw.operand(a, "int32"), y], [TensorType(out, "int32")])


def _squared_difference(draw: Draw) -> Spec:
    dtype = draw.dtype("int8", "int32", "float32")
    a, b, out = broadcast_shapes(draw)
    x, y = draw.operand(a, dtype), draw.operand(b, dtype)
    scale = None
    if x.type.quantization and y.type.quantization:
        scale = max(x.type.quantization.scale, y.type.quantization.scale) ** 2 * draw.rng.uniform(0.5, 300)
    return Spec("SQUARED_DIFFERENCE", [x, y], [draw.type(out, dtype, scale=scale)])


def _comparison(kind: str, *dtypes: str) -> Generator:
    def generate(draw: Draw) -> Spec:
        dtype = draw.dtype(*dtypes)
        a, b, out = broadcast_shapes(draw)
        # LiteRT aborts at a scale of 1
        x = draw.operand(a, dtype, scale=draw.scale() * 1.0001)
        y = draw.operand(b, dtype, scale=draw.scale() * 1.0001)
        y = Operand(replace(x.type, shape=b)) if draw.chance(0.6) else y
        return Spec(kind, [x, draw.fixed(y, 0.5)], [TensorType(out, "bool")])

    return generate


def _add_n(draw: Draw) -> Spec:
    x = draw.operand(draw.shape(), draw.pick("int32", "float32"))
    return Spec("ADD_N", [x] * draw.integer(2, 4), [_like(draw, x)])


def _select(kind: str) -> Generator:
    def generate(draw: Draw) -> Spec:
        x = draw.operand(draw.shape(), draw.dtype("int8", "uint8", "int16", "int32", "float32"))
        shape = x.type.shape
        if kind == "SELECT":
            condition = draw.pick(shape, shape[:1])
            return Spec(kind, [draw.operand(condition, "bool"), x, x], [_like(draw, x)])
        shapes = [tuple(n if draw.chance(0.7) else 1 for n in shape) for _ in range(3)]
        a, b = (Operand(replace(x.type, shape=s)) for s in shapes[1:])
        return Spec(kind, [draw.operand(shapes[0], "bool"), a, b], [_like(draw, x)])

    return generate


# Products


def _weights(
    draw: Draw, shape: Sequence[int], channels: int, axis: int, dtype: str, *, per_channel: bool, symmetric: bool
) -> Operand:
    if dtype == "uint8":
        t = TensorType(tuple(shape), "uint8", draw.quantization("uint8", scale=draw.scale(1e-3, 0.05)))
        return Operand(t, draw.values(t))
    count = channels if per_channel else 1
    scales = tuple(float(np.float32(draw.scale(1e-3, 0.05))) for _ in range(count))
    zero = 0 if symmetric or not draw.chance(0.2) else draw.integer(-5, 5)
    t = TensorType(tuple(shape), dtype, Quantization(scales, (zero,) * count, axis if count > 1 else 0))
    value = draw.values(t)
    # LiteRT's vector code for hybrid products is wrong at -128, which no converter writes
    narrow = dtype == "int8" and (draw.chance(0.7) or symmetric)
    return Operand(t, np.maximum(value, -127) if narrow else value)


def _bias(draw: Draw, channels: int, x: Operand, weights: Operand, *, always: bool = False) -> Operand | None:
    if not always and draw.chance(0.2):
        return None
    q_x, q_w = x.type.quantization, weights.type.quantization
    if not q_x or not q_w:
        t = TensorType((channels,), "float32")
        return Operand(t, draw.values(t))
    dtype = "int64" if x.type.dtype == "int16" and draw.chance(0.7) else "int32"
    scales = tuple(float(np.float32(q_x.scale) * np.float32(s)) for s in q_w.scales)
    large = draw.pick(1, 1000, 100_000, (1 << 31) - 1 if draw.chance(0.1) else 10_000)
    value = draw.rng.integers(-large, large, channels, endpoint=True).astype(dtype)
    return constant(value, dtype, Quantization(scales, (0,) * len(scales)))


def _bias_type(bias: Operand | None) -> dict[str, str]:
    return {} if bias is None else {"quantized_bias_type": bias.type.dtype.upper()}


def _product_output(draw: Draw, shape: Sequence[int], x: Operand, weights: Operand, depth: int) -> TensorType:
    """An output with a scale at which results use the range, or are far too large or small for it."""
    dtype, q_x, q_w = x.type.dtype, x.type.quantization, weights.type.quantization
    if not q_x or not q_w:
        return draw.type(shape, dtype)
    typical = float(np.mean(q_w.scales)) * q_x.scale * np.sqrt(depth) * (80 if dtype != "int16" else 60)
    factor = draw.rng.uniform(0.3, 2) if draw.chance(0.7) else 10 ** draw.rng.uniform(-4, 4)
    return draw.type(shape, dtype, scale=max(typical * factor, 1e-30))


def _product_types(draw: Draw, *, hybrid: bool = True) -> tuple[str, str]:
    """Types of activations and weights; float32 with int8 are hybrid products."""
    dtype = draw.dtype("int8", "int8", "uint8", "int16", "float32")
    if hybrid and dtype == "float32" and draw.chance(0.5):
        return dtype, "int8"
    return dtype, {"uint8": "uint8", "float32": "float32"}.get(dtype, "int8")


def _convolution_options(draw: Draw, kernel: tuple[int, int]) -> dict[str, Any]:
    dilated = draw.chance(0.25)
    return {
        "padding": draw.pick("SAME", "VALID"),
        "stride_h": 1 if dilated else draw.pick(1, 1, 2, 3),
        "stride_w": 1 if dilated else draw.pick(1, 1, 2, 3),
        "dilation_h_factor": draw.integer(1, 3) if dilated else 1,
        "dilation_w_factor": draw.integer(1, 3) if dilated else 1,
        "fused_activation_function": draw.activation(),
    }


def _conv_2d(draw: Draw) -> Spec:
    dtype, weight_type = _product_types(draw)
    if dtype == "int8" and draw.chance(0.15):
        weight_type = "int4"
    groups = draw.integer(2, 4) if draw.chance(0.2) and dtype == "int8" else 1
    depth = draw.integer(1, 9)
    channels = draw.integer(1, 4) * groups
    kernel = (draw.integer(1, 5), draw.integer(1, 5))
    x = draw.operand(draw.image(channels=depth * groups), dtype)
    if weight_type == "float32":
        t = TensorType((channels, *kernel, depth), "float32")
        weights = Operand(t, draw.values(t))
    else:
        weights = _weights(
            draw, (channels, *kernel, depth), channels, 0, weight_type,
            per_channel=weight_type != "uint8" and draw.chance(0.7), symmetric=dtype == "float32",
        )  # fmt: skip
    terms = depth * kernel[0] * kernel[1]
    out = _product_output(draw, (1, 1, 1, channels), x, weights, terms)
    bias = _bias(draw, channels, x, weights, always=True)
    options = {**_convolution_options(draw, kernel), **_bias_type(bias)}
    return Spec("CONV_2D", [x, weights, bias], [out], options)


def _depthwise_conv_2d(draw: Draw) -> Spec:
    dtype, weight_type = _product_types(draw)
    if dtype == "int8" and draw.chance(0.15):
        weight_type = "int4"
    multiplier = draw.pick(1, 1, 2, 3, 8)
    kernel = (draw.integer(1, 5), draw.integer(1, 5))
    x = draw.operand(draw.image(), dtype)
    channels = x.type.shape[3] * multiplier
    if weight_type == "float32":
        t = TensorType((1, *kernel, channels), "float32")
        weights = Operand(t, draw.values(t))
    else:
        weights = _weights(
            draw, (1, *kernel, channels), channels, 3, weight_type,
            per_channel=dtype == "float32" or (weight_type != "uint8" and draw.chance(0.7)),
            symmetric=dtype == "float32",
        )  # fmt: skip
    terms = kernel[0] * kernel[1]
    out = _product_output(draw, (1, 1, 1, channels), x, weights, terms)
    bias = _bias(draw, channels, x, weights)
    options = {**_convolution_options(draw, kernel), "depth_multiplier": draw.pick(multiplier, multiplier, 0)}
    if options["stride_h"] != options["stride_w"]:
        options["stride_w"] = options["stride_h"]
    return Spec("DEPTHWISE_CONV_2D", [x, weights, *([bias] if bias else [])], [out], options)


def _transpose_conv(draw: Draw) -> Spec:
    dtype, weight_type = _product_types(draw, hybrid=False)
    kernel = (draw.integer(1, 5), draw.integer(1, 5))
    channels = draw.integer(1, 6)
    x = draw.operand(draw.image(), dtype)
    depth = x.type.shape[3]
    if weight_type == "float32":
        t = TensorType((channels, *kernel, depth), "float32")
        weights = Operand(t, draw.values(t))
    else:
        weights = _weights(
            draw, (channels, *kernel, depth), channels, 0, weight_type,
            per_channel=weight_type != "uint8" and draw.chance(0.7), symmetric=False,
        )  # fmt: skip
    padding = draw.pick("SAME", "VALID")
    strides = (draw.integer(1, 3), draw.integer(1, 3))
    size = [
        n * s if padding == "SAME" else (n - 1) * s + k
        for n, s, k in zip(x.type.shape[1:3], strides, kernel, strict=True)
    ]
    terms = max(1, depth * kernel[0] * kernel[1] // (strides[0] * strides[1]))
    out_shape = (x.type.shape[0], *size, channels)
    bias = _bias(draw, channels, x, weights)
    operands = [constant(out_shape), weights, x, *([] if bias is None else [bias])]
    options = {
        "padding": padding,
        "stride_h": strides[0],
        "stride_w": strides[1],
        "fused_activation_function": draw.activation(),
        **_bias_type(bias),
    }
    return Spec("TRANSPOSE_CONV", operands, [_product_output(draw, out_shape, x, weights, terms)], options)


def _fully_connected(draw: Draw) -> Spec:
    dtype, weight_type = _product_types(draw)
    if dtype == "int8" and draw.chance(0.15):
        weight_type = "int4"
    depth, channels = draw.integer(1, 40), draw.integer(1, 12)
    keep = draw.chance(0.4)
    lead = draw.shape(1, 3) if keep or draw.chance(0.3) else (draw.pick(1, 1, 2, 5),)
    x = draw.operand((*lead, depth), dtype)
    if weight_type == "float32":
        t = TensorType((channels, depth), "float32")
        weights = Operand(t, draw.values(t))
    else:
        weights = _weights(
            draw, (channels, depth), channels, 0, weight_type,
            per_channel=weight_type != "uint8" and draw.chance(0.4), symmetric=dtype == "float32",
        )  # fmt: skip
    bias = _bias(draw, channels, x, weights)
    options = {"keep_num_dims": keep, "fused_activation_function": draw.activation(), **_bias_type(bias)}
    if dtype == "float32" and weight_type == "int8":
        options["asymmetric_quantize_inputs"] = draw.chance(0.5)
    out = _product_output(draw, (1, channels), x, weights, depth)
    return Spec("FULLY_CONNECTED", [x, weights, bias], [out], options)


def _batch_matmul(draw: Draw) -> Spec:
    dtype = draw.dtype("int8", "int16", "float32")
    rows, depth, columns = draw.integer(1, 6), draw.integer(1, 20), draw.integer(1, 6)
    lead = draw.shape(1, 2, 3) if draw.chance(0.7) else ()
    a_lead = tuple(n if draw.chance(0.8) else 1 for n in lead)
    b_lead = tuple(n if draw.chance(0.8) else 1 for n in lead)[draw.integer(0, len(lead)) :]
    options = {"adj_x": draw.chance(0.3), "adj_y": draw.chance(0.3)}
    x = draw.operand((*a_lead, *((depth, rows) if options["adj_x"] else (rows, depth))), dtype)
    y = draw.operand((*b_lead, *((columns, depth) if options["adj_y"] else (depth, columns))), dtype)
    return Spec("BATCH_MATMUL", [x, draw.fixed(y, 0.3)], [_product_output(draw, (1,), x, y, depth)], options)


# Windows and reductions


def _pool(kind: str) -> Generator:
    def generate(draw: Draw) -> Spec:
        x = draw.operand(draw.image(), draw.dtype("int8", "uint8", "int16", "float32"))
        window = (draw.integer(1, 6), draw.integer(1, 6))
        options = {
            "padding": draw.pick("SAME", "VALID"),
            "stride_h": draw.integer(1, 3),
            "stride_w": draw.integer(1, 3),
            "filter_height": window[0],
            "filter_width": window[1],
            "fused_activation_function": draw.activation(),
        }
        return Spec(kind, [x], [_like(draw, x)], options)

    return generate


def _reduction(kind: str, *dtypes: str, rescales: bool) -> Generator:
    def generate(draw: Draw) -> Spec:
        shape = draw.shape(1, 5)
        x = draw.operand(shape, draw.dtype(*dtypes))
        if draw.chance(0.4) and len(shape) == 4:
            axes = [1, 2]
        else:
            axes = draw.rng.choice(len(shape), draw.integer(1, len(shape)), replace=False).tolist()
            axes = [a - len(shape) if draw.chance(0.3) else a for a in axes]
        out = _like(draw, x)
        if rescales and x.type.quantization and draw.chance(0.8):
            scale = x.type.quantization.scale * draw.ratio(0.1, 3)
            if kind == "SUM":
                scale *= np.sqrt(np.prod(shape))
            out = draw.type((1,), x.type.dtype, scale=scale)
        return Spec(kind, [x, constant(axes)], [out], {"keep_dims": draw.chance(0.5)})

    return generate


def _arg(kind: str) -> Generator:
    def generate(draw: Draw) -> Spec:
        shape = draw.shape()
        x = draw.operand(shape, draw.dtype("int8", "uint8", "float32", "int32"))
        out = draw.pick("int32", "int64")
        axis = draw.integer(-len(shape), len(shape) - 1)
        return Spec(kind, [x, constant(axis)], [TensorType((1,), out)], {"output_type": out.upper()})

    return generate


def _resize(kind: str) -> Generator:
    def generate(draw: Draw) -> Spec:
        x = draw.operand(draw.image(), draw.dtype("int8", "uint8", "int16", "float32"))
        mode = draw.pick((False, False), (True, False), (False, True))
        size = [draw.pick(n, 2 * n, 3 * n, draw.integer(1, 20)) for n in x.type.shape[1:3]]
        options = {"align_corners": mode[0], "half_pixel_centers": mode[1]}
        return Spec(kind, [x, constant(size)], [_like(draw, x)], options)

    return generate


def _reduce_prod(draw: Draw) -> Spec:
    dtype = draw.dtype("int8", "int16", "int32", "float32")
    shape = draw.shape(1, 4, 3)
    x = draw.operand(shape, dtype, scale=draw.scale(0.01, 0.5))
    axes = draw.rng.choice(len(shape), draw.integer(1, len(shape)), replace=False).tolist()
    count = int(np.prod([shape[a] for a in axes]))
    scale = None
    if x.type.quantization:
        typical = count * np.log(x.type.quantization.scale * 60) - np.log(60)
        scale = float(np.exp(np.clip(typical, -7, 14))) * draw.rng.uniform(0.2, 3)
    return Spec(
        "REDUCE_PROD", [x, constant(axes)], [draw.type((1,), dtype, scale=scale)], {"keep_dims": draw.chance(0.5)}
    )


# Data movement

_ANY = ("int8", "uint8", "int16", "int32", "float32")


def _any(draw: Draw, *range_: int) -> Operand:
    return draw.operand(draw.shape(*range_), draw.dtype(*_ANY))


def _reshape(draw: Draw) -> Spec:
    x = _any(draw)
    total = int(np.prod(x.type.shape))
    first = draw.pick(*[n for n in range(1, total + 1) if total % n == 0])
    new = draw.pick((total,), (first, total // first), (1, first, -1), (-1,))
    return Spec("RESHAPE", [x, constant(new)], [_like(draw, x)], {"new_shape": np.array(new, np.int32)})


def _squeeze(draw: Draw) -> Spec:
    shape = list(draw.shape(1, 3))
    at = draw.integer(0, len(shape))
    x = draw.operand((*shape[:at], 1, *shape[at:]), draw.dtype(*_ANY))
    axes = draw.pick([at], [at - len(shape) - 1], [])
    return Spec("SQUEEZE", [x], [_like(draw, x)], {"squeeze_dims": np.array(axes, np.int32)})


def _expand_dims(draw: Draw) -> Spec:
    x = _any(draw)
    rank = len(x.type.shape)
    return Spec("EXPAND_DIMS", [x, constant(draw.integer(-rank - 1, rank))], [_like(draw, x)])


def _shape(draw: Draw) -> Spec:
    out = draw.pick("int32", "int64")
    return Spec("SHAPE", [_any(draw)], [TensorType((1,), out)], {"out_type": out.upper()})


def _transpose(draw: Draw) -> Spec:
    x = _any(draw, 1, 5)
    return Spec("TRANSPOSE", [x, constant(draw.rng.permutation(len(x.type.shape)))], [_like(draw, x)])


def _concatenation(draw: Draw) -> Spec:
    x = _any(draw)
    rank = len(x.type.shape)
    axis = draw.integer(0, rank - 1)
    parts = [x]
    for _ in range(draw.integer(0, 3)):
        shape = tuple(draw.integer(1, 5) if i == axis else n for i, n in enumerate(x.type.shape))
        same = x.type.dtype != "uint8" or draw.chance(0.5)
        parts.append(Operand(replace(x.type, shape=shape)) if same else draw.operand(shape, "uint8"))
    return Spec("CONCATENATION", parts, [_like(draw, x)], {"axis": draw.pick(axis, axis - rank)})


def _paddings(draw: Draw, shape: Sequence[int], most: int = 3) -> NDArray:
    return np.array([[draw.integer(0, most), draw.integer(0, most)] for _ in shape])


def _pad(draw: Draw) -> Spec:
    x = _any(draw)
    widths = constant(_paddings(draw, x.type.shape), draw.pick("int32", "int64"))
    return Spec("PAD", [x, widths], [_like(draw, x)])


def _padv2(draw: Draw) -> Spec:
    x = _any(draw)
    value = Operand(replace(x.type, shape=()), draw.values(replace(x.type, shape=())).reshape(()))
    return Spec("PADV2", [x, constant(_paddings(draw, x.type.shape)), value], [_like(draw, x)])


def _mirror_pad(draw: Draw) -> Spec:
    x = _any(draw)
    mode = draw.pick("REFLECT", "SYMMETRIC")
    most = [n - (mode == "REFLECT") for n in x.type.shape]
    widths = [[draw.integer(0, m), draw.integer(0, m)] for m in most]
    return Spec("MIRROR_PAD", [x, constant(widths)], [_like(draw, x)], {"mode": mode})


def _slice(draw: Draw) -> Spec:
    x = _any(draw)
    begin = [draw.integer(0, n - 1) for n in x.type.shape]
    size = [draw.pick(-1, draw.integer(1, n - b)) for n, b in zip(x.type.shape, begin, strict=True)]
    out = [n - b if s == -1 else s for n, b, s in zip(x.type.shape, begin, size, strict=True)]
    return Spec("SLICE", [x, constant(begin), constant(size)], [_like(draw, x, out)])


def _strided_slice(draw: Draw) -> Spec:
    x = _any(draw)
    count = draw.integer(1, len(x.type.shape))
    begin, end, stride = [], [], []
    shrink = 0
    for i, n in enumerate(x.type.shape[:count]):
        if draw.chance(0.15):
            at = draw.integer(-n, n - 1)
            shrink |= 1 << i
            begin.append(at), end.append(at + 1), stride.append(1)
            continue
        begin.append(draw.integer(-n - 1, n + 1)), end.append(draw.integer(-n - 1, n + 1))
        stride.append(draw.pick(1, 1, 2, -1, -2))
    masks = {"begin_mask": draw.integer(0, 15) if draw.chance(0.5) else 0, "shrink_axis_mask": shrink}
    masks["begin_mask"] &= ~shrink
    masks["end_mask"] = draw.integer(0, 15) if draw.chance(0.5) else 0
    if count < len(x.type.shape) and draw.chance(0.4):
        at = draw.integer(0, count)
        if not any(v >> at for v in masks.values()):
            begin.insert(at, 0), end.insert(at, 0), stride.insert(at, 1)
            masks["ellipsis_mask" if draw.chance(0.5) else "new_axis_mask"] = 1 << at
    operands = [x, constant(begin), constant(end), constant(stride)]
    return Spec("STRIDED_SLICE", operands, [_like(draw, x)], masks)


def _split(draw: Draw) -> Spec:
    parts = draw.integer(1, 4)
    shape = list(draw.shape())
    axis = draw.integer(0, len(shape) - 1)
    shape[axis] *= parts
    x = draw.operand(shape, draw.dtype(*_ANY))
    axis = draw.pick(axis, axis - len(shape))
    return Spec("SPLIT", [constant(axis), x], [_like(draw, x)] * parts, {"num_splits": parts})


def _split_v(draw: Draw) -> Spec:
    sizes = [draw.integer(1, 4) for _ in range(draw.integer(1, 4))]
    shape = list(draw.shape())
    axis = draw.integer(0, len(shape) - 1)
    shape[axis] = sum(sizes)
    if draw.chance(0.3):
        sizes[draw.integer(0, len(sizes) - 1)] = -1
    x = draw.operand(shape, draw.dtype(*_ANY))
    outputs = [_like(draw, x)] * len(sizes)
    return Spec("SPLIT_V", [x, constant(sizes), constant(axis)], outputs, {"num_splits": len(sizes)})


def _pack(draw: Draw) -> Spec:
    x = _any(draw)
    count = draw.integer(1, 4)
    axis = draw.integer(-len(x.type.shape) - 1, len(x.type.shape))
    return Spec("PACK", [x] * count, [_like(draw, x)], {"values_count": count, "axis": axis})


def _unpack(draw: Draw) -> Spec:
    x = _any(draw)
    rank = len(x.type.shape)
    axis = draw.integer(0, rank - 1)
    count = x.type.shape[axis]
    options = {"num": count, "axis": draw.pick(axis, axis - rank)}
    return Spec("UNPACK", [x], [_like(draw, x)] * count, options)


def _gather(draw: Draw) -> Spec:
    x = _any(draw)
    rank = len(x.type.shape)
    batch = draw.integer(0, rank - 1) if draw.chance(0.3) else 0
    axis = draw.integer(batch, rank - 1)
    shape = (*x.type.shape[:batch], *draw.shape(0, 2))
    index = draw.rng.integers(0, x.type.shape[axis], shape)
    options = {"axis": axis if batch else draw.pick(axis, axis - rank), "batch_dims": batch}
    return Spec("GATHER", [x, constant(index, draw.pick("int32", "int64"))], [_like(draw, x)], options)


def _space_to_batch_nd(draw: Draw) -> Spec:
    image = draw.chance(0.7)
    x = draw.operand(draw.image() if image else draw.shape(3, 3), draw.dtype("int8", "uint8", "int32", "float32"))
    block = [draw.integer(1, 3) for _ in range(2 if image else 1)]
    widths = []
    for n, b in zip(x.type.shape[1:], block, strict=False):
        before = draw.integer(0, 3)
        widths.append([before, -(n + before) % b + b * draw.integer(0, 1)])
    return Spec("SPACE_TO_BATCH_ND", [x, constant(block), constant(widths)], [_like(draw, x)])


def _batch_to_space_nd(draw: Draw) -> Spec:
    image = draw.chance(0.7)
    block = [draw.integer(1, 3) for _ in range(2 if image else 1)]
    shape = list(draw.image() if image else draw.shape(3, 3))
    shape[0] *= int(np.prod(block))
    x = draw.operand(shape, draw.dtype("int8", "uint8", "int32", "float32"))
    crops = [[draw.integer(0, b - 1), 0] for b in block]
    return Spec("BATCH_TO_SPACE_ND", [x, constant(block), constant(crops)], [_like(draw, x)])


def _space_to_depth(draw: Draw) -> Spec:
    b = draw.integer(1, 3)
    n, rows, columns, channels = draw.image()
    x = draw.operand((n, rows * b, columns * b, channels), draw.dtype("int8", "uint8", "int32", "float32"))
    return Spec("SPACE_TO_DEPTH", [x], [_like(draw, x)], {"block_size": b})


def _depth_to_space(draw: Draw) -> Spec:
    b = draw.integer(1, 3)
    n, rows, columns, channels = draw.image()
    x = draw.operand((n, rows, columns, channels * b * b), draw.dtype("int8", "uint8", "int32", "float32"))
    return Spec("DEPTH_TO_SPACE", [x], [_like(draw, x)], {"block_size": b})


def _cast(draw: Draw) -> Spec:
    types = ("int8", "uint8", "int16", "int32", "int64", "float32", "bool")
    a, b = draw.pick(*types), draw.pick(*types)
    shape = draw.shape()
    options = {"in_data_type": a.upper(), "out_data_type": b.upper()}
    return Spec("CAST", [Operand(TensorType(shape, a))], [TensorType(shape, b)], options)


def _unquantized(kind: str, *dtypes: str) -> Generator:
    def generate(draw: Draw) -> Spec:
        t = TensorType(draw.shape(), draw.dtype(*dtypes))
        return Spec(kind, [Operand(t)], [t])

    return generate


def _positive(kind: str) -> Generator:
    """An operand above 0, or quantized and not below."""

    def generate(draw: Draw) -> Spec:
        dtype = draw.pick("int8", "int16", "float32")
        shape = draw.shape()
        if dtype != "float32":
            x = draw.operand(shape, dtype, **({"zero_point": -128} if dtype == "int8" else {}))
            x = replace(x, sample=np.maximum(draw.values(x.type), -128 if dtype == "int8" else 0))
            low, high = (0.01, 0.3) if dtype == "int8" else (1e-4, 1e-2)
            return Spec(kind, [x], [draw.type(shape, dtype, scale=draw.scale(low, high))])
        t = TensorType(shape, "float32")
        x = Operand(t, np.abs(draw.values(t)) + np.float32(1e-3))
        return Spec(kind, [x], [t])

    return generate


def _fill(draw: Draw) -> Spec:
    t = draw.type((), draw.dtype(*_ANY))
    shape = constant(draw.shape(), draw.pick("int32", "int64"))
    return Spec("FILL", [shape, Operand(t)], [replace(t, shape=(1,))])


def _range(draw: Draw) -> Spec:
    dtype = draw.pick("int32", "float32")
    step = draw.pick(1, 2, -3) if dtype == "int32" else draw.pick(0.5, 0.1, -0.3)
    start = draw.integer(-5, 5)
    stop = start + step * draw.integer(1, 20)
    return Spec("RANGE", [constant(v, dtype) for v in (start, stop, step)], [TensorType((1,), dtype)])


def _rank(draw: Draw) -> Spec:
    return Spec("RANK", [_any(draw)], [TensorType((), "int32")])


def _tile(draw: Draw) -> Spec:
    x = draw.operand(draw.shape(), draw.dtype("int8", "uint8", "int32", "float32"))
    return Spec("TILE", [x, constant([draw.integer(1, 3) for _ in x.type.shape])], [_like(draw, x)])


def _dilate(draw: Draw) -> Spec:
    x = draw.operand(draw.shape(), draw.dtype("int8", "uint8", "int16", "int32", "int64", "float32"))
    steps = [draw.integer(1, 3) for _ in x.type.shape]
    between = constant(draw.values(TensorType((), x.type.dtype)), x.type.dtype, x.type.quantization)
    shape = tuple((n - 1) * step + 1 for n, step in zip(x.type.shape, steps, strict=True))
    return Spec("DILATE", [x, constant(steps), between], [_like(draw, x, shape)], version=1)


def _broadcast_to(draw: Draw) -> Spec:
    out = draw.shape()
    shape = tuple(n if draw.chance(0.6) else 1 for n in out)[draw.integer(0, len(out) - 1) :]
    x = draw.operand(shape, draw.dtype(*_ANY))
    return Spec("BROADCAST_TO", [x, constant(out)], [_like(draw, x)])


def _reverse_v2(draw: Draw) -> Spec:
    x = draw.operand(draw.shape(), draw.dtype("int8", "uint8", "int16", "int32", "float32"))
    start = draw.integer(0, len(x.type.shape) - 1)
    axes = list(range(start, draw.integer(start + 1, len(x.type.shape))))
    return Spec("REVERSE_V2", [x, constant(axes)], [_like(draw, x)])


def _topk_v2(draw: Draw) -> Spec:
    x = draw.operand(draw.shape(), draw.dtype("int8", "uint8", "int16", "int32", "float32"))
    count = draw.integer(1, x.type.shape[-1])
    return Spec("TOPK_V2", [x, constant(count)], [_like(draw, x), TensorType((1,), "int32")])


def _one_hot(draw: Draw) -> Spec:
    depth = draw.integer(1, 8)
    shape = draw.shape(1, 3)
    index = constant(draw.rng.integers(-2, depth + 2, shape), draw.pick("int32", "int64"))
    dtype = draw.dtype("int8", "uint8", "int32", "float32")
    t = TensorType((), dtype)
    on, off = (Operand(t, draw.values(t).reshape(())) for _ in range(2))
    axis = draw.pick(-1, draw.integer(0, len(shape)))
    return Spec("ONE_HOT", [index, constant(depth), on, off], [TensorType((1,), dtype)], {"axis": axis})


def _gather_nd(draw: Draw) -> Spec:
    x = draw.operand(draw.shape(), draw.dtype("int8", "uint8", "int16", "int32", "float32"))
    depth = draw.integer(1, len(x.type.shape))
    lead = draw.shape(1, 2)
    index = np.stack([draw.rng.integers(0, n, lead) for n in x.type.shape[:depth]], axis=-1)
    return Spec("GATHER_ND", [x, constant(index)], [_like(draw, x)])


def _cumsum(draw: Draw) -> Spec:
    t = TensorType(draw.shape(), draw.pick("int32", "int64", "float32"))
    axis = draw.integer(-len(t.shape), len(t.shape) - 1)
    options = {"exclusive": draw.chance(0.5), "reverse": draw.chance(0.5)}
    return Spec("CUMSUM", [Operand(t), constant(axis)], [t], options)


def _broadcast_args(draw: Draw) -> Spec:
    a, b, out = broadcast_shapes(draw)
    shapes = [Operand(TensorType((len(s),), "int32"), sample=np.array(s, np.int32)) for s in (a or (1,), b or (1,))]
    return Spec("BROADCAST_ARGS", shapes, [TensorType((len(out),), "int32")])


def _embedding_lookup(draw: Draw) -> Spec:
    x = draw.operand(draw.shape(2, 4), draw.dtype("int8", "uint8", "float32"))
    index = constant(draw.rng.integers(0, x.type.shape[0], draw.integer(1, 5)))
    return Spec("EMBEDDING_LOOKUP", [index, x], [_like(draw, x)])


def _reverse_sequence(draw: Draw) -> Spec:
    x = draw.operand(draw.shape(2, 4), draw.dtype("uint8", "int16", "int32", "float32"))
    sequence, batch = draw.rng.choice(len(x.type.shape), 2, replace=False).tolist()
    lengths = constant(draw.rng.integers(0, x.type.shape[sequence] + 1, x.type.shape[batch]))
    return Spec("REVERSE_SEQUENCE", [x, lengths], [x.type], {"seq_dim": sequence, "batch_dim": batch})


def _scatter_nd(draw: Draw) -> Spec:
    shape = draw.shape()
    depth, count = draw.integer(1, len(shape)), draw.integer(1, 6)
    index = np.stack([draw.rng.integers(0, n, count) for n in shape[:depth]], axis=-1)
    x = draw.operand((count, *shape[depth:]), draw.dtype("int8", "uint8", "int32", "float32"))
    return Spec("SCATTER_ND", [constant(index), x, constant(shape)], [_like(draw, x)])


def _sparse_to_dense(draw: Draw) -> Spec:
    shape = draw.shape()
    count = draw.integer(1, 5)
    index = np.stack([draw.rng.integers(0, n, count) for n in shape], axis=-1)
    t = TensorType((count,), draw.dtype("int8", "uint8", "int32", "float32"))
    default = Operand(replace(t, shape=()), draw.values(replace(t, shape=())).reshape(()))
    operands = [constant(index), constant(shape), Operand(t), default]
    return Spec("SPARSE_TO_DENSE", operands, [replace(t, shape=(1,))])


def _matrix_diag(draw: Draw) -> Spec:
    x = draw.operand(draw.shape(), draw.dtype("int8", "uint8", "int16", "int32", "float32"))
    return Spec("MATRIX_DIAG", [x], [_like(draw, x)])


def _matrix_set_diag(draw: Draw) -> Spec:
    x = draw.operand(draw.shape(2, 4), draw.dtype("int8", "uint8", "int16", "int32", "float32"))
    diagonal = Operand(replace(x.type, shape=(*x.type.shape[:-2], min(x.type.shape[-2:]))))
    return Spec("MATRIX_SET_DIAG", [x, diagonal], [_like(draw, x)])


def _dynamic_update_slice(draw: Draw) -> Spec:
    x = draw.operand(draw.shape(), draw.dtype("int8", "int16", "int32", "float32"))
    update = Operand(replace(x.type, shape=tuple(draw.integer(1, n) for n in x.type.shape)))
    begin = constant([draw.integer(-2, n + 1) for n in x.type.shape])
    return Spec("DYNAMIC_UPDATE_SLICE", [x, update, begin], [_like(draw, x)])


def _segment_sum(draw: Draw) -> Spec:
    x = draw.operand(draw.shape(), draw.pick("int32", "float32"))
    segments = np.cumsum(draw.rng.integers(0, 2, x.type.shape[0])) - 0
    return Spec("SEGMENT_SUM", [x, constant(segments - segments[0])], [_like(draw, x)])


def _right_shift(draw: Draw) -> Spec:
    dtype = draw.dtype("int32", "int8", "uint8", "int16")
    a, b, out = broadcast_shapes(draw)
    y = Operand(TensorType(b, dtype), draw.rng.integers(0, 9, b).astype(dtype))
    return Spec("RIGHT_SHIFT", [Operand(TensorType(a, dtype)), y], [TensorType(out, dtype)])


def _bitwise_xor(draw: Draw) -> Spec:
    dtype = draw.dtype("int32", "int8", "uint8", "int16")
    a, b, out = broadcast_shapes(draw)
    return Spec("BITWISE_XOR", [Operand(TensorType(a, dtype)), Operand(TensorType(b, dtype))], [TensorType(out, dtype)])


def _l2_pool_2d(draw: Draw) -> Spec:
    spec = _pool("L2_POOL_2D")(draw)
    t = TensorType(draw.image(), "float32")
    return replace(spec, operands=[Operand(t)], outputs=[t])


def _svdf(draw: Draw) -> Spec:
    n, channels, rank, memory = draw.pick(1, 2), draw.integer(1, 9), draw.integer(1, 3), draw.integer(1, 6)
    units = draw.integer(1, 5)
    filters = units * rank
    x = draw.operand((n, channels), "int8")
    features = _weights(draw, (filters, channels), 1, 0, "int8", per_channel=False, symmetric=True)
    t = TensorType((filters, memory), "int16", draw.quantization("int16", scale=draw.scale(1e-5, 1e-3)))
    times = Operand(t, draw.values(t))
    state_scale = 80 * draw.scale() / 3000
    state = Operand(
        TensorType((n, filters * memory), "int16", draw.quantization("int16", scale=state_scale)), variable=True
    )
    bias = None
    if draw.chance(0.7):
        q = Quantization.per_tensor(float(np.float32(state_scale) * np.float32(t.quantization.scale)), 0)
        bias = constant(draw.rng.integers(-(10**6), 10**6, units), "int32", q)
    out = draw.type((n, units), "int8", scale=state_scale * t.quantization.scale * 1e5 * draw.rng.uniform(0.3, 10))
    options = {"rank": rank, "fused_activation_function": "RELU"}
    return Spec("SVDF", [x, features, times, bias, state], [out], options)


def _float_weights(draw: Draw, shape: tuple[int, ...], hybrid: bool) -> Operand:
    """Weights of float32 activations: float32 or int8."""
    if hybrid:
        return _weights(draw, shape, 1, 0, "int8", per_channel=False, symmetric=True)
    return Operand(TensorType(shape, "float32"), draw.rng.normal(0, 0.5, shape).astype(np.float32))


def _float_input(draw: Draw, *shape: int) -> Operand:
    """An input of usual size: sums beyond float32 depend on their order."""
    sample = draw.rng.normal(0, draw.scale(0.1, 10), shape).astype(np.float32)
    return Operand(TensorType(shape, "float32"), sample=sample)


def _floats(draw: Draw, *shape: int) -> Operand:
    return Operand(TensorType(shape, "float32"), draw.rng.normal(0, 0.5, shape).astype(np.float32))


def _svdf_float(draw: Draw) -> Spec:
    n, channels, rank, memory = draw.pick(1, 2), draw.integer(1, 9), draw.integer(1, 3), draw.integer(1, 6)
    units, hybrid = draw.integer(1, 5), draw.chance(0.5)
    filters = units * rank
    x = _float_input(draw, n, channels)
    state = Operand(TensorType((n, filters * memory), "float32"), variable=True)
    features, times = (_float_weights(draw, shape, hybrid) for shape in ((filters, channels), (filters, memory)))
    bias = _floats(draw, units) if draw.chance(0.7) else None
    options = {"rank": rank, "fused_activation_function": draw.pick("NONE", "RELU")}
    if hybrid:
        options["asymmetric_quantize_inputs"] = draw.chance(0.5)
    return Spec("SVDF", [x, features, times, bias, state], [TensorType((n, units), "float32")], options)


def _lstm_float(draw: Draw) -> Spec:
    n, time, channels, cells = draw.pick(1, 2), draw.integer(1, 5), draw.integer(1, 8), draw.integer(1, 6)
    projected, hybrid = draw.chance(0.3), draw.chance(0.5)
    width = draw.integer(1, 5) if projected else cells
    time_major, coupled, normed = draw.chance(0.3), draw.chance(0.3), draw.chance(0.2)
    shape = (time, n) if time_major else (n, time)
    operands: list[Operand | None] = [_float_input(draw, *shape, channels)]
    for columns in (channels, width):
        operands += [_float_weights(draw, (cells, columns), hybrid) if g or not coupled else None for g in range(4)]
    peepholes = draw.chance(0.3)
    for gate in (0, 1, 3):
        there = peepholes and (gate or not coupled)
        operands.append(_float_weights(draw, (cells,), hybrid) if there else None)
    operands += [_floats(draw, cells) if g or not coupled else None for g in range(4)]
    operands += [_float_weights(draw, (width, cells), hybrid) if projected else None]
    operands += [_floats(draw, width) if projected and draw.chance(0.7) else None]
    operands += [Operand(TensorType((n, size), "float32"), variable=True) for size in (width, cells)]
    operands += [_floats(draw, cells) if normed and (g or not coupled) else None for g in range(4)]
    options = {
        "fused_activation_function": draw.pick("TANH", "TANH", "RELU6"),
        "time_major": time_major,
        "cell_clip": draw.pick(0.0, 0.0, 0.5, 10.0),
        "proj_clip": draw.pick(0.0, 0.0, 0.1),
    }
    if hybrid:
        options["asymmetric_quantize_inputs"] = draw.chance(0.5)
    return Spec("UNIDIRECTIONAL_SEQUENCE_LSTM", operands, [TensorType((*shape, width), "float32")], options)


def _lstm(draw: Draw) -> Spec:
    n, time, channels, cells = draw.pick(1, 2), draw.integer(1, 5), draw.integer(1, 8), draw.integer(1, 6)
    projected = draw.chance(0.3)
    width = draw.integer(1, 5) if projected else cells
    time_major = draw.chance(0.3)
    shape = (time, n) if time_major else (n, time)
    x = draw.operand((*shape, channels), "int8", scale=draw.scale(5e-3, 0.1))
    out = draw.type((*shape, width), "int8", scale=draw.scale(2e-3, 1e-2))
    hidden = (
        draw.type((n, cells), "int8", scale=draw.scale(2e-3, 1e-2)) if projected else replace(out, shape=(n, cells))
    )

    def matrix(rows: int, columns: int) -> Operand:
        return _weights(draw, (rows, columns), 1, 0, "int8", per_channel=False, symmetric=True)

    def bias(count: int) -> Operand:
        return constant(draw.rng.integers(-(2**14), 2**14, count), "int32", Quantization.per_tensor(1e-4, 0))

    coupled = draw.chance(0.3)
    operands: list[Operand | None] = [x]
    for columns in (channels, width):
        operands += [matrix(cells, columns) if gate or not coupled else None for gate in range(4)]
    operands += [None] * 3
    operands += [bias(cells) if gate or not coupled else None for gate in range(4)]
    operands += [matrix(width, cells), bias(width) if draw.chance(0.7) else None] if projected else [None, None]
    operands.append(Operand(replace(out, shape=(n, width)), variable=True))
    cell_type = TensorType((n, cells), "int16", Quantization.per_tensor(2.0 ** draw.integer(-15, -10), 0))
    operands.append(Operand(cell_type, variable=True))
    operands += [None] * 4
    options = {
        "fused_activation_function": "TANH",
        "time_major": time_major,
        "cell_clip": draw.pick(0.0, 0.0, 0.5, 10.0),
        "proj_clip": draw.pick(0.0, 0.0, 0.1),
    }
    gates = [draw.type((1,), "int16", scale=2.0**-12)] * 4
    return Spec("UNIDIRECTIONAL_SEQUENCE_LSTM", operands, [out], options, [*gates, hidden])


_COMPARED = ("int8", "uint8", "int32", "int64", "float32")
_SUMMABLE = ("int8", "uint8", "int16", "int32", "float32")
_LOWEST = {"int8": -128, "uint8": 0}

GENERATORS: dict[str, Sequence[Generator]] = {
    "ABS": (_unary("ABS", "int8", "int16", "int32", "float32"),),
    "ADD": (_arithmetic("ADD", *_SUMMABLE), _arithmetic("ADD", *_SUMMABLE), _int16_powers("ADD")),
    "ADD_N": (_add_n,),
    "ARG_MAX": (_arg("ARG_MAX"),),
    "ARG_MIN": (_arg("ARG_MIN"),),
    "AVERAGE_POOL_2D": (_pool("AVERAGE_POOL_2D"),),
    "BATCH_MATMUL": (_batch_matmul,),
    "BATCH_TO_SPACE_ND": (_batch_to_space_nd,),
    "BITWISE_XOR": (_bitwise_xor,),
    "BROADCAST_ARGS": (_broadcast_args,),
    "BROADCAST_TO": (_broadcast_to,),
    "CAST": (_cast,),
    "CEIL": (_unquantized("CEIL", "float32"),),
    "CONCATENATION": (_concatenation,),
    "CONV_2D": (_conv_2d,),
    "COS": (_unquantized("COS", "float32"),),
    "CUMSUM": (_cumsum,),
    "DEPTHWISE_CONV_2D": (_depthwise_conv_2d,),
    "DEPTH_TO_SPACE": (_depth_to_space,),
    "DEQUANTIZE": (_dequantize,),
    "DILATE": (_dilate,),
    "DIV": (_div,),
    "DYNAMIC_UPDATE_SLICE": (_dynamic_update_slice,),
    "ELU": (_unary("ELU", "int8", "float32"),),
    "EMBEDDING_LOOKUP": (_embedding_lookup,),
    "EQUAL": (_comparison("EQUAL", *_COMPARED, "bool"),),
    "EXP": (_unary("EXP", "int8", "int16", "float32"),),
    "EXPAND_DIMS": (_expand_dims,),
    "FILL": (_fill,),
    "FLOOR": (_unquantized("FLOOR", "float32"),),
    "FLOOR_DIV": (_divided("FLOOR_DIV", "int32", "int8", "int16", "float32"),),
    "FLOOR_MOD": (_divided("FLOOR_MOD", "int32", "int8", "int16", "int64", "float32"),),
    "FULLY_CONNECTED": (_fully_connected,),
    "GATHER": (_gather,),
    "GATHER_ND": (_gather_nd,),
    "GELU": (_gelu,),
    "GREATER": (_comparison("GREATER", *_COMPARED),),
    "GREATER_EQUAL": (_comparison("GREATER_EQUAL", *_COMPARED),),
    "HARD_SWISH": (_hard_swish,),
    "L2_NORMALIZATION": (_fixed_output("L2_NORMALIZATION", 1 / 128, {"uint8": 128}, "int8", "uint8", "float32"),),
    "L2_POOL_2D": (_l2_pool_2d,),
    "LEAKY_RELU": (_leaky_relu,),
    "LESS": (_comparison("LESS", *_COMPARED),),
    "LESS_EQUAL": (_comparison("LESS_EQUAL", *_COMPARED),),
    "LOG": (
        _unary("LOG", "int8", "int16"),
        _positive("LOG"),
    ),
    "LOGICAL_AND": (_plain("LOGICAL_AND", "bool"),),
    "LOGICAL_NOT": (_unquantized("LOGICAL_NOT", "bool"),),
    "LOGICAL_OR": (_plain("LOGICAL_OR", "bool"),),
    "LOGISTIC": (_fixed_output("LOGISTIC", 1 / 256, _LOWEST, "int8", "uint8", "int16", "float32"),),
    "LOG_SOFTMAX": (_fixed_output("LOG_SOFTMAX", 1 / 16, {"int8": 127, "uint8": 255}, "int8", "float32"),),
    "MATRIX_DIAG": (_matrix_diag,),
    "MATRIX_SET_DIAG": (_matrix_set_diag,),
    "MAXIMUM": (_comparable("MAXIMUM", *_ANY),),
    "MAX_POOL_2D": (_pool("MAX_POOL_2D"),),
    "MEAN": (_reduction("MEAN", *_SUMMABLE, rescales=True),),
    "MINIMUM": (_comparable("MINIMUM", *_ANY),),
    "MIRROR_PAD": (_mirror_pad,),
    "MUL": (_arithmetic("MUL", *_SUMMABLE),),
    "NEG": (_unquantized("NEG", "int32", "int8", "int16", "int64", "float32"),),
    "NOT_EQUAL": (_comparison("NOT_EQUAL", *_COMPARED, "bool"),),
    "ONE_HOT": (_one_hot,),
    "PACK": (_pack,),
    "PAD": (_pad,),
    "PADV2": (_padv2,),
    "POW": (_pow,),
    "PRELU": (_prelu,),
    "QUANTIZE": (_quantize,),
    "RANGE": (_range,),
    "RANK": (_rank,),
    "REDUCE_ALL": (_reduction("REDUCE_ALL", "bool", rescales=False),),
    "REDUCE_ANY": (_reduction("REDUCE_ANY", "bool", rescales=False),),
    "REDUCE_MAX": (_reduction("REDUCE_MAX", *_SUMMABLE, rescales=False),),
    "REDUCE_MIN": (_reduction("REDUCE_MIN", *_SUMMABLE, rescales=False),),
    "REDUCE_PROD": (_reduce_prod,),
    "RELU": (_unary("RELU", "int8", "uint8", "int16", "float32"),),
    "RELU6": (_unary("RELU6", "int8", "uint8", "int16", "float32"),),
    "RELU_0_TO_1": (_unary("RELU_0_TO_1", "int8", "uint8", "float32"),),
    "RELU_N1_TO_1": (_unary("RELU_N1_TO_1", "int8", "uint8", "float32"),),
    "RESHAPE": (_reshape,),
    "RESIZE_BILINEAR": (_resize("RESIZE_BILINEAR"),),
    "RESIZE_NEAREST_NEIGHBOR": (_resize("RESIZE_NEAREST_NEIGHBOR"),),
    "REVERSE_SEQUENCE": (_reverse_sequence,),
    "REVERSE_V2": (_reverse_v2,),
    "RIGHT_SHIFT": (_right_shift,),
    "ROUND": (_unquantized("ROUND", "float32"),),
    "RSQRT": (_positive("RSQRT"),),
    "SCATTER_ND": (_scatter_nd,),
    "SEGMENT_SUM": (_segment_sum,),
    "SELECT": (_select("SELECT"),),
    "SELECT_V2": (_select("SELECT_V2"),),
    "SHAPE": (_shape,),
    "SIGN": (_unquantized("SIGN", "float32", "int32"),),
    "SIN": (_unquantized("SIN", "float32"),),
    "SLICE": (_slice,),
    "SOFTMAX": (_softmax,),
    "SPACE_TO_BATCH_ND": (_space_to_batch_nd,),
    "SPACE_TO_DEPTH": (_space_to_depth,),
    "SPARSE_TO_DENSE": (_sparse_to_dense,),
    "SPLIT": (_split,),
    "SPLIT_V": (_split_v,),
    "SQRT": (_positive("SQRT"),),
    "SQUARE": (_unquantized("SQUARE", "float32"),),
    "SQUARED_DIFFERENCE": (_squared_difference,),
    "SQUEEZE": (_squeeze,),
    "STRIDED_SLICE": (_strided_slice,),
    "SUB": (_arithmetic("SUB", *_SUMMABLE), _arithmetic("SUB", *_SUMMABLE), _int16_powers("SUB")),
    "SUM": (_reduction("SUM", *_SUMMABLE, rescales=True),),
    "SVDF": (_svdf, _svdf, _svdf_float),
    "TANH": (_fixed_output("TANH", 1 / 128, {"uint8": 128}, "int8", "uint8", "int16", "float32"),),
    "TILE": (_tile,),
    "TOPK_V2": (_topk_v2,),
    "TRANSPOSE": (_transpose,),
    "TRANSPOSE_CONV": (_transpose_conv,),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (_lstm, _lstm, _lstm_float),
    "UNPACK": (_unpack,),
    "ZEROS_LIKE": (_unquantized("ZEROS_LIKE", "int32", "int64", "float32"),),
}

ATTEMPTS = 50


def cases(
    seed: int, count_per_operator: int, kinds: Sequence[str] | None = None, prefer: str | None = None
) -> Iterator[Case]:
    """`count_per_operator` cases of each operator; the same for the same seed, operator and preferred data type.

    Raises
    ------
    RuntimeError
        If LiteRT refuses all of many attempts: the generator of that operator is wrong.
    """
    for kind in GENERATORS if kinds is None else kinds:
        for index in range(count_per_operator):
            yield _case(kind, seed, index, prefer)


def _case(kind: str, seed: int, index: int, prefer: str | None) -> Case:
    refusal = ""
    for attempt in range(ATTEMPTS):
        draw = Draw((seed, zlib.crc32(kind.encode()), index, attempt), prefer)
        generators = GENERATORS[kind]
        spec = generators[index % len(generators)](draw)
        given = [o for o in spec.operands if o is not None and o.is_input]
        inputs = [draw.values(o.type) if o.sample is None else o.sample for o in given]
        try:
            results = interpret(write(spec), inputs)
        except (RuntimeError, ValueError) as error:
            refusal = str(error)
            continue
        if any(r.size == 0 for r in results):
            continue
        outputs = [replace(t, shape=r.shape) for t, r in zip(spec.outputs, results, strict=True)]
        types = "-".join(o.type.dtype for o in spec.operands[:1] if o) or "none"
        return Case(f"{kind.lower()}-{types}-{seed}-{index}", write(replace(spec, outputs=outputs)), inputs)
    raise RuntimeError(f"{kind}: LiteRT refused {ATTEMPTS} attempts, the last: {refusal}")
