"""SVDF and UNIDIRECTIONAL_SEQUENCE_LSTM of float32 activations, with float32 or int8 weights.

Sums are in NumPy's order, which is not LiteRT's: the last bits may differ. With int8 weights what an LSTM remembers is
quantized in each step, where a last bit may become a step of 1/127 of the greatest value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..dtypes import INT8
from ..operation import Operation
from .hybrid import quantize_rows, weight_scales
from .support import operand, refuse, require_types

__all__ = ["lstm", "svdf"]

_Floats = NDArray[np.float32]
_Function = Callable[[_Floats], _Floats]

_OUTPUT_STATE, _CELL_STATE = 18, 19
_INPUT_WEIGHTS, _RECURRENT_WEIGHTS, _PEEPHOLES, _BIASES, _NORMS = 1, 5, 9, 12, 20
"""First of the operands for input, forget, cell and output gate (the cell has no peephole)"""
_PROJECTION, _PROJECTION_BIAS = 16, 17
_NORM_EPSILON = np.float32(1e-8)


def _sigmoid(x: _Floats) -> _Floats:
    with np.errstate(over="ignore"):
        return (1 / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32)


def _tanh(x: _Floats) -> _Floats:
    return np.tanh(x.astype(np.float64)).astype(np.float32)


_FUNCTIONS: dict[str, _Function] = {
    "NONE": lambda x: x,
    # What is not a number becomes 0, as in LiteRT.
    "RELU": lambda x: np.where(x > 0, x, np.float32(0)),
    "RELU6": lambda x: np.where(x > 0, np.minimum(x, np.float32(6)), np.float32(0)),
    "RELU_N1_TO_1": lambda x: np.clip(x, np.float32(-1), np.float32(1)),
    "TANH": _tanh,
}


def _function(op: Operation) -> _Function:
    name = op.options.get("activation", "NONE")
    if name not in _FUNCTIONS:
        refuse(op, f"activation {name}")
    return _FUNCTIONS[name]


def _product(op: Operation, inputs: Sequence[NDArray | None], index: int) -> _Function:
    """The product of rows with an operand's weights [outputs, n]; with int8 weights rows are quantized first."""
    require_types(op, index, "float32", INT8)
    weights = operand(op, inputs, index)
    matrix = weights.T.astype(np.float64)
    if weights.dtype == np.float32:
        return lambda x: _to_float32(x.astype(np.float64) @ matrix)
    scale = weight_scales(op, index)
    if scale.size != 1:
        refuse(op, "float32 activations and weights with a scale for each channel")
    asymmetric = bool(op.options.get("asymmetric_quantize_inputs"))

    def multiply(x: _Floats) -> _Floats:
        values, scales, points = quantize_rows(x, asymmetric=asymmetric)
        with np.errstate(over="ignore"):
            sums = _to_float32((values - points) @ matrix)
            return (sums * (scales * scale)).astype(np.float32)

    return multiply


def _to_float32(x: NDArray) -> _Floats:
    with np.errstate(over="ignore"):
        return x.astype(np.float32)


def _plain(op: Operation, inputs: Sequence[NDArray | None], index: int) -> _Floats | None:
    """An operand in float32, None if it is left out: weights that are not part of a product are dequantized."""
    if index >= len(op.inputs) or op.inputs[index] is None:
        return None
    require_types(op, index, "float32", INT8)
    values = operand(op, inputs, index)
    return values if values.dtype == np.float32 else values.astype(np.float32) * weight_scales(op, index)


def svdf(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """As `recurrent.svdf`, in float32; the state is float32."""
    require_types(op, 4, "float32")
    x, times, bias = operand(op, inputs, 0), _plain(op, inputs, 2), _plain(op, inputs, 3)
    assert times is not None
    filters, memory = times.shape
    state = operand(op, inputs, 4)
    history = np.append(state.reshape(-1)[1:], np.float32(0)).reshape(len(x), filters, memory)
    history[:, :, -1] = _product(op, inputs, 1)(x)
    rank = op.options["rank"]
    with np.errstate(over="ignore", invalid="ignore"):
        result = (history * times).sum(axis=2).reshape(len(x), filters // rank, rank).sum(axis=2)
        return [_function(op)(result if bias is None else result + bias), history.reshape(state.shape)]


class _Gate:
    """One of the four gates; `index` 0 to 3."""

    def __init__(self, op: Operation, inputs: Sequence[NDArray | None], index: int, function: _Function) -> None:
        self._of_input = _product(op, inputs, _INPUT_WEIGHTS + index)
        self._of_hidden = _product(op, inputs, _RECURRENT_WEIGHTS + index)
        self._peephole = None if index == 2 else _plain(op, inputs, _PEEPHOLES + min(index, 2))
        self._bias = _plain(op, inputs, _BIASES + index)
        self._norm = _plain(op, inputs, _NORMS + index)
        self._function = function

    def __call__(self, x: _Floats, hidden: _Floats, cell: _Floats) -> _Floats:
        total = self._of_input(x) + self._of_hidden(hidden)
        if self._peephole is not None:
            total = total + self._peephole * cell
        if self._norm is not None:
            mean = total.mean(axis=1, keepdims=True, dtype=np.float64)
            variance = ((total - mean) ** 2).mean(axis=1, keepdims=True)
            total = ((total - mean) / np.sqrt(variance + _NORM_EPSILON)).astype(np.float32) * self._norm
        return self._function(total if self._bias is None else total + self._bias)


def lstm(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """As `recurrent.unidirectional_sequence_lstm`, in float32, also with peepholes and layer normalization."""
    require_types(op, _OUTPUT_STATE, "float32")
    require_types(op, _CELL_STATE, "float32")
    if op.options.get("diagonal_recurrent_tensors"):
        refuse(op, "diagonal recurrent weights")
    activation = _function(op)
    coupled = op.inputs[_INPUT_WEIGHTS] is None
    functions = (_sigmoid, _sigmoid, activation, _sigmoid)
    gates = [None if coupled and not i else _Gate(op, inputs, i, function) for i, function in enumerate(functions)]
    projection = _product(op, inputs, _PROJECTION) if op.inputs[_PROJECTION] is not None else None
    projection_bias = _plain(op, inputs, _PROJECTION_BIAS)
    cell_clip, projection_clip = (np.float32(op.options.get(name) or 0) for name in ("cell_clip", "proj_clip"))

    x = operand(op, inputs, 0)
    hidden, cell = operand(op, inputs, _OUTPUT_STATE), operand(op, inputs, _CELL_STATE)
    time_axis = 0 if op.options.get("time_major") else 1
    results = []
    for step in np.moveaxis(x, time_axis, 0):
        _, forget_gate, cell_gate, output_gate = gates
        assert forget_gate and cell_gate and output_gate
        forget = forget_gate(step, hidden, cell)
        admit = gates[0](step, hidden, cell) if gates[0] else 1 - forget
        cell = forget * cell + admit * cell_gate(step, hidden, cell)
        if cell_clip > 0:
            cell = np.clip(cell, -cell_clip, cell_clip)
        hidden = output_gate(step, hidden, cell) * activation(cell)
        if projection is not None:
            hidden = projection(hidden) if projection_bias is None else projection(hidden) + projection_bias
            if projection_clip > 0:
                hidden = np.clip(hidden, -projection_clip, projection_clip)
        results.append(hidden)
    return [np.stack(results, axis=time_axis), hidden, cell]
