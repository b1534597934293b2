"""Places of multipliers and memories on a large ECP5."""

import itertools
import json
import re

import numpy as np
import pytest
from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from nnloom.boards import flow, get
from nnloom.boards.ecp5_floorplan import SITES, Sites, _assign, floorplan, lanes_of
from nnloom.hw.emit import emit_rtlil

BOARD = get("ulx3s-85f")


def netlist(lanes: int = 16, dsp_taps: int = 7, pixels: int = 1) -> dict[str, str]:
    """Cells as the default system has them, by name."""
    top = "system.accelerator"
    cells = {
        f"{top}.mac.multiplier_{pixel}_{lane}_{tap}.dsp": "MULT18X18D"
        for pixel in range(pixels)
        for lane in range(lanes)
        for tap in range(dsp_taps)
    }
    for lane in range(lanes):
        cells |= {f"{top}.requantizer.{half}_{lane}.dsp": "MULT18X18D" for half in ("low", "high")}
        cells |= {f"{top}.weights$356.memory_{lane}.block_{i}": "DP16KD" for i in range(8)}
        cells[f"{top}.requantizer.tables.memory_{lane}.block_0"] = "DP16KD"
    cells[f"{top}.activations.row_product.dsp"] = "MULT18X18D"
    cells |= {f"{top}.activations.bank_{i % 4}_even.block_{i}": "DP16KD" for i in range(32)}
    cells |= {f"{top}.program.block_{i}": "DP16KD" for i in range(4)}
    cells |= {f"system.link.{part}.buffer.block_0": "DP16KD" for part in ("receiver", "transmitter")}
    cells |= {f"{top}.mac.multiplier_0_{lane}_8.pair_0_TRELLIS_FF_Q": "TRELLIS_FF" for lane in range(lanes)}
    return cells


def target(sites: Sites, cell: str) -> tuple[int, int]:
    return sites.link if ".link." in cell else sites.control if ".program." in cell else sites.middle


def position(place: str) -> tuple[int, int]:
    x, y = re.match(r"X(\d+)/Y(\d+)/", place).groups()
    return int(x), int(y)


def test_every_block_of_a_lane_gets_a_place_of_its_own_near_the_lane():
    cells = netlist()
    places = floorplan("85k", cells)
    lanes, members = lanes_of({cell: kind for cell, kind in cells.items() if kind != "TRELLIS_FF"})
    assert lanes == 16 and set(places) == {cell for cell, kind in cells.items() if kind != "TRELLIS_FF"}
    assert len(set(places.values())) == len(places) == 16 * (7 + 2 + 8 + 1) + 39
    sites = SITES["85k"]
    known = {"MULT18X18D": {name for *_, name in sites.dsp()}, "DP16KD": {name for *_, name in sites.ram()}}
    assert {kind: len(names) for kind, names in known.items()} == {k: BOARD.primitives[k] for k in known}
    for cell, place in places.items():
        assert place in known[cells[cell]]
        x, y = sites.lane(members[cell], lanes) if cell in members else target(sites, cell)
        assert abs(position(place)[0] - x) + abs(position(place)[1] - y) < 40


@pytest.mark.parametrize(
    ("device", "cells"),
    [("45k", netlist()), ("85k", netlist(lanes=4)), ("85k", netlist(pixels=2)), ("85k", {"top.x": "TRELLIS_FF"})],
    ids=["device without a table", "small engine", "more than there are", "no engine"],
)
def test_without_a_floorplan(device, cells):
    assert floorplan(device, cells) == {}


def test_assignment_is_the_cheapest():
    rng = np.random.default_rng(3)
    for _ in range(40):
        rows = int(rng.integers(1, 5))
        cost = rng.integers(0, 9, (rows, rows + int(rng.integers(0, 3)))).astype(float)
        got = _assign(cost)
        least = min(sum(cost[range(rows), order]) for order in itertools.permutations(range(cost.shape[1]), rows))
        assert len(set(got)) == rows and cost[range(rows), got].sum() == least


@pytest.mark.fpga
def test_nextpnr_knows_the_places(tmp_path):
    """Blocks at the corners of the table, through synthesis and placement."""
    from nnloom.hw.ecp5 import BlockRam, DspMultiplier
    from nnloom.hw.emit import run_yosys

    tools, sites = flow.toolchain(BOARD), SITES["85k"]
    dsp, ram = ([s[2] for s in kind()] for kind in (sites.dsp, sites.ram))
    corners = {
        f"{name}_{i}": place
        for name, places in (("dsp", dsp), ("ram", ram))
        for i, place in enumerate((places[0], places[51], places[-52], places[-1]))
    }

    class Blocks(wiring.Component):
        inputs: In(1)
        out: Out(1)

        def elaborate(self, platform):
            m = Module()
            value = Signal(16)
            results = []
            for name in corners:
                part = DspMultiplier(a_width=8, b_width=8) if "dsp" in name else BlockRam(width=9, depth=2048)
                m.submodules[name] = part
                results.append(part.p if "dsp" in name else part.r_data)
                ports = (part.a, part.b) if "dsp" in name else (part.w_data, part.w_addr, part.r_addr, part.w_en)
                m.d.comb += [port.eq(value) for port in ports]
            m.d.sync += [value.eq(Cat(self.inputs, value)), self.out.eq(Cat(results).xor())]
            return m

    (tmp_path / "top.il").write_text(emit_rtlil(Blocks(), "top"))
    run_yosys(f"read_rtlil top.il\n{tools.synthesis}\n", folder=tmp_path)
    design = json.loads((tmp_path / "top.json").read_text())
    cells = design["modules"]["top"]["cells"]
    for name, cell in cells.items():
        if cell["type"] in ("MULT18X18D", "DP16KD"):
            cell["attributes"]["BEL"] = corners[name.partition(".")[0]]
    (tmp_path / "top.json").write_text(json.dumps(design))
    (tmp_path / "top.lpf").write_text("")
    tools.run_nextpnr(BOARD, ["--no-route", "--lpf-allow-unconstrained", "--write", "placed.json"], tmp_path)
    placed = json.loads((tmp_path / "placed.json").read_text())["modules"]["top"]["cells"]
    got = {
        n.partition(".")[0]: c["attributes"]["NEXTPNR_BEL"]
        for n, c in placed.items()
        if c["type"] in ("MULT18X18D", "DP16KD")
    }
    assert got == corners
