"""Additions of an uneven number of rows in two layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nnloom.arch.config import AcceleratorConfig
from nnloom.compiler.cost import program_cycles
from nnloom.compiler.emit import emit
from nnloom.compiler.graph import LayerGraph
from nnloom.compiler.split_sums import with_split_sums
from tests.graphs import random_layer, tensor
from tests.harness import check_outputs, compile_region

CONFIG = AcceleratorConfig()


def addition(seed: int, rows: int, columns: int, channels: int, kind: str = "add"):
    rng = np.random.default_rng(seed)
    layer = random_layer(rng, kind, tensor(rng, "x", rows, columns, channels))
    last = random_layer(rng, "depthwise", layer.output, "last")
    return rng, LayerGraph("region", layer.inputs, (layer.output, last.output), (layer, last))


@pytest.mark.parametrize("kind", ["add", "subtract"])
@pytest.mark.parametrize(("rows", "columns", "channels"), [(49, 1, 40), (25, 1, 40), (22, 2, 20), (11, 3, 33)])
def test_the_rows_of_all_banks_and_those_that_are_left(rows, columns, channels, kind):
    for seed in range(3):
        rng, graph = addition(seed, rows, columns, channels, kind)
        form = with_split_sums(CONFIG, graph)
        first, second, _ = form.layers
        assert (first.output.rows, second.output.rows) == (rows // 4 * 4, rows % 4)
        compiled, plain = compile_region(CONFIG, form), compile_region(CONFIG, graph)
        assert program_cycles(CONFIG, compiled.descriptors) < program_cycles(CONFIG, plain.descriptors)
        assert len(emit(CONFIG, [graph]).regions[0].layers) == 3
        check_outputs(compiled, graph, rng)


def test_where_it_does_not_pay_nothing_changes():
    for size in ((48, 1, 40), (3, 1, 40), (13, 1, 40), (5, 4, 16), (49, 1, 32)):
        _, graph = addition(1, *size)
        assert with_split_sums(CONFIG, graph) is graph
    _, graph = addition(1, 49, 1, 40)
    layer, last = graph.layers
    part = replace(layer, output=replace(layer.output, rows=53, shape=()).part((4, 0, 0), (49, 1, 40)))
    assert with_split_sums(CONFIG, replace(graph, layers=(part, last))).layers == (part, last)
