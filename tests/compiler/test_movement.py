"""Data movement on the accelerator: parts of tensors where they lie, and copies; against LiteRT."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from nnloom.arch.config import AcceleratorConfig
from nnloom.compiler.copies import is_copy, selection_layer, without_copies
from nnloom.compiler.emit import emit
from nnloom.compiler.explore import EVERYTHING, evaluate
from nnloom.compiler.frontend import read_model
from nnloom.compiler.graph import LayerGraph
from nnloom.compiler.partition import partition
from nnloom.sim.golden import GoldenModel
from tests.compiler.litert import exact
from tests.fuzz.check import CONFIGS
from tests.graphs import tensor
from tests.harness import compile_region
from tests.tflite_models import ModelWriter

SCALE, POINT = 0.05, 3


def conv(m: ModelWriter, x: int, channels: int, **options) -> int:
    """With one quantization for all, as operands of a concatenation have."""
    y = m.conv(x, channels, activation=None, **options)
    q = m.tensors[y].quantization
    q.scale, q.zeroPoint = np.array([SCALE], np.float32), np.array([POINT], np.int64)
    m.tensors[y - 2].quantization.scale *= np.float32(0.3)
    m.tensors[y - 1].quantization.scale *= np.float32(0.3)
    return y


def moved(m: ModelWriter, name: str, inputs: list[int], shapes: list[tuple[int, ...]], **options) -> list[int]:
    table = "".join(word.capitalize() for word in name.split("_"))
    values = getattr(schema, f"{table}OptionsT", schema.SplitOptionsT)()
    for key, value in options.items():
        setattr(values, key, value)
    outputs = [m.tensor(shape, scale=SCALE, zero_point=POINT) for shape in shapes]
    m.operator(name, inputs, outputs[0], values)
    m.operators[-1].outputs = np.array(outputs, np.int32)
    return outputs


def concatenation(m: ModelWriter, inputs: list[int], axis: int) -> int:
    shape = list(m.shape(inputs[0]))
    shape[axis] = sum(m.shape(x)[axis] for x in inputs)
    return moved(m, "CONCATENATION", inputs, [tuple(shape)], axis=axis)[0]


def integers(m: ModelWriter, *values: int) -> int:
    return m.tensor((len(values),), dtype="INT32", data=np.array(values, np.int32))


def split(m: ModelWriter, x: int, count: int, axis: int = 3) -> list[int]:
    shape = list(m.shape(x))
    shape[axis] //= count
    where = m.tensor((), dtype="INT32", data=np.array(axis, np.int32))
    return moved(m, "SPLIT", [where, x], [tuple(shape)] * count, numSplits=count)


def sliced(m: ModelWriter, x: int, begin: tuple[int, ...], end: tuple[int, ...], strides: tuple[int, ...]) -> int:
    shape = tuple(-(-(e - b) // s) for b, e, s in zip(begin, end, strides, strict=True))
    operands = [x, *(integers(m, *v) for v in (begin, end, strides))]
    return moved(m, "STRIDED_SLICE", operands, [shape])[0]


def copies(partitioned, config: str = "2x16x9") -> list[int]:
    """Copies in each region, as it is emitted."""
    regions = emit(CONFIGS[config], partitioned.graphs).regions
    return [sum(map(is_copy, region.graph.layers)) for region in regions]


@pytest.mark.parametrize("config", ["2x16x9", "8x5 with larger memories"])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_concatenation_is_where_its_layers_write(tmp_path, axis, config):
    def build(m: ModelWriter) -> list[int]:
        x = m.input((1, 8, 6, 3))
        a, b, c = conv(m, x, 8), conv(m, x, 8, kernel=(1, 1)), conv(m, x, 8)
        y = concatenation(m, [a, m.depthwise(b) if axis == 9 else b, c], axis)
        return [m.conv(y, 5), m.depthwise(y), m.pool(y, "MAX", (2, 2), (2, 2)), m.conv(b, 3)]

    partitioned = exact(tmp_path, build, axis, config=config)
    assert not partitioned.cpu_operators
    assert copies(partitioned, config) == [0]
    assert sum(map(is_copy, partitioned.graphs[0].layers)) == 3


@pytest.mark.parametrize("config", ["2x16x9", "8x5 with larger memories"])
def test_rows_at_any_place(tmp_path, config):
    """Layers write from any row on, but read from multiples of the banks, and pairs of rows begin with an even one."""

    def build(m: ModelWriter) -> list[int]:
        x = m.input((1, 8, 6, 3))
        parts = [conv(m, x, 10, kernel=(k, 1), padding="VALID") for k in (3, 8, 2, 1)]
        y = concatenation(m, parts, 1)
        return [m.conv(y, 5), m.depthwise(parts[1]), m.dense(m.pool(y, "AVERAGE", (5, 2), (3, 2)), 3)]

    partitioned = exact(tmp_path, build, config=config)
    assert not partitioned.cpu_operators
    # 6, 1, 7 and 8 rows: the second begins at row 6 and is read by another layer, the third at row 7, the last at 14.
    assert len(partitioned.graphs) == 1 and copies(partitioned, config) == [1 + CONFIGS[config].pixels // 2]


@pytest.mark.parametrize("config", ["2x16x9", "8x5 with larger memories"])
def test_channels_at_any_place(tmp_path, config):
    """A convolution closes the gaps between channels; the layers before write to where the copies would have."""

    def build(m: ModelWriter) -> list[int]:
        x = m.input((1, 6, 5, 3))
        y = concatenation(m, [conv(m, x, 5), conv(m, x, 12), conv(m, x, 3)], 3)
        z = concatenation(m, [y, m.pad(conv(m, x, 2), [(0, 0), (0, 0), (0, 0), (1, 0)])], 3)
        return [m.conv(y, 4), m.depthwise(z)]

    partitioned = exact(tmp_path, build, config=config)
    assert not partitioned.cpu_operators
    assert copies(partitioned, config) == [0]


def test_packed_steps_and_axes_of_one(tmp_path):
    def build(m: ModelWriter) -> list[int]:
        x = m.input((1, 5, 4, 3))
        pooled = [m.pool(conv(m, x, 6), "AVERAGE", (5, 4), (1, 1)) for _ in range(3)]
        rows = [m.reshape(p, (1, 6)) for p in pooled]
        (packed,) = moved(m, "PACK", rows, [(1, 3, 6)], valuesCount=3, axis=1)
        (turned,) = moved(m, "TRANSPOSE", [packed, integers(m, 1, 0, 2)], [(3, 1, 6)])
        return [m.dense(turned, 4)]

    partitioned = exact(tmp_path, build)
    assert not partitioned.cpu_operators
    assert len(partitioned.graphs) == 1 and copies(partitioned) == [0]


def test_dense_blocks(tmp_path):
    """Each layer reads all before it: one tensor grows."""

    def build(m: ModelWriter) -> list[int]:
        x = conv(m, m.input((1, 6, 5, 3)), 16)
        for _ in range(3):
            x = concatenation(m, [x, conv(m, x, 8)], 3)
        return [m.dense(x, 4)]

    partitioned = exact(tmp_path, build)
    assert copies(partitioned) == [0]
    (region,) = emit(CONFIGS["2x16x9"], partitioned.graphs).regions
    written = {layer.output.name for layer in region.graph.layers}
    assert len(written) == 2


@pytest.mark.parametrize("native", [False, True])
def test_split_is_read_where_it_lies(tmp_path, native):
    def build(m: ModelWriter) -> list[int]:
        x = conv(m, m.input((1, 6, 5, 3)), 24)
        a, b, c = split(m, x, 3)
        return [m.conv(a, 5), m.depthwise(b), m.pool(c, "AVERAGE", (2, 2), (1, 1)), m.dense(b, 3)]

    partitioned = exact(tmp_path, build, native=native)
    assert not partitioned.cpu_operators
    assert [len(graph.layers) for graph in partitioned.graphs] == [5]


def test_parts_of_what_the_host_writes():
    """A region's input that only convolutions read is packed, unless they read parts of it."""
    source = tensor(np.random.default_rng(1), "x", 5, 4, 10)
    part = source.part((0, 1, 8), (5, 3, 2))
    output = tensor(np.random.default_rng(2), "y", 5, 3, 2)
    layer = selection_layer("y", part, replace(output, zero_point=part.zero_point), np.array([1, 0]))
    graph = LayerGraph("region", (source,), (layer.output,), (layer,))
    compiled = compile_region(CONFIGS["2x16x9"], graph)
    model = GoldenModel(compiled.config, compiled.program, compiled.weights, compiled.tables)
    values = np.random.default_rng(3).integers(-128, 128, (5, 4, 10), np.int8)
    model.write_tensor(compiled.plan.locations["x"], values)
    model.run()
    got = model.read_tensor(compiled.plan.locations["y"]).reshape(5, 3, 2)
    np.testing.assert_array_equal(got, values[:, 1:, [9, 8]])


