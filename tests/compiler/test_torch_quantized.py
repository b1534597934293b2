"""Networks that PyTorch's tools have quantized, torchao's PT2E and Brevitas: compiled as they are, and exact.

Needs torch and torchao, or brevitas and onnxoptimizer, which are not part of nnloom[dev].
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from nnloom.compiler.frontend import read_model
from nnloom.runtime import InferenceSession
from nnloom.sim.onnx_runtime import OnnxRuntimeReference
from tests.onnx_models import check, compile_onnx

NO_TORCH = find_spec("torch") is None or find_spec("onnxscript") is None
pytestmark = pytest.mark.skipif(
    NO_TORCH, reason="quantized PyTorch networks are NOT tested: torch or onnxscript is not installed"
)
needs_torchao = pytest.mark.skipif(
    find_spec("torchao") is None, reason="PT2E is NOT tested: torchao is not installed (pip install torchao==0.18.0)"
)
needs_brevitas = pytest.mark.skipif(
    find_spec("brevitas") is None or find_spec("onnxoptimizer") is None,
    reason="Brevitas is NOT tested: brevitas or onnxoptimizer is not installed (pip install brevitas onnxoptimizer)",
)
SHAPE = (1, 3, 16, 16)


def _data(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (count, *SHAPE[1:])).astype(np.float32)


def _float_network():
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
            self.each, self.mix = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 16, 1)
            self.pool, self.head = nn.MaxPool2d(2), nn.Linear(16 * 16, 5)

        def forward(self, x):
            x = self.norm(self.first(x)).relu()
            x = self.mix(x + self.each(x).relu()).relu()
            return self.head(self.pool(x).flatten(1))

    return Net().eval()


def _xnnpack():
    from torchao.testing.pt2e._xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config

    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))


def _x86():
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    return x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())


def _pt2e(quantizer, folder: Path) -> Path:
    """A program as torchao makes it."""
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    torch.manual_seed(0)
    example = (torch.from_numpy(_data(1)),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = prepare_pt2e(torch.export.export(_float_network(), example).module(), quantizer)
        for x in _data(8):
            prepared(torch.from_numpy(x[None]))
        path = folder / "quantized.pt2"
        torch.export.save(torch.export.export(convert_pt2e(prepared), example), path)
    return path


@needs_torchao
def test_pt2e_of_xnnpack(tmp_path):
    """Everything is in integers, and exact, wherever it runs."""
    path = _pt2e(_xnnpack(), tmp_path)
    report = check(path, tmp_path)
    assert report["exact"] and report["rounding"]["channels"] == 8 + 8 + 16 + 5
    kinds = [node.kind for node in read_model(path).nodes]
    assert kinds.count("CONV_2D") == 3 and kinds.count("QUANTIZE") == 1 and kinds.count("ADD") == 1
    # With scales that are moved by a few units in the last place all of it is on the accelerator.
    moved = check(path, tmp_path, unproved="scales")
    assert moved["exact"] and moved["engine_share"] == 1
    assert {x["op"] for x in moved["layers"] if x["target"] == "cpu"} <= {"quantize", "dequantize"}


@needs_torchao
def test_pt2e_of_x86(tmp_path):
    """This quantizer leaves the results of some layers in float: they are computed so, and named."""
    report = compile_onnx(_pt2e(_x86(), tmp_path), tmp_path / "a", unproved="scales")
    inexact = {x["op"] for x in report["layers"] if not x["exact"]}
    assert not report["exact"] and inexact <= {"conv_2d", "fully_connected"}
    reference = OnnxRuntimeReference(tmp_path / "a" / "model.onnx")
    with InferenceSession(tmp_path / "a", "model", native=False) as session:
        (got,), (want,) = session.run(None, {"x": _data(1)}), reference.run(_data(1))
    assert got.shape == want.shape and np.abs(got - want).max() < 0.02 * np.abs(want).max()


def _brevitas(bits: int):
    """A network as Brevitas trains it: weights of so many bits, activations of 8."""
    import brevitas.nn as qnn
    import torch
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat, Int32Bias, Uint8ActPerTensorFloat
    from torch import nn

    weights = {"weight_quant": Int8WeightPerChannelFloat, "weight_bit_width": bits, "bias_quant": Int32Bias}

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.x = qnn.QuantIdentity(act_quant=Int8ActPerTensorFloat, return_quant_tensor=True)
            self.a = qnn.QuantConv2d(3, 8, 3, stride=2, padding=1, return_quant_tensor=True, **weights)
            self.b = qnn.QuantConv2d(8, 8, 3, padding=1, groups=8, return_quant_tensor=True, **weights)
            self.ra, self.rb = (qnn.QuantReLU(act_quant=Uint8ActPerTensorFloat, return_quant_tensor=True) for _ in "ab")
            self.c = qnn.QuantLinear(8 * 64, 5, bias=True, return_quant_tensor=True, **weights)
            self.y = qnn.QuantIdentity(act_quant=Int8ActPerTensorFloat)

        def forward(self, x):
            x = self.rb(self.b(self.ra(self.a(self.x(x)))))
            return self.y(self.c(x.flatten(1)))

    torch.manual_seed(0)
    network = Net().train()
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    for x in _data(8):
        loss = network(torch.from_numpy(x[None])).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def _exported(network, form: str, path: Path) -> np.ndarray:
    """Written in a form of ONNX; returns what Brevitas answers to the first inference."""
    import torch
    from brevitas.export import export_onnx_qcdq, export_qonnx

    example = torch.from_numpy(_data(1))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        write = {"qcdq": export_onnx_qcdq, "qonnx": export_qonnx}[form]
        write(network, args=example, export_path=str(path), dynamo=False)
        return network(example).numpy()


@needs_brevitas
@pytest.mark.parametrize("form", ["qcdq", "qonnx"])
@pytest.mark.parametrize("bits", [8, 4])
def test_brevitas(bits, form, tmp_path):
    path = tmp_path / "n.onnx"
    answer = _exported(_brevitas(bits), form, path)
    report = check(path, tmp_path)
    assert report["exact"] and report["rounding"]["channels"] == 8 + 8 + 5
    weights = [v.data for v in read_model(path).values if v.data is not None and v.data.ndim in (2, 4)]
    assert all(w.dtype == np.int8 and np.abs(w).max() < 1 << (bits - 1) for w in weights)
    # Brevitas itself adds up in float32: at most a step away.
    (ours,) = OnnxRuntimeReference(tmp_path / "n.artifact" / "model.onnx").run(_data(1))
    step = np.abs(np.diff(np.unique(np.concatenate([answer.reshape(-1), ours.reshape(-1)]))))
    assert np.abs(ours - answer).max() <= step[step > 1e-6].min() * 1.01
