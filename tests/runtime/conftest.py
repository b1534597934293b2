"""A small network with everything that a session has to deal with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.artifacts import SMALL
from tests.compiler.networks import dilated_in_the_middle
from tests.tflite_models import ModelWriter


@pytest.fixture(scope="session")
def plain(tmp_path_factory) -> Path:
    """Artifact of a network that runs everywhere: two layers of the accelerator, and softmax beside it."""
    from nnloom.compiler import compile as compile_to_artifact

    folder = tmp_path_factory.mktemp("plain")
    m = ModelWriter(4)
    outputs = [m.softmax(m.dense(m.conv(m.input((1, 6, 5, 3)), 8), 6))]
    (folder / "model.tflite").write_bytes(m.finish(*outputs))
    return compile_to_artifact(folder / "model.tflite", config=SMALL, output=folder / "artifact").path


@pytest.fixture(scope="session")
def network(tmp_path_factory) -> Path:
    """Artifact of a network of two regions with CPU code before, between and after them."""
    from nnloom.compiler import compile as compile_to_artifact

    folder = tmp_path_factory.mktemp("network")
    writer = ModelWriter(3)
    (folder / "model.tflite").write_bytes(writer.finish(*dilated_in_the_middle(writer)))
    return compile_to_artifact(folder / "model.tflite", config=SMALL, output=folder / "artifact").path


@pytest.fixture(scope="session")
def streaming(tmp_path_factory) -> Path:
    """Artifact of a streaming network of two regions, with a state before each of them."""
    from nnloom.compiler import compile as compile_to_artifact

    folder = tmp_path_factory.mktemp("streaming")
    m = ModelWriter(6)
    rng = np.random.default_rng(6)
    m.call_once({name: rng.integers(-128, 128, (1, 2, 1, 8), np.int8) for name in ("first", "second")})

    def window(name: str, x: int) -> int:
        q = m.tensors[x].quantization
        kind = {"scale": q.scale, "zero_point": q.zeroPoint}
        handle = m.handle(name)
        frames = m.concatenate(1, m.read(handle, (1, 2, 1, 8), **kind), x)
        m.assign(handle, m.slice(frames, (0, 1, 0, 0), (1, 2, 1, 8)))
        return frames

    a = m.conv(window("first", m.input((1, 1, 1, 8))), 8, (3, 1), padding="VALID")
    b = m.dense(m.conv(window("second", m.softmax(a)), 8, (3, 1), padding="VALID"), 5)
    (folder / "model.tflite").write_bytes(m.finish(b))
    return compile_to_artifact(folder / "model.tflite", config=SMALL, output=folder / "artifact").path
