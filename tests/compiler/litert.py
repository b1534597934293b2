"""A network of a test against LiteRT's reference kernels: golden model and the runtime without TVM, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from nnloom.compiler import compile as compile_model
from nnloom.compiler.frontend import read_model
from nnloom.compiler.partition import Partitioned, partition
from tests.fuzz.check import CONFIGS, Checker
from tests.fuzz.generate import Built
from tests.tflite_models import ModelWriter

Build = Callable[[ModelWriter], list[int]]


def exact(
    folder: Path,
    build: Build,
    seed: int = 0,
    *,
    config: str = "2x16x9",
    native: bool = False,
    rtl: bool = False,
    inputs: int = 3,
) -> Partitioned:
    """Compile a network, compare it with LiteRT, and return how it was partitioned.

    native: with CPU code, too, which takes seconds.
    rtl: and in the RTL of one of `tests.fuzz.check.RTL_CONFIGS`.
    """
    m = ModelWriter(seed)
    data = m.finish(*build(m))
    how = dict(native=native or rtl, rtl=rtl, seed=seed, inputs=inputs)
    verdict = Checker(folder).check(Built(data, data, ()), configs=[config], **how)
    assert verdict.kind == "equal", verdict
    return partition(read_model(folder / "network.tflite"), CONFIGS[config])


def compile_without_code(model: Path, output: Path, config: str) -> dict[str, Any]:
    """Compile for a configuration of `tests.fuzz.check` without the CPU's library, which takes the time."""

    def no_code(*arguments: object) -> None:
        next(path for path in arguments if isinstance(path, Path)).write_bytes(b"none")

    with patch("nnloom.compiler.cpu.build_cpu", no_code):
        return compile_model(model, output=output, config=CONFIGS[config]).report
