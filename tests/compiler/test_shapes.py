"""Shapes follow from operands, whatever the file says; LiteRT's are the reference."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from nnloom.arch.errors import ModelError
from nnloom.compiler.frontend import read_model
from tests.one_operator import interpret
from tests.operator_cases import GENERATORS, cases
from tests.tflite_models import ModelWriter, edited

OPEN = {
    "BROADCAST_ARGS", "DYNAMIC_UPDATE_SLICE", "MATRIX_DIAG", "MATRIX_SET_DIAG", "RIGHT_SHIFT", "BITWISE_XOR",
    "SCATTER_ND", "SEGMENT_SUM", "SPARSE_TO_DENSE", "SVDF", "UNIDIRECTIONAL_SEQUENCE_LSTM", "ADD_N",
    "DILATE",
}  # fmt: skip
"""Operators whose shapes are those of the file"""


def forget(data: bytes) -> bytes:
    """The file with scalars in place of all that operators make."""

    def edit(model):
        (graph,) = model.subgraphs
        for op in graph.operators:
            for index in op.outputs:
                graph.tensors[index].shape = np.zeros(0, np.int32)

    return edited(data, edit)


@pytest.mark.parametrize("kind", sorted(set(GENERATORS) - OPEN))
def test_the_shape_of_each_operator(kind, tmp_path):
    """As the file states it, and as LiteRT computes it where the file has forgotten it."""
    path = tmp_path / "m.tflite"
    known = 0
    for case in cases(4, 12, [kind]):
        path.write_bytes(case.model)
        stated = read_model(path)
        path.write_bytes(forget(case.model))
        graph = read_model(path)
        found = [graph.values[i].type.shape for i in graph.outputs]
        wanted = [y.shape for y in interpret(case.model, case.inputs)]
        assert [stated.values[i].type.shape for i in stated.outputs] == wanted
        if any(found) or not any(wanted):  # else it depends on values that are no constants
            known += 1
            assert found == wanted
    assert known


def test_shapes_that_are_computed_in_the_network(tmp_path):
    """RESHAPE to SHAPE, STRIDED_SLICE and PACK of a batch that the file forgot."""
    m = ModelWriter()
    x = m.input((1, 4, 6), dtype="FLOAT32")
    shape = m.operator("SHAPE", [x], m.tensor((3,), dtype="INT32"), schema.ShapeOptionsT())
    begin, end, step = (m.tensor((1,), dtype="INT32", data=np.array([v], np.int32)) for v in (0, 1, 1))
    options = schema.StridedSliceOptionsT()
    options.shrinkAxisMask = 1
    batch = m.operator("STRIDED_SLICE", [shape, begin, end, step], m.tensor((), dtype="INT32"), options)
    rest = m.tensor((), dtype="INT32", data=np.array(-1, np.int32))
    packing = schema.PackOptionsT()
    packing.valuesCount = 2
    wanted = m.operator("PACK", [batch, rest], m.tensor((2,), dtype="INT32"), packing)
    data = m.finish(m.operator("RESHAPE", [x, wanted], m.tensor((), dtype="FLOAT32"), schema.ReshapeOptionsT()))
    (tmp_path / "m.tflite").write_bytes(data)
    graph = read_model(tmp_path / "m.tflite")
    assert graph.values[graph.outputs[0]].type.shape == (1, 24)


def test_operands_that_do_not_fit(tmp_path):
    m = ModelWriter()
    a, b = (m.input(shape, dtype="FLOAT32") for shape in ((2, 3), (2, 4)))
    data = m.finish(m.operator("ADD", [a, b], m.tensor((2, 3), dtype="FLOAT32"), schema.AddOptionsT()))
    (tmp_path / "m.tflite").write_bytes(data)
    with pytest.raises(ModelError, match="ADD 'tensor_2' does not fit its operands"):
        read_model(tmp_path / "m.tflite")


def test_a_scale_of_zero(tmp_path):
    """A constant of zeros may have it, also one that is computed; what depends on inputs may not."""
    m = ModelWriter()
    x = m.input((1, 4))
    dims = m.tensor((2,), dtype="INT32", data=np.array([1, 4], np.int32))
    zero = m.tensor((), scale=0.0, zero_point=0, data=np.zeros((), np.int8))
    zeros = m.operator("FILL", [dims, zero], m.tensor((1, 4), scale=0.0, zero_point=0), schema.FillOptionsT())
    options = schema.ConcatenationOptionsT()
    options.axis = 0
    data = m.finish(m.operator("CONCATENATION", [zeros, zeros], m.tensor((2, 4), scale=0.0, zero_point=0), options), x)
    (tmp_path / "m.tflite").write_bytes(data)
    read_model(tmp_path / "m.tflite")

    def edit(model):
        model.subgraphs[0].operators[1].inputs = np.array([x, x], np.int32)

    (tmp_path / "m.tflite").write_bytes(edited(data, edit))
    with pytest.raises(ModelError, match="has the quantization scale 0; scales must be positive"):
        read_model(tmp_path / "m.tflite")
