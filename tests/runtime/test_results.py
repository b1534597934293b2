"""Results belong to the caller, and come from the code of the artifact that was opened."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from nnloom.arch.errors import ArtifactError
from nnloom.arch.markup import html_table
from nnloom.arch.report import Report
from nnloom.cli import main
from nnloom.compiler import compile as compile_to_artifact
from nnloom.runtime import InferenceSession
from nnloom.runtime.relax_vm import RelaxProgram
from nnloom.sim.litert import LiteRtReference
from tests.artifacts import SMALL, make_artifact, random_network_inputs
from tests.graphs import random_graph
from tests.tflite_models import ModelWriter


def views(m: ModelWriter) -> list[int]:
    """The input itself, reshapes of it, and something computed."""
    x = m.input((1, 12))
    y = m.reshape(x, (1, 3, 4))
    return [x, y, m.reshape(y, (1, 2, 6)), m.dense(x, 5)]


def written(path: Path, network, seed: int = 0) -> Path:
    writer = ModelWriter(seed)
    path.write_bytes(writer.finish(*network(writer)))
    return path


@pytest.fixture(scope="module")
def viewing(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("views")
    return compile_to_artifact(written(folder / "m.tflite", views), config=SMALL, output=folder / "artifact").path


@pytest.mark.parametrize("portable", [False, True], ids=["tvm", "portable"])
@pytest.mark.parametrize("device", ["cpu", "model"])
def test_results_belong_to_the_caller(viewing, device, portable, monkeypatch):
    if portable:
        monkeypatch.setitem(sys.modules, "tvm", None)
    rng = np.random.default_rng(1)
    values = [rng.integers(-128, 128, (1, 12), np.int8) for _ in range(3)]
    with InferenceSession(viewing, device) as session:
        given = [value.copy() for value in values]
        results = [list(session.run(value).values()) for value in given]
        names = [info.name for info in session.get_outputs()]
        batch = session.run(np.concatenate(values))
    reference = LiteRtReference(viewing.parent / "m.tflite")
    want = [reference.run(value) for value in values]
    for got, expected in zip(results, want, strict=True):
        for array, value in zip(got, expected, strict=True):
            np.testing.assert_array_equal(array, value)
            assert array.flags.owndata and array.flags.writeable and array.flags.c_contiguous
    for name, *parts in zip(names, *want, strict=True):
        np.testing.assert_array_equal(batch[name], np.concatenate(parts))
    # Writing to one result changes no other, and not the input.
    for array in results[0]:
        others = [other.copy() for result in results for other in result if other is not array]
        array[:] = 77
        rest = [other for result in results for other in result if other is not array]
        assert all(np.array_equal(a, b) for a, b in zip(rest, others, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(given, values, strict=True))


@pytest.mark.parametrize("device", ["cpu", "model"])
def test_stacked_inputs_on_the_command_line(viewing, device, tmp_path, capfd):
    values = np.random.default_rng(2).integers(-128, 128, (4, 12), np.int8)
    np.save(tmp_path / "x.npy", values)
    arguments = ["run", str(viewing), "--input", str(tmp_path / "x.npy"), "--device", device, "--json"]
    assert main([*arguments, "--output", str(tmp_path / "y.npz")]) == 0
    shown = json.loads(capfd.readouterr().out)["outputs"]
    reference = LiteRtReference(viewing.parent / "m.tflite")
    rows = [reference.run(value[None]) for value in values]
    want = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
    with np.load(tmp_path / "y.npz") as saved:
        for name, expected in zip(saved.files, want, strict=True):
            np.testing.assert_array_equal(saved[name], expected)
            assert shown[name]["values"] == expected.reshape(-1).tolist()


@pytest.mark.parametrize("device", ["cpu", "model"])
@pytest.mark.parametrize("overlapping", [False, True], ids=["one-after-the-other", "both-open"])
def test_a_folder_that_is_compiled_again_answers_with_its_own_code(device, overlapping, tmp_path):
    """dlopen gives the library that is loaded under a path, whatever the file holds by then."""
    value = np.random.default_rng(3).integers(-128, 128, (1, 9, 7, 5), np.int8)
    opened: list[tuple[InferenceSession, LiteRtReference]] = []
    for seed in range(3):
        # Softmax stays on the CPU, so that a session on the model runs code of the library, too.
        def network(m: ModelWriter, outputs: int = 4 + seed) -> list[int]:
            return [m.softmax(m.dense(m.conv(m.input((1, 9, 7, 5)), 8), outputs))]

        model = written(tmp_path / f"{seed}.tflite", network, seed)
        compile_to_artifact(model, config=SMALL, output=tmp_path / "artifact")
        opened.append((InferenceSession(tmp_path / "artifact", device), LiteRtReference(model)))
        for session, reference in opened:
            (want,), (got,) = reference.run(value), session.run(value).values()
            np.testing.assert_array_equal(got, want)
        if not overlapping:
            opened.pop()[0].close()
    for session, _ in opened:
        session.close()


def test_the_copy_that_is_loaded_does_not_stay(viewing, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with InferenceSession(viewing, "cpu") as session:
        assert list(tmp_path.iterdir()) == []
        session.run(np.zeros((1, 12), np.int8))
    (tmp_path / "no").mkdir()
    (tmp_path / "no" / "cpu.so").write_bytes(b"not a library")
    with pytest.raises(ArtifactError, match=r"no/cpu\.so: cannot be loaded"):
        RelaxProgram(tmp_path / "no" / "cpu.so", [1], "x86-64")
    with pytest.raises(ArtifactError, match="changed while it was loaded"):
        RelaxProgram(viewing / "cpu.so", [1], "x86-64", sha256="0" * 64)
    assert [path.name for path in tmp_path.iterdir()] == ["no"]


def test_notebooks_show_tables_whose_names_are_escaped(tmp_path):
    graph = random_graph(np.random.default_rng(6), ["conv", "dense"])
    make_artifact(tmp_path, graph)
    with InferenceSession(tmp_path, "model") as session:
        session.run(random_network_inputs(np.random.default_rng(7), graph))
        shown = [session._repr_html_(), session.profile()._repr_html_(), Report.load(session.artifact)._repr_html_()]
    for text in shown:
        assert text.startswith("<table>") and text.count("<tr>") == text.count("</tr>") > 1
    assert graph.inputs[0].name in shown[0] and graph.layers[0].name in shown[1] and graph.layers[1].name in shown[2]
    assert html_table("<b>", ["<i>"], [["<u>", 1234, None]]) == (
        "<table><caption>&lt;b&gt;</caption><thead><tr><th>&lt;i&gt;</th></tr></thead><tbody><tr><td>&lt;u&gt;</td>"
        '<td style="text-align:right">1,234</td><td></td></tr></tbody></table>'
    )
