"""Quantized operators in QDQ form: the patterns that find them and the values they hold.

TVM's importers wrap every quantized operator in dequantize -> float operator -> quantize. The patterns here
match that form; `extract` reads one match into a `QuantizedOp`, from which both the accelerator's layers
and the CPU's integer code are made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Quantization",
    "QuantizedOp",
    "extract",
    "is_constant",
    "is_quantized_operator",
    "operands",
    "patterns",
    "read_composite",
    "resolver",
    "static_shape",
]


@dataclass(frozen=True)
class Quantization:
    """Scale (a float32 value, as a Python float) and zero point."""

    scale: float
    zero_point: int


@dataclass(frozen=True, kw_only=True)
class QuantizedOp:
    """One quantized operator. Shapes are NHWC, or [1, n] for dense; padding is (top, left, bottom, right)."""

    kind: str
    """conv2d, dense, average_pool, max_pool, add, flatten, softmax or quantize"""
    inputs: tuple[Any, ...]
    """Relax expressions of the operands: int8, or float32 for quantize"""
    input_shapes: tuple[tuple[int, ...], ...]
    input_quantization: tuple[Quantization | None, ...]
    output_shape: tuple[int, ...]
    output_quantization: Quantization | None = None
    act_min: int = -128
    act_max: int = 127
    weights: NDArray[np.int8] | None = field(default=None, repr=False)
    """conv2d: [kernel rows, kernel columns, input channels of a group, outputs]; dense: [outputs, inputs]"""
    weight_scales: NDArray[np.float64] | None = field(default=None, repr=False)
    """[outputs]"""
    bias: NDArray[np.int32] | None = field(default=None, repr=False)
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    window: tuple[int, int] = (1, 1)


def static_shape(expr: Any) -> tuple[int, ...]:
    """Shape of a Relax expression as integers.

    Raises
    ------
    ValueError
        If a dimension is not known.
    """
    try:
        return tuple(int(v) for v in expr.ty.shape.values)
    except (TypeError, AttributeError) as error:
        raise ValueError("dynamic shape") from error


def patterns(prefix: str, check: Callable[[Any], bool] | None = None) -> list[tuple]:
    """Patterns for FuseOpsByPattern, longest first; composite names are `prefix.kind`."""
    from tvm.relax.dpl import is_const, is_op, wildcard

    def dequantize(x: Any) -> Any:
        return is_op("relax.dequantize")(x, is_const(), is_const())

    def activated(name: str, x: Any) -> list[tuple[str, Any]]:
        """`x` quantized, with a fused activation before or after the quantize, or none."""
        forms = []
        clamp = is_op("relax.clip")(x, wildcard(), wildcard())
        for inner in (is_op("relax.nn.relu")(x), clamp, x):
            quantized = is_op("relax.quantize")(inner, is_const(), is_const())
            forms += [(name, is_op("relax.clip")(quantized, wildcard(), wildcard())), (name, quantized)]
        return forms

    def constant() -> Any:
        # A pattern object stands for one expression: every use needs its own.
        return dequantize(is_const())

    weight = is_op("relax.reshape")(constant(), wildcard()) | constant()
    convolution = is_op("relax.nn.conv2d")(dequantize(wildcard()), weight)
    moved = dequantize(is_op("relax.permute_dims")(is_const())) | is_op("relax.permute_dims")(constant())
    matmul = is_op("relax.matmul")(dequantize(wildcard()), moved | constant())
    result: list[tuple[str, Any]] = []
    for name, product in (("conv2d", convolution), ("dense", matmul)):
        result += activated(name, is_op("relax.add")(product, constant()))
        result += activated(name, product)
    result += activated("add", is_op("relax.add")(dequantize(wildcard()), dequantize(wildcard())))
    pooled = is_op("relax.astype")(is_op("relax.nn.avg_pool2d")(is_op("relax.astype")(wildcard())))
    result += [("average_pool", is_op("relax.clip")(pooled, wildcard(), wildcard())), ("average_pool", pooled)]
    largest = is_op("relax.nn.max_pool2d")(wildcard())
    result += [("max_pool", is_op("relax.clip")(largest, wildcard(), wildcard())), ("max_pool", largest)]
    result.append(("flatten", is_op("relax.reshape")(wildcard(), wildcard())))
    softmax = is_op("relax.nn.softmax")(dequantize(wildcard()))
    result.append(("softmax", is_op("relax.quantize")(softmax, is_const(), is_const())))
    result.append(("quantize", is_op("relax.quantize")(wildcard(), is_const(), is_const())))
    if check is None:
        return [(f"{prefix}.{name}", pattern) for name, pattern in result]
    return [(f"{prefix}.{name}", pattern, {}, check) for name, pattern in result]


def _name(expr: Any) -> str:
    return getattr(getattr(expr, "op", None), "name", "")


def _array(expr: Any) -> NDArray:
    return expr.value.numpy()


def _quantization(call: Any) -> Quantization:
    scale, zero_point = _array(call.args[1]), _array(call.args[2])
    if scale.size != 1 or zero_point.size != 1:
        raise ValueError("activations quantized per channel")
    return Quantization(float(np.float32(scale.reshape(-1)[0])), int(zero_point.reshape(-1)[0]))


def extract(expr: Any, resolve: Callable[[Any], Any]) -> QuantizedOp:
    """Read the quantized operator that ends in `expr`.

    Parameters
    ----------
    expr
        The last expression of a match.
    resolve
        Returns the expression a variable is bound to within the match, or the variable itself.

    Raises
    ------
    ValueError
        If the operator is not one that can be read (the message says why).
    """
    act_min, act_max = -128, 127
    output_shape = static_shape(expr)
    expr = resolve(expr)
    if str(expr.ty.dtype) != "int8":
        raise ValueError(f"output is {expr.ty.dtype}, not int8")
    if _name(expr) == "relax.clip":
        act_min, act_max = max(-128, int(expr.args[1].value)), min(127, int(expr.args[2].value))
        expr = resolve(expr.args[0])

    if _name(expr) == "relax.reshape":
        source = expr.args[0]
        return QuantizedOp(
            kind="flatten",
            inputs=(source,),
            input_shapes=(static_shape(source),),
            input_quantization=(None,),
            output_shape=output_shape,
        )
    if _name(expr) in ("relax.astype", "relax.nn.max_pool2d"):
        return _extract_pool(expr, resolve, output_shape, act_min, act_max)
    if _name(expr) != "relax.quantize":
        raise ValueError(f"unexpected {_name(expr) or type(expr).__name__}")
    output = _quantization(expr)
    expr = resolve(expr.args[0])
    if _name(expr) == "relax.nn.relu":
        act_min = max(act_min, output.zero_point)
        expr = resolve(expr.args[0])
    elif _name(expr) == "relax.clip":
        # TFLite CalculateActivationRangeQuantized: zero point + round(bound / scale), in float32.
        low, high = (np.float32(expr.args[i].value) / np.float32(output.scale) for i in (1, 2))
        rounded = [int(np.floor(abs(v) + 0.5) * np.sign(v)) for v in (low, high)]
        act_min = max(act_min, output.zero_point + rounded[0])
        act_max = min(act_max, output.zero_point + rounded[1])
        expr = resolve(expr.args[0])
    common: dict[str, Any] = dict(
        output_shape=output_shape, output_quantization=output, act_min=act_min, act_max=act_max
    )

    def operand(call: Any) -> tuple[Any, tuple[int, ...], Quantization]:
        call = resolve(call)
        if _name(call) != "relax.dequantize":
            raise ValueError(f"operand is not quantized ({_name(call) or 'variable'})")
        return call.args[0], static_shape(call.args[0]), _quantization(call)

    if not _name(expr):
        # A float value from elsewhere: the QUANTIZE operator itself.
        return QuantizedOp(
            kind="quantize",
            inputs=(expr,),
            input_shapes=(static_shape(expr),),
            input_quantization=(None,),
            **common,
        )
    if _name(expr) == "relax.nn.softmax":
        data, shape, quantization = operand(expr.args[0])
        return QuantizedOp(
            kind="softmax", inputs=(data,), input_shapes=(shape,), input_quantization=(quantization,), **common
        )
    bias_call = None
    if _name(expr) == "relax.add":
        second = resolve(expr.args[1])
        if _name(resolve(expr.args[0])) not in ("relax.nn.conv2d", "relax.matmul"):
            operands = [operand(arg) for arg in expr.args]
            return QuantizedOp(
                kind="add",
                inputs=tuple(o[0] for o in operands),
                input_shapes=tuple(o[1] for o in operands),
                input_quantization=tuple(o[2] for o in operands),
                **common,
            )
        bias_call, expr = second, resolve(expr.args[0])
    data, shape, quantization = operand(expr.args[0])
    weights, scales = _extract_weights(resolve(expr.args[1]), resolve, dense=_name(expr) == "relax.matmul")
    outputs = weights.shape[0] if _name(expr) == "relax.matmul" else output_shape[-1]
    bias = np.zeros(outputs, np.int32)
    if bias_call is not None:
        raw = _array(bias_call.args[0])
        if raw.dtype != np.int32:
            raise ValueError(f"bias is {raw.dtype}, not int32")
        bias = raw.reshape(-1).astype(np.int32)
    common |= dict(
        inputs=(data,),
        input_shapes=(shape,),
        input_quantization=(quantization,),
        weights=weights,
        weight_scales=np.broadcast_to(scales.reshape(-1), (outputs,)).astype(np.float64),
        bias=bias,
    )
    if _name(expr) == "relax.matmul":
        return QuantizedOp(kind="dense", **common)
    attrs = expr.attrs
    if attrs.data_layout != "NHWC":
        raise ValueError(f"layout {attrs.data_layout}")
    return QuantizedOp(
        kind="conv2d",
        strides=_pair(attrs.strides),
        padding=_padding(attrs.padding),
        dilation=_pair(attrs.dilation),
        groups=int(attrs.groups),
        **common,
    )


def resolver(bindings: Mapping[Any, Any]) -> Callable[[Any], Any]:
    """The `resolve` of `extract`, for variables bound in a match or a function."""
    table = dict(bindings.items())

    def resolve(expr: Any) -> Any:
        while expr in table:
            expr = table[expr]
        return expr

    return resolve


def is_quantized_operator(context: Any) -> bool:
    """Check of a match for `patterns`: whether `extract` can read it."""
    try:
        extract(context.matched_expr, resolver(context.matched_bindings))
    except ValueError:
        return False
    return True


def read_composite(function: Any) -> QuantizedOp:
    """The operator of a composite function; its inputs are the function's parameters."""
    bindings = {b.var: b.value for block in function.body.blocks for b in block.bindings}
    return extract(function.body.body, resolver(bindings))


