"""The examples of handwritten digits: from training to the golden model, in the words of their page."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from nnloom.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "examples" / "digits" / "README.md"


def _block(index: int, folder: Path) -> list[list[str]]:
    """Commands of a block of the page, but for installations and place and route, with a folder for build/digits."""
    (*bodies,) = re.findall(r"^```\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line.replace("build/digits", str(folder)) for line in bodies[index].splitlines()]
    return [shlex.split(line, comments=True) for line in lines if not line.startswith(("pip", "nnloom build"))]


def _accuracies(commands: list[list[str]], capsys: pytest.CaptureFixture[str]) -> list[float]:
    """Run commands, the last of which evaluates: what it measures of each network."""
    for words in commands:
        if words[0] == "python":
            subprocess.run([sys.executable, str(ROOT / words[1]), *words[2:]], check=True)
        else:
            capsys.readouterr()
            assert main([*words[1:], "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["equals_reference"]
    return [e["value"] for e in result["evaluations"]]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torch") is None, reason="NOT tested: pip install 'nnloom[torch]'")
def test_from_torch(tmp_path, capsys):
    on_hardware, in_onnx_runtime, as_float = _accuracies(_block(0, tmp_path), capsys)
    assert on_hardware == in_onnx_runtime >= 0.98 and as_float >= 0.98


@pytest.mark.slow
@pytest.mark.skipif(find_spec("brevitas") is None, reason="NOT tested: pip install brevitas onnxoptimizer")
@pytest.mark.parametrize("bits", [8, 4])
def test_with_quantization_in_the_loop(bits, tmp_path, capsys):
    train8, train4, *rest = _block(1, tmp_path)
    rest = [[word.replace("_w8", f"_w{bits}") for word in words] for words in rest]
    on_hardware, in_onnx_runtime = _accuracies([train8 if bits == 8 else train4, *rest], capsys)
    assert on_hardware == in_onnx_runtime >= 0.97
    report = json.loads((tmp_path / f"artifact_w{bits}" / "report.json").read_text())
    assert report["rounding"]["proved"] == report["rounding"]["channels"] == 154
