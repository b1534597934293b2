"""The RTL in a simulator as a device: the same driver and bus accesses as a board's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import EngineImage
from nnloom.sim.rtl import RtlSimulator

from .base import HostBusDevice

__all__ = ["RtlDevice"]


class RtlDevice(HostBusDevice):
    """Starts the simulation when an artifact is loaded; it runs until `close`."""

    simulated = True

    def __init__(
        self,
        *,
        simulator: str = "verilator",
        waves: Path | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__()
        self._options = {"simulator": simulator, "waves": waves, "progress": progress}
        self._simulator: RtlSimulator | None = None

    @property
    def simulation(self) -> RtlSimulator:
        """The running simulation."""
        assert self._simulator is not None, "load an artifact first"
        return self._simulator

    def load_image(self, image: EngineImage) -> None:
        """Start a simulation of the configuration, unless one runs, and load program and weights."""
        config = image.config
        if self._simulator is not None and self._simulator.config != config:
            self.close()
        if self._simulator is None:
            self._simulator = RtlSimulator(config, **self._options)  # type: ignore[arg-type]
        super().load_image(image)

    def write_words(self, addresses: NDArray[np.uint32], words: NDArray[np.uint32]) -> None:
        """Write words, one a cycle."""
        self.simulation.write_words(addresses, words)

    def read_words(self, addresses: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Read words."""
        return self.simulation.read_words(addresses)

    def wait_done(self) -> int:
        """Let the simulation run until the engine is idle, then look at its status."""
        self.simulation.wait_idle()
        return super().wait_done()

    def close(self) -> None:
        """End the simulation."""
        if self._simulator is not None:
            self._simulator.close()
            self._simulator = None
