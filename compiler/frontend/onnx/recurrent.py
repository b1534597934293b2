"""LSTM, GRU and RNN, which ONNX Runtime has in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nnloom.arch.operation import TensorType

from .reader import Reader
from .support import Refusal, attributes

__all__ = ["OPERATORS"]

_FUNCTIONS = ("Relu", "Sigmoid", "Tanh")
_LENGTHS = 4
"""The operand that says how long each sequence is"""


def _recurrent(kind: str) -> Callable[[Reader, Any], None]:
    """One of the three; operands are held as they are in the file."""

    def read(r: Reader, node: Any) -> None:
        a = attributes(node)
        functions = tuple(f.decode() for f in a.get("activations", ()))
        if any(f not in _FUNCTIONS for f in functions):
            raise Refusal(f"activations {', '.join(functions)}; {', '.join(_FUNCTIONS)} are supported")
        names = [*node.input, "", ""][: len(node.input)]
        steps = r.shape(names[0])[0]
        if len(names) > _LENGTHS and names[_LENGTHS]:
            lengths = r.constant(names[_LENGTHS], "the length of the sequences")
            if (np.asarray(lengths) != steps).any():
                raise Refusal(f"sequences of {np.asarray(lengths).tolist()} steps; all {steps} are supported")
        for name in filter(None, names):
            r.force(name)
        operands = [r.v.plain(n) if n else None for i, n in enumerate(names) if i != _LENGTHS]
        options: dict[str, Any] = {"direction": a.get("direction", b"forward").decode()}
        options |= {key: a[key] for key in ("clip", "linear_before_reset", "input_forget") if key in a}
        if functions:
            options["activations"] = functions
        outputs = []
        directions, hidden = r.shape(names[2])[0], r.shape(names[2])[2]
        batch = r.shape(names[0])[1]
        last = (directions, batch, hidden)
        shapes = [(steps, directions, batch, hidden), last, last][: 3 if kind == "LSTM" else 2]
        for place, shape in enumerate(shapes):
            name = node.output[place] if len(node.output) > place else ""
            outputs.append(r.v.add(name or f"{node.name} (unread {place})", TensorType(shape, "float32")))
            if name:
                r.v.hold(name, outputs[-1])
        r.v.emit(kind, operands, outputs, options, rounding="onnx", name=node.name or node.output[0])

    return read


OPERATORS: dict[str, Callable[[Reader, Any], None]] = {kind: _recurrent(kind) for kind in ("GRU", "LSTM", "RNN")}
