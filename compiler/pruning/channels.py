"""Which channels of a network belong together: what is taken out at one place is taken out at all of its group.

Each axis of each tensor is a row of *channels*, constants included. Operators tie them: a convolution's filters are its
output's channels, an addition's operands have the same ones, a Flatten has each of them several times. What is tied
forms a *group*, all of which goes, or nothing. Axes whose size is not to change are None.

A group may go if that changes no result: no sum over channels may lose a value that is not zero (`Reduction`, `Zeros`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .network import Network, attribute

__all__ = ["Axis", "Channels", "Flags", "Layer", "Reduction", "Zeros"]

Axis = NDArray[np.int64] | None
"""The channels of an axis by number; None: its size stays"""
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Layer:
    """A product whose filters can be taken out: along an axis of its weights, and of its output."""

    node: Any
    weights: tuple[str, int]
    bias: tuple[str, int] | None
    output: tuple[str, int]


@dataclass(frozen=True)
class Reduction:
    """A sum over channels: of products of operands, each with the axis that is summed over."""

    node: Any
    operands: tuple[tuple[str, int], ...]


@dataclass
class Channels:
    """The channels of a network, tied by its operators (`rules.tie`)."""

    network: Network
    axes: dict[str, list[Axis]] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    """by the name of the node"""
    reductions: list[Reduction] = field(default_factory=list)
    _parents: list[int] = field(default_factory=list)
    _fixed: dict[int, str] = field(default_factory=dict)

    def of(self, name: str) -> list[Axis]:
        """The axes of a tensor; those of a constant are its own."""
        if name not in self.axes:
            shape = self.network.shapes[name]
            own = name in self.network.initializers
            self.axes[name] = [self.new(n) if own else None for n in shape]
        return self.axes[name]

    def new(self, count: int) -> NDArray[np.int64]:
        """Channels that are tied to nothing."""
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return np.arange(first, first + count)

    def fix(self, axis: Axis, why: str) -> None:
        """Have channels stay."""
        if axis is not None:
            for channel in axis.tolist():
                self._fixed.setdefault(channel, why)

    def tie(self, a: Axis, b: Axis, node: Any) -> Axis:
        """Have two axes be the same channels; with one that stays, both do."""
        if a is None or b is None:
            self.fix(b if a is None else a, f"{describe(node)} has them along an axis that stays")
            return None
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            self._join(x, y)
        return a

    def tie_all(self, channels: Sequence[int]) -> None:
        """Have channels be one group."""
        for channel in channels[1:]:
            self._join(channels[0], channel)

    def _join(self, a: int, b: int) -> None:
        a, b = self._root(a), self._root(b)
        if a != b:
            self._parents[max(a, b)] = min(a, b)

    def _root(self, channel: int) -> int:
        parents = self._parents
        while parents[channel] != channel:
            parents[channel] = parents[parents[channel]]
            channel = parents[channel]
        return channel

    def groups(self) -> tuple[NDArray[np.int64], dict[int, str]]:
        """The group of every channel, and of groups that stay, why."""
        roots = np.array([self._root(i) for i in range(len(self._parents))], np.int64)
        fixed: dict[int, str] = {}
        for channel, why in self._fixed.items():
            fixed.setdefault(int(roots[channel]), why)
        return roots, fixed


def describe(node: Any) -> str:
    """A node, for a message."""
    return f"{node.op_type} {node.name!r}"


@dataclass
class Zeros:
    """Which channels are zero at each tensor if filters are masked: zero for any input of the network.

    Masked filters are zero with their bias; what adds something else to a channel that is zero (the bias of a depthwise
    convolution, a batch normalization, a constant) is zero there, too. So a masked channel is zero wherever only
    functions follow that keep zero. Of a quantized tensor zero is its zero point.
    """

    channels: Channels
    masked: Mapping[str, Flags]
    """by the name of the layer: filters that are masked"""
    flags: dict[str, list[Flags | None]] = field(default_factory=dict)
    zeroed: dict[tuple[str, int], Flags] = field(default_factory=dict)
    """by constant and axis: what the masks make zero"""
    zero_points: dict[str, tuple[str, int]] = field(default_factory=dict)
    """of quantized constants: what holds the zero point, and its axis"""
    refused: list[str] = field(default_factory=list)
    """layers whose weights cannot be made zero"""

    def of(self, name: str, axis: int) -> Flags:
        """Which channels of an axis are zero."""
        flags = self.flags.get(name)
        found = flags[axis] if flags else None
        return np.zeros(self.channels.network.shapes[name][axis], np.bool_) if found is None else found

    def put(self, name: str, axis: int, flags: Flags) -> None:
        """Note which channels of an axis are zero."""
        shape = self.channels.network.shapes[name]
        self.flags.setdefault(name, [None] * len(shape))[axis] = flags

    def make_zero(self, name: str, axis: int, flags: Flags, quantized: tuple[str, int] | None = None) -> bool:
        """Have a constant be zero in channels; False if it is computed by other than data types, or others read it.

        `quantized`: what holds its zero point, and along which axis, if it is quantized.
        """
        if not flags.any():
            return True
        network = self.channels.network
        while name not in network.initializers:
            node = network.producers.get(name)
            if node is None or network.readers[name] != 1 or not network.is_constant(name):
                return False
            quantized = None
            if node.op_type == "DequantizeLinear" and len(node.input) > 2 and node.input[2]:
                quantized = node.input[2], int(attribute(node, "axis", 1))
            elif node.op_type == "Transpose":
                permutation = list(attribute(node, "perm", range(len(network.shapes[name]))[::-1]))
                axis = permutation[axis]
            elif node.op_type not in ("Cast", "Clip", "DequantizeLinear", "Identity", "QuantizeLinear"):
                return False
            name = node.input[0]
        if network.readers[name] != 1:
            return False
        if quantized:
            self.zero_points[name] = quantized
        before = self.zeroed.get((name, axis))
        self.zeroed[name, axis] = flags if before is None else before | flags
        return True
