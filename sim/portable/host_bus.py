"""The engine's buses in cocotb: drivers of the host bus and of Wishbone, a monitor of what the engine writes.

Needs nothing but cocotb: `nnloom export` puts a copy beside the Verilog. Signals are looked at on falling edges of the
clock, when they have settled, and driven behind rising ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, FallingEdge, First, RisingEdge, Timer

__all__ = ["PERIOD_NS", "EngineWrite", "HostBus", "WishboneHost", "WriteMonitor", "start_clock", "wait_idle"]

PERIOD_NS = 10
PATIENCE = 10_000
"""Cycles that a bus may take for one access."""


async def start_clock(dut: Any, *, period_ns: int = PERIOD_NS, clock: str = "clk", reset: str = "rst") -> None:
    """Start the clock and reset the design for a few cycles; the bus has to be idle."""
    # Low first: what is driven now is there at the first rising edge.
    Clock(getattr(dut, clock), period_ns, unit="ns", impl="gpi").start(start_high=False)
    getattr(dut, reset).value = 1
    await ClockCycles(getattr(dut, clock), 4)
    getattr(dut, reset).value = 0
    await ClockCycles(getattr(dut, clock), 2)


async def wait_idle(dut: Any, *, cycles: int = 50_000_000, period_ns: int = PERIOD_NS) -> None:
    """Wait until the engine is not busy; a start command that was just written counts.

    Raises
    ------
    TimeoutError
        After so many cycles.
    """
    await ClockCycles(dut.clk, 4)
    if int(dut.busy.value):
        done, limit = FallingEdge(dut.busy), Timer(cycles * period_ns, unit="ns")
        if await First(done, limit) is limit:
            raise TimeoutError(f"accelerator still busy after {cycles} cycles")
        await ClockCycles(dut.clk, 2)


async def _settled(clock: Any, signal: Any, what: str) -> None:
    """Wait for a falling edge with the signal high."""
    for _ in range(PATIENCE):
        await FallingEdge(clock)
        if signal.value == 1:
            return
    raise TimeoutError(f"{what} within {PATIENCE} cycles")


class HostBus:
    """Driver of the engine's own host bus, ports `req_*` and `rsp_*`: one access after the other, a write a cycle."""

    def __init__(self, dut: Any, *, clock: str = "clk") -> None:
        if not hasattr(dut, "req_valid"):
            raise AttributeError(f"{dut._name} has no port req_valid; give the driver of its own bus as host=")
        self._dut = dut
        self._clock = getattr(dut, clock)
        for name in ("req_valid", "req_write", "req_address", "req_data"):
            getattr(dut, name).value = 0
        dut.rsp_ready.value = 1

    async def _request(self, address: int, word: int, *, write: bool) -> None:
        dut = self._dut
        dut.req_valid.value, dut.req_write.value = 1, int(write)
        dut.req_address.value, dut.req_data.value = address, word
        await _settled(self._clock, dut.req_ready, "no request was taken")
        await RisingEdge(self._clock)

    async def write_words(self, addresses: Sequence[int], words: Sequence[int]) -> None:
        """Write 32-bit words, each to its byte address, in order."""
        for address, word in zip(addresses, words, strict=True):
            await self._request(address, word, write=True)
        self._dut.req_valid.value = 0

    async def read_words(self, addresses: Sequence[int]) -> list[int]:
        """Read 32-bit words."""
        words = []
        for address in addresses:
            await self._request(address, 0, write=False)
            self._dut.req_valid.value = 0
            await _settled(self._clock, self._dut.rsp_valid, "no read was answered")
            words.append(int(self._dut.rsp_data.value))
            await RisingEdge(self._clock)
        return words


class WishboneHost:
    """Driver of the Wishbone wrapper: ports `wb_*`, classic cycles."""

    def __init__(self, dut: Any, *, clock: str = "clk", prefix: str = "wb") -> None:
        self._clock = getattr(dut, clock)
        names = ("cyc", "stb", "we", "adr", "dat_w", "sel", "dat_r", "ack", "err")
        self._bus = {name: getattr(dut, f"{prefix}_{name}") for name in names}
        for name in names[:6]:
            self._bus[name].value = 0

    async def _cycle(self, address: int, word: int, *, write: bool, select: int = 15) -> int:
        bus = self._bus
        values = {"cyc": 1, "stb": 1, "we": int(write), "adr": address >> 2, "dat_w": word, "sel": select}
        for name, value in values.items():
            bus[name].value = value
        for _ in range(PATIENCE):
            await FallingEdge(self._clock)
            if bus["err"].value == 1:
                raise ValueError(f"Wishbone access to {address:#x} ended with err")
            if bus["ack"].value == 1:
                break
        else:
            raise TimeoutError(f"no end of a Wishbone cycle within {PATIENCE} cycles")
        word = 0 if write else int(bus["dat_r"].value)
        await RisingEdge(self._clock)
        bus["cyc"].value = bus["stb"].value = 0
        return word

    async def write_words(self, addresses: Sequence[int], words: Sequence[int]) -> None:
        """Write 32-bit words, each to its byte address, in order."""
        for address, word in zip(addresses, words, strict=True):
            await self._cycle(address, word, write=True)

    async def read_words(self, addresses: Sequence[int]) -> list[int]:
        """Read 32-bit words."""
        return [await self._cycle(address, 0, write=False) for address in addresses]


@dataclass(frozen=True)
class EngineWrite:
    """A write of the engine to its activation memory: of one granule or two neighbouring ones."""

    cycle: int
    """busy cycles before it, since the monitor was made"""
    bank: int
    granule: int
    """the lower one"""
    enable: int
    """bit 0: the lower granule is written; bit 1: the next one"""
    data: int
    """of both, lowest byte first; unknown bits are 0"""


class WriteMonitor:
    """Collects every write of the engine from the ports `write_*`; the oldest is first in `writes`."""

    def __init__(self, dut: Any, *, clock: str = "clk") -> None:
        self._dut = dut
        self._clock = getattr(dut, clock)
        self._cycle = 0
        self.writes: list[EngineWrite] = []
        cocotb.start_soon(self._watch())

    def take(self) -> list[EngineWrite]:
        """The writes since the last call."""
        writes, self.writes = self.writes, []
        return writes

    async def _watch(self) -> None:
        dut = self._dut
        while True:
            if dut.busy.value != 1:
                await RisingEdge(dut.busy)
            while True:
                await FallingEdge(self._clock)
                self._cycle += 1
                if dut.write_valid.value == 1:
                    write = EngineWrite(
                        cycle=self._cycle,
                        bank=int(dut.write_bank.value),
                        granule=int(dut.write_granule.value),
                        enable=int(dut.write_enable.value),
                        data=self._data(),
                    )
                    self.writes.append(write)
                if dut.busy.value != 1:
                    break

    def _data(self) -> int:
        # Bytes that are not written may be unknown.
        return int("".join(bit if bit == "1" else "0" for bit in str(self._dut.write_data.value)), 2)
