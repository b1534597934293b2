"""The same networks through Arm's production compiler Vela: `benchmarks/results/vela.json` and a table in README.md.

Vela's own performance estimate for an Ethos-U55 and an Ethos-U85 with 128 and 256 multipliers stands beside the cycles
of `benchmarks/results/*.json` (RTL simulation, `benchmarks/run.py`). The fair memory mode is `Sram_Only`: weights are
on the chip, as ours are. Beside it the cycles with weights streamed from outside, Vela's usual case. Cycles times
multipliers is what a multiplier array of that size occupies; utilisation counts the MACs of convolutions and matrix
products for both.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from run import NETWORKS, ONE_PIXEL, RESULTS, write_readme

from nnloom.arch.errors import NnloomError, ToolMissingError
from nnloom.arch.files import write_atomically
from nnloom.compiler import zoo

SYSTEMS = {"ethos-u55": "Ethos_U55_High_End_Embedded", "ethos-u85": "Ethos_U85_SYS_DRAM_Low"}
"""Engine family -> its system in the configuration file that comes with Vela."""
ENGINES = tuple(f"{family}-{multipliers}" for family in SYSTEMS for multipliers in (128, 256))
ON_CHIP, STREAMED = "Sram_Only", "Shared_Sram"
"""Vela's memory modes: weights in SRAM; weights in flash (U55) or DRAM (U85), activations in SRAM."""
BEGIN, END = "<!-- vela: written by benchmarks/vela.py -->", "<!-- end of vela -->"


NOTE = (
    f"Vela {{version}}, `--optimise Performance`, memory mode `{ON_CHIP}`: weights and activations on the chip, as "
    f"nnloom's; weights streamed: mode `{STREAMED}`, from flash (U55) or DRAM (U85). Vela's cycles are its own "
    "estimate and include softmax, nnloom's are counted in RTL simulation and leave it to the CPU. SRAM: activations. "
    "Ratio: cycles x multipliers against 144 of nnloom."
)
PUBLISHED_NOTE = (
    "Published elsewhere for the same networks, as their authors give them. Theirs are latencies of a whole inference "
    "on a board, with whatever their processor does of it. nnloom's latencies are the accelerator's cycles at the "
    "clock of place and route: without what the CPU computes (quantize, softmax) and without moving input and output, "
    "which takes longer than the inference over the serial port of these boards. Nothing of nnloom has run on a board."
)
PUBLISHED = (
    "| fpgaConvNet, ZedBoard, 143 MHz, 188 / 211 DSP (MLPerf Tiny closed) | keyword spotting | 46.3 k | 0.324 |",
    "| | image classification | 58.8 k | 0.411 |",
    "| fpgaConvNet, ZC706, 187 - 200 MHz, 525 / 564 DSP (MLPerf Tiny closed) | image classification | 27.5 k | 0.147 |",
    "| | visual wake words | 144 k | 0.720 |",
    "| GreenWaves GAP9, 370 MHz (MLPerf Tiny closed) | keyword spotting | | 0.475 |",
    "| | image classification | | 0.616 |",
    "| | visual wake words | | 1.125 |",
    "| | anomaly detection | | 0.176 |",
    "| hls4ml AD08, PYNQ-Z2 (a smaller, changed model) | anomaly detection | | 0.0187 |",
)
"""Rows of results that others published."""


def vela(model: Path, engine: str, mode: str, folder: Path) -> dict[str, str]:
    """Vela's summary of one network on one engine."""
    command = [sys.executable, "-m", "ethosu.vela", str(model), "--accelerator-config", engine]
    command += [
        "--config",
        "Arm/vela.ini",
        "--system-config",
        SYSTEMS[engine.rpartition("-")[0]],
        "--memory-mode",
        mode,
    ]
    command += ["--optimise", "Performance", "--output-dir", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    summaries = sorted(folder.glob(f"{model.stem}_summary_*.csv"))
    if result.returncode or not summaries:
        raise ToolMissingError(f"Vela failed on {model.name}; pip install ethos-u-vela ({result.stderr.strip()[-80:]})")
    with summaries[0].open() as file:
        (row,) = csv.DictReader(file)
    return row


def engine_figures(model: Path, engine: str, folder: Path) -> dict[str, float]:
    """Cycles and activation memory of one network on one engine."""
    rows = {}
    for mode in (ON_CHIP, STREAMED):
        place = folder / engine / mode
        place.mkdir(parents=True, exist_ok=True)
        rows[mode] = vela(model, engine, mode, place)
    return {
        "multipliers": int(engine.rpartition("-")[2]),
        "cycles": float(rows[ON_CHIP]["cycles_total"]),
        "cycles_streamed": float(rows[STREAMED]["cycles_total"]),
        "sram_bytes": float(rows[ON_CHIP]["sram_memory_used"]) * 1024,
    }


def measure() -> dict[str, Any]:
    """All networks on all sizes, beside ours."""
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="nnloom-vela-") as temporary:
        for name in NETWORKS:
            model = zoo.fetch(name)
            entry: dict[str, Any] = {}
            for suffix in (ONE_PIXEL, ""):
                ours = json.loads((RESULTS / f"{name}{suffix}.json").read_text())
                entry["macs"] = ours["macs"]
                entry[f"nnloom{suffix}"] = {
                    "multipliers": ours["mac_units"],
                    "cycles": ours["cycles_measured"],
                    "sram_bytes": ours["memory"]["activations_peak_bytes"],
                }
            for engine in ENGINES:
                entry[engine] = engine_figures(model, engine, Path(temporary))
            rows[name] = entry
    return {"vela": version("ethos-u-vela"), "networks": rows}


def table(results: dict[str, Any]) -> str:
    """Markdown rows."""
    titles = [
        "network",
        "engine",
        "cycles",
        "weights streamed",
        "cycles x multipliers",
        "utilisation",
        "SRAM KiB",
        "ratio",
    ]
    rows = [titles, ["---", "---", *["---:"] * (len(titles) - 2)]]
    for name, entry in results["networks"].items():
        one = entry[f"nnloom{ONE_PIXEL}"]
        own = one["cycles"] * one["multipliers"]
        for engine in (f"nnloom{ONE_PIXEL}", "nnloom", *ENGINES):
            figures = entry[engine]
            work = figures["cycles"] * figures["multipliers"]
            rows.append(
                [
                    name.replace("_", " "),
                    f"{engine.removesuffix(ONE_PIXEL)} ({figures['multipliers']})",
                    f"{figures['cycles']:,.0f}",
                    f"{figures['cycles_streamed']:,.0f}" if "cycles_streamed" in figures else "",
                    f"{work / 1e6:,.2f} M",
                    f"{100 * entry['macs'] / work:.1f} %",
                    f"{figures['sram_bytes'] / 1024:,.1f}",
                    f"{work / own:.2f}",
                ]
            )
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", NOTE.format(version=results["vela"]), "", PUBLISHED_NOTE, ""]
    lines += ["| what | network | cycles | latency ms |", "|---|---|---:|---:|", *PUBLISHED]
    return "\n".join(lines)


def main() -> int:
    """Measure and write."""
    try:
        results = measure()
    except NnloomError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    write_atomically(RESULTS / "vela.json", (json.dumps(results, indent=1) + "\n").encode())
    text = table(results)
    write_readme(text, begin_mark=BEGIN, end_mark=END)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
