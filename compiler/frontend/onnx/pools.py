"""Pools, reductions, softmax and normalization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nnloom.arch.dtypes import RECENTRED, UINT8
from nnloom.arch.operation import TensorType

from . import movement
from .elementwise import identity
from .order import channels_last, take
from .parameters import Out, geometry_of, output_scale
from .reader import Reader
from .support import Refusal, attributes
from .values import image_shape

__all__ = [
    "average_pool",
    "global_pool",
    "instance_normalization",
    "layer_normalization",
    "max_pool",
    "norm",
    "qlinear_average_pool",
    "qlinear_global_average_pool",
    "qlinear_softmax",
    "reduction",
    "softmax",
]


@movement.keeps_values
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
    value, zero, dtype = output_scale(r, node, 3, 4)
    counts = bool(attributes(node).get("count_include_pad", 0))
    shift: dict[str, Any] = {"recentred": RECENTRED} if dtype == UINT8 else {}
    _pool(r, node, "AVERAGE_POOL_2D", out=(dtype, value, zero), count_padding=counts, **shift)


def _pool(r: Reader, node: Any, kind: str, *, out: Out | None = None, rounding: str = "onnx", **options: Any) -> None:
    x, output = node.input[0], node.output[0]
    if attributes(node).get("channels_last"):
        raise Refusal("channels last; export the model as ONNX has it")
    r.force(x)
    window = [int(v) for v in attributes(node)["kernel_shape"]]
    geometry = geometry_of(r, node, x, window)
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
    value, zero, dtype = output_scale(r, node, 3, 4)
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
    value, zero, dtype = output_scale(r, node, 3, 4)
    shape = r.shape(out)
    axis = int(a.get("axis", -1)) % len(shape)
    if int(a.get("opset", 13)) < 13 and axis != len(shape) - 1:
        raise Refusal("the softmax of opset 12 over several axes; export the model with opset 13 or newer")
    axes = r.v.axes(x) or tuple(range(len(shape)))
    t = r.quantized_type(take(shape, axes), dtype, value, zero)
    r.emit(node, out, "SOFTMAX", [r.v.along(x, axes)], t, axes, {"axis": axes.index(axis)})


def norm(r: Reader, node: Any) -> None:
    """LpNormalization: real numbers over their norm along an axis."""
    x, out = node.input[0], node.output[0]
    r.force(x)
    a = attributes(node)
    axes = r.v.axes(x) or tuple(range(len(r.shape(out))))
    axis = int(a.get("axis", -1)) % len(axes)
    options = {"axis": axes.index(axis), "p": int(a.get("p", 2))}
    r.make(node, out, "LP_NORMALIZATION", [r.v.along(x, axes)], axes, **options)


def instance_normalization(r: Reader, node: Any) -> None:
    """InstanceNormalization: each channel of each image for itself."""
    x, out = node.input[0], node.output[0]
    for name in node.input:
        r.force(name)
    shape = r.shape(out)
    axes = r.v.axes(x) or tuple(range(len(shape)))
    by_channel = (1, shape[1], *(1,) * (len(shape) - 2))
    operands = [r.v.along(x, axes)]
    for name in node.input[1:]:
        data = r.constant(name, "a parameter").reshape(by_channel).transpose(axes)
        operands.append(r.v.constant(data, name=name))
    over = tuple(i for i, axis in enumerate(axes) if axis > 1)
    epsilon = float(attributes(node).get("epsilon", 1e-5))
    r.make(node, out, "NORMALIZATION", operands, axes, over=over, epsilon=epsilon)


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
