"""What ONNX Runtime makes of a file: the network that the reader reads.

"Exact to ONNX Runtime" needs to know which operators it computes in integers and which in float32. ONNX Runtime decides
that as it optimizes a network: DequantizeLinear, Conv and QuantizeLinear become one QLinearConv, or not, for reasons of
its own. So it is asked: the file is upgraded, its shapes are fixed, and ONNX Runtime writes down what it would run.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnloom.arch.errors import InputError, ModelError
from nnloom.arch.extras import require
from nnloom.arch.reference.onnx import ONNX_RUNTIME_SETTINGS

from ..model_files import MODEL_FILES
from .moves_first import with_moves_first
from .one_type import with_one_type
from .qonnx import is_qonnx, without_quant_nodes

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

__all__ = [
    "Change",
    "Plan",
    "first_line",
    "is_onnx",
    "load_model",
    "make_plan",
    "plan_model",
    "run_on_zeros",
    "run_options",
]

OPSET = 17
"""Older files are upgraded to it."""
_DISABLED = [
    "ConvActivationFusion", "ConvAddActivationFusion", "DynamicQuantizeMatMulFusion", "EmbedLayerNormFusion",
    "GemmActivationFusion", "GroupQueryAttentionFusion", "GroupQueryAttentionPreNormFusion", "MatMulActivationFusion",
    "MatMulScaleFusion", "MatmulTransposeFusion", "SkipLayerNormFusion", "BiasSkipLayerNormFusion",
    "SimplifiedLayerNormFusion", "BiasSoftmaxFusion",
]  # fmt: skip
"""Fusions of operators in float32 into ones of ONNX Runtime's own"""


@dataclass(frozen=True)
class Plan:
    """A file, and what ONNX Runtime runs of it."""

    prepared: onnx.ModelProto
    """the network of the file: upgraded, with fixed shapes"""
    planned: onnx.ModelProto
    """the same in ONNX Runtime's operators"""
    sha256: str
    """of the file"""
    types: Mapping[str, tuple[str, tuple[int, ...]]]
    """type and shape of every tensor of `planned`"""
    constants: Mapping[str, NDArray] = field(default_factory=dict)
    """tensors that depend on constants and shapes alone, and which ONNX Runtime computes nevertheless"""


def is_onnx(data: bytes) -> bool:
    """Whether bytes are a protocol buffer with the fields of an ONNX model, among them a graph."""
    at, fields = 0, set()
    try:
        while at < len(data):
            tag, at = _varint(data, at)
            size = 0
            match tag & 7:
                case 0:
                    _, at = _varint(data, at)
                case 1:
                    size = 8
                case 2:
                    size, at = _varint(data, at)
                case 5:
                    size = 4
                case _:
                    return False
            at += size
            fields.add(tag >> 3)
    except IndexError:
        return False
    return at == len(data) and 7 in fields and fields <= {*range(1, 9), 14, 20, 25, 26}


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise IndexError


Change = Callable[[Path, "onnx.ModelProto"], "onnx.ModelProto"]
"""Makes another network of a prepared one; the path is for messages"""


def make_plan(path: Path, shapes: Mapping[str, tuple[int, ...]], change: Change | None = None) -> Plan:
    """Read a file and have ONNX Runtime plan it.

    Parameters
    ----------
    shapes
        Of inputs, by name, where the file leaves them open.
    change
        What is done to the network before.

    Raises
    ------
    ModelError
        If the file is damaged, its shapes are open, or ONNX Runtime refuses it.
    InputError
        If `shapes` names another input, or a shape does not fit the file's.
    ToolMissingError
        If onnx or onnxruntime is not installed.
    """
    prepared = load_model(path, shapes)
    if change is not None:
        prepared = change(path, prepared)
    planned = plan_model(path, prepared)
    tensors = run_on_zeros(path, planned)
    types = {name: (value.dtype.name, tuple(value.shape)) for name, value in tensors.items()}
    constants = {name: tensors[name] for name in _of_shapes(planned) if name in tensors}
    return Plan(prepared, planned, hashlib.sha256(path.read_bytes()).hexdigest(), types, constants)


def load_model(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """Read a file, upgrade it, and fix its shapes; parameters and errors as of `make_plan`."""
    require("onnx", "onnx", "onnxruntime")
    import onnx

    try:
        model = onnx.load(str(path))
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}; give {MODEL_FILES}") from error
    except Exception as error:  # protobuf's errors have no common class
        raise ModelError(f"{path}: damaged ONNX file ({first_line(error)})") from error
    if not model.graph.node:
        raise ModelError(f"{path}: the model has no operators")
    if not model.graph.output:
        raise ModelError(f"{path}: the model has no outputs")
    if is_qonnx(model):
        model = without_quant_nodes(path, model)
    return _fixed(path, with_moves_first(with_one_type(_upgraded(path, model))), shapes)


