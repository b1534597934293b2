"""Sessions on the RTL: every write is compared with the golden model, inferences run without a reset."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from nnloom.arch.errors import DeviceError
from nnloom.compiler.cost import program_cycles
from nnloom.runtime import InferenceSession
from nnloom.runtime.devices.rtl import RtlDevice
from nnloom.sim.check import compare_writes

from tests.artifacts import make_artifact, random_network_inputs
from tests.graphs import KINDS, evaluate, random_graph


def _networks(folder, count):
    for seed in range(count):
        rng = np.random.default_rng([7, seed])
        graph = random_graph(rng, [str(k) for k in rng.choice(KINDS, 3)])
        yield rng, graph, make_artifact(folder / str(seed), graph), folder / str(seed)


def _check(device, rng, graph, compiled, folder):
    region = InferenceSession(folder, "model").artifact.manifest.regions[0]
    inputs = random_network_inputs(rng, graph)
    outputs, cycles = device.run_region(region, list(inputs.values()))
    expected = evaluate(graph, {name: value[0] for name, value in inputs.items()})
    for tensor, output in zip(graph.outputs, outputs, strict=True):
        np.testing.assert_array_equal(output.reshape(expected[tensor.name].shape), expected[tensor.name])
    assert abs(cycles - program_cycles(compiled.config, compiled.descriptors)) <= 0.05 * cycles
    assert sum(device.last_layer_cycles) == cycles
    return region


@pytest.mark.verilator
def test_many_networks_on_one_engine_without_reset(tmp_path):
    networks = list(_networks(tmp_path, 4))
    rng = np.random.default_rng(3)
    with RtlDevice() as device:
        for index in rng.permutation(np.repeat(np.arange(4), 3)):
            _, graph, compiled, folder = networks[index]
            device.load(InferenceSession(folder, "model").artifact)
            for _ in range(2):
                _check(device, rng, graph, compiled, folder)


@pytest.mark.verilator
def test_a_wrong_write_is_found(tmp_path):
    rng, graph, compiled, folder = next(_networks(tmp_path, 1))
    with RtlDevice() as device:
        device.load(InferenceSession(folder, "model").artifact)
        region = _check(device, rng, graph, compiled, folder)
        writes, golden = device.last_writes, device._model.traces
        compare_writes(compiled.config, region, golden, writes)
        index = int(np.flatnonzero(writes.enable & 1)[-1])
        data = writes.data.copy()
        data[index, 0] ^= 1
        with pytest.raises(DeviceError, match="RTL differs from the golden model in 1 values of data"):
            compare_writes(compiled.config, region, golden, type(writes)(*_fields(writes)[:4], data))
        short = type(writes)(*(field[:-1] for field in _fields(writes)))
        with pytest.raises(DeviceError, match="writes, the golden model"):
            compare_writes(compiled.config, region, golden, short)


def _fields(writes):
    return [writes.cycle, writes.bank, writes.granule, writes.enable, writes.data]


@pytest.mark.icarus
@pytest.mark.skipif(not shutil.which("iverilog"), reason="needs iverilog (apt-get install iverilog)")
def test_icarus_and_verilator_count_the_same_cycles(tmp_path):
    rng, graph, _, folder = next(_networks(tmp_path, 1))
    inputs = random_network_inputs(rng, graph)
    results = []
    for simulator in ("verilator", "icarus"):
        with InferenceSession(folder, "sim", simulator=simulator) as session:
            results.append((session.run(inputs), session.last_cycles))
    assert results[0][1] == results[1][1] > 0
    for name, value in results[0][0].items():
        np.testing.assert_array_equal(value, results[1][0][name])


@pytest.mark.verilator
def test_waveform_is_written(tmp_path):
    rng, graph, _, folder = next(_networks(tmp_path, 1))
    waves = tmp_path / "run.fst"
    with InferenceSession(folder, "sim", waves=waves) as session:
        session.run(random_network_inputs(rng, graph))
    assert waves.stat().st_size > 1000
