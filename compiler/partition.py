"""Partitioning: which part of a Relax module runs on the accelerator.

FuseOpsByPattern turns each quantized operator that the configuration can run into a composite function,
MergeCompositeFunctions joins neighbours into regions; each region becomes a `LayerGraph` and, in Relax, one
call of a packed function. Everything else stays in Relax and is compiled for the CPU.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import ModelError

from .frontend.qdq import (
    Quantization,
    QuantizedOp,
    extract,
    is_constant,
    is_quantized_operator,
    operands,
    patterns,
    read_composite,
    resolver,
)
from .frontend.tflite import ImportedModel, TfliteTensor
from .graph import (
    Add,
    AveragePool2D,
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    Layer,
    LayerGraph,
    MaxPool2D,
    Padding,
    Tensor,
)
from .lower import unsupported_reason

if TYPE_CHECKING:
    import tvm

__all__ = ["ACCELERATOR_FUNCTION", "CpuOperator", "Partitioned", "make_layer", "partition"]

ACCELERATOR_FUNCTION = "nnloom.accelerator.{}"
"""Packed function that runs the region of that index: inputs, then preallocated outputs."""

_ACCELERATED = ("conv2d", "dense", "average_pool", "max_pool", "add", "flatten")


@dataclass(frozen=True)
class CpuOperator:
    """An operator that stays on the CPU, and why."""

    name: str
    op: str
    reason: str


@dataclass(frozen=True)
class Partitioned:
    """Regions for the accelerator and the Relax module around them."""

    model: ImportedModel
    graphs: tuple[LayerGraph, ...]
    module: tvm.IRModule
    """`main` with regions as calls of packed functions"""
    cpu_operators: tuple[CpuOperator, ...]


def _view(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """[rows, columns, channels] of a network shape."""
    if len(shape) == 4 and shape[0] == 1:
        return shape[1], shape[2], shape[3]
    if len(shape) == 2 and shape[0] == 1:
        return 1, 1, shape[1]
    raise ValueError(f"shape {shape}; the accelerator takes [1, rows, columns, channels] or [1, n]")


def _tensor(name: str, shape: tuple[int, ...], scale: float, zero_point: int) -> Tensor:
    rows, columns, channels = _view(shape)
    return Tensor(
        name=name, rows=rows, columns=columns, channels=channels, scale=scale, zero_point=zero_point, shape=shape
    )


def make_layer(op: QuantizedOp, name: str, inputs: tuple[Tensor, ...]) -> Layer:
    """The layer of a quantized operator.

    Raises
    ------
    ValueError
        If no layer kind covers it; the message says why.
    """
    quantization = op.output_quantization
    scale, zero_point = (
        (quantization.scale, quantization.zero_point) if quantization else (inputs[0].scale, inputs[0].zero_point)
    )
    output = _tensor(name, op.output_shape, scale, zero_point)
    common: dict[str, Any] = dict(name=name, inputs=inputs, output=output, act_min=op.act_min, act_max=op.act_max)
    top, left, bottom, right = op.padding
    padding = Padding(top, left, bottom, right)
    match op.kind:
        case "conv2d":
            assert op.weights is not None
            if op.dilation != (1, 1):
                raise ValueError(f"dilation {op.dilation}")
            common |= dict(weight_scales=op.weight_scales, bias=op.bias, strides=op.strides, padding=padding)
            channels = op.input_shapes[0][3]
            if op.groups == 1:
                return Conv2D(**common, weights=op.weights.transpose(3, 0, 1, 2))
            if op.groups != channels or op.weights.shape[2:] != (1, channels):
                raise ValueError("grouped convolution or depth multiplier above 1")
            return DepthwiseConv2D(**common, weights=op.weights[:, :, 0, :])
        case "dense":
            assert op.weights is not None and op.weight_scales is not None and op.bias is not None
            return FullyConnected(**common, weights=op.weights, weight_scales=op.weight_scales, bias=op.bias)
        case "average_pool":
            if any(op.padding):
                raise ValueError("average pool with padding")
            return AveragePool2D(**common, window=op.window, strides=op.strides)
        case "max_pool":
            return MaxPool2D(**common, window=op.window, strides=op.strides, padding=padding)
        case "add":
            return Add(**common)
    raise ValueError(f"no layer for {op.kind}")


def _refusal(op: QuantizedOp, config: AcceleratorConfig) -> str | None:
    """Why the accelerator cannot run an operator seen alone."""
    try:
        if op.kind == "flatten":
            _view(op.input_shapes[0])
            return None if len(op.output_shape) == 2 and op.output_shape[0] == 1 else "reshape other than flattening"
        if op.kind not in _ACCELERATED:
            return f"{op.kind} has no lowering"
        if any(is_constant(expr) for expr in op.inputs):
            return "constant operand"
        inputs = tuple(
            _tensor(f"input{i}", shape, q.scale if q else 1.0, q.zero_point if q else 0)
            for i, (shape, q) in enumerate(zip(op.input_shapes, op.input_quantization, strict=True))
        )
        return unsupported_reason(make_layer(op, "layer", inputs), config)
    except ValueError as error:
        return str(error)


class _Regions:
    """Reads region functions into layer graphs, and gives tensors the names they have in the file."""

    def __init__(self, model: ImportedModel) -> None:
        self._inputs = {info.name for info in model.inputs}
        self._pending = list(model.activations)
        self._found: list[tuple[TfliteTensor, str]] = []
        self._made_outside: list[tuple[tuple, str]] = []
        self._used = set(self._inputs)
        self._count = 0

    def name(self, kind: str, shape: tuple[int, ...], scale: float, zero_point: int) -> str:
        """Name of the next tensor of this size and quantization: the importer keeps order, but no names."""
        self._count += 1
        for item in self._pending:
            if (item.elements, item.scale, item.zero_point) == (math.prod(shape), scale, zero_point):
                self._pending.remove(item)
                self._found.append((item, self._unique(item.name.split(";")[0] or kind)))
                return self._found[-1][1]
        return self._unique(f"{kind}_{self._count}")

    def _input_name(self, given: str, shape: tuple[int, ...], scale: float, zero_point: int) -> str:
        """Name of a region's input: the network's, or that of the operator before the region."""
        if given in self._inputs:
            return given
        for item, name in reversed(self._found):
            if (item.elements, item.scale, item.zero_point) == (math.prod(shape), scale, zero_point):
                return name
        name = self.name("input", shape, scale, zero_point)
        self._made_outside.append(((math.prod(shape), scale, zero_point), name))
        return name

    def cpu_name(self, kind: str, shape: tuple[int, ...], scale: float, zero_point: int) -> str:
        """Name of what a CPU operator makes: a region's input has one already."""
        for item in self._made_outside:
            if item[0] == (math.prod(shape), scale, zero_point):
                self._made_outside.remove(item)
                return item[1]
        return self.name(kind, shape, scale, zero_point)

    def _unique(self, name: str) -> str:
        candidate, index = name, 1
        while candidate in self._used:
            candidate, index = f"{name}:{index}", index + 1
        self._used.add(candidate)
        return candidate

    def read(self, function: Any, graph_name: str) -> LayerGraph:
        """A function with attribute Codegen -> its layers, in order."""
        from tvm import relax

        tensors: dict[Any, Tensor] = {}
        local: dict[Any, Any] = {}
        layers: list[Layer] = []
        calls: list[tuple[Any, list[Any], QuantizedOp]] = []
        values: dict[Any, Any] = {}
        for block in function.body.blocks:
            for binding in block.bindings:
                value = binding.value
                values[binding.var] = value
                if isinstance(value, relax.Function):
                    local[binding.var] = value
                elif isinstance(value, relax.Call) and value.op in local:
                    op = read_composite(local[value.op])
                    calls.append((binding.var, operands(local[value.op], op, value), op))
        readers: dict[Any, list[QuantizedOp]] = {}
        for _, args, op in calls:
            for arg in args:
                readers.setdefault(arg, []).append(op)

        def quantization(var: Any) -> Quantization | None:
            """What a later dequantize says of a region input; pools and reshapes do not change it."""
            for out, args, op in calls:
                for arg, q in zip(args, op.input_quantization, strict=True):
                    found = (q or quantization(out)) if arg.same_as(var) else None
                    if found:
                        return found
            return None

        def source(arg: Any, op: QuantizedOp, index: int) -> Tensor:
            if arg not in tensors:
                q = quantization(arg) or Quantization(1.0, 0)
                shape = op.input_shapes[index]
                name = self._input_name(str(arg.name), shape, q.scale, q.zero_point)
                if name in {tensor.name for tensor in tensors.values()}:
                    name = self._unique(name)
                t = _tensor(name, shape, q.scale, q.zero_point)
                if all(reader.kind == "flatten" for reader in readers[arg]):
                    t = dataclasses.replace(t, rows=1, columns=1, channels=t.elements)
                tensors[arg] = t
            return tensors[arg]

        for var, args, op in calls:
            if op.kind == "flatten":
                tensors[var] = source(args[0], op, 0)
            else:
                inputs = tuple(source(arg, op, i) for i, arg in enumerate(args))
                q = op.output_quantization or Quantization(inputs[0].scale, inputs[0].zero_point)
                layer = make_layer(op, self.name(op.kind, op.output_shape, q.scale, q.zero_point), inputs)
                layers.append(layer)
                tensors[var] = layer.output
        result = function.body.body
        result = values.get(result, result)
        parts = list(result.fields) if isinstance(result, relax.Tuple) else [function.body.body]
        outputs = []
        for part in parts:
            shape = tuple(int(v) for v in part.ty.shape.values)
            outputs.append(dataclasses.replace(tensors[part], shape=shape))
        inputs = tuple(tensors[param] for param in function.params)
        return LayerGraph(graph_name, inputs, tuple(outputs), tuple(layers))


