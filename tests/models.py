"""Altered copies of a model, made with the flatbuffer's object interface."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema


def altered(source: Path, target: Path, change: Callable[[Any], None]) -> Path:
    """Copy a .tflite file with `change` applied to its `ModelT`."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(source.read_bytes(), 0))
    change(model)
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    target.write_bytes(bytes(builder.Output()))
    return target


def make_float(model: Any) -> None:
    """The same operators on float32 tensors, without quantization."""
    for tensor in model.subgraphs[0].tensors:
        if tensor.type in (schema.TensorType.INT8, schema.TensorType.INT32) and tensor.quantization is not None:
            data = model.buffers[tensor.buffer].data
            if data is not None and tensor.type == schema.TensorType.INT8:
                values = np.array(data, np.uint8).view(np.int8).astype(np.float32)
                model.buffers[tensor.buffer].data = values.view(np.uint8)
            tensor.type = schema.TensorType.FLOAT32
            tensor.quantization = None


def replace_softmax(model: Any) -> None:
    """An operator that no importer knows in place of SOFTMAX."""
    for code in model.operatorCodes:
        if code.builtinCode == schema.BuiltinOperator.SOFTMAX:
            code.builtinCode = schema.BuiltinOperator.UNIQUE
            code.deprecatedBuiltinCode = schema.BuiltinOperator.UNIQUE


def make_dynamic(model: Any) -> None:
    """An input whose height is left open."""
    graph = model.subgraphs[0]
    tensor = graph.tensors[graph.inputs[0]]
    tensor.shape = [1, -1, *tensor.shape[2:]]
    tensor.shapeSignature = [1, -1, *tensor.shape[2:]]


def remove_operators(model: Any) -> None:
    model.subgraphs[0].operators = []


def add_subgraph(model: Any) -> None:
    model.subgraphs.append(model.subgraphs[0])
