"""Operands repeated along rows, columns and channels, and images of one pixel that grow."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from tests.compiler.litert import exact
from tests.tflite_models import ModelWriter

TWO = ("2x16x9", "8x5 with larger memories")


def image(m: ModelWriter, channels: int = 11) -> int:
    return m.conv(m.input((1, 6, 5, 3)), channels, activation=None)


def like(m: ModelWriter, x: int, other: int) -> int:
    """The quantization of another tensor."""
    q, known = m.tensors[x].quantization, m.tensors[other].quantization
    q.scale, q.zeroPoint = known.scale, known.zeroPoint
    return x


@pytest.mark.parametrize("config", TWO)
@pytest.mark.parametrize("shape", [(1, 1, 1, 11), (1, 6, 1, 11), (1, 1, 5, 1), (1, 6, 5, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("name", ["ADD", "SUB", "MAXIMUM"])
def test_operands_that_are_repeated(tmp_path, name, shape, config):
    def build(m: ModelWriter) -> list[int]:
        x = image(m)
        point = int(m.tensors[x].quantization.zeroPoint[0])
        window = 6 // shape[1], 5 // shape[2]
        small = like(m, m.conv(x, shape[3], window, window, "VALID", activation=None), x)
        operands = (small, x) if shape[1] == 6 else (x, small)
        scale = m.scale(x) * (1.0 if name == "MAXIMUM" else 1.3)
        return [m.conv(m.binary(name, *operands, scale, zero_point=point), 4)]

    partitioned = exact(tmp_path, build, shape[3], config=config)
    assert not partitioned.cpu_operators
    assert len(partitioned.graphs) == 1


def test_vectors_beside_rows(tmp_path):
    """[1, 5, 8] and [8]; what is repeated in the middle of several dimensions stays on the CPU."""

    def build(m: ModelWriter) -> list[int]:
        rows = m.reshape(m.conv(m.input((1, 1, 5, 3)), 8), (1, 5, 8))
        vector = m.dense(rows, 8)
        return [m.dense(m.binary("ADD", rows, vector, m.scale(rows) * 1.5), 4)]

    assert len(exact(tmp_path, build).graphs) == 1

    def refused(m: ModelWriter) -> list[int]:
        a, b = m.input((2, 3, 4)), m.input((2, 1, 4))
        return [m.binary("ADD", a, b, 0.2)]

    (item,) = exact(tmp_path, refused).cpu_operators
    assert item.reason == "broadcasting of [2, 1, 4] to [2, 3, 4]"


@pytest.mark.parametrize("name", ["RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"])
def test_one_pixel_grows(tmp_path, name):
    """The global branch of atrous spatial pyramids."""

    def build(m: ModelWriter) -> list[int]:
        x = image(m)
        pooled = m.pool(x, "AVERAGE", (6, 5), (1, 1))
        q = m.tensors[x].quantization
        size = m.tensor((2,), dtype="INT32", data=np.array([6, 5], np.int32))
        options = {"RESIZE_BILINEAR": schema.ResizeBilinearOptionsT}.get(name, schema.ResizeNearestNeighborOptionsT)()
        y = m.operator(name, [pooled, size], m.tensor((1, 6, 5, 11), scale=q.scale, zero_point=q.zeroPoint), options)
        return [m.conv(y, 4), m.conv(x, 3)]

    partitioned = exact(tmp_path, build)
    assert not partitioned.cpu_operators
    assert len(partitioned.graphs) == 1


def test_other_resizing_stays_on_the_cpu(tmp_path):
    def build(m: ModelWriter) -> list[int]:
        x = image(m)
        q = m.tensors[x].quantization
        size = m.tensor((2,), dtype="INT32", data=np.array([12, 10], np.int32))
        y = m.tensor((1, 12, 10, 11), scale=q.scale, zero_point=q.zeroPoint)
        return [m.operator("RESIZE_BILINEAR", [x, size], y, schema.ResizeBilinearOptionsT())]

    (item,) = exact(tmp_path, build).cpu_operators
    assert item.reason == "resizing of [1, 6, 5, 11]; the accelerator repeats a single pixel only"


def test_sums_without_dimensions_and_of_hardly_anything(tmp_path):
    """A number without dimensions has no loop to schedule; an output scale may leave no bit of the operands."""

    def build(m: ModelWriter) -> list[int]:
        x = m.input((1, 3, 2, 4))
        pooled = m.pool(x, "AVERAGE", (3, 2), (1, 1))
        axes = m.tensor((4,), dtype="INT32", data=np.arange(4, dtype=np.int32))
        mean = m.operator("MEAN", [x, axes], m.tensor((), scale=0.03, zero_point=5), schema.ReducerOptionsT())
        return [m.binary("ADD", mean, mean, 0.05), m.binary("ADD", pooled, pooled, m.scale(x) * 8000)]

    exact(tmp_path, build, native=True)
