"""The accelerator's RTL, in simulation, as a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import Artifact, Region
from nnloom.arch.errors import DeviceError
from nnloom.sim.check import compare_writes, layer_cycles
from nnloom.sim.rtl import RtlSimulator, RtlWrites

from .base import HostBusDevice
from .model import ModelDevice

__all__ = ["RtlDevice"]


class RtlDevice(HostBusDevice):
    """Runs regions on the simulated RTL; one simulation process serves every inference.

    Parameters
    ----------
    simulator
        "verilator" or "icarus".
    waves
        File for the waveform of the whole run, or None.
    verify
        Run the golden model beside the RTL and compare every write to activation memory.

    Attributes
    ----------
    last_writes : RtlWrites or None
        What the engine wrote in the last region.
    last_layer_cycles : list[int]
        Cycles of each layer of the last region; empty unless `verify`.
    """

    def __init__(
        self,
        *,
        simulator: str = "verilator",
        waves: Path | None = None,
        verify: bool = True,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__()
        self._options = {"simulator": simulator, "waves": waves, "progress": progress}
        self._simulation: RtlSimulator | None = None
        self._model = ModelDevice() if verify else None
        self.last_writes: RtlWrites | None = None
        self.last_layer_cycles: list[int] = []

    def _running(self) -> RtlSimulator:
        if self._simulation is None:
            raise DeviceError("no artifact is loaded on the device")
        return self._simulation

    def load(self, artifact: Artifact) -> None:
        """Start the simulation of the artifact's accelerator (or keep it, if it is the same one) and load it."""
        config = artifact.manifest.config
        if self._simulation is not None and self._simulation.config != config:
            self.close()
        if self._simulation is None:
            self._simulation = RtlSimulator(config, **self._options)  # type: ignore[arg-type]
        super().load(artifact)
        if self._model:
            self._model.load(artifact)

    def write_words(self, addresses: NDArray[np.uint32], words: NDArray[np.uint32]) -> None:
        self._running().write_words(addresses, words)

    def read_words(self, addresses: NDArray[np.uint32]) -> NDArray[np.uint32]:
        return self._running().read_words(addresses)

    def wait_done(self) -> None:
        self._running().wait_idle()
        super().wait_done()

    def run_region(self, region: Region, inputs: Sequence[NDArray[np.int8]]) -> tuple[list[NDArray[np.int8]], int]:
        """Run a region; returns its outputs and the engine's own cycle count.

        Raises
        ------
        DeviceError
            If the engine does not finish, or wrote something else than the golden model.
        """
        outputs, cycles = super().run_region(region, inputs)
        self.last_writes = self._running().writes()
        if self._model:
            self._model.run_region(region, inputs)
            compare_writes(self._running().config, region, self._model.traces, self.last_writes)
            self.last_layer_cycles = layer_cycles(self._model.traces, self.last_writes, cycles)
        return outputs, cycles

    def close(self) -> None:
        """End the simulation."""
        if self._simulation is not None:
            self._simulation.close()
            self._simulation = None
