"""Networks with int8 and uint8 activations (Brevitas, some vendors) with int8 ones alone.

ONNX Runtime has integer kernels for operands and results of one type, and computes between two types in float32. A
uint8 tensor less 128, with a zero point less 128, stands for the same real numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.dtypes import INT8, RECENTRED, UINT8

if TYPE_CHECKING:
    import onnx

__all__ = ["with_one_type"]

_KEEP = ("Clip", "Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""Operators on integers that may lie between QuantizeLinear and DequantizeLinear"""


def with_one_type(model: onnx.ModelProto) -> onnx.ModelProto:
    """A network whose activations are int8, if some of them are uint8 now, and others int8."""
    import onnx
    from onnx import numpy_helper

    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    types = {_type_of(node, constants) for node in model.graph.node if node.op_type == "QuantizeLinear"}
    if not {INT8, UINT8} <= types:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    search = _Search(result, constants)
    for node in result.graph.node:
        if node.op_type == "QuantizeLinear" and _type_of(node, constants) == UINT8:
            search.turn(node)
    result.graph.initializer.extend(numpy_helper.from_array(data, name) for name, data in search.made.items())
    kept = [v for v in result.graph.value_info if v.name not in search.turned]
    del result.graph.value_info[:]
    result.graph.value_info.extend(kept)
    return result


def _type_of(node: Any, constants: Mapping[str, NDArray]) -> str:
    """What a QuantizeLinear or DequantizeLinear quantizes to; "" if that is not constant."""
    name = node.input[2] if len(node.input) > 2 else ""
    if not name:
        return UINT8 if node.op_type == "QuantizeLinear" else ""
    return constants[name].dtype.name if name in constants else ""


class _Search:
    """Turns tensors of a network into int8."""

    def __init__(self, model: Any, constants: Mapping[str, NDArray]) -> None:
        self._constants = constants
        self._readers: dict[str, list[Any]] = {}
        for node in model.graph.node:
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)
        self._outputs = {o.name for o in model.graph.output}
        self.made: dict[str, NDArray] = {}
        self.turned: set[str] = set()

    def turn(self, node: Any) -> None:
        """Turn what a QuantizeLinear makes, as far as DequantizeLinear; not where something else reads it."""
        found: list[Any] = [node]
        left = list(node.output)
        while left:
            name = left.pop()
            if name in self._outputs:
                return
            for reader in self._readers.get(name, []):
                if reader.op_type == "DequantizeLinear":
                    if reader.input[0] != name or _type_of(reader, self._constants) != UINT8:
                        return
                elif reader.op_type not in _KEEP or not self._is_constant(reader):
                    return
                else:
                    left += reader.output[:1]
                found.append(reader)
        for each in found:
            self.turned.update(each.output)
            places = [2] if each.op_type.endswith("Linear") else range(1, 3) if each.op_type == "Clip" else []
            if each.op_type == "QuantizeLinear" and len(each.input) < 3:
                each.input.append("")
            for place in (p for p in places if p < len(each.input)):
                each.input[place] = self._shifted(each.input[place])

    def _is_constant(self, node: Any) -> bool:
        """Whether all operands but the first are."""
        return all(name in self._constants for name in node.input[1:] if name)

    def _shifted(self, name: str) -> str:
        """A constant of uint8 as int8, under a name of its own; 0 where there is none."""
        data = self._constants[name] if name else np.zeros((), np.uint8)
        new = f"{name or 'zero'} (int8)"
        self.made[new] = (data.astype(np.int16) - RECENTRED).astype(np.int8)
        return new
