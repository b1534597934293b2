"""A pytest plugin for `tests.mutate`: the processor time of each test, and an end to those that take far longer.

`NNLOOM_TEST_SECONDS` names a JSON file: where it does not exist, the seconds of each test, with its fixtures, are
written to it; where it does, a test may take `SLOWER` times its own, or `LEAST_SECONDS`.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

LEAST_SECONDS = 20.0
SLOWER = 4


class _Limits:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
        self._measured: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item):
        limit = max(LEAST_SECONDS, SLOWER * self._known.get(item.nodeid, 0.0))

        def end(*_: object) -> None:
            pytest.fail(f"not ended after {limit:.0f} s of the processor, {self._known[item.nodeid]:.1f} s usually")

        begin = time.process_time()
        if item.nodeid in self._known:
            signal.signal(signal.SIGPROF, end)
            # Again and again: the first may meet a finalizer, which swallows it.
            signal.setitimer(signal.ITIMER_PROF, limit, 1.0)
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self._measured[item.nodeid] = time.process_time() - begin

    def pytest_sessionfinish(self) -> None:
        if not self._path.exists():
            self._path.write_text(json.dumps(self._measured))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Limits(Path(os.environ["NNLOOM_TEST_SECONDS"])))
