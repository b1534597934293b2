"""Convolutions that take a detour to the accelerator: groups, depth multipliers, dilation, transposed ones."""

from __future__ import annotations

import pytest

from nnloom.compiler.graph import Conv2D, DepthwiseConv2D
from tests.compiler.litert import exact
from tests.tflite_models import ModelWriter

CONFIGS = ("2x16x9", "8x5 with larger memories", "2x16x9 with row triples")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("channels", "groups", "each"), [(6, 2, 3), (8, 4, 1), (5, 5, 1), (4, 4, 3)])
def test_groups(tmp_path, channels, groups, each, seed):
    def build(m: ModelWriter) -> list[int]:
        strides = (1 + seed % 2, 1)
        return [m.conv(m.input((1, 7, 6, channels)), groups * each, (3, 2), strides, groups=groups)]

    (graph,) = exact(tmp_path, build, seed, config=CONFIGS[seed]).graphs
    kinds = [type(layer) for layer in graph.layers]
    # A group of one channel is a depthwise convolution.
    assert kinds[-1] is (DepthwiseConv2D if groups == channels else Conv2D)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("channels", "multiplier", "kernel"), [(5, 2, (3, 3)), (4, 3, (1, 1)), (17, 2, (5, 2))])
def test_depth_multipliers(tmp_path, channels, multiplier, kernel, seed):
    def build(m: ModelWriter) -> list[int]:
        return [m.depthwise(m.input((1, 7, 6, channels)), kernel, (1, 1 + seed % 2), multiplier=multiplier)]

    (graph,) = exact(tmp_path, build, seed, config=CONFIGS[seed]).graphs
    kinds = [type(layer) for layer in graph.layers]
    assert kinds == ([Conv2D] if kernel == (1, 1) else [Conv2D, DepthwiseConv2D])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dilation", [(2, 2), (1, 3), (3, 1)])
def test_dilation(tmp_path, dilation, seed):
    def build(m: ModelWriter) -> list[int]:
        x = m.input((1, 9, 8, 4))
        padding = ("SAME", "VALID")[seed % 2]
        wide = m.conv(x, 5, (2, 3), padding=padding, dilation=dilation)
        return [wide, m.depthwise(x, (3, 2), padding=padding, dilation=dilation)]

    (graph,) = exact(tmp_path, build, seed, config=CONFIGS[seed]).graphs
    assert [type(layer) for layer in graph.layers] == [Conv2D, DepthwiseConv2D]


def test_a_kernel_of_mostly_zeros_stays_on_the_cpu(tmp_path):
    partitioned = exact(tmp_path, lambda m: [m.conv(m.conv(m.input((1, 9, 9, 3)), 4), 4, dilation=(8, 8))])
    (item,) = partitioned.cpu_operators
    assert item.reason == "dilation (8, 8) makes a kernel of 17 x 17, nearly all of it zeros"


@pytest.mark.parametrize("seed", range(4))
def test_transposed_convolutions_of_stride_one(tmp_path, seed):
    def build(m: ModelWriter) -> list[int]:
        x = m.conv(m.input((1, 6, 5, 3)), 4)
        kernel = [(3, 3), (2, 4), (1, 1), (5, 2)][seed]
        y = m.transpose_conv(x, 6, kernel, (1, 1), ("SAME", "VALID")[seed % 2])
        return [m.conv(y, 3)]

    (graph,) = exact(tmp_path, build, seed).graphs
    assert len(graph.layers) == 3


@pytest.mark.parametrize("strides", [(5, 1), (4, 5)])
def test_transposed_convolutions_with_large_strides_stay_on_the_cpu(tmp_path, strides):
    partitioned = exact(tmp_path, lambda m: [m.transpose_conv(m.conv(m.input((1, 6, 5, 3)), 4), 6, (3, 3), strides)])
    (item,) = partitioned.cpu_operators
    assert item.reason == f"strides {strides}; the accelerator takes up to 4 in rows, 16 by product"
