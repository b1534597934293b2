"""Depthwise kernels of one column: what the window holds of the output row before is used again.

A step loads three rows of one column into the window of three columns; the two loads before stay there. Where an output
has one column, these are the last loads of the output row above, moved by the stride: with them a kernel of 9 rows and
stride 2 takes two loads an output instead of three, one of 5 rows and stride 1 takes one instead of two. The first rows
of each channel group have nothing before them and are wrong; a second layer computes them again. Where no layer before
has filled the window, its first channel group runs before, too: what an inference writes does not depend on what came
before it.

With a stride of 1, rows that are three apart fit each other better: a kernel of 9 rows takes one load an output in each
of three passes over every third output row. Where memory is left, the first rows of a pass are spare ones above the
output, which nobody reads, so that nothing is computed again (`with_spare_rows`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.legality import MOST_ROW_STEP

from .carried_steps import CarriedSteps, carried_steps
from .graph import Add, Conv2D, DepthwiseConv2D, FullyConnected, Layer, LayerGraph, Mul, Tensor
from .lower import is_narrow

__all__ = ["with_carried_rows", "with_spare_rows"]

LAYER_CYCLES = 13
"""What a further layer costs at least, and `GROUP_CYCLES` each of its channel groups, besides its steps."""
GROUP_CYCLES = 3


def with_carried_rows(config: AcceleratorConfig, graph: LayerGraph) -> LayerGraph:
    """The region with such layers where they take fewer cycles, each with the layer that makes its first rows right."""
    layers: list[Layer] = []
    filled = False
    for layer in graph.layers:
        layers += _split(config, layer, filled)
        filled |= _fills(layer)
    return dataclasses.replace(graph, layers=tuple(layers))


def with_spare_rows(config: AcceleratorConfig, graph: LayerGraph) -> LayerGraph:
    """The region with passes over every so many rows where they take fewer cycles than anything else, for outputs that
    can have spare rows above them."""
    layers = list(graph.layers)
    filled = changed = False
    index = 0
    while index < len(layers):
        layer = layers[index]
        passes = _best_passes(config, layer) if filled and _may_have_spare_rows(graph, layer.output) else None
        filled |= _fills(layer)
        if passes is None:
            index += 1
            continue
        assert isinstance(layer, DepthwiseConv2D)
        output = layer.output
        spare = -(-passes.wrong_rows // config.row_banks) * config.row_banks
        rows = output.rows + spare
        whole = dataclasses.replace(output, rows=rows, shape=(1, rows, 1, output.channels))
        place = whole.part((spare, 0, 0), (output.rows, 1, output.channels), output.shape)
        layers[index:] = [_reading(later, place) for later in layers[index:]]
        made = [_one_pass(layer, whole, spare, passes, start) for start in range(passes.count)]
        layers[index : index + 1] = made
        index += len(made)
        changed = True
    return dataclasses.replace(graph, layers=tuple(layers)) if changed else graph


def _fills(layer: Layer) -> bool:
    """Whether the layer leaves nothing in the window of what was there before."""
    return not isinstance(layer, Conv2D | FullyConnected) and layer.output.rows * layer.output.columns > 1


def _may_have_spare_rows(graph: LayerGraph, tensor: Tensor) -> bool:
    """Whether it lies in the region only, is no part, nor has parts, and nobody needs it whole."""
    if any(t.name == tensor.name for t in (*graph.inputs, *graph.outputs)):
        return False
    users = [layer for layer in graph.layers if any(t.name == tensor.name for t in (*layer.inputs, layer.output))]
    whole = not any(t.whole for layer in users for t in (*layer.inputs, layer.output) if t.name == tensor.name)
    return whole and not any(isinstance(layer, Add | Mul) for layer in users)


@dataclass(frozen=True)
class _Passes:
    """A layer as passes over every `count`th of its output rows, each with spare rows before them."""

    count: int
    steps: CarriedSteps

    @property
    def wrong_rows(self) -> int:
        """Rows above the first one that the passes write."""
        return self.count * self.steps.wrong


def _is_column(config: AcceleratorConfig, layer: Layer) -> bool:
    return (
        isinstance(layer, DepthwiseConv2D)
        and config.window_columns > 1
        and (layer.output.columns, layer.weights.shape[1]) == (1, 1)
        and layer.weights.itemsize == 1
        and not layer.output.whole
    )


def _best_passes(config: AcceleratorConfig, layer: Layer) -> _Passes | None:
    """The fastest, if any is faster than the layer, with rows that are computed again where that is."""
    if not _is_column(config, layer):
        return None
    assert isinstance(layer, DepthwiseConv2D)
    groups, interval, plain = _costs(config, layer)

    def cycles(layers: int, loads: int, rows: int) -> int:
        return layers * LAYER_CYCLES + groups * (layers * GROUP_CYCLES + rows * max(loads, interval))

    rows = layer.output.rows
    known = cycles(1, plain, rows)
    again = _steps(config, layer, 1)
    if again is not None:
        known = min(known, cycles(2, again.loads, rows) + groups * again.wrong * plain)
    found = []
    for count in range(1, min(MOST_ROW_STEP, rows) + 1):
        steps = _steps(config, layer, count)
        if steps is not None:
            passes = _Passes(count, steps)
            found.append((cycles(count, steps.loads, rows + passes.wrong_rows), count, passes))
    best = min(found, default=None, key=lambda item: item[:2])
    return best[2] if best and best[0] < known else None


def _costs(config: AcceleratorConfig, layer: DepthwiseConv2D) -> tuple[int, int, int]:
    """Channel groups, fewest cycles from result to result, and cycles of a result that carries nothing."""
    interval = config.requant_slots * (1 if is_narrow(layer) else 2)
    kernel_rows, _, channels = layer.weights.shape
    return -(-channels // config.lanes), interval, max(-(-kernel_rows // config.window_rows), interval)


def _steps(config: AcceleratorConfig, layer: DepthwiseConv2D, count: int) -> CarriedSteps | None:
    """Of every `count`th output row."""
    return carried_steps(layer.weights.shape[0], layer.strides[0] * count, config.window_rows, config.window_columns)


def _one_pass(layer: DepthwiseConv2D, whole: Tensor, spare: int, passes: _Passes, start: int) -> DepthwiseConv2D:
    """The rows from `start` on of a layer, and `wrong` before them."""
    wrong, stride = passes.steps.wrong, layer.strides[0]
    rows = len(range(start, whole.rows - spare, passes.count)) + wrong
    first = start - passes.wrong_rows
    return dataclasses.replace(
        layer,
        output=whole.part((spare + first, 0, 0), (rows, 1, whole.channels), row_step=passes.count),
        strides=(stride * passes.count, layer.strides[1]),
        padding=dataclasses.replace(layer.padding, top=layer.padding.top - first * stride),
        carried=wrong,
    )


def _reading(layer: Layer, place: Tensor) -> Layer:
    """The layer with operands of that name at the place."""
    inputs = tuple(
        dataclasses.replace(place, shape=t.shape, scale=t.scale, zero_point=t.zero_point) if t.name == place.name else t
        for t in layer.inputs
    )
    return dataclasses.replace(layer, inputs=inputs)


def _split(config: AcceleratorConfig, layer: Layer, filled: bool) -> tuple[Layer, ...]:
    if not _is_column(config, layer):
        return (layer,)
    assert isinstance(layer, DepthwiseConv2D)
    channels, output = layer.weights.shape[2], layer.output
    steps = _steps(config, layer, 1)
    if steps is None or steps.wrong >= output.rows:
        return (layer,)
    groups, interval, plain = _costs(config, layer)
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
