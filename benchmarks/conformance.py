"""Every network of the zoo: does it compile for the ULX3S-85F, what runs on the engine, and are its bits LiteRT's?

    python benchmarks/conformance.py                     what is not measured yet with the present code
    python benchmarks/conformance.py --rtl               one input of each in RTL simulation as well
    python benchmarks/conformance.py alexa okay_nabu     only these, again

Each is compared with LiteRT's reference kernels on 20 random inputs, one after the other (networks with state go on
from run to run), on the CPU and in the golden model. Writes benchmarks/results/conformance.json after each network, so
that it can be interrupted, and docs/conformance.md from it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import TensorInfo
from nnloom.arch.errors import NnloomError
from nnloom.arch.files import write_atomically
from nnloom.compiler import compile as compile_model
from nnloom.compiler import zoo
from nnloom.runtime import InferenceSession
from nnloom.sim.litert import LiteRtReference

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "conformance.json"
PAGE = ROOT / "docs" / "conformance.md"
BOARD = "ulx3s-85f"
INPUTS = 20
RTL_CYCLES = 100_000
"""Networks of more cycles are not simulated."""
CODE = ("arch", "boards", "compiler", "runtime", "sim")


def code_digest() -> str:
    """Of the sources that what is measured depends on."""
    digest = hashlib.sha256()
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def random_input(info: TensorInfo, rng: np.random.Generator) -> NDArray:
    """Any value of an integer type; of float32 what the network's quantization represents, or a normal distribution."""
    dtype = np.dtype(info.dtype)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, info.shape, dtype, endpoint=True)
    if info.scale:
        levels = rng.integers(-128, 127, info.shape, endpoint=True) - info.zero_point
        return (levels * info.scale).astype(np.float32)
    return rng.normal(0, 1, info.shape).astype(dtype)


