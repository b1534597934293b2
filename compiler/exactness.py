"""Which operators the CPU can run, and which of them with the bits of the reference kernels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.dtypes import held_as
from nnloom.arch.errors import InputError, UnsupportedOperatorError
from nnloom.arch.reference import evaluate, is_exact

from .cpu.coverage import runs_in_library
from .ir import Graph, Node
from .onnx_rounding import Proof
from .partition import Partitioned

__all__ = ["Inexact", "check_exactness"]

MOST = 10
"""Operators that one message names"""

Inexact = dict[str, str]
"""Name of an operator -> why its bits may differ from the reference kernels'"""


def check_exactness(partitioned: Partitioned, *, strict: bool = False) -> Inexact:
    """Try every operator outside of the accelerator, and ask of all whether they are exact.

    Returns
    -------
    Operators that are not, with the reason: float code, and what LiteRT's reference kernel gets wrong itself.

    Raises
    ------
    UnsupportedOperatorError
        If nothing can run some of them, or, with `strict`, if some are float code; the message names all, up to 10.
    """
    graph = partitioned.graph
    refused: dict[str, str] = {}
    inexact: Inexact = {}
    for node in (node for stage in partitioned.stages for node in stage.nodes):
        reason = None if runs_in_library(graph, node) else _try(graph, node)
        if reason:
            refused[f"{node.kind} {node.name!r}"] = reason
    for node in graph.nodes:
        why = is_exact(node.operation)
        if why:
            inexact[node.name] = why
    for layer in (layer for layers in partitioned.graphs for layer in layers.layers):
        if layer.proof and layer.proof.differences:
            inexact[layer.name] = _apart(layer.proof)
    if refused:
        what = _listed(refused)
        raise UnsupportedOperatorError(
            f"{graph.name}: neither accelerator nor CPU can run {what}; leave them out of the model"
        )
    if strict and inexact:
        what = _listed(inexact)
        raise UnsupportedOperatorError(
            f"{graph.name}: not exact ({what}); compile without --strict, or quantize these operators"
        )
    return inexact


def _apart(proof: Proof) -> str:
    """What the accelerator rounds otherwise than ONNX Runtime."""
    worst = proof.differences[0]
    count = sum(d.accumulators for d in proof.differences)
    return (
        f"in {len(proof.differences)} of {len(proof.pairs)} channels the accelerator rounds {count} sums otherwise "
        f"than ONNX Runtime (channel {worst.channel}: {worst.first})"
    )


def _listed(reasons: dict[str, str]) -> str:
    """Names and reasons in one line, the first `MOST` of them."""
    first = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:MOST])
    return first + (f"; and {len(reasons) - MOST} more" if len(reasons) > MOST else "")


def _try(graph: Graph, node: Node) -> str | None:
    """Compute a node once on zeros: why the reference refuses it, or None."""
    operands: list[NDArray | None] = []
    for index in node.inputs:
        if index is None:
            operands.append(None)
            continue
        value = graph.values[index]
        dtype = held_as(value.type.dtype)
        operands.append(np.zeros(value.type.shape, dtype) if value.data is None else value.data)
    try:
        evaluate(node.operation, operands)
    except UnsupportedOperatorError as error:
        return str(error).removeprefix(f"{node.kind}: ")
    except InputError:
        return None  # it is not defined for zeros (division), but may be for what comes
    return None
