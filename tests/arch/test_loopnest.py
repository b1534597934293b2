"""The closed form of a descriptor's cycles is the length of its enumerated steps, on every engine."""

from __future__ import annotations

import numpy as np
import pytest

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import last_addresses
from nnloom.arch.loopnest import Step, issue_cycles, parameter_hold, result_stage, timed_steps, write_stage
from nnloom.compiler.graph import LayerGraph
from tests.engines import compact, without_overlap
from tests.graphs import EVERY_KIND, random_layer, tensor
from tests.harness import compile_region

COMPACT = compact(weight_words=16384, field_bits=14)
CONFIGS = {
    "16x9": AcceleratorConfig(elementwise_mul=True),
    "8x5": AcceleratorConfig(lanes=8, taps=5, requant_units=2, weight_words=8192, elementwise_mul=True),
    "without overlap": AcceleratorConfig(
        lanes=4, taps=3, requant_units=1, weight_words=16384, overlap=False, elementwise_mul=True
    ),
    "compact": COMPACT,
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_cycles_are_those_of_the_steps(name, kind):
    config = CONFIGS[name]
    missing = ("add", "subtract") * (not config.elementwise_add) + ("maximum",) * (not config.max_pool)
    missing += ("multiply", "multiply_pixel") * (not config.elementwise_mul)
    if kind in missing:
        pytest.skip("not on this engine")
    slides = 0
    for seed in range(6):
        rng = np.random.default_rng([seed, len(kind)])
        layer = random_layer(rng, kind, tensor(rng, "x", 6, 5, 7))
        graph = LayerGraph("region", layer.inputs, (layer.output,), (layer,))
        for d in compile_region(config, graph).descriptors:
            timeline = list(timed_steps(config, d))
            last, step = timeline[-1]
            # What the last step reads, and the limit of what any reads.
            reads = [(s.row, s.kernel_row, s.q) for _, s in timeline if isinstance(s, Step)]
            assert last_addresses(d) == reads[-1] == tuple(max(values) for values in zip(*reads, strict=True))
            # The last step of the compact engine takes a cycle for each tap, and one to clear the accumulators.
            tail = config.taps + bool(step.first or d.slide) if config.compact else 1
            slides += d.slide
            if d.slide:  # the compact engine takes such programs, too
                *_, (last_compact, _) = timed_steps(COMPACT, d)
                assert issue_cycles(COMPACT, d) == last_compact + COMPACT.taps + 1
            assert issue_cycles(config, d) == last + tail
    assert kind != "depthwise" or name != "16x9" or slides


@pytest.mark.parametrize(
    ("config", "accumulated", "written", "slowest", "hold"),
    [
        # 10 to the operands, 4 through a multiplier and the accumulator, 3 levels of 9 products: 5 pairs, 2 sums, 1.
        # 15 more to the write, and with an interval of 4 its last pixel 3 later; the slowest interval is 2.
        (AcceleratorConfig(), 17, 35, 33, 0),
        # Two pixels, a register behind each multiplier: the slowest interval is 4.
        (AcceleratorConfig(pixels=2, product_registers=True), 18, 36, 36, 0),
        # 2 levels of 3 products; 4 results for each of 1 unit, so the slowest interval is 8. Parameters are used until
        # 10 cycles after the last interval: 6 from the operands to the sum, 4 in the requantizer.
        (without_overlap(), 16, 34, 38, 10),
        # The slowest result is looked up in a table: to the memory, through it, back.
        (AcceleratorConfig(pixels=2, tables=8), 17, 38, 38, 0),
        (COMPACT, 16, 27, 27, 0),
    ],
    ids=["16x9", "2x16x9 with product registers", "without overlap", "2x16x9 with tables", "compact"],
)
def test_stages_by_hand(config, accumulated, written, slowest, hold):
    assert result_stage(config) == accumulated
    assert (write_stage(config, 4), write_stage(config)) == (written, slowest)
    assert parameter_hold(config) == hold
