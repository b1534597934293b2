"""Tensors in memory banks by the formula of each byte, and artifacts as others would read them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct

import numpy as np
import pytest

from nnloom.arch.artifact import GIVEN, Artifact, HostStep, Manifest, TensorLocation
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import ArtifactError
from nnloom.arch.manifest_checks import check_host_plan
from nnloom.arch.operation import Operation, Quantization, TensorType
from nnloom.arch.schema import SchemaError
from tests.artifacts import make_artifact
from tests.graphs import random_graph

CONFIGS = [
    AcceleratorConfig(),
    AcceleratorConfig(lanes=8, taps=5, requant_units=2),
    AcceleratorConfig(lanes=4, taps=3, requant_units=1),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"granule {c.granule}")
@pytest.mark.parametrize("seed", range(12))
def test_each_byte_is_where_the_formula_says(config, seed):
    """Row y is in bank y mod 4, from granule (y // 4) * row_stride on; pixels and channels follow each other."""
    rng = np.random.default_rng(seed)
    rows, columns, channels = (int(rng.integers(1, n)) for n in (12, 8, 20))
    granule = config.granule
    pixel = channels if seed % 2 else -(-channels // granule) * granule
    stride = -(-columns * pixel // granule) + int(rng.integers(0, 3))
    shape = (1, rows * columns * channels) if seed % 3 == 0 else (1, rows, columns, channels)
    location = TensorLocation(
        name="t", rows=rows, columns=columns, channels=channels, base=7, row_stride=stride, pixel_stride=pixel,
        shape=shape,
    )  # fmt: skip
    values = rng.integers(-128, 128, shape).astype(np.int8)
    banks = location.pack(config, values)
    want = [{} for _ in range(4)]
    for index, value in enumerate(values.ravel().tolist()):
        y, x, c = index // (columns * channels), index // channels % columns, index % channels
        want[y % 4][(y // 4) * stride * granule + x * pixel + c] = value & 0xFF
    word = max(1, 4 // granule)  # granules in a word of the host bus
    for bank, (data, filled) in enumerate(zip(banks, want, strict=True)):
        used = len(range(bank, rows, 4)) * stride
        assert len(data) == location.bank_bytes(config, bank) == -(-used // word) * word * granule
        assert data.dtype == np.uint8
        assert [int(b) for b in data] == [filled.get(i, 0) for i in range(len(data))]
    most = -(-rows // 4) * stride
    assert location.granules(config) == -(-most // word) * word
    # What is in the padding does not matter when it is read.
    dirty = [
        np.where([i in filled for i in range(len(d))], d, 0xA5).astype(np.uint8)
        for d, filled in zip(banks, want, strict=True)
    ]
    back = location.unpack(config, [np.append(d, np.uint8(1)) for d in dirty])
    assert back.dtype == np.int8
    np.testing.assert_array_equal(back, values)
    # The host has uint8, 128 more: the memory has the same bytes, and the padding is still zero.
    unsigned = dataclasses.replace(location, dtype="uint8")
    for data, again in zip(banks, unsigned.pack(config, (values.astype(int) + 128).astype(np.uint8)), strict=True):
        np.testing.assert_array_equal(data, again)
    back = unsigned.unpack(config, [np.append(d, np.uint8(1)) for d in dirty])
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back.astype(int) - 128, values)


@pytest.fixture
def folder(tmp_path):
    graph = random_graph(np.random.default_rng(1), ["conv", "depthwise", "dense"])
    return tmp_path / "artifact", make_artifact(tmp_path / "artifact", graph)


def test_files_as_others_read_them(folder):
    path, emitted = folder
    program = (path / "program.bin").read_bytes()
    assert list(struct.unpack(f"<{len(emitted.program)}I", program)) == emitted.program.tolist()
    assert (path / "weights.bin").read_bytes() == emitted.weights.tobytes()
    values = json.loads((path / "manifest.json").read_text())
    for name, digest in values["files"].items():
        assert hashlib.sha256((path / name).read_bytes()).hexdigest() == digest
    assert {"program.bin", "weights.bin"} <= set(values["files"])
    seal = values.pop("sha256")
    text = json.dumps(values, sort_keys=True).encode()
    assert hashlib.sha256(text).hexdigest() == seal


def test_artifact_comes_back(folder):
    path, emitted = folder
    loaded = Artifact.load(path)
    np.testing.assert_array_equal(loaded.program, emitted.program)
    np.testing.assert_array_equal(loaded.weights, emitted.weights)
    values = json.loads(json.dumps(loaded.manifest.to_dict()))
    assert Manifest.from_dict(values) == loaded.manifest


@pytest.mark.parametrize("name", ["program.bin", "weights.bin", "manifest.json"])
def test_every_changed_byte_is_found(folder, name):
    path, _ = folder
    good = (path / name).read_bytes()
    rng = np.random.default_rng(3)
    for place in (0, len(good) - 1, *rng.integers(0, len(good), 20)):
        data = bytearray(good)
        data[place] ^= 1 << int(rng.integers(8))
        (path / name).write_bytes(data)
        if name == "manifest.json" and _same_json(data, good):
            continue  # white space
        with pytest.raises(ArtifactError, match=r"compile the model again|utf-8"):
            Artifact.load(path)
    (path / name).write_bytes(good)
    Artifact.load(path)


def _same_json(a: bytes, b: bytes) -> bool:
    try:
        return json.loads(a) == json.loads(b)
    except ValueError:
        return False


@pytest.mark.parametrize("name", ["program.bin", "weights.bin", "manifest.json"])
def test_missing_and_longer_files_are_found(folder, name):
    path, _ = folder
    good = (path / name).read_bytes()
    (path / name).write_bytes(good + b"\0")
    with pytest.raises(ArtifactError):
        Artifact.load(path)
    (path / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        Artifact.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(inputs=(GIVEN, 0)), "an operand that is no constant"),
        (dict(inputs=(GIVEN, 2)), "an operand that is no constant"),
        (dict(inputs=(GIVEN,)), "an operator with 2 operands"),
        (dict(region=0), "an operator with 2 operands"),
        (dict(operation=None), "an operator with 0 operands"),
        (dict(), None),
    ],
)
def test_operators_within_regions_are_checked(tmp_path, change, message):
    """The library calls back for them, so they must be what they seem: an operator of constants and what is given."""
    make_artifact(tmp_path, random_graph(np.random.default_rng(3), ["conv"]))
    manifest = Artifact.load(tmp_path).manifest
    source = TensorType((1, 2, 2, 3), "int8", Quantization.per_tensor(0.5, 3))
    out = dataclasses.replace(source, shape=(1, 3))
    mean = Operation("MEAN", (source, TensorType((2,), "int32")), (out,), {"keep_dims": False})
    inside = HostStep(**{**dict(inputs=(GIVEN, 1), operation=mean), **change})
    # The one constant takes a number, and so moves the region's output by one.
    host = dataclasses.replace(manifest.host, constants=1, inside=(inside,), outputs=(2,))
    changed = dataclasses.replace(manifest, host=host)
    if message is None:
        check_host_plan(changed)
        assert Manifest.from_dict(json.loads(json.dumps(changed.to_dict()))).host == host
        return
    with pytest.raises(SchemaError, match=message):
        check_host_plan(changed)
