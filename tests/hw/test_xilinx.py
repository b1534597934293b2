"""The Zynq boards' flow without Vivado: its script in a Tcl interpreter, and what synthesis makes of the primitives."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from amaranth import Value
from amaranth.lib import wiring

from nnloom.arch.errors import ArtifactError, BuildError, ConfigError
from nnloom.boards import get
from nnloom.boards.program import program
from nnloom.boards.resources import limits
from nnloom.boards.vivado import build, count_primitives, estimate_resources, project_script, write_project
from nnloom.boards.zynq import ZynqBoard
from nnloom.hw.emit import emit_rtlil, run_yosys
from nnloom.hw.technology import FanoutRegister
from nnloom.hw.xilinx import BlockRam, DspMultiplier, DspMultiplierPair, FanoutFlipFlops
from tests.artifacts import SMALL, make_artifact
from tests.graphs import KINDS, random_graph

BOARDS = ["pynq-z2", "ultra96-v2"]
FAMILIES = ["xc7", "xcup"]


def board(name) -> ZynqBoard:
    result = get(name)
    assert isinstance(result, ZynqBoard)
    return result


def run_script(script: str, folder, *, slack: str) -> list[str]:
    """Run a script with stand-ins of Vivado's commands; the commands as they were called, expanded."""
    tkinter = pytest.importorskip("tkinter")
    (folder / "build.tcl").write_text(script)
    tcl = tkinter.Tcl()
    calls: list[str] = []
    answers = {
        "get_ipdefs": lambda *a: a[-1].split("=~ ")[1].replace("*", "1.0"),
        "get_property": lambda name, *a: {"VLNV": a[-1] if a else "", "SLACK": slack, "PROGRESS": "100%"}.get(
            name, str(folder) if name == "DIRECTORY" else "LUT6"
        ),
        "get_bd_pins": lambda *a: a[-1],
        "get_bd_intf_pins": lambda *a: a[-1],
        "get_bd_cells": lambda *a: a[-1],
        "get_bd_addr_segs": lambda *a: a[-1],
        "get_bd_addr_spaces": lambda *a: a[-1],
        "get_cells": lambda *a: "a b c",
    }
    commands = [
        "create_project",
        "get_board_parts",
        "set_property",
        "current_project",
        "add_files",
        "update_compile_order",
        "create_bd_design",
        "create_bd_cell",
        "apply_bd_automation",
        "connect_bd_net",
        "connect_bd_intf_net",
        "assign_bd_address",
        "validate_bd_design",
        "save_bd_design",
        "get_files",
        "make_wrapper",
        "current_fileset",
        "generate_target",
        "launch_runs",
        "wait_on_run",
        "get_runs",
        "open_run",
        "report_timing_summary",
        "report_utilization",
        "get_timing_paths",
    ]

    def stand_in(name):
        def command(*arguments):
            calls.append(" ".join([name, *map(str, arguments)]))
            return answers[name](*map(str, arguments)) if name in answers else ""

        return command

    for name in [*commands, *answers]:
        tcl.createcommand(name, stand_in(name))
    tcl.eval(f"set argv0 {{}}; source {{{folder / 'build.tcl'}}}")
    return calls


