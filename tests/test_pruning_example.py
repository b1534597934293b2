"""The example of pruning, as written: training to artifact, and the table that it prints."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from tests.onnx_models import without_code

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "pruning" / "prune_digits.py"


@pytest.mark.slow
def test_pruning_example(tmp_path, capsys, monkeypatch):
    main = runpy.run_path(str(EXAMPLE))["main"]
    # The portable runtime does what the library would.
    monkeypatch.setattr("nnloom.runtime.session.was_compiled_here", lambda digest: False)
    with without_code():
        main([str(tmp_path)])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0].strip() for row in rows] == ["0 %", "25 %", "50 %", "75 %"]
    macs, cycles = ([int(re.search(r"\((\d+) %\)", row[i])[1]) for row in rows] for i in (1, 3))
    assert all(left <= 100 - target for left, target in zip(macs, (0, 25, 50, 75), strict=True))
    assert cycles == sorted(cycles, reverse=True) and cycles[3] < 45
    for row in rows:
        floating, int8, hardware = (float(cell.strip(" %")) for cell in row[5:])
        assert int8 == hardware >= floating - 2 and hardware >= 94


def test_readme_shows_four_targets():
    """The table in the README is one that the script has written."""
    text = EXAMPLE.with_name("README.md").read_text()
    assert re.findall(r"^\| (\d+) % \|", text, re.M) == ["0", "25", "50", "75"]
