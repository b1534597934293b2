"""Fixtures for pytest: in `conftest.py`, `from nnloom.sim.fixtures import accelerator, rtl_session`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from nnloom.runtime import InferenceSession

__all__ = ["accelerator", "rtl_session"]


@pytest.fixture
def accelerator(request: pytest.FixtureRequest) -> Callable[..., int]:
    """Runs the cocotb tests of the module that asks for it: `accelerator("build/kws")`; options as `run_tests`."""
    from .cocotb import run_tests

    def run(artifact: str | Path, **options: Any) -> int:
        options.setdefault("module", request.path)
        return run_tests(artifact, **options)

    return run


@pytest.fixture
def rtl_session() -> Iterator[Callable[..., InferenceSession]]:
    """Sessions on RTL simulation, every write compared with the golden model's: `rtl_session("build/kws")`.

    Options: `simulator`, `waves` and `progress` as of `nnloom.sim.rtl.RtlSimulator`. They are closed at the test's end.
    """
    from nnloom.runtime import InferenceSession
    from nnloom.runtime.devices.verified import VerifiedRtlDevice

    with ExitStack() as stack:

        def open_session(artifact: str | Path, **options: Any) -> InferenceSession:
            device = VerifiedRtlDevice(**options)
            return stack.enter_context(InferenceSession(artifact, device, fallback=False))

        yield open_session
