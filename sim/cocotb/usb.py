"""A USB host at the other end of a full-speed device's two lines: bit by bit, as a port that nnloom's driver can use.

It resets and enumerates the device as an operating system does, sends a frame's start each millisecond, and hands the
bus to the endpoints in turn: a packet to the device if one waits, then a question whether the device has one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.task import Task
from cocotb.triggers import Event, First, Timer, ValueChange
from cocotb.utils import get_sim_time

from nnloom.sim.usb_packets import (
    Pid,
    State,
    UsbError,
    data,
    decode,
    encode,
    frame_start,
    handshake,
    payload_of,
    token,
)

from .port import LinePort

__all__ = ["UsbCounts", "UsbDescription", "UsbPort", "start_usb_clocks"]

BIT_PS = 83_333
"""A bit at 12 Mbit/s."""
CLOCK_PS = 20_832
"""Period of the device's 48 MHz; a multiple of two, so that its edges are those of its quarter."""
FRAME_PS = 1_000_000_000
GAP_BITS = 3
"""Between packets of the host; at least 2 [7.1.18.1]."""
ANSWER_BITS = 18
"""The host waits so long for an answer to begin [7.1.19.1]."""
TRANSACTION_BITS = 700
"""A packet of 64 bytes with its token and handshake, every sixth bit stuffed: what no longer fits a frame waits."""
IDLE_NS = 20_000
"""Simulated time that one read without a byte lasts."""
TRIES = 3
"""A host gives up an endpoint whose packets fail so often in a row [8.6.4]."""
RESET_NS = 60_000
"""An operating system takes 50 ms; the device sees a reset after 25 us."""

GET_DESCRIPTOR, SET_ADDRESS, SET_CONFIGURATION, SET_LINE_CODING = 6, 5, 9, 0x20
DEVICE, CONFIGURATION, STRING, INTERFACE, ENDPOINT = 1, 2, 3, 4, 5
CDC_DATA = 0x0A
BULK = 2


async def start_usb_clocks(dut: Any, *, clk_ps: int = 10_000) -> None:
    """Start the clocks of a `UsbBench`, those of USB with one phase, and reset all domains."""
    domains = {"clk": clk_ps, "usb_io_clk": CLOCK_PS, "usb_clk": 4 * CLOCK_PS}
    resets = ("rst", "usb_io_rst", "usb_rst")
    for name, period in domains.items():
        Clock(getattr(dut, name), period, unit="ps", impl="gpi").start(start_high=False)
    for name in resets:
        getattr(dut, name).value = 1
    await Timer(16 * CLOCK_PS, unit="ps")
    for name in resets:
        getattr(dut, name).value = 0
    await Timer(16 * CLOCK_PS, unit="ps")


@dataclass(frozen=True, kw_only=True)
class UsbDescription:
    """What a device has told of itself."""

    vendor: int
    product: int
    strings: tuple[str, ...]
    """manufacturer, product; what is missing is empty"""
    endpoints: tuple[tuple[int, int, int, int], ...]
    """(class of interface, address, attributes, largest packet)"""

    def bulk(self, *, incoming: bool) -> tuple[int, int]:
        """Number and largest packet of the data interface's endpoint of a direction."""
        for kind, address, attributes, size in self.endpoints:
            if kind == CDC_DATA and attributes & 3 == BULK and bool(address & 0x80) == incoming:
                return address & 0xF, size
        raise UsbError("the device has no such endpoint")


@dataclass
class UsbCounts:
    """What has happened on the bus."""

    frames: int = 0
    naks_out: int = 0
    naks_in: int = 0
    repeated_in: int = 0
    """packets that came once more, because the device had not seen that they were acknowledged"""
    silences: int = 0
    """packets without an answer, or with a damaged one"""
    out_times: list[tuple[int, int]] = field(default_factory=list)
    """when each packet to the device was acknowledged, in ps, and its bytes"""
    in_times: list[tuple[int, int]] = field(default_factory=list)
    """when each packet from the device was acknowledged, in ps, and its bytes"""
    answer_bits: list[float] = field(default_factory=list)
    """from the end of each packet of the host to the beginning of the device's answer"""


