"""Where generated files go, and how they get there whole."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import BuildError

__all__ = ["build_in_cache", "cache_directory", "write_atomically"]


def cache_directory(*parts: str) -> Path:
    """A folder of the user's cache; created."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = root.joinpath("nnloom", *parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


def build_in_cache(kind: str, identity: Sequence[str], build: Callable[[Path], None], *, again: bool = False) -> Path:
    """A folder of the user's cache with what `build` puts there, once: later calls find it.

    It is complete or not there. That of a build that failed is kept for its logs, the last one of each identity.

    Parameters
    ----------
    kind
        Folder of the cache for builds of this kind.
    identity
        Everything that the result depends on.
    again
        Build even if there is a result; the old one is replaced.

    Raises
    ------
    BuildError
        As `build` raised it; the paths in its message are those that were kept.
    """
    cache = cache_directory(kind)
    key = hashlib.sha256("|".join(identity).encode()).hexdigest()[:16]
    folder = cache / key
    if folder.is_dir() and not again:
        return folder
    temporary = Path(tempfile.mkdtemp(dir=cache, prefix=f".{key}."))
    try:
        build(temporary)
        if again:
            shutil.rmtree(folder, ignore_errors=True)
        try:
            temporary.rename(folder)
        except OSError:
            # Another process may have finished the same build first.
            if not folder.is_dir():
                raise
    except BuildError as error:
        kept = cache / f"failed-{key}"
        shutil.rmtree(kept, ignore_errors=True)
        temporary.rename(kept)
        raise BuildError(str(error).replace(str(temporary), str(kept))) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


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
