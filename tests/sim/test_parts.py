"""Regions in parts, for engines whose memories are too small: golden model, RTL, sessions."""

from dataclasses import replace

import numpy as np
import pytest

from nnloom.arch.artifact import Artifact
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import CapacityError
from nnloom.arch.isa import decode_program
from nnloom.compiler import zoo
from nnloom.compiler.api import compile
from nnloom.compiler.cost import program_cycles
from nnloom.compiler.emit import emit
from nnloom.runtime import InferenceSession
from nnloom.runtime.devices.model import ModelDevice
from nnloom.runtime.devices.verified import VerifiedRtlDevice
from nnloom.sim.check import OwnershipChecker
from nnloom.sim.parts import RegionModels
from tests.artifacts import SMALL, make_artifact, random_network_inputs
from tests.board_twin import twin_device
from tests.graphs import KINDS, evaluate, random_graph

CONFIGS = {
    "weights": AcceleratorConfig(lanes=8, taps=5, requant_units=2, activation_bytes=8192, weight_words=80),
    "program": AcceleratorConfig(lanes=8, taps=5, requant_units=2, activation_bytes=8192, program_words=32),
    "both, 2x16x9": AcceleratorConfig(pixels=2, weight_words=64, program_words=48, row_triples=True),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_parts_fit_and_give_the_definitions_results(config, tmp_path):
    parts, cut_layers = [], 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        graph = random_graph(rng, [str(k) for k in rng.choice(KINDS, 4)])
        try:
            emitted = make_artifact(tmp_path / str(seed), graph, config)
        except CapacityError as error:
            assert "output channels need" in str(error)
            continue
        artifact = Artifact.load(tmp_path / str(seed))
        (region,) = artifact.manifest.regions
        for part in region.parts:
            program, weights = artifact.part_images(part)
            assert 0 < len(program) <= config.program_words and len(weights) <= config.weight_words
            assert decode_program(program)[-1].last
        parts.append(len(region.parts))
        cut_layers += sum(item.channels is not None for item in emitted.regions[0].layers)
        assert sum(item.macs for item in emitted.regions[0].layers) == emitted.regions[0].graph.macs <= graph.macs
        inputs = random_network_inputs(rng, graph)
        models, checker = RegionModels(artifact.image), OwnershipChecker(config, region)
        models.activations[:] = rng.integers(0, 256, models.activations.shape, np.uint8)
        for location in region.inputs:
            models.write_tensor(location, inputs[location.name])
        for model, start in models.programs(region):
            for descriptor in decode_program(model.program, start):
                checker.before(descriptor)
                checker.after(model.execute(descriptor))
        checker.finish()
        want = evaluate(graph, {name: value[0] for name, value in inputs.items()})
        for location in region.outputs:
            got = models.read_tensor(location)
            np.testing.assert_array_equal(got.reshape(want[location.name].shape), want[location.name])
    assert len(parts) >= 15 and max(parts) >= 2
    assert (cut_layers >= 8) == (config.weight_words < 100)


def test_tables_are_loaded_once_for_all_parts(tmp_path, monkeypatch):
    """More layers than the program memory holds, with tables in turn: parts share the tables of the whole network."""
    config = replace(SMALL, program_words=16 * 16, weight_words=1024, tables=4)
    rng = np.random.default_rng(6)
    graph = random_graph(rng, 70 * ["rescaled"], tables=4)
    emitted = make_artifact(tmp_path, graph, config)
    artifact = Artifact.load(tmp_path)
    (region,) = artifact.manifest.regions
    programs = [decode_program(artifact.part_images(part)[0]) for part in region.parts]
    used = [{d.table for d in program} - {0} for program in programs]
    assert len(emitted.tables) == 4 and len(used) >= 5 and sum(len(each) > 1 for each in used) >= 4
    for d, item in zip((d for program in programs for d in program), emitted.regions[0].layers, strict=True):
        want = item.layer.table.entries if item.layer.table else None
        assert (emitted.tables[d.table - 1].tobytes() if d.table else None) == want
    line, device = twin_device(config)
    loads = []
    write = device._write_tables

    def count(tables, places=None):
        loads.append(len(tables))
        write(tables, places)

    monkeypatch.setattr(device, "_write_tables", count)
    device.load(artifact)
    for _ in range(2):
        inputs = random_network_inputs(rng, graph)
        want = evaluate(graph, {name: value[0] for name, value in inputs.items()})
        got = device.run_region(region, list(inputs.values())).outputs
        assert len(graph.outputs) == len(got)
        for location, values in zip(region.outputs, got, strict=True):
            np.testing.assert_array_equal(values.reshape(want[location.name].shape), want[location.name])
    assert sum(loads) == 4 and line.board.starts == 2 * len(region.parts)


def test_what_fits_is_one_program():
    graph = random_graph(np.random.default_rng(8), ["conv", "depthwise", "conv"])
    emitted = emit(SMALL, [graph])
    assert not emitted.parts and len(emitted.regions[0].layers) == len(graph.layers)
    assert sum(d.last for d in emitted.regions[0].descriptors) == 1
    assert emitted.overflows == ()


def test_the_memories_that_make_parts_necessary_are_named():
    graph = random_graph(np.random.default_rng(4), ["conv", "depthwise", "conv"])
    weights = len(emit(SMALL, [graph]).weights)
    few = emit(replace(SMALL, weight_words=weights - 1), [graph])
    short = emit(replace(SMALL, program_words=32), [graph])
    both = emit(replace(SMALL, weight_words=weights - 1, program_words=32), [graph])
    assert few.overflows == (f"weight memory: {40 * weights:,} bytes needed, {40 * (weights - 1):,} available",)
    assert short.overflows == ("program memory: 192 bytes needed for 3 layers, 128 available",)
    assert both.overflows == few.overflows + short.overflows
    assert few.parts == short.parts == 2 and emit(replace(SMALL, weight_words=weights), [graph]).parts == 0


def test_a_group_that_is_too_large_is_refused():
    graph = random_graph(np.random.default_rng(3), ["conv", "dense"])
    message = r"weights of 8 output channels need [\d,]+ bytes of weight memory, the configuration has 2,560"
    with pytest.raises(CapacityError, match=message):
        for seed in range(100):
            graph = random_graph(np.random.default_rng(seed), ["dense"])
            emit(replace(SMALL, weight_words=64), [graph])


@pytest.mark.verilator
def test_rtl_runs_parts(tmp_path):
    """Every write as the golden model's, cycles as predicted, layers as counted by the hardware."""
    config = SMALL
    done = 0
    with VerifiedRtlDevice() as device:
        for seed in range(60):
            rng = np.random.default_rng([5, seed])
            graph = random_graph(rng, [str(k) for k in rng.choice(KINDS, 6)])
            try:
                emitted = make_artifact(tmp_path / str(seed), graph, config)
            except CapacityError:
                continue
            if emitted.parts < 2:
                continue
            artifact = Artifact.load(tmp_path / str(seed))
            (region,) = artifact.manifest.regions
            device.load(artifact)
            model = ModelDevice()
            model.load(artifact)
            for _ in range(2):
                inputs = list(random_network_inputs(rng, graph).values())
                result = device.run_region(region, inputs, count_layers=True)
                for got, want in zip(result.outputs, model.run_region(region, inputs).outputs, strict=True):
                    np.testing.assert_array_equal(got, want)
                cycles = result.cycles
                assert len(result.program_cycles) == emitted.parts and sum(result.program_cycles) == cycles
                descriptors = emitted.regions[0].descriptors
                assert abs(cycles - program_cycles(config, descriptors)) <= 0.03 * cycles + 4 * len(descriptors)
                assert len(result.layer_cycles) == len(descriptors)
                assert sum(result.layer_cycles) == cycles
            done += 1
            if done == 8:
                break
    assert done == 8


@pytest.mark.verilator
def test_anomaly_detection_on_a_board_with_little_memory(tmp_path):
    result = compile(zoo.fetch("anomaly_detection"), board="tang-nano-20k", output=tmp_path / "ad")
    memory = result.report["memory"]
    assert memory["parts"] >= 7 and memory["weights_bytes"] > 6 * memory["weights_available"]
    rng = np.random.default_rng(6)
    device = VerifiedRtlDevice()
    with InferenceSession(tmp_path / "ad", "cpu") as cpu, InferenceSession(tmp_path / "ad", device) as rtl:
        (info,) = cpu.get_inputs()
        for scale in (0.5, 5.0, 30.0):
            x = rng.normal(scale=scale, size=info.shape).astype(np.float32)
            for name, want in cpu.run(x).items():
                np.testing.assert_array_equal(rtl.run(x)[name], want)
            assert rtl.last_cycles == result.report["cycles"]
        (segment,) = (s for s in rtl.profile().segments if s.name)
        assert sum(cycles for _, cycles in segment.layers) == rtl.last_cycles
