"""Activation memory, operand fetch, MAC array and weight memory, each against a few lines of NumPy."""

import numpy as np
import pytest
from amaranth.hdl import Module, Signal

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import weight_stride, weight_word_columns
from nnloom.arch.loopnest import maximum_taps
from nnloom.hw.activation_memory import ROW_FETCH_LATENCY, ActivationMemory
from nnloom.hw.delay import SPREAD_LATENCY, spread
from nnloom.hw.mac_array import MacArray, mac_latency
from nnloom.hw.operand import AHEAD, OPERAND_LATENCY, OperandFetch
from nnloom.hw.technology import MULTIPLIER_LATENCY, RAM_LATENCY, GenericTechnology, Multiplier, MultiplierPair, Ram
from nnloom.hw.weight_memory import WEIGHT_LATENCY, WeightMemory
from tests.hw.benches import simulate

CONFIG = AcceleratorConfig(lanes=8, taps=5, requant_units=8, activation_bytes=4096, weight_words=64)
WIDE = AcceleratorConfig(lanes=16, taps=9, activation_bytes=8192)
TRIPLE = AcceleratorConfig(lanes=16, taps=9, activation_bytes=8192, row_triples=True)
PAIR_TRIPLE = AcceleratorConfig(lanes=32, taps=11, activation_bytes=8192, pixels=2, row_triples=True)
PRODUCT = AcceleratorConfig(lanes=8, taps=5, requant_units=8, activation_bytes=4096, elementwise_mul=True)
WIDE_PRODUCT = AcceleratorConfig(lanes=16, taps=9, activation_bytes=8192, elementwise_mul=True)
PAIR = AcceleratorConfig(lanes=8, taps=5, requant_units=8, activation_bytes=4096, weight_words=64, pixels=2)


def as_int(values: np.ndarray) -> int:
    return int.from_bytes(np.ascontiguousarray(values).tobytes(), "little")


def as_bytes(value: int, count: int) -> np.ndarray:
    return np.frombuffer(int(value).to_bytes(count, "little"), np.uint8)


@pytest.mark.parametrize("widths", [(8, 8), (18, 18), (16, 17), (1, 2)])
def test_multiplier_latency_and_extremes(widths):
    a_width, b_width = widths
    dut = Multiplier(a_width=a_width, b_width=b_width)
    rng = np.random.default_rng(0)
    corners = [(a, b) for a in (-(1 << a_width - 1), (1 << a_width - 1) - 1) for b in (-(1 << b_width - 1), 0)]
    pairs = corners + [
        (
            int(rng.integers(-(1 << a_width - 1), 1 << a_width - 1)),
            int(rng.integers(-(1 << b_width - 1), 1 << b_width - 1)),
        )
        for _ in range(50)
    ]

    async def bench(ctx):
        products = []
        for a, b in pairs + [(0, 0)] * 3:
            ctx.set(dut.a, a)
            ctx.set(dut.b, b)
            products.append(ctx.get(dut.p))
            await ctx.tick()
        assert products[3:] == [a * b for a, b in pairs]

    simulate(dut, bench)


def test_a_pair_of_products_shares_a_multiplier_and_is_exact():
    """Every pair of signs and zeros, the ends of the range, and others."""
    dut = MultiplierPair()
    ends = [-128, -127, -1, 0, 1, 127]
    rng = np.random.default_rng(3)
    cases = [(a, second, b) for a in ends for second in ends for b in ends]
    cases += rng.integers(-128, 128, (300, 3)).tolist()

    async def bench(ctx):
        got = []
        for a, second, b in cases + [(0, 0, 0)] * MULTIPLIER_LATENCY:
            ctx.set(dut.a, a)
            ctx.set(dut.a_second, second)
            ctx.set(dut.b, b)
            got.append((ctx.get(dut.p), ctx.get(dut.p_second)))
            await ctx.tick()
        assert got[MULTIPLIER_LATENCY:] == [(a * b, second * b) for a, second, b in cases]

    simulate(dut, bench)


