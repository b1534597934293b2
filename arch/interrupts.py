"""Ctrl-C while TVM runs."""

from __future__ import annotations

__all__ = ["pass_interrupts"]


def pass_interrupts() -> None:
    """Have TVM raise an interrupt of its Python callbacks as what it is; it knows other classes only as RuntimeError.

    To be called where TVM was imported; `ImportError` without TVM.
    """
    from tvm_ffi import register_error

    register_error("KeyboardInterrupt", KeyboardInterrupt)
