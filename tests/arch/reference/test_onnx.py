"""The references with ONNX Runtime's rounding against ONNX Runtime's kernels, operator by operator."""

from __future__ import annotations

import numpy as np
import pytest

from nnloom.arch.errors import UnsupportedOperatorError
from nnloom.arch.operation import Operation, Quantization, TensorType
from nnloom.arch.reference import evaluate, is_exact
from nnloom.arch.reference.onnx import REFERENCES
from nnloom.compiler.frontend.onnx.elementwise import _add_options
from tests.onnx_models import run_one

F = np.float32
TYPES = (np.int8, np.uint8)


def _scales(rng, count):
    """Any, or with few bits: those make ties."""
    if rng.integers(2):
        return [F(v) for v in rng.uniform(0.003, 0.1, count)]
    return [F(v) for v in rng.integers(1, 64, count) * 2.0**-9]


def _type(values, scale=None, zero_point=0):
    q = None if scale is None else Quantization.per_tensor(float(scale), int(zero_point))
    return TensorType(values.shape, values.dtype.name, q)


def _points(rng, kind, count):
    info = np.iinfo(kind)
    return [kind(v) for v in rng.integers(info.min, info.max + 1, count)]


def _pairs(kind):
    every = np.arange(np.iinfo(kind).min, np.iinfo(kind).max + 1)
    return np.repeat(every, 256).astype(kind), np.tile(every, 256).astype(kind)


def _centred(x, zero_point):
    """uint8 as the compiler holds it: int8."""
    if x.dtype == np.int8:
        return x, int(zero_point), 0
    return (x.astype(np.int16) - 128).astype(np.int8), int(zero_point) - 128, 128


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("operator", ["ADD", "MUL"])
def test_every_pair_of_values(operator, kind, seed):
    rng = np.random.default_rng(seed)
    (sa, sb, sc), (za, zb, zc) = _scales(rng, 3), _points(rng, kind, 3)
    a, b = _pairs(kind)
    constants = dict(sa=sa, za=za, sb=sb, zb=zb, sc=sc, zc=zc)
    names = {"ADD": "QLinearAdd", "MUL": "QLinearMul"}
    want = run_one(names[operator], ["a", "sa", "za", "b", "sb", "zb", "sc", "zc"], dict(a=a, b=b), constants)
    (a, za, _), (b, zb, _), (want, zc, shift) = _centred(a, za), _centred(b, zb), _centred(want, zc)
    options = {"recentred": shift} if shift else {}
    op = Operation(operator, (_type(a, sa, za), _type(b, sb, zb)), (_type(want, sc, zc),), options, "onnx")
    (got,) = evaluate(op, [a, b])
    assert np.array_equal(got, want)
    assert is_exact(op) is None


@pytest.mark.parametrize("seed", range(4))
def test_addition_of_a_single_value_takes_the_other_operand_first(seed):
    rng = np.random.default_rng(seed)
    (sa, sb, sc), (za, zb, zc) = _scales(rng, 3), _points(rng, np.int8, 3)
    a, every = np.array([rng.integers(-128, 128)], np.int8), np.arange(-128, 128).astype(np.int8)
    constants = dict(sa=sa, za=za, sb=sb, zb=zb, sc=sc, zc=zc)
    want = run_one("QLinearAdd", ["a", "sa", "za", "b", "sb", "zb", "sc", "zc"], dict(a=a, b=every), constants)
    types = (_type(a, sa, za), _type(every, sb, zb))
    (got,) = evaluate(Operation("ADD", types, (_type(want, sc, zc),), {"scalar_first": True}, "onnx"), [a, every])
    assert np.array_equal(got, want)


@pytest.mark.parametrize(
    "shapes",
    [((64, 256), (1, 256)), ((64, 256), (64, 1)), ((64, 1), (64, 256)), ((1, 256), (64, 1)), ((8, 64, 1), (8, 1, 32)),
     ((8, 1, 1, 1), (8, 64, 32, 1)), ((8, 64, 1), (64, 32)), ((1, 8, 40, 40), (1, 8, 1, 1)), ((3, 1), (1, 1))],
)  # fmt: skip
def test_addition_with_broadcasting(shapes):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        (sa, sb, sc), (za, zb, zc) = _scales(rng, 3), _points(rng, np.int8, 3)
        a, b = (rng.integers(-128, 128, shape).astype(np.int8) for shape in shapes)
        constants = dict(sa=sa, za=za, sb=sb, zb=zb, sc=sc, zc=zc)
        want = run_one("QLinearAdd", ["a", "sa", "za", "b", "sb", "zb", "sc", "zc"], dict(a=a, b=b), constants)
        types, out = (_type(a, sa, za), _type(b, sb, zb)), (_type(want, sc, zc),)
        (got,) = evaluate(Operation("ADD", types, out, _add_options(*shapes), "onnx"), [a, b])
        assert np.array_equal(got, want)


def _equal(kind, x, source, want, out, options):
    """An operator on one tensor, held as int8, answers what ONNX Runtime does."""
    (x, zx, _), (want, zy, shift) = _centred(x, source[1]), _centred(want, out[1])
    options = {**options, "recentred": shift} if shift else options
    op = Operation(kind, (_type(x, source[0], zx),), (_type(want, out[0], zy),), options, "onnx")
    assert np.array_equal(evaluate(op, [x])[0], want)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", TYPES)
