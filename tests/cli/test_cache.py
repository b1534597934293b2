"""`nnloom cache`: sizes, what is cleared and what is not, leftovers of interrupted builds."""

from __future__ import annotations

import json
import os
import time

import pytest

from nnloom.arch.files import TEMPORARY, Scratch, build_in_cache
from nnloom.cli import main


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root = tmp_path / "nnloom"
    build_in_cache("sim", ["a"], lambda folder: (folder / "simulator").write_bytes(bytes(5000)) and None)
    build_in_cache("bitstreams", ["b"], lambda folder: (folder / "nnloom.bit").write_bytes(bytes(7000)) and None)
    (root / "compiled-here").mkdir()
    (root / "compiled-here" / ("0" * 64)).touch()
    return root


def leftover(folder, *, days):
    path = folder / f".key{TEMPORARY}{days}"
    path.mkdir()
    (path / "half").write_bytes(bytes(100))
    old = time.time() - days * 86400
    os.utime(path, (old, old))
    return path


def values(capsys, *arguments):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_sizes(cache, capsys):
    result = values(capsys, "cache")
    sizes = {folder["name"]: folder for folder in result["folders"]}
    assert list(sizes) == ["bitstreams", "compiled-here", "sim"]
    assert 5000 < sizes["sim"]["size"] < 5300 and sizes["sim"]["entries"] == 1
    assert result["bytes"] == sum(folder["size"] for folder in sizes.values()) and result["path"] == str(cache)
    assert main(["cache"]) == 0
    shown = capsys.readouterr().out
    assert "bitstreams" in shown and "12." in shown.splitlines()[-1]


def test_clear_leaves_what_runs_and_who_compiled(cache, capsys):
    with Scratch("key", cache / "sim") as running:
        result = values(capsys, "cache", "clear")
        assert running.path.is_dir()
    assert result["freed"] > 12000
    assert {f["name"]: f["entries"] for f in result["folders"]} == {"bitstreams": 0, "compiled-here": 1, "sim": 0}
    assert values(capsys, "cache", "clear", "compiled-here")["folders"][1]["entries"] == 0
    assert main(["cache", "clear", "nothing"]) == 2
    assert "bitstreams, compiled-here, sim" in capsys.readouterr().err


def test_one_folder_is_cleared(cache, capsys):
    values(capsys, "cache", "clear", "sim")
    assert not list((cache / "sim").iterdir()) and len(list((cache / "bitstreams").iterdir())) == 1


def test_leftovers_of_a_day_go(cache, capsys):
    old, new = leftover(cache / "sim", days=2), leftover(cache / "sim", days=0.5)
    with Scratch("key", cache / "bitstreams") as running:
        os.utime(running.path, (0, 0))
        assert values(capsys, "cache", "clean")["removed"] == [str(old)]
        assert running.path.is_dir() and new.is_dir() and not old.exists()
    # A later build of another kind of thing in that folder does so, too.
    old = leftover(cache / "sim", days=2)
    build_in_cache("sim", ["c"], lambda folder: None)
    assert not old.exists() and new.is_dir()
