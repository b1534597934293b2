"""Commands on a pseudo-terminal, as a person runs them."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Outcome", "interruptible", "run_on_terminal"]


def interruptible() -> None:
    """For `preexec_fn`: have Ctrl-C interrupt the process, as at a terminal. Shells have background jobs ignore it, and
    so do all processes that those start: a suite that runs with `&`, say, and its commands."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what the person saw."""

    code: int
    text: str
    """without the codes that move the cursor and colour the text"""

    @property
    def lines(self) -> list[str]:
        """What is not blank."""
        return [line for line in self.text.splitlines() if line.strip()]

    @property
    def error(self) -> str:
        """The one line of the error; there must be exactly one, at the end, and no traceback."""
        assert "Traceback" not in self.text, self.text
        errors = [line for line in self.lines if line.startswith("nnloom: error: ")]
        assert len(errors) == 1 and self.lines[-1] == errors[0], self.text
        return errors[0]


def run_on_terminal(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    interrupt: str | None = None,
    seconds: float = 120,
) -> Outcome:
    """Run a command in a session of its own, with a terminal for input, output and errors.

    interrupt: a person presses Ctrl-C as soon as the terminal shows this text.
    """
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", *command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=env,
        cwd=cwd,
        preexec_fn=interruptible,
    )
    os.close(theirs)
    shown = b""
    deadline = time.monotonic() + seconds
    with contextlib.suppress(OSError):  # the other end was closed
        while data := os.read(ours, 1 << 16):
            shown += data
            if time.monotonic() > deadline:
                os.killpg(process.pid, signal.SIGKILL)
            if interrupt is not None and interrupt.encode() in shown:
                interrupt = None
                os.write(ours, b"\x03")
    os.close(ours)
    code = process.wait(20)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode(errors="replace")).replace("\r\n", "\n")
    # What a bar overwrites was not there in the end.
    return Outcome(code, "\n".join(line.rpartition("\r")[2] for line in text.split("\n")))
