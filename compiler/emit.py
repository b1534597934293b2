"""Program and memory images of a partitioned network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import Part, Region, TensorLocation
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import CapacityError
from nnloom.arch.isa import DESCRIPTOR_WORDS, Descriptor, encode_program

from .carried import with_carried_rows, with_spare_rows
from .copies import without_copies
from .graph import LayerGraph
from .lower import LoweredLayer, lower_layers, place_program, table_image, tables_of
from .memory import MemoryPlan, plan_memory
from .parts import cut
from .split_sums import with_split_sums
from .unread import without_unread

__all__ = ["Emitted", "EmittedRegion", "emit", "prepared"]


@dataclass(frozen=True)
class EmittedRegion:
    """One region with its plan and lowered layers."""

    graph: LayerGraph
    plan: MemoryPlan
    layers: tuple[LoweredLayer, ...]
    """in order, of all parts"""
    region: Region

    @property
    def descriptors(self) -> list[Descriptor]:
        """Descriptors in order; the last one of each program has `last`."""
        return [layer.descriptor for layer in self.layers]


@dataclass(frozen=True)
class Emitted:
    """Memory images of all regions."""

    regions: tuple[EmittedRegion, ...]
    program: NDArray[np.uint32]
    weights: NDArray[np.uint8]
    tables: NDArray[np.uint8]
    """[tables, 256], of all regions"""
    overflows: tuple[str, ...] = ()
    """the memories that make parts necessary, with bytes needed and available"""

    @property
    def parts(self) -> int:
        """In how many parts the regions are run; 0 if everything fits the memories."""
        return sum(len(item.region.parts) for item in self.regions)


def _outputs(graph: LayerGraph, plan: MemoryPlan) -> tuple[TensorLocation, ...]:
    """Locations of the outputs with the shapes and types that the network gives them."""
    return tuple(dataclasses.replace(plan.locations[t.name], shape=t.shape, dtype=t.dtype) for t in graph.outputs)


def emit(config: AcceleratorConfig, graphs: Sequence[LayerGraph]) -> Emitted:
    """Plan, lower and lay out every region.

    They follow each other in program and weight memory; if these are too small for all of them, every region is cut
    into parts.

    Raises
    ------
    CapacityError
        If activations, or the weights of one channel group, exceed the configuration's memories.
    """
    plain = [_planned(config, graph) for graph in graphs]
    spare = [_with_spare_rows(config, *item) for item in plain]
    fast, carried = ([(_faster(config, graph), plan) for graph, plan in form] for form in (spare, plain))
    # Faster, but with more layers and weights: not where that makes parts necessary.
    for form in (fast, carried, plain):
        forms, plans = [graph for graph, _ in form], [plan for _, plan in form]
        lowered = [lower_layers(config, graph, plan.locations) for graph, plan in form]
        overflows = _overflows(config, lowered)
        if not overflows:
            break
    return dataclasses.replace(_emit(config, forms, plans, lowered, parts=bool(overflows)), overflows=overflows)


def _planned(config: AcceleratorConfig, graph: LayerGraph) -> tuple[LayerGraph, MemoryPlan]:
    first, second = prepared(config, graph)
    try:
        return first, plan_memory(config, first)
    except CapacityError:
        return second, plan_memory(config, second)


def _faster(config: AcceleratorConfig, graph: LayerGraph) -> LayerGraph:
    return with_split_sums(config, with_carried_rows(config, graph))


def _with_spare_rows(config: AcceleratorConfig, graph: LayerGraph, plan: MemoryPlan) -> tuple[LayerGraph, MemoryPlan]:
    """The region with spare rows above some tensors, if there is memory for them."""
    larger = with_spare_rows(config, graph)
    if larger is graph:
        return graph, plan
    try:
        return larger, plan_memory(config, larger)
    except CapacityError:
        return graph, plan


def prepared(config: AcceleratorConfig, graph: LayerGraph) -> tuple[LayerGraph, LayerGraph]:
    """A region without what nobody reads: without copies and, if that does not fit the memory, with them: tensors that
    are parts of others live longer."""
    return without_unread(without_copies(config, graph)), without_unread(graph)


def _overflows(config: AcceleratorConfig, lowered: Sequence[Sequence[LoweredLayer]]) -> tuple[str, ...]:
    """The memories that do not hold all regions at once."""
    # Layers of a region share equal weights: see `place_program`.
    distinct = [{layer.weights.tobytes(): len(layer.weights) for layer in layers} for layers in lowered]
    weights = sum(sum(sizes.values()) for sizes in distinct)
    layers = sum(map(len, lowered))
    result = []
    if weights > config.weight_words:
        size = config.weight_word_bytes
        result.append(f"weight memory: {weights * size:,} bytes needed, {config.weight_words * size:,} available")
    if layers * DESCRIPTOR_WORDS > config.program_words:
        result.append(
            f"program memory: {4 * DESCRIPTOR_WORDS * layers:,} bytes needed for {layers} layers, "
            f"{4 * config.program_words:,} available"
        )
    return tuple(result)


def _emit(
    config: AcceleratorConfig,
    graphs: Sequence[LayerGraph],
    plans: Sequence[MemoryPlan],
    lowered: Sequence[Sequence[LoweredLayer]],
    *,
    parts: bool,
) -> Emitted:
    regions: list[EmittedRegion] = []
    words: list[NDArray[np.uint8]] = []
    tables = tables_of(layer for graph in graphs for layer in graph.layers)
    if len(tables) > config.tables:
        raise CapacityError(f"{len(tables)} functions as tables, the configuration has {config.tables}")
    used = programmed = 0
    for index, (graph, plan, layers) in enumerate(zip(graphs, plans, lowered, strict=True)):
        first = programmed
        placed: list[LoweredLayer] = []
        made: list[Part] = []
        for piece in cut(config, layers) if parts else [layers]:
            program = place_program(config, piece, weight_base=0 if parts else used, tables=tables)
            words += [item.weights for item in program]
            size = sum(len(item.weights) for item in program)
            length = len(program) * DESCRIPTOR_WORDS
            made.append(Part(program_start=programmed, program_words=length, weights_start=used, weights_words=size))
            placed += program
            used += size
            programmed += length
        region = Region(
            name=f"region{index}",
            program_start=first,
            program_words=programmed - first,
            inputs=tuple(dataclasses.replace(plan.locations[t.name], dtype=t.dtype) for t in graph.inputs),
            outputs=_outputs(graph, plan),
            tensors=tuple(plan.locations[item.layer.output.name] for item in placed),
            parts=tuple(made) if parts else (),
        )
        regions.append(EmittedRegion(graph, plan, tuple(placed), region))
    program_image = encode_program(d for r in regions for d in r.descriptors)
    weights = np.concatenate(words) if words else np.zeros((0, config.weight_word_bytes), np.uint8)
    return Emitted(tuple(regions), program_image, weights, table_image(tables))
