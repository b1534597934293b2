"""The host bus of the accelerator: registers, memory windows, stalls, accesses while busy, reset."""

from dataclasses import replace

import numpy as np
import pytest
from amaranth.hdl import ResetInserter, Signal
from amaranth.sim import Simulator

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import IllegalProgramError
from nnloom.arch.isa import (
    ERROR_CAUSE_BIT,
    ISA_VERSION,
    MAGIC,
    WATCHDOG_BITS,
    Counter,
    Descriptor,
    ErrorCause,
    HostAddress,
    Kind,
    Register,
    Status,
    encode_program,
    weight_stride,
    weight_word_columns,
)
from nnloom.arch.legality import check_program
from nnloom.arch.lists import relocated
from nnloom.arch.loopnest import Step, issue_cycles, steps
from nnloom.compiler.graph import Add, LayerGraph, Table
from nnloom.hw.accelerator import make_accelerator
from nnloom.hw.technology import GenericTechnology, Technology
from tests.engines import compact, without_overlap
from tests.graphs import random_graph, random_layer, tensor
from tests.harness import compile_region, random_inputs

CONFIG = AcceleratorConfig(lanes=8, taps=5, requant_units=4, activation_bytes=4096, weight_words=512, program_words=96)


MEMORIES = dict(activation_bytes=4096, weight_words=1024, program_words=64, field_bits=10)
SMALLEST = without_overlap(**MEMORIES)
COMPACT = compact(**MEMORIES)
WIDE = AcceleratorConfig(lanes=16, taps=9, activation_bytes=8192, weight_words=512, program_words=128)
ACCESS_ERROR, PROGRAM_ERROR, WATCHDOG_ERROR = (
    Status.ERROR | cause << ERROR_CAUSE_BIT for cause in (ErrorCause.ACCESS, ErrorCause.PROGRAM, ErrorCause.WATCHDOG)
)


