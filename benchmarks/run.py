"""Measures the networks of the results table again: `benchmarks/results/*.json` and the table in README.md.

Each network is compiled for the board, simulated in RTL on 20 inputs with every write compared with the golden
model and every output with the CPU's, and built to a bitstream (one for all: it depends on the board only). The same
without a second pixel, that is with half the multipliers, is simulated but not built.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import Artifact
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import NnloomError
from nnloom.arch.files import write_atomically
from nnloom.cli import main as command
from nnloom.compiler.zoo import MLPERF_TINY

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NETWORKS = MLPERF_TINY
ONE_PIXEL = "-one-pixel"
"""Results of `one_pixel`."""
INPUTS = 20
BEGIN, END = "<!-- results: written by benchmarks/run.py -->", "<!-- end of results -->"


def _nnloom(*arguments: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        code = command(list(arguments))
    if code:
        raise SystemExit(f"nnloom {' '.join(arguments)}: exit code {code}")


def random_inputs(artifact: Path) -> NDArray:
    """`INPUTS` random inputs over the whole int8 range, as the network takes them; the same at each call."""
    (info,) = Artifact.load(artifact).manifest.inputs
    values = np.random.default_rng(20).integers(-128, 128, (INPUTS, *info.shape[1:]), np.int8)
    if info.dtype != "int8":
        values = ((values.astype(np.float64) - info.zero_point) * info.scale).astype(np.float32)
    return values


def one_pixel(config: AcceleratorConfig) -> AcceleratorConfig:
    """A board's configuration with half the multipliers; without the registers that only its clock needs."""
    return dataclasses.replace(config, pixels=1, product_registers=False)


def measure(name: str, board: str, folder: Path, *, half: bool, bitstream: bool) -> dict[str, Any]:
    """The report of one network, with `seconds` of each step. `half`: with half the multipliers."""
    from nnloom import boards
    from nnloom.compiler import zoo

    model, artifact = zoo.fetch(name), folder / name
    seconds: dict[str, float] = {}

    def timed(step: str, *arguments: str) -> None:
        started = time.monotonic()
        _nnloom(*arguments)
        seconds[step] = round(time.monotonic() - started, 1)

    arguments = ["compile", str(model), "--board", board, "-o", str(artifact)]
    if half:
        config = one_pixel(boards.get(board).config)
        (folder / "config.json").write_text(json.dumps(config.to_dict()))
        arguments += ["--config", str(folder / "config.json")]
    timed("compile", *arguments)
    np.save(folder / "x.npy", random_inputs(artifact))
    timed("simulate", "simulate", str(artifact), "--input", str(folder / "x.npy"), "--output", str(folder / "y.npy"))
    if bitstream:
        timed("build", "build", str(artifact))
    report = json.loads((artifact / "report.json").read_text())
    return {**report, "inputs_simulated": INPUTS, "seconds": seconds}


def table(reports: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """Markdown rows of the results: for each network with one pixel and with the board's configuration."""
    first, board = reports[0]
    lines = [
        f"| network | MACs | cycles, {first['mac_units']} multipliers | utilisation | "
        f"cycles, {board['mac_units']} | utilisation | clock MHz | latency ms |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one, r in reports:
        clock = f"{r['clock_mhz']:g}" if r.get("clock_mhz") else "-"
        latency = f"{r['latency_us'] / 1000:.4f}" if r.get("latency_us") else "-"
        lines.append(
            f"| {r['model'].replace('_', ' ')} | {r['macs']:,} "
            f"| {one['cycles']:,} | {100 * one['utilisation']:.1f} % | "
            f"{r['cycles']:,} | {100 * r['utilisation']:.1f} % | {clock} | {latency} |"
        )
    built = next((r for _, r in reports if r.get("resources")), None)
    if built:
        used = ", ".join(f"{n} {v['used']:,} of {v['available']:,}" for n, v in built["resources"].items())
        lines += ["", f"One bitstream for all of them: {used}; nextpnr reaches {built['fmax_mhz']} MHz."]
    worst = max(abs(r["cycles"] / r["cycles_estimated"] - 1) for pair in reports for r in pair)
    lines += ["", f"The cost model is off by at most {100 * worst:.2f} %."]
    return "\n".join(lines)


def write_readme(text: str, path: Path = ROOT / "README.md", *, begin_mark: str = BEGIN, end_mark: str = END) -> None:
    """Replace the results between their marks."""
    readme = path.read_text()
    before, begin, rest = readme.partition(begin_mark)
    _, end, after = rest.partition(end_mark)
    if not (begin and end):
        raise SystemExit(f"{path} has no marks for the results")
    write_atomically(path, f"{before}{begin_mark}\n{text}\n{end_mark}{after}".encode())


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="default: the four of the table")
    parser.add_argument("--board", default="ulx3s-85f")
    parser.add_argument("--no-bitstream", action="store_true", help="leave out place and route")
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="nnloom-benchmarks-") as temporary:
            for name in options.networks:
                for suffix in (ONE_PIXEL, ""):
                    print(f"== {name}{suffix}", file=sys.stderr)
                    build = not suffix and not options.no_bitstream
                    report = measure(name, options.board, Path(temporary), half=bool(suffix), bitstream=build)
                    write_atomically(RESULTS / f"{name}{suffix}.json", (json.dumps(report, indent=1) + "\n").encode())
    except NnloomError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    reports = [
        tuple(json.loads((RESULTS / f"{name}{suffix}.json").read_text()) for suffix in (ONE_PIXEL, ""))
        for name in NETWORKS
        if (RESULTS / f"{name}{ONE_PIXEL}.json").exists()
    ]
    text = table(reports)
    write_readme(text)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
