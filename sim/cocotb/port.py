"""A line to the host of a complete system, as a port that nnloom's driver can use within a bridge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque

from cocotb.task import resume
from cocotb.triggers import Timer
from cocotb.utils import get_sim_time

__all__ = ["LinePort"]


class LinePort(ABC):
    """What `nnloom.runtime.devices.serial` needs of a port; methods that are no coroutines are for code in a bridge.

    Parameters
    ----------
    baud
        Bit rate of the line.
    """

    def __init__(self, baud: int) -> None:
        self.baud = baud
        """bit rate"""
        self._received: deque[int] = deque()

    @abstractmethod
    async def send(self, data: bytes) -> None:
        """Put bytes on the line."""

    @abstractmethod
    async def receive(self, size: int) -> bytes:
        """Up to `size` bytes that came; after a while without any, none."""

    def _take(self, size: int) -> bytes:
        return bytes(self._received.popleft() for _ in range(min(size, len(self._received))))

    @property
    def in_waiting(self) -> int:
        """Bytes that have come."""
        return len(self._received)

    def read(self, size: int) -> bytes:
        """As `receive`."""
        return resume(self.receive)(size)

    def write(self, data: bytes) -> int:
        """As `send`."""
        resume(self.send)(data)
        return len(data)

    def close(self) -> None:  # noqa: B027
        """Nothing to release."""

    @staticmethod
    def clock() -> float:
        """Simulated seconds."""
        return float(get_sim_time("sec"))

    def sleep(self, seconds: float) -> None:
        """Let simulated seconds pass."""

        async def wait() -> None:
            await Timer(max(1, round(seconds * 1e9)), unit="ns")

        resume(wait)()
