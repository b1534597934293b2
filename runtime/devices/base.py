"""What a session asks of a device, and the driver of an accelerator behind its host bus."""

from __future__ import annotations

import abc
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import Artifact, EngineImage, Part, Region, Rows, TensorLocation
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import DeviceCause, DeviceError
from nnloom.arch.external import ExternalTensors
from nnloom.arch.isa import (
    ISA_VERSION,
    MAGIC,
    TABLE_ENTRIES,
    WATCHDOG_BITS,
    Counter,
    ErrorCause,
    HostAddress,
    Register,
    Status,
    weight_stride,
    weight_word_columns,
)
from nnloom.arch.legality import check_image
from nnloom.arch.table_places import TablePlaces

__all__ = ["Device", "DeviceStats", "HostBusDevice", "Identity", "LayerWaits", "RegionResult", "layer_counts"]


@dataclass(frozen=True, kw_only=True)
class DeviceStats:
    """Faults that a device's driver has mended."""

    retries: int = 0
    """requests sent again"""
    crc_errors: int = 0
    """damaged frames, either way"""
    timeouts: int = 0
    """waits for an answer that did not come"""
    resets: int = 0
    """sessions lost: the board was reset, or taken by another driver"""
    reconnects: int = 0
    """times the port was opened again"""


@dataclass(frozen=True)
class Identity:
    """What an accelerator says of itself: the registers MAGIC, VERSION and CONFIG_HASH."""

    magic: int
    isa_version: int
    config_hash: int


REST_POLL_SECONDS = 0.01
"""Time between looks at a device that runs another driver's program."""


@dataclass(frozen=True, kw_only=True)
class LayerWaits:
    """Cycles of a layer in which the engine issued no step, as `arch.isa.Counter` tells them apart."""

    start: int
    parameters: int
    requantization: int


@dataclass(frozen=True, kw_only=True)
class RegionResult:
    """What a region answered, and how long it took."""

    outputs: list[NDArray[np.int8]]
    """int8, of the shapes of the region's outputs"""
    cycles: int | None = None
    """of all its programs, None if the device does not count"""
    program_cycles: tuple[int, ...] = ()
    """of each program: one, or one for each part"""
    layer_cycles: tuple[int, ...] = ()
    """of each layer, if they were counted; they sum to `cycles`"""
    layer_waits: tuple[LayerWaits, ...] = ()
    """which of these cycles were spent waiting"""
    list_cycles: int | None = None
    """of the list that ran the programs, transfers of the board's own memory included; None if there was none, or the
    device does not count"""


_CAUSES = {
    ErrorCause.NONE: "an error of its own; reset it",
    ErrorCause.ACCESS: "an access to its memories while it was running; reset it",
    ErrorCause.PROGRAM: "a program that it cannot run: its memories do not hold what was loaded, or its bitstream is "
    "not that of this software; load the artifact again, then build and program the bitstream again",
    ErrorCause.WATCHDOG: f"a program that did not end within 2**{WATCHDOG_BITS} cycles; use an accelerator with more "
    "lanes, or the CPU",
}
"""What happened and what to do, for each cause."""


class Device(abc.ABC):
    """Runs accelerator regions. A context manager: closed at its end."""

    overlaps = False
    """`run_batch` takes further inputs before it has answered."""
    simulated = False
    """What it does is checked rather than used: a failure is a finding, and the CPU never answers in its place."""

    @abc.abstractmethod
    def load(self, artifact: Artifact) -> None:
        """Take over an artifact's program and weights."""

    @abc.abstractmethod
    def run_region(
        self, region: Region, inputs: Sequence[NDArray[np.int8]], *, count_layers: bool = False
    ) -> RegionResult:
        """Run a region; with `count_layers` and a device that can, the result tells the cycles of each layer."""

    def run_batch(
        self, region: Region, batch: Iterable[Sequence[NDArray[np.int8]]], *, count_layers: bool = False
    ) -> Generator[RegionResult]:
        """As `run_region` for each inputs in turn; a device that can takes further ones before it has answered."""
        for inputs in batch:
            yield self.run_region(region, inputs, count_layers=count_layers)

    @property
    def stats(self) -> DeviceStats:
        """Faults that the driver has mended."""
        return DeviceStats()

    def close(self) -> None:  # noqa: B027 (not every device holds something)
        """Release the device."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def layer_counts(ends: NDArray[np.int64], program_cycles: int) -> tuple[list[int], list[LayerWaits]]:
    """Cycles and waits of each layer of a program, from its counters at the layers' ends [layers, counters]."""
    ends = ends.copy()
    # The time through the pipeline counts with the last layer.
    ends[-1:, Counter.CYCLES] = program_cycles
    counts = np.diff(ends, axis=0, prepend=0)
    waits = [
        LayerWaits(
            start=int(row[Counter.WAITS_START]),
            parameters=int(row[Counter.WAITS_PARAMETERS]),
            requantization=int(row[Counter.WAITS_REQUANTIZATION]),
        )
        for row in counts
    ]
    return counts[:, Counter.CYCLES].tolist(), waits


