"""A Zynq board under PYNQ: the driver runs on its processor and shares DDR with the accelerator."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import Artifact, Region
from nnloom.arch.dma import (
    BUFFER_ALIGNMENT,
    DESCRIPTOR_BYTES,
    DMA_BASE,
    DMA_MAGIC,
    IP_NAME,
    DmaCommand,
    DmaControl,
    DmaRegister,
    DmaStatus,
    encode_list,
)
from nnloom.arch.errors import DeviceError, ToolMissingError
from nnloom.arch.isa import HostAddress
from nnloom.arch.lists import Lists, aligned_words, transfers

from .base import HostBusDevice, RegionResult
from .lists import list_failure, region_result

__all__ = ["BITSTREAM_FILE", "PynqDevice"]

BITSTREAM_FILE = "nnloom.bit"
"""In the artifact directory, with `nnloom.hwh` beside it."""
POLL_SECONDS = 20e-6


class _Memory:
    """A buffer in DDR."""

    def __init__(self, pynq: Any, words: int) -> None:
        self.words = pynq.allocate(shape=(max(1, words),), dtype=np.uint32)
        self.address = int(self.words.physical_address)
        if self.address % BUFFER_ALIGNMENT or self.address + self.words.nbytes > 1 << 32:
            self.free()
            raise DeviceError(f"buffer at {self.address:#x} is unaligned or beyond 4 GiB")

    def free(self) -> None:
        """Release the buffer."""
        self.words.freebuffer()


class PynqDevice(HostBusDevice):
    """Driver of an nnloom overlay. A region is one list for the DMA (`nnloom.arch.lists`).

    Parameters
    ----------
    bitstream
        The overlay; default `nnloom.bit` of the artifact. Its `.hwh` lies beside it.
    pynq
        The PYNQ library, or what behaves like it; default: imported when an artifact is loaded.
    """

    def __init__(self, bitstream: str | Path | None = None, *, pynq: Any = None) -> None:
        super().__init__()
        self._bitstream = bitstream
        self._pynq = pynq
        self._overlay: Any = None
        self._loaded_file: Path | None = None
        self._mmio: Any = None
        self._lists: Lists | None = None
        self._image: _Memory | None = None
        self._table: _Memory | None = None

    def load(self, artifact: Artifact) -> None:
        """Load the overlay unless it is there, check it, and load program and weights.

        Raises
        ------
        ToolMissingError
            If the PYNQ library is not installed.
        DeviceError
            If the overlay cannot be loaded, is not the artifact's, or the DMA fails.
        """
        if self._pynq is None:
            try:
                self._pynq = importlib.import_module("pynq")
            except ImportError as error:
                raise ToolMissingError("the PYNQ library is not installed; run this on a PYNQ board") from error
        self._release()
        file = Path(self._bitstream) if self._bitstream is not None else artifact.path / BITSTREAM_FILE
        if self._loaded_file != file:
            try:
                self._overlay = self._pynq.Overlay(str(file))
                entry = self._overlay.ip_dict[IP_NAME]
            except KeyError as error:
                raise DeviceError(f"{file}: the overlay has no {IP_NAME!r}; build it with nnloom") from error
            except (OSError, RuntimeError, ValueError) as error:
                raise DeviceError(f"{file}: the overlay cannot be loaded ({error})") from error
            self._mmio = self._pynq.MMIO(entry["phys_addr"], entry["addr_range"])
            self._loaded_file = file
        identity = self._mmio.read(DMA_BASE + DmaRegister.ID)
        if identity != DMA_MAGIC:
            raise DeviceError(f"{file}: DMA answers {identity:#010x}, not {DMA_MAGIC:#010x}; build the overlay again")
        self.reset()
        super().load(artifact)
        lists = Lists.of(artifact)
        self._image, self._table = _Memory(self._pynq, lists.image_words), _Memory(self._pynq, lists.table_words)
        image = lists.image(image_address=self._image.address, table_address=self._table.address)
        self._image.words[: len(image)] = image
        self._image.words.flush()
        self._lists = lists

    def reset(self) -> None:
        """Bring DMA and accelerator to rest; the memories keep their content."""
        self._abort()
        self._write_dma(DmaRegister.CONTROL, DmaControl.RESET)

    def write_words(self, addresses: NDArray[np.uint32], words: NDArray[np.uint32]) -> None:
        """Write registers over AXI4-Lite, memories by DMA."""
        if _are_registers(addresses):
            for address, word in zip(addresses.tolist(), words.tolist(), strict=True):
                self._mmio.write(address, word)
            return
        self._move(DmaCommand.LOAD, addresses, words)

    def read_words(self, addresses: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Read registers over AXI4-Lite, memories by DMA."""
        if _are_registers(addresses):
            return np.array([self._mmio.read(address) for address in addresses.tolist()], np.uint32)
        return self._move(DmaCommand.STORE, addresses, np.zeros(len(addresses), np.uint32))

    def _move(
        self, command: DmaCommand, addresses: NDArray[np.uint32], words: NDArray[np.uint32]
    ) -> NDArray[np.uint32]:
        """Move words by a list of its own; returns what is in its buffer then."""
        moved = transfers(addresses)
        if not moved:
            return words
        # Each transfer begins at a multiple of the alignment.
        edges = np.cumsum([0, *(transfer.words for transfer in moved)]).tolist()
        places = np.cumsum([DESCRIPTOR_BYTES // 4 * len(moved), *(aligned_words(t.words) for t in moved)]).tolist()
        memory = _Memory(self._pynq, places[-1])
        try:
            descriptors = [
                transfer.descriptor(command, memory.address + 4 * place)
                for transfer, place in zip(moved, places, strict=False)
            ]
            memory.words[: DESCRIPTOR_BYTES // 4 * len(moved)] = encode_list(descriptors)
            pairs = [
                (slice(p, p + t.words), slice(e, e + t.words)) for t, p, e in zip(moved, places, edges, strict=False)
            ]
            for place, piece in pairs:
                memory.words[place] = words[piece]
            memory.words.flush()
            self._execute(memory.address)
            memory.words.invalidate()
            return np.concatenate([np.array(memory.words[place]) for place, _ in pairs])
        finally:
            memory.free()

    def run_region(
        self, region: Region, inputs: Sequence[NDArray[np.int8]], *, count_layers: bool = False
    ) -> RegionResult:
        """Run a region: one list of inputs, programs, outputs."""
        config = self._loaded_config()
        assert self._lists is not None and self._image is not None and self._table is not None
        mine, table = self._lists.regions[region.name], self._table.words
        for move, words in zip(mine.inputs, mine.pack(config, inputs), strict=True):
            table[move.words] = words
        table.flush()
        self.check_idle(self._read_status())
        self._execute(self._image.address + 4 * (mine.counting_word if count_layers else mine.list_word))
        table.invalidate()
        return region_result(config, mine, np.array(table), counting=count_layers)

    def _read_dma(self, register: DmaRegister) -> int:
        return int(self._mmio.read(DMA_BASE + register))

    def _write_dma(self, register: DmaRegister, value: int) -> None:
        self._mmio.write(DMA_BASE + register, int(value))

    def _execute(self, address: int) -> None:
        """Run the list at an address to its end.

        Raises
        ------
        DeviceError
            If it ends with an error, or not within `timeout_seconds` (then it is aborted).
        """
        self._write_dma(DmaRegister.LIST, address)
        self._write_dma(DmaRegister.CONTROL, DmaControl.START)
        if not self._wait():
            self._abort()
            raise DeviceError(f"device did not finish within {self.timeout_seconds:g} s")
        status = self._read_dma(DmaRegister.STATUS)
        failure = list_failure(status, self._read_dma(DmaRegister.ERROR_ADDRESS), "DDR")
        if failure:
            raise DeviceError(failure)

    def _wait(self) -> bool:
        """Wait until the DMA is at rest; False if it is not in time."""
        deadline = time.monotonic() + self.timeout_seconds
        while self._read_dma(DmaRegister.STATUS) & DmaStatus.BUSY:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def _abort(self) -> None:
        if self._read_dma(DmaRegister.STATUS) & DmaStatus.BUSY:
            self._write_dma(DmaRegister.CONTROL, DmaControl.ABORT)
            if not self._wait():
                self._loaded_file = None
                raise DeviceError("DMA does not come to rest; the overlay has to be loaded again")

    def _release(self) -> None:
        for memory in (self._image, self._table):
            if memory is not None:
                memory.free()
        self._image = self._table = self._lists = None

    def close(self) -> None:
        """Release the buffers. The overlay stays loaded."""
        self._release()
        self._overlay = self._mmio = None
        self._loaded_file = None


def _are_registers(addresses: NDArray[np.uint32]) -> bool:
    return bool(len(addresses)) and bool(np.all(addresses < HostAddress.PROGRAM))
