"""The artifact directory: what `nnloom compile` writes and every device reads.

Files: `manifest.json` (this module), `program.bin` (little-endian 32-bit words), `weights.bin` (weight memory words),
`tables.bin` (tables of 256 bytes, if there are any),
`constants.npz` (constants of the operators outside of the accelerator, if there are any), `states.npz` (what the
network's states begin with, if it has any, by their number from 0 on), `cpu.so` (operators and whole
network for the CPU, if compiled), `model.tflite` or `model.onnx` (the model, for comparison
with LiteRT or ONNX Runtime), `report.json`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import AcceleratorConfig
from .dtypes import INT8, UINT8
from .errors import ArtifactError, NnloomError
from .files import restore_directory
from .isa import TABLE_ENTRIES
from .link import DEFAULT_BAUD
from .manifest_checks import check_exits, check_files, check_host_plan, check_images, check_interface, check_regions
from .operation import Operation
from .schema import SchemaError, check_value
from .steps import Step

__all__ = [
    "Artifact",
    "EngineImage",
    "Exit",
    "HostPlan",
    "HostStep",
    "Manifest",
    "Part",
    "Region",
    "Rows",
    "TensorInfo",
    "TensorLocation",
    "file_sha256",
]

FORMAT = "nnloom-artifact"
VERSION = 8
PROGRAM_FILE = "program.bin"
WEIGHTS_FILE = "weights.bin"
TABLES_FILE = "tables.bin"
CPU_FILE = "cpu.so"
CONSTANTS_FILE = "constants.npz"
STATES_FILE = "states.npz"
MODEL_FILE = "model.tflite"
ONNX_FILE = "model.onnx"
BOARD_FILE = "board.json"
"""of a board that nnloom does not bring: from a file, or another package"""
REPORT_FILE = "report.json"
MANIFEST_FILE = "manifest.json"
MODEL_SUFFIXES = (".tflite", ".onnx", ".pt2")
OPTIONAL_FILES = (TABLES_FILE, CONSTANTS_FILE, STATES_FILE, CPU_FILE, MODEL_FILE, ONNX_FILE, BOARD_FILE)


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """A network input, output or state as the user sees it. `scale` 0 means not quantized."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float = 0.0
    zero_point: int = 0
    permutation: tuple[int, ...] = ()
    """where the network has its axes in another order: which of the user's axes each of the network's is"""

    @property
    def held_shape(self) -> tuple[int, ...]:
        """The shape that the network has it in."""
        return tuple(self.shape[a] for a in self.permutation) if self.permutation else self.shape


