"""Float operators as convolutions, which ONNX Runtime computes in integers, and the accelerator too.

ONNX Runtime has no integer kernels for normalizations by channel and transposed convolutions, and means of windows it
adds up in float32, in an order that is its own. As convolutions they are exact, and on the accelerator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

__all__ = ["with_convolutions"]


@dataclass(frozen=True)
class _Given:
    """What is known of a model."""

    shapes: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, NDArray]

    def images(self, node: Any, *ranks: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Shapes [n, c, rows, columns] or [n, c, columns] of a node's operand and output; None if they are others."""
        x, y = self.shapes.get(node.input[0], ()), self.shapes.get(node.output[0], ())
        return (x, y) if len(x) == len(y) and len(x) in ranks and 0 not in (*x, *y) else None


Made = tuple[list[Any], dict[str, NDArray]]
"""Nodes in place of one, and their constants"""


def with_convolutions(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float model with convolutions for batch normalizations, average pools and transposed convolutions of images,
    where that is the same function."""
    import onnx
    from onnx import numpy_helper

    known = onnx.shape_inference.infer_shapes(model)
    given = _Given(
        {
            v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
            for v in (*known.graph.value_info, *known.graph.input, *known.graph.output)
        },
        {i.name: numpy_helper.to_array(i) for i in model.graph.initializer},
    )
    nodes: list[Any] = []
    constants: dict[str, NDArray] = {}
    changed = False
    for node in model.graph.node:
        made = _RULES[node.op_type](node, given) if node.op_type in _RULES else None
        nodes += [node] if made is None else made[0]
        constants |= {} if made is None else made[1]
        changed = changed or made is not None
    if not changed:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in constants.items())
    return onnx.shape_inference.infer_shapes(result)


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _batch_normalization(node: Any, given: _Given) -> Made | None:
    """A factor and a sum for each channel: a depthwise convolution of one weight."""
    from onnx import helper

    parameters = [given.constants.get(name) for name in node.input[1:5]]
    sizes = given.images(node, 3, 4)
    if sizes is None or any(p is None for p in parameters):
        return None
    gamma, beta, mean, variance = (p.astype(np.float64) for p in parameters if p is not None)
    factor = gamma / np.sqrt(variance + _attributes(node).get("epsilon", 1e-5))
    out = node.output[0]
    names = [f"{out}_factor", f"{out}_sum"]
    window = [1] * (len(sizes[0]) - 2)
    weights = factor.astype(np.float32).reshape(-1, 1, *window)
    bias = (beta - mean * factor).astype(np.float32)
    conv = helper.make_node("Conv", [node.input[0], *names], [out], node.name, group=len(factor), kernel_shape=window)
    return [conv], dict(zip(names, (weights, bias), strict=True))


def _average_pool(node: Any, given: _Given) -> Made | None:
    """Equal weights; without padding, or with padding that counts. A window as large as the image is a global pool."""
    from onnx import helper

    sizes, a = given.images(node, 3, 4), _attributes(node)
    pads = list(a.get("pads", [0]))
    plain = set(a.get("dilations", [1])) == {1} and "auto_pad" not in _stated(a)
    if sizes is None or not plain or (any(pads) and not a.get("count_include_pad")):
        return None
    window, channels = list(a["kernel_shape"]), sizes[0][1]
    if a.get("ceil_mode") and not _windows_fill(sizes[0][2:], window, a):
        return None
    if window == list(sizes[0][2:]) and not any(pads):
        return [helper.make_node("GlobalAveragePool", node.input, node.output, node.name)], {}
    weights = np.full((channels, 1, *window), 1 / np.prod(window), np.float32)
    name = f"{node.output[0]}_weights"
    stated: dict[str, Any] = {key: list(a[key]) for key in ("pads", "strides") if key in a}
    conv = helper.make_node(
        "Conv", [node.input[0], name], node.output, node.name, group=channels, kernel_shape=window, **stated
    )
    return [conv], {name: weights}


def _windows_fill(size: Sequence[int], window: Sequence[int], a: Mapping[str, Any]) -> bool:
    """Whether windows end where the padded image ends, so that rounding their number up or down is the same."""
    pads = list(a.get("pads", [0] * 2 * len(size)))
    strides = list(a.get("strides", [1] * len(size)))
    padded = [n + before + after for n, before, after in zip(size, pads, pads[len(size) :], strict=False)]
    return all((n - k) % stride == 0 for n, k, stride in zip(padded, window, strides, strict=True))


def _stated(a: Mapping[str, Any]) -> set[str]:
    """Attributes that say something."""
    return {name for name, value in a.items() if not (name == "auto_pad" and value == b"NOTSET")}


@dataclass(frozen=True)
class _Axis:
    """How a transposed convolution along an axis is a convolution of `taps` weights, whose `stride` outputs are put one
    after the other, and from which a part is taken."""

    taps: int
    before: int
    after: int
    """padding"""
    begin: int
    end: int
    """the part"""
    made: int
    """before the part is taken"""


def _axis(size: int, out: int, window: int, stride: int, pad: int) -> _Axis:
    # Output j of all is the sum of x[q - m] w[m * stride + r], j = q * stride + r.
    taps = -(-window // stride)
    first = min(pad // stride, taps - 1)
    last = max(-(-(pad + out) // stride), size)
    begin = pad - first * stride
    return _Axis(taps, taps - 1 - first, last - size, begin, begin + out, (last - first) * stride)


def _transposed(node: Any, given: _Given) -> Made | None:
    """A convolution with an output for each place between two strides, and DepthToSpace."""
    from onnx import helper

    sizes, a = given.images(node, 4), _attributes(node)
    weights = given.constants.get(node.input[1])
    bias = given.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    strides = list(a.get("strides", [1, 1]))
    if sizes is None or weights is None or strides[0] != strides[1] or set(a.get("dilations", [1])) != {1}:
        return None
    if _stated(a) & {"auto_pad", "output_shape"} or (len(node.input) > 2 and node.input[2] and bias is None):
        return None
    stride, groups, pads = int(strides[0]), int(a.get("group", 1)), list(a.get("pads", [0] * 4))
    axes = [
        _axis(n, m, k, stride, p)
        for n, m, k, p in zip(sizes[0][2:], sizes[1][2:], weights.shape[2:], pads, strict=False)
    ]
    kernel = _phases(weights, stride, groups, [axis.taps for axis in axes])
    # With channels in groups, those of a group lie together (CRD).
    mode = "DCR" if groups == 1 else "CRD"
    if groups == 1:
        kernel = np.concatenate([kernel[i :: stride * stride] for i in range(stride * stride)])
    out, name = node.output[0], node.name or node.output[0]
    constants = {f"{out}_weights": np.ascontiguousarray(kernel)}
    operands = [node.input[0], f"{out}_weights"]
    if bias is not None:
        constants[f"{out}_bias"] = np.tile(bias, stride * stride) if groups == 1 else np.repeat(bias, stride * stride)
        operands.append(f"{out}_bias")
    cut = any((axis.begin, axis.end) != (0, axis.made) for axis in axes)
    spread = out if not cut else f"{out}_whole"
    convolved = spread if stride == 1 else f"{out}_phases"
    padding = [*(axis.before for axis in axes), *(axis.after for axis in axes)]
    nodes = [
        helper.make_node(
            "Conv", operands, [convolved], name, group=groups, kernel_shape=list(kernel.shape[2:]), pads=padding
        )
    ]
    if stride > 1:
        nodes.append(
            helper.make_node("DepthToSpace", [convolved], [spread], f"{name}_spread", blocksize=stride, mode=mode)
        )
    if cut:
        bounds = {"begin": [axis.begin for axis in axes], "end": [axis.end for axis in axes], "axes": [2, 3]}
        constants |= {f"{out}_{key}": np.array(value, np.int64) for key, value in bounds.items()}
        nodes.append(helper.make_node("Slice", [spread, *(f"{out}_{key}" for key in bounds)], [out], f"{name}_part"))
    return nodes, constants


def _phases(weights: NDArray, stride: int, groups: int, taps: Sequence[int]) -> NDArray:
    """Weights [c, k / groups, rows, columns] of a transposed convolution as those of a convolution
    [k * stride * stride, c / groups, taps, taps]: by output channel, then by row and column between two strides."""
    channels, each = weights.shape[:2]
    wide = np.zeros((channels, each, taps[0] * stride, taps[1] * stride), weights.dtype)
    wide[:, :, : weights.shape[2], : weights.shape[3]] = weights
    # [groups, c / groups, k / groups, taps, stride, taps, stride], turned round along the taps
    parts = wide.reshape(groups, channels // groups, each, taps[0], stride, taps[1], stride)[:, :, :, ::-1, :, ::-1]
    moved = parts.transpose(0, 2, 4, 6, 1, 3, 5)
    return moved.reshape(groups * each * stride * stride, channels // groups, taps[0], taps[1])


_RULES = {"AveragePool": _average_pool, "BatchNormalization": _batch_normalization, "ConvTranspose": _transposed}
