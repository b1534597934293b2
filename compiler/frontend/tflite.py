"""TFLite files to Relax in QDQ form, through TVM's own importer."""

from __future__ import annotations

import hashlib
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnloom.arch.artifact import TensorInfo
from nnloom.arch.errors import ModelError, ToolMissingError, UnsupportedOperatorError
from nnloom.arch.interrupts import pass_interrupts

from .fold import folding_converter

if TYPE_CHECKING:
    import tvm

__all__ = ["ImportedModel", "TfliteTensor", "import_tflite"]

_DTYPES = {0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16", 9: "int8"}

_DAMAGE = (struct.error, IndexError, TypeError, ValueError, AttributeError, OverflowError, MemoryError)
"""What the FlatBuffers reader raises for bytes that are no valid buffer (UnicodeDecodeError is a ValueError)."""


@dataclass(frozen=True)
class TfliteTensor:
    """A quantized activation of the file: used to give layers the names that other tools show."""

    name: str
    elements: int
    scale: float
    zero_point: int


@dataclass(frozen=True)
class ImportedModel:
    """A model in Relax, with its interface."""

    name: str
    sha256: str
    module: tvm.IRModule
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    activations: tuple[TfliteTensor, ...]
    """outputs of the file's operators, in order"""


def import_tflite(path: str | Path) -> ImportedModel:
    """Read a TFLite file.

    Raises
    ------
    ModelError
        If the file is missing, no TFLite model, damaged, not quantized to int8, or has dynamic shapes.
    UnsupportedOperatorError
        If TVM's importer does not know an operator; the message names it.
    ToolMissingError
        If TVM is not installed.
    """
    path = Path(path)
    try:
        import tflite
        import tvm
    except ImportError as error:
        raise ToolMissingError(f"{error.name} is not installed; pip install 'nnloom[compiler]'") from error
    pass_interrupts()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}; give the path of a .tflite file") from error
    if len(data) < 8:
        raise ModelError(f"{path}: empty or truncated file of {len(data)} bytes; give a .tflite file")
    if data[4:8] != b"TFL3":
        raise ModelError(f"{path}: not a TFLite model (no TFL3 identifier); give a .tflite file")
    try:
        model = tflite.Model.GetRootAsModel(data, 0)
        inputs, outputs, activations = _interface(model, tflite, path)
    except ModelError:
        raise
    except _DAMAGE as error:
        raise ModelError(f"{path}: damaged TFLite file ({_first_line(error)})") from error
    try:
        module = _convert(model)
    except tvm.error.OpNotImplemented as error:
        named = sorted(set(re.findall(r"'([A-Z0-9_]+)'", str(error))))
        what = f"operator not supported: {', '.join(named)}" if named else _first_line(error)
        raise UnsupportedOperatorError(
            f"{path}: {what}; nnloom has no route for it, leave it out of the model"
        ) from error
    except Exception as error:  # the importer reads untrusted bytes and fails in many ways
        raise ModelError(f"{path}: TVM cannot import it ({_first_line(error)})") from error
    return ImportedModel(path.stem, hashlib.sha256(data).hexdigest(), module, inputs, outputs, activations)


def _convert(model: Any) -> tvm.IRModule:
    """Run TVM's importer."""
    from tvm.relax.frontend.tflite import from_tflite

    builders = []

    def converter(model: Any, subgraph: Any, expressions: Any, builder: Any) -> Any:
        builders.append(builder)
        return folding_converter()(model, subgraph, expressions, builder)

    try:
        return from_tflite(model, op_converter=converter)
    except BaseException:
        # The importer leaves a block open when it fails, and TVM complains about that on stderr.
        for builder in builders:
            builder._end_block()
        raise


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:160]


def _interface(
    model: Any, tflite: Any, path: Path
) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...], tuple[TfliteTensor, ...]]:
    """Inputs, outputs and quantized activations; refuses what nnloom cannot compile."""
    if model.SubgraphsLength() != 1:
        raise ModelError(f"{path}: {model.SubgraphsLength()} subgraphs; only models with one are supported")
    graph = model.Subgraphs(0)
    if graph.OperatorsLength() == 0:
        raise ModelError(f"{path}: the model has no operators")
    operators = {value: key for key, value in vars(tflite.BuiltinOperator).items() if isinstance(value, int)}

    def quantization(index: int) -> tuple[float, int]:
        q = graph.Tensors(index).Quantization()
        if q is None or q.ScaleLength() != 1:
            return 0.0, 0
        return float(np.float32(q.Scale(0))), int(q.ZeroPoint(0)) if q.ZeroPointLength() else 0

    def shape(index: int) -> tuple[int, ...]:
        tensor = graph.Tensors(index)
        return tuple(int(tensor.Shape(i)) for i in range(tensor.ShapeLength()))

    def name(index: int) -> str:
        return (graph.Tensors(index).Name() or b"").decode()

    def info(index: int, neighbours: dict[int, int]) -> TensorInfo:
        tensor = graph.Tensors(index)
        dtype = _DTYPES.get(tensor.Type(), str(tensor.Type()))
        # The first dimension is the batch: exporters leave it open, and it is 1 here.
        signature = [int(tensor.ShapeSignature(i)) for i in range(1, tensor.ShapeSignatureLength())]
        if any(v < 1 for v in (*shape(index), *signature)):
            raise ModelError(f"{path}: input or output {name(index)!r} has a dynamic shape; export it with a fixed one")
        # A float input or output of a quantized model: the quantization behind its QUANTIZE or DEQUANTIZE.
        scale, zero_point = quantization(index if dtype == "int8" else neighbours.get(index, index))
        return TensorInfo(name=name(index), shape=shape(index), dtype=dtype, scale=scale, zero_point=zero_point)

    before: dict[int, int] = {}
    after: dict[int, int] = {}
    activations = []
    quantized, floating = False, ""
    for i in range(graph.OperatorsLength()):
        op = graph.Operators(i)
        entry = model.OperatorCodes(op.OpcodeIndex())
        kind = operators.get(max(entry.BuiltinCode(), entry.DeprecatedBuiltinCode()), "?")
        output = int(op.Outputs(0))
        dtype = _DTYPES.get(graph.Tensors(output).Type(), "?")
        if kind == "QUANTIZE":
            after[int(op.Inputs(0))] = output
        elif kind == "DEQUANTIZE":
            before[output] = int(op.Inputs(0))
        elif dtype == "int8":
            quantized = True
        elif kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            floating = f"{kind} is {dtype}"
        if dtype == "int8":
            scale, zero_point = quantization(output)
            activations.append(TfliteTensor(name(output), math.prod(shape(output)), scale, zero_point))
    if floating:
        raise ModelError(f"{path}: not an int8 model ({floating}); quantize it to int8 first")
    if not quantized:
        raise ModelError(f"{path}: no quantized operator to accelerate; quantize the model to int8 first")
    inputs = tuple(info(int(graph.Inputs(i)), after) for i in range(graph.InputsLength()))
    outputs = tuple(info(int(graph.Outputs(i)), before) for i in range(graph.OutputsLength()))
    for part in (inputs, outputs):
        names = [item.name for item in part]
        if len(set(names)) < len(names):
            raise ModelError(f"{path}: several inputs or outputs share a name ({', '.join(names)}); rename them")
    return inputs, outputs, tuple(activations)