@dataclass(frozen=True, kw_only=True)
class TensorLocation:
    """A tensor [rows, columns, channels] in activation memory, there int8.

    Row y lives in bank y mod row_banks, at granule base + (y // row_banks) * row_stride; pixels follow
    each other every `pixel_stride` bytes, channels every byte.
    """

    name: str
    rows: int
    columns: int
    channels: int
    base: int
    """granules"""
    row_stride: int
    """granules"""
    pixel_stride: int
    """bytes; a multiple of the granule, or `channels` for a packed network input"""
    shape: tuple[int, ...]
    """shape of the tensor in the network (same number of elements)"""
    scale: float = 0.0
    zero_point: int = 0
    layer: str = ""
    """layer that writes the tensor, empty for inputs"""
    dtype: str = INT8
    """in which the host has it; of uint8 the memory has 128 less, and so have scale and zero point"""

    def granules(self, config: AcceleratorConfig) -> int:
        """Granules that the tensor takes in each bank, in whole words of the host bus."""
        return self._whole_words(config, -(-self.rows // config.row_banks) * self.row_stride)

    @property
    def _sign(self) -> np.uint8:
        """What turns the host's bytes into those of the memory, and back, by exclusive or."""
        return np.uint8(0x80 if self.dtype == UINT8 else 0)

    def pack(self, config: AcceleratorConfig, values: NDArray) -> list[NDArray[np.uint8]]:
        """The bytes of each bank from `base` on, for `values` of `dtype`, any shape with the right element count.

        Padding channels, row tails and the tail of the last 32-bit word are zero. Returns `row_banks` uint8 arrays
        (empty for unused banks).
        """
        data = np.ascontiguousarray(values, self.dtype).reshape(self.rows, self.columns, self.channels).view(np.uint8)
        rows = np.zeros((self.rows, self.row_stride * config.granule), np.uint8)
        pixels = np.zeros((self.rows, self.columns, self.pixel_stride), np.uint8)
        pixels[:, :, : self.channels] = data ^ self._sign
        rows[:, : self.columns * self.pixel_stride] = pixels.reshape(self.rows, -1)
        banks = [rows[bank :: config.row_banks].reshape(-1) for bank in range(config.row_banks)]
        return [np.pad(data, (0, self.bank_bytes(config, bank) - len(data))) for bank, data in enumerate(banks)]

    def unpack(self, config: AcceleratorConfig, banks: list[NDArray[np.uint8]]) -> NDArray:
        """Inverse of `pack`: array of `dtype` and `shape`."""
        rows = np.zeros((self.rows, self.row_stride * config.granule), np.uint8)
        for bank in range(config.row_banks):
            mine = rows[bank :: config.row_banks]
            mine[:] = banks[bank][: mine.size].reshape(mine.shape)
        pixels = rows[:, : self.columns * self.pixel_stride].reshape(self.rows, self.columns, self.pixel_stride)
        values = np.ascontiguousarray(pixels[:, :, : self.channels]) ^ self._sign
        return values.view(self.dtype).reshape(self.shape)

    def bank_bytes(self, config: AcceleratorConfig, bank: int) -> int:
        """Length of the byte block of one bank, a multiple of 4."""
        rows = len(range(bank, self.rows, config.row_banks))
        return self._whole_words(config, rows * self.row_stride) * config.granule

    @staticmethod
    def _whole_words(config: AcceleratorConfig, granules: int) -> int:
        return -(-granules // config.host_granules) * config.host_granules


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of a tensor in external memory, and where they lie in activation memory: the first of them in bank 0."""

    tensor: int
    """number among the region's `external`, whose row stride they have"""
    first: int
    count: int
    base: int
    """granules"""

    def pieces(self, config: AcceleratorConfig, location: TensorLocation) -> list[tuple[int, int, int]]:
        """What is contiguous on both sides: of each bank of activation memory that has some of the rows, from `base`
        on, (bank, first byte among the bytes of the tensor's banks, one bank after the other, bytes)."""
        starts = [0]
        for bank in range(config.row_banks):
            starts.append(starts[-1] + location.bank_bytes(config, bank))
        stride = location.row_stride * config.granule
        result = []
        for bank in range(min(self.count, config.row_banks)):
            row = self.first + bank
            count = len(range(row, self.first + self.count, config.row_banks))
            start = starts[row % config.row_banks] + row // config.row_banks * stride
            result.append((bank, start, count * stride))
        return result


@dataclass(frozen=True, kw_only=True)
class Part:
    """A program of a region with its weights: both are loaded, the program from word 0 on, then it is started there.

    Weights that lie there already, of the same words of the image, are not loaded again.
    """

    program_start: int
    """first 32-bit word in the program image"""
    program_words: int
    weights_start: int
    """first word of `weight_word_bytes` in the weight image"""
    weights_words: int
    weights_base: int = 0
    """weight memory word from which on they are loaded; what lies elsewhere stays"""
    loads: tuple[Rows, ...] = ()
    """rows that are brought from external memory before the program starts"""
    stores: tuple[Rows, ...] = ()
    """rows that go there when it has ended"""
    tables: tuple[int, ...] = ()
    """Of each of the engine's tables, which of the image its program needs there, -1: none. Empty if it needs none, or
    the engine holds all of the image's, each under its number."""

    @property
    def weights_place(self) -> tuple[int, int, int]:
        """First word of its weights in the image, words, first word in the memory: weights that lie there already are
        those of a part that has the same."""
        return self.weights_start, self.weights_words, self.weights_base


@dataclass(frozen=True, kw_only=True)
class Region:
    """A piece of the network that runs on the accelerator, from one start command unless it has parts."""

    name: str
    program_start: int
    """first program memory word"""
    program_words: int
    inputs: tuple[TensorLocation, ...]
    outputs: tuple[TensorLocation, ...]
    tensors: tuple[TensorLocation, ...] = ()
    """every tensor that the region's descriptors write, in order of the descriptors (outputs among them)"""
    parts: tuple[Part, ...] = ()
    """What runs one after the other, activations staying where they are, when program or weights of the network
    exceed the memories; empty if they fit: then all of it is loaded once."""
    external: tuple[TensorLocation, ...] = ()
    """Tensors that lie in external memory, as in activation memory if that were larger, bank after bank (`base` is 0).
    Inputs and outputs among them, which they name, too, are exchanged with the host there."""

    def external_number(self, location: TensorLocation) -> int | None:
        """Number of a tensor among `external`; None if it lies in activation memory."""
        return next((i for i, other in enumerate(self.external) if other.name == location.name), None)

    steps: tuple[Step, ...] = ()
    """of a region in parts: how a list in external memory loads and runs them; empty: each is loaded and run. Over the
    line of a board without such memory each part is loaded and run in turn, whatever stands here."""


@dataclass(frozen=True, kw_only=True)
class HostStep:
    """An operator outside of the accelerator, or the call of a region; see `HostPlan` for the numbers."""

    inputs: tuple[int | None, ...]
    """numbers of the operands, None where one is left out"""
    region: int = -1
    """index of the region that is called; -1: none"""
    operation: Operation | None = None
    """what is computed instead (`nnloom.arch.reference.evaluate`)"""
    names: tuple[str, ...] = ()
    """of an operator's outputs, as in the model; empty if the artifact does not say"""


GIVEN = -1
"""Operand of a step within a region: what the caller gives"""


@dataclass(frozen=True, kw_only=True)
class HostPlan:
    """The network as steps around the regions.

    Values are numbered: the network's inputs, its states as the run begins, the constants, then the outputs of each
    step in order.
    """

    steps: tuple[HostStep, ...] = ()
    outputs: tuple[int, ...] = ()
    states: tuple[int, ...] = ()
    """what each state is after the run"""
    constants: int = 0
    """how many arrays `constants.npz` holds, by their number from 0 on"""
    inside: tuple[HostStep, ...] = ()
    """Operators of regions for which the CPU's library, running the whole network, has no code of its own. Operands
    are constants by number, or `GIVEN`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        steps, inside = (
            [
                {
                    "inputs": list(s.inputs),
                    "region": s.region,
                    "operation": s.operation and s.operation.to_dict(),
                    "names": list(s.names),
                }
                for s in group
            ]
            for group in (self.steps, self.inside)
        )
        return {
            "steps": steps,
            "outputs": list(self.outputs),
            "states": list(self.states),
            "constants": self.constants,
            "inside": inside,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> HostPlan:
        """Inverse of `to_dict`; KeyError, TypeError or AttributeError for another form. Values are not checked."""
        steps, inside = (
            tuple(
                HostStep(
                    inputs=tuple(v["inputs"]),
                    region=v["region"],
                    operation=None if v["operation"] is None else Operation.from_dict(v["operation"]),
                    names=tuple(v.get("names", ())),
                )
                for v in values[group]
            )
            for group in ("steps", "inside")
        )
        return cls(
            steps=steps,
            outputs=tuple(values["outputs"]),
            states=tuple(values["states"]),
            constants=values["constants"],
            inside=inside,
        )


@dataclass(frozen=True, kw_only=True)
class Exit:
    """An output that can be computed alone, with what it needs and nothing else."""

    name: str
    """of the output"""
    regions: tuple[Region, ...]
    host: HostPlan
    """with one output; its steps call these regions"""
    first_constant: int = 0
    """number in `constants.npz` of the plan's first constant"""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a device needs to know about an artifact besides the memory images."""

    model: str
    model_sha256: str
    board: str
    cpu: str
    """name of the `CpuTarget` of the CPU code"""
    config: AcceleratorConfig
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    regions: tuple[Region, ...]
    host: HostPlan
    states: tuple[TensorInfo, ...] = ()
    """what lasts from run to run; `states.npz` holds what it begins with"""
    baud: int = DEFAULT_BAUD
    """bit rate of the board's serial line"""
    packs: bool = True
    """the board's link can leave out bytes between pixels"""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each file of the artifact"""
    exits: tuple[Exit, ...] = ()
    """in the order of their depth: of the multiplications that they need"""

    @property
    def all_regions(self) -> tuple[Region, ...]:
        """Those of the whole network, then those of its exits."""
        return (*self.regions, *(region for leave in self.exits for region in leave.regions))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the format, version and configuration hash."""
        values = dataclasses.asdict(self)
        values["config"] = self.config.to_dict()
        values["host"] = self.host.to_dict()
        for leave, made in zip(self.exits, values["exits"], strict=True):
            made["host"] = leave.host.to_dict()
        if not self.exits:
            del values["exits"]
        return {"format": FORMAT, "version": VERSION, "config_hash": self.config.hash, **values}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Manifest:
        """Inverse of `to_dict`.

        Raises
        ------
        ArtifactError
            If a key is missing, unknown or of the wrong kind, a value is beyond what the rest allows, or the
            configuration hash does not match.
        """
        try:
            if values["format"] != FORMAT or values["version"] != VERSION:
                raise ArtifactError(
                    f"manifest: format {values['format']} version {values['version']} is not "
                    f"{FORMAT} version {VERSION}; compile the model again"
                )
            config = AcceleratorConfig.from_dict(values["config"])
            if config.hash != values["config_hash"]:
                raise ArtifactError("manifest: config does not match config_hash; compile the model again")

            def location(v: dict[str, Any]) -> TensorLocation:
                return TensorLocation(**{**v, "shape": tuple(v["shape"])})

            def part(v: dict[str, Any]) -> Part:
                moves = {name: tuple(Rows(**rows) for rows in v[name]) for name in ("loads", "stores")}
                return Part(**{**v, **moves, "tables": tuple(v.get("tables", ()))})

            def region(v: dict[str, Any]) -> Region:
                return Region(
                    name=v["name"],
                    program_start=v["program_start"],
                    program_words=v["program_words"],
                    inputs=tuple(location(t) for t in v["inputs"]),
                    outputs=tuple(location(t) for t in v["outputs"]),
                    tensors=tuple(location(t) for t in v["tensors"]),
                    parts=tuple(map(part, v["parts"])),
                    external=tuple(location(t) for t in v["external"]),
                    steps=tuple(Step(**step) for step in v.get("steps", ())),
                )

            def info(v: dict[str, Any]) -> TensorInfo:
                return TensorInfo(**{**v, "shape": tuple(v["shape"]), "permutation": tuple(v["permutation"])})

            manifest = cls(
                model=values["model"],
                model_sha256=values["model_sha256"],
                board=values["board"],
                cpu=values["cpu"],
                config=config,
                inputs=tuple(info(v) for v in values["inputs"]),
                outputs=tuple(info(v) for v in values["outputs"]),
                regions=tuple(map(region, values["regions"])),
                host=HostPlan.from_dict(values["host"]),
                states=tuple(info(v) for v in values["states"]),
                baud=values["baud"],
                packs=values["packs"],
                files=dict(values["files"]),
                exits=tuple(
                    Exit(
                        name=v["name"],
                        regions=tuple(map(region, v["regions"])),
                        host=HostPlan.from_dict(v["host"]),
                        first_constant=v["first_constant"],
                    )
                    for v in values.get("exits", ())
                ),
            )
            check_value(manifest, cls)
            check_files(manifest.files, (PROGRAM_FILE, WEIGHTS_FILE))
            check_interface(manifest)
            check_regions(manifest.config, manifest.all_regions)
            check_host_plan(manifest)
            check_exits(manifest)
            return manifest
        except NnloomError:
            raise
        except SchemaError as error:
            raise ArtifactError(f"manifest: {error}; compile the model again") from error
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ArtifactError(f"manifest: damaged or edited ({error}); compile the model again") from error


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, eq=False)
class EngineImage:
    """What an engine is loaded with: programs, weights and tables for one configuration."""

    config: AcceleratorConfig
    program: NDArray[np.uint32]
    weights: NDArray[np.uint8]
    """[words, weight_word_bytes]"""
    tables: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, TABLE_ENTRIES), np.uint8))
    """[tables, 256]: what is written for each result byte, of all programs"""

    def part_images(self, part: Part) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        """Program and weights of a part."""
        return (
            self.program[part.program_start : part.program_start + part.program_words],
            self.weights[part.weights_start : part.weights_start + part.weights_words],
        )

    @property
    def is_whole(self) -> bool:
        """Whether the engine's memories hold all of it at once."""
        config = self.config
        return (
            len(self.program) <= config.program_words
            and len(self.weights) <= config.weight_words
            and len(self.tables) <= config.tables
        )

    def part_tables(self, part: Part | None = None) -> NDArray[np.uint8]:
        """The engine's tables, [config.tables, 256], while a part runs; those that it does not need are zeros. Without
        a part, or of one that names none: the image's, as far as the engine has room."""
        tables = np.zeros((self.config.tables, TABLE_ENTRIES), np.uint8)
        if part is None or not part.tables:
            held = self.tables[: self.config.tables]
            tables[: len(held)] = held
        else:
            for place, number in enumerate(part.tables):
                if number >= 0:
                    tables[place] = self.tables[number]
        return tables


