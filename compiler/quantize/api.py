"""Quantization from float model file to int8 model file."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from numpy.typing import NDArray

from nnloom.arch.errors import InputError
from nnloom.arch.extras import require
from nnloom.arch.files import write_atomically

from ..frontend.torch import check_other_formats, exported, is_program
from .calibration import Calibration, CalibrationData, ModelInput, array_of, read_arrays_of, read_calibration
from .noise import LayerReport, sqnr

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from .provable import Provability

__all__ = ["Gain", "QuantizeResult", "quantize"]

WORST = 3
"""Layers of which it is tried what keeping them float would bring"""
LISTED = 20
"""Layers that a message names"""
Method = Literal["auto", "minmax", "percentile", "entropy", "average"]
Activations = Literal["int8", "int16"]
Advance = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What keeping a layer float would bring."""

    layer: str
    sqnr_db: float
    """of the network's outputs then"""
    gain_db: float


@dataclass(frozen=True, kw_only=True)
class QuantizeResult:
    """A quantized model file, and how good it is."""

    path: Path
    method: str
    """with which ranges were taken"""
    sqnr_db: float
    """of the outputs: signal to quantization noise on inferences that ranges were not taken from, if there are two"""
    tried: Mapping[str, float]
    """sqnr_db of each method"""
    calibrated: int
    compared: int
    """inferences"""
    held_out: bool
    keep_float: tuple[str, ...]
    layers: tuple[LayerReport, ...]
    gains: tuple[Gain, ...]
    """of the layers whose own quantization loses most"""
    provability: Provability | None
    """of an ONNX model: what the accelerator rounds as ONNX Runtime does"""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["path"] = str(self.path)
        values["tried"] = dict(self.tried)
        values["keep_float"] = list(self.keep_float)
        values["layers"] = [dataclasses.asdict(layer) for layer in self.layers]
        values["gains"] = [dataclasses.asdict(gain) for gain in self.gains]
        values["provability"] = None if self.provability is None else dataclasses.asdict(self.provability)
        return values


class _Quantizer(Protocol):
    """A float model, ready to be quantized with one range or another. Models are of the quantizer's own type."""

    @property
    def inputs(self) -> Sequence[ModelInput]: ...

    @property
    def methods(self) -> Sequence[str]: ...

    @property
    def layer_names(self) -> Sequence[str]: ...

    def calibrate(self, method: str, inferences: Sequence[dict[str, NDArray]], advance: Advance) -> Any:
        """Find the range of every tensor by a method."""

    def quantize(self, ranges: Any, keep_float: Sequence[str] = ()) -> Any:
        """The model with these ranges, but for some layers."""

    def answers(self, model: Any, inferences: Sequence[Mapping[str, NDArray]]) -> list[list[NDArray]]:
        """Real outputs of a quantized model, or of the float one (None), for each inference."""

    def layers(self, model: Any, inferences: Sequence[Mapping[str, NDArray]], advance: Advance) -> list[LayerReport]:
        """Each layer of a quantized model against the float one."""

    def finish(self, model: Any, advance: Advance) -> tuple[Any, Provability | None]:
        """A quantized model with what costs nothing, and what the accelerator proves of it."""

    def data(self, model: Any) -> bytes:
        """What is written to a file."""


def quantize(
    model: str | Path | ExportedProgram,
    calibration: Calibration,
    *,
    output: str | Path,
    keep_float: Sequence[str] = (),
    method: Method = "auto",
    activations: Activations = "int8",
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    limit: int | None = None,
    explain: bool = True,
    progress: Callable[[str], None] | None = None,
    advance: Advance | None = None,
) -> QuantizeResult:
    """Quantize a float ONNX or TFLite model to int8.

    Weights are int8 by channel, activations int8 with a zero point. The file runs in ONNX Runtime or LiteRT, too.

    Parameters
    ----------
    model
        Path of a float .onnx, .tflite or .pt2 (`torch.export`) file, or such a program, which becomes an .onnx file.
    calibration
        Inputs as the float model takes them: an .npz or .npy file, a folder of such files, an array, or arrays by
        name; several inferences stacked along the first axis. Of two and more every fifth is kept to compare on.
    output
        File to write; an earlier one is replaced on success.
    keep_float
        Names of layers that are not quantized, or parts of names that only one has.
    method
        How ranges are taken: "minmax", "percentile" or "entropy" of ONNX models, "minmax" or "average" (of the ranges
        of the inferences) of TFLite models, or "auto" for the one with the best signal to noise.
    activations
        Of TFLite models: "int16" makes them 16 bits wide, for the CPU.
    shapes
        Of inputs, by name, where the file leaves them open; by default those of the data, one inference at a time.
    limit
        Use the first so many inferences only.
    explain
        Measure each layer, and what keeping the worst ones float would bring.
    progress, advance
        Called with the name of each phase, and with how far it is.

    Raises
    ------
    NnloomError
        `ModelError`, `InputError` or `ToolMissingError`, each with a message of one line.
    """
    output = Path(output)
    say, step = progress or (lambda _: None), advance or (lambda _done, _total: None)
    say("reading the model and the calibration data")
    files = read_arrays_of(calibration)
    with contextlib.ExitStack() as stack:
        if is_program(model):
            path = stack.enter_context(exported(model))
        else:
            assert isinstance(model, str | Path)
            path = Path(model)
            check_other_formats(path)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nnloom-quantize-"))
        quantizer = _open(path, files, shapes or {}, activations, Path(folder))
        if method not in ("auto", *quantizer.methods):
            raise InputError(
                f"{path}: no method {method!r} for such a file (methods: auto, {', '.join(quantizer.methods)})"
            )
        kept = [_layer(path, name, quantizer.layer_names) for name in keep_float]
        data = read_calibration(files, quantizer.inputs, limit=limit)
        trial = _Trial(quantizer, data, say, step)
        for name in quantizer.methods if method == "auto" else (method,):
            trial.run(name, kept)
        best = max(trial.tried, key=lambda name: trial.tried[name])
        result, provability, score = trial.finish(best)
        layers: tuple[LayerReport, ...] = ()
        gains: tuple[Gain, ...] = ()
        if explain:
            layers, gains = trial.explain(best, result, score, kept)
        write_atomically(output, quantizer.data(result))
    return QuantizeResult(
        path=output,
        method=best,
        sqnr_db=round(score, 2),
        tried={name: round(value, 2) for name, value in trial.tried.items()},
        calibrated=len(data.calibrate),
        compared=len(data.compare),
        held_out=data.held_out,
        keep_float=tuple(kept),
        layers=layers,
        gains=gains,
        provability=provability,
    )


