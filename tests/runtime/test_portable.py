"""Networks where there is no TVM: the same bits from NumPy, the golden model and devices."""

import sys

import numpy as np
import pytest

from nnloom.arch.artifact import CONSTANTS_FILE, Artifact
from nnloom.arch.errors import ArtifactError
from nnloom.compiler import compile as compile_model
from nnloom.runtime import InferenceSession
from nnloom.runtime.portable import PortableProgram
from tests.conftest import NETWORKS
from tests.tflite_models import ModelWriter


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


def test_constants_that_do_not_fit_are_named(tmp_path):
    """An artifact with a constant operand outside of the accelerator, edited."""
    m = ModelWriter()
    source = m.conv(m.input((1, 4, 4, 3)), 4)
    path = tmp_path / "model.tflite"
    constant = m.constant((1, 4, 1, 4), 0.1)
    path.write_bytes(m.finish(m.add(source, constant)))
    artifact = Artifact.load(compile_model(path, output=tmp_path / "artifact").path)
    assert artifact.manifest.host.constants == 1
    PortableProgram(artifact)
    np.savez(artifact.path / CONSTANTS_FILE, **{"0": np.zeros(5, np.int8)})
    with pytest.raises(ArtifactError, match=r"constant 0 is int8\[5\], not int8\[1, 4, 1, 4\]"):
        PortableProgram(artifact)
    (artifact.path / CONSTANTS_FILE).write_bytes(b"PK")
    with pytest.raises(ArtifactError, match=r"constants.npz: not a .npy or .npz array file"):
        PortableProgram(artifact)
