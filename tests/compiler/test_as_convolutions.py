"""Operators that become convolutions before they are quantized: the same function, and on the accelerator."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from nnloom.compiler.quantize import quantize
from nnloom.compiler.quantize.as_convolutions import with_convolutions
from tests.onnx_models import Network, answer, check

SHAPE = (1, 4, 7, 6)


def transposed(n: Network, window: tuple[int, int], groups: int = 1, **options) -> onnx.ModelProto:
    weights = n.constant(n.rng.normal(0, 0.5, (4, 6 // groups, *window)))
    bias = [n.constant(n.rng.normal(0, 1, 6))] if options.pop("bias", True) else []
    return n.model(n.add("ConvTranspose", "x", weights, *bias, group=groups, **options))


def pooled(n: Network, *window: int, **options) -> onnx.ModelProto:
    return n.model(n.add("AveragePool", "x", kernel_shape=list(window), **options))


def normalized(n: Network) -> onnx.ModelProto:
    parameters = [n.constant(n.rng.uniform(0.5, 1.5, 4)) for _ in range(4)]
    return n.model(n.add("BatchNormalization", "x", *parameters))


def sequence(n: Network) -> onnx.ModelProto:
    """In one dimension: the columns of the image one after the other."""
    parameters = [n.constant(n.rng.uniform(0.5, 1.5, 28)) for _ in range(4)]
    n.shape = (1, 28, 6)
    y = n.add("AveragePool", n.add("BatchNormalization", "x", *parameters), kernel_shape=[3], strides=[2], pads=[0, 0])
    return n.model(n.add("AveragePool", y, kernel_shape=[2]))


CASES = {
    "twice as large": (lambda n: transposed(n, (2, 2), strides=[2, 2]), ["Conv", "DepthToSpace"]),
    "windows that overlap": (
        lambda n: transposed(n, (3, 4), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 0]),
        ["Conv", "DepthToSpace", "Slice"],
    ),
    "two groups, three times": (
        lambda n: transposed(n, (5, 3), 2, strides=[3, 3], pads=[2, 0, 1, 4], bias=False),
        ["Conv", "DepthToSpace", "Slice"],
    ),
    "windows smaller than strides": (
        lambda n: transposed(n, (1, 2), strides=[3, 3], output_padding=[2, 1]),
        ["Conv", "DepthToSpace"],
    ),
    "no strides": (lambda n: transposed(n, (3, 3), pads=[1, 1, 1, 1]), ["Conv"]),
    "much padding": (
        lambda n: transposed(n, (3, 3), strides=[2, 2], pads=[5, 4, 3, 6]),
        ["Conv", "DepthToSpace", "Slice"],
    ),
    "two strides": (lambda n: transposed(n, (3, 3), strides=[1, 2]), ["ConvTranspose"]),
    "a mean of windows": (lambda n: pooled(n, 3, 2, strides=[2, 1]), ["Conv"]),
    "a mean that counts padding": (lambda n: pooled(n, 3, 3, pads=[1, 1, 1, 1], count_include_pad=1), ["Conv"]),
    "a mean of what is inside": (lambda n: pooled(n, 3, 3, pads=[1, 1, 1, 1]), ["AveragePool"]),
    "as many windows rounded up": (lambda n: pooled(n, 3, 3, strides=[2, 3], ceil_mode=1), ["Conv"]),
    "a window beyond the end": (lambda n: pooled(n, 2, 2, strides=[2, 2], ceil_mode=1), ["AveragePool"]),
    "a mean of all": (lambda n: pooled(n, 7, 6), ["GlobalAveragePool"]),
    "batch normalization": (normalized, ["Conv"]),
    "of sequences": (sequence, ["Conv", "Conv", "GlobalAveragePool"]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_function(name):
    build, kinds = CASES[name]
    model = build(Network(0, SHAPE))
    changed = with_convolutions(model)
    onnx.checker.check_model(changed)
    assert [node.op_type for node in changed.graph.node] == kinds
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(1).normal(0, 1, shape).astype(np.float32)
    (want,), (got,) = answer(model, {"x": x}), answer(changed, {"x": x})
    assert got.shape == want.shape and np.allclose(got, want, atol=2e-6)


def decoder() -> onnx.ModelProto:
    """A normalization before anything else, means of windows, transposed convolutions, a normalization in float."""
    n = Network(3, (1, 3, 8, 8))
    parameters = [n.constant(n.rng.uniform(0.5, 1.5, 3)) for _ in range(4)]
    y = n.add("Relu", n.conv(n.add("BatchNormalization", "x", *parameters), 8, 3))
    y = n.add("AveragePool", y, kernel_shape=[2, 2], strides=[2, 2])
    w = n.constant(n.rng.normal(0, 0.3, (8, 4, 4, 4)))
    y = n.add("Relu", n.add("ConvTranspose", y, w, n.constant(np.ones(4)), strides=[2, 2], pads=[1, 1, 1, 1]))
    y = n.add("ConvTranspose", y, n.constant(n.rng.normal(0, 0.3, (4, 2, 2, 2))), strides=[2, 2])
    return n.model(y)


def test_a_decoder_runs_on_the_accelerator(tmp_path):
    path = tmp_path / "n.onnx"
    onnx.save(decoder(), path)
    data = np.random.default_rng(0).uniform(-1, 1, (12, 3, 8, 8)).astype(np.float32)
    result = quantize(path, data, output=tmp_path / "q.onnx", method="minmax", explain=False)
    assert result.sqnr_db > 28 and result.provability.proved == result.provability.channels
    report = check(result.path, tmp_path)
    assert report["exact"] and report["engine_share"] == 1
    assert {x["op"] for x in report["layers"] if x["target"] == "cpu"} == {"quantize", "dequantize"}


def test_what_is_in_float_is_not_quantized(tmp_path):
    n = Network(4, (1, 4, 6, 6))
    ones = n.constant(np.ones((1, 4, 1, 1)))
    y = n.add("InstanceNormalization", n.conv("x", 4, 4), n.constant(np.ones(4)), n.constant(np.zeros(4)))
    y = n.conv(n.add("Add", n.add("Mul", y, ones), ones), 4, 4)
    path = tmp_path / "n.onnx"
    onnx.save(
        n.model(n.add("ConvTranspose", y, n.constant(n.rng.normal(0, 1, (4, 1, 2, 3))), group=2, strides=[1, 2])), path
    )
    data = np.random.default_rng(0).uniform(-1, 1, (4, 4, 6, 6)).astype(np.float32)
    made = onnx.load(quantize(path, data, output=tmp_path / "q.onnx", method="minmax", explain=False).path)
    makers = {o: node.op_type for node in made.graph.node for o in node.output}
    of = {node.op_type: [makers.get(i, "") for i in node.input] for node in made.graph.node}
    assert of["InstanceNormalization"] == ["DequantizeLinear", "", ""] and of["Mul"][0] == "InstanceNormalization"
    assert of["Add"][0] == "Mul" and of["ConvTranspose"] == ["DequantizeLinear", ""]
