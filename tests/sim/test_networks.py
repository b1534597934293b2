"""The five networks: golden model, RTL, CPU and LiteRT's reference kernels agree in every bit."""

import numpy as np
import pytest

from nnloom.arch.isa import decode_program
from nnloom.arch.loopnest import issue_cycles
from nnloom.arch.numerics import quantize
from nnloom.compiler import compile as compile_to_artifact
from nnloom.compiler.cost import program_cycles
from nnloom.runtime import InferenceSession
from nnloom.sim.golden import GoldenModel
from nnloom.sim.litert import LiteRtReference
from nnloom.sim.scoreboard import GoldenScoreboard
from tests.conftest import NETWORKS

INPUTS = 20

CYCLE_BARS = {
    "keyword_spotting": 40_000,
    "image_classification": 150_000,
    "visual_wake_words": 110_000,
    "anomaly_detection": 6_000,
}


def as_int8(info, value):
    """The network input as the region sees it."""
    return value if value.dtype == np.int8 else quantize(value, info.scale, info.zero_point)


@pytest.mark.model
@pytest.mark.parametrize("name", NETWORKS)
def test_golden_model_equals_litert_in_every_tensor(name, artifacts, model_path, network_inputs):
    reference = LiteRtReference(model_path(name))
    with InferenceSession(artifacts(name), "model") as session:
        artifact = session.artifact
        info = session.get_inputs()[0]
        config = artifact.manifest.config
        model = GoldenModel(config, artifact.program, artifact.weights, artifact.tables)
        model.activations[:] = np.random.default_rng(0).integers(0, 256, model.activations.shape, np.uint8)
        (region,) = artifact.manifest.regions
        descriptors = decode_program(artifact.program, region.program_start)
        assert len(descriptors) == len(region.tensors)
        for value in network_inputs(name, info, INPUTS):
            (want,) = reference.run(value)
            model.write_tensor(region.inputs[0], as_int8(info, value))
            for descriptor, location in zip(descriptors, region.tensors, strict=True):
                model.execute(descriptor)
                got = model.read_tensor(location).reshape(-1)
                candidates = reference.candidates(got.size, location.scale, location.zero_point)
                assert candidates, f"{location.name}: LiteRT has no such tensor"
                assert any(np.array_equal(got, c.reshape(-1)) for c in candidates), location.name
            np.testing.assert_array_equal(session.run({info.name: value})[session.get_outputs()[0].name], want)


@pytest.mark.model
@pytest.mark.parametrize("name", NETWORKS)
def test_cpu_equals_litert(name, artifacts, model_path, network_inputs):
    reference = LiteRtReference(model_path(name))
    with InferenceSession(artifacts(name), "cpu") as session:
        info = session.get_inputs()[0]
        for value in network_inputs(name, info, INPUTS):
            np.testing.assert_array_equal(
                session.run({info.name: value})[session.get_outputs()[0].name], reference.run(value)[0]
            )


def check_rtl(session, scoreboard, name, value, reference=None):
    """One inference on RTL: every write of the engine equals the golden model's. Returns the cycles."""
    info = session.get_inputs()[0]
    (region,) = session.artifact.manifest.regions
    (output,) = session.run({info.name: value}).values()
    if reference is not None:
        np.testing.assert_array_equal(output, reference.run(value)[0], err_msg=name)
    writes = session.accelerator.simulation.writes()
    cycles = session.last_cycles
    layers = scoreboard.check(region, [as_int8(info, value)], writes, [cycles])
    assert sum(layers) == cycles and len(layers) == len(region.tensors)
    return cycles


