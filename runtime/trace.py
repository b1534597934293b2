"""What lies between a network's inputs and its outputs: the tensors of an inference, as far as they are seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from numpy.typing import NDArray

from nnloom.arch.artifact import Artifact, Region
from nnloom.arch.dtypes import UINT8

from .devices.base import Device
from .host_steps import HostSteps

if TYPE_CHECKING:
    from nnloom.sim.parts import RegionModels

__all__ = ["TracedTensor", "trace"]


@dataclass(frozen=True, kw_only=True)
class TracedTensor:
    """A tensor of an inference, as the network holds it: images with their channels last."""

    name: str
    """of the tensor, or of the operator that makes it"""
    value: NDArray
    scale: float = 0.0
    """0: not quantized"""
    zero_point: int = 0
    region: str = ""
    """where it was made; empty: on the CPU"""


def trace(artifact: Artifact, sources: Sequence[NDArray], device: Device | None = None) -> list[TracedTensor]:
    """Run a network step by step, in NumPy around the regions.

    Parameters
    ----------
    sources
        Inputs and states, as the network holds them.
    device
        What runs the regions; of those it tells what they answer, no more. Default: the golden model, of which every
        tensor is seen.

    Returns
    -------
    Every tensor in the order in which they are made; of a tensor that several layers write, the whole.
    """
    from nnloom.sim.parts import RegionModels  # the golden model: sessions start without it

    steps, regions = HostSteps.load(artifact), artifact.manifest.regions
    models = None if device is not None else RegionModels(artifact.image)
    values = [*sources, *steps.constants]
    found: list[TracedTensor] = []
    for index, step in enumerate(steps.plan.steps):
        operands = steps.operands(index, values)
        if step.operation is None:
            region = regions[step.region]
            if models is None:
                assert device is not None
                made = device.run_region(region, operands).outputs
                found += [_of_region(region, i, value) for i, value in enumerate(made)]
            else:
                found += _layers(models, region, operands)
                made = models.read_outputs(region)
        else:
            made = steps.evaluate(index, operands)
            names = step.names or tuple(f"step {index}" for _ in made)
            for name, value, t in zip(names, made, step.operation.outputs, strict=True):
                q = t.quantization if t.quantization and t.quantization.is_per_tensor else None
                scale, zero_point = (q.scale, q.zero_point) if q else (0.0, 0)
                found.append(TracedTensor(name=name, value=value, scale=scale, zero_point=zero_point))
        values += made
    return found


def _of_region(region: Region, output: int, value: NDArray) -> TracedTensor:
    location = region.outputs[output]
    return TracedTensor(
        name=location.name,
        value=value,
        scale=location.scale,
        zero_point=location.zero_point + (128 if location.dtype == UINT8 else 0),
        region=region.name,
    )


def _layers(models: RegionModels, region: Region, operands: Sequence[NDArray]) -> list[TracedTensor]:
    """What each layer of a region writes, in the golden model."""
    models.write_inputs(region, operands)
    last = {location.name: index for index, location in enumerate(region.tensors)}
    found: list[TracedTensor] = []
    index = 0
    for model, start in models.programs(region):
        for descriptor in model.descriptors(start):
            model.execute(descriptor)
            if index < len(region.tensors) and last[region.tensors[index].name] == index:
                location = region.tensors[index]
                value = models.read_tensor(location)
                zero_point = location.zero_point + (128 if location.dtype == UINT8 else 0)
                found.append(
                    TracedTensor(
                        name=location.name,
                        value=value,
                        scale=location.scale,
                        zero_point=zero_point,
                        region=region.name,
                    )
                )
            index += 1
    return found
