"""USB serial adapters that keep short answers back: FTDI's do for 16 ms, unless they are told otherwise."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["LOW_MILLISECONDS", "set_low_latency"]

LOW_MILLISECONDS = 2
"""What an adapter may keep an answer back."""
SYSFS = Path("/sys/class/tty")


def set_low_latency(stream: Any, port: str, *, sysfs: Path = SYSFS) -> str | None:
    """Have the adapter of an open port send what it gets at once.

    Linux sets the adapter's timer by the port's flag ASYNC_LOW_LATENCY; drivers that do not know it have the timer in
    `sysfs`, which only root may write. Where there is neither (other adapters, other systems) there is nothing to do.

    Returns what to tell the user if the adapter keeps answers back nevertheless.
    """
    if hasattr(stream, "set_low_latency_mode"):
        # A driver that does not know the flag refuses it: the timer tells.
        with suppress(ValueError, OSError, NotImplementedError):
            stream.set_low_latency_mode(True)
    name = Path(os.path.realpath(port)).name
    timer = sysfs / name / "device" / "latency_timer"
    waits = _milliseconds(timer)
    if waits is not None and waits > LOW_MILLISECONDS:
        # Only root may; it is looked at again.
        with suppress(OSError):
            timer.write_text("1\n")
        waits = _milliseconds(timer)
    if waits is None or waits <= LOW_MILLISECONDS:
        return None
    return (
        f"{port}: its USB adapter keeps answers for {waits} ms, and each inference takes that longer; "
        f"'echo 1 | sudo tee {timer}' ends it, or a udev rule, see docs/boards.md"
    )


def _milliseconds(timer: Path) -> int | None:
    """What the timer says, None if there is none."""
    try:
        return int(timer.read_text())
    except (OSError, ValueError):
        return None
