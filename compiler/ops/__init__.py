"""The operator table: what the compiler knows of each operator, a file an operator or family.

An entry states how the accelerator runs it, if it can (`layer`), or that it only renames bytes (`view`). What an
operator computes is in `nnloom.arch.reference`, its CPU code in `nnloom.compiler.cpu`. Operators without an entry run
on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping

from . import (
    add,
    broadcast,
    convolution,
    extremum,
    fully_connected,
    interleave,
    lookup,
    movement,
    mul,
    pointwise,
    pooling,
    reduce,
    space_to_depth,
    view,
)
from .operator import LayoutConflict, Made, Operands, Operator, Refusal

__all__ = ["OPERATORS", "LayoutConflict", "Made", "Operands", "Operator", "Refusal"]

OPERATORS: Mapping[str, Operator] = {
    "ABS": lookup.LOOKUP,
    "ADD": add.ADD,
    "AVERAGE_POOL_2D": pooling.AVERAGE_POOL_2D,
    "BATCH_TO_SPACE_ND": interleave.BATCH_TO_SPACE_ND,
    "CONCATENATION": movement.CONCATENATION,
    "CONV_2D": convolution.CONV_2D,
    "DEPTH_TO_SPACE": interleave.DEPTH_TO_SPACE,
    "DEPTHWISE_CONV_2D": convolution.DEPTHWISE_CONV_2D,
    "DIV": lookup.LOOKUP,
    "ELU": lookup.LOOKUP,
    "EXP": lookup.LOOKUP,
    "EXPAND_DIMS": view.VIEW,
    "FULLY_CONNECTED": fully_connected.FULLY_CONNECTED,
    "GATHER": movement.CUT,
    "GELU": lookup.LOOKUP,
    "HARD_SWISH": lookup.LOOKUP,
    "LEAKY_RELU": extremum.LEAKY_RELU,
    "LOG": lookup.LOOKUP,
    "LOGISTIC": lookup.LOOKUP,
    "MAXIMUM": extremum.MAXIMUM,
    "MAX_POOL_2D": pooling.MAX_POOL_2D,
    "MEAN": reduce.MEAN,
    "MINIMUM": extremum.MINIMUM,
    "MUL": mul.MUL,
    "NEG": lookup.LOOKUP,
    "PACK": movement.CONCATENATION,
    "PAD": movement.PAD,
    "PADV2": movement.PAD,
    "PRELU": extremum.PRELU,
    "QUANTIZE": pointwise.RESCALING,
    "REDUCE_MAX": reduce.REDUCE_MAX,
    "RELU": pointwise.RESCALING,
    "RELU6": pointwise.RESCALING,
    "RELU_0_TO_1": pointwise.RESCALING,
    "RELU_N1_TO_1": pointwise.RESCALING,
    "RESHAPE": view.VIEW,
    "RESIZE_BILINEAR": broadcast.RESIZE_BILINEAR,
    "RESIZE_NEAREST_NEIGHBOR": interleave.RESIZE_NEAREST_NEIGHBOR,
    "RSQRT": lookup.LOOKUP,
    "SLICE": movement.CUT,
    "SPACE_TO_DEPTH": space_to_depth.SPACE_TO_DEPTH,
    "SPLIT": movement.CUT,
    "SPLIT_V": movement.CUT,
    "SQRT": lookup.LOOKUP,
    "SQUARED_DIFFERENCE": lookup.SQUARED_DIFFERENCE,
    "SQUEEZE": view.VIEW,
    "STRIDED_SLICE": movement.CUT,
    "SUB": add.SUB,
    "SUM": reduce.SUM,
    "TABLE": lookup.LOOKUP,
    "TANH": lookup.LOOKUP,
    "TRANSPOSE": movement.CUT,
    "TRANSPOSE_CONV": convolution.TRANSPOSE_CONV,
    "UNPACK": movement.CUT,
}
