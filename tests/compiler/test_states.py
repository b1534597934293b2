"""Networks that remember: resource variables, variable tensors, SVDF and LSTM, run after run against LiteRT."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from nnloom.arch.errors import ModelError, NnloomError, UnsupportedOperatorError
from nnloom.compiler.frontend import read_model
from nnloom.runtime import InferenceSession
from nnloom.sim.litert import LiteRtReference
from tests.compiler.litert import compile_without_code, exact
from tests.fuzz.check import Checker
from tests.fuzz.generate import Built
from tests.one_operator import read
from tests.operator_cases import cases
from tests.tflite_models import ModelWriter, edited

TYPE = {"scale": 0.05, "zero_point": 0}


def begin(m: ModelWriter, **values: np.ndarray) -> dict[str, int]:
    """CALL_ONCE and handles for variables."""
    m.call_once(values)
    return {name: m.handle(name) for name in values}


def pixels(m: ModelWriter, rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-128, 128, (1, rows, 1, 4), np.int8)


def input_pixels(m: ModelWriter) -> int:
    x = m.input((1, 1, 1, 4), scale=0.05)
    m.tensors[x].quantization.zeroPoint = np.array([0])
    return x


def stream(m: ModelWriter) -> list[int]:
    """As streaming convolutions are exported: the last frames before the new one, and a convolution over all."""
    handle = begin(m, frames=pixels(m, 2))["frames"]
    x = m.concatenate(1, m.read(handle, (1, 2, 1, 4), **TYPE), input_pixels(m))
    m.assign(handle, m.slice(x, (0, 1, 0, 0), (1, 2, 1, 4)))
    return [m.conv(x, 8, (3, 1), padding="VALID")]


def read_after_assign(m: ModelWriter) -> list[int]:
    """LiteRT runs them in the file's order: the sum is with the new value, and the state is the sum."""
    handle = begin(m, v=pixels(m, 1))["v"]
    before = m.read(handle, (1, 1, 1, 4), **TYPE)
    x = input_pixels(m)
    m.assign(handle, x)
    after = m.read(handle, (1, 1, 1, 4), **TYPE)
    total = m.add(before, after)
    m.assign(handle, m.quantize(total, 0.05, 0))
    return [total]


def delay_line(m: ModelWriter) -> list[int]:
    """Variables that hand their values on, read before and after, one of them an output as it is."""
    handles = begin(m, a=pixels(m, 1, 1), b=pixels(m, 1, 2), c=pixels(m, 1, 3))
    values = {name: m.read(handle, (1, 1, 1, 4), **TYPE) for name, handle in handles.items()}
    m.assign(handles["c"], values["b"])
    m.assign(handles["b"], values["a"])
    m.assign(handles["a"], input_pixels(m))
    again = m.read(handles["a"], (1, 1, 1, 4), **TYPE)
    return [m.conv(values["c"], 4, (1, 1)), values["b"], again]


def other_types(m: ModelWriter) -> list[int]:
    """What is read has the bits of what was assigned, whatever the shapes and scales."""
    handle = begin(m, v=pixels(m, 4))["v"]
    before = m.read(handle, (1, 2, 2, 4), scale=0.02, zero_point=7)
    m.assign(handle, m.conv(m.input((1, 4, 1, 4)), 4, (1, 1)))
    after = m.read(handle, (1, 4, 4), scale=0.3, zero_point=-9)
    return [m.conv(before, 4), m.dense(after, 3)]


def set_anew(m: ModelWriter) -> list[int]:
    """A variable that holds nothing from run to run, beside a constant one."""
    handles = begin(m, bias=pixels(m, 1))
    scratch = m.handle("scratch")
    m.assign(scratch, m.conv(input_pixels(m), 4, (1, 1)))
    q = m.tensors[-1].quantization
    value = m.read(scratch, (1, 1, 1, 4), scale=q.scale, zero_point=q.zeroPoint)
    return [m.add(value, m.read(handles["bias"], (1, 1, 1, 4), **TYPE))]


