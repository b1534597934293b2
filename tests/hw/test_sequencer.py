"""The sequencer issues exactly the steps of the reference loop nest, at the predicted cycles."""

import random
from dataclasses import replace

import pytest
from amaranth.hdl import EnableInserter, Module, Signal
from amaranth.sim import Simulator

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import Descriptor, Kind
from nnloom.arch.loopnest import LEAST_START_DELAY, ParameterLoad, by_word, issue_cycles, timed_steps
from nnloom.hw.compact_sequencer import CompactSequencer
from nnloom.hw.sequencer import Sequencer
from tests.engines import compact

CONFIGS = [
    AcceleratorConfig(),
    AcceleratorConfig(lanes=8, taps=5, requant_units=2),
    AcceleratorConfig(lanes=8, taps=3, requant_units=8),
    AcceleratorConfig(pixels=2),
    AcceleratorConfig(lanes=4, taps=3, requant_units=2, overlap=False),
    AcceleratorConfig(lanes=8, taps=5, requant_units=2, elementwise_mul=True),
    AcceleratorConfig(lanes=4, taps=3, requant_units=2, elementwise_mul=True, overlap=False),
    AcceleratorConfig(lanes=8, taps=5, requant_units=2, partial_sums=True),
]


def random_descriptor(rng: random.Random, config: AcceleratorConfig, *, last: bool) -> Descriptor:
    kinds = ["dense", "slide", "window", *(["add"] * config.elementwise_add)]
    kind = rng.choice([*kinds, *(["product"] * 2 * config.elementwise_mul)])
    slots = config.requant_slots
    common = dict(
        last=int(last),
        in_base=rng.randrange(1000),
        in2_base=rng.randrange(1000),
        in_rows=20,
        in_row_bytes=rng.randrange(8, 600),
        in_row_stride=40,
        out_row_stride=rng.randrange(1, 60),
        out_base=rng.randrange(1000),
        weight_base=rng.randrange(1000),
        weight_step_g=rng.randrange(40),
        out_step_g=rng.randrange(3),
        row_start=-rng.randrange(4),
        q_start=-rng.randrange(64),
        row_step_oy=rng.randrange(1, 4),
        half_last=rng.randrange(2),
        start_delay=rng.randrange(LEAST_START_DELAY, 20),
        pad_value=rng.randrange(-128, 128),
        n_oy=rng.randrange(1, 7),
        n_g=rng.randrange(1, 4),
        interval=slots * rng.randrange(2, 4),
        out_row_start=rng.randrange(4),
        out_row_step=rng.randrange(1, 5),
    )
    if kind == "add":
        return Descriptor(
            **{**common, "n_g": 1, "interval": 2 * slots, "q_start": 0, "row_start": 0},
            kind=Kind.ADD,
            n_ox=rng.randrange(1, 4),
            n_ky=2,
            n_kx=16,
            q_step_kx=config.lanes,
            q_step_ox=16 * config.lanes,
            out_step_ox=2,
            weights_advance=0,
        )
    if kind == "slide":
        first = rng.randrange(3)
        return Descriptor(
            **common,
            kind=Kind.WINDOW,
            slide=1,
            slide_first=first,
            slide_step=rng.randrange(1, 4),
            n_ox=first + rng.randrange(1, 9),
            n_ky=1,
            n_kx=1,
            q_step_ox=16,
            out_step_ox=2,
            q_step_g=config.lanes,
            weights_advance=0,
        )
    if kind == "dense" and config.partial_sums and rng.randrange(2):
        common |= dict(resume=rng.randrange(2), keep=rng.randrange(2), n_g=1, n_oy=1)
        return Descriptor(
            **common,
            kind=Kind.DENSE,
            n_ox=1,
            n_ky=rng.randrange(1, 4),
            n_kx=rng.randrange(1, 9),
            row_step_ky=rng.randrange(1, 4),
            q_step_kx=rng.randrange(32),
        )
    if kind == "dense" and config.pixels > 1 and rng.randrange(2):
        common |= dict(pixel_pair=1, odd_rows=rng.randrange(2), row_step_oy=2 * rng.randrange(1, 3))
        common |= dict(out_row_start=2 * rng.randrange(2), out_row_step=2)
        common["interval"] *= 2
    if kind == "product":
        return Descriptor(
            **common,
            kind=Kind.WINDOW,
            product=1,
            broadcast=rng.randrange(2),
            n_ox=rng.randrange(1, 6),
            n_ky=2,
            n_kx=1,
            row_step_ky=rng.randrange(3),
            q_step_ox=rng.randrange(64),
            q_step_g=rng.randrange(32),
            out_step_ox=rng.randrange(4),
            weights_advance=rng.randrange(2),
        )
    return Descriptor(
        **common,
        kind=Kind.DENSE if kind == "dense" else Kind.WINDOW,
        n_ox=rng.randrange(1, 6),
        n_ky=rng.randrange(1, 4),
        n_kx=rng.randrange(1, 4),
        row_step_ky=rng.randrange(1, 4),
        q_step_ox=rng.randrange(64),
        q_step_kx=rng.randrange(32),
        q_step_g=rng.randrange(32),
        out_step_ox=rng.randrange(4),
        weights_advance=rng.randrange(2),
    )