@dataclass(frozen=True)
class Artifact:
    """An artifact directory, loaded and checked."""

    path: Path
    manifest: Manifest
    program: NDArray[np.uint32]
    weights: NDArray[np.uint8]
    """[words, weight_word_bytes]"""
    tables: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, TABLE_ENTRIES), np.uint8))
    """[tables, 256]: what is written for each result byte, of all programs"""

    @property
    def image(self) -> EngineImage:
        """What the engine is loaded with."""
        return EngineImage(self.manifest.config, self.program, self.weights, self.tables)

    def part_images(self, part: Part) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        """Program and weights of a part."""
        return self.image.part_images(part)

    @classmethod
    def load(cls, path: str | Path) -> Artifact:
        """Read and verify an artifact.

        Raises
        ------
        ArtifactError
            If the directory or a file is missing, a file differs from its hash in the manifest, or a value of the
            manifest does not fit the rest.
        """
        path = Path(path)
        manifest_path = path / MANIFEST_FILE
        if not path.exists():
            restore_directory(path)
        if path.is_file():
            raise ArtifactError(f"{path}: a file, not an artifact; {_artifact_for(path)}")
        if not manifest_path.is_file():
            raise ArtifactError(f"{path}: no {MANIFEST_FILE} there; make one with 'nnloom compile MODEL -o {path}'")
        try:
            text = manifest_path.read_text()
            values = json.loads(text)
        except (ValueError, OSError, RecursionError) as error:
            raise ArtifactError(f"{manifest_path}: not readable as JSON ({error}); compile the model again") from error
        if not isinstance(values, dict):
            raise ArtifactError(f"{manifest_path}: not a JSON object; compile the model again")
        seal = values.pop("sha256", None)
        if seal != _seal(values):
            raise ArtifactError(f"{manifest_path}: edited after compilation; compile the model again")
        manifest = Manifest.from_dict(values)
        for name, want in manifest.files.items():
            file = path / name
            if not file.is_file():
                raise ArtifactError(f"{file}: missing; compile the model again")
            if file_sha256(file) != want:
                raise ArtifactError(f"{file}: differs from its hash in the manifest; compile the model again")
        program = _read_words(path / PROGRAM_FILE, 4).reshape(-1).view("<u4").astype(np.uint32)
        weights = _read_words(path / WEIGHTS_FILE, manifest.config.weight_word_bytes)
        tables = np.zeros((0, TABLE_ENTRIES), np.uint8)
        if TABLES_FILE in manifest.files:
            tables = _read_words(path / TABLES_FILE, TABLE_ENTRIES)
        try:
            check_images(manifest.config, manifest.all_regions, program, weights, tables)
        except SchemaError as error:
            raise ArtifactError(f"{manifest_path}: {error}; compile the model again") from error
        return cls(path, manifest, program, weights, tables)


