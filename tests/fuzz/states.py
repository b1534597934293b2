"""Steps with state: resource variables as streaming networks use them, variable tensors, SVDF."""

from __future__ import annotations

import math

import numpy as np

from .draw import Draw
from .network import Inapplicable, Network, Value, schema
from .operators import StepFunction, draw_scale, draw_zero_point, pick
from .profiles import Profile

__all__ = ["STATE_STEPS"]

STATE_STEPS: dict[str, StepFunction] = {}


def _step(function: StepFunction) -> StepFunction:
    STATE_STEPS[function.__name__] = function
    return function


def _variable(net: Network, d: Draw, like: Value, shape: tuple[int, ...]) -> tuple[int, Value]:
    """(handle, what the run begins with) of a new variable."""
    if math.prod(shape) > net.max_elements:
        raise Inapplicable(f"shape {shape}")
    zero = d.chance(0.2)
    initial = np.full(shape, like.zero_point) if zero else d.rng().integers(-128, 128, shape)
    name = f"variable {len(net.variables)}"
    net.variables.append((name, initial.astype(np.int8)))
    handle = net.handle(name)
    net.operator_names.append("VAR_HANDLE")
    return handle, _read(net, handle, like, shape)


def _read(net: Network, handle: int, like: Value, shape: tuple[int, ...]) -> Value:
    held = net.like(like, shape)
    net.add_operator("READ_VARIABLE", [handle], [held])
    return held


def _assign(net: Network, handle: int, x: Value) -> None:
    net.used.add(x.index)
    net.assign(handle, x.index)
    net.operator_names.append("ASSIGN_VARIABLE")


@_step
def window(net: Network, d: Draw, p: Profile) -> None:
    """The last values of an axis, then the new ones; the last of all are kept."""
    x = pick(net, d, p, lambda v: v.rank >= 2)
    axis = d.between(1, x.rank - 1)
    count = d.between(1, 4)
    shape = tuple(count if i == axis else n for i, n in enumerate(x.shape))
    handle, before = _variable(net, d, x, shape)
    options = schema.ConcatenationOptionsT()
    options.axis = axis - x.rank if d.chance(0.3) else axis
    joined = net.like(x, [n + count if i == axis else n for i, n in enumerate(x.shape)])
    net.add_operator("CONCATENATION", [before, x], [joined], options)
    begin = [x.shape[axis] if i == axis else 0 for i in range(x.rank)]
    kept = net.like(x, shape)
    net.add_operator("SLICE", [joined, net.constant(begin), net.constant(list(shape))], [kept], schema.SliceOptionsT())
    _assign(net, handle, kept)
    net.values.remove(joined)
    net.values.append(joined)  # what comes next rather reads this


@_step
def delay(net: Network, d: Draw, p: Profile) -> None:
    """The value of the run before; perhaps the new one as well, read back, perhaps as another type."""
    x = pick(net, d, p)
    handle, before = _variable(net, d, x, x.shape)
    _assign(net, handle, x)
    if d.chance(0.5):
        again = x
        if d.chance(0.3):  # the bits are the same
            again = Value(-1, (x.elements,), "INT8", draw_scale(d, p), draw_zero_point(d, p))
        _read(net, handle, again, again.shape)
    net.values.remove(before)
    net.values.append(before)


@_step
def running_sum(net: Network, d: Draw, p: Profile) -> None:
    """A variable tensor that an operator reads, and a later one writes."""
    x = pick(net, d, p)
    state = net.value(x.shape, "INT8", x.scale * d.pick((1.0, 2.0, 0.7)), draw_zero_point(d, p), keep=False)
    net.tensors[state.index].isVariable = True
    total = net.value(x.shape, "INT8", x.scale * 1.5, draw_zero_point(d, p))
    for operands, result in (((x, state), total), ((total, x), state)):
        options = schema.AddOptionsT()
        options.fusedActivationFunction = schema.ActivationFunctionType.NONE
        net.add_operator("ADD", operands, [result], options)


@_step
def svdf(net: Network, d: Draw, p: Profile) -> None:
    x = pick(net, d, p, lambda v: v.rank == 2)
    options = schema.SVDFOptionsT()
    options.rank, memory, units = d.between(1, 3), d.between(1, 6), d.between(1, 8)
    options.fusedActivationFunction = schema.ActivationFunctionType.RELU  # the kernel wants it, and does not apply it
    filters = units * options.rank
    rng = d.rng()
    scales = x.scale, draw_scale(d, p), draw_scale(d, p) / 100
    state_scale = x.scale * scales[1] * 70 * math.sqrt(x.shape[1]) / 300
    features = net.constant(rng.integers(-127, 128, (filters, x.shape[1])), "INT8", scales[1])
    times = net.tensor(
        (filters, memory), dtype="INT16", scale=scales[2], data=rng.integers(-9000, 9000, (filters, memory), np.int16)
    )
    bias_scale = np.float32(state_scale) * np.float32(scales[2])
    bias = net.constant(rng.integers(-1000, 1000, units), "INT32", bias_scale)
    state = net.value((x.shape[0], filters * memory), "INT16", state_scale, 0, keep=False)
    net.tensors[state.index].isVariable = True
    result = net.value((x.shape[0], units), "INT8", float(bias_scale) * 2e6 * math.sqrt(memory), draw_zero_point(d, p))
    net.add_operator("SVDF", [x, features, times, bias, state], [result], options)
