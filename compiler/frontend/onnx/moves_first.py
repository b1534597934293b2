"""Reshapes and the like before DequantizeLinear instead of behind it: ONNX Runtime then sees that a product behind them
has a quantized operand, and computes it in integers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

__all__ = ["with_moves_first"]

MOVES = ("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def with_moves_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """A network with the operators that only move values before DequantizeLinear, where only they read its result."""
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(o.name for o in graph.output)
    single = {i.name for i in graph.initializer if not i.dims or list(i.dims) == [1]}
    makers: dict[str, Any] = {}
    nodes: list[Any] = []
    changed: set[str] = set()
    for node in graph.node:
        origin = makers.get(node.input[0]) if node.input else None
        if node.op_type in MOVES and origin is not None and readers[node.input[0]] == 1 and origin.input[1] in single:
            nodes.remove(origin)
            changed.update((*origin.output, *node.output))
            node.input[0], origin.output[0] = origin.input[0], node.output[0]
            origin.input[0] = node.output[0] = f"{node.output[0]} (integers)"
            nodes += [node, origin]
            makers[origin.output[0]] = origin
            continue
        nodes.append(node)
        if node.op_type == "DequantizeLinear":
            makers[node.output[0]] = node
    if not changed:
        return model
    ordered = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(ordered)
    kept = [v for v in graph.value_info if v.name not in changed]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    return result
