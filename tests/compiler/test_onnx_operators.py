"""Operators of ONNX on real numbers, one by one: read, computed, compared with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from nnloom.compiler.frontend import read_model
from nnloom.runtime import InferenceSession
from tests.compiler.test_onnx_refusals import network, numbers, quantized, real
from tests.onnx_models import Network, answer, check, compile_onnx

IMAGE = (1, 4, 6, 5)
SEQUENCE = (7, 2, 5)


def recurrent(n: Network, kind: str, directions: int = 1, **options: Any) -> Any:
    gates, hidden = {"RNN": 1, "GRU": 3, "LSTM": 4}[kind], 3
    given = [n.constant(n.rng.normal(0, 0.5, (directions, gates * hidden, size))) for size in (5, hidden)]
    given.append(n.constant(n.rng.normal(0, 0.5, (directions, 2 * gates * hidden))))
    if options.pop("states", False):
        state = n.constant(n.rng.normal(0, 1, (directions, 2, hidden)))
        given += [n.constant([7, 7], "int32"), *[state] * (2 if kind == "LSTM" else 1)]
    if options.pop("peepholes", False):
        given.append(n.constant(n.rng.normal(0, 1, (directions, 3 * hidden))))
    outputs = n.add(kind, "x", *given, outputs=3 if kind == "LSTM" else 2, hidden_size=hidden, **options)
    return tuple(outputs)


def parameters(n: Network, channels: int, *, shape: tuple[int, ...] | None = None) -> tuple[str, str]:
    return tuple(n.constant(n.rng.uniform(0.5, 1.5, shape or (channels,))) for _ in "ab")  # type: ignore[return-value]


def reduced(kind: str, **options: Any) -> Callable[[Network], str]:
    return lambda n: n.add(kind, n.add("Exp", "x"), n.constant([2, 3], "int64"), **options)


def resized(n: Network, *scales: float, x: str = "x", **options: Any) -> str:
    return n.add("Resize", x, "", n.constant(scales), **options)


def transposed(n: Network, size: tuple[int, ...], **options: Any) -> str:
    return n.add("ConvTranspose", "x", n.constant(n.rng.normal(0, 0.5, size)), n.constant(np.arange(4)), **options)


def function(kind: str, low: float, high: float, **options: Any) -> Callable[[Network], str]:
    return lambda n: n.add(kind, n.add("Clip", "x", n.constant(low), n.constant(high)), **options)


def chosen(n: Network) -> str:
    positive = n.add("Greater", "x", n.constant(0.0))
    small = n.add("And", positive, n.add("Not", n.add("GreaterOrEqual", "x", n.constant(0.5))))
    either = n.add("Or", small, n.add("Less", "x", n.constant(-0.5)))
    odd = n.add("Xor", either, n.add("LessOrEqual", "x", n.add("Neg", "x")))
    return n.add("Where", odd, "x", n.constant(np.arange(4).reshape(1, 4, 1, 1)))


def of_integers(n: Network) -> str:
    best = n.add("ArgMax", "x", axis=3)
    total = n.add("Add", n.add("Mul", best, numbers(n, 3)), n.add("Min", best, numbers(n, 2)))
    return n.add("Equal", n.add("Sub", total, best), best)


EXACT: dict[str, tuple[Callable[[Network], Any], tuple[int, ...]]] = {
    "choices": (chosen, IMAGE),
    "integers": (of_integers, IMAGE),
    "no numbers": (lambda n: n.add("IsNaN", n.add("Sqrt", "x")), IMAGE),
    "sums of three": (lambda n: n.add("Sum", "x", n.add("Abs", "x"), n.constant(np.arange(5))), IMAGE),
    "a mean of three": (lambda n: n.add("Mean", "x", n.add("Abs", "x"), n.constant(np.arange(5))), IMAGE),
    "the greatest of three": (lambda n: n.add("Max", n.constant(0.1), "x", n.constant(np.arange(5))), IMAGE),
    "backwards": (
        lambda n: n.add("Slice", "x", numbers(n, 4, -1), numbers(n, 0, -99), numbers(n, 2, 3), numbers(n, -2, -1)),
        IMAGE,
    ),
    "edges": (lambda n: n.add("Pad", "x", numbers(n, 0, 0, 2, 1, 0, 0, 0, 3), mode="edge"), IMAGE),
    "gathered by what is computed": (
        lambda n: n.add("Gather", n.constant(np.arange(30).reshape(6, 5)), n.add("ArgMax", "x", axis=1), axis=0),
        IMAGE,
    ),
    "elements gathered": (lambda n: n.add("GatherElements", "x", n.add("ArgMin", "x", axis=2), axis=2), IMAGE),
    "parts gathered": (lambda n: n.add("GatherND", "x", n.constant([[[1, -2], [0, 3]]], "int64"), batch_dims=1), IMAGE),
    "elements scattered": (
        lambda n: n.add(
            "ScatterElements", "x", n.add("ArgMin", "x", axis=2), n.constant(np.ones((1, 4, 1, 5))), axis=2
        ),
        IMAGE,
    ),
    "parts scattered": (
        lambda n: n.add("ScatterND", "x", n.constant([[0, 2], [-1, 1]], "int64"), n.constant(np.ones((2, 6, 5)))),
        IMAGE,
    ),
    "the greatest": (lambda n: tuple(n.add("TopK", n.add("Round", "x"), numbers(n, 3), outputs=2, axis=2)), IMAGE),
    "the least": (
        lambda n: tuple(n.add("TopK", n.add("Round", "x"), numbers(n, 2), outputs=2, largest=0)),
        IMAGE,
    ),
    "sums one after the other": (lambda n: n.add("CumSum", "x", numbers(n, 2)), IMAGE),
    "sums from the end": (lambda n: n.add("CumSum", "x", numbers(n, -1), exclusive=1, reverse=1), IMAGE),
    "columns resized": (lambda n: resized(n, 1, 1, 1.7), (1, 4, 9)),
    "a linear resize": (lambda n: resized(n, 1, 1, 2, 2, mode="linear"), IMAGE),
    "a linear resize to the corners": (
        lambda n: resized(n, 1, 1, 1.7, 2.4, mode="linear", coordinate_transformation_mode="align_corners"),
        IMAGE,
    ),
    "a smaller linear resize": (lambda n: resized(n, 1, 1, 0.5, 0.7, mode="linear"), IMAGE),
}
NEAR: dict[str, tuple[Callable[[Network], Any], tuple[int, ...]]] = {
    "rnn": (lambda n: recurrent(n, "RNN", activations=["Relu"]), SEQUENCE),
    "backward rnn": (lambda n: recurrent(n, "RNN", direction="reverse", states=True), SEQUENCE),
    "gru": (lambda n: recurrent(n, "GRU", linear_before_reset=1), SEQUENCE),
    "gru, reset first": (lambda n: recurrent(n, "GRU", 2, direction="bidirectional", states=True), SEQUENCE),
    "lstm": (lambda n: recurrent(n, "LSTM"), SEQUENCE),
    "lstm, both ways": (lambda n: recurrent(n, "LSTM", 2, direction="bidirectional", states=True), SEQUENCE),
    "lstm with peepholes": (lambda n: recurrent(n, "LSTM", states=True, peepholes=True, clip=0.7), SEQUENCE),
    "instance normalization": (lambda n: n.add("InstanceNormalization", "x", *parameters(n, 4)), (2, 4, 6, 5)),
    "group normalization": (
        lambda n: n.add("GroupNormalization", "x", *parameters(n, 2), num_groups=2),
        IMAGE,
    ),
    "norm": (lambda n: n.add("LpNormalization", "x", axis=1), IMAGE),
    "a norm of absolute values": (lambda n: n.add("LpNormalization", "x", axis=-1, p=1), IMAGE),
    **{
        kind: (reduced(kind, keepdims=len(kind) % 2), IMAGE)
        for kind in ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "ReduceSumSquare")
    },
    **{
        kind: (function(kind, low, high), IMAGE)
        for kind, low, high in (
            ("Acos", -1, 1), ("Acosh", 1, 5), ("Asin", -1, 1), ("Asinh", -5, 5), ("Atan", -5, 5), ("Atanh", -0.9, 0.9),
            ("Cosh", -3, 3), ("Sinh", -3, 3), ("Tan", -1, 1),
        )
    },
    "einsum": (lambda n: n.add("Einsum", "x", n.add("Exp", "x"), equation="bcij, bckj -> bcik"), IMAGE),
    "columns resized linearly": (lambda n: resized(n, 1, 1, 1.7, mode="linear"), (1, 4, 9)),
    "a cubic resize": (lambda n: resized(n, 1, 1, 2, 1.6, mode="cubic"), IMAGE),
    "a transposed convolution in groups": (
        lambda n: transposed(n, (4, 2, 3, 2), group=2, strides=[2, 3], pads=[1, 0, 0, 1], output_padding=[1, 0]),
        IMAGE,
    ),
    "a dilated transposed convolution": (lambda n: transposed(n, (4, 4, 3, 3), dilations=[2, 1]), IMAGE),
    "a transposed convolution of columns": (lambda n: transposed(n, (4, 4, 4), strides=[2], pads=[1, 1]), (1, 4, 9)),
    "a product of tensors": (
        lambda n: n.add("Gemm", "x", n.add("Exp", "x"), n.add("Abs", n.constant(np.ones(5))), transB=1, alpha=0.5,
                        beta=2.0),
        (5, 6),
    ),
    "a bias for each row": (
        lambda n: n.add("Gemm", "x", n.constant(np.ones((6, 3))), n.constant(np.arange(5).reshape(5, 1))),
        (5, 6),
    ),
}  # fmt: skip


def computed(model: onnx.ModelProto, folder: Path) -> tuple[bool, list[Any], list[Any]]:
    """Whether it is said to be exact, what comes out, and what ONNX Runtime says."""
    path = folder / "n.onnx"
    path.write_bytes(model.SerializeToString())
    report = compile_onnx(path, folder / "a")
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    with InferenceSession(folder / "a", "cpu", native=False) as session:
        return report["exact"], session.run(None, {"x": x}), answer(model, {"x": x})


@pytest.mark.parametrize("name", EXACT)
def test_exact(name, tmp_path):
    build, shape = EXACT[name]
    exact, got, want = computed(network(build, shape, opset=18), tmp_path)
    assert exact
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b)


@pytest.mark.parametrize("name", NEAR)
def test_near(name, tmp_path):
    build, shape = NEAR[name]
    exact, got, want = computed(network(build, shape, opset=18), tmp_path)
    assert not exact
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape and np.allclose(a, b, rtol=1e-5, atol=2e-6)


def test_wrapped_edges(tmp_path):
    model = network(lambda n: n.add("Pad", "x", numbers(n, 0, 0, 2, 1, 0, 0, 0, 3), mode="wrap"), IMAGE, opset=19)
    exact, (got,), (want,) = computed(model, tmp_path)
    assert exact and np.array_equal(got, want)


def moved_integers(n: Network) -> tuple[str, ...]:
    """Operators that only move values, between DequantizeLinear and QuantizeLinear of a network that ONNX Runtime has
    in float there."""
    y = n.add("DepthToSpace", real(n, quantized(n, kind="uint8"), kind="uint8"), blocksize=2, mode="CRD")
    y = n.add("Pad", y, numbers(n, 0, 0, 1, 0, 0, 0, 0, 2), n.constant(0.5))
    y = n.add("Tile", n.add("Concat", y, y, axis=1), numbers(n, 1, 1, 1, 2))
    first, second = n.add("Split", y, numbers(n, 1, 1), outputs=2, axis=1)
    y = n.add("Concat", n.add("SpaceToDepth", first, blocksize=1), second, axis=1)
    y = n.add("Resize", y, "", n.constant([1, 1, 2, 1]), mode="nearest")
    return real(n, quantized(n, y, kind="uint8"), kind="uint8"), n.add("ReduceMax", y, axes=[2, 3])


def test_what_moves_dequantized_values_moves_integers(tmp_path):
    path = tmp_path / "n.onnx"
    path.write_bytes(network(moved_integers, (1, 4, 6, 5)).SerializeToString())
    assert check(path, tmp_path)["exact"]
    graph = read_model(path)
    of_real = [n.kind for n in graph.nodes if n.operation.outputs[0].dtype == "float32"]
    assert set(of_real) <= {"DEQUANTIZE", "RESHAPE"}


@pytest.mark.parametrize("value", [-np.inf, 0.55, 1e9, np.nan])
def test_padding_that_no_integer_stands_for(value, tmp_path):
    def build(n: Network) -> str:
        return n.add("Pad", real(n, quantized(n)), numbers(n, 0, 0, 1, 0, 0, 0, 0, 2), n.constant(value))

    exact, (got,), (want,) = computed(network(build, IMAGE), tmp_path)
    assert exact and np.array_equal(got, want, equal_nan=True)


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_where_of_quantized_tensors(kind, tmp_path):
    def build(n: Network) -> str:
        a, b = (
            real(n, quantized(n, y, scale, kind), scale, kind) for y, scale in (("x", 0.02), (n.add("Abs", "x"), 0.01))
        )
        y = n.add("Where", n.add("Greater", "x", n.constant(0.2)), a, b)
        return real(n, quantized(n, y, 0.015, kind), 0.015, kind)

    path = tmp_path / "n.onnx"
    path.write_bytes(network(build, IMAGE).SerializeToString())
    assert check(path, tmp_path)["exact"]


def test_a_constant_output_of_no_dimensions(tmp_path):
    exact, got, want = computed(network(lambda n: (n.add("Size", "x"), n.add("Abs", "x")), IMAGE), tmp_path)
    assert exact and got[0].shape == want[0].shape == () and got[0] == want[0] == 120


def test_pixels_to_channels_in_both_orders(tmp_path):
    def build(n: Network) -> tuple[str, str]:
        return n.add("SpaceToDepth", "x", blocksize=2, mode="CRD"), n.add("SpaceToDepth", "x", blocksize=2)

    exact, got, want = computed(network(build, (1, 3, 4, 6), opset=28), tmp_path)
    assert exact and all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
