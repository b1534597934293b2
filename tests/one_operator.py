"""TFLite files of one operator: writing them, and what LiteRT answers.

`Case` is such a file with values for its inputs. `tests.operator_cases` generates them; this module knows the file
format only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from nnloom.arch.operation import Operation, Quantization, TensorType
from nnloom.arch.reference import STATES

_TYPES = {
    "int4": schema.TensorType.INT4,
    "int8": schema.TensorType.INT8,
    "uint8": schema.TensorType.UINT8,
    "int16": schema.TensorType.INT16,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
    "uint32": schema.TensorType.UINT32,
    "float16": schema.TensorType.FLOAT16,
    "float32": schema.TensorType.FLOAT32,
    "bool": schema.TensorType.BOOL,
}
_NAMES = {code: name for name, code in _TYPES.items()}

_OPTIONS = {
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "L2_POOL_2D": "Pool2DOptions",
    "MEAN": "ReducerOptions",
    "SUM": "ReducerOptions",
    "REDUCE_MAX": "ReducerOptions",
    "REDUCE_MIN": "ReducerOptions",
    "REDUCE_PROD": "ReducerOptions",
    "REDUCE_ANY": "ReducerOptions",
    "REDUCE_ALL": "ReducerOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "L2_NORMALIZATION": "L2NormOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "SPACE_TO_BATCH_ND": "SpaceToBatchNDOptions",
    "BATCH_TO_SPACE_ND": "BatchToSpaceNDOptions",
    "PADV2": "PadV2Options",
    "TOPK_V2": "TopKV2Options",
    "SELECT_V2": "SelectV2Options",
    "REVERSE_V2": "ReverseV2Options",
    "SVDF": "SVDFOptions",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTMOptions",
}
"""Options tables whose names are not the operator's; "" for none"""
_WITHOUT_OPTIONS = {
    "RELU",
    "RELU6",
    "RELU_N1_TO_1",
    "RELU_0_TO_1",
    "LOGISTIC",
    "TANH",
    "PRELU",
    "ELU",
    "LOG",
    "BROADCAST_ARGS",
    "EMBEDDING_LOOKUP",
    "SQRT",
    "RSQRT",
    "SIN",
    "FLOOR",
    "CEIL",
    "ROUND",
}
_ENUMERATIONS = {
    "fusedActivationFunction": schema.ActivationFunctionType,
    "padding": schema.Padding,
    "mode": schema.MirrorPadMode,
    "outputType": schema.TensorType,
    "outType": schema.TensorType,
    "inDataType": schema.TensorType,
    "outDataType": schema.TensorType,
    "quantizedBiasType": schema.TensorType,
    "weightsFormat": schema.FullyConnectedOptionsWeightsFormat,
}
_VERSIONS = {"FULLY_CONNECTED": 4} | dict.fromkeys(
    (
        "ADD_N",
        "BATCH_MATMUL",
        "BROADCAST_ARGS",
        "BITWISE_XOR",
        "CAST",
        "CEIL",
        "COS",
        "CUMSUM",
        "DEPTH_TO_SPACE",
        "DYNAMIC_UPDATE_SLICE",
        "ELU",
        "EMBEDDING_LOOKUP",
        "FILL",
        "FLOOR",
        "FLOOR_DIV",
        "FLOOR_MOD",
        "GATHER_ND",
        "GELU",
        "LOG",
        "LOGICAL_AND",
        "LOGICAL_NOT",
        "LOGICAL_OR",
        "MATRIX_SET_DIAG",
        "MATRIX_DIAG",
        "NEG",
        "ONE_HOT",
        "POW",
        "RANGE",
        "RANK",
        "REDUCE_PROD",
        "REVERSE_V2",
        "RIGHT_SHIFT",
        "ROUND",
        "SEGMENT_SUM",
        "SCATTER_ND",
        "SELECT",
        "SELECT_V2",
        "SIN",
        "SPARSE_TO_DENSE",
        "SQRT",
        "SQUARE",
        "TILE",
        "ZEROS_LIKE",
        "EXPAND_DIMS",
        "HARD_SWISH",
        "L2_POOL_2D",
        "PRELU",
        "REDUCE_ALL",
        "REDUCE_ANY",
        "RELU_0_TO_1",
        "RELU_N1_TO_1",
        "RESHAPE",
        "REVERSE_SEQUENCE",
        "SHAPE",
        "SIGN",
        "SQUEEZE",
    ),
    1,
)
"""Versions of operators where they are not 2"""


@dataclass(frozen=True)
class Operand:
    """A tensor of the file; with a value it is a constant."""

    type: TensorType
    value: NDArray | None = None
    sample: NDArray | None = None
    """for an input that does not take any value: one that it takes"""
    variable: bool = False
    """a state that lasts from call to call"""

    @property
    def is_input(self) -> bool:
        return self.value is None and not self.variable


