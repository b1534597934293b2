"""What nnloom needs to know about a board."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nnloom.arch.config import AcceleratorConfig

__all__ = ["Board"]


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board with its device, clocks, pins and default accelerator."""

    name: str
    description: str
    toolchain: str
    """tools that make its bitstream: "ecp5", "gowin", "ice40" (see `flow.toolchain`) or "vivado" """
    device: str
    """as the tools call it"""
    package: str
    speed: str
    clock_port: str
    """top-level port of the crystal"""
    crystal_hz: float
    clock_hz: float
    """system clock made from the crystal; place and route must meet it"""
    baud: int
    config: AcceleratorConfig
    dsp_blocks: int
    """DSP blocks for multipliers; further multipliers of the array are made of LUTs"""
    pins: Mapping[str, str]
    """top-level port -> package pin: `clock_port`, uart_rx, uart_tx, led_0, led_1 and so on, `high_ports`"""
    primitives: Mapping[str, int]
    """what the device has of each primitive"""
    loader: str
    """name of the board in openFPGALoader"""
    leds_active_low: bool = False
    high_ports: tuple[str, ...] = ()
    """outputs that stay high"""
    reserved_pins: Mapping[str, str] = field(default_factory=dict)
    """port -> package pin of what the system does not use yet: in the constraints, without a port of the top"""
    external_memory: str = ""
    """the SDRAM on the reserved pins that the system uses, by its name in `nnloom.hw.sdram_timing`; none by default"""
    usb_pins: Mapping[str, str] = field(default_factory=dict)
    """port -> package pin of a USB socket that is wired to the FPGA: usb_dp, usb_dn, and usb_pullup of D+"""
    link: str = "uart"
    """what leads to the host: "uart", or "usb" where there are `usb_pins`"""
    flash_pins: Mapping[str, str] = field(default_factory=dict)
    """port -> package pin of the SPI flash that the device starts from: flash_cs_n, flash_mosi, flash_miso and, unless
    the clock's pin is reached another way as on an ECP5, flash_sck; others stay high"""
    flash_bytes: int = 0
    """of the SPI flash"""
    network_offset: int = 0
    """byte of the flash where a network begins, behind the bitstream; a multiple of 65,536"""
    flash_boot: bool = False
    """the system loads the network in the flash after a reset"""
    link_packing: bool = True
    """tensors go over the line without the bytes between their pixels; takes some 150 LUTs"""
    seed: int = 1
    """placement seed that is known to meet the clock"""

    @property
    def used_pins(self) -> dict[str, str]:
        """`pins`, and those of the flash where the system uses it."""
        return {**self.pins, **(self.flash_pins if self.flash_boot else {})}
