"""Placements with many seeds: the fastest is taken, whoever places them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from nnloom.arch.errors import BuildError, ConfigError
from nnloom.boards import flow, get, sweep
from nnloom.cli import main

BOARD = get("ulx3s-85f")
REACHED = {1: 119.0, 2: 124.5, 3: 0.0, 4: 124.5, 5: 121.0}
"""Seed -> MHz; 0: the router fails"""


def placed(seed: int, netlist: sweep.Netlist) -> sweep.Placement:
    """As `sweep.place_seed`, in no time."""
    assert set(netlist.files) == {"top.json", "top.lpf"} and netlist.files["top.json"] == b"{}"
    fmax = REACHED[seed]
    met = fmax * 1e6 >= netlist.clock_hz
    files = {flow.toolchain(netlist.board).bitstream_file: b"bits of seed %d" % seed} if met else {}
    return sweep.Placement(fmax_mhz=fmax, resources={}, files=files, error="" if fmax else "router gave up")


def placed_by_mortals(seed: int, netlist: sweep.Netlist) -> sweep.Placement:
    """The first worker that gets seed 2 dies of it."""
    grave = Path(netlist.files["top.lpf"].decode())
    if seed == 2 and not grave.exists():
        grave.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return placed(seed, netlist)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "place_seed", placed)
    (tmp_path / "top.json").write_text("{}")
    (tmp_path / "top.lpf").write_text(str(tmp_path / "grave"))
    return tmp_path


def test_the_fastest_is_taken_and_the_others_are_noted(folder):
    said = []
    seed, best = sweep.sweep(BOARD, folder, clock_hz=120e6, seeds=[1, 2, 3, 4, 5], workers=1, progress=said.append)
    assert (seed, best.fmax_mhz) == (2, 124.5)
    assert (folder / "nnloom.bit").read_bytes() == b"bits of seed 2"
    want = {"1": 119.0, "2": 124.5, "3": None, "4": 124.5, "5": 121.0}
    assert json.loads((folder / sweep.SWEEP_FILE).read_text()) == want
    assert "place and route (nextpnr): seed 3 failed, 3 of 5 seeds" in said


def test_a_clock_that_no_seed_meets_is_an_error_that_names_all(folder):
    with pytest.raises(BuildError, match=r"timing not met: 119\.0, failed MHz with seeds 1, 3, .*\(router gave up\)"):
        sweep.sweep(BOARD, folder, clock_hz=120e6, seeds=[1, 3], workers=1)
    assert not (folder / "nnloom.bit").exists()


def test_a_worker_of_a_scheduler_that_dies_costs_no_placement(folder, monkeypatch):
    distributed = pytest.importorskip("dask.distributed")
    monkeypatch.setattr(sweep, "place_seed", placed_by_mortals)
    options = dict(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with distributed.LocalCluster(protocol="tcp", host="127.0.0.1", **options) as cluster:
        seed, _ = sweep.sweep(BOARD, folder, clock_hz=120e6, seeds=[1, 2, 3, 4, 5], scheduler=cluster.scheduler_address)
    assert seed == 2 and (folder / "grave").exists()
    assert (folder / "nnloom.bit").read_bytes() == b"bits of seed 2"


def test_a_worker_of_this_machine_that_dies_is_an_error(folder, monkeypatch):
    monkeypatch.setattr(sweep, "place_seed", placed_by_mortals)
    with pytest.raises(ConfigError, match="a worker process ended"):
        sweep.sweep(BOARD, folder, clock_hz=120e6, seeds=[2], workers=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "1-"], "1- is no list of seeds, such as 1-8 or 1,3,7"),
        (["--seeds", "4-1"], "1 to 1000 seeds"),
        (["--seeds", "1-3", "--seed", "1"], "give --seed or --seeds, not both"),
        (["--jobs", "2"], "--jobs and --scheduler are for --seeds"),
        (["--seeds", "1-3", "--jobs", "0"], "0 is no number from 1 to 9999"),
        (["--seeds", "1-3", "--scheduler", "here"], "here: not the address of a Dask scheduler"),
    ],
)
def test_options(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(flow, "system_rtlil", lambda *arguments: "")
    monkeypatch.setattr(
        flow,
        "synthesize",
        lambda board, rtlil, folder: [(folder / name).write_text("{}") for name in ("top.json", "top.lpf")],
    )
    try:
        code = main(["build", "--board", "ulx3s-85f", "--no-cache", *options])
    except SystemExit as error:
        code = error.code
    assert code == 2 and message in capsys.readouterr().err


@pytest.mark.fpga
@pytest.mark.slow
def test_two_seeds_of_a_small_system(tmp_path):
    """Real place and route, in processes of their own."""
    board = get("icebreaker")
    result = flow.place_and_route(
        board, board.config, tmp_path, seeds=[board.seed, board.seed + 1], sweep=flow.Sweep(workers=2)
    )
    clocks = json.loads((tmp_path / sweep.SWEEP_FILE).read_text())
    assert result.fmax_mhz == max(clock for clock in clocks.values() if clock) >= result.clock_mhz
    assert (tmp_path / result.bitstream).stat().st_size > 100_000
