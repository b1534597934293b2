"""Sums, products and means of two tensors as ONNX Runtime rounds them, with multipliers that are proved.

Their operands are 8-bit values, so that every case there is can be tried: 65,536 pairs, or the sums of a window.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.numerics import ADD_LEFT_SHIFT, quantize_multiplier, requantize
from nnloom.arch.operation import Operation, TensorType
from nnloom.arch.reference import evaluate

from ..graph import Add, Mul, Requantization, WindowSum
from ..ir import Node
from ..lower import add_operands
from ..onnx_rounding import Difference, Proof, prove_answers
from .operator import Refusal
from .rounding import NEAREST

__all__ = ["proved_mean", "proved_product", "proved_sum"]

VALUES = np.arange(-128, 128)
_NUDGES = (0, *(sign << bit for bit in range(12) for sign in (1, -1)))
"""Changes of a multiplier that are tried"""


def _answers(operation: Operation) -> NDArray[np.int64]:
    """What an operator answers for every pair [256 of the first, 256 of the second]."""
    first, second = (v.reshape(-1).astype(np.int8) for v in np.meshgrid(VALUES, VALUES, indexing="ij"))
    types = []
    for t in (*operation.inputs, operation.outputs[0]):
        assert t is not None
        types.append(TensorType(first.shape, t.dtype, t.quantization))
    flat = dataclasses.replace(operation, inputs=tuple(types[:2]), outputs=(types[2],))
    return evaluate(flat, [first, second])[0].astype(np.int64).reshape(256, 256)


def proved_product(node: Node, layer: Mul) -> Mul:
    """The product with a multiplier that rounds as ONNX Runtime does.

    Raises
    ------
    Refusal
        If there is none.
    """
    a, b = layer.inputs
    products = (VALUES[:, None] - a.zero_point) * (VALUES - b.zero_point)
    sums, answers = _by_sum(products, np.clip(_answers(node.operation), layer.act_min, layer.act_max))
    factor = float(np.float32(a.scale) * np.float32(b.scale) / np.float32(layer.output.scale))
    limits = layer.act_min, layer.act_max
    proof = _proof(node, sums, answers, factor, layer.output.zero_point, limits)
    return dataclasses.replace(layer, requantization=proof.pairs, double_rounding=False, proof=proof)


def _by_sum(sums: NDArray[np.int64], answers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The sums that there can be, ascending, and the answer of each."""
    unique, first = np.unique(sums, return_index=True)
    values = answers.reshape(-1)[first]
    if (answers.reshape(-1) != values[np.searchsorted(unique, sums.reshape(-1))]).any():
        raise Refusal("it is no function of the product")
    return unique, values


def _proof(
    node: Node,
    sums: NDArray[np.int64],
    answers: NDArray[np.int64],
    factor: float,
    zero_point: int,
    limits: tuple[int, int],
) -> Proof:
    """A multiplier for the sums that there can be, or the nearest if the operator takes that."""
    try:
        found = prove_answers(sums, answers - zero_point, factor, (limits[0] - zero_point, limits[1] - zero_point))
        if found is not None:
            return Proof((found,), 0, ())
        if not node.operation.options.get(NEAREST):
            raise Refusal("no multiplier rounds as ONNX Runtime does")
        nearest = quantize_multiplier(factor)
    except ValueError as error:
        raise Refusal(str(error)) from error
    own = np.clip(requantize(sums, *nearest, double_rounding=False) + zero_point, *limits)
    apart = np.flatnonzero(own != answers)
    return Proof((nearest,), 0, (Difference(0, len(apart), int(sums[apart[0]])),))


def proved_mean(node: Node, layer: WindowSum) -> WindowSum:
    """The mean of a window with a multiplier that rounds as ONNX Runtime does; raises as `proved_product`."""
    source, out = layer.inputs[0], layer.output
    count = layer.window[0] * layer.window[1]
    sums = np.arange(-128 * count, 127 * count + 1) - count * source.zero_point
    factor = np.float32(source.scale) / (np.float32(out.scale) * np.float32(count))
    rounded = np.rint(sums.astype(np.float32) * factor).astype(np.int64) + out.zero_point
    answers = np.clip(rounded, layer.act_min, layer.act_max)
    proof = _proof(node, sums, answers, float(factor), out.zero_point, (layer.act_min, layer.act_max))
    ((multiplier, shift),) = proof.pairs
    return dataclasses.replace(layer, weight=1, multiplier=multiplier, shift=shift, double_rounding=False, proof=proof)


def proved_sum(node: Node, layer: Add) -> Add:
    """The sum with multipliers that round as ONNX Runtime does; raises as `proved_product`."""
    x, y = add_operands(layer)
    twice = 2 * max(float(t.scale) for t in layer.inputs)
    try:
        pairs = (
            quantize_multiplier(layer.inputs[y].scale / twice),
            quantize_multiplier(twice / ((1 << ADD_LEFT_SHIFT) * float(layer.output.scale))),
        )
    except ValueError as error:
        raise Refusal(str(error)) from error
    answers = np.clip(_answers(node.operation), layer.act_min, layer.act_max)
    points = layer.inputs[x].zero_point, layer.inputs[y].zero_point
    by_operand = answers if x == 0 else answers.T
    found = _search(by_operand.tobytes(), points, pairs, layer.output.zero_point, (layer.act_min, layer.act_max))
    if found is not None:
        return dataclasses.replace(layer, requantization=found, proof=Proof((found[1],), 0, ()))
    if not node.operation.options.get(NEAREST):
        raise Refusal("no multipliers round as ONNX Runtime does for every pair of values")
    own = _engine_sums(points, pairs, layer.output.zero_point, (layer.act_min, layer.act_max))
    apart = np.flatnonzero(own != by_operand)
    difference = Difference(0, len(apart), int(apart[0]))
    return dataclasses.replace(layer, requantization=pairs, proof=Proof((pairs[1],), 0, (difference,)))


@lru_cache(maxsize=1 << 10)
def _search(
    data: bytes,
    points: tuple[int, int],
    pairs: tuple[tuple[int, int], tuple[int, int]],
    zero_point: int,
    limits: tuple[int, int],
) -> Requantization | None:
    """Multipliers of operand Y and of the sum that give every answer [256 of X, 256 of Y]; kept, as others are."""
    answers = np.frombuffer(data, np.int64).reshape(256, 256)
    for candidate in _candidates(pairs):
        if np.array_equal(_engine_sums(points, candidate, zero_point, limits), answers):
            return candidate
    return None


def _engine_sums(
    points: tuple[int, int],
    pairs: tuple[tuple[int, int], tuple[int, int]],
    zero_point: int,
    limits: tuple[int, int],
) -> NDArray[np.int64]:
    """What the engine answers [256 of X, 256 of Y]."""
    x = (VALUES - points[0])[:, None] << (ADD_LEFT_SHIFT - 1)
    y = requantize((VALUES - points[1]) << ADD_LEFT_SHIFT, *pairs[0], double_rounding=True)
    return np.clip(requantize(x + y, *pairs[1], double_rounding=True) + zero_point, *limits)


def _candidates(
    pairs: tuple[tuple[int, int], tuple[int, int]],
) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    (y, y_shift), (total, shift) = pairs
    for nudge in _NUDGES:
        if 0 < total + nudge < 1 << 31:
            yield (y, y_shift), (total + nudge, shift)
    for nudge in _NUDGES[1:]:
        if 0 < y + nudge < 1 << 31:
            yield (y + nudge, y_shift), (total, shift)
