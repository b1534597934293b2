"""Which operators outside of the accelerator are refused, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ai_edge_litert import schema_py_generated as schema

from nnloom import boards
from nnloom.arch.errors import UnsupportedOperatorError
from nnloom.compiler.exactness import check_cpu_operators
from nnloom.compiler.frontend import read_model
from nnloom.compiler.partition import partition
from tests.tflite_models import ModelWriter


def check(tmp_path: Path, kind: str, operands: int, options: Any, **how: bool) -> dict[str, str]:
    """A convolution, and an operator on its output."""
    model = ModelWriter(0)
    x = model.conv(model.input((1, 4, 4, 3)), 4)
    out = model.operator(kind, [x] * operands, model.tensor(model.shape(x), scale=0.1, zero_point=0), options)
    path = tmp_path / "model.tflite"
    path.write_bytes(model.finish(out))
    return check_cpu_operators(partition(read_model(path), boards.get("ulx3s-85f").config), **how)


def test_operators_that_are_not_defined_for_all_values_are_taken(tmp_path: Path) -> None:
    """A division: 0 is refused when it comes."""
    assert check(tmp_path, "DIV", 2, schema.DivOptionsT(), strict=True) == {}


def test_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperatorError, match=r"LOGICAL_NOT.*int8 as operand 0"):
        check(tmp_path, "LOGICAL_NOT", 1, schema.LogicalNotOptionsT())
