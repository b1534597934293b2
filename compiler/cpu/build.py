"""CPU code: what the accelerator does not run, and the whole network once more for when there is no board.

The network becomes one Relax module with two functions: `main` (regions as calls of packed functions) and `main_cpu`
(everything here). Operators with a kernel are integer TIR with exactly the arithmetic of `nnloom.arch.numerics`;
elementwise operators on 8-bit values are tables that `nnloom.arch.reference` fills; what is left calls that reference
when it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnloom.arch.cpu_target import CpuTarget
from nnloom.arch.dtypes import INT8, held_as
from nnloom.arch.errors import BuildError
from nnloom.arch.interrupts import pass_interrupts

from ..ir import Node
from ..partition import Partitioned, Region
from .coverage import VIEWS
from .emitters import emit_generic
from .kernels import Kernel, kernel_of
from .library import export_library
from .operator import KernelOp, read_kernel_op
from .softmax import softmax_of
from .tables import table_of

if TYPE_CHECKING:
    import tvm

    from ..host_plan import PlannedHost

__all__ = ["build_cpu"]

CPU_FUNCTION = "main_cpu"


class _Emitter:
    """Builds the module; kernels that both functions use are added once."""

    def __init__(self, partitioned: Partitioned, host: PlannedHost, target: CpuTarget) -> None:
        from tvm import relax

        self._graph, self._host, self._target = partitioned.graph, host, target
        self._partitioned = partitioned
        self._builder = relax.BlockBuilder()
        self._kernels: dict[Node, tuple[Any, Kernel]] = {}

    def module(self) -> tvm.IRModule:
        """Both functions."""
        stages = self._partitioned.stages

        def partitioned_steps() -> Iterator[Node | tuple[int, Region]]:
            count = 0
            for stage in stages:
                yield from stage.nodes
                if stage.region:
                    yield count, stage.region
                    count += 1

        self._function("main", partitioned_steps())
        self._function(CPU_FUNCTION, iter(self._graph.nodes))
        return self._builder.get()

    def _function(self, name: str, steps: Iterator[Node | tuple[int, Region]]) -> None:
        from tvm import relax

        graph = self._graph
        parameters = {i: relax.Var(f"input_{i}", self._type(i)) for i in graph.sources}
        values: dict[int, Any] = dict(parameters)
        with self._builder.function(name, list(parameters.values())):
            with self._builder.dataflow():
                for step in steps:
                    if isinstance(step, Node):
                        self._node(step, values)
                    else:
                        self._region(*step, values)
                outputs = [self._builder.emit_output(self._value(i, values)) for i in graph.results]
            self._builder.emit_func_output(outputs)

    def _type(self, value: int) -> Any:
        from tvm import relax

        value_type = self._graph.values[value].type
        return relax.TensorType(value_type.shape, held_as(value_type.dtype))

    def _value(self, index: int, values: dict[int, Any]) -> Any:
        """A value that was computed, or a constant."""
        from tvm import relax

        if index not in values:
            data = self._graph.values[index].data
            assert data is not None
            values[index] = relax.const(data)
        return values[index]

    def _call(self, name: str, inputs: Sequence[int], outputs: Sequence[int], values: dict[int, Any]) -> None:
        """Emit the call of a packed function of the runtime (`nnloom.runtime.relax_vm`)."""
        from tvm import relax

        types = [self._type(i) for i in outputs]
        arguments = relax.Tuple([self._value(i, values) for i in inputs])
        name = f"nnloom.{name}.{len(outputs)}"
        call = relax.op.call_dps_packed(name, arguments, out_ty=types[0] if len(types) == 1 else types)
        result = self._builder.emit(call)
        if len(types) == 1:
            values[outputs[0]] = result
        else:
            values.update((v, self._builder.emit(relax.TupleGetItem(result, i))) for i, v in enumerate(outputs))

    def _region(self, index: int, region: Region, values: dict[int, Any]) -> None:
        self._call(f"accelerator.{index}", region.inputs, region.outputs, values)

    def _node(self, node: Node, values: dict[int, Any]) -> None:
        from tvm import relax

        graph = self._graph
        shape = node.operation.outputs[0].shape
        if node.kind in VIEWS:
            assert node.inputs[0] is not None
            reshaped = relax.op.reshape(self._value(node.inputs[0], values), shape)
            values[node.outputs[0]] = self._builder.emit(reshaped)
            return
        op = read_kernel_op(graph, node)
        if op is not None:
            operands = [self._value(i, values) for i in graph.operands(node)]
            values[node.outputs[0]] = self._kernel(node, op, operands)
            return
        table = table_of(graph, node)
        softmax = softmax_of(node.operation)
        if table is not None:
            values[node.outputs[0]] = self._emit(node, table.function, table.operands, [table.values], values)
            return
        if softmax is not None:
            function, constants = softmax
            values[node.outputs[0]] = self._emit(node, function, graph.operands(node), constants, values)
            return
        self._call(f"step.{self._host.steps[node]}", graph.operands(node), node.outputs, values)

    def _emit(
        self, node: Node, function: Any, operands: Sequence[int], constants: Sequence[Any], values: dict[int, Any]
    ) -> Any:
        from tvm import relax

        arguments = [*(self._value(i, values) for i in operands), *(relax.const(value) for value in constants)]
        return self._builder.emit_te(function, *arguments, primfunc_name_hint=node.kind.lower())

    def _kernel(self, node: Node, op: KernelOp, operands: list[Any]) -> Any:
        """Call of the scheduled kernel of an operator, or else of its plain code."""
        from tvm import relax

        shape = node.operation.outputs[0].shape
        if op.kind == "dense":
            operands = [self._builder.emit(relax.op.reshape(operands[0], op.input_shapes[0]))]
        if node not in self._kernels:
            kernel = kernel_of(op, self._target)
            if kernel is not None:
                self._kernels[node] = self._builder.add_func(kernel.function, kernel.name), kernel
        if node in self._kernels:
            name, kernel = self._kernels[node]
            arguments = [*operands, *(relax.const(value) for value in kernel.constants)]
            call = relax.call_tir(name, arguments, out_ty=relax.TensorType(op.output_shape, INT8))
            result = self._builder.emit(call)
        else:
            function, constants = emit_generic(op)
            arguments = [*operands, *(relax.const(value) for value in constants)]
            result = self._builder.emit_te(function, *arguments, primfunc_name_hint=op.kind)
        if op.output_shape != shape:
            result = self._builder.emit(relax.op.reshape(result, shape))
        return result


def build_cpu(partitioned: Partitioned, host: PlannedHost, path: Path, target: CpuTarget) -> None:
    """Compile both functions into one shared library at `path`, for the processor `target`.

    Raises
    ------
    ToolMissingError
        If there is no C++ compiler.
    BuildError
        If TVM or the host compiler fails.
    """
    import tvm
    from tvm import relax

    pass_interrupts()
    options = {"kind": "llvm", "mcpu": target.cpu, "mattr": list(target.features)}
    try:
        module = _Emitter(partitioned, host, target).module()
        executable = relax.build(module, target=tvm.target.Target(options), exec_mode="compiled")
    except (tvm.error.InternalError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise BuildError(f"{partitioned.graph.name}: TVM cannot build the CPU code ({_last_line(error)})") from error
    export_library(executable, path)


def _last_line(error: BaseException) -> str:
    """The part of a TVM message that says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]
