"""The masked network, and the network without the channels that are gone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .network import attribute
from .select import Kept

if TYPE_CHECKING:
    import onnx

__all__ = ["masked_model", "pruned_model"]


def masked_model(kept: Kept) -> onnx.ModelProto:
    """The network of the file with zeros where the masks are; shapes as before."""
    import onnx
    from onnx import numpy_helper

    model = onnx.ModelProto()
    model.CopyFrom(kept.channels.network.model)
    values = kept.channels.network.values
    zeros = kept.zeros
    for tensor in model.graph.initializer:
        for (name, axis), flags in zeros.zeroed.items():
            if name != tensor.name:
                continue
            data = numpy_helper.to_array(tensor)
            zero: Any = data.dtype.type(0)
            if name in zeros.zero_points:
                point, along = zeros.zero_points[name]
                zero = values[point].astype(data.dtype)
                if zero.size > 1:
                    zero = zero.reshape([-1 if i == along % data.ndim else 1 for i in range(data.ndim)])
                else:
                    zero = zero.reshape(())
            where = flags.reshape([-1 if i == axis else 1 for i in range(data.ndim)])
            tensor.CopyFrom(numpy_helper.from_array(np.where(where, zero, data).astype(data.dtype), name))
    return model


def pruned_model(kept: Kept) -> onnx.ModelProto:
    """The smaller network, which computes what the masked one computes."""
    import onnx
    from onnx import numpy_helper

    network = kept.channels.network
    model = masked_model(kept)
    graph = model.graph
    for tensor in graph.initializer:
        data = numpy_helper.to_array(tensor)
        for axis in range(data.ndim):
            if kept.size(tensor.name, axis) != data.shape[axis]:
                data = np.compress(kept.of(tensor.name, axis), data, axis=axis)
        if data.shape != tuple(tensor.dims):
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(data), tensor.name))
    sizes = _Sizes(kept, graph)
    for node in graph.node:
        if node.op_type in ("Conv", "QLinearConv") and int(attribute(node, "group", 1)) > 1:
            weights = node.input[3 if node.op_type == "QLinearConv" else 1]
            for item in node.attribute:
                if item.name == "group":
                    item.i = kept.size(node.input[0], 1) // network.shapes[weights][1]
        elif node.op_type == "Reshape":
            sizes.replace(node, 1, sizes.shape(node.output[0]))
        elif node.op_type == "Split" and len(node.input) > 1 and node.input[1]:
            along = int(attribute(node, "axis", 0))
            sizes.replace(node, 1, [sizes.shape(name)[along] for name in node.output])
        elif node.op_type == "Split":
            _split_by_operand(node, sizes)
        elif node.op_type == "Resize" and len(node.input) > 3 and node.input[3]:
            shape = sizes.shape(node.output[0])
            axes = attribute(node, "axes")
            sizes.replace(node, 3, shape if axes is None else [shape[a] for a in axes])
    del graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model)


class _Sizes:
    """Constants that state sizes, which nodes get anew where these have changed."""

    def __init__(self, kept: Kept, graph: Any) -> None:
        self.kept, self.graph = kept, graph

    def shape(self, name: str) -> list[int]:
        """What is left of a tensor's shape."""
        return [self.kept.size(name, axis) for axis in range(len(self.kept.channels.network.shapes[name]))]

    def replace(self, node: Any, index: int, sizes: list[int]) -> None:
        """Have an operand of a node state other sizes, unless what changed is none of them."""
        from onnx import numpy_helper

        shapes = self.kept.channels.network.shapes
        if all(self.shape(name) == list(shapes[name]) for name in node.output):
            return
        name = f"{node.output[0]} (sizes)"
        self.graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), name))
        node.input[index] = name


def _split_by_operand(node: Any, sizes: _Sizes) -> None:
    """A Split in equal parts whose parts are no longer equal states them."""
    along = int(attribute(node, "axis", 0))
    parts = [sizes.shape(name)[along] for name in node.output]
    if len(set(parts)) > 1:
        left = [item for item in node.attribute if item.name != "num_outputs"]
        del node.attribute[:]
        node.attribute.extend(left)
        if len(node.input) < 2:
            node.input.append("")
        sizes.replace(node, 1, parts)
