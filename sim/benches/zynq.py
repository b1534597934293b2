"""The cocotb test behind `nnloom.sim.pynq.SimulatedPynq`: a processor and its DDR, made of cocotbext-axi's models."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from multiprocessing.connection import Client

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiRam, AxiResp
from cocotbext.axi.axi_ram import AxiRamRead, AxiRamWrite

PERIOD_NS = 10
DDR_BYTES = 1 << 32
ACCESS_CYCLES = 50
"""Cycles that pass between two accesses of the processor."""


class _Guard:
    """Which bytes of DDR may be touched; anything else is answered with an error."""

    def __init__(self) -> None:
        self.allowed: list[range] = []
        self.faults: list[range] = []

    def check(self, address: int, length: int) -> None:
        """Raise if the access is not allowed; the bus models answer SLVERR."""
        if not any(address in r and address + length - 1 in r for r in self.allowed):
            raise ValueError(f"access to {address:#x} outside every buffer")
        if any(address < r.stop and r.start < address + length for r in self.faults):
            raise ValueError(f"fault at {address:#x}")


class _GuardedRead(AxiRamRead):
    guard: _Guard

    async def _read(self, address: int, length: int) -> bytes:
        self.guard.check(address, length)
        return await super()._read(address, length)


class _GuardedWrite(AxiRamWrite):
    guard: _Guard

    async def _write(self, address: int, data: bytes) -> None:
        self.guard.check(address, len(data))
        await super()._write(address, data)


class _Ddr(AxiRam):
    """AxiRam with a guard."""

    def __init__(self, bus: AxiBus, clock, reset) -> None:
        super().__init__(bus, clock, reset, reset_active_level=False, size=DDR_BYTES)
        self.guard = _Guard()
        # AxiRam makes its own two halves; these check first.
        self.read_if.__class__, self.write_if.__class__ = _GuardedRead, _GuardedWrite
        self.read_if.guard = self.write_if.guard = self.guard


def _stall(rng: random.Random, probability: float) -> Iterator[bool]:
    return (rng.random() < probability for _ in itertools.count())


class _Processor:
    """Obeys commands: a tuple of a name and arguments, answered by ("ok", value) or ("error", message)."""

    def __init__(self, dut) -> None:
        self.dut = dut
        self.written: list[tuple[int, int, int, int, bytes]] | None = None
        """None: nobody watches"""
        self.control = AxiLiteMaster(
            AxiLiteBus.from_prefix(dut, "s_axi"), dut.aclk, dut.aresetn, reset_active_level=False
        )
        self.ddr = _Ddr(AxiBus.from_prefix(dut, "m_axi"), dut.aclk, dut.aresetn)

    async def watch(self) -> None:
        """Take down the engine's writes from now on."""
        if self.written is None:
            self.written = []
            cocotb.start_soon(self._watch(self.written))

    async def _watch(self, written: list[tuple[int, int, int, int, bytes]]) -> None:
        dut, cycle = self.dut, 0
        size = len(dut.write_data) // 8
        while True:
            await RisingEdge(dut.aclk)
            cycle += 1
            if dut.write_valid.value:
                bank, granule, enable = (
                    int(port.value) for port in (dut.write_bank, dut.write_granule, dut.write_enable)
                )
                written.append((cycle, bank, granule, enable, int(dut.write_data.value).to_bytes(size, "little")))

    async def writes(self) -> list[tuple[int, int, int, int, bytes]]:
        """Cycle, bank, granule, enables and data of the writes since the last call."""
        found = list(self.written or [])
        if self.written:
            self.written.clear()
        return found

    async def reset(self) -> None:
        """Reset the fabric for a few cycles."""
        self.dut.aresetn.value = 0
        await ClockCycles(self.dut.aclk, 8)
        self.dut.aresetn.value = 1
        await ClockCycles(self.dut.aclk, 4)

    async def stalls(self, seed: int, probability: float) -> None:
        """From now on every channel pauses at random, with this probability in each cycle."""
        write, read = self.control.write_if, self.control.read_if
        channels = [write.aw_channel, write.w_channel, write.b_channel, read.ar_channel, read.r_channel]
        write, read = self.ddr.write_if, self.ddr.read_if
        channels += [write.aw_channel, write.w_channel, write.b_channel, read.ar_channel, read.r_channel]
        for index, channel in enumerate(channels):
            channel.clear_pause_generator()
            channel.pause = False
            if probability:
                channel.set_pause_generator(_stall(random.Random(seed * 100 + index), probability))

    async def write(self, offset: int, data: bytes) -> int:
        """Write over AXI4-Lite; the response. Parts of words are written with strobes."""
        await ClockCycles(self.dut.aclk, ACCESS_CYCLES)
        return int((await self.control.write(offset, data)).resp)

    async def read(self, offset: int) -> int:
        """Read a word over AXI4-Lite."""
        await ClockCycles(self.dut.aclk, ACCESS_CYCLES)
        answer = await self.control.read(offset, 4)
        if answer.resp != AxiResp.OKAY:
            raise ValueError(f"read of {offset:#x} was answered with {answer.resp.name}")
        return int.from_bytes(answer.data, "little")

    async def together(self, accesses: list[tuple[int, int | None]]) -> list[int | None]:
        """Accesses (offset, value to write or None to read) that are all under way at once; values read."""
        events = [
            self.control.init_read(offset, 4)
            if value is None
            else self.control.init_write(offset, value.to_bytes(4, "little"))
            for offset, value in accesses
        ]
        answers = []
        for event, (_, value) in zip(events, accesses, strict=True):
            await event.wait()
            answers.append(int.from_bytes(event.data.data, "little") if value is None else None)
        return answers

    async def ddr_write(self, address: int, data: bytes) -> None:
        """Write DDR behind the bus."""
        self.ddr.write(address, data)

    async def ddr_read(self, address: int, length: int) -> bytes:
        """Read DDR behind the bus."""
        return bytes(self.ddr.read(address, length))

    async def allow(self, ranges: list[tuple[int, int]]) -> None:
        """Bytes [start, stop) of DDR that may be accessed."""
        self.ddr.guard.allowed = [range(*r) for r in ranges]

    async def faults(self, ranges: list[tuple[int, int]]) -> None:
        """Bytes [start, stop) of DDR that answer with an error."""
        self.ddr.guard.faults = [range(*r) for r in ranges]

    async def idle(self, cycles: int) -> int:
        """Let time pass; the interrupt line."""
        await ClockCycles(self.dut.aclk, cycles)
        return int(self.dut.interrupt.value)


@cocotb.test()
async def serve(dut):
    """Obey commands until the other end closes."""
    Clock(dut.aclk, PERIOD_NS, unit="ns", impl="gpi").start()
    with Client(os.environ["NNLOOM_SERVER_SOCKET"], "AF_UNIX") as connection:
        processor = _Processor(dut)
        await processor.reset()
        while True:
            try:
                name, *arguments = connection.recv()
            except EOFError:
                return
            try:
                connection.send(("ok", await getattr(processor, name)(*arguments)))
            except (ValueError, AssertionError) as error:
                connection.send(("error", str(error)))
