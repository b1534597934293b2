"""nnloom: weave a quantized neural network into FPGA fabric. Its parts are subpackages: docs/architecture.md."""

__all__ = ["__version__"]

__version__ = "0.1.0"
