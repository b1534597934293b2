"""Regions larger than the activation memory, in strips of rows: the definitions' results, within the memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from nnloom.arch.artifact import Artifact, EngineImage
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import CapacityError
from nnloom.arch.lists import Lists
from nnloom.arch.manifest_checks import check_regions
from nnloom.arch.overlap_check import check_lists
from nnloom.arch.schema import SchemaError
from nnloom.boards import get
from nnloom.compiler import compile as compile_model
from nnloom.compiler.emit import Emitted, emit
from nnloom.compiler.fit import fit
from nnloom.compiler.frontend import read_model
from nnloom.compiler.graph import Add, LayerGraph
from nnloom.compiler.strips import balanced, buffer_name, plan_strips
from nnloom.compiler.transfers import external_timing
from nnloom.runtime import InferenceSession
from nnloom.runtime.devices.model import ModelDevice
from nnloom.sim.check import OwnershipChecker
from nnloom.sim.litert import LiteRtReference
from nnloom.sim.parts import RegionModels
from tests.artifacts import SMALL, make_artifact, random_network_inputs
from tests.board_twin import MemoryBoard, twin_device
from tests.graphs import evaluate, random_graph, tensor
from tests.tflite_models import ModelWriter
from tests.topologies import write_topology

TIMING = external_timing(get("ulx3s-85f-sdram"))
CONFIGS = {
    "8x5": replace(SMALL, activation_bytes=2048, weight_words=128),
    "2x16x9": AcceleratorConfig(
        pixels=2, elementwise_mul=True, tables=1, activation_bytes=4096, weight_words=100, row_triples=True
    ),
}
KINDS = ("conv", "conv_narrow_rows", "depthwise", "depthwise_large", "average", "maximum", "sum", "add", "multiply")
KINDS += ("dense", "multiply_pixel", "subtract", "rescaled")


def tall_graph(seed: int, layers: int = 4, rows: tuple[int, int] = (10, 60), tables: int = 1) -> LayerGraph:
    """Random layers of an input that has many rows, some with one of so many tables."""
    rng = np.random.default_rng([11, seed])
    source = tensor(rng, "x", int(rng.integers(*rows)), int(rng.integers(3, 9)), int(rng.integers(1, 40)))
    return random_graph(rng, [str(k) for k in rng.choice(KINDS, layers)], tables, source)


def write_blocks(file: Path, seed: int) -> Path:
    """A random network of the blocks that stages fuse: expand - depthwise - project and two convolutions, each with a
    residual where it can have one, and a convolution with a pool."""
    m, rng = ModelWriter(seed), np.random.default_rng([13, seed])
    x = m.conv(m.input((1, int(rng.integers(20, 50)), int(rng.integers(4, 12)), 3)), int(rng.integers(4, 20)), (3, 3))
    for _ in range(int(rng.integers(1, 4))):
        channels, stride = m.shape(x)[3], int(rng.integers(1, 3))
        if rng.integers(3) == 0:
            channels = int(rng.integers(4, 24))
        match rng.integers(3):
            case 0:
                y = m.depthwise(m.conv(x, int(rng.integers(17, 70)), (1, 1), activation="relu6"), (3, 3), (stride,) * 2)
                y = m.conv(y, channels, (1, 1), activation=None)
            case 1:
                y = m.conv(m.conv(x, channels, (3, 3), (stride,) * 2), channels, (3, 3), activation=None)
            case _:
                y = m.pool(m.conv(x, channels, (3, 3)), "MAX", (3, 3), (stride,) * 2, padding="SAME")
        x = m.add(x, y) if m.shape(x) == m.shape(y) else y
    _, rows, columns, channels = m.shape(x)
    x = m.reshape(m.pool(x, "AVERAGE", (rows, columns), (1, 1), padding="VALID"), (1, channels))
    file.write_bytes(m.finish(m.dense(x, 7)))
    return file


def four_axes(graph: LayerGraph) -> LayerGraph:
    """With outputs as `make_artifact` has them."""
    return replace(graph, outputs=tuple(replace(t, shape=(1, t.rows, t.columns, t.channels)) for t in graph.outputs))


def in_strips(config: AcceleratorConfig, seeds: range) -> list[tuple[int, LayerGraph, Emitted]]:
    """Random graphs that run in strips."""
    found = []
    for seed in seeds:
        graph = tall_graph(seed, tables=1 + seed % 3)
        try:
            emitted = emit(config, [graph], memory=TIMING)
        except CapacityError as error:
            assert "a row of its tensors needs" in str(error) or "output channels need" in str(error)
            continue
        if emitted.regions[0].region.external:
            found.append((seed, graph, emitted))
    return found


def check(config: AcceleratorConfig, graph: LayerGraph, emitted: Emitted, seed: int) -> None:
    """Run the parts on the golden model: the definitions' results, and each layer reads what is its operand's."""
    (item,) = emitted.regions
    region, rng = item.region, np.random.default_rng(seed)
    models = RegionModels(EngineImage(config, emitted.program, emitted.weights, emitted.tables))
    models.activations[:] = rng.integers(0, 256, models.activations.shape, np.uint8)
    inputs = random_network_inputs(rng, graph)
    models.write_inputs(region, [inputs[location.name] for location in region.inputs])
    checker = OwnershipChecker(config, region)
    for part, (model, start) in zip(region.parts, models.programs(region), strict=True):
        checker.load(part)
        for descriptor in model.descriptors(start):
            checker.before(descriptor)
            checker.after(model.execute(descriptor))
    checker.finish()
    want = evaluate(graph, {name: value[0] for name, value in inputs.items()})
    for location, got in zip(region.outputs, models.read_outputs(region), strict=True):
        np.testing.assert_array_equal(got.reshape(want[location.name].shape), want[location.name])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_random_networks_have_the_definitions_results(config):
    found = in_strips(config, range(30))
    for seed, graph, emitted in found:
        check(config, graph, emitted, seed)
        (item,) = emitted.regions
        assert item.plan.granules <= config.bank_granules
        for part in item.region.parts:
            assert part.weights_base + part.weights_words <= config.weight_words
    parts = [part for _, _, emitted in found for part in emitted.regions[0].region.parts]
    # Rows stay on the chip where they can, strips share weights, weights are loaded beside others, strips are fused.
    assert len(found) >= 10 and any(not part.loads for part in parts) and any(not part.stores for part in parts)
    assert any(not part.weights_words for part in parts) and any(part.weights_base for part in parts)
    assert any(part.program_words > 16 for part in parts)
    kinds = {type(layer.layer).__name__ for _, _, e in found for layer in e.regions[0].layers if layer.rows}
    assert len(kinds) >= 5


def test_the_host_moves_the_rows_where_no_dma_does(tmp_path):
    """A board without memory of its own, and the golden model as a device: the same answers."""
    config = CONFIGS["8x5"]
    for seed, graph, _ in in_strips(config, range(8))[:3]:
        make_artifact(tmp_path / str(seed), graph, config, memory=TIMING)
        artifact = Artifact.load(tmp_path / str(seed))
        (region,) = artifact.manifest.regions
        assert region.external
        model = ModelDevice()
        model.load(artifact)
        _, device = twin_device(config)
        device.load(artifact)
        for number in range(2):
            rng = np.random.default_rng(number)
            inputs = [rng.integers(-128, 128, location.shape, np.int8) for location in region.inputs]
            want = model.run_region(region, inputs).outputs
            for value, other in zip(device.run_region(region, inputs).outputs, want, strict=True):
                np.testing.assert_array_equal(value, other)


def test_a_damaged_row_is_found():
    """What an artifact says of external tensors lies within them and the chip."""
    config = CONFIGS["8x5"]
    region = in_strips(config, range(8))[0][2].regions[0].region
    check_regions(config, [region])
    index, part = next((i, p) for i, p in enumerate(region.parts) if p.loads)
    rows = part.loads[0]

    def changed(**values) -> None:
        parts = list(region.parts)
        parts[index] = replace(part, loads=(replace(rows, **values), *part.loads[1:]))
        check_regions(config, [replace(region, parts=tuple(parts))])

    for values, message in (
        ({"tensor": len(region.external)}, "there is no external tensor"),
        ({"first": 1000}, "rows beyond"),
        ({"count": 0}, "rows beyond"),
        ({"first": -1}, "rows beyond"),
        ({"base": config.bank_granules}, "rows beyond the activation memory"),
    ):
        with pytest.raises(SchemaError, match=message):
            changed(**values)
    with pytest.raises(SchemaError, match="external tensors without parts"):
        check_regions(config, [replace(region, parts=())])


def test_heights_are_balanced():
    assert balanced(10, 10, 4) == ((0, 10),)
    assert balanced(10, 8, 4) == ((0, 8), (8, 10))
    assert balanced(112, 40, 4) == ((0, 40), (40, 80), (80, 112))
    assert balanced(7, 3, 1) == ((0, 3), (3, 6), (6, 7))
    for rows in range(1, 60):
        for height in range(1, rows + 1):
            step = min(4, height)
            strips = balanced(rows, height // step * step, step)
            assert [r for first, end in strips for r in range(first, end)] == list(range(rows))
            assert all(first % step == 0 and end - first <= height for first, end in strips)


def test_more_memory_never_costs_more(tmp_path):
    """By the plans' own estimate."""
    graph = read_model(write_topology("larger image classification", tmp_path))
    config = get("ulx3s-85f").config
    costs = []
    for size in (1 << 15, 1 << 16):
        smaller = replace(config, activation_bytes=size)
        fitted = fit(graph, smaller, memory=TIMING)
        assert fitted.engine_share == 1 and not fitted.partitioned.cuts.after
        (item,) = fitted.emitted.regions
        assert item.plan.peak_bytes(smaller) <= size
        costs.append(plan_strips(smaller, item.graph, TIMING).cycles)
    assert costs == sorted(costs, reverse=True)
    assert fit(graph, replace(config, activation_bytes=1 << 17), memory=TIMING).emitted.regions[0].region.external == ()


