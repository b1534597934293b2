"""What the CPU's kernels are made from: an operator of the graph, read for them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.dtypes import INT8
from nnloom.arch.numerics import ADD_LEFT_SHIFT, activation_range, split_factor
from nnloom.arch.operation import Quantization
from nnloom.arch.reference import onnx

from ..ir import Graph, Node
from ..lower import accumulator_range, accumulators_fit, channel_multipliers, real_multipliers

__all__ = ["KERNELS", "KernelOp", "multipliers", "read_kernel_op"]

_KINDS = {
    "CONV_2D": "conv2d",
    "DEPTHWISE_CONV_2D": "conv2d",
    "FULLY_CONNECTED": "dense",
    "AVERAGE_POOL_2D": "average_pool",
    "MAX_POOL_2D": "max_pool",
    "ADD": "add",
    "QUANTIZE": "quantize",
}
KERNELS = tuple(_KINDS)
"""Operators of which some have a kernel"""


@dataclass(frozen=True, kw_only=True)
class KernelOp:
    """One quantized operator. Shapes are NHWC, or [rows, n] for dense; padding is (top, left, bottom, right)."""

    kind: str
    """conv2d, dense, average_pool, max_pool, add or quantize (float32 to int8)"""
    input_shapes: tuple[tuple[int, ...], ...]
    input_quantization: tuple[Quantization | None, ...]
    output_shape: tuple[int, ...]
    output_quantization: Quantization
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
    rounding: str = "tflite"
    factors: NDArray[np.float32] | None = field(default=None, repr=False)
    """[outputs] of conv2d and dense with ONNX Runtime's rounding"""


def read_kernel_op(graph: Graph, node: Node) -> KernelOp | None:
    """The operator for a kernel; None if there is no kernel for its kind, types or operands."""
    kind, op = _KINDS.get(node.kind), node.operation
    out = op.outputs[0]
    # A single number without dimensions has no loop to schedule.
    if kind is None or not out.shape or out.dtype != INT8:
        return None
    if op.rounding != "tflite" and kind not in ("conv2d", "dense", "quantize"):
        return None
    if out.quantization is None or not out.quantization.is_per_tensor:
        return None
    operands = [graph.values[i].type for i in graph.operands(node)]
    wanted = "float32" if kind == "quantize" else INT8
    if any(t.dtype != wanted or (wanted == INT8 and _scale(t.quantization) is None) for t in operands):
        return None
    try:
        act_min, act_max = activation_range(
            op.options.get("activation", "NONE"), out.quantization.scale, out.quantization.zero_point
        )
    except ValueError:
        return None
    least, greatest = op.options.get("limits", (act_min, act_max))
    common = KernelOp(
        kind=kind,
        input_shapes=tuple(t.shape for t in operands),
        input_quantization=tuple(t.quantization for t in operands),
        output_shape=out.shape,
        output_quantization=out.quantization,
        act_min=max(act_min, least),
        act_max=min(act_max, greatest),
        rounding=op.rounding,
    )
    match kind:
        case "conv2d" | "dense":
            return _product(graph, node, common)
        case "average_pool" | "max_pool":
            if operands[0].quantization != out.quantization:
                return None
            options = {key: op.options[key] for key in ("strides", "padding", "window")}
            return replace(common, **options)
        case "add":
            return common if len(operands) == 2 and _sum_shifts_right(common) else None
    return common


def _sum_shifts_right(op: KernelOp) -> bool:
    """Whether the factor of the sum is a shift to the right by less than 31; the reference does others."""
    scales = [q.scale for q in op.input_quantization if q]
    factor = 2 * max(scales) / ((1 << ADD_LEFT_SHIFT) * op.output_quantization.scale)
    return factor < 1 and split_factor(factor)[1] > -31


def _scale(q: Quantization | None) -> float | None:
    return q.scale if q and q.is_per_tensor else None


def _is_exact(op: KernelOp) -> bool:
    """Whether there are multipliers with which single rounding gives the reference's bits."""
    try:
        multipliers(op)
    except ValueError:
        return False
    return True


def multipliers(op: KernelOp) -> list[tuple[int, int]]:
    """Multiplier and right shift of each output.

    Raises
    ------
    ValueError
        If there is none that is exact.
    """
    source = op.input_quantization[0]
    assert source and op.weights is not None and op.weight_scales is not None and op.bias is not None
    dense = op.kind == "dense"
    low, high = accumulator_range(op.weights if dense else np.moveaxis(op.weights, 3, 0), op.bias, source.zero_point)
    return channel_multipliers(
        real_multipliers(source.scale, op.weight_scales, op.output_quantization.scale),
        (int(low.min(initial=0)), int(high.max(initial=0))),
        (op.act_min - op.output_quantization.zero_point, op.act_max - op.output_quantization.zero_point),
        double_rounding=not dense,
    )


def _product(graph: Graph, node: Node, common: KernelOp) -> KernelOp | None:
    """Weights, scales and bias; None if they are not constant symmetric int8, or the bias not int32."""
    data, q = graph.constant(node.inputs[1]), graph.values[node.inputs[1]].type.quantization  # type: ignore[index]
    dense = node.kind == "FULLY_CONNECTED"
    depthwise = node.kind == "DEPTHWISE_CONV_2D"
    if len(common.input_shapes) != 1 or data is None or data.dtype != np.int8 or q is None or any(q.zero_points):
        return None
    outputs = data.shape[3] if depthwise else data.shape[0]
    if not q.is_per_tensor and q.axis != (3 if depthwise else 0):
        return None
    bias = np.zeros(outputs, np.int32)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        given = graph.constant(node.inputs[2])
        if given is None or given.dtype != np.int32 or given.size != outputs:
            return None
        bias = given.reshape(-1)
    scales = np.broadcast_to(np.array(q.scales, np.float64), (outputs,))
    shape = common.input_shapes[0]
    options = node.operation.options
    source = common.input_quantization[0]
    assert source
    if not accumulators_fit(np.moveaxis(data, 3 if depthwise else 0, 0), bias, source.zero_point):
        return None  # wrapping at 32 bits: only the reference does that exactly
    if common.rounding == "onnx":
        factors = np.ascontiguousarray(np.broadcast_to(onnx.factors(node.operation), (outputs,)))
        common = replace(common, factors=factors)
    elif any(split_factor(r)[1] > 0 for r in real_multipliers(source.scale, scales, common.output_quantization.scale)):
        return None  # shifted left, too
    if dense:
        rows, rest = divmod(int(np.prod(shape)), data.shape[1])
        if options.get("weights_format", "DEFAULT") != "DEFAULT" or rest:
            return None
        op = replace(
            common,
            input_shapes=((rows, data.shape[1]),),
            output_shape=(rows, outputs),
            weights=data,
            weight_scales=scales,
            bias=bias,
        )
        return op if op.factors is not None or _is_exact(op) else None
    channels = shape[3]
    if depthwise:
        # [1, rows, columns, outputs], an input channel's outputs side by side: groups of one channel.
        weights, groups = data.transpose(1, 2, 0, 3), channels
    else:
        weights, groups = data.transpose(1, 2, 3, 0), channels // data.shape[3]
    if depthwise and channels == 1:
        groups = 1
    return replace(
        common,
        weights=np.ascontiguousarray(weights),
        weight_scales=scales,
        bias=bias,
        strides=options["strides"],
        padding=options["padding"],
        dilation=options["dilation"],
        groups=groups,
    )
