"""Whose rounding the requantization of a product has: LiteRT's, or ONNX Runtime's where that is proved."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.dtypes import ACTIVATION
from nnloom.arch.reference.onnx import factors

from ..ir import Graph, Node
from ..lower import accumulator_range
from ..onnx_rounding import Proof, prove
from .operator import Refusal

__all__ = ["NEAREST", "proof_of", "rounding_of", "take_nearest"]

NEAREST = "nearest"
"""Option of an operator: run it on the accelerator even if the rounding of some channels is not ONNX Runtime's"""


def rounding_of(
    node: Node, weights: NDArray[np.int8], bias: NDArray[np.int32], zero_point: int, limits: tuple[int, int]
) -> dict[str, Any]:
    """Fields of a layer that say how its sums are requantized; none if its scales say it, as LiteRT does.

    Parameters
    ----------
    weights
        [outputs, ...]
    zero_point
        Of the operand.
    limits
        Of the output.

    Raises
    ------
    Refusal
        If it is not proved for some channels, and the operator does not take the nearest.
    """
    if node.operation.rounding != "onnx":
        return {}
    low, high = accumulator_range(weights, bias, zero_point)
    q = node.operation.outputs[0].quantization
    assert q is not None
    scales = np.broadcast_to(factors(node.operation), (len(weights),))
    try:
        proof = prove(scales, low, high, (limits[0] - q.zero_point, limits[1] - q.zero_point))
    except ValueError as error:
        raise Refusal(str(error)) from error
    if proof.differences and not node.operation.options.get(NEAREST):
        raise Refusal(_unproved(proof))
    return {"requantization": proof.pairs, "double_rounding": False, "proof": proof}


def proof_of(graph: Graph, node: Node) -> Proof | None:
    """What is proved of the rounding of a product, wherever it runs; None if it is no product of ONNX Runtime's with
    constant int8 weights, or its factors are not the engine's."""
    op = node.operation
    if op.rounding != "onnx" or node.kind not in ("CONV_2D", "FULLY_CONNECTED") or op.outputs[0].dtype != ACTIVATION:
        return None
    source, out = op.inputs[0], op.outputs[0]
    weights = graph.constant(node.inputs[1])
    if weights is None or weights.dtype != np.int8 or not (source and source.quantization and out.quantization):
        return None
    bias = np.zeros(len(weights), np.int32)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        given = graph.constant(node.inputs[2])
        bias = bias if given is None else given
    low, high = accumulator_range(weights, bias, source.quantization.zero_point)
    least, greatest = op.options.get("limits", (-128, 127))
    zero = out.quantization.zero_point
    try:
        return prove(np.broadcast_to(factors(op), (len(weights),)), low, high, (least - zero, greatest - zero))
    except ValueError:
        return None


def _unproved(proof: Proof) -> str:
    first = proof.differences[0]
    return (
        f"no multiplier rounds as ONNX Runtime does in {len(proof.differences)} of {len(proof.pairs)} channels "
        f"(channel {first.channel}: sums like {first.first})"
    )


def take_nearest(graph: Graph) -> Graph:
    """The network with the option `NEAREST` at every operator that rounds as ONNX Runtime does."""

    def changed(node: Node) -> Node:
        if node.operation.rounding != "onnx":
            return node
        options = {**node.operation.options, NEAREST: True}
        return dataclasses.replace(node, operation=dataclasses.replace(node.operation, options=options))

    return graph.replace_nodes(map(changed, graph.nodes))
