"""TFLite files to Relax in QDQ form, through TVM's own importer."""

from __future__ import annotations

import hashlib
import logging
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnloom.arch.artifact import TensorInfo
from nnloom.arch.errors import ModelError, ToolMissingError, UnsupportedOperatorError

if TYPE_CHECKING:
    import tvm

__all__ = ["ImportedModel", "TfliteTensor", "import_tflite"]

_DTYPES = {0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16", 9: "int8"}


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
        from tvm.relax.frontend import tflite as importer
    except ImportError as error:
        raise ToolMissingError(f"{error.name} is not installed; pip install 'nnloom[compiler]'") from error
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}; give the path of a .tflite file") from error
    if len(data) < 8:
        raise ModelError(f"{path}: empty or truncated file of {len(data)} bytes; give a .tflite file")
    if data[4:8] != b"TFL3":
        raise ModelError(f"{path}: not a TFLite model (no TFL3 identifier); give a .tflite file")
    try:
        from .fold import fold_shapes

        data = fold_shapes(data)
        model = tflite.Model.GetRootAsModel(data, 0)
        inputs, outputs, activations = _interface(model, tflite, path)
    except ModelError:
        raise
    except (struct.error, IndexError, TypeError, ValueError, AttributeError, OverflowError, MemoryError) as error:
        raise ModelError(f"{path}: damaged TFLite file ({_first_line(error)})") from error
    logger = logging.getLogger("tvm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        module = importer.from_tflite(model)
    except tvm.error.OpNotImplemented as error:
        names = str(error).split(":")[-1].strip() if ":" in str(error) else str(error)
        line = " ".join(str(error).split())
        raise UnsupportedOperatorError(f"{path}: {line[:200] if len(line) < 200 else names[:200]}") from error
    except Exception as error:  # the importer reads untrusted bytes and fails in many ways
        raise ModelError(f"{path}: TVM cannot import it ({_first_line(error)})") from error
    finally:
        logger.setLevel(level)
    return ImportedModel(
        path.stem, hashlib.sha256(path.read_bytes()).hexdigest(), module, inputs, outputs, activations
    )


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
    names = {value: key for key, value in vars(tflite.BuiltinOperator).items() if isinstance(value, int)}

    def quantization(index: int) -> tuple[float, int]:
        q = graph.Tensors(index).Quantization()
        if q is None or q.ScaleLength() != 1:
            return 0.0, 0
        return float(np.float32(q.Scale(0))), int(q.ZeroPoint(0)) if q.ZeroPointLength() else 0

    def shape(index: int) -> tuple[int, ...]:
        tensor = graph.Tensors(index)
        return tuple(int(tensor.Shape(i)) for i in range(tensor.ShapeLength()))

    def info(index: int, neighbours: dict[int, int]) -> TensorInfo:
        tensor = graph.Tensors(index)
        dtype = _DTYPES.get(tensor.Type(), str(tensor.Type()))
        if any(v < 1 for v in shape(index)):
            raise ModelError(f"{path}: dynamic shape {shape(index)}; export the model with fixed shapes")
        # A float input or output of a quantized model: the quantization behind its QUANTIZE or DEQUANTIZE.
        scale, zero_point = quantization(index if dtype == "int8" else neighbours.get(index, index))
        name = (tensor.Name() or b"").decode(errors="replace")
        return TensorInfo(name=name, shape=shape(index), dtype=dtype, scale=scale, zero_point=zero_point)

    before: dict[int, int] = {}
    after: dict[int, int] = {}
    activations = []
    quantized = floating = None
    for i in range(graph.OperatorsLength()):
        op = graph.Operators(i)
        entry = model.OperatorCodes(op.OpcodeIndex())
        name = names.get(max(entry.BuiltinCode(), entry.DeprecatedBuiltinCode()), "?")
        output = int(op.Outputs(0))
        if name == "QUANTIZE":
            after[int(op.Inputs(0))] = output
        elif name == "DEQUANTIZE":
            before[output] = int(op.Inputs(0))
        elif name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            if _DTYPES.get(graph.Tensors(output).Type()) == "int8":
                quantized = name
            else:
                floating = f"{name} is {_DTYPES.get(graph.Tensors(output).Type())}"
        if graph.Tensors(output).Type() == 9:
            scale, zero_point = quantization(output)
            text = (graph.Tensors(output).Name() or b"").decode(errors="replace")
            activations.append(TfliteTensor(text, int(np.prod(shape(output))), scale, zero_point))
    if floating:
        raise ModelError(f"{path}: not an int8 model ({floating}); quantize it to int8 first")
    if not quantized:
        raise ModelError(f"{path}: no quantized operator to accelerate; quantize the model to int8 first")
    inputs = tuple(info(int(graph.Inputs(i)), after) for i in range(graph.InputsLength()))
    outputs = tuple(info(int(graph.Outputs(i)), before) for i in range(graph.OutputsLength()))
    return inputs, outputs, tuple(activations)
