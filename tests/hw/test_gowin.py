"""Gowin primitives: the wrappers against behavioural models of the cells, the PLL's limits."""

from __future__ import annotations

import re

import pytest

from nnloom.hw.device import block_shape
from nnloom.hw.emit import emit_rtlil, run_yosys
from nnloom.hw.gowin import PLL_LIMITS, BlockRam, DspMultiplier, FanoutFlipFlops, GowinTechnology
from nnloom.hw.technology import Multiplier, write_lane
from tests.hw.verilog_benches import check_multiplier, check_ram

# Behaviour of the cells in the modes that the wrappers use (Gowin UG287 and UG285); yosys has black boxes only.
MULTIPLIER = """
module {name}(input [{w}-1:0] A, SIA, B, SIB, input ASIGN, BSIGN, ASEL, BSEL, CE, CLK, RESET,
              output [2*{w}-1:0] DOUT, output [{w}-1:0] SOA, SOB);
  parameter AREG=0, BREG=0, OUT_REG=0, PIPE_REG=0, ASIGN_REG=0, BSIGN_REG=0, SOA_REG=0, MULT_RESET_MODE="SYNC";
  reg signed [{w}-1:0] ar, br; reg signed [2*{w}-1:0] pipe, out;
  initial if (!(AREG && BREG && OUT_REG && PIPE_REG)) $fatal(1, "registers");
  always @(posedge CLK) begin
    if (!(ASIGN && BSIGN && CE) || ASEL || BSEL || RESET) $fatal(1, "controls");
    ar <= A; br <= B; pipe <= ar * br; out <= pipe;
  end
  assign DOUT = out;
endmodule
"""

# Port A writes whenever it is enabled, with byte enables in the low address bits of the wide modes.
RAM = """
module {name}(input CLKA, CEA, CLKB, CEB, OCE, RESETA, RESETB, input [13:0] ADA, ADB, input [2:0] BLKSELA, BLKSELB,
              input [{pins}-1:0] DI, output [{pins}-1:0] DO);
  parameter READ_MODE=0, BIT_WIDTH_0={pins}, BIT_WIDTH_1={pins}, BLK_SEL_0=0, BLK_SEL_1=0, RESET_MODE="SYNC";
  localparam shift = BIT_WIDTH_0 >= 32 ? 5 : BIT_WIDTH_0 >= 16 ? 4 : BIT_WIDTH_0 >= 8 ? 3 : BIT_WIDTH_0 / 2;
  localparam bytes = BIT_WIDTH_0 >= 32 ? 4 : BIT_WIDTH_0 >= 16 ? 2 : 0;
  localparam unit = BIT_WIDTH_0 / (bytes ? bytes : 1);
  reg [BIT_WIDTH_0-1:0] memory [0:(16384 >> shift)-1];
  reg [BIT_WIDTH_0-1:0] data;
  integer i;
  initial if (READ_MODE || BIT_WIDTH_0 != BIT_WIDTH_1 || BLK_SEL_0 || BLK_SEL_1) $fatal(1, "mode");
  always @(posedge CLKA) if (CEA && BLKSELA == 0) begin
    if (!bytes) memory[ADA >> shift] <= DI;
    for (i = 0; i < bytes; i = i + 1) if (ADA[i]) memory[ADA >> shift][i*unit +: unit] <= DI[i*unit +: unit];
  end
  always @(posedge CLKB) if (CEB && OCE && BLKSELB == 0) data <= memory[ADB >> shift];
  assign DO = data;
endmodule
"""


@pytest.mark.icarus
@pytest.mark.parametrize(("widths", "width"), [((8, 8), 9), ((18, 18), 18), ((16, 17), 18)])
def test_dsp_multiplier_around_a_model_of_the_cell(tmp_path, widths, width):
    name = f"MULT{width}X{width}"
    model = MULTIPLIER.format(name=name, w=width)
    verilog = check_multiplier(DspMultiplier(a_width=widths[0], b_width=widths[1]), model, tmp_path)
    assert f"{name} #(" in verilog


