"""Speed of the CPU code beside LiteRT: `benchmarks/results/cpu.json` and a table in README.md.

All in one process and one thread, in turns: `session.run` of an artifact on the CPU, and the same inference (set the
input, invoke, get the output) by LiteRT with XNNPACK, its default, with its own optimized kernels and with its
reference kernels. Each turn is the mean of some calls; the fastest turn counts, since other work on the machine only
slows turns down. What is worth reading is the ratio. Exit code 1 if the bar is missed, or if an output is not that of
the reference kernels.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from run import NETWORKS, RESULTS, random_inputs, write_readme

from nnloom.arch.artifact import Artifact
from nnloom.arch.files import write_atomically
from nnloom.compiler import compile, zoo
from nnloom.runtime import InferenceSession

BEGIN, END = "<!-- cpu: written by benchmarks/cpu.py -->", "<!-- end of cpu -->"
RATIO = 5.0
TURNS = 25
TURN_SECONDS = 0.01


def _litert(path: Path, resolver: str) -> Callable[[NDArray], NDArray]:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kind = getattr(OpResolverType, resolver)
    interpreter = Interpreter(str(path), experimental_op_resolver_type=kind, num_threads=1)
    interpreter.allocate_tensors()
    (source,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(x: NDArray) -> NDArray:
        interpreter.set_tensor(source["index"], x)
        interpreter.invoke()
        return interpreter.get_tensor(output["index"])

    return run


def _calls(run: Callable[[NDArray], Any], x: NDArray) -> int:
    """Calls of a turn."""
    run(x)
    start = time.perf_counter()
    run(x)
    return max(1, round(TURN_SECONDS / max(time.perf_counter() - start, 1e-7)))


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Milliseconds of an inference by each implementation."""
    path = zoo.fetch(name)
    artifact = compile(path, output=folder / name).path
    inputs = random_inputs(artifact)
    with InferenceSession(artifact, "cpu") as session:
        runs: dict[str, Callable[[NDArray], Any]] = {
            "nnloom": session.run,
            "xnnpack": _litert(path, "AUTO"),
            "optimized": _litert(path, "BUILTIN_WITHOUT_DEFAULT_DELEGATES"),
            "reference": _litert(path, "BUILTIN_REF"),
        }
        wrong = 0
        for x in inputs:
            (got,) = session.run(x[None]).values()
            wrong += int(np.any(got != runs["reference"](x[None])))
        x = inputs[:1]
        calls = {kind: _calls(run, x) for kind, run in runs.items()}
        best = dict.fromkeys(runs, float("inf"))
        for _ in range(TURNS):
            for kind, run in runs.items():
                start = time.perf_counter()
                for _ in range(calls[kind]):
                    run(x)
                best[kind] = min(best[kind], (time.perf_counter() - start) / calls[kind])
    return {
        "cpu": Artifact.load(artifact).manifest.cpu,
        "milliseconds": {kind: round(1e3 * seconds, 4) for kind, seconds in best.items()},
        "ratio": round(best["nnloom"] / best["xnnpack"], 2),
        "differ": wrong,
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| network | times XNNPACK | XNNPACK | LiteRT optimized | LiteRT reference | nnloom |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, r in results.items():
        ms = r["milliseconds"]
        lines.append(
            f"| {name.replace('_', ' ')} | {r['ratio']:.2f} | {ms['xnnpack']:.3f} | {ms['optimized']:.3f} "
            f"| {ms['reference']:.3f} | {ms['nnloom']:.3f} |"
        )
    (cpu,) = {r["cpu"] for r in results.values()}
    lines.append("")
    lines.append(f"Milliseconds with the input set and the output fetched, one thread, all in one run; code for {cpu}.")
    return "\n".join(lines)


def main() -> int:
    """Measure all networks, write the results and the table."""
    results = {}
    with tempfile.TemporaryDirectory(prefix="nnloom-") as folder:
        for name in NETWORKS:
            results[name] = measure(name, Path(folder))
            print(f"{name}: {results[name]['ratio']:.2f} times XNNPACK", file=sys.stderr, flush=True)
    document = {"command": "python benchmarks/cpu.py", "load": os.getloadavg()[0], "networks": results}
    write_atomically(RESULTS / "cpu.json", (json.dumps(document, indent=1) + "\n").encode())
    text = table(results)
    write_readme(text, begin_mark=BEGIN, end_mark=END)
    print(text)
    return int(any(r["ratio"] > RATIO or r["differ"] for r in results.values()))


if __name__ == "__main__":
    sys.exit(main())
