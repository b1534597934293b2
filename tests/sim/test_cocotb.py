"""`nnloom.sim.cocotb`: tests of one's own on a compiled network. This module is pytest's and cocotb's at once."""

from __future__ import annotations

import json
from dataclasses import replace

import cocotb
import numpy as np
import pytest

from nnloom.arch.artifact import Artifact
from nnloom.arch.errors import DeviceError
from nnloom.arch.isa import HostAddress, weight_stride
from nnloom.runtime import InferenceSession
from nnloom.runtime.devices import verified
from nnloom.runtime.devices.model import ModelDevice
from nnloom.sim import simulate, verify
from nnloom.sim.cocotb import Accelerator
from tests.artifacts import make_artifact
from tests.graphs import KINDS, random_graph


def _inputs(artifact, count):
    rng = np.random.default_rng(5)
    return [{i.name: rng.integers(-128, 128, i.shape, np.int8) for i in artifact.manifest.inputs} for _ in range(count)]


@cocotb.test()
async def outputs_and_writes_are_the_golden_models(dut):
    accelerator = await Accelerator.start(dut)
    golden = InferenceSession(accelerator.artifact.path, "model")
    for inputs in _inputs(accelerator.artifact, 3):
        outputs = await accelerator.run(inputs)
        for name, want in golden.run(inputs).items():
            np.testing.assert_array_equal(outputs[name], want)
        assert accelerator.cycles > 100
    zeros = [np.zeros(t.shape, np.int8) for t in accelerator.artifact.manifest.regions[0].inputs]
    result = await accelerator.run_region(zeros)
    assert sum(result.layer_cycles) == result.cycles > 100


@cocotb.test()
async def a_damaged_weight_is_found(dut):
    """The scoreboard: it tells where."""
    accelerator = await Accelerator.start(dut)
    config = accelerator.artifact.manifest.config
    words = np.arange(config.weight_words)[:, None] * weight_stride(config) + np.arange(0, config.weight_word_bytes, 4)
    addresses = (HostAddress.WEIGHTS + words).reshape(-1).tolist()
    await accelerator.host.write_words(addresses, [0x01010101] * len(addresses))
    (inputs,) = _inputs(accelerator.artifact, 1)
    with pytest.raises(DeviceError, match=r"RTL differs from the golden model in \d+ values of data, first in "):
        await accelerator.run(inputs)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    rng = np.random.default_rng([7, 0])
    path = tmp_path_factory.mktemp("artifact") / "a"
    make_artifact(path, random_graph(rng, [str(k) for k in rng.choice(KINDS, 3)]))
    return path


@pytest.mark.verilator
def test_on_verilator(accelerator, artifact):
    assert accelerator(artifact) == 2


@pytest.mark.verilator
def test_failures_are_told(accelerator, artifact, tmp_path):
    module = tmp_path / "failing.py"
    module.write_text("import cocotb\n@cocotb.test()\nasync def wrong(dut):\n    assert False, 'told'\n")
    with pytest.raises(AssertionError, match="1 of 1 cocotb tests failed"):
        accelerator(artifact, module=module)
    with pytest.raises(AssertionError, match=r"0 of 0|without results"):
        accelerator(artifact, module=module, test="no such name")


@pytest.mark.icarus
@pytest.mark.slow
def test_on_icarus(accelerator, artifact, tmp_path):
    waves = tmp_path / "run.fst"
    assert accelerator(artifact, simulator="icarus", waves=waves) == 2
    assert waves.stat().st_size > 10_000


@pytest.mark.verilator
def test_a_session_on_rtl(rtl_session, artifact):
    session = rtl_session(artifact)
    (inputs,) = _inputs(Artifact.load(artifact), 1)
    want = InferenceSession(artifact, "model").run(inputs)
    for name, value in session.run(inputs).items():
        np.testing.assert_array_equal(value, want[name])


@pytest.mark.verilator
def test_verify_and_simulate(artifact):
    """What `nnloom simulate` does, from Python."""
    (inputs,) = _inputs(Artifact.load(artifact), 1)
    stacked = {name: np.concatenate([value, value]) for name, value in inputs.items()}
    found = verify(artifact, stacked)
    assert found.inferences == 2 and found.cycles > 100
    assert sum(map(sum, found.layer_cycles.values())) == found.cycles
    assert not found.litert and found.why_not_litert == "the artifact does not hold its model"
    report = json.loads((artifact / "report.json").read_text())
    assert report["cycles_measured"] == found.cycles
    want = InferenceSession(artifact, "model").run(inputs)
    for name, value in simulate(artifact, inputs).outputs.items():
        np.testing.assert_array_equal(value, want[name])
        np.testing.assert_array_equal(found.outputs[name], np.concatenate([want[name]] * 2))


def test_verify_compares_with_the_cpu(artifact, monkeypatch):
    """An engine that agrees with the golden model, but not with the CPU's code."""
    (inputs,) = _inputs(Artifact.load(artifact), 1)
    monkeypatch.setattr(verified, "VerifiedRtlDevice", lambda **_: _Inverted())
    with pytest.raises(DeviceError, match=r"values of .* differ from the CPU's"):
        verify(artifact, inputs, save=False)


class _Inverted(ModelDevice):
    def run_region(self, region, inputs, *, count_layers=False):
        result = super().run_region(region, inputs)
        return replace(result, outputs=[~output for output in result.outputs])