@pytest.mark.icarus
@pytest.mark.parametrize(
    ("width", "depth", "blocks"),
    [(70, 512, 2), (40, 1024, 3), (20, 2048, 3), (6, 4096, 2), (3, 8192, 2), (2, 16384, 2), (8, 300, 1)],
)
def test_block_ram_around_a_model_of_the_cell(tmp_path, width, depth, blocks):
    pins = 36 if block_shape(depth).width % 9 == 0 else 32
    name = "SDPX9B" if pins == 36 else "SDPB"
    verilog = check_ram(BlockRam(width=width, depth=depth), RAM.format(name=name, pins=pins), tmp_path)
    assert verilog.count(f"{name} #(") == blocks


@pytest.mark.icarus
@pytest.mark.parametrize(("width", "depth", "blocks"), [(63, 512, 2), (72, 1024, 4), (45, 2048, 5), (24, 4096, 6)])
def test_lanes_of_block_ram_are_written_alone(tmp_path, width, depth, blocks):
    pins = 36 if block_shape(depth).width % 9 == 0 else 32
    name = "SDPX9B" if pins == 36 else "SDPB"
    ram = BlockRam(width=width, depth=depth, lane=write_lane(depth))
    assert check_ram(ram, RAM.format(name=name, pins=pins), tmp_path).count(f"{name} #(") == blocks


def test_a_memory_deeper_than_a_block_is_refused():
    with pytest.raises(ValueError, match="at most 16384 words"):
        block_shape(16385)


def _cells(component, folder) -> dict[str, int]:
    """Cells after synthesis as the flow does it."""
    from nnloom.boards.gowin_flow import GowinToolchain

    (folder / "top.il").write_text(emit_rtlil(component, "top"))
    run_yosys(f"read_rtlil top.il\n{GowinToolchain.synthesis}\ntee -o cells.txt stat\n", folder=folder)
    return {
        name: int(count)
        for count, name in re.findall(r"^ +(\d+) +([A-Z]\w+)$", (folder / "cells.txt").read_text(), re.M)
    }


@pytest.mark.fpga
def test_synthesis_keeps_the_primitives(tmp_path):
    cells = _cells(FanoutFlipFlops(width=3, count=4), tmp_path)
    assert cells["DFF"] == 12
    cells = _cells(DspMultiplier(a_width=8, b_width=8), tmp_path)
    assert cells["MULT9X9"] == 1
    assert "DFF" not in cells
    cells = _cells(Multiplier(a_width=8, b_width=8), tmp_path)
    assert not {name for name in cells if name.startswith("MULT")}


def test_technology_spreads_lut_multipliers_evenly():
    technology = GowinTechnology(lut_multipliers=10, small_multipliers=40)
    made = [technology.multiplier(a_width=8, b_width=8) for _ in range(40)]
    made.append(technology.multiplier(a_width=18, b_width=18))
    for component in made:
        component._MustUse__silence = True  # never elaborated, on purpose
    kinds = [type(component) for component in made]
    for i in range(0, 40, 4):
        assert kinds[i : i + 4].count(Multiplier) == 1
    assert kinds[40] is DspMultiplier


@pytest.mark.parametrize("mhz", [27, 39, 54, 60, 67.5, 81, 100, 108])
def test_pll_settings_keep_the_limits_of_the_data_sheet(mhz):
    settings = PLL_LIMITS.settings(27e6, mhz * 1e6)
    assert 0.98 * mhz <= settings.output_hz(27e6) / 1e6 <= mhz * 1.000001
    assert 500e6 <= settings.vco_hz(27e6) <= 1250e6
    assert 3e6 <= 27e6 / settings.input_div <= 500e6


def test_impossible_clocks_are_refused():
    with pytest.raises(ValueError, match="no PLL setting"):
        PLL_LIMITS.settings(27e6, 2e9)
