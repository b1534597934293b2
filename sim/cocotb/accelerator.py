"""A compiled network on a design under test in cocotb: loaded, run and checked by nnloom's own driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import cocotb
import numpy as np
from cocotb.task import bridge, resume
from numpy.typing import NDArray

from nnloom.arch.artifact import Artifact, Region
from nnloom.arch.errors import ConfigError, DeviceError
from nnloom.runtime.devices.base import Device, HostBusDevice, RegionResult
from nnloom.runtime.devices.serial import SerialDevice, SerialLink
from nnloom.runtime.session import InferenceSession
from nnloom.sim.portable.host_bus import EngineWrite, HostBus, WriteMonitor, start_clock, wait_idle
from nnloom.sim.rtl import RtlWrites
from nnloom.sim.scoreboard import GoldenScoreboard

from .port import LinePort

__all__ = ["Accelerator", "Host", "rtl_writes"]

LINK_SECONDS = 0.005
"""Simulated silence after which the driver sends a request again."""


class Host(Protocol):
    """A bus to the engine: `HostBus`, `AxiLiteHost`, `WishboneHost`, or your own."""

    async def write_words(self, addresses: Sequence[int], words: Sequence[int]) -> None:
        """Write 32-bit words, each to its byte address, in order."""

    async def read_words(self, addresses: Sequence[int]) -> list[int]:
        """Read 32-bit words."""


def rtl_writes(writes: Sequence[EngineWrite], lanes: int) -> RtlWrites:
    """What a `WriteMonitor` collected, as arrays."""
    return RtlWrites(
        cycle=np.array([w.cycle for w in writes], np.int64),
        bank=np.array([w.bank for w in writes], np.int64),
        granule=np.array([w.granule for w in writes], np.int64),
        enable=np.array([w.enable for w in writes], np.int64),
        data=np.frombuffer(b"".join(w.data.to_bytes(lanes, "little") for w in writes), np.uint8).reshape(-1, lanes),
    )


class _BusDevice(HostBusDevice):
    """nnloom's driver behind a bus in cocotb. Its methods run in a bridge."""

    simulated = True

    def __init__(self, dut: Any, host: Host, monitor: WriteMonitor | None) -> None:
        super().__init__()
        self._dut = dut
        self._host = host
        self._monitor = monitor
        self._scoreboard: GoldenScoreboard | None = None

    def load(self, artifact: Artifact) -> None:
        super().load(artifact)
        if self._monitor is not None:
            self._scoreboard = GoldenScoreboard(artifact.image)

    def write_words(self, addresses: NDArray[np.uint32], words: NDArray[np.uint32]) -> None:
        resume(self._host.write_words)(addresses.tolist(), words.tolist())

    def read_words(self, addresses: NDArray[np.uint32]) -> NDArray[np.uint32]:
        return np.array(resume(self._host.read_words)(addresses.tolist()), np.uint32)

    def wait_done(self) -> int:
        try:
            resume(wait_idle)(self._dut)
        except TimeoutError as error:
            raise DeviceError(f"{error}; reset it") from error
        return super().wait_done()

    def run_region(
        self, region: Region, inputs: Sequence[NDArray[np.int8]], *, count_layers: bool = False
    ) -> RegionResult:
        if self._monitor is None or self._scoreboard is None:
            return super().run_region(region, inputs, count_layers=count_layers)
        self._monitor.take()
        result = super().run_region(region, inputs, count_layers=count_layers)
        writes = rtl_writes(self._monitor.take(), self._loaded_config().lanes)
        layers = self._scoreboard.check(region, inputs, writes, result.program_cycles)
        return replace(result, layer_cycles=tuple(layers))


class Accelerator:
    """A design under test with a compiled network.

    The driver is the one that boards have; what it does on the bus happens in simulated time. Every write of the engine
    is compared with the golden model's if the design has the ports `write_*`: a difference raises DeviceError, which
    names layer, place and both values.

    Parameters
    ----------
    dut
        cocotb's handle of the top module: the engine, or a design of your own around it.
    artifact
        Directory made by `nnloom compile`; default: the one that `run_tests` or the fixture was given.
    host
        The bus to the engine: default `HostBus(dut)`. A `UartPort` or `UsbPort` for a complete system.
    check
        Compare writes with the golden model's, if the design shows them.
    """

    def __init__(
        self,
        dut: Any,
        artifact: str | Path | None = None,
        *,
        host: Host | LinePort | None = None,
        check: bool = True,
    ) -> None:
        path = artifact or cocotb.plusargs.get("artifact")
        if not path:
            raise ConfigError("no artifact is given; use Accelerator(dut, 'build/NETWORK')")
        self.artifact = Artifact.load(str(path))
        """what runs"""
        self.dut = dut
        self._session: InferenceSession | None = None
        host = host or HostBus(dut)
        monitor = WriteMonitor(dut) if check and hasattr(dut, "write_valid") else None
        self.host = host
        """the bus"""
        self.device: Device = _device(dut, host, monitor)
        """nnloom's driver; its methods may be called in `cocotb.task.bridge` only"""

    @classmethod
    async def start(cls, dut: Any, artifact: str | Path | None = None, **options: Any) -> Accelerator:
        """Start clock `clk`, reset by `rst`, load the network: all that is needed before `run`."""
        accelerator = cls(dut, artifact, **options)
        await start_clock(dut)
        await accelerator.load()
        return accelerator

    async def load(self) -> None:
        """Check that the engine is the artifact's, and load program, weights and what else it needs.

        Raises
        ------
        DeviceError
        """
        self._session = await bridge(InferenceSession)(self.artifact.path, self.device, fallback=False)

    async def run(self, inputs: Any) -> dict[str, NDArray]:
        """One inference: an array, or a dict by input name; returns the outputs by name.

        What the engine lacks is computed on the CPU, in no simulated time.

        Raises
        ------
        InputError
            If an input does not fit.
        DeviceError
            If the engine does not answer, or wrote something else than the golden model.
        """
        return await bridge(self.session.run)(inputs)

    async def run_region(self, inputs: Sequence[NDArray[np.int8]], *, region: int = 0) -> RegionResult:
        """The engine's part alone: int8 in, int8 out, cycles of each layer.

        Parameters
        ----------
        inputs
            int8, of the shapes of the region's inputs.
        region
            Index of the artifact's region.
        """
        return await bridge(self.device.run_region)(self.artifact.manifest.regions[region], inputs)

    @property
    def session(self) -> InferenceSession:
        """The session; its methods may be called in `cocotb.task.bridge` only."""
        if self._session is None:
            raise ConfigError("the network is not loaded; await accelerator.load() first")
        return self._session

    @property
    def cycles(self) -> int | None:
        """Cycles of the engine in the last inference, from start command to done flag."""
        return self.session.last_cycles


def _device(dut: Any, host: Host | LinePort, monitor: WriteMonitor | None) -> Device:
    if not isinstance(host, LinePort):
        return _BusDevice(dut, host, monitor)
    link = SerialLink(lambda: host, baud=host.baud, frame_seconds=LINK_SECONDS, clock=host.clock, sleep=host.sleep)
    return SerialDevice(link)