def partition(model: ImportedModel, config: AcceleratorConfig) -> Partitioned:
    """Split a model between accelerator and CPU.

    Raises
    ------
    ModelError
        If nothing of the model can run on the accelerator; the message gives the reasons.
    """
    from tvm import relax
    from tvm.ir import GlobalVar

    refused: dict[tuple, str] = {}

    def check(context: Any) -> bool:
        try:
            op = extract(context.matched_expr, resolver(context.matched_bindings))
        except ValueError:
            return False  # no quantized operator after all: TVM's own code runs it
        reason = _refusal(op, config)
        if reason:
            refused[_identity(op)] = reason
        return reason is None

    offered = [p for p in patterns("nnloom", check) if p[0].split(".")[1] in _ACCELERATED]
    module = relax.transform.FuseOpsByPattern(offered, bind_constants=True)(model.module)
    module = relax.transform.MergeCompositeFunctions()(module)
    regions = _Regions(model)
    graphs: list[LayerGraph] = []
    order: dict[Any, int | None] = {}
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            op = getattr(binding.value, "op", None)
            if isinstance(op, GlobalVar) and "Codegen" in module[op].attrs:
                graph = regions.read(module[op], f"region{len(graphs)}")
                order[op] = len(graphs) if graph.layers else None
                graphs += [graph] if graph.layers else []
    if not graphs:
        reasons = "; ".join(sorted(set(refused.values()))) or "no quantized operator found"
        raise ModelError(f"{model.name}: nothing can run on the accelerator ({reasons})")
    main = _outline(module, order)
    return Partitioned(model, tuple(graphs), main, _cpu_operators(main, refused, regions))


