"""uint8 networks on the accelerator, re-centred to int8, against LiteRT's reference kernels of uint8."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from nnloom.arch.dtypes import INT9, RECENTRED
from nnloom.arch.reference import evaluate
from nnloom.compiler.fit import fit
from nnloom.compiler.frontend import read_model
from nnloom.compiler.recentre import SAME, recentre
from nnloom.runtime import InferenceSession
from nnloom.sim.litert import LiteRtReference
from tests.compiler.litert import compile_without_code
from tests.compiler.networks import NETWORKS
from tests.fuzz.check import CONFIGS, Checker
from tests.fuzz.generate import Built
from tests.operator_cases import cases
from tests.tflite_models import ModelWriter, as_uint8, edited


@pytest.mark.parametrize("kind", sorted(SAME))
def test_twins_compute_the_same(tmp_path, kind):
    """The int8 reference of the twin, value for value, against that of uint8, which conformance tests compare with
    LiteRT."""
    compared = 0
    for case in cases(5, 80, [kind], "uint8"):
        if compared == 3:
            break
        (tmp_path / "m.tflite").write_bytes(case.model)
        graph = read_model(tmp_path / "m.tflite")
        twin = recentre(graph)
        if not twin.unsigned or len(graph.nodes) != 1:
            continue
        given = dict(zip(graph.inputs, case.inputs, strict=True))
        values = [given.get(i, value.data) for i, value in enumerate(graph.values)]
        (node,), (other,) = graph.nodes, twin.graph.nodes
        want = evaluate(node.operation, [None if i is None else values[i] for i in node.inputs])
        if "float32" in (graph.values[i].type.dtype for i in (*graph.inputs, *graph.outputs)):
            continue
        if twin.reasons or (kind == "RESIZE_BILINEAR" and node.operation.inputs[0].shape[1:3] != (1, 1)):
            continue
        operands = [None if i is None else _centred(values[i]) for i in other.inputs]
        for a, b in zip(evaluate(other.operation, operands), want, strict=True):
            assert a.dtype != np.uint8
            np.testing.assert_array_equal(a, _centred(b), err_msg=case.name)
        compared += 1
    assert compared == 3 or (compared and kind == "RESIZE_BILINEAR")


def _centred(values):
    return (values ^ RECENTRED).view(np.int8) if values.dtype == np.uint8 else values


def _check(folder, data, config="2x16x9", seed=0, share=1.0, native=False, inputs=3):
    """Equal to LiteRT, and so much of the multiply-accumulates on the engine."""
    verdict = Checker(folder).check(Built(data, data, ()), configs=[config], native=native, seed=seed, inputs=inputs)
    assert verdict.kind == "equal", verdict
    fitted = fit(read_model(folder / "network.tflite"), CONFIGS[config])
    assert fitted.engine_share >= share, fitted.partitioned.cpu_operators
    return fitted


SHARES = {"dilated_in_the_middle": 0.4, "flattened_on_the_cpu": 0.1, "factors_above_one": 0.95}
"""Of networks with layers that the accelerator cannot run in int8 either"""


@pytest.mark.parametrize(("name", "wide"), [*((name, True) for name in NETWORKS), ("activations", False)])
def test_networks(tmp_path, name, wide):
    m = ModelWriter(3)
    data = as_uint8(m.finish(*NETWORKS[name](m)), np.random.default_rng(len(name)), wide=wide)
    fitted = _check(tmp_path, data, share=SHARES.get(name, 1.0))
    weights = [v.type.dtype for v in fitted.partitioned.recentred.values if v.name.endswith("zero point)")]
    assert (INT9 in weights) == (wide and bool(weights))


def _constant_outputs(kind, bias, scales):
    """A file whose outputs are requantized biases: operand and weights are their zero points."""
    scale_in, scale_weights, scale_out = map(np.float32, scales)
    m, count = ModelWriter(0), len(bias)
    deep = kind == "DEPTHWISE_CONV_2D"
    shape = (1, 1) if kind == "FULLY_CONNECTED" else (1, 1, 1, count if deep else 1)
    x = m.tensor(shape, scale=scale_in, zero_point=77, dtype="UINT8")
    m.inputs.append(x)
    sizes = {"FULLY_CONNECTED": (count, 1), "DEPTHWISE_CONV_2D": (1, 1, 1, count)}.get(kind, (count, 1, 1, 1))
    weights = m.tensor(sizes, scale=scale_weights, zero_point=91, dtype="UINT8", data=np.full(sizes, 91, np.uint8))
    data = bias.astype(np.int32)
    b = m.tensor((count,), scale=scale_in * scale_weights, zero_point=0, dtype="INT32", data=data)
    out = m.tensor((*shape[:-1], count), scale=scale_out, zero_point=128, dtype="UINT8")
    operands = [x, weights, b]
    if kind == "TRANSPOSE_CONV":
        target = m.tensor((4,), dtype="INT32", data=np.array([1, 1, 1, count], np.int32))
        operands = [target, weights, x, b]
    names = {"CONV_2D": "Conv2D", "DEPTHWISE_CONV_2D": "DepthwiseConv2D", "TRANSPOSE_CONV": "TransposeConv"}
    options = getattr(schema, f"{names.get(kind, 'FullyConnected')}OptionsT")()
    if kind != "FULLY_CONNECTED":
        options.strideW = options.strideH = 1
    if deep:
        options.depthMultiplier = 1
    m.operator(kind, operands, out, options)
    return m.finish(out), np.full(shape, 77, np.uint8)


@pytest.mark.parametrize("kind", ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"])
def test_scales_are_multiplied_as_the_kernels_do(tmp_path, kind):
    """Convolutions of uint8 multiply scales in float32, FULLY_CONNECTED in float64. Biases beside halves tell."""
    rng = np.random.default_rng(2)
    telling = 0
    for _ in range(4):
        scales = rng.uniform(0.01, 0.1, 2)
        scales = (*scales, scales.prod() * 2 ** rng.uniform(16, 20))
        a, b, out = map(np.float32, scales)
        exact, rounded = float(a) * float(b) / float(out), float(a * b) / float(out)
        halves = rng.integers(-120, 120, 400) + 0.5
        bias = np.round(halves / exact + rng.integers(-6, 7, 400)).astype(np.int64)
        telling += int((np.round(bias * exact) != np.round(bias * rounded)).sum())
        data, x = _constant_outputs(kind, bias, scales)
        # With biases beyond all measure no multiplier does what float64 does.
        _check(tmp_path, data, inputs=1, share=float(kind != "FULLY_CONNECTED"))
        path = tmp_path / "network.tflite"
        (want,) = LiteRtReference(path).run(x)
        graph = read_model(path)
        (node,) = graph.nodes
        operands = [x if i in graph.inputs else graph.constant(i) for i in node.inputs]
        np.testing.assert_array_equal(evaluate(node.operation, operands)[0], want)
        with InferenceSession(tmp_path / "artifact", "cpu", native=False) as session:
            (got,) = session.run(None, {session.get_inputs()[0].name: x})
        np.testing.assert_array_equal(got, want)
    assert telling > 10


@pytest.mark.parametrize("window", [(2, 2), (1, 6), (4, 4), (8, 8)])
def test_averages_round_half_up(tmp_path, window):
    """Halves below the middle, too, where int8 rounds the other way."""
    m = ModelWriter(1)
    x = m.input((1, 8, 8, 24))
    data = as_uint8(m.finish(m.pool(x, "AVERAGE", window, window)), m.rng)
    fitted = _check(tmp_path, data, inputs=1, share=0)
    assert not fitted.partitioned.cpu_operators
    value = np.random.default_rng(0).integers(0, 3, (1, 8, 8, 24)).astype(np.uint8)
    value[..., 0] = np.arange(64).reshape(8, 8) % 2 + 1  # 1.5 everywhere
    (want,) = LiteRtReference(tmp_path / "network.tflite").run(value)
    assert (want[..., 0] == 2).all()
    with InferenceSession(tmp_path / "artifact", "cpu", native=False) as session:
        (got,) = session.run(None, {session.get_inputs()[0].name: value})
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_concatenation_rescales(tmp_path, axis):
    """Operands of other scales and zero points than the output."""
    m = ModelWriter(axis)
    x = m.input((1, 6, 7, 12))
    parts = [m.conv(x, 12, (1, 1), activation=None) for _ in range(3)]
    out = m.concatenate(axis, *parts)
    scales = [m.scale(p) for p in parts]
    m.tensors[out].quantization.scale = np.array([1.1 * max(scales)], np.float32)
    m.tensors[out].quantization.zeroPoint = np.array([-3], np.int64)
    data = as_uint8(m.finish(m.conv(out, 5)), m.rng)
    fitted = _check(tmp_path, data)
    assert not fitted.partitioned.cpu_operators


CONFIGURATIONS = ("2x16x9", "8x5 with larger memories", "64x9", "compact")
"""with older columns in the window and without"""


def test_extreme_zero_points(tmp_path):
    """Of weights 0 and 255, with values at the ends; several kinds of kernels and strides."""
    m = ModelWriter(7)
    x = m.input((1, 9, 11, 19))
    a = m.conv(x, 24, (3, 3), (2, 1), activation="relu6")
    b = m.depthwise(a, (3, 3), (1, 2))
    c = m.depthwise(b, (5, 2), padding="VALID")
    d = m.conv(c, 9, (1, 3), padding="VALID")
    plain = m.finish(m.dense(m.reshape(d, (1, int(np.prod(m.shape(d))))), 10), a)
    for point in (0, 1, 127, 254, 255):

        def edit(model, point=point):
            (graph,) = model.subgraphs
            for op in graph.operators:
                if len(op.inputs) == 3:
                    weights = graph.tensors[op.inputs[1]]
                    weights.quantization.zeroPoint = np.array([point], np.int64)
                    values = np.array(model.buffers[weights.buffer].data, np.uint8)
                    values[:: 1 + point % 7] = 255 - 255 * (point > 127)
                    model.buffers[weights.buffer].data = values

        data = edited(as_uint8(plain, np.random.default_rng(point)), edit)
        _check(tmp_path, data, CONFIGURATIONS[point % len(CONFIGURATIONS)], seed=point)


def test_mixed_types(tmp_path):
    """QUANTIZE between uint8 and int8 within a region, and outputs of both."""
    m = ModelWriter(4)
    a = m.conv(m.input((1, 6, 6, 8)), 8)
    b = m.quantize(a, m.scale(a), 0)
    c = m.conv(b, 8)
    plain = m.finish(a, c)

    def edit(model):
        (graph,) = model.subgraphs
        for index in (b, *graph.operators[-1].inputs[1:2], c):
            signed = graph.tensors[index]
            if index == c:
                continue
            signed.type = schema.TensorType.INT8
            signed.quantization.zeroPoint = np.zeros(1, np.int64) if index != b else signed.quantization.zeroPoint - 128
        graph.tensors[c].type = schema.TensorType.INT8
        graph.tensors[c].quantization.zeroPoint = graph.tensors[c].quantization.zeroPoint - 128

    fitted = _check(tmp_path, edited(as_uint8(plain, m.rng, wide=False), edit), native=True)
    assert [o.dtype for g in fitted.partitioned.graphs for o in g.outputs] == ["uint8", "int8"]
    assert not fitted.partitioned.cpu_operators


def test_what_has_no_twin_stays(tmp_path):
    """SOFTMAX between, on the CPU with the kernel of uint8."""
    m = ModelWriter(4)
    a = m.conv(m.input((1, 6, 6, 8)), 8)
    data = as_uint8(m.finish(m.conv(m.softmax(a), 8)), m.rng)
    fitted = _check(tmp_path, data)
    assert [o.reason for o in fitted.partitioned.cpu_operators] == ["SOFTMAX has no lowering"]
    report = compile_without_code(tmp_path / "network.tflite", tmp_path / "artifact", "2x16x9")
    assert report["engine_share"] == 1


def quantized(m: ModelWriter, x: int, dtype: str, shift: int) -> int:
    """QUANTIZE to another type of the same real numbers."""
    q = m.tensors[x].quantization
    out = m.tensor(m.shape(x), scale=q.scale, zero_point=np.asarray(q.zeroPoint) + shift, dtype=dtype)
    return m.operator("QUANTIZE", [x], out, schema.QuantizeOptionsT())


def uint8_input(m: ModelWriter, shape: tuple[int, ...]) -> int:
    x = m.tensor(shape, scale=0.05, zero_point=131, dtype="UINT8")
    m.inputs.append(x)
    return x


@pytest.mark.parametrize("config", ["2x16x9", "8x5"])
@pytest.mark.parametrize("case", ["around", "flat", "the CPU reads it, too", "between regions", "both types out"])
def test_quantize_between_uint8_and_int8_costs_nothing(tmp_path, config, case):
    """As converters put it around networks with uint8 inputs and outputs: the host flips bits as it writes anyway."""
    m = ModelWriter(5)
    x = uint8_input(m, (1, 6, 5, 3))
    inside = quantized(m, x, "INT8", -128)
    if case == "flat":
        outputs = [quantized(m, m.dense(inside, 7), "UINT8", 128)]
    elif case == "the CPU reads it, too":
        outputs = [m.conv(inside, 4), m.softmax(inside)]
    elif case == "between regions":
        y = quantized(m, m.softmax(m.conv(inside, 8)), "UINT8", 128)
        outputs = [quantized(m, m.conv(quantized(m, y, "INT8", -128), 4), "UINT8", 128)]
    else:
        y = m.conv(inside, 6)
        outputs = [quantized(m, y, "UINT8", 128), *([y] if case == "both types out" else [])]
    native = case == "the CPU reads it, too" and config == "8x5"
    fitted = _check(tmp_path, m.finish(*outputs), config, native=native)
    on_cpu = [o.op for o in fitted.partitioned.cpu_operators]
    assert on_cpu == {"the CPU reads it, too": ["quantize", "softmax"], "between regions": ["softmax"]}.get(case, [])
    layers = [layer for graph in fitted.partitioned.graphs for layer in graph.layers]
    assert len(layers) == 1 + (case == "between regions") and not any(layer.table for layer in layers)
    (source,) = fitted.partitioned.graphs[0].inputs
    assert source.dtype == "uint8"
