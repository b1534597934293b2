"""The steps of which networks are made: each adds an operator, or a small group, with random options."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .draw import Draw
from .network import Inapplicable, Network, Value, schema
from .profiles import Profile

__all__ = ["STEPS", "draw_scale", "draw_zero_point", "pick"]

StepFunction = Callable[[Network, Draw, Profile], None]
STEPS: dict[str, StepFunction] = {}

_ACTIVATIONS = ("NONE", "RELU", "RELU6", "RELU_N1_TO_1")


def _step(function: StepFunction) -> StepFunction:
    STEPS[function.__name__.lstrip("_")] = function
    return function


def draw_scale(d: Draw, p: Profile) -> float:
    """A scale: usual, a power of two, or 1e-9 to 1e3."""
    kind = d.pick(("usual", "power", "extreme"), (0.8 - 0.8 * p.extreme, 0.2 - 0.2 * p.extreme, p.extreme))
    if kind == "usual":
        return 0.0625 if not (step := d.below(64)) else 0.005 * 10 ** (step / 40)
    if kind == "power":
        return 2.0 ** -d.between(4, 10)
    return float(d.pick((1.0, 1e-3, 1e-6, 1e-9, 1e1, 1e2, 1e3, 3.7e-8)) * (1 + d.below(8) / 10))


def draw_zero_point(d: Draw, p: Profile) -> int:
    match d.pick(("zero", "any", "low", "high"), (3, 5, 2, 1)):
        case "any":
            return d.between(-128, 127)
        case "low":
            return -128
        case "high":
            return 127
    return 0


def pick(net: Network, d: Draw, p: Profile, fits: Callable[[Value], bool] = lambda v: True) -> Value:
    """An int8 value that fits, the latest ones rather than the others."""
    found = [v for v in reversed(net.values) if v.dtype == "INT8" and fits(v)]
    if not found:
        raise Inapplicable("no operand")
    weights = [p.latest, *([(1 - p.latest) / max(len(found) - 1, 1)] * (len(found) - 1))]
    return d.pick(found, weights)


def _rank(*ranks: int) -> Callable[[Value], bool]:
    return lambda v: v.rank in ranks


def _activation(d: Draw, often: float = 0.5) -> int:
    name = d.pick(_ACTIVATIONS, (1 - often, often / 2, often / 3, often / 6))
    return getattr(schema.ActivationFunctionType, name)


def _near(d: Draw, p: Profile, scale: float) -> float:
    """An output scale beside a given one: most values fit, or many saturate, or few steps are left."""
    factor = d.pick((1.0, 1.37, 0.81, 2.0, 0.5, 0.1, 12.0), (2, 3, 3, 1, 1, 1, 1))
    if d.chance(p.extreme):
        factor *= d.pick((0.01, 100.0, 1e-4, 1e4))
    return scale * factor


# Products


def _weights(d: Draw, p: Profile, shape: Sequence[int], axis: int) -> np.ndarray:
    style = d.pick(("small", "full", "saturated", "dead channels", "low"), (3, 6, p.extreme + 0.3, 0.7, p.extreme))
    rng = d.rng()
    if style == "small":
        return rng.integers(-7, 8, shape, np.int8)
    values = rng.integers(-127, 128, shape, np.int8)
    if style == "saturated":
        return np.where(rng.random(shape) < 0.8, 127, -127).astype(np.int8)
    if style == "dead channels":
        alive = np.expand_dims(rng.random(shape[axis]) < 0.5, [i for i in range(len(shape)) if i != axis])
        return (values * alive).astype(np.int8)
    if style == "low":
        return np.full(shape, -128, np.int8)
    return values


def _product(
    net: Network, d: Draw, p: Profile, x: Value, shape: Sequence[int], axis: int, depth: int, *, per_tensor: bool
) -> tuple[int, int, float, int]:
    """Constants of a product: weights, bias (or -1), output scale and zero point."""
    channels = shape[axis]
    data = _weights(d, p, shape, axis)
    base = draw_scale(d, p)
    scales = np.full(channels, base, np.float32)
    one = per_tensor or d.chance(0.25)
    if not one:
        spread = d.pick((4.0, 1.5, 300.0), (4, 2, 1))
        scales = (base * d.rng().uniform(1 / spread, 1, channels)).astype(np.float32)
    stored = scales[:1] if one else scales
    weights = net.constant(data, "INT8", stored, axis=0 if one else axis)
    bias = -1
    style = d.pick(("small", "none", "large", "int32 ends", "unquantized"), (8, 1, 2, p.extreme + 0.05, 0.3))
    if style != "none":
        rng = d.rng()
        reach = {"small": 1000, "large": 1 << 20, "unquantized": 1000}.get(style, (1 << 31) - 1)
        values = rng.integers(-reach, reach + 1, channels)
        if style == "int32 ends":
            values = np.where(rng.random(channels) < 0.5, 1, -1) * (reach - rng.integers(0, 100, channels))
        if style == "unquantized":
            bias = net.constant(values, "INT32")
        else:
            bias = net.constant(values, "INT32", stored * np.float32(x.scale))
            if d.chance(p.odd / 4):
                net.bias_axes[bias] = 3
    typical = float(np.abs(data.astype(np.float64)).mean()) * 70 * math.sqrt(depth) / 50
    fits = x.scale * float(scales.max()) * max(typical, 1.0)
    regime = d.pick(("near", "power of two", "factor above one"), (8, 1, 0.5 + p.extreme))
    if regime == "near":
        scale = _near(d, p, fits)
    elif regime == "power of two":
        scale = x.scale * base * 2.0 ** d.between(0, 12)
    else:
        scale = x.scale * base / d.pick((1.0, 1.3, 2.0, 4.2, 64.0))
    return weights, bias, scale, draw_zero_point(d, p)


def _extent(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    if padding == schema.Padding.SAME:
        return -(-size // stride)
    return (size - (kernel - 1) * dilation - 1) // stride + 1


def _window(net: Network, d: Draw, p: Profile, x: Value, options: Any, *, dilated: bool = False) -> tuple[int, int]:
    """Draw padding, strides, dilation and activation; returns the kernel."""
    options.padding = d.pick((schema.Padding.SAME, schema.Padding.VALID))
    kernel = [d.pick(p.kernels), d.pick(p.kernels)] if not d.chance(0.5) else [d.pick(p.kernels)] * 2
    options.strideH = d.pick(p.strides)
    options.strideW = options.strideH if not d.chance(0.3) else d.pick(p.strides)
    dilations = [1, 1]
    if dilated and d.chance(0.12):
        dilations = [d.pick((1, 2, 3)), d.pick((2, 1, 4))]
    for i in range(2):
        if options.padding == schema.Padding.VALID:
            while (kernel[i] - 1) * dilations[i] >= x.shape[1 + i]:
                kernel[i] -= 1
    if dilated:
        options.dilationHFactor, options.dilationWFactor = dilations
    options.fusedActivationFunction = _activation(d)
    return kernel[0], kernel[1]


def _places(x: Value, kernel: tuple[int, int], options: Any) -> tuple[int, int]:
    dilation = getattr(options, "dilationHFactor", 1), getattr(options, "dilationWFactor", 1)
    strides = options.strideH, options.strideW
    rows, columns = (_extent(x.shape[1 + i], kernel[i], strides[i], options.padding, dilation[i]) for i in range(2))
    return rows, columns


def _finish_product(
    net: Network,
    kind: str,
    x: Value,
    constants: list[int],
    shape: Sequence[int],
    scale: float,
    point: int,
    options: Any,
) -> Value:
    y = net.value(shape, "INT8", scale, point)
    if len(constants) == 1 and kind == "CONV_2D":
        scales = net.tensors[constants[0]].quantization.scale
        constants = [*constants, net.constant(np.zeros(shape[-1]), "INT32", scales * np.float32(x.scale))]
        net.without_bias.append(len(net.operators))
    net.add_operator(kind, [x, *constants], [y], options)
    net.products.append((x, constants, options, kind, y))
    return y


def _conv(net: Network, d: Draw, p: Profile, x: Value) -> Value:
    options = schema.Conv2DOptionsT()
    kernel = _window(net, d, p, x, options, dilated=True)
    channels, groups = d.pick(p.channels), 1
    if d.chance(0.1):
        groups = d.pick([g for g in range(1, x.shape[3] + 1) if x.shape[3] % g == 0])
        channels = groups * d.pick((1, 2, 3))
    shape = (channels, *kernel, x.shape[3] // groups)
    if math.prod(shape) > 1 << 15:
        raise Inapplicable("weights")
    weights, bias, scale, point = _product(net, d, p, x, shape, 0, math.prod(shape[1:]), per_tensor=False)
    out = (x.shape[0], *_places(x, kernel, options), channels)
    return _finish_product(net, "CONV_2D", x, [weights, bias][: 2 if bias >= 0 else 1], out, scale, point, options)


@_step
def conv(net: Network, d: Draw, p: Profile) -> None:
    _conv(net, d, p, pick(net, d, p, _rank(4)))


@_step
def depthwise(net: Network, d: Draw, p: Profile) -> None:
    x = pick(net, d, p, _rank(4))
    options = schema.DepthwiseConv2DOptionsT()
    kernel = _window(net, d, p, x, options, dilated=True)
    multiplier = d.pick((1, 2, 3, 4), (8, 1, 0.5, 0.5))
    options.depthMultiplier = 0 if d.chance(p.odd / 2) else multiplier
    channels = x.shape[3] * multiplier
    weights, bias, scale, point = _product(net, d, p, x, (1, *kernel, channels), 3, math.prod(kernel), per_tensor=False)
    out = (x.shape[0], *_places(x, kernel, options), channels)
    constants = [weights, bias][: 2 if bias >= 0 else 1]
    _finish_product(net, "DEPTHWISE_CONV_2D", x, constants, out, scale, point, options)


@_step
def dense(net: Network, d: Draw, p: Profile) -> None:
    x = pick(net, d, p, lambda v: v.rank >= (1 if p.name.startswith("wide") else 2))
    options = schema.FullyConnectedOptionsT()
    options.fusedActivationFunction = _activation(d)
    options.keepNumDims = d.chance(0.3)
    outputs = d.pick(p.channels)
    inputs = x.shape[-1]
    if x.rank > 2 and not options.keepNumDims and d.chance(0.5):
        inputs = x.elements // x.shape[0]
    if inputs * outputs > 1 << 15:
        raise Inapplicable("weights")
    per_tensor = not d.chance(0.15)
    weights, bias, scale, point = _product(net, d, p, x, (outputs, inputs), 0, inputs, per_tensor=per_tensor)
    shape = (*x.shape[:-1], outputs) if options.keepNumDims else (x.elements // inputs, outputs)
    _finish_product(net, "FULLY_CONNECTED", x, [weights, bias], shape, scale, point, options)


@_step
def transpose_conv(net: Network, d: Draw, p: Profile) -> None:
    x = pick(net, d, p, _rank(4))
    options = schema.TransposeConvOptionsT()
    options.padding = d.pick((schema.Padding.SAME, schema.Padding.VALID))
    kernel = d.pick(p.kernels), d.pick(p.kernels)
    options.strideH, options.strideW = d.pick((1, 2, 3)), d.pick((1, 2, 3))
    options.fusedActivationFunction = _activation(d, 0.2)
    channels = d.pick(p.channels)
    out = [x.shape[0], 0, 0, channels]
    for i, stride in enumerate((options.strideH, options.strideW)):
        if options.padding == schema.Padding.SAME:
            out[1 + i] = x.shape[1 + i] * stride - d.below(stride)
        else:
            out[1 + i] = (x.shape[1 + i] - 1) * stride + kernel[i]
    shape = (channels, *kernel, x.shape[3])
    if math.prod(shape) > 1 << 14:
        raise Inapplicable("weights")
    weights, bias, scale, point = _product(net, d, p, x, shape, 0, math.prod(shape[1:]), per_tensor=False)
    y = net.value(out, "INT8", scale, point)
    target = net.constant(out)
    operands: list[Value | int] = [target, weights, x, *([bias] if bias >= 0 else [])]
    net.add_operator("TRANSPOSE_CONV", operands, [y], options)


@_step
def same_constants(net: Network, d: Draw, p: Profile) -> None:
    """An earlier product again, with the very same weights and bias, of another value if one fits."""
    if not net.products:
        raise Inapplicable("no product")
    x, constants, options, kind, result = d.pick(net.products[::-1])
    other = pick(net, d, p, lambda v: v.shape == x.shape and v.scale == x.scale)
    y = net.value(result.shape, "INT8", _near(d, p, result.scale), draw_zero_point(d, p))
    net.add_operator(kind, [other, *constants], [y], options)


@_step
def conv_by_value(net: Network, d: Draw, p: Profile) -> None:
    """A convolution or product whose weights are an activation."""
    w = pick(net, d, p, lambda v: v.zero_point == 0 and v.rank in (2, 4))
    if w.rank == 2:
        x = pick(net, d, p, lambda v: v.rank == 2 and v.shape[1] == w.shape[1])
        options: Any = schema.FullyConnectedOptionsT()
        shape: tuple[int, ...] = (x.shape[0], w.shape[0])
        kind = "FULLY_CONNECTED"
    else:
        x = pick(net, d, p, lambda v: v.rank == 4 and v.shape[3] == w.shape[3])
        options = schema.Conv2DOptionsT()
        options.padding, options.strideH, options.strideW = schema.Padding.SAME, 1, 1
        options.dilationHFactor = options.dilationWFactor = 1
        shape = (*x.shape[:3], w.shape[0])
        kind = "CONV_2D"
    options.fusedActivationFunction = _activation(d)
    depth = math.prod(w.shape[1:])
    scale = _near(d, p, x.scale * w.scale * 70 * math.sqrt(depth))
    y = net.value(shape, "INT8", scale, draw_zero_point(d, p))
    bias = net.constant(d.rng().integers(-1000, 1000, w.shape[0]), "INT32", x.scale * w.scale)
    net.add_operator(kind, [x, w, bias], [y], options)


# Pools


def _pool(net: Network, d: Draw, p: Profile, kind: str) -> None:
    x = pick(net, d, p, _rank(4))
    options = schema.Pool2DOptionsT()
    kernel = _window(net, d, p, x, options)
    if d.chance(0.25):
        kernel, options.padding = x.shape[1:3], schema.Padding.VALID
    options.filterHeight, options.filterWidth = kernel
    if options.fusedActivationFunction > 1 and x.scale < 3e-9:
        raise Inapplicable("the limit is beyond int32, and LiteRT's pools go on with whatever was in memory")
    y = net.like(x, (x.shape[0], *_places(x, kernel, options), x.shape[3]))
    net.add_operator(kind, [x], [y], options)


@_step
def average_pool(net: Network, d: Draw, p: Profile) -> None:
    _pool(net, d, p, "AVERAGE_POOL_2D")


@_step
def max_pool(net: Network, d: Draw, p: Profile) -> None:
    _pool(net, d, p, "MAX_POOL_2D")


# Two operands


def _broadcasts(a: Value, b: Value) -> bool:
    try:
        np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        return False
    return True


def _constant_operand(net: Network, d: Draw, p: Profile, a: Value) -> Value:
    """A constant beside a value: of its shape, of its channels, or one number."""
    shape = d.pick(((1,), a.shape[-1:], a.shape, ()))
    scale, point = draw_scale(d, p), draw_zero_point(d, p)
    index = net.constant(d.rng().integers(-128, 128, shape), "INT8", scale, point)
    made = Value(index, tuple(shape), "INT8", float(np.float32(scale)), point)
    if shape and d.chance(p.odd / 4):  # an operator on constants alone
        turned = net.value((1, *shape), "INT8", scale, point, keep=False)
        net.add_operator("RESHAPE", [made, net.constant([1, *shape])], [turned])
        return turned
    return made


def _binary(net: Network, d: Draw, p: Profile, kind: str, options: Any) -> None:
    a = pick(net, d, p)
    how = d.pick(("other", "same", "constant", "broadcast"), (6, 1, 2, 2))
    if how == "same":
        b = a
    elif how == "constant":
        b = _constant_operand(net, d, p, a)
    elif how == "broadcast":
        b = pick(net, d, p, lambda v: _broadcasts(a, v))
    else:
        b = pick(net, d, p, lambda v: v.shape == a.shape)
    if d.chance(0.3):
        a, b = b, a
    if options is not None:
        options.fusedActivationFunction = _activation(d, 0.3)
    if kind == "MUL":
        scale = _near(d, p, a.scale * b.scale * 60)
    else:
        scale = _near(d, p, max(a.scale, b.scale))
        if kind in ("ADD", "SUB") and max(a.scale, b.scale) / scale > 1 << 17:
            raise Inapplicable("LiteRT ends the process")
    point = draw_zero_point(d, p)
    if kind in ("MAXIMUM", "MINIMUM"):
        if (a.scale, a.zero_point) != (b.scale, b.zero_point):
            raise Inapplicable("scales differ")
        scale, point = a.scale, a.zero_point
    y = net.value(np.broadcast_shapes(a.shape, b.shape), "INT8", scale, point)
    net.add_operator(kind, [a, b], [y], options)


@_step
def add(net: Network, d: Draw, p: Profile) -> None:
    _binary(net, d, p, "ADD", schema.AddOptionsT())


@_step
def sub(net: Network, d: Draw, p: Profile) -> None:
    _binary(net, d, p, "SUB", schema.SubOptionsT())


@_step
def mul(net: Network, d: Draw, p: Profile) -> None:
    _binary(net, d, p, "MUL", schema.MulOptionsT())


@_step
def maximum(net: Network, d: Draw, p: Profile) -> None:
    _binary(net, d, p, "MAXIMUM", None)


@_step
def minimum(net: Network, d: Draw, p: Profile) -> None:
    _binary(net, d, p, "MINIMUM", None)


@_step
def residual(net: Network, d: Draw, p: Profile) -> None:
    """A convolution that keeps the shape, and the sum with its operand, perhaps of both flattened."""
    x = pick(net, d, p, _rank(4))
    shape = (x.shape[3], *([d.pick((1, 3))] * 2), x.shape[3])
    options = schema.Conv2DOptionsT()
    options.padding, options.strideH, options.strideW = schema.Padding.SAME, 1, 1
    options.dilationHFactor = options.dilationWFactor = 1
    options.fusedActivationFunction = _activation(d, 0.2)
    if math.prod(shape) > 1 << 15:
        raise Inapplicable("weights")
    weights, bias, scale, point = _product(net, d, p, x, shape, 0, math.prod(shape[1:]), per_tensor=False)
    constants = [weights, bias][: 2 if bias >= 0 else 1]
    y = _finish_product(net, "CONV_2D", x, constants, x.shape, scale, point, options)
    if max(x.scale, y.scale) / min(x.scale, y.scale) > 1 << 15:
        raise Inapplicable("scales")
    if d.chance(0.2):
        x, y = (_reshape(net, d, p, v, (v.shape[0], v.elements // v.shape[0])) for v in (x, y))
    both = [x, y] if d.chance(0.5) else [y, x]
    add_options = schema.AddOptionsT()
    add_options.fusedActivationFunction = _activation(d)
    z = net.value(x.shape, "INT8", _near(d, p, max(x.scale, y.scale)), draw_zero_point(d, p))
    net.add_operator("ADD", both, [z], add_options)


@_step
def gate(net: Network, d: Draw, p: Profile) -> None:
    """Squeeze and excite: mean, 1x1 convolution, logistic, product with the operand."""
    x = pick(net, d, p, _rank(4))
    mean_options = schema.ReducerOptionsT()
    mean_options.keepDims = True
    m = net.value((x.shape[0], 1, 1, x.shape[3]), "INT8", _near(d, p, x.scale), draw_zero_point(d, p))
    net.add_operator("MEAN", [x, net.constant([1, 2])], [m], mean_options)
    shape = (x.shape[3], 1, 1, x.shape[3])
    options = schema.Conv2DOptionsT()
    options.padding, options.strideH, options.strideW = schema.Padding.SAME, 1, 1
    options.dilationHFactor = options.dilationWFactor = 1
    weights, bias, scale, point = _product(net, d, p, m, shape, 0, x.shape[3], per_tensor=False)
    constants = [weights, bias][: 2 if bias >= 0 else 1]
    c = _finish_product(net, "CONV_2D", m, constants, m.shape, scale, point, options)
    g = net.value(c.shape, "INT8", 1 / 256, -128)
    net.add_operator("LOGISTIC", [c], [g])
    mul_options = schema.MulOptionsT()
    mul_options.fusedActivationFunction = 0
    z = net.value(x.shape, "INT8", _near(d, p, x.scale), draw_zero_point(d, p))
    net.add_operator("MUL", [x, g], [z], mul_options)


@_step
def batch_matmul(net: Network, d: Draw, p: Profile) -> None:
    a = pick(net, d, p, lambda v: v.rank >= 2)
    b = pick(net, d, p, lambda v: v.rank == a.rank and v.shape[:-2] == a.shape[:-2] and v.shape[-1] == a.shape[-1])
    options = schema.BatchMatMulOptionsT()
    options.adjX, options.adjY = False, True
    y = net.value(
        (*a.shape[:-1], b.shape[-2]),
        "INT8",
        _near(d, p, a.scale * b.scale * 50 * math.sqrt(a.shape[-1])),
        draw_zero_point(d, p),
    )
    net.add_operator("BATCH_MATMUL", [a, b], [y], options)


# One operand


@_step
def mean(net: Network, d: Draw, p: Profile) -> None:
    _reduce(net, d, p, "MEAN")


@_step
def reduce_max(net: Network, d: Draw, p: Profile) -> None:
    _reduce(net, d, p, "REDUCE_MAX")


def _reduce(net: Network, d: Draw, p: Profile, kind: str) -> None:
    x = pick(net, d, p, lambda v: v.rank >= 1)
    if x.rank == 4 and d.chance(0.6):
        axes = [1, 2]
    else:
        axes = [i for i in range(x.rank) if d.chance(0.4)] or [x.rank - 1]
    options = schema.ReducerOptionsT()
    options.keepDims = d.chance(0.5)
    shape = [1 if i in axes else v for i, v in enumerate(x.shape) if options.keepDims or i not in axes]
    if d.chance(0.2):
        axes = [i - x.rank for i in axes]
    same = kind == "REDUCE_MAX" or d.chance(0.3)
    y = net.like(x, shape) if same else net.value(shape, "INT8", _near(d, p, x.scale), draw_zero_point(d, p))
    net.add_operator(kind, [x, net.constant(axes)], [y], options)


@_step
def softmax(net: Network, d: Draw, p: Profile) -> None:
    x = pick(net, d, p, lambda v: v.rank >= 1)
    options = schema.SoftmaxOptionsT()
    options.beta = d.pick((1.0, 0.5, 2.0, 0.125, 10.0), (6, 1, 1, 1, 1))
    wide = d.chance(0.15)
    y = net.value(x.shape, "INT16", 1 / 32768, 0) if wide else net.value(x.shape, "INT8", 1 / 256, -128)
    net.add_operator("SOFTMAX", [x], [y], options)


@_step
def requantize(net: Network, d: Draw, p: Profile) -> None:
    x = pick(net, d, p)
    factor = d.pick((2.0, 1.0, 0.5, 0.7, 3.1, 4.0))
    scale = x.scale * factor if d.chance(0.7) else draw_scale(d, p)
    point = draw_zero_point(d, p)
    dtype = d.pick(("INT8", "UINT8"), (5, 1))
    y = net.value(x.shape, dtype, scale, point + (128 if dtype == "UINT8" else 0))
    net.add_operator("QUANTIZE", [x], [y], schema.QuantizeOptionsT())
    if dtype == "UINT8" and d.chance(0.7):
        z = net.value(x.shape, "INT8", scale if d.chance(0.7) else draw_scale(d, p), point)
        net.add_operator("QUANTIZE", [y], [z], schema.QuantizeOptionsT())


@_step
def float_between(net: Network, d: Draw, p: Profile) -> None:
    """DEQUANTIZE and QUANTIZE in the middle."""
    x = pick(net, d, p)
    f = net.value(x.shape, "FLOAT32", keep=d.chance(0.2))
    net.add_operator("DEQUANTIZE", [x], [f], schema.DequantizeOptionsT())
    y = net.value(x.shape, "INT8", _near(d, p, x.scale), draw_zero_point(d, p))
    net.add_operator("QUANTIZE", [f], [y], schema.QuantizeOptionsT())


def _unary(net: Network, d: Draw, p: Profile, kind: str, options: Any = None) -> None:
    x = pick(net, d, p)
    if d.chance(0.4):
        y = net.like(x, x.shape)
    else:
        y = net.value(x.shape, "INT8", _near(d, p, x.scale), draw_zero_point(d, p))
    net.add_operator(kind, [x], [y], options)


@_step
def relu(net: Network, d: Draw, p: Profile) -> None:
    _unary(net, d, p, d.pick(("RELU", "RELU6", "RELU_N1_TO_1")))


@_step
def abs(net: Network, d: Draw, p: Profile) -> None:
    _unary(net, d, p, "ABS")


@_step
def leaky_relu(net: Network, d: Draw, p: Profile) -> None:
    options = schema.LeakyReluOptionsT()
    options.alpha = float(np.float32(d.pick((0.1, 0.3, 0.01, 0.0, 1.0, 1.7, -0.5), (6, 4, 2, 1, 1, 0.5, 0.3))))
    _unary(net, d, p, "LEAKY_RELU", options)


@_step
def prelu(net: Network, d: Draw, p: Profile) -> None:
    x = pick(net, d, p, lambda v: v.rank >= 2)
    scale, point = draw_scale(d, p), draw_zero_point(d, p)
    alpha = net.constant(d.rng().integers(-128, 128, (1,) * (x.rank - 2) + x.shape[-1:]), "INT8", scale, point)
    y = net.value(x.shape, "INT8", _near(d, p, x.scale), draw_zero_point(d, p))
    net.add_operator("PRELU", [x, alpha], [y])


@_step
def logistic(net: Network, d: Draw, p: Profile) -> None:
    x = pick(net, d, p)
    net.add_operator("LOGISTIC", [x], [net.value(x.shape, "INT8", 1 / 256, -128)])


@_step
def tanh(net: Network, d: Draw, p: Profile) -> None:
    x = pick(net, d, p)
    net.add_operator("TANH", [x], [net.value(x.shape, "INT8", 1 / 128, 0)])


@_step
def hard_swish(net: Network, d: Draw, p: Profile) -> None:
    _unary(net, d, p, "HARD_SWISH", schema.HardSwishOptionsT())


def _resize(net: Network, d: Draw, p: Profile, kind: str, options: Any) -> None:
    x = pick(net, d, p, _rank(4))
    factor = d.pick((2, 1, 3, 0))
    size = [v * factor or d.between(1, 16) for v in x.shape[1:3]] if factor else [d.between(1, 16), d.between(1, 16)]
    mode = d.pick(("plain", "half pixels", "corners"))
    options.halfPixelCenters, options.alignCorners = mode == "half pixels", mode == "corners"
    y = net.like(x, (x.shape[0], *size, x.shape[3]))
    net.add_operator(kind, [x, net.constant(size)], [y], options)


@_step
def resize_bilinear(net: Network, d: Draw, p: Profile) -> None:
    _resize(net, d, p, "RESIZE_BILINEAR", schema.ResizeBilinearOptionsT())


@_step
def resize_nearest(net: Network, d: Draw, p: Profile) -> None:
    _resize(net, d, p, "RESIZE_NEAREST_NEIGHBOR", schema.ResizeNearestNeighborOptionsT())


# Moves


def _pad(net: Network, d: Draw, p: Profile, kind: str, options: Any) -> None:
    x = pick(net, d, p, lambda v: 1 <= v.rank <= 5)
    most = 1 if kind == "MIRROR_PAD" else 3
    inner = range(1, 3) if x.rank == 4 and d.chance(0.6) else range(x.rank)
    amounts = [(d.below(most + 1), d.below(most + 1)) if i in inner else (0, 0) for i in range(x.rank)]
    if kind == "MIRROR_PAD" and any(max(a) >= v for a, v in zip(amounts, x.shape, strict=True)):
        raise Inapplicable("too small to mirror")
    y = net.like(x, [v + a + b for v, (a, b) in zip(x.shape, amounts, strict=True)])
    operands: list[Value | int] = [x, net.constant(amounts)]
    if kind == "PADV2":
        operands.append(net.constant([d.between(-128, 127)], "INT8", x.scale, x.zero_point))
    net.add_operator(kind, operands, [y], options)


@_step
def pad(net: Network, d: Draw, p: Profile) -> None:
    _pad(net, d, p, "PAD", schema.PadOptionsT())


@_step
def pad_v2(net: Network, d: Draw, p: Profile) -> None:
    _pad(net, d, p, "PADV2", schema.PadV2OptionsT())


@_step
def mirror_pad(net: Network, d: Draw, p: Profile) -> None:
    options = schema.MirrorPadOptionsT()
    options.mode = d.pick((0, 1))
    _pad(net, d, p, "MIRROR_PAD", options)


@_step
def concatenation(net: Network, d: Draw, p: Profile) -> None:
    x = pick(net, d, p, lambda v: v.rank >= 1)
    axis = x.rank - 1 if d.chance(0.7) else d.below(x.rank)

    def fits(v: Value) -> bool:
        return v.rank == x.rank and all(a == b or i == axis for i, (a, b) in enumerate(zip(v.shape, x.shape)))  # noqa: B905

    parts = [x]
    for _ in range(d.pick((1, 0, 2, 3), (6, 1, 2, 1))):
        other = pick(net, d, p, fits)
        if (other.scale, other.zero_point) != (x.scale, x.zero_point):
            moved = net.value(other.shape, "INT8", x.scale, x.zero_point)
            net.add_operator("QUANTIZE", [other], [moved], schema.QuantizeOptionsT())
            other = moved
        parts.append(other)
    options = schema.ConcatenationOptionsT()
    options.axis = axis - x.rank if d.chance(0.3) else axis
    options.fusedActivationFunction = 0
    shape = list(x.shape)
    shape[axis] = int(np.sum([v.shape[axis] for v in parts]))
    net.add_operator("CONCATENATION", parts, [net.like(x, shape)], options)


@_step
def split(net: Network, d: Draw, p: Profile) -> None:
    x = pick(net, d, p, lambda v: any(s > 1 for s in v.shape))
    axis = d.pick([i for i in reversed(range(x.rank)) if x.shape[i] > 1])
    count = d.pick([c for c in range(2, min(x.shape[axis], 6) + 1) if x.shape[axis] % c == 0] or [x.shape[axis]])
    if count > 8:
        raise Inapplicable("parts")
    options = schema.SplitOptionsT()
    options.numSplits = count
    shape = list(x.shape)
    shape[axis] //= count
    written = axis - x.rank if d.chance(0.3) else axis
    parts = [net.like(x, shape) for _ in range(count)]
    net.add_operator("SPLIT", [net.constant(written), x], parts, options)


@_step
def split_v(net: Network, d: Draw, p: Profile) -> None:
    x = pick(net, d, p, lambda v: any(s > 1 for s in v.shape))
    axis = d.pick([i for i in reversed(range(x.rank)) if x.shape[i] > 1])
    first = d.between(1, x.shape[axis] - 1)
    options = schema.SplitVOptionsT()
    options.numSplits = 2
    sizes = [first, x.shape[axis] - first]
    parts = [net.like(x, (*x.shape[:axis], size, *x.shape[axis + 1 :])) for size in sizes]
    net.add_operator("SPLIT_V", [x, net.constant(sizes), net.constant(axis)], parts, options)


@_step
def slice(net: Network, d: Draw, p: Profile) -> None:
    x = pick(net, d, p, lambda v: 1 <= v.rank <= 5)
    begin = [d.below(v) if d.chance(0.5) else 0 for v in x.shape]
    size = [v - b - d.below(v - b) if d.chance(0.5) else v - b for v, b in zip(x.shape, begin, strict=True)]
    y = net.like(x, size)
    written = [-1 if b + s == v and d.chance(0.3) else s for v, b, s in zip(x.shape, begin, size, strict=True)]
    net.add_operator("SLICE", [x, net.constant(begin), net.constant(written)], [y], schema.SliceOptionsT())


@_step
def strided_slice(net: Network, d: Draw, p: Profile) -> None:
    x = pick(net, d, p, lambda v: 1 <= v.rank <= 5)
    options = schema.StridedSliceOptionsT()
    options.beginMask = options.endMask = options.ellipsisMask = options.newAxisMask = options.shrinkAxisMask = 0
    begins, ends, strides, shape = [], [], [], []
    for i, v in enumerate(x.shape):
        how = d.pick(("all", "part", "step", "backwards", "one"), (4, 2, 1, 0.5, 0.5))
        begin, end, stride = 0, v, 1
        if how == "all":
            options.beginMask |= d.below(2) << i
            options.endMask |= d.below(2) << i
        elif how == "part":
            begin = d.below(v)
            end = v - d.below(v - begin)
        elif how == "step":
            stride = d.between(2, 4)
            begin = d.below(v)
        elif how == "backwards":
            begin, end, stride = v - 1, 0, -d.between(1, 2)
            options.endMask |= 1 << i
        elif x.rank > 1:
            begin = d.below(v)
            end = begin + 1
            options.shrinkAxisMask |= 1 << i
        picked = range(v - 1, -1, stride) if stride < 0 else range(begin, end, stride)
        if not options.shrinkAxisMask >> i & 1:
            shape.append(len(picked))
        if d.chance(0.2) and how in ("part", "step"):
            begin -= v
        begins.append(begin)
        ends.append(end)
        strides.append(stride)
    y = net.like(x, shape)
    net.add_operator("STRIDED_SLICE", [x, *(net.constant(part) for part in (begins, ends, strides))], [y], options)


@_step
def transpose(net: Network, d: Draw, p: Profile) -> None:
    x = pick(net, d, p, lambda v: v.rank >= 2)
    left, order = list(range(x.rank)), []
    while left:
        order.append(left.pop(-1 - d.below(len(left))))
    net.add_operator(
        "TRANSPOSE",
        [x, net.constant(order)],
        [net.like(x, [x.shape[i] for i in order])],
        schema.TransposeOptionsT(),
    )


def _reshape(net: Network, d: Draw, p: Profile, x: Value, shape: Sequence[int]) -> Value:
    shape = tuple(int(v) for v in shape)
    y = net.like(x, shape)
    options = schema.ReshapeOptionsT()
    options.newShape = np.array(shape, np.int32)
    how = d.pick(("operand", "options", "guess"), (6, p.odd * 2, 1))
    if how == "options":
        net.add_operator("RESHAPE", [x], [y], options)
        return y
    written = list(shape)
    if how == "guess" and shape:
        written[d.below(len(shape))] = -1
    net.add_operator("RESHAPE", [x, net.constant(written)], [y], options if d.chance(0.7) else None)
    return y


@_step
def reshape(net: Network, d: Draw, p: Profile) -> None:
    x = pick(net, d, p)
    rest, shape = x.elements, []
    for _ in range(d.pick((4, 2, 3, 1, 5)) - 1):
        divisors = [i for i in range(1, rest + 1) if rest % i == 0]
        shape.append(d.pick(divisors))
        rest //= shape[-1]
    shape.append(rest)
    if d.chance(0.5):
        shape = [1, *sorted(shape)[-3:]] if math.prod(sorted(shape)[-3:]) == x.elements else shape
    _reshape(net, d, p, x, shape)


@_step
def flatten(net: Network, d: Draw, p: Profile) -> None:
    x = pick(net, d, p, lambda v: v.rank >= 2)
    _reshape(net, d, p, x, (x.shape[0], x.elements // x.shape[0]) if not d.chance(0.1) else (1, x.elements))


@_step
def squeeze(net: Network, d: Draw, p: Profile) -> None:
    x = pick(net, d, p, lambda v: 1 in v.shape and v.rank > 1)
    ones = [i for i, v in enumerate(x.shape) if v == 1]
    named = [i for i in ones if d.chance(0.6)] or ones[-1:]
    options = schema.SqueezeOptionsT()
    if d.chance(0.2):
        named, options.squeezeDims = ones, None
    else:
        options.squeezeDims = np.array([i - x.rank if d.chance(0.2) else i for i in named], np.int32)
    shape = [v for i, v in enumerate(x.shape) if i not in named]
    net.add_operator("SQUEEZE", [x], [net.like(x, shape)], options)


@_step
def expand_dims(net: Network, d: Draw, p: Profile) -> None:
    x = pick(net, d, p, lambda v: v.rank <= 4)
    axis = d.below(x.rank + 1)
    y = net.like(x, (*x.shape[:axis], 1, *x.shape[axis:]))
    written = axis - x.rank - 1 if d.chance(0.3) else axis
    data = written if d.chance(0.5) else [written]
    net.add_operator("EXPAND_DIMS", [x, net.constant(data)], [y], schema.ExpandDimsOptionsT())


@_step
def pack(net: Network, d: Draw, p: Profile) -> None:
    x = pick(net, d, p, lambda v: v.rank <= 4)
    parts = [x]
    for _ in range(d.pick((1, 0, 2))):
        parts.append(pick(net, d, p, lambda v: (v.shape, v.scale, v.zero_point) == (x.shape, x.scale, x.zero_point)))
    axis = d.below(x.rank + 1)
    options = schema.PackOptionsT()
    options.valuesCount, options.axis = len(parts), axis - x.rank - 1 if d.chance(0.2) else axis
    net.add_operator("PACK", parts, [net.like(x, (*x.shape[:axis], len(parts), *x.shape[axis:]))], options)


@_step
def unpack(net: Network, d: Draw, p: Profile) -> None:
    x = pick(net, d, p, lambda v: v.rank >= 2 and min(v.shape) <= 6)
    axis = d.pick([i for i, v in enumerate(x.shape) if v <= 6])
    options = schema.UnpackOptionsT()
    options.num, options.axis = x.shape[axis], axis
    parts = [net.like(x, (*x.shape[:axis], *x.shape[axis + 1 :])) for _ in range(x.shape[axis])]
    net.add_operator("UNPACK", [x], parts, options)


def _even_padding(d: Draw, size: int, block: int) -> tuple[int, int]:
    before = d.below(3)
    return before, -(size + before) % block


@_step
def space_to_batch(net: Network, d: Draw, p: Profile) -> None:
    """SPACE_TO_BATCH_ND, perhaps a convolution, and back."""
    x = pick(net, d, p, _rank(4))
    block = [d.pick((2, 1, 3)), d.pick((2, 1, 3))]
    amounts = [_even_padding(d, v, b) for v, b in zip(x.shape[1:3], block, strict=True)]
    size = [(v + sum_) // b for v, sum_, b in zip(x.shape[1:3], map(np.sum, amounts), block, strict=True)]
    y = net.like(x, (x.shape[0] * math.prod(block), *size, x.shape[3]))
    net.add_operator(
        "SPACE_TO_BATCH_ND", [x, net.constant(block), net.constant(amounts)], [y], schema.SpaceToBatchNDOptionsT()
    )
    if d.chance(0.6):
        if d.chance(0.7):
            y = _conv(net, d, p, y)
        _back(net, d, y, block)


def _back(net: Network, d: Draw, x: Value, block: Sequence[int]) -> None:
    full = [v * b for v, b in zip(x.shape[1:3], block, strict=True)]
    crops = [(d.below(min(2, v)), 0) for v in full]
    z = net.like(x, (x.shape[0] // math.prod(block), *(v - a for v, (a, _) in zip(full, crops)), x.shape[3]))  # noqa: B905
    net.add_operator(
        "BATCH_TO_SPACE_ND", [x, net.constant(block), net.constant(crops)], [z], schema.BatchToSpaceNDOptionsT()
    )


@_step
def batch_to_space(net: Network, d: Draw, p: Profile) -> None:
    x = pick(net, d, p, lambda v: v.rank == 4 and v.shape[0] > 1)
    divisors = [i for i in range(1, x.shape[0] + 1) if x.shape[0] % i == 0]
    rows = d.pick(divisors[::-1])
    columns = d.pick([i for i in divisors if x.shape[0] // rows % i == 0])
    _back(net, d, x, [rows, columns])


@_step
def space_to_depth(net: Network, d: Draw, p: Profile) -> None:
    blocks = range(2, 6)
    x = pick(net, d, p, lambda v: v.rank == 4 and any(v.shape[1] % k == v.shape[2] % k == 0 for k in blocks))
    block = d.pick([k for k in blocks if x.shape[1] % k == x.shape[2] % k == 0])
    options = schema.SpaceToDepthOptionsT()
    options.blockSize = block
    b, r, c, ch = x.shape
    y = net.like(x, (b, r // block, c // block, ch * block * block))
    net.add_operator("SPACE_TO_DEPTH", [x], [y], options)


@_step
def depth_to_space(net: Network, d: Draw, p: Profile) -> None:
    x = pick(net, d, p, lambda v: v.rank == 4 and v.shape[3] % 4 == 0)
    options = schema.DepthToSpaceOptionsT()
    options.blockSize = 2
    b, r, c, ch = x.shape
    net.add_operator("DEPTH_TO_SPACE", [x], [net.like(x, (b, r * 2, c * 2, ch // 4))], options)


@_step
def gather(net: Network, d: Draw, p: Profile) -> None:
    x = pick(net, d, p, lambda v: v.rank >= 1)
    axis = d.below(x.rank)
    indices = [d.below(x.shape[axis]) for _ in range(d.between(1, 3))]
    options = schema.GatherOptionsT()
    options.axis, options.batchDims = axis, 0
    y = net.like(x, (*x.shape[:axis], len(indices), *x.shape[axis + 1 :]))
    net.add_operator("GATHER", [x, net.constant(indices)], [y], options)


@_step
def arg_max(net: Network, d: Draw, p: Profile) -> None:
    x = pick(net, d, p, lambda v: v.rank >= 1)
    axis = x.rank - 1 if not d.chance(0.3) else d.below(x.rank)
    options = schema.ArgMaxOptionsT()
    dtype = d.pick(("INT32", "INT64"), (3, 1))
    options.outputType = getattr(schema.TensorType, dtype)
    y = net.value((*x.shape[:axis], *x.shape[axis + 1 :]), dtype)
    net.add_operator("ARG_MAX", [x, net.constant(axis - x.rank if d.chance(0.3) else axis)], [y], options)
