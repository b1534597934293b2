"""Operators that move values by indices, and orders and sums along an axis, as ONNX has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...operation import Operation
from ..support import operand, refuse_values

__all__ = ["cumulative_sum", "gather", "gather_elements", "gather_nd", "scatter_elements", "scatter_nd", "top_k"]


def gather(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """The parts along an axis that operand 1 lists; below 0 they count from the end."""
    x, axis = operand(op, inputs, 0), int(op.options["axis"])
    return [np.take(x, _indices(op, inputs, 1, x.shape[axis]), axis=axis)]


def _indices(op: Operation, inputs: Sequence[NDArray | None], place: int, size: int | NDArray) -> NDArray[np.int64]:
    """Indices from the front; size: how many there are, of all or of each of the last axis."""
    index = operand(op, inputs, place).astype(np.int64)
    if index.size and ((index < -np.asarray(size)) | (index >= size)).any():
        refuse_values(op, f"index beyond the {np.asarray(size).tolist()} that there are")
    return np.where(index < 0, index + size, index)


def gather_elements(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """For each index, the element that it says along an axis."""
    x = operand(op, inputs, 0)
    axis = int(op.options["axis"]) % x.ndim
    index = _indices(op, inputs, 1, x.shape[axis])
    return [x[_along(index, axis)]]


def _along(index: NDArray[np.int64], axis: int) -> tuple[NDArray[np.int64], ...]:
    """Where the elements are that indices choose along an axis, each in its own place of the others."""
    places = np.indices(index.shape).astype(np.int64)
    places[axis] = index
    return tuple(places)


def gather_nd(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """The parts of which the last axis of operand 1 says where they begin; the first `batch_dims` axes are shared."""
    x, batch = operand(op, inputs, 0), int(op.options.get("batch_dims", 0))
    count = operand(op, inputs, 1).shape[-1]
    index = _indices(op, inputs, 1, np.array(x.shape[batch : batch + count]))
    shared = tuple(np.indices(index.shape[:-1])[i] for i in range(batch))
    return [x[(*shared, *np.moveaxis(index, -1, 0))]]


def scatter_elements(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Operand 0 with elements of operand 2 where operand 1 says along an axis."""
    x = operand(op, inputs, 0).copy()
    axis = int(op.options["axis"]) % x.ndim
    x[_along(_indices(op, inputs, 1, x.shape[axis]), axis)] = operand(op, inputs, 2)
    return [x]


def scatter_nd(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Operand 0 with parts of operand 2 where the last axis of operand 1 says."""
    x = operand(op, inputs, 0).copy()
    index = _indices(op, inputs, 1, np.array(x.shape[: operand(op, inputs, 1).shape[-1]]))
    x[tuple(np.moveaxis(index, -1, 0))] = operand(op, inputs, 2)
    return [x]


def top_k(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """The greatest or least values along an axis, in order, of equals the first; and where they are."""
    x, axis = operand(op, inputs, 0), int(op.options["axis"])
    keys = x.astype(np.float64) if x.dtype.kind == "f" else x.astype(np.int64)
    order = np.argsort(-keys if op.options.get("largest", True) else keys, axis=axis, kind="stable")
    index = np.take(order, np.arange(op.outputs[0].shape[axis]), axis=axis)
    return [np.take_along_axis(x, index, axis), index.astype(np.int64)]


def cumulative_sum(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Sums of all up to each along an axis, one after the other in the type of the operand."""
    x, axis = operand(op, inputs, 0), int(op.options["axis"])
    turned = np.flip(x, axis) if op.options.get("reverse") else x
    total = np.zeros_like(np.take(turned, 0, axis))
    sums = []
    for values in np.moveaxis(turned, axis, 0):
        sums.append(total if op.options.get("exclusive") else total + values)
        total = total + values
    result = np.stack(sums, axis)
    return [np.flip(result, axis) if op.options.get("reverse") else result]
