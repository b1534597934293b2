"""A board behind a serial line: `nnloom.arch.link` requests over any byte stream."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.errors import DeviceError
from nnloom.arch.link import (
    RESPONSE_SYNC,
    LinkStatus,
    decode_response,
    encode_read,
    encode_write,
    response_length,
)

from .base import HostBusDevice

__all__ = ["ByteStream", "SerialDevice", "open_serial"]

BURST_WORDS = 1024
RETRIES = 3


class ByteStream(Protocol):
    """What the driver needs of a serial port; pyserial's `Serial` has it."""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, fewer after a time-out."""

    def write(self, data: bytes) -> int | None:
        """Send all of `data`."""

    def reset_input_buffer(self) -> None:
        """Forget what was received."""

    def close(self) -> None:
        """Close the port."""


class SerialDevice(HostBusDevice):
    """Driver of a board; requests that fail are sent again, at most `RETRIES` times."""

    def __init__(self, stream: ByteStream) -> None:
        super().__init__()
        self._stream = stream

    def close(self) -> None:
        """Close the port."""
        self._stream.close()

    def _request(self, data: bytes, count: int) -> NDArray[np.uint32]:
        problem = "no answer"
        for _ in range(1 + RETRIES):
            self._stream.reset_input_buffer()
            self._stream.write(data)
            try:
                return self._response(count)
            except ValueError as error:
                problem = str(error)
                time.sleep(0.01)  # longer than the board waits within a request
        raise DeviceError(f"serial device: {problem} after {1 + RETRIES} tries; check the cable and the bitstream")

    def _response(self, count: int) -> NDArray[np.uint32]:
        head = self._stream.read(2)
        if len(head) < 2 or head[0] != RESPONSE_SYNC:
            raise ValueError("no answer" if not head else "garbled answer")
        status = LinkStatus(head[1])
        status, words = decode_response(head + self._stream.read(response_length(count, status) - 2))
        if status != LinkStatus.OK:
            raise ValueError(f"request refused ({status.name})")
        return words

    def write_words(self, addresses: NDArray[np.uint32], words: NDArray[np.uint32]) -> None:
        """Write words in bursts of consecutive addresses."""
        for first, last in _runs(addresses):
            self._request(encode_write(int(addresses[first]), words[first:last]), 0)

    def read_words(self, addresses: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Read words in bursts of consecutive addresses."""
        parts = [
            self._request(encode_read(int(addresses[first]), last - first), last - first)
            for first, last in _runs(addresses)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint32)


def _runs(addresses: NDArray[np.uint32]) -> list[tuple[int, int]]:
    """Index ranges of consecutive addresses, at most BURST_WORDS long."""
    if len(addresses) == 0:
        return []
    breaks = np.flatnonzero(np.diff(addresses.astype(np.int64)) != 4) + 1
    edges = [0, *breaks.tolist(), len(addresses)]
    runs = []
    for first, last in pairwise(edges):
        runs += [(i, min(i + BURST_WORDS, last)) for i in range(first, last, BURST_WORDS)]
    return runs


def open_serial(port: str, baud: int) -> SerialDevice:
    """Open a serial port.

    Raises
    ------
    DeviceError
        If the port cannot be opened.
    """
    import serial

    try:
        return SerialDevice(serial.Serial(port, baud, timeout=1.0, write_timeout=10.0))
    except (serial.SerialException, OSError, ValueError) as error:
        raise DeviceError(f"{port}: cannot open the serial port ({error})") from error
