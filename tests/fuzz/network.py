"""A TFLite file under construction: values, constants, operators, and the odd ways in which files are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import ArrayLike, NDArray

from tests.tflite_models import ModelWriter

__all__ = ["Inapplicable", "Network", "Value", "Writing", "pack", "schema"]

_INITIALIZERS = ("VAR_HANDLE", "ASSIGN_VARIABLE", "CALL_ONCE")
_VERSION_1 = frozenset(
    {
        *("RESHAPE", "HARD_SWISH", "EXPAND_DIMS", "RELU_N1_TO_1", "SQUEEZE", "PRELU", "DEPTH_TO_SPACE"),
        *(*_INITIALIZERS, "READ_VARIABLE"),
    }
)
"""Operators whose int8 kernels have version 1; 2 serves for the others."""


class Inapplicable(Exception):
    """No value that the step could take, or a result that is too large."""


@dataclass(frozen=True)
class Value:
    """An activation."""

    index: int
    shape: tuple[int, ...]
    dtype: str = "INT8"
    scale: float = 0.0
    zero_point: int = 0

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass(frozen=True)
class Writing:
    """How a file says what it says."""

    names: str = "numbered"
    """numbered, none, empty, same, doubled, odd"""
    opcodes: str = "both"
    """both, new (only builtin_code), old (only deprecated_builtin_code), "old, none negative" """
    opcode_for_each: bool = False
    """an entry of the opcode table for every operator"""
    open_batch: bool = False
    """the first dimension of activations is not fixed in their signature, as exporters leave it"""


class Network(ModelWriter):
    """A network under construction; operators are added by the steps of `tests.fuzz.operators`."""

    def __init__(self, max_elements: int) -> None:
        super().__init__()
        self.max_elements = max_elements
        self.values: list[Value] = []
        """activations in the order in which they were made"""
        self.used: set[int] = set()
        """tensors that an operator reads"""
        self.operator_names: list[str] = []
        self.bias_axes: dict[int, int] = {}
        """quantized_dimension that the file gives a bias, and which LiteRT refuses; older files have it"""
        self.without_bias: list[int] = []
        """convolutions whose bias of zeros is for LiteRT alone, which insists on one"""
        self.variables: list[tuple[str, NDArray[np.int8]]] = []
        """resource variables, and what they begin with"""
        self.products: list[tuple[Value, list[int], Any, str, Value]] = []
        """operand, constants, options, kind, result: for others that share the constants"""

    def parts(self) -> list[list[Any]]:
        """The lists that grow with each step."""
        return [
            self.tensors,
            self.operators,
            self.operator_names,
            self.values,
            self.products,
            self._buffers,
            self._codes,
            self.without_bias,
            self.variables,
        ]

    def value(
        self, shape: Sequence[int], dtype: str = "INT8", scale: float = 0.0, zero_point: int = 0, *, keep: bool = True
    ) -> Value:
        """A new activation."""
        shape = tuple(int(v) for v in shape)
        if min(shape, default=1) < 1 or np.prod(shape, dtype=np.int64) > self.max_elements:
            raise Inapplicable(f"shape {shape}")
        scale = float(np.float32(scale))
        if dtype in ("INT8", "UINT8", "INT16"):
            if not 1e-12 <= scale <= 1e6:  # beyond, TFLite's shifts are undefined
                raise Inapplicable(f"scale {scale}")
            index = self.tensor(shape, dtype=dtype, scale=scale, zero_point=zero_point)
        else:
            index = self.tensor(shape, dtype=dtype)
        made = Value(index, shape, dtype, scale, zero_point)
        if keep:
            self.values.append(made)
        return made

    def like(self, x: Value, shape: Sequence[int]) -> Value:
        """A new activation with another shape and the same quantization."""
        return self.value(shape, x.dtype, x.scale, x.zero_point)

    def constant(
        self, data: ArrayLike, dtype: str = "INT32", scale: Any = None, zero_point: Any = None, axis: int = 0
    ) -> int:
        """A constant tensor."""
        array = np.asarray(data, {"INT8": np.int8, "INT32": np.int32, "FLOAT32": np.float32}[dtype])
        index = self.tensor(array.shape, dtype=dtype, scale=scale, zero_point=zero_point, data=array)
        if scale is not None:
            self.tensors[index].quantization.quantizedDimension = axis
        return index

    def add_operator(
        self, name: str, inputs: Sequence[Value | int], outputs: Sequence[Value], options: Any = None
    ) -> None:
        """Add an operator; an operand of -1 is left out."""
        operands = [x.index if isinstance(x, Value) else x for x in inputs]
        self.used.update(operands)
        self.operator_names.append(name)
        self.operator(name, operands, outputs[0].index, options)
        self.operators[-1].outputs = np.array([y.index for y in outputs], np.int32)

    def write(self, outputs: Sequence[int], writing: Writing) -> tuple[bytes, bytes]:
        """The file, and the file for LiteRT: the same but for what LiteRT refuses."""
        model = self._model(outputs, writing)
        plain = pack(model)
        for index, axis in self.bias_axes.items():
            self.tensors[index].quantization.quantizedDimension = axis
        for i in self.without_bias:
            self.operators[i].inputs = self.operators[i].inputs[:2]
        return (pack(model) if self.bias_axes or self.without_bias else plain), plain

    def _model(self, outputs: Sequence[int], writing: Writing) -> Any:
        kinds = [self._codes[op.opcodeIndex] for op in self.operators]
        names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
        codes = kinds if writing.opcode_for_each else self._codes
        entries = []
        for code in codes:
            entry = schema.OperatorCodeT()
            entry.version = 1 if names[code] in _VERSION_1 else 2
            entry.builtinCode = 0 if writing.opcodes == "old" and code < 127 else code
            entry.deprecatedBuiltinCode = 0 if writing.opcodes == "new" else min(code, 127)
            entries.append(entry)
        if writing.opcode_for_each:
            for i, op in enumerate(self.operators):
                op.opcodeIndex = i
        for i, tensor in enumerate(self.tensors):
            tensor.name = _name(i, writing.names)
            if writing.open_batch and len(tensor.shape) and not tensor.buffer:
                tensor.shapeSignature = np.array([-1, *tensor.shape[1:]], np.int32)
        graph = schema.SubGraphT()
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs, graph.outputs = np.array(self.inputs, np.int32), np.array(outputs, np.int32)
        subgraphs = [graph]
        if self.variables:
            first = len(entries)
            for kind in _INITIALIZERS:
                entry = schema.OperatorCodeT()
                code = getattr(schema.BuiltinOperator, kind)
                entry.version, entry.builtinCode, entry.deprecatedBuiltinCode = 1, code, min(code, 127)
                entries.append(entry)
            initial, once = self._initializer(first)
            subgraphs.append(initial)
            graph.operators = [once, *self.operators]
        model = schema.ModelT()
        model.version, model.buffers, model.subgraphs, model.operatorCodes = 3, self._buffers, subgraphs, entries
        return model

    def _initializer(self, code: int) -> tuple[Any, Any]:
        """(subgraph that gives the variables what they begin with, the operator that calls it).

        code: index of the first of `_INITIALIZERS` in the table of operators.
        """
        other = ModelWriter()
        other._buffers = self._buffers = list(self._buffers)
        for name, value in self.variables:
            other.assign(other.handle(name), other.tensor(value.shape, scale=0.1, zero_point=0, data=value))
        for op in other.operators:
            op.opcodeIndex += code
        graph = schema.SubGraphT()
        graph.tensors, graph.operators = other.tensors, other.operators
        graph.inputs = graph.outputs = np.zeros(0, np.int32)
        once = schema.OperatorT()
        once.opcodeIndex = code + _INITIALIZERS.index("CALL_ONCE")
        once.inputs = once.outputs = np.zeros(0, np.int32)
        once.builtinOptions, once.builtinOptionsType = schema.CallOnceOptionsT(), schema.BuiltinOptions.CallOnceOptions
        once.builtinOptions.initSubgraphIndex = 1
        return graph, once


def pack(model: Any) -> bytes:
    """A model as a file."""
    import flatbuffers

    builder = flatbuffers.Builder(4096)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _name(index: int, kind: str) -> str | None:
    match kind:
        case "none":
            return None
        case "empty":
            return ""
        case "same":
            return "x"
        case "doubled":
            return f"tensor_{index // 2}"
        case "odd":
            return ("a/b;c", "tensor:1", "große Zahl", "main", "%0", "x y", "a\tb", "tensor:1")[index % 8] + str(
                index // 8
            )
    return f"tensor_{index}"
