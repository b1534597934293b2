"""A person at a terminal: interrupts, names that it cannot show, places that cannot be written."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.terminal import interruptible, run_on_terminal

NNLOOM = [sys.executable, "-m", "nnloom"]
pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def stage(tmp_path_factory, artifacts, model_path):
    """A model, an artifact with callbacks to the accelerator, and more inputs than a person waits for."""
    folder = tmp_path_factory.mktemp("stage")
    shutil.copy(model_path("keyword_spotting"), folder / "m.tflite")
    shutil.copytree(artifacts("keyword_spotting"), folder / "kws")
    np.save(folder / "many.npy", np.zeros((20_000, 50, 10, 1), np.float32))
    np.save(folder / "x.npy", np.zeros((1, 50, 10, 1), np.float32))
    return folder


INTERRUPTED = {
    "run kws --input many.npy --device model --output y.npy": "running",
    "run kws --input many.npy --device cpu --output y.npy": "running",
    "compile m.tflite -o new": "compiling the CPU code",
    "compile m.tflite --config auto -o new": "evaluating",
    "explore m.tflite": "evaluating",
}


@pytest.mark.parametrize("command", INTERRUPTED)
def test_ctrl_c_is_one_line_and_leaves_nothing(stage, command):
    before = sorted(path.name for path in stage.iterdir())
    outcome = run_on_terminal([*NNLOOM, *command.split()], cwd=stage, interrupt=INTERRUPTED[command])
    assert outcome.code == 130, outcome.text
    assert outcome.error == "nnloom: error: interrupted"
    assert sorted(path.name for path in stage.iterdir()) == before


def test_an_interrupt_at_any_moment_of_tvms_callback(stage):
    """Sent from outside at many moments: some of them fall between TVM and the first line of the callback."""
    for attempt in range(3):
        command = [*NNLOOM, "run", "kws", "--input", "many.npy", "--device", "model"]
        process = subprocess.Popen(
            command,
            cwd=stage,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=interruptible,
        )
        assert process.stderr is not None
        while "running" not in process.stderr.readline():
            pass
        time.sleep(0.5 + 0.0137 * attempt)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert (process.returncode, error.splitlines()[-1:]) == (130, ["nnloom: error: interrupted"]), error
        assert "Traceback" not in error


def test_an_interrupt_while_the_command_is_loaded(tmp_path):
    code = """
import sys
class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "nnloom.cli.console":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupts())
from nnloom.cli import main
sys.exit(main(["boards"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "nnloom: error: interrupted\n")


def test_a_name_that_the_terminal_cannot_show(stage, tmp_path):
    shutil.copytree(stage / "kws", tmp_path / "größe-模型")
    for encoding in ("ascii", "utf-8"):
        env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        for command in (["inspect", "größe-模型"], ["build", "größe-模型", "--clock", "1000"]):
            outcome = run_on_terminal([*NNLOOM, *command], env=env, cwd=tmp_path)
            assert outcome.code == (0 if command[0] == "inspect" else 2), outcome.text
            assert "Traceback" not in outcome.text
        missing = run_on_terminal([*NNLOOM, "inspect", "größe"], env=env, cwd=tmp_path)
        assert missing.code == 2 and "no manifest.json there" in missing.error


@pytest.mark.parametrize(
    ("home", "message"), [({}, "no home directory"), ({"HOME": "/dev/null"}, "/dev/null/.cache/nnloom/zoo: cannot")]
)
def test_a_user_without_a_place_for_the_cache(tmp_path, home, message):
    env = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")} | home
    # A user whom the system does not know, as in containers.
    nobody = "import pwd\ndef unknown(uid): raise KeyError(uid)\npwd.getpwuid = unknown\n"
    code = nobody + "import sys\nfrom nnloom.cli import main\nsys.exit(main(sys.argv[1:]))"
    fetched = run_on_terminal([sys.executable, "-c", code, "zoo", "fetch", "keyword_spotting"], env=env, cwd=tmp_path)
    assert fetched.code == 2 and message in fetched.error and "set XDG_CACHE_HOME" in fetched.error
    for command in (["boards"], ["doctor"], ["--help"]):
        outcome = run_on_terminal([sys.executable, "-c", code, *command], env=env, cwd=tmp_path)
        assert outcome.code == 0 and "Traceback" not in outcome.text, outcome.text
    assert list(tmp_path.iterdir()) == []


def test_a_killed_compilation_leaves_what_the_next_one_removes(stage, tmp_path):
    shutil.copy(stage / "m.tflite", tmp_path)
    env = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    command = [*NNLOOM, "compile", "m.tflite", "-o", "out"]
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not _temporary(tmp_path) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert _temporary(tmp_path) and not (tmp_path / "out").exists()
    assert subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, check=False).returncode == 0
    assert not _temporary(tmp_path) and not _temporary(tmp_path / "tmp")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.tflite", "out", "tmp"]


def _temporary(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if ".nnloom-tmp-" in path.name]
