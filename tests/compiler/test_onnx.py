"""ONNX networks: read, compiled, and exact to ONNX Runtime in every bit."""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import helper

from nnloom.arch.errors import InputError, ToolMissingError, UnsupportedOperatorError
from nnloom.compiler import compile as compile_model
from nnloom.compiler.frontend import read_model
from nnloom.compiler.frontend.onnx import is_onnx
from nnloom.compiler.frontend.onnx.order import PLAIN, axes_of, between, channels_last, inverse, order_of
from nnloom.runtime import InferenceSession
from tests.fuzz.check import CONFIGS
from tests.onnx_models import Network, answer, check, compile_onnx, quantized, without_code


def _residual(seed=0, shape=(1, 3, 12, 10)):
    """Convolutions of all kinds, a residual sum, pools, a concatenation, a fully connected layer behind a flatten."""
    n = Network(seed, shape)
    a = n.add("Relu", n.conv("x", 8, 3, strides=[2, 2]))
    b = n.conv(n.add("Relu", n.conv(a, 8, 8, group=8)), 8, 8, 1)
    c = n.add("Add", a, b)
    d = n.add("MaxPool", c, kernel_shape=[2, 2], strides=[1, 1])
    e = n.add("Concat", n.conv(d, 5, 8, 1), n.conv(d, 8, 8, 3, group=2), axis=1)
    f = n.add("AveragePool", e, kernel_shape=[2, 2], strides=[2, 2])
    rows, columns = ((shape[2] + 1) // 2 - 1) // 2, ((shape[3] + 1) // 2 - 1) // 2
    count = 13 * rows * columns
    weights, bias = n.constant(n.rng.standard_normal((count, 7)) * 0.1), n.constant(n.rng.standard_normal(7))
    return n.model(n.add("Gemm", n.add("Flatten", f), weights, bias))


def _squeeze(seed=1):
    """Squeeze and excitation, hard swish as exporters write it, functions, a resize, a reduction."""
    n = Network(seed, (1, 4, 8, 6))
    a = n.conv("x", 8, 4)
    swish = n.add("Clip", n.add("Add", a, n.constant(3.0)), n.constant(0.0), n.constant(6.0))
    a = n.add("Div", n.add("Mul", a, swish), n.constant(6.0))
    s = n.add("Relu", n.conv(n.add("GlobalAveragePool", a), 4, 8, 1))
    s = n.add("HardSigmoid", n.conv(s, 8, 4, 1), alpha=0.2, beta=0.5)
    b = n.add("Mul", a, s)
    b = n.add("Add", n.add("Sigmoid", b), n.add("LeakyRelu", b, alpha=0.1))
    scales = n.constant([1, 1, 2, 2])
    b = n.add("Resize", b, "", scales, mode="nearest", coordinate_transformation_mode="asymmetric",
              nearest_mode="floor")  # fmt: skip
    b = n.conv(b, 6, 8, strides=[2, 2])
    c = n.add("Flatten", n.add("GlobalAveragePool", n.add("Tanh", b)))
    weights = n.constant(n.rng.standard_normal((6, 5)))
    return n.model(n.add("Softmax", n.add("MatMul", c, weights), axis=1))


NETWORKS = {"residual": _residual, "squeeze": _squeeze}
FORMS = {
    "int8 per channel": {},
    "int8 symmetric": {"symmetric": True, "per_channel": False},
    "uint8": {"activations": "QUInt8"},
    "uint8 per tensor, uint8 weights": {"activations": "QUInt8", "weights": "QUInt8", "per_channel": False},
    "QOperator": {"form": "QOperator"},
    "QOperator, uint8": {"form": "QOperator", "activations": "QUInt8"},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("network", NETWORKS)
def test_exact(network, form, tmp_path):
    path = quantized(NETWORKS[network](), tmp_path / "n.onnx", **FORMS[form])
    report = check(path, tmp_path)
    # ONNX Runtime's quantizer leaves some means and functions in float32 in this form.
    float_code = [layer["inexact_reason"] for layer in report["layers"] if not layer["exact"]]
    assert form.startswith("QOperator") or not float_code
    graph = read_model(path)
    assert "TRANSPOSE" not in Counter(node.kind for node in graph.nodes)
    (info,) = graph.input_infos()
    assert info.name == "x" and info.permutation == (0, 2, 3, 1) and info.shape[1] < info.shape[2]


@pytest.mark.parametrize("network", NETWORKS)
def test_exact_in_native_code(network, tmp_path):
    path = quantized(NETWORKS[network](7), tmp_path / "n.onnx")
    report = check(path, tmp_path, native=True)
    assert report["rounding"]["channels"] > 20


def test_what_is_not_proved_runs_on_the_cpu_or_is_named(tmp_path):
    n = Network(3, (1, 16, 6, 6))
    path = quantized(n.model(n.conv("x", 256, 16)), tmp_path / "n.onnx")
    exact = compile_onnx(path, tmp_path / "exact")
    (layer,) = (x for x in exact["layers"] if x["op"] == "conv_2d")
    assert exact["exact"] and layer["target"] == "cpu" and "no multiplier rounds as ONNX Runtime" in layer["reason"]
    assert 0 < layer["rounding"]["proved"] < layer["rounding"]["channels"] == 256
    nearest = compile_onnx(path, tmp_path / "nearest", unproved="accelerator")
    (layer,) = (x for x in nearest["layers"] if x["op"] == "conv2d")
    assert (
        not nearest["exact"]
        and layer["target"] == "accelerator"
        and "the accelerator rounds" in layer["inexact_reason"]
    )
    assert len(layer["rounding"]["differences"]) == 256 - layer["rounding"]["proved"]
    with pytest.raises(UnsupportedOperatorError, match=r"not exact \(.*than ONNX Runtime"):
        compile_onnx(path, tmp_path / "strict", unproved="accelerator", strict=True)


def test_inputs_and_outputs_keep_the_shapes_of_the_file(tmp_path):
    n = Network(4, (1, 3, 6, 5))
    model = n.model(n.conv("x", 4, 3, strides=[1, 2]))
    path = quantized(model, tmp_path / "n.onnx")
    check(path, tmp_path)
    with InferenceSession(tmp_path / "n.artifact", "model", native=False) as session:
        assert [i.shape for i in session.get_inputs()] == [(1, 3, 6, 5)]
        assert [o.shape for o in session.get_outputs()] == [(1, 4, 6, 3)]
        x = np.random.default_rng(0).uniform(-1, 1, (2, 3, 6, 5)).astype(np.float32)
        (both,) = session.run(None, {"x": x})
        (one,) = session.run(None, {"x": x[1:]})
        assert both.shape == (2, 4, 6, 3) and np.array_equal(both[1:], one)


def _quantized_io(kind, zero_point, shape, seed=0):
    """A QLinearConv whose input and output are integers in the file."""
    rng = np.random.default_rng(seed)
    n = Network(seed, shape)
    names = [n.constant(0.02), n.constant(zero_point, kind), n.constant(rng.integers(-127, 128, (4, 3, 1, 1)), "int8")]
    names += [n.constant(rng.uniform(0.001, 0.02, 4)), n.constant(np.zeros(4), "int8"), n.constant(0.1)]
    names += [n.constant(zero_point, kind), n.constant(rng.integers(-500, 500, 4), "int32")]
    y = n.add("QLinearConv", "x", *names)
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    return n.model(y, inputs=[helper.make_tensor_value_info("x", element, shape)])


@pytest.mark.parametrize(("kind", "zero_point"), [("int8", 3), ("uint8", 130)])
def test_integer_inputs_and_outputs(kind, zero_point, tmp_path):
    path = tmp_path / "n.onnx"
    onnx.save(_quantized_io(kind, zero_point, (1, 3, 5, 4)), path)
    check(path, tmp_path)
    (source,), (out,) = read_model(path).input_infos(), read_model(path).output_infos()
    assert (source.dtype, source.zero_point, out.dtype) == (kind, zero_point, kind)


def test_transposes_of_the_file_are_cancelled(tmp_path):
    # As Keras exports: channels last outside, a transposition on each side of the convolutions.
    n = Network(5, (1, 6, 5, 3))
    x = n.add("Transpose", "x", perm=[0, 3, 1, 2])
    y = n.add("Transpose", n.add("Relu", n.conv(x, 4, 3)), perm=[0, 2, 3, 1])
    path = quantized(n.model(y), tmp_path / "n.onnx")
    check(path, tmp_path)
    graph = read_model(path)
    assert "TRANSPOSE" not in [node.kind for node in graph.nodes] and not graph.input_infos()[0].permutation


def test_one_dimension(tmp_path):
    n = Network(6, (1, 4, 20))
    weights = n.constant(n.rng.standard_normal((6, 4, 3)) * 0.3)
    y = n.add("Relu", n.add("Conv", "x", weights, kernel_shape=[3], pads=[2, 0], dilations=[1], strides=[2]))
    y = n.add("MaxPool", y, kernel_shape=[2], strides=[2])
    check(quantized(n.model(y), tmp_path / "n.onnx"), tmp_path)


def test_movement(tmp_path):
    n = Network(7, (1, 8, 6, 4))
    x = n.conv("x", 8, 8, 1)
    first, second = n.add("Split", x, n.constant([2, 6], "int64"), outputs=2, axis=1)
    wide = n.add("Pad", second, n.constant([0, 0, 1, 0, 0, 0, 0, 2], "int64"))
    cut = n.add("Slice", wide, n.constant([1, 1], "int64"), n.constant([7, 6], "int64"), n.constant([2, 3], "int64"))
    joined = n.add("Concat", n.conv(cut, 6, 6, 3, pads=[1, 1, 1, 1]), n.conv(cut, 2, 6, 1), axis=1)
    shuffled = n.add("DepthToSpace", joined, blocksize=2, mode="CRD")
    y = n.add("Reshape", n.conv(shuffled, 3, 2, 1), n.constant([1, -1], "int64"))
    z = n.add("Reshape", first, n.constant([1, 2, 24], "int64"))
    check(quantized(n.model(y, z), tmp_path / "n.onnx"), tmp_path)


def test_limits_between_quantize_and_dequantize(tmp_path):
    # Brevitas writes narrow ranges as Clip of integers.
    n = Network(8, (1, 3, 5, 5))
    scale, zero = n.constant(0.01), n.constant(0, "int8")
    x = n.add("DequantizeLinear", n.add("QuantizeLinear", "x", scale, zero), scale, zero)
    w = n.constant(n.rng.integers(-127, 128, (4, 3, 3, 3)), "int8")
    w = n.add("DequantizeLinear", w, n.constant(n.rng.uniform(0.003, 0.02, 4)), n.constant(np.zeros(4), "int8"), axis=0)
    y = n.add("QuantizeLinear", n.add("Conv", x, w, pads=[1] * 4), n.constant(0.05), zero)
    y = n.add("Clip", y, n.constant(-127, "int8"), n.constant(100, "int8"))
    y = n.add("DequantizeLinear", y, n.constant(0.05), zero)
    path = tmp_path / "n.onnx"
    onnx.save(n.model(y), path)
    check(path, tmp_path)
    (conv,) = (node for node in read_model(path).nodes if node.kind == "CONV_2D")
    assert conv.operation.options["limits"] == (-127, 100)


def _of_two_types(seed=13):
    """int8 operands and uint8 results, limits of both, a Flatten between DequantizeLinear and its product."""
    n = Network(seed, (1, 3, 6, 6))

    def weights(*shape):
        data = n.constant(n.rng.integers(-7, 8, shape), "int8")
        data = n.add("Clip", data, n.constant(-7, "int8"), n.constant(7, "int8"))
        zeros = n.constant(np.zeros(shape[0]), "int8")
        return n.add("DequantizeLinear", data, n.constant(n.rng.uniform(0.01, 0.1, shape[0])), zeros, axis=0)

    signed, unsigned = n.constant(0, "int8"), n.constant(0, "uint8")
    x = n.add("DequantizeLinear", n.add("QuantizeLinear", "x", n.constant(0.01), signed), n.constant(0.01), signed)
    y = n.add("QuantizeLinear", n.add("Relu", n.add("Conv", x, weights(4, 3, 3, 3))), n.constant(0.03), unsigned)
    y = n.add("Clip", y, n.constant(0, "uint8"), n.constant(250, "uint8"))
    y = n.add("Flatten", n.add("DequantizeLinear", y, n.constant(0.03), unsigned))
    y = n.add("QuantizeLinear", n.add("Gemm", y, weights(5, 64), transB=1), n.constant(0.2), signed)
    return n.model(n.add("DequantizeLinear", y, n.constant(0.2), signed))


def test_two_types_become_one(tmp_path):
    # As Brevitas writes networks: ONNX Runtime would compute between int8 and uint8 in float32.
    path = tmp_path / "n.onnx"
    onnx.save(_of_two_types(), path)
    report = check(path, tmp_path, unproved="scales")
    assert report["exact"] and report["engine_share"] == 1
    x = np.random.default_rng(5).uniform(-1.3, 1.3, (1, 3, 6, 6)).astype(np.float32)
    (before,) = answer(onnx.load(path), {"x": x})
    (after,) = answer(onnx.load(tmp_path / "n.artifact" / "model.onnx"), {"x": x})
    # What was computed in float32 has the same steps.
    assert np.abs(before - after).max() < 0.21 and (before != after).mean() < 0.3


def test_scales_are_moved_until_all_is_proved(tmp_path):
    n = Network(3, (1, 16, 6, 6))
    path = quantized(n.model(n.conv("x", 256, 16)), tmp_path / "n.onnx")
    kept = compile_onnx(path, tmp_path / "kept")["rounding"]
    with without_code():
        result = compile_model(path, output=tmp_path / "n.artifact", config=CONFIGS["2x16x9"], unproved="scales")
    found, rounding = result.moved, result.report["rounding"]
    assert kept["proved"] < kept["channels"] == rounding["proved"] == found.proved == 256
    assert found.proved_before == kept["proved"] and found.scales_moved >= 256 - kept["proved"]
    assert check(path, tmp_path, unproved="scales")["engine_share"] == 1


def test_float_islands_run_and_are_named(tmp_path):
    n = Network(9, (1, 3, 6, 6))
    y = n.add("Softmax", n.add("ReduceMean", n.conv("x", 4, 3), axes=[2, 3], keepdims=0), axis=1)
    model = n.model(y)
    path = tmp_path / "n.onnx"
    onnx.save(model, path)
    report = compile_onnx(path, tmp_path / "a")
    assert not report["exact"] and report["cycles"] == 0
    x = np.random.default_rng(0).uniform(-1, 1, (1, 3, 6, 6)).astype(np.float32)
    with InferenceSession(tmp_path / "a", "cpu", native=False) as session:
        (got,) = session.run(None, {"x": x})
    assert np.allclose(got, answer(model, {"x": x})[0], atol=1e-6)
    with pytest.raises(UnsupportedOperatorError, match="float32"):
        compile_onnx(path, tmp_path / "b", strict=True)


def test_a_convolution_that_onnx_runtime_has_in_float_is_one_of_integers_and_named(tmp_path):
    n = Network(10, (1, 3, 6, 6))
    path = quantized(n.model(n.add("Clip", n.conv("x", 4, 3), n.constant(-0.5), n.constant(0.7))), tmp_path / "n.onnx")
    report = compile_onnx(path, tmp_path / "a", unproved="accelerator")
    kinds = Counter(node.kind for node in read_model(path).nodes)
    if report["exact"]:
        assert kinds["CONV_2D"] == 1
    else:
        assert any("float32" in (layer["inexact_reason"] or "") for layer in report["layers"])
    assert kinds["CONV_2D"] == 1 and "DEQUANTIZE" in kinds


def test_open_shapes(tmp_path):
    n = Network(11, (1, 3, 6, 6))
    model = n.model(n.conv("x", 4, 3))
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "rows"
    path = tmp_path / "n.onnx"
    onnx.save(model, path)
    assert read_model(path, shapes={"x": (1, 3, 8, 6)}).output_infos()[0].shape == (1, 4, 8, 6)


def test_the_content_of_a_file_counts_not_its_name(tmp_path, model_path):
    n = Network(12, (1, 3, 4, 4))
    model = n.model(n.conv("x", 2, 3))
    onnx.save(model, tmp_path / "model.bin")
    assert read_model(tmp_path / "model.bin").format == "onnx"
    assert is_onnx(model.SerializeToString())
    assert not is_onnx(model_path("keyword_spotting").read_bytes())
    assert not is_onnx(b"") and not is_onnx(b"\x08\x09") and not is_onnx(model.SerializeToString()[:-1])


def test_without_the_extra(tmp_path, monkeypatch):
    path = tmp_path / "n.onnx"
    path.write_bytes(b"\x08\x09")
    monkeypatch.setattr("nnloom.arch.extras.find_spec", lambda name: None if name == "onnx" else sys.__spec__)
    with pytest.raises(ToolMissingError, match=r"onnx is not installed; pip install 'nnloom\[onnx\]'"):
        read_model(path)


def test_shapes_are_for_onnx(model_path, tmp_path):
    with pytest.raises(InputError, match="a TFLite model has its own"):
        compile_model(model_path("keyword_spotting"), output=tmp_path / "a", shapes={"x": (1,)})


def test_orders():
    assert order_of((1, 4, 5, 6), channels_last(4)).base == (4, 30)
    assert order_of((1, 4, 1, 1), channels_last(4)) == PLAIN == order_of((1, 4, 5, 6), range(4))
    assert order_of((1, 4, 30), channels_last(3)) == order_of((1, 4, 5, 6), channels_last(4))
    order = order_of((2, 3, 4), (2, 0, 1))
    values = np.arange(24).reshape(2, 3, 4)
    assert np.array_equal(values.transpose(2, 0, 1).reshape(-1), order.indices())
    assert inverse((2, 0, 1)) == (1, 2, 0)


def _held(values, order):
    return values if order.is_plain else values.reshape(order.base).transpose(order.axes).reshape(-1)


def _any_order(rng, factors):
    """An order of as many elements as the product of the factors, which are axes, or several of them are one."""
    sizes, left = [], list(factors)
    while left:
        count = rng.integers(1, len(left) + 1)
        sizes.append(int(np.prod(left[:count])))
        left = left[count:]
    return order_of(sizes, [int(a) for a in rng.permutation(len(sizes))])


def test_one_transposition_between_two_orders():
    rng = np.random.default_rng(0)
    for _ in range(300):
        factors = [int(n) for n in rng.integers(1, 5, rng.integers(1, 6))]
        values = np.arange(np.prod(factors))
        source, target = _any_order(rng, factors), _any_order(rng, factors)
        move = between(source, target, len(values))
        assert np.array_equal(_held(_held(values, source), move), _held(values, target))
        axes = axes_of(factors, source)
        assert order_of(factors, axes) == source and sorted(axes) == list(range(len(factors)))
    assert between(order_of((2, 3), (1, 0)), order_of((3, 2), (1, 0)), 6) is None
    assert axes_of((6, 1), order_of((2, 3), (1, 0))) is None


@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("indices", [-1, [1], [1, 3]])
def test_what_an_index_picks_stays_channels_last(axis, indices, tmp_path):
    # x[:, :, -1] in PyTorch, the last step of a sequence, say.
    n = Network(15, (1, 3, 6, 4))
    y = n.add("Gather", n.add("Relu", n.conv("x", 16, 3)), n.constant(indices, "int64"), axis=axis)
    y = n.add("Flatten", y)
    lengths = [1, 16, 6, 4]
    lengths[axis] = np.size(indices)
    weights = n.constant(n.rng.normal(0, 0.2, (np.prod(lengths), 5)))
    path = quantized(n.model(n.add("Gemm", y, weights, n.constant(np.zeros(5)))), tmp_path / "q.onnx")
    report = check(path, tmp_path, unproved="scales")
    on_cpu = [layer["reason"] for layer in report["layers"] if layer["target"] == "cpu"]
    assert all("float32" in reason or "DEQUANTIZE" in reason for reason in on_cpu), on_cpu


def test_channels_in_another_order_are_one_transposition(tmp_path):
    # As ShuffleNet has it: in groups, the groups and the channels in them exchanged.
    n = Network(14, (1, 3, 6, 5))
    y = n.add("Reshape", n.add("Relu", n.conv("x", 16, 3)), n.constant([1, 2, 8, 6, 5], "int64"))
    y = n.add("Reshape", n.add("Transpose", y, perm=[0, 2, 1, 3, 4]), n.constant([1, 16, 6, 5], "int64"))
    first, second = n.add("Split", y, n.constant([8, 8], "int64"), outputs=2, axis=1)
    path = quantized(n.model(n.add("Concat", n.conv(first, 8, 8, 1), second, axis=1)), tmp_path / "n.onnx")
    report = check(path, tmp_path, unproved="scales")
    assert [node.kind for node in read_model(path).nodes].count("TRANSPOSE") == 1
    assert {x["op"] for x in report["layers"] if x["target"] == "cpu"} <= {"quantize", "dequantize"}


def decoder(n: Network, *, also_read: bool = False):
    """A vector that is seen as an image with channels first, as generators and autoencoders begin."""
    weights = n.constant(n.rng.normal(0, 0.3, (12, 16 * 20)))
    y = n.add("Relu", n.add("Gemm", "x", weights, n.constant(n.rng.normal(0, 0.3, 320))))
    image = n.conv(n.add("Reshape", y, n.constant([1, 16, 4, 5], "int64")), 8, 16)
    return n.model(image, y) if also_read else n.model(image)


@pytest.mark.parametrize("also_read", [False, True])
def test_a_vector_that_becomes_an_image_is_made_in_its_order(also_read, tmp_path):
    model = decoder(Network(16, (1, 12)), also_read=also_read)
    path = quantized(model, tmp_path / "n.onnx", activations="QUInt8")
    report = check(path, tmp_path, config="8x5", unproved="scales")
    assert [node.kind for node in read_model(path).nodes].count("TRANSPOSE") == also_read
    reasons = [layer["reason"] for layer in report["layers"] if layer["target"] == "cpu"]
    # Else it is a product with 320 x 320 weights, which for larger vectors are more than the chip has.
    assert any("320 of 320 channels: that takes 102,400 bytes" in reason for reason in reasons) == also_read, reasons


@pytest.mark.parametrize("seed", range(3))
def test_sums_products_and_means_on_the_accelerator(seed, tmp_path):
    n = Network(20 + seed, (1, 8, 6, 5))
    a, b = n.conv("x", 8, 8, 1), n.conv("x", 8, 8, 1)
    total = n.add("Add", a, b)
    product = n.add("Mul", total, a)
    mean = n.add("GlobalAveragePool", n.add("Relu", product))
    path = quantized(n.model(n.add("Flatten", mean)), tmp_path / "n.onnx", activations=("QInt8", "QUInt8")[seed % 2])
    report = check(path, tmp_path)
    assert report["exact"]
    targets = {layer["op"]: layer["target"] for layer in report["layers"]}
    assert targets["mul"] == "accelerator" and targets.get("window_sum", targets.get("mean")) == "accelerator"
    # With the nearest multipliers all of them are there, and what is not proved is named.
    near = compile_onnx(path, tmp_path / "near", unproved="accelerator")
    assert {"add", "mul", "window_sum"} <= {x["op"] for x in near["layers"] if x["target"] == "accelerator"}
    assert near["exact"] == all(x["exact"] for x in near["layers"])


def test_a_chain_of_functions_is_one_table(tmp_path):
    n = Network(30, (1, 4, 6, 5))
    a = n.conv("x", 8, 4)
    swish = n.add("Clip", n.add("Add", a, n.constant(3.0)), n.constant(0.0), n.constant(6.0))
    y = n.conv(n.add("Div", n.add("Mul", a, swish), n.constant(6.0)), 4, 8, 1)
    path = quantized(n.model(y), tmp_path / "n.onnx")
    check(path, tmp_path)
    kinds = [node.kind for node in read_model(path).nodes if node.kind != "RESHAPE"]  # x / 6 is another scale
    assert kinds == ["QUANTIZE", "CONV_2D", "TABLE", "CONV_2D", "DEQUANTIZE"]
