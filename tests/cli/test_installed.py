"""A wheel of nnloom beside the packages of one extra and nothing else, on a terminal: `make test-extras`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

from nnloom.arch.extras import EXTRAS
from nnloom.compiler import compile as compile_to_artifact
from tests.artifacts import SMALL
from tests.terminal import Outcome, run_on_terminal

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.model]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy: a build leaves folders beside the sources.
    source = folder / "source"
    ignore = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(ROOT, source, ignore=ignore, symlinks=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("nnloom-*.whl")
    return path


def _requirements(found: Distribution, extras: set[str]) -> list[Requirement]:
    environments = [{"extra": extra} for extra in (extras or {""})]
    requirements = [Requirement(text) for text in found.requires or []]
    return [r for r in requirements if r.marker is None or any(r.marker.evaluate(e) for e in environments)]


def _closure(extra: str) -> dict[str, Distribution]:
    """Every distribution that `nnloom[extra]` needs, from those that are installed here."""
    todo, seen, result = [("nnloom", {extra} - {"base"})], set(), {}
    while todo:
        name, extras = todo.pop()
        key = (re.sub(r"[-_.]+", "-", name).lower(), frozenset(extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            pytest.skip(f"{name} is not installed here")
        if key[0] != "nnloom":
            result[key[0]] = found
        # Without extras those of the plain package count, too.
        todo += [(r.name, set(r.extras)) for r in _requirements(found, extras | {""})]
    return result


def _environment(folder: Path, extra: str, wheel: Path) -> Path:
    """A virtual environment with links to the packages of an extra, and the wheel. Returns its folder of commands."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    for found in _closure(extra).values():
        for file in found.files or []:
            top = file.parts[0]
            source = Path(str(found.locate_file(top)))
            if top != ".." and top != "__pycache__" and source.exists() and not (packages / top).exists():
                (packages / top).symlink_to(source)
    command = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*command, "--no-deps", "--no-index", "--no-compile", str(wheel)], check=True)
    return folder / "bin"


@pytest.fixture(scope="module")
def stage(tmp_path_factory, model_path):
    """A model, an artifact for a small engine, and an input."""
    folder = tmp_path_factory.mktemp("stage")
    shutil.copy(model_path("tflite_micro_speech"), folder / "m.tflite")
    compile_to_artifact(folder / "m.tflite", output=folder / "m", config=replace(SMALL, weight_words=1024))
    np.save(folder / "x.npy", np.random.default_rng(8).integers(-128, 128, (1, 49, 40, 1), np.int8))
    return folder


COMMANDS = {
    "base": ["run m --input x.npy", "run m --input x.npy --device model", "inspect m", "boards", "zoo list", "doctor"],
    "compiler": ["compile m.tflite -o new", "run new --input x.npy"],
    "sim": ["run m --input x.npy --device sim", "simulate m --input x.npy"],
    "fpga": ["program m", "build m --clock 1000"],
    "explore": ["explore m.tflite --plot front.svg", "compile m.tflite --config auto -o auto"],
    "serve": ["serve m --device cpu --port 0"],
}
REFUSED = {
    "program m": "no bitstream there; run 'nnloom build m' first",
    "build m --clock 1000": "no PLL setting makes 1000 MHz",
}
FPGA = """
import tempfile
from pathlib import Path
from nnloom.boards import all_boards
from nnloom.boards.flow import system_rtlil, toolchain
from nnloom.boards.resources import lut_multipliers
for board in all_boards():
    if board.toolchain != "vivado":
        assert system_rtlil(board, board.config, 0).startswith("attribute")
        with tempfile.TemporaryDirectory() as folder:
            assert toolchain(board).nextpnr(board, ["--version"], Path(folder)) == 0
"""


@pytest.mark.parametrize("extra", COMMANDS)
def test_an_installation_with_one_extra(extra, wheel, stage, tmp_path):
    commands = _environment(tmp_path / "environment", extra, wheel)
    env = {**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
    env.pop("PYTHONPATH", None)

    def nnloom(command: str, **options: str) -> Outcome:
        arguments = [str(commands / "nnloom"), *command.split()]
        return run_on_terminal(arguments, env=env, cwd=stage, seconds=600, **options)

    version = run_on_terminal([str(commands / "python"), "-m", "nnloom", "--version"], env=env, cwd=tmp_path)
    assert version.code == 0 and re.fullmatch(r"nnloom \d+\.\d+\.\d+", version.lines[0]), version.text
    for command in COMMANDS[extra]:
        outcome = nnloom(command, **({"interrupt": "Ctrl-C ends it"} if extra == "serve" else {}))
        if command in REFUSED:
            assert outcome.code == 2 and REFUSED[command] in outcome.error
        else:
            # An interrupt as quick as this one may come before the server takes it for its end.
            codes = (0, 130) if extra == "serve" else (0,)
            assert outcome.code in codes and "Traceback" not in outcome.text, f"{command}: {outcome.text}"
    if extra == "fpga":
        checked = run_on_terminal([str(commands / "python"), "-c", FPGA], env=env, cwd=tmp_path, seconds=600)
        assert checked.code == 0, checked.text
    if "compiler" not in extra and "tvm" not in EXTRAS.get(extra, ()):
        refused = nnloom("compile m.tflite -o refused")
        assert refused.code == 3 and "pip install 'nnloom[compiler]'" in refused.error
