"""UART and host link: frames in, bus accesses out, whatever arrives on the line."""

import struct
import zlib

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.sim import Simulator

from nnloom.arch.isa import HostAddress, Register
from nnloom.arch.link import LinkStatus, decode_response, encode_read, encode_write, response_length
from nnloom.hw.host_link import HostLink
from nnloom.hw.uart import UartReceiver, UartTransmitter, baud_divisor

TIMEOUT = 200
DIVISOR = 6


def simulate(dut, *benches, background=()):
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    for bench in benches:
        sim.add_testbench(bench)
    for bench in background:
        sim.add_testbench(bench, background=True)
    sim.run()


class LinkHarness:
    """A host link with a memory behind its bus; streams and bus pause at random."""

    def __init__(self, seed: int, pause: float) -> None:
        self.dut = HostLink(timeout=TIMEOUT)
        self.rng = np.random.default_rng(seed)
        self.pause = pause
        self.memory: dict[int, int] = {}
        self.writes: list[tuple[int, int]] = []
        self.received = bytearray()

    def stalled(self) -> bool:
        return bool(self.rng.random() < self.pause)

    async def responder(self, ctx):
        host = self.dut.host
        while True:
            while self.stalled():
                await ctx.tick()
            ctx.set(host.request.ready, 1)
            while not ctx.get(host.request.valid):
                await ctx.tick()
            payload = ctx.get(host.request.payload)
            await ctx.tick()
            ctx.set(host.request.ready, 0)
            if payload.write:
                self.memory[payload.address] = payload.data
                self.writes.append((payload.address, payload.data))
                continue
            while self.stalled():
                await ctx.tick()
            ctx.set(host.response.payload.data, self.memory.get(payload.address, 0xDEADBEEF))
            ctx.set(host.response.valid, 1)
            while not ctx.get(host.response.ready):
                await ctx.tick()
            await ctx.tick()
            ctx.set(host.response.valid, 0)

    async def listener(self, ctx):
        tx = self.dut.transmit
        while True:
            while self.stalled():
                await ctx.tick()
            ctx.set(tx.ready, 1)
            while not ctx.get(tx.valid):
                await ctx.tick()
            self.received.append(ctx.get(tx.payload))
            await ctx.tick()
            ctx.set(tx.ready, 0)

    async def send(self, ctx, data: bytes) -> None:
        rx = self.dut.receive
        for byte in data:
            while self.stalled():
                await ctx.tick()
            ctx.set(rx.payload, byte)
            ctx.set(rx.valid, 1)
            while not ctx.get(rx.ready):
                await ctx.tick()
            await ctx.tick()
            ctx.set(rx.valid, 0)

    async def answer(self, ctx, count: int = 0, status: int = LinkStatus.OK):
        length = response_length(count, status)
        for _ in range(20_000):
            if len(self.received) >= length:
                break
            await ctx.tick()
        data, self.received = bytes(self.received), bytearray()
        assert len(data) == length, f"{len(data)} bytes of answer, not {length}"
        return decode_response(data)

    def run(self, bench) -> None:
        simulate(self.dut, bench, background=(self.responder, self.listener))


@pytest.mark.parametrize("pause", [0.0, 0.5])
def test_bursts_arrive_and_come_back(pause):
    harness = LinkHarness(1, pause)
    rng = np.random.default_rng(2)

    async def bench(ctx):
        for _ in range(6):
            words = rng.integers(0, 2**32, int(rng.integers(1, 30)), np.uint32)
            address = int(rng.integers(0, 2**24)) * 4
            await harness.send(ctx, encode_write(address, words))
            status, _ = await harness.answer(ctx)
            assert status == LinkStatus.OK
            await harness.send(ctx, encode_read(address, len(words)))
            status, got = await harness.answer(ctx, len(words))
            assert status == LinkStatus.OK
            np.testing.assert_array_equal(got, words)
        await harness.send(ctx, encode_write(64, np.zeros(0, np.uint32)))
        assert (await harness.answer(ctx))[0] == LinkStatus.OK

    harness.run(bench)


def test_wrong_crc_is_reported_and_starts_nothing():
    harness = LinkHarness(3, 0.2)
    control = HostAddress.REGISTERS + Register.CONTROL

    async def bench(ctx):
        good = encode_write(control, np.array([1], np.uint32))
        for position in range(1, len(good)):
            if position in (6, 7):
                continue  # another length: the rest is awaited, see the time-out test
            bad = bytearray(good)
            bad[position] ^= 0x10
            if position == 1:
                await harness.send(ctx, bytes(bad[:8]))
                assert (await harness.answer(ctx, 0, LinkStatus.BAD_OPCODE))[0] == LinkStatus.BAD_OPCODE
                await ctx.tick().repeat(TIMEOUT * 2)
                continue
            harness.writes.clear()
            await harness.send(ctx, bytes(bad))
            assert (await harness.answer(ctx, 0, LinkStatus.BAD_CRC))[0] == LinkStatus.BAD_CRC
            assert all(address != control for address, _ in harness.writes)
        await harness.send(ctx, good)
        assert (await harness.answer(ctx))[0] == LinkStatus.OK
        assert harness.writes[-1] == (control, 1)

    harness.run(bench)


