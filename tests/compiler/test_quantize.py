"""Float models quantized: as good as the report says, run by others, and proved on the accelerator."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import flatbuffers
import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from onnx import helper, numpy_helper

from nnloom.arch.errors import InputError, ModelError, ToolMissingError
from nnloom.cli import main
from nnloom.compiler import compile as compile_model
from nnloom.compiler.frontend import read_model
from nnloom.compiler.quantize import quantize
from nnloom.compiler.quantize.calibration import ModelInput, read_arrays_of, read_calibration
from nnloom.compiler.quantize.provable import make_provable, ulps
from nnloom.runtime import InferenceSession
from nnloom.runtime.inputs import check_inputs
from nnloom.sim.litert import LiteRtReference
from tests.compiler.test_onnx import _residual, _squeeze
from tests.onnx_models import Network, answer, check, compile_onnx, quantized, without_code


def _data(shape, count=12, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, *shape)).astype(np.float32)


def _float(network, path):
    onnx.save(network, path)
    return path


@pytest.mark.parametrize(("network", "shape"), [(_residual, (3, 12, 10)), (_squeeze, (4, 8, 6))])
def test_quantized_networks_are_exact_and_proved(network, shape, tmp_path):
    path = _float(network(), tmp_path / "n.onnx")
    result = quantize(path, _data(shape), output=tmp_path / "q.onnx")
    assert result.path == tmp_path / "q.onnx" and (result.calibrated, result.compared) == (10, 2) and result.held_out
    assert set(result.tried) == {"minmax", "percentile", "entropy"} and result.tried[result.method] > 28
    p = result.provability
    assert p.proved == p.channels > 20 and p.others_proved == p.others > 0
    report = check(result.path, tmp_path)
    assert report["exact"] and report["rounding"]["proved"] == report["rounding"]["channels"]
    on_cpu = {layer["op"] for layer in report["layers"] if layer["target"] == "cpu"}
    assert not on_cpu & {"conv_2d", "add", "mul", "mean", "fully_connected"}
    # What the report says of the outputs, measured again.
    x = _data(shape)[[4, 9]]
    want = np.concatenate([answer(onnx.load(path), {"x": v[None]})[0] for v in x])
    got = np.concatenate([answer(onnx.load(result.path), {"x": v[None]})[0] for v in x])
    assert result.sqnr_db == pytest.approx(10 * np.log10((want**2).sum() / ((want - got) ** 2).sum()), abs=0.01)


def test_channels_that_training_left_without_sense(tmp_path):
    """A steep one, and one with next to no weights but a bias: the accelerator has them, and the others stay."""
    n = Network(4, (1, 8, 6, 6))
    x = n.add("Clip", n.conv("x", 8, 8), n.constant(0.0), n.constant(6.0))
    y = n.conv(x, 16, 8, 1)
    weights, bias = (next(i for i in n.initializers if i.name == name) for name in n.nodes[-1].input[1:])
    values, sums = (numpy_helper.to_array(i).copy() for i in (weights, bias))
    values[3] *= 1e4
    values[5], sums[5] = values[5] * 1e-9, 0.7
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    bias.CopyFrom(numpy_helper.from_array(sums, bias.name))
    y = n.add("Clip", y, n.constant(0.0), n.constant(6.0))
    y = n.conv(y, 4, 16)
    last = next(i for i in n.initializers if i.name == n.nodes[-1].input[1])
    read = numpy_helper.to_array(last).copy()
    read[:, 3] = 0
    last.CopyFrom(numpy_helper.from_array(read, last.name))
    path = _float(n.model(y), tmp_path / "n.onnx")
    result = quantize(path, _data((8, 6, 6)), output=tmp_path / "q.onnx", method="minmax")
    assert result.sqnr_db > 20 and result.provability.proved == result.provability.channels == 28
    made = onnx.load(tmp_path / "q.onnx")
    constants = {i.name: numpy_helper.to_array(i) for i in made.graph.initializer}
    conv = [node for node in made.graph.node if node.op_type == "Conv"][1]
    origin = {name: node for node in made.graph.node for name in node.output}
    kept = constants[origin[conv.input[1]].input[0]]
    assert (np.abs(kept).reshape(16, -1).max(axis=1) == 127)[[0, 1, 2, 3, 4, 6, 15]].all() and not kept[5].any()
    report = check(tmp_path / "q.onnx", tmp_path)
    on_cpu = {layer["op"] for layer in report["layers"] if layer["target"] == "cpu"}
    assert report["exact"] and "conv_2d" not in on_cpu


def test_scales_are_moved_until_all_is_proved(tmp_path):
    n = Network(3, (1, 16, 6, 6))
    path = quantized(n.model(n.conv("x", 256, 16)), tmp_path / "n.onnx")
    model = onnx.load(path)
    changed, found = make_provable(path, model, lambda done, total: None)
    assert found.proved_before < found.proved == found.channels == 256
    assert found.scales_moved == 256 - found.proved_before
    before, after = ({i.name: numpy_helper.to_array(i) for i in m.graph.initializer} for m in (model, changed))
    apart = {name for name in before if not np.array_equal(before[name], after[name])}
    assert apart == {"c0_scale", "c1_quantized_scale"}  # weights' and bias' scales; the integers stay
    assert np.abs(after["c0_scale"] / before["c0_scale"] - 1).max() < 1e-5
    assert np.array_equal(after["c1_quantized_scale"], before["x_scale"] * after["c0_scale"])
    onnx.save(changed, tmp_path / "m.onnx")
    report = check(tmp_path / "m.onnx", tmp_path)
    assert report["rounding"]["proved"] == report["rounding"]["channels"] == 256
    assert {x["op"] for x in report["layers"] if x["target"] == "accelerator"} == {"conv2d"}
    unmoved, counted = make_provable(path, model, lambda done, total: None, move=False)
    assert unmoved == model and counted.proved == counted.proved_before == found.proved_before


def test_the_float_model_is_evaluated_beside_the_artifact(tmp_path, capsys):
    path = _float(_residual(), tmp_path / "n.onnx")
    quantize(path, _data((3, 12, 10)), output=tmp_path / "q.onnx", explain=False)
    compile_onnx(tmp_path / "q.onnx", tmp_path / "artifact")
    data = _data((3, 12, 10), 4)
    want = np.stack([answer(onnx.load(path), {"x": v[None]})[0].reshape(-1) for v in data])
    np.savez(tmp_path / "data.npz", x=data, labels=want)
    arguments = [
        "--data",
        str(tmp_path / "data.npz"),
        "--metric",
        "mae",
        "--device",
        "model",
        "--no-native",
        "--float",
        str(path),
    ]
    assert main(["evaluate", str(tmp_path / "artifact"), *arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    artifact, reference, real = (e["value"] for e in result["evaluations"])
    assert result["equals_reference"] and artifact == reference > real == pytest.approx(0, abs=1e-6)


def _limited(model):
    """Weights as Brevitas writes them: behind a Clip to the range of the quantizer."""
    (origin,) = (n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == "c0_quantized")
    limits = [numpy_helper.from_array(np.int8(value), name) for name, value in (("low", -127), ("high", 127))]
    model.graph.initializer.extend(limits)
    model.graph.node.insert(0, helper.make_node("Clip", [origin.input[0], "low", "high"], ["limited"], "limits"))
    origin.input[0] = "limited"
    return model


def test_scales_of_unsigned_tensors_and_of_weights_behind_a_clip(tmp_path):
    n = Network(4, (1, 8, 6, 6))
    path = quantized(n.model(n.add("Relu", n.conv("x", 96, 8))), tmp_path / "n.onnx", activations="QUInt8")
    onnx.save(_limited(onnx.load(path)), path)
    before = check(path, tmp_path)["rounding"]
    report = check(path, tmp_path, unproved="scales")
    assert before["proved"] < report["rounding"]["proved"] == 96 and report["exact"]
    assert {x["op"] for x in report["layers"] if x["target"] == "accelerator"} == {"conv2d"}


def test_one_scale_of_all_channels(tmp_path):
    n = Network(5, (1, 16, 6, 6))
    path = quantized(n.model(n.conv("x", 48, 16)), tmp_path / "n.onnx", per_channel=False)
    found = make_provable(path, onnx.load(path), lambda done, total: None)[1]
    assert found.proved >= found.proved_before and found.scales_moved == (found.proved > found.proved_before)


def test_units_in_the_last_place():
    scale = np.array([0.1, 1.0], np.float32)
    assert np.array_equal(ulps(scale, 1), np.nextafter(scale, np.float32(2)))
    assert np.array_equal(ulps(scale, np.array([-1, 1])), [np.nextafter(scale[0], 0), np.nextafter(scale[1], 2)])


def test_layers(tmp_path):
    """A layer whose range is far larger than most of its values loses the most, and is named."""
    n = Network(2, (1, 4, 8, 8))
    a = n.add("Relu", n.conv("x", 8, 4))
    wide = n.add("Mul", a, n.constant(np.array([1, 900, 1, 1, 1, 1, 1, 1]).reshape(1, 8, 1, 1)))
    y = n.conv(n.add("Sigmoid", wide), 4, 8, 1)
    path = _float(n.model(y), tmp_path / "n.onnx")
    result = quantize(path, _data((4, 8, 8)), output=tmp_path / "q.onnx", method="minmax")
    layers = {layer.name: layer for layer in result.layers}
    assert list(layers) == ["conv0", "mul2", "sigmoid3", "conv4"]  # the Relu is done by the quantization of conv0
    assert layers["conv0"].tensor == "t1_0" and layers["conv0"].zero_point == -128 and layers["conv0"].scale > 0
    assert layers["conv0"].weights_sqnr_db > 35 and layers["conv0"].own_sqnr_db >= layers["conv0"].sqnr_db > 25
    assert all(0 <= layer.clipped < 0.2 for layer in result.layers)
    assert {gain.layer for gain in result.gains} <= set(layers) and len(result.gains) == 3
    best = result.gains[0]
    kept = quantize(path, _data((4, 8, 8)), output=tmp_path / "k.onnx", method="minmax", keep_float=[best.layer])
    assert kept.sqnr_db == pytest.approx(best.sqnr_db, abs=0.3) and kept.keep_float == (best.layer,)
    assert kept.sqnr_db - result.sqnr_db == pytest.approx(best.gain_db, abs=0.3)
    brief = quantize(path, _data((4, 8, 8)), output=tmp_path / "b.onnx", method="minmax", explain=False)
    assert brief.layers == brief.gains == () and brief.sqnr_db == result.sqnr_db


@pytest.fixture
def small(tmp_path):
    n = Network(1, (1, 2, 4, 4))
    return _float(n.model(n.conv("x", 3, 2)), tmp_path / "n.onnx")


def test_forms_of_calibration_data(tmp_path):
    data = _data((2, 4, 4), 6)
    np.save(tmp_path / "a.npy", data)
    np.savez(tmp_path / "b.npz", x=data)
    np.savez(tmp_path / "c.npz", inputs=data, labels=np.arange(6))
    np.savez(tmp_path / "d.npz", pictures=data, y=np.arange(6))
    (tmp_path / "folder").mkdir()
    for i, case in enumerate(data):
        np.save(tmp_path / "folder" / f"{i}.npy", case if i % 2 else case[None])
    forms = [data, {"x": data}, data.astype(np.float64), *(tmp_path / f for f in ("a.npy", "b.npz", "c.npz", "d.npz"))]
    info = [ModelInput("x", (1, 2, 4, 4), "float32")]
    for form in [*forms, tmp_path / "folder"]:
        found = read_calibration(read_arrays_of(form), info)
        assert np.array_equal(np.concatenate([case["x"] for case in found.calibrate]), data[[0, 1, 2, 3, 5]])
        assert np.array_equal(found.compare[0]["x"], data[4:5]) and found.held_out
        assert found.calibrate[0]["x"].dtype == np.float32
    one = read_calibration(read_arrays_of(data[0]), info)
    assert one.compare is one.calibrate and len(one.calibrate) == 1 and not one.held_out
    few = read_calibration(read_arrays_of(data), info, limit=2)
    assert (len(few.calibrate), len(few.compare)) == (1, 1)


BAD = {
    "other shape": (np.zeros((3, 2, 4, 5), np.float32), r"shape \[3, 2, 4, 5\]; the model takes \[1, 2, 4, 4\]"),
    "integers": (np.zeros((3, 2, 4, 4), np.uint8), "are uint8; the model takes float32"),
    "not finite": (np.full((3, 2, 4, 4), np.nan, np.float32), "hold NaN or infinity"),
    "other name": ({"z": np.zeros(1), "w": np.zeros(1)}, r"no input 'x' in the calibration data \(there are: z, w\)"),
    "empty": (np.zeros((0, 2, 4, 4), np.float32), "hold no inferences"),
}


@pytest.mark.parametrize("kind", BAD)
def test_data_that_do_not_fit(kind, small, tmp_path):
    data, message = BAD[kind]
    with pytest.raises(InputError, match=message) as caught:
        quantize(small, data, output=tmp_path / "q.onnx")
    assert "\n" not in str(caught.value) and not (tmp_path / "q.onnx").exists()


def test_constants_that_are_listed_as_inputs(tmp_path):
    """As files of old versions have them."""
    n = Network(5, (1, 3, 6, 6))
    model = n.model(n.add("Reshape", n.conv("x", 4, 3), n.constant([1, 4, 36], "int64")))
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(i.name, i.data_type, i.dims) for i in model.graph.initializer
    )
    onnx.save(model, tmp_path / "n.onnx")
    data = np.random.default_rng(0).uniform(-1, 1, (4, 3, 6, 6)).astype(np.float32)
    made = quantize(tmp_path / "n.onnx", data, output=tmp_path / "q.onnx", method="minmax", explain=False)
    assert [i.name for i in onnx.load(made.path).graph.input] == ["x"]
    assert check(made.path, tmp_path)["exact"]


def test_what_is_refused(small, tmp_path):
    data = _data((2, 4, 4), 2)
    with pytest.raises(InputError, match=r"no layer named 'conv9' to keep float \(layers: conv0\)"):
        quantize(small, data, output=tmp_path / "q.onnx", keep_float=["conv9"])
    with pytest.raises(InputError, match="no method 'best' for such a file"):
        quantize(small, data, output=tmp_path / "q.onnx", method="best")
    done = quantize(small, data, output=tmp_path / "q.onnx", method="minmax", explain=False).path
    with pytest.raises(ModelError, match=r"q\.onnx: quantized already; compile it as it is"):
        quantize(done, data, output=tmp_path / "r.onnx")
    (tmp_path / "damaged.onnx").write_bytes(b"\x08\x09garbage")
    with pytest.raises(ModelError, match="damaged ONNX file"):
        quantize(tmp_path / "damaged.onnx", data, output=tmp_path / "r.onnx")
    with pytest.raises(ModelError, match="No such file"):
        quantize(tmp_path / "none.onnx", data, output=tmp_path / "r.onnx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no \.npy or \.npz files there"):
        quantize(small, tmp_path / "empty", output=tmp_path / "r.onnx")
    assert not (tmp_path / "r.onnx").exists()


def test_old_opset_and_open_shapes(tmp_path):
    # Of opset 11, whose DequantizeLinear has no axis: quantized as it is, ONNX Runtime refuses the result.
    n = Network(4, (1, 3, 8, 8))
    n.nodes.append(helper.make_node("Relu", [n.conv("x", 4, 3)], ["y"]))
    model = n.model("y", opset=11)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims[0].dim_param, dims[2].dim_param = "batch", "rows"
    path = _float(model, tmp_path / "n.onnx")
    result = quantize(path, _data((3, 6, 8)), output=tmp_path / "q.onnx", explain=False)
    assert read_model(result.path).input_infos()[0].shape == (1, 3, 6, 8)
    assert check(result.path, tmp_path)["exact"]
    with pytest.raises(InputError, match=r"the model takes \[1, 3, 8, 8\]"):
        quantize(path, _data((3, 6, 8)), output=tmp_path / "q.onnx", shapes={"x": (1, 3, 8, 8)})


def test_a_factor_that_the_scales_take_over_is_no_table(tmp_path):
    n = Network(6, (1, 3, 6, 6))
    y = n.conv(n.add("Div", n.conv("x", 4, 3), n.constant(6.0)), 4, 4, 1)
    path = quantized(n.model(y), tmp_path / "n.onnx")
    check(path, tmp_path)
    assert [node.kind for node in read_model(path).nodes if node.kind != "RESHAPE"] == [
        "QUANTIZE", "CONV_2D", "CONV_2D", "DEQUANTIZE"
    ]  # fmt: skip


def test_compile_quantizes_in_one_go(small, tmp_path):
    data = _data((2, 4, 4), 6)
    report = compile_onnx(small, tmp_path / "float")
    assert all(layer["target"] == "cpu" for layer in report["layers"])
    with without_code():
        result = compile_model(small, output=tmp_path / "a", calibrate=data, quantization={"method": "minmax"})
    assert result.quantized.method == "minmax" and result.quantized.path == tmp_path / "a" and not result.is_float
    assert any(layer["target"] == "accelerator" for layer in result.report["layers"]) and result.report["exact"]
    alone = quantize(small, data, output=tmp_path / "q.onnx", method="minmax")
    assert (tmp_path / "a" / "model.onnx").read_bytes() == alone.path.read_bytes()
    n = Network(1, (1, 2, 4, 4))
    odd = _float(n.model(n.add("NonZero", n.conv("x", 3, 2))), tmp_path / "odd.onnx")
    with pytest.raises(ModelError, match=r"^\S*odd\.onnx, quantized: operators .* NonZero"):
        compile_model(odd, output=tmp_path / "b", calibrate=data)


def test_command(small, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", x=_data((2, 4, 4), 6))
    assert main(["quantize", str(small), "--calibrate", "data.npz"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("n_int8.onnx: outputs have ") and "5 inferences for the ranges, 1 others" in out
    assert "--keep-float conv0: " in out and "proved to be rounded as ONNX Runtime does: 3 of 3 channels" in out
    assert main(["quantize", "n.onnx", "--calibrate", "data.npz", "-o", "q.onnx", "--method", "entropy", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (
        values["path"] == "q.onnx" and list(values["tried"]) == ["entropy"] and values["layers"][0]["name"] == "conv0"
    )
    assert Path("q.onnx").is_file()
    assert main(["quantize", "n.onnx", "--calibrate", "data.npz", "-o", "none/q.onnx"]) == 2
    assert "none" in capsys.readouterr().err
    assert main(["compile", "n.onnx", "--keep-float", "conv0"]) == 2
    assert "--keep-float is for a float model that is quantized: add --calibrate" in capsys.readouterr().err
    with without_code():
        assert main(["compile", "n.onnx", "-o", "a"]) == 0
        out = capsys.readouterr().out
        assert "the model is float, and the accelerator int8; to quantize it: --calibrate DATA" in out
        assert main(["compile", "n.onnx", "-o", "a", "--calibrate", "data.npz", "--method", "minmax", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["quantization"]["method"] == "minmax" and values["exact"]


@pytest.fixture
def recordings():
    return np.random.default_rng(5).uniform(0, 1, (6, 96, 96, 1)).astype(np.float32)


@pytest.mark.model
def test_tflite(model_path, recordings, tmp_path, capfd):
    path = model_path("image_example1_float32")
    result = quantize(path, recordings, output=tmp_path / "q.tflite")
    assert set(result.tried) == {"minmax", "average"} and result.sqnr_db > 20 and result.provability is None
    assert [layer.op for layer in result.layers][:3] == ["CONV_2D", "AVERAGE_POOL_2D", "CONV_2D"]
    assert (
        result.layers[0].weights_sqnr_db > 30 and result.layers[1].own_sqnr_db is None
    )  # a pool has its operand's scale
    printed = capfd.readouterr()
    assert not printed.out and "Applying" not in printed.err
    graph = read_model(result.path)
    assert {graph.values[n.outputs[0]].type.dtype for n in graph.nodes if n.kind == "CONV_2D"} == {"int8"}
    report = compile_onnx(result.path, tmp_path / "a")
    assert report["exact"] and report["engine_share"] == 1.0
    with InferenceSession(tmp_path / "a", "model", native=False) as session:
        reference = LiteRtReference(tmp_path / "a" / "model.tflite")
        for x in recordings[:2]:
            given = check_inputs(session.get_inputs(), {session.get_inputs()[0].name: x[None]})
            answers = list(session.run(x[None]).values())
            assert reference.differences(given, answers) == [0]
    kept = quantize(
        path, recordings, output=tmp_path / "k.tflite", method="minmax", keep_float=["dense"], explain=False
    )
    graph = read_model(kept.path)
    (product,) = (n for n in graph.nodes if n.kind == "FULLY_CONNECTED")
    assert graph.values[product.outputs[0]].type.dtype == "float32" and "dense" in kept.keep_float[0]
    with pytest.raises(InputError, match="layers have 'conv2d' in their names"):
        quantize(path, recordings, output=tmp_path / "k.tflite", keep_float=["conv2d"])
    wide = quantize(path, recordings, output=tmp_path / "w.tflite", activations="int16", method="minmax", explain=False)
    graph = read_model(wide.path)
    assert {graph.values[n.outputs[0]].type.dtype for n in graph.nodes if n.kind == "CONV_2D"} == {"int16"}
    assert wide.sqnr_db > result.sqnr_db + 10
    with pytest.raises(ModelError, match="quantized already"):
        quantize(result.path, recordings, output=tmp_path / "r.tflite")
    with pytest.raises(InputError, match="no method 'entropy' for such a file"):
        quantize(path, recordings, output=tmp_path / "r.tflite", method="entropy")
    with pytest.raises(InputError, match="a TFLite model has its own"):
        quantize(path, recordings, output=tmp_path / "r.tflite", shapes={"x": (1,)})


@pytest.mark.model
def test_tflite_of_old_converters(model_path, recordings, tmp_path):
    """Operators under their old numbers only, weights in float16, no signature: other files, the same network."""
    data = model_path("image_example1_float32").read_bytes()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))
    graph = model.subgraphs[0]
    code = schema.OperatorCodeT()
    code.deprecatedBuiltinCode, code.version = schema.BuiltinOperator.DEQUANTIZE, 3
    model.operatorCodes.append(code)
    model.signatureDefs = None
    for entry in model.operatorCodes:
        entry.deprecatedBuiltinCode = max(entry.deprecatedBuiltinCode, entry.builtinCode)
        entry.builtinCode = 0
    weights = int(graph.operators[0].inputs[1])
    wide = np.frombuffer(bytes(model.buffers[graph.tensors[weights].buffer].data), np.float32)
    half = schema.TensorT()
    half.name, half.shape, half.type = b"half", graph.tensors[weights].shape, schema.TensorType.FLOAT16
    half.buffer, buffer = len(model.buffers), schema.BufferT()
    buffer.data = wide.astype(np.float16).view(np.uint8)
    model.buffers.append(buffer)
    graph.tensors.append(half)
    graph.tensors[weights].buffer = 0
    unpack = schema.OperatorT()
    unpack.opcodeIndex, unpack.inputs, unpack.outputs = (
        len(model.operatorCodes) - 1,
        [len(graph.tensors) - 1],
        [weights],
    )
    graph.operators.insert(0, unpack)
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    (tmp_path / "old.tflite").write_bytes(bytes(builder.Output()))
    result = quantize(tmp_path / "old.tflite", recordings, output=tmp_path / "q.tflite", method="minmax")
    today = quantize(model_path("image_example1_float32"), recordings, output=tmp_path / "t.tflite", method="minmax")
    assert result.sqnr_db == pytest.approx(today.sqnr_db, abs=3)
    assert [layer.op for layer in result.layers] == [layer.op for layer in today.layers]
    (tmp_path / "bad.tflite").write_bytes(data[:200])
    with pytest.raises(ModelError, match="damaged TFLite file"):
        quantize(tmp_path / "bad.tflite", recordings, output=tmp_path / "q.tflite")


def test_without_the_extra(tmp_path, monkeypatch):
    (tmp_path / "n.tflite").write_bytes(b"\0\0\0\0TFL3")
    missing = {"ai_edge_quantizer", "onnx"}
    monkeypatch.setattr("nnloom.arch.extras.find_spec", lambda name: None if name in missing else sys.__spec__)
    with pytest.raises(ToolMissingError, match=r"ai-edge-quantizer is not installed; pip install 'nnloom\[quantize\]'"):
        quantize(tmp_path / "n.tflite", np.zeros(3), output=tmp_path / "q.tflite")
    with pytest.raises(ToolMissingError, match=r"onnx is not installed; pip install 'nnloom\[onnx\]'"):
        quantize(tmp_path / "n.onnx", np.zeros(3), output=tmp_path / "q.onnx")
