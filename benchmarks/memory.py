"""The memory planner against an exact solver: `benchmarks/results/memory.json` and a table in docs/architecture.md.

The networks of the results table, as the compiler plans them, and the larger ones of `lifetimes.json`. For each: the
peak of every strategy, of the plan that the compiler takes, the optimum by CP-SAT with its proven lower bound, and
the SRAM that Vela needs (`vela.json`). "Shared objects" is the other family of the paper: tensors share whole buffers.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from exact_placement import solve
from lifetimes import read
from run import NETWORKS, RESULTS, ROOT, write_readme

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import NnloomError
from nnloom.arch.files import write_atomically
from nnloom.compiler import zoo
from nnloom.compiler.frontend import read_model
from nnloom.compiler.memory import ORDERS, SEARCH, Lifetime, breadth_bound, lifetimes, place_tensors, placements
from nnloom.compiler.partition import partition

SHARED = "shared objects"
LIMIT = 0.02
"""how much longer than the shortest plan ours may be"""
BEGIN, END = "<!-- memory: written by benchmarks/memory.py -->", "<!-- end of memory -->"


def zoo_lifetimes(name: str) -> list[Lifetime]:
    """Of the one region of a network of the zoo, for the default configuration."""
    config = AcceleratorConfig()
    (graph,) = partition(read_model(zoo.fetch(name)), config).graphs
    return lifetimes(config, graph)[1]


def shared_objects(lives: Sequence[Lifetime]) -> int:
    """Granules of buffers that are reused whole, by size: the smallest that is free for a tensor's whole life."""
    objects: list[list[Lifetime]] = []
    for life in sorted(lives, key=lambda life: -life.granules):
        free = [users for users in objects if not any(user.overlaps(life) for user in users)]
        if free:
            min(free, key=lambda users: users[0].granules).append(life)
        else:
            objects.append([life])
    return sum(users[0].granules for users in objects)


def measure(lives: Sequence[Lifetime], seconds: float) -> dict[str, Any]:
    """Peaks in bytes."""
    config = AcceleratorConfig()
    granule = config.granule * config.row_banks
    started = time.perf_counter()
    chosen = place_tensors(lives)
    planned = time.perf_counter() - started
    optimum = solve(lives, seconds=seconds)
    return {
        "tensors": len(lives),
        "strategies": {plan.strategy: plan.granules * granule for plan in placements(lives)}
        | {SHARED: shared_objects(lives) * granule},
        "planner": chosen.granules * granule,
        "strategy": chosen.strategy,
        "planner_milliseconds": round(1000 * planned, 1),
        "live_bytes": breadth_bound(lives) * granule,
        "optimum": optimum.granules * granule,
        "optimum_bound": optimum.bound * granule,
        "optimum_seconds": round(optimum.seconds, 3),
    }


def table(results: dict[str, Any]) -> str:
    """Markdown rows, KiB."""
    names = (*ORDERS, SEARCH, SHARED)
    titles = ["network", "tensors", *(n.removeprefix("greedy ") for n in names), "planner", "optimum", "Vela"]
    rows = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    for network, entry in results["networks"].items():
        peaks = [entry["strategies"][n] for n in names]
        vela = f"{entry['vela'] / 1024:,.1f}" if "vela" in entry else "-"
        bound = f" (at least {entry['optimum_bound'] / 1024:,.1f})" if entry["optimum"] > entry["optimum_bound"] else ""
        rows.append(
            [
                network.replace("_", " "),
                str(entry["tensors"]),
                *(f"{peak / 1024:,.1f}" for peak in (*peaks, entry["planner"])),
                f"{entry['optimum'] / 1024:,.1f}{bound}",
                vela,
            ]
        )
    lines = [f"| {' | '.join(row)} |" for row in rows]
    proven = sum(entry["optimum"] == entry["optimum_bound"] for entry in results["networks"].values())
    worst = max(entry["planner"] / entry["optimum_bound"] - 1 for entry in results["networks"].values())
    lines += [
        "",
        f"KiB. Optimum: OR-Tools {results['ortools']} CP-SAT, at most {results['limit_seconds']:g} s each, proven for "
        f"{proven} of {len(results['networks'])}. The planner is at most {100 * worst:.1f} % above it.",
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure and write; exit code 1 if a plan is too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="time limit of the solver (default: %(default)g)")
    options = parser.parse_args()
    vela = json.loads((RESULTS / "vela.json").read_text())["networks"]
    networks: dict[str, Any] = {}
    try:
        for name in NETWORKS:
            print(f"== {name}", file=sys.stderr)
            sram = min(entry["sram_bytes"] for engine, entry in vela[name].items() if engine.startswith("ethos"))
            networks[name] = {**measure(zoo_lifetimes(name), options.seconds), "vela": sram}
        for name, lives in read().items():
            print(f"== {name}", file=sys.stderr)
            networks[name] = measure(lives, options.seconds)
    except NnloomError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    results = {"ortools": version("ortools"), "limit_seconds": options.seconds, "networks": networks}
    write_atomically(RESULTS / "memory.json", (json.dumps(results, indent=1) + "\n").encode())
    text = table(results)
    write_readme(text, ROOT / "docs" / "architecture.md", begin_mark=BEGIN, end_mark=END)
    print(text)
    missed = [name for name, entry in networks.items() if entry["planner"] > (1 + LIMIT) * entry["optimum_bound"]]
    if missed:
        print(f"error: more memory than allowed: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
