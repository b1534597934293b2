"""Sessions on the RTL: every write is compared with the golden model, inferences run without a reset."""

from __future__ import annotations

import shutil
import time

import numpy as np
import pytest
import pywellen

from nnloom.arch.artifact import Artifact
from nnloom.arch.errors import DeviceError
from nnloom.compiler.cost import program_cycles
from nnloom.runtime.devices.verified import VerifiedRtlDevice
from nnloom.sim import rtl
from nnloom.sim.build import cocotb_environment
from nnloom.sim.check import compare_writes
from tests.artifacts import SMALL, make_artifact, random_network_inputs
from tests.graphs import KINDS, evaluate, random_graph


def _networks(folder, count):
    for seed in range(count):
        rng = np.random.default_rng([7, seed])
        graph = random_graph(rng, [str(k) for k in rng.choice(KINDS, 3)])
        yield rng, graph, make_artifact(folder / str(seed), graph), folder / str(seed)


def _check(device, rng, graph, emitted, folder):
    region = Artifact.load(folder).manifest.regions[0]
    inputs = random_network_inputs(rng, graph)
    result = device.run_region(region, list(inputs.values()))
    expected = evaluate(graph, {name: value[0] for name, value in inputs.items()})
    for tensor, output in zip(graph.outputs, result.outputs, strict=True):
        np.testing.assert_array_equal(output.reshape(expected[tensor.name].shape), expected[tensor.name])
    assert abs(result.cycles - program_cycles(SMALL, emitted.regions[0].descriptors)) <= 0.05 * result.cycles
    assert sum(result.layer_cycles) == result.cycles
    return region


@pytest.mark.verilator
def test_many_networks_on_one_engine_without_reset(tmp_path):
    networks = list(_networks(tmp_path, 4))
    rng = np.random.default_rng(3)
    with VerifiedRtlDevice() as device:
        for index in rng.permutation(np.repeat(np.arange(4), 3)):
            _, graph, emitted, folder = networks[index]
            device.load(Artifact.load(folder))
            for _ in range(2):
                _check(device, rng, graph, emitted, folder)


@pytest.mark.verilator
def test_a_wrong_write_is_found(tmp_path):
    rng, graph, emitted, folder = next(_networks(tmp_path, 1))
    with VerifiedRtlDevice() as device:
        device.load(Artifact.load(folder))
        region = _check(device, rng, graph, emitted, folder)
        writes, golden = device.writes, device.golden
        compare_writes(SMALL, region, golden, writes)
        index = int(np.flatnonzero(writes.enable & 1)[-1])
        data = writes.data.copy()
        data[index, 0] ^= 1
        with pytest.raises(DeviceError, match="RTL differs from the golden model in 1 values of data"):
            compare_writes(SMALL, region, golden, type(writes)(*_fields(writes)[:4], data))
        short = type(writes)(*(field[:-1] for field in _fields(writes)))
        with pytest.raises(DeviceError, match="writes, the golden model"):
            compare_writes(SMALL, region, golden, short)


def _fields(writes):
    return [writes.cycle, writes.bank, writes.granule, writes.enable, writes.data]


@pytest.mark.icarus
@pytest.mark.skipif(not shutil.which("iverilog"), reason="needs iverilog (apt-get install iverilog)")
def test_icarus_and_verilator_count_the_same_cycles(tmp_path):
    rng, graph, _, folder = next(_networks(tmp_path, 1))
    inputs = random_network_inputs(rng, graph)
    artifact = Artifact.load(folder)
    results = []
    for simulator in ("verilator", "icarus"):
        with VerifiedRtlDevice(simulator=simulator) as device:
            device.load(artifact)
            results.append(device.run_region(artifact.manifest.regions[0], list(inputs.values())))
    assert results[0].cycles == results[1].cycles > 0
    for a, b in zip(results[0].outputs, results[1].outputs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.verilator
def test_waveform_holds_the_run(tmp_path):
    rng, graph, _, folder = next(_networks(tmp_path, 1))
    waves = tmp_path / "run.fst"
    artifact = Artifact.load(folder)
    with VerifiedRtlDevice(waves=waves) as device:
        device.load(artifact)
        inputs = list(random_network_inputs(rng, graph).values())
        cycles = device.run_region(artifact.manifest.regions[0], inputs).cycles
    busy = next(v for v in pywellen.Waveform(str(waves)).all_vars() if v.full_name == "nnloom_tb.busy")
    (_, low), (rise, high), (fall, _), *_ = busy.tv
    assert (low, high) == (0, 1)
    # In ps, with a clock of 10 ns; the start command's own cycle counts too.
    assert (fall - rise) // 10_000 + 1 == cycles


def test_a_simulator_that_does_not_start_is_reported(tmp_path, monkeypatch):
    program = tmp_path / rtl.TOPLEVEL
    program.write_text("#!/bin/sh\necho cannot open shared object file\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(rtl, "build_simulation", lambda *_, **__: tmp_path)
    started = time.monotonic()
    with pytest.raises(DeviceError, match="did not start: cannot open shared object file"):
        rtl.RtlSimulator(SMALL)
    assert time.monotonic() - started < 60, "it waits for one that has ended"


def test_a_simulator_finds_its_libraries_where_they_are_now(tmp_path):
    import cocotb_tools.config

    libraries = str(cocotb_tools.config.libs_dir)
    environment = cocotb_environment("module", toplevel="top", folder=tmp_path)
    assert environment["LD_LIBRARY_PATH"].split(":")[0] == libraries
    # Nowhere else: a simulator in the cache outlives the environment that built it.
    assert libraries.encode() not in (rtl.build_simulation(SMALL) / rtl.TOPLEVEL).read_bytes()
