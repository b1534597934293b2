"""Frames of the host link against the COBS of others, a CRC bit by bit, and bytes put together by hand."""

from __future__ import annotations

import struct

import cobs.cobs
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nnloom.arch import link
from nnloom.arch.link import (
    SHORT_OPCODES,
    Answer,
    FrameSplitter,
    Hello,
    Opcode,
    Request,
    Response,
    Step,
    StepKind,
)

BYTES = st.lists(
    st.one_of(st.binary(max_size=300), st.just(b"\0"), st.integers(252, 256).map(lambda n: b"\x07" * n)), max_size=5
).map(b"".join)
WORDS = st.lists(st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2**32 - 1])), max_size=80)


def crc32(data: bytes) -> int:
    """IEEE 802.3, one bit after the other."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0xEDB88320 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def sealed(data: bytes) -> bytes:
    return cobs.cobs.encode(data + struct.pack("<I", crc32(data))) + b"\0"


def test_crc_is_the_standard_one():
    assert crc32(b"123456789") == 0xCBF43926


# COBS.


@given(BYTES)
def test_cobs_encodes_as_others(data):
    assert cobs.cobs.decode(link.cobs_encode(data)) == data
    # Others leave out the empty block behind a full last one; both are read.
    assert link.cobs_encode(data).removesuffix(b"\x01") == cobs.cobs.encode(data).removesuffix(b"\x01")


@given(BYTES)
@example(b"\xff" + b"\x01" * 254)
@example(b"\xff" + b"\x01" * 254 + b"\x01")
@example(b"\x05ab")
@example(b"\x03a\0")
def test_cobs_decodes_or_refuses_as_others(data):
    try:
        want = cobs.cobs.decode(data)
    except cobs.cobs.DecodeError:
        with pytest.raises(ValueError, match="not a COBS frame"):
            link.cobs_decode(data)
    else:
        assert link.cobs_decode(data) == want


@pytest.mark.parametrize(
    ("data", "encoded"),
    [
        (b"", b"\x01"),
        (b"\0", b"\x01\x01"),
        (b"\0\0", b"\x01\x01\x01"),
        (b"ab\0c", b"\x03ab\x02c"),
        (b"a\0", b"\x02a\x01"),
        (b"\x01" * 253, b"\xfe" + b"\x01" * 253),
        (b"\x01" * 254, b"\xff" + b"\x01" * 254 + b"\x01"),
        (b"\x01" * 255, b"\xff" + b"\x01" * 254 + b"\x02\x01"),
        (b"\x01" * 254 + b"\0", b"\xff" + b"\x01" * 254 + b"\x01\x01"),
    ],
)
def test_cobs_by_hand(data, encoded):
    assert link.cobs_encode(data) == encoded and link.cobs_decode(encoded) == data


# Frames.


BURST_OPCODES = [opcode for opcode in Opcode if opcode not in SHORT_OPCODES]


@given(
    st.sampled_from(BURST_OPCODES), st.integers(0, 255), st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1),
    st.integers(0, 255), st.integers(0, 255), st.integers(0, 2**16 - 1), WORDS,
)  # fmt: skip
def test_request(opcode, sequence, session, address, run, count, jump, words):
    data = struct.pack("<BBHIBBH", opcode, sequence, session, address, run, count, jump)
    data += struct.pack(f"<{len(words)}I", *words)
    fields = dict(opcode=opcode, sequence=sequence, session=session, address=address, run=run, count=count, jump=jump)
    frame = Request(**fields, words=np.array(words, np.uint32)).encode()
    assert frame.count(0) == 1 and frame[-1] == 0
    assert cobs.cobs.decode(frame[:-1]) == cobs.cobs.decode(sealed(data)[:-1])
    decoded = Request.decode(sealed(data)[:-1])
    assert {name: getattr(decoded, name) for name in fields} == fields and decoded.words.tolist() == words


@given(st.sampled_from(sorted(SHORT_OPCODES)), st.integers(0, 255), st.integers(0, 2**16 - 1), WORDS)
def test_request_without_a_burst(opcode, sequence, session, words):
    data = struct.pack(f"<BBH{len(words)}I", opcode, sequence, session, *words)
    frame = Request(opcode=opcode, sequence=sequence, session=session, words=np.array(words, np.uint32)).encode()
    assert cobs.cobs.decode(frame[:-1]) == cobs.cobs.decode(sealed(data)[:-1])
    decoded = Request.decode(sealed(data)[:-1])
    assert (decoded.opcode, decoded.sequence, decoded.session) == (opcode, sequence, session)
    assert decoded.words.tolist() == words


@given(st.sampled_from(Answer), st.integers(0, 255), st.integers(0, 2**16 - 1), WORDS, st.binary(max_size=3))
def test_response(answer, sequence, session, words, rest):
    data = struct.pack(f"<BBH{len(words)}I", answer, sequence, session, *words) + rest
    fields = dict(answer=answer, sequence=sequence, session=session)
    frame = Response(**fields, words=np.array(words, np.uint32), rest=rest).encode()
    assert cobs.cobs.decode(frame[:-1]) == cobs.cobs.decode(sealed(data)[:-1])
    decoded = Response.decode(sealed(data)[:-1])
    assert (decoded.answer, decoded.sequence, decoded.session) == (answer, sequence, session)
    assert decoded.words.tolist() == words and decoded.rest == rest and decoded.data == data[4:]


def test_steps_by_hand():
    step = Step(kind=StepKind.READ, address=0x30000010, count=0x123, chunk=10, pad=6)
    assert step.words().tolist() == [0x30000010, 0x000A0206, 0x123]
    assert Step.put(0x0C, 48, 1).words().tolist() == [0x0C, 0x00010300, 2, 48, 1]
    with pytest.raises(ValueError, match="pad must be below 256, not 256"):
        Step(kind=StepKind.READ, pad=256).words()
    assert link.script_word(0) == 3 and link.script_word(5) == 8


def test_request_by_hand():
    request = Request(
        opcode=Opcode.WRITE, sequence=7, session=0x1234, address=0x20000100, words=np.array([1], np.uint32)
    )
    # header 02 07 34 12 | 00 01 00 20 | 01 00 01 00, word 01 00 00 00, CRC; each zero is the length of what follows it
    data = bytes.fromhex("02 07 34 12 00 01 00 20 01 00 01 00 01 00 00 00")
    crc = struct.pack("<I", crc32(data))
    assert 0 not in crc
    want = bytes.fromhex("05 02 07 34 12 02 01 03 20 01 02 01 02 01 01 01 05") + crc + b"\0"
    assert request.encode() == want


@settings(max_examples=30)
@given(WORDS.filter(lambda words: len(words) < 8), st.data())
def test_damage_is_found(words, data):
    """Of the bytes before COBS: any bit, a byte that is missing or one more; and of the frame: any end of it."""
    response = Response(answer=Answer.OK, sequence=1, session=2, words=np.array(words, np.uint32)).encode()[:-1]
    content = cobs.cobs.decode(response)
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="CRC"):
            Response.decode(cobs.cobs.encode(bytes(damaged)))
    place = data.draw(st.integers(0, len(content) - 1))
    for damaged in (content[:place] + content[place + 1 :], content[:place] + b"x" + content[place:]):
        with pytest.raises(ValueError, match=r"length|CRC"):
            Response.decode(cobs.cobs.encode(damaged))
    for end in range(len(response)):
        with pytest.raises(ValueError, match=r"length|CRC|COBS"):
            Response.decode(response[:end])


@pytest.mark.parametrize("size", range(24))
def test_frames_of_every_length(size):
    """Whole words behind a whole header, or refused; behind that of an answer bytes."""
    for kind, code, header in ((Request, 2, 12), (Request, 8, 4), (Response, 0, 4)):
        frame = sealed(bytes([code, *[1] * (size - 1)]) if size else b"")[:-1]
        if size >= header and (kind is Response or (size - header) % 4 == 0):
            assert len(kind.decode(frame).words) == (size - header) // 4
        else:
            with pytest.raises(ValueError, match="length"):
                kind.decode(frame)


@pytest.mark.parametrize(
    ("kind", "code", "size"), [(Request, 0, 12), (Request, 7, 12), (Request, 11, 12), (Response, 7, 4)]
)
def test_unknown_codes_are_refused(kind, code, size):
    with pytest.raises(ValueError, match=f"{code} is not a valid"):
        kind.decode(sealed(bytes([code, *[0] * (size - 1)]))[:-1])


@pytest.mark.parametrize(
    ("name", "width"),
    [("sequence", 8), ("session", 16), ("address", 32), ("run", 8), ("count", 8), ("jump", 16)],
)
def test_fields_refuse_what_they_cannot_hold(name, width):
    good = {"opcode": Opcode.READ, "sequence": 0, "session": 1}
    Request(**{**good, name: (1 << width) - 1}).encode()
    for value in (-1, 1 << width):
        with pytest.raises(ValueError, match=f"{name} must be below {1 << width}, not {value}"):
            Request(**{**good, name: value}).encode()


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        (dict(address=0x100), [0x100, 0x104, 0x108, 0x10C, 0x110]),
        (dict(address=0x100, run=2, jump=3), [0x100, 0x104, 0x110, 0x114, 0x120]),
        (dict(address=0x100, run=1, jump=0), [0x100] * 5),
        (dict(address=0x100, run=3, jump=1), [0x100, 0x104, 0x108, 0x10C, 0x110]),
        (dict(address=0xFFFFFFF8, run=9), [0xFFFFFFF8, 0xFFFFFFFC, 0, 4, 8]),
    ],
)
def test_addresses_of_a_burst(fields, want):
    request = Request(opcode=Opcode.READ, sequence=0, session=1, **fields)
    assert list(request.addresses(5)) == want and list(request.addresses(0)) == []


# HELLO.


HELLO = Hello(
    link_version=3, max_words=252, packs=True, clock_hz=25_000_000, previous_session=None, magic=0x4D4F4F4C,
    isa_version=4, config_hash=0xDEADBEEF,
)  # fmt: skip


def test_hello_by_hand():
    words = [0x00FC0103, 25_000_000, 0x00010000, 0x4D4F4F4C, 4, 0xDEADBEEF]
    assert HELLO.words().tolist() == words and HELLO.words().dtype == np.uint32
    assert Hello.from_words(np.array(words, np.uint32)) == HELLO
    for session in (0, 1, 0xFFFF):
        words[2] = session
        hello = Hello.from_words(np.array(words, np.uint32))
        assert hello.previous_session == session and hello.words().tolist() == words


@pytest.mark.parametrize("count", [0, 5, 7])
def test_hello_of_another_length_is_refused(count):
    with pytest.raises(ValueError, match=f"answer to HELLO of {count} words, not 6"):
        Hello.from_words(np.zeros(count, np.uint32))


# Streams.


@given(st.lists(st.binary(min_size=1, max_size=20).map(lambda b: b.replace(b"\0", b"\1")), max_size=8), st.data())
def test_splitter_finds_the_same_frames_however_they_come(frames, data):
    stream = b"\0".join([*frames, b""]) + b"rest"
    splitter, got = FrameSplitter(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        got += splitter.feed(stream[:size])
        stream = stream[size:]
    assert got == frames
    assert splitter.feed(b"\0") == [b"rest"]
