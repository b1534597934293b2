"""Bad input to the command line: one line, the documented exit code, earlier output untouched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from nnloom.arch.config import AcceleratorConfig
from nnloom.cli import main
from nnloom.compiler import compile as compile_to_artifact
from tests import models

SHAPE = (1, 50, 10, 1)


@pytest.fixture(scope="module")
def stage(tmp_path_factory, artifacts, model_path):
    """A folder with a good model, artifact and input, and all the bad ones."""
    folder: Path = tmp_path_factory.mktemp("errors")
    good = shutil.copy(model_path("keyword_spotting"), folder / "kws.tflite")
    data = Path(good).read_bytes()
    (folder / "empty.tflite").write_bytes(b"")
    (folder / "garbage.tflite").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "header.tflite").write_bytes(data[:8] + np.random.default_rng(1).bytes(5000))
    (folder / "truncated.tflite").write_bytes(data[: len(data) // 2])
    (folder / "text.tflite").write_text("this is not a model\n")
    models.altered(good, folder / "operator.tflite", models.replace_softmax)
    models.altered(good, folder / "dynamic.tflite", models.make_dynamic)
    models.altered(good, folder / "nothing.tflite", models.remove_operators)
    models.altered(good, folder / "loop.tflite", models.use_control_flow)

    def config(name, **values):
        (folder / name).write_text(json.dumps(AcceleratorConfig().to_dict() | values))

    config("odd.json", lanes=17)
    config("text.json", lanes="sixteen")
    config("unknown.json", colour="red")
    (folder / "list.json").write_text("[]")
    (folder / "broken.json").write_text("{")

    def artifact(name):
        return Path(shutil.copytree(artifacts("keyword_spotting"), folder / name))

    artifact("good")
    (artifact("no-manifest") / "manifest.json").unlink()
    (artifact("cut-manifest") / "manifest.json").write_text('{"format":')
    manifest = artifact("edited") / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"lanes": 16', '"lanes": 32'))
    manifest = artifact("list-manifest") / "manifest.json"
    manifest.write_text("[1, 2]")
    (artifact("no-weights") / "weights.bin").unlink()
    weights = artifact("edited-weights") / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    program = artifact("cut-program") / "program.bin"
    program.write_bytes(program.read_bytes()[:64])
    library = artifact("bad-library") / "cpu.so"
    library.write_bytes(b"not a library")
    report = artifact("bad-report") / "report.json"
    report.write_text("{")
    compile_to_artifact(folder / "kws.tflite", board="icebreaker", output=folder / "compact")
    (folder / "other").mkdir()
    (folder / "other" / "precious.txt").write_text("keep me")
    (folder / "file").write_text("a file")
    (folder / "saved").mkdir()
    (folder / "saved" / "saved_model.pb").write_bytes(b"")
    (folder / "web").mkdir()
    (folder / "web" / "manifest.json").write_text('{"name": "a web app", "icons": []}')
    (folder / "web" / "index.html").write_text("<p>")
    (artifact("mixed") / "y.npy").write_text("precious")

    np.save(folder / "x.npy", np.zeros(SHAPE, np.float32))
    np.save(folder / "shape.npy", np.zeros((1, 49, 10, 1), np.float32))
    np.save(folder / "scalar.npy", np.float32(1))
    np.save(folder / "no-rows.npy", np.zeros((0, 50, 10, 1), np.float32))
    np.save(folder / "integers.npy", np.zeros(SHAPE, np.int32))
    np.save(folder / "complex.npy", np.zeros(SHAPE, np.complex64))
    np.save(folder / "text.npy", np.full(SHAPE, "a"))
    np.save(folder / "nan.npy", np.full(SHAPE, np.nan, np.float32))
    np.save(folder / "infinite.npy", np.full(SHAPE, -np.inf))
    np.save(folder / "huge.npy", np.full(SHAPE, 1e300))
    np.save(folder / "pickled.npy", np.array([{"a": 1}], object), allow_pickle=True)
    (folder / "garbage.npy").write_bytes(b"\x93NUMPY garbage")
    (folder / "empty.npy").write_bytes(b"")
    np.savez(folder / "name.npz", wrong=np.zeros(SHAPE, np.float32))
    (folder / "garbage.npz").write_bytes(b"PK\x03\x04garbage")
    return folder


COMPILE = {
    "missing model": ("none.tflite", "No such file"),
    "a folder as model": ("other", "a folder; give a .tflite, .onnx or .pt2"),
    "an artifact as model": ("good", "an artifact, compiled already"),
    "a folder of TensorFlow as model": ("saved", "tf.lite.TFLiteConverter.from_saved_model('saved')"),
    "empty model": ("empty.tflite", "empty or truncated"),
    "text as model": ("text.tflite", "neither a TFLite model"),
    "garbage model": ("garbage.tflite", "neither a TFLite model"),
    "garbage behind a good header": ("header.tflite", "damaged TFLite file"),
    "truncated model": ("truncated.tflite", ""),
    "unsupported operator": ("operator.tflite", "UNIQUE"),
    "dynamic shape": ("dynamic.tflite", "dynamic shape"),
    "model without operators": ("nothing.tflite", "no operators"),
    "control flow": ("loop.tflite", "control flow is not supported: WHILE; leave"),
    "unknown board": ("kws.tflite --board ulx3s-85", "unknown board 'ulx3s-85'; did you mean ulx3s-85f"),
    "impossible configuration": ("kws.tflite --config odd.json", "lanes must be a power of two"),
    "text in the configuration": ("kws.tflite --config text.json", "lanes must be int"),
    "unknown configuration key": ("kws.tflite --config unknown.json", "unknown key 'colour'"),
    "a list as configuration": ("kws.tflite --config list.json", "not a JSON object"),
    "broken configuration": ("kws.tflite --config broken.json", "not JSON"),
    "missing configuration": ("kws.tflite --config none.json", "No such file"),
    "output is another folder": ("kws.tflite -o other", "not an nnloom artifact"),
    "output is a web app": ("kws.tflite -o web", "not an nnloom artifact"),
    "output holds a file of the user": ("kws.tflite -o mixed", "holds 'y.npy', not of nnloom; move it"),
    "output is a file": ("kws.tflite -o file", "not a directory"),
    "output below a file": ("kws.tflite -o file/kws", "cannot write"),
}

RUN = {
    "missing artifact": ("run none --input x.npy", "no manifest.json"),
    "a model as artifact": ("run kws.tflite --input x.npy", "run 'nnloom compile kws.tflite -o DIR' and give DIR"),
    "a file of an artifact": ("inspect good/manifest.json", "give its folder, good"),
    "an array as artifact": ("simulate x.npy", "a file, not an artifact; give the folder that"),
    "no artifact": ("run other --input x.npy", "no manifest.json"),
    "manifest missing": ("inspect no-manifest", "no manifest.json"),
    "manifest cut": ("inspect cut-manifest", "not readable as JSON"),
    "manifest is a list": ("inspect list-manifest", "not a JSON object"),
    "manifest edited": ("simulate edited --input x.npy", "edited after compilation"),
    "weights missing": ("build no-weights", "weights.bin: missing"),
    "weights edited": ("run edited-weights --input x.npy", "differs from its hash"),
    "program cut": ("run cut-program --input x.npy", "differs from its hash"),
    "library replaced": ("run bad-library --input x.npy", "differs from its hash"),
    "report damaged": ("inspect bad-report", "report.json: not readable as JSON"),
    "no input": ("run good", "no input given"),
    "missing input": ("run good --input none.npy", "No such file or directory; give a .npy or .npz file"),
    "wrong shape": ("run good --input shape.npy", "must have shape [1, 50, 10, 1], not [1, 49, 10, 1]"),
    "scalar": ("run good --input scalar.npy", "must have shape"),
    "no rows": ("run good --input no-rows.npy", "must have shape"),
    "integers for a float input": ("run good --input integers.npy", "must be float32, not int32"),
    "complex numbers": ("run good --input complex.npy", "must be float32, not complex64"),
    "text": ("run good --input text.npy", "must be float32"),
    "NaN": ("run good --input nan.npy", "NaN or infinity"),
    "infinity": ("simulate good --input infinite.npy", "NaN or infinity"),
    "beyond float32": ("run good --input huge.npy", "beyond float32"),
    "pickled input": ("run good --input pickled.npy", "not a .npy or .npz"),
    "garbage input": ("run good --input garbage.npy", "not a .npy or .npz"),
    "a folder as input": ("run good --input other", "other: is a folder"),
    "empty input": ("run good --input empty.npy", "empty.npy: is empty"),
    "garbage archive": ("run good --input garbage.npz", "not a .npy or .npz"),
    "wrong input name": ("run good --input name.npz", "no input named 'wrong'"),
    "unknown device": ("run good --input x.npy --device gpu", "unknown device 'gpu'"),
    "unwritable output": ("run good --input x.npy --output file/y.npy", "cannot be written"),
    "output is a folder": ("run good --input x.npy --output other", "cannot be written"),
    "output folder missing": ("run good --input x.npy --output none/y.npy", "cannot be written"),
    "explore a missing model": ("explore none.tflite", "No such file"),
    "explore for an unknown board": ("explore kws.tflite --board colorlight", "unknown board 'colorlight'"),
    "explore without a model of the device": (
        "explore kws.tflite --board icebreaker",
        "icebreaker: there is no resource model of its device family",
    ),
    "a plot of another kind": ("explore kws.tflite --plot front.gif", "a plot is .svg or .png"),
    "unwritable plot": ("explore kws.tflite --plot none/front.svg", "; choose another --plot"),
    "a scheduler that is no address": ("explore kws.tflite --scheduler gopher://x:1", "give tcp://HOST:PORT"),
    "a scheduler without a port": ("explore kws.tflite --scheduler tcp://localhost", "give tcp://HOST:PORT"),
    "a scheduler that is not there": ("explore kws.tflite --scheduler tcp://127.0.0.1:9", "cannot connect to the Dask"),
    "output where the system allows none": (
        "run good --input x.npy --output /proc/y.npy",
        "/proc/y.npy: cannot be written (",
    ),
    "waveform where the system allows none": (
        "simulate good --input x.npy --waves /proc/w.fst",
        "choose another --waves",
    ),
    "a device without a port": ("run good --input x.npy --device serial:", "names no port"),
    "unwritable waveform": ("simulate good --input x.npy --waves file/w.fst", "cannot be written"),
    "unknown simulator": ("simulate good --input x.npy --simulator spice", "invalid choice: 'spice'"),
    "unknown command": ("weave good", "invalid choice: 'weave'"),
    "unknown option": ("run good --speed 3", "unrecognized arguments"),
    "counters of an engine without": (
        "inspect compact --measured",
        "an engine with counters; the configuration has none",
    ),
    "no command": ("", "required"),
    "bad seed": ("build good --seed many", "invalid int value"),
    "build nothing": ("build", "build needs an artifact directory or --board NAME"),
    "build two things": ("build good --board ulx3s-85f", "and not both"),
    "build an unknown board": ("build --board ulx3", "unknown board 'ulx3'"),
    "build a Zynq without an artifact": ("build --board pynq-z2", "give one instead of --board"),
    "build an artifact elsewhere": ("build good -o x.bit", "-o is for --board"),
    "build a board into nowhere": ("build --board ulx3s-85f -o none/x.bit", "cannot be written"),
    "build with an impossible clock": ("build good --clock 1000", "no PLL setting makes 1000 MHz from 25 MHz"),
    "build with words for a clock": ("build good --clock abc", "argument --clock: abc is no frequency in MHz"),
    "build with a clock that is none": ("build good --clock nan", "nan is no frequency"),
    "zoo folder missing": ("zoo fetch keyword_spotting -o none/kws.tflite", "none/kws.tflite: cannot be written"),
    "unknown kind of the zoo": ("zoo list --kind int9", "no kind 'int9' in the zoo (kinds: int8, streaming int8"),
    "no such zoo model": ("zoo list of-no-such-name", "no model of the zoo is like that; 'nnloom zoo' lists all"),
    "unknown zoo model": ("zoo fetch resnet_9000", "no model 'resnet_9000' in the zoo"),
}


def _state(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _fails(arguments, message, stage, capfd, monkeypatch):
    monkeypatch.chdir(stage)
    before = _state(stage)
    try:
        code = main(arguments)
    except SystemExit as exit_:  # argparse
        code = exit_.code
    out, err = capfd.readouterr()
    assert code == 2, err
    assert out == ""
    assert err.startswith("nnloom: error: ") and err.count("\n") == 1, err
    assert len(err) < 400
    assert _state(stage) == before
    assert any(part in err for part in message.split("|")) or pytest.fail(err)


@pytest.mark.model
@pytest.mark.parametrize("case", COMPILE)
def test_compile_refuses(case, stage, capfd, monkeypatch):
    text, message = COMPILE[case]
    arguments = ["compile", *text.split()]
    if "-o" not in arguments:
        arguments += ["-o", "good"]
    _fails(arguments, message, stage, capfd, monkeypatch)


@pytest.mark.model
@pytest.mark.parametrize("case", RUN)
def test_commands_refuse(case, stage, capfd, monkeypatch):
    text, message = RUN[case]
    _fails(text.split(), message, stage, capfd, monkeypatch)


@pytest.mark.model
@pytest.mark.parametrize("verb", ["run", "simulate"])
def test_refusals_keep_an_earlier_output(verb, stage, capfd, monkeypatch):
    (stage / "y.npy").write_bytes(b"earlier")
    _fails([verb, "good", "--input", "nan.npy", "--output", "y.npy"], "NaN", stage, capfd, monkeypatch)
    assert (stage / "y.npy").read_bytes() == b"earlier"
    (stage / "y.npy").unlink()
