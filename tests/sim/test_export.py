"""`nnloom export`: Icarus, Verilator and Yosys take what it writes; its test bench passes, or fails as it should."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nnloom.arch import isa
from nnloom.arch.artifact import Artifact
from nnloom.arch.errors import ArtifactError, ConfigError
from nnloom.cli import main
from nnloom.compiler.graph import LayerGraph
from nnloom.hw.emit import run_yosys
from nnloom.runtime import InferenceSession
from nnloom.sim.build import verilator_root
from nnloom.sim.export import export, random_inputs
from nnloom.sim.portable.simulators import simulator_environment
from tests.artifacts import make_artifact
from tests.graphs import random_graph, random_layer, tensor
from tests.sim.test_build import TINY

TOPS = ("nnloom_engine", "nnloom_axi_lite", "nnloom_wishbone")


def _make(path):
    make_artifact(path, random_graph(np.random.default_rng(2), ["conv", "depthwise"]))
    return path


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return _make(tmp_path_factory.mktemp("export") / "artifact")


@pytest.fixture(scope="module")
def exported(artifact):
    output = artifact.parent / "rtl"
    assert main(["export", str(artifact), "-o", str(output), "--json"]) == 0
    return output


@pytest.fixture
def copy(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / "rtl"))


def run_bench(folder, *arguments, **environment):
    """pytest as a user runs it, on a computer that has nnloom's environment but not nnloom's folder."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, env={**env, **environment}, capture_output=True, text=True)


def test_files_and_map(exported, artifact):
    values = json.loads((exported / "export.json").read_text())
    assert [image["window"] for image in values["images"]] == ["PROGRAM", "WEIGHTS"]
    loaded = Artifact.load(artifact)
    config = loaded.manifest.config
    # The images are the artifact's.
    words = [int(t, 16) for t in (exported / "images/program.hex").read_text().split() if not t.startswith("@")]
    np.testing.assert_array_equal(words, loaded.program)
    memory = np.zeros(len(loaded.weights) * isa.weight_stride(config), np.uint8)
    index = 0
    for token in (exported / "images/weights.hex").read_text().split():
        if token.startswith("@"):
            index = 4 * int(token[1:], 16)
            continue
        memory[index : index + 4] = np.array([int(token, 16)], "<u4").view(np.uint8)
        index += 4
    rows = memory.reshape(len(loaded.weights), -1)[:, : config.weight_word_bytes]
    np.testing.assert_array_equal(rows, loaded.weights)
    # The map has every window and register.
    table = list(csv.DictReader((exported / "registers/nnloom.csv").open()))
    found = {(row["kind"], row["name"]): int(row["value"], 0) for row in table}
    assert all(found["window", w.name] == w for w in isa.HostAddress)
    assert all(found["register", r.name] == isa.HostAddress.REGISTERS + r for r in isa.Register)
    assert all(row["doc"] for row in table if row["kind"] != "constant" and row["name"] != "BUSY")
    page = (exported / "README.md").read_text()
    assert all(f"## Ports of `{top}`" in page for top in TOPS) and "$" not in page.replace("$readmemh", "")
    for location in (*loaded.manifest.regions[0].inputs, *loaded.manifest.regions[0].outputs):
        assert f"`{location.name}`" in page


def test_the_c_header_compiles(exported, tmp_path):
    (tmp_path / "a.c").write_text(
        '#include "nnloom.h"\nint a[NNLOOM_REG_CONTROL == 0x10 ? 1 : -1];\n'
        "unsigned b = NNLOOM_WINDOW_WEIGHTS + NNLOOM_WEIGHT_STRIDE + NNLOOM_STATUS_DONE + NNLOOM_ERROR_WATCHDOG;\n"
    )
    command = ["gcc", "-std=c99", "-Wall", "-Werror", "-pedantic", "-fsyntax-only", "-I", str(exported / "registers")]
    subprocess.run([*command, str(tmp_path / "a.c")], check=True)


def test_names_are_plain(exported):
    for top in TOPS:
        text = (exported / "rtl" / f"{top}.v").read_text()
        # No escaped name, none with a number of Amaranth's or of Yosys.
        assert not re.findall(r"\S*[\\$].*", re.sub(r"\$(?:un)?signed\(", "(", text))
        header = re.search(rf"^module {top}\((.*?)\);", text, re.MULTILINE | re.DOTALL)[1]
        ports = re.split(r"[,\s]+", header)
        # Verilator's class of the module has a method of this name.
        assert "trace" not in ports and {"clk", "rst", "busy"} <= set(ports)