def test_parts_that_leave_the_accelerator_or_are_added(tmp_path):
    """The host reads whole tensors, and an addition too: copies."""

    def build(m: ModelWriter) -> list[int]:
        x = conv(m, m.input((1, 6, 5, 3)), 16)
        a, b = split(m, x, 2)
        return [a, m.add(a, b), m.softmax(b)]

    partitioned = exact(tmp_path, build)
    assert copies(partitioned) == [4]


def test_shuffling_units(tmp_path):
    """Split, work on a half, put together: the halves stay where they are or are written to their place."""

    def build(m: ModelWriter) -> list[int]:
        x = conv(m, m.input((1, 8, 8, 3)), 32)
        for _ in range(2):
            a, b = split(m, x, 2)
            x = concatenation(m, [a, conv(m, m.depthwise(b), 16, kernel=(1, 1))], 3)
        return [m.dense(m.pool(x, "AVERAGE", (8, 8), (1, 1)), 4)]

    partitioned = exact(tmp_path, build)
    assert not partitioned.cpu_operators
    assert copies(partitioned) == [2]


@pytest.mark.parametrize(
    ("begin", "end", "strides", "copied"),
    [
        ((0, 4, 1, 8), (1, 8, 4, 24), (1, 1, 1, 1), 0),
        ((0, 1, 1, 0), (1, 8, 5, 24), (1, 1, 1, 1), 1),
        ((0, 0, 1, 8), (1, 8, 5, 16), (1, 3, 2, 1), 1),
        ((0, 0, 0, 3), (1, 8, 6, 20), (1, 1, 1, 1), 1),
        ((0, 2, 1, 1), (1, 7, 6, 24), (1, 2, 2, 3), 1),
    ],
)
def test_slices(tmp_path, begin, end, strides, copied):
    """A part if it begins at a granule of a bank; else a copy, by a convolution where channels are out of place."""

    def build(m: ModelWriter) -> list[int]:
        x = conv(m, m.input((1, 8, 6, 3)), 24)
        return [m.conv(sliced(m, x, begin, end, strides), 4), m.pool(x, "MAX", (2, 2), (2, 2))]

    partitioned = exact(tmp_path, build)
    assert not partitioned.cpu_operators
    assert [len(graph.layers) for graph in partitioned.graphs] == [3 + copied]


