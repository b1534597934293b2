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
    # 576 products in 288 DSP blocks, two multipliers for each of 32 requantization units, one for addresses: 353.
    config=AcceleratorConfig(
        lanes=32,
        pixels=2,
        requant_units=32,
        activation_bytes=262144,
        weight_words=2048,
        program_words=2048,
        row_triples=True,
        product_registers=True,
        elementwise_mul=True,
        tables=8,
        partial_sums=True,
    ),
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
