"""Average pools with padding: a layer for each kind of window; against LiteRT."""

from __future__ import annotations

import pytest

from nnloom.compiler.graph import AveragePool2D
from tests.compiler.litert import exact
from tests.tflite_models import ModelWriter


@pytest.mark.parametrize("config", ["2x16x9", "8x5 with larger memories"])
@pytest.mark.parametrize(
    ("size", "window", "strides", "kinds"),
    [((7, 9), (3, 3), (1, 1), 9), ((7, 8), (2, 3), (2, 2), 2 * 2), ((6, 5), (3, 1), (2, 1), 2),
     ((5, 4), (9, 7), (1, 1), 1), ((3, 4), (3, 5), (1, 2), 3 * 2), ((9, 5), (4, 4), (3, 1), 2 * 4)],
)  # fmt: skip
def test_average_with_padding(tmp_path, size, window, strides, kinds, config):
    def build(m: ModelWriter) -> list[int]:
        x = m.conv(m.input((1, *size, 3)), 19)
        y = m.pool(x, "AVERAGE", window, strides, "SAME", "relu6" if kinds == 9 else None)
        return [m.conv(y, 4), m.depthwise(y)]

    partitioned = exact(tmp_path, build, kinds, config=config)
    assert not partitioned.cpu_operators
    assert sum(isinstance(layer, AveragePool2D) for layer in partitioned.graphs[0].layers) == kinds


def test_windows_of_many_kinds_stay_on_the_cpu(tmp_path):
    (item,) = exact(
        tmp_path, lambda m: [m.pool(m.conv(m.input((1, 9, 9, 3)), 4), "AVERAGE", (5, 5), (1, 1), "SAME")]
    ).cpu_operators
    assert item.reason == "average pool with padding: 25 kinds of windows, at most 16"
