"""The examples of depth and of wake words: their own arithmetic, and from training to the golden model."""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from nnloom.cli import main

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="NOT tested: pip install 'nnloom[torch]'")


def _example(folder: str, name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of an example, which imports its neighbours by their names."""
    monkeypatch.syspath_prepend(str(EXAMPLES / folder))
    for neighbour in ("speech", "train"):
        monkeypatch.delitem(sys.modules, neighbour, raising=False)
    spec = importlib.util.spec_from_file_location(f"{folder}_{name}", EXAMPLES / folder / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def _collapsed(path):
    return tuple(sound for sound, _ in itertools.groupby(path) if sound)


def test_ctc_sums_over_every_path(monkeypatch):
    words = _example("custom_wake_word", "wake_word", monkeypatch)
    logs = words.log_softmax(np.random.default_rng(1).normal(0, 2, (3, 5)))
    likelihood: dict = {}
    for path in itertools.product(range(3), repeat=5):
        key = _collapsed(path)
        value = sum(logs[frame, sound] for frame, sound in enumerate(path))
        likelihood[key] = np.logaddexp(likelihood.get(key, -np.inf), value)
    for sequence, value in likelihood.items():
        if sequence:
            assert words.log_likelihood(logs, sequence) == pytest.approx(value)
    ranked = sorted((s for s in likelihood if s), key=lambda s: -likelihood[s])
    assert words.most_likely(logs, 4) == ranked[:4]


def test_features_of_a_tone_are_in_its_band(monkeypatch):
    speech = _example("custom_wake_word", "speech", monkeypatch)
    seconds = np.arange(speech.RATE) / speech.RATE
    low, high = (speech.features(np.sin(2 * np.pi * f * seconds).astype(np.float32)) for f in (300, 3000))
    assert low.shape == (speech.BANDS, 49)
    assert len(set(low.argmax(0))) == 1 and low.argmax(0)[0] < high.argmax(0)[0]
    assert speech.window(np.zeros(100, np.float32)).shape == (speech.BANDS, speech.FRAMES)


@needs_torch
def test_scenes_have_the_distances_that_they_show(monkeypatch):
    depth = _example("depth", "train", monkeypatch)
    pictures, inverses = depth.scenes(3, seed=7)
    assert pictures.shape == (3, 3, 64, 64) and inverses.shape == (3, 1, 64, 64)
    assert abs(pictures).max() <= 1 and inverses.min() > 0 and inverses.max() <= 1
    # The floor comes nearer towards the lower edge.
    assert (np.diff(inverses[:, 0, 58:, 0], axis=1) > -0.05).all()
    assert depth.error(inverses, inverses) == (0, 1)


def _evaluate(artifact: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict:
    capsys.readouterr()
    assert main(["evaluate", str(artifact), "--metric", "mae", "--device", "model", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
@needs_torch
def test_depth(tmp_path, capsys):
    subprocess.run([sys.executable, str(EXAMPLES / "depth" / "train.py"), str(tmp_path)], check=True)
    data = ["--data", str(tmp_path / "test.npz")]
    calibration = ["--calibrate", str(tmp_path / "calibration.npz")]
    assert main(["compile", str(tmp_path / "depth.onnx"), *calibration, "-o", str(tmp_path / "artifact")]) == 0
    result = _evaluate(tmp_path / "artifact", capsys, *data, "--float", str(tmp_path / "depth.onnx"))
    hardware, reference, real = (e["value"] for e in result["evaluations"])
    assert result["equals_reference"] and hardware == reference < 0.03 and real < 0.03


@pytest.mark.slow
@needs_torch
@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="NOT tested: apt-get install espeak-ng")
def test_wake_words(tmp_path, capsys, monkeypatch):
    subprocess.run([sys.executable, str(EXAMPLES / "custom_wake_word" / "train.py"), str(tmp_path)], check=True)
    model, calibration = str(tmp_path / "sounds.onnx"), str(tmp_path / "calibration.npz")
    assert main(["compile", model, "--calibrate", calibration, "-o", str(tmp_path / "artifact")]) == 0
    words = _example("custom_wake_word", "wake_word", monkeypatch)
    recordings = [tmp_path / f"{speed}.wav" for speed in (150, 160, 170, 165)]
    for file in recordings:
        command = ["espeak-ng", "-v", "en-us+f3", "-s", file.stem, "-w", str(file), "hey lumen"]
        subprocess.run(command, check=True)
    word = str(tmp_path / "word.json")
    artifact = str(tmp_path / "artifact")
    assert words.main(["--device", "model", "enroll", artifact, *map(str, recordings[:3]), "-o", word]) == 0
    assert words.main(["--device", "model", "listen", artifact, word, str(recordings[3])]) == 0
    assert "\nheard: best at" in capsys.readouterr().out
    with words.InferenceSession(artifact, "cpu") as session:
        area, right = words.evaluate(session)
    assert area > 0.95 and right > 0.85