@pytest.mark.model
@pytest.mark.verilator
def test_rtl_equals_golden_model_and_litert_in_every_write(artifacts, model_path, network_inputs):
    """Twenty inputs of each network, back to back in one simulation without a reset, networks mixed."""
    rng = np.random.default_rng(5)
    with InferenceSession(artifacts(NETWORKS[0]), "sim") as first:
        device = first.accelerator
        sessions, scoreboards, references, pending = {}, {}, {}, []
        for name in NETWORKS:
            session = sessions[name] = InferenceSession(artifacts(name), "cpu")
            artifact = session.artifact
            scoreboards[name] = GoldenScoreboard(artifact.image)
            references[name] = LiteRtReference(model_path(name))
            values = network_inputs(name, session.get_inputs()[0], INPUTS)
            # Groups of five, so that networks follow each other in changing order.
            pending += [(name, values[i : i + 5]) for i in range(0, INPUTS, 5)]
        rng.shuffle(pending)
        cycles: dict[str, set[int]] = {name: set() for name in NETWORKS}
        for name, values in pending:
            session = sessions[name]
            session._device = device
            device.load(session.artifact)
            device.simulation.writes()
            for value in values:
                cycles[name].add(check_rtl(session, scoreboards[name], name, value, references[name]))
            session._device = None
    for name in NETWORKS:
        (measured,) = cycles[name]  # the same for every input
        artifact = sessions[name].artifact
        config = artifact.manifest.config
        predicted = program_cycles(config, decode_program(artifact.program))
        assert abs(predicted - measured) <= 0.005 * measured
        assert measured <= CYCLE_BARS.get(name, measured)
        assert sum(issue_cycles(config, d) for d in decode_program(artifact.program)) < measured


@pytest.mark.model
@pytest.mark.verilator
@pytest.mark.slow
def test_keyword_spotting_on_the_compact_engine(tmp_path, model_path, network_inputs):
    """The iCEBreaker's engine: every write, and exactly the cycles that the cost model predicts."""
    name = "keyword_spotting"
    path = compile_to_artifact(model_path(name), board="icebreaker", output=tmp_path / name).path
    reference = LiteRtReference(model_path(name))
    with InferenceSession(path, "sim") as session:
        artifact = session.artifact
        config = artifact.manifest.config
        assert config.compact
        scoreboard = GoldenScoreboard(artifact.image)
        session.accelerator.simulation.writes()
        for value in network_inputs(name, session.get_inputs()[0], 3):
            measured = check_rtl(session, scoreboard, name, value, reference)
            assert measured == program_cycles(config, decode_program(artifact.program)) <= 800_000


@pytest.mark.model
@pytest.mark.icarus
@pytest.mark.slow
def test_keyword_spotting_in_icarus(artifacts, model_path, network_inputs):
    with InferenceSession(artifacts("keyword_spotting"), "sim", simulator="icarus") as session:
        artifact = session.artifact
        scoreboard = GoldenScoreboard(artifact.image)
        (value, *_) = network_inputs("keyword_spotting", session.get_inputs()[0], 1)
        session.accelerator.simulation.writes()
        check_rtl(session, scoreboard, "keyword_spotting", value, LiteRtReference(model_path("keyword_spotting")))


@pytest.mark.model
@pytest.mark.parametrize(("word", "want"), [("yes", [127, -128, -128, -128]), ("no", [-128, 123, -123, -128])])
def test_spoken_words(word, want, artifacts):
    from nnloom.compiler import zoo

    with InferenceSession(artifacts("tflite_micro_speech"), "model") as session:
        features = zoo.fetch_recordings()[word].reshape(1, 49, 40, 1)
        (output,) = session.run({session.get_inputs()[0].name: features}).values()
        assert output.reshape(-1).tolist() == want


@pytest.mark.model
def test_float_inputs_are_quantized_as_litert_does(artifacts, model_path):
    """Ties, ends of the range and values far outside it, seen through the first layer's input."""
    name = "visual_wake_words"
    reference = LiteRtReference(model_path(name))
    with InferenceSession(artifacts(name), "model") as session:
        info = session.get_inputs()[0]
        value = np.resize(np.arange(-20, 290, 0.5, dtype=np.float32), info.shape)
        value.reshape(-1)[:4] = [1e6, -1e6, 194.49999, 0.49999997]
        seen = []
        device = session.accelerator
        run_region = device.run_region
        device.run_region = lambda region, inputs, **options: seen.append(inputs[0]) or run_region(region, inputs)
        session.run({info.name: value})
        reference.run(value)
        (want,) = reference.candidates(value.size, info.scale, info.zero_point)
        np.testing.assert_array_equal(seen[0], want)
        np.testing.assert_array_equal(quantize(value, info.scale, info.zero_point), want)
