"""The greater or lesser of two functions by a maximum pool of columns that take turns."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from nnloom.compiler.copies import is_copy
from nnloom.compiler.emit import emit
from tests.compiler.litert import exact
from tests.fuzz.check import CONFIGS
from tests.tflite_models import ModelWriter

TWO = ("16x9", "8x5 with larger memories")


def leaky(m: ModelWriter, x: int, alpha: float, scale: float) -> int:
    options = schema.LeakyReluOptionsT()
    options.alpha = alpha
    output = m.tensor(m.shape(x), scale=scale, zero_point=int(m.rng.integers(-128, 128)))
    return m.operator("LEAKY_RELU", [x], output, options)


@pytest.mark.parametrize("seed", range(6))
def test_leaky_relu(tmp_path, seed):
    def build(m: ModelWriter) -> list[int]:
        x = m.conv(m.input((1, 6, 5, 3)), 11, activation=None)
        alpha = (0.1, 0.3, 0.01, 0.0, -0.2, 0.125)[seed]
        return [m.conv(leaky(m, x, alpha, m.scale(x) * (1.0, 0.7, 2.0)[seed % 3]), 4)]

    partitioned = exact(tmp_path, build, seed, config=TWO[seed % 2])
    assert [len(graph.layers) for graph in partitioned.graphs] == [5]


@pytest.mark.parametrize("seed", range(4))
def test_prelu(tmp_path, seed):
    def build(m: ModelWriter) -> list[int]:
        x = m.conv(m.input((1, 6, 5, 3)), 11, activation=None)
        alpha = m.constant((1, 1, 11), 0.002, int(m.rng.integers(-20, 20)))
        y = m.tensor(m.shape(x), scale=m.scale(x) * 0.9, zero_point=int(m.rng.integers(-128, 128)))
        return [m.conv(m.operator("PRELU", [x, alpha], y), 4)]

    partitioned = exact(tmp_path, build, seed, config=TWO[seed % 2])
    assert [len(graph.layers) for graph in partitioned.graphs] == [5]


def test_a_slope_above_one_stays_on_the_cpu(tmp_path):
    def build(m: ModelWriter) -> list[int]:
        x = m.conv(m.input((1, 6, 5, 3)), 4, activation=None)
        return [m.conv(leaky(m, x, 1.5, m.scale(x)), 4)]

    (item,) = exact(tmp_path, build, config="16x9").cpu_operators
    assert item.reason == "a slope above that of the values that are kept"


@pytest.mark.parametrize("config", TWO)
@pytest.mark.parametrize("name", ["MAXIMUM", "MINIMUM"])
def test_of_two_tensors(tmp_path, name, config):
    def build(m: ModelWriter) -> list[int]:
        x = m.input((1, 6, 5, 3))
        operands = [m.conv(x, 11, activation=None) for _ in range(2)]
        for v in operands:
            q = m.tensors[v].quantization
            q.scale, q.zeroPoint = m.tensors[operands[0]].quantization.scale, np.array([7], np.int64)
        return [m.conv(m.binary(name, *operands, m.scale(operands[0]), zero_point=7), 4)]

    partitioned = exact(tmp_path, build, config=config)
    assert not partitioned.cpu_operators
    (region,) = emit(CONFIGS[config], partitioned.graphs).regions
    # The convolutions write the columns that are compared.
    assert len(region.graph.layers) == (4 if name == "MAXIMUM" else 7)
    assert not any(map(is_copy, region.graph.layers))


def test_without_a_maximum_unit(tmp_path):
    def build(m: ModelWriter) -> list[int]:
        x = m.conv(m.input((1, 6, 5, 3)), 4, activation=None)
        return [m.conv(leaky(m, x, 0.1, m.scale(x)), 4)]

    (item,) = exact(tmp_path, build, config="8x3 without pools and sums").cpu_operators
    assert "max_pool=False" in item.reason
