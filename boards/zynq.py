"""What a Zynq board adds to a `Board`: a processor with DDR around the fabric, and Vivado as its tool."""

from __future__ import annotations

from dataclasses import dataclass

from .board import Board

__all__ = ["ProcessingSystem", "ZynqBoard"]


@dataclass(frozen=True, kw_only=True)
class ProcessingSystem:
    """Vivado's IP of the processor, and its pins that the fabric uses."""

    ip: str
    settings: tuple[tuple[str, str], ...]
    """properties, with `{clock_mhz}` and `{data_width}` to be filled in"""
    automation: str
    """options of its block automation"""
    clock: str
    reset: str
    control: str
    """AXI4 manager that reaches the registers"""
    memory: str
    """AXI4 port to DDR"""
    port_clocks: tuple[str, ...]
    """clock inputs of the two ports"""
    interrupt: str
    control_base: int
    """physical address of the registers"""


@dataclass(frozen=True, kw_only=True)
class ZynqBoard(Board):
    """A Zynq board: program, weights and tensors come from DDR by DMA."""

    processing_system: ProcessingSystem
    board_part: str
    """Vivado's name of the board; its preset is used where the board files are installed"""
    family: str
    """of `synth_xilinx`"""
    data_width: int
    """bits of the port to DDR"""
