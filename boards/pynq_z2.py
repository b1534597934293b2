"""TUL PYNQ-Z2 with a Xilinx Zynq-7000 XC7Z020-1CLG400C."""

from __future__ import annotations

from nnloom.arch.config import AcceleratorConfig

from .zynq import ProcessingSystem, ZynqBoard

__all__ = ["PYNQ_Z2"]

PYNQ_Z2 = ZynqBoard(
    name="pynq-z2",
    description="TUL PYNQ-Z2, Xilinx Zynq-7000 XC7Z020",
    toolchain="vivado",
    device="xc7z020clg400-1",
    package="clg400",
    speed="1",
    clock_port="",
    crystal_hz=50e6,
    # Aim, not a result: no place and route has seen it.
    clock_hz=100e6,
    baud=0,
    loader="",
    # 288 products in 144 DSP blocks, two multipliers for each of 16 requantization units, one for addresses: 177.
    config=AcceleratorConfig(pixels=2, product_registers=True, elementwise_mul=True, tables=8, partial_sums=True),
    dsp_blocks=220,
    pins={},
    primitives={"LUT": 53200, "FF": 106400, "RAMB36": 140, "DSP48": 220},
    board_part="tul.com.tw:pynq-z2:part0:1.0",
    family="xc7",
    data_width=64,
    processing_system=ProcessingSystem(
        ip="processing_system7",
        settings=(
            ("PCW_CRYSTAL_PERIPHERAL_FREQMHZ", "50"),
            ("PCW_FPGA0_PERIPHERAL_FREQMHZ", "{clock_mhz}"),
            ("PCW_USE_M_AXI_GP0", "1"),
            ("PCW_USE_S_AXI_HP0", "1"),
            ("PCW_S_AXI_HP0_DATA_WIDTH", "{data_width}"),
            ("PCW_USE_FABRIC_INTERRUPT", "1"),
            ("PCW_IRQ_F2P_INTR", "1"),
        ),
        automation="make_external {FIXED_IO, DDR} Master Disable Slave Disable",
        clock="FCLK_CLK0",
        reset="FCLK_RESET0_N",
        control="M_AXI_GP0",
        memory="S_AXI_HP0",
        port_clocks=("M_AXI_GP0_ACLK", "S_AXI_HP0_ACLK"),
        interrupt="IRQ_F2P",
        control_base=0x4000_0000,
    ),
)
