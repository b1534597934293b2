"""Which channels go: by a mask, or the weakest filters until a share of the work is gone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnloom.arch.array_files import ArrayFileError, read_arrays
from nnloom.arch.errors import InputError

from . import rules
from .channels import Channels, Flags, Layer, Zeros, describe
from .network import attribute

__all__ = ["Kept", "Measure", "by_mask", "by_target", "read_mask"]

Measure = Literal["macs", "channels"]
MOST = 8
"""Layers that a message names"""


@dataclass(frozen=True)
class Kept:
    """What is left of a network: groups of channels that go, the zeros that masks make, and why others stay."""

    channels: Channels
    zeros: Zeros
    groups: NDArray[np.int64]
    """of every channel"""
    removed: frozenset[int]
    """groups"""
    reasons: Mapping[int, str]
    """why a group stays that a mask names"""

    def of(self, name: str, axis: int) -> Flags:
        """Which channels of an axis are left."""
        channels = self.channels.of(name)[axis]
        if channels is None:
            return np.ones(self.channels.network.shapes[name][axis], np.bool_)
        return ~self._is_removed[self.groups[channels]]

    @cached_property
    def _is_removed(self) -> Flags:
        """Of every group, by number."""
        result = np.zeros(len(self.groups), np.bool_)
        result[list(self.removed)] = True
        return result

    def size(self, name: str, axis: int) -> int:
        """How many are left."""
        if self.channels.of(name)[axis] is None or not self.removed:
            return self.channels.network.shapes[name][axis]
        return int(self.of(name, axis).sum())

    def macs(self) -> int:
        """Multiplications of the products of an inference."""
        return sum(_macs(self, layer) for layer in self.channels.reductions) + sum(
            _macs_of_groups(self, node) for node in self.channels.network.nodes
        )


def _elements(kept: Kept, name: str) -> int:
    return math.prod(kept.size(name, axis) for axis in range(len(kept.channels.network.shapes[name])))


def _macs(kept: Kept, reduction: Any) -> int:
    node = reduction.node
    (source, _), (weights, axis) = reduction.operands
    if node.op_type == "ConvTranspose":
        filters = _elements(kept, weights) // kept.size(weights, axis)
        return _elements(kept, source) * filters
    window = math.prod(kept.channels.network.shapes[weights][2:]) if node.op_type in ("Conv", "QLinearConv") else 1
    return _elements(kept, node.output[0]) * kept.size(weights, axis) * window


def _macs_of_groups(kept: Kept, node: Any) -> int:
    weights = node.input[{"Conv": 1, "QLinearConv": 3}.get(node.op_type, 0)] if node.input else ""
    if node.op_type not in ("Conv", "QLinearConv") or int(attribute(node, "group", 1)) == 1:
        return 0
    return _elements(kept, node.output[0]) * math.prod(kept.channels.network.shapes[weights][1:])


def read_mask(mask: str | Path | Mapping[str, ArrayLike]) -> dict[str, NDArray]:
    """Arrays by layer, from a .json or .npz file, or as given.

    Raises
    ------
    InputError
        If the file is none.
    """
    if isinstance(mask, Mapping):
        return {name: np.asarray(value) for name, value in mask.items()}
    path = Path(mask)
    if path.suffix == ".npz":
        try:
            arrays = read_arrays(path)
        except ArrayFileError as error:
            raise InputError(str(error)) from error
        assert isinstance(arrays, dict)
        return arrays
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; give a mask as .json or .npz") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f'{path}: not a mask; write {{"LAYER": [1, 0, ...]}}, 1 for each channel that stays')
    result = {}
    for name, flags in values.items():
        try:
            result[name] = np.array(flags, np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: {name!r} is no list of 0 and 1") from error
    return result


def _names(layer: Layer, channels: Channels) -> set[str]:
    """Names by which a mask may call a layer: of the node, of its output, of its weights with and without `.weight`."""
    network, name = channels.network, layer.weights[0]
    while name not in network.initializers and name in network.producers:
        name = network.producers[name].input[0]
    return {layer.node.name, layer.node.output[0], name, name.removesuffix(".weight")}


def masked_filters(channels: Channels, mask: Mapping[str, NDArray]) -> dict[str, Flags]:
    """Filters that a mask takes out, by layer.

    Raises
    ------
    InputError
        If it names no layer, or its length is another.
    """
    path = channels.network.path
    result: dict[str, Flags] = {}
    for given, flags in mask.items():
        name = given.removesuffix("_mask").removesuffix(".weight")
        found = [layer for layer in channels.layers.values() if {given, name} & _names(layer, channels)]
        if len(found) != 1:
            known = list(channels.layers)
            more = f" and {len(known) - MOST} more" if len(known) > MOST else ""
            raise InputError(f"{path}: the mask names {given!r}, which is no layer ({', '.join(known[:MOST])}{more})")
        (layer,) = found
        count = channels.network.shapes[layer.output[0]][layer.output[1]]
        # Masks of whole weights, as PyTorch has them, keep a filter of which something is left.
        keep = flags if flags.ndim == 1 else flags.reshape(len(flags), -1).any(axis=1) if flags.ndim else flags
        if keep.shape != (count,) or not np.isin(keep, (0, 1)).all():
            raise InputError(f"{path}: the mask of {given!r} must have {count} values of 0 or 1, one for each channel")
        result[layer.node.name] = ~keep.astype(np.bool_)
    return result


def by_mask(channels: Channels, masked: Mapping[str, Flags]) -> Kept:
    """Take out what a mask names, where that changes no result.

    Raises
    ------
    InputError
        If the weights of a layer that it names cannot be made zero.
    """
    zeros = rules.zeros(channels, dict(masked))
    if zeros.refused:
        raise InputError(
            f"{channels.network.path}: the weights of {zeros.refused[0]!r} are computed, or shared with another layer; "
            "no mask can be laid on them"
        )
    groups, fixed = channels.groups()
    named: set[int] = set()
    for layer_name, flags in masked.items():
        own = _groups_of(channels, groups, layer_name)[flags]
        named.update(own[own >= 0].tolist())
    reasons = {group: why for group, why in fixed.items() if group in named}
    reasons |= {g: why for g, why in _not_zero(channels, zeros, groups).items() if g in named and g not in reasons}
    for group in _last_of_an_axis(channels, groups, named - reasons.keys()):
        reasons[group] = "a layer has no other"
    return Kept(channels, zeros, groups, frozenset(named - reasons.keys()), reasons)


def _groups_of(channels: Channels, groups: NDArray[np.int64], layer: str) -> NDArray[np.int64]:
    """The groups of a layer's filters."""
    output, axis = channels.layers[layer].output
    own = channels.of(output)[axis]
    return np.full(channels.network.shapes[output][axis], -1) if own is None else groups[own]


