"""1BitSquared iCEBreaker with a Lattice iCE40UP5K-SG48 (pins: the board's schematic, amaranth-boards)."""

from __future__ import annotations

from nnloom.arch.config import AcceleratorConfig

from .board import Board

__all__ = ["ICEBREAKER"]

ICEBREAKER = Board(
    name="icebreaker",
    description="1BitSquared iCEBreaker, Lattice iCE40 UP5K",
    toolchain="ice40",
    device="up5k",
    package="sg48",
    speed="",
    clock_port="clk12",
    crystal_hz=12e6,
    clock_hz=30e6,
    baud=1_000_000,
    loader="ice40_generic",
    # Both memories are two single-port blocks each; block RAM has the program and the link's frames.
    config=AcceleratorConfig(
        lanes=4,
        taps=3,
        requant_units=1,
        activation_bytes=65536,
        weight_words=4096,
        program_words=1024,
        max_pool=False,
        elementwise_add=False,
        overlap=False,
        field_bits=13,
        layer_counters=False,
        compact=True,
    ),
    dsp_blocks=8,
    pins={
        "clk12": "35",
        # To the second port of the USB bridge (FT2232H).
        "uart_rx": "6",
        "uart_tx": "9",
        "led_0": "37",
        "led_1": "11",
    },
    leds_active_low=True,
    flash_pins={
        "flash_cs_n": "16",
        "flash_sck": "15",
        "flash_mosi": "14",
        "flash_miso": "17",
        "flash_wp_n": "12",
        "flash_hold_n": "13",
    },
    flash_bytes=16 << 20,
    network_offset=1 << 20,
    # The device is nearly full.
    link_packing=False,
    primitives={"LC": 5280, "SB_RAM40_4K": 30, "SB_MAC16": 8, "SB_SPRAM256KA": 4},
)
