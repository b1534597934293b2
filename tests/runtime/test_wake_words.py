"""The streaming wake words of pymicro-wakeword: 200 frames one after the other against LiteRT, on devices that fail."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from nnloom.compiler import compile as compile_model
from nnloom.compiler import zoo
from nnloom.runtime import DeviceWarning, InferenceSession
from nnloom.sim.litert import LiteRtReference
from tests.board_twin import Fault, twin_device
from tests.compiler.litert import compile_without_code
from tests.tflite_models import edited

pytestmark = pytest.mark.model

WORDS = ("okay_nabu", "hey_jarvis", "hey_mycroft", "alexa")
FRAMES = 200
ONE_OR_ALL = pytest.mark.parametrize("word", [WORDS[0], *(pytest.param(w, marks=pytest.mark.slow) for w in WORDS[1:])])


def with_logits(model) -> None:
    """Make the operand of LOGISTIC an output, too: the probability of noise is nearly always 0."""
    graph = model.subgraphs[0]
    kinds = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    (logistic,) = (op for op in graph.operators if kinds[op.opcodeIndex] == schema.BuiltinOperator.LOGISTIC)
    graph.outputs = np.append(graph.outputs, logistic.inputs[0])
    for signature in model.signatureDefs or []:
        signature.outputs = []


def written(word: str, folder: Path) -> Path:
    path = folder / f"{word}.tflite"
    path.write_bytes(edited(zoo.fetch(word).read_bytes(), with_logits))
    return path


def frames_for(word: str, count: int = FRAMES) -> np.ndarray:
    """Noise as loud as speech, and silences, [count, 1, 3, 40]."""
    rng = np.random.default_rng(WORDS.index(word))
    loud = rng.normal(-60, 50, (count, 1, 3, 40)) * (rng.random((count, 1, 1, 1)) < 0.8)
    return np.clip(loud - 40, -128, 127).astype(np.int8)


def answers(model: Path, frames: np.ndarray) -> list[list[np.ndarray]]:
    litert = LiteRtReference(model)
    result = [litert.run(frame) for frame in frames]
    assert len({values[1].item() for values in result}) > 20  # the logits tell frames apart
    return result


def follow(session: InferenceSession, frames: np.ndarray, want: list[list[np.ndarray]]) -> None:
    for i, (frame, values) in enumerate(zip(frames, want, strict=True)):
        for got, value in zip(session.run(frame).values(), values, strict=True):
            np.testing.assert_array_equal(got, value, err_msg=f"frame {i}")


@ONE_OR_ALL
def test_on_a_board_that_fails(word, tmp_path):
    """The golden model behind a serial line: the board is reset at frame 100, the cable drawn at frame 150."""
    model, frames = written(word, tmp_path), frames_for(word)
    want = answers(model, frames)
    compile_without_code(model, tmp_path / "artifact", "2x16x9")
    with InferenceSession(tmp_path / "artifact", "cpu", native=False) as portable:
        follow(portable, frames, want)
        after = portable.get_state()
    line, device = twin_device(portable.artifact.manifest.config)
    with InferenceSession(tmp_path / "artifact", device, native=False, clock=line.clock) as session:
        follow(session, frames[:100], want[:100])
        line.arm(Fault("reset", True, 300))
        follow(session, frames[100:150], want[100:150])
        assert line.hit == ["reset"] and session.stats().fallbacks == 0
        line.arm(Fault("unplug", True, 500, seconds=30.0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeviceWarning)
            follow(session, frames[150:160], want[150:160])
        assert line.hit == ["unplug"] and 0 < session.stats().fallbacks <= 10
        line.clock.now += 60
        follow(session, frames[160:], want[160:])
        assert session.stats().on_device == FRAMES - session.stats().fallbacks
        assert {name: value.tobytes() for name, value in session.get_state().items()} == {
            name: value.tobytes() for name, value in after.items()
        }


@ONE_OR_ALL
def test_with_the_cpu_code(word, tmp_path):
    model, frames = written(word, tmp_path), frames_for(word)
    want = answers(model, frames)
    artifact = compile_model(model, output=tmp_path / "artifact").path
    for device in ("cpu", "model"):
        with InferenceSession(artifact, device, native=True) as session:
            follow(session, frames, want)


@pytest.mark.slow
@pytest.mark.verilator
def test_in_rtl(tmp_path):
    """Every write of some frames is the golden model's, and the answers are LiteRT's."""
    from nnloom.runtime.devices.verified import VerifiedRtlDevice

    word = WORDS[0]
    model, frames = written(word, tmp_path), frames_for(word)
    want = answers(model, frames)
    compile_without_code(model, tmp_path / "artifact", "2x16x9")
    with InferenceSession(tmp_path / "artifact", VerifiedRtlDevice(), native=False) as session:
        follow(session, frames[:4], want[:4])
