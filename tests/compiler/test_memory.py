"""The memory planner and its independent checker."""

import dataclasses

import numpy as np
import pytest

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import CapacityError
from nnloom.compiler.memory import STRATEGIES, check_plan, lifetimes, plan_memory
from tests.graphs import KINDS, random_graph

CONFIG = AcceleratorConfig()


def graphs(count: int):
    for seed in range(count):
        rng = np.random.default_rng(seed)
        yield random_graph(rng, [str(k) for k in rng.choice(KINDS, 7)])


def test_plans_pass_the_checker_and_span_at_least_the_widest_moment():
    for graph in graphs(30):
        plan = plan_memory(CONFIG, graph)
        check_plan(plan.locations, plan.lifetimes, CONFIG)
        widest = max(
            sum(life.granules for life in plan.lifetimes if life.first <= time <= life.last)
            for time in range(-1, len(graph.layers) + 1)
        )
        total = sum(life.granules for life in plan.lifetimes)
        assert widest <= plan.granules <= total
        assert plan.peak_bytes(CONFIG) == plan.granules * CONFIG.granule * CONFIG.row_banks
        assert plan.strategy in STRATEGIES


def test_inputs_of_a_layer_live_while_its_output_does():
    for graph in graphs(10):
        _, lives = lifetimes(CONFIG, graph)
        by_name = {life.name: life for life in lives}
        for layer in graph.layers:
            for tensor in layer.inputs:
                assert by_name[tensor.name].overlaps(by_name[layer.output.name])
        for tensor in graph.outputs:
            assert by_name[tensor.name].last == len(graph.layers)


def test_the_checker_finds_every_planted_overlap():
    found = 0
    for graph in graphs(10):
        plan = plan_memory(CONFIG, graph)
        for life in plan.lifetimes:
            for other in plan.lifetimes:
                if other is life or not life.overlaps(other):
                    continue
                moved = dict(plan.locations)
                base = plan.locations[other.name].base
                moved[life.name] = dataclasses.replace(moved[life.name], base=base)
                with pytest.raises(CapacityError, match=r"overlaps|beyond"):
                    check_plan(moved, plan.lifetimes, CONFIG)
                found += 1
    assert found > 20


def test_a_tensor_outside_the_memory_is_found():
    (graph,) = graphs(1)
    plan = plan_memory(CONFIG, graph)
    name = plan.lifetimes[0].name
    moved = {**plan.locations, name: dataclasses.replace(plan.locations[name], base=CONFIG.bank_granules)}
    with pytest.raises(CapacityError, match="beyond the activation memory"):
        check_plan(moved, plan.lifetimes, CONFIG)


def test_too_large_a_network_says_how_much_is_needed():
    small = AcceleratorConfig(activation_bytes=2048)
    rng = np.random.default_rng(3)
    with pytest.raises(CapacityError, match=r"activations need \d+ bytes, the configuration has 2048"):
        for _ in range(50):
            plan_memory(small, random_graph(rng, ["conv", "conv", "conv"]))
