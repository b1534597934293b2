"""Reading TFLite files: interface, folding, and one clear line for everything that cannot be used."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from nnloom import boards
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import ModelError, NnloomError, UnsupportedOperatorError
from nnloom.compiler.frontend import read_model
from nnloom.compiler.partition import partition
from tests.tflite_models import ModelWriter, edited


@pytest.fixture
def convolution() -> bytes:
    m = ModelWriter()
    return m.finish(m.conv(m.input((1, 6, 5, 3)), 4))


def refused(path, data: bytes, match: str, error: type[NnloomError] = ModelError) -> None:
    path.write_bytes(data)
    with pytest.raises(error, match=match) as raised:
        read_model(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


def test_interface_of_an_int8_model(tmp_path, convolution):
    path = tmp_path / "small.tflite"
    path.write_bytes(convolution)
    model = read_model(path)
    (source,), (output,) = model.input_infos(), model.output_infos()
    assert model.name == "small"
    assert (source.name, source.shape, source.dtype) == ("tensor_0", (1, 6, 5, 3), "int8")
    assert (output.shape, output.dtype) == ((1, 6, 5, 4), "int8")
    written = schema.ModelT.InitFromPackedBuf(convolution, 0).subgraphs[0].tensors[0].quantization
    assert (source.scale, source.zero_point) == (float(written.scale[0]), int(written.zeroPoint[0]))


def test_float_interface_gives_the_quantization_behind_it(tmp_path):
    m = ModelWriter()
    x = m.input((1, 4, 4, 3), dtype="FLOAT32")
    output = m.conv(m.quantize(x, 0.05, 3), 4)
    path = tmp_path / "model.tflite"
    path.write_bytes(m.finish(m.dequantize(output)))
    model = read_model(path)
    (source,), (result,) = model.input_infos(), model.output_infos()
    assert source.dtype == result.dtype == "float32"
    assert (source.scale, source.zero_point) == (float(np.float32(0.05)), 3)
    assert result.scale == float(np.float32(m.scale(output)))


def test_uint8_interface_has_the_file_s_zero_point(tmp_path):
    m = ModelWriter()
    x = m.tensor((1, 4, 4, 3), dtype="UINT8", scale=0.05, zero_point=131)
    m.inputs.append(x)
    inside = m.operator("QUANTIZE", [x], m.tensor((1, 4, 4, 3), scale=0.05, zero_point=3), schema.QuantizeOptionsT())
    path = tmp_path / "model.tflite"
    path.write_bytes(m.finish(m.conv(inside, 4)))
    (source,) = read_model(path).input_infos()
    assert (source.dtype, source.scale, source.zero_point) == ("uint8", float(np.float32(0.05)), 131)


@pytest.mark.model
def test_shape_arithmetic_is_folded(model_path):
    """The anomaly detection model computes the shape of a RESHAPE with SHAPE, STRIDED_SLICE and PACK."""
    data = model_path("anomaly_detection").read_bytes()
    codes = {c.builtinCode for c in schema.ModelT.InitFromPackedBuf(data, 0).operatorCodes}
    assert {schema.BuiltinOperator.SHAPE, schema.BuiltinOperator.STRIDED_SLICE, schema.BuiltinOperator.PACK} <= codes
    kinds = [node.kind for node in read_model(model_path("anomaly_detection")).nodes]
    assert not {"SHAPE", "STRIDED_SLICE", "PACK"} & set(kinds)
    assert "RESHAPE" in kinds


def test_missing_file(tmp_path):
    with pytest.raises(ModelError, match="No such file"):
        read_model(tmp_path / "none.tflite")


def test_directory(tmp_path):
    with pytest.raises(ModelError, match="directory"):
        read_model(tmp_path)


@pytest.mark.parametrize("data", [b"", b"abc", b"\x1c\0\0\0"])
def test_empty(tmp_path, data):
    refused(tmp_path / "m.tflite", data, "empty or truncated")


@pytest.mark.parametrize("data", [b"x" * 1000, b"\x08\0\0\0ONNX" + bytes(100), b"PK\x03\x04" + bytes(100)])
def test_another_format(tmp_path, data):
    refused(tmp_path / "m.tflite", data, "neither a TFLite model")


@pytest.mark.parametrize("keep", [8, 20, 100, 0.5, 0.9])
def test_truncated(tmp_path, convolution, keep):
    size = keep if isinstance(keep, int) else int(len(convolution) * keep)
    refused(tmp_path / "m.tflite", convolution[:size], "damaged|cannot import")


@pytest.mark.parametrize("seed", range(60))
def test_damaged_bytes_never_crash(tmp_path, capfd, seed):
    """Whatever the bytes: a model, or one line; nothing on stderr."""
    m = ModelWriter(seed)
    rng = np.random.default_rng(seed)
    data = bytearray(m.finish(m.softmax(m.dense(m.conv(m.input((1, 6, 5, 3)), 4), 3))))
    for _ in range(int(rng.integers(1, 20))):
        data[int(rng.integers(8, len(data)))] = int(rng.integers(256))
    path = tmp_path / "m.tflite"
    path.write_bytes(data)
    try:
        read_model(path)
    except NnloomError as error:
        assert "\n" not in str(error)
    assert capfd.readouterr().err == ""


def test_float_model(tmp_path):
    """Nothing of it is for the accelerator."""
    m = ModelWriter()
    x = m.input((1, 4, 4, 3), dtype="FLOAT32")
    weights = m.tensor((2, 1, 1, 3), dtype="FLOAT32", data=np.ones((2, 1, 1, 3), np.float32))
    bias = m.tensor((2,), dtype="FLOAT32", data=np.zeros(2, np.float32))
    options = schema.Conv2DOptionsT()
    options.strideH = options.strideW = options.dilationHFactor = options.dilationWFactor = 1
    output = m.operator("CONV_2D", [x, weights, bias], m.tensor((1, 4, 4, 2), dtype="FLOAT32"), options)
    (tmp_path / "m.tflite").write_bytes(m.finish(output))
    partitioned = partition(read_model(tmp_path / "m.tflite"), AcceleratorConfig())
    assert not partitioned.graphs
    assert [op.reason for op in partitioned.cpu_operators] == ["the operand is float32, not int8"]


def test_custom_operators_are_named_all_at_once(tmp_path):
    m = ModelWriter()
    x = m.conv(m.input((1, 4, 4, 3)), 4)
    first = m.operator("CUSTOM", [x], m.tensor((1, 4, 4, 4), scale=0.1, zero_point=0))
    data = m.finish(m.operator("WHILE", [first], m.tensor((1, 4, 4, 4), scale=0.1, zero_point=0)))

    def name_it(model):
        model.operatorCodes[1].customCode = "EthosU"

    refused(
        tmp_path / "m.tflite",
        edited(data, name_it),
        "CUSTOM 'EthosU'; control flow .*: WHILE",
        UnsupportedOperatorError,
    )


def test_an_operator_that_stands_in_one_field_only(tmp_path, convolution):
    """The code is the larger of both fields; the schema's package reads small ones from the deprecated field alone."""

    def only(model):
        model.operatorCodes[0].deprecatedBuiltinCode = 0

    def only_deprecated(model):
        model.operatorCodes[0].builtinCode = 0

    for edit in (only, only_deprecated):
        path = tmp_path / "m.tflite"
        path.write_bytes(edited(convolution, edit))
        assert [node.kind for node in read_model(path).nodes] == ["CONV_2D"]