@pytest.mark.parametrize("name", BOARDS)
def test_script_makes_the_block_design(name, tmp_path):
    zynq = board(name)
    folder = tmp_path / "vivado"
    handoff = folder / "project/nnloom.gen/sources_1/bd/system/hw_handoff"
    handoff.mkdir(parents=True)
    (handoff / "system.hwh").write_text("hardware")
    (folder / "system_wrapper.bit").write_text("bits")
    calls = run_script(project_script(zynq), folder, slack="0.25")
    assert (tmp_path / "nnloom.bit").read_text() == "bits"
    assert (tmp_path / "nnloom.hwh").read_text() == "hardware"
    assert (folder / "result.txt").read_text() == "slack_ns 0.25\nLUT6 3\n"
    assert any(c.startswith("create_project") and f"-part {zynq.device}" in c for c in calls)
    assert any(c.endswith(" nnloom") and "module -reference nnloom_zynq" in c for c in calls)
    # Every pin of the module is connected, once.
    connections = [set(c.split()[1:]) for c in calls if c.startswith("connect_bd")]
    ps = zynq.processing_system
    for pin in ("s_axi", "m_axi", "aclk", "aresetn", "interrupt"):
        assert sum(f"nnloom/{pin}" in c for c in connections) == 1, pin
    for pin in (*ps.port_clocks, ps.control, ps.memory, ps.interrupt, ps.clock, ps.reset):
        assert sum(f"ps/{pin}" in c for c in connections) == 1, pin
    settings = next(c for c in calls if c.startswith("set_property -dict") and c.endswith(" ps"))
    assert f"{{{zynq.clock_hz / 1e6:g}}}" in settings or f" {zynq.clock_hz / 1e6:g} " in settings
    assert f" {zynq.data_width} " in settings
    address = next(c for c in calls if c.startswith("assign_bd_address -offset"))
    assert f"{ps.control_base:#x} -range 8K" in address


def test_script_refuses_a_bitstream_that_is_too_slow(tmp_path):
    tkinter = pytest.importorskip("tkinter")
    with pytest.raises(tkinter.TclError, match=r"timing not met: slack -0\.1 ns at 100 MHz"):
        run_script(project_script(board("pynq-z2")), tmp_path, slack="-0.1")


def test_project_is_complete(tmp_path):
    zynq = replace(board("pynq-z2"), config=SMALL)
    write_project(zynq, SMALL, tmp_path)
    verilog = (tmp_path / "nnloom.v").read_text()
    assert "module nnloom_zynq(" in verilog
    for attribute in ('ram_style = "block"', 'use_dsp = "yes"', 'DONT_TOUCH = "yes"', "ASSOCIATED_BUSIF s_axi:m_axi"):
        assert attribute in verilog
    # Vivado reads what Yosys wrote; Yosys reading it again at least shows that it is Verilog.
    run_yosys(
        "read_verilog -lib +/xilinx/cells_sim.v\nread_verilog nnloom.v\nhierarchy -top nnloom_zynq\ncheck -assert\n",
        folder=tmp_path,
    )


PRIMITIVES = {
    "small_dsp": (DspMultiplier(a_width=8, b_width=8), {"DSP48": 1, "FF": 48}),
    "large_dsp": (DspMultiplier(a_width=18, b_width=17), {"DSP48": 1, "FF": 105}),
    # One adder before the block and one behind it.
    "pair": (DspMultiplierPair(), {"DSP48": 1, "LUT": 30, "FF": 100}),
    "ram": (BlockRam(width=72, depth=2048), {"RAMB36": 4, "FF": 72}),
    "ram_with_lanes": (BlockRam(width=72, depth=2048, lane=9), {"RAMB36": 4, "FF": 72}),
    "small_ram": (BlockRam(width=64, depth=1024), {"RAMB36": 2, "FF": 64}),
    "copies": (FanoutFlipFlops(width=3, count=5), {"FF": 15}),
}


def _port(path: tuple[str | int, ...]) -> str:
    return "__".join(map(str, path))


def _together(components: dict[str, wiring.Component]) -> str:
    """Verilog module `top` with an instance of each; their ports are its own."""
    ports, instances = ["input clk, rst"], []
    for name, component in components.items():
        connections = [".clk(clk)", ".rst(rst)"]
        for path, member, value in component.signature.flatten(component):
            port = _port(path)
            direction = "input" if member.flow == wiring.In else "output"
            ports.append(f"{direction} [{len(Value.cast(value)) - 1}:0] {name}_{port}")
            connections.append(f".{port}({name}_{port})")
        instances.append(f"{name} {name}_instance({', '.join(connections)});")
    return f"module top({', '.join(ports)});\n" + "\n".join(instances) + "\nendmodule\n"


