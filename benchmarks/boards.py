"""The table of boards: clock, memory, resources, latency of the networks, how far each board was tested.

    python benchmarks/boards.py                       latencies again, the rest as it was measured before
    python benchmarks/boards.py --place ulx3s-45f     first build the board's default system, as `nnloom build --board`
    python benchmarks/boards.py --usb ulx3s-25f       the same with the board's USB socket as the link to the host
    python benchmarks/boards.py --simulate ulx3s-45f  first run its networks in RTL, each write compared with the golden
                                                      model's
    python benchmarks/boards.py --virtual ulx3s-45f   first run them on the virtual board (RTL of the complete system
                                                      behind a terminal) by the serial driver; outputs compared
                                                      with the CPU's

Latency is the cost model's cycles at the board's clock, of what the engine takes of a network, with tensors in its
memories. Writes benchmarks/results/boards.json and the table in docs/boards.md. A bitstream that was built before is
taken from the user's cache.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from cost_model import digest, predict, simulate
from run import NETWORKS, random_inputs, write_readme

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import DeviceError, NnloomError
from nnloom.arch.files import write_atomically
from nnloom.arch.fpga_tools import YOSYS, version_of
from nnloom.boards import Board, all_boards, flow, get
from nnloom.boards.resources import lut_multipliers
from nnloom.boards.zynq import ZynqBoard
from nnloom.compiler import zoo
from nnloom.compiler.api import compile
from nnloom.compiler.fit import Fitted, fit
from nnloom.compiler.frontend import read_model
from nnloom.runtime import InferenceSession
from nnloom.runtime.devices.verified import VerifiedRtlDevice
from nnloom.sim.virtual_board import VirtualBoard

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "boards.md"
RESULTS = ROOT / "benchmarks" / "results" / "boards.json"
BEGIN, END = "<!-- boards: written by benchmarks/boards.py -->", "<!-- end of boards -->"


def identity(board: Board) -> dict[str, Any]:
    """What a measurement of a board belongs to, but for the RTL."""
    return {
        "device": board.device,
        "clock_mhz": board.clock_hz / 1e6,
        "seed": board.seed,
        "config": board.config.to_dict(),
    }


def is_of(row: dict[str, Any], board: Board) -> bool:
    """Whether what a row says was measured belongs to the board as it is, but for the RTL."""
    if not row:
        return False
    # A later option at its default makes no difference.
    same = AcceleratorConfig.from_dict(row["config"]) == board.config
    return same and all(row.get(key) == value for key, value in identity(board).items() if key != "config")


def system_rtlil(board: Board, config: AcceleratorConfig) -> str:
    """RTLIL of the board's system with a configuration."""
    return flow.system_rtlil(board, config, lut_multipliers(board, config))


def place(board: Board, config: AcceleratorConfig, seed: int) -> dict[str, Any]:
    """Synthesize, place, route and pack a system of a board; also where its clock is not reached."""
    started = time.monotonic()
    tools = flow.toolchain(board)
    with tempfile.TemporaryDirectory(prefix="nnloom-") as temporary:
        folder = Path(temporary)
        rtlil = system_rtlil(board, config)
        flow.synthesize(board, rtlil, folder)
        clock_hz = flow.system_clock_hz(board)
        fmax, resources = flow.route(board, folder, clock_hz=clock_hz, seed=seed)
        tools.pack(board, folder)
        return {
            "fmax_mhz": round(fmax, 2),
            "timing_met": fmax * 1e6 >= clock_hz,
            "resources": resources,
            **provenance(board, rtlil, folder / tools.bitstream_file),
            "seconds": round(time.monotonic() - started),
        }


def place_default(board: Board) -> dict[str, Any]:
    """The bitstream of a board's default system as `nnloom build --board` makes it, or made it before.

    `seed` is the first, from the board's on, that meets the clock; `clocks` are those of the device, MHz reached and
    MHz to be met; `seconds` are those from the RTLIL to the bitstream, when it was built.

    Raises
    ------
    BuildError
        If none does.
    """
    print(f"{board.name}: build of the default system", file=sys.stderr, flush=True)
    result, file = flow.build_system(board, board.config)
    if result.seed != board.seed:
        what = f"seed {board.seed} misses the clock, {result.seed} meets it: commit that one"
        print(f"{board.name}: {what}", file=sys.stderr)
    rtlil = file.with_name("top.il")
    clocks = json.loads(file.with_name("timing.json").read_text())["fmax"]
    return {
        "fmax_mhz": result.fmax_mhz,
        "clocks": {
            name: {kind: round(mhz, 2) for kind, mhz in clock.items()} for name, clock in sorted(clocks.items())
        },
        "timing_met": True,
        "seed": result.seed,
        "resources": result.resources,
        **provenance(board, rtlil.read_text(), file),
        "seconds": round(file.stat().st_mtime - rtlil.stat().st_mtime),
    }


