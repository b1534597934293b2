"""Registers in a row: a value as it was some cycles ago."""

from typing import Any

from amaranth.hdl import Module, Signal, Value

from .technology import LANES_OF_A_COPY, Technology

__all__ = ["SPREAD_LATENCY", "delay", "spread"]

SPREAD_LATENCY = 2
"""Cycles from a value to the copies that `spread` makes of it."""


def delay(m: Module, value: Any, cycles: int, name: str, *, reset: bool = False) -> Any:
    """`value` after so many registers, which are called `name` with a number; without `reset` they keep theirs."""
    for i in range(cycles):
        register = Signal.like(value, name=f"{name}_{i + 1}", reset_less=not reset)
        m.d.sync += register.eq(value)
        value = register
    return value


def spread(m: Module, technology: Technology, value: Value, copies: int, name: str) -> list[Value]:
    """So many copies of `value` as it was two cycles ago, in a tree of registers: a device is wide.

    The first registers each drive those of `LANES_OF_A_COPY` copies. No reset.
    """
    width = len(value)
    m.submodules[name] = first = technology.fanout(width=width, count=-(-copies // LANES_OF_A_COPY))
    m.d.comb += first.value.eq(value)
    result: list[Value] = []
    for index, branch in enumerate(first.copies):
        count = min(LANES_OF_A_COPY, copies - len(result))
        m.submodules[f"{name}_{index}"] = second = technology.fanout(width=width, count=count)
        m.d.comb += second.value.eq(branch)
        result.extend(second.copies)
    return result
