"""`examples/camera.py`: logic of one's own before the engine, simulated as its own documentation says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.artifacts import make_artifact
from tests.graphs import random_graph, tensor

EXAMPLE = Path(__file__).parents[1] / "examples" / "camera.py"


def run(artifact: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(EXAMPLE), str(artifact)], cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.verilator
def test_the_camera_answers_as_the_golden_model(tmp_path):
    rng = np.random.default_rng(3)
    make_artifact(tmp_path / "net", random_graph(rng, ["conv", "depthwise"], source=tensor(rng, "image", 9, 7, 3)))
    done = run(tmp_path / "net", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("outputs, those of the golden model") == 2


def test_it_says_what_it_cannot(tmp_path):
    rng = np.random.default_rng(3)
    make_artifact(tmp_path / "net", random_graph(rng, ["conv"], source=tensor(rng, "image", 4, 4, 5)))
    done = run(tmp_path / "net", tmp_path)
    assert done.returncode == 1 and "one input of three channels" in done.stderr
