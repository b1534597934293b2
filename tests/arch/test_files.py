"""Files and folders get to their place whole, and what a killed process leaves is removed or mended."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from nnloom.arch import files
from nnloom.arch.artifact import Artifact
from nnloom.arch.errors import ArtifactError, BuildError, ConfigError
from nnloom.arch.files import Scratch, build_in_cache, cache_directory, write_atomically
from nnloom.arch.output import check_output, write_output
from tests.artifacts import make_artifact
from tests.graphs import random_graph

KILL = "import os, signal\nkill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"


def killed(code: str, *arguments: object) -> None:
    """Run code in a process that kills itself."""
    done = subprocess.run([sys.executable, "-c", KILL + code, *map(str, arguments)], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr.decode()


SCRATCH = """
import sys
from pathlib import Path
from nnloom.arch.files import Scratch
scratch = Scratch("work", Path(sys.argv[1]))
(scratch.path / "half").mkdir()
(scratch.path / "half" / "done").write_text("x")
kill()
"""


def test_the_next_run_removes_what_a_killed_one_left(tmp_path):
    killed(SCRATCH, tmp_path)
    (left,) = tmp_path.iterdir()
    with Scratch("work", tmp_path) as living:
        assert not left.exists()
        with Scratch("work", tmp_path) as second:
            assert living.path.is_dir() and second.path.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_temporary_stays(tmp_path):
    names = ["work", ".work", ".work.nnloom", ".work.1234abcd", ".other.nnloom-tmp-abcdefgh"]
    for name in names:
        (tmp_path / name).mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("keep")
    (tmp_path / ".work.nnloom-tmp-abcdefgh").symlink_to(elsewhere)
    with Scratch("work", tmp_path):
        pass
    assert (elsewhere / "precious").read_text() == "keep"
    assert {path.name for path in tmp_path.iterdir()} >= set(names)


def test_without_a_place_it_is_in_the_systems_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Scratch("work") as scratch:
        assert scratch.path.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_without_locks_nothing_is_cleaned(tmp_path, monkeypatch):
    killed(SCRATCH, tmp_path)
    for replaced in (None, _NoLocks):
        monkeypatch.setattr(files, "fcntl", replaced)
        with Scratch("work", tmp_path) as scratch:
            assert len(list(tmp_path.iterdir())) == 2
            (scratch.path / "file").write_text("x")
        write_atomically(tmp_path / "y", b"y")
        assert (tmp_path / "y").read_bytes() == b"y"
        (tmp_path / "y").unlink()
        assert len(list(tmp_path.iterdir())) == 1


class _NoLocks:
    """A file system that knows no locks."""

    LOCK_EX = LOCK_NB = 0

    @staticmethod
    def flock(handle: object, operation: int) -> None:
        raise OSError(95, "Operation not supported")


def test_a_file_half_written_by_a_killed_process_is_removed(tmp_path):
    (tmp_path / "y.npy").write_bytes(b"earlier")
    code = "import sys\nfrom pathlib import Path\nfrom nnloom.arch import files\nfiles.os.replace = kill\n"
    killed(code + "files.write_atomically(Path(sys.argv[1]), b'new')", tmp_path / "y.npy")
    assert (tmp_path / "y.npy").read_bytes() == b"earlier" and len(list(tmp_path.iterdir())) == 2
    write_atomically(tmp_path / "y.npy", b"later")
    assert [path.name for path in tmp_path.iterdir()] == ["y.npy"]
    assert (tmp_path / "y.npy").read_bytes() == b"later"


def test_links_stay_and_devices_are_written_to(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "y")
    for data in (b"one", b"two"):
        write_atomically(tmp_path / "link", data)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "folder" / "y").read_bytes() == data
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(tmp_path / "pipe", b"bytes")
    assert os.read(reader, 10) == b"bytes"
    os.close(reader)
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "folder", b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link", "pipe"]


def test_a_place_that_cannot_be_written_is_named_as_the_user_did(tmp_path):
    for path in (tmp_path / "none" / "y.npy", Path("/proc/y.npy")):
        with pytest.raises(OSError, match="No such file") as error:
            write_atomically(path, b"x")
        assert error.value.filename == str(path)


@pytest.fixture
def artifact(tmp_path) -> Path:
    path = tmp_path / "kws"
    make_artifact(path, random_graph(np.random.default_rng(8), ["conv"]))
    return path


REPLACE = """
import shutil, sys
from pathlib import Path
from nnloom.arch import files
from nnloom.arch.output import write_output
output, point = Path(sys.argv[1]), sys.argv[2]
with write_output(output) as folder:
    shutil.copytree(output, folder, dirs_exist_ok=True)
    (folder / "report.json").write_text("new")
    if point == "before":
        kill()
    if point == "between":
        files.Scratch.rename = kill
    if point == "after":
        rename = files.Scratch.rename
        files.Scratch.rename = lambda *a: (rename(*a), kill())
