"""The serial line of a complete system in cocotb: the other end of its UART, as a port that nnloom's driver can use."""

from __future__ import annotations

from collections import deque
from typing import Any

import cocotb
from cocotb.task import resume
from cocotb.triggers import ClockCycles, FallingEdge, First, Timer
from cocotb.utils import get_sim_time

from nnloom.sim.portable.host_bus import PERIOD_NS

__all__ = ["UartPort"]

IDLE_CYCLES = 2_000
"""Simulated cycles that one read without a byte lasts."""


class UartPort:
    """8 data bits, no parity, one stop bit, at `divisor` clock cycles a bit.

    Parameters
    ----------
    dut
        With the ports clk, rx (into the design) and tx.
    divisor
        Clock cycles of a bit.
    period_ns
        Period of the clock.
    """

    def __init__(self, dut: Any, *, divisor: int, period_ns: int = PERIOD_NS) -> None:
        self.baud = round(1e9 / (divisor * period_ns))
        """bit rate"""
        self._dut = dut
        self._divisor = divisor
        self._received: deque[int] = deque()
        dut.rx.value = 1
        cocotb.start_soon(self._receive())

    async def send(self, data: bytes) -> None:
        """Put bytes on the line."""
        for byte in data:
            for bit in (0, *(byte >> i & 1 for i in range(8)), 1):
                self._dut.rx.value = bit
                await ClockCycles(self._dut.clk, self._divisor)

    async def receive(self, size: int) -> bytes:
        """Up to `size` bytes that came; after `IDLE_CYCLES` without any, none."""
        if not self._received:
            await First(FallingEdge(self._dut.tx), ClockCycles(self._dut.clk, IDLE_CYCLES))
            await ClockCycles(self._dut.clk, 11 * self._divisor)
        return bytes(self._received.popleft() for _ in range(min(size, len(self._received))))

    async def _receive(self) -> None:
        clk, tx = self._dut.clk, self._dut.tx
        while True:
            if tx.value != 0:
                await FallingEdge(tx)
            await ClockCycles(clk, self._divisor // 2)
            value = 0
            for i in range(8):
                await ClockCycles(clk, self._divisor)
                value |= int(tx.value) << i
            await ClockCycles(clk, self._divisor)
            if tx.value == 1:
                self._received.append(value)

    # What `nnloom.runtime.devices.serial` needs of a port; within a bridge.

    @property
    def in_waiting(self) -> int:
        """Bytes that have come."""
        return len(self._received)

    def read(self, size: int) -> bytes:
        """As `receive`, for code in a bridge."""
        return resume(self.receive)(size)

    def write(self, data: bytes) -> int:
        """As `send`, for code in a bridge."""
        resume(self.send)(data)
        return len(data)

    def close(self) -> None:
        """Nothing to release."""

    @staticmethod
    def clock() -> float:
        """Simulated seconds."""
        return float(get_sim_time("sec"))

    def sleep(self, seconds: float) -> None:
        """Let simulated seconds pass, for code in a bridge."""

        async def wait() -> None:
            await Timer(max(1, round(seconds * 1e9)), unit="ns")

        resume(wait)()
