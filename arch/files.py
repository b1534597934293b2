"""Where generated files go, how they get there whole, and who removes what a killed process left."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from .errors import BuildError, ConfigError

try:
    import fcntl
except ImportError:  # Windows: no locks, so what a killed process leaves stays there
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "DAY",
    "TEMPORARY",
    "Scratch",
    "build_in_cache",
    "cache_directory",
    "is_whole",
    "remove_leftovers",
    "replace_directory",
    "restore_directory",
    "seal",
    "write_atomically",
]

TEMPORARY = ".nnloom-tmp-"
"""In the name of everything temporary, behind the label: only such names are ever cleaned."""
EARLIER = "earlier"
"""The folder that is replaced, in a temporary one."""
DAY = 86_400.0
"""Seconds after which what an interrupted run left is removed by others, too."""
ATTEMPTS = 3
"""How often a folder is replaced anew because another process has just done the same."""
SEAL_FILE = ".nnloom-seal.json"
"""Sizes and hashes of a finished folder of the cache."""


def cache_directory(*parts: str) -> Path:
    """A folder of the user's cache; created.

    Raises
    ------
    ConfigError
        If there is no home directory, or it cannot be written.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        root = Path(given) if given else Path.home() / ".cache"
    except RuntimeError as error:
        raise ConfigError("this user has no home directory; set XDG_CACHE_HOME to a folder for the cache") from error
    path = root.joinpath("nnloom", *parts)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(0, "Permission denied")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot write the cache there ({error.strerror or error}); set XDG_CACHE_HOME to another folder"
        ) from error
    return path


def _lock(path: Path) -> int:
    """Take the lock of a file or folder; the descriptor holds it until it is closed.

    BlockingIOError: a living process has it. OSError: it is gone, or the file system has no locks.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _is_same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except OSError:
        return False


def _left_over(parent: Path, label: str, *, seconds: float = 0) -> Iterator[Path]:
    """Temporary files and folders of `label` in `parent` whose process has ended, each locked while it is yielded.

    label: "" for those of every label; seconds: only what was untouched for as long.
    """
    if fcntl is None:
        return
    start = f".{label}{TEMPORARY}" if label else "."
    try:
        names = sorted(name for name in os.listdir(parent) if name.startswith(start) and TEMPORARY in name)
    except OSError:
        return
    for name in names:
        path = parent / name
        try:
            status = os.lstat(path)
            if status.st_uid != os.getuid() or (seconds and time.time() - status.st_mtime < seconds):
                continue
            handle = _lock(path)
        except OSError:
            continue
        try:
            if _is_same(handle, path):
                yield path
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _clean(parent: Path, label: str) -> None:
    for path in _left_over(parent, label):
        with contextlib.suppress(OSError):
            _remove(path)


def remove_leftovers(parent: Path, *, seconds: float = DAY) -> list[Path]:
    """Remove what interrupted runs left in a folder, of any label, if nothing has touched it for so long.

    Returns what was there. What a living process works in stays, whatever its age.
    """
    found = []
    for path in _left_over(parent, "", seconds=seconds):
        with contextlib.suppress(OSError):
            _remove(path)
            found.append(path)
    return found


class Scratch:
    """A temporary folder. It is locked while its process lives: the next one of its label removes what is left.

    Parameters
    ----------
    label
        What it is for; part of the name.
    parent
        Where it is made; default: the system's folder of temporary files.

    Raises
    ------
    OSError
    """

    def __init__(self, label: str, parent: Path | None = None) -> None:
        parent = Path(tempfile.gettempdir()) if parent is None else parent
        _clean(parent, label)
        self._handle: int | None = None
        self._renamed = False
        while True:
            self.path = Path(tempfile.mkdtemp(dir=parent, prefix=f".{label}{TEMPORARY}"))
            if fcntl is None:
                return
            try:
                self._handle = _lock(self.path)
            except (BlockingIOError, FileNotFoundError):  # somebody who cleans was faster than the lock
                continue
            except OSError:
                return
            if _is_same(self._handle, self.path):
                return
            self._unlock()

    def _unlock(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def rename(self, target: Path) -> None:
        """Make the folder a lasting one of another name, with the permissions of an ordinary one (OSError)."""
        self.path.chmod(0o777 & ~_umask())
        self.path.rename(target)
        self._renamed = True
        self._unlock()

    def close(self) -> None:
        """Remove the folder, unless it was renamed."""
        if not self._renamed:
            shutil.rmtree(self.path, ignore_errors=True)
        self._unlock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _label_of_earlier(target: Path) -> str:
    return f"{target.name}.nnloom-old"


def replace_directory(scratch: Scratch, target: Path) -> None:
    """Put a finished folder in place of `target`, if there is one. `restore_directory` mends what a kill leaves.

    Raises
    ------
    OSError
        An earlier `target` is untouched.
    """
    for attempt in range(ATTEMPTS):
        with Scratch(_label_of_earlier(target), target.parent) as folder:
            earlier = folder.path / EARLIER
            with contextlib.suppress(FileNotFoundError):
                target.rename(earlier)
            try:
                scratch.rename(target)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or attempt == ATTEMPTS - 1:
                    if earlier.is_dir() and not target.exists():
                        earlier.rename(target)
                    raise


def restore_directory(target: Path) -> None:
    """Mend what a process left that was killed in `replace_directory`: the earlier folder comes back if there is no new
    one."""
    target = target.resolve()
    for folder in _left_over(target.parent, _label_of_earlier(target)):
        with contextlib.suppress(OSError):
            if (folder / EARLIER).is_dir() and not target.exists():
                (folder / EARLIER).rename(target)
            shutil.rmtree(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _digest(path: Path) -> list[int | str]:
    """Size and SHA-256 of a file (OSError)."""
    with path.open("rb") as file:
        return [os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def seal(folder: Path) -> None:
    """Note what a finished folder holds, for `is_whole`."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    (folder / SEAL_FILE).write_text(json.dumps({str(path.relative_to(folder)): _digest(path) for path in files}))


