"""Descriptors and parameters bit by bit: a table written by hand, Python's integers, and words computed by hand."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnloom.arch import isa
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import FIELDS, Descriptor

# Word, lowest bit, width; s: signed. Bitstreams on boards know these places: a change needs a new ISA version.
LAYOUT = """
kind 0 0 2, last 0 2 1, slide 0 3 1, maximum 0 4 1, row_pair 0 5 1, double_rounding 0 6 1, narrow 0 7 1,
half_last 0 8 1, weights_advance 0 9 1, start_delay 0 10 8, pixel_pair 0 18 1, odd_rows 0 19 1, interval 0 20 8,
row_triple 0 28 1, in_base 1 0 16, in2_base 1 16 16, in_rows 2 0 16, in_row_bytes 2 16 16, in_row_stride 3 0 16,
out_row_stride 3 16 16, out_base 4 0 16, n_oy 4 16 16, n_ox 5 0 16, n_g 5 16 16, n_ky 6 0 16, n_kx 6 16 16,
row_start 7 0 16 s, q_start 7 16 16 s, row_step_oy 8 0 8, row_step_ky 8 8 8, q_step_ox 8 16 16, q_step_kx 9 0 16,
q_step_g 9 16 16, weight_base 10 0 16, weight_step_g 10 16 16, out_step_ox 11 0 16, out_step_g 11 16 16,
pad_value 12 0 8 s, pad_value2 12 8 8 s, out_zero_point 12 16 8 s, kernel_rows 12 24 8, act_min 13 0 8 s,
act_max 13 8 8 s, slide_first 13 16 8, slide_step 13 24 8, table 14 0 4, product 14 4 1, broadcast 14 5 1,
out_row_start 14 6 2, out_row_step 14 8 3, resume 14 11 1, keep 14 12 1
"""
PLACES = {
    name: (int(word), int(low), int(width), bool(signed))
    for name, word, low, width, *signed in (item.split() for item in LAYOUT.replace("\n", " ").split(","))
}


def limits(name):
    _, _, width, signed = PLACES[name]
    return (-(1 << width - 1), (1 << width - 1) - 1) if signed else (0, (1 << width) - 1)


def packed(values):
    """A descriptor as one integer of 512 bits."""
    return sum((values[n] % (1 << width)) << (32 * word + low) for n, (word, low, width, _) in PLACES.items())


VALUES = st.fixed_dictionaries(
    {name: st.one_of(st.sampled_from(limits(name)), st.integers(*limits(name))) for name in PLACES}
)


def test_fields_are_where_they_were():
    assert {f.name: (f.word, f.offset, f.width, f.signed) for f in FIELDS} == PLACES
    assert {f.name: (f.minimum, f.maximum) for f in FIELDS} == {name: limits(name) for name in PLACES}


@given(VALUES)
def test_descriptor(values):
    d = Descriptor(**values)
    words = d.encode()
    assert words.dtype == np.uint32 and words.astype("<u4").tobytes() == packed(values).to_bytes(64, "little")
    assert Descriptor.decode(words) == d and Descriptor.decode(words.tolist()) == d


def test_descriptor_by_hand():
    d = Descriptor(
        kind=1, last=1, slide=1, half_last=1, start_delay=5, interval=16, in_base=0x123, in_rows=49, in_row_bytes=0x50,
        in_row_stride=5, out_row_stride=6, out_base=0x456, n_oy=25, n_ox=5, n_g=4, n_ky=3, n_kx=2, row_start=-1,
        q_start=-16, row_step_oy=2, q_step_ox=32, q_step_kx=8, q_step_g=16, weight_base=0xABC, weight_step_g=9,
        out_step_ox=8, out_step_g=2, pad_value=-3, out_zero_point=-128, kernel_rows=3, act_min=-128, act_max=127,
        slide_first=3, slide_step=2, table=8, out_row_start=1, out_row_step=3,
    )  # fmt: skip
    assert [f"{word:08x}" for word in d.encode()] == [
        *("0100174d", "00000123", "00500031", "00060005", "00190456", "00040005", "00020003", "fff0ffff"),
        *("00200102", "00100008", "00090abc", "00020008", "038000fd", "02037f80", "00000348", "00000000"),
    ]


@pytest.mark.parametrize("name", PLACES)
def test_fields_refuse_what_they_cannot_hold(name):
    good = {"kind": 0, **dict.fromkeys(("in_base", "in_rows", "in_row_bytes", "in_row_stride", "out_row_stride"), 1)}
    good |= dict.fromkeys(("out_base", "n_oy", "n_ox", "n_g", "n_ky", "n_kx"), 1)
    low, high = limits(name)
    for value in (low, high):
        assert getattr(Descriptor(**{**good, name: value}), name) == value
    for value in (low - 1, high + 1):
        with pytest.raises(ValueError, match=f"field {name} must be {low} to {high}, not {value}"):
            Descriptor(**{**good, name: value})


def test_programs():
    layers = [
        Descriptor(**{**{name: 1 for name in PLACES}, "last": last, "n_oy": index})
        for index, last in enumerate((0, 1, 0, 0, 1, 0), 1)
    ]
    words = isa.encode_program(layers)
    assert len(words) == 6 * 16
    assert isa.decode_program(words) == layers[:2]
    assert isa.decode_program(words, 32) == layers[2:5]
    assert isa.decode_program(words, 64) == layers[4:5]
    for start in (80, 96):
        with pytest.raises(ValueError, match="without a descriptor marked 'last'"):
            isa.decode_program(words, start)
    with pytest.raises(ValueError, match="without"):
        isa.decode_program(words[: 2 * 16 - 1])
    assert len(isa.encode_program([])) == 0


CONFIGS = [
    AcceleratorConfig(),
    AcceleratorConfig(lanes=8, taps=5, requant_units=2),
    AcceleratorConfig(lanes=4, taps=3, requant_units=1),
    AcceleratorConfig(lanes=32, taps=17, requant_units=8),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.lanes}x{c.taps}")
def test_parameters(config):
    """Lane l's nine bytes, bias, multiplier and shift in little endian, are at l * taps in as many words as needed."""
    rng = np.random.default_rng(0)
    bias = rng.integers(-(1 << 31), 1 << 31, config.lanes)
    multiplier, shift = rng.integers(0, 1 << 31, config.lanes), rng.integers(0, 32, config.lanes)
    bias[:4] = [-(1 << 31), (1 << 31) - 1, -1, 0]
    multiplier[:3], shift[:3] = [0, (1 << 31) - 1, 1 << 30], [0, 31, 16]
    words = isa.encode_parameters(config, bias, multiplier, shift)
    count = -(-9 // config.taps)
    assert words.shape == (count, config.lanes * config.taps) and config.parameter_words == count
    want = np.zeros_like(words)
    for lane in range(config.lanes):
        data = struct.pack("<iIB", bias[lane], multiplier[lane], shift[lane])
        for i, byte in enumerate(data):
            want[i // config.taps, lane * config.taps + i % config.taps] = byte
    np.testing.assert_array_equal(words, want)
    for got, value in zip(isa.decode_parameters(config, words), (bias, multiplier, shift), strict=True):
        np.testing.assert_array_equal(got, value)


def test_parameters_ignore_reserved_bits():
    """Bit 63 and the upper bits of the ninth byte."""
    config = CONFIGS[0]
    words = np.full((1, config.lanes * config.taps), 0xFF, np.uint8)
    bias, multiplier, shift = isa.decode_parameters(config, words)
    assert set(bias) == {-1} and set(multiplier) == {(1 << 31) - 1} and set(shift) == {31}


@given(VALUES)
def test_needed_field_bits(values):
    """Every bit that is set, and the last row and byte that are read, one bit more for bytes."""
    values = {**values, "row_triple": 0, **dict.fromkeys(("table", "product", "broadcast", "resume", "keep"), 0)}
    d = Descriptor(**values)
    bits = isa.needed_field_bits(d)
    wide = [name for name, (_, _, width, _) in PLACES.items() if width == 16]
    taps = 0 if d.kind == isa.Kind.ADD else (d.n_ky - 1) * d.row_step_ky
    row = d.row_start + (d.n_oy - 1) * d.row_step_oy + taps
    loops = (("g", d.n_g), ("ox", d.n_ox), ("kx", d.n_kx))
    byte = d.q_start + sum((count - 1) * values[f"q_step_{name}"] for name, count in loops)

    def fields_fit(n):
        low, high = -(1 << n - 1), (1 << n - 1) - 1
        return all(low <= values[k] <= high if PLACES[k][3] else values[k] < 1 << n for k in wide)

    def fits(n):
        return fields_fit(n) and row < 1 << n and byte < 1 << n + 1

    assert fits(bits) and (bits == 10 or not fits(bits - 1))
    config = dict(lanes=8, taps=5, requant_units=2, weight_words=64, activation_bytes=2048)
    if bits <= 16:
        isa.check_descriptor(AcceleratorConfig(**config, field_bits=bits), d)
    if 10 < bits <= 17 and not fields_fit(bits - 1):
        with pytest.raises(ValueError, match="descriptor field"):
            isa.check_descriptor(AcceleratorConfig(**config, field_bits=bits - 1), d)


def test_row_triples_need_their_option():
    d = Descriptor(**{**{name: 1 for name in PLACES}, "row_triple": 1, "resume": 0, "keep": 0})
    with pytest.raises(ValueError, match="row_triple must be 0 to 0, not 1"):
        isa.check_descriptor(AcceleratorConfig(tables=1, elementwise_mul=True), d)
    isa.check_descriptor(AcceleratorConfig(row_triples=True, tables=1, elementwise_mul=True), d)


@pytest.mark.parametrize("name", ["resume", "keep"])
def test_partial_sums_need_their_option(name):
    d = Descriptor(**{n: 1 for n in PLACES} | {"row_triple": 0, "resume": 0, "keep": 0, name: 1})
    with pytest.raises(ValueError, match=f"{name} must be 0 to 0, not 1"):
        isa.check_descriptor(AcceleratorConfig(tables=1, elementwise_mul=True), d)
    isa.check_descriptor(AcceleratorConfig(tables=1, elementwise_mul=True, partial_sums=True), d)


def test_tables_need_their_option():
    values = {name: 1 for name in PLACES} | {"row_triple": 0, "resume": 0, "keep": 0}
    for tables, most in ((0, 0), (1, 1), (2, 3), (4, 7), (8, 15)):
        config = AcceleratorConfig(tables=tables, elementwise_mul=True)
        isa.check_descriptor(config, Descriptor(**values | {"table": most}))
        if most < 15:
            with pytest.raises(ValueError, match=f"table must be 0 to {most}, not {most + 1}"):
                isa.check_descriptor(config, Descriptor(**values | {"table": most + 1}))


@pytest.mark.parametrize(
    ("config", "stride", "columns", "granule"),
    # 16 lanes of 9 taps: 144 bytes. 8 of 5: 40. 4 of 3: 12 bytes, a granule of 2 bytes in a word of the bus. 32 of 17.
    list(zip(CONFIGS, (256, 64, 16, 1024), (36, 10, 3, 136), (2, 1, 1, 4), strict=True)),
    ids=lambda v: f"{v.lanes}x{v.taps}" if isinstance(v, AcceleratorConfig) else str(v),
)
def test_host_windows(config, stride, columns, granule):
    assert (isa.weight_stride(config), isa.weight_word_columns(config)) == (stride, columns)
    assert isa.granule_columns(config) == granule


def test_addresses_are_where_they_were():
    """Drivers and bitstreams of other versions read these, to find out that they do not match."""
    assert (isa.Register.MAGIC, isa.Register.VERSION, isa.Register.CONFIG_HASH) == (0, 4, 8)
    assert isa.MAGIC.to_bytes(4, "big") == b"MOOL"
    assert isa.HostAddress.REGISTERS == 0
    assert [int(a) >> 28 for a in isa.HostAddress] == [0, 1, 2, 3, 4, 5]
    assert [int(r) for r in isa.Register] == list(range(0, 4 * len(isa.Register), 4))
    assert (isa.Status.BUSY, isa.Status.DONE, isa.Status.ERROR) == (1, 2, 4)
