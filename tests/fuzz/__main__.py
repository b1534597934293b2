"""Random networks against LiteRT, for as long as one likes.

    python -m tests.fuzz --minutes 30
    python -m tests.fuzz --profile wide --seed 100000 --networks 2000 --rtl-share 0.01 --totals tests/fuzz/totals.json
    python -m tests.fuzz --profile "mixed:steps=conv,residual,flatten;batch=2;odd=0.9" --minutes 5
    python -m tests.fuzz --again build/fuzz/mixed-17/recipe.json

Each network: LiteRT's reference kernels == CPU code == golden model == runtime without TVM == RTL (a share of them),
for one of a table of accelerators or several. A fault is shrunk and written into a folder: the file, inputs, the
answers expected, and the recipe. The exit code is 1 if there was one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .check import CONFIGS, RTL_CONFIGS, STRIP_CONFIGS, Judge, Refused, Verdict, test_inputs
from .draw import Recipe
from .faults import FAULTS
from .generate import Built, build, generate
from .profiles import PROFILES, TALL, get_profile
from .shrink import shrink_file, shrink_recipe, signature
from .worker import Worker

_SEVERAL = 0.1
"""Share of the networks that are compiled for three accelerators"""


@dataclass
class Totals:
    """What a run has seen."""

    seeds: dict[str, list[int]] = field(default_factory=dict)
    """first and last by profile"""
    kinds: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    discarded: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    operators: Counter[str] = field(default_factory=Counter)
    """networks that were compared, by the operators in them"""
    configs: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    values: int = 0
    accelerated: int = 0
    faults: list[str] = field(default_factory=list)

    def add(self, profile: str, seed: int, built: Built, configs: list[str], verdict: Verdict) -> None:
        first, _ = self.seeds.get(profile, (seed, seed))
        self.seeds[profile] = [first, seed]
        self.kinds[verdict.kind] += 1
        self.values += verdict.values
        self.runs.update(verdict.runs)
        self.notes.update(verdict.notes)
        self.accelerated += verdict.accelerated > 0
        if verdict.kind == "refused":
            self.refused[verdict.reason] += 1
        if verdict.kind == "discarded":
            self.discarded[verdict.reason] += 1
        if verdict.kind == "equal":
            self.operators.update(set(built.operators))
            self.configs.update(configs)

    def to_dict(self) -> dict:
        return {
            "seeds": self.seeds,
            "networks": self.kinds.total(),
            "equal": self.kinds["equal"],
            "with_accelerated_layers": self.accelerated,
            "refused": dict(self.refused.most_common()),
            "refused_by_litert": dict(self.discarded.most_common()),
            "refused_for_one_configuration_or_device": dict(self.notes.most_common()),
            "inferences": dict(self.runs),
            "values_compared": self.values,
            "mismatches_and_tracebacks": self.kinds["fault"],
            "operators": dict(self.operators.most_common()),
            "configurations": dict(self.configs.most_common()),
        }

    def line(self) -> str:
        counts = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
        return f"{self.kinds.total()} networks: {counts}; {self.values:,} values compared, {len(self.faults)} faults"


def choose(profile: str, seed: int, *, rtl_share: float = 0.0, native_share: float = 1.0) -> dict[str, Any]:
    """How a network is checked, a function of its seed: the accelerators, whether it is simulated, has CPU code."""
    rng = np.random.default_rng([seed, 3, *profile.encode()])
    simulated, native, several = rng.random(3) < (rtl_share, native_share, _SEVERAL)
    if simulated:
        return {"configs": [str(rng.choice(RTL_CONFIGS))], "rtl": True, "seed": seed}
    if profile.partition(":")[0] == TALL.name:
        return {"configs": list(STRIP_CONFIGS), "native": bool(native), "seed": seed}
    count = 3 if several or not native else 1
    configs = [str(name) for name in rng.choice(list(CONFIGS), count, replace=False)]
    return {"configs": configs, "native": bool(native), "seed": seed}


def main() -> int:
    arguments = _arguments()
    worker_options = {"fresh": arguments.fresh_folders, "quiet": not arguments.noise, "fault": arguments.fault}
    with Worker(**worker_options) as worker:
        if arguments.again:
            return _again(arguments, worker)
        profiles = list(PROFILES) if arguments.profile == "all" else [arguments.profile]
        totals, seen = Totals(), Counter[str]()
        end = time.monotonic() + 60 * arguments.minutes if arguments.minutes else None
        said = time.monotonic()
        with contextlib.suppress(KeyboardInterrupt):  # the totals so far
            for i in range(arguments.networks or sys.maxsize):
                if end and time.monotonic() > end:
                    break
                profile, seed = profiles[i % len(profiles)], arguments.seed + i // len(profiles)
                recipe, built = generate(seed, profile)
                how = choose(profile, seed, rtl_share=arguments.rtl_share, native_share=arguments.native_share)
                verdict = worker.check(built, **how)
                totals.add(profile, seed, built, how["configs"], verdict)
                if verdict.kind == "fault" and re.search(arguments.match, verdict.reason):
                    kind = signature(verdict)
                    seen[kind] += 1
                    print(f"FAULT {profile} {seed}: {verdict.reason}", flush=True)
                    totals.faults.append(f"{profile} {seed}: {verdict.reason}")
                    if seen[kind] <= arguments.shrink:
                        _report(arguments, worker, recipe, verdict, how)
                if time.monotonic() - said > arguments.every:
                    said = time.monotonic()
                    print(totals.line(), flush=True)
                if totals.faults and arguments.stop:
                    break
    print(totals.line())
    for name, counts in (("refused", totals.refused), ("refused in part", totals.notes)):
        for reason, count in counts.most_common(20):
            print(f"  {name} {count}: {reason}")
    if arguments.totals:
        _save(arguments.totals, totals)
    return 1 if totals.faults else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, help="how long; default: --networks, or until interrupted")
    parser.add_argument("--networks", type=int, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument(
        "--profile",
        type=_profile,
        default="all",
        help="distribution of networks: "
        + ", ".join(PROFILES)
        + ", all; tall; or as mixed:steps=conv,add;batch=2;odd=0.9",
    )
    parser.add_argument("--rtl-share", type=float, default=0.0, metavar="P", help="share that is simulated too")
    parser.add_argument("--native-share", type=float, default=1.0, metavar="P", help="share that has CPU code")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="folder for failing networks")
    parser.add_argument("--shrink", type=int, default=2, metavar="N", help="networks of each kind of fault to shrink")
    parser.add_argument("--match", default="", metavar="REGEX", help="look for faults of this text alone")
    parser.add_argument("--stop", action="store_true", help="stop at the first fault")
    parser.add_argument("--totals", type=Path, help="JSON file to which the totals are added")
    parser.add_argument("--again", type=Path, metavar="RECIPE", help="check the network of a recipe once more")
    parser.add_argument(
        "--config", action="append", choices=[*CONFIGS, *STRIP_CONFIGS], help="with --again: for this accelerator"
    )
    parser.add_argument("--every", type=float, default=20, metavar="SECONDS", help="between lines of progress")
    parser.add_argument(
        "--fresh-folders", action="store_true", help="an artifact directory of its own for each network"
    )
    parser.add_argument("--fault", choices=list(FAULTS), help="with a fault of tests.fuzz.faults, which is to be found")
    parser.add_argument("--noise", action="store_true", help="text on stderr is no fault")
    return parser.parse_args()


def _profile(name: str) -> str:
    if name != "all":
        get_profile(name)
    return name


def _again(arguments: argparse.Namespace, worker: Worker) -> int:
    recipe = Recipe.from_json(arguments.again.read_text())
    built = build(recipe)
    if built is None:
        print("the recipe makes no network (any more)")
        return 2
    verdict = worker.check(built, configs=arguments.config or list(CONFIGS), seed=recipe.seed or 0)
    print(f"{verdict.kind}: {verdict.reason or f'{verdict.values} values'} ({', '.join(built.operators)})")
    return 1 if verdict.kind == "fault" else 0


def _report(
    arguments: argparse.Namespace,
    worker: Worker,
    recipe: Recipe,
    verdict: Verdict,
    how: dict[str, Any],
) -> None:
    """Shrink a fault and write it into a folder."""
    guilty = [name for name in how["configs"] if re.match(rf"(compile for |\w+, )?{re.escape(name)}:", verdict.reason)]
    how = how | {"configs": guilty or how["configs"]}
    rtl = how.get("rtl", False)

    def check(built: Built) -> Verdict:
        return worker.check(built, **how)

    small, found = shrink_recipe(recipe, verdict, check, attempts=60 if rtl else 400)
    built = build(small)
    assert built is not None
    cut, found = shrink_file(built, found, check, attempts=20 if rtl else 100)
    folder = arguments.out / re.sub(r"[^\w=,.-]+", "_", f"{recipe.profile}-{recipe.seed}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "network.tflite").write_bytes(cut.data)
    if cut.reference != cut.data:
        (folder / "litert.tflite").write_bytes(cut.reference)
    (folder / "recipe.json").write_text(small.to_json() + "\n")
    (folder / "original.json").write_text(recipe.to_json() + "\n")
    try:
        judge = Judge(cut.reference)
        cases = test_inputs(judge.inputs, np.random.default_rng([how["seed"], 7]), 3)
        for name, sets in (("inputs", cases), ("expected", [judge.run(case) for case in cases])):
            arrays = {f"{name}_{i}_{j}": value for i, case in enumerate(sets) for j, value in enumerate(case)}
            np.savez(folder / f"{name}.npz", **arrays)
    except Refused as error:
        print(f"  LiteRT: {error}")
    lines = [
        found.reason,
        f"configuration: {', '.join(how['configs'])}{', simulated' if rtl else ''}",
        f"operators: {', '.join(cut.operators)}",
        f"from {recipe.profile} {recipe.seed} of {len(recipe.steps)} steps: {verdict.reason}",
        "inputs.npz: inputs_{case}_{index}; expected.npz: what LiteRT's reference kernels answer",
    ]
    (folder / "README").write_text("\n".join(lines) + "\n")
    print(f"  {folder}: {', '.join(cut.operators)}: {found.reason}", flush=True)


def _save(path: Path, totals: Totals) -> None:
    """Add a run to the file."""
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    runs.append({"commit": commit.stdout.strip()} | totals.to_dict())
    path.write_text(json.dumps({"runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
