"""Images with rows for columns: the bits of LiteRT, of networks that the memories take only so."""

from __future__ import annotations

import dataclasses

import numpy as np

from nnloom.arch.artifact import Artifact
from nnloom.arch.reference import evaluate
from nnloom.compiler.fit import fit
from nnloom.compiler.frontend import read_model
from nnloom.compiler.ir import Graph
from nnloom.compiler.memory import fits_memory
from nnloom.compiler.orientation import turned
from nnloom.compiler.partition import partition
from nnloom.runtime import InferenceSession
from nnloom.sim.compare import compare
from nnloom.sim.litert import LiteRtReference
from tests.compiler.litert import compile_without_code, exact
from tests.fuzz.check import CONFIGS
from tests.tflite_models import ModelWriter

SMALL = "8x5 with tiny memories"


def text_line(m: ModelWriter) -> list[int]:
    """A wide, low picture, down to one row."""
    x = m.conv(m.input((1, 6, 40, 3)), 8, (3, 5), (2, 1))
    y = m.concatenate(3, *(m.pool(x, "MAX", size, (1, 2), "SAME") for size in ((1, 2), (3, 2))))
    y = m.depthwise(y, (3, 3))
    gate = m.conv(m.pool(y, "AVERAGE", m.shape(y)[1:3], (1, 1)), 16, (1, 1), activation=None)
    gate = m.unary("LOGISTIC", gate, 1 / 256, -128)
    z = m.add(m.binary("MUL", y, gate, m.scale(y)), m.binary("ADD", y, m.constant((1, 3, 20, 1), 0.02), m.scale(y)))
    z = m.pad(z, ((0, 0), (0, 0), (2, 1), (0, 0)))
    line = m.pool(z, "AVERAGE", (3, 1), (3, 1))
    return [m.dense(m.reshape(line, (1, 23 * 16)), 5), line, m.conv(z, 2, (2, 3), (1, 1))]


def written(folder, build, seed: int) -> Graph:
    m = ModelWriter(seed)
    (folder / "network.tflite").write_bytes(m.finish(*build(m)))
    return read_model(folder / "network.tflite")


def run(graph: Graph, inputs) -> list[np.ndarray]:
    """Every output by the references, operator by operator, with the axes of the file."""
    values = {i: v.data for i, v in enumerate(graph.values) if v.data is not None}
    for index, given in zip(graph.inputs, inputs, strict=True):
        axes = graph.permutations.get(index)
        values[index] = np.ascontiguousarray(given.transpose(axes)) if axes else given
    for node in graph.nodes:
        made = evaluate(node.operation, [None if i is None else values[i] for i in node.inputs])
        for index, value in zip(node.outputs, made, strict=True):
            assert value.shape == graph.values[index].type.shape == node.operation.outputs[0].shape
            values[index] = value
    found = []
    for index in graph.outputs:
        axes = graph.permutations.get(index)
        found.append(values[index].transpose(np.argsort(axes)) if axes else values[index])
    return found


def test_a_turned_network_has_the_same_bits(tmp_path):
    graph = written(tmp_path, text_line, 1)
    other = turned(graph)
    assert other is not None and other.permutations[graph.inputs[0]] == (0, 2, 1, 3)
    assert [info.shape for info in other.output_infos()] == [info.shape for info in graph.output_infos()]
    assert other.values[other.nodes[0].outputs[0]].type.shape == (1, 40, 3, 8)
    rng = np.random.default_rng(2)
    litert = LiteRtReference(tmp_path / "network.tflite")
    for _ in range(3):
        x = rng.integers(-128, 128, (1, 6, 40, 3), np.int8)
        for got, plain, want in zip(run(other, [x]), run(graph, [x]), litert.run(x), strict=True):
            np.testing.assert_array_equal(got, want)
            np.testing.assert_array_equal(plain, want)


