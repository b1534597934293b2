"""Data movement that becomes part of the operators behind it, against LiteRT running the file as it is."""

from __future__ import annotations

import numpy as np
import pytest

from nnloom.compiler.frontend import read_model
from nnloom.compiler.graph import Conv2D, DepthwiseConv2D, MaxPool2D
from tests.compiler.litert import exact
from tests.tflite_models import ModelWriter


def kinds(m: ModelWriter, folder, *outputs: int) -> list[str]:
    path = folder / "model.tflite"
    path.write_bytes(m.finish(*outputs))
    return [node.kind for node in read_model(path).nodes]


def image(m: ModelWriter, *, zero_point: int | None = None) -> int:
    """An input behind a convolution, so that regions begin and end around what follows."""
    rows, columns, channels = (int(m.rng.integers(low, 10)) for low in (4, 4, 2))
    x = m.conv(m.input((1, rows, columns, 3)), channels, activation=None)
    if zero_point is not None:
        m.tensors[x].quantization.zeroPoint = np.array([zero_point], np.int64)
    return x


def edges(m: ModelWriter) -> list[tuple[int, int]]:
    a, b, c, d = (int(v) for v in m.rng.integers(0, 4, 4))
    return [(0, 0), (a, b), (c, d), (0, 0)]


@pytest.mark.parametrize("seed", range(8))
def test_padding_before_convolutions(tmp_path, seed):
    def build(m: ModelWriter) -> list[int]:
        x = m.pad(image(m), edges(m))
        if seed % 2:
            x = m.pad(x, edges(m))
        kernel, strides = tuple(m.rng.integers(1, 4, 2)), tuple(m.rng.integers(1, 3, 2))
        padding = ("VALID", "SAME")[seed % 3 > 1]
        return [m.conv(x, 5, kernel, strides, padding), m.depthwise(x, kernel, strides, padding)]

    partitioned = exact(tmp_path, build, seed)
    (region,) = partitioned.graphs
    assert [type(layer) for layer in region.layers] == [Conv2D, Conv2D, DepthwiseConv2D]
    assert not partitioned.cpu_operators


def test_padding_in_the_cpu_s_code(tmp_path):
    """The file as it is on the CPU alone, too: larger padding than a kernel's own, at all edges."""

    def build(m: ModelWriter) -> list[int]:
        x = m.pad(m.input((1, 5, 6, 3)), [(0, 0), (3, 1), (0, 4), (0, 0)])
        y = m.pad(m.input((1, 5, 6, 1)), [(0, 0), (2, 2), (1, 3), (0, 0)])
        low = m.input((1, 6, 7, 4))
        m.tensors[low].quantization.zeroPoint = np.array([-128], np.int64)
        pool = m.pool(m.pad(low, [(0, 0), (1, 2), (2, 1), (0, 0)]), "MAX", (3, 2), (2, 2))
        return [m.conv(x, 4), m.conv(y, 4, dilation=(2, 1)), m.depthwise(x, (2, 3), (2, 1)), pool]

    exact(tmp_path, build, native=True)


@pytest.mark.parametrize(
    ("zero_point", "activation", "folds"),
    [(-128, None, True), (-127, None, False), (5, "relu", True), (5, "relu6", True), (5, "relu_n1_to_1", False)],
)
def test_padding_before_a_maximum_pool(tmp_path, zero_point, activation, folds):
    """A zero in the padding wins over lesser values, unless there are none in the result."""

    def build(m: ModelWriter) -> list[int]:
        x = m.pad(image(m, zero_point=zero_point), [(0, 0), (1, 2), (2, 1), (0, 0)])
        return [m.pool(x, "MAX", (2, 2), (1, 1), "SAME", activation)]

    for seed in range(3):
        (graph, *others) = exact(tmp_path, build, seed).graphs
        assert folds == ([type(layer) for layer in graph.layers] == [Conv2D, MaxPool2D] and not others)


