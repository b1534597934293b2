"""From a float ONNX network to an artifact with the bits of ONNX Runtime, on data that this script makes.

python examples/float_to_exact.py build/stripes
python examples/float_to_exact.py build/stripes --device sim

Pictures of 16 x 16 with stripes in one of four directions, and noise. The network is trained as little as possible:
random filters, and a last layer fitted to what comes out of them. Then: quantize, compile, run, compare.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from nnloom.arch.reference.onnx import ONNX_RUNTIME_SETTINGS
from nnloom.compiler import compile
from nnloom.runtime import InferenceSession

SIZE = 16
ANGLES = (0.0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
FILTERS = 16


def make_data(count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Pictures [count, 1, 16, 16] and the direction of their stripes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(ANGLES), count)
    y, x = np.mgrid[:SIZE, :SIZE]
    angles = np.array(ANGLES)[labels, None, None] + rng.normal(0, 0.08, (count, 1, 1))
    waves, phases = rng.uniform(0.9, 1.5, (count, 1, 1)), rng.uniform(0, 2 * np.pi, (count, 1, 1))
    pictures = np.sin(waves * (x * np.cos(angles) + y * np.sin(angles)) + phases) + rng.normal(
        0, 0.4, (count, SIZE, SIZE)
    )
    return pictures[:, None].astype(np.float32), labels


def make_network(head: tuple[NDArray, NDArray] | None, seed: int = 0) -> onnx.ModelProto:
    """Two convolutions with random filters, a mean over the picture and, if there is a `head`, a last layer."""
    rng = np.random.default_rng(seed)
    weights = {
        "w1": rng.standard_normal((FILTERS, 1, 5, 5)) / 5,
        "b1": rng.standard_normal(FILTERS) * 0.2,
        "w2": rng.standard_normal((2 * FILTERS, FILTERS, 3, 3)) / 12,
        "b2": rng.standard_normal(2 * FILTERS) * 0.2,
    }
    nodes = [
        helper.make_node("Conv", ["pictures", "w1", "b1"], ["c1"], "first", pads=[2, 2, 2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "second", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["mean"], "mean"),
        helper.make_node("Flatten", ["mean"], ["features"], "flatten"),
    ]
    output = "features"
    if head is not None:
        weights["w3"], weights["b3"], output = head[0], head[1], "scores"
        nodes.append(helper.make_node("Gemm", ["features", "w3", "b3"], ["scores"], "head"))
    graph = helper.make_graph(
        nodes,
        "stripes",
        [helper.make_tensor_value_info("pictures", TensorProto.FLOAT, [1, 1, SIZE, SIZE])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, 2 * FILTERS if head is None else len(ANGLES)])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def run_reference(model: bytes, pictures: NDArray) -> NDArray:
    """What ONNX Runtime answers, [n, ...]."""
    options = ort.SessionOptions()
    for key, value in ONNX_RUNTIME_SETTINGS.items():
        options.add_session_config_entry(key, value)
    session = ort.InferenceSession(model, options, ["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"pictures": x[None]})[0] for x in pictures])


def main(arguments: list[str] | None = None) -> None:
    """Train, quantize, compile, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="artifact directory; the float model is written beside it")
    parser.add_argument("--device", default="model", help="cpu, model, sim, serial:PORT (default: %(default)s)")
    parser.add_argument("--tests", type=int, default=100, help="pictures to test on (default: %(default)s)")
    options = parser.parse_args(arguments)
    pictures, labels = make_data(400, 1)
    features = run_reference(make_network(None).SerializeToString(), pictures)
    wide = np.hstack([features, np.ones((len(features), 1), np.float32)])
    fitted, *_ = np.linalg.lstsq(wide, np.eye(len(ANGLES), dtype=np.float32)[labels], rcond=1e-4)
    network = make_network((fitted[:-1], fitted[-1]))
    target = Path(options.output)
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(network, f"{target}.onnx")

    result = compile(f"{target}.onnx", output=target, calibrate=pictures[:100])
    quantized = result.quantized
    assert quantized is not None and quantized.provability is not None
    print(f"{quantized.sqnr_db:.1f} dB of signal to quantization noise ({quantized.method})")
    proved = quantized.provability
    print(f"{proved.proved} of {proved.channels} channels proved, exact: {result.report['exact']}")

    tests, wanted = make_data(options.tests, 2)
    scores = {
        "float": run_reference(network.SerializeToString(), tests),
        "ONNX Runtime, int8": run_reference((target / "model.onnx").read_bytes(), tests),
    }
    with InferenceSession(target, options.device, fallback=False) as session:
        scores[options.device] = session.run(tests)["scores"]
    for name, values in scores.items():
        print(f"{name}: {100 * (values.argmax(axis=1) == wanted).mean():.1f} % right")
    differ = int((scores[options.device] != scores["ONNX Runtime, int8"]).sum())
    print(f"{differ} of {scores['float'].size} scores differ from ONNX Runtime's")
    if differ:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
