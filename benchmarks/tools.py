"""Speed of the tools: `benchmarks/results/tools.json` and a table in README.md.

For each network of the results table: compiling it in a new process and again in the same one; an inference in RTL
simulation (Verilator, over the simulated host bus: inputs, start, outputs) and in the golden model; and the whole
verification, `nnloom simulate` on 20 inputs. Simulations are built beforehand. Seconds are those of the processor, of
all processes, so that other work on the machine counts little; wall-clock seconds stand beside them in the JSON file.
Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from run import INPUTS, NETWORKS, RESULTS, random_inputs, write_readme

from nnloom.arch.artifact import Artifact
from nnloom.arch.errors import NnloomError
from nnloom.arch.files import write_atomically
from nnloom.compiler import compile, zoo
from nnloom.runtime.devices.base import Device
from nnloom.runtime.devices.model import ModelDevice
from nnloom.runtime.devices.rtl import RtlDevice
from nnloom.sim.rtl import build_simulation

BEGIN, END = "<!-- tools: written by benchmarks/tools.py -->", "<!-- end of tools -->"
COMMAND = (sys.executable, "-c", "import sys; from nnloom.cli import main; sys.exit(main(sys.argv[1:]))")
COMPILE_SECONDS = 5.0
CYCLES_PER_SECOND = 100_000
GOLDEN_RATIO = 20.0
VERIFY_SECONDS = 600.0


@dataclass(frozen=True)
class Seconds:
    """Duration of a step: processor time of all processes, and the clock on the wall."""

    processor: float
    wall: float

    def rounded(self) -> dict[str, float]:
        """For the results file: to a hundredth of a millisecond."""
        return {"processor": round(self.processor, 5), "wall": round(self.wall, 5)}


def _processor() -> float:
    usage = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in usage)


def timed(action: Callable[[], Any]) -> Seconds:
    """Run something once; processes that it starts and ends count."""
    processor, wall = _processor(), time.perf_counter()
    action()
    return Seconds(_processor() - processor, time.perf_counter() - wall)


def _nnloom(*arguments: str) -> None:
    result = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"nnloom {' '.join(arguments)}: {result.stderr.strip()[-200:]}")


def inferences(artifact: Artifact, device: Device, inputs: list[NDArray[np.int8]]) -> int:
    """Load the artifact into a device, run its region on each input, close. Returns the cycles of the last run."""
    (region,) = artifact.manifest.regions
    cycles = 0
    try:
        device.load(artifact)
        for value in inputs:
            cycles = device.run_region(region, [value]).cycles
    finally:
        device.close()
    return cycles


def per_inference(artifact: Artifact, make: Callable[[], Device], inputs: list[NDArray[np.int8]]) -> Seconds:
    """Of one inference: what `inputs` after the first add to a run from load to close."""
    short = timed(lambda: inferences(artifact, make(), inputs[:1]))
    whole = timed(lambda: inferences(artifact, make(), inputs))
    count = len(inputs) - 1
    return Seconds((whole.processor - short.processor) / count, (whole.wall - short.wall) / count)


def measure(name: str, board: str, folder: Path) -> dict[str, Any]:
    """All figures of one network."""
    model, path = zoo.fetch(name), folder / name
    # The first compilation fills the caches of the file system.
    _nnloom("compile", str(model), "--board", board, "-o", str(path))
    cold = timed(lambda: _nnloom("compile", str(model), "--board", board, "-o", str(path)))
    compile(model, board=board, output=path)
    warm = timed(lambda: compile(model, board=board, output=path))
    artifact = Artifact.load(path)
    config, (region,) = artifact.manifest.config, artifact.manifest.regions
    build_simulation(config, progress=lambda phase: print(phase, file=sys.stderr))
    (location,) = region.inputs
    rng = np.random.default_rng(20)
    values = list(rng.integers(-128, 128, (1 + INPUTS, *location.shape), np.int8))
    cycles = inferences(artifact, RtlDevice(), values[:1])
    rtl = per_inference(artifact, RtlDevice, values)
    golden = per_inference(artifact, ModelDevice, values * 10)
    np.save(folder / "x.npy", random_inputs(path))
    verify = timed(
        lambda: _nnloom("simulate", str(path), "--input", str(folder / "x.npy"), "--output", str(folder / "y.npy"))
    )
    return {
        "compile_cold": cold.rounded(),
        "compile_warm": warm.rounded(),
        "cycles": cycles,
        "rtl_inference": rtl.rounded(),
        "rtl_cycles_per_second": round(cycles / rtl.processor),
        "golden_inference": golden.rounded(),
        "golden_ratio": round(rtl.processor / golden.processor, 1),
        "verify": verify.rounded(),
    }


def table(results: dict[str, Any]) -> str:
    """Markdown rows."""
    titles = ["network", "compile s", "again s", "RTL ms", "cycles/s", "golden model ms", "ratio", "verification s"]
    rows = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    for name, entry in results["networks"].items():
        rows.append(
            [
                name.replace("_", " "),
                f"{entry['compile_cold']['processor']:.1f}",
                f"{entry['compile_warm']['processor']:.1f}",
                f"{1e3 * entry['rtl_inference']['processor']:.0f}",
                f"{entry['rtl_cycles_per_second']:,}",
                f"{1e3 * entry['golden_inference']['processor']:.2f}",
                f"{entry['golden_ratio']:.0f}",
                f"{entry['verify']['processor']:.1f}",
            ]
        )
    lines = [f"| {' | '.join(row)} |" for row in rows]
    total = sum(entry["verify"]["processor"] for entry in results["networks"].values())
    lines += [
        "",
        f"Processor seconds, one core; RTL simulation and golden model per inference; verification on {INPUTS} inputs, "
        f"{total:.0f} s for all networks.",
    ]
    return "\n".join(lines)


def missed(results: dict[str, Any]) -> list[str]:
    """The bars that were not reached."""
    entries = results["networks"].items()
    total = sum(entry["verify"]["processor"] for _, entry in entries)
    problems = [f"verification takes {total:.0f} s"] if total > VERIFY_SECONDS else []
    for name, entry in entries:
        if entry["compile_cold"]["processor"] > COMPILE_SECONDS:
            problems.append(f"{name} compiles in {entry['compile_cold']['processor']:.1f} s")
        if entry["rtl_cycles_per_second"] < CYCLES_PER_SECOND:
            problems.append(f"{name} simulates {entry['rtl_cycles_per_second']} cycles/s")
        if entry["golden_ratio"] < GOLDEN_RATIO:
            problems.append(f"{name}: the golden model is {entry['golden_ratio']} times as fast as the RTL")
    return problems


def main() -> int:
    """Measure and write."""
    networks: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="nnloom-tools-") as temporary:
            for name in NETWORKS:
                print(f"== {name}", file=sys.stderr)
                networks[name] = measure(name, "ulx3s-85f", Path(temporary))
    except NnloomError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    results = {"load": round(os.getloadavg()[0], 1), "networks": networks}
    write_atomically(RESULTS / "tools.json", (json.dumps(results, indent=1) + "\n").encode())
    text = table(results)
    write_readme(text, begin_mark=BEGIN, end_mark=END)
    print(text)
    problems = missed(results)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
