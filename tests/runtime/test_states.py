"""Sessions of a network with state: who owns it, what advances it, and what does not."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from nnloom.arch.errors import ArtifactError, DeviceError, InputError
from nnloom.cli import main
from nnloom.runtime import DeviceWarning, InferenceSession
from nnloom.runtime.server import make_application
from nnloom.sim.litert import LiteRtReference
from tests.artifacts import SMALL
from tests.board_twin import Fault, twin_device

FRAMES = 12


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(2).integers(-128, 128, (FRAMES, 1, 1, 8), np.int8)


@pytest.fixture(scope="module")
def want(streaming, frames) -> list[np.ndarray]:
    """LiteRT's answers."""
    litert = LiteRtReference(streaming / "model.tflite")
    return [litert.run(frame[None])[0] for frame in frames]


@pytest.fixture(scope="module")
def states(streaming, frames) -> list[dict[str, np.ndarray]]:
    """The state before each frame, and after the last."""
    with InferenceSession(streaming, "cpu") as session:
        result = [session.get_state()]
        for frame in frames:
            session.run(frame)
            result.append(session.get_state())
    return result


def only(outputs: dict[str, np.ndarray]) -> np.ndarray:
    (value,) = outputs.values()
    return value


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("device", ["cpu", "portable", "model", "board"])
def test_frame_after_frame(streaming, frames, want, states, device):
    found = twin_device(SMALL)[1] if device == "board" else "cpu" if device == "portable" else device
    with InferenceSession(streaming, found, native=device != "portable") as session:
        assert len(session.artifact.manifest.regions) == 2
        assert [(info.name, info.shape) for info in session.get_states()] == [
            ("first", (1, 2, 1, 8)),
            ("second", (1, 2, 1, 8)),
        ]
        for frame, answer, after in zip(frames, want, states[1:], strict=True):
            np.testing.assert_array_equal(only(session.run(frame)), answer)
            assert same(session.get_state(), after)
        session.reset_state()
        assert same(session.get_state(), states[0])
        np.testing.assert_array_equal(only(session.run(frames)), np.concatenate(want))  # a batch: frames in order
        assert same(session.get_state(), states[-1])


def test_queued_frames(streaming, frames, want):
    with InferenceSession(streaming, "model") as session:
        futures = [session.run_async(frame) for frame in frames]
        for future, answer in zip(futures, want, strict=True):
            np.testing.assert_array_equal(only(future.result()), answer)


@pytest.mark.parametrize("kind", ["unplug", "reset", "silence"])
def test_a_device_that_fails_midway(streaming, frames, want, states, kind):
    """At each frame elsewhere: before, within and between the regions. Whoever answers, the state advances once."""
    line, device = twin_device(SMALL)
    with InferenceSession(streaming, device, clock=line.clock) as session, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeviceWarning)
        hits = 0
        for i, (frame, answer) in enumerate(zip(frames, want, strict=True)):
            line.arm(Fault(kind, i % 3 > 0, 6 + 7 * i, seconds=30.0))
            np.testing.assert_array_equal(only(session.run(frame)), answer)
            assert same(session.get_state(), states[i + 1]), i
            hits += bool(line.hit)
            line.clock.now += 100
        assert hits >= FRAMES // 2
        stats = session.stats()
        assert stats.on_device + stats.fallbacks == FRAMES
        assert stats.fallbacks if kind != "reset" else stats.on_device == FRAMES  # the driver mends a reset


def test_a_run_that_raises_changes_nothing(streaming, frames, want, states):
    line, device = twin_device(SMALL)
    with InferenceSession(streaming, device, fallback=False, clock=line.clock) as session:
        session.run(frames[0])
        for at in range(20, 500, 60):
            line.arm(Fault("unplug", True, at, seconds=1.0))
            with pytest.raises(DeviceError):
                session.run(frames[1:])  # in the middle of a batch, too
            assert line.hit == ["unplug"]
            assert same(session.get_state(), states[1])
            line.clock.now += 1
        with pytest.raises(InputError, match="must have shape"):
            session.run(frames[:, :, :, :4])
        np.testing.assert_array_equal(only(session.run(frames[1:])), np.concatenate(want[1:]))
        assert same(session.get_state(), states[-1])


