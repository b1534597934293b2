"""The golden model beside a running engine: what it has to write, in what order, in which layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import EngineImage, Region
from nnloom.arch.errors import ArtifactError
from nnloom.arch.isa import Descriptor, decode_program

from .check import OwnershipChecker, compare_writes, layer_cycles
from .golden import WriteTrace
from .parts import RegionModels
from .rtl import RtlWrites

__all__ = ["GoldenScoreboard"]


class GoldenScoreboard:
    """Compares every write of an engine with the golden model's.

    The golden model's activation memory is filled with random bytes at the start, so that it agrees with the
    RTL only if nothing depends on what the memory held before.

    Attributes
    ----------
    golden : list[WriteTrace]
        What the golden model wrote in the last region, by layer.
    """

    def __init__(self, image: EngineImage) -> None:
        self._config = image.config
        self._models = RegionModels(image)
        self.golden: list[WriteTrace] = []
        memory = self._models.activations
        memory[:] = np.random.default_rng(1).integers(0, 256, memory.shape, np.uint8)

    def check(
        self, region: Region, inputs: Sequence[NDArray[np.int8]], writes: RtlWrites, program_cycles: Sequence[int]
    ) -> list[int]:
        """Run a region on the golden model and compare; returns the cycles of each layer.

        Parameters
        ----------
        inputs
            int8, of the shapes of the region's inputs.
        writes
            All that the engine wrote in the region.
        program_cycles
            Cycles of each of the region's programs.

        Raises
        ------
        DeviceError
            If the engine wrote something else; the message names layer, write and both values.
        ArtifactError
            If a layer reads memory that does not hold the tensor it means.
        """
        checker = OwnershipChecker(self._config, region)
        self._models.write_inputs(region, inputs)
        self.golden = []
        descriptors: list[Descriptor] = []
        ends: list[int] = []
        try:
            for index, (model, start) in enumerate(self._models.programs(region)):
                if region.parts:
                    checker.load(region.parts[index])
                for descriptor in decode_program(model.program, start):
                    descriptors.append(descriptor)
                    checker.before(descriptor)
                    self.golden.append(model.execute(descriptor))
                    checker.after(self.golden[-1])
                ends.append(len(self.golden))
        except ValueError as error:
            raise ArtifactError(f"{region.name}: {error}; compile the model again") from error
        checker.finish()
        compare_writes(self._config, region, self.golden, writes)
        measured: list[int] = []
        written = 0
        for first, last, taken in zip([0, *ends[:-1]], ends, program_cycles, strict=True):
            traces = self.golden[first:last]
            count = sum(len(trace.bank) for trace in traces)
            measured += layer_cycles(
                self._config, descriptors[first:last], traces, writes[written : written + count], taken
            )
            written += count
        return measured
