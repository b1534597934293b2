"""Programs of torch.export: float ones quantized and compiled, quantized ones compiled as they are.

Needs torch, which is not part of nnloom[dev]: pip install 'nnloom[torch]'.
"""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest

from nnloom.arch.errors import ModelError
from nnloom.cli import main
from nnloom.compiler import compile as compile_model
from nnloom.compiler.frontend import read_model
from nnloom.compiler.quantize import quantize
from nnloom.runtime import InferenceSession
from nnloom.sim.onnx_runtime import OnnxRuntimeReference
from tests.onnx_models import answer, check, without_code

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    find_spec("torch") is None or find_spec("onnxscript") is None,
    reason="PyTorch programs are NOT tested: torch or onnxscript is not installed (pip install 'nnloom[torch]')",
)


@pytest.fixture(scope="module")
def torch():
    import torch

    torch.manual_seed(0)
    return torch


@pytest.fixture(scope="module")
def program(torch):
    nn, functional = torch.nn, torch.nn.functional

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
            self.each, self.mix, self.head = (
                nn.Conv2d(8, 8, 3, padding=1, groups=8),
                nn.Conv2d(8, 16, 1),
                nn.Linear(16, 5),
            )

        def forward(self, x):
            x = torch.relu(self.norm(self.first(x)))
            x = functional.relu6(self.mix(x + functional.hardswish(self.each(x))))
            return self.head(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))

    return torch.export.export(Net().eval(), (torch.randn(1, 3, 16, 16),))


def _data(count=10):
    return np.random.default_rng(0).uniform(-1, 1, (count, 3, 16, 16)).astype(np.float32)


def test_float_program(torch, program, tmp_path):
    path = tmp_path / "net.pt2"
    torch.export.save(program, path)
    result = quantize(path, _data(), output=tmp_path / "q.onnx", method="minmax")
    assert result.sqnr_db > 25 and result.provability.proved == result.provability.channels > 0
    report = check(result.path, tmp_path)
    products = [x for x in report["layers"] if x["op"] in ("conv2d", "depthwise_conv2d", "fully_connected")]
    assert report["exact"] and len(products) == 4 and {x["target"] for x in products} == {"accelerator"}
    with torch.no_grad():
        want = program.module()(torch.from_numpy(_data(1))).numpy()
    assert np.abs(answer(onnx.load(result.path), {"x": _data(1)})[0] - want).max() < 0.1 * np.abs(want).max()


def test_a_program_without_a_file(program, tmp_path):
    graph = read_model(program)
    assert graph.format == "onnx" and graph.name == "model" and graph.input_infos()[0].shape == (1, 3, 16, 16)
    with without_code():
        result = compile_model(program, output=tmp_path / "a", calibrate=_data(), quantization={"method": "minmax"})
        assert result.report["exact"] and result.report["model"] == "model"
        assert compile_model(program, output=tmp_path / "f").is_float


def test_quantized_program(torch, tmp_path):
    """As PyTorch's quantizers write it: int8 weights by channel, activations by tensor, a real bias."""
    ops = torch.ops.quantized_decomposed
    import torch.ao.quantization.fx._decomposed

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("weights", torch.randint(-127, 128, (6, 3, 3, 3), dtype=torch.int8))
            self.register_buffer("scales", torch.rand(6, dtype=torch.float32) * 0.004 + 0.001)
            self.register_buffer("zeros", torch.zeros(6, dtype=torch.int64))
            self.register_buffer("bias", torch.randn(6))

        def forward(self, x):
            for scale, zero in ((0.0157, -3), (0.031, 5)):
                x = ops.quantize_per_tensor.default(x, scale, zero, -128, 127, torch.int8)
                x = ops.dequantize_per_tensor.default(x, scale, zero, -128, 127, torch.int8)
                if scale == 0.0157:
                    given = (self.weights, self.scales, self.zeros, 0, -127, 127, torch.int8)
                    x = torch.nn.functional.conv2d(x, ops.dequantize_per_channel.default(*given), self.bias)
            return x

    program = torch.export.export(Net().eval(), (torch.randn(1, 3, 8, 8),))
    path = tmp_path / "q.pt2"
    torch.export.save(program, path)
    graph = read_model(path)
    kinds = [node.kind for node in graph.nodes]
    assert kinds.count("CONV_2D") == 1 and kinds[0] == "QUANTIZE" and kinds[-1] == "DEQUANTIZE"
    conv = next(node for node in graph.nodes if node.kind == "CONV_2D")
    assert graph.values[conv.outputs[0]].type.dtype == "int8"
    with without_code():
        result = compile_model(path, output=tmp_path / "a")
    assert not result.is_float and result.report["rounding"]["channels"] == 6


