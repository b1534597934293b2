"""Functions of one value in tables of the engine: in the layer before, alone, in chains, and where there is no room."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from nnloom.arch.artifact import REPORT_FILE, Artifact
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import ConfigError
from nnloom.arch.flash_image import flash_image
from nnloom.arch.isa import HostAddress
from nnloom.arch.reference import REFERENCES
from nnloom.arch.report import Report, tables_of
from nnloom.cli import main
from nnloom.cli.html_report import html_page
from nnloom.compiler.elementwise import ELEMENTWISE
from nnloom.compiler.frontend import read_model
from nnloom.compiler.graph import Table
from nnloom.compiler.ops import OPERATORS
from nnloom.compiler.ops.lookup import table_of
from nnloom.compiler.partition import Partitioned, partition
from nnloom.runtime.devices.recorder import BusRecorder
from tests.compiler.litert import compile_without_code, exact
from tests.tflite_models import ModelWriter, schema

FUNCTIONS = ("LOGISTIC", "TANH", "HARD_SWISH", "ABS", "GELU", "LEAKY_RELU", "QUANTIZE")
FIXED = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0)}
"""Scale and zero point of the output, where LiteRT wants one"""


def function(m: ModelWriter, name: str, x: int) -> int:
    scale, zero_point = FIXED.get(name, (m.scale(x) * float(m.rng.uniform(0.5, 2)), None))
    if name == "LEAKY_RELU":
        options = schema.LeakyReluOptionsT()
        options.alpha = 0.3
        return m.operator(name, [x], m.tensor(m.shape(x), scale=scale, zero_point=4), options)
    return m.unary(name, x, scale, zero_point)


def image(m: ModelWriter, channels: int = 0) -> int:
    rows, columns = (int(n) for n in m.rng.integers(3, 8, 2))
    return m.conv(m.input((1, rows, columns, 3)), channels or int(m.rng.integers(2, 20)), activation=None)


def layers(partitioned: Partitioned):
    assert not partitioned.cpu_operators, partitioned.cpu_operators
    (graph,) = partitioned.graphs
    return graph.layers


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("config", ["2x16x9", "2x8x5", "8x3 for convolutions"])
def test_the_layer_before_does_it(tmp_path, name, config):
    seed = sorted(ELEMENTWISE).index(name)

    def build(m: ModelWriter) -> list[int]:
        return [m.conv(function(m, name, image(m)), 4, (1, 1))]

    first, second = layers(exact(tmp_path, build, seed, config=config))
    assert first.table and not second.table
    # The same without: as other layers, or on the CPU.
    graph = read_model(tmp_path / "network.tflite")
    without = partition(graph, AcceleratorConfig())
    assert all(layer.table is None for g in without.graphs for layer in g.layers)
    assert bool(without.cpu_operators) == (name not in ("QUANTIZE", "LEAKY_RELU"))


@pytest.mark.parametrize("maker", ["depthwise", "dense", "maximum", "average", "add", "mean", "concatenation"])
def test_whatever_makes_the_operand(tmp_path, maker):
    def build(m: ModelWriter) -> list[int]:
        x = image(m, 8)
        a = m.conv(x, 8, activation=None)
        made = {
            "depthwise": lambda: m.depthwise(x, activation=None),
            "dense": lambda: m.dense(m.reshape(x, (1, int(np.prod(m.shape(x))))), 9),
            "maximum": lambda: m.pool(x, "MAX", (2, 2), (1, 1)),
            "average": lambda: m.pool(x, "AVERAGE", (2, 2), (1, 1)),
            "add": lambda: m.add(x, a),
            "mean": lambda: m.pool(x, "AVERAGE", m.shape(x)[1:3], (1, 1)),
            "concatenation": lambda: m.concatenate(3, *(m.pool(x, "MAX", (n, n), (1, 1), "SAME") for n in (2, 3))),
        }[maker]()
        return [m.unary("HARD_SWISH", made, m.scale(made) * 0.9)]

    *_, last = made = layers(exact(tmp_path, build, 3))
    assert last.table and len({layer.output.name for layer in made if layer.table}) == 1


def test_a_chain_is_one_table(tmp_path):
    def build(m: ModelWriter) -> list[int]:
        x = image(m)
        for name in ("HARD_SWISH", "LEAKY_RELU", "TANH", "ABS"):
            x = function(m, name, x)
        return [m.conv(x, 5)]

    first, second = layers(exact(tmp_path, build, 4))
    assert first.table and not second.table


def test_a_reshape_between_is_none(tmp_path):
    def build(m: ModelWriter) -> list[int]:
        x = image(m)
        y = function(m, "LOGISTIC", m.reshape(x, (1, int(np.prod(m.shape(x))))))
        return [m.dense(y, 5)]

    assert [bool(layer.table) for layer in layers(exact(tmp_path, build, 5))] == [True, False]


@pytest.mark.parametrize("case", ["two readers", "an output", "two functions"])
def test_what_others_read_stays(tmp_path, case):
    def build(m: ModelWriter) -> list[int]:
        x = image(m, 6)
        y = function(m, "LOGISTIC", x)
        if case == "two readers":
            return [m.conv(y, 4, (1, 1)), m.conv(x, 4, (1, 1))]
        return [m.conv(y, 4), x] if case == "an output" else [m.conv(y, 4), m.conv(function(m, "TANH", x), 4)]

    made = layers(exact(tmp_path, build, 6))
    assert not made[0].table and sum(bool(layer.table) for layer in made) == 1 + (case == "two functions")


def test_gates_of_squeeze_and_excite(tmp_path):
    """Hard sigmoid as exporters write it: an addition of 3, RELU6, a product with 1/6."""

    def build(m: ModelWriter) -> list[int]:
        x = m.dense(m.input((1, 24)), 8)
        three = m.constant((), m.scale(x), 0)
        y = m.binary("ADD", x, three, m.scale(x))
        y = m.unary("RELU6", y, m.scale(y))
        return [m.dense(m.binary("MUL", y, m.constant((), 1 / 6 / 127, 0), 1 / 128), 5)]

    first, second = layers(exact(tmp_path, build, 7))
    assert first.table and not second.table


def swish(m: ModelWriter, x: int) -> int:
    y = function(m, "LOGISTIC", x)
    return m.binary("MUL", x, y, m.scale(x) * 0.9)


def hard_swish_in_pieces(m: ModelWriter, x: int) -> int:
    three = m.constant((), 3 / 127, 0)
    y = m.binary("ADD", x, three, m.scale(x) * 1.1, activation="relu6")
    return m.binary("MUL", m.binary("MUL", x, y, m.scale(x)), m.constant((), 1 / 6 / 127, 0), m.scale(x) / 6)


def two_branches(m: ModelWriter, x: int) -> int:
    a, b = function(m, "TANH", function(m, "ABS", x)), function(m, "LEAKY_RELU", x)
    return m.binary("MAXIMUM", m.unary("QUANTIZE", a, m.scale(b), 4), b, m.scale(b), zero_point=4)


@pytest.mark.parametrize("pieces", [swish, hard_swish_in_pieces, two_branches])
@pytest.mark.parametrize("before", ["conv", "add"])
def test_two_functions_of_one_value_are_one(tmp_path, pieces, before):
    def build(m: ModelWriter) -> list[int]:
        x = image(m, 8)
        return [m.conv(pieces(m, m.add(x, m.conv(x, 8)) if before == "add" else x), 4)]

    made = layers(exact(tmp_path, build, 12))
    assert len(made) == {"conv": 2, "add": 4}[before]
    assert sum(bool(layer.table) for layer in made) == 1


@pytest.mark.parametrize("kept", ["between", "origin"])
def test_of_two_functions_what_others_read_stays(tmp_path, kept):
    def build(m: ModelWriter) -> list[int]:
        x = image(m, 8)
        y = function(m, "LOGISTIC", x)
        z = m.binary("MUL", x, y, m.scale(x) * 0.9)
        return [m.conv(z, 4), m.conv(y if kept == "between" else x, 4)]

    made = layers(exact(tmp_path, build, 13))
    # The functions are copies: both, or the one that takes the other's place.
    assert [bool(layer.table) for layer in made[:-2]] == ([False, True, True] if kept == "between" else [False, True])


def test_functions_beyond_the_tables_stay_on_the_cpu(tmp_path):
    """Those that the engine does otherwise leave the tables to those that it does not."""

    def build(m: ModelWriter) -> list[int]:
        x = image(m, 8)
        for name in ("QUANTIZE", "LEAKY_RELU", "HARD_SWISH", "TANH", "LOGISTIC"):
            x = m.conv(function(m, name, x), 8, activation=None)
        return [x]

    partitioned = exact(tmp_path, build, 8, config="2x16x9 with row triples")
    assert [o.op for o in partitioned.cpu_operators] == ["logistic"]
    assert "tables (2) hold other functions" in partitioned.cpu_operators[0].reason
    tables = [layer.table for graph in partitioned.graphs for layer in graph.layers if layer.table]
    assert len(tables) == 2
    # With one more there are none of the others either.
    graph = read_model(tmp_path / "network.tflite")
    four = partition(graph, AcceleratorConfig(tables=4))
    assert not four.cpu_operators and len({layer.table for layer in four.graphs[0].layers if layer.table}) == 4


def test_equal_functions_share_a_table(tmp_path):
    def build(m: ModelWriter) -> list[int]:
        x = image(m, 8)
        pools = [m.pool(x, "MAX", (n, n), (1, 1), "SAME") for n in (2, 3)]
        return [m.conv(function(m, "LOGISTIC", pool), 4) for pool in pools]

    made = layers(exact(tmp_path, build, 9, config="16x9 with row triples"))
    tables = [layer.table for layer in made if layer.table]
    assert len(tables) == 2 and len(set(tables)) == 1


def test_report_and_inspect_list_the_tables(tmp_path, capsys):
    def build(m: ModelWriter) -> list[int]:
        x = function(m, "ABS", function(m, "HARD_SWISH", image(m, 8)))
        y = function(m, "LOGISTIC", m.conv(x, 8, activation=None))
        return [m.conv(m.binary("MUL", x, function(m, "TANH", x), m.scale(x)), 4), m.conv(swish(m, m.conv(y, 4)), 4)]

    m = ModelWriter(8)
    (tmp_path / "network.tflite").write_bytes(m.finish(*build(m)))
    values = compile_without_code(tmp_path / "network.tflite", tmp_path / "made", "2x8x5")
    of = {layer["name"]: layer for layer in values["layers"] if "table" in layer}
    assert {tuple(layer["table_operators"]) for layer in of.values()} == {
        ("hard_swish", "abs"), ("tanh", "mul"), ("logistic",), ("logistic", "mul"),
    }  # fmt: skip
    assert values["memory"]["tables"] == 4 and values["memory"]["tables_available"] == 8
    assert sorted(layer["table"] for layer in of.values()) == [1, 2, 3, 4]
    schema_file = Path(__file__).parents[2] / "docs" / "report.schema.json"
    jsonschema.Draft202012Validator(json.loads(schema_file.read_text())).validate(
        json.loads((tmp_path / "made" / REPORT_FILE).read_text())
    )
    assert main(["inspect", str(tmp_path / "made")]) == 0
    text = capsys.readouterr().out
    assert "tables: 4 of 8, loaded once" in text and "hard_swish > abs" in text
    page = html_page(Artifact.load(tmp_path / "made"), Report.load(Artifact.load(tmp_path / "made")))
    data = json.loads(re.search(r'id="data"[^>]*>(.*?)</script>', page)[1])
    assert [row[1] for row in data["tables"]] == [use.computes for use in tables_of(values["layers"])]
    assert {name for row in data["tables"] for name in row[2].split(", ")} == set(of)


@pytest.mark.verilator
def test_a_network_of_functions_in_rtl(tmp_path):
    """Layers with tables before and behind such without, pairs of rows, parts, a copy; CPU code, golden model, RTL."""

    def build(m: ModelWriter) -> list[int]:
        x = function(m, "HARD_SWISH", m.conv(m.input((1, 9, 7, 3)), 20, activation=None))
        y = m.depthwise(x, activation=None)
        gate = function(m, "LOGISTIC", m.pool(y, "AVERAGE", m.shape(y)[1:3], (1, 1)))
        both = m.add(function(m, "TANH", m.conv(x, 20, activation=None)), m.conv(y, 20))
        pools = m.concatenate(3, *(m.pool(both, "MAX", (n, n), (2, 2), "SAME") for n in (2, 3)))
        z = m.conv(function(m, "LEAKY_RELU", pools), 6, (1, 1), activation=None)
        return [m.dense(m.reshape(gate, (1, 20)), 4), function(m, "ABS", z), m.conv(z, 3)]

    config = "2x16x9 with row triples and product registers"
    made = layers(exact(tmp_path, build, 11, config=config, rtl=True))
    assert len({layer.table for layer in made if layer.table}) == 5


def chain(m: ModelWriter, count: int) -> list[int]:
    """Layers with so many functions, of a picture that is larger than their tables."""
    x = m.input((1, 26, 26, 3))
    for index in range(count):
        x = m.conv(x, 8, (1, 1), activation=None)
        x = m.add(x, x) if index % 4 == 3 else x
        x = function(m, ("TANH", "HARD_SWISH", "LOGISTIC")[index % 3], x)
    return [m.pool(x, "AVERAGE", (26, 26), (1, 1)), m.conv(x, 2)]


def test_more_functions_than_tables_are_loaded_in_turn(tmp_path):
    """In parts, which share the weights; the four that the network ends with stay when it begins again."""
    m = ModelWriter(21)
    (tmp_path / "network.tflite").write_bytes(m.finish(*chain(m, 6)))
    config = "2x16x9 with row triples"
    report = compile_without_code(tmp_path / "network.tflite", tmp_path / "made", config)
    memory, artifact = report["memory"], Artifact.load(tmp_path / "made")
    assert not [layer for layer in report["layers"] if layer["target"] == "cpu"]
    assert memory["parts_because"] == ["tables: 6 functions, 2 available"] and memory["tables"] == 6
    assert {layer["table"] for layer in report["layers"] if "table" in layer} == {1, 2, 3, 4, 5, 6}
    (region,) = artifact.manifest.regions
    assert len(region.parts) == 3 == memory["parts"]
    assert {(p.weights_start, p.weights_words) for p in region.parts} == {(0, len(artifact.weights))}
    assert memory["bytes_loaded_per_inference"] == 6 * 1024 + 4 * len(artifact.program)
    recorder = BusRecorder()
    recorder.load(artifact)
    first = [address >> 28 << 28 for address, _ in recorder.take_accesses()]
    assert set(first) == {HostAddress.WEIGHTS}
    for part in region.parts:
        recorder.load_part(part)
        windows = Counter(address >> 28 << 28 for address, _ in recorder.take_accesses())
        assert windows == {HostAddress.TABLES: 512, HostAddress.PROGRAM: part.program_words}
    with pytest.raises(ConfigError, match="in parts"):
        flash_image(artifact.image)


def test_a_table_for_a_few_bytes_is_not_loaded_in_turn(tmp_path):
    def build(m: ModelWriter) -> list[int]:
        x = image(m, 8)
        for name in ("HARD_SWISH", "TANH"):
            x = m.conv(function(m, name, x), 8, activation=None)
        return [function(m, "LOGISTIC", m.pool(x, "AVERAGE", m.shape(x)[1:3], (1, 1)))]

    m = ModelWriter(8)
    (tmp_path / "network.tflite").write_bytes(m.finish(*build(m)))
    report = compile_without_code(tmp_path / "network.tflite", tmp_path / "made", "2x16x9 with row triples")
    assert [layer["op"] for layer in report["layers"] if layer["target"] == "cpu"] == ["logistic"]
    assert report["memory"]["parts"] == 0


@pytest.mark.verilator
def test_tables_loaded_in_turn_in_rtl(tmp_path):
    """And in the golden model, on the CPU, by LiteRT: two inputs, the second behind the tables of the first."""
    config = "2x16x9 with row triples and product registers"
    partitioned = exact(tmp_path, lambda m: chain(m, 10), 22, config=config, rtl=True, inputs=2)
    assert [o.op for o in partitioned.cpu_operators]  # of the ten, eight have a table when none is loaded again


def test_a_function_for_each_channel_is_no_table(tmp_path):
    def build(m: ModelWriter) -> list[int]:
        x = image(m, 8)
        return [m.conv(m.binary("MUL", x, m.constant((8,), 0.01, 0), m.scale(x)), 4)]

    assert not any(layer.table for layer in layers(exact(tmp_path, build, 10)))


def test_every_operator_of_one_value_is_in_the_operator_table():
    floats = {"CAST", "DEQUANTIZE", "SQUARE"}
    assert set(ELEMENTWISE) - floats <= set(OPERATORS) & set(REFERENCES)


def test_tables_in_turn():
    rng = np.random.default_rng(1)
    f, g = (rng.integers(-128, 128, 256) for _ in range(2))
    both = Table.of(f, 0.1, 3).then(Table.of(g, 0.2, 4))
    want = [g[f[v + 128] + 128] for v in range(-128, 128)]
    assert [both.values[v & 0xFF] for v in range(-128, 128)] == want
    assert (both.scale, both.zero_point) == (0.1, 3)


def test_a_table_is_the_reference(tmp_path):
    def build(m: ModelWriter) -> list[int]:
        return [function(m, "LOGISTIC", m.input((1, 4), scale=0.1))]

    m = ModelWriter(1)
    (tmp_path / "network.tflite").write_bytes(m.finish(*build(m)))
    graph = read_model(tmp_path / "network.tflite")
    _, table = table_of(graph, graph.nodes[0])
    q = graph.values[graph.nodes[0].inputs[0]].type.quantization
    real = 1 / (1 + np.exp(-(np.arange(-128, 128) - q.zero_point) * q.scale))
    want = np.clip(np.round(real * 256) - 128, -128, 127)
    assert np.abs(np.roll(table.values, 128) - want).max() <= 1 and dataclasses.is_dataclass(table)