def _read_words(file: Path, size: int) -> NDArray[np.uint8]:
    """Words of `size` bytes, uint8 [words, size]."""
    data = np.fromfile(file, np.uint8)
    if len(data) % size:
        raise ArtifactError(f"{file}: not whole words of {size} bytes; compile the model again")
    return data.reshape(-1, size)


def write_artifact(
    path: Path,
    manifest: Manifest,
    program: NDArray[np.uint32],
    weights: NDArray[np.uint8],
    tables: NDArray[np.uint8] | None = None,
) -> None:
    """Write program, weights, tables if there are any, and the sealed manifest into an existing directory (other files
    are hashed too).

    The caller gives a fresh temporary directory and renames it into place once this returns.
    """
    program.astype("<u4").tofile(path / PROGRAM_FILE)
    weights.astype(np.uint8).tofile(path / WEIGHTS_FILE)
    if tables is not None and len(tables):
        tables.astype(np.uint8).tofile(path / TABLES_FILE)
    names = [PROGRAM_FILE, WEIGHTS_FILE] + [name for name in OPTIONAL_FILES if (path / name).exists()]
    manifest = dataclasses.replace(manifest, files={name: file_sha256(path / name) for name in names})
    values = json.loads(json.dumps(manifest.to_dict()))
    values["sha256"] = _seal(values)
    (path / MANIFEST_FILE).write_text(json.dumps(values, indent=1) + "\n")


def _artifact_for(path: Path) -> str:
    """What to do with a file that was given in place of an artifact's directory."""
    if path.parent.joinpath(MANIFEST_FILE).is_file():
        return f"give its folder, {path.parent}"
    if path.suffix in MODEL_SUFFIXES:
        return f"run 'nnloom compile {path} -o DIR' and give DIR"
    return "give the folder that 'nnloom compile MODEL -o DIR' makes"


def _seal(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
