"""The artifact directory as a whole: what may be replaced, and how."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .artifact import (
    CONSTANTS_FILE,
    CPU_FILE,
    FORMAT,
    MANIFEST_FILE,
    MODEL_FILE,
    ONNX_FILE,
    PROGRAM_FILE,
    REPORT_FILE,
    TABLES_FILE,
    WEIGHTS_FILE,
)
from .errors import ArtifactError
from .files import TEMPORARY, Scratch, replace_directory, restore_directory

__all__ = ["PAGE_FILE", "check_output", "write_output"]

OWN = frozenset(
    {
        MANIFEST_FILE,
        REPORT_FILE,
        PROGRAM_FILE,
        WEIGHTS_FILE,
        TABLES_FILE,
        CPU_FILE,
        CONSTANTS_FILE,
        MODEL_FILE,
        ONNX_FILE,
    }
)
PAGE_FILE = "report.html"
BUILT = frozenset({"nnloom.bit", "nnloom.fs", "nnloom.bin", "nnloom.hwh", "vivado", PAGE_FILE})
"""What `nnloom build`, for one board or another, and `nnloom report` add."""


def _manifest(output: Path) -> dict[str, Any] | None:
    """The manifest in a directory, if nnloom wrote it."""
    try:
        values = json.loads((output / MANIFEST_FILE).read_text())
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) and values.get("format") == FORMAT else None


def _foreign(output: Path, manifest: dict[str, Any]) -> list[str]:
    files = manifest.get("files")
    own = OWN | BUILT | set(files if isinstance(files, dict) else ())
    return sorted(path.name for path in output.iterdir() if path.name not in own and TEMPORARY not in path.name)


def check_output(output: Path) -> None:
    """Refuse to replace anything but an artifact and what nnloom wrote into it; restores an interrupted one first.

    Raises
    ------
    ArtifactError
        If something else is there, or in there.
    """
    restore_directory(output)
    if not output.is_dir():
        if output.exists() or output.is_symlink():
            raise ArtifactError(f"{output}: exists and is not a directory; choose another -o")
        return
    try:
        if not any(output.iterdir()):
            return
        manifest = _manifest(output)
        foreign = [] if manifest is None else _foreign(output, manifest)
    except OSError as error:
        raise ArtifactError(f"{output}: cannot be read ({error.strerror or error}); choose another -o") from error
    if manifest is None:
        raise ArtifactError(f"{output}: exists and is not an nnloom artifact; choose another -o")
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise ArtifactError(
            f"{output}: would be replaced, but holds {foreign[0]!r}{more}, not of nnloom; move it or choose another -o"
        )


@contextlib.contextmanager
def write_output(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output` that takes its place if the block ends without an error.

    Raises
    ------
    ArtifactError
        As `check_output`; or if nothing can be written there.
    """
    target = output.resolve()  # a link to an artifact stays one
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with Scratch(target.name, target.parent) as scratch:
            yield scratch.path
            check_output(output)
            replace_directory(scratch, target)
    except OSError as error:
        raise ArtifactError(f"{output}: cannot write there ({error.strerror or error}); choose another -o") from error
