"""Two managers on one memory, and words of a host bus as accesses to it, under random stalls."""

from __future__ import annotations

import random

import numpy as np
import pytest

from nnloom.arch.memory_system import SystemAddress, checksum
from nnloom.hw.memory_system import AxiArbiter, MemoryWindow
from tests.hw.benches import simulate

SIZE = 4096
OKAY, SLVERR = 0, 2


class Memory:
    """The other end of an AXI bus: 64-bit beats, any number of reads under way, one write; some addresses fail."""

    def __init__(self, bus, seed: int, stall: float, faults: range = range(0)) -> None:
        self.bus, self.random, self.stall, self.faults = bus, random.Random(seed), stall, faults
        self.bytes = bytearray(random.Random(99).randbytes(SIZE))
        self.most_reads = 0

    def _go(self) -> bool:
        return self.random.random() >= self.stall

    async def run(self, ctx):
        bus, reads, write = self.bus, [], None
        answering, failed, offered = False, False, False
        while True:
            ctx.set(bus.arready, self._go())
            ctx.set(bus.awready, write is None and not answering and self._go())
            ctx.set(bus.wready, write is not None and self._go())
            ctx.set(bus.bvalid, answering)
            ctx.set(bus.bresp, SLVERR if failed else OKAY)
            offered = offered or bool(reads and self._go())
            ctx.set(bus.rvalid, offered)
            if offered:
                address, left = reads[0]
                ctx.set(bus.rdata, int.from_bytes(self.bytes[address : address + 8], "little"))
                ctx.set(bus.rresp, SLVERR if address in self.faults else OKAY)
                ctx.set(bus.rlast, left == 1)
            await ctx.delay(0.4e-6)  # what the managers say to that
            asked = ctx.get(bus.arvalid & bus.arready), ctx.get(bus.araddr), ctx.get(bus.arlen)
            read = ctx.get(bus.rvalid & bus.rready)
            begun = ctx.get(bus.awvalid & bus.awready), ctx.get(bus.awaddr), ctx.get(bus.awlen)
            word = ctx.get(bus.wvalid & bus.wready), ctx.get(bus.wdata), ctx.get(bus.wstrb), ctx.get(bus.wlast)
            answered = ctx.get(bus.bvalid & bus.bready)
            await ctx.tick()
            if read:
                offered = False
                address, left = reads.pop(0)
                if left > 1:
                    reads.insert(0, (address + 8, left - 1))
            if asked[0]:
                reads.append((asked[1], asked[2] + 1))
                self.most_reads = max(self.most_reads, len(reads))
            if word[0]:
                address, left = write
                failed = failed or address in self.faults
                for i in range(8):
                    if word[2] >> i & 1 and address not in self.faults:
                        self.bytes[address + i] = word[1] >> 8 * i & 0xFF
                assert word[3] == (left == 1)
                write, answering = ((address + 8, left - 1), False) if left > 1 else (None, True)
            if begun[0]:
                write, failed = (begun[1], begun[2] + 1), False
            if answered:
                answering = False


