"""The search for configurations, and the two models it rests on against the committed measurements."""

from __future__ import annotations

import dataclasses
import importlib
import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import CapacityError, ConfigError
from nnloom.arch.isa import needed_field_bits
from nnloom.boards import get
from nnloom.boards.resources import (
    Resources,
    block_rams,
    dsp_blocks,
    estimate,
    fits,
    limits,
    lut_multipliers,
    read_coefficients,
)
from nnloom.cli.plot import draw_exploration
from nnloom.compiler.cost import program_cycles
from nnloom.compiler.emit import emit
from nnloom.compiler.explore import EVERYTHING, Candidate, _features, evaluate, explore_graphs, pareto_front, shapes
from nnloom.compiler.graph import LayerGraph, Padding, Table
from tests.graphs import random_graph, random_layer, tensor

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
BOARD = get("ulx3s-85f")


def _graphs(*kinds: str):
    return (random_graph(np.random.default_rng(5), list(kinds)),)


@pytest.fixture(scope="module")
def found():
    return explore_graphs(_graphs("conv", "depthwise", "average", "dense"), model="chain", board=BOARD)


def test_every_candidate_fits_and_compiles_to_the_cycles_it_promises(found):
    graphs = _graphs("conv", "depthwise", "average", "dense")
    assert len(found.candidates) > 50
    for candidate in found.candidates:
        assert fits(BOARD, candidate.resources)
        emitted = emit(candidate.config, graphs)
        assert sum(program_cycles(candidate.config, r.descriptors) for r in emitted.regions) == candidate.cycles
        assert candidate.latency_us == pytest.approx(candidate.cycles / BOARD.clock_hz * 1e6, abs=1e-3)
        assert candidate.resources == estimate(candidate.config, candidate.lut_multipliers)


