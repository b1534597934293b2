"""CPU code: what the accelerator does not run, and the whole network once more for when there is no board.

Every quantized operator that is left is lowered to integer TIR with exactly the arithmetic of
`nnloom.arch.numerics`; the rest is TVM's own code. One library holds two functions of the Relax VM: `main`
(regions as calls of packed functions) and `main_cpu` (everything here).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnloom.arch.cpu_target import CpuTarget
from nnloom.arch.errors import BuildError, UnsupportedOperatorError
from nnloom.arch.interrupts import pass_interrupts
from nnloom.arch.numerics import ADD_LEFT_SHIFT

from ..frontend.qdq import QuantizedOp, is_quantized_operator, operands, patterns, read_composite
from ..partition import Partitioned
from .kernels import kernel_of
from .library import export_library
from .requantize import clamp, factors, requantize, split_factor

if TYPE_CHECKING:
    import tvm

__all__ = ["build_cpu"]

CPU_FUNCTION = "main_cpu"


def _padded(x: Any, op: QuantizedOp, fill: int, dtype: str) -> Any:
    from tvm import te, tirx

    top, left, bottom, right = op.padding
    _, rows, columns, channels = (int(v) for v in x.shape)

    def element(_: Any, y: Any, z: Any, c: Any) -> Any:
        inside = tirx.all(y >= top, y < rows + top, z >= left, z < columns + left)
        value = x[0, y - top, z - left, c].astype(dtype)
        return tirx.if_then_else(inside, value, tirx.const(fill, dtype))

    if not any(op.padding):
        return te.compute(x.shape, lambda *i: x(*i).astype(dtype), name="widened")
    return te.compute((1, rows + top + bottom, columns + left + right, channels), element, name="padded")


def _emit_product(op: QuantizedOp) -> tuple[Callable, list[np.ndarray]]:
    """conv2d and dense: TE function and its constant arguments."""
    from tvm import te

    assert op.weights is not None and op.bias is not None
    source, output = op.input_quantization[0], op.output_quantization
    assert source and output
    multiplier, shift = factors(op)
    zero_point = output.zero_point
    weights = op.weights.astype(np.int64)
    dense = op.kind == "dense"
    sums = weights.sum(1) if dense else weights.sum((0, 1, 2))
    bias = (op.bias.astype(np.int64) - source.zero_point * sums).astype(np.int32)

    def finish(acc: Any, b: Any, m: Any, s: Any) -> Any:
        def element(*index: Any) -> Any:
            c = index[-1]
            y = requantize(acc(*index) + b[c], m[c], s[c], double_rounding=not dense, left=bool(np.any(shift < 0)))
            return clamp(y + zero_point, op.act_min, op.act_max, "int64")

        return te.compute(acc.shape, element, name="requantized")

    if dense:

        def dense_te(x: Any, w: Any, b: Any, m: Any, s: Any) -> Any:
            k = te.reduce_axis((0, int(w.shape[1])), "k")
            acc = te.compute(
                (1, int(w.shape[0])),
                lambda i, o: te.sum(x[i, k].astype("int32") * w[o, k].astype("int32"), axis=k),
                name="acc",
            )
            return finish(acc, b, m, s)

        return dense_te, [op.weights, bias, multiplier, shift]

    kernel_rows, kernel_columns, depth, outputs = op.weights.shape
    (stride_y, stride_x), (dilate_y, dilate_x) = op.strides, op.dilation
    per_group = outputs // op.groups
    # Input channels innermost: the reduction then runs over neighbouring bytes.
    packed = np.ascontiguousarray(op.weights.transpose(3, 0, 1, 2))

    def conv_te(x: Any, w: Any, b: Any, m: Any, s: Any) -> Any:
        padded = _padded(x, op, source.zero_point, "int32")
        ky, kx = te.reduce_axis((0, kernel_rows), "ky"), te.reduce_axis((0, kernel_columns), "kx")
        kc = te.reduce_axis((0, depth), "kc")

        def element(n: Any, y: Any, z: Any, o: Any) -> Any:
            channel = kc if op.groups == 1 else (o // per_group) * depth + kc
            value = padded[n, y * stride_y + ky * dilate_y, z * stride_x + kx * dilate_x, channel]
            return te.sum(value * w[o, ky, kx, kc].astype("int32"), axis=[ky, kx, kc])

        return finish(te.compute(op.output_shape, element, name="acc"), b, m, s)

    return conv_te, [packed, bias, multiplier, shift]


def _emit_pool(op: QuantizedOp) -> tuple[Callable, list[np.ndarray]]:
    from tvm import te, tirx

    rows, columns = op.window
    stride_y, stride_x = op.strides
    top, left, _, _ = op.padding
    _, height, width, _ = op.input_shapes[0]

    def pool_te(x: Any) -> Any:
        ky, kx = te.reduce_axis((0, rows), "ky"), te.reduce_axis((0, columns), "kx")
        if op.kind == "max_pool":
            padded = _padded(x, op, -128, "int8")
            best = te.compute(
                op.output_shape,
                lambda n, y, z, c: te.max(padded[n, y * stride_y + ky, z * stride_x + kx, c], axis=[ky, kx]),
                name="best",
            )
            return te.compute(
                op.output_shape, lambda *i: clamp(best(*i), op.act_min, op.act_max, "int8"), name="clamped"
            )
        padded = _padded(x, op, 0, "int32")
        total = te.compute(
            op.output_shape,
            lambda n, y, z, c: te.sum(padded[n, y * stride_y + ky, z * stride_x + kx, c], axis=[ky, kx]),
            name="total",
        )

        def mean(n: Any, y: Any, z: Any, c: Any) -> Any:
            # Padding does not count.
            first_y, first_z = y * stride_y - top, z * stride_x - left
            count_y = tirx.min(first_y + rows, height) - tirx.max(first_y, 0)
            count_z = tirx.min(first_z + columns, width) - tirx.max(first_z, 0)
            count = (count_y * count_z).astype("int32")
            value = total[n, y, z, c]
            half = tirx.truncdiv(count, tirx.const(2, "int32"))
            rounded = tirx.truncdiv(tirx.Select(value >= 0, value + half, value - half), count)
            return clamp(rounded, op.act_min, op.act_max, "int32")

        return te.compute(op.output_shape, mean, name="mean")

    return pool_te, []


def _emit_add(op: QuantizedOp) -> tuple[Callable, list[np.ndarray]]:
    from tvm import te, tirx, topi

    a, b = op.input_quantization
    output = op.output_quantization
    assert a and b and output
    twice = 2 * max(a.scale, b.scale)
    factors = [split_factor(f) for f in (a.scale / twice, b.scale / twice)]
    factors.append(split_factor(twice / ((1 << ADD_LEFT_SHIFT) * output.scale)))

    def scaled(value: Any, factor: tuple[int, int]) -> Any:
        multiplier, shift = (tirx.const(v, "int32") for v in factor)
        return requantize(value, multiplier, shift, double_rounding=True, left=factor[1] < 0)

    def add_te(x: Any, y: Any) -> Any:
        x, y = (topi.broadcast_to(v, op.output_shape) for v in (x, y))

        def element(*index: Any) -> Any:
            terms = []
            for value, q, factor in ((x(*index), a, factors[0]), (y(*index), b, factors[1])):
                shifted = (value.astype("int32") - q.zero_point) * (1 << ADD_LEFT_SHIFT)
                terms.append(scaled(shifted, factor))
            total = scaled((terms[0] + terms[1]).astype("int32"), factors[2])
            return clamp(total + output.zero_point, op.act_min, op.act_max, "int64")

        return te.compute(op.output_shape, element, name="added")

    return add_te, []


def _emit_softmax(op: QuantizedOp) -> tuple[Callable, list[np.ndarray]]:
    from tvm import te, tirx

    source, output = op.input_quantization[0], op.output_quantization
    assert source and output
    last = op.output_shape[-1]

    def softmax_te(x: Any) -> Any:
        outer = op.output_shape[:-1]
        k, j = te.reduce_axis((0, last), "k"), te.reduce_axis((0, last), "j")
        top = te.compute(outer, lambda *i: te.max(x(*i, k).astype("int32"), axis=k), name="top")
        power = te.compute(
            op.output_shape,
            lambda *i: tirx.exp((x(*i).astype("int32") - top(*i[:-1])).astype("float64") * source.scale),
            name="power",
        )
        total = te.compute(outer, lambda *i: te.sum(power(*i, j), axis=j), name="total")

        def element(*index: Any) -> Any:
            share = power(*index) / total(*index[:-1]) / output.scale
            rounded = tirx.floor(share + 0.5).astype("int32") + output.zero_point
            return clamp(rounded, op.act_min, op.act_max, "int32")

        return te.compute(op.output_shape, element, name="softmax")

    return softmax_te, []


def _emit_quantize(op: QuantizedOp) -> tuple[Callable, list[np.ndarray]]:
    """TFLite QUANTIZE: `numerics.quantize`. TVM's own rounds half to even."""
    from tvm import te, tirx

    output = op.output_quantization
    assert output
    # Far outside int8 already, and exact in float32 and int32.
    limit = float(1 << 20)

    def quantize_te(x: Any) -> Any:
        def element(*index: Any) -> Any:
            scaled = x(*index) / tirx.const(output.scale, "float32")
            scaled = tirx.max(tirx.min(scaled, tirx.const(limit, "float32")), tirx.const(-limit, "float32"))
            whole = tirx.trunc(scaled)
            rest = scaled - whole
            away = tirx.Select(rest >= 0.5, tirx.const(1, "int32"), tirx.const(0, "int32"))
            away = tirx.Select(rest <= -0.5, tirx.const(-1, "int32"), away)
            return clamp(whole.astype("int32") + away + output.zero_point, op.act_min, op.act_max, "int32")

        return te.compute(op.output_shape, element, name="quantized")

    return quantize_te, []