class Manager:
    """Reads bursts, up to four under way, and writes a quarter of its own, one burst at a time."""

    def __init__(self, port, seed: int, half: int, reads: int) -> None:
        self.port, self.random, self.half, self.count = port, random.Random(seed), half, reads
        self.reads: list[tuple[int, int]] = []
        self.got: list[int] = []
        self.written: dict[int, int] = {}

    async def ask(self, ctx):
        """Bursts of the half that nobody writes."""
        port = self.port
        for _ in range(self.count):
            while len(self.reads) - self.ended >= 4 or self.random.random() < 0.3:
                await ctx.tick()
            beats = self.random.randint(1, 16)
            address = 8 * self.random.randint(0, SIZE // 16 - beats)
            self.reads.append((address, beats))
            ctx.set(port.arvalid, 1)
            ctx.set(port.araddr, address)
            ctx.set(port.arlen, beats - 1)
            await ctx.tick().until(port.arready)
            ctx.set(port.arvalid, 0)

    ended = 0

    async def take(self, ctx):
        """All that was asked for."""
        port = self.port
        while self.ended < self.count:
            ctx.set(port.rready, self.random.random() < 0.7)
            _, _, valid, ready, data, last = await ctx.tick().sample(port.rvalid, port.rready, port.rdata, port.rlast)
            if valid and ready:
                self.got.append(data)
                self.ended += last
        ctx.set(port.rready, 0)

    async def write(self, ctx):
        """Bursts to where this manager alone writes."""
        port = self.port
        for _ in range(25):
            beats = self.random.randint(1, 8)
            address = SIZE // 2 + self.half * SIZE // 4 + 8 * self.random.randint(0, SIZE // 32 - beats)
            ctx.set(port.awvalid, 1)
            ctx.set(port.awaddr, address)
            ctx.set(port.awlen, beats - 1)
            await ctx.tick().until(port.awready)
            ctx.set(port.awvalid, 0)
            for beat in range(beats):
                value = self.random.getrandbits(64)
                self.written[address + 8 * beat] = value
                ctx.set(port.wvalid, 1)
                ctx.set(port.wdata, value)
                ctx.set(port.wstrb, 0xFF)
                ctx.set(port.wlast, beat == beats - 1)
                await ctx.tick().until(port.wready)
            ctx.set(port.wvalid, 0)
            ctx.set(port.bready, 1)
            await ctx.tick().until(port.bvalid)
            ctx.set(port.bready, 0)


@pytest.mark.parametrize("stall", [0, 0.5])
def test_both_managers_read_and_write_what_is_theirs(stall):
    dut = AxiArbiter(address_width=32, data_width=64)
    memory = Memory(dut.bus, 1, stall)
    before = bytes(memory.bytes)
    managers = [Manager(dut.first, 2, 0, 20), Manager(dut.second, 3, 1, 50)]
    benches = [bench for m in managers for bench in (m.ask, m.take, m.write)]
    simulate(dut, *benches, background=[memory.run])
    for manager in managers:
        want = [
            int.from_bytes(before[address + 8 * beat : address + 8 * beat + 8], "little")
            for address, beats in manager.reads
            for beat in range(beats)
        ]
        assert manager.got == want and len(manager.reads) == manager.count
        for address, value in manager.written.items():
            assert int.from_bytes(memory.bytes[address : address + 8], "little") == value
    assert memory.most_reads > 1  # where the other one does not wait, reads overlap


@pytest.mark.parametrize("stall", [0, 0.6])
def test_a_window_reads_and_writes_words_in_order(stall):
    dut = MemoryWindow(size=SIZE, data_width=64)
    memory = Memory(dut.axi, 4, stall, faults=range(1024, 1032))
    rng = random.Random(5)
    faults = [0, 0]

    async def count(ctx):
        while True:
            _, _, fault = await ctx.tick().sample(dut.fault)
            faults[0] += fault

    async def host(ctx):
        words = np.frombuffer(bytes(memory.bytes), "<u4").tolist()
        request, response = dut.host.request, dut.host.response
        for _ in range(120):
            beyond = rng.random() < 0.1
            index = rng.choice([256, 257, rng.randrange(64)])
            fails = beyond or index in (256, 257)
            faults[1] += fails
            address = SystemAddress.MEMORY + 4 * index + (SIZE if beyond else 0)
            write, value = rng.random() < 0.5, rng.getrandbits(32)
            ctx.set(request.payload.address, address)
            ctx.set(request.payload.write, write)
            ctx.set(request.payload.data, value)
            ctx.set(request.valid, 1)
            await ctx.tick().until(request.ready)
            ctx.set(request.valid, 0)
            if write:
                if not fails:
                    words[index] = value
                    assert memory.bytes[4 * index : 4 * index + 4] == value.to_bytes(4, "little")  # already there
                continue
            ctx.set(response.ready, 1)
            (got,) = await ctx.tick().sample(response.payload.data).until(response.valid)
            ctx.set(response.ready, 0)
            assert got == (0 if fails else words[index])

    simulate(dut, host, background=[memory.run, count])
    assert faults[0] == faults[1] > 10


def test_the_checksum_is_that_of_its_definition():
    rng = np.random.default_rng(6)
    for beat_words in (1, 2, 4):
        words = rng.integers(0, 1 << 32, 44 * beat_words, dtype=np.uint32)
        value = 0
        for beat in words.reshape(-1, beat_words).tolist():
            value = (value << 1 | value >> 31) & 0xFFFF_FFFF
            for i, word in enumerate(beat):
                value ^= (word << 8 * i | word >> (32 - 8 * i)) & 0xFFFF_FFFF if i else word
        assert checksum(words, beat_words) == value
        for index in range(len(words)):
            other = words.copy()
            other[index] ^= 1 << index % 32
            assert checksum(other, beat_words) != value
