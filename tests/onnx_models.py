"""Quantized ONNX networks for tests, and what ONNX Runtime answers to them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from nnloom.arch.reference.onnx import ONNX_RUNTIME_SETTINGS
from nnloom.compiler import compile as compile_model
from nnloom.runtime import InferenceSession
from nnloom.sim.onnx_runtime import OnnxRuntimeReference
from tests.fuzz.check import CONFIGS

__all__ = ["Network", "answer", "check", "compile_onnx", "quantized", "run_one", "without_code"]

OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]


class Network:
    """A float network under construction; names of tensors are given back by each operator."""

    def __init__(self, seed: int, shape: Sequence[int], *, output: str = "y") -> None:
        self.rng = np.random.default_rng(seed)
        self.shape = tuple(shape)
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.output = output

    def constant(self, values: Any, dtype: str = "float32") -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def add(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(
            helper.make_node(kind, list(inputs), names, name=f"{kind.lower()}{len(self.nodes)}", domain=domain,
                             **attributes)
        )  # fmt: skip
        return names[0] if outputs == 1 else names

    def conv(self, x: str, channels: int, source: int, size: int = 3, **attributes: Any) -> str:
        group = attributes.get("group", 1)
        scale = (2 / (source // group * size * size)) ** 0.5
        weights = self.constant(self.rng.standard_normal((channels, source // group, size, size)) * scale)
        bias = self.constant(self.rng.standard_normal(channels) * 0.3)
        pads = attributes.pop("pads", [size // 2] * 4)
        return self.add("Conv", x, weights, bias, kernel_shape=[size, size], pads=pads, **attributes)

    def model(self, *outputs: str, inputs: Sequence[Any] | None = None, opset: int = 17) -> onnx.ModelProto:
        given = inputs or [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)]
        made = [helper.make_empty_tensor_value_info(name) for name in outputs]
        graph = helper.make_graph(self.nodes, "network", given, made, self.initializers)
        opsets = [helper.make_opsetid("", opset), OPSETS[1]]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        return onnx.shape_inference.infer_shapes(model)


def quantized(
    model: onnx.ModelProto, path: Path, *, activations: str = "QInt8", weights: str = "QInt8", form: str = "QDQ",
    per_channel: bool = True, symmetric: bool = False,
) -> Path:  # fmt: skip
    """Quantize a float network with ONNX Runtime's own quantizer, and write it."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            rng = np.random.default_rng(0)
            self.data = iter([{"x": rng.uniform(-1, 1, shape).astype(np.float32)} for _ in range(4)])

        def get_next(self) -> Any:
            return next(self.data, None)

    source = path.with_suffix(".float.onnx")
    onnx.save(model, source)
    quantize_static(
        source, path, Reader(), quant_format=QuantFormat[form], per_channel=per_channel,
        activation_type=QuantType[activations], weight_type=QuantType[weights],
        extra_options={"ActivationSymmetric": symmetric},
    )  # fmt: skip
    return path


@contextlib.contextmanager
def without_code() -> Iterator[None]:
    """Compile without the CPU's library, which takes the time."""

    def no_code(*arguments: object) -> None:
        next(path for path in arguments if isinstance(path, Path)).write_bytes(b"none")

    with patch("nnloom.compiler.cpu.build_cpu", no_code):
        yield


def compile_onnx(path: Path, output: Path, config: str = "2x16x9", **options: Any) -> dict[str, Any]:
    """Compile without the CPU's library; returns the report."""
    with without_code():
        return compile_model(path, output=output, config=CONFIGS[config], **options).report


def check(
    path: Path, folder: Path, *, inputs: int = 3, config: str = "2x16x9", native: bool = False, **options: Any
) -> dict[str, Any]:
    """Compile a network and compare every bit with ONNX Runtime: golden model, and the CPU if `native`."""
    output = folder / f"{path.stem}.artifact"
    if native:
        report = compile_model(path, output=output, config=CONFIGS[config], **options).report
    else:
        report = compile_onnx(path, output, config, **options)
    reference = OnnxRuntimeReference(output / "model.onnx")
    rng = np.random.default_rng(11)
    for device in ("model", "cpu") if native else ("model",):
        with InferenceSession(output, device, native=native) as session:
            for _ in range(inputs):
                given = [_random(rng, info.shape, info.dtype) for info in session.get_inputs()]
                feed = dict(zip([i.name for i in session.get_inputs()], given, strict=True))
                answers = session.run(None, feed)
                for info, got, want in zip(session.get_outputs(), answers, reference.run(*given), strict=True):
                    assert got.shape == want.shape == info.shape and got.dtype == want.dtype
                    wrong = int((got != want).sum())
                    assert not wrong, f"{device}: {wrong} of {want.size} values of {info.name} differ"
    return report


def _random(rng: np.random.Generator, shape: Sequence[int], dtype: str) -> NDArray:
    if dtype == "float32":
        return rng.uniform(-1.3, 1.3, shape).astype(np.float32)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


def answer(model: onnx.ModelProto, feeds: dict[str, NDArray]) -> list[NDArray]:
    """What ONNX Runtime makes of a model."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    for key, value in ONNX_RUNTIME_SETTINGS.items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"]).run(None, feeds)


def run_one(
    kind: str, inputs: Sequence[str], feeds: dict[str, NDArray], constants: dict[str, Any], **attributes: Any
) -> NDArray:
    """ONNX Runtime's answer of one operator; domain "" for ONNX's own."""
    domain = attributes.pop("domain", "com.microsoft")
    node = helper.make_node(kind, list(inputs), ["y"], domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for k, v in feeds.items()],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    return answer(helper.make_model(graph, opset_imports=OPSETS, ir_version=9), feeds)[0]
