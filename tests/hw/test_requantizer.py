"""The requantization units against `nnloom.arch.numerics`, over the full ranges."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import encode_parameters
from nnloom.arch.numerics import ADD_LEFT_SHIFT, requantize, wrap_int32
from nnloom.hw.requantizer import REQUANT_LATENCY, Requantizer
from nnloom.hw.technology import GenericTechnology

EDGES = np.array([-(2**31), -(2**31) + 1, -(2**30), -1, 0, 1, 2**30, 2**31 - 1])

NARROW_EDGES = np.array([s * 2**b + d for s in (-1, 1) for b in (17, 18) for d in (-2, -1, 0, 1, 70)])


def parameters_value(config, bias, multiplier, shift):
    words = encode_parameters(config, bias, multiplier, shift)
    lanes = words.reshape(config.parameter_words, config.lanes, config.taps).transpose(1, 0, 2)
    lanes = lanes.reshape(config.lanes, -1)[:, :9]
    return int.from_bytes(lanes.tobytes(), "little")


def pack(values, width):
    return sum((int(v) & ((1 << width) - 1)) << (width * i) for i, v in enumerate(values))


@pytest.mark.parametrize("narrow", [0, 1])
@pytest.mark.parametrize(
    ("pixels", "units"), [(1, 8), (1, 4), (1, 1), (2, 8), pytest.param(2, 4, marks=pytest.mark.slow), (2, 1)]
)
def test_matches_numerics_at_the_fastest_pace(units, narrow, pixels):
    """Layers with double and with single rounding in turn."""
    rng = np.random.default_rng([units, narrow])
    config = AcceleratorConfig(lanes=8, taps=5, requant_units=units, pixels=pixels)
    dut = Requantizer(config, GenericTechnology())
    interval = config.requant_slots * (1 if narrow else 2)
    """Cycles of one pixel."""
    expected, seen, when = [], [], []

    async def drive(ctx):
        cycle = 0
        for trial in range(64 if pixels == 1 else 32):
            double_rounding = trial // 4 % 2
            limit = 2**16 if narrow else 2**31
            bias = rng.integers(-limit // 2, limit // 2, 8)
            multiplier = rng.integers(2**30, 2**31, 8)
            multiplier[rng.integers(8)] = rng.choice([0, 1, 2**30, 2**31 - 1])
            shift = rng.integers(0, 32 if not narrow else 18, 8)
            zero_point = int(rng.integers(-128, 128))
            act_min, act_max = sorted(int(v) for v in rng.integers(-128, 128, 2))
            ctx.set(dut.parameters.as_value(), parameters_value(config, bias, multiplier, shift))
            ctx.set(dut.mode.narrow, narrow)
            ctx.set(dut.mode.double_rounding, double_rounding)
            ctx.set(dut.load_ahead, 1)
            # The mode belongs to a layer: change it only once the pipeline is empty.
            ctx.set(dut.mode.out_zero_point, zero_point)
            ctx.set(dut.mode.act_min, act_min)
            ctx.set(dut.mode.act_max, act_max)
            await ctx.tick()
            ctx.set(dut.load_ahead, 0)
            await ctx.tick()
            cycle += 2
            for _ in range(5):
                acc = rng.integers(-limit // 2, limit // 2, (pixels, 8))
                if not narrow:
                    acc[:, : len(EDGES) // 2] = rng.choice(EDGES, (pixels, len(EDGES) // 2))
                if narrow and trial % 4 == 0:
                    acc[:, :3] = rng.choice(EDGES[[0, 2, 6, 7]] // 2, (pixels, 3))
                if narrow and trial % 4 == 1:
                    # With the bias: at the limits of 18 bits, and of 19.
                    acc = rng.choice(NARROW_EDGES, (pixels, 8)) - bias
                pair = pixels > 1 and bool(rng.integers(2))
                ctx.set(dut.accumulators.as_value(), pack(acc.reshape(-1), 32))
                ctx.set(dut.valid, 1)
                ctx.set(dut.pair, pair)
                for pixel in range(1 + pair):
                    total = wrap_int32(acc[pixel] + bias)
                    if narrow:
                        total = np.clip(total, -(1 << 17), (1 << 17) - 1)
                    y = requantize(total, multiplier, shift, double_rounding=bool(double_rounding))
                    expected.append((np.clip(y + zero_point, act_min, act_max), pixel, pixel == pair))
                    when.append(cycle + REQUANT_LATENCY + (1 + pixel) * interval - 1)
                for i in range(interval * (1 + pair)):
                    await ctx.tick()
                    cycle += 1
                    ctx.set(dut.valid, 0)
                    ctx.set(dut.pair, int(rng.integers(2)))
                    ctx.set(dut.accumulators.as_value(), int(rng.integers(2**60)))
                    del i
            # Let the mode's last users leave.
            idle = 2 * interval + REQUANT_LATENCY if trial % 3 == 0 else REQUANT_LATENCY + interval
            for _ in range(idle):
                await ctx.tick()
                cycle += 1

    async def watch(ctx):
        cycle = 0
        last = ahead = 0
        signals = (dut.done, dut.bytes, dut.second, dut.done_ahead, dut.last_ahead)
        async for _, _, done, value, second, done_ahead, last_ahead in ctx.tick().sample(*signals):
            assert done == ahead
            if done:
                seen.append((cycle, np.frombuffer(int(value).to_bytes(8, "little"), np.int8), second, last))
            ahead, last = done_ahead, last_ahead
            cycle += 1

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(drive)
    sim.add_testbench(watch, background=True)
    sim.run()
    assert len(seen) == len(expected) and (len(seen) == 320 if pixels == 1 else 200 < len(seen) < 250)
    for (cycle, got, second, last), (want, pixel, is_last), due in zip(seen, expected, when, strict=True):
        np.testing.assert_array_equal(got, want)
        assert (second, last) == (pixel, is_last)
        assert cycle == due


@pytest.mark.parametrize("units", [8, 4])
def test_addition_through_the_addend_queue(units):
    rng = np.random.default_rng(units)
    config = AcceleratorConfig(lanes=8, taps=5, requant_units=units)
    dut = Requantizer(config, GenericTechnology())
    slots = config.requant_slots
    expected, seen = [], []
    events: dict[int, dict] = {}
    """cycle -> values of inputs in that cycle; the others are zero"""
    now = 2

    def at(cycle: int, **values: int) -> None:
        events.setdefault(cycle, {}).update(values)

    def load(multiplier: int, shift: int) -> None:
        nonlocal now
        zero = np.zeros(8, np.int64)
        at(now - 1, load_ahead=1)
        at(now, parameters=parameters_value(config, zero, zero + multiplier, zero + shift))
        now += 1

    def result(values, name: str, cycles: int) -> None:
        nonlocal now
        at(now - 1, **{name: 1})
        at(now, valid=1, accumulators=pack(values, 32))
        now += cycles

    for _ in range(6):
        my, sy = int(rng.integers(2**30, 2**31)), int(rng.integers(1, 6))
        mo, so = int(rng.integers(2**30, 2**31)), int(rng.integers(17, 21))
        y, x = rng.integers(-255, 256, (16, 8)), rng.integers(-255, 256, (16, 8))
        load(my, sy)
        for i in range(16):
            result(y[i], "to_addend_ahead", slots)
        load(mo, so)
        for i in range(16):
            result(x[i], "from_addend_ahead", 2 * slots)
        scaled = requantize(y << ADD_LEFT_SHIFT, my, sy, double_rounding=True)
        half = requantize(x << ADD_LEFT_SHIFT, 1 << 30, 0, double_rounding=True)
        total = requantize(scaled + half, mo, so, double_rounding=True)
        expected.extend(np.clip(total - 3, -128, 127))

    async def drive(ctx):
        ctx.set(dut.mode.double_rounding, 1)
        ctx.set(dut.mode.out_zero_point, -3)
        ctx.set(dut.mode.act_min, -128)
        ctx.set(dut.mode.act_max, 127)
        for cycle in range(now + 40):
            values = events.get(cycle, {})
            for name in ("load_ahead", "valid", "to_addend_ahead", "from_addend_ahead"):
                ctx.set(getattr(dut, name), values.get(name, 0))
            for name in ("parameters", "accumulators"):
                ctx.set(getattr(dut, name).as_value(), values.get(name, int(rng.integers(2**60))))
            await ctx.tick()

    async def watch(ctx):
        async for _, _, done, value in ctx.tick().sample(dut.done, dut.bytes):
            if done:
                seen.append(np.frombuffer(int(value).to_bytes(8, "little"), np.int8))

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(drive)
    sim.add_testbench(watch, background=True)
    sim.run()
    np.testing.assert_array_equal(np.array(seen), np.array(expected))