def test_ram_reads_what_was_written_after_its_latency():
    dut = Ram(width=12, depth=20)
    rng = np.random.default_rng(1)
    content = rng.integers(0, 1 << 12, 20)

    async def bench(ctx):
        for address, word in enumerate(content):
            ctx.set(dut.w_en, 1)
            ctx.set(dut.w_addr, address)
            ctx.set(dut.w_data, int(word))
            await ctx.tick()
        ctx.set(dut.w_en, 0)
        ctx.set(dut.w_data, 0)
        addresses = [int(a) for a in rng.integers(0, 20, 40)]
        seen = []
        for address in addresses + [0] * RAM_LATENCY:
            ctx.set(dut.r_addr, address)
            seen.append(ctx.get(dut.r_data))
            await ctx.tick()
        assert seen[RAM_LATENCY:] == [int(content[a]) for a in addresses]

    simulate(dut, bench)


@pytest.mark.parametrize("config", [CONFIG, WIDE, PAIR], ids=["8", "16", "pair"])
def test_activation_memory_fetches_windows_while_being_written(config):
    rng = np.random.default_rng(2)
    dut = ActivationMemory(config, GenericTechnology())
    size = config.bank_granules * config.granule
    image = rng.integers(0, 256, (config.row_banks, size), np.uint8)
    spare = size // 2
    """Bytes from here on are written during the reads."""

    async def write(ctx, bank, granule, enable, values):
        banks = [0, 0]
        for part in range(2):
            banks[(granule + part) % 2] |= (enable >> part & 1) << bank
        ctx.set(dut.write.granule, granule)
        ctx.set(dut.write.above, granule + 1)
        ctx.set(dut.write.enable, banks)
        ctx.set(dut.write.data, as_int(values))

    async def bench(ctx):
        for bank in range(config.row_banks):
            for granule in range(0, config.bank_granules - 1):
                # The upper granule written here is the lower one of the next write.
                first = granule * config.granule
                await write(ctx, bank, granule, 3, image[bank, first : first + config.lanes])
                await ctx.tick()
        requests = []
        ahead = [(int(rng.integers(-3, 20)), int(rng.integers(1, 5))) for _ in range(401)]
        ctx.set(dut.request.row_ahead, ahead[0][0])
        ctx.set(dut.request.row_stride, ahead[0][1])
        await ctx.tick()
        for i in range(400):
            row, stride = ahead[i]
            second = int(rng.integers(1, 3)) if config.pixels > 1 else 2
            base = int(rng.integers(stride * 2, 8 + stride * 2))
            q = int(rng.integers(-8, 5 * config.granule))
            requests.append((row, stride, base, q, second))
            ctx.set(dut.request.row_ahead, ahead[i + 1][0])
            ctx.set(dut.request.row_stride, ahead[i + 1][1])
            ctx.set(dut.request.second, second)
            ctx.set(dut.request.base, base)
            ctx.set(dut.request.q, q)
            if rng.integers(2):
                granule = int(rng.integers(spare // config.granule, config.bank_granules - 1))
                values = rng.integers(0, 256, config.lanes, np.uint8)
                enable, bank = int(rng.integers(4)), int(rng.integers(config.row_banks))
                await write(ctx, bank, granule, enable, values)
                for part in range(2):
                    if enable >> part & 1:
                        at = (granule + part) * config.granule
                        image[bank, at : at + config.granule] = values[part * config.granule :][: config.granule]
            else:
                ctx.set(dut.write.enable, [0, 0])
            if i >= ROW_FETCH_LATENCY:
                row, stride, base, q, second = requests[i - ROW_FETCH_LATENCY]
                offsets = [0, 1, second, second + 1][: len(dut.rows)]
                got = as_bytes(ctx.get(dut.rows.as_value()), config.lanes * len(offsets))
                for index, r in enumerate(offsets):
                    at = base + (row + r) // config.row_banks * stride + q // config.granule
                    first = at * config.granule
                    want = image[(row + r) % config.row_banks, first : first + config.lanes]
                    np.testing.assert_array_equal(got[index * config.lanes :][: config.lanes], want)
            await ctx.tick()
        # What was written meanwhile is there.
        ctx.set(dut.write.enable, [0, 0])
        ctx.set(dut.host_read, 1)
        await ctx.tick().repeat(4)
        for bank in range(config.row_banks):
            for granule in range(0, config.bank_granules, 3):
                ctx.set(dut.host_bank, bank)
                ctx.set(dut.host_granule, granule)
                await ctx.tick().repeat(RAM_LATENCY + 3)
                first = granule * config.granule
                want = image[bank, first : first + config.granule]
                np.testing.assert_array_equal(as_bytes(ctx.get(dut.host_data), config.granule), want)

    simulate(dut, bench)


@pytest.mark.parametrize(
    "config",
    [CONFIG, WIDE, PAIR, TRIPLE, PAIR_TRIPLE, PRODUCT, WIDE_PRODUCT],
    ids=["8", "16", "pair", "triple", "pair and triple", "8 with products", "16 with products"],
)
def test_operand_fetch_aligns_pads_and_slides(config):
    rng = np.random.default_rng(3)
    dut = OperandFetch(config, GenericTechnology())
    lanes, taps, rows = config.lanes, config.taps, config.window_rows
    columns = config.window_columns
    half, third = taps // 2, taps // 3

    async def bench(ctx):
        window = np.zeros((columns, rows, lanes), np.uint8)
        newest, pairs = np.zeros(lanes, np.uint8), []
        pending, coming = [], []
        for i in range(600):
            values = rng.integers(0, 256, (len(dut.rows), lanes), np.uint8)
            dense, pair, valid = (int(rng.integers(2)) for _ in range(3))
            triple = int(config.row_triples and not pair and rng.integers(2))
            in_rows, in_row_bytes = int(rng.integers(1, 12)), int(rng.integers(1, 80))
            row, q = int(rng.integers(-4, 14)), int(rng.integers(-20, 90))
            if not dense:
                q -= q % config.granule
                in_row_bytes += -in_row_bytes % config.granule
            kernel_row, kernel_rows = int(rng.integers(0, 6)), int(rng.integers(1, 8))
            pad = int(rng.integers(256))
            second = int(rng.integers(1, 3)) if dense and config.pixels > 1 and not triple else 2
            if triple:
                kernel_rows = 255
                ctx.set(dut.row_triple, dense)
            elif config.row_triples:
                ctx.set(dut.row_triple, 0)
            for name, value in dict(
                dense=dense, row_pair=pair, valid=valid, in_rows=in_rows, in_row_bytes=in_row_bytes,
                row=row, q=q, kernel_row=kernel_row, kernel_rows=kernel_rows, pad=pad, second=second,
            ).items():  # fmt: skip
                ctx.set(getattr(dut, name), value)
            coming.append(values)
            if i >= AHEAD:
                ctx.set(dut.rows.as_value(), as_int(coming[i - AHEAD]))

            def ok(r, byte, row=row, q=q, in_rows=in_rows, n=in_row_bytes, k=kernel_row, kn=kernel_rows):
                return 0 <= row + r < in_rows and k + r < kn and 0 <= q + byte < n

            if dense:
                shift = q % config.granule
                vectors = []
                for pixel in range(config.pixels):
                    # The second pixel lies `second` rows below and has a kernel of its own.
                    def ok_row(r, byte, pixel=pixel, k=kernel_row, below=second, row=row, ok=ok):
                        return ok(r + pixel * below, byte, k=k - pixel * below)

                    mine = values[2 * pixel : 2 * pixel + 2]
                    vector = np.array([mine[0, shift + t] if ok_row(0, t) else pad for t in range(taps)])
                    if pair:
                        for t in range(half):
                            vector[half + t] = mine[1, shift + t] if ok_row(1, t) else pad
                    if triple:
                        # Of two pixels the second has the next row, too, as its first.
                        for t in range(3 * third):
                            r, byte = pixel + t // third, t % third
                            vector[t] = values[r, shift + byte] if ok(r, byte) else pad
                    vectors.append(vector)
                want = np.concatenate([np.broadcast_to(vector, (lanes, taps)) for vector in vectors])
                # The taps that a pair or a triple leaves over have weight zero: do not care.
                used = 3 * third if triple else 2 * half if pair else taps
            else:
                if valid:
                    new = np.stack([values[r] if ok(r, 0) else np.full(lanes, pad) for r in range(rows)])
                    window = np.concatenate([window[1:], new[None]])
                    previous, newest = newest, new[0].astype(np.uint8)
                want = np.zeros((lanes, taps), np.uint8)
                # Nothing is promised for the second pixel.
                flat = window.reshape(columns * rows, lanes).T
                want[:, : columns * rows] = flat
                used = taps
            pending.append((want[:, :used], used) if dense or valid else None)
            pairs.append((newest, previous) if valid and not dense else None)
            if i > 8:
                expected = pending[i - AHEAD - OPERAND_LATENCY]
                if expected is not None:
                    got = as_bytes(ctx.get(dut.operands.as_value()), lanes * taps).reshape(lanes, taps)
                    below = as_bytes(ctx.get(dut.second_operands.as_value()), lanes * taps).reshape(lanes, taps)
                    got = np.concatenate([got, below])[: len(expected[0])]
                    np.testing.assert_array_equal(got[:, : expected[1]], expected[0])
                pair_of_bytes = pairs[i - AHEAD - OPERAND_LATENCY]
                if config.elementwise_mul and i > 20 and pair_of_bytes is not None:
                    for signal, want in zip((dut.newest, dut.previous), pair_of_bytes, strict=True):
                        np.testing.assert_array_equal(as_bytes(ctx.get(signal), lanes), want)
            await ctx.tick()

    simulate(dut, bench)


@pytest.mark.parametrize(("pixels", "pairs"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize(("taps", "registers"), [(3, False), (5, False), (9, False), (9, True)])
def test_mac_array_accumulates_and_takes_maxima(taps, registers, pixels, pairs):
    config = AcceleratorConfig(lanes=16, taps=taps, pixels=pixels, product_registers=registers)
    rng = np.random.default_rng(taps)
    dut = MacArray(config, GenericTechnology(pairs=pairs))
    latency = mac_latency(config)

    async def bench(ctx):
        acc = np.zeros((pixels, config.lanes), np.int64)
        maximum = np.zeros(config.lanes, np.int8)
        history = []
        for i in range(300):
            x = rng.integers(-128, 128, (config.lanes, taps), np.int8)
            w = rng.integers(-128, 128, (config.lanes, taps), np.int8)
            if i >= 150:
                w[:, maximum_taps(config)] = 1
                # Ties, and the ends of the range.
                x[:, maximum_taps(config)] = rng.choice([-128, -127, -1, 0, 126, 127], (config.lanes, 3))
            multiply, first = int(rng.integers(4) > 0), int(rng.integers(5) == 0 or i == 0)
            if i == 0:
                multiply = 1
            below = rng.integers(-128, 128, (config.lanes, taps), np.int8)
            ctx.set(dut.second_operands.as_value(), as_int(below))
            ctx.set(dut.operands.as_value(), as_int(x))
            ctx.set(dut.weights.as_value(), as_int(w))
            ctx.set(dut.multiply, multiply)
            ctx.set(dut.first, first)
            operands = np.stack([x, below])[:pixels]
            total = (operands.astype(np.int64) * w).sum(2)
            if multiply:
                acc = total if first else acc + total
                products = x.astype(np.int64) * w
                value = products[:, maximum_taps(config)].astype(np.int8).max(1)
                maximum = value if first else np.maximum(maximum, value)
            history.append((acc, maximum))
            if i >= latency:
                want, want_maximum = history[i - latency]
                value = int(ctx.get(dut.accumulators.as_value()))
                got = np.frombuffer(value.to_bytes(64 * pixels, "little"), np.int32)
                np.testing.assert_array_equal(got.reshape(pixels, -1), want)
                got = as_bytes(ctx.get(dut.maxima.as_value()), config.lanes).view(np.int8)
                np.testing.assert_array_equal(got, want_maximum)
            await ctx.tick()

    simulate(dut, bench)


@pytest.mark.parametrize(("pixels", "pairs"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("taps", [3, 5, 9])
def test_mac_array_takes_weights_from_the_window(taps, pixels, pairs):
    config = AcceleratorConfig(taps=taps, pixels=pixels, max_pool=False, elementwise_mul=True)
    rng = np.random.default_rng(taps)
    dut = MacArray(config, GenericTechnology(pairs=pairs))
    latency = mac_latency(config)
    tap = config.newest_tap
    shapes = [(config.lanes, taps)] * 3 + [(config.lanes,)] * 2
    cases = [[rng.integers(-128, 128, shape, np.int8) for shape in shapes] for _ in range(150)]
    choices = rng.integers(0, 2, (150, 3))
    """of each step: row 1 has the newest byte, row 0 the one before, and the first step of a result"""
    choices[0, 2] = 1

    async def bench(ctx):
        acc = np.zeros((pixels, config.lanes), np.int64)
        history = []
        ctx.set(dut.multiply, 1)
        for i, (x, below, w, newest, previous) in enumerate(cases):
            ctx.set(dut.use_newest_ahead, int(choices[min(i + 1, 149), 0]))
            ctx.set(dut.use_previous_ahead, int(choices[min(i + 1, 149), 1]))
            for port, values in ((dut.operands, x), (dut.second_operands, below), (dut.weights, w)):
                ctx.set(port.as_value(), as_int(values))
            ctx.set(dut.newest, as_int(newest))
            ctx.set(dut.previous, as_int(previous))
            ctx.set(dut.first, int(choices[i, 2]))
            weights = np.stack([w, w])[:pixels].astype(np.int64)
            use_newest, use_previous, first = choices[i] if i else (0, 0, 1)
            if use_newest:
                weights[0, :, tap + 1] = -1 - newest.astype(np.int64)
            if use_previous:
                weights[0, :, tap] = previous
            total = (np.stack([x, below])[:pixels] * weights).sum(2)
            acc = total if first else acc + total
            history.append(acc)
            if i >= latency:
                value = int(ctx.get(dut.accumulators.as_value()))
                got = np.frombuffer(value.to_bytes(4 * config.lanes * pixels, "little"), np.int32)
                # The second pixel has no results in such steps: in pairs of products it has the first one's weights.
                shown = 1 if pairs else pixels
                np.testing.assert_array_equal(got.reshape(pixels, -1)[:shown], history[i - latency][:shown])
            await ctx.tick()

    simulate(dut, bench)


@pytest.mark.parametrize("copies", [1, 4, 6, 32])
def test_spread_makes_equal_copies_two_cycles_later(copies):
    m = Module()
    value = Signal(5)
    copied = spread(m, GenericTechnology(), value, copies, "spread")
    assert len(copied) == copies
    values = np.random.default_rng(copies).integers(0, 32, 20).tolist()

    async def bench(ctx):
        for cycle, now in enumerate(values):
            ctx.set(value, now)
            if cycle >= SPREAD_LATENCY:
                assert [ctx.get(copy) for copy in copied] == [values[cycle - SPREAD_LATENCY]] * copies
            await ctx.tick()

    simulate(m, bench)


@pytest.mark.parametrize("words", [64, 3000])
@pytest.mark.parametrize(("lanes", "taps"), [(8, 5), (16, 9), (4, 3), (8, 4), (32, 11), (16, 7), (64, 18)])
def test_weight_memory_holds_what_the_host_writes(lanes, taps, words):
    """With and without a ninth bit, whatever a column shares with its neighbours."""
    check_weight_memory(lanes, taps, words, 4)


@pytest.mark.parametrize("words", [64, 3000])
@pytest.mark.parametrize(("lanes", "taps", "width"), [(16, 9, 64), (32, 9, 64), (32, 9, 128), (16, 7, 64)])
def test_weight_memory_takes_whole_beats(lanes, taps, width, words):
    check_weight_memory(lanes, taps, words, width // 8)


def check_weight_memory(lanes, taps, words, column_bytes):
    rng = np.random.default_rng(lanes * taps)
    config = AcceleratorConfig(lanes=lanes, taps=taps, requant_units=lanes, activation_bytes=4096, weight_words=words)
    dut = WeightMemory(config, GenericTechnology(), host_width=8 * column_bytes)
    count = 2 if lanes == 64 else 6
    words = rng.integers(0, 256, (count, config.weight_word_bytes), np.uint8)
    shifted = np.zeros((count, 4 * weight_word_columns(config)), np.uint8)
    shifted[:, : config.weight_word_bytes] = words

    async def bench(ctx):
        for index in rng.permutation(count):
            columns = shifted[index].reshape(-1, column_bytes)
            assert len(columns) == 4 * weight_word_columns(config) // column_bytes
            for column, value in enumerate(columns):
                ctx.set(dut.host_write, 1)
                ctx.set(dut.host_address, int(index) * weight_stride(config) + column_bytes * column)
                ctx.set(dut.host_data, as_int(value))
                await ctx.tick()
                ctx.set(dut.host_write, 0)
                if pause := int(rng.integers(3)):
                    await ctx.tick().repeat(pause)
        await ctx.tick().repeat(3)
        for index in range(count):
            ctx.set(dut.address, index)
            await ctx.tick().repeat(WEIGHT_LATENCY)
            np.testing.assert_array_equal(as_bytes(ctx.get(dut.word), config.weight_word_bytes), words[index])

    simulate(dut, bench)
