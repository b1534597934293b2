"""Avnet Ultra96-V2 with a Xilinx Zynq UltraScale+ XCZU3EG-SBVA484-1-I."""

from __future__ import annotations

from nnloom.arch.config import AcceleratorConfig

from .zynq import ProcessingSystem, ZynqBoard

__all__ = ["ULTRA96_V2"]

ULTRA96_V2 = ZynqBoard(
    name="ultra96-v2",
    description="Avnet Ultra96-V2, Xilinx Zynq UltraScale+ XCZU3EG",
    toolchain="vivado",
    device="xczu3eg-sbva484-1-i",
    package="sbva484",
    speed="1",
    clock_port="",
    crystal_hz=100e6 / 3,
    # Aim, not a result: no place and route has seen it.
    clock_hz=200e6,
    baud=0,
    loader="",
    # 288 products, two multipliers for each of 16 requantization units, one for addresses: 321 DSP blocks.
    config=AcceleratorConfig(pixels=2, weight_words=4096, activation_bytes=131072, elementwise_mul=True, tables=8),
    dsp_blocks=360,
    pins={},
    primitives={"LUT": 70560, "FF": 141120, "RAMB36": 216, "DSP48": 360},
    board_part="avnet.com:ultra96v2:part0:1.2",
    family="xcup",
    data_width=128,
    processing_system=ProcessingSystem(
        ip="zynq_ultra_ps_e",
        settings=(
            ("PSU__FPGA_PL0_ENABLE", "1"),
            ("PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ", "{clock_mhz}"),
            ("PSU__USE__M_AXI_GP0", "1"),
            ("PSU__USE__M_AXI_GP1", "0"),
            ("PSU__USE__M_AXI_GP2", "0"),
            ("PSU__MAXIGP0__DATA_WIDTH", "32"),
            ("PSU__USE__S_AXI_GP2", "1"),
            ("PSU__SAXIGP2__DATA_WIDTH", "{data_width}"),
            ("PSU__USE__IRQ0", "1"),
        ),
        automation="",
        clock="pl_clk0",
        reset="pl_resetn0",
        control="M_AXI_HPM0_FPD",
        memory="S_AXI_HP0_FPD",
        port_clocks=("maxihpm0_fpd_aclk", "saxihp0_fpd_aclk"),
        interrupt="pl_ps_irq0",
        control_base=0xA000_0000,
    ),
)