def test_garbage_and_unfinished_requests_do_not_wedge_the_link():
    harness = LinkHarness(4, 0.0)
    rng = np.random.default_rng(5)

    async def bench(ctx):
        request = encode_write(0x100, np.arange(3, dtype=np.uint32))
        for _ in range(20):
            if rng.random() < 0.5:
                junk = bytes(rng.integers(0, 256, int(rng.integers(1, 12)), np.uint8))
            else:
                junk = request[: int(rng.integers(1, len(request)))]
            await harness.send(ctx, junk)
            await ctx.tick().repeat(TIMEOUT + 60)
            harness.received.clear()
            await harness.send(ctx, encode_read(0x100, 1))
            assert (await harness.answer(ctx, 1))[0] == LinkStatus.OK

    harness.run(bench)


def test_frames_are_what_the_declaration_says():
    words = np.array([1, 0x89ABCDEF], np.uint32)
    frame = encode_write(0x30000010, words)
    body = bytes([0xA5, 1]) + struct.pack("<IH", 0x30000010, 2) + words.astype("<u4").tobytes()
    assert frame == body + struct.pack("<I", zlib.crc32(body))
    with pytest.raises(ValueError, match="CRC"):
        decode_response(bytes([0x5A, 0, 1, 2, 3, 4]))
    with pytest.raises(ValueError, match="not a response"):
        decode_response(b"\x00" * 6)


class Loop(wiring.Component):
    """Transmitter into receiver."""

    def __init__(self) -> None:
        self.receiver = UartReceiver(divisor=DIVISOR)
        self.transmitter = UartTransmitter(divisor=DIVISOR)
        super().__init__({})

    def elaborate(self, platform):
        m = Module()
        m.submodules.receiver, m.submodules.transmitter = self.receiver, self.transmitter
        m.d.comb += self.receiver.rx.eq(self.transmitter.tx)
        return m


@pytest.mark.parametrize("pause", [0.0, 0.3])
def test_uart_carries_every_byte(pause):
    dut = Loop()
    rng = np.random.default_rng(6)
    data = [int(b) for b in rng.integers(0, 256, 60)] + [0x00, 0xFF, 0x55, 0xAA]
    seen = []

    async def send(ctx):
        octets = dut.transmitter.octets
        for byte in data:
            while rng.random() < pause:
                await ctx.tick().repeat(5)
            ctx.set(octets.payload, byte)
            ctx.set(octets.valid, 1)
            while not ctx.get(octets.ready):
                await ctx.tick()
            await ctx.tick()
            ctx.set(octets.valid, 0)

    async def receive(ctx):
        octets = dut.receiver.octets
        while len(seen) < len(data):
            while not ctx.get(octets.valid):
                await ctx.tick()
            # Back-pressure shorter than a byte loses nothing.
            await ctx.tick().repeat(1 + int(rng.integers(6 * DIVISOR)))
            assert ctx.get(octets.valid)
            seen.append(ctx.get(octets.payload))
            ctx.set(octets.ready, 1)
            await ctx.tick()
            ctx.set(octets.ready, 0)

    simulate(dut, send, receive)
    assert seen == data


def test_uart_flags_framing_errors_glitches_and_overflow():
    dut = UartReceiver(divisor=DIVISOR)
    events = {"error": 0, "overflow": 0}

    async def watch(ctx):
        async for _, _, error, overflow in ctx.tick().sample(dut.framing_error, dut.overflow):
            events["error"] += error
            events["overflow"] += overflow

    async def line(ctx, bits):
        for bit in bits:
            ctx.set(dut.rx, bit)
            await ctx.tick().repeat(DIVISOR)

    async def bench(ctx):
        await line(ctx, [1, 1])
        ctx.set(dut.rx, 0)  # a glitch: too short for a start bit
        await ctx.tick()
        await line(ctx, [1] * 12)
        assert not ctx.get(dut.octets.valid)
        await line(ctx, [0, *[1, 0] * 4, 0, 1, 1])  # stop bit low
        assert events["error"] == 1 and not ctx.get(dut.octets.valid)
        await line(ctx, [0, *[1, 0] * 4, 1, 1])
        assert ctx.get(dut.octets.valid) and ctx.get(dut.octets.payload) == 0x55
        await line(ctx, [0, *[0, 1] * 4, 1, 1])  # nobody took the first
        assert events["overflow"] == 1

    simulate(dut, bench, background=(watch,))


def test_baud_rates_that_cannot_be_made_are_refused():
    assert baud_divisor(80e6, 1_000_000) == 80
    with pytest.raises(ValueError, match="within 2 %"):
        baud_divisor(25e6, 3_000_000 * 4)
