"""From a layer graph to memory images and back, without TVM."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import EngineImage
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import Descriptor, encode_program
from nnloom.compiler.graph import LayerGraph
from nnloom.compiler.lower import lower, lower_layers, place_program, table_image, tables_of
from nnloom.compiler.memory import MemoryPlan, plan_memory
from nnloom.sim.golden import GoldenModel
from tests.graphs import evaluate


@dataclass(frozen=True)
class Compiled:
    """A region with its images."""

    config: AcceleratorConfig
    graph: LayerGraph
    plan: MemoryPlan
    descriptors: list[Descriptor]
    program: NDArray[np.uint32]
    weights: NDArray[np.uint8]
    tables: NDArray[np.uint8]

    @property
    def image(self) -> EngineImage:
        return EngineImage(self.config, self.program, self.weights, self.tables)


def compile_region(config: AcceleratorConfig, graph: LayerGraph, *, words: int = 0) -> Compiled:
    """words: sums of channel groups with more weight words, parameters included, are made in pieces of so many."""
    plan = plan_memory(config, graph)
    lowered = lower(config, graph, plan.locations)
    if words:
        layers = lower_layers(config, graph, plan.locations)
        split = [list(x.pieces(config, words)) if len(x.weights) // x.groups > words else [x] for x in layers]
        pieces = [piece for made in split for piece in made]
        lowered = place_program(config, pieces, tables=tables_of(graph.layers))
    descriptors = [item.descriptor for item in lowered]
    weights = np.concatenate([item.weights for item in lowered])
    tables = table_image(tables_of(graph.layers))
    return Compiled(config, graph, plan, descriptors, encode_program(descriptors), weights, tables)


def random_inputs(rng: np.random.Generator, graph: LayerGraph) -> dict[str, NDArray[np.int8]]:
    return {t.name: rng.integers(-128, 128, (t.rows, t.columns, t.channels), np.int8) for t in graph.inputs}


def check_outputs(compiled: Compiled, graph: LayerGraph, rng: np.random.Generator) -> None:
    """The program's outputs, on random inputs, are those that `graph` has by definition, whatever the memories held."""
    model = GoldenModel(compiled.config, compiled.program, compiled.weights, compiled.tables)
    model.activations[:] = rng.integers(0, 256, model.activations.shape, np.uint8)
    model.window[:] = rng.integers(-128, 128, model.window.shape, np.int8)
    inputs = random_inputs(rng, graph)
    for name, value in inputs.items():
        model.write_tensor(compiled.plan.locations[name], value)
    model.run()
    want = evaluate(graph, inputs)
    for t in graph.outputs:
        got = model.read_tensor(compiled.plan.locations[t.name])
        np.testing.assert_array_equal(got.reshape(want[t.name].shape), want[t.name])
