"""Every reason for which the ONNX reader refuses a file or an operator: what provokes it, and its text to the letter.

The last test reads the reasons off the sources, so that a new one needs a case here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from nnloom.arch.errors import NnloomError
from nnloom.compiler.frontend import read_model
from tests.onnx_models import Network

ROOT = Path(__file__).resolve().parents[2]
FRONTEND = ROOT / "compiler" / "frontend" / "onnx"
IMAGE = (1, 4, 6, 6)


def network(build: Callable[[Network], Any], shape: tuple[int, ...] = IMAGE, kind: str = "float32", opset: int = 17):
    """A network of one input `x`; build gives its outputs."""
    n = Network(0, shape)
    made = build(n)
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    inputs = [helper.make_tensor_value_info("x", element, shape)]
    outputs = [helper.make_empty_tensor_value_info(name) for name in (made if isinstance(made, tuple) else (made,))]
    graph = helper.make_graph(n.nodes, "network", inputs, outputs, n.initializers)
    domains = dict.fromkeys(node.domain for node in n.nodes if node.domain)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def quantized(n: Network, x: str = "x", scale: Any = 0.1, kind: str = "int8") -> str:
    """QuantizeLinear."""
    zero = np.zeros(np.shape(scale), kind)
    options = {} if np.ndim(scale) == 0 else {"axis": 1}
    return n.add("QuantizeLinear", x, n.constant(scale), n.constant(zero, kind), **options)


def real(n: Network, q: str, scale: Any = 0.1, kind: str = "int8", axis: int = 1) -> str:
    """DequantizeLinear."""
    zero = np.zeros(np.shape(scale), kind)
    options = {} if np.ndim(scale) == 0 else {"axis": axis}
    return n.add("DequantizeLinear", q, n.constant(scale), n.constant(zero, kind), **options)


def numbers(n: Network, *values: int) -> str:
    return n.constant(values, "int64")


def of_outputs(kind: str, count: int, which: int, **attributes: Any) -> Callable[[Network], str]:
    """An operator on x of which a further output is read."""

    def build(n: Network) -> str:
        extra = [n.constant(np.ones(6)), n.constant(np.zeros(6))] if kind == "LayerNormalization" else []
        return n.add("Abs", n.add(kind, "x", *extra, outputs=count, **attributes)[which])

    return build


def microsoft(kind: str, n: Network, *inputs: str, **attributes: Any) -> str:
    return n.add(kind, *inputs, domain="com.microsoft", **attributes)


def qgemm(n: Network, bias: Any, **attributes: Any) -> str:
    zero, scale = n.constant(0, "int8"), n.constant(0.1)
    weights = n.constant(np.ones((4, 4)), "int8")
    bias = n.constant(bias, "int32")
    return microsoft("QGemm", n, quantized(n), scale, zero, weights, scale, zero, bias, scale, zero, **attributes)


def pooled(n: Network, kind: str, **attributes: Any) -> str:
    zero, scale = n.constant(0, "int8"), n.constant(0.1)
    return microsoft(kind, n, quantized(n), scale, zero, scale, zero, channels_last=1, **attributes)


def resized(n: Network, x: str, *scales: float, **attributes: Any) -> str:
    return n.add("Resize", x, "", n.constant(scales), **attributes)


def recurrent(n: Network, *more: str, kind: str = "RNN", **attributes: Any) -> str:
    weights = n.constant(np.ones((1, 3, 5)) * 0.1)
    return n.add(
        kind, "x", weights, n.constant(np.ones((1, 3, 3)) * 0.1), *more, outputs=2, hidden_size=3, **attributes
    )[0]


def other_axis(n: Network) -> str:
    """A convolution whose weights have scales by input channel."""
    w = real(n, n.constant(n.rng.integers(-9, 10, (8, 4, 1, 1)), "int8"), np.full(4, 0.01), axis=1)
    y = n.add("Clip", n.add("Conv", real(n, quantized(n)), w), n.constant(-0.5), n.constant(0.7))
    return real(n, quantized(n, y))


def quant(n: Network, x: str, scale: Any = 0.1, zero: Any = 0.0, bits: Any = 8, **attributes: Any) -> str:
    names = [n.constant(scale), n.constant(zero), n.constant(bits)]
    return n.add("Quant", x, *names, domain="qonnx.custom_op.general", **attributes)


def computed_scale(n: Network) -> str:
    names = [n.add("Abs", "x"), n.constant(0.0), n.constant(8)]
    return n.add("Quant", "x", *names, domain="qonnx.custom_op.general")


OPERATORS: dict[str, tuple[str, Callable[[], Any]]] = {
    # What any operator may meet
    "no values": (
        "Slice 'slice0': 't0_0' has no elements, or is no tensor",
        lambda: network(lambda n: n.add("Abs", n.add("Slice", "x", numbers(n, 2), numbers(n, 2), numbers(n, 2)))),
    ),
    "a constant that is computed": (
        "Conv 'conv1': the weights is computed; it must be constant",
        lambda: network(lambda n: n.add("Conv", "x", n.add("Abs", "x"), kernel_shape=[6, 6]), (4, 4, 6, 6)),
    ),
    "scales by channel": (
        "QuantizeLinear 'quantizelinear0': a zero point of shape [4]; quantize per tensor",
        lambda: network(lambda n: quantized(n, scale=np.full(4, 0.1))),
    ),
    "no finite scale": (
        "QuantizeLinear 'quantizelinear0': a scale of inf; it must be finite and above 0, calibrate with such values",
        lambda: network(lambda n: quantized(n, scale=np.inf)),
    ),
    "quantized to 16 bits": (
        "QuantizeLinear 'quantizelinear0': quantized to int16; quantize activations to int8 or uint8",
        lambda: network(lambda n: quantized(n, kind="int16"), opset=21),
    ),
    "another output": (
        "Abs 'abs1': 't0_1' is not the first output of LayerNormalization 'layernormalization0'; only that is "
        "supported",
        lambda: network(of_outputs("LayerNormalization", 2, 1)),
    ),
    "another output of the network": (
        "the network's outputs: 't0_1' is not the first output of LayerNormalization 'layernormalization0'; only "
        "that is supported",
        lambda: network(
            lambda n: tuple(
                n.add("LayerNormalization", "x", n.constant(np.ones(6)), n.constant(np.zeros(6)), outputs=2)
            )
        ),
    ),
    # Elementwise
    "integers": (
        "Div 'div0': int64; float32 is supported",
        lambda: network(lambda n: n.add("Div", "x", numbers(n, 3)), kind="int64"),
    ),
    "doubles": (
        "Add 'add0': float64; float32 is supported, and int32 and int64 are",
        lambda: network(lambda n: n.add("Add", "x", n.constant(3.0, "float64")), kind="float64"),
    ),
    "a mask": (
        "Dropout 'dropout0': its mask is read; export the model for inference",
        lambda: network(lambda n: n.add("Not", n.add("Dropout", "x", outputs=2)[1])),
    ),
    # Movement
    "several quantizations": (
        "Concat 'concat2': operands of several types or quantizations; quantize them with one scale",
        lambda: network(lambda n: n.add("Concat", quantized(n), quantized(n, scale=0.2), axis=1)),
    ),
    "negative padding": (
        "Pad 'pad0': widths [[0, 0], [0, 0], [-1, 0], [0, 0]]; slice instead of padding with less than 0",
        lambda: network(lambda n: n.add("Pad", "x", numbers(n, 0, 0, -1, 0, 0, 0, 0, 0))),
    ),
    "the last of equals": (
        "ArgMax 'argmax0': select_last_index; the first of equal values is supported",
        lambda: network(lambda n: n.add("ArgMax", "x", axis=1, select_last_index=1)),
    ),
    # Pools
    "pools of three dimensions": (
        "MaxPool 'maxpool0': 3 dimensions; use one of rows and columns, or of one of them",
        lambda: network(lambda n: n.add("MaxPool", "x", kernel_shape=[2, 2, 2]), (1, 2, 4, 4, 4)),
    ),
    "indices": (
        "MaxPool 'maxpool0': its indices are read; only the maxima are supported",
        lambda: network(lambda n: n.add("Abs", n.add("MaxPool", "x", outputs=2, kernel_shape=[2, 2])[1])),
    ),
    "dilated pools": (
        "MaxPool 'maxpool0': a dilated pool; use a dilation of 1",
        lambda: network(lambda n: n.add("MaxPool", "x", kernel_shape=[2, 2], dilations=[2, 2])),
    ),
    "pools with channels last": (
        "QLinearAveragePool 'qlinearaveragepool1': channels last; export the model as ONNX has it",
        lambda: network(lambda n: pooled(n, "QLinearAveragePool", kernel_shape=[2, 2])),
    ),
    "means with channels last": (
        "QLinearGlobalAveragePool 'qlinearglobalaveragepool1': channels last; export the model as ONNX has it",
        lambda: network(lambda n: pooled(n, "QLinearGlobalAveragePool")),
    ),
    "an old softmax": (
        "QLinearSoftmax 'qlinearsoftmax1': the softmax of opset 12 over several axes; export the model with opset 13 "
        "or newer",
        lambda: network(
            lambda n: microsoft(
                "QLinearSoftmax",
                n,
                quantized(n),
                n.constant(0.1),
                n.constant(0, "int8"),
                n.constant(1 / 256),
                n.constant(-128, "int8"),
                axis=1,
                opset=12,
            )
        ),
    ),
    # Products
    "convolutions of three dimensions": (
        "Conv 'conv0': an operand of 5 dimensions; 3 or 4 are supported",
        lambda: network(lambda n: n.add("Conv", "x", n.constant(np.ones((2, 2, 1, 1, 1)))), (1, 2, 4, 4, 4)),
    ),
    "transposed convolutions of three dimensions": (
        "ConvTranspose 'convtranspose0': 3 dimensions; use one of rows and columns, or of one of them",
        lambda: network(lambda n: n.add("ConvTranspose", "x", n.constant(np.ones((2, 2, 1, 1, 1)))), (1, 2, 4, 4, 4)),
    ),
    "a transposed operand": (
        "Gemm 'gemm0': a transposed operand (transA); transpose it before",
        lambda: network(lambda n: n.add("Gemm", "x", n.constant(np.ones((4, 3))), transA=1), (4, 2)),
    ),
    "a transposed quantized operand": (
        "QGemm 'qgemm1': a transposed operand (transA); transpose it before",
        lambda: network(lambda n: qgemm(n, np.zeros(4), transA=1), (4, 4)),
    ),
    "a bias for each row": (
        "QGemm 'qgemm1': a bias of shape [4, 4]; one value for each output is supported",
        lambda: network(lambda n: qgemm(n, np.zeros((4, 4))), (4, 4)),
    ),
    "scales along another axis": (
        "QuantizeLinear 'quantizelinear5': weights with scales along axis 1; quantize them along the output channels",
        lambda: network(other_axis),
    ),
    # Quantization
    "dequantized by channel": (
        "DequantizeLinear 'dequantizelinear1': a tensor quantized per channel that is not constant; quantize "
        "activations per tensor",
        lambda: network(lambda n: real(n, quantized(n), np.full(4, 0.1))),
    ),
    "dequantized from 32 bits": (
        "DequantizeLinear 'dequantizelinear0': an operand of int32; quantize activations to int8 or uint8",
        lambda: network(lambda n: real(n, "x", kind="int32"), kind="int32"),
    ),
    # Indices
    "sums where indices are the same": (
        "ScatterND 'scatternd0': reduction add; none is supported",
        lambda: network(
            lambda n: n.add(
                "ScatterND", "x", n.constant([[0]], "int64"), n.constant(np.ones((1, 4, 6, 6))), reduction="add"
            )
        ),
    ),
    "no order": (
        "TopK 'topk0': values in no order; use sorted=1",
        lambda: network(lambda n: tuple(n.add("TopK", "x", numbers(n, 2), outputs=2, sorted=0))),
    ),
    # Recurrent
    "other functions": (
        "RNN 'rnn0': activations Softsign; Relu, Sigmoid, Tanh are supported",
        lambda: network(lambda n: recurrent(n, activations=["Softsign"]), (7, 2, 5)),
    ),
    "short sequences": (
        "RNN 'rnn0': sequences of [7, 4] steps; all 7 are supported",
        lambda: network(lambda n: recurrent(n, "", n.constant([7, 4], "int32")), (7, 2, 5)),
    ),
    # Resizing
    "channels resized": (
        "Resize 'resize0': [1, 4, 6, 6] to [1, 8, 6, 6]; rows and columns of images are supported",
        lambda: network(lambda n: resized(n, "x", 1, 2, 1, 1)),
    ),
    "interpolation of integers": (
        "Resize 'resize1': mode linear of int8; nearest, or linear and cubic of real numbers, are supported",
        lambda: network(lambda n: resized(n, quantized(n), 1, 1, 2, 2, mode="linear")),
    ),
    "antialias": (
        "Resize 'resize0': antialias or exclude_outside; use 0",
        lambda: network(lambda n: resized(n, "x", 1, 1, 0.5, 0.5, mode="linear", antialias=1), opset=18),
    ),
    "aspect ratio": (
        "Resize 'resize0': a size that keeps the aspect ratio; state the scales",
        lambda: network(
            lambda n: n.add(
                "Resize", "x", "", "", numbers(n, 3, 5), axes=[2, 3], keep_aspect_ratio_policy="not_larger"
            ),
            opset=18,
        ),
    ),
    "a crop": (
        "Resize 'resize0': coordinate transformation tf_crop_and_resize; asymmetric, half_pixel, pytorch_half_pixel, "
        "align_corners, half_pixel_symmetric, tf_half_pixel_for_nn are supported",
        lambda: network(
            lambda n: n.add(
                "Resize",
                "x",
                n.constant([0, 0, 0, 0, 1, 1, 1, 1]),
                n.constant([1, 1, 2, 2]),
                coordinate_transformation_mode="tf_crop_and_resize",
            )
        ),
    ),
    # QONNX
    "a scale that is computed": (
        "Quant 'quant1': its scale is computed; it must be constant",
        lambda: network(computed_scale),
    ),
    "other nodes of QONNX": (
        "Trunc 'trunc0': only Quant of QONNX is supported; export the network in QCDQ form",
        lambda: network(lambda n: n.add("Trunc", "x", domain="qonnx.custom_op.general")),
    ),
    "rounding down": (
        "Quant 'quant0': rounding mode FLOOR; ROUND (half to even) is supported",
        lambda: network(lambda n: quant(n, "x", rounding_mode="FLOOR")),
    ),
    "nine bits": (
        "Quant 'quant0': 9 bits; 8 and fewer are supported, 32 and fewer of constants",
        lambda: network(lambda n: quant(n, "x", bits=9)),
    ),
    "half a zero point": (
        "Quant 'quant0': a zero point that is no integer; export it as one",
        lambda: network(lambda n: quant(n, "x", zero=0.5)),
    ),
    "several scales of QONNX": (
        "Quant 'quant0': several scales; quantize activations per tensor",
        lambda: network(lambda n: quant(n, "x", scale=np.full((1, 4, 1, 1), 0.1))),
    ),
    "scales along two axes": (
        "Quant 'quant0': scales of shape [8, 4, 1, 1] for [8, 4, 1, 1]; use one for each output channel",
        lambda: network(
            lambda n: n.add("Conv", "x", quant(n, n.constant(np.ones((8, 4, 1, 1))), scale=np.ones((8, 4, 1, 1))))
        ),
    ),
    # Files
    "an unknown operator": (
        "operators that nnloom has no route for: NonZero 'nonzero0'; cut them off the model "
        "(onnx.utils.extract_model) and run them on their own",
        lambda: network(lambda n: n.add("NonZero", "x")),
    ),
    "many unknown operators": (
        "operators that nnloom has no route for: "
        + ", ".join(f"NonZero 'nonzero{i}'" for i in range(10))
        + " and 2 more; cut them off the model (onnx.utils.extract_model) and run them on their own",
        lambda: network(lambda n: tuple(n.add("NonZero", "x") for _ in range(12))),
    ),
    "no operators": ("the model has no operators", lambda: helper.make_model(helper.make_graph([], "g", [], []))),
    "no outputs": (
        "the model has no outputs",
        lambda: helper.make_model(helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "g", [], [])),
    ),
    "no inputs": (
        "the model has no inputs",
        lambda: helper.make_model(
            helper.make_graph(
                [helper.make_node("Abs", ["c"], ["y"])],
                "g",
                [],
                [helper.make_empty_tensor_value_info("y")],
                [onnx.numpy_helper.from_array(np.ones(3, np.float32), "c")],
            )
        ),
    ),
    "an open shape": (
        "input 'x' has the open shape [1, rows, ?]; give --shape x=1,...",
        lambda: _open(network(lambda n: n.add("Abs", "x"), (1, 2, 3))),
    ),
    "an old file that cannot be upgraded": (
        "opset 9 cannot be upgraded (<line>); export the model with opset 13 or newer",
        lambda: network(lambda n: n.add("Strange", "x"), opset=9),
    ),
    "refused by ONNX Runtime": (
        "ONNX Runtime refuses it (<line>); export the model again",
        lambda: network(lambda n: n.add("Abs", "x", "x")),
    ),
    "not to be run": (
        "ONNX Runtime cannot run it (<line>); export the model again",
        lambda: network(
            lambda n: n.add("Cast", n.add("Range", n.constant(0, "int64"), n.constant(4, "int64"), "x"), to=1),
            (),
            "int64",
        ),
    ),
}


def _open(model: onnx.ModelProto) -> onnx.ModelProto:
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims[1].dim_param = "rows"
    dims[2].Clear()
    return model


def refusal_of(data: bytes, folder: Path, **options: Any) -> str:
    """What the reader says, without the path and what others say."""
    path = folder / "network.onnx"
    path.write_bytes(data)
    with pytest.raises(NnloomError) as raised:
        read_model(path, **options)
    text = str(raised.value)
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", OPERATORS)
def test_refusals(name, tmp_path):
    message, make = OPERATORS[name]
    said = refusal_of(make().SerializeToString(), tmp_path)
    assert re.fullmatch(re.escape(message).replace("<line>", r".+"), said), said


FILES = {
    "damaged": "damaged ONNX file (<line>)",
    "none": "No such file or directory; give a .tflite, .onnx or .pt2 (torch.export) file",
    "another input": "no input named 'z' (inputs: x)",
    "another shape": "input 'x' has shape [1, rows, ?], not [2, 3, 4]",
}


def test_files(tmp_path):
    model = _open(network(lambda n: n.add("Abs", "x"), (1, 2, 3))).SerializeToString()
    assert re.fullmatch(r"damaged ONNX file \(.+\)", refusal_of(b"\x08\x09garbage", tmp_path))
    assert refusal_of(model, tmp_path, shapes={"z": (1,)}) == FILES["another input"]
    assert refusal_of(model, tmp_path, shapes={"x": (2, 3, 4)}) == FILES["another shape"]
    with pytest.raises(NnloomError) as raised:
        read_model(tmp_path / "none.onnx")
    assert str(raised.value) == f"{tmp_path / 'none.onnx'}: {FILES['none']}"


def _pattern(node: ast.expr) -> str | None:
    """A message of the source as a regular expression, values being anything."""
    if isinstance(node, ast.BinOp):
        left, right = _pattern(node.left), _pattern(node.right)
        return None if left is None or right is None else left + right
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    if not all(isinstance(p, ast.Constant | ast.FormattedValue) for p in parts):
        return None
    return "".join(re.escape(str(p.value)) if isinstance(p, ast.Constant) else ".*" for p in parts)


def test_every_refusal_is_provoked():
    said = [message for message, _ in OPERATORS.values()] + list(FILES.values())
    missing, found = [], 0
    for path in sorted(FRONTEND.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
                continue
            kind, pattern = node.func.id, _pattern(node.args[0])
            if kind == "Refusal":
                pattern = rf"(\w+ '\w+'|the network's outputs): {pattern}"
            elif kind not in ("ModelError", "UnsupportedOperatorError", "InputError") or pattern is None:
                continue
            else:
                pattern = pattern.removeprefix(r".*:\ ")
            found += 1
            if not any(re.fullmatch(pattern, message) for message in said):
                missing.append(f"{path.name}:{node.lineno}: {pattern}")
    assert not missing
    assert found > 45