@pytest.mark.parametrize(
    "widths", [[(0, 0), (1, 2), (3, 0), (0, 0)], [(0, 0), (0, 0), (0, 0), (3, 5)], [(0, 0), (1, 1), (2, 0), (8, 0)]]
)
def test_padding_that_no_consumer_takes(tmp_path, widths):
    def build(m: ModelWriter) -> list[int]:
        x = m.pad(conv(m, m.input((1, 6, 5, 3)), 8), widths)
        return [m.pool(x, "AVERAGE", (2, 2), (1, 1))]

    partitioned = exact(tmp_path, build)
    assert not partitioned.cpu_operators
    assert [len(graph.layers) for graph in partitioned.graphs] == [3]


def test_gathered_channels_and_a_step_in_time(tmp_path):
    def build(m: ModelWriter) -> list[int]:
        x = conv(m, m.input((1, 6, 5, 3)), 10)
        (channels,) = moved(m, "GATHER", [x, integers(m, 7, 0, 2, 9)], [(1, 6, 5, 4)], axis=3)
        rows = moved(m, "UNPACK", [x], [(1, 5, 10)] * 6, num=6, axis=1)
        return [m.conv(channels, 3), m.dense(rows[4], 3), m.dense(rows[5], 3)]

    partitioned = exact(tmp_path, build)
    assert not partitioned.cpu_operators
    assert len(partitioned.graphs) == 1


