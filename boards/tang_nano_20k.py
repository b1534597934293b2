"""Sipeed Tang Nano 20K with a Gowin GW2AR-LV18QN88C8/I7 (pins: Sipeed's schematic, litex-boards)."""

from __future__ import annotations

from nnloom.arch.config import AcceleratorConfig

from .board import Board

__all__ = ["TANG_NANO_20K"]

TANG_NANO_20K = Board(
    name="tang-nano-20k",
    description="Sipeed Tang Nano 20K, Gowin GW2AR-18",
    toolchain="gowin",
    device="GW2AR-LV18QN88C8/I7",
    package="QN88",
    speed="C8/I7",
    clock_port="clk27",
    crystal_hz=27e6,
    clock_hz=108e6,
    baud=1_000_000,
    loader="tangnano20k",
    # A flip-flop takes the place of a LUT unless that LUT drives it: without overlap there are a quarter fewer.
    config=AcceleratorConfig(
        lanes=8,
        taps=5,
        requant_units=2,
        activation_bytes=32768,
        weight_words=1024,
        max_pool=False,
        elementwise_add=False,
        overlap=False,
        field_bits=12,
    ),
    # 40 products in a MULT9X9 each, and five further multipliers in a MULT18X18, which takes the place of two.
    dsp_blocks=45,
    pins={
        "clk27": "4",
        # To the second port of the USB bridge (BL616).
        "uart_rx": "70",
        "uart_tx": "69",
        **{f"led_{i}": str(15 + i) for i in range(6)},
    },
    leds_active_low=True,
    flash_pins={"flash_cs_n": "60", "flash_sck": "59", "flash_mosi": "61", "flash_miso": "62"},
    flash_bytes=8 << 20,
    network_offset=2 << 20,
    # A DSP block is two MULT18X18 or four MULT9X9.
    primitives={"LUT4": 20736, "ALU": 15552, "DFF": 15552, "BSRAM": 46, "MULT9X9": 96, "MULT18X18": 48},
)
