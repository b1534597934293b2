"""Depthwise kernels of one column: what the window holds of the output row before is used again.

A step loads three rows of one column into the window of three columns; the two loads before stay there. Where an output
has one column, these are the last loads of the output row above, moved by the stride: with them a kernel of 9 rows and
stride 2 takes two loads an output instead of three, one of 5 rows and stride 1 takes one instead of two. The first rows
of each channel group have nothing before them and are wrong; a second layer computes them again. Where no layer before
has filled the window, its first channel group runs before, too: what an inference writes does not depend on what came
before it.
"""

from __future__ import annotations

import dataclasses

from nnloom.arch.config import AcceleratorConfig

from .carried_steps import carried_steps
from .graph import Conv2D, DepthwiseConv2D, FullyConnected, Layer, LayerGraph
from .lower import is_narrow

__all__ = ["with_carried_rows"]

LAYER_CYCLES = 13
"""What a further layer costs at least, and `GROUP_CYCLES` each of its channel groups, besides its steps."""
GROUP_CYCLES = 3


def with_carried_rows(config: AcceleratorConfig, graph: LayerGraph) -> LayerGraph:
    """The region with such layers where they take fewer cycles, each with the layer that makes its first rows right."""
    layers: list[Layer] = []
    filled = False
    """the window, by a layer before"""
    for layer in graph.layers:
        layers += _split(config, layer, filled)
        filled |= not isinstance(layer, Conv2D | FullyConnected) and layer.output.rows * layer.output.columns > 1
    return dataclasses.replace(graph, layers=tuple(layers))


def _split(config: AcceleratorConfig, layer: Layer, filled: bool) -> tuple[Layer, ...]:
    if not isinstance(layer, DepthwiseConv2D) or config.window_columns == 1:
        return (layer,)
    kernel_rows, kernel_columns, channels = layer.weights.shape
    output = layer.output
    if (output.columns, kernel_columns) != (1, 1) or output.whole:
        return (layer,)
    steps = carried_steps(kernel_rows, layer.strides[0], config.window_rows, config.window_columns)
    if steps is None or steps.wrong >= output.rows:
        return (layer,)
    interval = config.requant_slots * (1 if is_narrow(layer) else 2)
    plain = max(-(-kernel_rows // config.window_rows), interval)
    groups = -(-channels // config.lanes)
    saved = groups * output.rows * (plain - max(steps.loads, interval))
    group = steps.wrong * plain + GROUP_CYCLES
    further = LAYER_CYCLES + groups * group + (0 if filled else LAYER_CYCLES + group)
    if saved <= further:
        return (layer,)
    main = dataclasses.replace(layer, carried=steps.wrong)
    first = dataclasses.replace(layer, output=output.part((0, 0, 0), (steps.wrong, 1, channels)))
    return (main, first) if filled else (_first_group(config, first), main, first)


def _first_group(config: AcceleratorConfig, layer: DepthwiseConv2D) -> DepthwiseConv2D:
    """The layer for its first `lanes` channels."""
    count = min(config.lanes, layer.output.channels)
    (source,), output = layer.inputs, layer.output
    return dataclasses.replace(
        layer,
        inputs=(source.part((0, 0, 0), (source.rows, source.columns, count)),),
        output=output.part((0, 0, 0), (output.rows, output.columns, count)),
        weights=layer.weights[:, :, :count],
        weight_scales=layer.weight_scales[:count],
        bias=layer.bias[:count],
        requantization=layer.requantization and layer.requantization[:count],
    )
