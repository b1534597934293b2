"""Operators that move values by indices that are computed, as ONNX has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...operation import Operation
from ..support import operand, refuse_values

__all__ = ["gather"]


def gather(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """The parts along an axis that operand 1 lists; below 0 they count from the end."""
    x, index = operand(op, inputs, 0), operand(op, inputs, 1).astype(np.int64)
    axis = int(op.options["axis"])
    size = x.shape[axis]
    if index.size and (index.min() < -size or index.max() >= size):
        refuse_values(op, f"index beyond the {size} of axis {axis}")
    return [np.take(x, np.where(index < 0, index + size, index), axis=axis)]
