"""SPACE_TO_DEPTH on the accelerator: a convolution whose kernel is the block, each output one of its values."""

from __future__ import annotations

import numpy as np

from nnloom.arch.dtypes import ACTIVATION

from ..copies import selection_layer
from ..graph import Layer
from ..ir import Graph, Node
from .operator import Operands, Operator, Refusal, natural_layout, output_tensor, unchanged_types

__all__ = ["SPACE_TO_DEPTH"]


def _space_to_depth(graph: Graph, node: Node, operands: Operands) -> Layer:
    source_type, out = unchanged_types(node)
    if len(source_type.shape) != 4 or source_type.shape[0] != 1:
        raise Refusal(
            f"operand of shape {source_type.shape}; the accelerator takes one image [1, rows, columns, channels]"
        )
    assert node.inputs[0] is not None
    source = operands.tensor(node.inputs[0], natural_layout(source_type.shape))
    output = output_tensor(graph, node, natural_layout(out.shape))
    block = int(node.operation.options["block_size"])
    window = (block, block)
    return selection_layer(node.name, source, output, np.arange(output.channels), strides=window, window=window)


SPACE_TO_DEPTH = Operator(layer=_space_to_depth, follows=True, takes=ACTIVATION)