def test_a_plan_that_does_not_fit_is_refused():
    graph = tall_graph(2)
    with pytest.raises(CapacityError, match=r"a row of its tensors needs [\d,]+ bytes"):
        plan_strips(CONFIGS["8x5"], graph, TIMING)


def test_a_global_pool_of_many_channels_is_sliced(tmp_path):
    """All rows are read at once: more than the memory holds, slice by slice they fit."""
    m = ModelWriter(3)
    x = m.conv(m.input((1, 9, 9, 12)), 40, (1, 1))
    x = m.pool(m.depthwise(m.conv(x, 192, (3, 3), padding="VALID"), (1, 1)), "AVERAGE", (7, 7), (1, 1))
    file = tmp_path / "network.tflite"
    file.write_bytes(m.finish(m.dense(m.reshape(x, (1, 192)), 7)))
    config = replace(get("ulx3s-85f").config, activation_bytes=8192)
    fitted = fit(read_model(file), config, memory=TIMING)
    assert not fitted.partitioned.cpu_operators
    artifact = compile_in_strips(file, tmp_path / "artifact", config)
    same_as_litert(file, artifact)


def test_sums_are_made_where_an_operand_lies(tmp_path):
    """In a stage of convolution and sum: three buffers would not fit, two do."""
    m = ModelWriter(5)
    x = m.conv(m.input((1, 40, 16, 16)), 48, (1, 1))
    y = m.conv(m.conv(x, 16, (3, 3)), 48, (1, 1), activation=None)
    file = tmp_path / "network.tflite"
    file.write_bytes(m.finish(m.conv(m.add(x, y, "relu"), 8, (1, 1))))
    config = replace(get("ulx3s-85f").config, activation_bytes=16384)
    fitted = fit(read_model(file), config, memory=TIMING)
    (item,) = fitted.emitted.regions
    plan = plan_strips(config, item.graph, TIMING)
    places = plan.memory.locations
    (index,) = [i for i, layer in enumerate(item.graph.layers) if isinstance(layer, Add)]
    (stage,) = [stage for stage in plan.stages if stage.first <= index < stage.end]
    add = item.graph.layers[index]
    names = [buffer_name(stage.first, t.name) for t in (add.output, *add.inputs)]
    out, *operands = [places[name] for name in names]
    assert [out.base == place.base for place in operands].count(True) == 1
    alive = {life.name for life in plan.memory.lifetimes}
    assert names[0] not in alive and alive >= {*names[1:]}
    same_as_litert(file, compile_in_strips(file, tmp_path / "artifact", config))


