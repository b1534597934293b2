"""What nnloom's driver does on the host bus for some inputs, written down, with the golden model's answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import Artifact, Region, TensorLocation
from nnloom.arch.isa import HostAddress, Register, Status
from nnloom.runtime.devices.base import RegionResult
from nnloom.runtime.devices.recorder import BusRecorder
from nnloom.sim.parts import RegionModels

__all__ = ["Recorder"]


class Recorder(BusRecorder):
    """A device that answers as the golden model does.

    Attributes
    ----------
    loads : list of (address, word)
        What loads the network.
    lines : list[str]
        The accesses of the regions that ran, as `nnloom.sim.portable.engine_bench.play` takes them.
    """

    simulated = True

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.loads: list[tuple[int, int]] = []
        self._running = False
        self._models: RegionModels | None = None

    def load(self, artifact: Artifact) -> None:
        """Write down what loads the artifact: `loads`."""
        self._models = RegionModels(artifact.image)
        self._running = False
        super().load(artifact)
        self.loads = self.take_accesses()
        self._running = True

    def write_words(self, addresses: NDArray[np.uint32], words: NDArray[np.uint32]) -> None:
        super().write_words(addresses, words)
        if self._running:
            self.lines += [f"w {address:08x} {word:08x}" for address, word in self.take_accesses()]

    def wait_done(self) -> int:
        mask = Status.BUSY | Status.DONE | Status.ERROR
        self.lines.append("wait")
        self.lines.append(f"r {HostAddress.REGISTERS + Register.STATUS:08x} {int(Status.DONE):08x} {int(mask):08x}")
        return super().wait_done()

    def read_tensor(self, location: TensorLocation) -> NDArray[np.int8]:
        """The golden model's; the engine's is compared in every byte that belongs to the tensor."""
        assert self._models is not None
        config = self._loaded_config()
        values = self._models.read_tensor(location)
        everything = np.full(location.shape, -1, np.int8)
        for bank, (want, mask) in enumerate(
            zip(location.pack(config, values), location.pack(config, everything), strict=True)
        ):
            rows = zip(
                self._addresses(config, location, bank).tolist(),
                want.view("<u4").tolist(),
                mask.view("<u4").tolist(),
                strict=True,
            )
            self.lines += [f"r {address:08x} {word:08x} {bits:08x}" for address, word, bits in rows if bits]
        return values

    def run_region(
        self, region: Region, inputs: Sequence[NDArray[np.int8]], *, count_layers: bool = False
    ) -> RegionResult:
        """Run a region on the golden model and write down the accesses.

        Raises
        ------
        IllegalProgramError
            If the engine would refuse a program.
        """
        assert self._models is not None
        self._models.write_inputs(region, inputs)
        for model, start in self._models.programs(region):
            model.run(start)
        self._forget_parts()
        return super().run_region(region, inputs)

    def take_lines(self) -> list[str]:
        """The lines since the last call."""
        lines, self.lines = self.lines, []
        return lines
