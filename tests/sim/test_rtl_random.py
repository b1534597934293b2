"""Random chains of layers on several configurations: RTL against the golden model, every write and every cycle."""

from types import SimpleNamespace

import numpy as np
import pytest

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import HostAddress, Register
from nnloom.compiler.cost import program_cycles
from nnloom.compiler.overlap import start_delays
from nnloom.runtime.devices.rtl import RtlDevice
from nnloom.sim.golden import GoldenModel
from tests.graphs import KINDS, random_graph
from tests.harness import compile_region, random_inputs

CONFIGS = {
    "16x9": AcceleratorConfig(),
    "8x5 with 2 requantization units": AcceleratorConfig(lanes=8, taps=5, requant_units=2, weight_words=8192),
    "2x16x9": AcceleratorConfig(pixels=2),
    "16x9 with row triples": AcceleratorConfig(row_triples=True),
    "2x16x9 with row triples": AcceleratorConfig(pixels=2, row_triples=True),
    "2x8x5 with 4 requantization units": AcceleratorConfig(
        pixels=2, lanes=8, taps=5, requant_units=4, weight_words=8192
    ),
    "8x3 without options": AcceleratorConfig(
        lanes=8, taps=3, requant_units=8, max_pool=False, elementwise_add=False, weight_words=8192
    ),
    "4x3 without overlap": AcceleratorConfig(
        lanes=4, taps=3, requant_units=1, weight_words=16384, overlap=False, field_bits=14, layer_counters=False
    ),
    "4x3 with one requantization unit": AcceleratorConfig(lanes=4, taps=3, requant_units=1, weight_words=16384),
}


def chains(config: AcceleratorConfig, count: int):
    """Regions that fit: first each kind alone, then chains of four."""
    missing = {"add": not config.elementwise_add, "maximum": not config.max_pool}
    kinds = [kind for kind in KINDS if not missing.get(kind)]
    seed = 0
    while count:
        rng = np.random.default_rng([seed, config.lanes, config.taps])
        chosen = [kinds[seed]] if seed < len(kinds) else [str(k) for k in rng.choice(kinds, 4)]
        seed += 1
        graph = random_graph(rng, chosen)
        compiled = compile_region(config, graph)
        if len(compiled.weights) <= config.weight_words:
            count -= 1
            yield rng, graph, compiled


@pytest.mark.verilator
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_rtl_writes_what_the_golden_model_writes(config):
    device = RtlDevice()
    try:
        for rng, graph, compiled in chains(config, 40):
            artifact = SimpleNamespace(
                manifest=SimpleNamespace(config=config), program=compiled.program, weights=compiled.weights
            )
            device.load(artifact)
            golden = GoldenModel(config, compiled.program, compiled.weights)
            golden.activations[:] = rng.integers(0, 256, golden.activations.shape, np.uint8)
            for name, value in random_inputs(rng, graph).items():
                device.write_tensor(compiled.plan.locations[name], value)
                golden.write_tensor(compiled.plan.locations[name], value)
            device.simulation.writes()
            device._write_register(Register.PROGRAM_START, 0)
            device._write_register(Register.CONTROL, 1)
            device.wait_done()
            writes, traces = device.simulation.writes(), golden.run()
            for field in ("bank", "granule", "enable"):
                want = np.concatenate([getattr(t, field) for t in traces])
                np.testing.assert_array_equal(getattr(writes, field), want, err_msg=repr(graph))
            want = np.concatenate([t.data for t in traces])
            for part in range(2):
                chosen = (writes.enable >> part & 1).astype(bool)
                columns = slice(part * config.granule, (part + 1) * config.granule)
                np.testing.assert_array_equal(writes.data[chosen, columns], want[chosen, columns], err_msg=repr(graph))
            (cycles,) = device.read_words(np.array([HostAddress.REGISTERS + Register.CYCLES], np.uint32))
            predicted = program_cycles(config, compiled.descriptors)
            # Layers shorter than a descriptor's fetch are predicted to within a few cycles each.
            assert abs(predicted - int(cycles)) <= max(6 * len(graph.layers), 0.01 * cycles)
    finally:
        device.close()


def test_a_layer_starts_no_later_than_after_draining_and_often_earlier():
    from nnloom.arch.loopnest import drain_cycles

    config = CONFIGS["16x9"]
    earlier = 0
    for _, _, compiled in chains(config, 40):
        delays = start_delays(config, compiled.descriptors)
        assert delays[0] == 0
        assert all(0 < delay <= drain_cycles(config) for delay in delays[1:])
        earlier += sum(delay < drain_cycles(config) for delay in delays[1:])
        assert [d.start_delay for d in compiled.descriptors] == delays
    assert earlier