def test_topologies_have_the_bits_of_litert(tmp_path):
    """MLPerf Tiny's newer image classification and MobileNetV2-0.35-160, whole, with strips of several layers."""
    for name in ("larger image classification", "MobileNetV2-0.35-160"):
        file = write_topology(name, tmp_path)
        artifact = compile_in_strips(file, tmp_path / "artifact", get("ulx3s-85f").config)
        (region,) = Artifact.load(artifact).manifest.regions
        assert region.external and any(part.program_words > 32 for part in region.parts)
        same_as_litert(file, artifact)


def compile_in_strips(file: Path, output: Path, config: AcceleratorConfig, *, board: str = "ulx3s-85f-sdram") -> Path:
    """Without the CPU's library, which takes the time."""

    def no_code(*arguments: object) -> None:
        next(path for path in arguments if isinstance(path, Path)).write_bytes(b"none")

    with patch("nnloom.compiler.cpu.build_cpu", no_code):
        return compile_model(file, board=board, output=output, config=config).path


def same_as_litert(file: Path, artifact: Path) -> None:
    reference, rng = LiteRtReference(file), np.random.default_rng(4)
    with InferenceSession(artifact, device="model", native=False) as session:
        (given,) = session.get_inputs()
        value = rng.integers(-128, 128, given.shape, np.int8)
        for got, want in zip(session.run({given.name: value}).values(), reference.run(value), strict=True):
            np.testing.assert_array_equal(got, want)


