"""Packets of USB: known ones, and what the lines do."""

from __future__ import annotations

import numpy as np
import pytest

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


@pytest.mark.parametrize(
    ("packet", "crc"),
    [
        # "Cyclic Redundancy Checks in USB", USB Implementers Forum: in the order of the line.
        (token(Pid.SETUP, 0x15, 0xE), "10111"),
        (token(Pid.OUT, 0x3A, 0xA), "11100"),
        (token(Pid.IN, 0x70, 0x4), "01110"),
        (frame_start(0x001), "10111"),
        (data(Pid.DATA0, bytes([0x00, 0x01, 0x02, 0x03])), "1111011101011110"),
        (data(Pid.DATA0, bytes([0x23, 0x45, 0x67, 0x89])), "0111000000111000"),
    ],
)
def test_known_checksums(packet, crc):
    bits = "".join(str(byte >> i & 1) for byte in packet for i in range(8))
    assert bits.endswith(crc)


def test_known_packets():
    assert handshake(Pid.ACK) == b"\xd2" and handshake(Pid.NAK) == b"\x5a"
    assert frame_start(1) == bytes([0xA5, 0x01, 0xE8])
    J, K, SE0 = State.J, State.K, State.SE0
    # Synchronisation, 0b11010010 from its lowest bit on, end of packet.
    assert encode(handshake(Pid.ACK)) == [K, J, K, J, K, J, K, K, J, J, K, J, J, K, K, K, SE0, SE0, J]


def test_the_lines_lead_back_to_the_packet():
    rng = np.random.default_rng(0)
    payloads = [b"", b"\xff" * 64, b"\0" * 64, b"\x7e" * 13, *(rng.bytes(int(n)) for n in rng.integers(1, 65, 40))]
    for payload in payloads:
        packet = data(Pid.DATA1, payload)
        states = encode(packet)
        runs = "".join(str(int(s)) for s in states[:-3])
        assert "1" * 8 not in runs and "2" * 8 not in runs  # six ones, the bit before them, and then a change
        assert decode(states[:-1]) == packet
        assert payload_of(packet) == (Pid.DATA1, payload)


def test_damaged_packets_are_refused():
    packet = data(Pid.DATA0, b"nnloom")
    states = encode(packet)[:-1]
    for i in range(8, len(states) - 2):
        changed = [*states[:i], State.J if states[i] == State.K else State.K, *states[i + 1 :]]
        with pytest.raises(UsbError):
            payload_of(decode(changed))
    for wrong in (states[:-1], [*states, State.SE0], states[:-2], [State.J] * 20 + [State.SE0] * 2):
        with pytest.raises(UsbError):
            decode(wrong)
    for wrong in (b"", b"\xd3", b"\xd2\0", token(Pid.IN, 1, 2)):
        with pytest.raises(UsbError):
            payload_of(wrong)