def test_a_wide_picture_lies_in_the_memory_with_its_columns_as_rows(tmp_path):
    """Rows of a low picture fill some banks only; turned, the engine takes all of the network."""

    def build(m: ModelWriter) -> list[int]:
        x = m.input((1, 2, 40, 8))
        for _ in range(3):
            x = m.conv(m.add(x, m.conv(x, 8, (3, 3))), 8, (1, 1))
        return [x]

    config = CONFIGS[SMALL]
    graph = written(tmp_path, build, 3)
    assert fit(graph, config, turn=False).is_cut
    fitted = fit(graph, config)
    assert not fitted.is_cut and fitted.engine_share == 1
    assert fitted.partitioned.graph.permutations
    exact(tmp_path, build, 3, config=SMALL)
    compile_without_code(tmp_path / "network.tflite", tmp_path / "made", SMALL)
    artifact = Artifact.load(tmp_path / "made")
    assert [tuple(t.shape) for t in artifact.manifest.inputs] == [(1, 2, 40, 8)]
    x = np.random.default_rng(4).integers(-128, 128, (1, 2, 40, 8), np.int8)
    (want,) = LiteRtReference(tmp_path / "network.tflite").run(x)
    with InferenceSession(tmp_path / "made", "model", native=False) as session:
        np.testing.assert_array_equal(session.run(None, {session.get_inputs()[0].name: x})[0], want)
    seen = compare(tmp_path / "made", x)
    assert len(seen.tensors) >= 9 and not any(row.differ for row in seen.tensors)
    assert {row.shape for row in seen.tensors if row.region} == {(1, 2, 40, 8)}


def test_pictures_that_fit_stay_as_they_are(tmp_path):
    graph = written(tmp_path, lambda m: [m.conv(m.input((1, 6, 8, 3)), 4)], 5)
    assert not fit(graph, CONFIGS["2x16x9"]).partitioned.graph.permutations


def test_what_needs_rows_as_they_are_is_not_turned(tmp_path):
    graph = written(tmp_path, lambda m: [m.conv(m.reshape(m.input((1, 6, 40, 3)), (1, 40, 6, 3)), 4)], 6)
    assert turned(graph) is None


def test_a_network_without_pictures_or_with_state_is_not_turned(tmp_path):
    graph = written(tmp_path, lambda m: [m.dense(m.input((1, 40)), 4)], 7)
    assert turned(graph) is None
    graph = written(tmp_path, text_line, 1)
    state = dataclasses.replace(graph, states=(object(),))
    assert turned(state) is None


def test_a_reshape_with_another_scale_is_a_view(tmp_path):
    """x / 6 as exporters write it: the bytes stay, and what reads them counts with the other scale."""

    def build(m: ModelWriter) -> list[int]:
        x = m.conv(m.input((1, 4, 6, 3)), 8)
        y = m.reshape(x, m.shape(x))
        m.tensors[y].quantization.scale = np.float32([m.scale(x) / 6])
        return [m.conv(y, 4, (1, 1)), m.add(y, m.conv(x, 8))]

    partitioned = exact(tmp_path, build, 8)
    assert not partitioned.cpu_operators and len(partitioned.graphs) == 1


def test_sequences_lie_a_vector_a_row_where_one_row_is_too_long(tmp_path):
    """Vectors from the CPU (tokens): in one row they fill a bank of four."""

    def build(m: ModelWriter) -> list[int]:
        x = m.softmax(m.input((12, 16)))
        y = m.dense(m.dense(x, 40, "relu", rows=12), 16, rows=12)
        return [m.softmax(m.add(y, m.dense(x, 16, rows=12)))]

    config = CONFIGS[SMALL]
    graph = written(tmp_path, build, 9)
    plain, fitted = partition(graph, config), fit(graph, config)
    assert {t.rows for part in plain.graphs for t in part.inputs} == {1} and not fits_memory(config, plain.graphs[0])
    assert {t.rows for part in fitted.partitioned.graphs for t in part.inputs} == {12}
    assert fitted.engine_share == 1 and len(fitted.emitted.regions) == 1
    exact(tmp_path, build, 9, config=SMALL)