@dataclass(frozen=True)
class Case:
    """A file of one operator, and a value for each input of its graph."""

    name: str
    model: bytes
    inputs: list[NDArray]


@dataclass(frozen=True)
class Spec:
    """What a case is made from: operands as in the file, options as in the schema, in snake case."""

    kind: str
    operands: Sequence[Operand | None]
    outputs: Sequence[TensorType]
    options: Mapping[str, Any] = field(default_factory=dict)
    intermediates: Sequence[TensorType] = ()
    version: int | None = None
    """of the operator, if it is neither 2 nor in `_VERSIONS`"""


def constant(value: Any, dtype: str = "int32", quantization: Quantization | None = None) -> Operand:
    array = np.asarray(value, "int8" if dtype == "int4" else dtype)
    return Operand(TensorType(array.shape, dtype, quantization), array)


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _options_class(kind: str) -> Any:
    if kind in _WITHOUT_OPTIONS:
        return None
    name = _OPTIONS.get(kind) or "".join(word.capitalize() for word in kind.split("_")) + "Options"
    return getattr(schema, name + "T")


def _tensor(index: int, operand: Operand, buffers: list[Any]) -> Any:
    t = operand.type
    item = schema.TensorT()
    item.name = f"tensor_{index}"
    item.shape = np.array(t.shape, np.int32)
    item.hasRank = True
    item.type = _TYPES[t.dtype]
    item.buffer = 0
    item.isVariable = operand.variable
    if t.quantization:
        q = item.quantization = schema.QuantizationParametersT()
        q.scale = np.array(t.quantization.scales, np.float32)
        q.zeroPoint = np.array(t.quantization.zero_points, np.int64)
        q.quantizedDimension = t.quantization.axis
    if operand.value is not None:
        data = np.ascontiguousarray(operand.value).reshape(-1)
        if t.dtype == "int4":
            nibbles = np.append(data, np.zeros(data.size % 2, np.int8)).astype(np.uint8) & 15
            data = nibbles[0::2] | (nibbles[1::2] << 4)
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(data.tobytes(), np.uint8)
        buffers.append(buffer)
        item.buffer = len(buffers) - 1
    return item


def write(spec: Spec) -> bytes:
    """The file. The graph's inputs are the operands that are neither constants nor states, in their order."""
    import flatbuffers

    empty = schema.BufferT()
    empty.data = None
    buffers = [empty]
    graph = schema.SubGraphT()
    graph.tensors, inputs, indices = [], [], []
    for operand in [*spec.operands, *(Operand(t) for t in spec.outputs)]:
        if operand is None:
            indices.append(-1)
            continue
        indices.append(len(graph.tensors))
        graph.tensors.append(_tensor(len(graph.tensors), operand, buffers))
        if operand.is_input and len(indices) <= len(spec.operands):
            inputs.append(indices[-1])
    op = schema.OperatorT()
    op.opcodeIndex = 0
    op.inputs = np.array(indices[: len(spec.operands)], np.int32)
    op.outputs = np.array(indices[len(spec.operands) :], np.int32)
    if spec.intermediates:
        first = len(graph.tensors)
        graph.tensors += [_tensor(first + i, Operand(t), buffers) for i, t in enumerate(spec.intermediates)]
        op.intermediates = np.arange(first, len(graph.tensors), dtype=np.int32)
    options_class = _options_class(spec.kind)
    if options_class is not None:
        op.builtinOptions = options_class()
        name = options_class.__name__.removesuffix("T")
        known = vars(op.builtinOptions)
        if hasattr(schema.BuiltinOptions, name):
            op.builtinOptionsType = getattr(schema.BuiltinOptions, name)
        else:
            op.builtinOptions2, op.builtinOptions = op.builtinOptions, None
            op.builtinOptions2Type = getattr(schema.BuiltinOptions2, name)
        for key, value in spec.options.items():
            attribute = _camel(key)
            if attribute not in known:
                raise KeyError(f"{spec.kind}: no option {key}")
            enumeration = _ENUMERATIONS.get(attribute)
            known[attribute] = getattr(enumeration, value) if enumeration else value
    graph.operators = [op]
    graph.inputs, graph.outputs = np.array(inputs, np.int32), op.outputs
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, spec.kind)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version = spec.version or _VERSIONS.get(spec.kind, 2)
    model = schema.ModelT()
    model.version, model.buffers, model.subgraphs, model.operatorCodes = 3, buffers, [graph], [code]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


_WITHOUT_REFERENCE_KERNEL = {"CEIL", "ELU", "ROUND", "SEGMENT_SUM"}
"""Operators that BUILTIN_REF does not know; LiteRT's other kernels stand in"""