def _open(
    path: Path,
    files: Sequence[Mapping[str, Any]],
    shapes: Mapping[str, tuple[int, ...]],
    activations: Activations,
    folder: Path,
) -> _Quantizer:
    """The quantizer for a file, by its content."""
    from .tflite_file import TfliteQuantizer, is_tflite

    if is_tflite(path):
        if shapes:
            raise InputError(f"{path}: shapes are given for inputs of ONNX models; a TFLite model has its own")
        return TfliteQuantizer(path, activations)
    from .onnx_file import OnnxQuantizer

    require("onnx", "onnx", "onnxruntime")
    if activations != "int8":
        raise InputError(f"{path}: {activations} activations are for TFLite models; take int8")
    return OnnxQuantizer(path, _shapes(path, files, shapes), folder)


def _layer(path: Path, name: str, known: Sequence[str]) -> str:
    """The layer with a name, or with a name that no other layer's contains."""
    found = [name] if name in known else [n for n in known if name in n]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"{path}: {len(found)} layers have {name!r} in their names ({_listed(found)}); give more of it"
        )
    raise InputError(f"{path}: no layer named {name!r} to keep float (layers: {_listed(known)})")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def _shapes(
    path: Path, files: Sequence[Mapping[str, Any]], given: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Shapes of inputs that the file leaves open: as given, else as in the data, for one inference."""
    from .onnx_file import open_shapes

    stated = open_shapes(path)
    shapes = dict(given)
    for name, dims in stated.items():
        array = array_of(files[0], name, len(stated))
        if name in given or None not in dims or array is None or array.ndim not in (len(dims), len(dims) - 1):
            continue
        sizes = (1, *array.shape[array.ndim - len(dims) + 1 :])
        if all(d in (None, s) for d, s in zip(dims, sizes, strict=True)):
            shapes[name] = sizes
    return shapes


class _Trial:
    """One float model with its answers, and what the methods make of it."""

    def __init__(self, quantizer: _Quantizer, data: CalibrationData, say: Callable[[str], None], step: Advance) -> None:
        self.quantizer, self.data, self.say, self.step = quantizer, data, say, step
        self.reference = quantizer.answers(None, data.compare)
        self.tried: dict[str, float] = {}
        self._ranges: dict[str, Any] = {}
        self._made: dict[str, Any] = {}

    def score(self, model: Any) -> float:
        """Signal to noise of a model's outputs in dB."""
        return sqnr(self.reference, self.quantizer.answers(model, self.data.compare))

    def run(self, method: str, keep_float: Sequence[str]) -> None:
        """Quantize by a method, and note how good that is."""
        self.say(f"calibrating: {method}")
        self._ranges[method] = self.quantizer.calibrate(method, self.data.calibrate, self.step)
        self._made[method] = self.quantizer.quantize(self._ranges[method], keep_float)
        self.tried[method] = self.score(self._made[method])

    def finish(self, method: str) -> tuple[Any, Provability | None, float]:
        """The best model with scales that can be proved; how many are, and how good it is."""
        self.say("choosing scales that can be proved")
        model, provability = self.quantizer.finish(self._made[method], self.step)
        return model, provability, self.score(model)

    def explain(
        self, method: str, model: Any, score: float, keep_float: Sequence[str]
    ) -> tuple[tuple[LayerReport, ...], tuple[Gain, ...]]:
        """Each layer, and what keeping the worst ones float would bring."""
        self.say("measuring each layer")
        layers = self.quantizer.layers(model, self.data.compare, self.step)
        worst = sorted((v for v in layers if v.own_sqnr_db is not None), key=lambda v: v.worst_db)[:WORST]
        gains = []
        for index, layer in enumerate(worst):
            self.say(f"trying {layer.name} in float")
            changed = self.score(self.quantizer.quantize(self._ranges[method], [*keep_float, layer.name]))
            gains.append(Gain(layer=layer.name, sqnr_db=round(changed, 2), gain_db=round(changed - score, 2)))
            self.step(index + 1, len(worst))
        return tuple(layers), tuple(sorted(gains, key=lambda g: -g.gain_db))
