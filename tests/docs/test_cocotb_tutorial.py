"""The test that docs/cocotb.md writes, as written, on a small network in the place of keyword spotting."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.artifacts import make_artifact
from tests.graphs import random_graph

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.verilator
def test_the_tutorial_runs(tmp_path):
    text = (ROOT / "docs" / "cocotb.md").read_text()
    code = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[0]
    (tmp_path / "test_kws.py").write_text(code)
    make_artifact(tmp_path / "build" / "kws", random_graph(np.random.default_rng(2), ["conv", "conv"]))
    (command,) = re.findall(r"^pytest (test_kws\.py)$", text, re.MULTILINE)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    # The simulator runs for a second, and compiles for a minute.
    environment |= {"OPT_FAST": "-O0", "OPT_SLOW": "-O0", "OPT_GLOBAL": "-O0"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
