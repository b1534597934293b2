"""The compact engine's parts: requantizer, memories, the cycles of its steps."""

from dataclasses import replace

import numpy as np
import pytest

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import ConfigError
from nnloom.arch.isa import Descriptor, Kind, encode_parameters, weight_stride, weight_word_columns
from nnloom.arch.loopnest import COMPACT_SPACING, ParameterLoad, issue_cycles, steps, timed_steps
from nnloom.arch.numerics import requantize, wrap_int32
from nnloom.hw.compact import CompactActivationMemory, CompactWeightMemory
from nnloom.hw.compact_requantizer import SerialRequantizer, serial_requant_latency
from nnloom.hw.technology import GenericTechnology, SinglePortRam
from tests.engines import compact
from tests.hw.benches import simulate

CONFIG = compact(activation_bytes=4096, weight_words=64, program_words=64, field_bits=10)
EDGES = np.array([-(2**31), -(2**31) + 1, -(2**30), -1, 0, 1, 2**17 - 1, 2**17, -(2**17) - 1, 2**30, 2**31 - 1])


@pytest.mark.parametrize("narrow", [0, 1])
@pytest.mark.parametrize("double_rounding", [0, 1])
def test_requantizer_matches_numerics_at_the_fastest_pace(narrow, double_rounding):
    rng = np.random.default_rng([narrow, double_rounding])
    dut = SerialRequantizer(CONFIG, GenericTechnology())
    expected, seen = [], []
    trials = 120

    async def drive(ctx):
        cycle = 0

        async def ticks(count):
            nonlocal cycle
            await ctx.tick().repeat(count)
            cycle += count

        ctx.set(dut.narrow, narrow)
        ctx.set(dut.double_rounding, double_rounding)
        for trial in range(trials):
            bias = rng.choice([*EDGES, *rng.integers(-(2**31), 2**31, 11)], 4)
            if trial % 2:
                bias = rng.integers(-(2**16), 2**16, 4)
            multiplier = rng.integers(2**30, 2**31, 4)
            multiplier[rng.integers(4)] = rng.choice([0, 1, 2**30, 2**31 - 1])
            shift = rng.integers(0, 32 if trial % 2 else 14, 4)
            words = encode_parameters(CONFIG, bias, multiplier, shift).reshape(-1, 4, 3)
            ctx.set(dut.load, 1)
            for columns in words:
                for column in columns.T:
                    for lane in range(4):
                        ctx.set(dut.parameters[lane], int(column[lane]))
                    await ticks(1)
            ctx.set(dut.load, 0)
            zero_point = int(rng.integers(-128, 128))
            act_min, act_max = sorted(int(v) for v in rng.integers(-128, 128, 2))
            ctx.set(dut.out_zero_point, zero_point)
            ctx.set(dut.act_min, act_min)
            ctx.set(dut.act_max, act_max)
            results = 4
            for result in range(results):
                acc = rng.choice([*EDGES, *rng.integers(-(2**31), 2**31, 11)], 4)
                if trial % 2:
                    acc = rng.integers(-(2**18), 2**18, 4) if trial % 4 == 1 else rng.integers(-1000, 1000, 4)
                for lane in range(4):
                    ctx.set(dut.accumulators[lane], int(acc[lane]))
                ctx.set(dut.capture, 1)
                total = wrap_int32(acc + bias)
                if narrow:
                    total = np.clip(total, -(1 << 17), (1 << 17) - 1)
                y = requantize(total, multiplier, shift, double_rounding=bool(double_rounding))
                expected.append((np.clip(y + zero_point, act_min, act_max), cycle + serial_requant_latency(CONFIG)))
                await ticks(1)
                ctx.set(dut.capture, 0)
                for lane in range(4):
                    ctx.set(dut.accumulators[lane], int(rng.integers(-(2**31), 2**31)))
                # The next may come after eight cycles; sometimes later.
                await ticks(7 + int(rng.integers(3)) * (result % 2))
            # The mode stands until the last is done.
            await ticks(serial_requant_latency(CONFIG))

    async def watch(ctx):
        cycle = 0
        async for _, _, done, value in ctx.tick().sample(dut.done, dut.bytes):
            if done:
                seen.append((np.frombuffer(int(value).to_bytes(4, "little"), np.int8), cycle))
            cycle += 1

    simulate(dut, drive, background=[watch])
    assert len(seen) == len(expected) == 4 * trials
    for (got, at), (want, due) in zip(seen, expected, strict=True):
        np.testing.assert_array_equal(got, want)
        assert at == due


def test_single_port_ram_writes_bytes():
    rng = np.random.default_rng(2)
    dut = SinglePortRam(width=16, depth=64)
    memory = rng.integers(0, 256, (64, 2))

    async def bench(ctx):
        async def access(address, write=0, value=0):
            ctx.set(dut.address, address)
            ctx.set(dut.write, write)
            ctx.set(dut.w_data, value)
            await ctx.tick()

        for address, (low, high) in enumerate(memory):
            await access(address, 3, int(low | high << 8))
        for _ in range(400):
            address, write = int(rng.integers(64)), int(rng.integers(4))
            value = rng.integers(0, 256, 2)
            await access(address, write, int(value[0] | value[1] << 8))
            for byte in range(2):
                if write >> byte & 1:
                    memory[address, byte] = value[byte]
            if not write:
                assert ctx.get(dut.r_data) == memory[address, 0] | memory[address, 1] << 8

    simulate(dut, bench)


