"""Folding of shape arithmetic in a TFLite model.

Exporters compute the shape of a RESHAPE at run time (SHAPE -> STRIDED_SLICE -> PACK) even where every
dimension is static. Such chains are evaluated here and replaced by constants, as TVM's importer refuses them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["fold_shapes"]


def fold_shapes(data: bytes) -> bytes:
    """Return the model with constant shape arithmetic evaluated; unchanged bytes if there is none."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    operator = schema.BuiltinOperator
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    graph = model.subgraphs[0]
    constants: dict[int, NDArray] = {}

    def value(index: int) -> NDArray | None:
        if index in constants:
            return constants[index]
        tensor = graph.tensors[index]
        content = model.buffers[tensor.buffer].data
        if content is None or len(content) == 0 or tensor.type != schema.TensorType.INT32:
            return None
        shape = [] if tensor.shape is None else [int(v) for v in tensor.shape]
        return np.frombuffer(bytes(content), np.int32).reshape(shape)

    def evaluate(op: Any, code: int) -> NDArray | None:
        if code == operator.SHAPE:
            tensor = graph.tensors[op.inputs[0]]
            signature = tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature
            # A batch of unknown size was fixed to the tensor's own shape by the importer.
            del signature
            return np.array([int(v) for v in tensor.shape], np.int32)
        inputs = [value(int(index)) for index in op.inputs]
        if any(item is None for item in inputs):
            return None
        if code == operator.STRIDED_SLICE:
            source, begin, end, strides = inputs
            options = op.builtinOptions
            if source.ndim != 1 or options.beginMask or options.endMask or options.ellipsisMask or options.newAxisMask:
                return None
            part = source[int(begin[0]) : int(end[0]) : int(strides[0])]
            return part[0] if options.shrinkAxisMask & 1 else part
        if code == operator.PACK:
            return np.stack(inputs, axis=op.builtinOptions.axis)
        return None

    kept = []
    for op in graph.operators:
        code_entry = model.operatorCodes[op.opcodeIndex]
        code = max(code_entry.builtinCode, code_entry.deprecatedBuiltinCode)
        if code in (operator.SHAPE, operator.STRIDED_SLICE, operator.PACK):
            result = evaluate(op, code)
            if result is not None:
                constants[int(op.outputs[0])] = np.asarray(result, np.int32)
                continue
        kept.append(op)
    if not constants:
        return data
    graph.operators = kept
    for index, result in constants.items():
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(result.tobytes(), np.uint8)
        model.buffers.append(buffer)
        graph.tensors[index].buffer = len(model.buffers) - 1
        graph.tensors[index].shape = np.array(result.shape, np.int32)
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