def _identity(op: QuantizedOp) -> tuple:
    """What tells a refused operator from others when it is met again."""
    return op.kind, op.input_shapes, op.output_shape, op.input_quantization, op.output_quantization


def _cpu_operators(main: tvm.IRModule, refused: dict[tuple, str], regions: _Regions) -> tuple[CpuOperator, ...]:
    """What is left in `main` beside the regions, in order."""
    from tvm import relax
    from tvm.ir import GlobalVar, Op

    module = relax.transform.FuseOpsByPattern(patterns("cpu", is_quantized_operator), bind_constants=True)(main)
    result = []
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            called = getattr(binding.value, "op", None)
            if isinstance(called, GlobalVar):
                op = read_composite(module[called])
                q = op.output_quantization or next((q for q in op.input_quantization if q), Quantization(0.0, 0))
                name = regions.cpu_name(op.kind, op.output_shape, q.scale, q.zero_point)
                default = "reshape between CPU operators" if op.kind == "flatten" else f"{op.kind} has no lowering"
                reason = refused.get(_identity(op), default)
                result.append(CpuOperator(name, op.kind, reason))
            elif isinstance(called, Op) and called.name != "relax.call_dps_packed":
                kind = called.name.removeprefix("relax.")
                result.append(CpuOperator(f"{kind}_{len(result)}", kind, "no integer lowering: TVM's float code"))
    return tuple(result)


def _outline(module: tvm.IRModule, order: dict[Any, int | None]) -> tvm.IRModule:
    """Replace region calls by calls of packed functions and drop the region functions.

    A region without a number only flattens: that stays a reshape.
    """
    import tvm
    from tvm import relax

    @relax.expr_functor.mutator
    class Outline(relax.PyExprMutator):
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            if call.op not in order:
                return call
            index, ty = order[call.op], call.ty
            out = list(ty.fields) if isinstance(ty, relax.TupleType) else [ty]
            single = not isinstance(ty, relax.TupleType)
            if index is None:
                parts = [relax.op.reshape(call.args[0], part.shape) for part in out]
                return parts[0] if single else relax.Tuple(parts)
            name = ACCELERATOR_FUNCTION.format(index)
            return relax.op.call_dps_packed(name, relax.Tuple(list(call.args)), out_ty=out[0] if single else out)

    main = Outline(module).visit_expr(module["main"])
    return tvm.IRModule({module.get_global_var("main"): main})
