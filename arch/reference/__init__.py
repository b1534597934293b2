"""NumPy references of operators: what every other implementation must reproduce bit for bit.

`evaluate` computes an operator as the TFLite reference kernels (LiteRT `BUILTIN_REF`) do. It is used where there is no
TVM, where an operator has no CPU code of its own, to fill the tables of operators on one int8 value, to fold constants,
and as the definition in tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import UnsupportedOperatorError
from ..operation import Operation

__all__ = ["REFERENCES", "Reference", "evaluate"]

Reference = Callable[[Operation, Sequence[NDArray | None]], Sequence[NDArray]]
"""The operator and its operands, as NumPy arrays of the shapes and types that it states -> its outputs."""

REFERENCES: dict[str, Reference] = {}


def evaluate(op: Operation, inputs: Sequence[NDArray | None]) -> tuple[NDArray, ...]:
    """Compute an operator.

    Parameters
    ----------
    op
        The operator; its output types say what is returned.
    inputs
        An array for each operand, None where one is left out. They are not changed.

    Returns
    -------
    Arrays of the shapes and types of `op.outputs` that own their memory.

    Raises
    ------
    UnsupportedOperatorError
        If there is no reference for the operator, its types or its options; the message says which.
    """
    reference = REFERENCES.get(op.kind)
    if reference is None:
        raise UnsupportedOperatorError(f"{op.kind}: no reference implementation")
    results = reference(op, inputs)
    return tuple(
        np.array(value, dtype=_numpy_type(t.dtype)).reshape(t.shape)
        for value, t in zip(results, op.outputs, strict=True)
    )


def _numpy_type(dtype: str) -> str:
    return "int8" if dtype == "int4" else dtype