def provenance(board: Board, rtlil: str, bitstream: Path) -> dict[str, Any]:
    """What a placement was made of, by which tools, and what came out."""
    tools = flow.toolchain(board)
    programs = {tool.package: version_of(tool) for tool in (YOSYS, tools.placer)}
    return {
        "bitstream": bitstream.name,
        "bitstream_bytes": bitstream.stat().st_size,
        "tools": programs | {name: version(name) for name in (*tools.packages, "amaranth")},
        "rtlil_sha256": digest(rtlil),
    }


def run_networks(board: Board, fitted: dict[str, Fitted]) -> dict[str, Any]:
    """Run what the engine takes of the networks in RTL, on a random input each. Returns the cycles that the RTL took.

    Raises
    ------
    NnloomError
        If a write is not the golden model's.
    """
    cycles = {}
    with VerifiedRtlDevice() as device:
        for name, network in fitted.items():
            cycles[name] = simulate(device, board.config, network.emitted)
    return {"cycles": cycles, "rtlil_sha256": digest(system_rtlil(board, board.config))}


def run_virtual(board: Board, networks: list[str]) -> dict[str, Any]:
    """Run networks on the virtual board, on two random inputs each.

    Raises
    ------
    NnloomError
        If an output is not the CPU's, or the driver gave up.
    """
    cycles: dict[str, int | None] = {}
    with VirtualBoard(board.config) as virtual, tempfile.TemporaryDirectory(prefix="nnloom-") as temporary:
        for name in networks:
            artifact = compile(zoo.fetch(name), board=board.name, output=Path(temporary) / name).path
            with (
                InferenceSession(artifact, "cpu") as cpu,
                InferenceSession(artifact, virtual.device, fallback=False) as session,
            ):
                for value in random_inputs(artifact)[:2]:
                    want, got = cpu.run(value[None]), session.run(value[None])
                    if any(not np.array_equal(got[output], want[output]) for output in want):
                        raise DeviceError(f"{board.name}: {name} differs on the virtual board")
                cycles[name] = session.last_cycles
            print(f"{board.name}: {name} on the virtual board, {cycles[name]} cycles", file=sys.stderr, flush=True)
    return {"cycles": cycles, "rtlil_sha256": digest(system_rtlil(board, board.config))}


def latencies(board: Board, fitted: dict[str, Fitted]) -> dict[str, dict[str, Any]]:
    """Network -> cycles and latency of what the engine takes, its share of the multiplications, what the host loads."""
    result: dict[str, dict[str, Any]] = {}
    for name, network in fitted.items():
        emitted = network.emitted
        cycles = predict(board.config, emitted)
        result[name] = {
            "cycles": cycles,
            "latency_us": round(cycles / board.clock_hz * 1e6, 1),
            "engine_share": round(network.engine_share, 4),
            "parts": emitted.parts,
            "bytes_loaded_per_inference": int(emitted.weights.size) + 4 * len(emitted.program) if emitted.parts else 0,
        }
    return result


def _resources(row: dict[str, Any]) -> str:
    if row["rtlil_sha256"] is None:
        return "[estimate of Yosys](zynq.md)"
    if row["placement"] is None:
        return "-"
    counts = row["placement"]["resources"].items()
    return ", ".join(f"{name} {v['used']:,} of {v['available']:,}" for name, v in counts)