def activation_after(m: ModelWriter) -> list[int]:
    """What is kept is what a convolution gives before its activation."""
    handle = begin(m, v=pixels(m, 1))["v"]
    x = m.add(input_pixels(m), m.read(handle, (1, 1, 1, 4), **TYPE))
    y = m.conv(x, 4, (1, 1), activation=None)
    m.assign(handle, y)
    q = m.tensors[y].quantization
    return [m.operator("RELU", [y], m.tensor((1, 1, 1, 4), scale=q.scale, zero_point=q.zeroPoint))]


def floats(m: ModelWriter) -> list[int]:
    """A variable of float32 beside quantized operators, in a container."""
    m.call_once({"sum": np.array([[[[0.5, -1.0, 2.0, 0.0]]]], np.float32)}, container="group")
    handle = m.handle("sum", "group")
    x = m.dequantize(m.conv(input_pixels(m), 4, (1, 1)))
    total = m.tensor((1, 1, 1, 4), dtype="FLOAT32")
    options = schema.AddOptionsT()
    m.operator("ADD", [x, m.read(handle, (1, 1, 1, 4), dtype="FLOAT32")], total, options)
    m.assign(handle, total)
    return [m.quantize(total, 0.5, 3)]


def variable_tensor(m: ModelWriter) -> list[int]:
    """A variable tensor begins with its zero point; whatever writes it, the next run reads that."""
    state = m.variable((1, 1, 1, 4), scale=0.05, zero_point=3)
    x = input_pixels(m)
    output = m.add(x, state)
    m.operator("ADD", [output, x], state, m.operators[-1].builtinOptions)
    return [output, state]


NETWORKS: dict[Callable, tuple[str, ...]] = {
    stream: ("frames",),
    read_after_assign: ("v",),
    delay_line: ("a", "b", "c"),
    other_types: ("v",),
    set_anew: ("bias",),
    activation_after: ("v",),
    floats: ("group/sum",),
    variable_tensor: ("tensor_0",),
}


@pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)
def test_run_after_run(tmp_path, build):
    """In the golden model and in NumPy."""
    partitioned = exact(tmp_path, build, inputs=8)
    assert sorted(state.name for state in partitioned.graph.states) == sorted(NETWORKS[build])


def test_what_is_kept_is_computed_once(tmp_path):
    """Where a state keeps the operand of an activation, that does not become one with the convolution before it."""
    m = ModelWriter()
    (tmp_path / "m.tflite").write_bytes(m.finish(*activation_after(m)))
    assert [node.kind for node in read_model(tmp_path / "m.tflite").nodes] == ["ADD", "CONV_2D", "RELU"]


def test_with_the_cpu_code(tmp_path):
    def all_of_them(m: ModelWriter) -> list[int]:
        return [output for build in (stream, variable_tensor) for output in build(m)]

    partitioned = exact(tmp_path, all_of_them, inputs=8, native=True)
    assert len(partitioned.graphs) and len(partitioned.graph.states) == 2


@pytest.mark.parametrize("kind", ["SVDF", "UNIDIRECTIONAL_SEQUENCE_LSTM"])
def test_operators_with_states(tmp_path, kind):
    """Each run begins with what the one before left."""
    compared = 0
    for i, case in enumerate(case for case in cases(5, 12, [kind]) if case.inputs[0].dtype == np.int8):
        verdict = Checker(tmp_path).check(
            Built(case.model, case.model, ()), configs=["16x9"], native=i == 0, inputs=6, seed=i
        )
        assert verdict.kind == "equal", verdict
        compared += verdict.values
    assert compared > 100


