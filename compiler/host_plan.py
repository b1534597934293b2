"""What runs between the regions, written down for a computer without TVM: see `nnloom.runtime.portable`."""

from __future__ import annotations

from typing import Any

from nnloom.arch.artifact import HostPlan, HostStep

from .frontend.qdq import is_quantized_operator, operands, patterns, read_composite, static_shape
from .partition import ACCELERATOR_FUNCTION, Partitioned

__all__ = ["plan_host"]


def plan_host(partitioned: Partitioned) -> HostPlan:
    """The partitioned network as a list of steps; one without steps, and with the reason, if it has other operators."""
    try:
        return _Reader(partitioned).plan
    except ValueError as error:
        return HostPlan(reason=str(error))


class _Reader:
    """Numbers values in the order in which they are made: the network's inputs, then each step's outputs."""

    def __init__(self, partitioned: Partitioned) -> None:
        from tvm import relax
        from tvm.ir import GlobalVar

        self._regions = {ACCELERATOR_FUNCTION.format(i): i for i in range(len(partitioned.graphs))}
        cpu = relax.transform.FuseOpsByPattern(patterns("cpu", is_quantized_operator), bind_constants=True)
        self._module = cpu(partitioned.module)
        main = self._module["main"]
        self._numbers: dict[Any, list[int]] = {var: [i] for i, var in enumerate(main.params)}
        self._count = len(main.params)
        steps = []
        for block in main.body.blocks:
            for binding in block.bindings:
                value = binding.value
                if isinstance(value, relax.Var):
                    self._numbers[binding.var] = self._numbers[value]
                    continue
                if isinstance(value, relax.Tuple):
                    self._numbers[binding.var] = [self._one(part) for part in value.fields]
                    continue
                if isinstance(value, relax.TupleGetItem):
                    self._numbers[binding.var] = [self._numbers[value.tuple_value][value.index]]
                    continue
                composite = isinstance(getattr(value, "op", None), GlobalVar)
                step = self._composite(value) if composite else self._operator(value)
                count = len(value.ty.fields) if isinstance(value.ty, relax.TupleType) else 1
                self._numbers[binding.var] = list(range(self._count, self._count + count))
                self._count += count
                steps.append(step)
        body = main.body.body
        outputs = [self._one(part) for part in body.fields] if isinstance(body, relax.Tuple) else self._numbers[body]
        self.plan = HostPlan(steps=tuple(steps), outputs=tuple(outputs))

    def _one(self, expr: Any) -> int:
        try:
            (number,) = self._numbers[expr]
        except KeyError as error:
            raise ValueError("a constant operand needs TVM") from error
        return number

    def _composite(self, call: Any) -> HostStep:
        function = self._module[call.op]
        op = read_composite(function)
        if op.kind not in ("quantize", "softmax", "flatten"):
            raise ValueError(f"{op.kind} needs TVM")
        (operand,) = operands(function, op, call)
        source, output = op.input_quantization[0], op.output_quantization
        return HostStep(
            kind="reshape" if op.kind == "flatten" else op.kind,
            inputs=(self._one(operand),),
            shape=op.output_shape,
            in_scale=source.scale if source else 0.0,
            in_zero_point=source.zero_point if source else 0,
            out_scale=output.scale if output else 0.0,
            out_zero_point=output.zero_point if output else 0,
            minimum=op.act_min,
            maximum=op.act_max,
        )

    def _operator(self, call: Any) -> HostStep:
        from tvm import relax

        name = call.op.name.removeprefix("relax.") if isinstance(call, relax.Call) else type(call).__name__
        if name == "call_dps_packed":
            index = self._regions[str(call.args[0].global_symbol)]
            return HostStep(kind="region", inputs=tuple(self._one(arg) for arg in call.args[1].fields), region=index)
        shape = static_shape(call)
        if name == "reshape":
            return HostStep(kind="reshape", inputs=(self._one(call.args[0]),), shape=shape)
        if name == "dequantize":
            scale, zero_point = (constant.value.numpy() for constant in call.args[1:3])
            if scale.size == zero_point.size == 1:
                return HostStep(
                    kind="dequantize",
                    inputs=(self._one(call.args[0]),),
                    shape=shape,
                    in_scale=float(scale),
                    in_zero_point=int(zero_point),
                )
        raise ValueError(f"{name} needs TVM")
