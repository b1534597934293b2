"""A float TFLite model as an int8 one, by Google's AI Edge Quantizer."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.errors import ModelError
from nnloom.arch.extras import require

from ..frontend.model_files import MODEL_FILES
from .calibration import ModelInput
from .noise import LayerReport, Parameters, Sums, add_case, decibels, layer_report

__all__ = ["TfliteQuantizer", "is_tflite"]

Advance = Callable[[int, int], None]
_RECIPES = {"int8": "static_wi8_ai8", "int16": "static_wi8_ai16"}
_QUANTIZED = (np.int8, np.int16, np.uint8)


def is_tflite(path: Path) -> bool:
    """Whether a file has the identifier of TFLite models."""
    try:
        with path.open("rb") as file:
            return file.read(8)[4:] == b"TFL3"
    except OSError:
        return False  # the reader of ONNX files says why


class TfliteQuantizer:
    """A float model, ready to be quantized with one range or another; models are bytes.

    Raises
    ------
    ModelError
        If the file is damaged or quantized already.
    ToolMissingError
        If ai-edge-quantizer is not installed.
    """

    methods = ("minmax", "average")

    def __init__(self, path: Path, activations: Literal["int8", "int16"]) -> None:
        require("quantize", "tflite", "ai_edge_quantizer", "ai_edge_litert")
        self.path, self._activations = path, activations
        self._float, self._signature, names = _prepared(path)
        runner = _Interpreter(path, self._float)
        types = {d["dtype"] for d in runner.details()}
        if types & set(_QUANTIZED):
            raise ModelError(f"{path}: quantized already; compile it as it is")
        self.inputs = [
            ModelInput(name, tuple(int(n) for n in d["shape"]), np.dtype(d["dtype"]).name)
            for name, d in zip(names, runner.inputs, strict=True)
        ]
        self._operators = _operators(self._float)

    @property
    def layer_names(self) -> list[str]:
        """What can be kept float: layers have the names of their outputs."""
        return [name for _, name, _ in self._operators]

    def calibrate(self, method: str, inferences: Sequence[dict[str, NDArray]], advance: Advance) -> Any:
        """Run the float model, and find the range of every tensor."""
        quantizer = self._quantizer(())
        result: dict[str, Any] = {}
        with _quiet(self.path):
            for index, inputs in enumerate(inferences):
                found = quantizer.calibrate({self._signature: [inputs]}, num_threads=1)
                for name, range_ in found.items():
                    if name not in result:
                        result[name] = dict(range_)
                    elif "min" in range_:
                        _merge(result[name], range_, index, average=method == "average")
                advance(index + 1, len(inferences))
        return result

    def quantize(self, ranges: Any, keep_float: Sequence[str] = ()) -> bytes:
        """The model with int8 weights by channel, but for the layers named.

        Raises
        ------
        ModelError
            If the quantizer refuses it.
        """
        with _quiet(self.path):
            return bytes(self._quantizer(keep_float).quantize(ranges).quantized_model)

    def _quantizer(self, keep_float: Sequence[str]) -> Any:
        from ai_edge_quantizer import quantizer, recipe

        rules = list(getattr(recipe, _RECIPES[self._activations])())
        for name in keep_float:
            scope = re.escape(name)
            rules.append({"regex": scope, "operation": "*", "algorithm_key": "no_quantize", "op_config": None})
        with _quiet(self.path):
            return quantizer.Quantizer(self._float, rules)

    def answers(self, model: bytes | None, inferences: Sequence[Mapping[str, NDArray]]) -> list[list[NDArray]]:
        """Real outputs of a quantized model, or of the float one, for each inference."""
        runner = _Interpreter(self.path, model or self._float)
        result = []
        for inputs in inferences:
            runner.run([inputs[info.name] for info in self.inputs])
            result.append([runner.real(detail) for detail in runner.outputs])
        return result

    def layers(self, model: bytes, inferences: Sequence[Mapping[str, NDArray]], advance: Advance) -> list[LayerReport]:
        """Each layer of a quantized model against the float one; both know a tensor by its name."""
        floating = _Interpreter(self.path, self._float, keep=True)
        quantized = _Interpreter(self.path, model, keep=True)
        before = {d["name"]: d for d in floating.details()}
        after = {d["name"]: d for d in quantized.details()}
        rows = []
        seen: set[tuple[float, int]] = set()
        for kind, name, weights in self._operators:
            if name not in after or before[name]["dtype"] is not np.float32:
                continue
            detail, parameters = after[name], None
            if detail["dtype"] in _QUANTIZED:
                limits = np.iinfo(detail["dtype"])
                scale, zero = detail["quantization"]
                own = (scale, zero) not in seen
                seen.add((scale, zero))
                parameters = Parameters(float(scale), int(zero), int(limits.min), int(limits.max), own)
            rows.append((kind, name, _weights(floating, quantized, before, after, weights), parameters, Sums()))
        for index, inputs in enumerate(inferences):
            for runner in (floating, quantized):
                runner.run([inputs[info.name] for info in self.inputs])
            for _, name, _, parameters, sums in rows:
                add_case(sums, floating.real(before[name]), quantized.real(after[name]), parameters)
            advance(index + 1, len(inferences))
        return [layer_report(name, kind, name, p, sums, weights) for kind, name, weights, p, sums in rows]

    def finish(self, model: bytes, advance: Advance) -> tuple[bytes, None]:
        """As it is: the accelerator has LiteRT's own arithmetic."""
        return model, None

    def data(self, model: bytes) -> bytes:
        """What is written to a file."""
        return model


