"""The simulated RTL with the golden model beside it: every write is compared, every layer is timed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import Artifact, Region
from nnloom.arch.errors import ArtifactError
from nnloom.arch.isa import decode_program
from nnloom.sim.check import OwnershipChecker, compare_writes, layer_cycles
from nnloom.sim.golden import GoldenModel, WriteTrace
from nnloom.sim.rtl import RtlWrites

from .rtl import RtlDevice

__all__ = ["VerifiedRtlDevice"]


class VerifiedRtlDevice(RtlDevice):
    """As `RtlDevice`; a region whose writes differ from the golden model's raises DeviceError.

    The golden model's activation memory is filled with random bytes at the start, so that it agrees with the
    RTL only if nothing depends on what the memory held before.

    Attributes
    ----------
    writes : RtlWrites or None
        What the engine wrote in the last region.
    golden : list[WriteTrace]
        The same from the golden model, by layer.
    """

    writes: RtlWrites | None = None

    def load(self, artifact: Artifact) -> None:
        """Load an artifact into the simulation and the golden model."""
        super().load(artifact)
        self.golden: list[WriteTrace] = []
        self.layer_cycles = {}
        self._program = artifact.program
        self._model = GoldenModel(artifact.manifest.config, artifact.program, artifact.weights)
        memory = self._model.activations
        memory[:] = np.random.default_rng(1).integers(0, 256, memory.shape, np.uint8)

    def run_region(self, region: Region, inputs: Sequence[NDArray[np.int8]]) -> tuple[list[NDArray[np.int8]], int]:
        """Run a region on both; returns the RTL's outputs and cycles.

        Raises
        ------
        DeviceError
            If the engine does not finish, or wrote something else than the golden model.
        ArtifactError
            If a layer reads memory that does not hold the tensor it means.
        """
        outputs, cycles = super().run_region(region, inputs)
        self.writes = self.simulation.writes()
        config = self.simulation.config
        checker = OwnershipChecker(config, region)
        for location, values in zip(region.inputs, inputs, strict=True):
            self._model.write_tensor(location, values)
        self.golden = []
        try:
            for descriptor in decode_program(self._program, region.program_start):
                checker.before(descriptor)
                self.golden.append(self._model.execute(descriptor))
                checker.after(self.golden[-1])
        except ValueError as error:
            raise ArtifactError(f"{region.name}: {error}; compile the model again") from error
        checker.finish()
        compare_writes(config, region, self.golden, self.writes)
        self.layer_cycles[region.name] = layer_cycles(config, self.golden, self.writes, cycles)
        return outputs, cycles
