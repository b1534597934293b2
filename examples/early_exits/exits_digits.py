"""Train a network with three exits on handwritten digits, compile it, and have it answer within budgets of time.

python examples/early_exits/exits_digits.py build/exits
python examples/early_exits/exits_digits.py build/exits --device sim --tests 5

Each exit is a head on the same trunk; a budget chooses the deepest that it allows, and only that is computed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from nnloom.arch.reference.onnx import ONNX_RUNTIME_SETTINGS
from nnloom.compiler import compile
from nnloom.runtime import InferenceSession

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from onnx_training import Builder, accuracy, digits, scores, train

EXITS = ("early", "middle", "final")
README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- results: written by exits_digits.py --readme -->", "<!-- end of results -->"


def make_network() -> onnx.ModelProto:
    """Pictures [1, 1, 8, 8] to scores of ten digits, three times."""
    net = Builder()

    def conv(x: str, name: str, source: int, filters: int, **options: int) -> str:
        return net.apply("Relu", net.conv(x, name, source, filters, **options))

    x = conv("pictures", "stem", 1, 8, stride=2)
    early = net.dense(x, "early", 8 * 16, 10)
    x = conv(conv(x, "second", 8, 32), "third", 32, 32)
    middle = net.dense(x, "middle", 32 * 16, 10)
    x = conv(conv(x, "fourth", 32, 64), "fifth", 64, 64)
    x = conv(x, "sixth", 64, 64, stride=2)
    return net.model(early, middle, net.dense(x, "final", 64 * 4, 10))


def run_reference(model: Path, pictures: NDArray) -> dict[str, NDArray]:
    """What ONNX Runtime answers at each exit, [n, 10]."""
    options = ort.SessionOptions()
    for key, value in ONNX_RUNTIME_SETTINGS.items():
        options.add_session_config_entry(key, value)
    session = ort.InferenceSession(str(model), options, ["CPUExecutionProvider"])
    rows = [session.run(list(EXITS), {"pictures": x[None]}) for x in pictures]
    return {name: np.concatenate(parts) for name, *parts in zip(EXITS, *rows, strict=True)}


def main(arguments: list[str] | None = None) -> None:
    """Train, compile, and run within the budget of each exit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="folder for the model and the artifact")
    parser.add_argument("--board", default="ulx3s-85f", help="board to compile for (default: %(default)s)")
    parser.add_argument("--device", default="model", help="cpu, model, sim, serial:PORT (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=12, help="of the training (default: %(default)s)")
    parser.add_argument(
        "--tests", type=int, default=180, help="pictures to test on, at most 180 (default: %(default)s)"
    )
    parser.add_argument("--readme", action="store_true", help="write the table into the README beside this script")
    options = parser.parse_args(arguments)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    pictures, labels, tests, wanted = digits()
    tests, wanted = tests[: options.tests], wanted[: options.tests]
    network = train(make_network(), pictures, labels, epochs=options.epochs)
    onnx.save(network, folder / "exits.onnx")
    artifact = folder / "artifact"
    compile(
        folder / "exits.onnx",
        board=options.board,
        output=artifact,
        calibrate=pictures[:100],
        quantization={"explain": False},
        exits=EXITS,
    )
    floating, int8 = scores(network, tests), run_reference(artifact / "model.onnx", tests)
    lines = [
        "| exit | cycles | ms | float | int8 | hardware |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    with InferenceSession(artifact, options.device, fallback=False) as session:
        for leave in session.get_exits():
            made = session.run(tests, budget_ms=1.001 * leave.milliseconds)
            if list(made) != [leave.name] or not np.array_equal(made[leave.name], int8[leave.name]):
                raise SystemExit(f"{artifact}: other answers than ONNX Runtime's at {leave.name!r}")
            if session.last_cycles is not None and session.last_cycles != leave.cycles:
                raise SystemExit(f"{artifact}: {leave.name!r} took {session.last_cycles} cycles, not {leave.cycles}")
            rates = [accuracy(v[leave.name], wanted) for v in (floating, int8, made)]
            rates_text = " | ".join(f"{100 * rate:.1f} %" for rate in rates)
            lines.append(f"| {leave.name} | {leave.cycles:,} | {leave.milliseconds:.3f} | {rates_text} |")
    print("\n".join(lines))
    if options.readme:
        text = README.read_text()
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        README.write_text(before + "\n".join([BEGIN, *lines, END]) + after)


if __name__ == "__main__":
    main()
