"""Calibration data: inferences by input name, from arrays, a file, or a folder of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.array_files import ArrayFileError, read_arrays
from nnloom.arch.errors import InputError

__all__ = ["Calibration", "CalibrationData", "ModelInput", "read_calibration"]

Calibration = str | Path | NDArray | Mapping[str, NDArray]
"""A file, a folder, an array of the only input, or arrays by input name"""
NAMES = ("inputs", "input", "x")
"""Names that the only input may have in a file, beside its own"""
LABELS = ("labels", "label", "y")
"""Arrays that are no inputs"""
HELD_OUT = 5
"""Every so many inferences one is kept for the comparison."""


@dataclass(frozen=True)
class ModelInput:
    """An input of a model."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class CalibrationData:
    """Inferences by input name, each of the model's shapes."""

    calibrate: list[dict[str, NDArray]]
    """what ranges are taken from"""
    compare: list[dict[str, NDArray]]
    """what the results are compared on: others, if there are two inferences or more"""

    @property
    def held_out(self) -> bool:
        """Whether the comparison has data of its own."""
        return self.compare is not self.calibrate


def read_arrays_of(data: Calibration) -> list[dict[str, NDArray]]:
    """Arrays by name, of each file; a lone array has the name "".

    Raises
    ------
    InputError
        If there is no such file, or it is no array file.
    """
    if isinstance(data, np.ndarray):
        return [{"": data}]
    if isinstance(data, Mapping):
        return [dict(data)]
    path = Path(data)
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".npy", ".npz"))
        if not files:
            raise InputError(f"{path}: no .npy or .npz files there; save what the network takes with numpy.save")
    result = []
    for file in files:
        try:
            arrays = read_arrays(file)
        except ArrayFileError as error:
            raise InputError(str(error)) from error
        result.append({"": arrays} if isinstance(arrays, np.ndarray) else arrays)
    return result


def read_calibration(
    files: Sequence[Mapping[str, NDArray]], inputs: Sequence[ModelInput], *, limit: int | None = None
) -> CalibrationData:
    """The inferences of arrays, one after the other; every fifth is kept for the comparison.

    Raises
    ------
    InputError
        If an array is missing, or does not fit.
    """
    inferences = [case for arrays in files for case in _inferences(arrays, inputs)][:limit]
    if not inferences:
        raise InputError("the calibration data hold no inferences")
    if len(inferences) == 1:
        return CalibrationData(inferences, inferences)
    kept = inferences[HELD_OUT - 1 :: HELD_OUT] or inferences[-1:]
    used = [case for i, case in enumerate(inferences) if not any(case is other for other in kept)]
    return CalibrationData(used, kept)


def array_of(arrays: Mapping[str, NDArray], name: str, count: int) -> NDArray | None:
    """The array of an input among those of a file, where the model has `count` inputs."""
    if name in arrays:
        return arrays[name]
    if count != 1:
        return None
    found = next((arrays[n] for n in ("", *NAMES) if n in arrays), None)
    others = [n for n in arrays if n not in LABELS]
    return arrays[others[0]] if found is None and len(others) == 1 else found


def _inferences(arrays: Mapping[str, NDArray], inputs: Sequence[ModelInput]) -> list[dict[str, NDArray]]:
    stacked: dict[str, list[NDArray]] = {}
    for info in inputs:
        array = array_of(arrays, info.name, len(inputs))
        if array is None:
            names = ", ".join(n or "one array without a name" for n in arrays)
            raise InputError(f"no input {info.name!r} in the calibration data (there are: {names})")
        stacked[info.name] = _cases(array, info)
    counts = {name: len(cases) for name, cases in stacked.items()}
    if len(set(counts.values())) > 1:
        raise InputError(f"the calibration data hold different numbers of inferences: {counts}")
    return [dict(zip(stacked, cases, strict=True)) for cases in zip(*stacked.values(), strict=True)]


def _cases(array: NDArray, info: ModelInput) -> list[NDArray]:
    """An array of one inference, or of several stacked along the first axis."""
    inner = info.shape[1:] if info.shape[:1] == (1,) else None
    if array.shape == info.shape:
        cases = [array]
    elif array.shape == inner:
        cases = [array[None]]
    elif inner is not None and array.ndim == len(info.shape) and array.shape[1:] == inner:
        cases = [array[i : i + 1] for i in range(len(array))]
    elif array.ndim == len(info.shape) + 1 and array.shape[1:] == info.shape:
        cases = list(array)
    else:
        raise InputError(
            f"calibration data for input {info.name!r} have shape {list(array.shape)}; the model takes "
            f"{list(info.shape)}, several inferences stacked along the first axis"
        )
    return [_checked(case, info) for case in cases]


def _checked(case: NDArray, info: ModelInput) -> NDArray:
    floats = info.dtype.startswith("float")
    if floats and case.dtype.kind == "f":
        if not np.isfinite(case).all():
            raise InputError(f"calibration data for input {info.name!r} hold NaN or infinity; give finite values")
        return np.ascontiguousarray(case, info.dtype)
    if case.dtype == info.dtype or (not floats and case.dtype.kind in "iu"):
        return np.ascontiguousarray(case, info.dtype)
    raise InputError(
        f"calibration data for input {info.name!r} are {case.dtype}; the model takes {info.dtype}: prepare them as for "
        "the float model, then astype"
    )
