"""PyTorch programs (`torch.export`) by way of ONNX, and files of frameworks that are no programs."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nnloom.arch.artifact import MANIFEST_FILE
from nnloom.arch.errors import ModelError, NnloomError
from nnloom.arch.extras import require

from .model_files import MODEL_FILES

__all__ = ["check_other_formats", "exported", "is_program"]

OPSET = 20
SUFFIX = ".pt2"
NAME = "model"
"""Of a program that has no file"""


def is_program(model: Any) -> bool:
    """Whether a model is a `torch.export.ExportedProgram`, or a file of one: by its name, since PyTorch runs what such
    files pickle."""
    if not isinstance(model, str | Path):
        return True
    path = Path(model)
    return path.suffix == SUFFIX and _holds_program(_members(path))


def _holds_program(names: list[str]) -> bool:
    return any(n.endswith(("models/model.json", "serialized_exported_program.json")) for n in names)


def check_other_formats(path: Path) -> None:
    """Raise ModelError for files and folders that hold a network in a form that is exported first, saying how."""
    if path.is_dir():
        raise ModelError(f"{path}: {_folder(path)}")
    names = _members(path)
    try:
        with path.open("rb") as file:
            magic = file.read(8)
    except OSError:
        return  # who reads it says why
    if {"config.json", "metadata.json"} <= set(names) or magic == b"\x89HDF\r\n\x1a\n":
        raise ModelError(
            f"{path}: a Keras model; export it in Python, keras.models.load_model({str(path)!r}).export("
            f"{path.stem + '.onnx'!r}, format='onnx'), and give that file"
        )
    if _holds_program(names):
        raise ModelError(
            f"{path}: a program of PyTorch, which may run code as it is read; if you trust it, name it {path.stem}.pt2"
        )
    if path.suffix == SUFFIX:
        raise ModelError(f"{path}: damaged, or no program of torch.export; write it with torch.export.save")
    if any(n.endswith("data.pkl") for n in names):
        raise ModelError(
            f"{path}: PyTorch weights, which are no network; in Python, torch.export.save(torch.export.export(network, "
            f"(x,)), {path.stem + '.pt2'!r}), and give that file"
        )


def _folder(path: Path) -> str:
    if (path / "saved_model.pb").is_file():
        return (
            f"a TensorFlow model; quantize it in Python, tf.lite.TFLiteConverter.from_saved_model({str(path)!r}) with "
            "a representative_dataset, and give the .tflite file"
        )
    if (path / MANIFEST_FILE).is_file():
        return "an artifact, compiled already; see 'nnloom run --help', or give the model file that it was made from"
    return f"a folder; give {MODEL_FILES}"


def _members(path: Path) -> list[str]:
    """Names in an archive; none if it is no archive."""
    try:
        if not zipfile.is_zipfile(path):
            return []
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return []


@contextlib.contextmanager
def exported(model: Any) -> Iterator[Path]:
    """An ONNX file of a program, for as long as the context lasts; errors name the program instead of it.

    Raises
    ------
    ModelError
        If the file is damaged, or PyTorch cannot write the program as ONNX.
    ToolMissingError
        If torch or onnxscript is not installed.
    """
    require("torch", "torch", "onnxscript")
    import torch

    path = Path(model) if isinstance(model, str | Path) else None
    what = str(path or "the program")
    if path is None and not isinstance(model, torch.export.ExportedProgram):
        raise ModelError(
            f"a {type(model).__name__} is no model; give a file, or the result of torch.export.export(network, (x,))"
        )
    with tempfile.TemporaryDirectory(prefix="nnloom-torch-") as folder:
        target = Path(folder, f"{path.stem if path else NAME}.onnx")
        with _quiet():
            # Registers the operators of programs that PyTorch has quantized.
            import torch.ao.quantization.fx._decomposed

            try:
                program = model if path is None else torch.export.load(path)
            except Exception as error:  # of many kinds
                raise ModelError(f"{what}: damaged program ({_line(error)}); export it again") from error
            try:
                program = _decomposed(program)
                written = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=OPSET)
                assert written is not None
                written.save(str(target))
            except Exception as error:  # of many kinds
                raise ModelError(f"{what}: PyTorch cannot write it as ONNX ({_line(error)})") from error
        try:
            yield target
        except NnloomError as error:
            raise type(error)(str(error).replace(str(target), what)) from error


def _decomposed(program: Any) -> Any:
    """A program without pools to a size, of which PyTorch makes indices in ONNX, or nothing."""
    import torch

    aten = torch.ops.aten
    table: dict[Any, Callable[[Any, Any], Any]] = {
        aten.adaptive_avg_pool2d.default: lambda x, size: _pooled(x, size, lambda part: part.mean((-2, -1))),
        aten.adaptive_max_pool2d.default: lambda x, size: (
            _pooled(x, size, lambda part: part.amax((-2, -1))),
            torch.zeros((*x.shape[:-2], *size), dtype=torch.int64),  # where they are: not computed
        ),
    }
    used = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target in table and tuple(node.args[1]) != (1, 1):
            used[node.target] = table[node.target]
    return program.run_decompositions(used) if used else program


def _pooled(x: Any, size: Any, pool: Callable[[Any], Any]) -> Any:
    """Windows [..., rows, columns] that cover an image evenly, pooled."""
    import torch

    if tuple(size) == (1, 1):
        return pool(x)[..., None, None]
    rows, columns = (
        [slice(i * n // count, -(-(i + 1) * n // count)) for i in range(count)]
        for n, count in zip(x.shape[-2:], size, strict=True)
    )
    return torch.stack([torch.stack([pool(x[..., r, c]) for c in columns], -1) for r in rows], -2)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _line(error: BaseException) -> str:
    """What went wrong at first: the exporter wraps errors, and explains at length."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]