def test_memories_are_no_deeper_than_needed(found):
    graphs = _graphs("conv", "depthwise", "average", "dense")
    config = dataclasses.replace(found.best.config, weight_words=64)
    assert evaluate(config, graphs) is None or found.best.config.weight_words == 512
    half = dataclasses.replace(found.best.config, activation_bytes=max(2048, found.best.config.activation_bytes // 2))
    assert half == found.best.config or evaluate(half, graphs) is None


def test_fields_are_no_wider_than_needed(found):
    graphs = _graphs("conv", "depthwise", "average", "dense")
    for candidate in found.candidates:
        emit(candidate.config, graphs)  # refuses fields that are too wide
    bits = {c.config.field_bits for c in found.candidates}
    assert min(bits) == 10 and max(bits) < 16
    wide = _graphs("dense")
    (source,) = wide[0].inputs
    assert needed_field_bits(emit(BOARD.config, wide).regions[0].descriptors[0]) == 10
    source = dataclasses.replace(source, rows=1, columns=1, channels=3000, shape=(1, 3000))
    layer = wide[0].layers[0]
    weights = np.ones((layer.output.channels, 3000), np.int8)
    graph = LayerGraph(
        "region", (source,), wide[0].outputs, (dataclasses.replace(layer, inputs=(source,), weights=weights),)
    )
    chosen = explore_graphs((graph,), model="wide", board=BOARD, workers=1).best.config
    assert chosen.field_bits == 12
    with pytest.raises(CapacityError, match="too large for the engine"):
        emit(dataclasses.replace(chosen, field_bits=11), (graph,))


def test_the_front_is_what_nothing_dominates_and_starts_with_the_fastest(found):
    costs = [c.costs for c in found.candidates]

    def dominated(mine):
        return any(other != mine and all(a <= b for a, b in zip(other, mine, strict=True)) for other in costs)

    assert {c.costs for c in found.front} == {c for c in costs if not dominated(c)}
    assert found.best.latency_us == min(c.latency_us for c in found.candidates)
    assert [c.costs for c in found.front] == sorted(c.costs for c in found.front)


def test_the_boards_own_configuration_is_chosen_unless_another_is_faster(found):
    graphs = _graphs("conv", "depthwise", "average", "dense")
    assert found.default.config == BOARD.config
    emitted = emit(BOARD.config, graphs)
    assert found.default.cycles == sum(program_cycles(BOARD.config, r.descriptors) for r in emitted.regions)
    for cycles in (found.best.cycles - 1, found.best.cycles):
        default = dataclasses.replace(found.default, cycles=cycles)
        chooses = dataclasses.replace(found, default=default)
        assert chooses.chosen is default and chooses.reason().startswith("the default of ulx3s-85f")
    for default in (dataclasses.replace(found.default, cycles=found.best.cycles + 1), None):
        chooses = dataclasses.replace(found, default=default)
        assert chooses.chosen is found.best and chooses.reason().startswith("least latency")


def test_the_plot_stars_what_auto_takes(found):
    default = dataclasses.replace(found.best, config=BOARD.config, latency_us=found.best.latency_us - 0.001)
    for marked in (dataclasses.replace(found, default=default), dataclasses.replace(found, default=None)):
        assert marked.chosen is (default if marked.default else found.best)
        for panel in draw_exploration(marked).axes:
            (star,) = [dots for dots in panel.collections if dots.get_label() == "used by --config auto"]
            assert star.get_offsets()[:, 1].tolist() == [marked.chosen.latency_us]


def test_a_board_whose_own_configuration_lacks_an_operator_has_no_default():
    without = dict.fromkeys(("max_pool", "elementwise_add", "elementwise_mul", "depthwise"), False)
    config = dataclasses.replace(BOARD.config, **without)
    board = dataclasses.replace(BOARD, config=config)
    found = explore_graphs(_graphs("conv", "average"), model="chain", board=board, workers=1)
    assert found.default is None and found.chosen is found.best


def test_of_equal_candidates_one_is_on_the_front():
    resources = Resources(LUT4=1, TRELLIS_FF=1, DP16KD=1, MULT18X18D=1)
    one = Candidate(config=AcceleratorConfig(), lut_multipliers=0, resources=resources, cycles=80, latency_us=1.0)
    other = dataclasses.replace(one, config=AcceleratorConfig(taps=8))
    worse = dataclasses.replace(one, latency_us=2.0)
    assert pareto_front([one, other, worse]) == (one,)


@pytest.mark.parametrize(
    ("kinds", "features"),
    [
        (("conv", "dense"), (False, False, False, False)),
        (("conv", "average"), (True, False, False, False)),
        (("conv", "maximum"), (True, True, False, False)),
        (("depthwise", "add"), (True, False, True, False)),
        (("conv", "multiply"), (True, False, False, True)),
    ],
)
def test_features_only_where_the_network_uses_them(kinds, features):
    for config in shapes(_graphs(*kinds)):
        assert (config.depthwise, config.max_pool, config.elementwise_add, config.elementwise_mul) == features


def test_the_search_begins_with_every_feature():
    """Else an operator that needs one would stay on the CPU in every candidate."""
    assert all(getattr(EVERYTHING, name) for name in _features(()))


def test_row_triples_only_where_a_convolution_has_three_rows():
    rng = np.random.default_rng(1)
    for rows in (1, 2, 3, 5):
        source = tensor(rng, "x", 12, 10, 16)
        layer = random_layer(rng, "conv", source)
        weights = rng.integers(-127, 128, (layer.weights.shape[0], rows, 3, 16), np.int8)
        output = tensor(rng, "y", 13 - rows, 8, layer.output.channels)
        layer = dataclasses.replace(layer, weights=weights, strides=(1, 1), padding=Padding(), output=output)
        space = list(shapes((LayerGraph("region", (source,), (output,), (layer,)),)))
        assert {config.taps >= 9 for config in space if config.row_triples} == ({True} if rows >= 3 else set())
        assert len(set(space)) == len(space)
    found = explore_graphs(_graphs("dense"), model="dense", board=BOARD, workers=1)
    assert not any(c.config.row_triples for c in found.candidates)


def test_a_network_that_fits_no_configuration():
    small = dataclasses.replace(BOARD, name="small", primitives={**BOARD.primitives, "DP16KD": 8})
    with pytest.raises(CapacityError, match=r"chain: no configuration fits small \(.*DP16KD 7, .*\); use a smaller"):
        explore_graphs(_graphs("conv"), model="chain", board=small, workers=1)


def test_the_program_memory_holds_as_many_layers_as_the_network_has(monkeypatch):
    """The board's own holds 64."""
    monkeypatch.setattr(importlib.import_module("nnloom.compiler.explore"), "_LANES", (8,))
    rng = np.random.default_rng(3)
    x = tensor(rng, "x", 1, 1, 8)
    first = random_layer(rng, "dense", x)
    weights = rng.integers(-127, 128, (8, 8), np.int8)
    scales, bias = np.full(8, 0.001), np.zeros(8, np.int32)
    layers = []
    for i in range(70):
        output = dataclasses.replace(x, name=f"y{i}")
        fields = dict(weights=weights, weight_scales=scales, bias=bias, inputs=(layers[-1].output if layers else x,))
        layers.append(dataclasses.replace(first, name=output.name, output=output, **fields))
    graph = LayerGraph("region", (x,), (layers[-1].output,), tuple(layers))
    (overflow,) = emit(BOARD.config, [graph]).overflows
    assert overflow == "program memory: 4,480 bytes needed for 70 layers, 4,096 available"
    found = explore_graphs((graph,), model="long", board=BOARD, workers=1)
    assert found.default is None and all(c.config.program_words >= 70 * 16 for c in found.candidates)
    assert not emit(found.chosen.config, [graph]).parts


def test_the_smallest_for_a_latency():
    """It is fast enough, and every other that is takes more of what the board has least of."""
    found = explore_graphs(_graphs("conv", "dense"), model="chain", board=BOARD, workers=1)

    def share(candidate):
        used = candidate.resources.to_dict()
        return max(used[name] / BOARD.primitives[name] for name in used)

    for latency_us in (1.5 * found.best.latency_us, 4 * found.best.latency_us):
        chosen = found.smallest(latency_us)
        enough = [c for c in found.candidates if c.latency_us <= latency_us]
        assert chosen in enough and share(chosen) == min(map(share, enough)) < share(found.best)
    with pytest.raises(ConfigError, match=r"takes chain in 0\.01 us; the fastest takes [\d.]+ us"):
        found.smallest(0.01)


def test_on_dask_the_result_is_the_same():
    distributed = pytest.importorskip("dask.distributed")
    graphs = _graphs("conv", "dense")
    here = explore_graphs(graphs, model="chain", board=BOARD, workers=1)
    seen = []
    options = dict(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None)
    with distributed.LocalCluster(protocol="tcp", host="127.0.0.1", **options) as cluster:
        there = explore_graphs(
            graphs,
            model="chain",
            board=BOARD,
            scheduler=cluster.scheduler_address,
            advance=lambda done, total: seen.append((done, total)),
        )
    assert there == here
    assert seen == [(i + 1, len(seen)) for i in range(len(seen))] and len(seen) >= len(there.candidates)


def test_a_dask_scheduler_that_is_not_there():
    with pytest.raises(ConfigError, match=r"cannot connect to the Dask scheduler tcp://127\.0\.0\.1:9 \("):
        explore_graphs(_graphs("dense"), model="chain", board=BOARD, scheduler="tcp://127.0.0.1:9")


@pytest.mark.parametrize(("functions", "tables"), [(0, 0), (1, 1), (3, 4)])
def test_engines_have_as_many_tables_as_the_network_has_functions(functions, tables):
    (graph,) = _graphs("dense")
    (layer,) = graph.layers
    table = Table(entries=bytes(256), scale=0.1, zero_point=0)
    several = [dataclasses.replace(table, entries=bytes([n]) * 256) for n in range(functions)]
    layers = [layer, *(dataclasses.replace(layer, table=t) for t in several * 2)]
    found = list(shapes([dataclasses.replace(graph, layers=tuple(layers))]))
    assert found and {config.tables for config in found} == {tables}
    # A block RAM for each unit, whatever the number.
    smallest = dataclasses.replace(found[0], activation_bytes=2048, weight_words=64, program_words=32)
    without = dataclasses.replace(smallest, tables=0)
    assert block_rams(smallest) - block_rams(without) == (smallest.requant_units if tables else 0)


def test_default_configuration_of_the_board_is_built_as_before():
    config = BOARD.config
    assert lut_multipliers(BOARD, config) == 176
    assert dsp_blocks(config, 176) == 145 and block_rams(config) == 187
    assert fits(BOARD, estimate(config, 176))
    assert not fits(BOARD, dataclasses.replace(estimate(config, 176), LUT4=limits(BOARD)["LUT4"] + 1))


def test_all_multipliers_of_a_small_array_may_be_dsp_blocks():
    config = AcceleratorConfig(lanes=8, taps=3, requant_units=2)
    assert lut_multipliers(BOARD, config) == 0
    assert dsp_blocks(config, 0) == 24 + 2 * 2 + 1


def test_a_memory_deeper_than_a_block_ram_is_refused():
    with pytest.raises(ConfigError, match="a memory of 65536 words is deeper than a block RAM"):
        block_rams(AcceleratorConfig(weight_words=65536))


@pytest.fixture(scope="module")
def measured():
    return json.loads((BENCHMARKS / "results" / "resources.json").read_text())["measurements"]


def test_block_rams_and_dsp_blocks_are_exact_on_the_measurements(measured):
    assert len(measured) >= 12
    for row in measured:
        config = AcceleratorConfig.from_dict(row["config"])
        got = estimate(config, row["lut_multipliers"])
        # Measured before protocol 3, whose link has a block RAM more.
        assert row["resources"]["DP16KD"] + 1 == got.DP16KD
        assert row["resources"]["MULT18X18D"] == got.MULT18X18D


def test_luts_and_flip_flops_are_within_ten_percent_even_when_held_out(measured):
    benchmark = runpy.run_path(str(BENCHMARKS / "resources.py"))
    coefficients = benchmark["fit"](measured)
    assert coefficients == read_coefficients(), "run benchmarks/resources.py --fit-only"
    for row in measured:
        got = estimate(AcceleratorConfig.from_dict(row["config"]), row["lut_multipliers"]).to_dict()
        for name in ("LUT4", "TRELLIS_FF"):
            assert abs(got[name] / row["resources"][name] - 1) <= 0.10, (name, row)
    for name, errors in benchmark["held_out_errors"](measured).items():
        assert np.abs(errors).max() <= 0.10, name


def test_coefficients_of_other_terms_are_refused(tmp_path):
    path = tmp_path / "resources.json"
    path.write_text('{"coefficients": {"LUT4": {"system": 1.0}, "TRELLIS_FF": {}}}')
    with pytest.raises(ConfigError, match=r"resources.json: not the terms of the model for LUT4; run benchmarks"):
        read_coefficients(path)


@pytest.mark.model
def test_cycles_are_within_three_percent_of_rtl_on_the_measured_pairs():
    benchmark = runpy.run_path(str(BENCHMARKS / "cost_model.py"))
    results = json.loads((BENCHMARKS / "results" / "cost_model.json").read_text())
    pairs = results["pairs"]
    assert len({(row["network"], json.dumps(row["config"], sort_keys=True)) for row in pairs}) == len(pairs) >= 40
    networks = benchmark["read_networks"]()
    for row in pairs:
        config = AcceleratorConfig.from_dict(row["config"])
        predicted = benchmark["predict"](config, emit(config, networks[row["network"]]))
        assert predicted == row["cycles_predicted"], "the engine has changed: run benchmarks/cost_model.py"
        assert abs(predicted / row["cycles_measured"] - 1) <= 0.03


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.verilator
def test_the_rtl_of_an_explored_configuration_takes_the_predicted_cycles():
    from nnloom.runtime.devices.verified import VerifiedRtlDevice

    benchmark = runpy.run_path(str(BENCHMARKS / "cost_model.py"))
    graphs = benchmark["read_networks"]()["anomaly_detection"]
    best = explore_graphs(graphs, model="anomaly_detection", board=BOARD).best
    with VerifiedRtlDevice() as device:
        cycles = benchmark["simulate"](device, best.config, emit(best.config, graphs))
    assert abs(best.cycles / cycles - 1) <= 0.03