def is_whole(folder: Path) -> bool:
    """The folder holds what it held when it was sealed."""
    try:
        sealed = json.loads((folder / SEAL_FILE).read_text())
        return all(_digest(folder / name) == digest for name, digest in sealed.items())
    except (OSError, ValueError, AttributeError):
        return False


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Wait until no other process holds the lock of this file, then hold it. The file is gone afterwards."""
    if fcntl is None:
        yield
        return
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            with contextlib.suppress(OSError):  # the file system has no locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            if not _is_same(handle, path):  # the one before has removed it
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(handle)


def _about_disk(error: OSError, folder: Path) -> Exception:
    """A full disk as an error that says what to do, others as they are."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    return ConfigError(f"{folder}: {error.strerror}; free some, or set XDG_CACHE_HOME to a folder on another disk")


def build_in_cache(kind: str, identity: Sequence[str], build: Callable[[Path], None], *, again: bool = False) -> Path:
    """A folder of the user's cache with what `build` puts there, once: later calls find it.

    It is complete or not there: one that was damaged since (`is_whole`) is built again. That of a build that failed is
    kept for its logs, the last one of each identity. Of several processes that want the same, one builds and the others
    wait.

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
    ConfigError
        If the cache cannot be written.
    BuildError
        As `build` raised it; the paths in its message are those that were kept.
    """
    cache = cache_directory(kind)
    key = hashlib.sha256("|".join(identity).encode()).hexdigest()[:16]
    folder = cache / key
    if not again and is_whole(folder):
        return folder
    remove_leftovers(cache)
    with _turn(cache / f".{key}.lock"), Scratch(key, cache) as scratch:
        if not again and is_whole(folder):  # another process has built it meanwhile
            return folder
        try:
            build(scratch.path)
        except BuildError as error:
            kept = cache / f"failed-{key}"
            shutil.rmtree(kept, ignore_errors=True)
            temporary = str(scratch.path)
            scratch.rename(kept)
            raise BuildError(str(error).replace(temporary, str(kept))) from error
        except OSError as error:
            raise _about_disk(error, cache) from error
        seal(scratch.path)
        # Another process may have finished the same build first.
        if again or not is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
        try:
            scratch.rename(folder)
        except OSError:
            if not is_whole(folder):
                raise
    return folder


def write_atomically(path: Path, data: bytes) -> None:
    """Write under a temporary name in the same folder, then rename. A link stays; a device or pipe is written to.

    Raises
    ------
    OSError
        If the folder is missing or cannot be written; an earlier file is untouched.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    given, path = path, Path(os.path.realpath(path))
    _clean(path.parent, path.name)
    while True:
        try:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}{TEMPORARY}")
        except OSError as error:  # the user knows the file by its own name
            raise OSError(error.errno, error.strerror, str(given)) from error
        try:
            with os.fdopen(handle, "wb") as file:
                if fcntl is not None:
                    with contextlib.suppress(OSError):  # the file system has no locks
                        fcntl.flock(file, fcntl.LOCK_EX)
                    if not _is_same(handle, Path(name)):  # somebody who cleans was faster than the lock
                        continue
                file.write(data)
            # mkstemp makes private files; give the permissions of an ordinary one.
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
            return
        except BaseException as error:
            Path(name).unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise OSError(error.errno, error.strerror, str(given)) from error
            raise
