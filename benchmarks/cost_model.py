"""Compares predicted cycles with those of the RTL: networks of the zoo on several configurations.

Each network is compiled for each configuration and run in Verilator on one random input, every write compared with
the golden model's. Writes `benchmarks/results/cost_model.json` and the table in docs/exploration.md; a pair whose RTL
and prediction have not changed is not run again. Fails if a prediction is off by more than 3 %.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from run import one_pixel, write_readme

from nnloom.arch.artifact import EngineImage
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import NnloomError
from nnloom.arch.files import write_atomically
from nnloom.boards import get
from nnloom.compiler import zoo
from nnloom.compiler.cost import program_cycles
from nnloom.compiler.emit import Emitted, emit
from nnloom.compiler.explore import EVERYTHING
from nnloom.compiler.frontend import read_model
from nnloom.compiler.graph import LayerGraph
from nnloom.compiler.partition import partition
from nnloom.hw.accelerator import make_accelerator
from nnloom.hw.emit import emit_rtlil
from nnloom.runtime.devices.verified import VerifiedRtlDevice

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "exploration.md"
RESULTS = ROOT / "benchmarks" / "results" / "cost_model.json"
BEGIN, END = "<!-- cycles: written by benchmarks/cost_model.py -->", "<!-- end of cycles -->"
NETWORKS = (*zoo.MLPERF_TINY, "tflite_micro_speech")
TOLERANCE = 0.03

SHAPES = (
    (1, 16, 9, 16),
    (2, 16, 9, 16),
    (1, 16, 9, 4),
    (2, 16, 5, 8),
    (1, 16, 3, 16),
    (2, 8, 5, 8),
    (1, 8, 4, 2),
    (1, 32, 6, 16),
)
"""(pixels, lanes, taps, requantization units)"""
MEMORIES = dict(activation_bytes=1 << 18, weight_words=1 << 14, program_words=1 << 10)
"""Deep enough for every network, so that one simulation serves them all."""


def configurations() -> list[AcceleratorConfig]:
    """The configurations that are measured: the ULX3S-85F's, with two pixels and with one, and `SHAPES`."""
    default = get("ulx3s-85f").config
    shapes = [AcceleratorConfig(pixels=p, lanes=n, taps=t, requant_units=u, **MEMORIES) for p, n, t, u in SHAPES]
    return list(dict.fromkeys([default, one_pixel(default), *shapes]))


def label(config: dict[str, Any]) -> str:
    """Of a configuration in the table."""
    shape = f"{config['pixels']} x {config['lanes']} x {config['taps']}, {config['requant_units']}"
    options = [name.replace("_", " ") for name in ("row_triples", "product_registers") if config.get(name)]
    if config["weight_words"] != MEMORIES["weight_words"]:
        options.append("the board's memories")
    return ", ".join([shape, *options])


def read_networks() -> dict[str, tuple[LayerGraph, ...]]:
    """Regions of the networks."""
    return {name: partition(read_model(zoo.fetch(name)), EVERYTHING).graphs for name in NETWORKS}


def predict(config: AcceleratorConfig, emitted: Emitted) -> int:
    """Cycles of all regions by the cost model."""
    return sum(program_cycles(config, region.descriptors) for region in emitted.regions)


def simulate(device: VerifiedRtlDevice, config: AcceleratorConfig, emitted: Emitted) -> int:
    """Cycles of all regions in RTL simulation, each on a random input."""
    device.load_image(EngineImage(config, emitted.program, emitted.weights, emitted.tables))
    rng = np.random.default_rng(1)
    total = 0
    for item in emitted.regions:
        inputs = [rng.integers(-128, 128, (t.rows, t.columns, t.channels), np.int8) for t in item.graph.inputs]
        total += device.run_region(item.region, inputs).cycles or 0
    return total


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown rows: relative error of the prediction by configuration and network."""
    names = list(dict.fromkeys(row["network"] for row in rows))
    lines = ["| pixels x lanes x taps, units | " + " | ".join(name.replace("_", " ") for name in names) + " |"]
    lines.append("|---|" + "---:|" * len(names))
    shapes: dict[str, dict[str, str]] = {}
    for row in rows:
        shapes.setdefault(label(row["config"]), {})[row["network"]] = (
            f"{row['cycles_measured']:,} ({100 * row['error']:+.2f} %)"
        )
    lines += [f"| {label} | " + " | ".join(cells.get(n, "-") for n in names) + " |" for label, cells in shapes.items()]
    return "\n".join(lines)


def digest(rtlil: str) -> str:
    """What a measurement says it was made with."""
    return hashlib.sha256(rtlil.encode()).hexdigest()


def measure() -> tuple[list[dict[str, Any]], bool]:
    """Rows of every pair, taken from the last results where neither RTL nor prediction changed; whether all succeeded.

    The results are written after each configuration; what is known of later ones stays.
    """
    old = json.loads(RESULTS.read_text())["pairs"] if RESULTS.exists() else []
    networks = read_networks()
    pairs: dict[tuple[AcceleratorConfig, str], dict[str, Any] | None] = {}
    digests = {c: digest(emit_rtlil(make_accelerator(c), "accelerator")) for c in configurations()}
    lowered = {(config, name): emit(config, networks[name]) for config in digests for name in networks}
    predicted = {pair: predict(pair[0], emitted) for pair, emitted in lowered.items()}
    for config, name in lowered:
        same = [
            row
            for row in old
            if row["network"] == name
            and AcceleratorConfig.from_dict(row["config"]) == config
            and row["cycles_predicted"] == predicted[config, name]
            and row["rtlil_sha256"] == digests[config]
        ]
        pairs[config, name] = same[0] if same else None
    complete = True
    for config, rtlil in digests.items():
        missing = [name for name in networks if pairs[config, name] is None]
        if not missing:
            continue
        with VerifiedRtlDevice() as device:
            for name in missing:
                what = f"{label(config.to_dict())}: {name}"
                print(what, file=sys.stderr, flush=True)
                try:
                    measured = simulate(device, config, lowered[config, name])
                except NnloomError as error:
                    print(f"error: {what}: {error}", file=sys.stderr)
                    complete = False
                    break  # the simulation may be in any state
                pairs[config, name] = {
                    "network": name,
                    "config": config.to_dict(),
                    "cycles_predicted": predicted[config, name],
                    "cycles_measured": measured,
                    "error": round(predicted[config, name] / measured - 1, 6),
                    "rtlil_sha256": rtlil,
                }
        write([row for row in pairs.values() if row])
    return [row for row in pairs.values() if row], complete


def write(rows: list[dict[str, Any]]) -> None:
    """The measurements, one pair a line."""
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    head = '{\n "command": "python benchmarks/cost_model.py",\n "pairs": [\n  '
    write_atomically(RESULTS, f"{head}{lines}\n ]\n}}\n".encode())


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table-only", action="store_true", help="write the table of what was measured")
    options = parser.parse_args()
    rows, complete = (json.loads(RESULTS.read_text())["pairs"], True) if options.table_only else measure()
    worst = max(abs(row["error"]) for row in rows)
    text = f"{table(rows)}\n\n{len(rows)} pairs, worst error {100 * worst:.2f} %."
    write_readme(text, DOCUMENT, begin_mark=BEGIN, end_mark=END)
    print(text)
    return int(not complete or worst > TOLERANCE)


if __name__ == "__main__":
    raise SystemExit(main())
