"""TFLite files into the graph, read from the flatbuffer.

What the file says is kept as it is: tensors by index, quantization per tensor or per channel, operands in the file's
order. Options become those of `nnloom.arch.operation`: paddings are resolved from the shapes, as LiteRT does it.

State leaves no nodes behind: READ_VARIABLE and ASSIGN_VARIABLE, and operators that change a variable tensor, say which
value holds a state at which moment (`_States`); CALL_ONCE's subgraph is computed here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import itertools
import math
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.dtypes import INT4, INT8, LIMITS, UINT8, held_as
from nnloom.arch.errors import InputError, ModelError, ToolMissingError, UnsupportedOperatorError
from nnloom.arch.operation import Operation, Quantization, TensorType
from nnloom.arch.reference import STATES, evaluate, initial_state
from nnloom.arch.reference.detection import DETECTION_POSTPROCESS

from ..ir import Graph, Node, State, Value, checked_data
from .model_files import MODEL_FILES
from .shapes import infer_shapes, output_size
from .sparsity import densify

__all__ = ["VARIABLES", "read_tflite"]

_DTYPES = {
    "FLOAT32": "float32",
    "FLOAT16": "float16",
    "FLOAT64": "float64",
    "INT4": INT4,
    "INT8": INT8,
    "UINT8": UINT8,
    "INT16": "int16",
    "UINT16": "uint16",
    "INT32": "int32",
    "UINT32": "uint32",
    "INT64": "int64",
    "UINT64": "uint64",
    "BOOL": "bool",
}
_QUANTIZED = (INT4, INT8, UINT8, "int16", "int32", "int64")

_DAMAGE = (struct.error, IndexError, TypeError, ValueError, AttributeError, OverflowError, MemoryError, KeyError)
"""What the FlatBuffers reader raises for bytes that are no valid buffer (UnicodeDecodeError is a ValueError)."""

VARIABLES = ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE")
_CONTROL = ("IF", "WHILE", "CALL")
_NO_ROUTE = ("unknown", "CUSTOM", "STABLEHLO", "HASHTABLE")

MOST_LEARNT = 1 << 12
"""Elements of tensors whose values are kept while the file is read"""
MAX_SIZE = 1 << 31
"""Elements of a tensor beyond which a file is taken for damaged."""


def read_tflite(path: str | Path) -> Graph:
    """Read a TFLite file.

    Raises
    ------
    ModelError
        If the file is missing, no TFLite model, damaged, or has dynamic shapes.
    UnsupportedOperatorError
        If it has control flow or custom operators; the message names all of them.
    ToolMissingError
        If the package with TFLite's schema is not installed.
    """
    path = Path(path)
    try:
        import tflite
    except ImportError as error:
        raise ToolMissingError(f"{error.name} is not installed; pip install 'nnloom[compiler]'") from error
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}; give {MODEL_FILES}") from error
    if len(data) < 8:
        raise ModelError(f"{path}: empty or truncated file of {len(data)} bytes; give {MODEL_FILES}")
    if data[4:8] != b"TFL3":
        raise ModelError(f"{path}: neither a TFLite model (no TFL3 identifier) nor an ONNX model; give {MODEL_FILES}")
    try:
        return _Reader(tflite.Model.GetRootAsModel(data, 0), path, hashlib.sha256(data).hexdigest()).graph()
    except (ModelError, UnsupportedOperatorError):
        raise
    except _DAMAGE as error:
        text = str(error).strip().splitlines()
        raise ModelError(f"{path}: damaged TFLite file ({(text or [type(error).__name__])[0][:160]})") from error


@cache
def _names(enumeration: str) -> dict[int, str]:
    """Names of an enumeration of the schema by value."""
    kind = getattr(importlib.import_module(f"tflite.{enumeration}"), enumeration)
    return {value: key for key, value in vars(kind).items() if isinstance(value, int) and not key.startswith("_")}


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


_Variable = tuple[str, str] | int
"""A resource variable by container and name, the same in all subgraphs; or a variable tensor by index"""


@dataclass
class _States:
    """What the variables hold as the operators run, one after the other."""

    holds: dict[_Variable, int] = field(default_factory=dict)
    """the value that holds each variable now; those that are missing have not been read or written yet"""
    first: dict[_Variable, int] = field(default_factory=dict)
    """the value that holds each variable as a run begins, where that is read"""
    initial: dict[_Variable, NDArray] = field(default_factory=dict)
    """before the first run"""
    handles: dict[int, tuple[str, str]] = field(default_factory=dict)
    """the variable of each tensor that is a handle"""
    renamed: dict[int, int] = field(default_factory=dict)
    """values to be read instead of the tensors that the file names"""


class _Reader:
    """Reads a subgraph: the first, or one that CALL_ONCE names."""

    def __init__(self, model: Any, path: Path, sha256: str, subgraph: int = 0) -> None:
        self._model, self._path, self._sha256 = model, path, sha256
        self._subgraph = subgraph
        if not 0 <= subgraph < model.SubgraphsLength():
            raise ModelError(f"{path}: damaged TFLite file (there is no subgraph {subgraph})")
        self._graph = model.Subgraphs(subgraph)
        if subgraph == 0 and self._graph.OperatorsLength() == 0:
            raise ModelError(f"{path}: the model has no operators")
        if subgraph == 0 and self._graph.OutputsLength() == 0:
            raise ModelError(f"{path}: the model has no outputs")
        self._states = _States()
        self._values: list[Value] = []
        self._nodes: list[Node] = []
        self._known: dict[int, NDArray] = {}
        """what small tensors hold that are computed from constants and shapes"""
        self._made: set[int] = set()
        """values that are there by now"""

    def graph(self) -> Graph:
        operators = [self._graph.Operators(i) for i in range(self._graph.OperatorsLength())]
        kinds = [self._kind(op) for op in operators]
        if self._subgraph == 0:
            self._refuse(
                [*kinds, *(k for op, kind in zip(operators, kinds, strict=True) for k in self._once(op, kind))]
            )
        inputs = tuple(int(self._graph.Inputs(i)) for i in range(self._graph.InputsLength()))
        outputs = tuple(int(self._graph.Outputs(i)) for i in range(self._graph.OutputsLength()))
        handles = {i for op, kind in zip(operators, kinds, strict=True) for i in self._handles(op, kind)}
        edges = dict.fromkeys((*inputs, *outputs))
        used = dict.fromkeys(edges)
        for op in operators:
            used |= dict.fromkeys(self._indices(op.InputsLength(), op.Inputs))
            used |= dict.fromkeys(self._indices(op.OutputsLength(), op.Outputs))
        made = [i for op in operators for i in self._indices(op.OutputsLength(), op.Outputs)]
        names = self._unique_names(inputs, outputs, made)
        self._values = [
            self._value(i, names[i], is_input=i in inputs)
            if i in used and i not in handles
            else Value(names[i], TensorType((), "float32"))
            for i in range(self._graph.TensorsLength())
        ]
        self._begin(inputs, used)
        for op, kind in zip(operators, kinds, strict=True):
            if kind in VARIABLES:
                self._variable(op, kind, outputs)
            else:
                self._add(self._node(op, kind))
        states = self._ended()
        outputs = tuple(self._now(i) for i in outputs)
        missing = next((i for i in outputs if i not in self._made), None)
        if missing is not None:
            raise ModelError(f"{self._path}: output {self._values[missing].name!r} is made by nothing")
        return Graph(self._path.stem, self._sha256, tuple(self._values), tuple(self._nodes), inputs, outputs, states)

    def _begin(self, inputs: Sequence[int], used: Iterable[int]) -> None:
        """What is there as a run begins: inputs, constants, and variable tensors."""
        self._made = set(inputs) | {i for i, value in enumerate(self._values) if value.data is not None}
        for index in inputs:
            self._check_scale(index)
        for index in used:
            if not self._graph.Tensors(index).IsVariable():
                continue
            value = self._values[index]
            if index in self._made:
                what = "an input" if index in inputs else "a constant"
                raise ModelError(f"{self._path}: {value.name!r} is {what} and a variable tensor, too; convert it again")
            self._made.add(index)
            self._states.holds[index] = self._states.first[index] = index
            self._states.initial[index] = initial_state(value.type)

    def _ended(self) -> tuple[State, ...]:
        """The states, with the values that hold them as a run ends."""
        states = self._states
        result = []
        for variable, first in states.first.items():
            value = self._values[first]
            initial = states.initial[variable]
            name = value.name if isinstance(variable, int) else "/".join(part for part in variable if part)
            written = self._as(states.holds[variable], value, f"variable {name!r} is assigned")
            dtype = held_as(value.type.dtype)
            if initial.size != value.type.elements or initial.dtype != dtype:
                raise ModelError(
                    f"{self._path}: variable {name!r} begins as {initial.dtype}{list(initial.shape)}, and is read as "
                    f"{dtype}{list(value.type.shape)}"
                )
            result.append(State(name, first, written, np.ascontiguousarray(initial).reshape(value.type.shape)))
        return tuple(result)

    def _as(self, index: int, wanted: Value, what: str) -> int:
        """A value with the shape of another, by a reshape if need be; what is quantized otherwise keeps its bits."""
        value = self._values[index]
        if value.type.shape == wanted.type.shape and value.type.dtype == wanted.type.dtype:
            return index
        if value.type.dtype != wanted.type.dtype or value.type.elements != wanted.type.elements:
            raise ModelError(
                f"{self._path}: {what} as {value.type.dtype}{list(value.type.shape)}, and read as "
                f"{wanted.type.dtype}{list(wanted.type.shape)}"
            )
        return self._reshape(index, self._another(wanted))

    def _reshape(self, source: int, target: int) -> int:
        name, types = self._values[target].name, (self._values[source].type, self._values[target].type)
        self._add(Node(name, Operation("RESHAPE", types[:1], types[1:]), (source,), (target,)))
        return target

    def _another(self, value: Value) -> int:
        """A new value like another."""
        names = {v.name for v in self._values}
        number = next(n for n in itertools.count(1) if f"{value.name}:{n}" not in names)
        self._values.append(Value(f"{value.name}:{number}", value.type))
        return len(self._values) - 1

    def _now(self, index: int) -> int:
        """The value that a tensor of the file stands for by now."""
        return self._states.holds.get(index, self._states.renamed.get(index, index))

    def _handles(self, op: Any, kind: str) -> tuple[int, ...]:
        """Tensors that are handles of variables."""
        match kind:
            case "VAR_HANDLE":
                return self._indices(op.OutputsLength(), op.Outputs)
            case "READ_VARIABLE" | "ASSIGN_VARIABLE":
                return self._indices(op.InputsLength(), op.Inputs)[:1]
        return ()

    def _once(self, op: Any, kind: str) -> tuple[str, ...]:
        """Kinds of the operators that a CALL_ONCE calls."""
        if kind != "CALL_ONCE":
            return ()
        graph = self._init(op)._graph
        return tuple(self._kind(graph.Operators(i)) for i in range(graph.OperatorsLength()))

    def _init(self, op: Any) -> _Reader:
        return _Reader(self._model, self._path, self._sha256, int(_read_options(op)["init_subgraph_index"]))

    def _variable(self, op: Any, kind: str, outputs: Sequence[int]) -> None:
        """CALL_ONCE, VAR_HANDLE, READ_VARIABLE, ASSIGN_VARIABLE."""
        states = self._states
        if kind == "CALL_ONCE":
            initial = self._init(op).initial()
            late = next((v[1] for v in initial if v in states.holds), None)
            if late is not None or self._subgraph:
                raise ModelError(
                    f"{self._path}: CALL_ONCE "
                    + (f"after variable {late!r} is used" if late is not None else "within the subgraph of another")
                    + "; only variables that it sets before they are used are supported"
                )
            states.initial.update(initial.items())
            return
        operands = self._indices(op.InputsLength(), op.Inputs)
        if kind == "VAR_HANDLE":
            options = _read_options(op)
            states.handles[int(op.Outputs(0))] = (options.get("container") or "", options.get("shared_name") or "")
            return
        variable = states.handles.get(operands[0])
        if variable is None:
            raise ModelError(f"{self._path}: {kind} of a tensor that no VAR_HANDLE makes")
        if kind == "ASSIGN_VARIABLE":
            source = self._now(operands[1])
            self._check_made(kind, variable[1], (source,))
            states.holds[variable] = source
            return
        target = int(op.Outputs(0))
        wanted = self._values[target]
        if target in self._made or target in states.renamed:
            raise ModelError(f"{self._path}: {wanted.name!r} is made twice")
        held = states.holds.get(variable)
        if held is None:
            if variable not in states.initial:
                raise ModelError(
                    f"{self._path}: variable {variable[1]!r} is read before anything sets it; "
                    "export the model with the subgraph that initializes its variables"
                )
            self._made.add(target)
            states.holds[variable] = states.first[variable] = target
        elif self._values[held].type == wanted.type and target not in outputs:
            states.renamed[target] = held
        else:
            self._as(held, wanted, f"variable {variable[1]!r} is assigned")
            self._reshape(held, target)

    def initial(self) -> dict[tuple[str, str], NDArray]:
        """What the subgraph of a CALL_ONCE assigns to variables."""
        graph = self.graph()
        if graph.inputs or graph.outputs or graph.states:
            raise ModelError(f"{self._path}: the subgraph of CALL_ONCE has inputs, outputs or variable tensors")
        data = {i: value.data for i, value in enumerate(graph.values) if value.data is not None}
        for node in graph.nodes:
            try:
                results = evaluate(node.operation, [None if i is None else data[i] for i in node.inputs])
            except (InputError, UnsupportedOperatorError) as error:
                raise UnsupportedOperatorError(
                    f"{self._path}: {node.kind} {node.name!r}, which initializes variables, cannot be computed "
                    f"({error})"
                ) from error
            data |= zip(node.outputs, results, strict=True)
        # Without states, all of them are resource variables.
        return {v: data[index] for v, index in self._states.holds.items() if not isinstance(v, int)}

    def _kind(self, op: Any) -> str:
        """Name of an operator; the code is the larger of both fields (schema: `OperatorCode`)."""
        entry = self._model.OperatorCodes(op.OpcodeIndex())
        code = max(_builtin_code(entry), entry.DeprecatedBuiltinCode())
        kind = _names("BuiltinOperator").get(code, f"unknown operator {code}")
        if kind == "CUSTOM":
            name = (entry.CustomCode() or b"").decode()
            return name if name == DETECTION_POSTPROCESS else f"CUSTOM {name!r}"
        return kind

    def _refuse(self, kinds: Sequence[str]) -> None:
        """Refuse, all at once, what no part of nnloom can run."""
        causes = []
        for what, names in (
            ("operators that nnloom has no route for: ", _NO_ROUTE),
            ("control flow is not supported: ", _CONTROL),
        ):
            found = sorted({k for k in kinds if (k in names if names is _CONTROL else k.startswith(names))})
            if found:
                causes.append(f"{what}{', '.join(found)}")
        if causes:
            raise UnsupportedOperatorError(f"{self._path}: {'; '.join(causes)}; leave them out of the model")

    @staticmethod
    def _indices(count: int, of: Callable[[int], int]) -> tuple[int, ...]:
        return tuple(index for index in (int(of(i)) for i in range(count)) if index >= 0)

    def _unique_names(self, inputs: Sequence[int], outputs: Sequence[int], made: Sequence[int]) -> list[str]:
        """A name for each tensor: the file's, with a number where several share it, or by index where it has none."""
        count = self._graph.TensorsLength()
        given = [(self._graph.Tensors(i).Name() or b"").decode(errors="replace") for i in range(count)]
        used: set[str] = set()
        names = [""] * count
        # The network's inputs and outputs come first, then what operators make: they keep their names.
        for index in dict.fromkeys((*inputs, *outputs, *made, *range(count))):
            base = given[index]
            if index not in inputs and index not in outputs:
                base = base.split(";")[0]
            base = base or f"tensor_{index}"
            name, number = base, 1
            while name in used:
                name, number = f"{base}:{number}", number + 1
            used.add(name)
            names[index] = name
        return names

    def _value(self, index: int, name: str, *, is_input: bool) -> Value:
        tensor = self._graph.Tensors(index)
        kind = _names("TensorType").get(tensor.Type(), str(tensor.Type()))
        if kind not in _DTYPES:
            raise ModelError(f"{self._path}: tensor {name!r} is {kind.lower()}, which nnloom does not know")
        dtype = _DTYPES[kind]
        shape = tuple(int(tensor.Shape(i)) for i in range(tensor.ShapeLength()))
        # The first dimension is the batch: exporters leave it open, and it is what the shape says here.
        signature = [int(tensor.ShapeSignature(i)) for i in range(1, tensor.ShapeSignatureLength())]
        if is_input and any(v < 1 for v in (*shape, *signature)):
            raise ModelError(f"{self._path}: input {name!r} has a dynamic shape; export it with a fixed one")
        if math.prod(shape) >= MAX_SIZE:
            raise ModelError(f"{self._path}: damaged TFLite file (tensor {name!r} has shape {shape})")
        buffer = self._model.Buffers(tensor.Buffer())
        value_type = TensorType(shape, dtype, self._quantization(tensor, name, dtype, shape))
        if buffer is None or buffer.DataLength() == 0:
            return Value(name, value_type)
        sparsity = tensor.Sparsity()
        if sparsity is None:
            data = _decode(buffer.DataAsNumpy(), dtype, shape)
        else:
            if dtype == INT4:
                raise ModelError(f"{self._path}: tensor {name!r} is sparse int4; convert the model with dense weights")
            data = densify(_decode(buffer.DataAsNumpy(), dtype, ()), shape, sparsity)
        return Value(name, value_type, checked_data(data, value_type))

    def _quantization(self, tensor: Any, name: str, dtype: str, shape: tuple[int, ...]) -> Quantization | None:
        q = tensor.Quantization()
        if q is None or q.ScaleLength() == 0 or dtype not in _QUANTIZED:
            return None
        scales = tuple(float(np.float32(q.Scale(i))) for i in range(q.ScaleLength()))
        zero_points = tuple(int(q.ZeroPoint(i)) for i in range(q.ZeroPointLength())) or (0,) * len(scales)
        if len(zero_points) == 1:
            zero_points *= len(scales)
        # A channel of zeros may have the scale zero; for what is computed see `_check_scale`.
        bad = next((s for s in scales if not (math.isfinite(s) and s >= 0)), None)
        if bad is not None:
            raise self._bad_scale(name, bad)
        if dtype in LIMITS:
            least, greatest = LIMITS[held_as(dtype)]
            wrong = next((z for z in zero_points if not least <= z <= greatest), None)
            if wrong is not None:
                raise ModelError(f"{self._path}: tensor {name!r} has the zero point {wrong}, beyond {dtype}")
        axis = int(q.QuantizedDimension())
        if len(scales) > 1:
            # A bias has one axis, whatever its file says: LiteRT goes by position.
            axis = 0 if len(shape) == 1 else axis
            if not 0 <= axis < len(shape) or len(scales) != shape[axis] or len(zero_points) != len(scales):
                raise ModelError(
                    f"{self._path}: tensor {name!r} of shape {shape} has {len(scales)} scales for axis {axis}"
                )
        return Quantization(scales, zero_points, axis)

    def _bad_scale(self, name: str, scale: float) -> ModelError:
        return ModelError(
            f"{self._path}: tensor {name!r} has the quantization scale {scale:g}; scales must be positive numbers"
        )

    def _check_scale(self, index: int) -> None:
        """A tensor that is computed, and no constant after all, has no scale of zero."""
        q = self._values[index].type.quantization
        if q and min(q.scales) <= 0 and index not in self._known:
            raise self._bad_scale(self._values[index].name, min(q.scales))

    def _correct_shapes(
        self, kind: str, options: dict[str, Any], inputs: Sequence[int | None], outputs: Sequence[int]
    ) -> None:
        """Give the outputs of an operator the shapes that follow from its operands, whatever the file says."""
        types = [None if i is None else self._values[i].type for i in inputs]
        constants = self._constants(inputs)
        name = self._values[outputs[0]].name if outputs else kind
        try:
            shapes = infer_shapes(kind, types, constants, options, len(outputs))
        except KeyError as error:
            raise ModelError(f"{self._path}: {kind} {name!r} lacks the option {error}") from error
        except (ValueError, IndexError, ZeroDivisionError) as error:
            what = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            what = "a stride or size of 0" if isinstance(error, ZeroDivisionError) else what
            raise ModelError(f"{self._path}: {kind} {name!r} does not fit its operands ({what})") from error
        for index, shape in zip(outputs, shapes or (), strict=False):
            value = self._values[index]
            if math.prod(shape) >= MAX_SIZE:
                raise ModelError(f"{self._path}: damaged TFLite file (tensor {value.name!r} has shape {shape})")
            self._values[index] = dataclasses.replace(value, type=dataclasses.replace(value.type, shape=shape))
        for value in (self._values[i] for i in outputs):
            if any(n < 1 for n in value.type.shape):
                raise ModelError(
                    f"{self._path}: tensor {value.name!r} has a dynamic shape or no values; export it with a fixed one"
                )

    def _constants(self, inputs: Sequence[int | None]) -> list[NDArray | None]:
        """Values of the operands that are known: constants, and what has been learnt."""
        return [None if i is None else self._known.get(i, self._values[i].data) for i in inputs]

    def _learn(self, node: Node) -> None:
        """Keep the values of small tensors that depend on constants and shapes only: shapes are computed from them."""
        elements = sum(t.elements for t in node.operation.outputs)
        if node.kind == "SHAPE" and node.inputs[0] is not None:
            shape = self._values[node.inputs[0]].type.shape
            self._known[node.outputs[0]] = np.array(shape, node.operation.outputs[0].dtype)
            return
        operands = self._constants(node.inputs)
        left_out = [i is None for i in node.inputs]
        if elements > MOST_LEARNT or [v is None for v in operands] != left_out or not node.inputs:
            return
        try:
            self._known.update(zip(node.outputs, evaluate(node.operation, operands), strict=True))
        except (InputError, UnsupportedOperatorError):
            return

    def _node(self, op: Any, kind: str) -> Node:
        """An operator; with those that `STATES` lists, the new values of states are outputs, too."""
        tensors = [int(op.Inputs(i)) for i in range(op.InputsLength())]
        inputs = tuple(self._now(index) if index >= 0 else None for index in tensors)
        outputs = tuple(int(op.Outputs(i)) for i in range(op.OutputsLength()))
        options = _custom_options(op) if kind == DETECTION_POSTPROCESS else _read_options(op)
        name = self._values[outputs[0]].name if outputs else kind
        written = [tensors[i] for i in STATES.get(kind, ()) if i < len(tensors)]
        stray = next((i for i in written if i not in self._states.holds), None)
        if stray is not None:
            what = "left out" if stray < 0 else f"{self._values[stray].name!r}, which is no variable tensor"
            raise ModelError(f"{self._path}: {kind} {name!r}: its state is {what}")
        self._check_made(kind, name, inputs)
        self._correct_shapes(kind, options, inputs, outputs)
        types = tuple(None if i is None else self._values[i].type for i in inputs)
        results = tuple(self._values[i].type for i in outputs)
        if "fused_activation_function" in options:
            options["activation"] = options.pop("fused_activation_function")
        if op.IntermediatesLength():
            options["intermediates"] = tuple(
                map(self._scale, self._indices(op.IntermediatesLength(), op.Intermediates))
            )
        normalise = _NORMALISERS.get(kind)
        if normalise:
            try:
                options = normalise(options, types, results)
            except _Refusal as error:
                raise ModelError(f"{self._path}: {kind} {name!r}: {error}") from error
        outputs = tuple(self._version(i) for i in (*outputs, *written))
        results += tuple(self._values[i].type for i in outputs[len(results) :])
        name = self._values[outputs[0]].name if outputs else kind
        node = Node(name, Operation(kind, types, results, options), inputs, outputs)
        self._learn(node)
        for index in outputs:
            self._check_scale(index)
        return node

    def _version(self, index: int) -> int:
        """The value for a tensor that an operator writes: a new one if it is a variable."""
        if index in self._states.holds:
            self._states.holds[index] = self._another(self._values[index])
        return self._now(index)

    def _scale(self, index: int) -> tuple[float, int]:
        """Scale and zero point of an intermediate tensor; a scale of 0 where it has none."""
        q = self._graph.Tensors(index).Quantization()
        if q is None or q.ScaleLength() != 1:
            return 0.0, 0
        return float(np.float32(q.Scale(0))), int(q.ZeroPoint(0)) if q.ZeroPointLength() else 0

    def _check_made(self, kind: str, name: str, inputs: Sequence[int | None]) -> None:
        """Every operand is made before it is read."""
        missing = next((i for i in inputs if i is not None and i not in self._made), None)
        if missing is not None:
            raise ModelError(f"{self._path}: {kind} {name!r} reads {self._values[missing].name!r}, which nothing makes")

    def _add(self, node: Node) -> None:
        """Append a node; what it makes is made once."""
        again = next((i for i in node.outputs if i in self._made or i in self._states.renamed), None)
        if again is not None:
            raise ModelError(f"{self._path}: {self._values[again].name!r} is made twice")
        self._made.update(node.outputs)
        self._nodes.append(node)


