"""The example of several exits, as written: training to artifact, and each exit within its budget."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from tests.onnx_models import without_code

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "early_exits" / "exits_digits.py"


@pytest.mark.slow
@pytest.mark.verilator
@pytest.mark.parametrize("device", ["model", "sim"])
def test_early_exits_example(tmp_path, capsys, monkeypatch, device):
    """In RTL the example compares the cycles of each exit, too."""
    main = runpy.run_path(str(EXAMPLE))["main"]
    # The portable runtime does what the library would.
    monkeypatch.setattr("nnloom.runtime.session.was_compiled_here", lambda digest: False)
    with without_code():
        main([str(tmp_path), "--device", device, *(["--tests", "20"] if device == "sim" else [])])
    rows = [[cell.strip(" %") for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["early", "middle", "final"]
    cycles = [int(row[1].replace(",", "")) for row in rows]
    assert 3 * cycles[0] < cycles[1] and 2 * cycles[1] < cycles[2]
    for row in rows:
        floating, int8, hardware = map(float, row[3:])
        assert int8 == hardware >= floating - 5 and hardware >= 80
    assert float(rows[2][5]) >= 95


def test_readme_shows_three_exits():
    """The table in the README is one that the script has written."""
    text = EXAMPLE.with_name("README.md").read_text()
    assert re.findall(r"^\| (early|middle|final) \| [\d,]+ \|", text, re.M) == ["early", "middle", "final"]
