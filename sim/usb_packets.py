"""Packets of USB at full speed, and the states of the two lines that they are sent as (USB 2.0, chapters 7 and 8)."""

from __future__ import annotations

import enum
from collections.abc import Sequence

__all__ = ["Pid", "State", "UsbError", "data", "decode", "encode", "frame_start", "handshake", "payload_of", "token"]

_SYNC = 0x80
_ONES_BEFORE_STUFFING = 6


class UsbError(Exception):
    """What came is no packet of USB, or another one than has to come."""


class State(enum.IntEnum):
    """D+ (bit 0) and D- (bit 1)."""

    SE0 = 0
    J = 1
    K = 2


class Pid(enum.IntEnum):
    """Kinds of packets."""

    OUT = 0x1
    ACK = 0x2
    DATA0 = 0x3
    SOF = 0x5
    IN = 0x9
    NAK = 0xA
    DATA1 = 0xB
    SETUP = 0xD
    STALL = 0xE


def _crc(bits: Sequence[int], polynomial: int, width: int) -> int:
    """Of bits in the order of the line; the result's bit 0 is sent first."""
    remainder = (1 << width) - 1
    for bit in bits:
        top = remainder >> (width - 1) & 1
        remainder = remainder << 1 & ((1 << width) - 1)
        if bit ^ top:
            remainder ^= polynomial
    return int(f"{remainder ^ ((1 << width) - 1):0{width}b}"[::-1], 2)


def _bits(value: int, width: int) -> list[int]:
    return [value >> i & 1 for i in range(width)]


def _crc16(payload: bytes) -> bytes:
    return _crc([bit for byte in payload for bit in _bits(byte, 8)], 0x8005, 16).to_bytes(2, "little")


def _head(pid: Pid) -> bytes:
    return bytes([pid | (~pid & 0xF) << 4])


def _with_crc5(pid: Pid, value: int) -> bytes:
    return _head(pid) + (value | _crc(_bits(value, 11), 0x05, 5) << 11).to_bytes(2, "little")


def token(pid: Pid, address: int, endpoint: int) -> bytes:
    """SETUP, OUT or IN: the start of a transaction."""
    return _with_crc5(pid, address | endpoint << 7)


def frame_start(number: int) -> bytes:
    """SOF: a frame of a millisecond begins."""
    return _with_crc5(Pid.SOF, number & 0x7FF)


def data(pid: Pid, payload: bytes) -> bytes:
    """DATA0 or DATA1."""
    return _head(pid) + payload + _crc16(payload)


def handshake(pid: Pid) -> bytes:
    """ACK, NAK or STALL."""
    return _head(pid)


def payload_of(packet: bytes) -> tuple[Pid, bytes]:
    """Kind and bytes of a handshake or data packet.

    Raises
    ------
    UsbError
        If it is damaged or of another kind.
    """
    if not packet or (packet[0] & 0xF) ^ packet[0] >> 4 != 0xF or packet[0] & 0xF not in list(Pid):
        raise UsbError(f"no packet: {packet.hex()}")
    pid = Pid(packet[0] & 0xF)
    if pid in (Pid.ACK, Pid.NAK, Pid.STALL) and len(packet) == 1:
        return pid, b""
    if pid in (Pid.DATA0, Pid.DATA1) and len(packet) >= 3 and packet[-2:] == _crc16(packet[1:-2]):
        return pid, packet[1:-2]
    raise UsbError(f"damaged {pid.name}: {packet.hex()}")


def encode(packet: bytes) -> list[State]:
    """States of the lines, one a bit: synchronisation, bits with stuffing as changes (NRZI), end of packet."""
    states, state, ones = [], State.J, 0
    for byte in bytes([_SYNC]) + packet:
        for bit in _bits(byte, 8):
            ones = ones + 1 if bit else 0
            state = state if bit else State.J if state == State.K else State.K
            states.append(state)
            if ones == _ONES_BEFORE_STUFFING:
                ones = 0
                state = State.J if state == State.K else State.K
                states.append(state)
    return [*states, State.SE0, State.SE0, State.J]


def decode(states: Sequence[State]) -> bytes:
    """Inverse of `encode`, without the last J.

    Raises
    ------
    UsbError
        If it is no packet.
    """
    if State.SE0 not in states:
        raise UsbError("packet without end")
    end = states.index(State.SE0)
    if len(states) - end != 2 or any(state != State.SE0 for state in states[end:]):
        raise UsbError(f"end of packet of {len(states) - end} bits")
    bits, ones, before = [], 0, State.J
    for state in states[:end]:
        bit = int(state == before)
        before = state
        if ones == _ONES_BEFORE_STUFFING:
            if bit:
                raise UsbError("seven bits without a change")
            ones = 0
            continue
        ones = ones + 1 if bit else 0
        bits.append(bit)
    if bits[:8] != _bits(_SYNC, 8) or len(bits) % 8:
        raise UsbError(f"packet of {len(bits)} bits")
    return bytes(sum(bit << i for i, bit in enumerate(bits[k : k + 8])) for k in range(8, len(bits), 8))