@dataclass
class _Endpoint:
    number: int
    size: int
    toggle: int = 0


class UsbPort(LinePort):
    """The host, and after `start` the port that the device is.

    Parameters
    ----------
    dut
        A `UsbBench`: with the ports host, line and contention.
    bit_ps
        A bit of the host; a device must bear a quarter of a percent each way [7.1.11].
    """

    def __init__(self, dut: Any, *, bit_ps: int = BIT_PS) -> None:
        super().__init__(12_000_000)
        self._dut = dut
        self._bit = bit_ps
        self._address = 0
        self._frame = 0
        self._frame_end = 0
        self._queue: deque[int] = deque()
        self._news = Event()
        self._drained = Event()
        self._out = self._in = _Endpoint(0, 8)
        self._server: Task[None] | None = None
        self.counts = UsbCounts()
        """what has happened on the bus"""
        self.damage = 0
        """so many of the next data packets to the device are damaged on their way"""
        self.lost = 0
        """so many of the host's next acknowledgements are lost on their way"""
        dut.host.value = 0

    # The lines.

    async def _bits(self, count: float) -> None:
        await Timer(round(count * self._bit), unit="ps")

    def _drive(self, state: State) -> None:
        self._dut.host.value = state | 4

    async def _send(self, packet: bytes, *, damaged: bool = False) -> None:
        states = encode(packet)
        if damaged:
            # A bit in the middle that looks like its neighbour; the end stays.
            middle = next(i for i in range(len(states) // 2, len(states)) if states[i] != states[i - 1])
            states[middle] = states[middle - 1]
        start = 0
        for i, state in enumerate(states):
            if i + 1 == len(states) or states[i + 1] != state:
                self._drive(state)
                await self._bits(i + 1 - start)
                start = i + 1
        self._dut.host.value = 0

    async def _answer(self) -> tuple[Pid, bytes] | None:
        """Kind and bytes of the device's packet, None if none begins in time or it is damaged."""
        line, asked = self._dut.line, _now()
        edge, patience = ValueChange(line), Timer(ANSWER_BITS * self._bit, unit="ps")
        # The J at the end of the host's packet has passed.
        if await First(edge, patience) is patience:
            self.counts.silences += 1
            return None
        before, state = _now(), State(int(line.value))
        self.counts.answer_bits.append((before - asked) / self._bit + 1)
        states: list[State] = []
        while True:
            await ValueChange(line)
            now = _now()
            states += [state] * round((now - before) / self._bit)
            ended = state == State.SE0
            before, state = now, State(int(line.value))
            if ended:
                break
        await self._bits(GAP_BITS)
        try:
            return payload_of(decode(states))
        except UsbError:
            self.counts.silences += 1
            return None

    # Transactions.

    async def _begin(self, bits: float) -> None:
        """Wait for a place in a frame; at its end the next one starts."""
        if _now() + round(bits * self._bit) > self._frame_end:
            await Timer(max(1, self._frame_end - _now()), unit="ps")
            self._frame_end = _now() + FRAME_PS
            self._frame += 1
            self.counts.frames += 1
            await self._send(frame_start(self._frame))
            await self._bits(GAP_BITS)

    async def _to_device(self, kind: Pid, endpoint: _Endpoint, payload: bytes) -> Pid | None:
        """A SETUP or OUT transaction; what the device says, None if nothing."""
        await self._begin(TRANSACTION_BITS)
        await self._send(token(kind, self._address, endpoint.number))
        await self._bits(GAP_BITS)
        damaged, self.damage = self.damage > 0, max(0, self.damage - 1)
        await self._send(data(Pid.DATA1 if endpoint.toggle else Pid.DATA0, payload), damaged=damaged)
        answer = await self._answer()
        if answer is None:
            return None
        if answer[0] == Pid.ACK:
            endpoint.toggle ^= 1
        return answer[0]

    async def _from_device(self, endpoint: _Endpoint) -> tuple[Pid, bytes] | None:
        """An IN transaction: a handshake, or data that is new; None if nothing of use came."""
        await self._begin(TRANSACTION_BITS)
        await self._send(token(Pid.IN, self._address, endpoint.number))
        answer = await self._answer()
        if answer is None:
            return None
        pid, payload = answer
        if pid not in (Pid.DATA0, Pid.DATA1):
            return pid, b""
        if self.lost:
            self.lost -= 1
            await self._bits(ANSWER_BITS)
        else:
            await self._send(handshake(Pid.ACK))
            await self._bits(GAP_BITS)
        if (pid == Pid.DATA1) != bool(endpoint.toggle):
            self.counts.repeated_in += 1
            return None
        endpoint.toggle ^= 1
        return pid, payload

    async def _insist(self, transaction: Any) -> Any:
        """Repeat a transaction of a control transfer until it is no NAK."""
        failures = 0
        while True:
            result = await transaction()
            if result is None:
                failures += 1
                if failures == TRIES:
                    raise UsbError("the device does not answer")
            elif result not in (Pid.NAK, (Pid.NAK, b"")):
                return result

    async def control(self, request: Sequence[int], payload: bytes = b"") -> bytes:
        """A control transfer: (type, request, value, index, length); returns what the device sends.

        Raises
        ------
        UsbError
            If the device refuses, or does not answer.
        """
        kind, number, value, index, length = request
        setup = bytes([kind, number]) + b"".join(v.to_bytes(2, "little") for v in (value, index, length))
        endpoint = _Endpoint(0, 64)
        if await self._insist(lambda: self._to_device(Pid.SETUP, endpoint, setup)) != Pid.ACK:
            raise UsbError("SETUP was not acknowledged")
        endpoint.toggle = 1
        received = b""
        if kind & 0x80:
            while len(received) < length:
                pid, part = await self._insist(lambda: self._from_device(endpoint))
                if pid == Pid.STALL:
                    raise UsbError(f"request {number} was refused")
                received += part
                if len(part) < endpoint.size:
                    break
            endpoint.toggle = 1
            status = await self._insist(lambda: self._to_device(Pid.OUT, endpoint, b""))
        else:
            if payload:
                await self._insist(lambda: self._to_device(Pid.OUT, endpoint, payload))
            endpoint.toggle = 1
            status, _ = await self._insist(lambda: self._from_device(endpoint))
        if status == Pid.STALL:
            raise UsbError(f"request {number} was refused")
        return received

    # What an operating system does.

    async def reset(self) -> None:
        """Wait for the device's pull-up, then reset the bus."""
        self._dut.host.value = 0
        await self._bits(50)
        if int(self._dut.line.value) != State.J:
            await ValueChange(self._dut.line)
        self._drive(State.SE0)
        await Timer(RESET_NS, unit="ns")
        self._dut.host.value = 0
        await self._bits(50)
        self._address = 0
        self._frame_end = _now()

    async def enumerate(self) -> UsbDescription:
        """Reset the device, ask it what it is, and configure it.

        Raises
        ------
        UsbError
            If it does not go along.
        """
        await self.reset()
        first = await self._descriptor(DEVICE, 0, 8)
        if len(first) != 8 or first[7] != 64:
            raise UsbError(f"device descriptor {first.hex()}")
        await self.control((0, SET_ADDRESS, 5, 0, 0))
        self._address = 5
        device = await self._descriptor(DEVICE, 0, 18)
        strings = []
        for index in device[14:16]:
            text = await self._descriptor(STRING, index, 255, language=0x409) if index else b"\0\0"
            strings.append(text[2:].decode("utf-16-le"))
        head = await self._descriptor(CONFIGURATION, 0, 9)
        configuration = await self._descriptor(CONFIGURATION, 0, int.from_bytes(head[2:4], "little"))
        await self.control((0, SET_CONFIGURATION, configuration[5], 0, 0))
        description = UsbDescription(
            vendor=int.from_bytes(device[8:10], "little"),
            product=int.from_bytes(device[10:12], "little"),
            strings=tuple(strings),
            endpoints=tuple(_endpoints(configuration)),
        )
        self._out = _Endpoint(*description.bulk(incoming=False))
        self._in = _Endpoint(*description.bulk(incoming=True))
        return description

    async def _descriptor(self, kind: int, index: int, length: int, *, language: int = 0) -> bytes:
        found = await self.control((0x80, GET_DESCRIPTOR, kind << 8 | index, language, length))
        if len(found) < 2 or found[1] != kind or (found[0] < len(found) and kind != CONFIGURATION):
            raise UsbError(f"descriptor {kind}: {found.hex()}")
        return found

    async def start(self) -> UsbDescription:
        """Enumerate the device, and open it as a terminal does: from now on bytes go both ways.

        Again: as if the cable had been pulled.
        """
        if self._server is not None:
            self._server.cancel()
            self._queue.clear()
            self._received.clear()
        description = await self.enumerate()
        coding = (115_200).to_bytes(4, "little") + bytes([0, 0, 8])
        await self.control((0x21, SET_LINE_CODING, 0, 0, len(coding)), coding)
        self._server = cocotb.start_soon(self._serve())
        return description

    async def _serve(self) -> None:
        """Hand the bus to the endpoints, in turn."""
        failures = 0
        while True:
            if self._queue:
                packet = bytes(self._queue[i] for i in range(min(self._out.size, len(self._queue))))
                answer = await self._to_device(Pid.OUT, self._out, packet)
                failures = failures + 1 if answer is None else 0
                if answer == Pid.ACK:
                    for _ in packet:
                        self._queue.popleft()
                    self.counts.out_times.append((_now(), len(packet)))
                    if not self._queue:
                        self._drained.set()
                elif answer == Pid.NAK:
                    self.counts.naks_out += 1
            result = await self._from_device(self._in)
            failures = failures + 1 if result is None else 0
            if result is not None and result[0] == Pid.NAK:
                self.counts.naks_in += 1
            elif result is not None:
                self._received.extend(result[1])
                self.counts.in_times.append((_now(), len(result[1])))
                self._news.set()
            if failures > 2 * TRIES:
                raise UsbError("the device does not answer any more")
            if self._dut.contention.value != 0:
                raise UsbError("host and device both drive the lines")

    async def send(self, data: bytes) -> None:
        """Hand bytes to the host, which sends them when the device takes them."""
        self._drained.clear()
        self._queue.extend(data)

    async def drain(self) -> None:
        """Wait until the device has taken everything."""
        if self._queue:
            await self._drained.wait()

    async def receive(self, size: int) -> bytes:
        """Up to `size` bytes that came; after `IDLE_NS` without any, none."""
        if not self._received:
            self._news.clear()
            await First(self._news.wait(), Timer(IDLE_NS, unit="ns"))
        return self._take(size)


def _now() -> int:
    return int(get_sim_time("ps"))


def _endpoints(configuration: bytes) -> list[tuple[int, int, int, int]]:
    result, position, kind = [], 0, 0
    while position < len(configuration):
        length, descriptor = configuration[position], configuration[position + 1]
        if descriptor == INTERFACE:
            kind = configuration[position + 5]
        elif descriptor == ENDPOINT:
            address, attributes = configuration[position + 2 : position + 4]
            size = int.from_bytes(configuration[position + 4 : position + 6], "little")
            result.append((kind, address, attributes, size))
        position += max(2, length)
    return result
