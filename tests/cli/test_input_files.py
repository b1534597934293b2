"""Input files that are damaged, hostile or no files: arrays, or one line."""

from __future__ import annotations

import io
import os
import pickle
import socket
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from nnloom.arch import array_files
from nnloom.arch.artifact import TensorInfo
from nnloom.arch.errors import InputError
from nnloom.cli.input_files import read_inputs

INFO = TensorInfo(name="x", shape=(1, 4, 3), dtype="float32")
OTHER = TensorInfo(name="y", shape=(1, 2), dtype="int8")


def npy(value: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, value, **options)
    return buffer.getvalue()


def header(text: str, data: bytes = b"", version: int = 1) -> bytes:
    encoded = text.encode()
    return (
        b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(encoded)) + encoded + data
    )


def npz(*members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "i1", "u1", "?", "<c8", "<U3"])
def test_what_numpy_writes(tmp_path, version, order, dtype):
    value = np.asarray(np.arange(24).reshape(2, 4, 3).astype(dtype), order=order)
    (tmp_path / "x.npy").write_bytes(npy(value, version=version))
    got = read_inputs(str(tmp_path / "x.npy"), (INFO,))
    assert got["x"].dtype == value.dtype and got["x"].flags.writeable
    np.testing.assert_array_equal(got["x"], value)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", x=value, y=value[0])
        got = read_inputs(str(tmp_path / "x.npz"), (INFO, OTHER))
        np.testing.assert_array_equal(got["x"], value)
        np.testing.assert_array_equal(got["y"], value[0])


@pytest.mark.parametrize("value", [np.float32(3), np.zeros((0, 4, 3), np.float32), np.zeros((3, 0), np.int8)])
def test_arrays_without_dimensions_or_elements(tmp_path, value):
    np.save(tmp_path / "x.npy", value)
    got = read_inputs(str(tmp_path / "x.npy"), (INFO,))["x"]
    assert got.shape == value.shape and got.dtype == value.dtype


