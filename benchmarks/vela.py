"""The same networks through Arm's production compiler Vela: `benchmarks/results/vela.json` and a table in README.md.

Vela's own performance estimate for an Ethos-U55 with 128 and 256 multipliers stands beside the cycles of
`benchmarks/results/*.json` (RTL simulation, `benchmarks/run.py`). Cycles times multipliers is what a multiplier array
of that size occupies; utilisation counts the MACs of convolutions and matrix products for both.
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

MULTIPLIERS = (128, 256)
BEGIN, END = "<!-- vela: written by benchmarks/vela.py -->", "<!-- end of vela -->"


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


def vela(model: Path, multipliers: int, folder: Path) -> dict[str, float]:
    """Cycles and SRAM of one network on one Ethos-U55."""
    command = [sys.executable, "-m", "ethosu.vela", str(model), "--accelerator-config", f"ethos-u55-{multipliers}"]
    command += ["--optimise", "Performance", "--output-dir", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    summaries = sorted(folder.glob(f"{model.stem}_summary_*.csv"))
    if result.returncode or not summaries:
        raise ToolMissingError(f"Vela failed on {model.name}; pip install ethos-u-vela ({result.stderr.strip()[-80:]})")
    with summaries[0].open() as file:
        (row,) = csv.DictReader(file)
    return {
        "cycles": float(row["cycles_total"]),
        "cycles_npu": float(row["cycles_npu"]),
        "sram_bytes": float(row["sram_memory_used"]) * 1024,
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
            for multipliers in MULTIPLIERS:
                folder = Path(temporary) / str(multipliers)
                folder.mkdir(exist_ok=True)
                entry[f"ethos-u55-{multipliers}"] = {"multipliers": multipliers, **vela(model, multipliers, folder)}
            rows[name] = entry
    return {"vela": version("ethos-u-vela"), "networks": rows}


def table(results: dict[str, Any]) -> str:
    """Markdown rows."""
    titles = ["network", "engine", "cycles", "NPU alone", "cycles x multipliers", "utilisation", "SRAM KiB", "ratio"]
    rows = [titles, ["---", "---", *["---:"] * (len(titles) - 2)]]
    for name, entry in results["networks"].items():
        one = entry[f"nnloom{ONE_PIXEL}"]
        own = one["cycles"] * one["multipliers"]
        for engine in (f"nnloom{ONE_PIXEL}", "nnloom", *(f"ethos-u55-{m}" for m in MULTIPLIERS)):
            figures = entry[engine]
            work = figures["cycles"] * figures["multipliers"]
            rows.append(
                [
                    name.replace("_", " "),
                    f"{engine.removesuffix(ONE_PIXEL)} ({figures['multipliers']})",
                    f"{figures['cycles']:,.0f}",
                    f"{figures.get('cycles_npu', figures['cycles']):,.0f}",
                    f"{work / 1e6:,.2f} M",
                    f"{100 * entry['macs'] / work:.1f} %",
                    f"{figures['sram_bytes'] / 1024:,.1f}",
                    f"{work / own:.2f}",
                ]
            )
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines += [
        "",
        f"Vela {results['vela']}, `--optimise Performance`; ratio: cycles x multipliers against 144 of nnloom. ",
    ]
    lines[-1] += "Vela counts weights streamed from flash, which dominates anomaly detection; nnloom's are on chip."
    lines += ["", "Published elsewhere for the same networks, as their authors give them:", ""]
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
