"""Checks made while a program runs: is the memory plan sound, did the RTL write what the golden model wrote.

Both are independent of the compiler: they see descriptors, locations in the manifest and writes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import Part, Region, TensorLocation
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import ArtifactError, DeviceError
from nnloom.arch.isa import Descriptor, Kind
from nnloom.arch.loopnest import TABLE_STAGES, finish_cycles

from .golden import WriteTrace
from .rtl import RtlWrites

__all__ = ["OwnershipChecker", "compare_writes", "layer_cycles", "written_tensor"]

_NOBODY = -1


class OwnershipChecker:
    """Follows which tensor owns each granule of the activation memory during one region.

    A descriptor may read only granules that all belong to one tensor; a tensor that was overwritten while
    it is still needed is found at the layer that reads it. Where a bank has a row less than others, that row's place is
    the tensor's, too, written or not.
    """

    def __init__(self, config: AcceleratorConfig, region: Region) -> None:
        self._config = config
        self._region = region
        self._owner = np.full((config.row_banks, config.bank_granules), _NOBODY, np.int64)
        self._names = [location.name for location in region.inputs]
        self._written: dict[str, int] = {}
        """owner by name"""
        self._executed = 0
        for index, location in enumerate(region.inputs):
            if region.external_number(location) is None:
                self._reserve(location, index)

    def load(self, part: Part) -> None:
        """Take note of the rows that a part brings from external memory: they belong to their tensor."""
        for rows in part.loads:
            location = self._region.external[rows.tensor]
            held = replace(location, rows=rows.count, base=rows.base)
            self._reserve(held, self._number(location.name))

    def _number(self, name: str) -> int:
        """Owner of a tensor's memory, by its name."""
        if name not in self._names:
            self._names.append(name)
        return self._names.index(name)

    def _reserve(self, location: TensorLocation, owner: int) -> None:
        self._owner[:, location.base : location.base + location.granules(self._config)] = owner

    def _reserve_tail(self, location: TensorLocation, owner: int) -> None:
        """The places of rows that some banks lack."""
        end = location.base + location.granules(self._config)
        for bank in range(self._config.row_banks):
            count = location.bank_bytes(self._config, bank) // self._config.granule
            self._owner[bank, location.base + count : end] = owner

    def before(self, descriptor: Descriptor) -> None:
        """Check what a descriptor is going to read.

        Raises
        ------
        ArtifactError
            If its operand is not one whole tensor.
        """
        d = descriptor
        bases = [d.in_base]
        if d.kind == Kind.ADD or d.product:
            bases.append(d.in2_base)
        if d.broadcast:
            # One pixel for all.
            self._one_owner(bases.pop(0), 1, (2 * d.n_g - d.half_last) * self._config.granule, d.in_row_stride)
        for base in bases:
            self._one_owner(base, d.in_rows, d.in_row_bytes, d.in_row_stride)

    def after(self, trace: WriteTrace) -> None:
        """Take note of the writes of a descriptor: they belong to the next tensor of the region.

        Several descriptors may write parts of one tensor: it is that tensor's memory from the first of them on.
        """
        index = self._executed
        self._executed += 1
        tensors = self._region.tensors
        name = tensors[index].name if index < len(tensors) else f"layer {index}"
        if index < len(tensors) and self._region.external_number(tensors[index]) is not None:
            # A buffer, which takes other rows each time.
            self._written[name] = self._number(name)
            self._reserve(tensors[index], self._written[name])
        elif name not in self._written:
            self._written[name] = len(self._names)
            self._names.append(name)
            if index < len(tensors):
                self._reserve_tail(tensors[index], self._written[name])
            if sum(location.name == name for location in tensors) > 1:
                self._reserve(tensors[index], self._written[name])
        for part in range(2):
            chosen = (trace.enable >> part & 1).astype(bool)
            granule = (trace.granule[chosen] + part) % self._config.bank_granules
            self._owner[trace.bank[chosen], granule] = self._written[name]

    def finish(self) -> None:
        """Check that the region's outputs are still whole.

        Raises
        ------
        ArtifactError
            If one was overwritten.
        """
        for location in self._region.outputs:
            if self._region.external_number(location) is not None:
                continue
            bytes_of_row = location.columns * location.pixel_stride
            owner = self._one_owner(location.base, location.rows, bytes_of_row, location.row_stride)
            if owner != location.name and location.name in self._names:
                raise ArtifactError(f"memory plan: output {location.name} was overwritten by {owner}")

    def _one_owner(self, base: int, rows: int, row_bytes: int, row_stride: int) -> str:
        config = self._config
        row = np.arange(rows)[:, None]
        granule = base + row // config.row_banks * row_stride + np.arange(-(-row_bytes // config.granule))
        owners = np.unique(self._owner[row % config.row_banks, granule % config.bank_granules])
        if len(owners) != 1 or owners[0] == _NOBODY:
            names = ", ".join("unwritten memory" if o == _NOBODY else self._names[o] for o in owners)
            raise ArtifactError(f"memory plan: a layer of {self._region.name} reads a mixture of {names}")
        return self._names[owners[0]]


