"""From TVM's executable to a shared library, with the computer's C++ compiler."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from nnloom.arch.errors import BuildError, ToolMissingError
from nnloom.arch.files import Scratch

__all__ = ["export_library"]


ROOM = 32 << 20
"""Bytes that must be free: LLVM ends the process where it cannot write an object file."""


def export_library(executable: Any, path: Path) -> None:
    """Link what TVM has compiled (`relax.build`) to a library at `path`.

    Raises
    ------
    ToolMissingError
        If there is no C++ compiler.
    BuildError
        If it fails, or the disk is full.
    """
    from tvm.support.cc import get_cc

    compiler = get_cc()
    if compiler is None:
        raise ToolMissingError("g++ is not installed, which links the CPU code; apt-get install g++")
    with Scratch("nnloom-tvm") as scratch:
        for folder in (scratch.path, path.parent):
            if shutil.disk_usage(folder).free < ROOM:
                raise BuildError(
                    f"less than {ROOM >> 20} MiB are free on the disk of {folder.parent}; free some, or choose another "
                    + ("-o" if folder == path.parent else "with TMPDIR")
                )
        try:
            executable.export_library(str(path), cc=compiler, workspace_dir=str(scratch.path))
        except FileNotFoundError as error:
            if error.filename != compiler:
                raise
            raise ToolMissingError(f"{compiler} does not exist; set CXX to a C++ compiler, or unset it") from error
        except (RuntimeError, OSError) as error:
            raise BuildError(f"the CPU code cannot be linked ({_reason(error, scratch.path)})") from error


def _reason(error: Exception, folder: Path) -> str:
    """What went wrong, of all that the compiler and TVM print."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    full = any("No space left" in line for line in lines)
    # TVM does not look whether its own object file was written whole.
    if full or any("file truncated" in line or "file format not recognized" in line for line in lines):
        return f"no space left on the disk of {folder.parent} or of the output; free some, or set TMPDIR"
    # The linker's own lines come before the summaries of compiler and TVM.
    telling = [line for line in lines if not line.startswith(("Compilation error", "Command line", "collect2"))]
    return (telling or lines or [type(error).__name__])[0][:200]
