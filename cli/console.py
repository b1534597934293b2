"""What the user sees while a command works: phases on stderr, results on stdout."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from typing import Any

from .text import printable

__all__ = ["Console"]

PATIENCE = 2.0
"""Seconds that a phase may last before a line about it is printed, where there is no terminal."""

SHORT = 12
"""Characters of a cell that is not wrapped."""


def _make_bar() -> Any:
    """A running display of Rich, or None: no terminal, or no Rich."""
    if not sys.stderr.isatty():
        return None
    try:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    except ImportError:
        return None
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=RichConsole(stderr=True))
    bar.start()
    return bar


def _wrapped(titles: list[str], cells: list[list[str]], numeric: list[bool]) -> bool:
    """Print a table whose cells wrap; False without Rich."""
    try:
        from rich.console import Console as RichConsole
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for i, (title, right) in enumerate(zip(titles, numeric, strict=True)):
        short = max((len(row[i]) for row in cells), default=0) <= SHORT
        table.add_column(title, justify="right" if right else "left", no_wrap=short, overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    RichConsole(highlight=False, width=shutil.get_terminal_size().columns).print(table)
    return True


class Console:
    """Progress on stderr, text results on stdout (unless `quiet`, for --json)."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._progress: Any = None
        self._task: Any = None
        self._started = time.monotonic()
        self._pending: threading.Timer | None = None

    def phase(self, name: str) -> None:
        """Tell what is being done now.

        A moving bar with the elapsed time on a terminal where Rich is installed (the base installation does without);
        else a line, if it lasts longer than `PATIENCE`.
        """
        if self._progress is None:
            self._progress = _make_bar()
        if self._progress is None:
            self._cancel()
            self._pending = threading.Timer(PATIENCE, self._note, (name, time.monotonic() - self._started))
            self._pending.daemon = True
            self._pending.start()
            return
        if self._task is not None:
            self._progress.update(self._task, total=1, completed=1)
        self._task = self._progress.add_task(printable(name), total=None)

    def advance(self, done: int, total: int) -> None:
        """Tell how far the current phase is; the bar shows it on a terminal."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total)

    @staticmethod
    def _note(name: str, started: float) -> None:
        print(f"[{started:6.1f} s] {printable(name)}", file=sys.stderr, flush=True)

    def _cancel(self) -> None:
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None

    def say(self, text: str = "") -> None:
        """A line of the result."""
        self.close()
        if not self._quiet:
            print(printable(text, lines=True))

    def note(self, text: str) -> None:
        """A line beside the result, if there is something to tell."""
        if text:
            self.close()
            print(f"nnloom: note: {printable(text)}", file=sys.stderr, flush=True)

    def announce(self, values: dict[str, Any], text: str) -> None:
        """A result that others wait for while the command goes on: text, or one line of JSON, at once."""
        self.say(text)
        if self._quiet:
            print(json.dumps(values))
        sys.stdout.flush()

    def table(self, titles: list[str], rows: list[list[Any]]) -> None:
        """Columns of text; numbers to the right.

        On a terminal that is too narrow cells wrap, where Rich is installed; elsewhere a line stays a line.
        """
        cells = [[f"{v:,}" if isinstance(v, int) else printable(str(v)) for v in row] for row in rows]
        widths = [max(len(row[i]) for row in [titles, *cells]) for i in range(len(titles))]
        numeric = [
            bool(rows) and all(isinstance(row[i], int | float) or row[i] == "" for row in rows)
            for i in range(len(titles))
        ]
        needed = sum(widths) + 2 * (len(widths) - 1)
        if not self._quiet and sys.stdout.isatty() and needed > shutil.get_terminal_size().columns:
            self.close()
            if _wrapped(titles, cells, numeric):
                return
        for row in [titles, *cells]:
            line = (c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True))
            self.say("  ".join(line).rstrip())

    def error(self, message: str) -> None:
        """The one line of an error."""
        self.close()
        print(f"nnloom: error: {printable(' '.join(message.split()))}", file=sys.stderr)

    def close(self) -> None:
        """End the progress display."""
        self._cancel()
        if self._progress is not None:
            if self._task is not None:
                self._progress.update(self._task, total=1, completed=1)
            self._progress.stop()
            self._progress = self._task = None
