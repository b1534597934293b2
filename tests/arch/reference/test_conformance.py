"""The references against LiteRT: a few cases of every operator here, all by `python -m tests.conformance --all`."""

from __future__ import annotations

import numpy as np
import pytest

from nnloom.arch.reference import REFERENCES, evaluate
from tests.conformance import check
from tests.one_operator import interpret, read
from tests.operator_cases import GENERATORS, cases


def test_every_reference_has_cases() -> None:
    assert set(REFERENCES) == set(GENERATORS)


@pytest.mark.parametrize("kind", GENERATORS)
def test_reference_equals_litert(kind: str) -> None:
    outcomes = [(case.name, check(case)) for case in cases(1, 12, [kind])]
    assert [o for o in outcomes if o[1].status == "wrong"] == []
    assert any(outcome.status == "passed" for _, outcome in outcomes)


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