GOOD = npy(np.zeros((1, 4, 3), np.float32))
SHAPE = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }"
FILES = {
    "cut": (GOOD[:-1], "takes 48 bytes, there are 47"),
    "longer": (GOOD + b"\0", "there are 49"),
    "header only": (GOOD[:20], "ends too early"),
    "magic only": (GOOD[:6], "ends too early"),
    "unknown version": (b"\x93NUMPY\x09\x00" + GOOD[8:], "no NumPy array"),
    "huge header": (b"\x93NUMPY\x02\x00" + b"\xff" * 4 + GOOD[10:], "a header of 4,294,967,295 bytes"),
    "huge shape": (header(SHAPE % "(1000000000000, 4, 3)"), "there are 0"),
    "shape beyond 64 bits": (header(SHAPE % f"({10**30},)"), "takes 4,000,000,000,000"),
    "negative shape": (header(SHAPE % "(-1, 4, 3)"), "a shape that is none"),
    "shape of booleans": (header(SHAPE % "(True, 4)", bytes(16)), "a shape that is none"),
    "shape that is a number": (header(SHAPE % "12", bytes(48)), "a shape that is none"),
    "seventy dimensions": (header(SHAPE % repr((1,) * 70), bytes(4)), "not a .npy"),
    "unfinished header": (header("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 4, 3"), "not a .npy"),
    "header of tokens": (header("((((((" * 2000), "not a .npy"),
    "header that is deep": (header("[" * 5000 + "]" * 5000), "not a .npy"),
    "header that is code": (header("__import__('os').system('true')"), "not a .npy"),
    "header without shape": (header("{'descr': '<f4', 'fortran_order': False}"), "a header without"),
    "header of another kind": (header("[1, 2]"), "a header without"),
    "zero bytes in the header": (header("\0" * 50), "not a .npy"),
    "header that is not text": (b"\x93NUMPY\x03\x00" + struct.pack("<I", 4) + b"\xff\xfe\xfd\xfc", "not a .npy"),
    "unknown dtype": (header(SHAPE.replace("<f4", "<q9") % "(1,)"), "not a .npy"),
    "dtype that is a number": (header("{'descr': 7, 'fortran_order': False, 'shape': (1,)}"), "not a .npy"),
    "pickle": (npy(np.array([{"a": 1}], object), allow_pickle=True), "pickled objects"),
    "bare pickle": (pickle.dumps([1, 2, 3]), "not a .npy"),
    "elements of no size": (header(SHAPE.replace("<f4", "|V0") % "(1000000000000,)"), "elements of no size"),
    "empty": (b"", "is empty"),
    "text": (b"1 2 3\n", "not a .npy"),
    "archive cut": (npz(("x.npy", GOOD))[:-30], "not a .npy"),
    "archive with pickles": (npz(("x.npy", npy(np.array([None], object), allow_pickle=True))), "pickled objects"),
    "archive with text": (npz(("x", b"1 2 3")), "not a .npy"),
    "archive with two of a name": (npz(("x.npy", GOOD), ("x", GOOD)), "two arrays named 'x'"),
    "archive of folders": (npz(("x/", b"")), "not a .npy"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_refused(case, tmp_path):
    data, message = FILES[case]
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_inputs(str(tmp_path / "x.npy"), (INFO,))
    assert message in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_an_archive_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(array_files, "LARGEST_ARRAY", 1 << 20)
    value = np.zeros((1 << 19, 4), np.float32)
    np.savez_compressed(tmp_path / "x.npz", x=value)
    assert (tmp_path / "x.npz").stat().st_size < 1 << 17
    with pytest.raises(InputError, match="split it into files of at most 1,048,576"):
        read_inputs(str(tmp_path / "x.npz"), (INFO,))


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")  # nobody writes to it: opening it would wait for ever
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        (tmp_path / "loop").symlink_to("loop")
        for name, message in (
            ("fifo", "not a regular file"),
            ("folder", "is a folder"),
            ("s", "No such device or address"),
            ("loop", "Too many levels of symbolic links"),
            ("none", "No such file"),
            ("\0", "cannot be read"),
            ("folder/../none/x", "No such file"),
        ):
            with pytest.raises(InputError, match=message):
                read_inputs(str(tmp_path / name), (INFO,))
    for device in ("/dev/zero", "/dev/null"):
        with pytest.raises(InputError, match="not a regular file"):
            read_inputs(device, (INFO,))


def test_seeded_edits_of_good_files(tmp_path):
    """A thousand damaged files: arrays or InputError, nothing else."""
    rng = np.random.default_rng(22)
    value = rng.normal(size=(2, 4, 3)).astype(np.float32)
    originals = [
        npy(value),
        npy(value, version=(3, 0)),
        npz(("x.npy", npy(value)), ("y.npy", npy(value[0]))),
        npz(("x.npy", npy(value)), compression=zipfile.ZIP_DEFLATED),
        npz(("x.npy", npy(value)), compression=zipfile.ZIP_LZMA),
        npz(("x.npy", npy(value)), compression=zipfile.ZIP_BZIP2),
    ]
    path = tmp_path / "x"
    refused = 0
    for index in range(1200):
        data = bytearray(originals[index % len(originals)])
        for _ in range(int(rng.integers(1, 4))):
            # Headers and directories rather than numbers.
            at = int(rng.integers(0, len(data)) if rng.random() < 0.5 else min(rng.integers(0, 128), len(data) - 1))
            match rng.integers(5):
                case 0:
                    data[at] ^= 1 << int(rng.integers(8))
                case 1:
                    data[at] = int(rng.integers(256))
                case 2:
                    del data[at : at + int(rng.integers(1, 9))]
                case 3:
                    data[at:at] = rng.bytes(int(rng.integers(1, 9)))
                case 4:
                    data[at : at + 1] = b"0123456789([{,'\"\\ "[int(rng.integers(18)) :][:1]
            if not data:
                data = bytearray(b"\0")
        path.write_bytes(bytes(data))
        try:
            got = read_inputs(str(path), (INFO,))
            assert all(isinstance(array, np.ndarray) for array in got.values())
        except InputError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 400
    assert 400 < refused < 1200


def test_the_working_folder_does_not_matter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x.npy").write_bytes(GOOD)
    assert read_inputs("x.npy", (INFO,))["x"].shape == (1, 4, 3)
    with pytest.raises(InputError, match=r"the network has 2 inputs; give an \.npz"):
        read_inputs("x.npy", (INFO, OTHER))
    with pytest.raises(InputError, match="no input given"):
        read_inputs(None, (INFO,))
