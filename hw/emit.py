"""Amaranth to RTLIL and Verilog."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from amaranth.back import rtlil
from amaranth.lib import wiring

from nnloom.arch import fpga_tools
from nnloom.arch.errors import BuildError
from nnloom.arch.files import Scratch

from .naming import name_as_source

__all__ = ["ARCH_MODULES", "emit_portable_verilog", "emit_rtlil", "emit_verilog", "run_yosys", "source_hash"]


ARCH_MODULES = (
    *("config", "dma", "dtypes", "flash_image", "isa", "legality", "link", "loopnest", "memory_system", "numerics"),
    "usb",
)
"""What of `nnloom.arch` the RTL is made of."""


def source_hash(*packages: str) -> str:
    """Hash of the Python sources that generate RTL: `hw`, the modules of `arch` that it uses, further folders given."""
    digest = hashlib.sha256()
    here = Path(__file__).resolve().parent
    shared = [here.parent / "arch" / f"{name}.py" for name in ARCH_MODULES]
    folders = [here, *(Path(p) for p in packages)]
    for file in [*shared, *(file for folder in folders for file in sorted(folder.glob("**/*.py")))]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def run_yosys(script: str, *, folder: Path, native: bool = False) -> None:
    """Run a Yosys script with `folder` as its working directory.

    native: whether Yosys may be that on PATH, if it has the version of the package from PyPI. Verilog is written by the
    latter: its first line names the build.

    Raises
    ------
    ToolMissingError
        If the package is not installed.
    BuildError
        If Yosys fails; the message names the log.
    """
    (folder / "yosys.ys").write_text(script)
    arguments = ["-q", "-w", "^Ignoring module", "-l", "yosys.log", "yosys.ys"]
    code = fpga_tools.run(fpga_tools.YOSYS, arguments, folder, native=native)
    if code:
        raise BuildError(f"Yosys failed with exit code {code}; see {folder / 'yosys.log'}")


def emit_rtlil(component: wiring.Component, name: str) -> str:
    """RTLIL of a component and its submodules; source positions are left out.

    Names have parentheses for brackets: ABC takes `x[0]` for a bit of `x`, and Yosys then looks for that in vain.
    """
    text = rtlil.convert(component, name=name, emit_src=False)
    return re.sub(r"\\\S+", lambda name: name[0].replace("[", "(").replace("]", ")"), text)


def emit_verilog(component: wiring.Component, name: str, *, flatten: bool = False, attributes: bool = False) -> str:
    """Verilog of a component and its submodules, with ports named as their paths joined by two underscores.

    `flatten` gives one module of assignments and flip-flops, which event-driven simulators run far faster than
    processes that recompute a wide word when a byte of it changes. `attributes` keeps those of signals, memories and
    cells, for other synthesis tools.
    """
    # Multiplexers become functions, which need proper names.
    options = " ".join([*([] if flatten else ["-norename"]), *([] if attributes else ["-noattr"])])
    passes = "proc\nflatten\nopt_expr\nopt_merge\nopt_clean" if flatten else "proc -nomux -norom"
    return _write_verilog(emit_rtlil(component, name), passes, options)


def emit_portable_verilog(component: wiring.Component, name: str) -> str:
    """Verilog-2005 of a component for other people's tools: names as in the source (`nnloom.hw.naming`), a module for
    each submodule, and no process that waits for a change of what is constant, which simulators that start with X would
    keep at X."""
    text = _write_verilog(name_as_source(emit_rtlil(component, name)), "proc\nopt_expr\nopt_clean", "")
    return text.partition("\n")[2].lstrip()  # without the line that says where Yosys was built


def _write_verilog(rtlil: str, passes: str, options: str) -> str:
    with Scratch("nnloom-yosys") as scratch:
        folder = scratch.path
        (folder / "design.il").write_text(rtlil)
        run_yosys(f"read_rtlil design.il\n{passes}\nmemory_collect\nwrite_verilog {options} design.v\n", folder=folder)
        return (folder / "design.v").read_text()
