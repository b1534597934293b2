"""Scales with which the accelerator rounds as ONNX Runtime does, proved, in every channel.

Where no multiplier of the accelerator reproduces a channel (`nnloom.compiler.onnx_rounding`), it is by accident of its
float32 factor: a product of some sum lies within half a float32 step of a tie. A scale that is a few units in the last
place away has another factor, and is as good. So the scales of weights are moved, channel by channel, and those of the
outputs of sums, products and means, until all are proved.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.dtypes import INT8, RECENTRED
from nnloom.arch.operation import Operation, Quantization, TensorType

from ..frontend.onnx.plan import plan_model
from ..graph import Add, Mul, Tensor, WindowSum
from ..ir import Node
from ..lower import accumulator_range
from ..onnx_rounding import prove
from ..ops.onnx_sums import proved_mean, proved_product, proved_sum
from ..ops.operator import Refusal
from .onnx_file import tensors

if TYPE_CHECKING:
    import onnx

__all__ = ["MovingScales", "Provability", "make_provable"]

STEPS = (*range(1, 65), *(1 << n for n in range(7, 14)))
"""How far a scale may be moved, up or down, in units in the last place: at most 0.1 % of it, and rarely above 1e-6"""
ROUND = 8
"""Distances that are tried at once"""
_PRODUCTS = {"QLinearConv": "Conv", "QGemm": "Gemm", "QLinearMatMul": "MatMul"}
_RESULTS = {
    "QLinearConv": 6, "QGemm": 7, "QLinearMatMul": 6, "QLinearAdd": 6, "QLinearMul": 6, "QLinearGlobalAveragePool": 3,
}  # fmt: skip
"""Where operators have the scale of their output"""
_BIASES = {"QLinearConv": 8, "QGemm": 6}
"""Where they have an int32 bias, which ONNX Runtime may have made of a real one"""
_SUMS = {"QLinearAdd": "Add", "QLinearMul": "Mul", "QLinearGlobalAveragePool": "GlobalAveragePool"}

Advance = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Provability:
    """How many channels of products, and how many sums, products and means of tensors, are proved."""

    channels: int = 0
    proved_before: int = 0
    proved: int = 0
    scales_moved: int = 0
    others: int = 0
    """sums, products and means of two tensors or over an image"""
    others_proved_before: int = 0
    others_proved: int = 0


def make_provable(
    path: Path, model: onnx.ModelProto, advance: Advance, *, move: bool = True
) -> tuple[onnx.ModelProto, Provability]:
    """A QDQ model with scales moved so that what the accelerator rounds is proved.

    Parameters
    ----------
    path
        For messages.
    move
        Without, nothing is changed, only counted.
    """
    import onnx

    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    if move:
        _fold_limits(changed)
    search = _Search(changed, plan_model(path, changed), move)
    search.run(advance)
    if not search.found.scales_moved:
        return changed, search.found
    # Counted again in what ONNX Runtime makes of the result: it may merge scales.
    after = _Search(changed, plan_model(path, changed), move=False)
    after.run(lambda done, total: None)
    found = dataclasses.replace(search.found, proved=after.found.proved, others_proved=after.found.others_proved)
    return changed, found


class MovingScales:
    """Moves the scales of networks that are quantized already; `found` is what that brought to the last one.

    Parameters
    ----------
    advance
        Called with how many operators were visited, of how many.
    """

    def __init__(self, advance: Advance | None = None) -> None:
        self.found = Provability()
        self._advance = advance or (lambda done, total: None)

    def __call__(self, path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
        changed, self.found = make_provable(path, model, self._advance)
        return changed


def _zero_point(value: NDArray) -> int | None:
    """Of a tensor of 8 bits, as the int8 that it is on the engine; None for other types."""
    shift = {np.dtype(np.int8): 0, np.dtype(np.uint8): RECENTRED}.get(value.dtype)
    return None if shift is None or value.size != 1 else int(value.item()) - shift


def _fold_limits(model: onnx.ModelProto) -> None:
    """Make a Clip of integer constants, as Brevitas writes weights of a narrow range, the constant that it is."""
    from onnx import numpy_helper

    constants = tensors(model)
    for node in list(model.graph.node):
        operands = [constants[name] for name in node.input if name in constants]
        if node.op_type != "Clip" or len(operands) != 3 or any(v.dtype.kind not in "iu" for v in operands):
            continue
        limited = np.clip(operands[0], operands[1], operands[2])
        constants[node.output[0]] = limited
        model.graph.initializer.append(numpy_helper.from_array(limited, node.output[0]))
        model.graph.node.remove(node)
    used = {name for node in model.graph.node for name in node.input} | {o.name for o in model.graph.output}
    for initializer in [i for i in model.graph.initializer if i.name not in used]:
        model.graph.initializer.remove(initializer)


def ulps(scale: NDArray[np.float32], steps: int | NDArray) -> NDArray[np.float32]:
    """Scales so many representable numbers away."""
    return (scale.view(np.int32) + np.int32(steps)).astype(np.int32).view(np.float32)


def _candidates() -> Iterator[list[int]]:
    for first in range(0, len(STEPS), ROUND):
        yield [sign * step for step in STEPS[first : first + ROUND] for sign in (1, -1)]


class _Search:
    """A QDQ model whose scales are moved from the first operator to the last."""

    def __init__(self, model: Any, planned: Any, move: bool) -> None:
        self._move = move
        self._model = model
        self.constants = tensors(model)
        self._makers = {o: n for n in model.graph.node for o in n.output}
        self._quantizers = {n.input[0]: n for n in model.graph.node if n.op_type == "QuantizeLinear"}
        self._nodes = {n.name: n for n in model.graph.node}
        kinds = {**_PRODUCTS, **_SUMS}
        self._planned = {
            n.name: n
            for n in planned.graph.node
            if n.op_type in kinds and n.name in self._nodes and self._nodes[n.name].op_type == kinds[n.op_type]
        }
        self._planned_constants = tensors(planned)
        self._original = dict(self.constants)
        self._shapes = {v.name: v for v in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
        self._first: dict[str, str] = {}
        """scale -> the first tensor that is quantized by it"""
        self._users: dict[str, int] = {}
        for node in model.graph.node:
            if node.op_type == "QuantizeLinear":
                self._first.setdefault(node.input[1], node.input[0])
            if node.op_type == "DequantizeLinear":
                self._users[node.input[1]] = self._users.get(node.input[1], 0) + 1
        self._counts: dict[str, int] = dict.fromkeys(Provability().__dict__, 0)

    @property
    def found(self) -> Provability:
        return Provability(**self._counts)

    def run(self, advance: Advance) -> None:
        """Visit every operator in order, and write the scales into the model."""
        for index, name in enumerate(names := [n.name for n in self._model.graph.node if n.name in self._planned]):
            node = self._nodes[name]
            if self._planned[name].op_type in _PRODUCTS:
                self._product(node)
            else:
                self._sum(node)
            advance(index + 1, len(names))
        self._save()

    def _save(self) -> None:
        from onnx import numpy_helper

        for initializer in self._model.graph.initializer:
            data = self.constants[initializer.name]
            if data.dtype == np.float32 and not np.array_equal(data, numpy_helper.to_array(initializer)):
                initializer.CopyFrom(numpy_helper.from_array(data, initializer.name))

    # Quantization of tensors

    def _current(self, planned: str, source: str | None) -> np.float32:
        """The scale of ONNX Runtime's plan; where that is the file's, with what the search has done to it."""
        value = self._planned_constants[planned]
        if source is not None and np.array_equal(value, self._original[source]):
            value = self.constants[source]
        return np.float32(value)

    def _quantization(self, name: str, operand: int, tensor: str) -> tuple[np.float32, int] | None:
        """Scale and zero point of an operand: at which place of the plan's operator, and the file's tensor."""
        planned, maker = self._planned[name], self._makers.get(tensor)
        source = maker.input[1] if maker is not None and maker.op_type == "DequantizeLinear" else None
        zero = _zero_point(self._planned_constants[planned.input[operand + 1]])
        if zero is None or self._planned_constants[planned.input[operand]].size != 1:
            return None
        return self._current(planned.input[operand], source), zero

    def _result(self, node: Any) -> tuple[str | None, np.float32, int] | None:
        """Scale and zero point of an operator's output, and the name of the scale if it is the file's."""
        planned, q = self._planned[node.name], self._quantizers.get(node.output[0])
        place = _RESULTS[planned.op_type]
        if len(planned.input) <= place + 1 or not planned.input[place]:
            return None
        zero = _zero_point(self._planned_constants[planned.input[place + 1]])
        if zero is None:
            return None
        source = q.input[1] if q is not None else None
        if source is not None and not np.array_equal(
            self._original[source], self._planned_constants[planned.input[place]]
        ):
            source = None
        return source, self._current(planned.input[place], source), zero

    # Products with constant weights

    def _product(self, node: Any) -> None:
        origin = self._makers.get(node.input[1])
        source, result = self._quantization(node.name, 1, node.input[0]), self._result(node)
        if origin is None or origin.op_type != "DequantizeLinear" or source is None or result is None:
            return
        if origin.input[0] not in self.constants or self.constants[origin.input[0]].dtype != np.int8:
            return
        weights = self.constants[origin.input[0]]
        turned = any(a.name == "transB" and a.i for a in node.attribute)
        if node.op_type == "MatMul" or (node.op_type == "Gemm" and not turned):
            if weights.ndim != 2:
                return
            weights = weights.T
        channels = len(weights)
        bias = self._bias(node, channels)
        low, high = accumulator_range(weights, bias, source[1])
        limits = (-128 - result[2], 127 - result[2])
        scales = np.broadcast_to(self.constants[origin.input[1]].reshape(-1), (channels,)).astype(np.float32)
        single = self.constants[origin.input[1]].size == 1

        def fails(scales: NDArray[np.float32], of: NDArray[np.intp]) -> NDArray[np.bool_]:
            proof = prove(source[0] * scales / result[1], low[of], high[of], limits)
            bad = np.zeros(len(scales), bool)
            bad[[d.channel for d in proof.differences]] = True
            return bad

        try:
            left = np.flatnonzero(fails(scales, np.arange(channels)))
        except ValueError:
            return  # factors that the engine lacks
        self._counts["channels"] += channels
        self._counts["proved_before"] += channels - len(left)
        if self._move and len(left) and self._users[origin.input[1]] == 1:
            moved = self._all_at_once(scales, fails) if single else self._each(scales, left, fails)
            self._counts["scales_moved"] += int((moved != scales)[: 1 if single else None].sum())
            left = np.flatnonzero(fails(moved, np.arange(channels)))
            shape = self.constants[origin.input[1]].shape
            self.constants[origin.input[1]] = moved[:1].reshape(shape) if single else moved.reshape(shape)
        self._counts["proved"] += channels - len(left)
        self._scale_bias(node, source[0], self.constants[origin.input[1]])

    @staticmethod
    def _each(
        scales: NDArray[np.float32],
        left: NDArray[np.intp],
        fails: Callable[[NDArray[np.float32], NDArray[np.intp]], NDArray[np.bool_]],
    ) -> NDArray[np.float32]:
        """Scales of channels, each moved as little as proves it; those of which none is found stay."""
        moved = scales.copy()
        for steps in _candidates():
            if not len(left):
                break
            tried = ulps(np.repeat(scales[left], len(steps)), np.tile(steps, len(left)))
            good = ~fails(tried, np.repeat(left, len(steps))).reshape(len(left), -1)
            found = good.any(axis=1)
            moved[left[found]] = tried.reshape(len(left), -1)[found, good[found].argmax(axis=1)]
            left = left[~found]
        return moved

    @staticmethod
    def _all_at_once(
        scales: NDArray[np.float32], fails: Callable[[NDArray[np.float32], NDArray[np.intp]], NDArray[np.bool_]]
    ) -> NDArray[np.float32]:
        """One scale of all channels, with which the fewest fail."""
        channels = np.arange(len(scales))
        best, least = scales, int(fails(scales, channels).sum())
        for step in (s for steps in _candidates() for s in steps):
            if not least:
                break
            tried = ulps(scales, step)
            count = int(fails(tried, channels).sum())
            if count < least:
                best, least = tried, count
        return best

    def _bias(self, node: Any, channels: int) -> NDArray[np.int32]:
        planned = self._planned[node.name]
        place = _BIASES.get(planned.op_type, len(planned.input))
        name = planned.input[place] if len(planned.input) > place else ""
        if name not in self._planned_constants:
            return np.zeros(channels, np.int32)
        return self._planned_constants[name].reshape(-1).astype(np.int32)

    def _scale_bias(self, node: Any, source: np.float32, scales: NDArray[np.float32]) -> None:
        """A bias is in units of the product."""
        origin = self._makers.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if origin is None or origin.op_type != "DequantizeLinear":
            return
        name = origin.input[1]
        if self._users[name] == 1 and self.constants[name].size == scales.size:
            self.constants[name] = (source * scales).astype(np.float32).reshape(self.constants[name].shape)

    # Sums, products and means of tensors

    def _sum(self, node: Any) -> None:
        made = [self._makers.get(name) for name in node.input]
        if any(n is None or n.input[0] in self.constants for n in made):
            return  # with a constant: a table, or by channel
        operands = [self._quantization(node.name, 1 + 3 * i, name) for i, name in enumerate(node.input)]
        result = self._result(node)
        if result is None or any(o is None for o in operands):
            return
        name, scale, zero = result
        window = self._window(node)
        if node.op_type == "GlobalAveragePool" and window is None:
            return
        given = [o for o in operands if o is not None]

        def proved(candidate: np.float32) -> bool:
            return _is_proved(node.op_type, given, (candidate, zero), window)

        self._counts["others"] += 1
        if proved(scale):
            self._counts["others_proved_before"] += 1
            self._counts["others_proved"] += 1
            return
        if not self._move or name is None or self._first.get(name) != node.output[0]:
            return
        for step in (s for steps in _candidates() for s in steps):
            candidate = ulps(np.array([scale], np.float32), step)[0]
            if proved(candidate):
                self.constants[name] = np.array(candidate, np.float32).reshape(self.constants[name].shape)
                self._counts["others_proved"] += 1
                self._counts["scales_moved"] += 1
                return

    def _window(self, node: Any) -> tuple[int, int] | None:
        """Rows and columns that a global pool takes."""
        info = self._shapes.get(self._makers[node.input[0]].input[0]) or self._shapes.get(node.input[0])
        origin = self._makers[node.input[0]]
        while info is None and origin is not None and origin.op_type in ("DequantizeLinear", "QuantizeLinear"):
            info = self._shapes.get(origin.input[0])
            origin = self._makers.get(origin.input[0])
        sizes = [d.dim_value for d in info.type.tensor_type.shape.dim][2:] if info is not None else []
        if not sizes or len(sizes) > 2 or min(sizes) < 1:
            return None
        return (1, sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])


def _is_proved(
    kind: str, operands: list[tuple[np.float32, int]], result: tuple[np.float32, int], window: tuple[int, int] | None
) -> bool:
    """Whether the accelerator's sum, product or mean with these scales and zero points is ONNX Runtime's."""
    size = window or (1, 1)
    types, inputs = [], []
    for index, (scale, zero) in enumerate(operands):
        types.append(TensorType((1, *size, 1), INT8, Quantization.per_tensor(float(scale), zero)))
        inputs.append(_tensor(f"x{index}", size, scale, zero))
    scale, zero = result
    out = TensorType((1, 1, 1, 1), INT8, Quantization.per_tensor(float(scale), zero))
    output = _tensor("y", (1, 1), scale, zero)
    options: Mapping[str, Any] = {"activation": "NONE"}
    operation = Operation({"Add": "ADD", "Mul": "MUL"}.get(kind, "MEAN"), tuple(types), (out,), dict(options), "onnx")
    node = Node("y", operation, tuple(range(len(types))), (len(types),))
    common: dict[str, Any] = {"name": "y", "inputs": tuple(inputs), "output": output}
    try:
        if kind == "Add":
            proved_sum(node, Add(**common))
        elif kind == "Mul":
            proved_product(node, Mul(**common))
        else:
            proved_mean(node, WindowSum(**common, window=size, strides=size, weight=1, multiplier=0, shift=0))
    except Refusal:
        return False
    return True


def _tensor(name: str, size: tuple[int, int], scale: np.float32, zero_point: int) -> Tensor:
    return Tensor(name=name, rows=size[0], columns=size[1], channels=1, scale=float(scale), zero_point=zero_point)
