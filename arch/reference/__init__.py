"""NumPy references of operators: what every other implementation must reproduce bit for bit.

`evaluate` computes an operator as the TFLite reference kernels (LiteRT `BUILTIN_REF`) do, or, with the rounding "onnx",
as ONNX Runtime does. It is used where there is no
TVM, where an operator has no CPU code of its own, to fill the tables of operators on one int8 value, to fold constants,
and as the definition in tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
from numpy.typing import NDArray

from ..dtypes import INT8, held_as
from ..errors import UnsupportedOperatorError
from ..operation import Operation
from . import (
    activations,
    convolution,
    data_movement,
    elementwise,
    onnx,
    pooling,
    quantization,
    recurrent,
    reduce,
    resize,
    softmax,
)
from .detection import DETECTION_POSTPROCESS, detection_postprocess
from .hybrid import is_hybrid
from .recurrent import initial_state

__all__ = ["REFERENCES", "STATES", "Reference", "evaluate", "initial_state", "is_exact"]

Reference = Callable[[Operation, Sequence[NDArray | None]], Sequence[NDArray]]
"""The operator and its operands, as NumPy arrays of the shapes and types that it states -> its outputs."""

REFERENCES: dict[str, Reference] = {
    "ABS": activations.abs_,
    "ADD": elementwise.add,
    "ADD_N": elementwise.add_n,
    "ARG_MAX": reduce.arg_max,
    "ARG_MIN": reduce.arg_min,
    "AVERAGE_POOL_2D": pooling.average_pool_2d,
    "BATCH_MATMUL": convolution.batch_matmul,
    "BATCH_TO_SPACE_ND": data_movement.batch_to_space_nd,
    "BITWISE_XOR": elementwise.bitwise_xor,
    "BROADCAST_ARGS": data_movement.broadcast_args,
    "BROADCAST_TO": data_movement.broadcast_to,
    "CAST": quantization.cast,
    "CEIL": activations.ceil,
    "CONCATENATION": data_movement.concatenation,
    "CONV_2D": convolution.conv_2d,
    "COS": activations.cos,
    "CUMSUM": data_movement.cumsum,
    "DENSIFY": data_movement.densify,
    "DEPTHWISE_CONV_2D": convolution.depthwise_conv_2d,
    "DEPTH_TO_SPACE": data_movement.depth_to_space,
    "DEQUANTIZE": quantization.dequantize,
    "DILATE": data_movement.dilate,
    "DIV": elementwise.div,
    "DYNAMIC_UPDATE_SLICE": data_movement.dynamic_update_slice,
    "ELU": activations.elu,
    "EMBEDDING_LOOKUP": data_movement.embedding_lookup,
    "EQUAL": elementwise.equal,
    "EXP": activations.exp,
    "EXPAND_DIMS": data_movement.expand_dims,
    "FILL": data_movement.fill,
    "FLOOR": activations.floor,
    "FLOOR_DIV": elementwise.floor_div,
    "FLOOR_MOD": elementwise.floor_mod,
    "FULLY_CONNECTED": convolution.fully_connected,
    "GATHER": data_movement.gather,
    "GATHER_ND": data_movement.gather_nd,
    "GELU": activations.gelu,
    "GREATER": elementwise.greater,
    "GREATER_EQUAL": elementwise.greater_equal,
    "HARD_SWISH": activations.hard_swish,
    "L2_NORMALIZATION": activations.l2_normalization,
    "L2_POOL_2D": pooling.l2_pool_2d,
    "LEAKY_RELU": activations.leaky_relu,
    "LESS": elementwise.less,
    "LESS_EQUAL": elementwise.less_equal,
    "LOG": activations.log,
    "LOGICAL_AND": elementwise.logical_and,
    "LOGICAL_NOT": elementwise.logical_not,
    "LOGICAL_OR": elementwise.logical_or,
    "LOGISTIC": activations.logistic,
    "LOG_SOFTMAX": softmax.log_softmax,
    "MATRIX_DIAG": data_movement.matrix_diag,
    "MATRIX_SET_DIAG": data_movement.matrix_set_diag,
    "MAXIMUM": elementwise.maximum,
    "MAX_POOL_2D": pooling.max_pool_2d,
    "MEAN": reduce.mean,
    "MINIMUM": elementwise.minimum,
    "MIRROR_PAD": data_movement.mirror_pad,
    "MUL": elementwise.mul,
    "NEG": activations.neg,
    "NOT_EQUAL": elementwise.not_equal,
    "ONE_HOT": data_movement.one_hot,
    "PACK": data_movement.pack,
    "PAD": data_movement.pad,
    "PADV2": data_movement.padv2,
    "POW": elementwise.pow_,
    "PRELU": activations.prelu,
    "QUANTIZE": quantization.quantize,
    "RANGE": data_movement.range_,
    "RANK": data_movement.rank,
    "REDUCE_ALL": reduce.reduce_all,
    "REDUCE_ANY": reduce.reduce_any,
    "REDUCE_MAX": reduce.reduce_max,
    "REDUCE_MIN": reduce.reduce_min,
    "REDUCE_PROD": reduce.reduce_prod,
    "RELU": activations.relu,
    "RELU6": activations.relu6,
    "RELU_0_TO_1": activations.relu_0_to_1,
    "RELU_N1_TO_1": activations.relu_n1_to_1,
    "RESHAPE": data_movement.reshape,
    "RESIZE_BILINEAR": resize.resize_bilinear,
    "RESIZE_NEAREST_NEIGHBOR": resize.resize_nearest_neighbor,
    "REVERSE_SEQUENCE": data_movement.reverse_sequence,
    "REVERSE_V2": data_movement.reverse_v2,
    "RIGHT_SHIFT": elementwise.right_shift,
    "ROUND": activations.round_,
    "RSQRT": activations.rsqrt,
    "SCATTER_ND": data_movement.scatter_nd,
    "SEGMENT_SUM": data_movement.segment_sum,
    "SELECT": elementwise.select,
    "SELECT_V2": elementwise.select_v2,
    "SHAPE": data_movement.shape,
    "SIGN": activations.sign,
    "SIN": activations.sin,
    "SLICE": data_movement.slice_,
    "SOFTMAX": softmax.softmax,
    "SPACE_TO_BATCH_ND": data_movement.space_to_batch_nd,
    "SPACE_TO_DEPTH": data_movement.space_to_depth,
    "SPARSE_TO_DENSE": data_movement.sparse_to_dense,
    "SPLIT": data_movement.split,
    "SPLIT_V": data_movement.split_v,
    "SQRT": activations.sqrt,
    "SQUARE": activations.square,
    "SQUARED_DIFFERENCE": elementwise.squared_difference,
    "SQUEEZE": data_movement.squeeze,
    "STRIDED_SLICE": data_movement.strided_slice,
    "SUB": elementwise.sub,
    "SUM": reduce.sum_,
    "SVDF": recurrent.svdf,
    "TANH": activations.tanh,
    DETECTION_POSTPROCESS: detection_postprocess,
    "TILE": data_movement.tile,
    "TOPK_V2": data_movement.topk_v2,
    "TRANSPOSE": data_movement.transpose,
    "TRANSPOSE_CONV": convolution.transpose_conv,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": recurrent.unidirectional_sequence_lstm,
    "UNPACK": data_movement.unpack,
    "ZEROS_LIKE": data_movement.zeros_like,
}

STATES: dict[str, tuple[int, ...]] = {"SVDF": (4,), "UNIDIRECTIONAL_SEQUENCE_LSTM": (18, 19)}
"""Which operands of an operator are states that last from run to run; their new values are its last outputs"""


def evaluate(op: Operation, inputs: Sequence[NDArray | None]) -> tuple[NDArray, ...]:
    """Compute an operator.

    Parameters
    ----------
    op
        The operator; its output types say what is returned.
    inputs
        An array for each operand, None where one is left out. They are not changed.

    Returns
    -------
    Arrays of the shapes and types of `op.outputs` that own their memory.

    Raises
    ------
    UnsupportedOperatorError
        If there is no reference for the operator, its types or its options; the message says which.
    InputError
        If the operator is not defined for these values (division by 0, an index beyond the operand), for which
        LiteRT fails, too.
    """
    reference = (onnx.REFERENCES if op.rounding == "onnx" else REFERENCES).get(op.kind)
    if reference is None:
        raise UnsupportedOperatorError(f"{op.kind}: no reference implementation")
    types = (*op.inputs, *op.outputs)
    # Floating point goes on with infinities and NaN, as in C; integers have nothing to be silent about.
    silent = np.errstate(all="ignore") if any(t and t.dtype.startswith("float") for t in types) else nullcontext()
    with silent:
        results = reference(op, inputs)
    return tuple(
        np.array(value, dtype=held_as(t.dtype)).reshape(t.shape) for value, t in zip(results, op.outputs, strict=True)
    )


_FLOAT_FUNCTIONS = {
    "COS",
    "ELU",
    "EXP",
    "GELU",
    "LOG",
    "LOGISTIC",
    "LOG_SOFTMAX",
    "POW",
    "SIN",
    "SOFTMAX",
    "TANH",
}


def is_exact(op: Operation) -> str | None:
    """Why an operator's reference is not bit-exact to LiteRT's reference kernel or ONNX Runtime; None where it is."""
    if op.rounding == "onnx":
        return onnx.why_inexact(op)
    if op.outputs[0].dtype == "float32" and op.kind in _FLOAT_FUNCTIONS:
        return "float32 functions are correctly rounded, those of LiteRT's C library are not always"
    if op.outputs[0].dtype == "float32" and op.kind in STATES:
        return "float32 sums in another order than LiteRT's, and float32 functions"
    if op.kind == "SUM" and op.outputs[0].dtype in (INT8, "int16"):
        return "LiteRT 2.3's reference kernel reads int8 and int16 as uint8; its other kernels do not"
    if op.kind == DETECTION_POSTPROCESS:
        return "the order of equal scores is LiteRT's by chance; places without a detection are zeros here"
    weights = op.inputs[1] if op.kind == "DEPTHWISE_CONV_2D" else None
    if weights and is_hybrid(op, 0, 1) and weights.quantization and weights.quantization.is_per_tensor:
        return "LiteRT reads a scale for each channel, also where the weights have a single one"
    return None
