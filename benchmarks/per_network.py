"""The configuration that the tool chooses for each network on the ULX3S-85F: cycles in RTL, clock after routing.

    python benchmarks/per_network.py                           search and simulate; the rest as it was measured before
    python benchmarks/per_network.py --place anomaly_detection first synthesize, place, route and pack the chosen system
    ... --clock 125 --seed 2                                   at this system clock, beginning with this seed

The search is that of `nnloom compile --config auto`. One random input runs in RTL, each write compared with the golden
model's. Placement tries the seeds that `nnloom build` tries, until one meets the clock, by default the board's. Where
the board's own configuration is chosen, its placement is that of benchmarks/boards.py. Writes
benchmarks/results/per_network.json and the table in docs/exploration.md.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from cost_model import simulate
from run import NETWORKS, write_readme

from boards import digest, place, system_rtlil
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import NnloomError
from nnloom.arch.files import write_atomically
from nnloom.boards import Board, flow, get
from nnloom.compiler import zoo
from nnloom.compiler.emit import emit
from nnloom.compiler.explore import EVERYTHING, explore_graphs
from nnloom.compiler.frontend import read_model
from nnloom.compiler.partition import partition
from nnloom.runtime.devices.verified import VerifiedRtlDevice

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "exploration.md"
RESULTS = ROOT / "benchmarks" / "results" / "per_network.json"
BOARDS = ROOT / "benchmarks" / "results" / "boards.json"
BEGIN, END = "<!-- per network: written by benchmarks/per_network.py -->", "<!-- end of per network -->"
BOARD = "ulx3s-85f"


def place_until_met(board: Board, config: AcceleratorConfig, first_seed: int) -> dict[str, Any]:
    """The first placement that meets the board's clock, or the last; `reached`: seed -> MHz of all that were tried."""
    reached: dict[str, float] = {}
    for seed in range(first_seed, first_seed + flow.SEEDS):
        placement = place(board, config, seed)
        reached[str(seed)] = placement["fmax_mhz"]
        if placement["timing_met"]:
            break
    return {**placement, "seed": seed, "reached": reached}


def placement_of_board(board: Board, rtlil: str) -> dict[str, Any] | None:
    """What benchmarks/boards.py measured of the board's own system, if it was this one."""
    for row in json.loads(BOARDS.read_text())["boards"]:
        if row["name"] == board.name and row["placement"] and row["placement"]["rtlil_sha256"] == rtlil:
            return {"seed": row["seed"], **row["placement"]}
    return None


def measure(
    name: str, old: dict[str, Any], *, placed: bool, clock_hz: float | None = None, seed: int | None = None
) -> dict[str, Any]:
    """The row of one network; `placed`: place its configuration again, at `clock_hz`, beginning with `seed`.

    Default: the board's. What was placed before keeps its clock.
    """
    board = get(BOARD)
    graphs = partition(read_model(zoo.fetch(name)), EVERYTHING).graphs
    best = explore_graphs(graphs, model=name, board=board).chosen
    config = best.config
    if config != board.config:
        board = replace(board, clock_hz=clock_hz or (old["clock_mhz"] * 1e6 if old and not placed else board.clock_hz))
    default = emit(board.config, graphs)
    with VerifiedRtlDevice() as device:
        cycles = simulate(device, config, emit(config, graphs))
    with VerifiedRtlDevice() as device:
        default_cycles = simulate(device, board.config, default)
    rtlil = digest(system_rtlil(board, config))
    if config == board.config:
        placement = placement_of_board(board, rtlil)
    elif placed:
        placement = place_until_met(board, config, board.seed if seed is None else seed)
    else:
        placement = old["placement"] if old.get("rtlil_sha256") == rtlil else None
    return {
        "network": name,
        "config": config.to_dict(),
        "cycles": cycles,
        "cycles_of_default": default_cycles,
        "clock_mhz": board.clock_hz / 1e6,
        "latency_us": round(cycles / board.clock_hz * 1e6, 1),
        "resources_estimated": best.resources.to_dict(),
        "rtlil_sha256": rtlil,
        "placement": placement,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row for each network."""
    lines = [
        "| network | pixels x lanes x taps, units | cycles | of the default | clock MHz | latency us | nextpnr MHz, "
        "seed | LUT4 | FF | DP16KD | MULT18X18D |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        config, placement = row["config"], row["placement"]
        shape = f"{config['pixels']} x {config['lanes']} x {config['taps']}, {config['requant_units']}"
        if AcceleratorConfig.from_dict(config) == get(BOARD).config:
            shape += " (the default)"
        elif config["row_triples"]:
            shape += ", row triples"
        cells = [row["network"].replace("_", " "), shape, f"{row['cycles']:,}", f"{row['cycles_of_default']:,}"]
        cells += [f"{row['clock_mhz']:g}", f"{row['latency_us']:,}"]
        names = ("LUT4", "TRELLIS_FF", "DP16KD", "MULT18X18D")
        if placement:
            missed = "" if placement["timing_met"] else " (clock missed)"
            cells.append(f"{placement['fmax_mhz']:g}, {placement['seed']}{missed}")
            cells += [f"{placement['resources'][n]['used']:,}" for n in names]
        else:
            cells.append("not placed")
            cells += [f"{row['resources_estimated'][n]:,} (est.)" for n in names]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", nargs="+", default=[], choices=NETWORKS, metavar="NETWORK")
    parser.add_argument("--clock", type=float, metavar="MHZ", help="of what is placed (default: the board's)")
    parser.add_argument("--seed", type=int, help="placement seed to begin with (default: the board's)")
    options = parser.parse_args()
    old = {row["network"]: row for row in json.loads(RESULTS.read_text())["networks"]} if RESULTS.exists() else {}
    try:
        rows = []
        for name in NETWORKS:
            placed = name in options.place
            wanted = dict(clock_hz=options.clock and options.clock * 1e6, seed=options.seed) if placed else {}
            rows.append(measure(name, old.get(name, {}), placed=placed, **wanted))
    except NnloomError as error:
        parser.exit(1, f"error: {error}\n")
    text = ",\n  ".join(json.dumps(row) for row in rows)
    head = '{\n "command": "python benchmarks/per_network.py",\n "networks": [\n  '
    write_atomically(RESULTS, f"{head}{text}\n ]\n}}\n".encode())
    markdown = table(rows)
    write_readme(markdown, DOCUMENT, begin_mark=BEGIN, end_mark=END)
    print(markdown)
    return int(any(row["placement"] and not row["placement"]["timing_met"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