@pytest.mark.fpga
@pytest.mark.parametrize("family", [FAMILIES[0], pytest.param(FAMILIES[1], marks=pytest.mark.slow)])
def test_primitives_are_inferred_without_logic(family, tmp_path):
    """No LUT is needed, but for two products in a block; Yosys may leave registers of the blocks in the fabric
    (`PRIMITIVES`: the most there can be)."""
    components = {name: component for name, (component, _) in PRIMITIVES.items()}
    (tmp_path / "top.v").write_text(_together(components))
    for name, component in components.items():
        (tmp_path / f"{name}.il").write_text(emit_rtlil(component, name))
    reads = "\n".join(f"read_rtlil {name}.il" for name in components)
    run_yosys(
        f"{reads}\nread_verilog top.v\nsetattr -mod -set keep_hierarchy 1 {' '.join(components)}\n"
        f"synth_xilinx -family {family} -top top -noiopad -noclkbuf\ntee -o stat.json stat -json\n",
        folder=tmp_path,
    )
    modules = json.loads((tmp_path / "stat.json").read_text())["modules"]
    for name, (_, want) in PRIMITIVES.items():
        counts = count_primitives(modules["\\" + name]["num_cells_by_type"])
        limits = {"LUT": 0} | want
        assert counts["FF"] <= limits["FF"] and counts["LUT"] <= limits["LUT"], name
        most = {kind: limits[kind] for kind in ("LUT", "FF")}
        assert counts | most == {"RAMB36": 0, "DSP48": 0} | limits, name


@pytest.mark.fpga
def test_copies_behave_as_plain_registers(tmp_path):
    """The FDRE cells, with Yosys's own model of them, against the portable component."""
    (tmp_path / "gold.il").write_text(emit_rtlil(FanoutRegister(width=2, count=3), "gold"))
    (tmp_path / "gate.il").write_text(emit_rtlil(FanoutFlipFlops(width=2, count=3), "gate"))
    run_yosys(
        "read_verilog +/xilinx/cells_sim.v\nread_rtlil gold.il\nread_rtlil gate.il\nproc\nflatten gold gate\n"
        "opt_clean gold gate\nmiter -equiv -make_assert -flatten gold gate both\ncd both\nclk2fflogic\n"
        "sat -verify -prove-asserts -tempinduct -set-init-zero -seq 2\n",
        folder=tmp_path,
    )


@pytest.mark.slow
@pytest.mark.fpga
def test_a_small_system_has_no_memory_in_logic(tmp_path):
    used = estimate_resources(board("pynq-z2"), SMALL, tmp_path)
    cells = json.loads((tmp_path / "stat.json").read_text())["design"]["num_cells_by_type"]
    assert used["DSP48"] == SMALL.multipliers + 2 * SMALL.requant_units + 1
    # Queues are small memories by intent; the rest is block RAM.
    assert sum(count for cell, count in cells.items() if cell.startswith("RAM") and "RAMB" not in cell) < 150
    assert used["RAMB36"] >= 8


def test_counting_knows_its_cells():
    cells = {"LUT2": 3, "LUT6": 2, "RAM32M": 2, "FDRE": 7, "FDSE": 1, "RAMB36E1": 4, "RAMB18E1": 3, "DSP48E1": 9}
    assert count_primitives(cells) == {"LUT": 13, "FF": 8, "RAMB36": 6, "DSP48": 9}
    with pytest.raises(BuildError, match="RAM9999"):
        count_primitives({"RAM9999": 1})


@pytest.mark.parametrize("name", BOARDS)
def test_exploration_says_that_it_has_no_model(name):
    with pytest.raises(ConfigError, match="no resource model"):
        limits(get(name))


def test_program_says_who_loads_the_board(tmp_path, monkeypatch):
    make_artifact(tmp_path, random_graph(np.random.default_rng(1), [str(KINDS[0])]))
    monkeypatch.setattr("nnloom.boards.program.board_of", lambda _: get("pynq-z2"))
    with pytest.raises(ConfigError, match="loaded by its own processor"):
        program(tmp_path)


def test_an_artifact_for_another_board_is_refused(tmp_path):
    make_artifact(tmp_path, random_graph(np.random.default_rng(1), [str(KINDS[0])]))
    with pytest.raises(ArtifactError, match="no Vivado project"):
        build(tmp_path)
