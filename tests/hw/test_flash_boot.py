"""Loading from the flash: the reader against the data sheet, the image on a host bus that pauses, the registers."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
import pytest
from amaranth.hdl import Module, ResetInserter, Signal
from amaranth.sim import Simulator

from nnloom.arch.artifact import EngineImage
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.content import content_words, engine_content
from nnloom.arch.errors import ConfigError
from nnloom.arch.flash_image import (
    BOOT_BASE,
    BOOT_MAGIC,
    FLASH_MAGIC,
    HEADER_WORDS,
    BootOutcome,
    BootRegister,
    Burst,
    FlashImage,
    flash_image,
    largest_flash_words,
)
from nnloom.arch.isa import HostAddress, Register, weight_stride
from nnloom.boards import get
from nnloom.hw.flash_boot import BootBus, FlashReader
from nnloom.sim.flash_model import FlashCommand, FlashModel, FlashViolation
from tests.artifacts import SMALL

CLOCK_HZ = 2e6
PERIOD = 1e9 / CLOCK_HZ
OFFSET = 0x1200
PLAIN = dataclasses.replace(SMALL, tables=0)


def small_image(config: AcceleratorConfig = PLAIN, seed: int = 0) -> FlashImage:
    """Some words for each kind of memory; one whose runs have gaps."""
    rng = np.random.default_rng(seed)

    def words(count: int) -> np.ndarray:
        return rng.integers(0, 1 << 32, count, np.uint64).astype(np.uint32)

    bursts = (
        Burst(HostAddress.WEIGHTS + weight_stride(config), words(6), 3, weight_stride(config) // 4 - 2),
        Burst(HostAddress.PROGRAM + 64, words(2)),
    )
    return FlashImage(config.hash, content_words(b"some", bytes([seed])), bursts)


def in_flash(data: bytes) -> bytes:
    return b"\xff" * OFFSET + data


class Harness:
    """`BootBus` between a model of the flash and a memory whose bus pauses at random."""

    def __init__(self, content: bytes, *, pause: float = 0.0, seed: int = 0, **options) -> None:
        self.dut = BootBus(PLAIN, clock_hz=CLOCK_HZ, offset=OFFSET)
        self.reset = Signal()
        self.flash = FlashModel(content, **options)
        self.rng = np.random.default_rng(seed)
        self.pause = pause
        self.writes: list[tuple[int, int]] = []
        self.reads: list[int] = []
        self.busy_cycles = 0

    async def wires(self, ctx):
        """The flash at its pins; what it does not drive is random."""
        pins, cycle = self.dut.flash, 0
        while True:
            values = [ctx.get(p) for p in (pins.cs_n, pins.sck, pins.mosi)]
            time = cycle * PERIOD
            self.flash.step(time, cs_n=values[0], sck=values[1], mosi=values[2])
            driven = self.flash.output(time + 0.9 * PERIOD)
            ctx.set(pins.miso, int(self.rng.integers(2)) if driven is None else driven)
            await ctx.tick()
            cycle += 1

    async def memory(self, ctx):
        bus = self.dut.bus
        while True:
            ctx.set(bus.request.ready, int(self.rng.random() >= self.pause))
            ready = ctx.get(bus.request.valid) and ctx.get(bus.request.ready)
            payload = ctx.get(bus.request.payload)
            await ctx.tick()
            if not ready:
                continue
            if payload.write:
                self.writes.append((payload.address, payload.data))
                continue
            self.reads.append(payload.address)
            ctx.set(bus.request.ready, 0)
            ctx.set(bus.response.payload.data, payload.address ^ 0x5A5A)
            ctx.set(bus.response.valid, 1)
            await ctx.tick().until(bus.response.ready)
            ctx.set(bus.response.valid, 0)

    async def wait(self, ctx):
        while ctx.get(self.dut.busy):
            await ctx.tick()
            self.busy_cycles += 1

    async def read(self, ctx, address: int) -> int:
        return await self._access(ctx, address, None)

    async def write(self, ctx, address: int, data: int) -> None:
        await self._access(ctx, address, data)

    async def _access(self, ctx, address, data):
        link = self.dut.link
        ctx.set(link.request.payload, {"write": int(data is not None), "address": address, "data": data or 0})
        ctx.set(link.request.valid, 1)
        await ctx.tick().until(link.request.ready)
        ctx.set(link.request.valid, 0)
        if data is not None:
            return None
        ctx.set(link.response.ready, 1)
        (answer,) = await ctx.tick().sample(link.response.payload.data).until(link.response.valid)
        ctx.set(link.response.ready, 0)
        return answer

    async def registers(self, ctx) -> list[int]:
        return [await self.read(ctx, BOOT_BASE + register) for register in BootRegister]

    def run(self, bench) -> None:
        m = Module()
        m.submodules.dut = ResetInserter(self.reset)(self.dut)
        sim = Simulator(m)
        sim.add_clock(PERIOD * 1e-9)
        sim.add_testbench(bench)
        sim.add_testbench(self.wires, background=True)
        sim.add_testbench(self.memory, background=True)
        sim.run()


def expected(image: FlashImage) -> list[tuple[int, int]]:
    return [(int(a), int(w)) for burst in image.bursts for a, w in zip(burst.addresses(), burst.words, strict=True)]


@pytest.mark.parametrize("pause", [0.0, 0.6])
def test_an_image_is_written_and_named(pause):
    image = small_image()
    harness = Harness(in_flash(image.encode() + b"what is behind"), pause=pause, powered_down=True)

    async def bench(ctx):
        # A request that comes meanwhile waits.
        assert await harness.registers(ctx) == [BOOT_MAGIC, BootOutcome.LOADED, *image.content]
        assert harness.writes == expected(image)
        assert await harness.read(ctx, HostAddress.REGISTERS + Register.MAGIC) == Register.MAGIC ^ 0x5A5A
        await harness.write(ctx, HostAddress.ACTIVATIONS, 5)
        assert (await harness.registers(ctx))[2:] == list(image.content)

    harness.run(bench)
    assert harness.flash.commands == [FlashCommand.RELEASE_POWER_DOWN, FlashCommand.FAST_READ, FlashCommand.FAST_READ]
    assert len(harness.writes) == len(expected(image)) + 1


def changed(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]


def _cases():
    image = small_image()
    data = image.encode()
    words = sum(3 + len(burst.words) for burst in image.bursts) + 1
    yield "erased", b"", BootOutcome.EMPTY
    yield "zeros", bytes(64), BootOutcome.EMPTY
    yield "magic", changed(data, 3), BootOutcome.EMPTY
    other = dataclasses.replace(PLAIN, weight_words=128)
    yield "configuration", small_image(other).encode(), BootOutcome.OTHER_CONFIGURATION
    yield "shorter", data[:8] + (words - 2).to_bytes(4, "little") + data[12:], BootOutcome.DAMAGED
    yield "content", changed(data, 13), BootOutcome.DAMAGED
    yield "address", changed(data, 4 * HEADER_WORDS + 3), BootOutcome.DAMAGED
    yield "word", changed(data, len(data) - 6), BootOutcome.DAMAGED
    yield "crc", changed(data, len(data) - 1), BootOutcome.DAMAGED


@pytest.mark.parametrize(("data", "outcome"), [case[1:] for case in _cases()], ids=[case[0] for case in _cases()])
def test_what_is_not_a_whole_image_for_the_engine_changes_nothing(data, outcome):
    harness = Harness(in_flash(data))

    async def bench(ctx):
        assert await harness.registers(ctx) == [BOOT_MAGIC, outcome, 0, 0]
        assert await harness.read(ctx, HostAddress.REGISTERS) == 0x5A5A

    harness.run(bench)
    assert harness.writes == []


def test_a_flash_that_answers_in_two_ways_names_nothing():
    """Between the check and the writing."""
    image = small_image()
    harness = Harness(in_flash(image.encode()))

    async def bench(ctx):
        while len(harness.flash.commands) < 3:
            await ctx.tick()
        harness.flash.content[OFFSET + len(image.encode()) - 8] ^= 1
        assert await harness.registers(ctx) == [BOOT_MAGIC, BootOutcome.DAMAGED, 0, 0]

    harness.run(bench)
    assert harness.writes[:-1] == expected(image)[:-1] != []


def test_resets_in_the_middle():
    """At any moment: the flash sees no violation, and the image is written as a whole afterwards."""
    image = small_image()
    harness = Harness(in_flash(image.encode()), pause=0.3)

    async def bench(ctx):
        for cycles in (3, 150, 400, 1500):
            await ctx.tick().repeat(cycles)
            ctx.set(harness.reset, 1)
            await ctx.tick()
            ctx.set(harness.reset, 0)
            harness.writes.clear()
        assert await harness.registers(ctx) == [BOOT_MAGIC, BootOutcome.LOADED, *image.content]
        assert harness.writes == expected(image)

    harness.run(bench)


def test_the_content_is_what_was_written_last():
    image = small_image()
    harness = Harness(in_flash(image.encode()))

    async def bench(ctx):
        await harness.wait(ctx)
        for window in (HostAddress.PROGRAM, HostAddress.WEIGHTS, HostAddress.TABLES):
            for index, value in enumerate((0x1234_5678, 0x9ABC_DEF1)):
                await harness.write(ctx, BOOT_BASE + BootRegister.CONTENT_0 + 4 * index, value)
            for other in (HostAddress.ACTIVATIONS, HostAddress.REGISTERS + Register.CONTROL):
                await harness.write(ctx, other, 1)
            # STATUS is the flash's whatever happens later; writes to it and to ID do nothing.
            for register in (BootRegister.ID, BootRegister.STATUS):
                await harness.write(ctx, BOOT_BASE + register, 77)
            assert await harness.registers(ctx) == [BOOT_MAGIC, BootOutcome.LOADED, 0x1234_5678, 0x9ABC_DEF1]
            await harness.read(ctx, window)
            assert (await harness.registers(ctx))[2:] == [0x1234_5678, 0x9ABC_DEF1]
            await harness.write(ctx, window + 8, 1)
            assert (await harness.registers(ctx))[2:] == [0, 0]

    harness.run(bench)


@pytest.mark.parametrize("clock_hz", [30e6, 41e6])
def test_reading_that_pauses_and_begins_anew(clock_hz):
    rng = np.random.default_rng(int(clock_hz))
    content = rng.integers(0, 256, 64, np.uint8).tobytes()
    dut = FlashReader(clock_hz=clock_hz, offset=5)
    flash = FlashModel(content, powered_down=True)
    period = 1e9 / clock_hz

    async def wires(ctx):
        cycle = 0
        while True:
            values = {name: ctx.get(getattr(dut.pins, name)) for name in ("cs_n", "sck", "mosi")}
            flash.step(cycle * period, **values)
            driven = flash.output((cycle + 0.5) * period)
            ctx.set(dut.pins.miso, int(rng.integers(2)) if driven is None else driven)
            await ctx.tick()
            cycle += 1

    async def bench(ctx):
        for _ in range(3):
            ctx.set(dut.read, 1)
            for byte in content[5 : 5 + rng.integers(0, 4)]:
                while rng.random() < 0.5:
                    # An offer neither waits for the taker nor changes.
                    ctx.set(dut.octets.ready, 1)
                    valid = ctx.get(dut.octets.valid)
                    ctx.set(dut.octets.ready, 0)
                    assert ctx.get(dut.octets.valid) == valid and (not valid or ctx.get(dut.octets.payload) == byte)
                    await ctx.tick().repeat(int(rng.integers(1, 40)))
                ctx.set(dut.octets.ready, 1)
                (got,) = await ctx.tick().sample(dut.octets.payload).until(dut.octets.valid)
                ctx.set(dut.octets.ready, 0)
                assert got == byte
            await ctx.tick().repeat(int(rng.integers(1, 30)))
            ctx.set(dut.read, 0)
            await ctx.tick().repeat(int(rng.integers(1, 3)))

    m = Module()
    m.submodules.dut = dut
    sim = Simulator(m)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.add_testbench(wires, background=True)
    sim.run()
    assert flash.commands.count(FlashCommand.FAST_READ) >= 2


def drive(flash: FlashModel, data: bytes, *, half: float = 20, start: float = 0, count: int = 0) -> tuple[float, bytes]:
    """Send bytes, then clock so many in; the time of the end, the chip still selected."""
    time = start
    flash.step(time, cs_n=0, sck=0, mosi=0)
    time += 20
    bits = [byte >> (7 - i) & 1 for byte in data + bytes(count) for i in range(8)]
    got = []
    for bit in bits:
        flash.step(time + 1, cs_n=0, sck=0, mosi=bit)
        time += half
        got.append(flash.output(time - 0.1))
        flash.step(time, cs_n=0, sck=1, mosi=bit)
        time += half
        flash.step(time, cs_n=0, sck=0, mosi=bit)
    octets = [got[i : i + 8] for i in range(8 * len(data), len(got), 8)]
    return time, bytes(int("".join(map(str, octet)), 2) for octet in octets)


def test_the_model_answers_as_the_data_sheet_says():
    content = bytes(range(100))
    for command, answer in (
        (b"\x03\0\0\x10", content[16:19]),
        (b"\x0b\0\0\x10\0", content[16:19]),
        (b"\x9f", b"\xef\x40\x18"),
        (b"\x03\xff\xff\xff", b"\xff" + content[:2]),
    ):
        assert drive(FlashModel(content), command, count=3)[1] == answer


@pytest.mark.parametrize(
    ("message", "data", "half", "options"),
    [
        ("does not know", b"\x77", 20, {}),
        ("power-down state", b"\x03\0\0\0", 20, {"powered_down": True}),
        ("too shortly", b"\x0b\0\0\0\0", 3, {}),
        ("too fast", b"\x03\0\0\0\0\0", 9, {}),
    ],
)
def test_the_model_complains(message, data, half, options):
    with pytest.raises(FlashViolation, match=message):
        drive(FlashModel(b"", **options), data, half=half)


def test_the_model_complains_of_times_between_commands():
    def deselected_at(flash, time):
        flash.step(time, cs_n=1, sck=0, mosi=0)

    flash = FlashModel(b"")
    end, _ = drive(flash, b"\x03\0")
    deselected_at(flash, end + 10)
    assert flash.aborted == 1
    flash = FlashModel(b"")
    end, _ = drive(flash, b"\x9f", count=1)
    deselected_at(flash, end + 10)
    with pytest.raises(FlashViolation, match="deselected for 20"):
        drive(flash, b"\x9f", start=end + 30)
    flash = FlashModel(b"", powered_down=True)
    end, _ = drive(flash, b"\xab")
    deselected_at(flash, end)
    with pytest.raises(FlashViolation, match="before the flash is awake"):
        drive(flash, b"\x9f", start=end + 2000)
    flash = FlashModel(b"")
    flash.step(0, cs_n=0, sck=0, mosi=0)
    with pytest.raises(FlashViolation, match="right after the selection"):
        flash.step(2, cs_n=0, sck=1, mosi=0)
    flash = FlashModel(b"")
    flash.step(0, cs_n=0, sck=0, mosi=0)
    with pytest.raises(FlashViolation, match="with the edge that takes them"):
        flash.step(20, cs_n=0, sck=1, mosi=1)


def test_images_hold_what_a_driver_would_load():
    config = get("icebreaker").config
    rng = np.random.default_rng(3)
    weights = rng.integers(0, 256, (5, config.weight_word_bytes), np.uint8)
    image = EngineImage(config, np.zeros(0, np.uint32), weights)
    data = flash_image(image).encode()
    assert data[:4] == FLASH_MAGIC.to_bytes(4, "little") and data[-4:] == zlib.crc32(data[:-4]).to_bytes(4, "little")
    back = FlashImage.decode(data + b"behind")
    assert back.config_hash == config.hash and back.content == engine_content(image)
    stored = dict(expected(back))
    for index, word in enumerate(weights):
        address = HostAddress.WEIGHTS + index * weight_stride(config)
        assert b"".join(stored.pop(address + 4 * i).to_bytes(4, "little") for i in range(3)) == word.tobytes()
    assert not stored
    for wrong in (data[:-1], b"", changed(data, 30), b"\xff" * 40):
        with pytest.raises(ValueError, match="flash image"):
            FlashImage.decode(wrong)
    too_many = np.zeros((config.weight_words + 1, config.weight_word_bytes), np.uint8)
    with pytest.raises(ConfigError, match="runs in parts"):
        flash_image(EngineImage(config, np.zeros(0, np.uint32), too_many))
    full = EngineImage(config, np.zeros(0, np.uint32), too_many[1:])
    assert len(flash_image(full).encode()) // 4 - HEADER_WORDS - 1 <= largest_flash_words(config)


def test_contents_differ_in_every_piece():
    rng = np.random.default_rng(1)
    base = EngineImage(SMALL, np.zeros(16, np.uint32), rng.integers(0, 256, (2, SMALL.weight_word_bytes), np.uint8))
    others = (
        dataclasses.replace(base, config=PLAIN),
        dataclasses.replace(base, program=np.ones(16, np.uint32)),
        dataclasses.replace(base, weights=base.weights ^ 1),
        dataclasses.replace(base, tables=np.zeros((1, 256), np.uint8)),
    )
    contents = {engine_content(image) for image in (base, *others)}
    assert len(contents) == 5 and all(all(word & 1 for word in content) for content in contents)
