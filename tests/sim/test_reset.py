"""A reset at every cycle of a program: nothing of it is left in the pipeline, so the answers after it are right."""

import numpy as np
import pytest

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import HostAddress, Register
from nnloom.compiler.cost import program_cycles
from nnloom.runtime.devices.rtl import RtlDevice
from nnloom.sim.golden import GoldenModel
from tests.graphs import random_graph
from tests.harness import Compiled, compile_region, random_inputs
from tests.sim.test_rtl_random import check_writes, engines

pytestmark = pytest.mark.verilator

CONTROL = HostAddress.REGISTERS + Register.CONTROL


def short_program(config: AcceleratorConfig) -> Compiled:
    """A chain of all that the engine can do, the shortest of some."""
    kinds = ["conv", "depthwise", "average"]
    kinds += ["maximum"] * config.max_pool + ["add"] * config.elementwise_add
    kinds += ["multiply_pixel"] * config.elementwise_mul
    candidates = (compile_region(config, random_graph(np.random.default_rng(seed), kinds)) for seed in range(60))
    return min(candidates, key=lambda compiled: program_cycles(config, compiled.descriptors))


KINDS = ("2x16x9 with row triples and product registers", "4x3 without overlap", "compact")
"""One of each kind of engine; the others are slow only because there are many."""


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 3], ids=["each", "third"])
@pytest.mark.parametrize("config", engines(KINDS))
def test_the_answers_after_a_reset_at_any_cycle_are_right(config, every):
    compiled = short_program(config)
    locations = compiled.plan.locations
    inputs = random_inputs(np.random.default_rng(1), compiled.graph)
    golden = GoldenModel(config, compiled.program, compiled.weights, compiled.tables)
    for name, value in inputs.items():
        golden.write_tensor(locations[name], value)
    want = golden.run()
    device = RtlDevice()
    try:
        device.load_image(compiled.image)

        def write_inputs() -> None:
            for name, value in inputs.items():
                device.write_tensor(locations[name], value)

        for cycle in range(0, program_cycles(config, compiled.descriptors) + 2, every):
            write_inputs()
            device.simulation.interrupt(CONTROL, 1, cycles=cycle)
            device.simulation.writes()
            for run in range(2):
                write_inputs()
                device._write_register(Register.CONTROL, 1)
                device.wait_done()
                check_writes(config, device.simulation.writes(), want, f"run {run} after a reset at cycle {cycle}")
    finally:
        device.close()