"""


@pytest.mark.parametrize("point", ["before", "between", "after"])
@pytest.mark.parametrize("then", ["load", "compile"])
def test_a_kill_at_any_point_leaves_one_of_the_artifacts(artifact, point, then):
    (artifact / "report.json").write_text("old")
    killed(REPLACE, artifact, point)
    assert artifact.exists() == (point != "between")
    assert len(list(artifact.parent.iterdir())) > 1
    if then == "load":
        Artifact.load(artifact)
    else:
        check_output(artifact)
    assert (artifact / "report.json").read_text() == ("new" if point == "after" else "old")
    data = {path.name: path.read_bytes() for path in artifact.iterdir()}
    with write_output(artifact) as folder:
        for name, content in data.items():
            (folder / name).write_bytes(content)
    assert [path.name for path in artifact.parent.iterdir()] == ["kws"]


def test_an_error_leaves_the_artifact_and_nothing_else(artifact):
    before = {path.name: path.read_bytes() for path in artifact.iterdir()}
    with pytest.raises(BuildError), write_output(artifact) as folder:
        (folder / "half").write_text("x")
        raise BuildError("no")
    assert {path.name: path.read_bytes() for path in artifact.iterdir()} == before
    assert [path.name for path in artifact.parent.iterdir()] == ["kws"]


def test_a_link_to_an_artifact_stays_a_link(artifact):
    link = artifact.parent / "link"
    link.symlink_to("kws")
    with write_output(link) as folder:
        (folder / "new").write_text("x")
    assert link.is_symlink() and [path.name for path in artifact.iterdir()] == ["new"]


WEB_APP = {"name": "app", "icons": [], "start_url": "/"}


@pytest.mark.parametrize("manifest", [json.dumps(WEB_APP), "[]", "{", "", '{"format": "other"}', '"nnloom-artifact"'])
def test_a_folder_with_a_manifest_of_others_is_refused(tmp_path, manifest):
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "manifest.json").write_text(manifest)
    (folder / "index.html").write_text("<p>")
    with pytest.raises(ArtifactError, match="exists and is not an nnloom artifact; choose another -o"):
        check_output(folder)
    with pytest.raises(ArtifactError), write_output(folder):
        pass
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "manifest.json"]


def test_files_of_others_in_an_artifact_are_refused(artifact):
    for name in ("nnloom.bit", "nnloom.fs", "nnloom.bin", "nnloom.hwh"):
        (artifact / name).write_bytes(b"built")
    (artifact / "vivado").mkdir()
    check_output(artifact)
    (artifact / "y.npy").write_text("precious")
    with pytest.raises(ArtifactError, match=r"would be replaced, but holds 'y.npy', not of nnloom; move it or"):
        check_output(artifact)
    (artifact / "notes").mkdir()
    with pytest.raises(ArtifactError, match="holds 'notes' and 1 more"):
        check_output(artifact)


def test_a_file_that_came_during_the_compilation_is_not_lost(artifact):
    with pytest.raises(ArtifactError, match=r"'y[.]npy'"), write_output(artifact):
        (artifact / "y.npy").write_text("precious")
    assert (artifact / "y.npy").read_text() == "precious"
    assert [path.name for path in artifact.parent.iterdir()] == ["kws"]


def test_a_dangling_link_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(ArtifactError, match="not a directory"):
        check_output(tmp_path / "link")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "nnloom"


def test_a_damaged_entry_of_the_cache_is_built_again(cache):
    calls = []

    def build(folder: Path) -> None:
        calls.append(folder)
        (folder / "sub").mkdir()
        (folder / "sub" / "program").write_bytes(b"code" * 100)

    def entry() -> Path:
        folder = build_in_cache("sim", ["a"], build)
        assert (folder / "sub" / "program").read_bytes() == b"code" * 100
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]
        return folder

    program = entry() / "sub" / "program"
    entry()
    assert len(calls) == 1
    (program.parent / "log").write_text("what a run adds does not matter")
    entry()
    assert len(calls) == 1
    damages = [
        lambda: program.write_bytes(b"code"),
        lambda: program.write_bytes(b"c0de" * 100),
        program.unlink,
        lambda: (program.parent.parent / files.SEAL_FILE).write_text("[]"),
        lambda: (program.parent.parent / files.SEAL_FILE).unlink(),
    ]
    for count, damage in enumerate(damages, 2):
        damage()
        entry()
        assert len(calls) == count
    build_in_cache("sim", ["a"], build, again=True)
    assert len(calls) == len(damages) + 2


def test_a_failed_build_is_kept_and_the_next_one_tries_again(cache):
    def fail(folder: Path) -> None:
        (folder / "log").write_text("why")
        raise BuildError(f"no; see {folder / 'log'}")

    for _ in range(2):
        with pytest.raises(BuildError) as error:
            build_in_cache("sim", ["a"], fail)
        log = Path(str(error.value).split("see ")[1])
        assert log.read_text() == "why" and len(list(log.parent.parent.iterdir())) == 1
    build_in_cache("sim", ["a"], lambda folder: (folder / "x").write_text("x"))


def test_a_full_disk_is_told(cache, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ConfigError, match="nnloom/sim: No space left on device; free some, or set XDG_CACHE_HOME"):
        build_in_cache("sim", ["a"], full)
    assert not [path for path in (cache / "sim").iterdir() if path.is_dir()]
    (tmp_path / "y").write_bytes(b"earlier")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left") as error:
        write_atomically(tmp_path / "y", b"new")
    assert error.value.filename == str(tmp_path / "y") and (tmp_path / "y").read_bytes() == b"earlier"


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    with pytest.raises(ConfigError, match=r"file/cache/nnloom/sim: cannot write .*; set XDG_CACHE_HOME to another"):
        cache_directory("sim")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match=r"Permission denied.*XDG_CACHE_HOME"):
        cache_directory("sim")


def test_a_user_without_a_home_is_told_the_variable(monkeypatch):
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    with pytest.raises(ConfigError, match="no home directory; set XDG_CACHE_HOME"):
        cache_directory("sim")
