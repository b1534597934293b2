"""What TVM's TFLite importer needs to know more: a converter for its `op_converter` hook.

Exporters compute the shape of a RESHAPE at run time (SHAPE -> STRIDED_SLICE -> PACK) even where every
dimension is fixed, and TVM's importer refuses a shape that is an expression. The converter here gives the
importer the values instead, flattens operands of fully connected layers, and rounds activation bounds as TFLite.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["folding_converter"]


@cache
def folding_converter() -> type:
    """TVM's `OperatorConverter`, extended; a class, made when TVM is first needed."""
    from tflite.FullyConnectedOptions import FullyConnectedOptions
    from tflite.PackOptions import PackOptions
    from tflite.StridedSliceOptions import StridedSliceOptions
    from tvm import relax
    from tvm.relax.frontend.tflite.tflite_frontend import OperatorConverter, get_tensor_name

    class FoldingConverter(OperatorConverter):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._folded: dict[int, NDArray] = {}
            for name, fold in (("SHAPE", self._shape), ("STRIDED_SLICE", self._strided_slice), ("PACK", self._pack)):
                self.convert_map[name] = self._folding(fold, self.convert_map[name])
            # A shape does not depend on the values, quantized or not.
            self._SUPPORTED_QUANTIZED_OPS = OperatorConverter._SUPPORTED_QUANTIZED_OPS | {"SHAPE"}

        def get_tensor_value(self, tensor_wrapper: Any, is_sparse: bool = False) -> NDArray:
            folded = self._folded.get(tensor_wrapper.tensor_idx)
            return super().get_tensor_value(tensor_wrapper, is_sparse) if folded is None else folded

        def convert_qnn_fused_activation_function(
            self, expr: Any, fused_activation_fn: int, scale: float, zero_point: int, dtype: str
        ) -> Any:
            """Clamp to the activation's range; bounds by TFLite's rule (float32, half away from zero)."""
            bounds = {"NONE": None, "RELU": (0.0, None), "RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0)}
            name = self.activation_fn_type[fused_activation_fn]
            if dtype != "int8" or name not in bounds:
                return super().convert_qnn_fused_activation_function(
                    expr, fused_activation_fn, scale, zero_point, dtype
                )
            limits = bounds[name]
            if limits is None:
                return expr
            low, high = (None if v is None else _quantize_bound(v, scale, zero_point) for v in limits)
            return relax.op.clip(expr, min=-128 if low is None else low, max=127 if high is None else high)

        def convert_fully_connected(self, op: Any) -> Any:
            """TFLite flattens an operand of more than two dimensions; TVM would multiply its last one only."""
            source, weights = self.get_input_tensors(op)[:2]
            options = self._get_builtin_options(op, FullyConnectedOptions)
            if len(self.get_tensor_shape(source)) <= 2 or options.KeepNumDims():
                return super().convert_fully_connected(op)
            name = get_tensor_name(self.subgraph, source.tensor_idx)
            expr = self.get_tensor_expr(source)
            inputs = int(self.get_tensor_shape(weights)[1])
            self.exp_tab.set_expr(name, self.bb.normalize(relax.op.reshape(expr, (-1, inputs))), force_override=True)
            result = self.bb.normalize(super().convert_fully_connected(op))
            self.exp_tab.set_expr(name, expr, force_override=True)
            return result

        def _folding(self, fold: Any, convert: Any) -> Any:
            def converter(op: Any) -> Any:
                result = fold(op)
                if result is None:
                    return convert(op)
                (output,) = self.get_output_tensors(op)
                self._folded[output.tensor_idx] = result
                return None  # "optimized out", in the importer's terms

            return converter

        def _constants(self, op: Any) -> list[NDArray] | None:
            """Values of the integer operands, None unless all are known."""
            values = []
            for tensor in self.get_input_tensors(op):
                if tensor.tensor_idx in self._folded:
                    values.append(self._folded[tensor.tensor_idx])
                elif tensor.buffer.DataLength() and tensor.qnn_params is None:
                    values.append(self.get_tensor_value(tensor))
                else:
                    return None
            return values

        def _shape(self, op: Any) -> NDArray:
            (source,), (output,) = self.get_input_tensors(op), self.get_output_tensors(op)
            return np.array(self.get_tensor_shape(source), self.get_tensor_type_as_numpy(output))

        def _strided_slice(self, op: Any) -> NDArray | None:
            values = self._constants(op)
            options = self._get_builtin_options(op, StridedSliceOptions)
            if values is None or values[0].ndim != 1 or options.EllipsisMask() or options.NewAxisMask():
                return None
            source, begin, end, strides = values
            part = source[
                slice(
                    None if options.BeginMask() & 1 else int(begin[0]),
                    None if options.EndMask() & 1 else int(end[0]),
                    int(strides[0]),
                )
            ]
            return part[0] if options.ShrinkAxisMask() & 1 else part

        def _pack(self, op: Any) -> NDArray | None:
            values = self._constants(op)
            return None if values is None else np.stack(values, axis=self._get_builtin_options(op, PackOptions).Axis())

    return FoldingConverter


def _quantize_bound(value: float, scale: float, zero_point: int) -> int:
    """Bound of an activation as int8 (TFLite `CalculateActivationRangeQuantized`)."""
    scaled = np.float32(value) / np.float32(scale)
    rounded = int(np.trunc(scaled + np.copysign(np.float32(0.5), scaled)))
    return max(-128, min(127, rounded + zero_point))
