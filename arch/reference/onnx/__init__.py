"""NumPy references of operators as ONNX Runtime computes them (rounding "onnx"), with its CPU kernels.

Quantized operators are exact to ONNX Runtime's kernels, whose arithmetic is float32 on integer sums: ties go to even,
and products and sums are rounded where those kernels round. Operators on real numbers are exact where IEEE 754 says
what the result is; `why_inexact` names the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from numpy.typing import NDArray

from ...operation import Operation
from ..tables import table
from . import elementwise, floats, movement, pooling, products, quantized, recurrent
from .products import factors

__all__ = ["ONNX_RUNTIME_SETTINGS", "REFERENCES", "factors", "why_inexact"]

ONNX_RUNTIME_SETTINGS = {"session.qdqisint8allowed": "1"}
"""Of the sessions that the references are exact to: int8 networks in QDQ form are computed in integers, as those in
QOperator form. Without, ONNX Runtime has some of their operators in float32 on x86."""

REFERENCES: dict[str, Callable[[Operation, Sequence[NDArray | None]], Sequence[NDArray]]] = {
    **elementwise.BINARY,
    **elementwise.UNARY,
    **floats.REDUCTIONS,
    "AVERAGE_POOL_2D": pooling.average_pool_2d,
    "BATCH_MATMUL": products.batch_matmul,
    "CONV_2D": products.conv_2d,
    "DEQUANTIZE": quantized.dequantize,
    "CUMULATIVE_SUM": movement.cumulative_sum,
    "EINSUM": products.einsum,
    "FULLY_CONNECTED": products.fully_connected,
    "GATHER": movement.gather,
    "GATHER_ELEMENTS": movement.gather_elements,
    "GATHER_ND": movement.gather_nd,
    "GRU": recurrent.gru,
    "IS_NAN": elementwise.is_nan,
    "LAYER_NORMALIZATION": floats.layer_normalization,
    "LOG_SOFTMAX": floats.log_softmax,
    "LP_NORMALIZATION": floats.lp_normalization,
    "LSTM": recurrent.lstm,
    "MEAN": pooling.mean,
    "NORMALIZATION": floats.normalization,
    "QUANTIZE": quantized.quantize,
    "RESIZE": pooling.resize,
    "RNN": recurrent.rnn,
    "SCATTER_ELEMENTS": movement.scatter_elements,
    "SCATTER_ND": movement.scatter_nd,
    "SOFTMAX": floats.softmax,
    "TABLE": table,
    "TOP_K": movement.top_k,
    "TRANSPOSE_CONV": products.transpose_conv,
}
"""Kinds as in `nnloom.arch.operation`, and those that only ONNX has, by their names in snake case"""

_SUMS = frozenset(
    {
        *floats.REDUCTIONS, "AVERAGE_POOL_2D", "BATCH_MATMUL", "CONV_2D", "EINSUM", "FULLY_CONNECTED", "GRU",
        "LAYER_NORMALIZATION", "LOG_SOFTMAX", "LP_NORMALIZATION", "LSTM", "MEAN", "NORMALIZATION", "RNN",
        "SOFTMAX", "TRANSPOSE_CONV",
    }
)  # fmt: skip
"""Kinds whose float32 sums ONNX Runtime adds up in another order"""


def why_inexact(op: Operation) -> str | None:
    """Why the bits of an operator may differ from ONNX Runtime's; None if they do not."""
    if "in_float" in op.options:
        return str(op.options["in_float"])
    if op.outputs[0].dtype != "float32" or all(t is None or t.dtype != "float32" for t in op.inputs):
        return None
    if op.kind in _SUMS:
        return "float32 sums in another order than ONNX Runtime's"
    if op.kind in elementwise.FUNCTIONS:
        return "a float32 function, which ONNX Runtime approximates"
    return None
