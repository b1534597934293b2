"""The golden model as a device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import Artifact, Region
from nnloom.arch.errors import ArtifactError, DeviceError
from nnloom.arch.isa import decode_program
from nnloom.sim.check import OwnershipChecker
from nnloom.sim.golden import GoldenModel, WriteTrace

__all__ = ["ModelDevice"]


class ModelDevice:
    """Runs regions on `nnloom.sim.golden.GoldenModel`, and checks the memory plan while it does.

    Attributes
    ----------
    traces : list[WriteTrace]
        Writes of each descriptor of the last region.
    """

    def __init__(self) -> None:
        self._artifact: Artifact | None = None
        self._model: GoldenModel | None = None
        self.traces: list[WriteTrace] = []

    def load(self, artifact: Artifact) -> None:
        """Take over an artifact's program and weights."""
        self._artifact = artifact
        self._model = GoldenModel(artifact.manifest.config, artifact.program, artifact.weights)

    def run_region(self, region: Region, inputs: Sequence[NDArray[np.int8]]) -> tuple[list[NDArray[np.int8]], int]:
        """Run a region; it counts no cycles (0).

        Raises
        ------
        DeviceError
            If no artifact is loaded.
        ArtifactError
            If the program is invalid or reads memory that does not hold the tensor it means.
        """
        if self._model is None or self._artifact is None:
            raise DeviceError("no artifact is loaded on the device")
        config, memory = self._artifact.manifest.config, self._model.activations
        checker = OwnershipChecker(config, region)
        for location, values in zip(region.inputs, inputs, strict=True):
            start = location.base * config.granule
            for bank, data in enumerate(location.pack(config, values)):
                memory[bank, start : start + len(data)] = data
        try:
            self.traces = []
            for descriptor in decode_program(self._artifact.program, region.program_start):
                checker.before(descriptor)
                self.traces.append(self._model.execute(descriptor))
                checker.after(self.traces[-1])
        except ValueError as error:
            raise ArtifactError(f"region {region.name}: {error}; compile the model again") from error
        checker.finish()
        outputs = []
        for location in region.outputs:
            start = location.base * config.granule
            banks = [memory[b, start : start + location.bank_bytes(config, b)] for b in range(config.row_banks)]
            outputs.append(location.unpack(config, banks))
        return outputs, 0

    def close(self) -> None:
        """Nothing to release."""