def simulate(config: AcceleratorConfig, descriptors: list[Descriptor], stalls: random.Random):
    """Run descriptors, each arriving after a random delay; returns per descriptor [(cycle, issued)]."""
    dut = Sequencer(config, drain=4)
    issued: list[list[tuple[int, object]]] = []

    async def bench(ctx):
        ctx.set(dut.start, 1)
        pending = list(descriptors)
        arrival = stalls.randrange(30)
        cycle = 0
        await ctx.tick()
        ctx.set(dut.start, 0)
        while True:
            ctx.set(dut.next_valid, 0)
            if pending and arrival == 0:
                words = pending[0].encode()
                ctx.set(dut.next.as_value(), sum(int(w) << (32 * i) for i, w in enumerate(words)))
                ctx.set(dut.next_valid, 1)
                if not config.overlap and len(issued) + len(pending) == len(descriptors):
                    issued.append([])
            elif arrival:
                arrival -= 1
            taken = ctx.get(dut.take)
            if ctx.get(dut.finished):
                # Without overlap a descriptor is replaced, not taken.
                assert len(pending) == (not config.overlap) and ctx.get(dut.completed) == len(descriptors)
                return
            await ctx.tick()
            cycle += 1
            if taken:
                pending.pop(0)
                arrival = stalls.randrange(30)
                if config.overlap:
                    issued.append([])
            step = ctx.get(dut.step)
            if step.load:
                issued[-1].append((cycle, ParameterLoad(step.weight)))
            if step.step:
                issued[-1].append((cycle, step))
            assert cycle < 200_000

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    return issued


@pytest.mark.parametrize(
    "config",
    CONFIGS,
    ids=lambda c: f"{c.pixels}x{c.lanes}x{c.taps}r{c.requant_units}o{c.overlap:d}m{c.elementwise_mul:d}",
)
@pytest.mark.parametrize("seed", range(8))
def test_issues_the_reference_steps_at_the_predicted_cycles(config, seed):
    rng = random.Random(seed)
    descriptors = [random_descriptor(rng, config, last=i == 4) for i in range(5)]
    issued = simulate(config, descriptors, rng)
    assert len(issued) == len(descriptors)
    for d, got in zip(descriptors, issued, strict=True):
        want = list(timed_steps(config, d))
        assert len(got) == len(want)
        # A parameter load may have to wait for the descriptor before.
        start = got[0][0]
        for (cycle, g), (due, w) in zip(got, want, strict=True):
            assert cycle - start == due
            if isinstance(w, ParameterLoad):
                assert g == w
                continue
            assert not isinstance(g, ParameterLoad)
            assert (g.row, g.q, g.kernel_row, g.weight) == (w.row, w.q, w.kernel_row & 255, w.weight)
            assert (g.multiply, g.result, g.to_addend) == (w.multiply, w.result, w.to_addend)
            if w.multiply:
                assert g.first == w.first
            two = d.kind == Kind.ADD or d.product
            assert bool(g.operand_x) == (w.base == d.in2_base and bool(two))
            if w.result and not w.to_addend:
                assert (g.out_bank, g.out_granule, g.pair) == (w.out_bank, w.out_granule, w.pair)
                if not by_word(d):
                    assert (1 if g.half else 3) == w.out_enable
        assert got[-1][0] - got[0][0] + 1 == issue_cycles(config, d)


def observe(sequencer: type[Sequencer], config: AcceleratorConfig, seed: int) -> list[tuple]:
    """What a sequencer says in each cycle that it may go on, with some programs, of which some are stopped."""
    rng = random.Random(seed)
    dut = sequencer(config, drain=4)
    enable = Signal(init=1)
    m = Module()
    m.submodules.dut = EnableInserter(enable)(dut)
    if isinstance(dut, CompactSequencer):
        m.d.sync += dut.ended.eq(dut.ends)
    seen: list[tuple] = []

    async def bench(ctx):
        go = False
        for _ in range(3):
            pending = [random_descriptor(rng, config, last=i == 2) for i in range(3)]
            pending = [replace(d, n_kx=0) if rng.random() < 0.05 else d for d in pending]
            stop_at = rng.choice([None, rng.randrange(200)])
            arrival, cycle, finished = 0, 0, False
            ctx.set(dut.start, 1)
            ctx.set(dut.stop, 0)
            while not finished:
                go = not go and rng.random() < 0.8
                ctx.set(enable, go)
                if pending and arrival == 0:
                    words = pending[0].encode()
                    ctx.set(dut.next.as_value(), sum(int(w) << (32 * i) for i, w in enumerate(words)))
                ctx.set(dut.next_valid, bool(pending) and arrival == 0)
                ctx.set(dut.stop, stop_at is not None and cycle >= stop_at)
                step = ctx.get(dut.step)
                finished = go and ctx.get(dut.finished)
                used = [step.load, step.step, ctx.get(dut.probe), ctx.get(dut.take), ctx.get(dut.illegal)]
                used += [ctx.get(dut.completed), finished]
                if seen and seen[-1][2] and go:
                    used += [step.row, step.q]
                if step.load:
                    used.append(step.weight)
                if step.step:
                    used += [getattr(step, name) for name in USED]
                if go:
                    seen.append(tuple(used))
                taken = go and ctx.get(dut.take)
                await ctx.tick()
                if go:
                    ctx.set(dut.start, 0)
                    cycle += 1
                    arrival -= arrival > 0
                if taken:
                    pending.pop(0)
                    arrival = rng.randrange(1, 30)
                assert cycle < 50_000

    sim = Simulator(m)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    return seen


USED = ("row", "q", "kernel_row", "multiply", "first", "result", "out_bank", "out_granule", "half", "weight")
"""What the compact engine takes of a step."""


@pytest.mark.parametrize("seed", range(3))
def test_that_of_the_compact_engine_is_the_same(seed):
    config = compact(activation_bytes=4096, weight_words=1024, program_words=64, field_bits=10 + 2 * seed)
    observed = observe(CompactSequencer, config, seed)
    assert observed == observe(Sequencer, config, seed)
    assert len(observed) > 300