def test_random_blocks_have_the_bits_of_litert(tmp_path):
    """Slices of channels, sums in the place of an operand, rows that come when a strip has read its own; the lists on
    the model of the DMA."""
    config = replace(SMALL, weight_words=160)
    sliced = buffers = shared = late = 0
    for seed in (4, 6):
        file = write_blocks(tmp_path / "network.tflite", seed)
        fitted = fit(read_model(file), config, memory=TIMING)
        (item,) = fitted.emitted.regions
        make_artifact(tmp_path / str(seed), four_axes(item.graph), config, memory=TIMING)
        artifact = Artifact.load(tmp_path / str(seed))
        (region,) = artifact.manifest.regions
        plan = plan_strips(config, item.graph, TIMING)
        sliced += any(stage.sliced for stage in plan.stages)
        buffers |= 1 << max(stage.buffers for stage in plan.stages)
        late += any(stage.late for stage in plan.stages)
        shared += any(plan.memory.locations.keys() - {life.name for life in plan.memory.lifetimes})
        _, device = twin_device(config, MemoryBoard(config, size=1 << 19))
        device.load(artifact)
        value = np.random.default_rng(seed).integers(-128, 128, region.inputs[0].shape, np.int8)
        (got,) = device.run_region(region, [value]).outputs
        (want,) = LiteRtReference(file).run(value)
        np.testing.assert_array_equal(got.reshape(want.shape), want)
    assert sliced == 2 and shared == 2 and late and buffers == 0b110


def test_one_list_is_an_inference(tmp_path):
    """The lists of a board with external memory, executed by the model of the DMA: proved to wait enough, with the
    bits of the golden model."""
    config = CONFIGS["8x5"]
    for seed, graph, _ in in_strips(config, range(14))[:5]:
        make_artifact(tmp_path / str(seed), graph, config, memory=TIMING)
        artifact = Artifact.load(tmp_path / str(seed))
        (region,) = artifact.manifest.regions
        lists = Lists.of(artifact)
        check_lists(config, lists)
        model = ModelDevice()
        model.load(artifact)
        board = MemoryBoard(config, size=1 << 19)
        _, device = twin_device(config, board)
        device.load(artifact)
        for number in range(3):
            rng = np.random.default_rng(number)
            inputs = [rng.integers(-128, 128, location.shape, np.int8) for location in region.inputs]
            got = device.run_region(region, inputs, count_layers=number == 1)
            assert board.lists == number + 1
            for value, want in zip(got.outputs, model.run_region(region, inputs).outputs, strict=True):
                np.testing.assert_array_equal(value, want)
