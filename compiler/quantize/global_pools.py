"""Means over images as GlobalAveragePool, which ONNX Runtime computes in integers; ReduceMean stays float32 there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

__all__ = ["with_global_pools"]

_FIRST, _LAST = {2, 3}, {1, 2}
"""Rows and columns, with channels first and last"""


def with_global_pools(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float model with each ReduceMean over rows and columns of [n, c, rows, columns] as GlobalAveragePool; of
    [n, rows, columns, c], too, with transpositions that the front end cancels."""
    import onnx
    from onnx import numpy_helper

    known = onnx.shape_inference.infer_shapes(model)
    values = (*known.graph.value_info, *known.graph.input)
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in values if v.type.tensor_type.HasField("shape")}
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    nodes: list[Any] = []
    for node in model.graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        axes = attributes.get("axes", constants.get(node.input[1]) if len(node.input) > 1 else None)
        if node.op_type != "ReduceMean" or axes is None or ranks.get(node.input[0]) != 4:
            nodes.append(node)
            continue
        over = {int(a) % 4 for a in axes}
        if over not in (_FIRST, _LAST):
            nodes.append(node)
            continue
        nodes += _pool(node, last=over == _LAST, keep=bool(attributes.get("keepdims", 1)))
    changed = len(nodes) != len(model.graph.node) or any(
        a is not b for a, b in zip(nodes, model.graph.node, strict=True)
    )
    if not changed:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return onnx.shape_inference.infer_shapes(result)


def _pool(node: Any, *, last: bool, keep: bool) -> list[Any]:
    """The nodes of a pool: of a tensor with channels last between two transpositions, or before a Flatten."""
    from onnx import helper

    name, source, out = node.name or node.output[0], node.input[0], node.output[0]
    made = []
    if last:
        made.append(helper.make_node("Transpose", [source], [f"{out}_first"], f"{name}_first", perm=[0, 3, 1, 2]))
        source = f"{out}_first"
    pooled = out if keep and not last else f"{out}_pooled"
    made.append(helper.make_node("GlobalAveragePool", [source], [pooled], name))
    if not keep:
        made.append(helper.make_node("Flatten", [pooled], [out], f"{name}_flat", axis=1))
    elif last:
        made.append(helper.make_node("Transpose", [pooled], [out], f"{name}_last", perm=[0, 2, 3, 1]))
    return made
