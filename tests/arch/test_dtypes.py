"""Names of types have one home."""

import ast
from pathlib import Path

import numpy as np
import pytest

from nnloom.arch.dtypes import INT4, INT8, INT9, LIMITS, UINT8, held_as

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("arch", "boards", "cli", "compiler", "hw", "runtime", "sim")
# What users write, and names of other tools.
ELSEWHERE = {
    "arch/dtypes.py",
    "cli/main.py",
    "compiler/quantize/api.py",
    "compiler/quantize/tflite_file.py",
    "compiler/zoo.py",
}


@pytest.mark.parametrize("dtype", LIMITS)
def test_limits_are_those_of_the_type(dtype):
    bits = int(dtype.lstrip("uint"))
    low = 0 if dtype == UINT8 else -(1 << (bits - 1))
    assert LIMITS[dtype] == (low, low + (1 << bits) - 1)
    assert np.iinfo(held_as(dtype)).min <= low


def test_what_numpy_lacks_is_held_in_the_next_larger_type():
    assert [held_as(t) for t in (INT4, INT8, INT9, UINT8, "float32")] == ["int8", "int8", "int16", "uint8", "float32"]


def test_code_names_eight_bit_types_by_the_constants():
    written = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            if name in ELSEWHERE:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and node.value in {INT4, INT8, INT9, UINT8}:
                    written.append(f"{name}:{node.lineno}")
    assert written == []
