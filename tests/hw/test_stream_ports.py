"""Streams into and out of the engine: tensors where a driver would put them, whatever pauses."""

from __future__ import annotations

import numpy as np
import pytest
from amaranth.sim import Simulator

from nnloom.arch.artifact import Region, TensorLocation
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import HostAddress, Register, Status
from nnloom.boards import get
from nnloom.hw.stream_ports import StreamPorts
from tests.artifacts import SMALL

SIXTEEN = AcceleratorConfig(activation_bytes=8192, weight_words=256)
COMPACT = get("icebreaker").config


def location(config: AcceleratorConfig, base: int, shape: tuple[int, int, int], *, packed=False, dtype="int8"):
    rows, columns, channels = shape
    pixel = channels if packed else -(-channels // config.granule) * config.granule
    return TensorLocation(
        name=f"t{base}",
        rows=rows,
        columns=columns,
        channels=channels,
        base=base,
        row_stride=-(-columns * pixel // config.granule),
        pixel_stride=pixel,
        shape=(1, *shape),
        dtype=dtype,
    )


def region(config: AcceleratorConfig, inputs: list, outputs: list) -> Region:
    """Tensors one after the other in memory; each given as (shape, options)."""
    places, base = [], 0
    for shape, options in (*inputs, *outputs):
        places.append(location(config, base, shape, **options))
        base += places[-1].granules(config)
    count = len(inputs)
    return Region(
        name="r", program_start=32, program_words=16, inputs=tuple(places[:count]), outputs=tuple(places[count:])
    )


class Harness:
    """The ports with a memory behind their bus, and an engine that moves input bytes to the outputs; all pause."""

    def __init__(self, config: AcceleratorConfig, mine: Region, pause: float, seed: int = 0) -> None:
        self.config, self.region, self.pause = config, mine, pause
        self.dut = StreamPorts(config, mine)
        self.rng = np.random.default_rng(seed)
        self.memory = self.rng.integers(0, 256, config.activation_bytes, np.uint8)
        self.starts: list[int] = []
        self.program_start = 0
        self.status = Status.DONE
        self.stored: list[list[np.ndarray]] = []
        self.commits: list[int] = []

    def stalled(self) -> bool:
        return bool(self.rng.random() < self.pause)

    def bytes_of(self, place: TensorLocation) -> list[np.ndarray]:
        size = self.config.bank_granules * self.config.granule
        starts = [bank * size + place.base * self.config.granule for bank in range(self.config.row_banks)]
        return [self.memory[s : s + place.bank_bytes(self.config, b)] for b, s in enumerate(starts)]

    def read(self, address: int) -> int:
        if address == HostAddress.REGISTERS + Register.STATUS:
            return int(self.status)
        assert address >> 28 == HostAddress.ACTIVATIONS >> 28
        place = address & 0x0FFF_FFFF
        return int.from_bytes(self.memory[place : place + 4].tobytes(), "little")

    def write(self, address: int, word: int) -> bool:
        """Returns whether a program starts."""
        if address == HostAddress.REGISTERS + Register.PROGRAM_START:
            self.program_start = word
            return False
        if address == HostAddress.REGISTERS + Register.CONTROL:
            assert word == 1
            self.starts.append(self.program_start)
            return True
        assert address >> 28 == HostAddress.ACTIVATIONS >> 28
        place = address & 0x0FFF_FFFF
        self.memory[place : place + 4] = np.frombuffer(word.to_bytes(4, "little"), np.uint8)
        self.commits.append(place)
        return False

    def compute(self) -> None:
        self.stored.append([bank.copy() for place in self.region.inputs for bank in self.bytes_of(place)])
        values = [place.unpack(self.config, self.bytes_of(place)) for place in self.region.inputs]
        for place, result in zip(self.region.outputs, results(self.region, values), strict=True):
            filled = [place.pack(self.config, np.full(place.shape, value, place.dtype)) for value in (0, 1)]
            for target, bank, *both in zip(self.bytes_of(place), place.pack(self.config, result), *filled, strict=True):
                # What the engine leaves in the padding is anything.
                noise = self.rng.integers(0, 256, len(bank), np.uint8)
                target[:] = np.where(both[0] == both[1], noise, bank)

    async def bus(self, ctx):
        host = self.dut.host
        while True:
            ctx.set(host.request.ready, int(not self.stalled()))
            taken = ctx.get(host.request.valid) and ctx.get(host.request.ready)
            payload = ctx.get(host.request.payload)
            await ctx.tick()
            if not taken:
                continue
            ctx.set(host.request.ready, 0)
            if payload.write:
                if self.write(payload.address, payload.data):
                    await ctx.tick().repeat(int(self.rng.integers(1, 4)))
                    ctx.set(self.dut.busy, 1)
                    self.compute()
                    await ctx.tick().repeat(int(self.rng.integers(1, 20)))
                    ctx.set(self.dut.busy, 0)
                continue
            while self.stalled():
                await ctx.tick()
            ctx.set(host.response.payload.data, self.read(payload.address))
            ctx.set(host.response.valid, 1)
            await ctx.tick().until(host.response.ready)
            ctx.set(host.response.valid, 0)

    async def feed(self, ctx, data: bytes):
        i = self.dut.i
        for byte in data:
            while self.stalled():
                await ctx.tick()
            ctx.set(i.payload, byte)
            ctx.set(i.valid, 1)
            await ctx.tick().until(i.ready)
            ctx.set(i.valid, 0)

    async def take(self, ctx, count: int) -> tuple[bytes, list[int]]:
        o, data, last = self.dut.o, bytearray(), []
        while len(data) < count:
            ready = int(not self.stalled())
            offered = ctx.get(o.valid), ctx.get(o.payload.data)
            ctx.set(o.ready, ready)
            # A ready changes nothing about the offer.
            assert (ctx.get(o.valid), ctx.get(o.payload.data)) == offered
            payload = ctx.get(o.payload)
            await ctx.tick()
            if offered[0] and ready:
                data.append(payload.data)
                last.append(payload.last)
        ctx.set(o.ready, 0)
        return bytes(data), last

    def run(self, *benches, background=()) -> None:
        sim = Simulator(self.dut)
        sim.add_clock(1e-6)
        for bench in benches:
            sim.add_testbench(bench)
        for bench in (self.bus, *background):
            sim.add_testbench(bench, background=True)
        sim.run()


def results(mine: Region, values: list[np.ndarray]) -> list[np.ndarray]:
    """Outputs of all input bytes in turn, each with its place added."""
    data = np.concatenate([v.reshape(-1).view(np.uint8) for v in values])
    outputs, position = [], 0
    for place in mine.outputs:
        index = np.arange(position, position + np.prod(place.shape))
        outputs.append((data[index % len(data)] + index).astype(np.uint8).view(place.dtype).reshape(place.shape))
        position += len(index)
    return outputs


CASES = {
    "pixels of whole granules": (SIXTEEN, [((5, 3, 8), {})], [((2, 2, 16), {})]),
    "padding, rows of one bank apart": (SIXTEEN, [((9, 2, 3), {})], [((1, 1, 10), {})]),
    "packed, several tensors": (
        SMALL,
        [((3, 5, 3), {"packed": True}), ((1, 1, 7), {})],
        [((2, 3, 2), {}), ((4, 1, 1), {})],
    ),
    "unsigned": (SMALL, [((2, 2, 5), {"dtype": "uint8"})], [((1, 3, 4), {"dtype": "uint8"})]),
    "rows within words": (COMPACT, [((9, 3, 1), {"packed": True})], [((6, 1, 1), {}), ((2, 3, 2), {})]),
    "one value": (COMPACT, [((1, 1, 1), {})], [((1, 1, 1), {})]),
}


@pytest.mark.parametrize("pause", [0.0, 0.5])
@pytest.mark.parametrize("case", CASES)
def test_tensors_lie_where_a_driver_puts_them(case, pause):
    config, inputs, outputs = CASES[case]
    mine = region(config, inputs, outputs)
    harness = Harness(config, mine, pause)
    rng = np.random.default_rng(5)
    runs = [[rng.integers(0, 256, place.shape, np.uint8).view(place.dtype) for place in mine.inputs] for _ in range(2)]

    async def feeding(ctx):
        for values in runs:
            await harness.feed(ctx, b"".join(v.tobytes() for v in values))

    async def taking(ctx):
        for values in runs:
            want = b"".join(v.tobytes() for v in results(mine, values))
            got, last = await harness.take(ctx, len(want))
            assert got == want and last == [0] * (len(want) - 1) + [1]
            assert ctx.get(harness.dut.failed) == 0

    harness.run(feeding, taking)
    assert harness.starts == [32, 32]
    for values, stored in zip(runs, harness.stored, strict=True):
        packed = [bank for place, v in zip(mine.inputs, values, strict=True) for bank in place.pack(config, v)]
        for want, got in zip(packed, stored, strict=True):
            np.testing.assert_array_equal(got, want)


def test_an_error_is_told_and_the_next_inference_clears_it():
    mine = region(SMALL, [((1, 1, 4), {})], [((1, 1, 2), {})])
    harness = Harness(SMALL, mine, 0.0)

    async def bench(ctx):
        for status in (Status.DONE | Status.ERROR, Status.DONE):
            harness.status = status
            await harness.feed(ctx, bytes(4))
            await harness.take(ctx, 2)
            assert ctx.get(harness.dut.failed) == bool(status & Status.ERROR)

    harness.run(bench)


def test_nothing_begins_while_disabled():
    mine = region(SMALL, [((1, 1, 4), {})], [((1, 1, 2), {})])
    harness = Harness(SMALL, mine, 0.0)

    async def bench(ctx):
        ctx.set(harness.dut.enable, 0)
        ctx.set(harness.dut.i.valid, 1)
        await ctx.tick().repeat(20)
        assert not harness.commits and not ctx.get(harness.dut.i.ready)
        ctx.set(harness.dut.enable, 1)
        await harness.feed(ctx, bytes(4))
        # One that has begun goes on.
        ctx.set(harness.dut.enable, 0)
        await harness.take(ctx, 2)

    harness.run(bench)
    assert harness.starts == [32]


def test_regions_in_parts_are_refused():
    from dataclasses import replace

    from nnloom.arch.artifact import Part

    part = Part(program_start=0, program_words=16, weights_start=0, weights_words=1)
    with pytest.raises(ValueError, match="runs in parts"):
        StreamPorts(SMALL, replace(region(SMALL, [((1, 1, 4), {})], [((1, 1, 2), {})]), parts=(part,)))