@pytest.mark.parametrize("kind", ["SVDF", "UNIDIRECTIONAL_SEQUENCE_LSTM"])
def test_float_operators_with_states(tmp_path, kind):
    """Float32 activations, weights of float32 or int8: as LiteRT but for the last bits, which the report tells of."""
    found = {"float32": 0, "int8": 0}
    for i, case in enumerate(case for case in cases(6, 24, [kind]) if case.inputs[0].dtype == np.float32):
        path = tmp_path / f"{i}.tflite"
        path.write_bytes(case.model)
        report = compile_without_code(path, tmp_path / f"artifact{i}", "16x9")
        assert not report["exact"] and len(report["states"]) == (1 if kind == "SVDF" else 2)
        litert, weights = LiteRtReference(path), read(case.model)[0].inputs[2]
        assert weights
        rng = np.random.default_rng(i)
        with InferenceSession(tmp_path / f"artifact{i}", "cpu", native=False) as session:
            for _ in range(5):
                x = rng.normal(0, 1, case.inputs[0].shape).astype(np.float32)
                (want,), (got,) = litert.run(x), session.run(None, {session.get_inputs()[0].name: x})
                tolerance = 1e-4 if weights.dtype == "float32" else 2e-2
                np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * max(1.0, np.abs(want).max()))
        found[weights.dtype] += 1
    assert min(found.values()) >= 2


def refused(folder, build: Callable[[ModelWriter], list[int]], match: str, error: type[NnloomError] = ModelError):
    m = ModelWriter()
    path = folder / "m.tflite"
    path.write_bytes(m.finish(*build(m)))
    with pytest.raises(error, match=match) as raised:
        read_model(path)
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)


def test_a_variable_that_nothing_sets_first(tmp_path):
    """LiteRT fails at the first run."""

    def build(m: ModelWriter) -> list[int]:
        handle = m.handle("v")
        total = m.add(m.read(handle, (1, 1, 1, 4), **TYPE), input_pixels(m))
        m.assign(handle, total)
        return [total]

    refused(tmp_path, build, "variable 'v' is read before anything sets it; export the model with the subgraph")


def test_a_variable_of_another_size(tmp_path):
    def grows(m: ModelWriter) -> list[int]:
        handle = begin(m, v=pixels(m, 1))["v"]
        x = m.concatenate(1, m.read(handle, (1, 1, 1, 4), **TYPE), input_pixels(m))
        m.assign(handle, x)
        return [m.conv(x, 4, (1, 1))]

    refused(tmp_path, grows, r"variable 'v' is assigned as int8\[1, 2, 1, 4\], and read as int8\[1, 1, 1, 4\]")

    def begins(m: ModelWriter) -> list[int]:
        handle = begin(m, v=pixels(m, 3))["v"]
        return [m.add(m.read(handle, (1, 1, 1, 4), **TYPE), input_pixels(m))]

    refused(tmp_path, begins, r"variable 'v' begins as int8\[1, 3, 1, 4\], and is read as int8\[1, 1, 1, 4\]")


def test_a_call_that_comes_too_late(tmp_path):
    def build(m: ModelWriter) -> list[int]:
        handle = m.handle("v")
        x = input_pixels(m)
        m.assign(handle, x)
        m.call_once({"v": pixels(m, 1)})
        return [m.add(m.read(handle, (1, 1, 1, 4), **TYPE), x)]

    refused(tmp_path, build, "CALL_ONCE after variable 'v' is used")


def test_state_of_no_variable(tmp_path):
    case = next(iter(cases(5, 1, ["SVDF"])))

    def constant(model):
        graph = model.subgraphs[0]
        graph.tensors[int(graph.operators[0].inputs[4])].isVariable = False

    (tmp_path / "m.tflite").write_bytes(edited(case.model, constant))
    with pytest.raises(ModelError, match=r"SVDF .*: its state is 'tensor_4', which is no variable tensor"):
        read_model(tmp_path / "m.tflite")


def test_control_flow_and_tables_are_named_all_at_once(tmp_path):
    """Also those of the subgraph that initializes variables."""

    def build(m: ModelWriter) -> list[int]:
        m.call_once({"v": pixels(m, 1)})
        table = m._operator("HASHTABLE", [], [0])
        m.subgraphs[0].operators.insert(0, table)
        x = m.operator("WHILE", [input_pixels(m)], m.tensor((1, 1, 1, 4), **TYPE))
        return [m.operator("IF", [x], m.tensor((1, 1, 1, 4), **TYPE))]

    match = "nnloom has no route for: HASHTABLE; control flow is not supported: IF, WHILE; leave them out"
    refused(tmp_path, build, match, UnsupportedOperatorError)
