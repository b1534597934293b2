"""Networks of others: each compiles and is exact against LiteRT."""

from __future__ import annotations

import numpy as np
import pytest

from nnloom.compiler import compile as compile_model
from nnloom.compiler import zoo
from nnloom.runtime import InferenceSession
from nnloom.sim.litert import LiteRtReference
from tests.fuzz.check import Checker
from tests.fuzz.generate import Built

pytestmark = pytest.mark.model

EXACT = {
    "alexa": 20,
    "anomaly_detection": 10,
    "audio_example1": 6,
    "autoencoder_example": 6,
    "fingerprint_signature_generator": 3,
    "helia_tiny_cnn": 4,
    "hey_jarvis": 20,
    "hey_mycroft": 20,
    "image_classification": 14,
    "image_example1": 6,
    "keyword_spotting": 11,
    "keyword_spotting_alexa": 58,
    "keyword_spotting_mobilenetv2": 66,
    "keyword_spotting_on_off_v3": 106,
    "keyword_spotting_pacman_v3": 89,
    "keyword_spotting_with_transfer_learning": 66,
    "mltk_test_image_classification": 14,
    "mltk_test_image_example1": 6,
    "mltk_test_tflite_micro_speech": 2,
    "okay_nabu": 27,
    "rock_paper_scissors": 6,
    "tflite_micro_magic_wand": 6,
    "tflite_micro_speech": 2,
    "visual_wake_words": 29,
}
"""Layers on the accelerator. Not in that number: what is too large for the board."""
FLOAT = (
    "autoencoder_example_float32",
    "image_example1_float32",
    "keyword_spotting_alexa_float32",
    "keyword_spotting_on_off_v3_float32",
    "keyword_spotting_pacman_v3_float32",
    "rock_paper_scissors_float32",
)
"""Of the float networks, which run on the CPU alone: docs/conformance.md has all"""


def test_every_quantized_network_is_listed():
    assert sorted(EXACT) == sorted(entry.name for entry in zoo.list_models() if entry.is_quantized)


@pytest.mark.parametrize("name", EXACT)
def test_exact(name, tmp_path):
    """On the board's default configuration, golden model and the runtime without TVM; one with its CPU code."""
    data = zoo.fetch(name).read_bytes()
    verdict = Checker(tmp_path).check(
        Built(data, data, ()), configs=["2x16x9"], native=name == "keyword_spotting_mobilenetv2", inputs=2
    )
    assert (verdict.kind, verdict.accelerated) == ("equal", EXACT[name]), verdict


@pytest.mark.parametrize("name", FLOAT)
def test_float_networks_run_on_the_cpu(name, tmp_path):
    """Exact but for the last bit of exponentials, as the report says."""
    report = compile_model(zoo.fetch(name), output=tmp_path).report
    assert all(layer["target"] == "cpu" for layer in report["layers"])
    assert [layer["op"] for layer in report["layers"] if not layer["exact"]] in (["softmax"], ["logistic"])
    litert = LiteRtReference(zoo.fetch(name))
    with InferenceSession(tmp_path, "cpu") as session:
        x = np.random.default_rng(0).normal(0, 2, session.get_inputs()[0].shape).astype(np.float32)
        (value,) = session.run(None, {session.get_inputs()[0].name: x})
    np.testing.assert_allclose(value, litert.run(x)[0], rtol=1e-6)
