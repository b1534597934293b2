"""An ONNX network that is to be pruned: its nodes, its constants, and the shape of every tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.errors import ModelError

from ..frontend.onnx.plan import load_model, run_on_zeros

if TYPE_CHECKING:
    import onnx

__all__ = ["Network", "attribute"]

_SIZES = ("int32", "int64", "bool")
"""Types of what exporters compute from shapes"""


def attribute(node: Any, name: str, otherwise: Any = None) -> Any:
    """The value of a node's attribute."""
    from onnx import helper

    for item in node.attribute:
        if item.name == name:
            return helper.get_attribute_value(item)
    return otherwise


class Network:
    """A model file in a form in which every size is a constant.

    Parameters
    ----------
    path
        An .onnx file.
    shapes
        Of inputs that the file leaves open.

    Raises
    ------
    ModelError
        If the file is damaged, has open shapes or control flow, or ONNX Runtime refuses it.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        from onnx import inliner

        self.path = path
        model = load_model(path, shapes)
        if model.functions:
            model = inliner.inline_local_functions(model)
        self.model: onnx.ModelProto = model
        for index, node in enumerate(model.graph.node):
            if any(a.HasField("g") or a.graphs for a in node.attribute):
                raise ModelError(f"{path}: {node.op_type} {node.name!r} is control flow; export the model without")
            node.name = node.name or f"{node.op_type}_{index}"
        self._constants_as_initializers()
        made = run_on_zeros(path, model)
        self.shapes = {name: value.shape for name, value in made.items()}
        self.values = self._constant_values(made)
        """of initializers, and of what depends on them alone"""
        self._fold_sizes()
        self._own_copies()
        self.nodes = list(model.graph.node)
        self.initializers = {i.name: i for i in model.graph.initializer}
        self.producers = {name: node for node in self.nodes for name in node.output if name}
        self.inputs = [i.name for i in model.graph.input]
        self.outputs = [o.name for o in model.graph.output]
        self.readers = Counter(name for node in self.nodes for name in node.input if name)
        self.readers.update(self.outputs)

    def is_constant(self, name: str) -> bool:
        """Whether a tensor does not depend on the network's inputs."""
        return name in self.values

    def _constants_as_initializers(self) -> None:
        """Constants in one form; those of old files are among the inputs, too."""
        from onnx import helper, numpy_helper

        graph = self.model.graph
        nodes = list(graph.node)
        del graph.node[:]
        for node in nodes:
            if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
                graph.node.append(node)
                continue
            (given,) = node.attribute
            value = helper.get_attribute_value(given)
            data = numpy_helper.to_array(value) if given.name == "value" else _plain(given.name, value)
            graph.initializer.append(numpy_helper.from_array(data, node.output[0]))
        names = {i.name for i in graph.initializer}
        inputs = [i for i in graph.input if i.name not in names]
        del graph.input[:]
        graph.input.extend(inputs)

    def _constant_values(self, made: Mapping[str, NDArray]) -> dict[str, NDArray]:
        from onnx import numpy_helper

        values = {i.name: numpy_helper.to_array(i) for i in self.model.graph.initializer}
        self.shapes |= {name: data.shape for name, data in values.items()}
        for node in self.model.graph.node:
            of_shape = node.op_type in ("Shape", "Size")
            if of_shape or (node.input and all(not name or name in values for name in node.input)):
                values |= {name: made[name] for name in node.output if name in made}
        return values

    def _fold_sizes(self) -> None:
        """Sizes that the file computes from shapes become constants, and what nobody reads any more goes."""
        from onnx import numpy_helper

        graph = self.model.graph
        kept = []
        for node in graph.node:
            outputs = [name for name in node.output if name]
            if all(name in self.values and self.values[name].dtype.name in _SIZES for name in outputs):
                graph.initializer.extend(numpy_helper.from_array(self.values[name], name) for name in outputs)
            else:
                kept.append(node)
        read = {o.name for o in graph.output}
        needed = []
        for node in reversed(kept):
            if read.intersection(node.output):
                needed.append(node)
                read.update(node.input)
        del graph.node[:]
        graph.node.extend(reversed(needed))
        initializers = [i for i in graph.initializer if i.name in read]
        del graph.initializer[:]
        graph.initializer.extend(initializers)

    def _own_copies(self) -> None:
        """A constant of several values that more nodes read is one for each of them: they may lose other channels."""
        import onnx

        graph = self.model.graph
        constants = {i.name: i for i in graph.initializer}
        taken: Counter[str] = Counter()
        for node in graph.node:
            for index, name in enumerate(node.input):
                if name not in constants or self.values[name].size == 1:
                    continue
                taken[name] += 1
                if taken[name] == 1:
                    continue
                copy = onnx.TensorProto()
                copy.CopyFrom(constants[name])
                copy.name = f"{name}_{taken[name]}"
                while copy.name in self.shapes:
                    copy.name += "_"
                self.shapes[copy.name], self.values[copy.name] = self.shapes[name], self.values[name]
                graph.initializer.append(copy)
                node.input[index] = copy.name


def _plain(kind: str, value: Any) -> NDArray:
    """The value of a Constant that is no tensor: `value_float`, `value_ints` and such."""
    dtype = np.dtype(np.float32 if "float" in kind else np.int64 if "int" in kind else np.object_)
    return np.array(value, dtype)