class Bus:
    """Host side of the bus, with random pauses before requests and before taking responses."""

    def __init__(self, ctx, dut, rng, pause: float, reset: Signal) -> None:
        self.ctx, self.dut, self.rng, self.pause, self.reset_signal = ctx, dut, rng, pause, reset
        self.config = dut.config

    async def _stall(self) -> None:
        while self.rng.random() < self.pause:
            await self.ctx.tick()

    async def _request(self, write: int, address: int, data: int = 0) -> None:
        ctx, request = self.ctx, self.dut.host.request
        await self._stall()
        ctx.set(request.payload.write, write)
        ctx.set(request.payload.address, address)
        ctx.set(request.payload.data, data)
        ctx.set(request.valid, 1)
        while not ctx.get(request.ready):
            await ctx.tick()
        await ctx.tick()
        ctx.set(request.valid, 0)
        ctx.set(request.payload.data, int(self.rng.integers(2**32)))

    async def write(self, address: int, data: int) -> None:
        await self._request(1, int(address), int(data))

    async def read(self, address: int) -> int:
        ctx, response = self.ctx, self.dut.host.response
        await self._request(0, int(address))
        # A response waits for ready, unchanged.
        while not ctx.get(response.valid):
            await ctx.tick()
        first = ctx.get(response.payload.data)
        await self._stall()
        assert ctx.get(response.valid) and ctx.get(response.payload.data) == first
        ctx.set(response.ready, 1)
        await ctx.tick()
        ctx.set(response.ready, 0)
        return first

    async def reset(self) -> None:
        self.ctx.set(self.reset_signal, 1)
        await self.ctx.tick()
        self.ctx.set(self.reset_signal, 0)

    async def register(self, register: Register) -> int:
        return await self.read(HostAddress.REGISTERS + register)

    async def load(self, compiled) -> None:
        for i, word in enumerate(compiled.program):
            await self.write(HostAddress.PROGRAM + 4 * i, word)
        columns = weight_word_columns(self.config)
        for index, word in enumerate(compiled.weights):
            data = np.resize(word, 4 * columns).view("<u4")
            for column in range(columns):
                await self.write(HostAddress.WEIGHTS + index * weight_stride(self.config) + 4 * column, data[column])

        for i, value in enumerate(compiled.tables.reshape(-1)):
            await self.write(HostAddress.TABLES + 4 * i, value)

    async def write_tensor(self, location, values) -> None:
        for bank, data in enumerate(location.pack(self.config, values)):
            start = HostAddress.ACTIVATIONS + (bank * self.config.bank_granules + location.base) * self.config.granule
            for i, word in enumerate(data.view("<u4")):
                await self.write(start + 4 * i, word)

    async def read_tensor(self, location):
        banks = []
        for bank in range(self.config.row_banks):
            start = HostAddress.ACTIVATIONS + (bank * self.config.bank_granules + location.base) * self.config.granule
            words = [await self.read(start + 4 * i) for i in range(location.bank_bytes(self.config, bank) // 4)]
            banks.append(np.array(words, "<u4").view(np.uint8))
        return location.unpack(self.config, banks)

    async def start_and_wait(self) -> None:
        await self.write(HostAddress.REGISTERS + Register.CONTROL, 1)
        while not await self.register(Register.STATUS) & Status.DONE:
            pass


def run(
    test,
    seed: int,
    pause: float,
    technology: Technology | None = None,
    config: AcceleratorConfig = CONFIG,
    *,
    watchdog_bits: int = WATCHDOG_BITS,
    loads_while_running: bool = False,
) -> None:
    dut = make_accelerator(config, technology, watchdog_bits=watchdog_bits, loads_while_running=loads_while_running)
    reset = Signal()

    async def bench(ctx):
        await test(Bus(ctx, dut, np.random.default_rng(seed), pause, reset))

    sim = Simulator(ResetInserter(reset)(dut))
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()


def small_region(seed: int, config: AcceleratorConfig = CONFIG):
    """A region that fits the small memories."""
    rng = np.random.default_rng(seed)
    while True:
        kinds = ["depthwise", "conv", "average"] if config.compact else ["depthwise", "add", "maximum"]
        graph = random_graph(rng, kinds)
        sizes = [t.elements for layer in graph.layers for t in (*layer.inputs, layer.output)]
        if max(sizes) <= 256:
            return graph, compile_region(config, graph), random_inputs(rng, graph)


def issued(d: Descriptor) -> int:
    """Steps of a layer, parameter loads not counted."""
    return sum(isinstance(item, Step) for item in steps(CONFIG, d))


@pytest.mark.parametrize("config", [CONFIG, COMPACT], ids=["8x5", "compact"])
@pytest.mark.parametrize("pause", [0.0, 0.4])
def test_registers_and_memories(pause, config):
    async def test(bus):
        assert await bus.register(Register.MAGIC) == MAGIC
        assert await bus.register(Register.VERSION) == ISA_VERSION
        assert await bus.register(Register.CONFIG_HASH) == config.hash
        assert await bus.register(Register.STATUS) == 0
        await bus.write(HostAddress.REGISTERS + Register.PROGRAM_START, 48)
        assert await bus.register(Register.PROGRAM_START) == 48
        count = 24
        words = bus.rng.integers(0, 2**32, count)
        for bank in (0, 3):
            start = HostAddress.ACTIVATIONS + bank * config.bank_granules * config.granule
            for i in range(count):
                await bus.write(start + 4 * i, words[i])
            for i in bus.rng.permutation(count):
                assert await bus.read(start + 4 * int(i)) == words[i]

    run(test, 1, pause, config=config)


@pytest.mark.parametrize("config", [SMALLEST, COMPACT], ids=["smallest", "compact"])
@pytest.mark.parametrize("pause", [0.0, 0.4])
def test_small_engines_compute_the_same_in_the_predicted_cycles(config, pause):
    from nnloom.compiler.cost import program_cycles
    from nnloom.sim.golden import GoldenModel

    graph, compiled, inputs = small_region(3, config)
    golden = GoldenModel(config, compiled.program, compiled.weights, compiled.tables)
    locations = compiled.plan.locations
    for name, value in inputs.items():
        golden.write_tensor(locations[name], value)
    golden.run()

    async def test(bus):
        await bus.load(compiled)
        for name, value in inputs.items():
            await bus.write_tensor(locations[name], value)
        for _ in range(2):
            await bus.start_and_wait()
            for output in graph.outputs:
                got = await bus.read_tensor(locations[output.name])
                np.testing.assert_array_equal(got, golden.read_tensor(locations[output.name]))
            assert await bus.register(Register.LAYERS) == len(graph.layers)
            assert await bus.register(Register.CYCLES) == program_cycles(config, compiled.descriptors)
            assert [await bus.read(HostAddress.COUNTERS + 4 * i) for i in range(8)] == [0] * 8
            for name, value in inputs.items():
                await bus.write_tensor(locations[name], value)

    run(test, 7, pause, GenericTechnology(distributed_ram=False), config)


@pytest.mark.parametrize(("pause", "distributed_ram"), [(0.0, True), (0.4, True), (0.0, False)])
def test_runs_back_to_back_give_the_same_answer(pause, distributed_ram):
    from nnloom.sim.golden import GoldenModel

    graph, compiled, inputs = small_region(3)
    golden = GoldenModel(CONFIG, compiled.program, compiled.weights, compiled.tables)
    locations = compiled.plan.locations
    for name, value in inputs.items():
        golden.write_tensor(locations[name], value)
    golden.run()
    output = locations[graph.outputs[0].name]
    want = golden.read_tensor(output)

    async def test(bus):
        await bus.load(compiled)
        for _ in range(2):
            for name, value in inputs.items():
                await bus.write_tensor(locations[name], value)
            await bus.start_and_wait()
            np.testing.assert_array_equal(await bus.read_tensor(output), want)
            assert await bus.register(Register.LAYERS) == len(graph.layers)
            assert await bus.register(Register.STATUS) == Status.DONE
            counts = [
                [await bus.read(HostAddress.COUNTERS + 16 * i + 4 * c) for c in Counter]
                for i in range(len(compiled.descriptors))
            ]
            assert counts[-1][Counter.CYCLES] < await bus.register(Register.CYCLES)
            for d, (cycles, start, parameters, requantization) in zip(
                compiled.descriptors, np.diff(counts, axis=0, prepend=0), strict=True
            ):
                # The ends of the layers are seen a few cycles apart.
                assert abs(cycles - start - parameters - requantization - issued(d)) <= 4
                assert start > d.start_delay and parameters >= CONFIG.parameter_words
                least = issue_cycles(CONFIG, d) - issued(d)
                assert abs(parameters + requantization - least) <= 4

    run(test, 2, pause, GenericTechnology(distributed_ram=distributed_ram))


@pytest.mark.parametrize(
    ("config", "pause"),
    [pytest.param(CONFIG, 0.0, id="8x5"), pytest.param(WIDE, 0.2, id="16x9", marks=pytest.mark.slow)],
)
def test_the_dma_loads_memories_beside_a_program(config, pause):
    """The engine never waits; what is written is there: activations that it does not use, and the same program with
    its weights at another place, which runs next."""
    from nnloom.compiler.cost import program_cycles
    from nnloom.sim.golden import GoldenModel

    graph, compiled, inputs = small_region(9, config)
    golden = GoldenModel(config, compiled.program, compiled.weights, compiled.tables)
    locations = compiled.plan.locations
    for name, value in inputs.items():
        golden.write_tensor(locations[name], value)
    golden.run()
    program, weights = len(compiled.program), len(compiled.weights)
    columns, place = weight_word_columns(config), 300
    again = relocated(compiled.program, place)
    words = {HostAddress.PROGRAM + 4 * (program + i): int(word) for i, word in enumerate(again)}
    for index in range(weights):
        data = np.resize(compiled.weights[index], 4 * columns).view("<u4")
        start = HostAddress.WEIGHTS + (place + index) * weight_stride(config)
        words |= {start + 4 * i: int(word) for i, word in enumerate(data)}
    rng = np.random.default_rng(1)
    free = range(compiled.plan.granules, config.bank_granules)
    activations = [
        HostAddress.ACTIVATIONS + (bank * config.bank_granules + granule) * config.granule + 4 * i
        for bank in range(config.row_banks)
        for granule in (free[0], *free[-20:])
        for i in range(config.granule // 4)
    ]
    words |= {address: int(rng.integers(1 << 32)) for address in activations}

    async def test(bus):
        await bus.load(compiled)
        for name, value in inputs.items():
            await bus.write_tensor(locations[name], value)
        await bus.write(HostAddress.REGISTERS + Register.CONTROL, 1)
        bus.ctx.set(bus.dut.from_dma, 1)
        # Activations first: they meet results.
        beside = 0
        for address in sorted(words, key=lambda a: (a < HostAddress.ACTIVATIONS, a)):
            await bus.write(address, words[address])
            beside += bus.ctx.get(bus.dut.busy)
        bus.ctx.set(bus.dut.from_dma, 0)
        assert beside > 50
        for start in (0, program):
            if start:
                for name, value in inputs.items():
                    await bus.write_tensor(locations[name], value)
                await bus.write(HostAddress.REGISTERS + Register.PROGRAM_START, start)
                await bus.write(HostAddress.REGISTERS + Register.CONTROL, 1)
            while await bus.register(Register.STATUS) & Status.BUSY:
                pass
            assert await bus.register(Register.STATUS) == Status.DONE
            assert await bus.register(Register.CYCLES) == program_cycles(config, compiled.descriptors)
            for output in graph.outputs:
                got = await bus.read_tensor(locations[output.name])
                np.testing.assert_array_equal(got, golden.read_tensor(locations[output.name]))
            for address in activations[:: 1 if start else 9]:
                assert await bus.read(address) == words[address]
        # Nobody else may, nor may the DMA read.
        await bus.write(HostAddress.REGISTERS + Register.CONTROL, 1)
        while not bus.ctx.get(bus.dut.busy):
            await bus.ctx.tick()
        bus.ctx.set(bus.dut.from_dma, 1)
        assert await bus.read(activations[0]) == 0
        assert await bus.register(Register.STATUS) == Status.BUSY | ACCESS_ERROR

    run(test, 11, pause, config=config, loads_while_running=True)


@pytest.mark.parametrize(
    "config", [pytest.param(CONFIG, id="8x5"), pytest.param(WIDE, id="16x9", marks=pytest.mark.slow)]
)
def test_the_dmas_reads_follow_each_other(config):
    """A word a cycle, in order, whoever is slow; a register's comes behind them."""
    count = 40
    start = HostAddress.ACTIVATIONS + config.bank_granules * config.granule

    async def test(bus):
        words = [int(word) for word in bus.rng.integers(0, 2**32, count)]
        for i, word in enumerate(words):
            await bus.write(start + 4 * i, word)
        bus.ctx.set(bus.dut.from_dma, 1)
        for stall in (0.0, 0.5, 0.9):
            order = [int(i) for i in bus.rng.permutation(count)]
            addresses = [*(start + 4 * i for i in order), HostAddress.REGISTERS + Register.MAGIC]
            got, cycles = await read_many(bus, addresses, stall)
            assert got == [*(words[i] for i in order), MAGIC]
            assert stall or cycles < count + 30

    run(test, 12, 0.0, config=config, loads_while_running=True)


async def read_many(bus: Bus, addresses: list[int], stall: float) -> tuple[list[int], int]:
    """Offer all reads, as fast as they are taken or with pauses on both sides; the answers, and the cycles."""
    ctx, request, response = bus.ctx, bus.dut.host.request, bus.dut.host.response
    got: list[int] = []
    asked = cycles = 0
    offered = False
    ctx.set(request.payload.write, 0)
    while len(got) < len(addresses):
        offered = offered or (asked < len(addresses) and bus.rng.random() >= stall)
        ctx.set(request.valid, offered)
        if offered:
            ctx.set(request.payload.address, addresses[asked])
        ctx.set(response.ready, bus.rng.random() >= stall)
        taken = offered and ctx.get(request.ready)
        if ctx.get(response.valid) and ctx.get(response.ready):
            got.append(ctx.get(response.payload.data))
        await ctx.tick()
        if taken:
            asked, offered = asked + 1, False
        cycles += 1
        assert cycles < 3000
    ctx.set(response.ready, 0)
    return got, cycles


@pytest.mark.parametrize("loads_while_running", [False, True])
@pytest.mark.parametrize("config", [CONFIG, COMPACT], ids=["8x5", "compact"])
def test_accesses_while_busy_are_ignored_and_reported(config, loads_while_running):
    graph, compiled, inputs = small_region(4, config)
    locations = compiled.plan.locations
    output = locations[graph.outputs[0].name]

    async def test(bus):
        await bus.load(compiled)

        async def once(disturb: bool):
            for name, value in inputs.items():
                await bus.write_tensor(locations[name], value)
            await bus.write(HostAddress.REGISTERS + Register.CONTROL, 1)
            if disturb:
                assert await bus.register(Register.STATUS) == Status.BUSY
                for window in (HostAddress.PROGRAM, HostAddress.ACTIVATIONS):
                    for i in range(4):
                        await bus.write(window + 4 * i, 0xFFFFFFFF)
                for i in range(weight_word_columns(config)):
                    await bus.write(HostAddress.WEIGHTS + 4 * i, 0xFFFFFFFF)
                assert await bus.read(HostAddress.ACTIVATIONS) == 0
                # A second start while busy does nothing.
                await bus.write(HostAddress.REGISTERS + Register.CONTROL, 1)
                assert await bus.register(Register.STATUS) == Status.BUSY | ACCESS_ERROR
            while (await bus.register(Register.STATUS)) & Status.BUSY:
                pass
            return await bus.read_tensor(output), await bus.register(Register.CYCLES)

        quiet, cycles = await once(False)
        disturbed, cycles_disturbed = await once(True)
        np.testing.assert_array_equal(quiet, disturbed)
        assert cycles == cycles_disturbed
        assert await bus.register(Register.STATUS) == Status.DONE | ACCESS_ERROR
        again, _ = await once(False)
        np.testing.assert_array_equal(quiet, again)
        assert await bus.register(Register.STATUS) == Status.DONE

    run(test, 5, 0.0, config=config, loads_while_running=loads_while_running)


@pytest.mark.parametrize("config", [CONFIG, COMPACT], ids=["8x5", "compact"])
def test_a_reset_stops_a_program_and_leaves_the_memories(config):
    from nnloom.compiler.cost import program_cycles
    from nnloom.sim.golden import GoldenModel

    graph, compiled, inputs = small_region(6, config)
    golden = GoldenModel(config, compiled.program, compiled.weights, compiled.tables)
    locations = compiled.plan.locations
    for name, value in inputs.items():
        golden.write_tensor(locations[name], value)
    golden.run()

    async def test(bus):
        await bus.load(compiled)
        total = program_cycles(config, compiled.descriptors)
        for cycle in bus.rng.integers(1, total, 12):
            for name, value in inputs.items():
                await bus.write_tensor(locations[name], value)
            await bus.write(HostAddress.REGISTERS + Register.CONTROL, 1)
            await bus.ctx.tick().repeat(int(cycle))
            await bus.reset()
            assert await bus.register(Register.STATUS) == 0
        for name, value in inputs.items():
            await bus.write_tensor(locations[name], value)
        await bus.start_and_wait()
        for output in graph.outputs:
            np.testing.assert_array_equal(
                await bus.read_tensor(locations[output.name]), golden.read_tensor(locations[output.name])
            )
        assert abs(await bus.register(Register.CYCLES) - total) <= (0 if config.compact else 20)

    run(test, 8, 0.0, config=config)


@pytest.mark.parametrize("config", [CONFIG, SMALLEST, COMPACT], ids=["8x5", "smallest", "compact"])
def test_a_program_that_takes_too_long_is_ended_and_the_next_one_is_right(config):
    from nnloom.compiler.cost import program_cycles
    from nnloom.sim.golden import GoldenModel

    graph, compiled, inputs = small_region(3, config)
    golden = GoldenModel(config, compiled.program, compiled.weights, compiled.tables)
    locations = compiled.plan.locations
    for name, value in inputs.items():
        golden.write_tensor(locations[name], value)
    golden.run()
    bits = program_cycles(config, compiled.descriptors).bit_length()
    (output,) = graph.outputs

    def endless(d: Descriptor) -> Descriptor:
        """A row of the layer over and over, from and to the same place: legal, and as long as one likes."""
        again = {"n_g": 900, "weight_step_g": 0, "q_step_g": 0, "out_step_g": 0}
        return replace(d, last=1, n_oy=1, n_ox=max(d.n_ox, d.slide_first + 1), **again)

    async def load_program(bus, words) -> None:
        for i, word in enumerate(words):
            await bus.write(HostAddress.PROGRAM + 4 * i, word)

    async def test(bus):
        await bus.load(compiled)
        for d in compiled.descriptors:
            if d.kind == Kind.ADD:
                continue  # it has one group
            await load_program(bus, encode_program([endless(d)]))
            await bus.start_and_wait()
            assert await bus.register(Register.STATUS) == Status.DONE | WATCHDOG_ERROR
            # The results on their way come to memory.
            assert 0 < await bus.register(Register.CYCLES) - 2**bits < 200
            await load_program(bus, compiled.program)
            for name, value in inputs.items():
                await bus.write_tensor(locations[name], value)
            await bus.start_and_wait()
            assert await bus.register(Register.STATUS) == Status.DONE
            np.testing.assert_array_equal(
                await bus.read_tensor(locations[output.name]), golden.read_tensor(locations[output.name])
            )

    run(test, 9, 0.0, config=config, watchdog_bits=bits)


def test_an_addition_writes_no_granule_beyond_its_row():
    """Three granules a pixel: the last word has one; what lies behind it belongs to others."""
    from nnloom.sim.golden import GoldenModel

    rng = np.random.default_rng(1)
    a, b, c = (tensor(rng, name, 3, 1, 12) for name in "abc")
    graph = LayerGraph("region", (a, b), (c,), (Add(name="add", inputs=(a, b), output=c, act_min=-128, act_max=127),))
    compiled = compile_region(CONFIG, graph)
    locations = compiled.plan.locations
    memory = rng.integers(0, 256, CONFIG.activation_bytes, np.uint8)
    golden = GoldenModel(CONFIG, compiled.program, compiled.weights, compiled.tables)
    golden.activations[:] = memory.reshape(golden.activations.shape)
    inputs = random_inputs(rng, graph)
    for name, value in inputs.items():
        golden.write_tensor(locations[name], value)
    golden.run()
    (d,) = compiled.descriptors
    # All banks, from before the output to behind it.
    places = [
        (bank, granule)
        for bank in range(CONFIG.row_banks)
        for granule in range(max(0, d.out_base - 2), min(d.out_base + 8, CONFIG.bank_granules))
    ]

    async def test(bus):
        await bus.load(compiled)
        for i in range(0, CONFIG.activation_bytes // 4):
            await bus.write(HostAddress.ACTIVATIONS + 4 * i, memory.view("<u4")[i])
        for name, value in inputs.items():
            await bus.write_tensor(locations[name], value)
        await bus.start_and_wait()
        for bank, granule in places:
            index = bank * CONFIG.bank_granules + granule
            got = await bus.read(HostAddress.ACTIVATIONS + CONFIG.granule * index)
            assert got == golden.activations.reshape(-1).view("<u4")[index], (bank, granule)

    run(test, 10, 0.0)


def test_tables_are_written_over_the_bus_and_looked_up():
    """While a program runs they take no writes; a reset keeps them."""
    from nnloom.sim.golden import GoldenModel

    config = replace(CONFIG, tables=2)
    rng = np.random.default_rng(5)
    source = tensor(rng, "x", 5, 4, 11)
    layers = []
    for index, kind in enumerate(("depthwise", "rescaled", "average")):
        layer = random_layer(rng, kind, source, f"layer{index}")
        if index != 1:
            entries = rng.integers(0, 256, 256, np.uint8).tobytes()
            table = Table(entries=entries, scale=layer.output.scale, zero_point=layer.output.zero_point)
            layer = replace(layer, table=table)
        layers.append(layer)
        source = layer.output
    graph = LayerGraph("region", layers[0].inputs, (source,), tuple(layers))
    compiled = compile_region(config, graph)
    assert [d.table for d in compiled.descriptors] == [1, 0, 2]
    golden = GoldenModel(config, compiled.program, compiled.weights, compiled.tables)

    async def test(bus):
        await bus.load(compiled)
        assert await bus.register(Register.STATUS) == 0  # the last write has arrived
        await bus.reset()
        for trial in range(2):
            for name, value in random_inputs(rng, graph).items():
                await bus.write_tensor(compiled.plan.locations[name], value)
                golden.write_tensor(compiled.plan.locations[name], value)
            golden.run()
            await bus.write(HostAddress.REGISTERS + Register.CONTROL, 1)
            if trial:
                for i in range(100):
                    await bus.write(HostAddress.TABLES + 4 * i, 0)
            while not await bus.register(Register.STATUS) & Status.DONE:
                pass
            assert await bus.register(Register.STATUS) == Status.DONE | (ACCESS_ERROR if trial else 0)
            location = compiled.plan.locations[source.name]
            np.testing.assert_array_equal(await bus.read_tensor(location), golden.read_tensor(location))

    run(test, 3, 0.1, config=config)


def test_tables_are_refused_where_the_engine_has_fewer():
    descriptor = dict(
        kind=Kind.DENSE, last=1, narrow=1, interval=2, in_base=0, in_rows=1, in_row_bytes=4, in_row_stride=0,
        out_row_stride=0, out_base=16, n_oy=1, n_ox=1, n_g=1, n_ky=1, n_kx=1,
    )  # fmt: skip
    for tables in (0, 1, 2):
        config = replace(CONFIG, tables=tables)

        async def test(bus, config=config, tables=tables):
            for number in range(4):
                for i, word in enumerate(Descriptor(**descriptor, table=number).encode()):
                    await bus.write(HostAddress.PROGRAM + 4 * i, word)
                await bus.start_and_wait()
                status = await bus.register(Register.STATUS)
                assert status == Status.DONE | (0 if number <= tables else PROGRAM_ERROR)
                faults = not number <= tables
                try:
                    check_program(config, Descriptor(**descriptor, table=number).encode())
                except IllegalProgramError:
                    assert faults
                else:
                    assert not faults

        run(test, 4, 0.0, config=config)
