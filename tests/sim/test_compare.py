"""Every tensor of a compiled network beside those of the reference and of the float model."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from nnloom.arch.errors import InputError
from nnloom.cli import main
from nnloom.compiler.quantize import quantize
from nnloom.runtime import Device, InferenceSession
from nnloom.runtime.devices.model import ModelDevice
from nnloom.sim.compare import compare
from nnloom.sim.golden import GoldenModel
from tests.compiler.test_onnx import _residual, _squeeze
from tests.onnx_models import Network, compile_onnx


def _made(network, shape, folder):
    onnx.save(network, folder / "n.onnx")
    data = np.random.default_rng(0).uniform(-1, 1, (6, *shape)).astype(np.float32)
    quantize(folder / "n.onnx", data, output=folder / "q.onnx", method="minmax", explain=False)
    compile_onnx(folder / "q.onnx", folder / "a")
    return folder / "a", data[:1]


def _decoder():
    """ONNX Runtime has the DepthToSpace of it in float32, nnloom in integers."""
    n = Network(4, (1, 4, 5, 6))
    x = n.conv("x", 8, 4)
    for _ in range(2):
        weights = n.constant(n.rng.normal(0, 0.3, (8, 8, 3, 3)))
        bias = n.constant(n.rng.normal(0, 0.3, 8))
        x = n.add("Relu", n.add("ConvTranspose", x, weights, bias, strides=[2, 2], pads=[1, 1, 1, 1]))
    return n.model(n.conv(n.conv(x, 8, 8), 8, 8))


@pytest.mark.parametrize(
    ("network", "shape", "alone"), [(_residual, (3, 12, 10), 2), (_squeeze, (4, 8, 6), 2), (_decoder, (4, 5, 6), 5)]
)
def test_every_tensor_of_an_onnx_model(network, shape, alone, tmp_path):
    artifact, x = _made(network(), shape, tmp_path)
    found = compare(artifact, x)
    assert found.against == "ONNX Runtime" and found.first is None and len(found.tensors) >= 10
    assert all(t.differ == 0 and not t.first for t in found.tensors)
    regions = {t.region for t in found.tensors}
    assert "region0" in regions and all("(" in name for name in found.unmatched)  # what lowering adds
    beside = compare(artifact, x, against="float", floating=tmp_path / "n.onnx")
    assert beside.against == str(tmp_path / "n.onnx")
    assert {t.name for t in beside.tensors} <= {t.name for t in found.tensors}
    assert min(t.sqnr_db for t in beside.tensors) > 20 and len(beside.tensors) >= len(found.tensors) - alone


def test_the_first_difference(tmp_path, monkeypatch):
    artifact, x = _made(_residual(), (3, 12, 10), tmp_path)
    names = [t.name for t in compare(artifact, x).tensors]
    execute, count = GoldenModel.execute, [0]

    def broken(model, descriptor):
        # A fault in the third layer, and what comes of it.
        trace = execute(model, descriptor)
        count[0] += 1
        if count[0] == 3:
            model.activations[trace.bank[0], trace.granule[0] * model.config.granule] ^= 1
        return trace

    monkeypatch.setattr(GoldenModel, "execute", broken)
    found = compare(artifact, x)
    assert found.first is not None and found.first.region == "region0"
    assert found.first.differ == 1 and found.first.largest == 1 and " instead of " in found.first.first
    assert found.first.name == names[names.index("conv4")] and sum(t.differ > 0 for t in found.tensors) > 1


def test_granularity(tmp_path):
    artifact, x = _made(_residual(), (3, 12, 10), tmp_path)

    class Ends(Device):
        """A device that tells no more than a region's outputs."""

        def __init__(self):
            self._model = ModelDevice()

        def load(self, artifact):
            self._model.load(artifact)

        def run_region(self, region, inputs, *, count_layers=False):
            return self._model.run_region(region, inputs)

    open_session = InferenceSession
    with open_session(artifact, Ends(), native=False) as ends, open_session(artifact, "cpu", native=False) as cpu:
        outer, inner = ends.trace(x), cpu.trace(x)
        (answer,) = cpu.run(None, x)
        with pytest.raises(InputError, match="2 inferences; trace one at a time"):
            cpu.trace(np.concatenate([x, x]))
    by_name = {t.name: t for t in inner}
    regions = ends.artifact.manifest.regions
    assert len(outer) == len(inner) - sum(len({t.name for t in r.tensors}) for r in regions) + sum(
        len(r.outputs) for r in regions
    )
    for tensor in outer:
        assert np.array_equal(tensor.value, by_name[tensor.name].value) and tensor.region == by_name[tensor.name].region
        assert (tensor.scale, tensor.zero_point) == (by_name[tensor.name].scale, by_name[tensor.name].zero_point)
    assert np.array_equal(inner[-1].value.reshape(-1), answer.reshape(-1))


@pytest.mark.model
def test_tflite(artifacts):
    artifact = artifacts("tflite_micro_speech")
    x = np.random.default_rng(1).integers(-128, 128, (1, 49, 40, 1), np.int8)
    found = compare(artifact, x, against="tflite")
    assert found.against == "LiteRT's reference kernels" and found.first is None
    assert len(found.tensors) >= 2 and any(t.region for t in found.tensors)
    with pytest.raises(InputError, match="compiled from a model for tflite, not onnx"):
        compare(artifact, x, against="onnx")
    with pytest.raises(InputError, match="needs its file: --float MODEL"):
        compare(artifact, x, against="float")


def test_command(tmp_path, capsys):
    n = Network(1, (1, 2, 4, 4))
    artifact, x = _made(n.model(n.conv("x", 3, 2)), (2, 4, 4), tmp_path)
    np.save(tmp_path / "x.npy", x)
    arguments = ["compare", str(artifact), "--input", str(tmp_path / "x.npy")]
    assert main(arguments) == 0
    assert "3 tensors, each equal to that of ONNX Runtime in every bit" in capsys.readouterr().out
    assert main([*arguments, "--all"]) == 0
    assert ["conv0", "region0", "1x4x4x3", "0", "0"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    assert main([*arguments, "--float", str(tmp_path / "n.onnx"), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert {t["name"]: t["region"] for t in values["tensors"]}["conv0"] == "region0"
    assert all(t["sqnr_db"] > 30 for t in values["tensors"])
    assert main([*arguments, "--float", "n.onnx", "--with", "onnx"]) == 2
    assert "--float is for --with float" in capsys.readouterr().err
