"""A region's tensors of external memory in that of the host: for models, and for drivers of boards without."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .artifact import Region, Rows, TensorLocation
from .config import AcceleratorConfig

__all__ = ["ExternalTensors"]


class ExternalTensors:
    """The memory of a region's external tensors, which starts as zeros."""

    def __init__(self, config: AcceleratorConfig, region: Region) -> None:
        self._config = config
        self._region = region
        self._bytes = [
            np.zeros(sum(location.bank_bytes(config, bank) for bank in range(config.row_banks)), np.uint8)
            for location in region.external
        ]

    def write_tensor(self, number: int, location: TensorLocation, values: NDArray) -> None:
        """Place a tensor, given as `TensorLocation.pack` takes it."""
        self._bytes[number][:] = np.concatenate(location.pack(self._config, values))

    def read_tensor(self, number: int, location: TensorLocation) -> NDArray:
        """A tensor, as `TensorLocation.unpack` gives it."""
        sizes = [location.bank_bytes(self._config, bank) for bank in range(self._config.row_banks)]
        return location.unpack(self._config, np.split(self._bytes[number], np.cumsum(sizes)[:-1]))

    def pieces(self, rows: Rows) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """(bank of activation memory, the bytes that lie there from `rows.base` on): views of this memory."""
        for bank, start, size in rows.pieces(self._config, self._region.external[rows.tensor]):
            yield bank, self._bytes[rows.tensor][start : start + size]
