"""A small network with everything that a session has to deal with."""

from __future__ import annotations

from pathlib import Path

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
