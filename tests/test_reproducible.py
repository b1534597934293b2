"""The same sources give the same bytes, in another process, another folder and with another seed of Python's hashes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MAKE = """
import hashlib, json, sys
from dataclasses import replace
from pathlib import Path
from nnloom.compiler import compile as compile_to_artifact
from nnloom.hw.accelerator import make_accelerator
from nnloom.hw.emit import emit_rtlil, emit_verilog, run_yosys
from nnloom.boards import get
from nnloom.boards.flow import system_rtlil
from tests.artifacts import SMALL

folder, model = Path(sys.argv[1]), sys.argv[2]
compile_to_artifact(model, output=folder / "artifact")
compile_to_artifact(model, output=folder / "compact", board="icebreaker")
tiny = replace(SMALL, lanes=4, taps=3, requant_units=1, activation_bytes=2048, weight_words=64, overlap=False)
(folder / "accelerator.v").write_text(emit_verilog(make_accelerator(tiny), "accelerator"))
(folder / "top.il").write_text(emit_rtlil(make_accelerator(tiny), "top"))
for name in ("icebreaker", "ulx3s-12f"):
    (folder / f"{name}.il").write_text(system_rtlil(get(name), get(name).config, 0))
run_yosys("read_rtlil top.il\\nsynth_ecp5 -top top -json netlist.json\\n", folder=folder)
(folder / "yosys.log").unlink()
files = sorted(path for path in folder.rglob("*") if path.is_file())
print(json.dumps({str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}))
"""


@pytest.mark.slow
@pytest.mark.model
def test_two_processes_make_the_same_bytes(tmp_path, model_path):
    model = str(model_path("keyword_spotting"))
    processes = []
    for seed in ("1", "4711"):
        folder = tmp_path / f"seed {seed}"
        folder.mkdir()
        env = {**os.environ, "PYTHONHASHSEED": seed, "TMPDIR": str(folder.with_name(f"tmp-{seed}"))}
        Path(env["TMPDIR"]).mkdir()
        command = [sys.executable, "-c", MAKE, str(folder), model]
        root = Path(__file__).resolve().parents[1]
        processes.append(subprocess.Popen(command, env=env, cwd=root, stdout=subprocess.PIPE, text=True))
    first, second = (json.loads(process.communicate()[0]) for process in processes)
    assert {name for name in first if first[name] != second.get(name)} == set()
    assert first.keys() == second.keys() and len(first) >= 15
    assert {"artifact/cpu.so", "artifact/manifest.json", "accelerator.v", "icebreaker.il", "netlist.json"} <= set(first)
