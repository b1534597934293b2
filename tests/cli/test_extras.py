"""Each part of the installation without the others, on a terminal. Here packages are hidden from the import; the slow
test installs a wheel beside the packages of one extra (`make test-extras`)."""

from __future__ import annotations

import re
import shutil
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest

from nnloom.arch.errors import ToolMissingError
from nnloom.arch.extras import EXTRAS, missing_package, require
from nnloom.boards import all_boards
from tests.terminal import Outcome, run_on_terminal

pytestmark = pytest.mark.model
ROOT = Path(__file__).resolve().parents[2]
HIDE = """
import importlib.metadata as metadata
import sys

hidden, there = sys.argv[1].split(), metadata.version
for name in hidden:
    sys.modules[name] = None


def version(package):
    if package.replace("-", "_") in hidden:
        raise metadata.PackageNotFoundError(package)
    return there(package)


metadata.version = version
from nnloom.cli import main

raise SystemExit(main(sys.argv[2:]))
"""


def with_extras(*extras: str) -> set[str]:
    """The modules to hide where only these extras are installed."""
    there = {module for extra in extras for module in EXTRAS[extra]}
    return {module for modules in EXTRAS.values() for module in modules} - there


def nnloom(hidden: set[str], *arguments: str, cwd: Path) -> Outcome:
    return run_on_terminal([sys.executable, "-c", HIDE, " ".join(sorted(hidden)), *arguments], cwd=cwd)


@pytest.fixture(scope="module")
def stage(tmp_path_factory, artifacts):
    """An artifact and an input."""
    folder = tmp_path_factory.mktemp("stage")
    shutil.copytree(artifacts("tflite_micro_speech"), folder / "kws")
    np.save(folder / "x.npy", np.random.default_rng(8).integers(-128, 128, (1, 49, 40, 1), np.int8))
    (folder / "m.tflite").write_bytes(b"\0\0\0\0TFL3")
    return folder


def test_the_list_of_extras_is_that_of_the_installation():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    brought = packages_distributions()
    for extra, modules in EXTRAS.items():
        if extra == "torch" and not set(modules) <= brought.keys():
            continue  # not of nnloom[dev]
        requirements = list(project[extra])
        for others in re.findall(r"nnloom\[([\w,-]+)\]", " ".join(requirements)):
            requirements += [text for other in others.split(",") for text in project[other]]
        names = {re.split(r"[\[=<>;\s]", text)[0].lower().replace("_", "-") for text in requirements} - {"nnloom"}
        listed = {name.lower().replace("_", "-") for module in modules for name in brought[module]}
        assert names <= listed, f"{extra}: {names - listed} brings no module of EXTRAS"
        # cocotb brings the first, dask[distributed] the second
        assert listed - {"find-libpython", "distributed"} <= names, f"{extra}: nothing brings {listed - names}"


def test_a_missing_module_is_named_with_its_extra(monkeypatch):
    require("sim", "amaranth")
    monkeypatch.setitem(sys.modules, "amaranth", None)
    with pytest.raises(ToolMissingError, match=r"amaranth is not installed; pip install 'nnloom\[sim\]'"):
        require("sim", "cocotb", "amaranth")
    assert str(missing_package("dask.distributed")) == "dask is not installed; pip install 'nnloom[explore]'"
    assert "nnloom doctor" in str(missing_package("tomli"))


@pytest.mark.parametrize("device", ["cpu", "model"])
def test_the_base_installation_runs_on_a_terminal(stage, device):
    outcome = nnloom(
        with_extras(), "run", "kws", "--input", "x.npy", "--device", device, "--output", "y.npy", cwd=stage
    )
    assert outcome.code == 0, outcome.text
    assert "largest at" in outcome.text and len(outcome.lines) <= 3
    assert np.load(stage / "y.npy").dtype == np.int8


@pytest.mark.parametrize("command", ["boards", "doctor", "zoo list", "inspect kws", "--version"])
def test_what_needs_no_package_works_without(stage, command):
    outcome = nnloom(with_extras(), *command.split(), cwd=stage)
    assert outcome.code == 0 and "Traceback" not in outcome.text, outcome.text


MISSING = {
    "compile m.tflite": "tvm is not installed; pip install 'nnloom[compiler]'",
    "compile m.tflite --config auto": "tvm is not installed; pip install 'nnloom[compiler]'",
    "explore m.tflite": "tflite is not installed; pip install 'nnloom[compiler]'",
    "explore m.tflite --plot front.svg": "Matplotlib is not installed; pip install 'nnloom[explore]'",
    "quantize m.tflite --calibrate x.npy": "tflite is not installed; pip install 'nnloom[quantize]'",
    "quantize m.onnx --calibrate x.npy": "onnx is not installed; pip install 'nnloom[onnx]'",
    "compile m.pt2": "tvm is not installed; pip install 'nnloom[compiler]'",
    "run kws --input x.npy --device sim": "amaranth is not installed; pip install 'nnloom[sim]'",
    "simulate kws --input x.npy": "amaranth is not installed; pip install 'nnloom[sim]'",
    "export kws": "amaranth is not installed; pip install 'nnloom[sim]'",
    "simulate kws --serve": "amaranth is not installed; pip install 'nnloom[sim]'",
    "inspect kws --measured": "amaranth is not installed; pip install 'nnloom[sim]'",
    "build kws": "amaranth is not installed; pip install 'nnloom[fpga]'",
    **{
        f"build --board {board.name}": "amaranth is not installed; pip install 'nnloom[fpga]'"
        for board in all_boards()
        if board.toolchain != "vivado"
    },
    "serve kws": "is not installed; pip install 'nnloom[serve]'",
    "run kws --input x.npy --device pynq": "the PYNQ library is not installed; run this on a PYNQ board",
}


@pytest.mark.parametrize("command", MISSING)
def test_a_command_whose_package_is_missing_names_it(stage, command):
    before = sorted(path.name for path in stage.iterdir())
    outcome = nnloom(with_extras(), *command.split(), cwd=stage)
    assert outcome.code == 3, outcome.text
    assert MISSING[command] in outcome.error
    assert sorted(path.name for path in stage.iterdir()) == before


@pytest.mark.parametrize("extra", EXTRAS)
def test_each_extra_alone_refuses_the_rest(stage, extra):
    """With one extra, what needs another is refused; nothing ends with a traceback."""
    hidden = with_extras(extra)
    needs = {
        "compile m.tflite": "compiler",
        "run kws --input x.npy --device sim": "sim",
        "build --board icebreaker --no-cache": "fpga-ice40",
        "explore m.tflite --plot front.svg": "explore",
        "serve kws": "serve",
    }
    for command, needed in needs.items():
        if set(EXTRAS[needed]) & hidden:
            outcome = nnloom(hidden, *command.split(), cwd=stage)
            assert outcome.code in (2, 3), f"{command}: {outcome.text}"
            named = f"pip install 'nnloom[{needed.partition('-')[0]}"
            assert outcome.code == 2 or named in outcome.error or "sim" in hidden
            assert outcome.error
