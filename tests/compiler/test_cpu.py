"""The CPU library against LiteRT's reference kernels: every output byte, with regions and without."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from nnloom import boards
from nnloom.arch.cpu_target import CPU_TARGETS, CpuTarget, get_cpu_target, host_cpu_target, missing_features
from nnloom.arch.errors import ArtifactError, ConfigError
from nnloom.compiler.cpu import build_cpu
from nnloom.compiler.frontend import read_model
from nnloom.compiler.host_plan import plan_host
from nnloom.compiler.partition import Partitioned, partition
from nnloom.runtime.host_steps import HostSteps
from nnloom.runtime.relax_vm import RelaxProgram
from nnloom.sim.litert import LiteRtReference
from tests.compiler.networks import NETWORKS, random_network
from tests.graphs import evaluate
from tests.tflite_models import ModelWriter

CONFIG = boards.get("ulx3s-85f").config
RUNNABLE = [target for target in CPU_TARGETS if not missing_features(target)]
HOST = host_cpu_target()


def build(path: Path, folder: Path, target: CpuTarget = HOST) -> tuple[Partitioned, RelaxProgram]:
    """The CPU library of a model in `folder`, loaded."""
    partitioned = partition(read_model(path), CONFIG)
    host = plan_host(partitioned)
    build_cpu(partitioned, host, folder / "cpu.so", target)
    steps = HostSteps(host.plan, len(partitioned.graph.sources), host.constants)
    outputs = [len(graph.outputs) for graph in partitioned.graphs]
    program = RelaxProgram(folder / "cpu.so", outputs, target.name, steps=steps.outputs, step=steps.evaluate)
    return partitioned, program


def check(data: bytes, folder: Path, count: int = 5, target: CpuTarget = HOST) -> Partitioned:
    """Compare `main_cpu`, and `main` with regions run by the definition of their operators, to LiteRT."""
    path = folder / "model.tflite"
    path.write_bytes(data)
    partitioned, program = build(path, folder, target)
    reference = LiteRtReference(path)

    def accelerator(index, operands):
        graph = partitioned.graphs[index]
        inputs = {t.name: value for t, value in zip(graph.inputs, operands, strict=True)}
        values = {**inputs, **evaluate(graph, inputs)}
        return [values[t.name].reshape(t.shape) for t in graph.outputs]

    rng = np.random.default_rng(0)
    for _ in range(count):
        inputs = []
        for info in partitioned.graph.input_infos():
            levels = rng.integers(-128, 128, info.shape)
            if info.dtype == "int8":
                inputs.append(levels.astype(np.int8))
            else:
                real = (levels - info.zero_point + rng.uniform(-0.5, 0.5, info.shape)) * info.scale
                inputs.append(real.astype(np.float32))
        want = reference.run(*inputs)
        for route in (None, accelerator):
            got = program.run(inputs, route)
            assert len(got) == len(want)
            for g, w in zip(got, want, strict=True):
                assert g.dtype == w.dtype
                np.testing.assert_array_equal(g, w)
    return partitioned


@pytest.mark.parametrize("target", RUNNABLE, ids=lambda target: target.name)
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_litert(name, target, tmp_path):
    m = ModelWriter(len(name))
    check(m.finish(*NETWORKS[name](m)), tmp_path, target=target)


@pytest.mark.parametrize("seed", range(20))
def test_random_network_equals_litert(seed, tmp_path):
    m = ModelWriter(seed)
    check(m.finish(*random_network(m)), tmp_path, target=RUNNABLE[seed % len(RUNNABLE)])


CPUINFO = "processor\t: 0\nflags\t\t: fpu sse2 {}\nbugs\t\t: none\n"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of x86-64")
def test_target_of_a_processor(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    v3 = "avx2 fma f16c bmi1 bmi2 movbe abm"
    v4 = f"{v3} avx512f avx512bw avx512cd avx512dq avx512vl"
    for flags, name in (("", "x86-64"), (v3, "x86-64-v3"), (v4, "x86-64-v4"), (f"{v4} avx512_vnni", "x86-64-v4-vnni")):
        cpuinfo.write_text(CPUINFO.format(flags))
        assert host_cpu_target(cpuinfo=cpuinfo).name == name
    cpuinfo.write_text(CPUINFO.format("avx2"))
    assert missing_features(get_cpu_target("x86-64-v3"), cpuinfo=cpuinfo) == [
        "abm",
        "bmi1",
        "bmi2",
        "f16c",
        "fma",
        "movbe",
    ]
    assert host_cpu_target(cpuinfo=tmp_path / "none").name == "x86-64"
    with pytest.raises(ConfigError, match="no CPU target 'z80'; there are x86-64-v4-vnni, "):
        get_cpu_target("z80")


def test_library_for_another_processor_is_refused(tmp_path):
    other = next(target for target in CPU_TARGETS if target.machine != platform.machine())
    with pytest.raises(ArtifactError, match=f"is for {other.name}, which needs a {other.machine} processor; compile"):
        RelaxProgram(tmp_path / "cpu.so", [1], other.name)


def test_quantize_rounds_ties_away_from_zero(tmp_path):
    m = ModelWriter()
    x = m.quantize(m.input((1, 4, 4, 8), dtype="FLOAT32"), 0.5, 3)
    path = tmp_path / "model.tflite"
    path.write_bytes(m.finish(m.conv(x, 4), x))
    _, program = build(path, tmp_path)
    values = (np.arange(-64, 64) * 0.25).astype(np.float32).reshape(1, 4, 4, 8)
    values[0, 0, 0] = [1e9, -1e9, 65536.25, -65536.25, 200, -200, np.nextafter(np.float32(0.25), 0), 0.0]
    want = LiteRtReference(path).run(values)
    for got, w in zip(program.run([values]), want, strict=True):
        np.testing.assert_array_equal(got, w)


@pytest.mark.parametrize("zero_point", [-128, -5, 0, 127])
def test_quantize_of_values_beyond_int32(zero_point, tmp_path):
    w = ModelWriter(3)
    x = w.input((1, 4, 4, 2), dtype="FLOAT32")
    path = tmp_path / "model.tflite"
    path.write_bytes(w.finish(w.conv(w.quantize(x, 1e-6, zero_point), 4), w.operators[0].outputs[0]))
    _, program = build(path, tmp_path)
    reference = LiteRtReference(path)
    edge = np.float32(2**31 * 1e-6)
    ends = np.array([edge, -edge, np.nextafter(edge, np.float32(0)), np.nextafter(-edge, -np.float32(np.inf))])
    value = np.resize(np.concatenate([ends, [1e30, -1e30, 1.0, -1.0, 3e-6, 0.0]]).astype(np.float32), (1, 4, 4, 2))
    for got, want in zip(program.run([value]), reference.run(value), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ["ARG_MAX", "MEAN"])
def test_an_operator_outside_of_the_library_may_answer_with_a_single_number(name, tmp_path):
    w = ModelWriter(4)
    x = w.reshape(w.dense(w.input((1, 7)), 6), (6,))
    axis = w.tensor((1,) if name == "MEAN" else (), dtype="INT32", data=np.array(0, np.int32))
    y = w.tensor((), scale=0.3, zero_point=1) if name == "MEAN" else w.tensor((), dtype="INT32")
    options = schema.ReducerOptionsT() if name == "MEAN" else schema.ArgMaxOptionsT()
    if name == "ARG_MAX":
        options.outputType = schema.TensorType.INT32
    check(w.finish(w.operator(name, [x, axis], y, options)), tmp_path)


def test_softmax_of_many_classes(tmp_path):
    m = ModelWriter(3)
    check(m.finish(m.softmax(m.dense(m.input((1, 40)), 1001))), tmp_path, count=20)


def test_programs_in_one_process_do_not_interfere(tmp_path):
    """Packed functions are global to the process; each run must reach its own accelerator."""
    from concurrent.futures import ThreadPoolExecutor

    m = ModelWriter()
    path = tmp_path / "model.tflite"
    path.write_bytes(m.finish(m.conv(m.input((1, 4, 4, 3)), 5)))
    build(path, tmp_path)

    def runner(value: int):
        program = RelaxProgram(tmp_path / "cpu.so", [1], HOST.name)
        answer = np.full((1, 4, 4, 5), value, np.int8)
        inputs = [np.zeros((1, 4, 4, 3), np.int8)]
        return all((program.run(inputs, lambda i, x: [answer])[0] == value).all() for _ in range(200))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(runner, range(8)))


def test_an_error_of_the_accelerator_reaches_the_caller(tmp_path):
    from nnloom.arch.errors import DeviceError

    m = ModelWriter()
    path = tmp_path / "model.tflite"
    path.write_bytes(m.finish(m.conv(m.input((1, 4, 4, 3)), 5)))
    _, program = build(path, tmp_path)
    inputs = [np.zeros((1, 4, 4, 3), np.int8)]

    def broken(index, operands):
        raise DeviceError("unplugged")

    with pytest.raises(DeviceError, match="unplugged"):
        program.run(inputs, broken)
    # and the next run is not affected
    answer = np.ones((1, 4, 4, 5), np.int8)
    assert (program.run(inputs, lambda i, x: [answer])[0] == 1).all()


@pytest.mark.parametrize("beta", [0.25, 1.0, 8.0])
@pytest.mark.parametrize("scale", [0.0005, 0.05, 2.0])
def test_softmax_with_a_beta(beta, scale, tmp_path):
    m = ModelWriter(5)
    x = m.conv(m.input((1, 5, 3, 4)), 7, (1, 1))
    y = m.softmax(m.quantize(m.dequantize(x), scale, 3))
    m.operators[-1].builtinOptions.beta = beta
    check(m.finish(y), tmp_path)


@pytest.mark.parametrize("name", ["MUL", "SUB", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE"])
def test_elementwise_operators_in_tables(name, tmp_path):
    """Both operands computed, one broadcast; and one a constant."""
    m = ModelWriter(len(name))
    a, b = m.conv(m.input((1, 4, 5, 6)), 6, activation=None), m.conv(m.input((1, 1, 5, 6)), 6, activation=None)
    same = name in ("MAXIMUM", "MINIMUM")
    constant = m.tensor((6,), scale=m.scale(a), zero_point=3, data=np.arange(-3, 3, dtype=np.int8))
    outputs = []
    for other in (b, constant):
        if same:
            for tensor in (m.tensors[other], m.tensors[a]):
                tensor.quantization.scale[0], tensor.quantization.zeroPoint[0] = 0.05, 3
        output = m.tensor((1, 4, 5, 6), scale=0.05 if same else m.scale(a) * 0.7, zero_point=3 if same else -9)
        outputs.append(m.operator(name, [a, other], output))
    check(m.finish(*outputs), tmp_path)
