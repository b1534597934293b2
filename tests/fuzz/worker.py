"""Checks in a process of their own: LiteRT and TVM end the process, or hang, for some files."""

from __future__ import annotations

import contextlib
import multiprocessing
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .check import Checker, Verdict
from .faults import put_back
from .generate import Built

__all__ = ["Worker"]

_SECONDS = 180.0
_RTL_SECONDS = 1200.0
"""A simulator may have to be built."""
_NETWORKS = 300
"""After so many the process is replaced: compilers hold on to memory."""


def _serve(connection: Connection, fault: str | None, options: dict[str, Any]) -> None:
    with put_back(fault), tempfile.TemporaryDirectory(prefix="nnloom-fuzz-") as folder:
        checker = Checker(Path(folder) / "work", stage=lambda text: connection.send(text), **options)
        while True:
            try:
                arguments = connection.recv()
            except EOFError:
                return
            if arguments is None:
                return
            connection.send(checker.check(**arguments))


class Worker:
    """A process that checks networks, replaced when it dies. Use as a context manager; options: of `Checker`.

    `fault` names one of `tests.fuzz.faults`, which the process has.
    """

    def __init__(self, *, start: str = "spawn", fault: str | None = None, **options: Any) -> None:
        self._fault = fault
        self._start_method = start
        self._options = options
        self._process: Any = None
        self._connection: Connection | None = None
        self._left = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _start(self) -> Connection:
        if self._left <= 0:
            self._end()
        if self._connection is None:
            context = multiprocessing.get_context(self._start_method)
            self._connection, other = context.Pipe()
            self._process = context.Process(target=_serve, args=(other, self._fault, self._options), daemon=True)
            self._process.start()
            other.close()
            self._left = _NETWORKS
        self._left -= 1
        return self._connection

    def _end(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(OSError):  # the process may be gone
                self._connection.send(None)
            self._connection.close()
            self._process.join(5)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
        self._connection = None

    def check(self, built: Built, *, configs: Sequence[str], rtl: bool = False, **options: Any) -> Verdict:
        """As `Checker.check`; a process that dies while nnloom works is a fault too."""
        connection = self._start()
        stage = "start"
        try:
            connection.send(dict(built=built, configs=list(configs), rtl=rtl, **options))
            while connection.poll(_RTL_SECONDS if rtl else _SECONDS):
                answer = connection.recv()
                if isinstance(answer, Verdict):
                    return answer
                stage = answer
            what = "does not end"
        except (EOFError, ConnectionResetError, BrokenPipeError):
            self._process.join(5)
            what = f"the process ended ({self._process.exitcode})"
        self._process.kill()
        self._end()
        return Verdict("discarded" if stage == "LiteRT" else "fault", f"{stage}: {what}")
