"""The network that ONNX Runtime planned, read into the graph node by node.

Tensors of the file are known by name. What holds them has its channels last (`nnloom.compiler.frontend.onnx.order`).
Quantized uint8 tensors are held as int8, shifted by 128.

Real numbers that are functions of quantized ones are not computed at once (`Lazy`): a chain of operators between
DequantizeLinear and QuantizeLinear is a table, which ONNX Runtime fills.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.dtypes import INT8, RECENTRED, UINT8
from nnloom.arch.errors import UnsupportedOperatorError
from nnloom.arch.operation import Quantization, TensorType

from ...ir import Graph
from .order import Axes, Shape, channels_last, take
from .plan import Plan
from .support import Refusal
from .tables import Chain, fill
from .values import Values

__all__ = ["Lazy", "Product", "QuantizedConstant", "Reader"]

MOST = 10
"""Operators that one message names"""


@dataclass(frozen=True)
class QuantizedConstant:
    """A constant that DequantizeLinear makes real."""

    data: NDArray
    scales: NDArray[np.float32]
    zero_points: NDArray[np.int64]
    axis: int


@dataclass(frozen=True)
class Product:
    """A convolution or matrix product of dequantized operands that is not computed yet."""

    node: Any
    source: Chain
    weights: QuantizedConstant
    bias: NDArray | None
    """real numbers or None; int32 if it is quantized as the sums are"""
    clamp: tuple[float | None, float | None] = (None, None)


Lazy = Chain | Product
"""Real numbers that are not computed yet"""


class Reader:
    """Reads a planned network."""

    def __init__(self, path: Path, plan: Plan) -> None:
        from onnx import numpy_helper

        self.path, self.plan = path, plan
        graph = plan.planned.graph
        self.graph = graph
        self.v = Values()
        self.lazy: dict[str, Lazy] = {}
        self.quantized: dict[str, QuantizedConstant] = {}
        """real constants that are quantized ones"""
        self.v.constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer} | dict(plan.constants)
        self.nodes = [n for n in graph.node if not all(name in plan.constants for name in n.output if name)]
        self.v.shapes = {name: data.shape for name, data in self.v.constants.items()}
        self.dtypes = {name: data.dtype.name for name, data in self.v.constants.items()}
        for name, (dtype, shape) in plan.types.items():
            self.dtypes[name], self.v.shapes[name] = dtype, shape
        self.readers = Counter(name for node in graph.node for name in node.input)
        self.readers.update(o.name for o in graph.output)
        self.opset = next((o.version for o in plan.planned.opset_import if o.domain in ("", "ai.onnx")), 0)
        self.permutations: dict[int, Axes] = {}

    def read(self) -> Graph:
        """The graph.

        Raises
        ------
        UnsupportedOperatorError
            If nothing runs some operators: the message names those that are not known, up to 10, or the first of
            which something is not supported.
        """
        from .operators import OPERATORS

        inputs = self._inputs()
        self._refuse_unknown(OPERATORS)
        for node in self.nodes:
            try:
                self._check_known(node.input)
                OPERATORS[node.op_type](self, node)
            except Refusal as refusal:
                raise UnsupportedOperatorError(f"{self.path}: {self._what(node)}: {refusal}") from refusal
        try:
            self._check_known([info.name for info in self.graph.output])
        except Refusal as refusal:
            raise UnsupportedOperatorError(f"{self.path}: the network's outputs: {refusal}") from refusal
        outputs = self._outputs(inputs)
        return Graph(
            self.path.stem,
            self.plan.sha256,
            tuple(self.v.values),
            tuple(self.v.nodes),
            tuple(inputs),
            tuple(outputs),
            format="onnx",
            prepared=self.plan.prepared.SerializeToString(),
            permutations=self.permutations,
        )

    def _refuse_unknown(self, known: dict[str, Any]) -> None:
        found = dict.fromkeys(self._what(n) for n in self.nodes if n.op_type not in known)
        if found:
            listed = list(found)
            more = f" and {len(listed) - MOST} more" if len(listed) > MOST else ""
            raise UnsupportedOperatorError(
                f"{self.path}: operators that nnloom has no route for: {', '.join(listed[:MOST])}{more}; "
                "cut them off the model (onnx.utils.extract_model) and run them on their own"
            )

    def _what(self, node: Any) -> str:
        name = node.name or next(iter(node.output), "")
        return f"{node.op_type} {name!r}"

    def _check_known(self, names: Iterable[str]) -> None:
        """Refuse tensors that are further outputs of operators of which only the first is supported."""
        known = (self.v.held, self.v.constants, self.lazy, self.quantized)
        for name in filter(None, names):
            if all(name not in those for those in known):
                maker = next(self._what(n) for n in self.graph.node if name in n.output)
                raise Refusal(f"{name!r} is not the first output of {maker}; only that is supported")

    def _inputs(self) -> list[int]:
        """The network's inputs: held with channels last if operators read them so."""
        preferred = _preferred(self.graph, self.v.shapes)
        result = []
        for info in self.graph.input:
            name = info.name
            if name in self.v.constants:
                continue
            shape = self.shape(name)
            rank = len(shape)
            axes = channels_last(rank) if name in preferred else tuple(range(rank))
            index = self.v.add(name, TensorType(take(shape, axes), self.dtypes[name]))
            self.v.hold(name, index, axes)
            if axes != tuple(range(rank)):
                self.permutations[index] = axes
            result.append(index)
        return result

    def _outputs(self, inputs: Sequence[int]) -> list[int]:
        """The network's outputs under their names: held as they are, if that is an order of their axes."""
        result: list[int] = []
        for info in self.graph.output:
            name = info.name
            index, axes = self.output(name)
            t = self.v.type(index)
            made = index not in inputs and index not in result and self.v.values[index].data is None
            if name in self.unsigned:
                target = self.v.add(name, self._as_unsigned(t))
                self.v.emit("QUANTIZE", [index], [target])
                index = target
            elif not made or self.v.values[index].name != name:
                index = self._named(index, name)
            if axes != tuple(range(len(axes))):
                self.permutations[index] = axes
            result.append(index)
        return result

    def _named(self, index: int, name: str) -> int:
        """A value under the name of an output: the one that is there, or the same bytes again."""
        value = self.v.values[index]
        if any(index in node.outputs for node in self.v.nodes) and all(v.name != name for v in self.v.values):
            readers = [n for n in self.v.nodes if index in n.inputs]
            if not readers:
                self.v.values[index] = dataclasses.replace(value, name=name)
                return index
        return self.v.renamed(index, value.type, name)

    def output(self, name: str) -> tuple[int, Axes]:
        """A value that holds an output, and in which order of its axes."""
        self.force(name)
        axes = self.v.axes(name)
        if axes is None:
            axes = tuple(range(len(self.shape(name))))
        return self.v.along(name, axes), axes

    @property
    def unsigned(self) -> set[str]:
        """Tensors of the file that are uint8 and held as int8."""
        return {n for n, held in self.v.held.items() if self.dtypes.get(n) == UINT8 and self._is_recentred(held[0])}

    def _is_recentred(self, held: Any) -> bool:
        return self.v.type(held.index).dtype == INT8

    def _as_unsigned(self, t: TensorType) -> TensorType:
        q = t.quantization or Quantization.per_tensor(1.0, -RECENTRED)
        return TensorType(t.shape, UINT8, Quantization.per_tensor(q.scale, q.zero_point + RECENTRED))

    # What operators ask for

    def shape(self, name: str) -> Shape:
        """The shape of a tensor of the file."""
        shape = self.v.shapes.get(name)
        if shape is None or 0 in shape:
            raise Refusal(f"{name!r} has no elements, or is no tensor")
        return shape

    def constant(self, name: str, what: str) -> NDArray:
        """A constant operand."""
        if name in self.quantized and name not in self.v.constants:
            self._real_constant(name)
        data = self.v.constants.get(name)
        if data is None:
            raise Refusal(f"{what} is computed; it must be constant")
        return data

    def _real_constant(self, name: str) -> None:
        """The real numbers of a quantized constant."""
        q = self.quantized[name]
        shape = [1] * q.data.ndim
        if q.scales.size > 1:
            shape[q.axis] = q.scales.size
        wide = (q.data.astype(np.int64) - q.zero_points.reshape(shape)).astype(np.float32)
        self.v.constants[name] = wide * q.scales.reshape(shape)
        self.v.shapes[name] = q.data.shape
        self.dtypes[name] = "float32"

    def force(self, name: str) -> None:
        """Have a tensor computed that is not yet."""
        if name in self.quantized and name not in self.v.constants:
            self._real_constant(name)
        lazy = self.lazy.pop(name, None)
        if lazy is None:
            return
        from .products import compute_product

        if isinstance(lazy, Product):
            compute_product(self, name, lazy)
            return
        self.of_chain(name, lazy, None)

    def of_chain(self, name: str, chain: Chain, out: tuple[str, np.float32, int] | None) -> None:
        """A tensor that is a function of a quantized one: real, or quantized by (type, scale, zero point)."""
        source, axes = self.root(chain)
        shape = self.v.type(source).shape
        t = TensorType(shape, "float32") if out is None else self.quantized_type(shape, *out)
        data = fill(self, chain, out) if chain.nodes else None
        if data is not None and data.dtype == np.int8 and np.array_equal(data, np.arange(-128, 128)):
            # A factor that the scales have taken over: x / 6 with a sixth of the scale.
            target = self.v.renamed(source, t, name)
        elif data is not None:
            target, table = self.v.add(name, t), self.v.constant(data, name=f"{name} (table)")
            self.v.emit("TABLE", [source, table], [target], rounding="onnx", name=chain.nodes[-1].name or name)
        elif self.v.type(source) == t:
            target = self.v.renamed(source, t, name)
        else:
            target = self.v.add(name, t)
            self.v.emit("DEQUANTIZE" if out is None else "QUANTIZE", [source], [target], rounding="onnx", name=name)
        if axes is None:
            self.v.held[name] = [dataclasses.replace(self.v.held[chain.source][0], index=target)]
        else:
            self.v.hold(name, target, axes)

    def root(self, chain: Chain) -> tuple[int, Axes | None]:
        """The value that a chain begins with, as it is held."""
        index = self.integer(chain.source, chain.scale, chain.zero_point)
        return index, self.v.axes(chain.source)

    def quantized_type(self, shape: Shape, dtype: str, scale: np.float32, zero_point: int) -> TensorType:
        """The type of a quantized tensor as it is held."""
        if dtype == UINT8:
            dtype, zero_point = INT8, zero_point - RECENTRED
        if dtype != INT8:
            raise Refusal(f"quantized to {dtype}; quantize activations to int8 or uint8")
        return TensorType(shape, dtype, Quantization.per_tensor(float(scale), zero_point))

    def integer(self, name: str, scale: np.float32, zero_point: int) -> int:
        """The first value that holds a quantized tensor, with this scale and zero point of the file."""
        if name in self.v.constants:
            return self._integer_constant(name, scale, zero_point)
        held = self.v.held[name][0]
        t = self.v.type(held.index)
        wanted = self.quantized_type(t.shape, self.dtypes.get(name, t.dtype), scale, zero_point)
        if t == wanted:
            return held.index
        index = held.index
        if t.dtype == UINT8:
            index = self._from_unsigned(index, wanted)
        elif t.quantization is None and not any(index in n.inputs for n in self.v.nodes):
            self.v.values[index] = dataclasses.replace(self.v.values[index], type=wanted)
        else:
            index = self.v.renamed(index, wanted, self.v.values[index].name)
        self.v.held[name] = [dataclasses.replace(held, index=index)]
        return index

    def _from_unsigned(self, index: int, wanted: TensorType) -> int:
        """uint8 that the file gives as int8."""
        value = self.v.values[index]
        stated = self._as_unsigned(wanted)
        if value.type.quantization is None and not any(index in n.inputs for n in self.v.nodes):
            self.v.values[index] = dataclasses.replace(value, type=stated)
        elif value.type != stated:
            index = self.v.renamed(index, stated, value.name)
        target = self.v.add(value.name, wanted)
        self.v.emit("QUANTIZE", [index], [target])
        return target

    def _integer_constant(self, name: str, scale: np.float32, zero_point: int) -> int:
        data = self.v.constants[name]
        q = Quantization.per_tensor(float(scale), zero_point)
        if data.dtype == np.uint8:
            data = (data.astype(np.int16) - RECENTRED).astype(np.int8)
            q = Quantization.per_tensor(float(scale), zero_point - RECENTRED)
        return self.v.constant(data, q, name=name)

    def scalar(self, name: str, what: str) -> Any:
        """The one value of a constant."""
        data = self.constant(name, what)
        if data.size != 1:
            raise Refusal(f"{what} of shape {list(data.shape)}; quantize per tensor")
        return data.reshape(())[()]

    def scale_of(self, scale: str, zero_point: str) -> tuple[np.float32, int]:
        """Scale and zero point of a tensor, from the names of two constants."""
        zero = int(self.scalar(zero_point, "a zero point")) if zero_point else 0
        value = np.float32(self.scalar(scale, "a scale"))
        if not np.isfinite(value) or value <= 0:
            raise Refusal(f"a scale of {value}; it must be finite and above 0, calibrate with such values")
        return value, zero

    def make(
        self, node: Any, output: str, kind: str, operands: Sequence[int | None], axes: Sequence[int], **options: Any
    ) -> int:
        """Emit an operator that makes a real tensor of the file, held with its axes in an order."""
        t = TensorType(take(self.shape(output), axes), self.dtypes.get(output, "float32"))
        return self.emit(node, output, kind, operands, t, axes, options)

    def emit(
        self,
        node: Any,
        output: str,
        kind: str,
        operands: Sequence[int | None],
        t: TensorType,
        axes: Sequence[int] | None,
        options: dict[str, Any] | None = None,
        rounding: str = "onnx",
    ) -> int:
        """Emit an operator that makes a tensor of the file; axes None: who calls says how it is held."""
        target = self.v.add(output, t)
        self.v.emit(kind, operands, [target], options, rounding=rounding, name=node.name or output)
        if axes is not None:
            self.v.hold(output, target, axes)
        return target


_LAST = frozenset(
    {
        "AveragePool", "Conv", "ConvTranspose", "DepthToSpace", "GlobalAveragePool", "GlobalMaxPool", "MaxPool",
        "QLinearAveragePool", "QLinearConv", "QLinearGlobalAveragePool", "Resize", "SpaceToDepth",
    }
)  # fmt: skip
"""Operators that have channels last here"""
_OTHER = frozenset({"Transpose", "Reshape", "Flatten", "MatMul", "Gemm", "QGemm", "QLinearMatMul", "Squeeze"})
"""Operators that do not keep the order of their operand"""


def _preferred(graph: Any, shapes: dict[str, Shape]) -> set[str]:
    """Tensors that operators behind them have with channels last."""
    result: set[str] = set()
    for node in reversed(graph.node):
        if node.op_type in _LAST:
            result.update(node.input[:1])
        elif node.op_type not in _OTHER and result.intersection(node.output):
            rank = len(shapes.get(node.output[0], ()))
            result.update(name for name in node.input if len(shapes.get(name, ())) == rank)
    return result
