"""The references against LiteRT: a few cases of every operator here, all by `python -m tests.conformance --all`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from nnloom.arch.operation import Quantization, TensorType
from nnloom.arch.reference import REFERENCES, evaluate
from tests.conformance import check, check_compiled
from tests.one_operator import Operand, Spec, interpret, read, write
from tests.operator_cases import GENERATORS, cases
from tests.tflite_models import ModelWriter


def test_every_reference_has_cases() -> None:
    # Files of a form of their own: tests/compiler/test_sparse.py, test_detection.py
    assert set(REFERENCES) == {*GENERATORS, "DENSIFY", "TFLite_Detection_PostProcess"}


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("kind", GENERATORS)
def test_reference_equals_litert(kind: str) -> None:
    outcomes = [(case.name, check(case)) for case in cases(1, 12, [kind])]
    assert [o for o in outcomes if o[1].status == "wrong"] == []
    assert any(outcome.status == "passed" for _, outcome in outcomes)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("kind", ["ADD", "BATCH_MATMUL", "FULLY_CONNECTED", "MUL", "SQUARE", "TRANSPOSE_CONV"])
def test_float_products_beyond_float32_are_infinite_without_a_word(kind: str) -> None:
    compared = 0
    for case in cases(3, 40, [kind]):
        op, _ = read(case.model)
        if {t.dtype for t in (*op.inputs, *op.outputs) if t} - {"float32", "int32"} or op.outputs[0].dtype == "int32":
            continue
        large = [np.clip(x, -1, 1) * np.float32(3e38) if x.dtype == np.float32 else x for x in case.inputs]
        outcome = check(replace(case, inputs=large))
        assert outcome.status in ("passed", "refused"), (case.name, outcome)
        compared += outcome.status == "passed"
    assert compared


def test_sum_of_int8_is_within_one_of_the_kernels_that_read_int8() -> None:
    compared = 0
    for case in cases(2, 30, ["SUM"]):
        op, values = read(case.model)
        if op.inputs[0] is None or op.inputs[0].dtype not in ("int8", "int16"):
            continue
        (got,) = evaluate(op, [case.inputs[0], values[1]])
        (want,) = interpret(case.model, case.inputs, reference_kernels=False)
        assert np.abs(got.astype(int) - want).max() <= 1
        compared += 1
    assert compared > 5


@pytest.mark.parametrize("low", [-64.0, -63.5, -10.0, 0.0])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_hybrid_products_round_ties_of_activations(asymmetric: bool, low: float) -> None:
    high = low + 127.5 if asymmetric else 63.5  # the scale is 1/2
    x = np.arange(low, high + 0.25, 0.25, dtype=np.float32)[None]
    weights = np.random.default_rng(0).integers(-127, 128, (40, x.size), np.int8)
    q = Quantization.per_tensor(0.5, 0)
    spec = Spec(
        "FULLY_CONNECTED",
        [Operand(TensorType(x.shape, "float32")), Operand(TensorType(weights.shape, "int8", q), weights)],
        [TensorType((1, 40), "float32")],
        {"asymmetric_quantize_inputs": asymmetric},
    )
    op, _ = read(write(spec))
    np.testing.assert_array_equal(evaluate(op, [x, weights])[0], interpret(write(spec), [x])[0])


@pytest.mark.parametrize("alpha", [-0.5, -0.25, -1.5, -0.3, 0.5])
def test_leaky_relu_rounds_ties_of_a_negative_alpha(alpha: float) -> None:
    w = ModelWriter()
    x = w.tensor((1, 256), scale=1.0, zero_point=0)
    w.inputs.append(x)
    options = schema.LeakyReluOptionsT()
    options.alpha = alpha
    data = w.finish(w.operator("LEAKY_RELU", [x], w.tensor((1, 256), scale=1.0, zero_point=0), options))
    values = np.arange(-128, 128).astype(np.int8)[None]
    op, _ = read(data)
    np.testing.assert_array_equal(evaluate(op, [values])[0], interpret(data, [values])[0])


@pytest.mark.parametrize("kind", GENERATORS)
def test_compiled_operator_equals_litert(kind: str, tmp_path: Path) -> None:
    """From the file to the runtime without TVM and the golden model; `--compiled` has CPU code, and more cases."""
    outcomes = [(case.name, check_compiled(case, tmp_path, ["portable"])) for case in cases(3, 2, [kind])]
    assert [o for o in outcomes if o[1].status not in ("passed", "differs")] == []
