"""`examples/wake_word.py` on the recording beside it, against LiteRT and against the inference of pymicro-wakeword."""

from __future__ import annotations

import importlib.util
import sys
import wave
from collections import deque
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from nnloom.runtime import InferenceSession
from nnloom.sim.litert import LiteRtReference

EXAMPLES = Path(__file__).parents[1] / "examples"
RECORDING = EXAMPLES / "okay_nabu.wav"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wake_word", EXAMPLES / "wake_word.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("wake_words")


def call(example, monkeypatch, artifacts, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["wake_word.py", *map(str, arguments), "--artifacts", str(artifacts)])
    return example.main()


def test_the_moment_of_the_word(example, monkeypatch, artifacts, capsys):
    """The word begins after a second and takes one; what is heard is that it has ended."""
    for device in ("cpu", "model"):
        assert call(example, monkeypatch, artifacts, RECORDING, "--device", device) == 0
        assert capsys.readouterr().out == f"2.03 s: Okay Nabu (probability 0.902, on {device})\n"


def test_every_probability_is_that_of_litert(example, monkeypatch, artifacts):
    assert call(example, monkeypatch, artifacts, RECORDING, "--device", "cpu") == 0
    samples = example.read_wave(str(RECORDING))
    litert = LiteRtReference(example.models() / "okay_nabu.tflite")
    with InferenceSession(artifacts / "okay_nabu", "cpu", native=False) as session:
        want = [litert.run(frame)[0].item() / 256 for _, frame in example.frames(samples, session)]
        got = [probability for _, probability in example.probabilities(samples, session)]
    assert got == want
    assert len(got) == 92 and max(got) > 0.99 and sum(p > 0 for p in got) > 20


def test_the_package_hears_it_at_the_same_time(example, monkeypatch, artifacts):
    """Its library has LiteRT's optimized kernels, which round a little differently from the reference's."""
    from pymicro_wakeword import MicroWakeWord, MicroWakeWordFeatures, Model

    assert call(example, monkeypatch, artifacts, RECORDING, "--device", "cpu") == 0
    samples = example.read_wave(str(RECORDING))
    package, features = MicroWakeWord.from_builtin(Model.OKAY_NABU), MicroWakeWordFeatures()
    cutoff, window = package.probability_cutoff, package.sliding_window_size
    package._probabilities = deque(maxlen=1)
    package.sliding_window_size = 1
    theirs = [package.process_streaming_prob(f) for f in features.process_streaming(samples)][2::3]
    with InferenceSession(artifacts / "okay_nabu", "cpu", native=False) as session:
        ours = [probability for _, probability in example.probabilities(samples, session)]
        ((seconds, _),) = example.moments(samples, session, cutoff, window)
    np.testing.assert_allclose(ours, theirs, atol=0.05)
    means = np.convolve(theirs, np.ones(window) / window, "valid")
    heard = int(np.argmax(means > cutoff)) + window - 1
    # The front end has the first features after 30 ms.
    assert seconds == pytest.approx(0.05 + 0.03 * heard, abs=0.011)


def test_other_recordings(example, monkeypatch, artifacts, tmp_path, capsys):
    """The same file without the second in which the word is said; what is no recording at all."""
    with wave.open(str(RECORDING), "rb") as file:
        parameters, samples = file.getparams(), file.readframes(file.getnframes())

    def written(path: Path, data: bytes, channels: int = 1) -> Path:
        with wave.open(str(path), "wb") as file:
            file.setparams(parameters)
            file.setnchannels(channels)
            file.writeframes(data)
        return path

    silent = written(tmp_path / "silent.wav", samples[:32_000] * 3)
    assert call(example, monkeypatch, artifacts, silent, "--device", "cpu") == 1
    assert capsys.readouterr().out == "Okay Nabu was not said\n"
    for path, words, message in (
        (
            written(tmp_path / "stereo.wav", samples, 2),
            (),
            "2 channels of 16 bits at 16000 Hz; convert it to 1, 16, 16000",
        ),
        (tmp_path / "none.wav", (), "No such file or directory"),
        (EXAMPLES / "small.json", (), "give a .wav file"),
        (RECORDING, ("--word", "hey_you"), "no network for 'hey_you' (there are alexa, hey_jarvis, hey_mycroft, okay_"),
    ):
        with pytest.raises(SystemExit) as raised:
            call(example, monkeypatch, artifacts, path, *words)
        assert message in str(raised.value) and "\n" not in str(raised.value)
