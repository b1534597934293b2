"""Where generated files go, and how they get there whole."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["cache_directory", "write_atomically"]


def cache_directory(*parts: str) -> Path:
    """A folder of the user's cache; created."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = root.joinpath("nnloom", *parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_atomically(path: Path, data: bytes) -> None:
    """Write under a temporary name in the same folder, then rename.

    Raises
    ------
    OSError
        If the folder is missing or cannot be written; an earlier file is untouched.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        # mkstemp makes private files; give the permissions of an ordinary one.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
