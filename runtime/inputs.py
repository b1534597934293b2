"""The arrays that a session takes: names, shapes, dtypes and batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnloom.arch.artifact import TensorInfo
from nnloom.arch.dtypes import EIGHT_BITS
from nnloom.arch.errors import InputError
from nnloom.arch.numerics import quantize

__all__ = ["as_arrays", "check_input", "check_inputs", "join_batch", "split_batch", "to_network", "to_user"]


def as_arrays(
    infos: Sequence[TensorInfo], inputs: Mapping[str, ArrayLike] | ArrayLike, *, copy: bool = False
) -> dict[str, NDArray]:
    """Inputs by name; a lone array is that of the network's only input.

    Parameters
    ----------
    copy
        Give arrays that the caller does not have.

    Raises
    ------
    InputError
        If names are unknown or missing, or something is not an array.
    """
    if not isinstance(inputs, Mapping):
        if len(infos) != 1:
            raise InputError(f"the network has {len(infos)} inputs; give a dict ({_names(infos)})")
        inputs = {infos[0].name: inputs}
    known = {info.name for info in infos}
    for name in inputs:
        if name not in known:
            raise InputError(f"no input named {name!r} (inputs: {_names(infos)})")
    for info in infos:
        if info.name not in inputs:
            raise InputError(f"input {info.name!r} is missing (inputs: {_names(infos)})")
    return {info.name: _as_array(info, inputs[info.name], copy) for info in infos}


def _as_array(info: TensorInfo, value: ArrayLike, copy: bool) -> NDArray:
    try:
        array = np.array(value) if copy else np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:  # rows of different lengths, for example
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"input {info.name!r} is not an array ({reason}); give one of {_wanted(info)}") from error
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def split_batch(infos: Sequence[TensorInfo], arrays: Mapping[str, NDArray]) -> list[dict[str, NDArray]]:
    """The inferences of a batch: inputs whose first dimension is N where the network's is 1.

    Raises
    ------
    InputError
        If some inputs are stacked and others are not, or they hold different numbers.
    """
    sizes = {
        info.name: len(arrays[info.name])
        for info in infos
        if info.shape[:1] == (1,)
        and arrays[info.name].ndim == len(info.shape)
        and arrays[info.name].shape[1:] == info.shape[1:]
        and len(arrays[info.name]) > 1
    }
    if not sizes:
        return [dict(arrays)]
    first, count = next(iter(sizes.items()))
    for info in infos:
        if sizes.get(info.name) != count:
            wanted = f"shape {[count, *info.shape[1:]]}" if info.shape[:1] == (1,) else "one inference at a time"
            raise InputError(
                f"input {first!r} holds {count} inferences, so input {info.name!r} must have {wanted}, "
                f"not {list(arrays[info.name].shape)}"
            )
    return [{name: value[i : i + 1] for name, value in arrays.items()} for i in range(count)]


def join_batch(parts: Sequence[NDArray]) -> NDArray:
    """The outputs of a batch's inferences as one array, along a first dimension of 1 or a new one."""
    return np.concatenate(parts) if parts[0].shape[:1] == (1,) else np.stack(parts)


def check_inputs(infos: Sequence[TensorInfo], arrays: Mapping[str, NDArray]) -> list[NDArray]:
    """The inputs of an inference in the network's order, as it takes them; see `InferenceSession.run`."""
    return [check_input(info, arrays[info.name]) for info in infos]


def to_network(infos: Sequence[TensorInfo], values: Sequence[NDArray]) -> list[NDArray]:
    """Inputs as the network has them: with their axes in its order."""
    return [
        np.ascontiguousarray(value.transpose(info.permutation)) if info.permutation else value
        for info, value in zip(infos, values, strict=True)
    ]


def to_user(info: TensorInfo, value: NDArray) -> NDArray:
    """An output as the user has it: with its axes in the order of the model file."""
    return np.ascontiguousarray(value.transpose(np.argsort(info.permutation))) if info.permutation else value


def _names(infos: Sequence[TensorInfo]) -> str:
    return ", ".join(info.name for info in infos)


def _wanted(info: TensorInfo) -> str:
    return f"{info.dtype} {list(info.shape)}"


def check_input(info: TensorInfo, value: NDArray) -> NDArray:
    """The array as the network takes it; see `InferenceSession.run`."""
    if value.shape != info.shape and (1, *value.shape) != info.shape:
        raise InputError(f"input {info.name!r} must have shape {list(info.shape)}, not {list(value.shape)}")
    value = value.reshape(info.shape)
    if value.dtype.kind == "f":
        if not np.isfinite(value).all():
            raise InputError(f"input {info.name!r} holds NaN or infinity; give finite values")
        if value.dtype.itemsize > 4 and np.any(np.abs(value) > np.finfo(np.float32).max):
            raise InputError(f"input {info.name!r} holds values beyond float32; give smaller values")
        if info.dtype in EIGHT_BITS and info.scale:
            return quantize(value, info.scale, info.zero_point, info.dtype)
    if value.dtype == info.dtype:
        return value
    if info.dtype == "float32" and value.dtype == np.float64:
        return value.astype(np.float32)
    raise InputError(f"input {info.name!r} must be {info.dtype}, not {value.dtype}; convert it with astype")