def _builtin_code(entry: Any) -> int:
    """The field `builtin_code` as it stands: the package's accessor returns the deprecated field for small codes."""
    from flatbuffers.number_types import Int32Flags

    slot = int(entry._tab.Offset(10))
    return int(entry._tab.Get(Int32Flags, slot + entry._tab.Pos)) if slot else 0


class _Refusal(Exception):
    """Options that no kernel takes; the message says which."""


def _decode(raw: NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> NDArray:
    """The values of a buffer: little-endian; int4 in pairs, low half first."""
    if dtype != INT4:
        return np.frombuffer(raw.tobytes(), np.dtype(dtype).newbyteorder("<")).astype(dtype)
    halves = np.stack([raw & 15, raw >> 4], -1).reshape(-1)[: math.prod(shape)]
    return (((halves ^ 8).astype(np.int16)) - 8).astype(np.int8)


def _custom_options(op: Any) -> dict[str, Any]:
    """Options of a custom operator: a map in FlexBuffers' form."""
    from flatbuffers import flexbuffers

    values = flexbuffers.Loads(bytes(op.CustomOptionsAsNumpy())) if op.CustomOptionsLength() else {}
    if not isinstance(values, dict):
        raise ValueError("options of a custom operator that are no map")
    return {str(key): value for key, value in values.items()}


def _read_options(op: Any) -> dict[str, Any]:
    """The fields of an operator's options table by their names in the schema."""
    for number, table, union in (
        (op.BuiltinOptionsType(), op.BuiltinOptions, "BuiltinOptions"),
        (op.BuiltinOptions2Type(), op.BuiltinOptions2, "BuiltinOptions2"),
    ):
        source = table()
        if not number or source is None:
            continue
        name = _names(union)[number]
        kind = getattr(importlib.import_module(f"tflite.{name}"), name)
        options = kind()
        options.Init(source.Bytes, source.Pos)
        fields = {_snake(field): read(options) for field, read in _fields(kind).items()}
        return {key: _named(key, value) for key, value in fields.items()}
    return {}


_ENUMERATIONS = {
    "fused_activation_function": "ActivationFunctionType",
    "idx_out_type": "TensorType",
    "in_data_type": "TensorType",
    "kernel_type": "LSTMKernelType",
    "mode": "MirrorPadMode",
    "out_data_type": "TensorType",
    "out_type": "TensorType",
    "output_type": "TensorType",
    "padding": "Padding",
    "quantized_bias_type": "TensorType",
    "weights_format": "FullyConnectedOptionsWeightsFormat",
}
"""Fields that are enumerations of the schema"""


def _named(field: str, value: Any) -> Any:
    enumeration = _ENUMERATIONS.get(field)
    return _names(enumeration).get(value, str(value)) if enumeration else value


@cache
def _fields(kind: type) -> dict[str, Callable[[Any], Any]]:
    """How to read each field of an options table: scalars, strings and vectors of scalars."""

    def vector(field: str) -> Callable[[Any], Any]:
        return lambda t: tuple(getattr(t, field)(i) for i in range(getattr(t, f"{field}Length")()))

    def scalar(field: str) -> Callable[[Any], Any]:
        def read(t: Any) -> Any:
            value = getattr(t, field)()
            return value.decode() if isinstance(value, bytes) else value

        return read

    names = [
        n for n in vars(kind) if not n.startswith(("_", "GetRootAs")) and n != "Init" and "BufferHasIdentifier" not in n
    ]
    vectors = {n.removesuffix("Length") for n in names if n.endswith("Length")}
    parts = {f"{v}{suffix}" for v in vectors for suffix in ("Length", "AsNumpy", "IsNone")}
    return {n: vector(n) if n in vectors else scalar(n) for n in names if n not in parts}


_Types = Sequence[TensorType | None]
_Normaliser = Callable[[dict[str, Any], _Types, _Types], dict[str, Any]]


def _same_padding(size: int, window: int, stride: int, out: int) -> tuple[int, int]:
    """Padding before and after (TFLite `ComputePaddingWithOffset`)."""
    total = max(0, (out - 1) * stride + window - size)
    return total // 2, total - total // 2


def _windowed(options: dict[str, Any], source: TensorType, out: TensorType, window: tuple[int, int]) -> dict[str, Any]:
    """Strides, dilation, window and resolved padding of a convolution or pool."""
    strides = options.pop("stride_h", 0), options.pop("stride_w", 0)
    dilation = options.pop("dilation_h_factor", 1), options.pop("dilation_w_factor", 1)
    same = options.pop("padding", "SAME") == "SAME"
    if len(source.shape) != 4 or len(out.shape) != 4:
        raise _Refusal(f"operand of shape {source.shape}; it must have 4 dimensions")
    if min(*strides, *dilation, *window) < 1:
        raise _Refusal(f"strides {strides}, dilation {dilation}, window {window}; they must be positive")
    edges = []
    for axis in (0, 1):
        extent = (window[axis] - 1) * dilation[axis] + 1
        size, count = source.shape[1 + axis], out.shape[1 + axis]
        if output_size(size, extent, strides[axis], same) != count:
            raise _Refusal(f"output of shape {out.shape} does not follow from operand {source.shape}")
        edges.append(_same_padding(size, extent, strides[axis], count) if same else (0, 0))
    if out.shape[0] != source.shape[0]:
        raise _Refusal(f"output of shape {out.shape} does not follow from operand {source.shape}")
    (top, bottom), (left, right) = edges
    return options | {"strides": strides, "dilation": dilation, "padding": (top, left, bottom, right)}


def _conv(options: dict[str, Any], inputs: _Types, outputs: _Types) -> dict[str, Any]:
    source, weights, out = inputs[0], inputs[1], outputs[0]
    assert source and weights and out
    if len(weights.shape) != 4:
        raise _Refusal(f"weights of shape {weights.shape}; they must have 4 dimensions")
    return _windowed(options, source, out, (weights.shape[1], weights.shape[2]))


def _check_product(
    source: TensorType, weights: TensorType, inputs: _Types, bias: int, outputs: int, *, fits: bool
) -> None:
    """Whether weights fit the operand, and the bias, operand `bias`, the outputs."""
    if not fits:
        raise _Refusal(f"weights of shape {weights.shape} do not fit an operand of shape {source.shape}")
    given = inputs[bias] if len(inputs) > bias else None
    if given is not None and given.elements != outputs:
        raise _Refusal(f"a bias of shape {given.shape} for {outputs} outputs")


def _conv_2d(options: dict[str, Any], inputs: _Types, outputs: _Types) -> dict[str, Any]:
    result = _conv(options, inputs, outputs)
    source, weights = inputs[0], inputs[1]
    assert source and weights
    groups, rest = divmod(source.shape[3], max(weights.shape[3], 1))
    fits = not rest and groups > 0 and weights.shape[0] % groups == 0
    _check_product(source, weights, inputs, 2, weights.shape[0], fits=fits)
    return result


def _depthwise_conv_2d(options: dict[str, Any], inputs: _Types, outputs: _Types) -> dict[str, Any]:
    result = _conv(options, inputs, outputs)
    source, weights = inputs[0], inputs[1]
    assert source and weights
    fits = weights.shape[0] == 1 and weights.shape[3] % max(source.shape[3], 1) == 0
    _check_product(source, weights, inputs, 2, weights.shape[3], fits=fits)
    return result


def _fully_connected(options: dict[str, Any], inputs: _Types, outputs: _Types) -> dict[str, Any]:
    source, weights = inputs[0], inputs[1]
    assert source and weights
    fits = source.elements % max(weights.shape[1], 1) == 0
    _check_product(source, weights, inputs, 2, weights.shape[0], fits=fits)
    return options


def _pool(options: dict[str, Any], inputs: _Types, outputs: _Types) -> dict[str, Any]:
    source, out = inputs[0], outputs[0]
    assert source and out
    window = options.pop("filter_height", 0), options.pop("filter_width", 0)
    return _windowed(options, source, out, window) | {"window": window}


def _transpose_conv(options: dict[str, Any], inputs: _Types, outputs: _Types) -> dict[str, Any]:
    weights, source, out = inputs[1], inputs[2], outputs[0]
    assert source and weights and out
    if len(weights.shape) != 4:
        raise _Refusal(f"weights of shape {weights.shape}; they must have 4 dimensions")
    fits = source.shape[-1:] == weights.shape[-1:]
    _check_product(source, weights, inputs, 3, weights.shape[0], fits=fits)
    # The forward convolution from the output to the input has this padding.
    return _windowed(options, out, source, (weights.shape[1], weights.shape[2]))


_NORMALISERS: dict[str, _Normaliser] = {
    "CONV_2D": _conv_2d,
    "DEPTHWISE_CONV_2D": _depthwise_conv_2d,
    "FULLY_CONNECTED": _fully_connected,
    "TRANSPOSE_CONV": _transpose_conv,
    "AVERAGE_POOL_2D": _pool,
    "MAX_POOL_2D": _pool,
    "L2_POOL_2D": _pool,
}