def test_what_else_reads_the_padded_tensor_keeps_it(tmp_path):
    m = ModelWriter()
    x = m.pad(image(m), [(0, 0), (1, 1), (1, 1), (0, 0)])
    assert kinds(m, tmp_path, m.conv(x, 4), x) == ["CONV_2D", "PAD", "CONV_2D"]


@pytest.mark.parametrize(
    "pad",
    [
        lambda m, x: m.pad(x, [(0, 0), (1, 1), (1, 1), (0, 2)]),
        lambda m, x: m.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], value=9),
    ],
    ids=["channels", "another value"],
)
def test_other_paddings_stay(tmp_path, pad):
    m = ModelWriter()
    assert "CONV_2D" in kinds(m, tmp_path, m.conv(pad(m, image(m, zero_point=3)), 4))
    assert {"PAD", "PADV2"} & set(kinds(m, tmp_path, m.conv(pad(m, image(m, zero_point=3)), 4)))


def test_padding_with_the_zero_point_by_value(tmp_path):
    def build(m: ModelWriter) -> list[int]:
        return [m.conv(m.pad(image(m, zero_point=3), [(0, 0), (1, 1), (1, 1), (0, 0)], value=3), 4)]

    (graph,) = exact(tmp_path, build).graphs
    assert len(graph.layers) == 2


@pytest.mark.parametrize("activation", ["RELU", "RELU6", "RELU_N1_TO_1"])
def test_activation_behind_an_operator(tmp_path, activation):
    def build(m: ModelWriter) -> list[int]:
        x = image(m)
        others = [m.depthwise(x, activation=None), m.pool(x, "AVERAGE", (2, 2), (1, 1))]
        made = [m.conv(x, 4, activation=None), *others, m.add(x, x), m.dense(x, 3)]
        return [m.unary(activation, v, m.scale(v), int(m.tensors[v].quantization.zeroPoint[0])) for v in made]

    for seed in range(2):
        partitioned = exact(tmp_path, build, seed)
        assert [len(graph.layers) for graph in partitioned.graphs] == [6]
        assert not any(node.kind == activation for node in partitioned.graph.nodes)


def test_activations_that_stay(tmp_path):
    """Another scale; another reader; an activation there is already."""
    m = ModelWriter()
    x = image(m)
    a, b, c = m.conv(x, 4, activation=None), m.conv(x, 4, activation=None), m.conv(x, 4, activation="relu6")
    results = [m.unary("RELU", a, 0.3, 0), m.unary("RELU", b, m.scale(b), m.tensors[b].quantization.zeroPoint[0])]
    results += [m.unary("RELU", c, m.scale(c), m.tensors[c].quantization.zeroPoint[0]), m.softmax(b)]
    assert kinds(m, tmp_path, *results).count("RELU") == 3


@pytest.mark.parametrize("seed", range(6))
def test_dilation_by_batches(tmp_path, seed):
    """SPACE_TO_BATCH_ND, a convolution of each part, BATCH_TO_SPACE_ND."""

    def build(m: ModelWriter) -> list[int]:
        x = image(m)
        _, rows, columns, _ = m.shape(x)
        block = [(2, 2), (1, 3), (3, 1)][seed % 3]
        before = [int(v) for v in m.rng.integers(0, 3, 2)]
        pads = [(p, -(n + p) % b + b) for n, p, b in zip((rows, columns), before, block, strict=True)]
        crops = [(int(m.rng.integers(0, p + 1)), int(m.rng.integers(0, 2))) for p in before]
        y = m.space_to_batch(x, block, pads)
        y = m.conv(y, 5, (2, 3), padding="SAME") if seed % 2 else m.depthwise(y, (2, 1), padding="SAME")
        return [m.conv(m.batch_to_space(y, block, crops), 3, (1, 1))]

    partitioned = exact(tmp_path, build, seed, native=seed == 0)
    assert [node.kind for node in partitioned.graph.nodes].count("SPACE_TO_BATCH_ND") == 0
    assert [len(graph.layers) for graph in partitioned.graphs] == [3]