@pytest.mark.parametrize(
    ("scale", "text"),
    [(np.nan, "nan"), (np.inf, "inf"), (0.0, "0"), (-1.0, "-1")],
    ids=["nan", "inf", "zero", "negative"],
)
def test_scales_that_are_none(tmp_path, convolution, scale, text):
    def edit(model):
        model.subgraphs[0].tensors[0].quantization.scale = np.array([scale], np.float32)

    refused(tmp_path / "m.tflite", edited(convolution, edit), f"'tensor_0' has the quantization scale {text};")


def test_a_bias_with_the_axis_of_its_weights(tmp_path, convolution):
    """As in the best-known person detection network: the bias says quantized_dimension 3."""

    def edit(model):
        model.subgraphs[0].tensors[2].quantization.quantizedDimension = 3

    path = tmp_path / "m.tflite"
    path.write_bytes(edited(convolution, edit))
    assert read_model(path).values[2].type.quantization.axis == 0


def test_further_signatures(tmp_path, convolution):
    """The network is the first subgraph; others are those of other signatures."""

    def duplicate(model):
        model.subgraphs.append(model.subgraphs[0])

    (tmp_path / "m.tflite").write_bytes(edited(convolution, duplicate))
    assert [node.kind for node in read_model(tmp_path / "m.tflite").nodes] == ["CONV_2D"]


