"""A Zynq board under PYNQ: the driver runs on its processor and shares DDR with the accelerator."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import Artifact, Region, TensorLocation
from nnloom.arch.dma import (
    BUFFER_ALIGNMENT,
    DESCRIPTOR_BYTES,
    DMA_BASE,
    DMA_MAGIC,
    IP_NAME,
    DmaCause,
    DmaCommand,
    DmaControl,
    DmaDescriptor,
    DmaRegister,
    DmaStatus,
    encode_list,
)
from nnloom.arch.errors import DeviceError, ToolMissingError
from nnloom.arch.isa import HostAddress, Register

from .base import HostBusDevice, RegionResult

__all__ = ["BITSTREAM_FILE", "PynqDevice", "Transfer", "transfers"]

BITSTREAM_FILE = "nnloom.bit"
"""In the artifact directory, with `nnloom.hwh` beside it."""
POLL_SECONDS = 20e-6
_ALIGNMENT_WORDS = BUFFER_ALIGNMENT // 4
_DESCRIPTOR_WORDS = DESCRIPTOR_BYTES // 4
_CAUSES = {
    DmaCause.FETCH: "a descriptor could not be read",
    DmaCause.READ: "a read of DDR failed",
    DmaCause.WRITE: "a write to DDR failed",
    DmaCause.DESCRIPTOR: "a descriptor is invalid",
    DmaCause.ENGINE: "the accelerator reports an access to its memories while it was running",
}


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Words that one DMA descriptor can move: `rows` of `row_words`, `row_step` host bus words apart."""

    host_address: int
    row_words: int
    row_step: int = 0
    rows: int = 1

    @property
    def words(self) -> int:
        """All words."""
        return self.rows * self.row_words

    def descriptor(self, command: DmaCommand, ddr_address: int) -> DmaDescriptor:
        """The transfer as a descriptor."""
        return DmaDescriptor(
            command=command,
            ddr_address=ddr_address,
            host_address=self.host_address,
            words=self.words,
            row_words=self.row_words if self.rows > 1 else 0,
            row_step=self.row_step,
        )


def transfers(addresses: NDArray[np.uint32]) -> list[Transfer]:
    """The fewest transfers, in order, that touch these host bus addresses one after the other."""
    if len(addresses) == 0:
        return []
    values = addresses.astype(np.int64)
    edges = [0, *(np.flatnonzero(np.diff(values) != 4) + 1).tolist(), len(values)]
    result: list[Transfer] = []
    for first, last in pairwise(edges):
        start, words = int(values[first]), last - first
        if result:
            before = result[-1]
            step = (start - before.host_address) // 4
            if before.rows > 1:
                step -= before.row_step * (before.rows - 1)
            # A step goes forward, and fits the descriptor's field, as a row must.
            same = words == before.row_words and words < 1 << 16 and 0 < step < 1 << 16
            if same and (before.rows == 1 or step == before.row_step):
                result[-1] = replace(before, rows=before.rows + 1, row_step=step)
                continue
        result.append(Transfer(host_address=start, row_words=words))
    return result


def _aligned(words: int) -> int:
    return -(-words // _ALIGNMENT_WORDS) * _ALIGNMENT_WORDS


class _Job:
    """A buffer in DDR with a list of descriptors and, behind it, the words that they move."""

    def __init__(
        self, pynq: Any, loads: Sequence[Transfer], stores: Sequence[Transfer], program_start: int | None
    ) -> None:
        count = len(loads) + len(stores) + (program_start is not None)
        position = _aligned(_DESCRIPTOR_WORDS * count)
        parts = []
        for transfer in (*loads, *stores):
            parts.append(slice(position, position + transfer.words))
            position += _aligned(transfer.words)
        self._buffer = pynq.allocate(shape=(position,), dtype=np.uint32)
        self.address = int(self._buffer.physical_address)
        if self.address % BUFFER_ALIGNMENT or self.address + 4 * position > 1 << 32:
            raise DeviceError(f"buffer at {self.address:#x} is unaligned or beyond 4 GiB")
        self._loads, self._stores = parts[: len(loads)], parts[len(loads) :]
        descriptors = [
            *(
                t.descriptor(DmaCommand.LOAD, self.address + 4 * p.start)
                for t, p in zip(loads, self._loads, strict=True)
            ),
            *([] if program_start is None else [DmaDescriptor(command=DmaCommand.RUN, host_address=program_start)]),
            *(
                t.descriptor(DmaCommand.STORE, self.address + 4 * p.start)
                for t, p in zip(stores, self._stores, strict=True)
            ),
        ]
        self._buffer[: _DESCRIPTOR_WORDS * count] = encode_list(descriptors)

    def put(self, words: NDArray[np.uint32]) -> None:
        """The words to load, and list and words into DDR."""
        position = 0
        for part in self._loads:
            size = part.stop - part.start
            self._buffer[part] = words[position : position + size]
            position += size
        self._buffer.flush()

    def get(self) -> NDArray[np.uint32]:
        """The words that were stored."""
        self._buffer.invalidate()
        parts = [np.array(self._buffer[part]) for part in self._stores]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint32)

    def free(self) -> None:
        """Release the buffer."""
        self._buffer.freebuffer()


