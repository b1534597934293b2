"""`compile --keep`: what each step makes, in a folder."""

from __future__ import annotations

import json

import pytest

from nnloom.arch.errors import ConfigError, NnloomError
from nnloom.cli.main import main
from nnloom.compiler.keep import STEPS, KeptSteps
from tests.compiler.networks import NETWORKS
from tests.tflite_models import ModelWriter


def _model(tmp_path, name="pools"):
    m = ModelWriter(0)
    path = tmp_path / "net.tflite"
    path.write_bytes(m.finish(*NETWORKS[name](m)))
    return path


def test_every_step_is_kept(tmp_path):
    path, folder = _model(tmp_path), tmp_path / "steps" / "of_net"
    for _ in range(2):  # its own files are replaced
        assert main(["compile", str(path), "-o", str(tmp_path / "net"), "--keep", str(folder)]) == 0
    names = [f"{number}-{step}.{end}" for number, step in enumerate(STEPS, 1) for end in ("json", "txt")]
    assert sorted(p.name for p in folder.iterdir()) == names
    steps = [json.loads((folder / name).read_text()) for name in names[::2]]
    assert [v["step"] for v in steps] == list(STEPS)
    read, simplified, recentred, partitioned, lowered = steps
    assert len(read["nodes"]) >= len(simplified["nodes"]) > 0
    # A network of int8 is its own twin.
    assert {**recentred, "step": ""} == {**simplified, "step": ""}
    report = json.loads((tmp_path / "net" / "report.json").read_text())
    layers = [layer for region in lowered["regions"] for layer in region["layers"]]
    assert sum(layer["cycles"] for layer in layers) == report["cycles_estimated"] > 0
    on_cpu = [node for stage in partitioned["stages"] for node in stage["cpu"]]
    regions = [stage["region"] for stage in partitioned["stages"] if stage["region"]]
    assert {n["name"]: n["reason"] for n in on_cpu if n["reason"]} == {
        layer["name"]: layer["reason"] for layer in report["layers"] if layer["target"] == "cpu"
    }
    assert sum(len(r["layers"]) for r in regions) == len(layers)
    text = (folder / "1-read.txt").read_text().splitlines()
    assert text[0] == "network net" and text[-1].startswith("output %")
    assert len([line for line in text if " = " in line]) == len(read["nodes"])


def test_steps_before_a_refusal_are_kept(tmp_path, capfd, monkeypatch):
    def refuse(*_, **__):
        raise NnloomError("no")

    monkeypatch.setattr("nnloom.compiler.exits.fit", refuse)
    path, folder = _model(tmp_path), tmp_path / "steps"
    assert main(["compile", str(path), "-o", str(tmp_path / "net"), "--keep", str(folder)]) != 0
    assert sorted(p.stem for p in folder.glob("*.txt")) == ["1-read", "2-simplify"]


def test_a_folder_of_others_is_left_alone(tmp_path):
    (tmp_path / "1-read.txt").write_text("mine?")
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds 'thesis.txt', not of --keep; choose an empty or new folder"):
        KeptSteps(tmp_path)
    assert (tmp_path / "1-read.txt").read_text() == "mine?"
    with pytest.raises(ConfigError, match=r"cannot keep steps there .*; choose another --keep"):
        KeptSteps(tmp_path / "thesis.txt")