def test_the_state_is_the_sessions_own(streaming, frames, want, states):
    with InferenceSession(streaming, "model") as session:
        session.run(frames[0])
        kept = session.get_state()
        for value in session.get_state().values():
            value[...] = 99
        assert same(session.get_state(), states[1])
        session.run(frames[1])
        session.set_state(kept)
        for value in kept.values():
            value[...] = 99
        np.testing.assert_array_equal(only(session.run(frames[1])), want[1])
    # It outlives the session that it came from.
    with InferenceSession(streaming, "cpu") as session:
        session.set_state(states[5])
        np.testing.assert_array_equal(only(session.run(frames[5:])), np.concatenate(want[5:]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"third": s["first"]}, "no state named 'third' (states: first, second)"),
        (lambda s: {"first": s["first"]}, "state 'second' is missing (states: first, second)"),
        (
            lambda s: s | {"first": s["first"][:, :1]},
            "state must be 'first' as int8[1, 2, 1, 8], not int8[1, 1, 1, 8]",
        ),
        (lambda s: s | {"first": s["first"] * 1.0}, "state must be 'first' as int8[1, 2, 1, 8], not float64"),
        (lambda s: s | {"first": [[1], [1, 2]]}, "state 'first' is no array; give 'first' as int8[1, 2, 1, 8]"),
        (lambda s: list(s.values()), "states are given as a dict of arrays, as get_state returns it"),
    ],
    ids=["unknown", "missing", "shape", "dtype", "ragged", "list"],
)
def test_states_that_are_none(streaming, states, change, message):
    with InferenceSession(streaming, "cpu") as session:
        with pytest.raises(InputError) as raised:
            session.set_state(change(states[3]))
        assert message in str(raised.value) and "\n" not in str(raised.value)
        assert same(session.get_state(), states[0])


def test_networks_without_state(plain):
    with InferenceSession(plain, "cpu") as session:
        assert session.get_states() == () and session.get_state() == {}
        session.set_state({})
        session.reset_state()
        with pytest.raises(InputError, match="no state named 'v' \\(states: none\\)"):
            session.set_state({"v": np.zeros(1)})


def test_a_request_is_a_whole_sequence(streaming, frames, want):
    from starlette.testclient import TestClient

    def post(count: int, **fields):
        values = {"name": name, "datatype": "INT8", "shape": [count, 1, 1, 8], "data": frames[:count].tolist()}
        return client.post("/v2/models/net/infer", json={"inputs": [values], **fields})

    with InferenceSession(streaming, "model") as session:
        name = session.get_inputs()[0].name
        with TestClient(make_application(session, "net")) as client:
            for count in (FRAMES, 3, 1):
                got = post(count).json()["outputs"][0]["data"]
                np.testing.assert_array_equal(got, np.concatenate(want[:count]).ravel())
            answer = post(1, parameters={"sequence_id": 7})
    assert answer.status_code == 400
    assert "parameter 'sequence_id' is not supported: a request holds a whole sequence" in answer.json()["error"]


def test_from_the_command_line(streaming, frames, want, tmp_path, capfd):
    np.save(tmp_path / "x.npy", frames)
    command = ["run", str(streaming), "--device", "model", "--input", str(tmp_path / "x.npy")]
    assert main([*command, "--output", str(tmp_path / "y.npy")]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), np.concatenate(want))
    capfd.readouterr()
    assert main(["inspect", str(streaming)]) == 0
    shown = capfd.readouterr().out
    assert "state from run to run:" in shown and "second" in shown and "[1, 2, 1, 8]" in shown


def test_states_that_the_artifact_lacks(streaming, tmp_path):
    import shutil

    from nnloom.arch.artifact import Artifact, write_artifact

    def written(change) -> Path:
        path = tmp_path / "artifact"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(streaming, path)
        artifact = Artifact.load(path)
        change(path)
        write_artifact(path, artifact.manifest, artifact.program, artifact.weights, artifact.tables)
        return path

    for change, message in (
        (lambda path: (path / "states.npz").unlink(), "No such file"),
        (lambda path: (path / "states.npz").write_bytes(b"none"), "not a .npy or .npz array file"),
        (lambda path: np.savez(path / "states.npz", **{"0": np.zeros((1, 2, 1, 8), np.int8)}), "not hold 'second' as"),
        (lambda path: np.savez(path / "states.npz", **{"0": np.zeros((1, 2, 8), np.int8)}), "not hold 'first' as"),
    ):
        with pytest.raises(ArtifactError, match=message) as raised:
            InferenceSession(written(change), "cpu", native=False)
        assert "\n" not in str(raised.value)
