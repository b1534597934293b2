"""Operators with a state that lasts from run to run: SVDF and UNIDIRECTIONAL_SEQUENCE_LSTM.

Their results are the output and then the new states, in the order of the operands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..dtypes import INT8, held_as
from ..numerics import multiply_by_factor, rounding_divide_by_pot, split_factor, wrap_int32
from ..operation import Operation, TensorType
from . import fixed_point, recurrent_float
from .support import operand, parameters, power_of_two, refuse, require_types, saturate

__all__ = ["initial_state", "svdf", "unidirectional_sequence_lstm"]


def initial_state(t: TensorType) -> NDArray:
    """What a variable tensor holds before the first run: 0, for int8 its zero point, as LiteRT resets it."""
    zero_point = t.quantization.zero_point if t.quantization and t.quantization.is_per_tensor else 0
    return np.full(t.shape, zero_point if t.dtype == INT8 else 0, held_as(t.dtype))


def svdf(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """A filter over the channels, then one over the last calls' results, whose sums of `rank` are the output.

    Operands: input [n, channels], weights [filters, channels], weights [filters, memory], bias [units], state
    [n, filters * memory].
    """
    if require_types(op, 0, INT8, "float32") == "float32":
        return recurrent_float.svdf(op, inputs)
    require_types(op, 1, INT8)
    require_types(op, 2, "int16")
    require_types(op, 4, "int16")
    x, features, times = (operand(op, inputs, i) for i in range(3))
    bias, state = inputs[3], operand(op, inputs, 4)
    q_x, q_features, q_times, q_state, q_out = (
        parameters(op, t) for t in (op.inputs[0], op.inputs[1], op.inputs[2], op.inputs[4], op.outputs[0])
    )
    filters, memory = times.shape
    n = x.shape[0]
    product = (x.astype(np.int64) - q_x.zero_point) @ features.T.astype(np.int64)
    factor = q_x.scale * q_features.scale / q_state.scale
    latest = saturate(multiply_by_factor(wrap_int32(product), *split_factor(factor)), "int16")
    history = np.append(state.reshape(-1)[1:], np.int16(0)).reshape(n, filters, memory)
    history[:, :, -1] = latest
    total = (history.astype(np.int64) * times).sum(axis=2)
    total = total.reshape(n, filters // op.options["rank"], op.options["rank"]).sum(axis=2)
    if bias is not None:
        total = total + bias
    factor = q_state.scale * q_times.scale / q_out.scale
    result = multiply_by_factor(wrap_int32(total), *split_factor(factor)) + q_out.zero_point
    return [saturate(wrap_int32(result), INT8), history.reshape(state.shape)]


_OUTPUT_STATE, _CELL_STATE = 18, 19
_INPUT_WEIGHTS, _RECURRENT_WEIGHTS, _PEEPHOLES, _BIASES, _NORMS = 1, 5, 9, 12, 20
"""First of the operands for input, forget, cell and output gate (the cell has no peephole)"""
_PROJECTION, _PROJECTION_BIAS = 16, 17
_GATE_SCALE = 2.0**-12
"""Of the sums that the functions of the gates take: int16 with 3 integer bits"""


@dataclass(frozen=True)
class _Product:
    """Sums of products with int8 weights [k, c], scaled: added to int16 values, or from 0."""

    weights: NDArray
    bias: NDArray[np.int64]
    multiplier: int
    exponent: int

    def __call__(self, x: NDArray) -> NDArray[np.int64]:
        acc = wrap_int32(x.astype(np.int64) @ self.weights.T.astype(np.int64) + self.bias)
        return multiply_by_factor(acc, self.multiplier, self.exponent)


def _product(
    weights: NDArray, weight_scale: float, zero_point: int, scale: float, scale_out: float, bias: NDArray | None
) -> _Product:
    """A product with values of a zero point, which goes into the bias."""
    sums = -zero_point * weights.sum(axis=1, dtype=np.int64)
    factor = np.float32(weight_scale) * np.float32(scale) / np.float32(scale_out)
    return _Product(weights, wrap_int32(sums if bias is None else sums + bias), *split_factor(float(factor)))


def unidirectional_sequence_lstm(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """LSTM over a sequence, int8 with an int16 cell state. Peephole weights and layer normalization are refused.

    Options: `time_major`, `cell_clip`, `proj_clip`, and `intermediates`: scale and zero point of each of the
    operator's intermediate tensors, of which the fifth is what the hidden state is quantized with.
    """
    if require_types(op, 0, INT8, "float32") == "float32":
        return recurrent_float.lstm(op, inputs)
    require_types(op, 2, INT8)
    require_types(op, _CELL_STATE, "int16")
    for first, what in ((_PEEPHOLES, "peephole weights"), (_NORMS, "layer normalization")):
        if any(t is not None for t in op.inputs[first : first + (3 if first == _PEEPHOLES else 4)]):
            refuse(op, what)
    if op.options.get("diagonal_recurrent_tensors"):
        refuse(op, "diagonal recurrent weights")
    if op.options.get("activation", "TANH") != "TANH":
        refuse(op, f"activation {op.options['activation']}")
    return _Lstm(op, inputs).run()


class _Lstm:
    def __init__(self, op: Operation, inputs: Sequence[NDArray | None]) -> None:
        self.op = op
        self.inputs = inputs
        q_x, q_h = parameters(op, op.inputs[0]), parameters(op, op.inputs[_OUTPUT_STATE])
        q_cell = parameters(op, op.inputs[_CELL_STATE])
        power = power_of_two(q_cell.scale)
        if power is None or not 0 <= 15 + power <= 6:
            refuse(op, f"cell state scale {q_cell.scale}")
        self.cell_power = power
        self.output_zero_point = q_h.zero_point
        clip = float(op.options.get("cell_clip") or 0)
        self.cell_clip = int(min(float(np.float32(clip) / np.float32(q_cell.scale)), 32767.0)) if clip > 0 else 0
        self.gates: list[tuple[_Product, _Product] | None] = []
        for gate in range(4):
            weights, recurrent = inputs[_INPUT_WEIGHTS + gate], inputs[_RECURRENT_WEIGHTS + gate]
            if weights is None or recurrent is None:
                if gate:
                    refuse(op, f"no weights of gate {gate}")
                self.gates.append(None)
                continue
            q_w, q_r = (parameters(op, op.inputs[first + gate]) for first in (_INPUT_WEIGHTS, _RECURRENT_WEIGHTS))
            bias = inputs[_BIASES + gate]
            self.gates.append(
                (
                    _product(weights, q_w.scale, q_x.zero_point, q_x.scale, _GATE_SCALE, bias),
                    _product(recurrent, q_r.scale, q_h.zero_point, q_h.scale, _GATE_SCALE, None),
                )
            )
        hidden_scale, self.hidden_zero_point = (*op.options.get("intermediates", ()), *[(0.0, 0)] * 5)[4]
        if not hidden_scale > 0:
            refuse(op, "no scale for what its hidden state is made from")
        # the square of 2**-15: what the product of two gates is in
        hidden_factor = np.float32(2.0**-15 / float(np.float32(hidden_scale)) * 2.0**-15)
        self.hidden_factor = split_factor(float(hidden_factor))
        self.projection: _Product | None = None
        self.projection_clip = 0
        projection = inputs[_PROJECTION]
        if projection is not None:
            # LiteRT takes the zero point of what is projected with the other sign
            self.hidden_zero_point = -self.hidden_zero_point
            q_p = parameters(op, op.inputs[_PROJECTION])
            self.projection = _product(
                projection, q_p.scale, self.hidden_zero_point, hidden_scale, q_h.scale, inputs[_PROJECTION_BIAS]
            )
            clip = float(op.options.get("proj_clip") or 0)
            scale = parameters(op, op.outputs[0]).scale
            self.projection_clip = int(min(float(np.float32(clip) / np.float32(scale)), 127.0)) if clip > 0 else 0

    def _gate(self, index: int, x: NDArray, hidden: NDArray) -> NDArray[np.int64]:
        """The sums of a gate, before its function."""
        gate = self.gates[index]
        assert gate
        return np.clip(np.clip(gate[0](x), -32768, 32767) + gate[1](hidden), -32768, 32767)

    def run(self) -> Sequence[NDArray]:
        op = self.op
        x = operand(op, self.inputs, 0)
        steps = x if op.options.get("time_major") else x.swapaxes(0, 1)
        hidden = operand(op, self.inputs, _OUTPUT_STATE).astype(np.int64)
        cell = operand(op, self.inputs, _CELL_STATE).astype(np.int64)
        results = []
        for step in steps:
            hidden, cell = self._step(step, hidden, cell)
            results.append(hidden)
        output = np.stack(results, axis=0 if op.options.get("time_major") else 1)
        return [output.astype(np.int8), hidden.astype(np.int8), cell.astype(np.int16)]

    def _step(self, x: NDArray, hidden: NDArray, cell: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Output and cell state after one element of the sequence."""
        forget = fixed_point.logistic(self._gate(1, x, hidden), 3, 16)
        if self.gates[0] is None:
            admit = 32767 - forget
        else:
            admit = fixed_point.logistic(self._gate(0, x, hidden), 3, 16)
        update = fixed_point.tanh(self._gate(2, x, hidden), 3, 16)
        kept = _int16(rounding_divide_by_pot(forget * cell, 15))
        added = _int16(rounding_divide_by_pot(admit * update, 30 + self.cell_power))
        cell = np.clip(kept + added, -32768, 32767)
        if self.cell_clip:
            cell = np.clip(cell, -self.cell_clip, self.cell_clip)
        reveal = fixed_point.logistic(self._gate(3, x, hidden), 3, 16)
        product = reveal * fixed_point.tanh(cell, 15 + self.cell_power, 16)
        result = np.clip(multiply_by_factor(product, *self.hidden_factor) + self.hidden_zero_point, -128, 127)
        if self.projection is not None:
            result = np.clip(self.projection(result) + self.output_zero_point, -128, 127)
            if self.projection_clip:
                result = np.clip(result, -self.projection_clip, self.projection_clip)
        return result, cell


def _int16(x: NDArray[np.int64]) -> NDArray[np.int64]:
    """Wrap to 16 bits."""
    return ((x + (1 << 15)) & 0xFFFF) - (1 << 15)
