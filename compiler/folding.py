"""A pass that folds data movement into the operators that read it: the same bits, fewer nodes.

PAD (and PADV2) with the value that stands for zero becomes padding of the convolutions and maximum pools behind it.
What else reads the padded tensor keeps the node that makes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

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
    least = {"int8": -128, "uint8": 0}.get(out.dtype, -(1 << 15))
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


_Rule = Callable[[Graph, Node, Producers], Node | None]
_RULES: tuple[tuple[tuple[str, ...], _Rule], ...] = (
    (("CONV_2D", "DEPTHWISE_CONV_2D", "MAX_POOL_2D"), _pad_before_window),
)
