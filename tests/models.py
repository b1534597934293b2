"""Altered copies of a model, made with the flatbuffer's object interface."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
from ai_edge_litert import schema_py_generated as schema


def altered(source: Path, target: Path, change: Callable[[Any], None]) -> Path:
    """Copy a .tflite file with `change` applied to its `ModelT`."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(source.read_bytes(), 0))
    change(model)
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    target.write_bytes(bytes(builder.Output()))
    return target


def replace_softmax(model: Any, kind: int = schema.BuiltinOperator.UNIQUE) -> None:
    """Another operator in place of SOFTMAX, by default one that nothing here computes."""
    for code in model.operatorCodes:
        if code.builtinCode == schema.BuiltinOperator.SOFTMAX:
            code.builtinCode = code.deprecatedBuiltinCode = kind


def use_control_flow(model: Any) -> None:
    """A loop in place of SOFTMAX."""
    replace_softmax(model, schema.BuiltinOperator.WHILE)


def make_dynamic(model: Any) -> None:
    """An input whose height is left open."""
    graph = model.subgraphs[0]
    tensor = graph.tensors[graph.inputs[0]]
    tensor.shape = [1, -1, *tensor.shape[2:]]
    tensor.shapeSignature = [1, -1, *tensor.shape[2:]]


def remove_operators(model: Any) -> None:
    model.subgraphs[0].operators = []
