"""The references of operators against LiteRT's: `python -m tests.conformance --all`."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.errors import InputError, UnsupportedOperatorError
from nnloom.arch.reference import STATES, evaluate, initial_state, is_exact
from nnloom.arch.reference.hybrid import is_hybrid
from tests.one_operator import Case, interpret, read
from tests.operator_cases import GENERATORS, cases


@dataclass(frozen=True)
class Outcome:
    """What came of a case, and why: "passed", "refused", "differs" (as `is_exact` says it may) or "wrong"."""

    status: str
    detail: str = ""


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
    calls = 3 if states else 1
    try:
        for _ in range(calls):
            got = evaluate(op, inputs)
            for index, state in zip(states, got[len(got) - len(states) :], strict=True):
                inputs[index] = state
    except (InputError, UnsupportedOperatorError) as error:
        return Outcome("refused", str(error))
    results = got[: len(got) - len(states)]
    for index, (ours, theirs) in enumerate(zip(results, interpret(case.model, case.inputs, calls), strict=True)):
        if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
            return Outcome("wrong", f"output {index}: {ours.dtype}{ours.shape}, not {theirs.dtype}{theirs.shape}")
        if not np.array_equal(ours, theirs, equal_nan=ours.dtype == np.float32):
            reason = is_exact(op)
            tolerance = 2e-2 if states and is_hybrid(op, 0, 2) else 1e-4
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
    columns = (f"{status} {counts[status]:5}" for status in ("passed", "refused", "differs", "wrong"))
    return "  ".join([f"{name:28}", *columns])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: python -m tests.conformance --all --count 200 --seed 7"
    )
    parser.add_argument("kinds", nargs="*", metavar="OPERATOR", help="operators to check, as CONV_2D")
    parser.add_argument("--all", action="store_true", help="check all operators")
    parser.add_argument("--count", type=int, default=100, help="cases of each operator (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the generator (default: %(default)s)")
    parser.add_argument("--show", type=int, default=3, help="wrong cases to show of each (default: %(default)s)")
    args = parser.parse_args()
    if args.all == bool(args.kinds) or set(args.kinds) - set(GENERATORS):
        parser.error(f"name operators or give --all: {' '.join(GENERATORS)}")
    totals: Counter[str] = Counter()
    for kind in args.kinds or GENERATORS:
        counts: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        wrong = []
        for case in cases(args.seed, args.count, [kind]):
            outcome = check(case)
            counts[outcome.status] += 1
            if outcome.status in ("refused", "differs"):
                reasons[f"{outcome.status}: {outcome.detail.removeprefix(f'{kind}: ')}"] += 1
            elif outcome.status == "wrong":
                wrong.append(f"{case.name}: {outcome.detail}")
        totals += counts
        print(_line(kind, counts))
        for reason, number in reasons.most_common():
            print(f"    {number} {reason}")
        for line in wrong[: args.show]:
            print(f"    {line}")
        sys.stdout.flush()
    print(_line("all", totals))
    return 1 if totals["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
