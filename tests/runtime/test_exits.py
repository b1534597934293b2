"""Exits: an output computed alone, within a budget, with the bits of the whole network and fewer cycles."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest

from nnloom.arch.artifact import Artifact, Manifest
from nnloom.arch.errors import ArtifactError, ConfigError, InputError
from nnloom.arch.report import Report, write_report
from nnloom.cli import main
from nnloom.compiler.quantize import quantize
from nnloom.runtime import InferenceSession
from nnloom.runtime.devices.verified import VerifiedRtlDevice
from nnloom.runtime.session import DeviceWarning
from nnloom.sim.onnx_runtime import OnnxRuntimeReference
from tests.board_twin import Fault, twin_device
from tests.onnx_models import Network, compile_onnx, without_code

NAMES = ("early", "middle", "final")
SHAPE = (1, 3, 8, 8)


def _network(folder):
    """Three heads on a trunk of three convolutions."""
    net = Network(3, SHAPE)
    x, channels = "x", 3
    for name in NAMES:
        x = net.add("Relu", net.conv(x, 12, channels, strides=[2, 2] if name == "middle" else [1, 1]))
        channels = 12
        head = net.add("Flatten", net.add("GlobalAveragePool", x))
        weights = net.constant(net.rng.standard_normal((12, 4)))
        net.add("Gemm", head, weights, net.constant(net.rng.standard_normal(4)))
        net.nodes[-1].output[0] = name
    onnx.save(net.model(*NAMES), folder / "float.onnx")
    calibration = np.random.default_rng(4).uniform(-1, 1, (8, *SHAPE[1:])).astype(np.float32)
    # With scales that are proved, so that all layers are on the engine.
    quantize(folder / "float.onnx", calibration, output=folder / "exits.onnx", method="minmax", explain=False)
    return folder / "exits.onnx"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return _network(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def artifact(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("artifact") / "exits"
    # In another order, and one of them twice.
    compile_onnx(model, path, "8x5 with larger memories", exits=["final", "early", "middle", "early"])
    return path


@pytest.fixture(scope="module")
def inputs():
    return np.random.default_rng(5).uniform(-1, 1, (2, *SHAPE[1:])).astype(np.float32)


def _whole(artifact, inputs):
    reference = OnnxRuntimeReference(artifact / "model.onnx")
    rows = [reference.run(x[None]) for x in inputs]
    return {name: np.concatenate(parts) for name, *parts in zip(NAMES, *rows, strict=True)}


def test_exits_in_order_of_time(artifact):
    with InferenceSession(artifact, "model", native=False) as session:
        exits = session.get_exits()
    assert [info.name for info in exits] == list(NAMES)
    assert exits[0].cycles < exits[1].cycles < exits[2].cycles
    report = Report.load(Artifact.load(artifact)).values
    for info, leave in zip(exits, report["exits"], strict=True):
        seconds = (
            info.cycles / 1e6 / report["system"]["clock_mhz"] + 10 * leave["link_bytes"] / report["system"]["baud"]
        )
        assert info.milliseconds == pytest.approx(1e3 * seconds)
        assert leave["link_bytes"] == 3 * 64 + 4
    assert exits[2].cycles < report["cycles"]  # without the other heads


@pytest.mark.parametrize("device", ["model", "cpu"])
def test_each_exit_has_the_bits_of_the_whole_network(artifact, inputs, device):
    wanted = _whole(artifact, inputs)
    with InferenceSession(artifact, device, native=False) as session:
        assert {k: v.tolist() for k, v in session.run(inputs).items()} == {k: v.tolist() for k, v in wanted.items()}
        for info in session.get_exits():
            made = session.run(inputs, budget_ms=info.milliseconds * 1.0001)
            assert list(made) == [info.name]
            np.testing.assert_array_equal(made[info.name], wanted[info.name])
            if device == "model":
                (region,) = [s for s in session.profile().segments if s.name]
                assert sum(cycles for _, cycles in region.layers) == info.cycles
        # From one to another, and back to all.
        assert list(session.run(inputs[:1], budget_ms=1e6)) == ["final"]
        assert list(session.run(inputs[:1])) == list(NAMES)


@pytest.mark.verilator
def test_the_engine_takes_the_cycles_of_the_exit_alone(model, inputs, tmp_path):
    """In RTL, every write compared with the golden model's."""
    compile_onnx(model, tmp_path / "a", "8x5", exits=["early", "final"])
    wanted = _whole(tmp_path / "a", inputs)
    with InferenceSession(tmp_path / "a", VerifiedRtlDevice(), native=False) as session:
        for info in session.get_exits():
            made = session.run(inputs[:1], budget_ms=info.milliseconds * 1.0001)
            np.testing.assert_array_equal(made[info.name], wanted[info.name][:1])
            assert session.last_cycles == info.cycles


