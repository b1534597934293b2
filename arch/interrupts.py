"""Ctrl-C while TVM or a tool runs that takes the signal itself."""

from __future__ import annotations

import signal

__all__ = ["check_interrupted", "pass_interrupts"]


def pass_interrupts() -> None:
    """Have TVM raise an interrupt of its Python callbacks as what it is; it knows other classes only as RuntimeError.

    To be called where TVM was imported; `ImportError` without TVM.
    """
    from tvm_ffi import register_error

    register_error("KeyboardInterrupt", KeyboardInterrupt)


def check_interrupted(code: int) -> None:
    """Raise `KeyboardInterrupt` for the exit code by which Yosys and nextpnr tell of one."""
    if code == 128 + signal.SIGINT:
        raise KeyboardInterrupt
