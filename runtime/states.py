"""What a network's states hold between runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnloom.arch.array_files import ArrayFileError, read_arrays
from nnloom.arch.artifact import STATES_FILE, Artifact, TensorInfo
from nnloom.arch.errors import ArtifactError, InputError

__all__ = ["check_states", "initial_states"]


def initial_states(artifact: Artifact) -> list[NDArray]:
    """What the states of an artifact's network begin with.

    Raises
    ------
    ArtifactError
        If they cannot be read, or are not as the manifest says.
    """
    infos = artifact.manifest.states
    if not infos:
        return []
    path = artifact.path / STATES_FILE
    try:
        arrays = read_arrays(path)
    except ArrayFileError as error:
        raise ArtifactError(f"{error}; compile the model again") from error
    found = {} if isinstance(arrays, np.ndarray) else arrays
    values = [found.get(str(number)) for number in range(len(infos))]
    for info, value in zip(infos, values, strict=True):
        if value is None or value.shape != info.shape or value.dtype != info.dtype:
            raise ArtifactError(f"{path}: does not hold {_wanted(info)}; compile the model again")
    return [value for value in values if value is not None]


def check_states(infos: Sequence[TensorInfo], values: Mapping[str, ArrayLike]) -> list[NDArray]:
    """Copies of states in the network's order.

    Raises
    ------
    InputError
        If a name is unknown or missing, or an array is not of its state's shape and dtype.
    """
    if not isinstance(values, Mapping):
        raise InputError("states are given as a dict of arrays, as get_state returns it")
    names = ", ".join(info.name for info in infos) or "none"
    unknown = next((name for name in values if name not in {info.name for info in infos}), None)
    if unknown is not None:
        raise InputError(f"no state named {unknown!r} (states: {names})")
    result = []
    for info in infos:
        if info.name not in values:
            raise InputError(f"state {info.name!r} is missing (states: {names})")
        try:
            array = np.array(values[info.name])
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(f"state {info.name!r} is no array; give {_wanted(info)}") from error
        if array.shape != info.shape or array.dtype.newbyteorder("=") != info.dtype:
            raise InputError(f"state must be {_wanted(info)}, not {array.dtype}{list(array.shape)}")
        result.append(np.ascontiguousarray(array, info.dtype).reshape(info.shape))
    return result


def _wanted(info: TensorInfo) -> str:
    return f"{info.name!r} as {info.dtype}{list(info.shape)}"
