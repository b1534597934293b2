"""A float ONNX model as an int8 one in QDQ form, by ONNX Runtime's quantizer."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.errors import ModelError
from nnloom.arch.extras import require

from ..frontend.model_files import MODEL_FILES
from ..frontend.onnx.plan import first_line, load_model, run_options
from .as_convolutions import with_convolutions
from .calibration import ModelInput
from .extremes import without_extremes
from .global_pools import with_global_pools

if TYPE_CHECKING:
    import onnx

    from .noise import LayerReport
    from .provable import Provability

__all__ = ["METHODS", "Calibrated", "OnnxQuantizer", "is_quantized", "model_inputs", "open_shapes", "run_model"]

METHODS = ("minmax", "percentile", "entropy")
"""How ranges are taken from what was seen: all of it; all but the rarest 0.001 %; what keeps most information"""
_NAMES = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
_OPTIONS = {"symmetric": False, "percentile": 99.999}
_NORMALIZATIONS = ("GroupNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization")
_BEHIND = ("Add", "Flatten", "Mul", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_WARNINGS, _ERRORS = 2, 3
"""Severities of what ONNX Runtime prints; it begins with the first"""
CHUNK = 8
"""Inferences of which all tensors are kept at once"""
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "Quant")

Advance = Callable[[int, int], None]


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether a model has quantized operators already."""
    return any(n.op_type in _QUANTIZED or n.op_type.startswith("QLinear") for n in model.graph.node)


def open_shapes(path: Path) -> dict[str, tuple[int | None, ...]]:
    """Shapes of a file's inputs as they are stated, None where they are open.

    Raises
    ------
    ModelError
        If the file is missing or damaged.
    """
    require("onnx", "onnx", "onnxruntime")
    import onnx

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}; give {MODEL_FILES}") from error
    except Exception as error:  # protobuf's errors have no common class
        raise ModelError(f"{path}: damaged ONNX file ({first_line(error)})") from error
    constants = {i.name for i in graph.initializer}
    return {
        i.name: tuple(
            d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in i.type.tensor_type.shape.dim
        )
        for i in graph.input
        if i.name not in constants
    }


def model_inputs(model: onnx.ModelProto) -> list[ModelInput]:
    """The inputs of a model with fixed shapes."""
    from onnx import helper

    constants = {i.name for i in model.graph.initializer}
    result = []
    for info in model.graph.input:
        if info.name not in constants:
            t = info.type.tensor_type
            shape = tuple(d.dim_value for d in t.shape.dim)
            result.append(ModelInput(info.name, shape, helper.tensor_dtype_to_np_dtype(t.elem_type).name))
    return result


def run_model(
    model: onnx.ModelProto,
    inferences: Sequence[Mapping[str, NDArray]],
    *,
    outputs: Sequence[str] | None = None,
    optimize: bool = True,
) -> Iterator[list[NDArray]]:
    """What ONNX Runtime answers, inference by inference: the model's outputs, or other tensors of it."""
    import onnx
    import onnxruntime as ort
    from onnx import helper

    if outputs is not None:
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        del changed.graph.output[:]
        changed.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in outputs)
        model = changed
    options = run_options()
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    names = None if outputs is None else list(outputs)
    for inputs in inferences:
        yield session.run(names, dict(inputs))


@dataclass(frozen=True)
class Calibrated:
    """Ranges of every tensor by one method, in ONNX Runtime's own file."""

    method: str
    cache: Path


