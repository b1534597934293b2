"""Networks that exceed the chip, with the topologies that people use and random weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .tflite_models import ModelWriter

__all__ = [
    "LARGE_TOPOLOGIES",
    "TOPOLOGIES",
    "DeepWriter",
    "larger_resnet",
    "mobilenet_v2",
    "resnet_18",
    "resnet_50",
    "vgg_16",
    "write_topology",
]


class DeepWriter(ModelWriter):
    """A writer whose scales stay about the same however deep a network is."""

    averages = True
    """Fully connected layers read averages over an image, which differ little."""
    gain = 1.0
    """By which values become larger from layer to layer: without sums, RELU would let them vanish."""

    def _product(self, x: int, shape: tuple[int, ...], axis: int, depth: int, output_shape: tuple[int, ...]):
        tensors = weights, bias, output = super()._product(x, shape, axis, depth, output_shape)
        for index in (weights, bias, output):
            q = self.tensors[index].quantization
            q.scale = (q.scale / np.float32(0.8 * math.sqrt(depth))).astype(np.float32)
        for index in (weights, bias):
            factors = self.tensors[index].quantization
            factors.scale = (factors.scale * np.float32(self.gain)).astype(np.float32)
        if len(output_shape) == 2 and self.averages:
            q.scale = (q.scale / np.float32(16)).astype(np.float32)
        return tensors


def larger_resnet(m: ModelWriter, filters: int = 40) -> list[int]:
    """MLPerf Tiny's newer image classification: ResNet-8 with 40 filters at first, 76.5 M multiply-accumulates."""
    x = m.conv(m.input((1, 32, 32, 3)), filters)
    x = m.add(x, m.conv(m.conv(x, filters), filters, activation=None), "relu")
    for more in (2, 4):
        y = m.conv(m.conv(x, more * filters, strides=(2, 2)), more * filters, activation=None)
        x = m.add(m.conv(x, more * filters, (1, 1), (2, 2), activation=None), y, "relu")
    x = m.reshape(m.pool(x, "AVERAGE", (8, 8), (8, 8)), (1, 4 * filters))
    logits = m.dense(x, 10)
    return [logits, m.softmax(logits)]


def _channels(alpha: float, channels: int) -> int:
    """`channels` times alpha, as MobileNetV2 rounds: to a multiple of 8, and down by a tenth at most."""
    wanted = alpha * channels
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def mobilenet_v2(m: ModelWriter, alpha: float, size: int, classes: int = 1000) -> list[int]:
    """MobileNetV2 (Sandler and others, 2018)."""
    x = m.conv(m.input((1, size, size, 3)), _channels(alpha, 32), (3, 3), (2, 2), activation="relu6")
    blocks = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, channels, count, stride in blocks:
        for index in range(count):
            inner = x if expansion == 1 else m.conv(x, expansion * m.shape(x)[3], (1, 1), activation="relu6")
            strides = (stride, stride) if index == 0 else (1, 1)
            inner = m.depthwise(inner, (3, 3), strides, activation="relu6")
            y = m.conv(inner, _channels(alpha, channels), (1, 1), activation=None)
            x = m.add(x, y) if m.shape(x) == m.shape(y) else y
    x = m.conv(x, max(1280, _channels(alpha, 1280)), (1, 1), activation="relu6")
    _, rows, columns, channels = m.shape(x)
    x = m.reshape(m.pool(x, "AVERAGE", (rows, columns), (1, 1), padding="VALID"), (1, channels))
    logits = m.dense(x, classes)
    return [logits, m.softmax(logits)]


def resnet_18(m: ModelWriter, size: int = 224, classes: int = 1000) -> list[int]:
    """ResNet-18 (He and others, 2015)."""
    x = m.conv(m.input((1, size, size, 3)), 64, (7, 7), (2, 2))
    x = m.pool(x, "MAX", (3, 3), (2, 2), padding="SAME")
    for channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for index in range(2):
            strides = (stride, stride) if index == 0 else (1, 1)
            y = m.conv(m.conv(x, channels, (3, 3), strides), channels, (3, 3), activation=None)
            if m.shape(x) != m.shape(y):
                x = m.conv(x, channels, (1, 1), strides, activation=None)
            x = m.add(x, y, "relu")
    _, rows, columns, channels = m.shape(x)
    x = m.reshape(m.pool(x, "AVERAGE", (rows, columns), (1, 1), padding="VALID"), (1, channels))
    logits = m.dense(x, classes)
    return [logits, m.softmax(logits)]


def resnet_50(m: ModelWriter, size: int = 224, classes: int = 1000, width: int = 64) -> list[int]:
    """ResNet-50 (He and others, 2015), as people train it: the 3x3 convolution of a block has the stride."""
    x = m.conv(m.input((1, size, size, 3)), width, (7, 7), (2, 2))
    x = m.pool(x, "MAX", (3, 3), (2, 2), padding="SAME")
    for channels, blocks, stride in ((width, 3, 1), (2 * width, 4, 2), (4 * width, 6, 2), (8 * width, 3, 2)):
        for index in range(blocks):
            strides = (stride, stride) if index == 0 else (1, 1)
            y = m.conv(m.conv(x, channels, (1, 1)), channels, (3, 3), strides)
            y = m.conv(y, 4 * channels, (1, 1), activation=None)
            if index == 0:
                x = m.conv(x, 4 * channels, (1, 1), strides, activation=None)
            x = m.add(x, y, "relu")
    _, rows, columns, channels = m.shape(x)
    x = m.reshape(m.pool(x, "AVERAGE", (rows, columns), (1, 1), padding="VALID"), (1, channels))
    logits = m.dense(x, classes)
    return [logits, m.softmax(logits)]


def vgg_16(m: ModelWriter, size: int = 224, classes: int = 1000, width: int = 64, hidden: int = 4096) -> list[int]:
    """VGG16 (Simonyan and Zisserman, 2014), configuration D."""
    x = m.input((1, size, size, 3))
    for channels, count in ((width, 2), (2 * width, 2), (4 * width, 3), (8 * width, 3), (8 * width, 3)):
        for _ in range(count):
            x = m.conv(x, channels)
        x = m.pool(x, "MAX", (2, 2), (2, 2))
    x = m.reshape(x, (1, math.prod(m.shape(x))))
    logits = m.dense(m.dense(m.dense(x, hidden, "relu"), hidden, "relu"), classes)
    return [logits, m.softmax(logits)]


TOPOLOGIES: dict[str, Callable[[ModelWriter], list[int]]] = {
    "larger image classification": larger_resnet,
    "MobileNetV2-0.35-160": lambda m: mobilenet_v2(m, 0.35, 160),
    "MobileNetV2-1.0-224": lambda m: mobilenet_v2(m, 1.0, 224),
    "ResNet-18-224": resnet_18,
}
"""By name: what a network's outputs are, before the softmax and behind it."""

LARGE_TOPOLOGIES: dict[str, Callable[[ModelWriter], list[int]]] = {"ResNet-50-224": resnet_50, "VGG16-224": vgg_16}
"""As `TOPOLOGIES`: for boards with more memory than the ULX3S."""


def write_topology(name: str, folder: Path) -> Path:
    """The TFLite file of one of `TOPOLOGIES` or `LARGE_TOPOLOGIES`, int8 with random weights."""
    m = DeepWriter(1)
    if "VGG" in name:
        m.averages, m.gain = False, 2.0
    file = folder / f"{name.replace(' ', '_')}.tflite"
    file.write_bytes(m.finish(*(TOPOLOGIES | LARGE_TOPOLOGIES)[name](m)))
    return file
