"""Sparse constants: LiteRT's DENSIFY as reference, damaged ones refused."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from nnloom.arch.errors import ModelError
from nnloom.compiler.frontend import read_model
from nnloom.compiler.simplify import simplify
from nnloom.sim.litert import LiteRtReference
from tests.tflite_models import ModelWriter

FULL, COMPRESSED = 0, 1


def vector(kind: str, values: list[int]):
    item = getattr(schema, f"{kind}VectorT")()
    item.values = np.array(values, {"Int32": np.int32, "Uint16": np.uint16, "Uint8": np.uint8}[kind])
    return getattr(schema.SparseIndexVector, f"{kind}Vector"), item


def dimension(size: int = 0, segments: list[int] | None = None, indices: list[int] | None = None, kind: str = "Int32"):
    item = schema.DimensionMetadataT()
    item.format, item.denseSize = FULL, size
    if segments is not None and indices is not None:
        item.format = COMPRESSED
        item.arraySegmentsType, item.arraySegments = vector(kind, segments)
        item.arrayIndicesType, item.arrayIndices = vector(kind, indices)
    return item


def compressed(dense: NDArray, block: tuple[int, int], kind: str) -> tuple[NDArray, list]:
    """Rows of blocks in full, columns of blocks compressed, blocks in full: values, and the dimensions."""
    rows, columns = (n // b for n, b in zip(dense.shape, block, strict=True))
    blocks = dense.reshape(rows, block[0], columns, block[1]).transpose(0, 2, 1, 3)
    used = blocks.any((2, 3))
    segments = [0, *np.cumsum(used.sum(1)).tolist()]
    indices = np.nonzero(used)[1].tolist()
    dimensions = [dimension(rows), dimension(segments=segments, indices=indices, kind=kind)]
    if block != (1, 1):
        dimensions += [dimension(block[0]), dimension(block[1])]
    return blocks[used], dimensions


def model(dense: NDArray, block: tuple[int, int], kind: str, *, lost: int = 0) -> bytes:
    """x + DENSIFY(constant); `lost` values are missing at the end."""
    m = ModelWriter()
    x = m.input(dense.shape, dtype="FLOAT32")
    values, dimensions = compressed(dense, block, kind)
    stored = m.tensor(dense.shape, dtype="FLOAT32", data=values.reshape(-1)[: values.size - lost])
    sparsity = schema.SparsityParametersT()
    sparsity.traversalOrder = np.arange(2 if block == (1, 1) else 4, dtype=np.int32)
    sparsity.blockMap = np.arange(0 if block == (1, 1) else 2, dtype=np.int32)
    sparsity.dimMetadata = dimensions
    m.tensors[stored].sparsity = sparsity
    options = schema.DensifyOptionsT()
    full = m.operator("DENSIFY", [stored], m.tensor(dense.shape, dtype="FLOAT32"), options)
    return m.finish(m.operator("ADD", [x, full], m.tensor(dense.shape, dtype="FLOAT32"), schema.AddOptionsT()))


def pattern(block: tuple[int, int]) -> NDArray[np.float32]:
    rng = np.random.default_rng(3)
    used = np.kron(rng.random((8 // block[0], 12 // block[1])) < 0.4, np.ones(block))
    return (used * rng.normal(size=(8, 12))).astype(np.float32)


@pytest.mark.parametrize("kind", ["Int32", "Uint16", "Uint8"])
@pytest.mark.parametrize("block", [(1, 1), (1, 4), (4, 1), (2, 2)])
def test_the_values_are_those_of_litert(tmp_path, block, kind):
    path = tmp_path / "m.tflite"
    path.write_bytes(model(pattern(block), block, kind))
    graph = simplify(read_model(path))
    (add,) = graph.nodes
    (constant,) = (graph.constant(i) for i in add.inputs if graph.constant(i) is not None)
    (want,) = LiteRtReference(path).run(np.zeros((8, 12), np.float32))
    np.testing.assert_array_equal(constant, want)
    np.testing.assert_array_equal(constant, pattern(block))


def test_missing_values_are_refused(tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(model(pattern((1, 4)), (1, 4), "Int32", lost=3))
    with pytest.raises(ModelError, match=r"damaged TFLite file .sparse tensor with"):
        read_model(path)