def first_line(error: BaseException) -> str:
    """The first line of a message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]


def _upgraded(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    from onnx import version_converter

    version = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if version >= OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as error:  # of any kind: the converter is C++
        if version >= 13:
            return model
        raise ModelError(
            f"{path}: opset {version} cannot be upgraded ({first_line(error)}); export the model with opset 13 or newer"
        ) from error


def _fixed(path: Path, model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """With the shapes of all inputs."""
    # What old files list as inputs with a default is constant; only so it is folded.
    constants = {i.name for i in model.graph.initializer}
    kept = [i for i in model.graph.input if i.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    inputs = {i.name: i for i in model.graph.input}
    unknown = [name for name in shapes if name not in inputs]
    if unknown:
        raise InputError(f"{path}: no input named {unknown[0]!r} (inputs: {', '.join(inputs)})")
    if not inputs:
        raise ModelError(f"{path}: the model has no inputs")
    changed = False
    for name, value in inputs.items():
        dims = value.type.tensor_type.shape.dim
        stated = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in dims]
        given = shapes.get(name)
        if given is None:
            if not value.type.tensor_type.HasField("shape") or None in stated:
                raise ModelError(f"{path}: input {name!r} has the open shape {_open(dims)}; give --shape {name}=1,...")
            continue
        fits = len(given) == len(stated) and all(s in (None, g) for s, g in zip(stated, given, strict=True))
        if stated and not fits:
            raise InputError(f"{path}: input {name!r} has shape {_open(dims)}, not {list(given)}")
        changed = changed or tuple(stated) != given
        del dims[:]
        for size in given:
            dims.add().dim_value = size
    if changed:
        # Shapes that were inferred for others are those of the open ones.
        del model.graph.value_info[:]
        for output in model.graph.output:
            output.type.tensor_type.ClearField("shape")
    return model


def _open(dims: Any) -> str:
    return "[" + ", ".join(str(d.dim_value) if d.dim_value > 0 else d.dim_param or "?" for d in dims) + "]"


def run_options() -> Any:
    """Session options with which ONNX Runtime is the reference."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    for key, value in ONNX_RUNTIME_SETTINGS.items():
        options.add_session_config_entry(key, value)
    return options


def plan_model(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    """A prepared network in ONNX Runtime's operators.

    Raises
    ------
    ModelError
        If ONNX Runtime refuses it; the message names `path`.
    """
    import onnx
    import onnxruntime as ort

    with tempfile.TemporaryDirectory(prefix="nnloom-onnx-") as folder:
        target = Path(folder, "planned.onnx")
        options = run_options()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(target)
        try:
            ort.InferenceSession(
                model.SerializeToString(), options, ["CPUExecutionProvider"], disabled_optimizers=_DISABLED
            )
            return onnx.load(str(target))
        except Exception as error:  # of ONNX Runtime's many kinds
            raise ModelError(
                f"{path}: ONNX Runtime refuses it ({first_line(error)}); export the model again"
            ) from error


_CHANCE = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")


def _of_shapes(planned: onnx.ModelProto) -> list[str]:
    """Tensors that are the same in every run, and are no initializers: such as functions of ONNX make of shapes."""
    known = {i.name for i in planned.graph.initializer}
    found: list[str] = []
    for node in planned.graph.node:
        of_constants = node.op_type in ("Shape", "Size") or all(name in known for name in node.input if name)
        if of_constants and node.op_type not in ("QuantizeLinear", "DequantizeLinear", *_CHANCE):
            found += filter(None, node.output)
            known.update(node.output)
    return found


def run_on_zeros(path: Path, planned: onnx.ModelProto) -> dict[str, NDArray]:
    """Every tensor in a run on zeros: ONNX Runtime does not write down all that it knows of types and shapes.

    Raises
    ------
    ModelError
        If ONNX Runtime cannot run it; the message names `path`.
    """
    import numpy as np
    import onnx
    import onnxruntime as ort
    from onnx import helper

    constants = {i.name for i in planned.graph.initializer}
    model = onnx.ModelProto()
    model.CopyFrom(planned)
    del model.graph.output[:]
    names = list(dict.fromkeys(o for node in planned.graph.node for o in node.output if o))
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    options = run_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    feeds = {}
    for info in planned.graph.input:
        if info.name not in constants:
            t = info.type.tensor_type
            shape = [d.dim_value for d in t.shape.dim]
            feeds[info.name] = np.zeros(shape, helper.tensor_dtype_to_np_dtype(t.elem_type))
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        made = dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as error:  # of ONNX Runtime's many kinds
        raise ModelError(f"{path}: ONNX Runtime cannot run it ({first_line(error)}); export the model again") from error
    return {**feeds, **{name: value for name, value in made.items() if isinstance(value, np.ndarray)}}