def interpret(
    model: bytes, inputs: Sequence[NDArray], calls: int = 1, *, reference_kernels: bool = True
) -> list[NDArray]:
    """What LiteRT's reference kernels (or its usual ones) answer, at the last of several calls.

    Raises
    ------
    RuntimeError, ValueError
        If LiteRT does not take the file.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kernels = OpResolverType.BUILTIN_REF
    if not reference_kernels or operator_kind(model) in _WITHOUT_REFERENCE_KERNEL:
        kernels = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_content=model, experimental_op_resolver_type=kernels, num_threads=1)
    interpreter.allocate_tensors()
    for detail, value in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], value)
    for _ in range(calls):
        interpreter.invoke()
    return [np.array(interpreter.get_tensor(detail["index"])) for detail in interpreter.get_output_details()]


def operator_kind(model: bytes) -> str:
    code = schema.Model.GetRootAs(model, 0).OperatorCodes(0).BuiltinCode()
    return next(name for name, value in vars(schema.BuiltinOperator).items() if value == code)


def read(model: bytes) -> tuple[Operation, list[NDArray | None]]:
    """The operator of a file, and its operands; None for those that are inputs or states, and for those left out.

    The new values of states are the operator's last outputs.
    """
    graph = schema.ModelT.InitFromPackedBuf(model, 0)
    kind = operator_kind(model)
    buffers, graph = graph.buffers, graph.subgraphs[0]
    op = graph.operators[0]
    types = [_read_type(t) for t in graph.tensors]
    values: list[NDArray | None] = []
    for i in op.inputs:
        data = None if i < 0 else buffers[graph.tensors[i].buffer].data
        values.append(None if data is None else _read_value(types[i], np.asarray(data, np.uint8)))
    inputs = tuple(None if i < 0 else types[i] for i in op.inputs)
    outputs = tuple(types[i] for i in (*op.outputs, *(op.inputs[i] for i in STATES.get(kind, ()))))
    raw = vars(op.builtinOptions or op.builtinOptions2) if (op.builtinOptions or op.builtinOptions2) else {}
    options = _read_options(kind, raw, inputs, outputs)
    if op.intermediates is not None and len(op.intermediates):
        options["intermediates"] = tuple(
            (q.scale, q.zero_point) for q in (types[i].quantization for i in op.intermediates)
        )
    return Operation(kind, inputs, outputs, options), values


def _read_type(t: Any) -> TensorType:
    q = None
    if t.quantization is not None and t.quantization.scale is not None and len(t.quantization.scale):
        q = Quantization(
            tuple(float(v) for v in t.quantization.scale),
            tuple(int(v) for v in t.quantization.zeroPoint),
            t.quantization.quantizedDimension,
        )
    return TensorType(tuple(int(v) for v in (t.shape if t.shape is not None else ())), _NAMES[t.type], q)


def _read_value(t: TensorType, data: NDArray) -> NDArray:
    if t.dtype == "int4":
        nibbles = np.stack([data & 15, data >> 4], axis=-1).reshape(-1)[: t.elements].astype(np.int8)
        return ((nibbles ^ 8) - 8).astype(np.int8).reshape(t.shape)
    return np.frombuffer(data.tobytes(), t.dtype).reshape(t.shape)


def _read_options(kind: str, raw: dict[str, Any], inputs: Any, outputs: Any) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in raw.items():
        enumeration = _ENUMERATIONS.get(key)
        if enumeration:
            value = next(name for name, code in vars(enumeration).items() if code == value)
        elif isinstance(value, np.ndarray):
            value = tuple(int(v) for v in value)
        result["activation" if key == "fusedActivationFunction" else _snake(key)] = value
    if "stride_h" in result:
        strides = result["strides"] = (result.pop("stride_h"), result.pop("stride_w"))
        dilation = (result.pop("dilation_h_factor", 1), result.pop("dilation_w_factor", 1))
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            result["dilation"] = dilation
        if kind == "TRANSPOSE_CONV":
            window, large, small = inputs[1].shape[1:3], outputs[0].shape[1:3], inputs[2].shape[1:3]
        else:
            if "filter_height" in result:
                window = result["window"] = (result.pop("filter_height"), result.pop("filter_width"))
            else:
                window = inputs[1].shape[1:3]
            large, small = inputs[0].shape[1:3], outputs[0].shape[1:3]
        before, after = [], []
        for size, out, k, s, d in zip(large, small, window, strides, dilation, strict=True):
            total = max((out - 1) * s + (k - 1) * d + 1 - size, 0) if result["padding"] == "SAME" else 0
            before.append(total // 2)
            after.append(total - total // 2)
        result["padding"] = (before[0], before[1], after[0], after[1])
    return result