def test_pools(kind, seed):
    rng = np.random.default_rng(seed)
    (sx, sy), (zx, zy) = _scales(rng, 2), _points(rng, kind, 2)
    x = rng.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, (1, 6, 9, 11)).astype(kind)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    names, constants = ["x", "sx", "zx", "sy", "zy"], dict(sx=sx, zx=zx, sy=sy, zy=zy)
    want = run_one("QLinearGlobalAveragePool", names, dict(x=x), constants, channels_last=0).transpose(0, 2, 3, 1)
    axes = np.array([1, 2], np.int32)
    types = (_type(last, sx, zx), _type(axes))
    op = Operation("MEAN", types, (_type(want, sy, zy),), {"keep_dims": True}, "onnx")
    assert np.array_equal(evaluate(op, [last, axes])[0], want)
    for counted in (0, 1):
        attributes = dict(kernel_shape=[3, 2], strides=[2, 1], pads=[1, 1, 1, 0], count_include_pad=counted)
        want = run_one("QLinearAveragePool", names, dict(x=x), constants, channels_last=0, **attributes)
        want = want.transpose(0, 2, 3, 1)
        options = dict(window=(3, 2), strides=(2, 1), padding=(1, 1, 1, 0), count_padding=bool(counted))
        _equal("AVERAGE_POOL_2D", last, (sx, zx), want, (sy, zy), options)
    # Means of four with the scale kept are ties.
    want = run_one("QLinearAveragePool", ["x", "sx", "zx", "sx", "zy"], dict(x=x), constants, channels_last=0,
                   kernel_shape=[2, 2])  # fmt: skip
    options = dict(window=(2, 2), strides=(1, 1), padding=(0, 0, 0, 0), count_padding=False)
    _equal("AVERAGE_POOL_2D", last, (sx, zx), want.transpose(0, 2, 3, 1), (sx, zy), options)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", TYPES)
def test_products_and_softmax(kind, seed):
    rng = np.random.default_rng(seed)
    (sx, sy), (zx, zy) = [F(v) for v in rng.uniform(0.02, 0.9, 2)], _points(rng, kind, 2)
    x = rng.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, (5, 40)).astype(kind)
    w, sw = rng.integers(-128, 128, (40, 24)).astype(np.int8), rng.uniform(0.001, 0.01, 24).astype(F)
    constants = dict(sx=sx, zx=zx, w=w, sw=sw, zw=np.zeros(24, np.int8), sy=sy, zy=zy)
    want = run_one("QLinearMatMul", ["x", "sx", "zx", "w", "sw", "zw", "sy", "zy"], dict(x=x), constants, domain="")
    weights = TensorType((24, 40), "int8", Quantization(tuple(map(float, sw)), (0,) * 24, 0))
    op = Operation("FULLY_CONNECTED", (_type(x, sx, zx), weights), (_type(want, sy, zy),), {}, "onnx")
    assert np.array_equal(evaluate(op, [x, w.T])[0], want)
    names = ["x", "sx", "zx", "sy", "zy"]
    small = F(rng.uniform(0.002, 0.02))
    want = run_one("QLinearSoftmax", names, dict(x=x), dict(sx=sx, zx=zx, sy=small, zy=zy), axis=1, opset=13)
    op = Operation("SOFTMAX", (_type(x, sx, zx),), (_type(want, small, zy),), {"axis": 1}, "onnx")
    assert np.array_equal(evaluate(op, [x])[0], want)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", TYPES)
def test_quantization_has_ties_to_even(kind, seed):
    rng = np.random.default_rng(seed)
    (scale,), (zero_point,) = _scales(rng, 1), _points(rng, kind, 1)
    x = np.concatenate([rng.uniform(-9, 9, 500), (np.arange(-300, 300) + 0.5) * scale]).astype(F)
    want = run_one("QuantizeLinear", ["x", "s", "z"], dict(x=x), dict(s=scale, z=zero_point), domain="")
    (got,) = evaluate(Operation("QUANTIZE", (_type(x),), (_type(want, scale, zero_point),), {}, "onnx"), [x])
    assert np.array_equal(got, want)


def test_float_code_is_named():
    real = TensorType((1, 4), "float32")
    assert "approximates" in is_exact(Operation("EXP", (real,), (real,), {}, "onnx"))
    assert "another order" in is_exact(Operation("SOFTMAX", (real,), (real,), {}, "onnx"))
    assert is_exact(Operation("RELU", (real,), (real,), {}, "onnx")) is None
    held = TensorType((1, 4), "int8", Quantization.per_tensor(0.1, 0))
    assert is_exact(Operation("CONV_2D", (held, held), (held,), {"in_float": "why"}, "onnx")) == "why"


def test_an_operator_of_the_other_rounding_is_no_substitute():
    t = TensorType((1, 4), "int8", Quantization.per_tensor(0.1, 0))
    assert "SVDF" not in REFERENCES
    with pytest.raises(UnsupportedOperatorError, match="SVDF: no reference"):
        evaluate(Operation("SVDF", (t,), (t,), {}, "onnx"), [np.zeros((1, 4), np.int8)])
