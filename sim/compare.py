"""Every tensor of a compiled network beside that of the reference, or of the float model that it was made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnloom.arch.artifact import MODEL_FILE, ONNX_FILE, Artifact, TensorInfo
from nnloom.arch.errors import InputError, ModelError

from .float_model import is_tflite, model_file

if TYPE_CHECKING:
    from nnloom.runtime import TracedTensor

__all__ = ["Comparison", "TensorDifference", "With", "as_dict", "compare"]

With = Literal["reference", "onnx", "tflite", "float"]
_QUANTIZED = "_QuantizeLinear_Output"
"""What ONNX Runtime's quantizer adds to the name of a tensor"""


@dataclass(frozen=True, kw_only=True)
class TensorDifference:
    """A tensor beside its counterpart."""

    name: str
    region: str
    """where it was made; empty: on the CPU"""
    shape: tuple[int, ...]
    differ: int
    """values that are not the counterpart's; against a float model: that are more than half a step away"""
    largest: float
    """difference; against a float model in units of the tensor's scale, if it is quantized"""
    sqnr_db: float | None
    """against a float model: signal to noise"""
    first: str
    """the first value that differs, in words; empty if none does"""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Every tensor that both sides know, in the order in which they are made."""

    against: str
    tensors: tuple[TensorDifference, ...]
    unmatched: tuple[str, ...]
    """tensors that the other side does not have under their names"""

    @property
    def first(self) -> TensorDifference | None:
        """The first that differs."""
        return next((t for t in self.tensors if t.differ), None)


class _Reference(Protocol):
    name: str

    def run(self, inputs: Sequence[NDArray]) -> None:
        """Run an inference."""

    def tensor(self, name: str, value: NDArray) -> NDArray | None:
        """The counterpart of a tensor in its order; None if there is none."""


_TURNED = (0, 2, 1, 3)
_TURNED_INPUTS = (_TURNED, (0, 3, 2, 1))
"""Of the file's axes, NHWC or NCHW"""


