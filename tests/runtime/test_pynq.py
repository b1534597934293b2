"""The PYNQ driver, unchanged, against the RTL of the whole system behind a stand-in of the PYNQ library."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from nnloom.arch.artifact import Artifact
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.dma import DMA_BASE, DmaRegister
from nnloom.arch.errors import DeviceError, ToolMissingError
from nnloom.arch.isa import DESCRIPTOR_WORDS, Descriptor, HostAddress
from nnloom.arch.lists import Transfer, transfers
from nnloom.runtime import InferenceSession
from nnloom.runtime.devices.model import ModelDevice
from nnloom.runtime.devices.pynq import PynqDevice
from nnloom.sim.pynq import SimulatedPynq
from nnloom.sim.scoreboard import GoldenScoreboard
from tests.artifacts import SMALL, make_artifact, random_network_inputs
from tests.compiler.test_strips import compile_in_strips
from tests.graphs import KINDS, random_graph
from tests.topologies import DeepWriter, resnet_50, vgg_16


def expand(moves):
    return [
        move.host_address + 4 * (row * move.row_step + word)
        for move in moves
        for row in range(move.rows)
        for word in range(move.row_words)
    ]


def test_transfers_touch_the_same_addresses_in_order():
    rng = np.random.default_rng(0)
    for _ in range(300):
        addresses, position = [], 0x2000_0000
        for _ in range(rng.integers(1, 20)):
            words, step = int(rng.integers(1, 4)), int(rng.integers(1, 5))
            addresses += [position + 4 * i for i in range(words)]
            position += 4 * (words + step) * int(rng.choice([1, 1, 1, -1]))
        assert expand(transfers(np.array(addresses, np.uint32))) == addresses
    assert transfers(np.zeros(0, np.uint32)) == []


def test_rows_become_one_transfer():
    index, column = np.mgrid[:50, :36]
    addresses = (HostAddress.WEIGHTS + 256 * index + 4 * column).reshape(-1).astype(np.uint32)
    assert transfers(addresses) == [Transfer(host_address=HostAddress.WEIGHTS, row_words=36, row_step=64, rows=50)]


@pytest.fixture(scope="module", params=[64, pytest.param(128, marks=pytest.mark.slow)])
def pynq(request):
    with SimulatedPynq(SMALL, data_width=request.param) as library:
        yield library


def networks(folder, count):
    for seed in range(count):
        rng = np.random.default_rng([11, seed])
        graph = random_graph(rng, [str(k) for k in rng.choice(KINDS, 3)])
        make_artifact(folder / str(seed), graph)
        artifact = Artifact.load(folder / str(seed))
        yield artifact, list(random_network_inputs(rng, graph).values())


def model_outputs(artifact, inputs):
    model = ModelDevice()
    model.load(artifact)
    return model.run_region(artifact.manifest.regions[0], inputs).outputs


@pytest.mark.verilator
def test_regions_give_the_models_bits_under_stalls(pynq, tmp_path):
    with PynqDevice(pynq=pynq) as device:
        for index, (artifact, inputs) in enumerate(networks(tmp_path, 6)):
            pynq.set_stalls(0.15 * index, seed=index)
            device.load(artifact)
            want = model_outputs(artifact, inputs)
            for _ in range(2):
                got = device.run_region(artifact.manifest.regions[0], inputs, count_layers=True)
                layers = got.layer_cycles
                assert len(layers) == artifact.manifest.regions[0].program_words // 16
                assert min(layers) > 0 and sum(layers) == got.cycles
                for a, b in zip(got.outputs, want, strict=True):
                    np.testing.assert_array_equal(a, b)
    pynq.set_stalls(0)


@pytest.mark.verilator
def test_parts_are_loaded_by_dma_and_a_fault_in_one_costs_no_answer(tmp_path):
    config = replace(SMALL, weight_words=64)
    graph = random_graph(np.random.default_rng(12), ["conv", "depthwise", "conv", "conv"])
    emitted = make_artifact(tmp_path, graph, config)
    assert emitted.parts == 2
    artifact = Artifact.load(tmp_path)
    (region,) = artifact.manifest.regions
    with SimulatedPynq(config) as library, PynqDevice(pynq=library) as device:
        device.load(artifact)
        for seed in range(6):
            library.set_stalls(0.1 * seed, seed=seed)
            inputs = list(random_network_inputs(np.random.default_rng(seed), graph).values())
            if seed % 2:
                # The weights of the second part cannot be read.
                lists = device._lists.regions[region.name]
                weights = [s for s in lists.steps if getattr(s, "in_table", True) is False][-1]
                start = device._image.address + 4 * weights.word
                library.set_faults([(start, start + 4)])
                with pytest.raises(DeviceError, match="a read of DDR failed"):
                    device.run_region(region, inputs)
                library.set_faults([])
            got = device.run_region(region, inputs, count_layers=True)
            for a, b in zip(got.outputs, model_outputs(artifact, inputs), strict=True):
                np.testing.assert_array_equal(a, b)
            layers = got.layer_cycles
            assert len(layers) == len(emitted.regions[0].layers) and sum(layers) == got.cycles
            assert len(got.program_cycles) == emitted.parts


@pytest.mark.verilator
def test_a_bus_fault_is_reported_and_the_next_run_is_right(pynq, tmp_path):
    artifact, inputs = next(networks(tmp_path, 1))
    want = model_outputs(artifact, inputs)
    region = artifact.manifest.regions[0]
    with PynqDevice(pynq=pynq) as device:
        device.load(artifact)
        device.run_region(region, inputs)
        lists = device._lists.regions[region.name]
        image, table = device._image.address, device._table.address
        last = (table + 4 * lists.outputs[-1].words.stop - 1) & ~15
        for start, message in (
            (image + 4 * lists.list_word + 16, "a descriptor could not be read"),
            (table + 4 * lists.inputs[0].word, "a read of DDR failed"),
            (last, "a write to DDR failed"),
        ):
            pynq.set_faults([(start, start + 4)])
            with pytest.raises(DeviceError, match=message):
                device.run_region(region, inputs)
            pynq.set_faults([])
            got = device.run_region(region, inputs).outputs
            np.testing.assert_array_equal(got[0], want[0])


@pytest.mark.verilator
def test_a_time_out_aborts_and_the_device_can_be_used_again(pynq, tmp_path, monkeypatch):
    artifact, inputs = next(networks(tmp_path, 1))
    region = artifact.manifest.regions[0]
    with PynqDevice(pynq=pynq) as device:
        device.load(artifact)
        monkeypatch.setattr(device, "_wait", iter([False, True]).__next__)
        with pytest.raises(DeviceError, match="did not finish"):
            device.run_region(region, inputs)
        monkeypatch.undo()
        device.load(artifact)
        got = device.run_region(region, inputs).outputs
        np.testing.assert_array_equal(got[0], model_outputs(artifact, inputs)[0])


@pytest.mark.verilator
def test_an_overlay_of_another_configuration_is_refused(pynq, tmp_path):
    rng = np.random.default_rng(5)
    graph = random_graph(rng, ["dense"] if "dense" in KINDS else [str(KINDS[0])])
    make_artifact(tmp_path, graph, replace(SMALL, requant_units=4))
    with PynqDevice(pynq=pynq) as device, pytest.raises(DeviceError, match="configuration"):
        device.load(Artifact.load(tmp_path))


@pytest.mark.verilator
def test_buffers_are_released(pynq, tmp_path):
    before = dict(pynq._buffers)
    with PynqDevice(pynq=pynq) as device:
        artifact, inputs = next(networks(tmp_path, 1))
        device.load(artifact)
        device.run_region(artifact.manifest.regions[0], inputs)
        assert len(pynq._buffers) == len(before) + 2  # image and table
    assert pynq._buffers == before


@pytest.mark.verilator
def test_another_dma_is_refused(pynq, tmp_path, monkeypatch):
    artifact, _ = next(networks(tmp_path, 1))
    mmio = type(pynq.MMIO(0x4000_0000, 4))
    read = mmio.read
    monkeypatch.setattr(
        mmio, "read", lambda self, offset=0: 0 if offset == DMA_BASE + DmaRegister.ID else read(self, offset)
    )
    with PynqDevice(pynq=pynq) as device, pytest.raises(DeviceError, match="DMA answers 0x00000000"):
        device.load(artifact)


WIDE = AcceleratorConfig(
    lanes=16,
    taps=4,
    pixels=2,
    requant_units=4,
    activation_bytes=4096,
    weight_words=256,
    field_bits=12,
    partial_sums=True,
)
"""Whose memories consist of beats of 64 bits."""


@pytest.mark.slow
@pytest.mark.verilator
def test_small_forms_of_resnet_50_and_vgg16_write_what_the_golden_model_writes(tmp_path):
    """In strips, and with sums in pieces: every write of the engine, whole beats moved beside it, under stalls."""
    networks = {
        "resnet": lambda m: resnet_50(m, size=64, classes=10, width=4),
        "vgg": lambda m: vgg_16(m, size=32, classes=10, width=4, hidden=512),
    }
    artifacts = {}
    for name, network in networks.items():
        m = DeepWriter(1)
        (tmp_path / f"{name}.tflite").write_bytes(m.finish(*network(m)))
        folder = compile_in_strips(tmp_path / f"{name}.tflite", tmp_path / name, WIDE, board="pynq-z2")
        artifacts[name] = Artifact.load(folder)
    with SimulatedPynq(WIDE, data_width=64) as library, PynqDevice(pynq=library) as device:
        library.watch()
        device.timeout_seconds = 600.0
        for seed, (name, artifact) in enumerate(artifacts.items()):
            (region,) = artifact.manifest.regions
            descriptors = decode_all(artifact.program)
            assert region.external if name == "resnet" else any(d.keep for d in descriptors)
            device.load(artifact)
            for stalls in (0, 0.3):
                library.set_stalls(stalls, seed=seed)
                rng = np.random.default_rng([seed, int(10 * stalls)])
                inputs = [rng.integers(-128, 128, location.shape, np.int8) for location in region.inputs]
                library.writes()
                result = device.run_region(region, inputs)
                scoreboard = GoldenScoreboard(artifact.image)
                scoreboard.check(region, inputs, library.writes(), result.program_cycles)
                for got, want in zip(result.outputs, model_outputs(artifact, inputs), strict=True):
                    np.testing.assert_array_equal(got, want)


def decode_all(program):
    """Descriptors of all programs of an image."""
    return [Descriptor.decode(words) for words in program.reshape(-1, DESCRIPTOR_WORDS)]


def test_a_machine_without_pynq_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynq", None)
    artifact, _ = next(networks(tmp_path, 1))
    with pytest.raises(ToolMissingError, match="run this on a PYNQ board"):
        PynqDevice().load(artifact)


@pytest.mark.verilator
def test_a_network_by_the_device_string(pynq, tmp_path, monkeypatch):
    make_artifact(tmp_path, random_graph(np.random.default_rng(21), ["conv", "add"]))
    runs_by_its_device_string(pynq, tmp_path, monkeypatch)


@pytest.mark.verilator
@pytest.mark.model
@pytest.mark.slow
def test_keyword_spotting_by_its_device_string(artifacts, monkeypatch):
    path = artifacts("keyword_spotting")
    with SimulatedPynq(Artifact.load(path).manifest.config) as library:
        runs_by_its_device_string(library, path, monkeypatch)


def runs_by_its_device_string(library, path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynq", library)
    rng = np.random.default_rng(5)
    with InferenceSession(path, "model") as model:
        inputs = [
            {info.name: rng.integers(-128, 128, info.shape).astype(info.dtype) for info in model.get_inputs()}
            for _ in range(2)
        ]
        with InferenceSession(path, "pynq", fallback=False) as session:
            for x in inputs:
                got, want = session.run(x), model.run(x)
                for name in want:
                    np.testing.assert_array_equal(got[name], want[name])
                assert session.last_cycles is not None
            assert session.stats().on_device == len(inputs)