def _emit_flatten(op: QuantizedOp) -> tuple[Callable, list[np.ndarray]]:
    from tvm import topi

    return (lambda x: topi.reshape(x, op.output_shape)), []


_EMITTERS: dict[str, Callable[[QuantizedOp], tuple[Callable, list[np.ndarray]]]] = {
    "conv2d": _emit_product,
    "dense": _emit_product,
    "average_pool": _emit_pool,
    "max_pool": _emit_pool,
    "add": _emit_add,
    "softmax": _emit_softmax,
    "flatten": _emit_flatten,
    "quantize": _emit_quantize,
}


def _lower_composites(module: tvm.IRModule, target: CpuTarget) -> tvm.IRModule:
    """Every quantized operator as a call of integer TIR."""
    from tvm import relax

    module = relax.transform.FuseOpsByPattern(patterns("cpu", is_quantized_operator), bind_constants=True)(module)

    @relax.expr_functor.mutator
    class Lower(relax.PyExprMutator):
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            function = module[call.op] if call.op in composites else None
            if function is None:
                return call
            op = read_composite(function)
            kernel = kernel_of(op, target)
            if kernel is None:
                emit, constants = _EMITTERS[op.kind](op)
                arguments = [*operands(function, op, call), *(relax.const(value) for value in constants)]
                return self.builder_.call_te(emit, *arguments, primfunc_name_hint=op.kind)
            arguments = [*operands(function, op, call), *(relax.const(value) for value in kernel.constants)]
            name = self.builder_.add_func(kernel.function, kernel.name)
            return relax.call_tir(name, arguments, out_ty=call.ty)

    composites = {var for var, function in module.functions.items() if function.attrs and "Composite" in function.attrs}
    lower = Lower(module)
    for var, function in module.functions.items():
        if var not in composites:
            lower.builder_.update_func(var, lower.visit_expr(function))
    result = lower.builder_.get()
    for var in composites:
        del result[result.get_global_var(var.name_hint)]
    return result


