"""Builds of simulators where something is missing or the place is unusual."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnloom.arch.errors import BuildError, ToolMissingError
from nnloom.arch.isa import HostAddress
from nnloom.sim.build import place_runtime, run_tool, run_verilator
from nnloom.sim.rtl import RtlSimulator
from tests.artifacts import SMALL

TINY = replace(SMALL, lanes=4, taps=3, requant_units=1, activation_bytes=2048, weight_words=64, overlap=False)


@pytest.mark.slow
@pytest.mark.verilator
def test_a_folder_with_a_space(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "my cache"))
    with RtlSimulator(TINY) as simulator:
        simulator.read_words(np.array([HostAddress.REGISTERS], np.uint32))
    (entry,) = (tmp_path / "my cache" / "nnloom" / "sim").iterdir()
    assert not (entry / "obj").exists()


@pytest.mark.verilator
def test_a_temporary_folder_with_a_space_is_told(tmp_path, monkeypatch):
    folder = tmp_path / "a b"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(BuildError, match=r"make cannot handle the space in .*; set TMPDIR to a folder without one"):
        run_verilator(folder, toplevel="top", prefix="Vtop", options=[])


@pytest.mark.verilator
@pytest.mark.parametrize("missing", ["perl", "make", "g++"])
def test_a_missing_tool_is_named(tmp_path, monkeypatch, missing):
    for name in {"perl", "make", "g++"} - {missing}:
        os.symlink(shutil.which("true"), tmp_path / name)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissingError, match=rf"{missing[0]}.* is not installed.*; apt-get install {missing[0]}"):
        run_verilator(tmp_path, toplevel="top", prefix="Vtop", options=[])


@pytest.mark.verilator
def test_the_library_of_the_simulator_is_compiled_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiled = []

    def place(name: str, *variables: str, flags: str = "-g") -> Path:
        objects = tmp_path / name
        objects.mkdir()
        (objects / "Vtop_classes.mk").write_text("VM_GLOBAL_FAST += \\\n  verilated \\\n  verilated_vpi \\\n\n")
        (objects / "Vtop.mk").write_text(f"VM_USER_CFLAGS = \\\n  {flags} \\\n\nVM_USER_LDLIBS = \\\n  -L{name} \\\n\n")

        def run(goals: list[str]) -> None:
            compiled.append(name)
            for goal in goals:
                (objects / goal).write_text(name)

        place_runtime(objects, "Vtop", ["make", *variables], run)
        return objects

    place("first")
    second = place("second")
    place("third", flags="-O0")
    place("waves", "VM_TRACE=1")
    assert compiled == ["first", "third"]
    assert {path.name: path.read_text() for path in second.glob("*.o")} == {
        "verilated.o": "first",
        "verilated_vpi.o": "first",
    }


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo all is well; echo '%Error: x.v:1: bad' ; exit 1", r"\(%Error: x.v:1: bad\); see"),
        ("echo 'make: *** Unsupported.  Stop.'; echo make: Leaving; exit 2", r"\(make: \*\*\* Unsupported"),
        ("echo last words; exit 1", r"\(last words\); see"),
        ("echo 'ld: No space left on device'; exit 1", "no space left on the disk of"),
    ],
)
def test_a_failed_build_says_why(tmp_path, script, message):
    with pytest.raises(BuildError, match=message):
        run_tool(["sh", "-c", script], folder=tmp_path, log=tmp_path / "log")


def test_a_command_that_is_not_there(tmp_path: Path):
    with pytest.raises(ToolMissingError, match="nnloom-none is not installed"):
        run_tool(["nnloom-none"], folder=tmp_path, log=tmp_path / "log")
