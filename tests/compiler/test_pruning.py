"""Pruned networks against the masked ones in ONNX Runtime, bit for bit: weights and inputs are small whole numbers, of
which float32 sums are exact in any order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from nnloom.arch.errors import ConfigError, InputError, ModelError
from nnloom.cli import main
from nnloom.compiler import prune
from nnloom.compiler.frontend.onnx.plan import run_options
from tests.onnx_models import Network, quantized


class Whole(Network):
    """A network of whole numbers."""

    def conv(self, x, channels, source, size=3, *, bias=True, **attributes):
        group = attributes.get("group", 1)
        weights = self.constant(self.rng.integers(-3, 4, (channels, source // group, size, size)))
        extra = [self.constant(self.rng.integers(-3, 4, channels))] if bias else []
        attributes.setdefault("pads", [size // 2] * 4)
        return self.add("Conv", x, weights, *extra, kernel_shape=[size, size], **attributes)

    def norm(self, x, channels):
        values = [self.rng.integers(1, 3, channels), self.rng.integers(-2, 3, channels)]
        mean = self.rng.integers(-2, 3, channels)
        return self.add(
            "BatchNormalization", x, *[self.constant(v) for v in (*values, mean, np.ones(channels))], epsilon=0.0
        )

    def gemm(self, x, outputs, inputs):
        return self.add(
            "Gemm", x, self.constant(self.rng.integers(-3, 4, (outputs, inputs))),
            self.constant(self.rng.integers(-3, 4, outputs)), transB=1,
        )  # fmt: skip


def _run(path, x):
    return ort.InferenceSession(str(path), run_options(), ["CPUExecutionProvider"]).run(None, {"x": x})


def _pruned(tmp_path, model, mask=None, *, whole=True, **options):
    """Prune, and compare with the masked network on random inputs. Gives the result and the pruned model."""
    source, output, masked = tmp_path / "net.onnx", tmp_path / "small.onnx", tmp_path / "masked.onnx"
    if isinstance(model, onnx.ModelProto):
        onnx.save(model, source)
    else:
        source = model
    result = prune(source, mask=mask, output=output, masked=masked, **options)
    shape = [d.dim_value for d in onnx.load(source).graph.input[0].type.tensor_type.shape.dim]
    rng = np.random.default_rng(1)
    for _ in range(3):
        x = (rng.integers(-4, 5, shape) if whole else rng.uniform(-1, 1, shape)).astype(np.float32)
        for a, b in zip(_run(masked, x), _run(output, x), strict=True):
            assert a.any() and a.shape == b.shape
            np.testing.assert_array_equal(a, b)
    return result, onnx.load(output)


def _shapes(model):
    return {i.name: tuple(i.dims) for i in model.graph.initializer}


def _weights(model, kind="Conv"):
    """Shapes of the weights of a kind of layers, in order."""
    shapes = _shapes(model)
    return [shapes[n.input[1]] for n in model.graph.node if n.op_type == kind]


def _mask(count, *gone):
    return [int(i not in gone) for i in range(count)]


def test_through_normalization_activation_pool_and_flatten(tmp_path):
    net = Whole(0, (1, 2, 8, 8))
    x = net.add("Relu", net.norm(net.conv("x", 6, 2), 6))
    x = net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.add("Clip", net.conv(x, 4, 6), net.constant(-100.0), net.constant(900.0))
    x = net.gemm(net.add("Flatten", x), 3, 4 * 16)
    result, model = _pruned(tmp_path, net.model(x), {"conv0": _mask(6, 1, 4), "conv4": _mask(4, 2)})
    assert _weights(model) == [(4, 2, 3, 3), (3, 4, 3, 3)]
    assert _weights(model, "Gemm") == [(3, 48)] and _weights(model, "BatchNormalization") == [(4,)]
    assert result.macs == 64 * 4 * 2 * 9 + 16 * 3 * 4 * 9 + 3 * 48
    assert result.macs_before == 64 * 6 * 2 * 9 + 16 * 4 * 6 * 9 + 3 * 64
    assert [(v.channels, v.left, v.masked) for v in result.layers] == [(6, 4, 0), (4, 3, 0), (3, 3, 0)]
    assert not result.stayed and result.largest_output > 0


def _residual(seed=1):
    net = Whole(seed, (1, 2, 6, 6))
    x = net.add("Relu", net.conv("x", 6, 2))  # conv0
    y = net.add("Relu", net.conv(x, 5, 6))  # conv2
    y = net.norm(net.conv(y, 6, 5), 6)  # conv4
    x = net.add("Relu", net.add("Add", x, y))
    x = net.add("GlobalAveragePool", net.conv(x, 3, 6))  # conv8
    return net.model(net.gemm(net.add("Flatten", x), 2, 3))


def test_through_a_residual_addition(tmp_path):
    """A channel of the sum goes where all that is added is masked; else what is masked becomes zero."""
    mask = {"conv0": _mask(6, 0, 3), "conv2": _mask(5, 1), "conv4": _mask(6, 3, 5)}
    result, model = _pruned(tmp_path, _residual(), mask)
    assert _weights(model) == [(5, 2, 3, 3), (4, 5, 3, 3), (5, 4, 3, 3), (3, 5, 3, 3)]
    stayed = {(v.layer, v.channels) for v in result.stayed}
    assert stayed == {("conv0", 1), ("conv4", 1)}
    assert all("Conv 'conv2' reads" in v.reason or "Conv 'conv8' reads" in v.reason for v in result.stayed)


def test_through_concatenation_and_split(tmp_path):
    net = Whole(2, (1, 2, 6, 6))
    a, b = net.conv("x", 4, 2), net.conv("x", 6, 2)
    x = net.add("Relu", net.add("Concat", a, b, axis=1))
    y, z = net.add("Split", x, net.constant([5, 5], "int64"), outputs=2, axis=1)
    x = net.add("Concat", net.conv(y, 3, 5), net.conv(z, 3, 5), axis=1)
    mask = {"conv0": _mask(4, 0), "conv1": _mask(6, 0, 2, 5), "conv5": _mask(3)}
    _, model = _pruned(tmp_path, net.model(net.conv(x, 2, 6)), mask)
    assert _weights(model) == [(3, 2, 3, 3), (3, 2, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (2, 6, 3, 3)]


@pytest.mark.parametrize("masked", ["conv0", "conv2"])
def test_through_a_depthwise_convolution(tmp_path, masked):
    """Whether the layer before it is masked or its own filters: both go."""
    net = Whole(3, (1, 2, 6, 6))
    x = net.add("Relu", net.conv("x", 6, 2))
    x = net.add("Relu", net.conv(x, 6, 6, group=6))
    result, model = _pruned(tmp_path, net.model(net.conv(x, 2, 6, 1)), {masked: _mask(6, 1, 2)})
    assert _weights(model) == [(4, 2, 3, 3), (4, 1, 3, 3), (2, 4, 1, 1)]
    groups = [a.i for n in model.graph.node for a in n.attribute if a.name == "group"]
    assert groups == [4] and result.macs == 36 * (4 * 2 * 9 + 4 * 9 + 2 * 4)


def test_groups_go_as_a_whole(tmp_path):
    net = Whole(4, (1, 2, 6, 6))
    x = net.conv("x", 8, 2)
    x = net.conv(x, 4, 8, group=2)
    model = net.model(net.conv(x, 2, 4, 1))
    result, small = _pruned(tmp_path, model, {"conv1": _mask(4, 0, 1)})
    assert _weights(small) == [(4, 2, 3, 3), (2, 4, 3, 3), (2, 2, 1, 1)]
    result, small = _pruned(tmp_path, model, {"conv1": _mask(4, 0)})
    assert _weights(small) == _weights(model) and [v.masked for v in result.layers] == [0, 1, 0]


def test_a_gate_goes_with_what_it_multiplies(tmp_path):
    """Squeeze and excitation: zero behind a sigmoid is a half, but multiplied by zero."""
    net = Whole(5, (1, 2, 4, 4))
    x = net.add("Relu", net.conv("x", 6, 2))
    g = net.conv(net.add("GlobalAveragePool", x), 4, 6, 1)
    g = net.add("Sigmoid", net.conv(net.add("Relu", g), 6, 4, 1))
    model = net.model(net.conv(net.add("Mul", x, g), 2, 6))
    onnx.save(model, tmp_path / "net.onnx")
    result = prune(tmp_path / "net.onnx", mask={"conv0": _mask(6, 2), "conv3": _mask(4, 1)}, output=tmp_path / "a.onnx")
    assert _weights(onnx.load(tmp_path / "a.onnx")) == [(5, 2, 3, 3), (3, 5, 1, 1), (5, 3, 1, 1), (2, 5, 3, 3)]
    assert result.largest_difference <= 1e-6 * result.largest_output


def test_what_is_not_zero_any_more_stays(tmp_path):
    net = Whole(6, (1, 2, 4, 4))
    x = net.add("Sigmoid", net.conv("x", 4, 2))
    onnx.save(net.model(net.conv(x, 2, 4)), tmp_path / "net.onnx")
    result = prune(tmp_path / "net.onnx", mask={"conv0": _mask(4, 0)}, output=tmp_path / "a.onnx")
    assert [v.left for v in result.layers] == [4, 2] and result.layers[0].masked == 1
    with pytest.raises(InputError, match=r"at most 0\.0 % of the multiplications can go"):
        prune(tmp_path / "net.onnx", target=0.5, output=tmp_path / "a.onnx")


def test_upsampling_transposition_and_shapes_that_the_file_computes(tmp_path):
    """`x.view(x.size(0), -1)`, Resize by sizes, a table of channels last, and a mean over rows and columns."""
    net = Whole(7, (1, 2, 4, 4))
    x = net.conv("x", 4, 2)
    x = net.add("Resize", x, "", "", net.constant([1, 4, 8, 8], "int64"), mode="nearest")
    x = net.add("Add", net.add("Transpose", x, perm=[0, 2, 3, 1]), net.constant(net.rng.integers(-3, 4, (1, 1, 4))))
    x = net.add("Transpose", x, perm=[0, 3, 1, 2])
    shape = net.add("Shape", x)
    batch = net.add("Gather", shape, net.constant(0, "int64"), axis=0)
    sizes = net.add(
        "Concat", net.add("Unsqueeze", batch, net.constant([0], "int64")), net.constant([-1], "int64"), axis=0
    )
    y = net.gemm(net.add("Reshape", x, sizes), 3, 4 * 64)
    z = net.add("ReduceMean", x, axes=[2, 3], keepdims=0)
    model = net.model(net.add("Add", y, net.gemm(z, 3, 4)))
    _, small = _pruned(tmp_path, model, {"conv0": _mask(4, 1, 2)})
    assert _weights(small) == [(2, 2, 3, 3)] and _weights(small, "Gemm") == [(3, 128), (3, 2)]
    assert not any(n.op_type in ("Shape", "Gather") for n in small.graph.node)


def test_transposed_convolution_and_matmul(tmp_path):
    net = Whole(8, (1, 2, 4, 4))
    x = net.add("Relu", net.conv("x", 4, 2))
    x = net.add("ConvTranspose", x, net.constant(net.rng.integers(-3, 4, (4, 6, 2, 2))), strides=[2, 2])
    x = net.add("Flatten", net.add("GlobalMaxPool", x))
    x = net.add("MatMul", x, net.constant(net.rng.integers(-3, 4, (6, 5))))
    x = net.add("Relu", net.add("Add", x, net.constant(net.rng.integers(-3, 4, 5))))
    x = net.add("MatMul", x, net.constant(net.rng.integers(-3, 4, (5, 2))))
    mask = {"conv0": _mask(4, 0), "convtranspose2": _mask(6, 1, 5), "matmul5": _mask(5, 3)}
    result, small = _pruned(tmp_path, net.model(x), mask)
    assert _weights(small, "ConvTranspose") == [(3, 4, 2, 2)] and _weights(small, "MatMul") == [(4, 4), (4, 2)]
    assert result.macs == 16 * 3 * 2 * 9 + 16 * 3 * 4 * 4 + 4 * 4 + 4 * 2


def test_an_operator_that_is_not_known_keeps_its_channels(tmp_path):
    net = Whole(9, (1, 2, 4, 4))
    x = net.add("DepthToSpace", net.conv("x", 8, 2), blocksize=2)
    result, small = _pruned(tmp_path, net.model(net.conv(x, 2, 2)), {"conv0": _mask(8, 1, 3)})
    assert _weights(small)[0] == (8, 2, 3, 3)
    (stayed,) = result.stayed
    assert (stayed.channels, stayed.reason) == (2, "DepthToSpace 'depthtospace1' reads it")


def test_a_layer_does_not_lose_its_last_channel(tmp_path):
    """All of a branch is masked: one channel of zeros is left of it."""
    result, model = _pruned(tmp_path, _residual(), {"conv2": [0] * 5})
    assert _weights(model)[1] == (1, 6, 3, 3) and result.stayed[0].reason == "a layer has no other"


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("activations", ["QInt8", "QUInt8"])
def test_quantized_networks(tmp_path, form, activations):
    """Bit for bit: scales and zero points of filters go with them."""
    net = Network(10, (1, 3, 8, 8))
    x = net.add("Relu", net.conv("x", 8, 3))
    y = net.add("Relu", net.conv(x, 8, 8, group=8))
    x = net.add("Add", x, net.conv(y, 8, 8, 1))
    x = net.add("Concat", net.conv(x, 6, 8), net.conv(x, 4, 8), axis=1)
    x = net.add("Flatten", net.add("GlobalAveragePool", net.add("Relu", x)))
    x = net.add("Gemm", x, net.constant(net.rng.standard_normal((10, 5))), net.constant(net.rng.standard_normal(5)))
    path = quantized(net.model(x), tmp_path / "q.onnx", form=form, activations=activations)
    layers = {v.name: v for v in prune(path, target=0.0, output=tmp_path / "same.onnx").layers}
    first, each, mix, six, four, *_ = layers
    mask = {first: _mask(8, 1, 6), each: _mask(8, 4), mix: _mask(8, 1, 6), six: _mask(6, 0), four: _mask(4, 3)}
    result, _ = _pruned(tmp_path, path, mask, whole=False)
    assert result.largest_difference == 0
    assert [v.left for v in result.layers] == [6, 6, 6, 5, 3, 5] and result.layers[1].masked == 1


@pytest.mark.parametrize("measure", ["macs", "channels"])
def test_target(tmp_path, measure):
    """The share that was asked for, the weakest filters first, numbers as multiples."""
    source = tmp_path / "net.onnx"
    net = Whole(11, (1, 2, 8, 8))
    x = net.add("Relu", net.conv("x", 16, 2))
    x = net.add("Relu", net.add("Add", x, net.conv(net.add("Relu", net.conv(x, 24, 16)), 16, 24)))
    onnx.save(net.model(net.conv(x, 4, 16)), source)
    for multiple in (1, 4):
        result, _ = _pruned(tmp_path, onnx.load(source), target=0.5, measure=measure, multiple=multiple)
        left = [v.left for v in result.layers]
        assert all(n % multiple == 0 for n in left) and left[0] == left[2] and left[3] == 4
        share = (
            result.macs / result.macs_before
            if measure == "macs"
            else sum(left) / sum(v.channels for v in result.layers)
        )
        assert 0.3 < share <= 0.5
    weights = numpy_helper.to_array(next(i for i in onnx.load(source).graph.initializer if i.name == "c2"))
    sums = np.abs(weights).sum(axis=(1, 2, 3))
    gone = np.array(result.mask["conv2"]) == 0
    assert gone.any() and sums[gone].max() <= sums[~gone].min()
    with pytest.raises(InputError, match=r"at most \d+\.\d % of the multiplications can go \(target: 99.9 %\)"):
        prune(source, target=0.999, output=tmp_path / "x.onnx")
    kept = prune(source, target=0.2, keep=["conv0"], output=tmp_path / "x.onnx")
    assert kept.layers[0].left == kept.layers[2].left == 16 and kept.layers[1].left < 24


def test_masks_as_files_and_as_pytorch_has_them(tmp_path):
    source = tmp_path / "net.onnx"
    model = _residual()
    for item in (*model.graph.initializer, *model.graph.node[0].input):
        if getattr(item, "name", item) == "c0" and hasattr(item, "name"):
            item.name = "first.weight"
    model.graph.node[0].input[1] = "first.weight"
    onnx.save(model, source)
    wanted = {"first": _mask(6, 0), "conv4": _mask(6, 0)}
    json_file, npz_file = tmp_path / "m.json", tmp_path / "m.npz"
    json_file.write_text(json.dumps(wanted))
    whole = np.ones((6, 2, 3, 3)) * np.array(wanted["first"])[:, None, None, None]
    np.savez(npz_file, **{"first.weight_mask": whole, "conv4": np.array(wanted["conv4"], bool)})
    saved = tmp_path / "saved.json"
    results = [
        prune(source, mask=m, output=tmp_path / "o.onnx", save_mask=saved) for m in (wanted, json_file, npz_file)
    ]
    assert all(
        r.mask == {k: tuple(v) for k, v in {"conv0": wanted["first"], "conv4": wanted["conv4"]}.items()}
        for r in results
    )
    assert prune(source, mask=saved, output=tmp_path / "o.onnx").macs == results[0].macs < results[0].macs_before


def test_refusals(tmp_path):
    source, output = tmp_path / "net.onnx", tmp_path / "o.onnx"
    onnx.save(_residual(), source)
    tflite = tmp_path / "net.tflite"
    tflite.write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(32))
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z"])],
        "b",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    net = Whole(0, (1, 2, 4, 4))
    flow = net.model(net.add("If", net.constant(True, "bool"), then_branch=branch, else_branch=branch))
    onnx.save(flow, tmp_path / "flow.onnx")
    relu = Whole(0, (1, 2, 4, 4))
    onnx.save(relu.model(relu.add("Relu", "x")), tmp_path / "relu.onnx")
    bad = tmp_path / "bad.json"
    bad.write_text("[1, 0]")
    for error, message, arguments in (
        (ConfigError, "give a mask, or a target", {}),
        (ConfigError, "give a mask, or a target", {"mask": {}, "target": 0.5}),
        (ConfigError, "a target of 1 is no share", {"target": 1}),
        (ConfigError, "a multiple of 0", {"target": 0.5, "multiple": 0}),
        (InputError, "the mask names 'conv9', which is no layer \\(conv0, conv2", {"mask": {"conv9": [1]}}),
        (InputError, "must have 6 values of 0 or 1", {"mask": {"conv0": [1, 0]}}),
        (InputError, "must have 6 values of 0 or 1", {"mask": {"conv0": [1, 0, 2, 1, 1, 1]}}),
        (InputError, "no layer named 'q' to keep", {"target": 0.5, "keep": ["q"]}),
        (InputError, "bad.json: not a mask", {"mask": bad}),
        (InputError, "none.json: No such file", {"mask": tmp_path / "none.json"}),
        (ModelError, "TFLite model, which nnloom cannot write again", {"model": tflite, "target": 0.5}),
        (ModelError, "If 'if0' is control flow", {"model": tmp_path / "flow.onnx", "target": 0.5}),
        (ModelError, "there is nothing to prune", {"model": tmp_path / "relu.onnx", "target": 0.5}),
    ):
        with pytest.raises(error, match=message):
            prune(**{"model": source, "output": output, **arguments})
    assert not output.exists()


def test_shared_weights(tmp_path):
    """Two layers with the same weights may lose different filters; what is computed from them may not."""
    net = Whole(12, (1, 2, 4, 4))
    weights = net.constant(net.rng.integers(-3, 4, (4, 2, 3, 3)))
    a, b = (net.add("Conv", "x", weights, pads=[1] * 4) for _ in range(2))
    model = net.model(net.conv(net.add("Concat", a, b, axis=1), 2, 8))
    _, small = _pruned(tmp_path, model, {"conv0": _mask(4, 0), "conv1": _mask(4, 1, 2)})
    assert _weights(small) == [(3, 2, 3, 3), (2, 2, 3, 3), (2, 5, 3, 3)]
    net.nodes[0].input[1] = net.nodes[1].input[1] = "w"
    net.nodes.insert(0, helper.make_node("Neg", [weights], ["w"], "neg"))
    onnx.save(net.model(*[o.name for o in model.graph.output]), tmp_path / "net.onnx")
    with pytest.raises(InputError, match="the weights of 'conv0' are computed, or shared"):
        prune(tmp_path / "net.onnx", mask={"conv0": _mask(4, 0)}, output=tmp_path / "o.onnx")


def test_random_masks(tmp_path):
    """Whatever a mask names, the results are the masked network's."""
    rng = np.random.default_rng(13)
    for seed in range(8):
        mask = {
            name: rng.integers(0, 2, n).tolist() for name, n in (("conv0", 6), ("conv2", 5), ("conv4", 6), ("conv8", 3))
        }
        result, _ = _pruned(tmp_path, _residual(seed), mask)
        assert result.largest_difference == 0 < result.largest_output


def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(_residual(), "net.onnx")
    assert main(["prune", "net.onnx", "--target", "0.4", "--save-mask", "mask.json", "--masked", "zeros.onnx"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("net_pruned.onnx: ") and " multiplications left, " in out and "\nconv0 " in out
    assert _weights(onnx.load("zeros.onnx")) == _weights(onnx.load("net.onnx"))
    assert main(["prune", "net.onnx", "--mask", "mask.json", "-o", "again.onnx", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (
        values["path"] == "again.onnx" and values["macs"] < values["macs_before"] and values["largest_difference"] == 0
    )
    assert Path("again.onnx").read_bytes() == Path("net_pruned.onnx").read_bytes()
    for words, message in (
        (["net.onnx"], "give --mask FILE or --target SHARE"),
        (["net.onnx", "--target", "2"], "a target of 2 is no share"),
        (
            ["none.onnx", "--target", "0.5"],
            "none.onnx: No such file or directory; give a .tflite, .onnx or .pt2 (torch.export) file",
        ),
        (["net.onnx", "--target", "0.5", "-o", "no/where.onnx"], "no/where.onnx: cannot be written"),
    ):
        assert main(["prune", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