def compare_writes(config: AcceleratorConfig, region: Region, golden: Sequence[WriteTrace], rtl: RtlWrites) -> None:
    """Require that the RTL wrote every byte that the golden model wrote, in the same order, and nothing else.

    Raises
    ------
    DeviceError
        At the first difference; names layer, write and both values.
    """
    for name in ("bank", "granule", "enable"):
        want: NDArray[np.int64] = np.concatenate([getattr(trace, name) for trace in golden])
        got: NDArray[np.int64] = getattr(rtl, name)
        if len(want) != len(got):
            raise DeviceError(f"{region.name}: RTL made {len(got)} writes, the golden model {len(want)}")
        _require_equal(region, golden, name, want, got)
    enable = np.repeat(rtl.enable[:, None] >> np.arange(2) & 1, config.granule, axis=1).astype(bool)
    want_data = np.where(enable, np.concatenate([trace.data for trace in golden]), 0)
    _require_equal(region, golden, "data", want_data, np.where(enable, rtl.data, 0))


def _require_equal(region: Region, golden: Sequence[WriteTrace], name: str, want: NDArray, got: NDArray) -> None:
    wrong = np.argwhere(want != got)
    if not len(wrong):
        return
    index = tuple(wrong[0])
    ends = np.cumsum([len(trace.bank) for trace in golden])
    layer = int(np.searchsorted(ends, index[0], side="right"))
    tensors = region.tensors
    label = tensors[layer].name if layer < len(tensors) else f"layer {layer}"
    raise DeviceError(
        f"{region.name}: RTL differs from the golden model in {len(wrong)} values of {name}, first in {label} at "
        f"{[int(i) for i in index]}: expected {int(want[index])}, got {int(got[index])}"
    )


def layer_cycles(
    config: AcceleratorConfig,
    descriptors: Sequence[Descriptor],
    golden: Sequence[WriteTrace],
    rtl: RtlWrites,
    total: int,
) -> list[int]:
    """Measured cycles of each layer, divided as `nnloom.compiler.cost.layer_cycles` does; they sum to `total`.

    A layer lasts from the last write of the layer before to its own last write. The time that the last
    result needs through the pipeline counts with the last layer, not the first.
    """
    counts = [len(trace.bank) for trace in golden]
    if not all(counts):
        # Layers that write nothing count with the next one that does.
        writing = [index for index, count in enumerate(counts) if count]
        result = [0] * len(golden)
        if writing:
            theirs, traces = [descriptors[index] for index in writing], [golden[index] for index in writing]
            for index, cycles in zip(writing, layer_cycles(config, theirs, traces, rtl, total), strict=True):
                result[index] = cycles
        result[-1] += total - sum(result)
        return result
    ends = np.cumsum(counts) - 1
    late = [TABLE_STAGES if d.table else 0 for d in descriptors]
    result = [int(v) for v in np.diff(rtl.cycle[ends] - late)]
    result.insert(0, total - sum(result))
    result[0] -= finish_cycles(config, descriptors[-1])
    result[-1] += finish_cycles(config, descriptors[-1])
    return result


def written_tensor(config: AcceleratorConfig, location: TensorLocation, trace: WriteTrace) -> NDArray[np.int8]:
    """The tensor that one descriptor wrote, gathered from its writes: int8 of the location's shape."""
    memory = np.zeros((config.row_banks, config.bank_granules, config.granule), np.uint8)
    for part in range(2):
        chosen = (trace.enable >> part & 1).astype(bool)
        granule = (trace.granule[chosen] + part) % config.bank_granules
        memory[trace.bank[chosen], granule] = trace.data[chosen, part * config.granule : (part + 1) * config.granule]
    banks = []
    for bank in range(config.row_banks):
        start = location.base
        count = location.bank_bytes(config, bank) // config.granule
        banks.append(memory[bank, start : start + count].reshape(-1))
    return location.unpack(config, banks)
