"""The memory planner and its independent checker."""

import dataclasses
import math
from random import Random

import exact_placement
import lifetimes as larger_networks
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import CapacityError
from nnloom.compiler.frontend import read_model
from nnloom.compiler.memory import (
    ORDERS,
    SEARCH,
    Lifetime,
    Placement,
    _Problem,
    breadth_bound,
    check_plan,
    lifetimes,
    place_tensors,
    placements,
    plan_memory,
)
from nnloom.compiler.partition import partition
from nnloom.compiler.zoo import MLPERF_TINY
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
        assert plan.strategy in (*ORDERS, SEARCH)


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


def check_offsets(lives: list[Lifetime], offsets: dict[str, int], granules: int):
    """No two tensors that live together overlap, and the last ends at `granules`."""
    assert set(offsets) == {life.name for life in lives} and min(offsets.values()) >= 0
    assert max(offsets[life.name] + life.granules for life in lives) == granules
    for index, a in enumerate(lives):
        for b in lives[index + 1 :]:
            if a.overlaps(b):
                assert offsets[a.name] + a.granules <= offsets[b.name] or (
                    offsets[b.name] + b.granules <= offsets[a.name]
                )


tensors = st.lists(st.tuples(st.integers(1, 500), st.integers(-1, 20), st.integers(0, 8)), min_size=1, max_size=25)


@settings(max_examples=150, deadline=None)
@given(tensors)
def test_every_strategy_gives_valid_plans(rows):
    lives = [Lifetime(str(i), size, first, first + length) for i, (size, first, length) in enumerate(rows)]
    plans = list(placements(lives))
    assert [plan.strategy for plan in plans] == [*ORDERS, SEARCH]
    for plan in plans:
        check_offsets(lives, plan.offsets, plan.granules)
    chosen = place_tensors(lives)
    assert breadth_bound(lives) <= chosen.granules == min(plan.granules for plan in plans)
    assert chosen == place_tensors(lives)


def limit(optimum: exact_placement.Optimum) -> int:
    """Granules of the longest plan that is within 2 % of what is proven."""
    return math.floor(1.02 * optimum.bound)


@pytest.mark.parametrize("network", larger_networks.read())
def test_plans_of_larger_networks_are_within_two_percent_of_the_optimum(network):
    lives = larger_networks.read()[network]
    optimum = exact_placement.solve(lives, seconds=30)
    check_offsets(lives, optimum.offsets, optimum.granules)
    chosen = place_tensors(lives)
    check_offsets(lives, chosen.offsets, chosen.granules)
    assert optimum.bound <= chosen.granules <= limit(optimum)


@pytest.mark.model
@pytest.mark.parametrize("name", MLPERF_TINY)
def test_plans_of_the_zoo_are_within_two_percent_of_the_optimum(name, model_path):
    (graph,) = partition(read_model(model_path(name)), CONFIG).graphs
    plan = plan_memory(CONFIG, graph)
    optimum = exact_placement.solve(plan.lifetimes, seconds=30)
    assert optimum.bound <= plan.granules <= limit(optimum)


def _area(piece: tuple[int, int, int, int]) -> int:
    first, end, low, high = piece
    return (end - first) * (high - low)


def rectangles(random: Random, count: int, layers: int, granules: int) -> list[Lifetime]:
    """Tensors that fill layers x granules without a gap: cuts of the rectangle."""
    pieces = [(0, layers, 0, granules)]
    while len(pieces) < count:
        large = max(range(len(pieces)), key=lambda i: _area(pieces[i]) * random.random())
        first, end, low, high = pieces.pop(large)
        if random.random() < 0.5 and end - first > 1:
            cut = random.randrange(first + 1, end)
            pieces += [(first, cut, low, high), (cut, end, low, high)]
        elif high - low > 1:
            cut = random.randrange(low + 1, high)
            pieces += [(first, end, low, cut), (first, end, cut, high)]
        else:
            pieces.append((first, end, low, high))
    random.shuffle(pieces)
    return [Lifetime(str(i), high - low, first, end - 1) for i, (first, end, low, high) in enumerate(pieces)]


def test_the_search_finds_plans_without_a_gap_where_every_order_fails():
    searched = 0
    for seed in range(30):
        lives = rectangles(Random(seed), 20, 40, 200)
        plan = place_tensors(lives)
        check_offsets(lives, plan.offsets, plan.granules)
        assert 200 <= plan.granules <= 204, seed
        searched += plan.strategy == SEARCH
    assert searched >= 5


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("size", [3, 1, 4, 0, 2]),
        # Moments 0 to 3 hold 3, 10, 11 and 13 granules: the widest first, and in it the largest.
        ("breadth", [3, 4, 2, 1, 0]),
        # The first first, of two at once the larger.
        ("time", [0, 1, 2, 3, 4]),
        # Granules times moments: 6, 5, 4, 18 and 4.
        ("area", [3, 0, 1, 2, 4]),
    ],
)
def test_orders_of_placement(name, order):
    sizes_and_times = [(3, 0, 1), (5, 1, 1), (2, 1, 2), (9, 2, 3), (4, 3, 3)]
    problem = _Problem([Lifetime(str(i), *values) for i, values in enumerate(sizes_and_times)])
    assert ORDERS[f"greedy by {name}"](problem) == order


def test_every_plan_passes_the_independent_checker_before_it_is_used(monkeypatch):
    """A planner that puts all tensors into one place has no say."""
    monkeypatch.setattr(
        "nnloom.compiler.memory.place_tensors",
        lambda lives: Placement({life.name: 0 for life in lives}, max(life.granules for life in lives), "wrong"),
    )
    graph = next(graphs(1))
    with pytest.raises(CapacityError, match="overlaps"):
        plan_memory(CONFIG, graph)
