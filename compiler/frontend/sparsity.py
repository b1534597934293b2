"""Sparse constants of TFLite files, read into dense arrays.

The format is that of TFLite's `SparsityParameters`: dimensions in the order of storage, blocks as dimensions behind the
tensor's own; each dimension is stored in full or as compressed rows (segments and indices). After LiteRT's
`FormatConverter`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["densify"]


@dataclass(frozen=True)
class _Dimension:
    size: int
    """if it is stored in full"""
    segments: NDArray[np.int64] | None
    indices: NDArray[np.int64] | None


def densify(values: NDArray, shape: Sequence[int], sparsity: Any) -> NDArray:
    """The tensor of `shape` whose stored values are `values`, in their order.

    Raises
    ------
    ValueError, IndexError
        If they do not describe one.
    """
    order = [int(sparsity.TraversalOrder(i)) for i in range(sparsity.TraversalOrderLength())]
    block_map = [int(sparsity.BlockMap(i)) for i in range(sparsity.BlockMapLength())]
    dimensions = [_dimension(sparsity.DimMetadata(i)) for i in range(sparsity.DimMetadataLength())]
    rank = len(shape)
    if sorted(order) != list(range(rank + len(block_map))) or len(dimensions) != len(order):
        raise ValueError("sparse tensor with an impossible order of dimensions")
    places = _places(dimensions)
    if len(places) != len(values):
        raise ValueError(f"sparse tensor with {len(values)} values in {len(places)} places")
    index = [np.zeros(len(places), np.int64) for _ in shape]
    block = np.ones(rank, np.int64)
    for position, axis in enumerate(block_map):
        level = order.index(rank + position)
        block[axis] = dimensions[level].size
        index[axis] += places[:, level]
    for axis in range(rank):
        index[axis] += places[:, order.index(axis)] * block[axis]
    dense = np.zeros(shape, values.dtype)
    dense[tuple(index)] = values
    return dense


def _places(dimensions: Sequence[_Dimension]) -> NDArray[np.int64]:
    """Where each stored value belongs: [values, dimensions in the order of storage]."""
    places = np.zeros((1, len(dimensions)), np.int64)
    row = np.zeros(1, np.int64)
    for level, dimension in enumerate(dimensions):
        if dimension.segments is None or dimension.indices is None:
            counts = np.full(len(row), dimension.size)
            first = row * dimension.size
        else:
            counts = dimension.segments[row + 1] - dimension.segments[row]
            first = dimension.segments[row]
        if (counts < 0).any():
            raise ValueError("sparse tensor with segments that go back")
        places = np.repeat(places, counts, axis=0)
        within = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
        row = np.repeat(first, counts) + within
        places[:, level] = within if dimension.indices is None else dimension.indices[row]
    return places


def _dimension(metadata: Any) -> _Dimension:
    if metadata.Format() == 0:
        return _Dimension(int(metadata.DenseSize()), None, None)
    return _Dimension(
        0,
        _vector(metadata.ArraySegmentsType(), metadata.ArraySegments()),
        _vector(metadata.ArrayIndicesType(), metadata.ArrayIndices()),
    )


def _vector(kind: int, table: Any) -> NDArray[np.int64]:
    """One of the schema's three vectors of indices."""
    name = {1: "Int32Vector", 2: "Uint16Vector", 3: "Uint8Vector"}[kind]
    vector = getattr(importlib.import_module(f"tflite.{name}"), name)()
    vector.Init(table.Bytes, table.Pos)
    return np.asarray(vector.ValuesAsNumpy(), np.int64)
