"""Which operators go to the accelerator, and how they arrive there."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from nnloom import boards
from nnloom.compiler.frontend import read_model
from nnloom.compiler.graph import Add, AveragePool2D, Conv2D, DepthwiseConv2D, FullyConnected, MaxPool2D, Padding
from nnloom.compiler.partition import partition
from tests.compiler.networks import NETWORKS
from tests.tflite_models import ModelWriter

CONFIG = boards.get("ulx3s-85f").config

LAYERS = {
    "keyword_spotting": (1 * [Conv2D] + 4 * [DepthwiseConv2D, Conv2D] + [AveragePool2D, FullyConnected]),
    "image_classification": (
        3 * [Conv2D] + [Add, Conv2D, Conv2D, Conv2D, Add, Conv2D, Conv2D, Conv2D, Add] + [AveragePool2D, FullyConnected]
    ),
    "visual_wake_words": ([Conv2D] + 13 * [DepthwiseConv2D, Conv2D] + [AveragePool2D, FullyConnected]),
    "anomaly_detection": 10 * [FullyConnected],
    # A depthwise convolution of one channel is a convolution.
    "tflite_micro_speech": [Conv2D, FullyConnected],
}
MACS = {
    "keyword_spotting": 2_656_768,
    "image_classification": 12_501_632,
    "visual_wake_words": 7_489_664,
    "anomaly_detection": 264_192,
    "tflite_micro_speech": 336_000,
}


def split(tmp_path, build, config=CONFIG, seed=0):
    m = ModelWriter(seed)
    path = tmp_path / "model.tflite"
    path.write_bytes(m.finish(*build(m)))
    return m, partition(read_model(path), config)


@pytest.mark.model
@pytest.mark.parametrize("name", LAYERS)
def test_zoo_networks_are_one_region(name, model_path):
    model = read_model(model_path(name))
    partitioned = partition(model, CONFIG)
    (graph,) = partitioned.graphs
    assert [type(layer) for layer in graph.layers] == LAYERS[name]
    assert graph.macs == MACS[name]
    names = [t.name for t in graph.inputs] + [layer.output.name for layer in graph.layers]
    assert len(set(names)) == len(names)
    # Every layer's tensor is one of the file, by name, with the same quantization.
    file = schema.ModelT.InitFromPackedBuf(model_path(name).read_bytes(), 0).subgraphs[0].tensors
    edges = {*model.inputs, *model.outputs}
    made = [(i, file[i]) for node in model.nodes for i in node.outputs]
    by_name = {t.name.decode() if i in edges else t.name.decode().split(";")[0]: t for i, t in made}
    for layer in graph.layers:
        tensor = by_name[layer.output.name]
        assert layer.output.shape == tuple(tensor.shape)
        assert layer.output.scale == float(tensor.quantization.scale[0])
        assert layer.output.zero_point == int(tensor.quantization.zeroPoint[0])
    assert {item.op for item in partitioned.cpu_operators} <= {"quantize", "dequantize", "softmax"}


def test_layer_holds_the_file_s_values(tmp_path):
    m, partitioned = split(tmp_path, lambda m: [m.conv(m.input((1, 9, 8, 3)), 4, (3, 2), (2, 3), "SAME", "relu")])
    ((layer,),) = [graph.layers for graph in partitioned.graphs]
    assert isinstance(layer, Conv2D)
    x, weights, bias, output = m.tensors
    stored = np.frombuffer(bytes(m._buffers[weights.buffer].data), np.int8).reshape(4, 3, 2, 3)
    np.testing.assert_array_equal(layer.weights, stored)
    np.testing.assert_array_equal(layer.weight_scales, weights.quantization.scale.astype(np.float64))
    np.testing.assert_array_equal(layer.bias, np.frombuffer(bytes(m._buffers[bias.buffer].data), np.int32))
    assert layer.strides == (2, 3)
    # SAME: 9 rows, stride 2, kernel 3 need 1 + 1; 8 columns, stride 3, kernel 2 need none.
    assert layer.padding == Padding(top=1, left=0, bottom=1, right=0)
    assert layer.act_min == layer.output.zero_point == int(output.quantization.zeroPoint[0])
    assert layer.act_max == 127
    assert layer.inputs[0].scale == float(x.quantization.scale[0])


def test_depthwise_weights(tmp_path):
    m, partitioned = split(tmp_path, lambda m: [m.depthwise(m.input((1, 5, 5, 6)), (3, 2))])
    layer = partitioned.graphs[0].layers[0]
    assert isinstance(layer, DepthwiseConv2D)
    stored = np.frombuffer(bytes(m._buffers[m.tensors[1].buffer].data), np.int8).reshape(3, 2, 6)
    np.testing.assert_array_equal(layer.weights, stored)


def test_fully_connected_keeps_the_tensor_of_its_producer(tmp_path):
    _, partitioned = split(tmp_path, NETWORKS["even_kernels"])
    (graph,) = partitioned.graphs
    *_, producer, dense = graph.layers
    assert isinstance(dense, FullyConnected)
    assert dense.inputs[0].name == producer.output.name
    assert producer.output.rows > 1


REFUSED = {
    "dilated_in_the_middle": ("conv_2d", "dilation (4, 4)"),
    "constant_second_operand": ("add", "one value, or one for each channel"),
    "factors_above_one": ("fully_connected", "factor must be below 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_operators_stay_on_the_cpu_with_a_reason(tmp_path, name):
    op, reason = REFUSED[name]
    _, partitioned = split(tmp_path, NETWORKS[name])
    found = [item for item in partitioned.cpu_operators if item.op == op]
    assert len(found) == 1
    assert reason in found[0].reason


def test_regions_around_a_cpu_operator(tmp_path):
    m, partitioned = split(tmp_path, NETWORKS["dilated_in_the_middle"])
    first, second = partitioned.graphs
    # The residual edge crosses: the first region's output is read by the CPU and by the second region.
    assert [type(layer) for layer in first.layers] == [Conv2D]
    assert [type(layer) for layer in second.layers] == [Add, DepthwiseConv2D, FullyConnected]
    assert first.outputs[0].name in {t.name for t in second.inputs}
    for tensor in (*second.inputs, *first.outputs):
        written = next(t for t in m.tensors if t.name == tensor.name)
        assert (tensor.scale, tensor.zero_point) == (
            float(written.quantization.scale[0]),
            int(written.quantization.zeroPoint[0]),
        )


@pytest.mark.parametrize(
    ("flag", "kind", "build"),
    [
        ("max_pool", MaxPool2D, lambda m: [m.conv(m.pool(m.input((1, 6, 6, 4)), "MAX", (2, 2), (2, 2)), 3)]),
        ("elementwise_add", Add, lambda m: [m.conv(m.add(m.input((1, 4, 4, 4)), m.input((1, 4, 4, 4))), 3)]),
    ],
)
def test_configuration_decides(tmp_path, flag, kind, build):
    _, partitioned = split(tmp_path, build)
    assert kind in [type(layer) for graph in partitioned.graphs for layer in graph.layers]
    _, partitioned = split(tmp_path, build, dataclasses.replace(CONFIG, **{flag: False}))
    assert kind not in [type(layer) for graph in partitioned.graphs for layer in graph.layers]
    assert any(f"{flag}=False" in item.reason for item in partitioned.cpu_operators)


def test_nothing_for_the_accelerator(tmp_path):
    _, partitioned = split(tmp_path, lambda m: [m.conv(m.input((1, 8, 8, 3)), 4, dilation=(8, 8))])
    assert not partitioned.graphs
    (item,) = partitioned.cpu_operators
    assert item.op == "conv_2d" and "dilation (8, 8)" in item.reason


def test_flattening_alone_is_no_region(tmp_path):
    _, partitioned = split(tmp_path, NETWORKS["pools"])
    assert all(graph.layers for graph in partitioned.graphs)
