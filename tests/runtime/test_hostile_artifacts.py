"""Artifacts that were edited and sealed again: an answer, or one line; never a traceback, never a file elsewhere."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnloom.arch.artifact import Artifact
from nnloom.arch.errors import ArtifactError, NnloomError
from nnloom.arch.report import Report
from nnloom.cli import main
from nnloom.runtime import InferenceSession
from tests.artifacts import SMALL
from tests.board_twin import twin_device

VALUES: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 7, 127, 128, -128, -129, 255, 256, 65535, 65536, 1 << 20, 1 << 31, -(1 << 31), 1 << 32),
    *(1 << 40, 1 << 53, (1 << 53) + 1, 1 << 63, 1 << 64, 10**30, 0.0, -0.0, 0.5, 1e-45, 1e38, 1e39, 1e308, -1e308),
    *(float("nan"), float("inf"), -float("inf"), True, False, None, "", "x", "\x1b[2J", "\ud800", "../x", [], [1], {}),
)


def leaves(value: Any, path: tuple = ()) -> list[tuple]:
    """Paths of all that is no list or dictionary, and of empty ones."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [leaf for key, child in children for leaf in leaves(child, (*path, key))]
    return found or [path]


def put(values: Any, path: tuple, value: Any) -> Any:
    """The value that was there before."""
    for key in path[:-1]:
        values = values[key]
    before, values[path[-1]] = values[path[-1]], value
    return before


