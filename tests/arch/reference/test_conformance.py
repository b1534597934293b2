"""The references against LiteRT: a few cases of every operator here, all by `python -m tests.conformance --all`."""

from __future__ import annotations

import pytest

from nnloom.arch.reference import REFERENCES
from tests.conformance import check
from tests.operator_cases import GENERATORS, cases


def test_every_reference_has_cases() -> None:
    assert set(REFERENCES) == set(GENERATORS)


@pytest.mark.parametrize("kind", GENERATORS)
def test_reference_equals_litert(kind: str) -> None:
    outcomes = [(case.name, check(case)) for case in cases(1, 12, [kind])]
    assert [o for o in outcomes if o[1].status == "wrong"] == []
    assert any(outcome.status == "passed" for _, outcome in outcomes)
