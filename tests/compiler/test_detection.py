"""SSD networks: TFLite_Detection_PostProcess against LiteRT's."""

from __future__ import annotations

import numpy as np
import pytest
from flatbuffers import flexbuffers

from nnloom.arch.errors import ModelError
from nnloom.arch.reference import evaluate
from nnloom.compiler import compile as compile_model
from nnloom.compiler.frontend import read_model
from nnloom.runtime import InferenceSession
from nnloom.sim.litert import LiteRtReference
from tests.tflite_models import ModelWriter

BOXES, CLASSES = 40, 5


def options(seed: int, *, regular: bool) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "max_detections": int(rng.integers(2, 12)),
        "max_classes_per_detection": 1 if regular else int(rng.integers(1, 3)),
        "detections_per_class": int(rng.integers(2, 100)),
        "use_regular_nms": regular,
        "nms_score_threshold": 0.05,
        "nms_iou_threshold": float(rng.choice([0.3, 0.5, 0.6])),
        "num_classes": CLASSES,
        "y_scale": 10.0,
        "x_scale": 10.0,
        "h_scale": 5.0,
        "w_scale": 5.0,
    }


def model(settings: dict, seed: int, dtype: str) -> bytes:
    """Two inputs, encodings and scores, and constant anchors; the outputs' shapes are left open."""
    m = ModelWriter(seed)
    quantized = {} if dtype == "FLOAT32" else {"scale": 0.06, "zero_point": 128}
    encodings = m.tensor((1, BOXES, 4), dtype=dtype, **quantized)
    scores = m.tensor(
        (1, BOXES, CLASSES + 1), dtype=dtype, **({} if dtype == "FLOAT32" else {"scale": 1 / 256, "zero_point": 0})
    )
    m.inputs += [encodings, scores]
    if dtype == "FLOAT32":
        anchors = m.tensor((BOXES, 4), dtype=dtype, data=m.rng.uniform(0.1, 0.9, (BOXES, 4)).astype(np.float32))
    else:
        data = m.rng.integers(10, 250, (BOXES, 4)).astype(np.uint8)
        anchors = m.tensor((BOXES, 4), dtype=dtype, scale=1 / 255, zero_point=3, data=data)
    outputs = [m.tensor((), dtype="FLOAT32") for _ in range(4)]
    m.custom("TFLite_Detection_PostProcess", [encodings, scores, anchors], outputs, flexbuffers.Dumps(settings))
    return m.finish(*outputs)


def values(dtype: str, rng: np.random.Generator) -> list:
    if dtype == "FLOAT32":
        scores = rng.random((1, BOXES, CLASSES + 1)) ** 3
        return [rng.normal(0, 3, (1, BOXES, 4)).astype(np.float32), scores.astype(np.float32)]
    return [rng.integers(0, 256, (1, BOXES, n)).astype(np.uint8) for n in (4, CLASSES + 1)]


@pytest.mark.parametrize("dtype", ["FLOAT32", "UINT8"])
@pytest.mark.parametrize("regular", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_detections_are_those_of_litert(tmp_path, seed, regular, dtype):
    path = tmp_path / "m.tflite"
    path.write_bytes(model(options(seed, regular=regular), seed, dtype))
    graph = read_model(path)
    (node,) = graph.nodes
    litert = LiteRtReference(path)
    inputs = values(dtype, np.random.default_rng(seed))
    want = litert.run(*inputs)
    got = evaluate(node.operation, [*inputs, graph.constant(node.inputs[2])])
    assert [g.shape for g in got] == [w.shape for w in want]
    count = int(want[3][0])
    assert got[3][0] == count > 0
    if dtype == "UINT8":  # scores are often equal, and LiteRT's order of them is not stated
        np.testing.assert_array_equal(got[2], want[2])
        return
    for mine, theirs in zip(got[:3], want[:3], strict=True):
        np.testing.assert_allclose(mine[:, :count], theirs[:, :count], rtol=1e-6)


def test_it_compiles(tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(model(options(0, regular=False), 0, "FLOAT32"))
    report = compile_model(path, output=tmp_path / "artifact").report
    assert not report["exact"]
    inputs = values("FLOAT32", np.random.default_rng(1))
    with InferenceSession(tmp_path / "artifact", "cpu") as session:
        got = session.run(None, {i.name: v for i, v in zip(session.get_inputs(), inputs, strict=True)})
    np.testing.assert_allclose(got[2], LiteRtReference(path).run(*inputs)[2], rtol=1e-6)


def test_options_that_are_missing(tmp_path):
    settings = options(0, regular=False)
    del settings["max_detections"]
    path = tmp_path / "m.tflite"
    path.write_bytes(model(settings, 0, "FLOAT32"))
    with pytest.raises(ModelError, match=r"TFLite_Detection_PostProcess .* lacks the option .max_detections"):
        read_model(path)
