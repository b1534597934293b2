"""Files of frameworks that are no programs: what to do with them, in one line. And what Keras' own export leaves."""

from __future__ import annotations

import sys
import zipfile

import numpy as np
import onnx
import pytest

from nnloom.arch.errors import ModelError, ToolMissingError
from nnloom.cli import main
from nnloom.compiler.frontend import read_model
from nnloom.compiler.frontend.torch import is_program
from nnloom.compiler.quantize import quantize
from nnloom.compiler.quantize.global_pools import with_global_pools
from tests.onnx_models import Network, answer, check


def _archive(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "{}")
    return path


def test_keras(tmp_path, capsys):
    path = _archive(tmp_path / "net.keras", "config.json", "metadata.json", "model.weights.h5")
    wanted = (
        r"net\.keras: a Keras model; export it .*keras\.models\.load_model\(.*\)\.export\('net\.onnx', format='onnx'\)"
    )
    for call in (read_model, lambda p: quantize(p, np.zeros(3), output=tmp_path / "q.onnx")):
        with pytest.raises(ModelError, match=wanted) as caught:
            call(path)
        assert "\n" not in str(caught.value)
    (tmp_path / "old.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    assert main(["compile", str(tmp_path / "old.h5")]) == 2
    assert "old.h5: a Keras model; export it in Python" in capsys.readouterr().err


def test_pytorch_weights(tmp_path):
    path = _archive(tmp_path / "w.pt", "w/data.pkl", "w/version")
    with pytest.raises(ModelError, match=r"w\.pt: PyTorch weights, which are no network.*'w\.pt2'"):
        read_model(path)
    assert not is_program(path) and is_program(_archive(tmp_path / "n.pt2", "n/models/model.json"))
    assert is_program(_archive(tmp_path / "o.pt2", "serialized_exported_program.json"))


def test_a_program_under_another_name_is_not_loaded(tmp_path):
    # PyTorch unpickles what is in it.
    path = _archive(tmp_path / "net.onnx", "n/models/model.json")
    with pytest.raises(ModelError, match=r"net\.onnx: a program of PyTorch, .* if you trust it, name it net\.pt2"):
        read_model(path)


def test_without_torch(tmp_path, monkeypatch):
    path = _archive(tmp_path / "n.pt2", "n/models/model.json")
    monkeypatch.setattr("nnloom.arch.extras.find_spec", lambda name: None if name == "torch" else sys.__spec__)
    with pytest.raises(ToolMissingError, match=r"torch is not installed; pip install 'nnloom\[torch\]'"):
        read_model(path)


def test_transposes_that_keras_leaves(tmp_path):
    """Channels last outside, a transposition on each side of every convolution; padding as an operator of its own."""
    n = Network(5, (1, 9, 8, 3))

    def layer(x, channels, source, **options):
        first = n.add("Transpose", x, perm=[0, 3, 1, 2])
        padded = n.add("Pad", first, n.constant([0, 0, 1, 1, 0, 0, 1, 1], "int64"), n.constant(0.0))
        made = n.conv(padded, channels, source, pads=[0, 0, 0, 0], **options)
        return n.add("Relu", n.add("Transpose", made, perm=[0, 2, 3, 1]))

    y = layer(layer("x", 8, 3, strides=[2, 2]), 8, 8, group=8)
    y = n.add("Reshape", n.add("ReduceMean", y, axes=[1, 2], keepdims=0), n.constant([1, 8], "int64"))
    y = n.add(
        "Add", n.add("MatMul", y, n.constant(n.rng.standard_normal((8, 4)))), n.constant(n.rng.standard_normal(4))
    )
    onnx.save(n.model(y), tmp_path / "keras.onnx")
    data = np.random.default_rng(0).uniform(-1, 1, (6, 9, 8, 3)).astype(np.float32)
    result = quantize(tmp_path / "keras.onnx", data, output=tmp_path / "q.onnx", method="minmax", explain=False)
    graph = read_model(result.path)
    kinds = [node.kind for node in graph.nodes]
    assert "TRANSPOSE" not in kinds and not graph.input_infos()[0].permutation, kinds
    report = check(result.path, tmp_path)
    on_cpu = {x["op"]: x["reason"] for x in report["layers"] if x["target"] == "cpu"}
    assert report["exact"] and not {"conv_2d", "transpose", "pad", "mean"} & set(on_cpu), on_cpu


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("axes", [[2, 3], [-1, -2], [1, 2]])
def test_means_over_images_stay_integers(axes, keep):
    n = Network(1, (1, 4, 5, 6))
    mean = n.add("ReduceMean", "x", axes=axes, keepdims=keep)
    other = n.add("ReduceMean", "x", axes=[1], keepdims=0)
    model = n.model(mean, other)
    changed = with_global_pools(model)
    kinds = [node.op_type for node in changed.graph.node]
    assert "GlobalAveragePool" in kinds and kinds.count("ReduceMean") == 1
    x = {"x": np.random.default_rng(0).standard_normal((1, 4, 5, 6)).astype(np.float32)}
    for want, got in zip(answer(model, x), answer(changed, x), strict=True):
        assert want.shape == got.shape and np.allclose(want, got, atol=1e-6)
    alone = n.model(other)
    alone.graph.node.remove(alone.graph.node[0])
    assert with_global_pools(alone) is alone


def test_a_damaged_program(tmp_path):
    (tmp_path / "net.pt2").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ModelError, match=r"net\.pt2: damaged, or no program of torch\.export"):
        read_model(tmp_path / "net.pt2")
