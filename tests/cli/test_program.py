"""Loading a board with a stand-in of openFPGALoader, and what the doctor finds."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from nnloom.cli import main
from tests.artifacts import make_artifact
from tests.graphs import random_graph


@pytest.fixture
def artifact(tmp_path):
    path = tmp_path / "artifact"
    make_artifact(path, random_graph(np.random.default_rng(8), ["conv"]))
    return path


def stand_in(folder: Path, monkeypatch, script: str) -> Path:
    """openFPGALoader as the only command there is."""
    folder.mkdir()
    path = folder / "openFPGALoader"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return path


def test_program_calls_the_loader(artifact, tmp_path, monkeypatch, capsys):
    (artifact / "nnloom.bit").write_bytes(b"bits")
    log = tmp_path / "log"
    path = stand_in(tmp_path / "bin", monkeypatch, f'echo "$@" >> {log}')
    assert main(["program", str(artifact)]) == 0
    assert main(["program", str(artifact), "--flash", "--cable", "ft231X", "--json"]) == 0
    bitstream = str(artifact / "nnloom.bit")
    assert log.read_text().splitlines() == [
        f"--board ulx3s {bitstream}",
        f"--board ulx3s --cable ft231X --write-flash {bitstream}",
    ]
    answer = json.loads(capsys.readouterr().out.split("loaded\n")[1])
    assert answer["command"][0] == str(path)


def test_program_that_cannot(artifact, tmp_path, monkeypatch, capsys):
    assert main(["program", str(artifact)]) == 2
    assert f"no bitstream there; run 'nnloom build {artifact}' first" in capsys.readouterr().err
    (artifact / "nnloom.bit").write_bytes(b"bits")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["program", str(artifact)]) == 3
    assert "openFPGALoader is not installed" in capsys.readouterr().err
    stand_in(tmp_path / "bin", monkeypatch, "echo unable to open ftdi device >&2; exit 1")
    assert main(["program", str(artifact)]) == 1
    error = capsys.readouterr().err
    assert "cannot load ulx3s-85f (unable to open ftdi device); is the board connected" in error
    assert len(error.splitlines()) == 1


def test_doctor(tmp_path, monkeypatch, capsys):
    assert main(["doctor"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("g++ ")]
    assert "missing" not in line and "apt-get" not in line
    stand_in(tmp_path / "bin", monkeypatch, "echo openFPGALoader v0.12.1")
    os.symlink(shutil.which("true", path="/bin:/usr/bin"), tmp_path / "bin" / "perl")
    assert main(["doctor", "--json"]) == 0
    parts = {part["name"]: part for part in json.loads(capsys.readouterr().out)["parts"]}
    assert parts["openFPGALoader"]["version"] == "0.12.1" and parts["g++"]["version"] is None
    assert parts["g++"]["install"] == "apt-get install g++"
    assert parts["amaranth"]["version"].startswith("0.5")
