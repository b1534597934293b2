"""The checker of the memory plan finds plans that overlap."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nnloom.arch.artifact import Region
from nnloom.arch.errors import ArtifactError
from nnloom.sim.check import OwnershipChecker, written_tensor
from nnloom.sim.golden import GoldenModel
from tests.artifacts import SMALL
from tests.graphs import KINDS, evaluate, random_graph
from tests.harness import compile_region, random_inputs


def _run(compiled, inputs, *, skip=None):
    """Golden model with the checker; `skip` leaves out a descriptor."""
    graph, locations = compiled.graph, compiled.plan.locations
    region = Region(
        name="region0",
        program_start=0,
        program_words=len(compiled.program),
        inputs=tuple(locations[t.name] for t in graph.inputs),
        outputs=tuple(locations[t.name] for t in graph.outputs),
        tensors=tuple(locations[layer.output.name] for layer in graph.layers),
    )
    checker = OwnershipChecker(compiled.config, region)
    model = GoldenModel(compiled.config, compiled.program, compiled.weights, compiled.tables)
    for location in region.inputs:
        model.write_tensor(location, inputs[location.name])
    traces = []
    for index, descriptor in enumerate(compiled.descriptors):
        if index == skip:
            continue
        checker.before(descriptor)
        traces.append(model.execute(descriptor))
        checker.after(traces[-1])
    checker.finish()
    return region, traces


@pytest.mark.parametrize("seed", range(20))
def test_sound_plans_pass_and_writes_hold_every_tensor(seed):
    rng = np.random.default_rng([11, seed])
    graph = random_graph(rng, [str(k) for k in rng.choice(KINDS, 4)])
    compiled = compile_region(SMALL, graph)
    inputs = random_inputs(rng, graph)
    region, traces = _run(compiled, inputs)
    want = evaluate(graph, inputs)
    for location, trace in zip(region.tensors, traces, strict=True):
        got = written_tensor(SMALL, location, trace)
        np.testing.assert_array_equal(got.reshape(-1), want[location.name].reshape(-1))


@pytest.mark.parametrize("seed", range(10))
def test_a_tensor_that_lost_bytes_is_found(seed):
    rng = np.random.default_rng([12, seed])
    graph = random_graph(rng, [str(k) for k in rng.choice(KINDS, 3)])
    compiled = compile_region(SMALL, graph)
    for index, descriptor in enumerate(compiled.descriptors[:-1]):
        # The layer writes one granule beside where its reader looks.
        moved = dataclasses.replace(descriptor, out_base=descriptor.out_base + 1)
        wrong = dataclasses.replace(
            compiled, descriptors=[moved if i == index else d for i, d in enumerate(compiled.descriptors)]
        )
        with pytest.raises(ArtifactError, match="memory plan"):
            _run(wrong, random_inputs(rng, graph))


def test_reading_what_nobody_wrote_is_found():
    rng = np.random.default_rng(13)
    graph = random_graph(rng, ["conv", "conv"] if "conv" in KINDS else list(KINDS[:2]))
    compiled = compile_region(SMALL, graph)
    with pytest.raises(ArtifactError, match="memory plan"):
        _run(compiled, random_inputs(rng, graph), skip=0)
