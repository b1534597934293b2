"""The simulated RTL with the golden model beside it: every write is compared, every layer is timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import Artifact, Region
from nnloom.arch.errors import ArtifactError
from nnloom.arch.isa import Descriptor, decode_program
from nnloom.sim.check import OwnershipChecker, compare_writes, layer_cycles
from nnloom.sim.golden import WriteTrace
from nnloom.sim.parts import RegionModels
from nnloom.sim.rtl import RtlWrites

from .base import RegionResult
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
        self._models = RegionModels(artifact)
        memory = self._models.activations
        memory[:] = np.random.default_rng(1).integers(0, 256, memory.shape, np.uint8)

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
        config = self.simulation.config
        checker = OwnershipChecker(config, region)
        for location, values in zip(region.inputs, inputs, strict=True):
            self._models.write_tensor(location, values)
        self.golden = []
        descriptors: list[Descriptor] = []
        ends: list[int] = []
        try:
            for model, start in self._models.programs(region):
                for descriptor in decode_program(model.program, start):
                    descriptors.append(descriptor)
                    checker.before(descriptor)
                    self.golden.append(model.execute(descriptor))
                    checker.after(self.golden[-1])
                ends.append(len(self.golden))
        except ValueError as error:
            raise ArtifactError(f"{region.name}: {error}; compile the model again") from error
        checker.finish()
        compare_writes(config, region, self.golden, self.writes)
        measured: list[int] = []
        written = 0
        for first, last, taken in zip([0, *ends[:-1]], ends, result.program_cycles, strict=True):
            traces = self.golden[first:last]
            count = sum(len(trace.bank) for trace in traces)
            measured += layer_cycles(
                config, descriptors[first:last], traces, self.writes[written : written + count], taken
            )
            written += count
        return replace(result, layer_cycles=tuple(measured))
