"""Golden models of an artifact's regions: one, or one for each part."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import EngineImage, Part, Region, TensorLocation

from .golden import GoldenModel

__all__ = ["RegionModels"]


class RegionModels:
    """The programs of an artifact on one activation memory, which starts as zeros and is never cleared."""

    def __init__(self, image: EngineImage) -> None:
        self._image = image
        self._whole = GoldenModel(image.config, image.program, image.weights, image.tables)
        self._parts: dict[Part, GoldenModel] = {}

    @property
    def activations(self) -> NDArray[np.uint8]:
        """The memory, uint8 [bank, byte]."""
        return self._whole.activations

    def programs(self, region: Region) -> list[tuple[GoldenModel, int]]:
        """Model and first program word of each start command that the region needs, in order."""
        if not region.parts:
            return [(self._whole, region.program_start)]
        for part in region.parts:
            if part not in self._parts:
                program, weights = self._image.part_images(part)
                self._parts[part] = GoldenModel(
                    self._image.config, program, weights, self._image.tables, self.activations
                )
        return [(self._parts[part], 0) for part in region.parts]

    def write_tensor(self, location: TensorLocation, values: NDArray[np.int8]) -> None:
        """Place a tensor in activation memory."""
        self._whole.write_tensor(location, values)

    def read_tensor(self, location: TensorLocation) -> NDArray[np.int8]:
        """Read a tensor from activation memory, int8 of the location's `shape`."""
        return self._whole.read_tensor(location)
