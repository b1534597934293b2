"""Placements of one netlist with many seeds, side by side: the fastest is taken."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnloom.arch.errors import BuildError
from nnloom.arch.jobs import run_jobs

from . import flow
from .board import Board

__all__ = ["Netlist", "Placement", "place_seed", "sweep"]

SWEEP_FILE = "sweep.json"
"""Beside the bitstream: the clock that each seed reached, in MHz; null where place and route failed."""


@dataclass(frozen=True, kw_only=True)
class Netlist:
    """What `flow.synthesize` makes, to be placed anywhere."""

    board: Board
    clock_hz: float
    files: dict[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What came of a seed."""

    fmax_mhz: float
    """0 if place and route failed"""
    resources: dict[str, dict[str, int]]
    files: dict[str, bytes]
    """the bitstream and the tools' reports; empty if the clock is missed"""
    error: str = ""
    """why place and route failed"""


def place_seed(seed: int, netlist: Netlist) -> Placement:
    """Place, route and, if the clock is met, pack a netlist with one seed.

    Raises
    ------
    ToolMissingError
    """
    board = netlist.board
    with tempfile.TemporaryDirectory(prefix="nnloom-") as temporary:
        folder = Path(temporary)
        for name, data in netlist.files.items():
            (folder / name).write_bytes(data)
        try:
            fmax, resources = flow.route(board, folder, clock_hz=netlist.clock_hz, seed=seed)
            if fmax * 1e6 < netlist.clock_hz:
                return Placement(fmax_mhz=fmax, resources=resources, files={})
            flow.toolchain(board).pack(board, folder)
        except BuildError as error:
            return Placement(fmax_mhz=0, resources={}, files={}, error=str(error))
        made = {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in netlist.files}
        return Placement(fmax_mhz=fmax, resources=resources, files=made)


def sweep(
    board: Board,
    folder: Path,
    *,
    clock_hz: float,
    seeds: Sequence[int],
    scheduler: str | None = None,
    workers: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[int, Placement]:
    """Place what `flow.synthesize` left in `folder` with all seeds, and put the fastest placement's files there.

    Parameters
    ----------
    scheduler, workers
        As of `nnloom.arch.jobs.run_jobs`.

    Returns
    -------
    The seed that reached the highest clock, the lowest of equals, and what came of it.

    Raises
    ------
    BuildError
        If none meets the clock.
    ConfigError, ToolMissingError
        As `run_jobs` and the tools.
    """
    say = progress or (lambda _: None)
    names = ("top.json", flow.toolchain(board).constraints_file)
    netlist = Netlist(board=board, clock_hz=clock_hz, files={name: (folder / name).read_bytes() for name in names})
    found: dict[int, Placement] = {}
    say(f"place and route (nextpnr) with {len(seeds)} seeds")
    for seed, placement in run_jobs(place_seed, list(seeds), netlist, scheduler=scheduler, workers=workers):
        found[seed] = placement
        what = f"{placement.fmax_mhz:.2f} MHz" if placement.fmax_mhz else "failed"
        say(f"place and route (nextpnr): seed {seed} {what}, {len(found)} of {len(seeds)} seeds")
    reached = {seed: found[seed].fmax_mhz for seed in sorted(found)}
    (folder / SWEEP_FILE).write_text(json.dumps({str(s): round(f, 2) or None for s, f in reached.items()}) + "\n")
    best = max(reached, key=lambda seed: (reached[seed], -seed))
    if not found[best].files:
        errors = {placement.error for placement in found.values() if placement.error}
        clocks = ", ".join(f"{fmax:.1f}" if fmax else "failed" for fmax in reached.values())
        raise BuildError(
            f"timing not met: {clocks} MHz with seeds {', '.join(map(str, reached))}, the clock is "
            f"{clock_hz / 1e6:g} MHz; try other --seeds or a lower --clock" + "".join(f" ({e})" for e in sorted(errors))
        )
    for name, data in found[best].files.items():
        (folder / name).write_bytes(data)
    return best, found[best]