def _tested(row: dict[str, Any]) -> str:
    def earlier(measurement: dict[str, Any], current: str = "rtlil_sha256") -> str:
        return "" if measurement["rtlil_sha256"] == row[current] else ", earlier RTL"

    parts = []
    if row["placement"]:
        met = "placed, timing met" if row["placement"]["timing_met"] else "placed, timing not met"
        parts.append(f"{met} ({row['placement']['fmax_mhz']:g} MHz{earlier(row['placement'])})")
    else:
        parts.append("not placed" if row["rtlil_sha256"] else "[Zynq](zynq.md): simulated, not placed")
    if row["simulation"]:
        names = ", ".join(name.replace("_", " ") for name in row["simulation"]["cycles"])
        parts.append(f"simulated ({names}{earlier(row['simulation'])})")
    if row["virtual"]:
        names = ", ".join(name.replace("_", " ") for name in row["virtual"]["cycles"])
        parts.append(f"on the virtual board ({names}{earlier(row['virtual'])})")
    if usb := row.get("usb"):
        parts.append(
            f"[with USB](usb.md) placed, timing met ({usb['fmax_mhz']:g} MHz{earlier(usb, 'usb_rtlil_sha256')})"
        )
    return "; ".join([*parts, "not on hardware"])


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: the boards, and what runs in parts."""
    titles = ["board", "device", "clock", "memory (weights, activations)", "resources"]
    titles += [name.replace("_", " ") for name in NETWORKS] + ["tested"]
    lines = ["| " + " | ".join(titles) + " |", "|---|---|---:|---:|---|" + "---:|" * len(NETWORKS) + "---|"]
    loads: list[str] = []
    for row in rows:
        cells = [f"`{row['name']}`", row["description"].split(", ")[1], f"{row['clock_mhz']:g} MHz"]
        cells += [f"{row['weight_bytes'] / 1024:g}, {row['activation_bytes'] / 1024:g} KiB", _resources(row)]
        for name in NETWORKS:
            network = row["networks"][name]
            parts = f" in {network['parts']} parts" if network.get("parts") else ""
            share = f" ({100 * network['engine_share']:.0f} % of it)" if network["engine_share"] < 1 else ""
            cells.append(f"{network['latency_us']:,} us{share}{parts}")
            if parts:
                loaded = network["bytes_loaded_per_inference"]
                seconds = f", {10 * loaded / row['baud']:.1f} s at {row['baud']:,} baud" if row["baud"] else ""
                loads.append(f"- `{row['name']}`, {name.replace('_', ' ')}: {loaded:,} bytes{seconds}")
        lines.append("| " + " | ".join([*cells, _tested(row)]) + " |")
    if any("% of it" in line for line in lines):
        lines += ["", "A share: that of the multiplications that the engine does in this time; the CPU does the rest."]
    if loads:
        title = "In parts, that is with weights that the host loads during each inference, besides the latency above:"
        lines += ["", title, "", *loads]
    return "\n".join(lines)


def main() -> int:
    """Measure and write."""
    placeable = [board.name for board in all_boards() if not isinstance(board, ZynqBoard)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", nargs="+", default=[], choices=placeable, metavar="BOARD")
    parser.add_argument("--usb", nargs="+", default=[], choices=placeable, metavar="BOARD")
    parser.add_argument("--simulate", nargs="+", default=[], choices=placeable, metavar="BOARD")
    parser.add_argument("--virtual", nargs="+", default=[], choices=placeable, metavar="BOARD")
    parser.add_argument("--seed", type=int, help="placement seed, to look for one (default: the board's)")
    options = parser.parse_args()
    if options.seed is not None:
        for name in options.place:
            placement = place(get(name), get(name).config, options.seed)
            print(f"{name}, seed {options.seed}: {placement['fmax_mhz']} MHz, {placement['resources']}")
        return 0
    old = {row["name"]: row for row in json.loads(RESULTS.read_text())["boards"]} if RESULTS.exists() else {}
    graphs = {name: read_model(zoo.fetch(name)) for name in NETWORKS}
    rows: list[dict[str, Any]] = []
    try:
        for board in all_boards():
            row = old.get(board.name, {})
            known = is_of(row, board)
            placement, simulation, virtual, usb = (
                row.get(key) if known else None for key in ("placement", "simulation", "virtual", "usb")
            )
            if board.name in options.place:
                placement = place_default(board)
            with_usb = flow.with_link(board, "usb") if board.name in options.usb or usb else None
            if board.name in options.usb:
                usb = place_default(with_usb)
            fitted = {name: fit(graph, board.config) for name, graph in graphs.items()}
            if board.name in options.simulate:
                simulation = run_networks(board, fitted)
            networks = latencies(board, fitted)
            if board.name in options.virtual:
                virtual = run_virtual(board, list(networks))
            rows.append(
                {
                    "name": board.name,
                    "description": board.description,
                    **identity(board),
                    "baud": board.baud,
                    "rtlil_sha256": digest(system_rtlil(board, board.config)) if board.name in placeable else None,
                    "weight_bytes": board.config.weight_words * board.config.weight_word_bytes,
                    "activation_bytes": board.config.activation_bytes,
                    "networks": networks,
                    "placement": placement,
                    "simulation": simulation,
                    "virtual": virtual,
                    "usb": usb,
                    "usb_rtlil_sha256": digest(system_rtlil(with_usb, board.config)) if with_usb else None,
                }
            )
    except NnloomError as error:
        parser.exit(1, f"error: {error}\n")
    text = ",\n  ".join(json.dumps(row) for row in rows)
    head = '{\n "command": "python benchmarks/boards.py",\n "boards": [\n  '
    write_atomically(RESULTS, f"{head}{text}\n ]\n}}\n".encode())
    markdown = table(rows)
    write_readme(markdown, DOCUMENT, begin_mark=BEGIN, end_mark=END)
    print(markdown)
    return int(any(row["placement"] and not row["placement"]["timing_met"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
