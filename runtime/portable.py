"""Runs a network where there is no TVM: regions on the accelerator or in the golden model, the rest in NumPy.

The bits are those of the CPU code.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import Artifact, Exit

from .devices.model import ModelDevice
from .host_steps import HostSteps
from .relax_vm import Accelerator

__all__ = ["PortableProgram"]


class PortableProgram:
    """The steps of an artifact's `HostPlan`, or of that of one of its exits; takes the place of `RelaxProgram`.

    Raises
    ------
    ArtifactError
        If the artifact's constants cannot be read.
    """

    def __init__(self, artifact: Artifact, leave: Exit | None = None) -> None:
        self._steps = HostSteps.load(artifact, leave)
        self._regions = artifact.manifest.regions if leave is None else leave.regions
        self._model = ModelDevice()
        self._model.load(artifact)
        self._lock = threading.Lock()

    def _in_model(self, index: int, operands: list[NDArray[np.int8]]) -> list[NDArray[np.int8]]:
        return self._model.run_region(self._regions[index], operands).outputs

    def run(self, sources: Sequence[NDArray], accelerator: Accelerator | None = None) -> list[NDArray]:
        """Run the network on its inputs and states: with regions in the golden model, or on `accelerator`.

        Returns the outputs and the new states.
        """
        call = accelerator or self._in_model
        plan = self._steps.plan
        values = [*sources, *self._steps.constants]
        with self._lock:  # the golden model's memory serves one at a time
            for index, step in enumerate(plan.steps):
                operands = self._steps.operands(index, values)
                values += self._steps.evaluate(index, operands) if step.operation else call(step.region, operands)
        # Copied: an output may be an input, or a view of it.
        return [np.array(values[i], order="C") for i in (*plan.outputs, *plan.states)]
