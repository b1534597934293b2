"""Radiona ULX3S: one circuit board with an ECP5 of four sizes (pins: emard/ulx3s ulx3s_v20.lpf, amaranth-boards)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from nnloom.arch.config import AcceleratorConfig

from .board import Board

__all__ = ["ULX3S_12F", "ULX3S_25F", "ULX3S_45F", "ULX3S_85F", "ULX3S_85F_SDRAM"]


_SDRAM_BUSES = {
    "sdram_a": "M20 M19 L20 L19 K20 K19 K18 J20 J19 H20 N19 G20 G19",
    "sdram_d": "J16 L18 M18 N18 P18 T18 T17 U20 E19 D20 D19 C20 E18 F18 J18 J17",
    "sdram_ba": "P19 N20",
    "sdram_dqm": "U19 E20",
}
_SDRAM = {
    "sdram_clk": "F19",
    "sdram_cke": "F20",
    "sdram_csn": "P20",
    "sdram_rasn": "R20",
    "sdram_casn": "T19",
    "sdram_wen": "T20",
} | {f"{bus}_{bit}": pin for bus, pins in _SDRAM_BUSES.items() for bit, pin in enumerate(pins.split())}
"""32 MB of SDRAM, 16 bits wide, which only ULX3S_85F_SDRAM uses"""


def _ulx3s(
    size: str,
    *,
    config: AcceleratorConfig,
    clock_hz: float,
    dsp_blocks: int,
    primitives: Mapping[str, int],
    seed: int = 1,
) -> Board:
    return Board(
        name=f"ulx3s-{size}f",
        description=f"Radiona ULX3S, Lattice ECP5 LFE5U-{size}F",
        toolchain="ecp5",
        device=f"{size}k",
        package="CABGA381",
        speed="6",
        clock_port="clk25",
        crystal_hz=25e6,
        clock_hz=clock_hz,
        baud=3_000_000,
        loader="ulx3s",
        config=config,
        dsp_blocks=dsp_blocks,
        pins={
            "clk25": "G2",
            "uart_rx": "M1",
            "uart_tx": "L4",
            "wifi_gpio0": "L2",
            **{f"led_{i}": pin for i, pin in enumerate(["B2", "C2", "C1", "D2", "D1", "E2", "E1", "H3"])},
        },
        reserved_pins=_SDRAM,
        # The second socket, "US2". D- has a resistor to a pin, too, for hosts and slow devices; it stays open.
        usb_pins={"usb_dp": "D15", "usb_dn": "E15", "usb_pullup": "B12"},
        # The clock's pin is the configuration's: USRMCLK.
        flash_pins={
            "flash_cs_n": "R2",
            "flash_mosi": "W2",
            "flash_miso": "V2",
            "flash_hold_n": "W1",
            "flash_wp_n": "Y2",
        },
        flash_bytes=16 << 20,
        # The 85F's bitstream takes up to 1.9 MB where it does not compress.
        network_offset=2 << 20,
        # Low would make the board's ESP32 take over the configuration port.
        high_ports=("wifi_gpio0",),
        primitives=primitives,
        seed=seed,
    )


ULX3S_85F = _ulx3s(
    "85",
    clock_hz=120e6,
    config=AcceleratorConfig(pixels=2, elementwise_mul=True, tables=8),
    # Of 156: with the blocks nearly all used the placer takes far longer. The default configuration has 288 products,
    # two multipliers for each of 16 requantization units and one for addresses, so 176 products are made of LUTs.
    dsp_blocks=145,
    primitives={"LUT4": 83640, "TRELLIS_FF": 83640, "DP16KD": 208, "MULT18X18D": 156},
)

ULX3S_85F_SDRAM = dataclasses.replace(
    ULX3S_85F,
    name="ulx3s-85f-sdram",
    description="Radiona ULX3S, Lattice ECP5 LFE5U-85F, with its SDRAM",
    # Weights come from the SDRAM beside computing: room for tensors saves more than room for weights.
    config=dataclasses.replace(ULX3S_85F.config, activation_bytes=131072, weight_words=1024),
    external_memory="ULX3S",
)

ULX3S_45F = _ulx3s(
    "45",
    clock_hz=100e6,
    # 96 products, nine further multipliers: 37 products are made of LUTs.
    config=AcceleratorConfig(taps=6, requant_units=4, weight_words=1024, elementwise_mul=True, tables=8),
    dsp_blocks=68,
    primitives={"LUT4": 43848, "TRELLIS_FF": 43848, "DP16KD": 108, "MULT18X18D": 72},
)

_SMALL = AcceleratorConfig(
    lanes=8, taps=5, requant_units=2, activation_bytes=32768, weight_words=1024, elementwise_mul=True, tables=8
)
_LFE5U_25F = {"LUT4": 24288, "TRELLIS_FF": 24288, "DP16KD": 56, "MULT18X18D": 28}

# 40 products, five further multipliers: 19 products are made of LUTs.
ULX3S_25F = _ulx3s("25", clock_hz=100e6, config=_SMALL, dsp_blocks=26, primitives=_LFE5U_25F)

# The die of the 25F under another identity, which the bitstream must name.
ULX3S_12F = _ulx3s("12", clock_hz=100e6, config=_SMALL, dsp_blocks=26, primitives=_LFE5U_25F)
