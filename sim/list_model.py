"""The golden model of lists: executes descriptors of the DMA on the memories of an engine, in any order they allow.

It knows descriptors and memory words only. Programs that a list has started run when the caller says, at the latest
when a descriptor waits for them: where a list does not wait enough, programs that run late find other weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.dma import PROGRAM_QUEUE, DmaCommand, DmaDescriptor
from nnloom.arch.isa import TABLE_ENTRIES, HostAddress, Register, Status, decode_program, weight_stride

from .golden import GoldenModel, WriteTrace

__all__ = ["ListModel", "early", "late"]


def late(under_way: int) -> int:
    """Programs run when something waits for them."""
    return 0


def early(under_way: int) -> int:
    """Programs run at once."""
    return under_way


class ListModel:
    """An engine behind a DMA.

    Parameters
    ----------
    config
        The accelerator.
    tables
        uint8 [tables, 256], those of the engine before the first list.

    Attributes
    ----------
    activations : uint8 [bank, byte]
    program : uint32 [words]
    traces : list of list of `WriteTrace`
        What each program of the last list has written, layer by layer.
    """

    def __init__(self, config: AcceleratorConfig, tables: NDArray[np.uint8] | None = None) -> None:
        self.config = config
        self.program = np.zeros(config.program_words, np.uint32)
        self._weights = np.zeros((config.weight_words, weight_stride(config)), np.uint8)
        self._tables = np.zeros((config.tables, TABLE_ENTRIES), np.uint32)
        """an entry a word of the host bus"""
        if tables is not None:
            self._tables[: len(tables)] = tables
        self.activations = np.zeros((config.row_banks, config.bank_granules * config.granule), np.uint8)
        self.traces: list[list[WriteTrace]] = []
        self._layers = 0
        self._models: dict[tuple[bytes, ...], GoldenModel] = {}

    def execute(
        self,
        descriptors: Sequence[DmaDescriptor],
        memory: NDArray[np.uint32],
        schedule: Callable[[int], int] = late,
    ) -> None:
        """Execute a list.

        Parameters
        ----------
        memory
            uint32, the DMA's memory from address 0 on; stores write into it.
        schedule
            Of so many programs under way, how many run before the next descriptor, if none has to.
        """
        self.traces = []
        waiting: list[int] = []
        for d in descriptors:
            most = min(d.under_way, PROGRAM_QUEUE - 1) if d.command == DmaCommand.RUN else d.under_way
            count = max(len(waiting) - most, min(schedule(len(waiting)), len(waiting)))
            for start in waiting[:count]:
                self._run(start)
            del waiting[:count]
            if d.command == DmaCommand.RUN:
                waiting.append(d.host_address)
            else:
                self._move(d, memory)
        for start in waiting:
            self._run(start)

    def _run(self, start: int) -> None:
        weights = np.ascontiguousarray(self._weights[:, : self.config.weight_word_bytes])
        tables = self._tables.astype(np.uint8)
        key = self.program.tobytes(), weights.tobytes(), tables.tobytes()
        if key not in self._models:
            self._models[key] = GoldenModel(self.config, self.program.copy(), weights, tables, self.activations)
        model = self._models[key]
        self.traces.append([model.execute(d) for d in decode_program(model.program, start)])
        self._layers = len(self.traces[-1])

    def _move(self, d: DmaDescriptor, memory: NDArray[np.uint32]) -> None:
        index = np.arange(d.words)
        row = d.row_words or d.words
        offsets = d.host_address + 4 * (index // row * d.row_step + index % row)
        window = HostAddress(HostAddress.window(d.host_address))
        place = slice(d.ddr_address // 4, d.ddr_address // 4 + d.words)
        words = (offsets - window) // 4
        if window == HostAddress.REGISTERS:
            values = {Register.STATUS: int(Status.DONE), Register.LAYERS: self._layers}
            memory[place] = [values.get(offset, 0) for offset in offsets.tolist()]
            return
        if window == HostAddress.COUNTERS:
            memory[place] = 0
            return
        cells = {
            HostAddress.PROGRAM: self.program,
            HostAddress.WEIGHTS: self._weights.reshape(-1).view("<u4"),
            HostAddress.TABLES: self._tables.reshape(-1),
            HostAddress.ACTIVATIONS: self.activations.reshape(-1).view("<u4"),
        }[window]
        if d.command == DmaCommand.STORE:
            memory[place] = cells[words]
        else:
            cells[words] = memory[place]
