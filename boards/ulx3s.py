"""Radiona ULX3S with a Lattice ECP5 LFE5U-85F-6BG381C (pins: emard/ulx3s ulx3s_v20.lpf, amaranth-boards)."""

from __future__ import annotations

from nnloom.arch.config import AcceleratorConfig

from .board import Board

__all__ = ["ULX3S_85F"]

ULX3S_85F = Board(
    name="ulx3s-85f",
    description="Radiona ULX3S, Lattice ECP5 LFE5U-85F",
    toolchain="ecp5",
    device="85k",
    package="CABGA381",
    speed="6",
    clock_port="clk25",
    crystal_hz=25e6,
    clock_hz=120e6,
    baud=1_000_000,
    loader="ulx3s",
    config=AcceleratorConfig(pixels=2),
    # Of 156: with the blocks nearly all used the placer takes far longer. The default configuration has 288 products,
    # two multipliers for each of 16 requantization units and one for addresses, so 176 products are made of LUTs.
    dsp_blocks=145,
    pins={
        "clk25": "G2",
        "uart_rx": "M1",
        "uart_tx": "L4",
        "wifi_gpio0": "L2",
        **{f"led_{i}": pin for i, pin in enumerate(["B2", "C2", "C1", "D2", "D1", "E2", "E1", "H3"])},
    },
    # Low would make the board's ESP32 take over the configuration port.
    high_ports=("wifi_gpio0",),
    primitives={"LUT4": 83640, "TRELLIS_FF": 83640, "DP16KD": 208, "MULT18X18D": 156},
)
