"""Every operator of the table alone in a file, on the accelerator, against LiteRT: odd shapes, extreme quantization."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from nnloom.arch.reference import evaluate
from nnloom.compiler.ops import OPERATORS
from nnloom.compiler.ops.lookup import lookup_layer
from nnloom.runtime import InferenceSession
from tests.compiler.litert import compile_without_code
from tests.fuzz.check import Checker
from tests.fuzz.generate import Built
from tests.one_operator import read
from tests.operator_cases import cases

COUNT = 30
LEAST = {
    "ADD": 1,
    "DIV": 0,
    "MAXIMUM": 0,
    "MINIMUM": 0,
    "MUL": 3,
    "NEG": 0,
    "PAD": 1,
    "PADV2": 0,
    "QUANTIZE": 1,
    "RESIZE_BILINEAR": 0,
    "SQUARED_DIFFERENCE": 0,
    "SUB": 3,
}
"""of them at least on the accelerator, if not 4; tests of their own have more of these"""
CONFIGS = ("2x16x9", "8x5 with larger memories", "2x8x5")
OWN = ("TABLE",)
"""Operators of the compiler's graph that no file holds"""
MOVED = ("GATHER", "PACK", "SLICE", "SPLIT", "SPLIT_V", "STRIDED_SLICE", "TRANSPOSE", "UNPACK")
"""Operators that may have no layer of their own"""


@pytest.mark.parametrize(
    "kind", [kind for kind, e in OPERATORS.items() if e.layer and kind not in ("SUM", *OWN, *MOVED)]
)
def test_alone(tmp_path, monkeypatch, kind):
    """Also those that the accelerator would not run alone."""
    entry = dataclasses.replace(OPERATORS[kind], follows=False)
    monkeypatch.setattr("nnloom.compiler.partition.OPERATORS", {**OPERATORS, kind: entry})
    seen: Counter[str] = Counter()
    tried = cases(13, COUNT, [kind])
    if OPERATORS[kind].layer is lookup_layer:
        # Functions of float32 are another matter.
        tried = [case for case in tried if "float" not in case.name]
    for number, case in enumerate(tried):
        verdict = Checker(tmp_path).check(
            Built(case.model, case.model, ()), configs=[CONFIGS[number % len(CONFIGS)]], native=False, seed=number
        )
        assert verdict.kind != "fault", (case.name, verdict)
        seen["accelerated" if verdict.accelerated else verdict.kind] += 1
    assert seen["accelerated"] >= LEAST.get(kind, 4), seen


def test_sum_alone(tmp_path):
    """LiteRT's reference kernel reads int8 as uint8: the definition is ours, which uint8 proves."""
    accelerated = 0
    for number, case in enumerate(cases(13, COUNT, ["SUM"])):
        (tmp_path / "model.tflite").write_bytes(case.model)
        report = compile_without_code(tmp_path / "model.tflite", tmp_path / "artifact", CONFIGS[number % len(CONFIGS)])
        accelerated += any(layer["target"] == "accelerator" for layer in report["layers"])
        assert report["exact"] == (read(case.model)[0].outputs[0].dtype not in ("int8", "int16"))
        with InferenceSession(tmp_path / "artifact", "cpu", native=False) as session:
            (got,) = session.run(None, dict(zip((i.name for i in session.get_inputs()), case.inputs, strict=True)))
        operation, operands = read(case.model)
        (want,) = evaluate(operation, [*case.inputs, *(v for v in operands if v is not None)])
        np.testing.assert_array_equal(got, want, err_msg=case.name)
    assert accelerated >= 4