class PynqDevice(HostBusDevice):
    """Driver of an nnloom overlay. A region is one list for the DMA: inputs, program, outputs.

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
        self._jobs: dict[str, _Job] = {}

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
        self._release_jobs()
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
        job = _Job(self._pynq, transfers(addresses), (), None)
        try:
            job.put(words)
            self._execute(job)
        finally:
            job.free()

    def read_words(self, addresses: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Read registers over AXI4-Lite, memories by DMA."""
        if _are_registers(addresses):
            return np.array([self._mmio.read(address) for address in addresses.tolist()], np.uint32)
        job = _Job(self._pynq, (), transfers(addresses), None)
        try:
            job.put(np.zeros(0, np.uint32))
            self._execute(job)
            return job.get()
        finally:
            job.free()

    def run_region(
        self, region: Region, inputs: Sequence[NDArray[np.int8]], *, count_layers: bool = False
    ) -> RegionResult:
        """Write the inputs, run the region's program, read the outputs: one list, unless the region has parts."""
        if region.parts:
            return super().run_region(region, inputs, count_layers=count_layers)
        config = self._loaded_config()
        if region.name not in self._jobs:
            self._jobs[region.name] = _Job(
                self._pynq,
                transfers(self._tensor_addresses(region.inputs)),
                transfers(self._tensor_addresses(region.outputs)),
                region.program_start,
            )
        job = self._jobs[region.name]
        banks = [b for tensor, v in zip(region.inputs, inputs, strict=True) for b in tensor.pack(config, v)]
        job.put(np.concatenate([bank.view("<u4") for bank in banks]).astype(np.uint32))
        self.check_idle(self._read_status())
        self._execute(job)
        cycles = self._read_register(Register.CYCLES)
        layers, waits = self._count_layers(cycles) if count_layers else ([], [])
        data = job.get().astype("<u4").view(np.uint8)
        outputs, position = [], 0
        for tensor in region.outputs:
            sizes = [tensor.bank_bytes(config, bank) for bank in range(config.row_banks)]
            edges = np.cumsum([position, *sizes]).tolist()
            outputs.append(tensor.unpack(config, [data[a:b] for a, b in pairwise(edges)]))
            position = edges[-1]
        return RegionResult(
            outputs=outputs,
            cycles=cycles,
            program_cycles=(cycles,),
            layer_cycles=tuple(layers),
            layer_waits=tuple(waits),
        )

    def _tensor_addresses(self, tensors: Sequence[TensorLocation]) -> NDArray[np.uint32]:
        config = self._loaded_config()
        return np.concatenate([self._addresses(config, t, bank) for t in tensors for bank in range(config.row_banks)])

    def _read_dma(self, register: DmaRegister) -> int:
        return int(self._mmio.read(DMA_BASE + register))

    def _write_dma(self, register: DmaRegister, value: int) -> None:
        self._mmio.write(DMA_BASE + register, int(value))

    def _execute(self, job: _Job) -> None:
        """Run a list to its end.

        Raises
        ------
        DeviceError
            If it ends with an error, or not within `timeout_seconds` (then it is aborted).
        """
        self._write_dma(DmaRegister.LIST, job.address)
        self._write_dma(DmaRegister.CONTROL, DmaControl.START)
        if not self._wait():
            self._abort()
            raise DeviceError(f"device did not finish within {self.timeout_seconds:g} s")
        status = self._read_dma(DmaRegister.STATUS)
        if status & DmaStatus.ERROR:
            cause = _CAUSES.get(status >> 8 & 0xF, "unknown cause")  # type: ignore[call-overload]
            address = self._read_dma(DmaRegister.ERROR_ADDRESS)
            raise DeviceError(f"DMA: {cause} (DDR address {address:#010x})")
        if not status & DmaStatus.DONE or status & DmaStatus.ABORTED:
            raise DeviceError("DMA: the list was ended by somebody else")

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

    def _release_jobs(self) -> None:
        for job in self._jobs.values():
            job.free()
        self._jobs.clear()

    def close(self) -> None:
        """Release the buffers. The overlay stays loaded."""
        self._release_jobs()
        self._overlay = self._mmio = None
        self._loaded_file = None


def _are_registers(addresses: NDArray[np.uint32]) -> bool:
    return bool(len(addresses)) and bool(np.all(addresses < HostAddress.PROGRAM))
