"""Benches in Verilog for primitives that are wrapped cells: run by Icarus around models of the cells."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from amaranth.hdl import Value
from amaranth.lib import wiring

from nnloom.hw.emit import emit_verilog
from nnloom.hw.technology import MULTIPLIER_LATENCY, RAM_LATENCY, Multiplier, Ram


def icarus(folder: Path, *sources: str) -> list[str]:
    """Run the module `bench`; the lines it printed, without those that are empty."""
    files = []
    for index, source in enumerate(sources):
        (folder / f"{index}.v").write_text(source)
        files.append(str(folder / f"{index}.v"))
    subprocess.run(["iverilog", "-g2012", "-s", "bench", "-o", str(folder / "a"), *files], check=True)
    output = subprocess.run(["vvp", str(folder / "a")], check=True, capture_output=True, text=True).stdout
    return [line.strip() for line in output.splitlines() if line.strip()]


def check_multiplier(component: Multiplier, model: str, folder: Path) -> str:
    """Random and extreme operands, one pair a cycle, at the promised latency. Returns the wrapper's Verilog."""
    widths = component.a_width, component.b_width
    rng = np.random.default_rng(0)
    span = [(-(1 << w - 1), 1 << w - 1) for w in widths]
    edges = [[-(1 << w - 1), -(1 << w - 2), -1, 0, 1, (1 << w - 2) - 1, 1 << w - 2, (1 << w - 1) - 1] for w in widths]
    pairs = list(itertools.product(*edges))
    pairs += [(int(rng.integers(*span[0])), int(rng.integers(*span[1]))) for _ in range(500)]
    steps = "\n".join(f"a = {a}; b = {b}; #10;" for a, b in pairs)
    bench = f"""
    `timescale 1ps/1ps
    module bench; reg clk = 0; always #5 clk = ~clk;
      reg signed [{widths[0] - 1}:0] a; reg signed [{widths[1] - 1}:0] b; wire signed [{sum(widths) - 1}:0] p;
      dut dut(.clk(clk), .rst(1'b0), .a(a), .b(b), .p(p));
      always @(negedge clk) $display("%0d", p);
      initial begin #6 {steps} #50 $finish; end
    endmodule"""
    verilog = emit_verilog(component, "dut")
    printed = icarus(folder, bench, verilog, model)
    # The first falling edge that shows a product: three rising edges after its operands.
    assert printed[MULTIPLIER_LATENCY : MULTIPLIER_LATENCY + len(pairs)] == [str(a * b) for a, b in pairs]
    return verilog


def check_ram(component: Ram, model: str, folder: Path) -> str:
    """Words written, then read one a cycle, at the promised latency. Returns the wrapper's Verilog."""
    width, depth = component.width, component.depth
    rng = np.random.default_rng(1)
    words = {int(a): int.from_bytes(rng.bytes(16), "little") % (1 << width) for a in rng.integers(0, depth, 40)}
    words |= {0: (1 << width) - 1, depth - 1: 1}
    lanes = width // component.lane if component.lane else 1
    whole = (1 << width) - 1
    writes = ""
    for address, value in words.items():
        # Lane by lane, in any order, and with everything else inverted.
        for index in rng.permutation(lanes):
            mine = whole if lanes == 1 else ((1 << component.lane) - 1) << component.lane * int(index)
            data = value & mine | ~value & whole & ~mine
            writes += f"w_en = {lanes}'h{1 << int(index):x}; w_addr = {address}; w_data = {width}'h{data:x}; #10;\n"
    reads = "\n".join(f"r_addr = {a}; #10;" for a in words)
    bits = (depth - 1).bit_length()
    bench = f"""
    `timescale 1ps/1ps
    module bench; reg clk = 0; always #5 clk = ~clk;
      reg [{lanes - 1}:0] w_en = 0; reg [{bits - 1}:0] w_addr = 0, r_addr = 0;
      reg [{width - 1}:0] w_data; wire [{width - 1}:0] r_data;
      reg show = 0;
      dut dut(.clk(clk), .rst(1'b0), .w_en(w_en), .w_addr(w_addr), .w_data(w_data), .r_addr(r_addr),
              .r_data(r_data));
      always @(negedge clk) if (show) $display("%h", r_data);
      initial begin #6 {writes} w_en = 0; w_data = 0; w_addr = 0; #20 show = 1; {reads} #{10 * RAM_LATENCY} $finish; end
    endmodule"""
    verilog = emit_verilog(component, "dut")
    printed = icarus(folder, bench, verilog, model)
    want = [f"{v:0{-(-width // 4)}x}" for v in words.values()]
    assert printed[RAM_LATENCY : RAM_LATENCY + len(want)] == want
    return verilog


def check_same(
    component: wiring.Component,
    portable: wiring.Component,
    inputs: Sequence[Mapping[str, int]],
    output: str,
    model: str,
    folder: Path,
    *,
    valid: Callable[[Mapping[str, int]], bool] = lambda values: True,
) -> str:
    """Both see the same inputs, a set a cycle, and must have the same output after each rising edge.

    Only after cycles whose inputs are `valid`, and from the second on. Returns the first one's Verilog.
    """
    names = {"dut": component, "reference": portable}
    ports = {name: len(Value.cast(getattr(component, name))) for name in (*inputs[0], output)}
    # Before elaboration: signals become ports by their names.
    verilog = {name: emit_verilog(c, name) for name, c in names.items()}
    memory = "\n".join(" ".join(f"{values[name]:x}" for name in inputs[0]) for values in inputs)
    (folder / "inputs.txt").write_text(memory + "\n")
    declare = "".join(f"reg [{ports[name] - 1}:0] {name} = 0;" for name in inputs[0])
    connect = ", ".join(f".{name}({name})" for name in inputs[0])
    resets = {name: ", .rst(1'b0)" if "rst" in text.split(");")[0] else "" for name, text in verilog.items()}
    bench = f"""
    `timescale 1ps/1ps
    module bench; reg clk = 0; always #5 clk = ~clk;
      {declare} wire [{ports[output] - 1}:0] got, want; integer file;
      dut dut(.clk(clk){resets["dut"]}, {connect}, .{output}(got));
      reference reference(.clk(clk){resets["reference"]}, {connect}, .{output}(want));
      initial begin
        file = $fopen("{folder / "inputs.txt"}", "r"); #1;
        while ($fscanf(file, "{" ".join("%h" for _ in inputs[0])}", {", ".join(inputs[0])}) == {len(inputs[0])}) begin
          #9 $display("%h %h", got, want); #1;
        end
        $finish;
      end
    endmodule"""
    printed = icarus(folder, bench, *verilog.values(), model)
    compared = [line.split() for line, values in list(zip(printed, inputs, strict=True))[2:] if valid(values)]
    assert len(compared) > len(inputs) // 4 and len({want for _, want in compared}) > 4
    assert all(got == want and "x" not in got for got, want in compared)
    return verilog["dut"]