@pytest.mark.parametrize(("block", "channels"), [(2, 5), (3, 2)])
def test_space_to_depth(tmp_path, block, channels):
    def build(m: ModelWriter) -> list[int]:
        x = conv(m, m.input((1, 6, 12, 3)), channels)
        shape = (1, 6 // block, 12 // block, channels * block * block)
        return [m.conv(moved(m, "SPACE_TO_DEPTH", [x], [shape], blockSize=block)[0], 4)]

    partitioned = exact(tmp_path, build, config="8x5 with larger memories")
    assert not partitioned.cpu_operators
    assert [len(graph.layers) for graph in partitioned.graphs] == [3]


REASONS = {
    "lies in memory as 6 x 5 x 4, not 1 x 30 x 4": lambda m, x: concatenation(m, [conv(m, x, 4), conv(m, x, 4)], 0),
    "no operand of it is on the accelerator": lambda m, x: concatenation(m, [x, x], 3),
}


@pytest.mark.parametrize("reason", REASONS)
def test_what_stays_on_the_cpu(tmp_path, reason):
    def build(m: ModelWriter) -> list[int]:
        x = m.input((1, 6, 5, 3))
        m.tensors[x].quantization.scale = np.array([SCALE], np.float32)
        m.tensors[x].quantization.zeroPoint = np.array([POINT], np.int64)
        return [REASONS[reason](m, x)]

    (item,) = exact(tmp_path, build).cpu_operators
    assert item.op == "concatenation" and reason in item.reason


def test_copies_stay_where_nobody_can_write_to_their_place(tmp_path):
    """Of an input, of a sum (whose rows have no gaps), and of what the host reads."""

    def build(m: ModelWriter) -> list[int]:
        x = m.input((1, 6, 5, 8))
        m.tensors[x].quantization.scale = np.array([SCALE], np.float32)
        m.tensors[x].quantization.zeroPoint = np.array([POINT], np.int64)
        a, b = conv(m, x, 8), conv(m, x, 8)
        total = m.binary("ADD", a, b, SCALE, zero_point=POINT)
        return [m.conv(concatenation(m, [x, total, b], 3), 4), b]

    partitioned = exact(tmp_path, build)
    assert copies(partitioned) == [3]
    (graph,) = partitioned.graphs
    assert without_copies(AcceleratorConfig(), graph) == graph


def test_every_candidate_of_an_exploration_can_place_the_parts(tmp_path):
    """Parts begin at granules, which are those of the widest engine."""
    m = ModelWriter()
    x = conv(m, m.input((1, 6, 5, 3)), 24)
    a, b, c = split(m, x, 3)
    path = tmp_path / "model.tflite"
    path.write_bytes(m.finish(m.conv(concatenation(m, [c, conv(m, a, 8), b], 3), 4)))
    graphs = partition(read_model(path), EVERYTHING).graphs
    narrow, wide = AcceleratorConfig(lanes=8, taps=5, requant_units=2, weight_words=8192), EVERYTHING
    for config in (narrow, AcceleratorConfig(), wide):
        assert evaluate(config, graphs) is not None