def build_cpu(partitioned: Partitioned, path: Path, target: CpuTarget) -> None:
    """Compile both functions into one shared library at `path`, for the processor `target`.

    Raises
    ------
    UnsupportedOperatorError
        If an operator has no CPU code either.
    ToolMissingError
        If there is no C++ compiler.
    BuildError
        If TVM or the host compiler fails.
    """
    import tvm
    from tvm import relax

    pass_interrupts()
    whole = relax.utils.copy_with_new_vars(partitioned.model.module["main"]).with_attr("global_symbol", CPU_FUNCTION)
    functions = {tvm.ir.GlobalVar("main"): partitioned.module["main"], tvm.ir.GlobalVar(CPU_FUNCTION): whole}
    module = _lower_composites(tvm.IRModule(functions), target)
    options = {"kind": "llvm", "mcpu": target.cpu, "mattr": list(target.features)}
    try:
        executable = relax.build(module, target=tvm.target.Target(options), exec_mode="compiled")
    except tvm.error.OpNotImplemented as error:
        raise UnsupportedOperatorError(f"{partitioned.model.name}: no CPU code ({_last_line(error)})") from error
    except (tvm.error.InternalError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise BuildError(f"{partitioned.model.name}: TVM cannot build the CPU code ({_last_line(error)})") from error
    export_library(executable, path)


def _last_line(error: BaseException) -> str:
    """The part of a TVM message that says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]
