"""Sums of fully connected layers in pieces: the same bits, whatever the pieces."""

from __future__ import annotations

import numpy as np
import pytest

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.dma import port_width
from nnloom.boards import get
from nnloom.compiler.graph import LayerGraph
from nnloom.compiler.lower import lower_layers
from nnloom.compiler.parts import cut, group_too_large, in_pieces
from nnloom.sim.golden import GoldenModel, execute_literally
from tests.graphs import random_layer, tensor
from tests.harness import check_outputs, compile_region

CONFIGS = {
    "8x5": AcceleratorConfig(
        lanes=8, taps=5, requant_units=2, weight_words=4096, program_words=16384, partial_sums=True
    ),
    "2x16x9 with row triples": AcceleratorConfig(pixels=2, row_triples=True, program_words=16384, partial_sums=True),
}


def fully_connected(rng: np.random.Generator, *, channels: int = 40) -> LayerGraph:
    source = tensor(rng, "x", int(rng.integers(1, 8)), int(rng.integers(1, 5)), int(rng.integers(1, channels)))
    layer = random_layer(rng, "dense", source)
    return LayerGraph("region", layer.inputs, (layer.output,), (layer,))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_pieces_have_the_bits_of_the_whole(config):
    longest = 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        graph = fully_connected(rng)
        compiled = compile_region(config, graph, words=config.parameter_words + int(rng.integers(1, 15)))
        longest = max(longest, len(compiled.descriptors))
        kept = [d.keep for d in compiled.descriptors]
        assert not kept[-1] and [d.resume for d in compiled.descriptors] == [0, *kept[:-1]]
        check_outputs(compiled, graph, rng)
        # As the hardware walks the steps.
        models = [GoldenModel(config, compiled.program, compiled.weights, compiled.tables) for _ in range(2)]
        memory = rng.integers(0, 256, models[0].activations.shape, np.uint8)
        for model in models:
            model.activations[:] = memory
        for d in compiled.descriptors:
            a, b = models[0].execute(d), execute_literally(models[1], d)
            np.testing.assert_array_equal(a.granule, b.granule)
            np.testing.assert_array_equal(a.data, b.data)
            np.testing.assert_array_equal(models[0].sums * d.keep, models[1].sums * d.keep)
    assert longest > 10


def test_weights_of_a_group_that_exceed_the_memory_are_cut():
    """As many multiplications as before, and each part fits the memory; without the option the layer is refused."""
    rng = np.random.default_rng(1)
    config = AcceleratorConfig(lanes=8, taps=5, requant_units=2, weight_words=64, partial_sums=True)
    layer = random_layer(rng, "dense", tensor(rng, "x", 6, 7, 40))
    graph = LayerGraph("region", layer.inputs, (layer.output,), (layer,))
    compiled = compile_region(AcceleratorConfig(lanes=8, taps=5, requant_units=2, weight_words=4096), graph)
    (lowered,) = lower_layers(config, graph, compiled.plan.locations)
    assert len(lowered.weights) // lowered.groups > config.weight_words and group_too_large(config, lowered) is None
    pieces = in_pieces(config, lowered)
    assert all(len(piece.weights) <= config.weight_words * 2 // 5 for piece in pieces)
    assert len({piece.name for piece in pieces}) == len(pieces)
    assert abs(sum(piece.macs for piece in pieces) - layer.macs) < 2 * len(pieces)
    parts = cut(config, [lowered])
    assert all(sum(len(item.weights) for item in part) <= config.weight_words for part in parts)
    without = AcceleratorConfig(lanes=8, taps=5, requant_units=2, weight_words=64)
    assert "weights of 8 output channels need" in group_too_large(without, lowered)
    assert in_pieces(without, lowered) == [lowered]


def test_the_preset_of_the_ultra96_takes_the_largest_layer_of_vgg16():
    board = get("ultra96-v2")
    assert port_width(board.config, board.data_width) == 128
    assert 1 + 7 * -(-7 * 512 // board.config.taps) > board.config.weight_words and board.config.partial_sums
