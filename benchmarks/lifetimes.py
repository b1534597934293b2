"""Tensor lifetimes of larger networks than the board holds, for the memory planner: `benchmarks/lifetimes.json`.

The topologies are those that ship in the `onnx` package (its light models: published networks with constant weights)
and, from the papers' tables, MobileNetV2 1.0 at 224 x 224 and U-Net at 256 x 256 with same padding. Sizes are what
int8 tensors take in the default engine's activation memory. Normalization, activation functions and reshapes are part
of the layer before them where nothing else reads its result; concatenations and shuffles are layers that copy.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.files import write_atomically
from nnloom.compiler.graph import Tensor
from nnloom.compiler.lower import tensor_shape
from nnloom.compiler.memory import Lifetime

FILE = Path(__file__).with_name("lifetimes.json")
LIGHT_MODELS = {
    "densenet121": "DenseNet-121",
    "inception_v1": "Inception v1",
    "inception_v2": "Inception v2",
    "resnet50": "ResNet-50",
    "shufflenet": "ShuffleNet",
    "squeezenet": "SqueezeNet",
}
FUSED = {"Relu", "BatchNormalization", "Mul", "Add", "Dropout"}
VIEWS = {"Reshape"}


def granules(rows: int, columns: int, channels: int) -> int:
    """Granules of each bank that a tensor takes."""
    config = AcceleratorConfig()
    tensor = Tensor(name="", rows=rows, columns=columns, channels=channels, scale=1.0, zero_point=0)
    return tensor_shape(config, tensor, packed=False).granules(config)


class Recorder:
    """Collects layers in execution order and tells how long each tensor lives."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._first: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._layers = 0

    def input(self, name: str, shape: tuple[int, int, int]) -> str:
        """A network input [rows, columns, channels]."""
        self._sizes[name], self._first[name], self._last[name] = granules(*shape), -1, -1
        return name

    def layer(self, name: str, inputs: Iterable[str], shape: tuple[int, int, int]) -> str:
        """A layer with an output [rows, columns, channels]."""
        self._sizes[name], self._first[name], self._last[name] = granules(*shape), self._layers, self._layers
        for tensor in inputs:
            self._last[tensor] = self._layers
        self._layers += 1
        return name

    def lifetimes(self, outputs: Sequence[str]) -> list[Lifetime]:
        """Of every tensor; outputs live to the end."""
        last = {**self._last, **dict.fromkeys(outputs, self._layers)}
        return [Lifetime(name, size, self._first[name], last[name]) for name, size in self._sizes.items()]


def light_model(name: str) -> list[Lifetime]:
    """A topology of the `onnx` package."""
    import onnx
    from onnx import shape_inference

    path = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"light_{name}.onnx"
    graph = shape_inference.infer_shapes(onnx.load(path)).graph
    shapes = {
        info.name: [d.dim_value for d in info.type.tensor_type.shape.dim]
        for info in (*graph.input, *graph.value_info, *graph.output)
    }

    def shape(tensor: str) -> tuple[int, int, int]:
        # NCHW; channels in groups (a shuffle) are channels.
        _, *channels, rows, columns = shapes[tensor] if len(shapes[tensor]) > 2 else (*shapes[tensor], 1, 1)
        return rows, columns, math.prod(channels)

    recorder = Recorder()
    constants = {tensor.name for tensor in graph.initializer}
    stored = {i.name: recorder.input(i.name, shape(i.name)) for i in graph.input if i.name not in constants}
    shared = set(stored)
    readers = Counter(name for node in graph.node for name in node.input)
    for node in graph.node:
        operands = [name for name in node.input if name in stored]
        if not operands:
            continue
        shared.update(stored[name] for name in operands if readers[name] > 1)
        first, result = stored[operands[0]], node.output[0]
        fused = node.op_type in FUSED and len(operands) == 1 and first not in shared
        if fused or node.op_type in VIEWS:
            stored[result] = first
        else:
            stored[result] = recorder.layer(result, [stored[name] for name in operands], shape(result))
    return recorder.lifetimes([stored[output.name] for output in graph.output])


def mobilenet_v2() -> list[Lifetime]:
    """MobileNetV2 1.0 (Sandler et al., 2018, table 2)."""
    recorder = Recorder()
    size, channels = 112, 32
    x = recorder.layer("stem", [recorder.input("image", (224, 224, 3))], (size, size, channels))
    settings = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2))
    settings += ((6, 320, 1, 1),)
    for stage, (expansion, width, count, stride) in enumerate(settings):
        for block in range(count):
            name, before, wide = f"{stage}.{block}", x, channels * expansion
            if expansion > 1:
                x = recorder.layer(f"{name} expand", [x], (size, size, wide))
            step = stride if block == 0 else 1
            size //= step
            x = recorder.layer(f"{name} depthwise", [x], (size, size, wide))
            x = recorder.layer(f"{name} project", [x], (size, size, width))
            if step == 1 and channels == width:
                x = recorder.layer(f"{name} add", [before, x], (size, size, width))
            channels = width
    x = recorder.layer("head", [x], (size, size, 1280))
    x = recorder.layer("pool", [x], (1, 1, 1280))
    return recorder.lifetimes([recorder.layer("classes", [x], (1, 1, 1000))])


def u_net() -> list[Lifetime]:
    """U-Net (Ronneberger et al., 2015, figure 1): every skip is copied into a concatenation."""
    recorder = Recorder()
    size, x = 256, recorder.input("image", (256, 256, 1))
    skips = []
    for level in range(5):
        channels = 64 << level
        for convolution in range(2):
            x = recorder.layer(f"down {level}.{convolution}", [x], (size, size, channels))
        if level < 4:
            skips.append(x)
            size //= 2
            x = recorder.layer(f"pool {level}", [x], (size, size, channels))
    for level in reversed(range(4)):
        channels, size = 64 << level, size * 2
        x = recorder.layer(f"up {level}", [x], (size, size, channels))
        x = recorder.layer(f"concatenate {level}", [skips[level], x], (size, size, 2 * channels))
        for convolution in range(2):
            x = recorder.layer(f"up {level}.{convolution}", [x], (size, size, channels))
    return recorder.lifetimes([recorder.layer("classes", [x], (size, size, 2))])


def read() -> dict[str, list[Lifetime]]:
    """The networks of the committed file."""
    values = json.loads(FILE.read_text())
    return {network: [Lifetime(str(index), *row) for index, row in enumerate(rows)] for network, rows in values.items()}


def main() -> int:
    """Write the file."""
    networks = {title: light_model(name) for name, title in LIGHT_MODELS.items()}
    networks |= {"MobileNetV2": mobilenet_v2(), "U-Net": u_net()}
    rows = {
        title: [[life.granules, life.first, life.last] for life in lives] for title, lives in sorted(networks.items())
    }
    text = ",\n".join(f" {json.dumps(title)}: {json.dumps(lives)}" for title, lives in rows.items())
    write_atomically(FILE, f"{{\n{text}\n}}\n".encode())
    for title, lives in rows.items():
        print(f"{title}: {len(lives)} tensors", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
