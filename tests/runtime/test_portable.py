"""Networks where there is no TVM: the same bits from NumPy, the golden model and devices."""

import dataclasses
import sys

import numpy as np
import pytest

from nnloom.arch.artifact import Artifact, HostPlan
from nnloom.arch.errors import ArtifactError
from nnloom.compiler import compile as compile_model
from nnloom.runtime import InferenceSession
from nnloom.runtime.portable import PortableProgram
from tests.conftest import NETWORKS


@pytest.fixture
def without_tvm(monkeypatch):
    """Makes a session believe that TVM is not installed."""

    def hide() -> None:
        monkeypatch.setitem(sys.modules, "tvm", None)

    return hide


@pytest.mark.model
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_gives_the_bits_of_the_cpu_code(name, artifacts, network_inputs, without_tvm):
    path = artifacts(name)
    with InferenceSession(path, "cpu") as session:
        (info,) = session.get_inputs()
        inputs = network_inputs(name, info)
        want = [session.run(value) for value in inputs]
    without_tvm()
    for device in ("cpu", "model"):
        with InferenceSession(path, device) as session:
            assert type(session._program) is PortableProgram
            for value, outputs in zip(inputs, want, strict=True):
                got = session.run(value)
                assert got.keys() == outputs.keys()
                for key, expected in outputs.items():
                    assert got[key].dtype == expected.dtype
                    np.testing.assert_array_equal(got[key], expected)


@pytest.mark.model
def test_the_processor_of_the_cpu_code_does_not_matter(model_path, tmp_path, without_tvm):
    path = compile_model(model_path("anomaly_detection"), output=tmp_path / "ad", cpu="aarch64").path
    with pytest.raises(ArtifactError, match="code is for aarch64"):
        InferenceSession(path, "cpu")
    without_tvm()
    with InferenceSession(path, "cpu") as session:
        (info,), (output,) = session.get_inputs(), session.get_outputs()
        value = np.random.default_rng(5).normal(0, 3, info.shape).astype(np.float32)
        assert len(np.unique(session.run(value)[output.name])) > 10


@pytest.mark.model
def test_an_operator_that_needs_tvm_is_named(artifacts):
    artifact = Artifact.load(artifacts("keyword_spotting"))
    manifest = dataclasses.replace(artifact.manifest, host=HostPlan(reason="mean needs TVM"))
    with pytest.raises(ArtifactError, match="mean needs TVM, which is not installed; pip install"):
        PortableProgram(dataclasses.replace(artifact, manifest=manifest))
