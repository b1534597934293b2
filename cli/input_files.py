"""The arrays of the file that `--input` names."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.array_files import ArrayFileError, read_arrays
from nnloom.arch.artifact import TensorInfo
from nnloom.arch.errors import InputError

__all__ = ["read_inputs", "read_labelled"]


def read_inputs(path: str | None, infos: tuple[TensorInfo, ...]) -> dict[str, NDArray]:
    """The arrays of a file by input name; a .npy file is the network's only input.

    Raises
    ------
    InputError
        If there is no such file, or it is no array file.
    """
    if path is None:
        raise InputError("no input given; use --input FILE.npy")
    try:
        arrays = read_arrays(path)
    except ArrayFileError as error:
        raise InputError(str(error)) from error
    if not isinstance(arrays, np.ndarray):
        return arrays
    if len(infos) != 1:
        raise InputError(f"{path}: the network has {len(infos)} inputs; give an .npz with their names")
    return {infos[0].name: arrays}


def read_labelled(path: str) -> dict[str, NDArray]:
    """The arrays of a file with labelled data.

    Raises
    ------
    InputError
        If there is no such file, or it is not an .npz.
    """
    try:
        arrays = read_arrays(path)
    except ArrayFileError as error:
        raise InputError(str(error)) from error
    if isinstance(arrays, np.ndarray):
        raise InputError(f"{path}: one array; give an .npz with the inputs and 'labels'")
    return arrays