def test_activation_memory_has_any_two_neighbours():
    rng = np.random.default_rng(3)
    dut = CompactActivationMemory(CONFIG, GenericTechnology())
    granules = CONFIG.bank_granules
    memory = np.zeros((4, granules), np.int64)
    pending: list[int | None] = [None]

    async def bench(ctx):
        async def access(bank, granule, write=0, value=0):
            ctx.set(dut.bank, bank)
            ctx.set(dut.granule, granule)
            ctx.set(dut.write, write)
            ctx.set(dut.w_data, value)
            for part in range(2):
                if write >> part & 1:
                    memory[bank, (granule + part) % granules] = value >> 16 * part & 0xFFFF
            word = int(memory[bank, granule] | memory[bank, (granule + 1) % granules] << 16)
            pending.append(None if write else word)
            await ctx.tick()
            if (want := pending.pop(0)) is not None:
                assert ctx.get(dut.r_data) == want

        for bank in range(4):
            for granule in range(0, granules, 2):
                await access(bank, granule, 3, int(rng.integers(1 << 32)))
        for _ in range(2000):
            near = int(rng.choice([0, 1, granules - 2, granules - 1, int(rng.integers(granules))]))
            write = int(rng.integers(4)) * int(rng.integers(2))
            await access(int(rng.integers(4)), near, write, int(rng.integers(1 << 32)))

    simulate(dut, bench)


def test_weight_memory_turns_words_into_columns():
    rng = np.random.default_rng(4)
    dut = CompactWeightMemory(CONFIG, GenericTechnology())
    words = rng.integers(0, 256, (CONFIG.weight_words, CONFIG.weight_word_bytes), np.uint8)

    async def bench(ctx):
        ctx.set(dut.host, 1)
        for k in rng.permutation(CONFIG.weight_words):
            for column, value in enumerate(words[k].view("<u4")):
                ctx.set(dut.host_offset, int(k) * weight_stride(CONFIG) + 4 * column)
                ctx.set(dut.host_data, int(value))
                for tap in range(CONFIG.taps):
                    ctx.set(dut.tap, tap)
                    await ctx.tick()
        ctx.set(dut.host, 0)
        for k in rng.permutation(CONFIG.weight_words):
            for tap in range(CONFIG.taps):
                ctx.set(dut.weight, int(k))
                ctx.set(dut.tap, tap)
                await ctx.tick()
                want = words[k].reshape(CONFIG.lanes, CONFIG.taps)[:, tap]
                assert ctx.get(dut.column.as_value()) == int.from_bytes(want.tobytes(), "little")

    assert weight_word_columns(CONFIG) == 3
    simulate(dut, bench)


def _descriptor(**changes):
    fields = dict(
        kind=Kind.DENSE,
        in_base=0,
        in_rows=4,
        in_row_bytes=16,
        in_row_stride=8,
        out_row_stride=8,
        out_base=0,
        n_oy=2,
        n_ox=3,
        n_g=2,
        n_ky=2,
        n_kx=2,
    )
    return Descriptor(**{**fields, **changes})


@pytest.mark.parametrize("n_ky", [1, 2, 5])
@pytest.mark.parametrize("n_kx", [1, 3, 4])
@pytest.mark.parametrize("pixels", [(1, 1), (2, 3)])
@pytest.mark.parametrize("n_g", [1, 3])
def test_cycles_in_closed_form_are_those_of_the_steps(n_ky, n_kx, pixels, n_g):
    d = _descriptor(n_ky=n_ky, n_kx=n_kx, n_oy=pixels[0], n_ox=pixels[1], n_g=n_g)
    items = list(timed_steps(CONFIG, d))
    assert [item for _, item in items] == list(steps(CONFIG, d))
    last, step = items[-1]
    assert issue_cycles(CONFIG, d) == last + CONFIG.taps + step.first
    # Results and parameters come no sooner than the requantizer can take them.
    free = 0
    for cycle, item in items:
        if isinstance(item, ParameterLoad):
            assert cycle >= free
        elif item.result:
            assert cycle >= free
            free = cycle + CONFIG.taps + item.first + COMPACT_SPACING


def test_cycles_of_a_sliding_window_are_those_of_its_steps():
    d = _descriptor(kind=Kind.WINDOW, slide=1, n_ky=1, n_kx=1, n_ox=5, slide_first=1, slide_step=2)
    *_, (last, _) = timed_steps(CONFIG, d)
    assert issue_cycles(CONFIG, d) == last + CONFIG.taps + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"overlap": True}, "compact needs overlap=False, not True"),
        ({"lanes": 8}, "compact needs lanes=4, not 8"),
        ({"max_pool": True}, "compact needs max_pool=False, not True"),
        ({"layer_counters": True}, "compact needs layer_counters=False, not True"),
    ],
)
def test_what_the_compact_engine_lacks_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **change)


def test_other_configurations_keep_their_identity():
    assert replace(CONFIG, compact=False).hash != CONFIG.hash
    # As in the bitstreams that were made before.
    assert AcceleratorConfig().hash == 0x2C82517E
