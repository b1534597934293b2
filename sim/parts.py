"""Golden models of an artifact's regions: one, or one for each part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import EngineImage, Part, Region, Rows, TensorLocation
from nnloom.arch.external import ExternalTensors
from nnloom.arch.lists import Lists
from nnloom.arch.overlap_check import check_lists

from .golden import GoldenModel

__all__ = ["RegionModels"]


class RegionModels:
    """The programs of an artifact on one activation memory, which starts as zeros and is never cleared.

    What a region has in external memory is kept beside it.
    """

    def __init__(self, image: EngineImage) -> None:
        self._image = image
        self._whole = GoldenModel(image.config, image.program, image.weights, image.part_tables())
        self._parts: dict[Part, GoldenModel] = {}
        self._external: dict[str, ExternalTensors] = {}
        self._proved: set[str] = set()
        """regions whose lists wait enough"""

    @property
    def activations(self) -> NDArray[np.uint8]:
        """The memory, uint8 [bank, byte]."""
        return self._whole.activations

    def external(self, region: Region) -> ExternalTensors:
        """A region's tensors in external memory."""
        if region.name not in self._external:
            self._external[region.name] = ExternalTensors(self._image.config, region)
        return self._external[region.name]

    def programs(self, region: Region) -> Iterator[tuple[GoldenModel, int]]:
        """Model and first program word of each start command that the region needs, in order.

        Rows are brought from external memory before a program is given out, and go there when the next is asked for.

        Raises
        ------
        IllegalProgramError
            If the steps with which a list loads and runs its parts do not wait enough.
        """
        if region.steps and region.name not in self._proved:
            image = self._image
            check_lists(image.config, Lists.make(image.config, [region], image.program, image.weights, image.tables))
            self._proved.add(region.name)
        if not region.parts:
            yield self._whole, region.program_start
        elif not region.external:
            for part in region.parts:
                yield self._part(part), 0
        else:
            yield from self._programs_with_rows(region)

    def _part(self, part: Part) -> GoldenModel:
        if part not in self._parts:
            program, weights = self._image.part_images(part)
            tables = self._image.part_tables(part)
            self._parts[part] = GoldenModel(self._image.config, program, weights, tables, self.activations)
        return self._parts[part]

    def _programs_with_rows(self, region: Region) -> Iterator[tuple[GoldenModel, int]]:
        """Parts are many, and alike: one model, which forgets what it knows of weights when others are loaded."""
        image = self._image
        model = GoldenModel(image.config, image.program[:0], image.weights[:0], None, self.activations)
        tensors = self.external(region)
        for part in region.parts:
            for rows in part.loads:
                for cells, data in self._cells(tensors, rows):
                    cells[:] = data
            program, weights = image.part_images(part)
            if len(weights):
                model.load_weights(part.weights_base, weights)
            model.load_program(program)
            model.load_tables(image.part_tables(part))
            yield model, 0
            for rows in part.stores:
                for cells, data in self._cells(tensors, rows):
                    data[:] = cells

    def _cells(self, tensors: ExternalTensors, rows: Rows) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        """(bytes of activation memory, bytes of external memory) of each piece."""
        start = rows.base * self._image.config.granule
        for bank, data in tensors.pieces(rows):
            yield self.activations[bank, start : start + len(data)], data

    def write_inputs(self, region: Region, values: Sequence[NDArray]) -> None:
        """Place a region's inputs."""
        for location, value in zip(region.inputs, values, strict=True):
            number = region.external_number(location)
            if number is None:
                self.write_tensor(location, value)
            else:
                self.external(region).write_tensor(number, location, value)

    def read_outputs(self, region: Region) -> list[NDArray]:
        """A region's outputs."""
        result = []
        for location in region.outputs:
            number = region.external_number(location)
            if number is None:
                result.append(self.read_tensor(location))
            else:
                result.append(self.external(region).read_tensor(number, location))
        return result

    def write_tensor(self, location: TensorLocation, values: NDArray[np.int8]) -> None:
        """Place a tensor in activation memory."""
        self._whole.write_tensor(location, values)

    def read_tensor(self, location: TensorLocation) -> NDArray[np.int8]:
        """Read a tensor from activation memory, int8 of the location's `shape`."""
        return self._whole.read_tensor(location)
