"""Reads .npy and .npz files that may hold anything: arrays, or one line that says what is wrong."""

from __future__ import annotations

import ast
import lzma
import math
import os
import stat
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

__all__ = ["ArrayFileError", "read_arrays"]

LARGEST_HEADER = 1 << 16
"""Bytes of the description of an array; NumPy writes some hundred."""
LARGEST_ARRAY = 1 << 32
"""Bytes of an array: a small archive can unpack to anything."""
_MAGIC = b"\x93NUMPY"
_DAMAGE = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    SyntaxError,
    EOFError,
    OverflowError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
)
"""What damaged or hostile files raise in the parsers of Python and NumPy."""


class ArrayFileError(Exception):
    """A file that cannot be read as arrays; the message is one line that begins with its path."""


def read_arrays(path: str | Path) -> NDArray | dict[str, NDArray]:
    """The array of a .npy file, or those of an .npz file by name.

    Raises
    ------
    ArrayFileError
        If there is no such file, or it is no array file, or holds Python objects.
    """
    with _open(Path(path)) as file:
        try:
            if file.read(len(_MAGIC)) != _MAGIC:
                file.seek(0)
                return _read_archive(file)
            file.seek(0)
            return _read_array(file, os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise ArrayFileError(f"{path}: {error.strerror or 'cannot be read'}; give a .npy or .npz file") from error
        except _DAMAGE as error:
            raise ArrayFileError(f"{path}: not a .npy or .npz array file ({_line(error)})") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__


def _open(path: Path) -> IO[bytes]:
    """A regular file; others might never end, or never begin."""
    try:
        # A FIFO without a writer would keep the process in open.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or "cannot be read"
        raise ArrayFileError(f"{path}: {reason}; give a .npy or .npz file") from error
    status = os.fstat(handle)
    if stat.S_ISREG(status.st_mode) and status.st_size:
        return os.fdopen(handle, "rb")
    os.close(handle)
    folder, empty = stat.S_ISDIR(status.st_mode), stat.S_ISREG(status.st_mode)
    what = "a folder" if folder else "empty" if empty else "not a regular file"
    raise ArrayFileError(f"{path}: is {what}; give a .npy or .npz array file")


def _read_archive(file: IO[bytes]) -> dict[str, NDArray]:
    arrays: dict[str, NDArray] = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name in arrays:
                raise ValueError(f"two arrays named {name!r}")
            with archive.open(member) as part:
                arrays[name] = _read_array(part, member.file_size)
    return arrays


def _read_array(file: IO[bytes], size: int) -> NDArray:
    """An array in the format of `numpy.lib.format` that takes all of a file of `size` bytes.

    Raises
    ------
    ValueError
        If it does not; and others of `_DAMAGE`.
    """
    start = _exactly(file, len(_MAGIC) + 2)
    if not start.startswith(_MAGIC) or start[-2] not in (1, 2, 3):
        raise ValueError("no NumPy array in it")
    width = 2 if start[-2] == 1 else 4
    length = int.from_bytes(_exactly(file, width), "little")
    if length > LARGEST_HEADER:
        raise ValueError(f"a header of {length:,} bytes")
    text = _exactly(file, length).decode("utf-8" if start[-2] == 3 else "latin1")
    with warnings.catch_warnings(action="ignore"):  # of what Python does not like in damaged text
        header = ast.literal_eval(text.strip())
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise ValueError("a header without descr, fortran_order and shape")
    shape, dtype = header["shape"], np.lib.format.descr_to_dtype(header["descr"])
    if dtype.hasobject or not dtype.itemsize:
        raise ValueError(f"{'pickled objects' if dtype.hasobject else 'elements of no size'}; save numbers")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("a shape that is none")
    count = math.prod(shape)
    there = size - len(start) - width - length
    if count * dtype.itemsize != there:
        raise ValueError(f"shape {list(shape)} takes {count * dtype.itemsize:,} bytes, there are {there:,}")
    if there > LARGEST_ARRAY:
        raise ValueError(f"{there:,} bytes; split it into files of at most {LARGEST_ARRAY:,}")
    flat: NDArray = np.frombuffer(bytearray(_exactly(file, there)), dtype, count)
    return flat.reshape(shape, order="F" if header["fortran_order"] else "C")


def _exactly(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise EOFError("it ends too early")
    return data
