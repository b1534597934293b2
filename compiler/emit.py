"""Program and memory images of a partitioned network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import Region, TensorLocation
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import CapacityError
from nnloom.arch.isa import DESCRIPTOR_WORDS, Descriptor, encode_program

from .graph import LayerGraph
from .lower import LoweredLayer, lower
from .memory import MemoryPlan, plan_memory

__all__ = ["Emitted", "EmittedRegion", "emit"]


@dataclass(frozen=True)
class EmittedRegion:
    """One region with its plan and lowered layers."""

    graph: LayerGraph
    plan: MemoryPlan
    layers: tuple[LoweredLayer, ...]
    region: Region

    @property
    def descriptors(self) -> list[Descriptor]:
        """Descriptors in order."""
        return [layer.descriptor for layer in self.layers]


@dataclass(frozen=True)
class Emitted:
    """Memory images of all regions."""

    regions: tuple[EmittedRegion, ...]
    program: NDArray[np.uint32]
    weights: NDArray[np.uint8]


def _outputs(graph: LayerGraph, plan: MemoryPlan) -> tuple[TensorLocation, ...]:
    """Locations of the outputs with the shapes that the network gives them."""
    return tuple(dataclasses.replace(plan.locations[t.name], shape=t.shape) for t in graph.outputs)


def emit(config: AcceleratorConfig, graphs: Sequence[LayerGraph]) -> Emitted:
    """Plan, lower and lay out every region; they follow each other in program and weight memory.

    Raises
    ------
    CapacityError
        If activations, weights or program exceed the configuration's memories.
    """
    regions: list[EmittedRegion] = []
    words: list[NDArray[np.uint8]] = []
    used = 0
    for index, graph in enumerate(graphs):
        plan = plan_memory(config, graph)
        layers = lower(config, graph, plan.locations, weight_base=used)
        for layer in layers:
            words.append(layer.weights)
            used += len(layer.weights)
        start = sum(len(r.layers) for r in regions) * DESCRIPTOR_WORDS
        region = Region(
            name=f"region{index}",
            program_start=start,
            program_words=len(layers) * DESCRIPTOR_WORDS,
            inputs=tuple(plan.locations[t.name] for t in graph.inputs),
            outputs=_outputs(graph, plan),
            tensors=tuple(plan.locations[layer.output.name] for layer in graph.layers),
        )
        regions.append(EmittedRegion(graph, plan, tuple(layers), region))
    program = encode_program(d for r in regions for d in r.descriptors)
    for what, need, have, size in (
        ("weights", used, config.weight_words, config.weight_word_bytes),
        ("program", len(program), config.program_words, 4),
    ):
        if need > have:
            raise CapacityError(
                f"{what} need {need * size} bytes, the configuration has {have * size}; "
                "use a smaller network or a board with more memory"
            )
    weights = np.concatenate(words) if words else np.zeros((0, config.weight_word_bytes), np.uint8)
    return Emitted(tuple(regions), program, weights)
