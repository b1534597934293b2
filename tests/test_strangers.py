"""Networks of others: each compiles and is exact against LiteRT, or is refused in a line that says why."""

from __future__ import annotations

import pytest

from nnloom.arch.errors import NnloomError
from nnloom.compiler import compile as compile_model
from tests.fuzz.check import Checker
from tests.fuzz.generate import Built
from tests.strangers import networks

pytestmark = pytest.mark.model

REFUSED = {
    "alexa": "2 subgraphs",
    "hey_jarvis": "2 subgraphs",
    "hey_mycroft": "2 subgraphs",
    "okay_nabu": "2 subgraphs",
    "autoencoder_example.float32": "no quantized operator",
    "image_example1.float32": "no quantized operator",
    "keyword_spotting_alexa.float32": "no quantized operator",
    "keyword_spotting_on_off_v3.float32": "no quantized operator",
    "keyword_spotting_pacman_v3.float32": "no quantized operator",
    "rock_paper_scissors.float32": "no quantized operator",
    "fingerprint_signature_generator": "activations need",
    "image_example1": "activations need",
    "rock_paper_scissors": "activations need",
}
EXACT = {
    "anomaly_detection": 10,
    "audio_example1": 6,
    "autoencoder_example": 6,
    "image_classification": 14,
    "keyword_spotting": 11,
    "keyword_spotting_alexa": 54,
    "keyword_spotting_mobilenetv2": 65,
    "keyword_spotting_on_off_v3": 106,
    "keyword_spotting_pacman_v3": 89,
    "keyword_spotting_with_transfer_learning": 65,
    "tflite_micro_magic_wand": 6,
    "tflite_micro_speech": 2,
    "visual_wake_words": 29,
}
"""Layers on the accelerator"""


def test_every_network_is_listed():
    assert sorted(networks()) == sorted({**REFUSED, **EXACT})


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, tmp_path):
    with pytest.raises(NnloomError, match=REFUSED[name]) as raised:
        compile_model(networks()[name], output=tmp_path / "artifact")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", EXACT)
def test_exact(name, tmp_path):
    """On the board's default configuration, golden model and the runtime without TVM; one with its CPU code."""
    data = networks()[name].read_bytes()
    verdict = Checker(tmp_path).check(
        Built(data, data, ()), configs=["2x16x9"], native=name == "keyword_spotting_mobilenetv2", inputs=2
    )
    assert (verdict.kind, verdict.accelerated) == ("equal", EXACT[name]), verdict
