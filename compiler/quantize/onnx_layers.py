"""Where a quantized ONNX model loses what: each layer against the float model, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .noise import LayerReport, Parameters, Sums, add_case, decibels, layer_report
from .onnx_file import run_model, tensors

if TYPE_CHECKING:
    import onnx

__all__ = ["measure_layers"]


def measure_layers(
    floating: onnx.ModelProto,
    quantized: onnx.ModelProto,
    inferences: Sequence[Mapping[str, NDArray]],
    advance: Callable[[int, int], None],
) -> list[LayerReport]:
    """Compare each layer that makes a real tensor, in the order in which they run."""
    made = _real_outputs(floating)
    dequantized = _dequantized(quantized)
    kept = {name for node in quantized.graph.node for name in node.output}
    swallowed = _swallowed(floating, quantized)
    rows: list[tuple[Any, str, str, Parameters | None]] = []
    for node in floating.graph.node:
        tensor = swallowed.get(node.output[0], node.output[0])
        if tensor not in made or node.op_type == "Constant" or node.output[0] in swallowed.values():
            continue
        name = next((n for n in (tensor, node.output[0]) if n in dequantized or n in kept), None)
        if name is not None:
            behind, parameters = dequantized.get(name, (name, None))
            rows.append((node, tensor, behind, parameters))
    sums = [Sums() for _ in rows]
    wanted, got = list(dict.fromkeys(r[1] for r in rows)), list(dict.fromkeys(r[2] for r in rows))
    reference = run_model(floating, inferences, outputs=wanted, optimize=False)
    answers = run_model(quantized, inferences, outputs=got, optimize=False)
    for index, (left, right) in enumerate(zip(reference, answers, strict=True)):
        by_name, by_other = dict(zip(wanted, left, strict=True)), dict(zip(got, right, strict=True))
        for row, total in zip(rows, sums, strict=True):
            add_case(total, by_name[row[1]].astype(np.float64), by_other[row[2]].astype(np.float64), row[3])
        advance(index + 1, len(inferences))
    weights = _weights(floating, quantized)
    return [
        layer_report(node.name, node.op_type, tensor, parameters, s, weights.get(node.name))
        for (node, tensor, _, parameters), s in zip(rows, sums, strict=True)
    ]


def _real_outputs(model: Any) -> set[str]:
    """Tensors of float32 that are computed."""
    from onnx import TensorProto

    known = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.output)}
    return {o for node in model.graph.node for o in node.output if known.get(o) == TensorProto.FLOAT}


def _dequantized(model: Any) -> dict[str, tuple[str, Parameters]]:
    """Tensor of the float model -> the tensor behind its quantization, and how it is quantized."""
    constants = tensors(model)
    behind = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    result = {}
    seen: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.output[0] in behind:
            zero, scale = constants[node.input[2]], node.input[1]
            limits = np.iinfo(zero.dtype)
            own = scale not in seen
            p = Parameters(float(constants[scale]), int(zero), int(limits.min), int(limits.max), own)
            seen.add(scale)
            result[node.input[0].removesuffix("_QuantizeLinear_Input")] = behind[node.output[0]], p
    return result


def _swallowed(floating: Any, quantized: Any) -> dict[str, str]:
    """Output of a layer -> that of the Relu or Clip behind it which its quantization does."""
    left = {node.name for node in quantized.graph.node}
    gone = (n for n in floating.graph.node if n.op_type in ("Relu", "Clip") and n.name not in left)
    return {node.input[0]: node.output[0] for node in gone}


def _weights(floating: Any, quantized: Any) -> dict[str, float]:
    """Signal to noise of each layer's weights, by its name."""
    real, constants = tensors(floating), tensors(quantized)
    made = {node.output[0]: node for node in quantized.graph.node if node.op_type == "DequantizeLinear"}
    before = {node.name: node for node in floating.graph.node}
    result = {}
    for node in quantized.graph.node:
        origin = made.get(node.input[1]) if len(node.input) > 1 else None
        if origin is None or origin.input[0] not in constants or node.name not in before:
            continue
        w = real.get(before[node.name].input[1])
        data = constants[origin.input[0]].astype(np.float64)
        if w is None or w.shape != data.shape:
            continue
        scales, zero = constants[origin.input[1]].astype(np.float64), constants[origin.input[2]].astype(np.float64)
        shape = [1] * data.ndim
        if scales.size > 1:
            axis = next((a.i for a in origin.attribute if a.name == "axis"), 1)
            shape[axis] = scales.size
        back = (data - zero.reshape(shape if zero.size > 1 else [1] * data.ndim)) * scales.reshape(shape)
        wide = w.astype(np.float64)
        result[node.name] = round(decibels(float((wide**2).sum()), float(((wide - back) ** 2).sum())), 2)
    return result
