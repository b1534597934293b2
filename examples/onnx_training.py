"""Training of small ONNX networks in NumPy: enough for examples that train before a user has chosen a framework.

    network = train(network, pictures, labels, epochs=10)

Operators: Conv (also depthwise), Relu, Add, Concat, GlobalAveragePool, Flatten, Gemm. Every output of the network gives
scores of classes; the loss is the mean of their cross entropies. The constants are trained where they are, so what
comes out is the same file with other numbers, and a pruned network can be trained on as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from threadpoolctl import threadpool_limits  # comes with scikit-learn

__all__ = ["Builder", "accuracy", "digits", "scores", "train"]

Values = dict[str, NDArray]


def digits() -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """scikit-learn's handwritten digits, 8 x 8: (pictures [n, 1, 8, 8] from 0 to 1, labels) to train on, and of every
    tenth to test on."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pictures = (data.images[:, None] / 16).astype(np.float32)
    tests = np.arange(len(pictures)) % 10 == 9
    return pictures[~tests], data.target[~tests], pictures[tests], data.target[tests]


class Builder:
    """Writes a network with random weights; operators give the name of what they make."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._nodes: list[Any] = []
        self._constants: Values = {}

    def conv(
        self, x: str, name: str, source: int, filters: int, *, size: int = 3, stride: int = 1, group: int = 1
    ) -> str:
        """A convolution with padding that keeps the size."""
        self._weights(name, (filters, source // group, size, size))
        return self._add(
            "Conv", name, x, f"{name}.weight", f"{name}.bias", kernel_shape=[size] * 2, pads=[size // 2] * 4,
            strides=[stride] * 2, group=group,
        )  # fmt: skip

    def head(self, x: str, name: str, source: int, classes: int) -> str:
        """The mean over rows and columns, and a score for each class."""
        self._weights(name, (classes, source))
        x = self.apply("Flatten", self.apply("GlobalAveragePool", x))
        return self._add("Gemm", name, x, f"{name}.weight", f"{name}.bias", transB=1)

    def dense(self, x: str, name: str, inputs: int, classes: int) -> str:
        """A score for each class from every pixel."""
        self._weights(name, (classes, inputs))
        return self._add("Gemm", name, self.apply("Flatten", x), f"{name}.weight", f"{name}.bias", transB=1)

    def apply(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """An operator without weights."""
        return self._add(kind, f"{kind.lower()}{len(self._nodes)}", *inputs, **attributes)

    def model(self, *outputs: str, classes: int = 10) -> onnx.ModelProto:
        """The network with one input `pictures` [1, 1, 8, 8]."""
        graph = helper.make_graph(
            self._nodes,
            "digits",
            [helper.make_tensor_value_info("pictures", TensorProto.FLOAT, [1, 1, 8, 8])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, classes]) for name in outputs],
            [numpy_helper.from_array(value, name) for name, value in self._constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

    def _weights(self, name: str, shape: tuple[int, ...]) -> None:
        scale = (2 / np.prod(shape[1:])) ** 0.5
        self._constants[f"{name}.weight"] = (self._rng.standard_normal(shape) * scale).astype(np.float32)
        self._constants[f"{name}.bias"] = np.zeros(shape[0], np.float32)

    def _add(self, kind: str, name: str, *inputs: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name


def _conv(x: NDArray, weights: NDArray, bias: NDArray, a: dict[str, Any]) -> tuple[NDArray, Callable]:
    """A convolution, and what gives the gradients of its operands for that of its result."""
    (pad, *_), (stride, _), group = a["pads"], a["strides"], a["group"]
    n, channels, rows, columns = x.shape
    filters, _, size, _ = weights.shape
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad))).transpose(1, 0, 2, 3)
    h, w = (rows + 2 * pad - size) // stride + 1, (columns + 2 * pad - size) // stride + 1
    places = [
        (i, j, slice(i, i + h * stride, stride), slice(j, j + w * stride, stride)) for i, j in np.ndindex(size, size)
    ]
    taps = np.empty((channels, size, size, n, h, w), np.float32)
    for i, j, down, across in places:
        taps[:, i, j] = padded[:, :, down, across]
    taps = taps.reshape(group, -1, n * h * w)
    matrix = weights.reshape(group, filters // group, -1)
    y = np.matmul(matrix, taps).reshape(filters, n, h, w) + bias[:, None, None, None]

    def backward(dy: NDArray) -> list[NDArray]:
        made = np.ascontiguousarray(dy.transpose(1, 0, 2, 3)).reshape(group, filters // group, -1)
        dweights = np.matmul(made, taps.transpose(0, 2, 1)).reshape(weights.shape)
        dtaps = np.matmul(matrix.transpose(0, 2, 1), made).reshape(channels, size, size, n, h, w)
        dx = np.zeros(padded.shape, np.float32)
        for i, j, down, across in places:
            dx[:, :, down, across] += dtaps[:, i, j]
        dx = dx[:, :, pad : pad + rows, pad : pad + columns].transpose(1, 0, 2, 3)
        return [dx, dweights, made.sum(axis=2).reshape(-1)]

    return y.transpose(1, 0, 2, 3), backward


def _evaluate(node: Any, operands: list[NDArray]) -> tuple[NDArray, Callable[[NDArray], list[NDArray]]]:
    a = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    x = operands[0]
    match node.op_type:
        case "Conv":
            return _conv(x, operands[1], operands[2], {"pads": [0] * 4, "strides": [1, 1], "group": 1, **a})
        case "Relu":
            return np.maximum(x, 0), lambda dy: [dy * (x > 0)]
        case "Add":
            return x + operands[1], lambda dy: [dy, dy]
        case "Concat":
            ends = np.cumsum([v.shape[1] for v in operands])[:-1]
            return np.concatenate(operands, 1), lambda dy: np.split(dy, ends, 1)
        case "GlobalAveragePool":
            size = x.shape[2] * x.shape[3]
            return x.mean((2, 3), keepdims=True), lambda dy: [np.broadcast_to(dy / size, x.shape)]
        case "Flatten":
            return x.reshape(len(x), -1), lambda dy: [dy.reshape(x.shape)]
        case "Gemm":
            weights = operands[1]
            return x @ weights.T + operands[2], lambda dy: [dy @ weights, dy.T @ x, dy.sum(axis=0)]
    raise ValueError(f"no training of {node.op_type}")


def _forward(model: onnx.ModelProto, constants: Mapping[str, NDArray], x: NDArray) -> tuple[Values, list[Any]]:
    values: Values = {**constants, model.graph.input[0].name: x}
    tape = []
    for node in model.graph.node:
        values[node.output[0]], backward = _evaluate(node, [values[name] for name in node.input])
        tape.append((node, backward))
    return values, tape


def _constants(model: onnx.ModelProto) -> Values:
    return {i.name: numpy_helper.to_array(i).copy() for i in model.graph.initializer}


def scores(model: onnx.ModelProto, pictures: NDArray) -> dict[str, NDArray]:
    """Each output [n, classes] of a network of float numbers."""
    values, _ = _forward(model, _constants(model), pictures)
    return {o.name: values[o.name] for o in model.graph.output}


def accuracy(values: NDArray, labels: NDArray) -> float:
    """Share of right classes."""
    return float((values.reshape(len(labels), -1).argmax(axis=1) == labels).mean())


@threadpool_limits.wrap(limits=1)  # for matrices this small, threads wait for each other most of the time
def train(
    model: onnx.ModelProto, pictures: NDArray, labels: NDArray, *, epochs: int, rate: float = 2e-3, seed: int = 0
) -> onnx.ModelProto:
    """The network, trained by Adam with a rate that falls to zero."""
    rng = np.random.default_rng(seed)
    constants = _constants(model)
    moments = {name: (np.zeros_like(v), np.zeros_like(v)) for name, v in constants.items()}
    batch, step = 32, 0
    steps = epochs * -(-len(pictures) // batch)
    outputs = [o.name for o in model.graph.output]
    for _ in range(epochs):
        order = rng.permutation(len(pictures))
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            values, tape = _forward(model, constants, pictures[chosen])
            gradients: Values = {}
            for name in outputs:
                odds = np.exp(values[name] - values[name].max(axis=1, keepdims=True))
                odds /= odds.sum(axis=1, keepdims=True)
                odds[np.arange(len(chosen)), labels[chosen]] -= 1
                gradients[name] = (odds / len(chosen) / len(outputs)).astype(np.float32)
            for node, backward in reversed(tape):
                if node.output[0] in gradients:
                    for name, value in zip(node.input, backward(gradients[node.output[0]]), strict=True):
                        gradients[name] = gradients[name] + value if name in gradients else value
            step += 1
            now = rate * (1 - step / steps)
            for name, value in constants.items():
                first, second = moments[name]
                first += 0.1 * (gradients[name] - first)
                second += 0.001 * (gradients[name] ** 2 - second)
                value -= now * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    trained = onnx.ModelProto()
    trained.CopyFrom(model)
    for item in trained.graph.initializer:
        item.CopyFrom(numpy_helper.from_array(constants[item.name].astype(np.float32), item.name))
    return trained