def test_dynamic_shape(tmp_path, convolution):
    def open_rows(model):
        model.subgraphs[0].tensors[0].shapeSignature = np.array([-1, -1, 5, 3], np.int32)

    refused(tmp_path / "m.tflite", edited(convolution, open_rows), "dynamic shape")


def test_open_batch_is_one(tmp_path, convolution):
    def open_batch(model):
        model.subgraphs[0].tensors[0].shapeSignature = np.array([-1, 6, 5, 3], np.int32)

    path = tmp_path / "m.tflite"
    path.write_bytes(edited(convolution, open_batch))
    assert read_model(path).input_infos()[0].shape == (1, 6, 5, 3)


def test_names_are_made_unique(tmp_path):
    m = ModelWriter()
    x = m.input((1, 6, 5, 3))
    data = m.finish(m.conv(x, 4), m.conv(x, 4))

    def same(model):
        for tensor in model.subgraphs[0].tensors:
            tensor.name = "same"

    def none(model):
        for tensor in model.subgraphs[0].tensors:
            tensor.name = None

    path = tmp_path / "m.tflite"
    path.write_bytes(edited(data, same))
    graph = read_model(path)
    assert [info.name for info in (*graph.input_infos(), *graph.output_infos())] == ["same", "same:1", "same:2"]
    path.write_bytes(edited(data, none))
    graph = read_model(path)
    names = [info.name for info in (*graph.input_infos(), *graph.output_infos())]
    assert names == [f"tensor_{i}" for i in (*graph.inputs, *graph.outputs)]


def test_an_output_that_is_named_twice(tmp_path, convolution):
    def twice(model):
        model.subgraphs[0].outputs = np.repeat(model.subgraphs[0].outputs, 2)

    path = tmp_path / "m.tflite"
    path.write_bytes(edited(convolution, twice))
    first, second = (info.name for info in read_model(path).output_infos())
    assert second == f"{first}:1"


def test_no_operators(tmp_path, convolution):
    def clear(model):
        model.subgraphs[0].operators = []

    refused(tmp_path / "m.tflite", edited(convolution, clear), "no operators")


def test_relu6_bound_rounds_half_away_from_zero(tmp_path):
    """6 / scale is a tie; rounding half to even would clamp one lower."""
    m = ModelWriter()
    x = m.conv(m.input((1, 4, 4, 3)), 4, activation="relu6")
    q = m.tensors[x].quantization
    q.scale[0], q.zeroPoint[0] = 6 / 4.5, -100  # 4.5 steps
    path = tmp_path / "m.tflite"
    path.write_bytes(m.finish(x))
    assert float(np.float32(6) / np.float32(6 / 4.5)) == 4.5
    (graph,) = partition(read_model(path), boards.get("ulx3s-85f").config).graphs
    assert graph.layers[0].act_max == -95
