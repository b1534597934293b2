"""The example that goes from a float network to exact bits, as written."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from tests.onnx_models import without_code

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "float_to_exact.py"


def test_float_to_exact(tmp_path, capsys, monkeypatch):
    main = runpy.run_path(str(EXAMPLE))["main"]
    # The portable runtime does what the library would.
    monkeypatch.setattr("nnloom.runtime.session.was_compiled_here", lambda digest: False)
    with without_code():
        main([str(tmp_path / "stripes"), "--device", "model", "--tests", "20"])
    out = capsys.readouterr().out
    assert "0 of 80 scores differ from ONNX Runtime's" in out and "exact: True" in out
    proved, channels = map(int, re.search(r"(\d+) of (\d+) channels proved", out).groups())
    assert proved == channels == 16 + 32 + 4
    right = dict(re.findall(r"^(.*): ([\d.]+) % right$", out, re.M))
    assert set(right) == {"float", "ONNX Runtime, int8", "model"} and min(map(float, right.values())) >= 90