def compare(
    artifact: str | Path,
    inputs: ArrayLike | Mapping[str, ArrayLike],
    *,
    against: With = "reference",
    floating: str | Path | None = None,
    device: str = "model",
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Compare every tensor of an inference.

    Parameters
    ----------
    inputs
        Of one inference.
    against
        "onnx" or "tflite": ONNX Runtime or LiteRT with the artifact's model; "reference": the one that suits it. All
        bits are to be equal. "float": the model `floating`, and the differences are the quantization's.
    device
        As of `InferenceSession`. On "cpu" and "model" all tensors are seen, elsewhere those at the ends of regions.

    Raises
    ------
    ArtifactError, InputError, ModelError, ToolMissingError, DeviceError
    """
    from nnloom.runtime import InferenceSession
    from nnloom.runtime.inputs import as_arrays, check_inputs

    say = progress or (lambda _: None)
    loaded = Artifact.load(artifact)
    infos = loaded.manifest.inputs
    given = check_inputs(infos, as_arrays(infos, inputs))
    say("running the reference")
    reference = _open(loaded, against, floating)
    if against == "float":
        given = [_real(info, value) for info, value in zip(infos, given, strict=True)]
    reference.run(given)
    say(f"running {loaded.manifest.model} on {device}")
    with InferenceSession(artifact, device, native=False, progress=progress) as session:
        traced = session.trace(inputs)
    turned = any(info.permutation in _TURNED_INPUTS for info in infos)
    rows: list[TensorDifference] = []
    unmatched: list[str] = []
    seen: set[str] = set()
    for tensor in traced:
        seen.add(tensor.name)
        if tensor.name.partition(":")[0] in seen - {tensor.name}:
            continue  # the same in another shape or order
        wanted = None
        if turned and tensor.value.ndim == 4:
            # Rows for columns (`compiler.orientation`), unless it never was a picture.
            plain = replace(tensor, value=tensor.value.transpose(_TURNED))
            wanted = reference.tensor(tensor.name, plain.value)
            tensor = tensor if wanted is None else plain
        if wanted is None:
            wanted = reference.tensor(tensor.name, tensor.value)
        if wanted is None or (against == "float" and wanted.dtype.kind != "f"):
            unmatched.append(tensor.name)
        else:
            rows.append(_apart(tensor, wanted) if against == "float" else _differs(tensor, wanted))
    return Comparison(against=reference.name, tensors=tuple(rows), unmatched=tuple(unmatched))


def _real(info: TensorInfo, value: NDArray) -> NDArray:
    if value.dtype.kind in "iu" and info.scale:
        return ((value.astype(np.float64) - info.zero_point) * info.scale).astype(np.float32)
    return value


def _differs(tensor: TracedTensor, wanted: NDArray) -> TensorDifference:
    """A tensor that has to be the same in every bit; what ONNX Runtime moves dequantized is moved as integers here."""
    got = tensor.value
    if wanted.dtype.kind == "f" and got.dtype.kind in "iu" and tensor.scale:
        got = ((got.astype(np.float64) - tensor.zero_point) * tensor.scale).astype(wanted.dtype)
    wide = got.astype(np.float64) - wanted.astype(np.float64)
    apart = (got != wanted) & ~(np.isnan(wide) & (got.dtype.kind == "f"))
    first = ""
    if apart.any():
        place = tuple(int(i) for i in np.argwhere(apart)[0])
        first = f"{got[place]} instead of {wanted[place]} at {list(place)}"
    return TensorDifference(
        name=tensor.name,
        region=tensor.region,
        shape=tuple(got.shape),
        differ=int(apart.sum()),
        largest=float(np.nan_to_num(np.abs(wide)).max(initial=0)),
        sqnr_db=None,
        first=first,
    )


def _apart(tensor: TracedTensor, wanted: NDArray) -> TensorDifference:
    """A tensor that is an approximation."""
    got = tensor.value.astype(np.float64)
    step = tensor.scale if tensor.value.dtype.kind in "iu" and tensor.scale else 1.0
    if step is tensor.scale:
        got = (got - tensor.zero_point) * step
    noise = got - wanted.astype(np.float64)
    apart = np.abs(noise) > 0.5 * step * (1 + 1e-6)
    first = ""
    if apart.any():
        place = tuple(int(i) for i in np.argwhere(apart)[0])
        first = f"{got[place]:.6g} instead of {wanted[place]:.6g} at {list(place)}"
    signal, power = float((wanted.astype(np.float64) ** 2).sum()), float((noise**2).sum())
    return TensorDifference(
        name=tensor.name,
        region=tensor.region,
        shape=tuple(tensor.value.shape),
        differ=int(apart.sum()),
        largest=float(np.abs(noise).max(initial=0) / step),
        sqnr_db=round(10 * float(np.log10(max(signal, 1e-300) / max(power, 1e-20 * signal, 1e-300))), 2),
        first=first,
    )


def _open(artifact: Artifact, against: With, floating: str | Path | None) -> _Reference:
    files = artifact.manifest.files
    shapes = {info.name: info.shape for info in artifact.manifest.inputs}
    if against == "float":
        if floating is None:
            raise InputError("a comparison with the float model needs its file: --float MODEL")
        names = _planned_names(artifact.path / ONNX_FILE) if ONNX_FILE in files else {}
        with model_file(floating) as path:
            if is_tflite(path):
                return _LiteRtTensors(path, str(floating))
            return _OnnxTensors(path, shapes, names, name=str(floating))
    own = "onnx" if ONNX_FILE in files else "tflite"
    if against not in ("reference", own):
        raise InputError(f"{artifact.path}: compiled from a model for {own}, not {against}; leave out --with")
    if own == "tflite" and MODEL_FILE not in files:
        raise ModelError(f"{artifact.path}: the artifact does not hold its model; compile it again")
    if own == "tflite":
        return _LiteRtTensors(artifact.path / MODEL_FILE)
    return _OnnxTensors(artifact.path / ONNX_FILE, {}, None)


def _ordered(found: NDArray, value: NDArray) -> NDArray | None:
    """A tensor of the file in the order and shape of the network's: channels last, or as it is.

    The last rows and columns, which no layer reads, are not computed: those of the file are left out, too.
    """
    if found.ndim == value.ndim == 4 and found.size > value.size:
        _, rows, columns, channels = value.shape
        if found.shape[1] == channels and found.shape[2] >= rows and found.shape[3] >= columns:
            found = found[:, :, :rows, :columns]
    if found.size != value.size:
        return None
    if found.dtype == np.uint8 and value.dtype == np.int8:
        found = (found.astype(np.int16) - 128).astype(np.int8)
    if found.shape == value.shape and found.ndim < 3:
        return found
    for axes in ((0, 2, 3, 1), (0, 2, 1), tuple(range(found.ndim))):
        if len(axes) == found.ndim and _without_ones(found.transpose(axes)) == _without_ones(value):
            return found.transpose(axes).reshape(value.shape)
    return found.reshape(value.shape) if found.ndim < 3 or value.ndim < 3 else None


def _without_ones(array: NDArray) -> tuple[int, ...]:
    return tuple(n for n in array.shape if n != 1)


def _planned_names(path: Path) -> dict[str, str]:
    """Operators of a quantized model, as ONNX Runtime plans it -> the tensors that they make."""
    from nnloom.compiler.frontend.onnx.plan import load_model, plan_model

    return _made_by(plan_model(path, load_model(path, {})))


def _made_by(model: Any) -> dict[str, str]:
    """Operator -> its output, or that of the QuantizeLinear behind it."""
    quantized = {n.input[0]: n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    return {n.name: quantized.get(n.output[0], n.output[0]) for n in model.graph.node if n.name}


class _OnnxTensors:
    """ONNX Runtime with every tensor of a model: of the operators that it plans, or of those of a float file.

    names: of a float file, the tensors that operators of the quantized one make.
    """

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[int, ...]],
        names: Mapping[str, str] | None,
        *,
        name: str = "ONNX Runtime",
    ) -> None:
        from nnloom.compiler.frontend.onnx.plan import load_model, plan_model
        from nnloom.compiler.quantize.onnx_file import open_shapes

        stated = open_shapes(path)
        model = load_model(path, {n: s for n, s in shapes.items() if None in stated.get(n, ())})
        self.name = name
        self._model = plan_model(path, model) if names is None else model
        self._names = _made_by(self._model) if names is None else names
        self._tensors: dict[str, NDArray] = {}

    def run(self, inputs: Sequence[NDArray]) -> None:
        """Run an inference."""
        from nnloom.compiler.quantize.onnx_file import model_inputs, run_model

        names = [info.name for info in model_inputs(self._model)]
        outputs = list(dict.fromkeys(o for node in self._model.graph.node for o in node.output if o))
        feeds = dict(zip(names, inputs, strict=True))
        (answers,) = run_model(self._model, [feeds], outputs=outputs, optimize=False)
        found = dict(zip(outputs, answers, strict=True))
        self._tensors = {name: value for name, value in found.items() if isinstance(value, np.ndarray)}

    def tensor(self, name: str, value: NDArray) -> NDArray | None:
        """By the tensor's name, or by that of the operator that makes it."""
        plain = name.partition(":")[0]
        for candidate in (self._names.get(name), name, self._names.get(plain), plain):
            for known in () if candidate is None else (candidate, candidate.removesuffix(_QUANTIZED)):
                if known in self._tensors:
                    return _ordered(self._tensors[known], value)
        return None


class _LiteRtTensors:
    """LiteRT's reference kernels with every tensor of a model."""

    def __init__(self, path: Path, name: str = "") -> None:
        from .litert import LiteRtReference

        self.name = name or LiteRtReference.name
        self._reference = LiteRtReference(path)
        self._tensors: dict[str, list[NDArray]] = {}

    def run(self, inputs: Sequence[NDArray]) -> None:
        """Run an inference."""
        self._reference.run(*inputs)
        self._tensors = {}
        for name, value in self._reference.tensors().items():
            # Layers have the first of the names that a converter joins.
            for known in {name, name.partition(";")[0]}:
                self._tensors.setdefault(known, []).append(value)

    def tensor(self, name: str, value: NDArray) -> NDArray | None:
        """By the tensor's name and its size."""
        found = [
            v for v in self._tensors.get(name, ()) if v.size == value.size and v.dtype.kind in ("f", value.dtype.kind)
        ]
        return found[0].reshape(value.shape) if len(found) == 1 else None


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Plain JSON values."""
    tensors = [vars(t) | {"shape": list(t.shape)} for t in comparison.tensors]
    first = comparison.first.name if comparison.first else None
    return {"against": comparison.against, "first": first, "tensors": tensors, "unmatched": list(comparison.unmatched)}
