"""Runs a network where there is no TVM: regions on the accelerator or in the golden model, the rest in NumPy.

The bits are those of the CPU code. It knows what commonly stands around the regions (`HostStep`); an artifact with
other operators outside of the accelerator says so in its manifest.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import Artifact, HostStep
from nnloom.arch.errors import ArtifactError
from nnloom.arch.numerics import quantize

from .devices.model import ModelDevice
from .relax_vm import Accelerator

__all__ = ["PortableProgram"]


class PortableProgram:
    """The steps of an artifact's `HostPlan`; takes the place of `RelaxProgram`.

    Raises
    ------
    ArtifactError
        If the artifact has operators that need TVM.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._plan = artifact.manifest.host
        if not self._plan.steps:
            raise ArtifactError(
                f"{artifact.path}: {self._plan.reason}, which is not installed; pip install 'nnloom[compiler]'"
            )
        self._regions = artifact.manifest.regions
        self._model = ModelDevice()
        self._model.load(artifact)
        self._lock = threading.Lock()

    def _in_model(self, index: int, operands: list[NDArray[np.int8]]) -> list[NDArray[np.int8]]:
        return self._model.run_region(self._regions[index], operands).outputs

    def run(self, inputs: Sequence[NDArray], accelerator: Accelerator | None = None) -> list[NDArray]:
        """Run the network: with regions in the golden model, or on `accelerator`."""
        call = accelerator or self._in_model
        values = list(inputs)
        with self._lock:  # the golden model's memory serves one at a time
            for step in self._plan.steps:
                operands = [values[i] for i in step.inputs]
                values += call(step.region, operands) if step.kind == "region" else [_compute(step, operands[0])]
        # Copied: an output may be an input, or a view of it.
        return [np.array(values[i], order="C") for i in self._plan.outputs]


def _compute(step: HostStep, x: NDArray) -> NDArray:
    match step.kind:
        case "quantize":
            return quantize(x, step.out_scale, step.out_zero_point).clip(step.minimum, step.maximum)
        case "dequantize":
            return (x.astype(np.int32) - step.in_zero_point).astype(np.float32) * np.float32(step.in_scale)
        case "softmax":
            wide = x.astype(np.int32)
            power = np.exp((wide - wide.max(-1, keepdims=True)).astype(np.float64) * step.in_scale)
            total = np.cumsum(power, -1)[..., -1:]  # added one after the other, as in the CPU code
            share = power / total / step.out_scale
            rounded = np.floor(share + 0.5).astype(np.int32) + step.out_zero_point
            return rounded.clip(step.minimum, step.maximum).astype(np.int8)
        case "reshape":
            return x.reshape(step.shape)
    raise ArtifactError(f"manifest: unknown step {step.kind!r}; compile the model again")