class OnnxQuantizer:
    """A float model, ready to be quantized with one range or another.

    Parameters
    ----------
    path
        An .onnx file.
    shapes
        Of inputs that the file leaves open.
    folder
        For files of its own.

    Raises
    ------
    ModelError
        If the file is damaged, has open shapes, is quantized already, or ONNX Runtime refuses it.
    """

    methods = METHODS

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
        import onnx
        from onnxruntime.quantization.shape_inference import quant_pre_process

        self.path, self._folder = path, folder
        model = load_model(path, shapes)
        if is_quantized(model):
            raise ModelError(f"{path}: quantized already; compile it as it is")
        for index, node in enumerate(model.graph.node):
            node.name = node.name or f"{node.op_type}_{index}"
        self._file, given = folder / "float.onnx", folder / "given.onnx"
        onnx.save(model, str(given))
        with _quiet():
            try:
                quant_pre_process(str(given), str(self._file), skip_symbolic_shape=True)
            except Exception as error:  # of ONNX Runtime's many kinds
                raise ModelError(f"{path}: ONNX Runtime refuses it ({first_line(error)}); export it again") from error
        self.model = with_convolutions(with_global_pools(onnx.load(str(self._file))))
        for index, node in enumerate(self.model.graph.node):
            node.name = node.name or f"{node.op_type}_{index}"
        onnx.save(self.model, str(self._file))
        self.inputs = model_inputs(self.model)

    @property
    def layer_names(self) -> list[str]:
        """What can be kept float."""
        return [node.name for node in self.model.graph.node]

    def calibrate(self, method: str, inferences: Sequence[dict[str, NDArray]], advance: Advance) -> Calibrated:
        """Run the float model, and find the range of every tensor."""
        from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator, save_tensors_data

        kind = CalibrationMethod[_NAMES[method]]
        cache = self._folder / f"{method}.json"
        with _quiet(), tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            augmented = str(Path(scratch, "augmented.onnx"))
            calibrator = create_calibrator(
                self._file, _operators(), augmented, calibrate_method=kind, extra_options=_OPTIONS
            )
            for start in range(0, len(inferences), CHUNK):
                calibrator.collect_data(_Reader(inferences[start : start + CHUNK]))
                advance(min(start + CHUNK, len(inferences)), len(inferences))
            save_tensors_data(calibrator.compute_data(), cache)
        return Calibrated(method, cache)

    def quantize(self, ranges: Calibrated, keep_float: Sequence[str] = ()) -> onnx.ModelProto:
        """The model with int8 weights by channel and int8 activations, but for the layers named.

        Raises
        ------
        ModelError
            If ONNX Runtime's quantizer refuses it.
        """
        import onnx
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.calibrate import CalibrationMethod

        target = self._folder / "quantized.onnx"
        with _quiet():
            try:
                quantize_static(
                    self._file,
                    target,
                    None,
                    quant_format=QuantFormat.QDQ,
                    per_channel=True,
                    activation_type=QuantType.QInt8,
                    weight_type=QuantType.QInt8,
                    nodes_to_exclude=[*keep_float, *_of_real_numbers(self.model)],
                    calibrate_method=CalibrationMethod[_NAMES[ranges.method]],
                    calibration_cache_path=ranges.cache,
                )
            except Exception as error:  # of ONNX Runtime's many kinds
                raise ModelError(
                    f"{self.path}: ONNX Runtime's quantizer refuses it ({first_line(error)}); "
                    "--keep-float LAYER leaves a layer out"
                ) from error
        return without_extremes(onnx.load(str(target)))

    def answers(
        self, model: onnx.ModelProto | None, inferences: Sequence[Mapping[str, NDArray]]
    ) -> list[list[NDArray]]:
        """Outputs of a quantized model, or of the float one, for each inference."""
        return list(run_model(model or self.model, inferences))

    def layers(
        self, model: onnx.ModelProto, inferences: Sequence[Mapping[str, NDArray]], advance: Advance
    ) -> list[LayerReport]:
        """Each layer of a quantized model against the float one."""
        from .onnx_layers import measure_layers

        return measure_layers(self.model, model, inferences, advance)

    def finish(self, model: onnx.ModelProto, advance: Advance) -> tuple[onnx.ModelProto, Provability]:
        """A quantized model with scales that can be proved, and how many channels are."""
        from .provable import make_provable

        return make_provable(self.path, model, advance)

    def data(self, model: onnx.ModelProto) -> bytes:
        """What is written to a file."""
        import onnx

        onnx.checker.check_model(model)
        return model.SerializeToString()


def _of_real_numbers(model: onnx.ModelProto) -> list[str]:
    """Layers that ONNX Runtime has in float32 also between QuantizeLinear and DequantizeLinear: quantization of their
    parameters would bring noise, and nothing else. With normalizations go the factors and sums behind them."""
    constants = {i.name for i in model.graph.initializer}
    found: list[str] = []
    real: set[str] = set()
    for node in model.graph.node:
        others = [name for name in node.input if name and name not in constants]
        behind = len(others) == 1 and others[0] in real and node.op_type in _BEHIND
        if node.op_type in _NORMALIZATIONS or node.op_type == "ConvTranspose" or behind:
            found.append(node.name)
            real.update(node.output if node.op_type != "ConvTranspose" else ())
    return found


class _Reader:
    """Inferences as ONNX Runtime's calibration reads them."""

    def __init__(self, inferences: Sequence[dict[str, NDArray]]) -> None:
        self._left = iter(inferences)

    def get_next(self) -> dict[str, NDArray] | None:
        return next(self._left, None)


def _operators() -> list[str]:
    """Operators that the quantizer knows."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return sorted({*QLinearOpsRegistry, *QDQRegistry})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of ONNX Runtime's tools, which they print, or log under no name, and the handler that this
    would add."""

    def of_others(record: logging.LogRecord) -> bool:
        return "onnxruntime" not in record.pathname

    import onnxruntime as ort

    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    root.addFilter(of_others)
    ort.set_default_logger_severity(_ERRORS)
    try:
        with np.errstate(all="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        ort.set_default_logger_severity(_WARNINGS)
        root.removeFilter(of_others)
        root.removeHandler(handler)


def tensors(model: Any) -> dict[str, NDArray]:
    """The constants of a model."""
    from onnx import numpy_helper

    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
