"""What differs between the families of open FPGA tools; `nnloom.boards.flow` does what they have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import BuildError
from nnloom.arch.fpga_tools import FpgaTool

from .board import Board

if TYPE_CHECKING:
    from amaranth.lib import wiring

    from nnloom.hw.technology import Technology

__all__ = ["Toolchain"]


class Toolchain(ABC):
    """A device family: its primitives, synthesis, place and route, and packer. Has no state."""

    placer: ClassVar[FpgaTool]
    """nextpnr for the family; its package brings the packer, too, unless `packages` has one"""
    packages: ClassVar[tuple[str, ...]] = ()
    """further Python packages: all versions are part of a bitstream's identity"""
    bitstream_file: ClassVar[str]
    synthesis: ClassVar[str]
    """Yosys command that makes `top.json` of the module `top`"""
    constraints_file: ClassVar[str]
    primitives: ClassVar[Mapping[str, str]]
    """nextpnr's names -> those of `Board.primitives`; several may have one"""

    routed: ClassVar[tuple[str, ...]]
    """options of nextpnr that write what `pack` reads"""
    flash_clock_is_pin: ClassVar[bool] = True
    """the clock of the flash that the device starts from is a pin like others; else `flash_clock` drives it"""

    @abstractmethod
    def clock_hz(self, board: Board) -> float:
        """The system clock that the device makes of the crystal's: the board's, or just below it."""

    @abstractmethod
    def technology(self, config: AcceleratorConfig, lut_multipliers: int) -> Technology:
        """Maker of primitives for an engine of which so many multipliers of the array are made of LUTs."""

    @abstractmethod
    def pll(self, board: Board) -> wiring.Component:
        """Source of the system clock: clk_in : In; clk_out, locked : Out."""

    def flash_clock(self) -> wiring.Component | None:
        """What drives the clock of the flash where that is no pin like others: sck : In."""
        return None

    def bytes_in_flash(self, bitstream: bytes) -> int:
        """Bytes of the flash that a bitstream's file takes at most."""
        return len(bitstream)

    @abstractmethod
    def constraints(self, board: Board) -> str:
        """Text of the constraints file."""

    def floorplan(self, board: Board, folder: Path) -> bool:
        """Give cells of `top.json` in `folder` their places, where that helps the placer; whether it does."""
        return False

    @abstractmethod
    def nextpnr(self, board: Board, arguments: list[str], folder: Path) -> int:
        """Exit code of nextpnr for the board's device, on `top.json` and the constraints in `folder`.

        Raises
        ------
        ToolMissingError
        """

    @abstractmethod
    def pack(self, board: Board, folder: Path) -> None:
        """Make the bitstream of what nextpnr left in `folder`.

        Raises
        ------
        ToolMissingError, BuildError
        """

    def run_nextpnr(self, board: Board, arguments: list[str], folder: Path) -> None:
        """Run nextpnr; its log is `nextpnr.log`.

        Raises
        ------
        ToolMissingError, BuildError
        """
        code = self.nextpnr(board, [*arguments, "--log", "nextpnr.log", "-q"], folder)
        if code:
            log = folder / "nextpnr.log"
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("ERROR")]
            raise BuildError(f"place and route failed ({lines[0] if lines else f'exit code {code}'}); see {log}")

    def count(self, utilization: Mapping[str, Mapping[str, int]], key: str) -> dict[str, int]:
        """Primitive of `Board.primitives` -> the sum of `key` ("used", "available") in nextpnr's report."""
        result = dict.fromkeys(self.primitives.values(), 0)
        for name, primitive in self.primitives.items():
            result[primitive] += utilization[name][key]
        return result
