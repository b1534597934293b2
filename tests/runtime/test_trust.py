"""Native code of an artifact is loaded if it was compiled here, or if the user says so."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from nnloom.arch import trust
from nnloom.arch.errors import ArtifactError, ConfigError, ToolMissingError
from nnloom.arch.trust import note_compiled_here, was_compiled_here
from nnloom.cli import main
from nnloom.runtime import InferenceSession
from tests.artifacts import make_artifact
from tests.graphs import random_graph
from tests.runtime.test_hostile_artifacts import seal


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Another computer: its cache knows nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def answer(path: Path, device: str = "cpu", **options) -> tuple[dict, bool, str]:
    with InferenceSession(path, device, **options) as session:
        (info,) = session.get_inputs()
        value = np.random.default_rng(1).integers(-128, 128, info.shape, np.int8)
        return session.run(value), session.native, session.code_note


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_code_that_was_compiled_here_is_loaded_wherever_it_lies(plain, tmp_path):
    shutil.copytree(plain, tmp_path / "moved")
    for path in (plain, tmp_path / "moved"):
        _, native, note = answer(path)
        assert native and not note
    want, native, note = answer(plain, native=False)
    assert not native and not note
    assert same(answer(plain)[0], want)


@pytest.mark.parametrize("device", ["cpu", "model"])
def test_code_of_another_computer_is_not_loaded_unless_asked_for(plain, elsewhere, device):
    want, native, note = answer(plain, device)
    assert not native and "was not compiled here and is not loaded" in note and "--native loads it" in note
    got, native, note = answer(plain, device, native=True)
    assert native and not note and same(got, want)


def test_the_command_line_tells(plain, elsewhere, tmp_path, capfd):
    np.save(tmp_path / "x.npy", np.zeros((1, 6, 5, 3), np.int8))
    arguments = ["run", str(plain), "--input", str(tmp_path / "x.npy"), "--json"]
    told = []
    for options in ([], ["--native"], ["--no-native"]):
        assert main([*arguments, *options]) == 0
        out, err = capfd.readouterr()
        told.append((json.loads(out)["native"], err.startswith("nnloom: note: ") and "--native loads it" in err))
        assert err.count("\n") <= 1
    assert told == [(False, True), (True, False), (False, False)]


@pytest.mark.parametrize("verb", ["run", "serve", "simulate"])
@pytest.mark.parametrize(("option", "want"), [([], None), (["--native"], True), (["--no-native"], False)])
def test_every_command_that_loads_code_takes_the_option(verb, option, want, plain, monkeypatch, tmp_path, capfd):
    class Stop(ConfigError):
        pass

    seen = []

    def session(*_, native, **__):
        seen.append(native)
        raise Stop("that will do")

    monkeypatch.setattr("nnloom.runtime.InferenceSession", session)
    monkeypatch.setattr("nnloom.runtime.session.InferenceSession", session)
    np.save(tmp_path / "x.npy", np.zeros((1, 6, 5, 3), np.int8))
    files = [] if verb == "serve" else ["--input", str(tmp_path / "x.npy")]
    assert main([verb, str(plain), *files, *option]) == 2
    assert seen == [want] and "that will do" in capfd.readouterr().err


def test_code_that_was_exchanged_does_not_run(plain, tmp_path):
    """Sealed again, so that only its hash tells. Loading it leaves a trace."""
    path, trace = Path(shutil.copytree(plain, tmp_path / "artifact")), tmp_path / "trace"
    source = tmp_path / "evil.c"
    source.write_text(
        "#include <fcntl.h>\n#include <unistd.h>\n"
        f'__attribute__((constructor)) static void act(void) {{ close(open("{trace}", O_CREAT | O_WRONLY, 0600)); }}\n'
    )
    subprocess.run(["g++", "-shared", "-fPIC", "-o", str(path / "cpu.so"), str(source)], check=True)
    values = json.loads((path / "manifest.json").read_text())
    values["files"]["cpu.so"] = hashlib.sha256((path / "cpu.so").read_bytes()).hexdigest()
    seal(path, values)
    want = answer(plain, native=False)[0]
    for device in ("cpu", "model"):
        got, native, note = answer(path, device)
        assert same(got, want) and not native and "not compiled here" in note
    assert not trace.exists()
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        answer(path, native=True)
    assert trace.exists()


def test_an_artifact_without_native_code(tmp_path):
    make_artifact(tmp_path / "a", random_graph(np.random.default_rng(8), ["conv", "conv"]))
    with InferenceSession(tmp_path / "a", "cpu") as session:
        assert not session.native and not session.code_note
        session.run({info.name: np.zeros(info.shape, np.int8) for info in session.get_inputs()})
    with pytest.raises(ArtifactError, match="holds no native code"):
        InferenceSession(tmp_path / "a", "cpu", native=True)


def test_native_code_that_is_asked_for_needs_tvm(plain, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tvm", None)
    with pytest.raises(ToolMissingError):
        InferenceSession(plain, "cpu", native=True)
    assert answer(plain)[1:] == (False, "")


def test_the_notes_are_bounded(elsewhere, monkeypatch, tmp_path):
    monkeypatch.setattr(trust, "MOST", 10)
    names = [hashlib.sha256(bytes([i])).hexdigest() for i in range(12)]
    folder = tmp_path / "cache" / "nnloom" / "compiled-here"
    for index, name in enumerate(names[:10]):
        note_compiled_here(name)
        os.utime(folder / name, (index, index))
    assert was_compiled_here(names[0])  # and is the last one used now
    note_compiled_here(names[10])
    assert sorted(os.listdir(folder)) == sorted([names[0], *names[7:11]])
    assert not was_compiled_here(names[11]) and not was_compiled_here(names[1])


def test_without_a_cache_nothing_counts_as_compiled_here(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not was_compiled_here("0" * 64)
    with pytest.raises(ConfigError, match="XDG_CACHE_HOME"):
        note_compiled_here("0" * 64)
