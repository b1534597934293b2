"""A pass that folds data movement into the operators that read it: the same bits, fewer nodes.

- PAD (and PADV2) with the value that stands for zero becomes padding of the convolutions and maximum pools behind it.
- SPACE_TO_BATCH_ND, a convolution and BATCH_TO_SPACE_ND are a dilated convolution.
- RELU, RELU6 and RELU_N1_TO_1 without a scale of their own become the activation of the operator before, if nothing
  else reads what that makes.

What else reads a tensor in between keeps the node that makes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from nnloom.arch.dtypes import EIGHT_BITS, INT16, LIMITS

from .ir import Graph, Node

__all__ = ["fold"]

Producers = dict[int, Node]
"""the node that makes each value, among those that come before"""


def fold(graph: Graph) -> Graph:
    """Fold what can be folded; nodes that nothing reads any more stay, for who drops dead ones."""
    producers: Producers = {}
    nodes = []
    for node in graph.nodes:
        for kinds, rule in _RULES:
            while node.kind in kinds and (folded := rule(graph, node, producers)) is not None:
                node = folded
        nodes.append(node)
        producers.update(dict.fromkeys(node.outputs, node))
    return graph.replace_nodes(nodes)


def _padding_of(graph: Graph, node: Node | None) -> tuple[int, tuple[int, int, int, int]] | None:
    """Value and (top, left, bottom, right) that a node adds around an image; None if it does something else."""
    if node is None or node.kind not in ("PAD", "PADV2"):
        return None
    widths = graph.constant(node.inputs[1])
    source, out = node.operation.inputs[0], node.operation.outputs[0]
    if widths is None or source is None or len(source.shape) != 4:
        return None
    if source.quantization != out.quantization or source.dtype != out.dtype:
        return None
    if out.quantization is None or not out.quantization.is_per_tensor:
        return None
    (first, last), (top, bottom), (left, right), (lower, upper) = (tuple(int(v) for v in pair) for pair in widths)
    if min(top, bottom, left, right) < 0 or any((first, last, lower, upper)):
        return None
    value = out.quantization.zero_point
    if node.kind == "PADV2":
        given = graph.constant(node.inputs[2])
        if given is None:
            return None
        value = int(given.reshape(()))
    return value, (top, left, bottom, right)


def _pad_before_window(graph: Graph, node: Node, producers: Producers) -> Node | None:
    """PAD before a convolution or a maximum pool."""
    assert node.inputs[0] is not None
    pad = producers.get(node.inputs[0])
    found = _padding_of(graph, pad)
    source = node.operation.inputs[0]
    if pad is None or found is None or source is None or source.quantization is None:
        return None
    value, edges = found
    if node.kind != "MAX_POOL_2D":
        if value != source.quantization.zero_point:
            return None
    elif value > _least(node):
        return None  # it may win, and what lies in a pool's own padding never does
    weights = node.operation.inputs[1] if node.kind != "MAX_POOL_2D" else None
    window = node.operation.options["window"] if weights is None else weights.shape[1:3]
    return _with_padding(node, pad, edges, window)


def _least(node: Node) -> int:
    """A bound for the least value that an int8 or uint8 operator's fused activation lets through."""
    out = node.operation.outputs[0]
    assert out.quantization
    least, _ = LIMITS.get(out.dtype, LIMITS[INT16])
    relu = node.operation.options.get("activation", "NONE") in ("RELU", "RELU6")
    return max(least, out.quantization.zero_point) if relu else least


def _with_padding(node: Node, pad: Node, edges: tuple[int, int, int, int], window: tuple[int, ...]) -> Node:
    """The operator on the operand of `pad`, with its padding beside the node's own, as far as windows reach."""
    options = node.operation.options
    before = [own + more for own, more in zip(options["padding"][:2], edges[:2], strict=True)]
    after = []
    types = list(node.operation.inputs)
    types[0] = pad.operation.inputs[0]
    assert types[0] is not None
    for axis in (0, 1):
        reach = (window[axis] - 1) * options.get("dilation", (1, 1))[axis] + 1
        last = (node.operation.outputs[0].shape[1 + axis] - 1) * options["strides"][axis] + reach
        after.append(max(0, last - before[axis] - types[0].shape[1 + axis]))
    operation = dataclasses.replace(
        node.operation, inputs=tuple(types), options=options | {"padding": (*before, *after)}
    )
    return dataclasses.replace(node, operation=operation, inputs=(pad.inputs[0], *node.inputs[1:]))


