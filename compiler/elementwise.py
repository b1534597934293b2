"""Operators that compute each value of their output from one value of each operand, by the names of TFLite."""

from __future__ import annotations

__all__ = ["BINARY", "ELEMENTWISE", "UNARY"]

UNARY = (
    "ABS",
    "CAST",
    "DEQUANTIZE",
    "ELU",
    "EXP",
    "GELU",
    "HARD_SWISH",
    "LEAKY_RELU",
    "LOG",
    "LOGISTIC",
    "NEG",
    "QUANTIZE",
    "RELU",
    "RELU6",
    "RELU_0_TO_1",
    "RELU_N1_TO_1",
    "RSQRT",
    "SQRT",
    "SQUARE",
    "TANH",
)
BINARY = ("ADD", "DIV", "MAXIMUM", "MINIMUM", "MUL", "PRELU", "SQUARED_DIFFERENCE", "SUB")
ELEMENTWISE = (*UNARY, *BINARY)
