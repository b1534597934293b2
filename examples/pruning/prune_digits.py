"""Train a network on handwritten digits, take channels out of it, train on, compile, and compare.

python examples/pruning/prune_digits.py build/pruning
python examples/pruning/prune_digits.py build/pruning --device sim

The network has a residual addition, a concatenation and a depthwise convolution, through which channels are taken out.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from nnloom.arch.reference.onnx import ONNX_RUNTIME_SETTINGS
from nnloom.compiler import compile, prune
from nnloom.runtime import InferenceSession

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from onnx_training import Builder, accuracy, digits, scores, train

TARGETS = (0.0, 0.25, 0.5, 0.75)
README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- results: written by prune_digits.py --readme -->", "<!-- end of results -->"


def make_network(width: int = 64) -> onnx.ModelProto:
    """Pictures [1, 1, 8, 8] to scores of ten digits."""
    net = Builder()

    def relu(x: str) -> str:
        return net.apply("Relu", x)

    x = relu(net.conv("pictures", "stem", 1, width // 2))
    x = relu(net.conv(x, "down", width // 2, width, stride=2))
    y = relu(net.conv(x, "inner", width, width))
    x = relu(net.apply("Add", x, net.conv(y, "outer", width, width)))
    wide, short = net.conv(x, "wide", width, width, stride=2), net.conv(x, "short", width, width, size=1, stride=2)
    x = relu(net.apply("Concat", wide, short, axis=1))
    x = relu(net.conv(x, "each", 2 * width, 2 * width, group=2 * width))
    x = relu(net.conv(x, "mix", 2 * width, 2 * width, size=1))
    return net.model(net.head(x, "scores", 2 * width, 10))


@dataclass(frozen=True)
class Row:
    """One network of the table."""

    target: float
    macs: int
    parameters: int
    cycles: int
    before: float
    """accuracy of the float network before it is trained on"""
    floating: float
    int8: float
    hardware: float


def run_reference(model: Path, pictures: NDArray) -> NDArray:
    """What ONNX Runtime answers, [n, 10]."""
    options = ort.SessionOptions()
    for key, value in ONNX_RUNTIME_SETTINGS.items():
        options.add_session_config_entry(key, value)
    session = ort.InferenceSession(str(model), options, ["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"pictures": x[None]})[0] for x in pictures])


def measure(target: float, folder: Path, options: argparse.Namespace) -> Row:
    """Prune the trained network, train on, quantize, compile, and count right answers of all three."""
    pictures, labels, tests, wanted = digits()
    name = f"{100 * target:.0f}"
    small, artifact = folder / f"pruned_{name}.onnx", folder / f"digits_{name}"
    result = prune(folder / "trained.onnx", target=target, multiple=16, output=small)
    network = onnx.load(small)
    before = accuracy(scores(network, tests)["scores"], wanted)
    if target:
        network = train(network, pictures, labels, epochs=options.more_epochs, rate=1e-3)
        onnx.save(network, small)
    report = compile(
        small, board=options.board, output=artifact, calibrate=pictures[:100], quantization={"explain": False}
    ).report
    int8 = run_reference(artifact / "model.onnx", tests)
    with InferenceSession(artifact, options.device, fallback=False) as session:
        hardware = session.run(tests)["scores"]
    if not np.array_equal(int8, hardware):
        raise SystemExit(f"{artifact}: other scores than ONNX Runtime's")
    return Row(
        target,
        result.macs,
        result.parameters,
        report["cycles"],
        before,
        accuracy(scores(network, tests)["scores"], wanted),
        accuracy(int8, wanted),
        accuracy(hardware, wanted),
    )


def table(rows: list[Row]) -> list[str]:
    """The results as Markdown."""
    lines = [
        "| target | multiplications | parameters | cycles | float, pruned | float, trained on | int8 | hardware |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    whole = rows[0]
    for r in rows:
        shares = [f"{value:,} ({100 * value / full:.0f} %)" for value, full in (
            (r.macs, whole.macs), (r.parameters, whole.parameters), (r.cycles, whole.cycles))]  # fmt: skip
        rates = [f"{100 * value:.1f} %" for value in (r.before, r.floating, r.int8, r.hardware)]
        lines.append(f"| {100 * r.target:.0f} % | " + " | ".join([*shares, *rates]) + " |")
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Train, prune, train on, compile, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="folder for models and artifacts")
    parser.add_argument("--board", default="ulx3s-85f", help="board to compile for (default: %(default)s)")
    parser.add_argument("--device", default="model", help="cpu, model, sim, serial:PORT (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="of the first training (default: %(default)s)")
    parser.add_argument("--more-epochs", type=int, default=8, help="after pruning (default: %(default)s)")
    parser.add_argument("--readme", action="store_true", help="write the table into the README beside this script")
    options = parser.parse_args(arguments)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    pictures, labels, _, _ = digits()
    onnx.save(train(make_network(), pictures, labels, epochs=options.epochs), folder / "trained.onnx")
    lines = table([measure(target, folder, options) for target in TARGETS])
    print("\n".join(lines))
    if options.readme:
        text = README.read_text()
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        README.write_text(before + "\n".join([BEGIN, *lines, END]) + after)


if __name__ == "__main__":
    main()