def compare(got: Sequence[NDArray], want: Sequence[NDArray]) -> float:
    """The greatest difference, relative to the greatest value of each output; infinite if they differ in kind."""
    most = 0.0
    for a, b in zip(got, want, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        if not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            x, y = a.astype(np.float64), b.astype(np.float64)
            most = max(most, float(np.nanmax(np.abs(x - y)) / max(float(np.nanmax(np.abs(y))), 1e-30)))
    return most


def run_device(artifact: Path, device: str, inputs: list[list[NDArray]], answers: list[list[NDArray]]) -> dict:
    """What one device answers: `exact`, `difference`, and the cycles of the last inference."""
    with InferenceSession(artifact, device) as session:
        names = [info.name for info in session.get_inputs()]
        most = 0.0
        for values, want in zip(inputs, answers, strict=True):
            most = max(most, compare(session.run(None, dict(zip(names, values, strict=True))), want))
        return {"exact": most == 0, "difference": most, "inputs": len(inputs), "cycles": session.last_cycles}


def measure(entry: zoo.ZooEntry, *, count: int) -> dict[str, Any]:
    """The row of a network, without RTL."""
    row: dict[str, Any] = {"name": entry.name, "kind": entry.kind, "sha256": entry.sha256, "licence": entry.licence}
    path = zoo.fetch(entry.name)
    with tempfile.TemporaryDirectory(prefix="nnloom-conformance-") as temporary:
        artifact = Path(temporary) / "artifact"
        try:
            report = compile_model(path, board=BOARD, output=artifact).report
        except NnloomError as error:
            return row | {"compiled": False, "reason": str(error).replace(str(path), path.name)}
        accelerated = [layer for layer in report["layers"] if layer["target"] == "accelerator"]
        row |= {
            "compiled": True,
            "layers": len(accelerated),
            "cpu_operators": len(report["layers"]) - len(accelerated),
            "macs": report["macs"],
            "engine_share": report["engine_share"] if accelerated else 0.0,
            "cycles": report["cycles_estimated"],
            "claims_exact": report["exact"],
        }
        inputs, answers = _answers(path, artifact, count)
        row["cpu"] = run_device(artifact, "cpu", inputs, answers)
        row["model"] = run_device(artifact, "model", inputs, answers) if accelerated else None
    return row


def _answers(path: Path, artifact: Path, count: int) -> tuple[list[list[NDArray]], list[list[NDArray]]]:
    """Random inputs, and what LiteRT answers."""
    with InferenceSession(artifact, "cpu") as session:
        infos = session.get_inputs()
    rng = np.random.default_rng(0)
    inputs = [[random_input(info, rng) for info in infos] for _ in range(count)]
    litert = LiteRtReference(path)
    return inputs, [litert.run(*values) for values in inputs]


def simulate(entry: zoo.ZooEntry) -> dict[str, Any]:
    """One input in RTL, every write of the engine compared with the golden model's."""
    path = zoo.fetch(entry.name)
    with tempfile.TemporaryDirectory(prefix="nnloom-conformance-") as temporary:
        artifact = Path(temporary) / "artifact"
        compile_model(path, board=BOARD, output=artifact)
        return run_device(artifact, "sim", *_answers(path, artifact, 1))


def page(rows: Sequence[dict[str, Any]]) -> str:
    """docs/conformance.md."""
    quantized = [row for row in rows if "int" in row["kind"]]
    compiled = [row for row in rows if row["compiled"]]
    exact = [row for row in quantized if row["compiled"] and _is_exact(row)]
    simulated = sum(1 for r in compiled if r.get("rtl"))
    lines = [
        "<!-- written by benchmarks/conformance.py -->",
        "",
        "# Networks that others made",
        "",
        f"The {len(rows)} networks of `nnloom zoo`, each compiled for {BOARD} as it is and compared with LiteRT's",
        f"reference kernels on {INPUTS} random inputs (networks with state go on from run to run); {simulated} of them",
        f"also in RTL, on one (`python benchmarks/conformance.py --rtl`). {len(compiled)} compile.",
        f"Of the {len(quantized)} quantized ones {sum(r['compiled'] for r in quantized)} compile,",
        f"and {len(exact)} of those are exact in every bit of every output.",
        "Float networks run on the CPU; where they differ, the column says by how much at most, relative to",
        "the greatest value of the output, and `compile` says which operators are not exact.",
        "",
        "| network | kind | licence (package) | layers on the engine / operators on the CPU | MACs on the engine "
        "| cycles (model) | cycles (RTL) | CPU | golden model | RTL |",
        "|---|---|---|---:|---:|---:|---:|---|---|---|",
    ]
    for row in rows:
        if not row["compiled"]:
            lines.append(f"| {row['name']} | {row['kind']} | {row['licence']} | refused: {row['reason']} | | | | | | |")
            continue
        rtl = row.get("rtl")
        on_engine = bool(row["layers"])
        cells = [
            row["name"],
            row["kind"],
            row["licence"],
            f"{row['layers']} / {row['cpu_operators']}",
            f"{100 * row['engine_share']:.1f} %" if on_engine else "",
            f"{row['cycles']:,}" if on_engine else "",
            f"{rtl['cycles']:,}" if rtl else "",
            *(_verdict(row.get(device)) for device in ("cpu", "model", "rtl")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _is_exact(row: dict[str, Any]) -> bool:
    return all(row[device]["exact"] for device in ("cpu", "model", "rtl") if row.get(device))


def _verdict(result: dict[str, Any] | None) -> str:
    if result is None:
        return ""
    return "exact" if result["exact"] else f"{result['difference']:.1e}"


def _is_current(row: dict[str, Any] | None, entry: zoo.ZooEntry, code: str) -> bool:
    return row is not None and row["code"] == code and row["sha256"] == entry.sha256


def save(rows: dict[str, dict[str, Any]]) -> None:
    """Write what is measured so far, in the zoo's order, and the page once all of it is there."""
    names = [entry.name for entry in zoo.list_models()]
    ordered = [rows[name] for name in names if name in rows]
    text = ",\n  ".join(json.dumps(row) for row in ordered)
    write_atomically(RESULTS, f'{{\n "board": "{BOARD}",\n "networks": [\n  {text}\n ]\n}}\n'.encode())
    if len(ordered) == len(names):
        write_atomically(PAGE, page(ordered).encode())


def main() -> int:
    """Measure and write; 1 if a quantized network is refused or not exact."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NETWORK", help="only these, again (default: what is not current)")
    parser.add_argument("--rtl", action="store_true", help=f"simulate networks of up to {RTL_CYCLES:,} cycles")
    options = parser.parse_args()
    entries = {entry.name: entry for entry in zoo.list_models()}
    unknown = set(options.names) - set(entries)
    if unknown:
        parser.error(f"not in the zoo: {', '.join(sorted(unknown))}")
    rows = {}
    if RESULTS.exists():
        rows = {row["name"]: row for row in json.loads(RESULTS.read_text())["networks"] if row["name"] in entries}
    code = code_digest()
    failed = False
    for number, name in enumerate(options.names or entries, 1):
        entry, old = entries[name], rows.get(name)
        start = time.monotonic()
        try:
            if options.names or not _is_current(old, entry, code):
                rows[name] = measure(entry, count=INPUTS) | {"code": code}
            row = rows[name]
            if options.rtl and row["compiled"] and row["layers"] and row["cycles"] <= RTL_CYCLES and not row.get("rtl"):
                row["rtl"] = simulate(entry)
        except NnloomError as error:
            parser.exit(1, f"error: {name}: {error}\n")
        save(rows)
        good = row["compiled"] and (_is_exact(row) or not entry.is_quantized)
        failed |= entry.is_quantized and not good
        what = "refused: " + row["reason"] if not row["compiled"] else ("" if good else "NOT ") + "as it should be"
        differences = [f"{device} {_verdict(row.get(device))}" for device in ("cpu", "model", "rtl") if row.get(device)]
        with contextlib.suppress(BrokenPipeError):
            print(
                f"{number}/{len(options.names or entries)} {name}: {what}; {', '.join(differences)} "
                f"({time.monotonic() - start:.1f} s)",
                flush=True,
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
