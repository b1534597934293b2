"""Start delays: the shortened nest ends exactly as the whole one."""

from __future__ import annotations

import pytest

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.loopnest import LEAST_START_DELAY, ParameterLoad, issue_cycles, timed_steps, write_stage
from nnloom.compiler.overlap import _last_steps, start_delays
from tests.sim.test_rtl_random import chains

MEMORIES = dict(activation_bytes=1 << 20, weight_words=1 << 16)


def _seen(timeline, since: int):
    """What `start_delays` looks at: cycles of parameter loads, and when and where results are written."""
    return [
        (cycle, None if isinstance(item, ParameterLoad) else (item.out_bank, item.out_granule, item.out_enable))
        for cycle, item in timeline
        if cycle >= since
    ]


@pytest.mark.parametrize("pixels", [1, 2])
@pytest.mark.parametrize(("lanes", "taps", "units"), [(16, 9, 16), (8, 5, 2), (8, 4, 1), (32, 17, 4), (16, 3, 16)])
def test_last_steps_are_those_of_the_whole_nest(lanes, taps, units, pixels):
    config = AcceleratorConfig(lanes=lanes, taps=taps, requant_units=units, pixels=pixels, **MEMORIES)
    latency = write_stage(config)
    shorter = 0
    for _, _, compiled in chains(config, 40):
        for d in compiled.descriptors:
            whole = list(timed_steps(config, d))
            end = whole[-1][0]
            assert end + 1 == issue_cycles(config, d)
            last = _last_steps(config, d, latency)
            assert _seen(last, end - latency) == _seen(whole, end - latency)
            shorter += len(last) < len(whole)
    assert shorter


def test_the_first_layer_of_a_program_does_not_wait_and_others_do():
    config = AcceleratorConfig(**MEMORIES)
    for _, _, compiled in chains(config, 12):
        first, *others = start_delays(config, compiled.descriptors)
        assert first == 0 and all(delay >= LEAST_START_DELAY for delay in others)
