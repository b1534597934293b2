"""Operators, one in a file, against LiteRT.

python -m tests.conformance --all             the NumPy references
python -m tests.conformance --all --compiled  compiled for the ULX3S-85F: CPU code, golden model, portable runtime
python -m tests.conformance CONV_2D --type uint8 --compiled --devices portable
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.errors import InputError, NnloomError, UnsupportedOperatorError
from nnloom.arch.operation import Operation
from nnloom.arch.reference import STATES, evaluate, initial_state, is_exact
from nnloom.arch.reference.hybrid import is_hybrid
from nnloom.compiler import compile as compile_model
from nnloom.compiler.ops import OPERATORS
from nnloom.compiler.ops.movement import CUT
from nnloom.runtime import InferenceSession
from tests.one_operator import Case, interpret, read
from tests.operator_cases import GENERATORS, cases

CALLS = 3
"""of an operator with states"""
DEVICES = ("cpu", "model", "portable")
"""CPU code, golden model with CPU code, both without TVM"""
WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "SVDF", "UNIDIRECTIONAL_SEQUENCE_LSTM")
"""Operators whose second operand has a data type of its own"""
DATA = {"EMBEDDING_LOOKUP": 1, "SCATTER_ND": 1, "SELECT": 1, "SELECT_V2": 1, "SPARSE_TO_DENSE": 2, "SPLIT": 1}
DATA |= {"TRANSPOSE_CONV": 2}
"""Operand with the data, where it is not the first"""
STATUSES = ("passed", "refused", "differs", "wrong")


@dataclass(frozen=True)
class Outcome:
    """What came of a case, and why: "passed", "refused", "differs" (as `is_exact` says it may) or "wrong"."""

    status: str
    detail: str = ""
    layers: int = 0
    """on the accelerator"""


def check(case: Case) -> Outcome:
    """Compare the reference with LiteRT, every value.

    Float32 results that need not be exact must still be within 1e-4 of LiteRT's greatest; within 2e-2 where a state
    that depends on them is quantized in each step.
    """
    op, inputs = read(case.model)
    states = STATES.get(op.kind, ())
    given = iter(case.inputs)
    for index, t in enumerate(op.inputs):
        if t is not None and inputs[index] is None and index not in states:
            inputs[index] = next(given)
        elif t is not None and index in states:
            inputs[index] = initial_state(t)
    calls = CALLS if states else 1
    try:
        for _ in range(calls):
            got = evaluate(op, inputs)
            for index, state in zip(states, got[len(got) - len(states) :], strict=True):
                inputs[index] = state
    except (InputError, UnsupportedOperatorError) as error:
        return Outcome("refused", str(error))
    return _compare(op, got[: len(got) - len(states)], interpret(case.model, case.inputs, calls))


def check_compiled(case: Case, folder: Path, devices: Sequence[str] = DEVICES) -> Outcome:
    """Compile the file into `folder` and compare what each device answers with LiteRT, every value.

    For "portable" alone no CPU code is compiled, which takes nearly all of the time. What the accelerator takes next to
    other layers only, it takes here, but for what makes no layer.
    """
    alone = {kind: replace(entry, follows=False) for kind, entry in OPERATORS.items() if entry is not CUT}
    op, _ = read(case.model)
    calls = CALLS if STATES.get(op.kind) else 1
    want = interpret(case.model, case.inputs, calls)
    path, artifact = folder / "operator.tflite", folder / "artifact"
    path.write_bytes(case.model)
    try:
        native = set(devices) - {"portable"}
        with (
            nullcontext() if native else patch("nnloom.compiler.cpu.build_cpu", _no_code),
            patch.dict("nnloom.compiler.ops.OPERATORS", alone),
        ):
            report = compile_model(path, output=artifact).report
        outcome = Outcome("passed")
        for device in devices:
            found = _compare(op, _answers(artifact, device, case.inputs, calls), want)
            if found.status == "wrong":
                return Outcome("wrong", f"{device}: {found.detail}")
            outcome = found if found.status == "differs" else outcome
    except NnloomError as error:
        return Outcome("refused", str(error).replace(str(path), "FILE"))
    layers = sum(layer["target"] == "accelerator" for layer in report["layers"])
    return Outcome(outcome.status, outcome.detail, layers)


def _answers(artifact: Path, device: str, inputs: Sequence[NDArray], calls: int) -> list[NDArray]:
    native = device != "portable"
    with InferenceSession(artifact, device if native else "cpu", native=native) as session:
        names = [info.name for info in session.get_inputs()]
        for _ in range(calls):
            got = session.run(None, dict(zip(names, inputs, strict=True)))
    return got


def _no_code(*arguments: object) -> None:
    next(path for path in arguments if isinstance(path, Path)).write_bytes(b"none")


def _compare(op: Operation, got: Sequence[NDArray], want: Sequence[NDArray]) -> Outcome:
    for index, (ours, theirs) in enumerate(zip(got, want, strict=True)):
        if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
            return Outcome("wrong", f"output {index}: {ours.dtype}{ours.shape}, not {theirs.dtype}{theirs.shape}")
        if not np.array_equal(ours, theirs, equal_nan=ours.dtype == np.float32):
            reason = is_exact(op)
            tolerance = 2e-2 if STATES.get(op.kind) and is_hybrid(op, 0, 2) else 1e-4
            if reason and (ours.dtype != np.float32 or _is_close(ours, theirs, tolerance)):
                return Outcome("differs", reason)
            differ = np.flatnonzero((ours != theirs).reshape(-1))
            at = int(differ[0]) if differ.size else 0
            return Outcome(
                "wrong",
                f"output {index}: {differ.size} of {ours.size} differ, first {ours.reshape(-1)[at]} "
                f"instead of {theirs.reshape(-1)[at]} at {at}",
            )
    return Outcome("passed")


def _is_close(ours: NDArray, theirs: NDArray, tolerance: float) -> bool:
    greatest = float(np.max(np.abs(theirs), where=np.isfinite(theirs), initial=0))
    return np.allclose(ours, theirs, rtol=tolerance, atol=tolerance * greatest, equal_nan=True)


def _line(name: str, counts: Counter[str]) -> str:
    columns = (f"{status} {counts[status]:5}" for status in STATUSES)
    return "  ".join([f"{name:28}", *columns])


def _types(op: Operation) -> str:
    """The data type of a case's operand, and of its weights where they have another."""
    data = op.inputs[DATA.get(op.kind, 0)]
    first = data.dtype if data else ""
    weights = [op.inputs[1].dtype] if op.kind in WEIGHTED and op.inputs[1] is not None else []
    return " x ".join(dict.fromkeys([first, *weights]))


