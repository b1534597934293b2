"""What lies in the user's cache, and how to get rid of it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import ConfigError
from .files import DAY, TEMPORARY, cache_directory, remove_leftovers

__all__ = ["KEPT", "CacheFolder", "cache_folders", "clean_cache", "clear_cache"]

KEPT = "compiled-here"
"""The folder that says whose native code is this computer's own: cleared by its name only, since without it sessions
take every artifact for a stranger's."""


@dataclass(frozen=True, kw_only=True)
class CacheFolder:
    """A folder of the cache."""

    name: str
    entries: int
    """finished builds or files"""
    size: int
    """bytes, of everything in it"""
    leftovers: int
    """what running and interrupted builds have there"""


def cache_folders() -> list[CacheFolder]:
    """The folders of the cache by name (ConfigError)."""
    return [_folder(path) for path in sorted(cache_directory().iterdir()) if path.is_dir() and not _is_hidden(path)]


def clean_cache(*, seconds: float = DAY) -> list[Path]:
    """Remove what interrupted builds left in the cache, if nothing has touched it for so long (ConfigError)."""
    root = cache_directory()
    folders = [root, *(path for path in root.iterdir() if path.is_dir() and not _is_hidden(path))]
    return [path for folder in folders for path in remove_leftovers(folder, seconds=seconds)]


def clear_cache(names: Collection[str] = ()) -> int:
    """Empty folders of the cache: these, or all but `KEPT`.

    Builds that run now are not disturbed. Returns the bytes that became free.

    Raises
    ------
    ConfigError
        If there is no such folder, or the cache cannot be written.
    """
    folders = {folder.name: folder for folder in cache_folders()}
    unknown = sorted(set(names) - set(folders))
    if unknown:
        raise ConfigError(f"nothing called {unknown[0]!r} in the cache (there: {', '.join(folders) or 'nothing'})")
    chosen = names or [name for name in folders if name != KEPT]
    freed = 0
    for name in chosen:
        path = cache_directory(name)
        remove_leftovers(path, seconds=0)
        for entry in path.iterdir():
            if _is_hidden(entry):  # the lock or the folder of a build that runs
                continue
            with contextlib.suppress(OSError):
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        freed += folders[name].size - _folder(path).size
    return freed


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")


def _folder(path: Path) -> CacheFolder:
    entries = list(path.iterdir())
    return CacheFolder(
        name=path.name,
        entries=sum(not _is_hidden(entry) for entry in entries),
        size=sum(_sizes(path)),
        leftovers=sum(TEMPORARY in entry.name for entry in entries),
    )


def _sizes(path: Path) -> Iterator[int]:
    for folder, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):  # another process was faster
                yield os.lstat(os.path.join(folder, name)).st_size