_ACTIVATED = (
    "ADD",
    "AVERAGE_POOL_2D",
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "FULLY_CONNECTED",
    "MAX_POOL_2D",
    "MUL",
    "SUB",
)
_LARGEST_LIMIT = 1 << 20
"""Quantized limits of activations beyond are not the same everywhere (int32 overflows in LiteRT)."""


def _activation_after(graph: Graph, node: Node, producers: Producers) -> Node | None:
    """RELU, RELU6 or RELU_N1_TO_1 behind an operator that has a fused activation."""
    value = node.inputs[0]
    assert value is not None
    before = producers.get(value)
    out = node.operation.outputs[0]
    if before is None or before.kind not in _ACTIVATED or before.operation.options.get("activation") != "NONE":
        return None
    if "onnx" in (before.operation.rounding, node.operation.rounding):
        return None
    if before.operation.outputs[0].quantization != out.quantization or out.dtype not in EIGHT_BITS:
        return None
    if out.quantization is None or not out.quantization.is_per_tensor or 6 / out.quantization.scale > _LARGEST_LIMIT:
        return None
    if value in graph.results or sum(value in other.inputs for other in graph.nodes) > 1:
        return None
    options = before.operation.options | {"activation": node.kind}
    operation = dataclasses.replace(before.operation, outputs=node.operation.outputs, options=options)
    return Node(node.name, operation, before.inputs, node.outputs)


def _blocks(graph: Graph, node: Node | None, kind: str) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Block and (before of rows, before of columns) that a space to batch pads, or its inverse crops; None if another
    node, or not of images."""
    if node is None or node.kind != kind:
        return None
    block, edges = graph.constant(node.inputs[1]), graph.constant(node.inputs[2])
    source, out = node.operation.inputs[0], node.operation.outputs[0]
    if block is None or edges is None or source is None or len(source.shape) != 4 or block.size != 2:
        return None
    if source.quantization != out.quantization or source.dtype not in EIGHT_BITS:
        return None
    (rows, columns), ((top, _), (left, _)) = block.tolist(), edges.tolist()
    return (rows, columns), (top, left)


def _dilated_by_batches(graph: Graph, node: Node, producers: Producers) -> Node | None:
    """BATCH_TO_SPACE_ND of a convolution of SPACE_TO_BATCH_ND: one with dilation."""
    assert node.inputs[0] is not None
    conv = producers.get(node.inputs[0])
    if conv is None or conv.kind not in ("CONV_2D", "DEPTHWISE_CONV_2D") or conv.inputs[0] is None:
        return None
    options = conv.operation.options
    before = producers.get(conv.inputs[0])
    spread, joined = _blocks(graph, before, "SPACE_TO_BATCH_ND"), _blocks(graph, node, "BATCH_TO_SPACE_ND")
    if before is None or spread is None or joined is None or spread[0] != joined[0] or options["strides"] != (1, 1):
        return None
    source = before.operation.inputs[0]
    out = node.operation.outputs[0]
    if source is None or source.shape[0] != 1 or out.shape[0] != 1:
        return None
    block = spread[0]
    first = [
        more + own * b - cut
        for more, own, b, cut in zip(spread[1], options["padding"][:2], block, joined[1], strict=True)
    ]
    if min(first) < 0:
        return None  # parts of the first results are cut off
    dilation = tuple(d * b for d, b in zip(options["dilation"], block, strict=True))
    weights = conv.operation.inputs[1]
    assert weights
    options = options | {"dilation": dilation, "padding": (*first, 0, 0)}
    operation = dataclasses.replace(conv.operation, outputs=node.operation.outputs, options=options)
    whole = Node(node.name, operation, conv.inputs, node.outputs)
    return _with_padding(whole, before, (0, 0, 0, 0), weights.shape[1:3])


_Rule = Callable[[Graph, Node, Producers], Node | None]
_RULES: tuple[tuple[tuple[str, ...], _Rule], ...] = (
    (("RELU", "RELU6", "RELU_N1_TO_1"), _activation_after),
    (("BATCH_TO_SPACE_ND",), _dilated_by_batches),
    (("CONV_2D", "DEPTHWISE_CONV_2D", "MAX_POOL_2D"), _pad_before_window),
)
