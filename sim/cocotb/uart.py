"""The serial line of a complete system in cocotb: the other end of its UART, as a port that nnloom's driver can use."""

from __future__ import annotations

from typing import Any

import cocotb
from cocotb.triggers import ClockCycles, FallingEdge, First

from nnloom.sim.portable.host_bus import PERIOD_NS

from .port import LinePort

__all__ = ["UartPort"]

IDLE_CYCLES = 2_000
"""Simulated cycles that one read without a byte lasts."""


class UartPort(LinePort):
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
        super().__init__(round(1e9 / (divisor * period_ns)))
        self._dut = dut
        self._divisor = divisor
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
        return self._take(size)

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
