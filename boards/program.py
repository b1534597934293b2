"""Loading a bitstream into a board, with openFPGALoader."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from nnloom.arch.artifact import Artifact
from nnloom.arch.errors import ArtifactError, BuildError, ConfigError, ToolMissingError

from . import get
from .flow import bitstream_file

__all__ = ["LOADER", "program"]

LOADER = "openFPGALoader"


def program(
    artifact_path: str | Path,
    *,
    flash: bool = False,
    cable: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[str]:
    """Load the bitstream of an artifact into its board. Returns the command that did it.

    Parameters
    ----------
    flash
        Write the board's flash, so that it also starts with the bitstream.
    cable
        openFPGALoader's name of the cable, where it is not that of the board.

    Raises
    ------
    ConfigError
        If the board is loaded another way.
    ArtifactError
        If there is no bitstream.
    ToolMissingError
        If openFPGALoader is not installed.
    BuildError
        If it fails, with the last line it said.
    """
    artifact = Artifact.load(artifact_path)
    board = get(artifact.manifest.board)
    if not board.loader:
        raise ConfigError(f"{board.name} is loaded by its own processor; run there with --device pynq")
    bitstream = artifact.path / bitstream_file(board)
    if not bitstream.is_file():
        raise ArtifactError(f"{artifact_path}: no bitstream there; run 'nnloom build {artifact_path}' first")
    executable = shutil.which(LOADER)
    if executable is None:
        raise ToolMissingError(f"{LOADER} is not installed; on Debian and Ubuntu: apt-get install openfpgaloader")
    options = ["--board", board.loader, *(["--cable", cable] if cable else []), *(["--write-flash"] if flash else [])]
    command = [executable, *options, str(bitstream)]
    (progress or (lambda _: None))(f"loading {board.name}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        raise BuildError(f"{LOADER} cannot load {board.name} ({reason}); is the board connected, and may you use it?")
    return command
