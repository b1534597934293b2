"""Registers in a row: a value as it was some cycles ago."""

from typing import Any

from amaranth.hdl import Module, Signal

__all__ = ["delay"]


def delay(m: Module, value: Any, cycles: int, name: str, *, reset: bool = False) -> Any:
    """`value` after so many registers, which are called `name` with a number; without `reset` they keep theirs."""
    for i in range(cycles):
        register = Signal.like(value, name=f"{name}_{i + 1}", reset_less=not reset)
        m.d.sync += register.eq(value)
        value = register
    return value
