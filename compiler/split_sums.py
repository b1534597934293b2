"""Additions of tensors whose rows are no multiple of the banks: the rows that are, and the few that are left.

An addition sees the rows of a bank as one long row (`lower.long_rows`). One row more in some banks makes the long rows
of all of them longer, which may take a further batch in each; as a layer of its own it takes one.
"""

from __future__ import annotations

import dataclasses

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.loopnest import ADD_BATCH

from .graph import Add, Layer, LayerGraph
from .lower import long_rows

__all__ = ["with_split_sums"]


def with_split_sums(config: AcceleratorConfig, graph: LayerGraph) -> LayerGraph:
    """The region with additions in two layers where these take fewer batches."""
    layers = [part for layer in graph.layers for part in _split(config, layer)]
    return dataclasses.replace(graph, layers=tuple(layers)) if len(layers) > len(graph.layers) else graph


def _split(config: AcceleratorConfig, layer: Layer) -> tuple[Layer, ...]:
    output = layer.output
    left = output.rows % config.row_banks
    even = output.rows - left
    tensors = (*layer.inputs, output)
    if not isinstance(layer, Add) or not left or not even or any(t.whole for t in tensors):
        return (layer,)
    if _batches(config, layer, even) + _batches(config, layer, left) >= _batches(config, layer, output.rows):
        return (layer,)

    def some(first: int, rows: int) -> Layer:
        size = rows, output.columns, output.channels
        parts = [t.part((first, 0, 0), size) for t in tensors]
        return dataclasses.replace(layer, inputs=tuple(parts[:-1]), output=parts[-1])

    return some(0, even), some(even, left)


def _batches(config: AcceleratorConfig, layer: Add, rows: int) -> int:
    """At best: where banks that have a row less may be added up as if they had not."""
    granules = -(-layer.output.channels // config.granule)
    count, size = long_rows(config, rows, layer.output.columns * granules * config.granule, ADD_BATCH)
    return count * -(-size // (ADD_BATCH * config.lanes))