def _operator(kind: str, args: argparse.Namespace, folder: Path) -> tuple[Counter[str], set[str]]:
    """Check the cases of an operator and print what came of them; with the data types of those that passed."""
    counts: Counter[str] = Counter()
    types: set[str] = set()
    reasons: Counter[str] = Counter()
    wrong = []
    for case in cases(args.seed, args.count, [kind], args.type):
        outcome = check_compiled(case, folder, args.devices) if args.compiled else check(case)
        counts[outcome.status] += 1
        counts["on the accelerator"] += bool(outcome.layers)
        if outcome.status == "passed":
            types.add(_types(read(case.model)[0]))
        if outcome.status in ("refused", "differs"):
            reasons[f"{outcome.status}: {outcome.detail.removeprefix(f'{kind}: ')}"] += 1
        elif outcome.status == "wrong":
            wrong.append(f"{case.name}: {outcome.detail}")
    print(_line(kind, counts))
    for reason, number in reasons.most_common():
        print(f"    {number} {reason}")
    for line in wrong[: args.show]:
        print(f"    {line}")
    sys.stdout.flush()
    return counts, types


def _save(
    path: Path, args: argparse.Namespace, by_kind: dict[str, tuple[Counter[str], set[str]]], totals: Counter[str]
) -> None:
    names = (*STATUSES, "on the accelerator")
    values = {
        "command": f"python -m tests.conformance --all --compiled --devices {' '.join(args.devices)}"
        f" --count {args.count} --seed {args.seed}"
        if args.compiled
        else f"python -m tests.conformance --all --count {args.count} --seed {args.seed}",
        "totals": {name: totals[name] for name in names},
        "operators": {
            kind: {**{name: counts[name] for name in names}, "types": sorted(types)}
            for kind, (counts, types) in by_kind.items()
        },
    }
    path.write_text(json.dumps(values, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python -m tests.conformance --all --count 200 --seed 7",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kinds", nargs="*", metavar="OPERATOR", help="operators to check, as CONV_2D")
    parser.add_argument("--all", action="store_true", help="check all operators")
    parser.add_argument("--count", type=int, default=100, help="cases of each operator (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the generator (default: %(default)s)")
    parser.add_argument("--type", help="data type of operands, as uint8, where an operator takes it (default: any)")
    parser.add_argument("--show", type=int, default=3, help="wrong cases to show of each (default: %(default)s)")
    parser.add_argument("--compiled", action="store_true", help="compile each case instead of calling the reference")
    parser.add_argument(
        "--devices", nargs="+", choices=DEVICES, default=DEVICES, help="of --compiled; portable alone is much faster"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the totals there")
    args = parser.parse_args()
    if args.all == bool(args.kinds) or set(args.kinds) - set(GENERATORS):
        parser.error(f"name operators or give --all: {' '.join(GENERATORS)}")
    start = time.monotonic()
    totals: Counter[str] = Counter()
    by_kind = {}
    with tempfile.TemporaryDirectory(prefix="nnloom-conformance-") as folder:
        for kind in args.kinds or GENERATORS:
            by_kind[kind] = _operator(kind, args, Path(folder))
            totals += by_kind[kind][0]
    print(_line("all", totals))
    if args.compiled:
        print(f"{totals['on the accelerator']} on the accelerator; {time.monotonic() - start:.0f} s")
    if args.json:
        _save(args.json, args, by_kind, totals)
    return 1 if totals["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