class HostBusDevice(Device):
    """An accelerator reached by reads and writes on its host bus: over a serial line, in simulation, ...

    Subclasses give `write_words` and `read_words`. Addresses are those of `nnloom.arch.isa`.
    """

    timeout_seconds = 10.0
    """Longest wait for a region to finish."""

    def __init__(self) -> None:
        self._config: AcceleratorConfig | None = None
        self._images: EngineImage | None = None
        self._part: Part | None = None
        """What program memory holds, if not all of the artifact."""
        self._weights: tuple[int, int, int] | None = None
        """What weight memory holds (`Part.weights_place`); None: not known."""
        self._places: TablePlaces | None = None
        """What the tables hold, of a network that has more of them."""
        self._shares = False
        """whether all parts have the same weights"""

    @abc.abstractmethod
    def write_words(self, addresses: NDArray[np.uint32], words: NDArray[np.uint32]) -> None:
        """Write 32-bit words, each to its byte address, in order."""

    @abc.abstractmethod
    def read_words(self, addresses: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Read 32-bit words."""

    def _read_register(self, register: Register) -> int:
        return int(self.read_words(np.array([HostAddress.REGISTERS + register], np.uint32))[0])

    def _write_register(self, register: Register, value: int) -> None:
        self.write_words(np.array([HostAddress.REGISTERS + register], np.uint32), np.array([value], np.uint32))

    def identify(self) -> Identity:
        """Ask the accelerator what it is."""
        return Identity(*(self._read_register(r) for r in (Register.MAGIC, Register.VERSION, Register.CONFIG_HASH)))

    def load(self, artifact: Artifact) -> None:
        """Check that the accelerator is the one the artifact was compiled for, then load program, weights and tables.

        Those of an artifact in parts are loaded when they are needed, for each inference again; weights that all parts
        have in common, once. A program that another
        driver has started is waited for, since the memories take no writes meanwhile; one that does not end within
        `timeout_seconds` is ended by a reset.

        Raises
        ------
        DeviceError
            If what answers is not an nnloom accelerator, or one of another version or configuration; if it does not
            come to rest.
        IllegalProgramError
            If the engine would refuse a program of the artifact.
        """
        self.load_image(artifact.image)
        parts = [part for region in artifact.manifest.all_regions for part in region.parts]
        self._shares = len(parts) > 1 and len({part.weights_place for part in parts}) == 1
        if self._shares:
            self._load_weights(parts[0])

    def load_image(self, image: EngineImage) -> None:
        """As `load`, of what the engine takes of an artifact."""
        config = image.config
        identity = self.identify()
        if identity.magic != MAGIC:
            raise DeviceError(
                f"device answers {identity.magic:#010x}, not as an nnloom accelerator; load the bitstream first",
                cause=DeviceCause.OTHER_VERSION,
            )
        if identity.isa_version != ISA_VERSION:
            raise DeviceError(
                f"device has instruction set {identity.isa_version}, this software {ISA_VERSION}; "
                "build and program it again",
                cause=DeviceCause.OTHER_VERSION,
            )
        if identity.config_hash != config.hash:
            raise DeviceError(
                f"device has configuration {identity.config_hash:#010x}, the artifact was compiled for "
                f"{config.hash:#010x}; program the artifact's own bitstream",
                cause=DeviceCause.OTHER_CONFIGURATION,
            )
        self._come_to_rest()
        self._config = config
        self._images, self._part, self._weights, self._places = image, None, None, TablePlaces(config)
        if image.is_whole and self._holds(image):
            return
        if len(image.tables) <= config.tables:
            self._write_tables(image.tables)
        if image.is_whole:
            self._write_images(image.program, image.weights)
            self._note(image)

    def _holds(self, image: EngineImage) -> bool:
        """Whether the device says that its memories hold all of an image."""
        return False

    def _note(self, image: EngineImage) -> None:
        """Tell the device that they do."""

    def _come_to_rest(self) -> None:
        """Have an idle device without a pending error, whoever used it before."""
        deadline = self.clock() + self.timeout_seconds
        while (status := self._read_status()) & Status.BUSY and self.clock() <= deadline:
            self.sleep(REST_POLL_SECONDS)
        if status & (Status.BUSY | Status.ERROR):
            self.reset()
            self.check_idle(self._read_status())

    def reset(self) -> None:
        """Reset the accelerator's control state; its memories keep their content.

        Raises
        ------
        DeviceError
            If the device cannot be reset from here.
        """
        raise DeviceError(
            "device runs a program of another driver, or reports an error of one; reset it by hand",
            cause=DeviceCause.IN_USE,
        )

    def clock(self) -> float:
        """Seconds, ascending."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)

    def _write_images(self, program: NDArray[np.uint32], weights: NDArray[np.uint8], *, weights_base: int = 0) -> None:
        """Write program memory from word 0 on, and weight memory."""
        config = self._loaded_config()
        check_image(config, program)
        columns = weight_word_columns(config)
        padded = np.zeros((len(weights), 4 * columns), np.uint8)
        padded[:, : config.weight_word_bytes] = weights
        index, column = np.mgrid[: len(weights), :columns]
        addresses = (
            HostAddress.PROGRAM + 4 * np.arange(len(program)),
            (HostAddress.WEIGHTS + (weights_base + index) * weight_stride(config) + 4 * column).reshape(-1),
        )
        words = (program, padded.reshape(-1).view("<u4"))
        # Together: the status is looked at once behind them.
        self.write_memory(np.concatenate(addresses).astype(np.uint32), np.concatenate(words).astype(np.uint32))

    def _write_tables(self, tables: NDArray[np.uint8], places: Sequence[int] | None = None) -> None:
        """tables: [tables, 256]; places: which of the engine's, by default from the first on."""
        if len(tables):
            values = tables.reshape(-1).astype(np.uint32)
            numbers = np.arange(len(tables)) if places is None else np.array(places)
            addresses = HostAddress.TABLES + 4 * (TABLE_ENTRIES * numbers[:, None] + np.arange(TABLE_ENTRIES))
            self.write_memory(addresses.reshape(-1).astype(np.uint32), values)

    def write_memory(self, addresses: NDArray[np.uint32], words: NDArray[np.uint32]) -> None:
        """As `write_words`, for memories: makes sure that they took the words.

        Raises
        ------
        DeviceError
            If the device is busy, or was meanwhile: it ignores such writes, and the next start clears the flag that
            tells.
        """
        self.write_words(addresses, words)
        self.check_idle(self._read_status())

    def write_tensor(self, location: TensorLocation, values: NDArray[np.int8]) -> None:
        """Write a tensor to activation memory."""
        self.write_tensors([location], [values])

    def write_tensors(self, locations: Sequence[TensorLocation], tensors: Sequence[NDArray[np.int8]]) -> None:
        """Write tensors to activation memory."""
        config = self._loaded_config()
        addresses, words = [], []
        for location, values in zip(locations, tensors, strict=True):
            for bank, data in enumerate(location.pack(config, values)):
                addresses.append(self._addresses(config, location, bank))
                words.append(data.view("<u4").astype(np.uint32))
        if words:
            self.write_memory(np.concatenate(addresses), np.concatenate(words))

    def read_tensor(self, location: TensorLocation) -> NDArray[np.int8]:
        """Read a tensor from activation memory, int8 of the location's `shape`."""
        config = self._loaded_config()
        banks = []
        for bank in range(config.row_banks):
            addresses = self._addresses(config, location, bank)
            words = self.read_words(addresses) if len(addresses) else np.zeros(0, np.uint32)
            banks.append(words.astype("<u4").view(np.uint8))
        return location.unpack(config, banks)

    def run_region(
        self, region: Region, inputs: Sequence[NDArray[np.int8]], *, count_layers: bool = False
    ) -> RegionResult:
        """Write the inputs, run the region's programs, read the outputs.

        What the region has in external memory the host keeps.
        """
        external = ExternalTensors(self._loaded_config(), region)
        numbers = [region.external_number(location) for location in region.inputs]
        on_chip = [i for i, number in enumerate(numbers) if number is None]
        for location, number, values in zip(region.inputs, numbers, inputs, strict=True):
            if number is not None:
                external.write_tensor(number, location, values)
        self.write_tensors([region.inputs[i] for i in on_chip], [inputs[i] for i in on_chip])
        cycles: list[int] = []
        layers: list[int] = []
        waits: list[LayerWaits] = []
        for part in region.parts or (None,):
            if part is not None:
                self._load_part(part, whole=not region.external)
                self._load_rows(external, part.loads)
            self.start(region.program_start if part is None else 0)
            cycles.append(self.wait_done())
            if count_layers:
                counted, waited = self._count_layers(cycles[-1])
                layers += counted
                waits += waited
            if part is not None:
                self._store_rows(external, part.stores)
        outputs = []
        for location in region.outputs:
            number = region.external_number(location)
            outputs.append(self.read_tensor(location) if number is None else external.read_tensor(number, location))
        return RegionResult(
            outputs=outputs,
            cycles=sum(cycles),
            program_cycles=tuple(cycles),
            layer_cycles=tuple(layers),
            layer_waits=tuple(waits),
        )

    def _load_part(self, part: Part, *, whole: bool = True) -> None:
        """Have a part's program, weights and tables in the memories; `whole`: it uses no other part's weights."""
        image, places = self._images, self._places
        assert image is not None and places is not None, "load an artifact first"
        self._places = TablePlaces(image.config)  # nothing is known if a write fails
        missing = [*places.load(part)]
        self._write_tables(image.tables[[number for _, number in missing]], [place for place, _ in missing])
        self._places = places
        if self._part == part and whole:
            return
        self._part = None
        program, weights = image.part_images(part)
        if whole and self._weights == part.weights_place:
            weights = weights[:0]
        self._weights = None
        self._write_images(program, weights, weights_base=part.weights_base)
        self._part, self._weights = part, part.weights_place if whole else None

    def _load_weights(self, part: Part) -> None:
        """Have a part's weights in the memory."""
        assert self._images is not None, "load an artifact first"
        self._part = self._weights = None
        program, weights = self._images.part_images(part)
        self._write_images(program[:0], weights, weights_base=part.weights_base)
        self._weights = part.weights_place

    def _forget_parts(self) -> None:
        """Load the next part whatever the memories hold, but for weights that all parts share."""
        self._part = None
        if not self._shares:
            self._weights = None
        self._places = TablePlaces(self._loaded_config())

    def _load_rows(self, tensors: ExternalTensors, moved: Sequence[Rows]) -> None:
        """Bring rows of tensors that the host keeps."""
        addresses, words = [], []
        for rows in moved:
            for bank, data in tensors.pieces(rows):
                addresses.append(self._row_addresses(rows, bank, len(data)))
                words.append(data.view("<u4").astype(np.uint32))
        if words:
            self.write_memory(np.concatenate(addresses), np.concatenate(words))

    def _store_rows(self, tensors: ExternalTensors, moved: Sequence[Rows]) -> None:
        """Fetch rows of tensors that the host keeps."""
        for rows in moved:
            for bank, data in tensors.pieces(rows):
                words = self.read_words(self._row_addresses(rows, bank, len(data)))
                data[:] = words.astype("<u4").view(np.uint8)

    def _row_addresses(self, rows: Rows, bank: int, size: int) -> NDArray[np.uint32]:
        config = self._loaded_config()
        start = HostAddress.ACTIVATIONS + (bank * config.bank_granules + rows.base) * config.granule
        return (start + np.arange(0, size, 4)).astype(np.uint32)

    def _count_layers(self, program_cycles: int) -> tuple[list[int], list[LayerWaits]]:
        """Cycles and waits of each layer of the program that ran last; empty if the hardware does not count."""
        if not self._loaded_config().layer_counters:
            return [], []
        layers = self._read_register(Register.LAYERS)
        addresses = HostAddress.COUNTERS + 4 * np.arange(layers * len(Counter))
        ends = self.read_words(addresses.astype(np.uint32)).astype(np.int64).reshape(layers, len(Counter))
        return layer_counts(ends, program_cycles)

    def start(self, program_start: int) -> None:
        """Start the program at a word of program memory."""
        self._write_register(Register.PROGRAM_START, program_start)
        self._write_register(Register.CONTROL, 1)

    def wait_done(self) -> int:
        """Wait for the done flag; returns the cycles of the program.

        Raises
        ------
        DeviceError
            After `timeout_seconds`, or if the device reports an error.
        """
        deadline = self.clock() + self.timeout_seconds
        while True:
            status = self._read_status()
            self.check_status(status)
            if status & Status.DONE:
                return self._read_register(Register.CYCLES)
            if self.clock() > deadline:
                raise DeviceError(f"device did not finish within {self.timeout_seconds:g} s; reset it")

    def _read_status(self) -> Status:
        return Status(self._read_register(Register.STATUS))

    @classmethod
    def check_idle(cls, status: Status) -> None:
        """Raise DeviceError if the device reports an error, or runs a program."""
        cls.check_status(status)
        if status & Status.BUSY:
            raise DeviceError(
                "device runs a program that this driver has not started; is another one using it?",
                cause=DeviceCause.IN_USE,
            )

    @staticmethod
    def check_status(status: Status) -> None:
        """Raise DeviceError if the device reports an error."""
        if status & Status.ERROR:
            raise DeviceError(f"device reports {_CAUSES[ErrorCause.of(status)]}")

    def _loaded_config(self) -> AcceleratorConfig:
        if self._config is None:
            raise DeviceError("no artifact is loaded on the device")
        return self._config

    @staticmethod
    def _addresses(config: AcceleratorConfig, location: TensorLocation, bank: int) -> NDArray[np.uint32]:
        start = HostAddress.ACTIVATIONS + (bank * config.bank_granules + location.base) * config.granule
        return (start + 4 * np.arange(location.bank_bytes(config, bank) // 4)).astype(np.uint32)
