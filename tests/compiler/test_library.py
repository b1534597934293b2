"""What goes wrong while the CPU code is linked, each with its remedy."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from nnloom.arch.errors import BuildError, ToolMissingError
from nnloom.compiler.cpu.library import ROOM, export_library


class Executable:
    """Stands for TVM's: links an object file that does not exist, with the real compiler."""

    def export_library(self, path: str, *, cc: str, workspace_dir: str) -> None:
        from tvm.support.cc import create_shared

        create_shared(path, [f"{workspace_dir}/none.o"], cc=cc)


def test_a_missing_compiler_is_a_missing_tool(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(ToolMissingError, match=r"g\+\+ is not installed.*apt-get install g\+\+"):
        export_library(Executable(), tmp_path / "cpu.so")
    monkeypatch.setenv("CXX", str(tmp_path / "g++"))
    with pytest.raises(ToolMissingError, match="does not exist; set CXX"):
        export_library(Executable(), tmp_path / "cpu.so")


def test_the_compilers_own_reason(tmp_path):
    with pytest.raises(BuildError, match=r"the CPU code cannot be linked \(.*none\.o") as error:
        export_library(Executable(), tmp_path / "cpu.so")
    assert "g++ installed" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("full", ["output", "temporary"])
def test_a_full_disk_is_told_before_llvm_ends_the_process(tmp_path, monkeypatch, full):
    usage = namedtuple("usage", "total used free")

    def disk_usage(path):
        is_output = Path(path) == tmp_path
        return usage(1 << 30, 0, ROOM - 1 if is_output == (full == "output") else ROOM)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    with pytest.raises(
        BuildError, match="less than 32 MiB are free .* choose another " + {"output": "-o"}.get(full, "")
    ):
        export_library(Executable(), tmp_path / "cpu.so")


def test_a_disk_that_fills_up_is_named(tmp_path):
    class Full:
        def export_library(self, path: str, **_: str) -> None:
            raise RuntimeError("Compilation error:\nld: final link failed: No space left on device\nCommand line: g++")

    with pytest.raises(BuildError, match="no space left on the disk"):
        export_library(Full(), tmp_path / "cpu.so")
