"""Metrics against scikit-learn's, and `nnloom evaluate` on a network whose answers LiteRT gives."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import metrics

from nnloom.arch.artifact import TensorInfo
from nnloom.arch.errors import InputError
from nnloom.cli import main
from nnloom.cli.main import build_parser
from nnloom.runtime.evaluate import METRICS, LabelledData, evaluate, real_values
from nnloom.sim.litert import LiteRtReference

X = TensorInfo(name="features", shape=(1, 6), dtype="int8", scale=0.5, zero_point=3)


def data(inputs, labels) -> LabelledData:
    return LabelledData.from_arrays({"x": np.asarray(inputs), "y": np.asarray(labels)}, [X])


def test_top1_is_scikit_learns():
    rng = np.random.default_rng(0)
    outputs, labels = rng.normal(size=(200, 6)), rng.integers(0, 6, 200)
    found = evaluate("it", lambda x: x["features"], data(outputs, labels), "top1")
    assert found.value == metrics.accuracy_score(labels, outputs.argmax(1)) and found.count == 200
    np.testing.assert_array_equal(found.confusion, metrics.confusion_matrix(labels, outputs.argmax(1)))
    one_hot = evaluate("it", lambda x: x["features"], data(outputs, np.eye(6)[labels]), "top1")
    assert one_hot.value == found.value
    assert (
        evaluate("it", lambda x: x["features"], data(outputs, labels.astype(np.float32)), "top1").value == found.value
    )


def test_mae_is_scikit_learns():
    rng = np.random.default_rng(1)
    outputs, labels = rng.normal(size=(50, 6)), rng.normal(size=(50, 6))
    found = evaluate("it", lambda x: x["features"], data(outputs, labels), "mae")
    assert found.value == pytest.approx(metrics.mean_absolute_error(labels, outputs))


@pytest.mark.parametrize("ties", [False, True])
def test_auc_is_scikit_learns(ties):
    rng = np.random.default_rng(2)
    scores, labels = rng.normal(size=300), rng.integers(0, 2, 300)
    scores = np.round(scores + labels, 1) if ties else scores + labels
    found = evaluate("it", lambda x: x["features"], data(scores[:, None], labels), "auc")
    assert found.value == pytest.approx(metrics.roc_auc_score(labels, scores))


def test_the_score_of_an_autoencoder_is_its_error():
    rng = np.random.default_rng(3)
    inputs, labels = rng.normal(size=(80, 6)), rng.integers(0, 2, 80)
    noise = rng.normal(size=(80, 6)) * (1 + labels[:, None])
    made = iter(inputs + noise)
    found = evaluate("it", lambda _: next(made), data(inputs, labels), "auc")
    assert found.value == pytest.approx(metrics.roc_auc_score(labels, (noise**2).mean(1)))


def test_real_values_of_integers():
    np.testing.assert_array_equal(real_values(X, np.array([3, 5, -1], np.int8)), [0, 1, -2])
    np.testing.assert_array_equal(real_values(X, np.array([3.0], np.float32)), [3])


@pytest.mark.parametrize(
    ("arrays", "metric", "message"),
    [
        ({"x": np.zeros((3, 6))}, "top1", "no labels in the data; name them 'labels'"),
        ({"labels": np.zeros(3)}, "top1", "no input 'features' in the data"),
        ({"x": np.zeros((3, 6)), "y": np.zeros(4)}, "top1", "the first dimension of both"),
        ({"x": np.zeros((0, 6)), "y": np.zeros(0)}, "top1", "hold no inferences"),
        ({"x": np.zeros((3, 6)), "y": np.full(3, 6)}, "top1", "a class from 0 to 5"),
        ({"x": np.zeros((3, 6)), "y": np.full(3, 0.5)}, "top1", "a class from 0 to 5"),
        ({"x": np.zeros((3, 6)), "y": np.full(3, np.inf)}, "top1", "a class from 0 to 5"),
        ({"x": np.zeros((3, 6)), "y": np.zeros((3, 2))}, "mae", "needs 6 values"),
        ({"x": np.zeros((3, 6)), "y": np.zeros(3, int)}, "auc", "0 or 1, and both of them"),
    ],
)
def test_data_that_do_not_suit_are_refused(arrays, metric, message):
    with pytest.raises(InputError, match=message):
        evaluate("it", lambda x: x["features"], LabelledData.from_arrays(arrays, [X]), metric)


@pytest.mark.model
def test_the_command(artifacts, tmp_path, capsys):
    """Labels that LiteRT gives, one in four of them wrong: so many are right."""
    path = artifacts("tflite_micro_speech")
    litert = LiteRtReference(path / "model.tflite")
    rng = np.random.default_rng(4)
    inputs = rng.integers(-128, 128, (12, 49, 40, 1)).astype(np.int8)
    labels = np.array([litert.run(x[None])[0].argmax() for x in inputs])
    labels[::4] = (labels[::4] + 1) % 4
    np.savez(tmp_path / "test.npz", inputs=inputs, labels=labels)
    command = ["evaluate", str(path), "--data", str(tmp_path / "test.npz"), "--device", "model"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [e["value"] for e in found["evaluations"]] == [0.75, 0.75] and found["equals_reference"]
    assert np.trace(found["evaluations"][0]["confusion"]) == 9 and found["fallbacks"] == 0
    assert main([*command, "--limit", "4"]) == 0
    said = capsys.readouterr().out
    assert "every prediction is LiteRT's" in said and "0.7500" in said
    np.save(tmp_path / "one.npy", inputs)
    assert main(["evaluate", str(path), "--data", str(tmp_path / "one.npy")]) == 2
    assert "give an .npz with the inputs and 'labels'" in capsys.readouterr().err


def test_the_command_knows_the_metrics():
    for metric in METRICS:
        assert build_parser().parse_args(["evaluate", "a", "--data", "b", "--metric", metric]).metric == metric