def test_on_a_board(artifact, inputs):
    """Over the link; where the line is dead the CPU answers with the same exit."""
    wanted = _whole(artifact, inputs)
    line, device = twin_device(Artifact.load(artifact).manifest.config)
    with InferenceSession(artifact, device, native=False) as session:
        for info in session.get_exits():
            budget = info.milliseconds * 1.0001
            np.testing.assert_array_equal(session.run(inputs[:1], budget_ms=budget)[info.name], wanted[info.name][:1])
        assert session.stats().on_device == 3
        line.arm(Fault("silence", to_board=True, at=0, seconds=1e6))
        with pytest.warns(DeviceWarning):
            made = session.run(inputs[:1], budget_ms=1e6)
        np.testing.assert_array_equal(made["final"], wanted["final"][:1])


def test_the_same_weights_serve_all(model, artifact, tmp_path):
    """Weights are there once, and a network without the option is what it was."""
    compile_onnx(model, tmp_path / "plain", "8x5 with larger memories")
    plain, exits = Artifact.load(tmp_path / "plain"), Artifact.load(artifact)
    assert np.array_equal(exits.weights[: len(plain.weights)], plain.weights)
    assert len(exits.weights) <= 1.1 * len(plain.weights)
    assert np.array_equal(exits.program[: len(plain.program)], plain.program)
    assert "exits" not in plain.manifest.to_dict() and not plain.manifest.exits
    assert exits.manifest.regions == plain.manifest.regions and exits.manifest.host == plain.manifest.host


def test_in_parts(model, inputs, tmp_path):
    """Where programs and weights do not fit the memories, the parts of the exit are loaded and no others."""
    compile_onnx(model, tmp_path / "a", "8x5 with tiny memories", exits=["early", "final"])
    wanted = _whole(tmp_path / "a", inputs)
    with InferenceSession(tmp_path / "a", "model", native=False) as session:
        early, final = session.get_exits()
        assert early.milliseconds < final.milliseconds
        for info in (early, final):
            made = session.run(inputs, budget_ms=info.milliseconds * 1.0001)
            np.testing.assert_array_equal(made[info.name], wanted[info.name])


def test_refusals(model, artifact, inputs, tmp_path):
    with InferenceSession(artifact, "model", native=False) as session:
        with pytest.raises(InputError, match=r"a budget of 0\.001 ms is too small: the first exit, 'early', takes "):
            session.run(inputs, budget_ms=0.001)
        with pytest.raises(InputError, match="too small"):
            session.run(inputs, budget_ms=float("nan"))
        with pytest.raises(InputError, match="give no output names"):
            session.run(["early"], inputs, budget_ms=5)
    with pytest.raises(ConfigError, match=r"no output named 'late' to leave at \(outputs: early, middle, final\)"):
        compile_onnx(model, tmp_path / "a", exits=["late"])
    compile_onnx(model, tmp_path / "plain", "8x5 with larger memories")
    with (
        InferenceSession(tmp_path / "plain", "model", native=False) as session,
        pytest.raises(InputError, match="the network has no exits; compile it with --exits"),
    ):
        session.run(inputs, budget_ms=5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "other"}, "there is no such output"),
        ({"name": "middle"}, "several share a name|not those of the network"),
        ({"first_constant": -1}, "there is no constant -1"),
        ({"regions": ()}, "there is no region 0"),
    ],
)
def test_edited_manifests(artifact, change, message):
    manifest = Artifact.load(artifact).manifest
    values = replace(manifest, exits=(replace(manifest.exits[0], **change), *manifest.exits[1:])).to_dict()
    with pytest.raises(ArtifactError, match=message):
        Manifest.from_dict(json.loads(json.dumps(values)))


def test_the_report_has_the_exits_of_the_manifest(artifact, tmp_path):
    shutil.copytree(artifact, tmp_path / "a")
    report = dict(Report.load(Artifact.load(artifact)).values)
    write_report(tmp_path / "a" / "report.json", {**report, "exits": report["exits"][:2]})
    with pytest.raises(ArtifactError, match="its exits are not those of the artifact"):
        Report.load(Artifact.load(tmp_path / "a"))


def test_commands(model, inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", inputs[:1])
    with without_code():
        assert main(["compile", str(model), "-o", "a", "--exits", "early,middle", "--exits", "final"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[1].rstrip(":") for line in out.splitlines() if line.startswith("  exit ")] == list(NAMES)
    assert main(["inspect", "a"]) == 0 and "exit middle: " in capsys.readouterr().out
    monkeypatch.setattr("nnloom.runtime.session.was_compiled_here", lambda digest: False)
    assert main(["run", "a", "--input", "x.npy", "--device", "model", "--budget-ms", "1000", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["outputs"]) == ["final"]
    assert main(["run", "a", "--input", "x.npy", "--device", "model", "--budget-ms", "0.001"]) == 2
    assert "too small: the first exit, 'early'" in capsys.readouterr().err
