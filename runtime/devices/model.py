"""The golden model as a device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import Artifact, Region
from nnloom.arch.errors import ArtifactError
from nnloom.sim.parts import RegionModels

from .base import Device, RegionResult

__all__ = ["ModelDevice"]


class ModelDevice(Device):
    """Executes the emitted program in NumPy. Memory starts as zeros and is never cleared between runs."""

    simulated = True

    def __init__(self) -> None:
        self._models: RegionModels | None = None

    def load(self, artifact: Artifact) -> None:
        """Take over an artifact."""
        self._models = RegionModels(artifact.image)

    def run_region(
        self, region: Region, inputs: Sequence[NDArray[np.int8]], *, count_layers: bool = False
    ) -> RegionResult:
        """Run a region; the model does not count cycles."""
        assert self._models is not None, "load an artifact first"
        self._models.write_inputs(region, inputs)
        try:
            for model, start in self._models.programs(region):
                model.run(start)
        except (ValueError, IndexError, MemoryError) as error:
            raise ArtifactError(
                f"{region.name}: not a program of the engine ({error}); compile the model again"
            ) from error
        return RegionResult(outputs=self._models.read_outputs(region))
