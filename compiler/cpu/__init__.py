"""CPU code of a network, in scheduled kernels."""

from .build import build_cpu

__all__ = ["build_cpu"]
