"""What references refuse: operators and types as unsupported, values as wrong inputs."""

from __future__ import annotations

import numpy as np
import pytest

from nnloom.arch.errors import InputError, UnsupportedOperatorError
from nnloom.arch.operation import Operation, Quantization, TensorType
from nnloom.arch.reference import evaluate


def int8(*shape: int, scale: float = 0.1, zero_point: int = 0) -> TensorType:
    return TensorType(shape, "int8", Quantization.per_tensor(scale, zero_point))


PER_CHANNEL = TensorType((3,), "int8", Quantization((1, 2, 3), (0, 0, 0), 0))
ZEROS, ONES = np.zeros(3, np.int8), np.ones(3, np.int8)


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (Operation("WHERE", (int8(3),), (int8(3),)), "WHERE: no reference implementation"),
        (Operation("RELU", (TensorType((3,), "int64"),), (int8(3),)), "RELU: int64 as operand 0 not supported"),
        (Operation("RELU", (TensorType((3,), "int8"),), (int8(3),)), "RELU: int8 without quantization not supported"),
        (Operation("TANH", (int8(3),), (PER_CHANNEL,)), "per channel"),
        (Operation("MAX_POOL_2D", (int8(1, 1, 3, 1),), (int8(1, 1, 3, 1),),
                   {"window": (1, 1), "strides": (1, 1), "padding": (0, 0, 0, 0), "activation": "TANH"}),
         "MAX_POOL_2D: fused activation TANH not supported"),
    ],
)  # fmt: skip
def test_what_is_not_supported(operation: Operation, message: str) -> None:
    t = operation.inputs[0]
    assert t
    with pytest.raises(UnsupportedOperatorError, match=message):
        evaluate(operation, [np.zeros(t.shape, t.dtype)])


@pytest.mark.parametrize(
    ("operation", "inputs", "message"),
    [
        (Operation("DIV", (int8(3), int8(3)), (int8(3),), {"activation": "NONE"}), [ONES, ZEROS], "DIV: division by 0"),
        (Operation("RSQRT", (int8(3),), (int8(3),)), [-ONES], "RSQRT: a negative value"),
        (
            Operation("GATHER", (int8(3), TensorType((1,), "int32")), (int8(1),), {"axis": 0, "batch_dims": 0}),
            [ONES, np.array([3], np.int32)],
            "GATHER: index beyond the 3 of axis 0",
        ),
    ],
)
def test_values_for_which_an_operator_is_not_defined(operation: Operation, inputs: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(operation, inputs)


def test_results_own_their_memory() -> None:
    x = np.arange(6, dtype=np.int8).reshape(2, 3)
    (result,) = evaluate(Operation("RESHAPE", (int8(2, 3),), (int8(6),)), [x])
    result[:] = 0
    assert x.any()
