"""LSTM, GRU and RNN of real numbers.

Operands are those of ONNX without the lengths of sequences: x [steps, batch, n], weights [directions, gates * hidden,
n], recurrent weights [directions, gates * hidden, hidden], biases [directions, 2 * gates * hidden], what is remembered
at first [directions, batch, hidden], and of an LSTM its cells likewise, and peepholes [directions, 3 * hidden].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...operation import Operation
from ..support import operand, refuse

__all__ = ["gru", "lstm", "rnn"]

_Floats = NDArray[np.float64]
_Function = Callable[[_Floats], _Floats]
_Step = Callable[[_Floats, tuple[_Floats, ...]], tuple[_Floats, ...]]
"""One step: the input's products and the states -> the new states"""


def _sigmoid(x: _Floats) -> _Floats:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


_FUNCTIONS: dict[str, _Function] = {
    "Relu": lambda x: np.maximum(x, 0),
    "Sigmoid": _sigmoid,
    "Tanh": np.tanh,
}


def _functions(op: Operation, direction: int, count: int, defaults: tuple[str, ...]) -> list[_Function]:
    names = tuple(op.options.get("activations", ())) or defaults * 2
    chosen = names[direction * count : (direction + 1) * count]
    if any(name not in _FUNCTIONS for name in chosen):
        refuse(op, f"activations {', '.join(chosen)}")
    return [_FUNCTIONS[name] for name in chosen]


def _optional(op: Operation, inputs: Sequence[NDArray | None], index: int, shape: tuple[int, ...]) -> _Floats:
    """An operand, zeros if it is left out."""
    value = inputs[index] if index < len(inputs) else None
    return np.zeros(shape) if value is None else value.astype(np.float64)


def _run(
    op: Operation, inputs: Sequence[NDArray | None], gates: int, states: Sequence[int], step_of: Callable[[int], _Step]
) -> list[NDArray]:
    """All directions; states: which operands they begin with. Outputs are all first states, and each state at last."""
    x = operand(op, inputs, 0).astype(np.float64)
    weights = operand(op, inputs, 1).astype(np.float64)
    hidden = operand(op, inputs, 2).shape[-1]
    steps, batch = x.shape[:2]
    count = len(weights)
    biases = _optional(op, inputs, 3, (count, 2 * gates * hidden))
    first = [_optional(op, inputs, index, (count, batch, hidden)) for index in states]
    every = np.zeros((steps, count, batch, hidden))
    last = [np.zeros((count, batch, hidden)) for _ in states]
    for direction in range(count):
        backwards = direction == 1 or op.options.get("direction", "forward") == "reverse"
        held = tuple(state[direction] for state in first)
        of_input = x @ weights[direction].T + biases[direction, : gates * hidden]
        step = step_of(direction)
        for at in range(steps)[:: -1 if backwards else 1]:
            held = step(of_input[at], held)
            # What is remembered is of float32.
            held = tuple(state.astype(np.float32).astype(np.float64) for state in held)
            every[at, direction] = held[0]
        for state, value in zip(last, held, strict=True):
            state[direction] = value
    results = [every, *last]
    return [value.astype(np.float32) for value in results[: len(op.outputs)]]


def _recurrence(
    op: Operation, inputs: Sequence[NDArray | None], direction: int, gates: int
) -> tuple[_Floats, _Floats, Callable[[_Floats], _Floats]]:
    """Recurrent weights [gates, hidden, hidden], their biases [gates, hidden], and the limit of sums."""
    weights = operand(op, inputs, 2)[direction].astype(np.float64)
    hidden = weights.shape[-1]
    count = len(operand(op, inputs, 1))
    biases = _optional(op, inputs, 3, (count, 2 * gates * hidden))[direction, gates * hidden :]
    clip = op.options.get("clip")
    limit: Callable[[_Floats], _Floats] = (lambda v: v) if clip is None else (lambda v: np.clip(v, -clip, clip))
    return weights.reshape(gates, hidden, hidden), biases.reshape(gates, hidden), limit


def rnn(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """f(x W + h R + b)."""

    def step_of(direction: int) -> _Step:
        weights, biases, limit = _recurrence(op, inputs, direction, 1)
        (function,) = _functions(op, direction, 1, ("Tanh",))

        def step(of_input: _Floats, held: tuple[_Floats, ...]) -> tuple[_Floats, ...]:
            return (function(limit(of_input + held[0] @ weights[0].T + biases[0])),)

        return step

    return _run(op, inputs, 1, [4], step_of)


def gru(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Gates update, reset and hidden; with `linear_before_reset` the reset gate is applied behind the product."""
    linear = bool(op.options.get("linear_before_reset"))

    def step_of(direction: int) -> _Step:
        weights, biases, limit = _recurrence(op, inputs, direction, 3)
        gate, function = _functions(op, direction, 2, ("Sigmoid", "Tanh"))

        def step(of_input: _Floats, held: tuple[_Floats, ...]) -> tuple[_Floats, ...]:
            (h,) = held
            parts = np.split(of_input, 3, axis=-1)
            update, reset = (gate(limit(parts[i] + h @ weights[i].T + biases[i])) for i in (0, 1))
            if linear:
                candidate = function(limit(parts[2] + reset * (h @ weights[2].T + biases[2])))
            else:
                candidate = function(limit(parts[2] + (reset * h) @ weights[2].T + biases[2]))
            return ((1 - update) * candidate + update * h,)

        return step

    return _run(op, inputs, 3, [4], step_of)


def lstm(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Gates input, output, forget and cell, with peepholes if operand 6 has them."""
    coupled = bool(op.options.get("input_forget"))

    def step_of(direction: int) -> _Step:
        weights, biases, limit = _recurrence(op, inputs, direction, 4)
        hidden = weights.shape[-1]
        peepholes = _optional(op, inputs, 6, (direction + 1, 3 * hidden))[direction].reshape(3, hidden)
        gate, function, last = _functions(op, direction, 3, ("Sigmoid", "Tanh", "Tanh"))

        def step(of_input: _Floats, held: tuple[_Floats, ...]) -> tuple[_Floats, ...]:
            h, c = held
            parts = np.split(of_input, 4, axis=-1)
            sums = [part + h @ weights[i].T + biases[i] for i, part in enumerate(parts)]
            admit = gate(limit(sums[0] + peepholes[0] * c))
            forget = 1 - admit if coupled else gate(limit(sums[2] + peepholes[2] * c))
            cell = forget * c + admit * function(limit(sums[3]))
            out = gate(limit(sums[1] + peepholes[1] * cell))
            return out * last(cell), cell

        return step

    return _run(op, inputs, 4, [4, 5], step_of)
