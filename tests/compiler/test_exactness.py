"""Which operators outside of the accelerator are refused, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ai_edge_litert import schema_py_generated as schema

from nnloom import boards
from nnloom.arch.errors import UnsupportedOperatorError
from nnloom.compiler.exactness import check_exactness
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
    return check_exactness(partition(read_model(path), boards.get("ulx3s-85f").config), **how)


def test_operators_that_are_not_defined_for_all_values_are_taken(tmp_path: Path) -> None:
    """A division: 0 is refused when it comes."""
    assert check(tmp_path, "DIV", 2, schema.DivOptionsT(), strict=True) == {}


def test_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperatorError, match=r"LOGICAL_NOT.*int8 as operand 0"):
        check(tmp_path, "LOGICAL_NOT", 1, schema.LogicalNotOptionsT())


@pytest.mark.parametrize(("count", "end"), [(2, ""), (10, ""), (12, "; and 2 more")])
def test_all_that_nothing_runs_is_named_at_once(tmp_path: Path, count: int, end: str) -> None:
    model = ModelWriter(0)
    x = model.conv(model.input((1, 4, 4, 3)), 4)
    outs = [
        model.operator(
            "LOGICAL_NOT",
            [x],
            model.tensor(model.shape(x), scale=0.1, zero_point=0),
            schema.LogicalNotOptionsT(),
        )
        for _ in range(count)
    ]
    path = tmp_path / "model.tflite"
    path.write_bytes(model.finish(*outs))
    with pytest.raises(UnsupportedOperatorError) as raised:
        check_exactness(partition(read_model(path), boards.get("ulx3s-85f").config))
    text = str(raised.value)
    assert text.startswith("model: neither accelerator nor CPU can run LOGICAL_NOT '") and "\n" not in text
    assert text.count("int8 as operand 0") == min(count, 10)
    assert text.endswith(f"{end}; leave them out of the model") and ("more;" in text) == bool(end)
