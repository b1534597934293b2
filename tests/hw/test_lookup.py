"""Results that are looked up in tables, between others that are not: unit ratios, pixel pairs, the closest pace."""

import numpy as np
import pytest
from amaranth.hdl import ResetInserter, Signal
from amaranth.sim import Simulator

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import Descriptor, Kind
from nnloom.arch.loopnest import (
    LEAST_START_DELAY,
    TABLE_STAGES,
    descriptor_cycles,
    least_start_delay,
    least_start_delay_after_table,
)
from nnloom.arch.numerics import requantize
from nnloom.hw.requantizer import REQUANT_LATENCY, Requantizer
from nnloom.hw.technology import GenericTechnology
from tests.hw.test_requantizer import pack, parameters_value

LANES = 8


class Bench:
    """Drives a requantizer cycle by cycle with what was laid down in `events`; collects what comes out."""

    def __init__(self, config: AcceleratorConfig, tables: np.ndarray) -> None:
        self.config = config
        self.dut = Requantizer(config, GenericTechnology())
        self.tables = tables
        self.events: dict[int, dict[str, int]] = {}
        self.expected: list[tuple[int, bytes, int, int]] = []
        """cycle, bytes, second, last"""
        self.seen: list[tuple[int, bytes, int, int]] = []
        self.rng = np.random.default_rng(1)

    def load(self, cycle: int, multiplier: np.ndarray, mode: dict[str, int]) -> None:
        """Parameters and mode for results from `cycle` on."""
        zero = np.zeros(LANES, np.int64)
        self.events.setdefault(cycle - 2, {})["load_ahead"] = 1
        words = parameters_value(self.config, zero, multiplier, zero)
        self.events.setdefault(cycle - 1, {}).update(parameters=words, **{f"mode_{k}": v for k, v in mode.items()})

    def result(self, cycle: int, acc: np.ndarray, multiplier: np.ndarray, mode: dict[str, int], pair: bool) -> None:
        """A result, and what must become of it."""
        slots = self.config.requant_slots * (1 if mode["narrow"] else 2)
        self.events.setdefault(cycle, {}).update(valid=1, pair=int(pair), accumulators=pack(acc.reshape(-1), 32))
        for pixel in range(1 + pair):
            y = requantize(acc[pixel], multiplier, np.zeros(LANES, np.int64), double_rounding=False)
            data = np.clip(y + mode["out_zero_point"], mode["act_min"], mode["act_max"]).astype(np.int8).view(np.uint8)
            late = 0
            if mode["table"]:
                data, late = self.tables[mode["table"] - 1][data], TABLE_STAGES
            due = cycle + REQUANT_LATENCY + (1 + pixel) * slots - 1 + late
            self.expected.append((due, data.tobytes(), pixel, int(pixel == pair)))

    def run(self, cycles: int, reset_at: int | None = None) -> None:
        dut = self.dut
        reset = Signal()

        async def drive(ctx):
            entries = self.tables.reshape(-1).tolist()
            for address, value in enumerate(entries):
                ctx.set(dut.table_write.enable, 1)
                ctx.set(dut.table_write.address, address)
                ctx.set(dut.table_write.value, value)
                await ctx.tick()
            ctx.set(dut.table_write.enable, 0)
            await ctx.tick().repeat(2)
            for cycle in range(cycles):
                event = self.events.get(cycle, {})
                ctx.set(reset, int(cycle == reset_at))
                ctx.set(dut.load_ahead, event.get("load_ahead", 0))
                ctx.set(dut.valid, event.get("valid", 0))
                ctx.set(dut.pair, event.get("pair", int(self.rng.integers(2))))
                ctx.set(dut.accumulators.as_value(), event.get("accumulators", int(self.rng.integers(1 << 60))))
                if "parameters" in event:
                    ctx.set(dut.parameters.as_value(), event["parameters"])
                    for name, value in event.items():
                        if name.startswith("mode_"):
                            ctx.set(dut.mode[name.removeprefix("mode_")], value)
                last_ahead = ctx.get(dut.last_ahead)
                done_ahead = ctx.get(dut.done_ahead)
                await ctx.tick()
                assert ctx.get(dut.done) == (done_ahead and cycle != reset_at)
                if ctx.get(dut.done):
                    data = int(ctx.get(dut.bytes)).to_bytes(LANES, "little")
                    self.seen.append((cycle + 1, data, ctx.get(dut.second), last_ahead))

        sim = Simulator(ResetInserter(reset)(dut))
        sim.add_clock(1e-6)
        sim.add_testbench(drive)
        sim.run()


