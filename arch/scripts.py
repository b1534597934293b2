"""A region as a script of the host link (`arch.link`): one request an inference, tensors packed on the line.

Activation memory has pixels and rows in whole granules; a script's steps leave out the bytes between them. A tensor
goes over the line bank by bank, as `TensorLocation.pack` has it, without these bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .artifact import Region, TensorLocation
from .config import AcceleratorConfig
from .isa import HostAddress, Register
from .link import Step, StepKind

__all__ = ["Exchange", "RegionScript", "answer_sizes", "packed_steps", "tensor_exchanges"]

MOST_COUNT = 0xFFFF
"""Words of a step."""
MOST_PAD = 0xFF
MOST_CHUNK = 0xFFFF
_RESULTS = (Register.STATUS, Register.CYCLES)
"""Registers that begin the answer of a region's script."""
assert all(b - a == 4 for a, b in pairwise(_RESULTS))


def _pattern(mask: NDArray[np.bool_]) -> tuple[int, int, int]:
    """(chunk, pad, words) of the longest step that a mask begins with; 0 words if there is none."""
    size = min(len(mask), 4 * MOST_COUNT)
    mask = mask[:size]
    gaps = np.flatnonzero(~mask)
    if not len(gaps):
        return 1, 0, size // 4
    chunk = int(gaps[0])
    behind = np.flatnonzero(mask[chunk:])
    pad = min(int(behind[0]) if len(behind) else size - chunk, MOST_PAD)
    if not 0 < chunk <= MOST_CHUNK:
        return 1, 0, 0
    tile = np.arange(size) % (chunk + pad) < chunk
    differs = np.flatnonzero(tile != mask)
    same = (int(differs[0]) if len(differs) else size) // 4
    if 4 * same < size:
        # The next step begins with a chunk, too.
        begins = np.flatnonzero(mask[: 4 * same + 4 : 4])
        same = int(begins[-1]) if len(begins) else 0
    return chunk, pad, same


def packed_steps(kind: StepKind, address: int, mask: NDArray[np.bool_]) -> tuple[list[Step], NDArray[np.bool_]]:
    """Steps for consecutive words at an address of which the bytes of `mask` go over the line, and those that do.

    mask: bool, a multiple of four of them. All bytes go over the line where steps cannot leave any out.
    """
    steps, position = [], 0
    while position < len(mask):
        chunk, pad, words = _pattern(mask[position:])
        if not words:
            return packed_steps(kind, address, np.ones(len(mask), bool))
        steps.append(Step(kind=kind, address=address + position, count=words, chunk=chunk, pad=pad))
        position += 4 * words
    return steps, mask


