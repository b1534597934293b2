"""What an operator is: its kind, the types of its operands, its options.

One definition for the compiler's graph, the NumPy reference (`nnloom.arch.reference`), the artifact's plan for
computers without TVM, and the CPU code. Kinds and options are those of TFLite's schema: `kind` is the name of the
builtin operator ("CONV_2D"), an option has the name of the schema's field in snake case, enumerations are their names.
Beside them, or instead:

- convolutions and pools: `strides`, `dilation` and `window` as (rows, columns), `padding` as (top, left, bottom,
  right), resolved from the shapes;
- all with a fused activation: `activation` ("NONE", "RELU", "RELU6", "RELU_N1_TO_1", ...).

An operator with states (`nnloom.arch.reference.STATES`) has their new values as its last outputs.

The options of an operator with the rounding "onnx" are those of ONNX in snake case, but for these. Beside them:

- `limits`: least and greatest quantized value of the output;
- `in_float`: why ONNX Runtime's result may differ from the reference's in the last bit.

Operands are those of the file, in its order, None where an optional one is left out; shapes, axes and paddings that
TFLite passes as tensors are operands here too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Operation", "Quantization", "TensorType"]


@dataclass(frozen=True)
class Quantization:
    """Affine quantization: real = scale * (value - zero point), for the whole tensor or for each index of an axis."""

    scales: tuple[float, ...]
    """float32 values, as Python floats; positive and finite"""
    zero_points: tuple[int, ...]
    """as many as scales"""
    axis: int = 0
    """which axis the scales are for, where there are several"""

    @classmethod
    def per_tensor(cls, scale: float, zero_point: int) -> Quantization:
        """One scale and zero point for all values."""
        return cls((float(scale),), (int(zero_point),))

    @property
    def is_per_tensor(self) -> bool:
        return len(self.scales) == 1

    @property
    def scale(self) -> float:
        """The one scale.

        Raises
        ------
        ValueError
            If there are several.
        """
        if len(self.scales) != 1:
            raise ValueError("quantized per channel")
        return self.scales[0]

    @property
    def zero_point(self) -> int:
        """The one zero point.

        Raises
        ------
        ValueError
            If there are several.
        """
        if len(self.zero_points) != 1:
            raise ValueError("quantized per channel")
        return self.zero_points[0]


@dataclass(frozen=True)
class TensorType:
    """Shape, type and quantization of a tensor; activations are NHWC."""

    shape: tuple[int, ...]
    dtype: str
    """name of the NumPy type, or "int4" (held as int8)"""
    quantization: Quantization | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Operation:
    """An operator with everything but the values of its operands."""

    kind: str
    inputs: tuple[TensorType | None, ...]
    outputs: tuple[TensorType, ...]
    options: dict[str, Any] = field(default_factory=dict)
    """JSON values; sequences are tuples"""
    rounding: str = "tflite"
    """whose arithmetic it has: "tflite" or "onnx"; what only moves values has the first"""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "kind": self.kind,
            "inputs": [_type_to_dict(t) if t else None for t in self.inputs],
            "outputs": [_type_to_dict(t) for t in self.outputs],
            "options": self.options,
            "rounding": self.rounding,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Operation:
        """Inverse of `to_dict`; KeyError, TypeError or AttributeError for another form. Values are not checked."""
        return cls(
            kind=values["kind"],
            inputs=tuple(None if t is None else _type_from_dict(t) for t in values["inputs"]),
            outputs=tuple(_type_from_dict(t) for t in values["outputs"]),
            options={key: _tuples(value) for key, value in values["options"].items()},
            rounding=values["rounding"],
        )


def _type_to_dict(t: TensorType) -> dict[str, Any]:
    q = t.quantization
    result: dict[str, Any] = {"shape": list(t.shape), "dtype": t.dtype}
    if q:
        result["quantization"] = {"scales": list(q.scales), "zero_points": list(q.zero_points), "axis": q.axis}
    return result


def _type_from_dict(values: Mapping[str, Any]) -> TensorType:
    q = values.get("quantization")
    quantization = None if q is None else Quantization(tuple(q["scales"]), tuple(q["zero_points"]), q["axis"])
    return TensorType(tuple(values["shape"]), values["dtype"], quantization)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