def operands(function: Any, op: QuantizedOp, call: Any) -> list[Any]:
    """Operands of a composite's operator at a call: arguments, or constants that are part of the composite."""
    arguments = dict(zip(function.params, call.args, strict=True))
    return [arguments.get(expr, expr) for expr in op.inputs]


def _pair(values: Any) -> tuple[int, int]:
    first, second = (int(v) for v in values)
    return first, second


def _padding(values: Any) -> tuple[int, int, int, int]:
    top, left, bottom, right = (int(v) for v in values)
    return top, left, bottom, right


def is_constant(expr: Any) -> bool:
    """Whether a Relax expression is a constant array."""
    return hasattr(expr, "value") and hasattr(expr.value, "numpy")


def _extract_weights(expr: Any, resolve: Callable[[Any], Any], *, dense: bool) -> tuple[NDArray[np.int8], NDArray]:
    """Weights in the order of `QuantizedOp.weights`, and their scales."""
    shape = static_shape(expr)
    transposed = False
    if _name(expr) == "relax.reshape":
        expr = resolve(expr.args[0])
    if _name(expr) == "relax.permute_dims":
        transposed, expr = True, resolve(expr.args[0])
    if _name(expr) != "relax.dequantize":
        raise ValueError("weights are not quantized constants")
    scales, zero_points = _array(expr.args[1]), _array(expr.args[2])
    source = resolve(expr.args[0])
    if _name(source) == "relax.permute_dims":
        transposed, source = True, resolve(source.args[0])
    if not is_constant(source):
        raise ValueError("weights are not constant")
    values = _array(source)
    if values.dtype != np.int8:
        raise ValueError(f"weights are {values.dtype}, not int8")
    if np.any(zero_points):
        raise ValueError("weights with a zero point")
    if dense:
        # Relax holds [inputs, outputs]; a permute of the constant means the constant is [outputs, inputs].
        return values if transposed else np.ascontiguousarray(values.T), scales
    values = values.reshape(shape)
    if shape[3] == 1 and values.shape[2] > 1 and scales.size == values.shape[2]:
        # HWOI of a depthwise convolution -> [rows, columns, 1, channels].
        values = values.transpose(0, 1, 3, 2)
    return np.ascontiguousarray(values), scales


def _extract_pool(
    expr: Any, resolve: Callable[[Any], Any], output_shape: tuple[int, ...], act_min: int, act_max: int
) -> QuantizedOp:
    kind = "max_pool"
    if _name(expr) == "relax.astype":
        kind, expr = "average_pool", resolve(expr.args[0])
        if _name(expr) != "relax.nn.avg_pool2d":
            raise ValueError(f"unexpected {_name(expr)}")
    attrs = expr.attrs
    if attrs.layout != "NHWC" or tuple(int(v) for v in attrs.dilation) != (1, 1) or attrs.ceil_mode:
        raise ValueError("pooling with another layout, dilation or ceil mode")
    source = expr.args[0]
    if kind == "average_pool":
        source = resolve(source).args[0]
    return QuantizedOp(
        kind=kind,
        inputs=(source,),
        input_shapes=(static_shape(source),),
        input_quantization=(None,),
        output_shape=output_shape,
        act_min=act_min,
        act_max=act_max,
        window=_pair(attrs.pool_size),
        strides=_pair(attrs.strides),
        padding=_padding(attrs.padding),
    )