def _not_zero(channels: Channels, zeros: Zeros, groups: NDArray[np.int64]) -> dict[int, str]:
    """Groups with a channel that a sum reads and that is not zero there."""
    result: dict[int, str] = {}
    for reduction in channels.reductions:
        name, axis = reduction.operands[0]
        row = channels.of(name)[axis]
        if row is None:
            continue
        zero = zeros.of(name, axis)
        for other, at in reduction.operands[1:]:
            zero = zero | zeros.of(other, at)
        for group in groups[row[~zero]].tolist():
            result.setdefault(group, f"{describe(reduction.node)} reads other layers' values there, too")
    return result


def _last_of_an_axis(channels: Channels, groups: NDArray[np.int64], removed: set[int]) -> set[int]:
    """One group of each axis that would be left without any."""
    stay: set[int] = set()
    for axes in channels.axes.values():
        for row in axes:
            if row is not None and row.size:
                own = groups[row].tolist()
                if all(g in removed and g not in stay for g in own):
                    stay.add(own[0])
    return stay


def by_target(
    channels: Channels,
    target: float,
    measure: Measure,
    multiple: int,
    keep: Sequence[str],
) -> tuple[Kept, dict[str, Flags]]:
    """Take out the filters with the smallest sums of absolute weights, the same share everywhere, until a share of the
    work is gone; gives also the mask.

    Parameters
    ----------
    target
        Share of the multiplications, or of the layers' channels, that goes at least.
    multiple
        Numbers of channels that are left are multiples of it.
    keep
        Layers of which nothing goes.

    Raises
    ------
    InputError
        If so much cannot go.
    """
    path = channels.network.path
    for name in keep:
        if name not in channels.layers:
            raise InputError(f"{path}: no layer named {name!r} to keep ({', '.join(list(channels.layers)[:MOST])})")
    whole = by_mask(channels, {})
    order = _order(channels, keep)
    sets = {group: i for i, members in enumerate(order) for group in members}
    share = {group: (i + 0.5) / len(members) for members in order for i, group in enumerate(members)}
    ranked = sorted(sets, key=lambda g: (share[g], sets[g]))

    def after(count: int) -> Kept:
        gone: set[int] = set()
        taken = np.bincount([sets[g] for g in ranked[:count]], minlength=len(order))
        for members, number in zip(order, taken.tolist(), strict=True):
            left = max(1, -(-(len(members) - number) // multiple)) * multiple
            gone.update(members[: max(0, len(members) - left)])
        return Kept(channels, whole.zeros, whole.groups, frozenset(gone), {})

    def work(kept: Kept) -> int:
        return kept.macs() if measure == "macs" else _channels(kept)

    everything = work(whole)
    low, high = 0, len(ranked)
    if work(after(high)) > (1 - target) * everything:
        most = 1 - work(after(high)) / everything
        what = "multiplications" if measure == "macs" else "channels"
        raise InputError(f"{path}: at most {100 * most:.1f} % of the {what} can go (target: {100 * target:g} %)")
    while low < high:
        middle = (low + high) // 2
        if work(after(middle)) <= (1 - target) * everything:
            high = middle
        else:
            low = middle + 1
    removed = after(low).removed
    mask = {
        name: flags
        for name in channels.layers
        if (flags := np.isin(_groups_of(channels, whole.groups, name), list(removed))).any()
    }
    return by_mask(channels, mask), mask


def _channels(kept: Kept) -> int:
    """Channels of all layers."""
    return sum(kept.size(*layer.output) for layer in kept.channels.layers.values())


def _order(channels: Channels, keep: Sequence[str]) -> list[list[int]]:
    """Groups that may go, weakest first, apart for each set of layers that make them."""
    everything = {
        name: np.ones(channels.network.shapes[layer.output[0]][layer.output[1]], np.bool_)
        for name, layer in channels.layers.items()
    }
    zeros = rules.zeros(channels, everything)
    groups, fixed = channels.groups()
    stay = set(fixed) | set(_not_zero(channels, zeros, groups)) | {-1}
    for name in (*keep, *zeros.refused):
        stay.update(_groups_of(channels, groups, name).tolist())
    norms: dict[int, list[float]] = {}
    makers: dict[int, list[str]] = {}
    for name, layer in channels.layers.items():
        axis = layer.weights[1]
        data = np.abs(np.moveaxis(_real(channels, layer), axis, 0))
        sums = data.reshape(len(data), -1).sum(axis=1)
        mean = sums.mean() or 1.0
        for group, value in zip(_groups_of(channels, groups, name).tolist(), (sums / mean).tolist(), strict=True):
            norms.setdefault(group, []).append(value)
            if name not in makers.setdefault(group, []):
                makers[group].append(name)
    sets: dict[tuple[str, ...], list[int]] = {}
    for group, names in makers.items():
        if group not in stay:
            sets.setdefault(tuple(names), []).append(group)
    return [sorted(members, key=lambda g: (float(np.mean(norms[g])), g)) for members in sets.values()]


def _real(channels: Channels, layer: Layer) -> NDArray[np.float64]:
    """The weights of a layer as real numbers; in QOperator form scale and zero point stand beside them."""
    values, (name, axis) = channels.network.values, layer.weights
    data = values[name].astype(np.float64)
    if layer.node.op_type not in ("QGemm", "QLinearConv", "QLinearMatMul"):
        return data
    shape = [-1 if i == axis else 1 for i in range(data.ndim)]
    scale, point = (values[n].astype(np.float64).reshape(-1) for n in layer.node.input[4:6])
    return (data - (point.reshape(shape) if point.size > 1 else point)) * (
        scale.reshape(shape) if scale.size > 1 else scale
    )