def seal(path: Path, values: dict[str, Any], name: str = "manifest.json") -> None:
    values = {key: value for key, value in values.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    (path / name).write_text(json.dumps(values | {"sha256": digest}))


@pytest.fixture(params=["network", "plain", "streaming"])
def edited(request, tmp_path):
    """(artifact, its manifest, function that seals it)

    The first runs in native code, the others in the portable runtime; the last has state.
    """
    path = Path(shutil.copytree(request.getfixturevalue(request.param), tmp_path / request.param))
    values = json.loads((path / "manifest.json").read_text())
    return path, values, lambda: seal(path, values)


def use(path: Path, how: int) -> str:
    """Run an artifact in one of several ways: "" or the message of the error."""
    _, board = twin_device(SMALL)
    device = ("cpu", "model", board)[how % 3]
    try:
        with InferenceSession(path, device, fallback=False, native=path.name == "network") as session:
            session.run({info.name: np.zeros(info.shape, info.dtype) for info in session.get_inputs()})
        return ""
    except NnloomError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
        return str(error) or "?"


def edits(rng: np.random.Generator, values: Any, paths: list[tuple]) -> list[tuple[tuple, Any]]:
    """Some places with their new values: interesting ones, neighbours, those of another place."""
    result = []
    for _ in range(int(rng.integers(1, 3))):
        path = paths[int(rng.integers(len(paths)))]
        old = values
        for key in path:
            old = old[key]
        kind = rng.random()
        if kind < 0.4 and type(old) is int:
            new: Any = old + int(rng.choice([-2, -1, 1, 2, 8, 16, 64]))
        elif kind < 0.5 and type(old) in (int, float):
            new = old * 2
        elif kind < 0.6:
            new = values
            for key in paths[int(rng.integers(len(paths)))]:
                new = new[key]
        else:
            new = VALUES[int(rng.integers(len(VALUES)))]
        result.append((path, new))
    return result


def test_seeded_edits_of_manifests(edited):
    """Of 300 sealed edits each gives an answer or one line."""
    path, values, finish = edited
    original = json.dumps(values)
    rng = np.random.default_rng(21)
    # Hashes guard the files, and are tried once.
    paths = [leaf for leaf in leaves(values) if leaf[0] not in ("sha256", "files", "model_sha256")]
    outcomes = {"refused": 0, "answered": 0}
    for index in range(450):
        values.clear()
        values.update(json.loads(original))
        for place, new in edits(rng, values, paths):
            put(values, place, new)
        finish()
        try:
            outcomes["refused" if use(path, index) else "answered"] += 1
        except Exception as error:
            raise AssertionError(f"edit {index}: {values}") from error
    assert outcomes["refused"] > 150 and outcomes["answered"] > 20, outcomes


def test_edits_of_each_number_to_each_end(edited):
    """Every number of the manifest once: far too small and far too large."""
    path, values, finish = edited
    numbers = []
    for place in leaves(values):
        value = values
        for key in place:
            value = value[key]
        if type(value) in (int, float):
            numbers.append((place, 1 << 40 if type(value) is int else 1e200))
    assert len(numbers) > 60
    for index, (place, far) in enumerate(numbers):
        for new in (-far, far):
            before = put(values, place, new)
            finish()
            # An operator of the host may have numbers that it does not look at (the axis of a single scale).
            assert use(path, index) or "operation" in place, place
            put(values, place, before)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/b", "a\\b", "..", ".", "", ".hidden", "x\n", "x\x1b[2J", "C:x", "é", "x" * 200]
)
def test_files_outside_of_the_artifact_are_not_looked_at(edited, name):
    path, values, finish = edited
    (path.parent / "x").write_bytes(b"x")
    values["files"][name] = hashlib.sha256(b"x").hexdigest()
    finish()
    with pytest.raises(ArtifactError, match="is no name of a file in the artifact") as caught:
        Artifact.load(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["program.bin", "weights.bin"])
def test_a_file_without_a_hash_is_not_read(edited, name):
    path, values, finish = edited
    del values["files"][name]
    finish()
    with pytest.raises(ArtifactError, match=f"files: {name} is missing"):
        Artifact.load(path)


@pytest.mark.parametrize("data", [b"", b"\0", bytes(64), bytes(3), b"\xff" * 640, bytes(1 << 20)])
@pytest.mark.parametrize("name", ["program.bin", "weights.bin"])
def test_other_images_that_were_sealed(edited, name, data):
    path, values, finish = edited
    (path / name).write_bytes(data)
    values["files"][name] = hashlib.sha256(data).hexdigest()
    finish()
    for how in range(3):
        message = use(path, how)
        if name == "program.bin":
            assert message


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", "nul", "[" * 100_000, '{"a":' * 5_000 + "1" + "}" * 5_000, "\ufeff{}", "9" * 5_000, "\0"],
    ids=range(10),
)
def test_manifests_that_are_none(edited, text):
    path, _, _ = edited
    (path / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError) as caught:
        Artifact.load(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    (path / "manifest.json").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(ArtifactError, match="not readable as JSON"):
        Artifact.load(path)


@pytest.fixture
def built(plain, tmp_path):
    """(artifact with the figures of simulation and build in its report, the report)"""
    path = Path(shutil.copytree(plain, tmp_path / "built"))
    artifact = Artifact.load(path)
    report = Report.load(artifact)
    report.note_cycles({"region0": [100, 50]}, 150)
    resources = {"LUT4": {"used": 10, "available": 20}}
    report.note_build(
        {"bitstream": "nnloom.bit", "fmax_mhz": 80.5, "clock_mhz": 75.0, "resources": resources, "seed": 1}
    )
    report.save(artifact)
    return path, json.loads((path / "report.json").read_text())


def test_figures_of_simulation_and_build(built, capfd):
    path, values = built
    assert (values["cycles"], values["cycles_measured"], values["latency_us"]) == (150, 150, 2.0)
    layers = [layer for layer in values["layers"] if layer["target"] == "accelerator"]
    assert [layer["cycles_measured"] for layer in layers] == [100, 50]
    assert layers[0]["utilisation"] == round(layers[0]["macs"] / 100 / values["mac_units"], 4)
    assert main(["inspect", str(path), "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert shown.pop("inputs") and shown.pop("outputs")
    assert shown == {key: v for key, v in values.items() if key != "sha256"}
    assert main(["inspect", str(path)]) == 0
    assert "bitstream: nnloom.bit, 80.5 MHz reached, clock 75 MHz, 2.0 us" in capfd.readouterr().out
    report = Report.load(Artifact.load(path))
    with pytest.raises(ArtifactError, match="2 layers of region0, 3 ran"):
        report.note_cycles({"region0": [1, 2, 3]}, 6)


def inspected(path: Path, capfd, *options: str) -> bool:
    code = main(["inspect", str(path), *options])
    out, err = capfd.readouterr()
    assert code in (0, 2) and "".join((out + err).split("\n")).isprintable()
    assert code == 0 or (err.startswith("nnloom: error: ") and err.count("\n") == 1 and len(err) < 600)
    return code == 0


def test_every_edit_of_a_report_is_noticed(built, capfd):
    path, values = built
    rng = np.random.default_rng(3)
    paths = leaves(values)
    original = json.dumps(values)
    for _ in range(100):
        for place, new in edits(rng, values, paths):
            put(values, place, new)
        if json.dumps(values) == original:
            continue
        (path / "report.json").write_text(json.dumps(values))
        assert not inspected(path, capfd)
        values = json.loads(original)
    text = (path / "report.json").read_bytes()
    for at in range(0, len(text), 97):
        (path / "report.json").write_bytes(text[:at])
        assert not inspected(path, capfd)


def test_seeded_edits_of_sealed_reports(built, capfd):
    """Edited and sealed again: figures or one line."""
    path, values = built
    rng = np.random.default_rng(4)
    paths = [leaf for leaf in leaves(values) if leaf[0] not in ("config", "sha256")]
    original = json.dumps(values)
    shown = profiled = 0
    with InferenceSession(path, "model") as session:
        session.run({info.name: np.zeros(info.shape, info.dtype) for info in session.get_inputs()})
        for index in range(150):
            for place, new in edits(rng, values, paths):
                put(values, place, new)
            seal(path, values, "report.json")
            shown += inspected(path, capfd, *(["--json"] if index % 3 == 0 else []))
            try:
                session.profile()  # reads the report
                profiled += 1
            except ArtifactError as error:
                assert "\n" not in str(error)
            values = json.loads(original)
    assert 15 < shown <= profiled < 135


def test_a_report_of_another_artifact(built, network):
    path, _ = built
    shutil.copy(network / "report.json", path / "report.json")
    with pytest.raises(ArtifactError, match="model_sha256 is not that of the artifact"):
        Report.load(Artifact.load(path))
    (path / "report.json").unlink()
    with pytest.raises(ArtifactError, match=r"report\.json: missing; compile the model again"):
        Report.load(Artifact.load(path))
