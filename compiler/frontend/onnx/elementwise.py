"""Sums, products and functions of elements."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nnloom.arch.dtypes import EIGHT_BITS, RECENTRED, UINT8
from nnloom.arch.operation import Quantization, TensorType

from .order import Axes, Shape, order_of, take
from .parameters import output_scale
from .reader import Product, Reader
from .support import Refusal, attributes
from .tables import Chain

__all__ = [
    "batch_normalization",
    "binary",
    "cast",
    "clip",
    "clip_real",
    "common_axes",
    "identity",
    "operand_of",
    "qlinear_binary",
    "qlinear_function",
    "relu",
    "unary",
    "variadic",
]


_INTEGERS = ("int32", "int64")
_OF_INTEGERS = ("ADD", "MAXIMUM", "MINIMUM", "MUL", "SUB")


def qlinear_binary(kind: str) -> Callable[[Reader, Any], None]:
    """QLinearAdd and QLinearMul."""

    def read(r: Reader, node: Any) -> None:
        a, b = node.input[0], node.input[3]
        value, zero, dtype = output_scale(r, node, 6, 7)
        scales = (r.scale_of(node.input[1], node.input[2]), r.scale_of(node.input[4], node.input[5]))
        for name, (scale, zero_point) in zip((a, b), scales, strict=True):
            if name not in r.v.constants:
                r.integer(name, scale, zero_point)
        axes = common_axes(r, (a, b), node.output[0])
        operands = [operand_of(r, n, node.output[0], axes, s) for n, s in zip((a, b), scales, strict=True)]
        options: dict[str, Any] = {"activation": "NONE"}
        if dtype == UINT8:
            options["recentred"] = RECENTRED
        if kind == "ADD":
            options |= _add_options(r.shape(a), r.shape(b))
        t = r.quantized_type(take(r.shape(node.output[0]), axes), dtype, value, zero)
        r.emit(node, node.output[0], kind, operands, t, axes, options)

    return read


def _add_options(a: Shape, b: Shape) -> dict[str, Any]:
    """Whether ONNX Runtime takes the second operand first: where the first is broadcast along the innermost axis."""
    rank = max(len(a), len(b))
    sizes = zip(*((1,) * (rank - len(shape)) + shape for shape in (a, b)), strict=True)
    innermost = [pair for pair in sizes if max(pair) > 1][-1:]
    return {"scalar_first": True} if innermost and innermost[0][0] == 1 else {}


def common_axes(r: Reader, names: Sequence[str], output: str) -> Axes:
    """The order of axes in which an elementwise operator runs: that of an operand that needs no transposition."""
    shape = r.shape(output)
    plain = tuple(range(len(shape)))
    found = [r.v.axes(n) for n in names if n not in r.v.constants and r.shape(n) == shape]
    return next((axes for axes in found if axes not in (None, plain)), None) or plain


def operand_of(
    r: Reader, name: str, output: str, axes: Axes, quantization: tuple[np.float32, int] | None = None
) -> int:
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
        _check_numbers(r, out, kind)
        axes = common_axes(r, node.input, out)
        operands = [operand_of(r, name, out, axes) for name in node.input]
        t = TensorType(take(r.shape(out), axes), r.dtypes.get(out, "float32"))
        r.emit(node, out, kind, operands, t, axes, {"activation": "NONE"}, _rounding(t))

    return read


def _check_numbers(r: Reader, out: str, kind: str) -> None:
    """Whether numbers of a type have such an operator: of integers, those that round nothing."""
    dtype = r.dtypes.get(out, "float32")
    if dtype != "float32" and (dtype not in _INTEGERS or kind not in _OF_INTEGERS):
        raise Refusal(f"{dtype}; float32 is supported{_also(kind)}")


def _also(kind: str) -> str:
    return ", and int32 and int64 are" if kind in _OF_INTEGERS else ""


def _rounding(t: TensorType) -> str:
    """Integers that stand for themselves have one arithmetic."""
    return "tflite" if t.dtype in _INTEGERS else "onnx"


def variadic(kind: str, *, mean: bool = False) -> Callable[[Reader, Any], None]:
    """Max, Min, Sum and Mean of any number of operands, one after the other."""

    def read(r: Reader, node: Any) -> None:
        names, out = list(node.input), node.output[0]
        if len(names) == 1:
            identity(r, node)
            return
        if len(names) == 2 and not mean:
            binary(kind)(r, node)
            return
        for name in names:
            r.force(name)
        _check_numbers(r, out, kind)
        axes = common_axes(r, names, out)
        total = operand_of(r, names[0], out, axes)
        shape = r.v.type(total).shape
        for place, name in enumerate(names[1:], 2):
            other = operand_of(r, name, out, axes)
            shape = tuple(int(n) for n in np.broadcast_shapes(shape, r.v.type(other).shape))
            t = TensorType(shape, r.dtypes.get(out, "float32"))
            last = place == len(names) and not mean
            target = r.v.add(out if last else f"{out} ({place} operands)", t)
            label = node.name if last else ""
            r.v.emit(kind, [total, other], [target], {"activation": "NONE"}, rounding=_rounding(t), name=label)
            total = target
        if mean:
            part = r.v.constant(np.float32(1) / np.array(len(names), np.float32), name="part")
            t = TensorType(shape, "float32")
            total = r.emit(node, out, "MUL", [total, part], t, None, {"activation": "NONE"})
        r.v.hold(out, total, axes)

    return read


def relu(r: Reader, node: Any) -> None:
    """Relu: of a product that waits, a limit of its result."""
    if not _clamp(r, node, 0.0, None):
        unary("RELU")(r, node)


def clip(r: Reader, node: Any) -> None:
    """Clip of real numbers, as `relu`, or of quantized ones."""
    name = node.input[0]
    bounds = [float(r.scalar(n, "a bound")) if n else None for n in [*node.input[1:], "", ""][:2]]
    if r.dtypes.get(name) in EIGHT_BITS:
        _clip_integers(r, node, bounds)
        return
    if _clamp(r, node, *bounds) or _extend(r, node, (name,)):
        return
    r.force(name)
    clip_real(r, node, name, node.output[0], bounds)


def clip_real(r: Reader, node: Any, name: str, out: str, bounds: Sequence[float | None]) -> None:
    """A limit of real numbers."""
    options = {key: value for key, value in zip(("min", "max"), bounds, strict=True) if value is not None}
    node = node if out in node.output else type(node)(op_type="Clip")  # of a product: what is limited has its name
    _of_one(r, node, "CLIP", name, out, {k: v for k, v in options.items() if abs(v) < 1 << 32})


def _clamp(r: Reader, node: Any, low: float | None, high: float | None) -> bool:
    product = r.lazy.get(node.input[0])
    if not isinstance(product, Product) or r.readers[node.output[0]] != 1 or product.clamp != (None, None):
        return False
    r.lazy[node.output[0]] = dataclasses.replace(product, clamp=(low, high))
    return True


def _clip_integers(r: Reader, node: Any, bounds: Sequence[float | None]) -> None:
    """A table, or a limit of the operator that makes the operand."""
    name, out = node.input[0], node.output[0]
    shift = RECENTRED if r.dtypes[name] == UINT8 else 0
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
    value, zero, dtype = output_scale(r, node, 3, 4)
    source = r.integer(name, scale, zero_point)
    from onnx import numpy_helper

    initializers = [numpy_helper.from_array(r.constant(n, "a scale"), n) for n in dict.fromkeys(node.input[1:])]
    values = (np.arange(256) + (0 if r.dtypes[name] == UINT8 else -128)).astype(r.dtypes[name])
    (answers,) = run_nodes(r.plan.planned, [node], initializers, {name: values}, [out])
    if dtype == UINT8:
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