def _merge(known: dict[str, NDArray], found: Mapping[str, NDArray], index: int, *, average: bool) -> None:
    """Take the range of another inference into account."""
    if average:
        for key in ("min", "max"):
            known[key] = (known[key] * index + found[key]) / (index + 1)
        return
    known["min"] = np.minimum(known["min"], found["min"])
    known["max"] = np.maximum(known["max"], found["max"])


def _weights(
    floating: _Interpreter, quantized: _Interpreter, before: dict, after: dict, name: str | None
) -> float | None:
    """Signal to noise of constant weights in dB."""
    if name is None or name not in after or after[name]["dtype"] not in _QUANTIZED:
        return None
    wide, back = floating.real(before[name]), quantized.real(after[name])
    return round(decibels(float((wide**2).sum()), float(((wide - back) ** 2).sum())), 2)


class _Interpreter:
    """LiteRT with a model; real numbers in and out."""

    def __init__(self, path: Path, model: bytes, *, keep: bool = False) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        with _quiet(path):
            self._interpreter = Interpreter(
                model_content=model,
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
                experimental_preserve_all_tensors=keep,
                num_threads=1,
            )
            self._interpreter.allocate_tensors()
        self._path = path
        self.inputs = self._interpreter.get_input_details()
        self.outputs = self._interpreter.get_output_details()

    def details(self) -> list[dict[str, Any]]:
        return self._interpreter.get_tensor_details()

    def run(self, inputs: Sequence[NDArray]) -> None:
        for detail, value in zip(self.inputs, inputs, strict=True):
            scale, zero = detail["quantization"]
            if detail["dtype"] in _QUANTIZED:
                limits = np.iinfo(detail["dtype"])
                value = np.clip(np.rint(value / scale) + zero, limits.min, limits.max)
            self._interpreter.set_tensor(detail["index"], value.astype(detail["dtype"]))
        self._interpreter.invoke()

    def real(self, detail: dict[str, Any]) -> NDArray[np.float64]:
        """What a tensor stands for."""
        value = self._interpreter.get_tensor(detail["index"]).astype(np.float64)
        q = detail["quantization_parameters"]
        if detail["dtype"] not in _QUANTIZED or not len(q["scales"]):
            return value
        shape = [1] * value.ndim
        if len(q["scales"]) > 1:
            shape[q["quantized_dimension"]] = -1
        scales, zero = q["scales"].astype(np.float64).reshape(shape), q["zero_points"].reshape(shape)
        return (value - zero) * scales