def test_the_tutorial(torch, tmp_path, monkeypatch, capsys):
    """Script and commands as written, but for the RTL."""
    text = (ROOT / "docs" / "tutorial.md").read_text()
    text = text[text.index("## A network of your own, from PyTorch") :]
    (script,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "tutorial", "exec"), {})
    commands = [line for line in re.findall(r"^nnloom (.*)$", text, re.MULTILINE) if not line.startswith("simulate")]
    assert [line.split()[0] for line in commands] == ["compile", "run", "compare"]
    for line in commands:
        assert main(shlex.split(line, comments=True)) == 0, capsys.readouterr().err
    assert "tensors beside those of net.pt2" in capsys.readouterr().out
    assert main(["compare", "build/net", "--input", "x.npy"]) == 0
    assert "each equal to that of ONNX Runtime" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["mobile", "decoder", "next", "attention", "recurrent", "sequence", "two inputs", "shuffle", "odds"]
)
def test_networks_of_many_kinds(torch, name, tmp_path):
    """From torch.export to the golden model in the words of the tutorial; the same bits as ONNX Runtime where the
    report says so, else as near as float32 sums are."""
    from tests.torch_networks import NETWORKS

    kind, shapes, exact = NETWORKS[name]
    rng = np.random.default_rng(0)
    network = kind().train()
    with torch.no_grad():
        for _ in range(3):  # so that batch normalizations have something to do
            network(*(torch.from_numpy(rng.normal(0, 1, shape).astype(np.float32)) for shape in shapes))
    example = tuple(torch.from_numpy(rng.normal(0, 1, shape).astype(np.float32)) for shape in shapes)
    program = torch.export.export(network.eval(), example)
    names = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    data = {n: rng.normal(0, 1, (10, *shape[1:])).astype(np.float32) for n, shape in zip(names, shapes, strict=True)}
    with without_code():
        result = compile_model(
            program, output=tmp_path / "a", calibrate=data, quantization={"method": "minmax", "explain": False}
        )
    assert result.report["exact"] == exact and result.quantized.sqnr_db > 15
    reference = OnnxRuntimeReference(tmp_path / "a" / "model.onnx")
    with InferenceSession(tmp_path / "a", "model", native=False) as session:
        given = [rng.normal(0, 1, shape).astype(np.float32) for shape in shapes]
        answers = session.run(None, dict(zip([i.name for i in session.get_inputs()], given, strict=True)))
    for got, want in zip(answers, reference.run(*given), strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype
        if exact:
            assert np.array_equal(got, want)
        else:  # what was a last bit may be a step behind a quantization
            assert np.abs(got - want).max() <= 0.02 * max(1.0, float(np.abs(want).max()))


def test_what_is_refused(torch, tmp_path):
    with pytest.raises(ModelError, match=r"a Linear is no model; give a file, or .* torch\.export\.export"):
        read_model(torch.nn.Linear(2, 2))
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        ModelError, match=r"w\.pth: PyTorch weights, which are no network; in Python, torch\.export\.save"
    ):
        read_model(tmp_path / "w.pth")
