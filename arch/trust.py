"""Which native code was compiled on this computer, by this user.

`cpu.so` of an artifact is code: who loads it lets it do everything. Compilation notes the hash of what it has linked in
the user's cache; code whose hash is not there came from elsewhere, or was changed. See SECURITY.md.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from .errors import ConfigError
from .files import cache_directory

__all__ = ["note_compiled_here", "was_compiled_here"]

MOST = 1 << 16
"""Hashes that are kept: those used last."""


def _folder() -> Path:
    return cache_directory("compiled-here")


def note_compiled_here(sha256: str) -> None:
    """Note the hash of native code that this computer has just compiled.

    Raises
    ------
    ConfigError
        If the cache cannot be written.
    """
    folder = _folder()
    try:
        (folder / sha256).touch()
        names = os.listdir(folder)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write there ({error.strerror or error}); set XDG_CACHE_HOME") from error
    if len(names) > MOST:
        _forget(folder, names)


def _forget(folder: Path, names: list[str]) -> None:
    """Keep the half that was used last, so that this is seldom."""

    def used(name: str) -> float:
        try:
            return (folder / name).stat().st_mtime
        except OSError:  # another process was faster
            return 0.0

    for name in sorted(names, key=used)[: len(names) - MOST // 2]:
        with contextlib.suppress(OSError):
            (folder / name).unlink()


def was_compiled_here(sha256: str) -> bool:
    """Whether this computer has compiled the native code of this hash, as far as the user's cache knows."""
    try:
        note = _folder() / sha256
    except ConfigError:
        return False
    if not note.is_file():
        return False
    with contextlib.suppress(OSError):  # it is used: a cache that cannot be written keeps what it knows
        note.touch()
    return True