@pytest.mark.parametrize("top", TOPS)
def test_verilator_and_yosys_take_it(exported, tmp_path, top):
    files = [exported / "rtl" / f"{name}.v" for name in dict.fromkeys((TOPS[0], top))]
    for file in files:
        shutil.copy(file, tmp_path)
    env = {**os.environ, **simulator_environment()}
    command = ["perl", str(verilator_root() / "bin" / "verilator"), "--lint-only", "-Wno-lint", "-Wno-style"]
    lint = subprocess.run([*command, "--top-module", top, *map(str, files)], env=env, capture_output=True, text=True)
    assert lint.returncode == 0, lint.stderr
    if top != TOPS[0]:
        names = " ".join(file.name for file in files)
        run_yosys(f"read_verilog {names}\nhierarchy -check -top {top}\nproc\ncheck -assert\n", folder=tmp_path)


LITEX_SOC = """
import sys
from litex.build.generic_platform import Pins, Subsignal
from litex.build.io import CRG
from litex.build.sim import SimPlatform
from litex.soc.integration.soc import SoCRegion
from litex.soc.integration.soc_core import SoCMini
from litex.soc.interconnect import wishbone
from nnloom_litex import Nnloom

SIGNALS = {"cyc": 1, "stb": 1, "we": 1, "adr": 30, "sel": 4, "dat_w": 32, "dat_r": 32, "ack": 1}
host = ("host", 0, *(Subsignal(name, Pins(width)) for name, width in SIGNALS.items()))
platform = SimPlatform("SIM", [("sys_clk", 0, Pins(1)), ("sys_rst", 0, Pins(1)), host])
soc = SoCMini(platform, clk_freq=int(1e8))
soc.crg = CRG(platform.request("sys_clk"), platform.request("sys_rst"))
pads = platform.request("host")
bus = wishbone.Interface(data_width=32, address_width=32, addressing="word")
soc.comb += [getattr(bus, name).eq(getattr(pads, name)) for name in SIGNALS if name not in ("dat_r", "ack")]
soc.comb += [pads.dat_r.eq(bus.dat_r), pads.ack.eq(bus.ack)]
soc.bus.add_master("host", bus)
soc.nnloom = Nnloom(platform, "rtl")
soc.bus.add_slave("nnloom", soc.nnloom.bus, SoCRegion(origin=0x80000000, size=0x80000000, cached=False))
soc.finalize()
with open("soc.v", "w") as file:
    file.write(str(platform.get_verilog(soc, name="soc")))
"""

LITEX_BENCH = """
module tb;
  reg clk = 0, rst = 1, on = 0, we = 0; reg [31:0] address, data; wire [31:0] answer; wire ack;
  always #5 clk = ~clk;
  soc soc(.sys_clk(clk), .sys_rst(rst), .sim_trace(1'b0), .host_cyc(on), .host_stb(on), .host_we(we),
          .host_sel(4'hf), .host_adr(address[31:2]), .host_dat_w(data), .host_dat_r(answer), .host_ack(ack));
  task access(input w, input [31:0] a, d); begin
    @(negedge clk) on = 1; we = w; address = a; data = d;
    @(negedge clk); while (!ack) @(negedge clk);
    if (!w) $display("%h", answer);
    @(posedge clk) #1 on = 0;
  end endtask
  initial begin
    #100 rst = 0; #50;
    access(0, 32'h80000000, 0);
    access(1, 32'hb0000000, 32'h04030201); access(1, 32'hb0000004, 32'h08070605);
    access(0, 32'hb0000000, 0); access(0, 32'hb0000004, 0);
    $finish;
  end
  initial #100000 $finish;
endmodule
"""


@pytest.mark.icarus
def test_a_litex_soc_reaches_it(copy):
    pytest.importorskip("litex", reason="needs `pip install litex`")
    (copy / "soc.py").write_text(LITEX_SOC)
    (copy / "tb.v").write_text(LITEX_BENCH)
    subprocess.run([sys.executable, "soc.py"], cwd=copy, check=True, capture_output=True)
    files = ["tb.v", "soc.v", "rtl/nnloom_engine.v", "rtl/nnloom_wishbone.v"]
    subprocess.run(["iverilog", "-g2012", "-o", "tb", *files], cwd=copy, check=True)
    done = subprocess.run(["vvp", "tb"], cwd=copy, check=True, capture_output=True, text=True)
    assert done.stdout.split()[:3] == [f"{isa.MAGIC:08x}", "04030201", "08070605"]