def _prepared(path: Path) -> tuple[bytes, str, list[str]]:
    """A model as the quantizer takes it, its signature, and the names of the inputs.

    It has a signature, its own or one that is added, operators under today's numbers, and float32 constants where the
    file has float16.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    try:
        data = path.read_bytes()
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))
        graph = model.subgraphs[0]
        changed = _fold_float16(schema, model)
        for code in model.operatorCodes:
            if code.builtinCode < code.deprecatedBuiltinCode:  # of an old converter: the quantizer would read ADD
                code.builtinCode, changed = code.deprecatedBuiltinCode, True
        signature = next((s for s in model.signatureDefs or () if s.subgraphIndex == 0), None)
        if signature is None:
            signature = schema.SignatureDefT()
            signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
            tensors = graph.tensors
            signature.inputs = [_entry(schema, i, tensors[i].name.decode()) for i in graph.inputs]
            signature.outputs = [_entry(schema, i, f"output_{k}") for k, i in enumerate(graph.outputs)]
            model.signatureDefs = [signature]
            changed = True
        if changed:
            builder = flatbuffers.Builder(len(data) + (1 << 16))
            builder.Finish(model.Pack(builder), b"TFL3")
            data = bytes(builder.Output())
        by_index = {t.tensorIndex: t.name.decode() for t in signature.inputs}
        return data, signature.signatureKey.decode(), [by_index[int(i)] for i in graph.inputs]
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}; give {MODEL_FILES}") from error
    except Exception as error:  # of the FlatBuffers reader, which raises whatever it stumbles over
        raise ModelError(f"{path}: damaged TFLite file ({_line(error)})") from error


def _fold_float16(schema: Any, model: Any) -> bool:
    """Make DEQUANTIZE of float16 constants float32 constants, which the quantizer needs; whether there were any."""
    graph, left = model.subgraphs[0], []
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        kind = max(code.builtinCode, code.deprecatedBuiltinCode)
        if kind != schema.BuiltinOperator.DEQUANTIZE:
            left.append(operator)
            continue
        source = graph.tensors[operator.inputs[0]]
        buffer = model.buffers[source.buffer].data
        if buffer is None or source.type != schema.TensorType.FLOAT16 or source.sparsity is not None:
            left.append(operator)
            continue
        wide = np.asarray(buffer, np.uint8).view(np.float16).astype(np.float32)
        made = schema.BufferT()
        made.data = wide.view(np.uint8)
        graph.tensors[operator.outputs[0]].buffer = len(model.buffers)
        model.buffers.append(made)
    changed = len(left) < len(graph.operators)
    graph.operators = left
    return changed


def _entry(schema: Any, index: int, name: str) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name.encode(), int(index)
    return entry


def _operators(data: bytes) -> list[tuple[str, str, str | None]]:
    """Kind, name of the output and name of constant weights of each operator."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))
    graph = model.subgraphs[0]
    kinds = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    result = []
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        weights = None
        if len(operator.inputs) > 1 and operator.inputs[1] >= 0:
            tensor = graph.tensors[operator.inputs[1]]
            buffer = model.buffers[tensor.buffer]
            weights = tensor.name.decode() if buffer.data is not None or buffer.size else None
        name = graph.tensors[operator.outputs[0]].name.decode()
        result.append((kinds[max(code.builtinCode, code.deprecatedBuiltinCode)], name, weights))
    return result


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]


@contextlib.contextmanager
def _quiet(path: Path) -> Iterator[None]:
    """Without what the quantizer prints and warns of; its errors as ModelError."""
    from ai_edge_quantizer.utils import progress_utils

    bar = progress_utils.ProgressBar
    progress_utils.ProgressBar = lambda *given, **options: bar(*given, **{**options, "enable": False})
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (RuntimeError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ModelError(
            f"{path}: AI Edge Quantizer refuses it ({_line(error)}); --keep-float LAYER may help"
        ) from error
