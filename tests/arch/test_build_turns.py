"""Processes that want the same build at the same time: one makes it."""

from __future__ import annotations

import subprocess
import sys

import pytest

BUILD = """
import os, sys, time
from pathlib import Path
from nnloom.arch.errors import BuildError
from nnloom.arch.files import build_in_cache

def build(folder):
    with open(sys.argv[1], "a") as log:
        log.write(f"{os.getpid()}\\n")
    time.sleep(0.5)
    if sys.argv[3] == "fail":
        raise BuildError("no")
    if sys.argv[3] == "die" and len(open(sys.argv[1]).readlines()) == 1:
        os.kill(os.getpid(), 9)
    (folder / "result").write_text("x" * 1000)

time.sleep(max(0, float(sys.argv[2]) - time.time()))
print(build_in_cache("test", ["same"], build) / "result")
"""


@pytest.mark.parametrize(("fate", "builds"), [("live", 1), ("die", 2), ("fail", 4)])
def test_one_of_several_processes_builds(tmp_path, monkeypatch, fate, builds):
    """If it is killed, or fails, the next one does."""
    import time

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    log = tmp_path / "log"
    start = str(time.time() + 1)
    command = [sys.executable, "-c", BUILD, str(log), start, fate]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert len(log.read_text().split()) == builds
    codes = sorted(process.returncode for process in processes)
    assert codes == {"live": [0, 0, 0, 0], "die": [-9, 0, 0, 0], "fail": [1, 1, 1, 1]}[fate], outputs
    places = {out for out, _ in outputs if out}
    if fate != "fail":
        (place,) = places
        with open(place.strip()) as result:
            assert result.read() == "x" * 1000
    left = [path.name for path in (tmp_path / "cache" / "nnloom" / "test").iterdir()]
    assert not [name for name in left if name.endswith(".lock")] and len(left) == 1, left