@pytest.mark.icarus
def test_its_bench_passes(copy):
    done = run_bench(copy, "-k", "engine", SIM="icarus")
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.icarus
@pytest.mark.slow
def test_its_bench_fails_for_a_wrong_byte(copy):
    case = copy / "cases" / "case_1.txt"
    lines = case.read_text().splitlines()
    index = max(i for i, line in enumerate(lines) if line.startswith("r 3"))
    kind, address, word, mask = lines[index].split()
    bit = int(mask, 16) & -int(mask, 16)
    lines[index] = f"{kind} {address} {int(word, 16) ^ bit:08x} {mask}"
    case.write_text("\n".join(lines) + "\n")
    done = run_bench(copy, "-k", "engine", SIM="icarus")
    assert done.returncode == 1 and f"case_1.txt:{index + 1}" in done.stdout


@pytest.mark.icarus
@pytest.mark.slow
def test_its_bench_passes_behind_buses_and_with_waves(copy):
    done = run_bench(copy, SIM="icarus", WAVES="1")
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout + done.stderr
    dump = re.search(r'\[dumpfile\] "(.*)"', (copy / "nnloom.gtkw").read_text())[1]
    import pywellen

    names = {v.full_name for v in pywellen.Waveform(str(copy / dump)).all_vars()}
    # What the save file shows is in the waves, under the names of the source.
    signals = re.findall(r"^(nnloom_engine\.\S+?)(?:\[[\d:]+\])?$", (copy / "nnloom.gtkw").read_text(), re.MULTILINE)
    assert "nnloom_engine.accelerator.sequencer.completed" in signals and set(signals) <= names
    assert not [name for name in names if "$" in name or "\\" in name]


@pytest.mark.verilator
@pytest.mark.slow
def test_its_bench_passes_in_verilator(copy):
    done = run_bench(copy, "-k", "engine", SIM="verilator")
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "simulator",
    [pytest.param("verilator", marks=pytest.mark.verilator), pytest.param("icarus", marks=pytest.mark.icarus)],
)
def test_the_system(tmp_path, simulator):
    """Of a small engine, with a layer: Icarus takes a minute and a half for what the serial line carries."""
    rng = np.random.default_rng(0)
    layer = random_layer(rng, "conv", tensor(rng, "x", 3, 3, 4))
    make_artifact(tmp_path / "artifact", LayerGraph("region", layer.inputs, (layer.output,), (layer,)), TINY)
    export(tmp_path / "artifact", tmp_path / "soc", system=True)
    done = run_bench(tmp_path / "soc", SIM=simulator)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


def test_recorded_outputs_are_the_golden_models(exported, artifact):
    with InferenceSession(artifact, "model") as session:
        for index in range(2):
            with np.load(exported / "cases" / f"case_{index}_inputs.npz") as inputs:
                got = session.run(dict(inputs))
            with np.load(exported / "cases" / f"case_{index}_outputs.npz") as want:
                assert set(got) == set(want.files)
                for name, value in got.items():
                    np.testing.assert_array_equal(value, want[name])


def test_only_exports_are_replaced(exported, artifact, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="is not an export of nnloom; choose another -o"):
        export(artifact, tmp_path / "mine")
    shutil.copytree(exported, tmp_path / "again")
    (tmp_path / "again" / "my_bench.py").write_text("mine")
    with pytest.raises(ArtifactError, match=r"holds 'my_bench\.py', not of nnloom"):
        export(artifact, tmp_path / "again")
    with pytest.raises(ConfigError, match="give --system, too"):
        export(artifact, tmp_path / "new", baud=1000)
    with pytest.raises(ConfigError, match="baud cannot be made"):
        export(artifact, tmp_path / "new", system=True, baud=90_000_000)
    assert not (tmp_path / "new").exists() and len(list(tmp_path.iterdir())) == 2


def test_random_inputs_cover_the_range(artifact):
    infos = Artifact.load(artifact).manifest.inputs
    values = random_inputs(infos, np.random.default_rng(0))
    for info in infos:
        assert values[info.name].dtype == info.dtype and values[info.name].shape == info.shape
        assert values[info.name].min() < -100 < 100 < values[info.name].max()