@dataclass(frozen=True, eq=False)
class Exchange:
    """Bytes at consecutive addresses, and which of them go over the line."""

    steps: tuple[Step, ...]
    mask: NDArray[np.bool_]

    @classmethod
    def of(cls, kind: StepKind, address: int, mask: NDArray[np.bool_]) -> Exchange:
        """With `packed_steps`."""
        steps, used = packed_steps(kind, address, mask)
        return cls(tuple(steps), used)

    @property
    def size(self) -> int:
        """Bytes on the line."""
        return int(np.count_nonzero(self.mask))

    def expand(self, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The bytes at the addresses from those of the line: 0 where none come."""
        full = np.zeros(len(self.mask), np.uint8)
        full[self.mask] = data
        return full


def tensor_exchanges(
    kind: StepKind, config: AcceleratorConfig, location: TensorLocation, *, packed: bool = True
) -> list[Exchange]:
    """A tensor in activation memory, one exchange for each bank; not `packed`: with the bytes between pixels."""
    ones = np.ones((location.rows, location.columns, location.channels), location.dtype)
    masks = [(data != 0) | (not packed) for data in location.pack(config, ones)]
    exchanges = []
    for bank, mask in enumerate(masks):
        address = HostAddress.ACTIVATIONS + (bank * config.bank_granules + location.base) * config.granule
        exchanges.append(Exchange.of(kind, address, mask))
    if any(np.any(e.mask != mask) for e, mask in zip(exchanges, masks, strict=True)):
        return tensor_exchanges(kind, config, location, packed=False)
    return exchanges


def answer_sizes(exchanges: Sequence[Exchange], max_words: int) -> tuple[int, ...]:
    """Bytes of each answer to RUN and the MORE behind it: the board begins no word that might not fit a frame."""
    sizes = [np.count_nonzero(exchange.mask.reshape(-1, 4), axis=1) for exchange in exchanges]
    words = np.concatenate([*sizes, np.zeros(0, np.int64)])
    frames, used = [], 0
    if words.sum() <= 4 * max_words - 4:
        return (int(words.sum()),)
    for size in words.tolist():
        if 4 * max_words - used < 4:
            frames.append(used)
            used = 0
        used += size
    return (*frames, used)


@dataclass(frozen=True, eq=False)
class RegionScript:
    """The script of a region: `steps` if it runs from one start command, else a `program` for each part.

    Attributes
    ----------
    inputs, outputs : for each tensor the exchange of each bank
    steps : of the script, END included
    """

    config: AcceleratorConfig
    region: Region
    inputs: tuple[tuple[Exchange, ...], ...]
    outputs: tuple[tuple[Exchange, ...], ...]

    @classmethod
    def of(cls, config: AcceleratorConfig, region: Region, *, packed: bool = True) -> RegionScript:
        """The script of a region; `packed`: see `tensor_exchanges`."""
        inputs = (tuple(tensor_exchanges(StepKind.WRITE, config, t, packed=packed)) for t in region.inputs)
        outputs = (tuple(tensor_exchanges(StepKind.READ, config, t, packed=packed)) for t in region.outputs)
        return cls(config, region, tuple(inputs), tuple(outputs))

    @property
    def _results(self) -> Exchange:
        return Exchange.of(StepKind.READ, HostAddress.REGISTERS + _RESULTS[0], np.ones(4 * len(_RESULTS), bool))

    def program(self, start: int, *, takes: bool = True, gives: bool = True) -> list[Step]:
        """What the board does for a program at a word of program memory; with the inputs before, the outputs behind."""
        begin = Step.put(HostAddress.REGISTERS + Register.PROGRAM_START, start, 1)
        inputs = [s for tensor in self.inputs for e in tensor for s in e.steps] if takes else []
        outputs = [s for tensor in self.outputs for e in tensor for s in e.steps] if gives else []
        return [*inputs, begin, Step(kind=StepKind.WAIT), *self._results.steps, *outputs, Step(kind=StepKind.END)]

    @property
    def steps(self) -> list[Step]:
        """What the board does."""
        return self.program(self.region.program_start)

    def answer_sizes(self, max_words: int) -> tuple[int, ...]:
        """As `answer_sizes`."""
        return answer_sizes([self._results, *(e for tensor in self.outputs for e in tensor)], max_words)

    def pack(self, values: Sequence[NDArray]) -> bytes:
        """The inputs as they go over the line, for values as `TensorLocation.pack` takes them."""
        banks = [
            data[exchange.mask].tobytes()
            for location, value, exchanges in zip(self.region.inputs, values, self.inputs, strict=True)
            for data, exchange in zip(location.pack(self.config, value), exchanges, strict=True)
        ]
        return b"".join(banks)

    def unpack(self, data: bytes) -> tuple[int, int, list[NDArray]]:
        """(status, cycles, outputs) from the bytes of the answer."""
        octets = np.frombuffer(data, np.uint8)
        status, cycles = (int(word) for word in np.frombuffer(data[: 4 * len(_RESULTS)], "<u4"))
        position, outputs = 4 * len(_RESULTS), []
        for location, exchanges in zip(self.region.outputs, self.outputs, strict=True):
            banks = []
            for exchange in exchanges:
                banks.append(exchange.expand(octets[position : position + exchange.size]))
                position += exchange.size
            outputs.append(location.unpack(self.config, banks))
        return status, cycles, outputs
