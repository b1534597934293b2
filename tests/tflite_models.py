"""Writes small quantized TFLite files with random weights, operator by operator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

_PADDING = {"SAME": schema.Padding.SAME, "VALID": schema.Padding.VALID}
_ACTIVATION = {
    None: schema.ActivationFunctionType.NONE,
    "relu": schema.ActivationFunctionType.RELU,
    "relu6": schema.ActivationFunctionType.RELU6,
    "relu_n1_to_1": schema.ActivationFunctionType.RELU_N1_TO_1,
}

_VERSION = {schema.BuiltinOperator.FULLY_CONNECTED: 4, schema.BuiltinOperator.TRANSPOSE_CONV: 3} | dict.fromkeys(
    (
        schema.BuiltinOperator.RESHAPE,
        schema.BuiltinOperator.DENSIFY,
        schema.BuiltinOperator.CUSTOM,
        schema.BuiltinOperator.PRELU,
        schema.BuiltinOperator.RELU_N1_TO_1,
        schema.BuiltinOperator.RELU_0_TO_1,
        schema.BuiltinOperator.HARD_SWISH,
        schema.BuiltinOperator.CALL_ONCE,
        schema.BuiltinOperator.VAR_HANDLE,
        schema.BuiltinOperator.READ_VARIABLE,
        schema.BuiltinOperator.ASSIGN_VARIABLE,
    ),
    1,
)
"""Operator versions with int8 kernels; 2 for the others"""


class ModelWriter:
    """A model under construction. Operators take and return tensor indices; activations are int8 NHWC."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.tensors: list[Any] = []
        self.operators: list[Any] = []
        self.inputs: list[int] = []
        self.subgraphs: list[Any] = []
        """beside the network itself"""
        self._codes: list[int | str] = []
        empty = schema.BufferT()
        empty.data = None
        self._buffers = [empty]

    def tensor(
        self,
        shape: tuple[int, ...],
        *,
        scale: Any = None,
        zero_point: Any = None,
        dtype: str = "INT8",
        data: Any = None,
    ) -> int:
        """Add a tensor; scale and zero point are numbers, or arrays for each last-axis channel."""
        item = schema.TensorT()
        item.name = f"tensor_{len(self.tensors)}"
        item.shape = np.array(shape, np.int32)
        item.type = getattr(schema.TensorType, dtype)
        item.buffer = 0
        if scale is not None:
            item.quantization = schema.QuantizationParametersT()
            item.quantization.scale = np.atleast_1d(np.asarray(scale, np.float32))
            zero_points = np.zeros_like(item.quantization.scale) if zero_point is None else zero_point
            item.quantization.zeroPoint = np.atleast_1d(np.asarray(zero_points, np.int64))
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self._buffers.append(buffer)
            item.buffer = len(self._buffers) - 1
        self.tensors.append(item)
        return len(self.tensors) - 1

    def input(self, shape: tuple[int, ...], dtype: str = "INT8", scale: float | None = None) -> int:
        quantized = dtype == "INT8"
        step = float(self.rng.uniform(0.01, 0.1)) if scale is None else scale
        point = int(self.rng.integers(-128, 128))
        index = self.tensor(
            shape, dtype=dtype, scale=step if quantized else None, zero_point=point if quantized else None
        )
        self.inputs.append(index)
        return index

    def operator(self, name: str, inputs: list[int], output: int, options: Any = None) -> int:
        self.operators.append(self._operator(name, inputs, [output], options))
        return output

    def _operator(self, name: str, inputs: Sequence[int], outputs: Sequence[int], options: Any = None) -> Any:
        code = getattr(schema.BuiltinOperator, name)
        if code not in self._codes:
            self._codes.append(code)
        op = schema.OperatorT()
        op.opcodeIndex = self._codes.index(code)
        op.inputs = np.array(inputs, np.int32)
        op.outputs = np.array(outputs, np.int32)
        if options is not None:
            op.builtinOptions = options
            op.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        return op

    def variable(self, shape: tuple[int, ...], **type_of_tensor: Any) -> int:
        """A variable tensor."""
        index = self.tensor(shape, **type_of_tensor)
        self.tensors[index].isVariable = True
        return index

    def handle(self, name: str, container: str = "") -> int:
        """VAR_HANDLE of a resource variable."""
        options = schema.VarHandleOptionsT()
        options.container, options.sharedName = container, name
        return self.operator("VAR_HANDLE", [], self.tensor((1,), dtype="RESOURCE"), options)

    def read(self, handle: int, shape: tuple[int, ...], **type_of_tensor: Any) -> int:
        """READ_VARIABLE."""
        return self.operator("READ_VARIABLE", [handle], self.tensor(shape, **type_of_tensor))

    def assign(self, handle: int, x: int) -> None:
        """ASSIGN_VARIABLE."""
        self.operators.append(self._operator("ASSIGN_VARIABLE", [handle, x], []))

    def call_once(self, values: Mapping[str, NDArray], container: str = "") -> None:
        """CALL_ONCE of a subgraph that assigns constants to resource variables."""
        outer = self.tensors, self.operators
        self.tensors, self.operators = [], []
        for name, value in values.items():
            dtype = str(value.dtype).upper()
            quantized = {"scale": 0.05, "zero_point": 0} if dtype == "INT8" else {}
            constant = self.tensor(value.shape, dtype=dtype, data=value, **quantized)
            self.assign(self.handle(name, container), constant)
        graph = schema.SubGraphT()
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs = graph.outputs = np.zeros(0, np.int32)
        self.tensors, self.operators = outer
        self.subgraphs.append(graph)
        options = schema.CallOnceOptionsT()
        options.initSubgraphIndex = len(self.subgraphs)
        self.operators.append(self._operator("CALL_ONCE", [], [], options))

    def concatenate(self, axis: int, *operands: int) -> int:
        options = schema.ConcatenationOptionsT()
        options.axis = axis
        shape = list(self.shape(operands[0]))
        shape[axis] = sum(self.shape(x)[axis] for x in operands)
        q = self.tensors[operands[0]].quantization
        output = self.tensor(tuple(shape), scale=q.scale, zero_point=q.zeroPoint)
        return self.operator("CONCATENATION", list(operands), output, options)

    def slice(self, x: int, begin: Sequence[int], size: Sequence[int]) -> int:
        q = self.tensors[x].quantization
        operands = [self.tensor((len(v),), dtype="INT32", data=np.array(v, np.int32)) for v in (begin, size)]
        output = self.tensor(tuple(size), scale=q.scale, zero_point=q.zeroPoint)
        return self.operator("SLICE", [x, *operands], output, schema.SliceOptionsT())

    def custom(self, name: str, inputs: list[int], outputs: list[int], options: bytes) -> None:
        """A custom operator; `options` in FlexBuffers' form."""
        if name not in self._codes:
            self._codes.append(name)
        op = schema.OperatorT()
        op.opcodeIndex = self._codes.index(name)
        op.inputs, op.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        op.customOptions = np.frombuffer(options, np.uint8)
        self.operators.append(op)

    def shape(self, index: int) -> tuple[int, ...]:
        return tuple(int(v) for v in self.tensors[index].shape)

    def scale(self, index: int) -> float:
        return float(self.tensors[index].quantization.scale[0])

    def _product(self, x: int, shape: tuple[int, ...], axis: int, depth: int, output_shape: tuple[int, ...]):
        """Weight, bias and output tensors of a product with `depth` terms; scales in proportion."""
        channels = shape[axis]
        weight_scale = self.rng.uniform(0.001, 0.02, channels).astype(np.float32)
        weights = self.tensor(shape, scale=weight_scale, data=self.rng.integers(-127, 128, shape, np.int8))
        self.tensors[weights].quantization.quantizedDimension = axis if channels > 1 else 0
        bias = self.tensor(
            (channels,),
            dtype="INT32",
            scale=weight_scale * np.float32(self.scale(x)),
            data=self.rng.integers(-1000, 1000, channels).astype(np.int32),
        )
        out_scale = self.scale(x) * 0.02 * math.sqrt(depth) * 40
        output = self.tensor(output_shape, scale=out_scale, zero_point=int(self.rng.integers(-128, 128)))
        return weights, bias, output

    def _spatial(self, x: int, kernel: tuple[int, int], options: Any) -> tuple[int, int]:
        dilation = (getattr(options, "dilationHFactor", 1), getattr(options, "dilationWFactor", 1))
        result = []
        for size, k, s, d in zip(self.shape(x)[1:3], kernel, (options.strideH, options.strideW), dilation, strict=True):
            reach = (k - 1) * d + 1
            result.append(-(-size // s) if options.padding == schema.Padding.SAME else (size - reach) // s + 1)
        return result[0], result[1]

    @staticmethod
    def _window(options: Any, strides: tuple[int, int], padding: str, activation: str | None) -> Any:
        options.strideH, options.strideW = strides
        options.padding = _PADDING[padding]
        options.fusedActivationFunction = _ACTIVATION[activation]
        return options

    def conv(
        self,
        x: int,
        channels: int,
        kernel: tuple[int, int] = (3, 3),
        strides: tuple[int, int] = (1, 1),
        padding: str = "SAME",
        activation: str | None = "relu",
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
    ) -> int:
        options = self._window(schema.Conv2DOptionsT(), strides, padding, activation)
        options.dilationHFactor, options.dilationWFactor = dilation
        depth = self.shape(x)[3] // groups
        shape = (channels, *kernel, depth)
        out = (self.shape(x)[0], *self._spatial(x, kernel, options), channels)
        weights, bias, output = self._product(x, shape, 0, math.prod(shape[1:]), out)
        return self.operator("CONV_2D", [x, weights, bias], output, options)

    def depthwise(
        self,
        x: int,
        kernel: tuple[int, int] = (3, 3),
        strides: tuple[int, int] = (1, 1),
        padding: str = "SAME",
        activation: str | None = "relu",
        multiplier: int = 1,
        dilation: tuple[int, int] = (1, 1),
    ) -> int:
        options = self._window(schema.DepthwiseConv2DOptionsT(), strides, padding, activation)
        options.depthMultiplier = multiplier
        options.dilationHFactor, options.dilationWFactor = dilation
        channels = self.shape(x)[3] * multiplier
        out = (self.shape(x)[0], *self._spatial(x, kernel, options), channels)
        weights, bias, output = self._product(x, (1, *kernel, channels), 3, math.prod(kernel), out)
        return self.operator("DEPTHWISE_CONV_2D", [x, weights, bias], output, options)

    def transpose_conv(
        self, x: int, channels: int, kernel: tuple[int, int], strides: tuple[int, int], padding: str = "SAME"
    ) -> int:
        options = schema.TransposeConvOptionsT()
        options.strideH, options.strideW = strides
        options.padding = _PADDING[padding]
        reach = [0, 0] if padding == "SAME" else [k - s for k, s in zip(kernel, strides, strict=True)]
        sizes = [n * s + r for n, s, r in zip(self.shape(x)[1:3], strides, reach, strict=True)]
        shape = (channels, *kernel, self.shape(x)[3])
        weights, bias, output = self._product(x, shape, 0, math.prod(shape[1:]), (1, *sizes, channels))
        target = self.tensor((4,), dtype="INT32", data=np.array([1, *sizes, channels], np.int32))
        return self.operator("TRANSPOSE_CONV", [target, weights, x, bias], output, options)

    def dense(self, x: int, outputs: int, activation: str | None = None, rows: int = 1) -> int:
        """rows: of the operand, each of which has a row of outputs."""
        options = schema.FullyConnectedOptionsT()
        options.fusedActivationFunction = _ACTIVATION[activation]
        count = math.prod(self.shape(x)) // rows
        weights, bias, output = self._product(x, (outputs, count), 0, count, (rows, outputs))
        # Fully connected weights have one scale.
        for index in (weights, bias):
            q = self.tensors[index].quantization
            q.scale, q.zeroPoint, q.quantizedDimension = q.scale[:1], q.zeroPoint[:1], 0
        return self.operator("FULLY_CONNECTED", [x, weights, bias], output, options)

    def pool(
        self,
        x: int,
        kind: str,
        window: tuple[int, int],
        strides: tuple[int, int],
        padding: str = "VALID",
        activation: str | None = None,
    ) -> int:
        options = self._window(schema.Pool2DOptionsT(), strides, padding, activation)
        options.filterHeight, options.filterWidth = window
        out = (1, *self._spatial(x, window, options), self.shape(x)[3])
        q = self.tensors[x].quantization
        output = self.tensor(out, scale=q.scale, zero_point=q.zeroPoint)
        return self.operator(f"{kind}_POOL_2D", [x], output, options)

    def add(self, a: int, b: int, activation: str | None = None) -> int:
        options = schema.AddOptionsT()
        options.fusedActivationFunction = _ACTIVATION[activation]
        shape = np.broadcast_shapes(self.shape(a), self.shape(b))
        scale = 1.3 * max(self.scale(a), self.scale(b))
        output = self.tensor(shape, scale=scale, zero_point=int(self.rng.integers(-128, 128)))
        return self.operator("ADD", [a, b], output, options)

    def binary(
        self, name: str, a: int, b: int, scale: float, *, zero_point: int | None = None, activation: str | None = None
    ) -> int:
        """An operator on two tensors."""
        table = {"MAXIMUM": "MaximumMinimum", "MINIMUM": "MaximumMinimum"}.get(name, name.capitalize())
        options = getattr(schema, f"{table}OptionsT")()
        if hasattr(options, "fusedActivationFunction"):
            options.fusedActivationFunction = _ACTIVATION[activation]
        shape = np.broadcast_shapes(self.shape(a), self.shape(b))
        point = int(self.rng.integers(-128, 128)) if zero_point is None else zero_point
        return self.operator(name, [a, b], self.tensor(shape, scale=scale, zero_point=point), options)

    def constant(self, shape: tuple[int, ...], scale: float, zero_point: int | None = None) -> int:
        """A random int8 constant."""
        point = int(self.rng.integers(-128, 128)) if zero_point is None else zero_point
        values = self.rng.integers(-128, 128, shape, np.int8)
        return self.tensor(shape, scale=scale, zero_point=point, data=values)

    def unary(self, name: str, x: int, scale: float, zero_point: int | None = None) -> int:
        """An operator on one tensor, without options."""
        point = int(self.rng.integers(-128, 128)) if zero_point is None else zero_point
        return self.operator(name, [x], self.tensor(self.shape(x), scale=scale, zero_point=point))

    def reshape(self, x: int, shape: tuple[int, ...]) -> int:
        options = schema.ReshapeOptionsT()
        options.newShape = np.array(shape, np.int32)
        target = self.tensor((len(shape),), dtype="INT32", data=np.array(shape, np.int32))
        q = self.tensors[x].quantization
        return self.operator("RESHAPE", [x, target], self.tensor(shape, scale=q.scale, zero_point=q.zeroPoint), options)

    def pad(self, x: int, widths: Sequence[tuple[int, int]], value: int | None = None) -> int:
        """PAD, or PADV2 with a value."""
        q = self.tensors[x].quantization
        shape = tuple(n + before + after for n, (before, after) in zip(self.shape(x), widths, strict=True))
        output = self.tensor(shape, scale=q.scale, zero_point=q.zeroPoint)
        operands = [x, self.tensor((len(widths), 2), dtype="INT32", data=np.array(widths, np.int32))]
        if value is None:
            return self.operator("PAD", operands, output, schema.PadOptionsT())
        operands.append(self.tensor((), scale=q.scale, zero_point=q.zeroPoint, data=np.array(value, np.int8)))
        return self.operator("PADV2", operands, output, schema.PadV2OptionsT())

    def space_to_batch(self, x: int, block: tuple[int, int], pads: Sequence[tuple[int, int]]) -> int:
        n, rows, columns, channels = self.shape(x)
        sizes = [(v + sum(p)) // b for v, p, b in zip((rows, columns), pads, block, strict=True)]
        return self._batches("SPACE_TO_BATCH_ND", x, (n * math.prod(block), *sizes, channels), block, pads)

    def batch_to_space(self, x: int, block: tuple[int, int], crops: Sequence[tuple[int, int]]) -> int:
        n, rows, columns, channels = self.shape(x)
        sizes = [v * b - sum(c) for v, c, b in zip((rows, columns), crops, block, strict=True)]
        return self._batches("BATCH_TO_SPACE_ND", x, (n // math.prod(block), *sizes, channels), block, crops)

    def _batches(self, name: str, x: int, shape: tuple[int, ...], block: tuple[int, int], edges: Any) -> int:
        q = self.tensors[x].quantization
        operands = [self.tensor(np.shape(v), dtype="INT32", data=np.array(v, np.int32)) for v in (block, edges)]
        return self.operator(name, [x, *operands], self.tensor(shape, scale=q.scale, zero_point=q.zeroPoint))

    def softmax(self, x: int) -> int:
        options = schema.SoftmaxOptionsT()
        options.beta = 1.0
        return self.operator("SOFTMAX", [x], self.tensor(self.shape(x), scale=1 / 256, zero_point=-128), options)

    def quantize(self, x: int, scale: float, zero_point: int) -> int:
        output = self.tensor(self.shape(x), scale=scale, zero_point=zero_point)
        return self.operator("QUANTIZE", [x], output, schema.QuantizeOptionsT())

    def dequantize(self, x: int) -> int:
        return self.operator(
            "DEQUANTIZE", [x], self.tensor(self.shape(x), dtype="FLOAT32"), schema.DequantizeOptionsT()
        )

    def finish(self, *outputs: int) -> bytes:
        """The file."""
        import flatbuffers

        graph = schema.SubGraphT()
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs, graph.outputs = np.array(self.inputs, np.int32), np.array(outputs, np.int32)
        model = schema.ModelT()
        model.version = 3
        model.buffers = self._buffers
        model.subgraphs = [graph, *self.subgraphs]
        model.operatorCodes = []
        for code in self._codes:
            entry = schema.OperatorCodeT()
            if isinstance(code, str):
                entry.customCode, code = code, schema.BuiltinOperator.CUSTOM
            entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = code, min(code, 127), _VERSION.get(code, 2)
            model.operatorCodes.append(entry)
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


def edited(data: bytes, edit: Any) -> bytes:
    """A TFLite file with `edit(model)` applied to its object form."""
    import flatbuffers

    model = schema.ModelT.InitFromPackedBuf(data, 0)
    edit(model)
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def as_uint8(data: bytes, rng: np.random.Generator, *, wide: bool = True) -> bytes:
    """An int8 network as the uint8 one with the same shapes, as old converters made them.

    Weights are of one scale and any zero point, drawn anew; `wide`: less their zero point many are beyond int8.
    """
    products = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")

    def edit(model: Any) -> None:
        (graph,) = model.subgraphs
        kinds = [model.operatorCodes[op.opcodeIndex] for op in graph.operators]
        codes = [getattr(schema.BuiltinOperator, name) for name in products]
        weighted = [
            op
            for op, kind in zip(graph.operators, kinds, strict=True)
            if max(kind.builtinCode, kind.deprecatedBuiltinCode) in codes
        ]
        turned = set()
        for index, tensor in enumerate(graph.tensors):
            if tensor.type != schema.TensorType.INT8:
                continue
            tensor.type = schema.TensorType.UINT8
            q, buffer = tensor.quantization, model.buffers[tensor.buffer]
            q.zeroPoint = np.array(q.zeroPoint, np.int64) + 128
            if buffer.data is None:
                continue
            if tensor.buffer not in turned:
                buffer.data = np.array(buffer.data, np.uint8) ^ 0x80
                turned.add(tensor.buffer)
            if any(op.inputs[1] == index for op in weighted):
                q.scale, q.quantizedDimension = np.median(q.scale).astype(np.float32).reshape(1), 0
                q.zeroPoint = np.array([int(rng.choice([0, 100, 151, 255])) if wide else 128], np.int64)
        for op, kind in zip(graph.operators, kinds, strict=True):
            turned_round = max(kind.builtinCode, kind.deprecatedBuiltinCode) == schema.BuiltinOperator.TRANSPOSE_CONV
            place = 3 if turned_round else 2
            if op not in weighted or len(op.inputs) <= place or op.inputs[place] < 0:
                continue
            bias, source = graph.tensors[op.inputs[place]], graph.tensors[op.inputs[2 if turned_round else 0]]
            q = bias.quantization
            if q is None or bias.type != schema.TensorType.INT32:
                continue
            q.scale = np.float32(source.quantization.scale[0]) * graph.tensors[op.inputs[1]].quantization.scale
            q.zeroPoint, q.quantizedDimension = np.zeros(1, np.int64), 0

    return edited(data, edit)


def random_input(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.int8]:
    return rng.integers(-128, 128, shape, np.int8)
