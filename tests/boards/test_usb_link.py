"""The USB socket as the link to the host: which boards have it, pins, clocks; what it does: tests/sim/test_usb.py."""

from __future__ import annotations

import re
import sys
from dataclasses import replace

import pytest

from nnloom.arch.errors import BuildError, ConfigError
from nnloom.arch.usb import PORTS
from nnloom.boards import all_boards, flow, get
from nnloom.boards.zynq import ZynqBoard
from nnloom.cli import main
from tests.artifacts import SMALL

OPEN = [board for board in all_boards() if not isinstance(board, ZynqBoard)]
WITH_USB = [board for board in OPEN if board.usb_pins and not board.external_memory]


def test_boards_with_a_socket():
    assert {board.name for board in WITH_USB} == {"ulx3s-85f", "ulx3s-45f", "ulx3s-25f", "ulx3s-12f"}
    for board in OPEN:
        assert board.link == "uart" and flow.with_link(board, None) is board is flow.with_link(board, "uart")
        if board in WITH_USB:
            every = [*board.pins.values(), *board.reserved_pins.values(), *board.usb_pins.values()]
            assert set(board.usb_pins) == set(PORTS) and len(set(every)) == len(every)
            assert flow.with_link(board, "usb") == replace(board, link="usb")
        else:
            with pytest.raises(ConfigError, match=r"external memory|no USB socket"):
                flow.with_link(board, "usb")


def test_what_cannot_be_a_link():
    board = get("ulx3s-25f")
    for wrong, message in (
        (replace(board, usb_pins={"usb_dp": "D15"}), "usb_pins have no usb_dn, usb_pullup"),
        (replace(board, crystal_hz=12e6), "ECP5 of 25 MHz only"),
        (replace(board, toolchain="gowin"), "ECP5 of 25 MHz only"),
    ):
        with pytest.raises(ConfigError, match=message):
            flow.with_link(wrong, "usb")
    with pytest.raises(ConfigError, match="must be one of uart, usb, not 'ethernet'"):
        flow.with_link(board, "ethernet")


def test_constraints():
    board = get("ulx3s-25f")
    tools = flow.toolchain(board)
    without, with_usb = tools.constraints(board), tools.constraints(flow.with_link(board, "usb"))
    assert with_usb.startswith(without) and "usb_" not in without
    assert with_usb[len(without) :].splitlines()[::2] == [
        'LOCATE COMP "usb_dp" SITE "D15";',
        'LOCATE COMP "usb_dn" SITE "E15";',
        'LOCATE COMP "usb_pullup" SITE "B12";',
    ]


def test_the_system_has_its_ports():
    pytest.importorskip("luna")
    board = flow.with_link(get("ulx3s-25f"), "usb")
    text = flow.system_rtlil(board, SMALL, 0)
    top = text[text.index("attribute \\top 1") :]
    ports = re.findall(r"^  wire .*(?:input|output|inout) \d+\s+\\(\w+)$", top[: top.index("\nend")], re.MULTILINE)
    assert set(ports) == {*board.pins, *PORTS} - {"uart_rx", "uart_tx"}
    # LUNA would name a second endpoint of a class after its address in memory.
    assert flow.system_rtlil(board, SMALL, 0) == text


def test_the_pll_makes_the_clocks_of_usb():
    pytest.importorskip("luna")
    from nnloom.hw.ecp5 import PLL_LIMITS, UsbPll
    from nnloom.hw.emit import emit_rtlil

    text = emit_rtlil(UsbPll(), "top")
    value = {name: int(number) for name, number in re.findall(r"parameter \\(\w+) (\d+)$", text, re.MULTILINE)}
    detector = 25e6 / value["CLKI_DIV"]
    oscillator = detector * value["CLKFB_DIV"] * value["CLKOP_DIV"]
    for frequency, limits in ((detector, PLL_LIMITS.detector_hz), (oscillator, PLL_LIMITS.oscillator_hz)):
        assert limits[0] <= frequency <= limits[1]
    assert (oscillator / value["CLKOS_DIV"], oscillator / value["CLKOS2_DIV"]) == (48e6, 12e6)
    # An edge of an output comes so many cycles of the oscillator after a common start, then one a period.
    assert value["CLKOS2_CPHASE"] % value["CLKOS_DIV"] == value["CLKOS_CPHASE"]


def test_without_luna_the_error_names_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    find_spec = sys.modules["nnloom.arch.extras"].find_spec
    monkeypatch.setattr("nnloom.arch.extras.find_spec", lambda name: None if name == "luna" else find_spec(name))
    assert main(["build", "--board", "ulx3s-25f", "--synth-only", "--link", "usb"]) == 3
    assert "luna is not installed; pip install 'nnloom[usb]'" in capsys.readouterr().err
    assert main(["build", "--board", "icebreaker", "--synth-only", "--link", "usb"]) == 2
    assert "icebreaker: no USB socket is wired to the FPGA; use the link uart" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("achieved", "reached"),
    [
        ({"clk": 130.0, "clk_48": 90.0, "clk_12": 60.0}, 130.0),
        ({"clk": 119.0, "clk_48": 90.0, "clk_12": 60.0}, 119.0),
        # A clock of USB that is missed by a tenth is a system that is.
        ({"clk": 130.0, "clk_48": 43.2, "clk_12": 60.0}, 108.0),
    ],
)
def test_every_clock_has_its_own_frequency_to_meet(achieved, reached):
    wanted = {"clk": 120.0, "clk_48": 48.0, "clk_12": 12.0}
    fmax = {f"$glbnet${name}": {"achieved": achieved[name], "constraint": wanted[name]} for name in wanted}
    fmax["$PACKER_GLB_NET$clk25$TRELLIS_IO_IN"] = {"achieved": 400.0, "constraint": 25.0}
    board = flow.with_link(get("ulx3s-85f"), "usb")
    utilization = {name: {"used": 1, "available": 2} for name in flow.toolchain(board).primitives}
    found, _ = flow._parse_report({"fmax": fmax, "utilization": utilization}, board)
    assert found == pytest.approx(reached)
    with pytest.raises(BuildError, match="no system clock"):
        flow._parse_report({"fmax": {}, "utilization": utilization}, board)
