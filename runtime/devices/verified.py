"""The simulated RTL with the golden model beside it: every write is compared, every layer is timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import EngineImage, Region
from nnloom.sim.golden import WriteTrace
from nnloom.sim.rtl import RtlWrites
from nnloom.sim.scoreboard import GoldenScoreboard

from .base import RegionResult
from .rtl import RtlDevice

__all__ = ["VerifiedRtlDevice"]


class VerifiedRtlDevice(RtlDevice):
    """As `RtlDevice`; a region whose writes differ from the golden model's raises DeviceError.

    Attributes
    ----------
    writes : RtlWrites or None
        What the engine wrote in the last region.
    """

    writes: RtlWrites | None = None

    @property
    def golden(self) -> list[WriteTrace]:
        """The same from the golden model, by layer."""
        return self._scoreboard.golden

    def load_image(self, image: EngineImage) -> None:
        """Load programs, weights and tables into the simulation and the golden model."""
        super().load_image(image)
        self._scoreboard = GoldenScoreboard(image)

    def run_region(
        self, region: Region, inputs: Sequence[NDArray[np.int8]], *, count_layers: bool = False
    ) -> RegionResult:
        """Run a region on both; returns the RTL's outputs and cycles, those of each layer always.

        Raises
        ------
        DeviceError
            If the engine does not finish, or wrote something else than the golden model.
        ArtifactError
            If a layer reads memory that does not hold the tensor it means.
        """
        result = super().run_region(region, inputs, count_layers=count_layers)
        self.writes = self.simulation.writes()
        layers = self._scoreboard.check(region, inputs, self.writes, result.program_cycles)
        return replace(result, layer_cycles=tuple(layers))
