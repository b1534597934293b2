"""What nnloom needs to know about a board."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nnloom.arch.config import AcceleratorConfig

__all__ = ["Board"]


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board with its device, clocks, pins and default accelerator."""

    name: str
    description: str
    device: str
    """nextpnr's option without dashes, e.g. "85k" """
    package: str
    speed: str
    crystal_hz: float
    clock_hz: float
    """system clock made from the crystal; place and route must meet it"""
    baud: int
    config: AcceleratorConfig
    dsp_blocks: int
    """DSP blocks for multipliers; further multipliers of the array are made of LUTs"""
    pins: Mapping[str, str]
    """top-level port -> package pin"""
    primitives: Mapping[str, int]
    """what the device has of each primitive"""
    loader: str
    """name of the board in openFPGALoader"""
    seed: int = 1
    """placement seed that is known to meet the clock"""
