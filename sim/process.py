"""The process of a simulation, from outside: the wait until it connects, and its last words."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from nnloom.arch.errors import DeviceError

__all__ = ["last_words", "wait_for_connection"]

Connected = TypeVar("Connected")


def wait_for_connection(
    listener: socket.socket,
    accept: Callable[[], Connected],
    *,
    process: subprocess.Popen[bytes],
    log: Path,
    seconds: float,
) -> Connected:
    """What `accept` returns, as soon as the process connects to `listener`.

    Parameters
    ----------
    log
        What the process prints; its last line goes into the error.
    seconds
        Longest wait for a process that is alive.

    Raises
    ------
    DeviceError
        The process has ended, or the time is over.
    """
    # Closing a socket from another thread does not wake accept() on Linux, so this looks at the process itself.
    listener.settimeout(0.2)
    deadline = time.monotonic() + seconds
    while True:
        ended = process.poll() is not None or time.monotonic() > deadline
        try:
            return accept()
        except TimeoutError as error:
            if ended:
                raise DeviceError(f"simulation did not start: {last_words(log)}") from error


def last_words(log: Path) -> str:
    """Last line of what a process printed."""
    text = log.read_text(errors="replace").strip().splitlines()
    return text[-1] if text else "no output"
