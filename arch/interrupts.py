"""Ctrl-C while TVM or a tool runs that takes the signal itself."""

from __future__ import annotations

import _thread
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["check_interrupted", "interrupts_arrive", "pass_interrupts"]

_AGAIN_S = 0.05


@contextlib.contextmanager
def interrupts_arrive() -> Iterator[None]:
    """Send an interrupt again that Python has dropped.

    `KeyboardInterrupt` is raised wherever the main thread is. Python ignores exceptions of destructors and of some
    callbacks of libraries, and a Ctrl-C that falls there would do nothing.
    """
    before = sys.unraisablehook

    def hook(dropped: Any) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            before(dropped)
            return
        again = threading.Timer(_AGAIN_S, _thread.interrupt_main)
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


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
