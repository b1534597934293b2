"""Random networks: LiteRT == CPU code == golden model == without TVM == RTL. Longer: `python -m tests.fuzz`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .__main__ import Totals, choose
from .check import CONFIGS, RTL_CONFIGS, Verdict
from .generate import Built, build, generate
from .profiles import PROFILES
from .shrink import shrink_recipe
from .worker import Worker


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """One process for all: it takes seconds to start."""
    with Worker() as started:
        yield started


def run(worker: Worker, profile: str, seeds: range, native_share: float) -> Totals:
    """Check networks; at the first fault shrink it a little and say how to see it again."""
    totals = Totals()
    for seed in seeds:
        recipe, built = generate(seed, profile)
        how = choose(profile, seed, native_share=native_share)
        verdict = worker.check(built, **how)
        if verdict.kind == "fault":

            def check(smaller: Built, how: dict = how) -> Verdict:
                return worker.check(smaller, **how)

            small, found = shrink_recipe(recipe, verdict, check, attempts=40)
            rebuilt = build(small)
            assert rebuilt is not None
            pytest.fail(
                f"{profile} {seed}: {verdict.reason}; shrunk to {', '.join(rebuilt.operators)}: {found.reason}; "
                f"python -m tests.fuzz --profile {profile} --seed {seed} --networks 1"
            )
        totals.add(profile, seed, built, how["configs"], verdict)
    return totals


def judge(totals: Totals, networks: int) -> None:
    """Nothing was refused, and enough was compared."""
    assert not [*totals.refused, *totals.notes]
    assert totals.kinds["equal"] >= 0.8 * networks
    assert totals.kinds["discarded"] <= 0.1 * networks
    assert totals.accelerated >= 0.4 * networks


@pytest.mark.parametrize(
    ("profile", "count"), [("mixed", 100), ("wide", 100), ("chains", 30), ("states", 40), ("uint8", 20)]
)
def test_networks_without_cpu_code(worker, profile, count):
    judge(run(worker, profile, range(count), native_share=0.0), count)


def test_networks_in_strips(worker):
    """Larger than the activation memory, on a board with external memory."""
    judge(run(worker, "tall", range(4), native_share=0.0), 4)


@pytest.mark.parametrize("profile", PROFILES)
def test_networks_with_cpu_code(worker, profile):
    totals = run(worker, profile, range(1000, 1006), native_share=1.0)
    assert totals.runs["cpu"] > 5 and totals.runs["model"] > 5 and totals.runs["portable"] > 5


@pytest.mark.slow
@pytest.mark.parametrize("profile", PROFILES)
def test_more_networks_with_cpu_code(worker, profile):
    totals = run(worker, profile, range(2000, 2100), native_share=1.0)
    judge(totals, 100)
    assert len(totals.configs) > len(CONFIGS) / 2


@pytest.mark.slow
@pytest.mark.verilator
@pytest.mark.parametrize("config", RTL_CONFIGS)
def test_networks_in_rtl(worker, config):
    simulated = 0
    for seed in range(3000, 3060):
        _, built = generate(seed, ("mixed", "chains")[seed % 2])
        quick = worker.check(built, configs=[config], native=False, seed=seed)
        assert quick.kind != "fault", (seed, quick)
        if quick.kind == "equal" and quick.accelerated:
            verdict = worker.check(built, configs=[config], rtl=True, seed=seed)
            assert verdict.kind == "equal" and verdict.runs["sim"], (seed, verdict)
            simulated += 1
        if simulated == 5:
            return
    pytest.fail(f"only {simulated} networks could be simulated")
