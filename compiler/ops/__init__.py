"""The operator table: what the compiler knows of each operator, a file an operator or family.

An entry states how the accelerator runs it, if it can (`layer`), or that it only renames bytes (`view`). What an
operator computes is in `nnloom.arch.reference`, its CPU code in `nnloom.compiler.cpu`. Operators without an entry run
on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping

from . import add, convolution, fully_connected, pointwise, pooling, reduce, view
from .operator import LayoutConflict, Operands, Operator, Refusal

__all__ = ["OPERATORS", "LayoutConflict", "Operands", "Operator", "Refusal"]

OPERATORS: Mapping[str, Operator] = {
    "ADD": add.ADD,
    "AVERAGE_POOL_2D": pooling.AVERAGE_POOL_2D,
    "CONV_2D": convolution.CONV_2D,
    "DEPTHWISE_CONV_2D": convolution.DEPTHWISE_CONV_2D,
    "EXPAND_DIMS": view.VIEW,
    "FULLY_CONNECTED": fully_connected.FULLY_CONNECTED,
    "MAX_POOL_2D": pooling.MAX_POOL_2D,
    "MEAN": reduce.MEAN,
    "MAXIMUM": pointwise.MAXIMUM,
    "MINIMUM": pointwise.MINIMUM,
    "MUL": pointwise.MUL,
    "QUANTIZE": pointwise.RESCALING,
    "RELU": pointwise.RESCALING,
    "RELU6": pointwise.RESCALING,
    "RELU_0_TO_1": pointwise.RESCALING,
    "RELU_N1_TO_1": pointwise.RESCALING,
    "SUB": pointwise.SUB,
    "RESHAPE": view.VIEW,
    "SQUEEZE": view.VIEW,
    "SUM": reduce.SUM,
    "TRANSPOSE_CONV": convolution.TRANSPOSE_CONV,
}
