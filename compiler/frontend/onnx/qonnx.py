"""QONNX (Brevitas, HAWQ, QKeras): its `Quant` nodes as QuantizeLinear, Clip and DequantizeLinear."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.dtypes import INT8, UINT8
from nnloom.arch.errors import UnsupportedOperatorError

from .support import Refusal, attributes

if TYPE_CHECKING:
    import onnx

__all__ = ["is_qonnx", "without_quant_nodes"]

DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")
WIDEST, OF_CONSTANTS = 8, 32
"""Bits of what is computed, and of constants such as biases"""


def is_qonnx(model: onnx.ModelProto) -> bool:
    """Whether a model has nodes of QONNX."""
    return any(node.domain in DOMAINS for node in model.graph.node)


def without_quant_nodes(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    """A model with the `Quant` nodes of QONNX in QDQ form.

    Raises
    ------
    UnsupportedOperatorError
        For other nodes of QONNX, and for bit widths, rounding modes and scales that QuantizeLinear does not have.
    """
    import onnx
    from onnx import numpy_helper

    result = onnx.ModelProto()
    result.CopyFrom(model)
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = np.asarray(_value(attributes(node)))
    nodes: list[Any] = []
    for node in model.graph.node:
        if node.domain not in DOMAINS:
            nodes.append(node)
            continue
        try:
            made, initializers = _rewritten(node, constants)
        except Refusal as refusal:
            name = node.name or node.output[0]
            raise UnsupportedOperatorError(f"{path}: {node.op_type} {name!r}: {refusal}") from refusal
        nodes += made
        result.graph.initializer.extend(initializers)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    others = [o for o in result.opset_import if o.domain not in DOMAINS]
    del result.opset_import[:]
    result.opset_import.extend(others)
    return result


def _value(a: dict[str, Any]) -> Any:
    from onnx import numpy_helper

    return numpy_helper.to_array(a["value"]) if "value" in a else next(iter(a.values()))


def _constant(constants: dict[str, NDArray], name: str, what: str) -> NDArray:
    if name not in constants:
        raise Refusal(f"{what} is computed; it must be constant")
    return constants[name]


def _rewritten(node: Any, constants: dict[str, NDArray]) -> tuple[list[Any], list[Any]]:
    """The nodes in place of a Quant, and constants for them."""
    if node.op_type != "Quant":
        raise Refusal("only Quant of QONNX is supported; export the network in QCDQ form")
    x, *names = node.input
    scale, zero, width = (
        _constant(constants, n, what)
        for n, what in zip(names, ("its scale", "its zero point", "its bit width"), strict=True)
    )
    a = attributes(node)
    mode = a.get("rounding_mode", b"ROUND").decode().upper()
    if mode != "ROUND":
        raise Refusal(f"rounding mode {mode}; ROUND (half to even) is supported")
    bits, signed = float(width.reshape(-1)[0]), bool(a.get("signed", 1))
    if width.size != 1 or bits != int(bits) or not 2 <= bits <= (OF_CONSTANTS if x in constants else WIDEST):
        raise Refusal(f"{bits:g} bits; {WIDEST} and fewer are supported, {OF_CONSTANTS} and fewer of constants")
    if (zero != np.rint(zero)).any():
        raise Refusal("a zero point that is no integer; export it as one")
    low = -(2 ** (int(bits) - 1)) if signed else 0
    high = low + 2 ** int(bits) - 1
    if a.get("narrow"):
        low, high = (low + 1, high) if signed else (low, high - 1)
    if x in constants:
        return _of_constant(node, constants[x], scale, zero, (low, high))
    if scale.size != 1 or zero.size != 1:
        raise Refusal("several scales; quantize activations per tensor")
    return _of_tensor(node, scale, zero, (low, high), np.dtype(INT8 if signed else UINT8))


def _of_constant(
    node: Any, data: NDArray, scale: NDArray, zero: NDArray, limits: tuple[int, int]
) -> tuple[list[Any], list[Any]]:
    from onnx import helper, numpy_helper

    values = np.clip(np.rint(data.astype(np.float32) / scale.astype(np.float32) + zero), *limits)
    kind = np.int8 if limits[0] >= -128 and limits[1] <= 127 else np.uint8 if limits[0] >= 0 else np.int32
    if kind == np.uint8 and limits[1] > 255:
        kind = np.int32
    shape = np.broadcast_shapes(scale.shape, zero.shape)
    along = [i for i, n in enumerate(shape) if n > 1]
    if len(along) > 1 or (along and len(shape) != data.ndim):
        raise Refusal(f"scales of shape {list(scale.shape)} for {list(data.shape)}; use one for each output channel")
    sizes = () if not along else (shape[along[0]],)
    out = node.output[0]
    names = [f"{out}_{what}" for what in ("values", "scale", "zero_point")]
    given = (
        values.astype(kind),
        np.broadcast_to(scale, shape).reshape(sizes).astype(np.float32),
        np.broadcast_to(zero, shape).reshape(sizes).astype(kind),
    )
    made = helper.make_node("DequantizeLinear", names, [out], node.name, axis=along[0] if along else 0)
    return [made], [numpy_helper.from_array(v, n) for v, n in zip(given, names, strict=True)]


def _of_tensor(
    node: Any, scale: NDArray, zero: NDArray, limits: tuple[int, int], kind: np.dtype
) -> tuple[list[Any], list[Any]]:
    from onnx import helper, numpy_helper

    x, out = node.input[0], node.output[0]
    scale_name, zero_name, low, high = (f"{out}_{what}" for what in ("scale", "zero_point", "low", "high"))
    info = np.iinfo(kind)
    values = {scale_name: scale.reshape(()).astype(np.float32), zero_name: zero.reshape(()).astype(kind)}
    nodes = [helper.make_node("QuantizeLinear", [x, scale_name, zero_name], [f"{out}_whole"], f"{node.name}_quantize")]
    last = f"{out}_whole"
    if limits != (info.min, info.max):
        values |= {low: np.array(limits[0], kind), high: np.array(limits[1], kind)}
        nodes.append(helper.make_node("Clip", [last, low, high], [f"{out}_limited"], f"{node.name}_limit"))
        last = f"{out}_limited"
    nodes.append(helper.make_node("DequantizeLinear", [last, scale_name, zero_name], [out], node.name))
    return nodes, [numpy_helper.from_array(v, n) for n, v in values.items()]
