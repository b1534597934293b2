"""Gowin GW2A: Yosys, nextpnr-himbaechel, gowin_pack of apicula."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import BuildError
from nnloom.arch.fpga_tools import NEXTPNR_GOWIN, run

from .board import Board
from .toolchain import Toolchain

if TYPE_CHECKING:
    from nnloom.hw.gowin import GowinTechnology, Pll

__all__ = ["GowinToolchain"]


DIE = "GW2A-18C"
"""as nextpnr and apicula call it: the only one that boards here have"""


class GowinToolchain(Toolchain):
    """`Board.device` is the part's number, which has package and speed in it."""

    placer = NEXTPNR_GOWIN
    packages = ("apycula",)
    bitstream_file = "nnloom.fs"
    # Multipliers are instances or on purpose of LUTs.
    synthesis = "synth_gowin -family gw2a -top top -nodsp -json top.json"
    constraints_file = "top.cst"
    primitives: ClassVar[Mapping[str, str]] = {
        name: name for name in ("LUT4", "ALU", "DFF", "BSRAM", "MULT9X9", "MULT18X18")
    }
    routed = ("--write", "routed.json")

    def clock_hz(self, board: Board) -> float:
        from nnloom.hw.gowin import PLL_LIMITS

        return PLL_LIMITS.settings(board.crystal_hz, board.clock_hz).output_hz(board.crystal_hz)

    def technology(self, config: AcceleratorConfig, lut_multipliers: int) -> GowinTechnology:
        from nnloom.hw.gowin import GowinTechnology

        return GowinTechnology(lut_multipliers=lut_multipliers, small_multipliers=config.multipliers)

    def pll(self, board: Board) -> Pll:
        from nnloom.hw.gowin import PLL_LIMITS, Pll

        settings = PLL_LIMITS.settings(board.crystal_hz, board.clock_hz)
        return Pll(input_hz=board.crystal_hz, settings=settings, device=DIE)

    def bytes_in_flash(self, bitstream: bytes) -> int:
        # The file has a character for each bit, and comments.
        return -(-sum(len(line) for line in bitstream.split() if not line.strip(b"01")) // 8)

    def constraints(self, board: Board) -> str:
        lines = []
        for port, pin in board.used_pins.items():
            lines += [f'IO_LOC "{port}" {pin};', f'IO_PORT "{port}" IO_TYPE=LVCMOS33;']
        return "\n".join(lines) + "\n"

    def nextpnr(self, board: Board, arguments: list[str], folder: Path) -> int:
        device = ["--device", board.device, "--vopt", f"family={DIE}", "--json", "top.json"]
        constraints = ["--vopt", f"cst={self.constraints_file}"]
        return run(self.placer, [*device, *constraints, *arguments], folder)

    def pack(self, board: Board, folder: Path) -> None:
        # It keeps the device in globals and reads sys.argv: a process of its own.
        command = [sys.executable, "-m", "apycula.gowin_pack", "-d", DIE, "-o", self.bitstream_file]
        command += ["--mspi_as_gpio"] if board.flash_boot else []
        done = subprocess.run([*command, "routed.json"], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode or not (folder / self.bitstream_file).is_file():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise BuildError(f"gowin_pack failed ({lines[-1] if lines else 'no bitstream'}); see {folder}")
