"""Small networks, each with a feature that partitioning or the CPU route must get right.

Each takes a `ModelWriter` and returns the outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tests.tflite_models import ModelWriter


def dilated_in_the_middle(m: ModelWriter) -> list[int]:
    a = m.conv(m.input((1, 9, 7, 5)), 8)
    c = m.add(a, m.conv(a, 8, dilation=(4, 4)), "relu6")
    return [m.softmax(m.dense(m.depthwise(c, strides=(2, 2)), 6))]


def pools(m: ModelWriter) -> list[int]:
    a = m.pool(m.input((1, 12, 11, 6)), "MAX", (3, 3), (2, 2), "SAME")
    b = m.pool(a, "AVERAGE", (2, 3), (1, 1))
    c = m.pool(b, "AVERAGE", (3, 3), (1, 1), "SAME", "relu")
    e = m.pool(m.conv(c, 4, (1, 1), activation=None), "MAX", (2, 2), (2, 2), activation="relu6")
    return [m.reshape(e, (1, math.prod(m.shape(e))))]


def two_inputs_two_outputs(m: ModelWriter) -> list[int]:
    b = m.conv(m.add(m.input((1, 6, 6, 3)), m.input((1, 6, 6, 3))), 5, activation="relu6")
    return [b, m.conv(b, 5, strides=(2, 1), activation="relu_n1_to_1")]


def depth_multiplier(m: ModelWriter) -> list[int]:
    return [m.conv(m.depthwise(m.input((1, 8, 8, 4)), multiplier=2), 4, (1, 1))]


def depthwise_of_one_channel(m: ModelWriter) -> list[int]:
    return [m.conv(m.depthwise(m.input((1, 8, 8, 1)), multiplier=6), 4, (1, 1))]


def broadcast_add(m: ModelWriter) -> list[int]:
    a = m.conv(m.input((1, 8, 8, 4)), 4)
    return [m.conv(m.add(a, m.pool(a, "AVERAGE", (8, 8), (1, 1))), 3)]


def float_interface(m: ModelWriter) -> list[int]:
    x = m.quantize(m.input((1, 8, 8, 4), dtype="FLOAT32"), 0.05, 3)
    return [m.dequantize(m.conv(x, 4))]


def even_kernels(m: ModelWriter) -> list[int]:
    a = m.conv(m.input((1, 10, 9, 3)), 7, (4, 2), (2, 3), "VALID")
    b = m.depthwise(a, (2, 2), padding="VALID", activation=None)
    return [m.dense(m.reshape(b, (1, math.prod(m.shape(b)))), 5, "relu")]


def reshape_to_an_image(m: ModelWriter) -> list[int]:
    return [m.conv(m.reshape(m.dense(m.input((1, 24)), 48, "relu"), (1, 4, 4, 3)), 5)]


def flattened_input_is_an_output(m: ModelWriter) -> list[int]:
    f = m.reshape(m.input((1, 3, 4, 5)), (1, 60))
    return [f, m.dense(f, 7)]


def flattened_tensor_is_an_output(m: ModelWriter) -> list[int]:
    c = m.conv(m.input((1, 3, 4, 5)), 5)
    f = m.reshape(c, (1, 60))
    return [f, m.dense(f, 7), c]


def flattened_on_the_cpu(m: ModelWriter) -> list[int]:
    f = m.reshape(m.conv(m.input((1, 3, 4, 5)), 5, dilation=(4, 4)), (1, 60))
    return [m.softmax(f), m.dense(f, 7)]


def added_to_itself(m: ModelWriter) -> list[int]:
    x = m.input((1, 6, 6, 8))
    a = m.add(x, x, "relu")
    c = m.add(a, m.conv(a, 8))
    return [m.softmax(m.dense(m.pool(c, "AVERAGE", (6, 6), (1, 1)), 3))]


def constant_first_operand(m: ModelWriter) -> list[int]:
    constant = m.tensor((1, 1, 1, 8), scale=0.07, zero_point=5, data=m.rng.integers(-128, 128, (1, 1, 1, 8), np.int8))
    return [m.conv(m.add(constant, m.conv(m.input((1, 6, 6, 8)), 8)), 3)]


def constant_second_operand(m: ModelWriter) -> list[int]:
    constant = m.tensor((1, 6, 6, 8), scale=0.07, zero_point=5, data=m.rng.integers(-128, 128, (1, 6, 6, 8), np.int8))
    return [m.conv(m.add(m.conv(m.input((1, 6, 6, 8)), 8), constant), 3)]


def activations(m: ModelWriter) -> list[int]:
    a = m.conv(m.input((1, 6, 6, 8)), 8, activation="relu6")
    c = m.add(a, m.depthwise(a, activation="relu_n1_to_1"), "relu6")
    return [m.dense(m.pool(c, "AVERAGE", (2, 2), (2, 2), "VALID", "relu6"), 4, "relu6")]


def factors_above_one(m: ModelWriter) -> list[int]:
    """A left shift at requantization: not for the accelerator."""
    x = m.pool(m.input((1, 6, 6, 8), scale=0.1), "MAX", (2, 2), (1, 1))
    a = m.conv(x, 8, activation=None)
    weights, bias, output = (m.tensors[i].quantization for i in (a - 2, a - 1, a))
    weights.scale[0], bias.scale[0], output.scale[0] = 20.0, 2.0, 0.5
    d = m.dense(a, 3)
    m.tensors[d].quantization.scale = m.tensors[d - 2].quantization.scale * np.float32(0.35)
    return [d, a]


NETWORKS: dict[str, Callable[[ModelWriter], list[int]]] = {
    f.__name__: f
    for f in (
        dilated_in_the_middle,
        pools,
        two_inputs_two_outputs,
        depth_multiplier,
        depthwise_of_one_channel,
        broadcast_add,
        float_interface,
        even_kernels,
        reshape_to_an_image,
        flattened_input_is_an_output,
        flattened_tensor_is_an_output,
        flattened_on_the_cpu,
        added_to_itself,
        constant_first_operand,
        constant_second_operand,
        activations,
        factors_above_one,
    )
}


def random_network(m: ModelWriter) -> list[int]:
    """A chain of random operators with residual edges; some of them not for the accelerator."""
    rng = m.rng
    x = m.input((1, int(rng.integers(4, 12)), int(rng.integers(4, 12)), int(rng.integers(1, 9))))
    activations = [None, "relu", "relu6"]
    for _ in range(int(rng.integers(2, 7))):
        activation = activations[rng.integers(3)]
        rows, columns = m.shape(x)[1:3]
        kernel = (int(rng.integers(1, min(rows, 4) + 1)), int(rng.integers(1, min(columns, 4) + 1)))
        strides = (int(rng.integers(1, 3)), int(rng.integers(1, 3)))
        padding = ("SAME", "VALID")[rng.integers(2)]
        match int(rng.integers(6)):
            case 0:
                x = m.conv(x, int(rng.integers(1, 20)), kernel, strides, padding, activation)
            case 1:
                x = m.depthwise(x, kernel, strides, padding, activation)
            case 2:
                x = m.add(x, m.conv(x, m.shape(x)[3], kernel, activation=activation))
            case 3:
                x = m.pool(x, "MAX", kernel, strides, padding)
            case 4:
                x = m.pool(x, "AVERAGE", kernel, strides, padding, activation)
            case 5:
                x = m.conv(x, int(rng.integers(1, 9)), kernel, activation=activation, dilation=(1, 2))
    x = m.dense(x, int(rng.integers(1, 20)), activations[rng.integers(3)])
    return [m.softmax(x) if rng.integers(2) else x]
