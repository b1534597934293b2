"""What the drivers of the DMA engine have in common: how a list ended, and what a region's list left in the table."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.dma import DmaCause, DmaStatus
from nnloom.arch.isa import Counter
from nnloom.arch.lists import RegionList

from .base import LayerWaits, RegionResult, layer_counts

__all__ = ["list_failure", "region_result"]

_CAUSES = {
    DmaCause.FETCH: "a descriptor could not be read",
    DmaCause.READ: "a read of {memory} failed",
    DmaCause.WRITE: "a write to {memory} failed",
    DmaCause.DESCRIPTOR: "a descriptor is invalid",
    DmaCause.ENGINE: "the accelerator reports an error of a program, or an access to its memories while it was running",
}


def list_failure(status: int, error_address: int, memory: str) -> str | None:
    """What went wrong with a list that has ended, by the DMA's registers, or None; `memory`: what to call it."""
    if status & DmaStatus.ERROR:
        cause = _CAUSES.get(status >> 8 & 0xF, "unknown cause").format(memory=memory)  # type: ignore[call-overload]
        return f"DMA: {cause} ({memory} address {error_address:#010x})"
    if not status & DmaStatus.DONE or status & DmaStatus.ABORTED:
        return "DMA: the list was ended by somebody else"
    return None


def region_result(
    config: AcceleratorConfig,
    region: RegionList,
    table: NDArray[np.uint32],
    *,
    counting: bool,
    list_cycles: int | None = None,
) -> RegionResult:
    """What a region's list has stored in the table.

    table: all of its words; only results, outputs and, with `counting`, counters are looked at.
    """
    cycles = [int(table[move.words][1]) for move in region.results]
    layers: list[int] = []
    waits: list[LayerWaits] = []
    for move, program_cycles in zip(region.counters, cycles, strict=False) if counting else ():
        counted, waited = layer_counts(table[move.words].astype(np.int64).reshape(-1, len(Counter)), program_cycles)
        layers += counted
        waits += waited
    return RegionResult(
        outputs=region.unpack(config, [table[move.words] for move in region.outputs]),
        cycles=sum(cycles),
        program_cycles=tuple(cycles),
        layer_cycles=tuple(layers),
        layer_waits=tuple(waits),
        list_cycles=list_cycles,
    )