def layers(bench: Bench, rng: np.random.Generator, count: int) -> int:
    """Layers of a few results, with and without tables, as close as programs may have them; returns the last cycle."""
    config = bench.config
    now = 10
    for index in range(count):
        narrow = int(rng.integers(2))
        act_min, act_max = sorted(int(v) for v in rng.integers(-128, 128, 2))
        mode = dict(
            narrow=narrow,
            double_rounding=0,
            maximum=0,
            out_zero_point=int(rng.integers(-128, 128)),
            act_min=act_min,
            act_max=act_max,
            table=int(rng.integers(config.tables + 1)) if rng.integers(2) else 0,
        )
        multiplier = rng.integers(2**28, 2**31, LANES)
        bench.load(now, multiplier, mode)
        slots = config.requant_slots * (1 if narrow else 2)
        step = now
        for _ in range(int(rng.integers(1, 6))):
            acc = rng.integers(-400, 400, (config.pixels, LANES))
            pair = config.pixels > 1 and bool(rng.integers(2))
            bench.result(now, acc, multiplier, mode, pair)
            step = now
            now += slots * (1 + pair) + int(rng.integers(3)) * int(index % 3 == 0)
        # The first step of the next layer: after its loads, its start delay and the interval of the last result.
        layer = Descriptor(
            kind=Kind.DENSE, in_rows=1, in_row_bytes=1, in_row_stride=0, out_row_stride=0, out_base=0, in_base=0,
            n_oy=1, n_ox=1, n_g=1, n_ky=1, n_kx=1, table=mode["table"],
        )  # fmt: skip
        delay = least_start_delay(config, layer)
        now = max(now, step + descriptor_cycles(config) + 1 + delay) + config.parameter_words
    return now + 80


@pytest.mark.parametrize("units", [8, 4, 2, 1])
@pytest.mark.parametrize("pixels", [1, 2])
def test_results_with_and_without_tables_in_turn(units, pixels):
    rng = np.random.default_rng([units, pixels])
    config = AcceleratorConfig(lanes=LANES, taps=5, requant_units=units, pixels=pixels, tables=4)
    bench = Bench(config, rng.integers(0, 256, (4, 256), np.uint8))
    cycles = layers(bench, rng, 40)
    bench.run(cycles)
    assert bench.seen == bench.expected
    order = [cycle for cycle, *_ in bench.expected]
    assert order == sorted(set(order)) and len(order) > 80


def test_the_least_start_delay_is_needed():
    """With units that are shared so much that the usual delay would not do."""
    config = AcceleratorConfig(lanes=LANES, taps=5, requant_units=1, tables=1)
    least = least_start_delay_after_table(config)
    assert least > LEAST_START_DELAY
    # The slowest result with a table, then the fastest without: its first byte comes one after the last of the other.
    last_byte = 2 * LANES - 1 + TABLE_STAGES
    assert descriptor_cycles(config) + 1 + least + config.parameter_words == last_byte + 1
    assert least_start_delay_after_table(AcceleratorConfig(tables=8, pixels=2)) == LEAST_START_DELAY


@pytest.mark.parametrize("after", range(REQUANT_LATENCY - 3, REQUANT_LATENCY + 2 + TABLE_STAGES))
def test_a_reset_drops_what_is_being_looked_up(after):
    rng = np.random.default_rng(after)
    config = AcceleratorConfig(lanes=LANES, taps=5, requant_units=4, tables=1)
    bench = Bench(config, rng.integers(0, 256, (1, 256), np.uint8))
    mode = dict(narrow=1, double_rounding=0, maximum=0, out_zero_point=3, act_min=-128, act_max=127, table=1)
    multiplier = rng.integers(2**28, 2**31, LANES)
    bench.load(10, multiplier, mode)
    for cycle in (12, 14, 16):
        bench.result(cycle, rng.integers(-400, 400, (1, LANES)), multiplier, mode, pair=False)
    # A new one after it is whole, from tables that the reset left alone.
    bench.load(60, multiplier, mode)
    bench.result(60, rng.integers(-400, 400, (1, LANES)), multiplier, mode, pair=False)
    reset_at = 12 + after
    bench.run(120, reset_at=reset_at)
    want = [e for e in bench.expected if e[0] <= reset_at or e[0] > 60]
    assert bench.seen == want and len(want) >= 1
