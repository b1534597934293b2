"""How multipliers and memories are made: portable Amaranth for simulation, primitives for a device family.

Both kinds have the same ports, latencies and contract, so that the engine is written once.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from amaranth.hdl import Cat, Module, Signal, signed, unsigned
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

__all__ = [
    "MULTIPLIER_LATENCY",
    "RAM_LATENCY",
    "FanoutRegister",
    "GenericTechnology",
    "Multiplier",
    "Ram",
    "Technology",
]

MULTIPLIER_LATENCY = 3
"""p(t + 3) = a(t) * b(t)"""
RAM_LATENCY = 2
"""r_data(t + 2) = the word at r_addr(t)"""


class Multiplier(wiring.Component):
    """Signed multiplier with input, pipeline and output registers; no enable, no reset.

    Members
    -------
    a, b : In(signed)
    p : Out(signed(a_width + b_width)); p(t + 3) = a(t) * b(t)
    """

    attributes: ClassVar[dict[str, str]] = {}
    """of the product's register, for synthesis"""

    def __init__(self, *, a_width: int, b_width: int) -> None:
        if not (1 <= a_width <= 18 and 1 <= b_width <= 18):
            raise ValueError(f"multiplier operands must be 1 to 18 bits, not {a_width} and {b_width}")
        self.a_width = a_width
        self.b_width = b_width
        super().__init__({"a": In(signed(a_width)), "b": In(signed(b_width)), "p": Out(signed(a_width + b_width))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        a = Signal(signed(self.a_width), reset_less=True)
        b = Signal(signed(self.b_width), reset_less=True)
        product = Signal(signed(self.a_width + self.b_width), reset_less=True, attrs=self.attributes)
        p = Signal.like(product)
        m.d.sync += [a.eq(self.a), b.eq(self.b), product.eq(a * b), p.eq(product)]
        m.d.comb += self.p.eq(p)
        return m


class Ram(wiring.Component):
    """Memory with one write and one read port and a registered output.

    Reading an address in the cycle it is written gives an undefined word. Content is undefined at start.

    Members
    -------
    w_en, w_addr, w_data : In
    r_addr : In; sampled every cycle
    r_data : Out; r_data(t + 2) = the word at r_addr(t)
    """

    attributes: ClassVar[dict[str, str]] = {}
    """of the memory, for synthesis"""

    def __init__(self, *, width: int, depth: int) -> None:
        if width < 1 or depth < 2:
            raise ValueError(f"memory must have at least 1 bit and 2 words, not {width} x {depth}")
        self.width = width
        self.depth = depth
        address = unsigned((depth - 1).bit_length())
        super().__init__(
            {
                "w_en": In(1),
                "w_addr": In(address),
                "w_data": In(width),
                "r_addr": In(address),
                "r_data": Out(width),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.storage = storage = memory.Memory(
            shape=unsigned(self.width), depth=self.depth, init=[], attrs=self.attributes
        )
        write = storage.write_port()
        read = storage.read_port(domain="sync")
        r_data = Signal(self.width, reset_less=True)
        m.d.comb += [
            write.en.eq(self.w_en),
            write.addr.eq(self.w_addr),
            write.data.eq(self.w_data),
            read.addr.eq(self.r_addr),
            self.r_data.eq(r_data),
        ]
        m.d.sync += r_data.eq(Cat(read.data))
        return m


class FanoutRegister(wiring.Component):
    """One register, several times: each copy drives a part of what would be too many loads for one.

    Members
    -------
    value : In(width)
    copies : Out; [count] of width; copies[i](t + 1) = value(t)
    """

    def __init__(self, *, width: int, count: int) -> None:
        self.width = width
        self.count = count
        super().__init__({"value": In(width), "copies": Out(data.ArrayLayout(unsigned(width), count))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for i in range(self.count):
            copy = Signal(self.width, name=f"copy_{i}", reset_less=True)
            m.d.sync += copy.eq(self.value)
            m.d.comb += self.copies[i].eq(copy)
        return m


class Technology(Protocol):
    """Maker of the primitives of one device family."""

    distributed_ram: bool
    """Small memories are made of LUTs and can be read within a cycle."""

    def multiplier(self, *, a_width: int, b_width: int) -> wiring.Component:
        """A component with the ports and contract of `Multiplier`."""

    def ram(self, *, width: int, depth: int) -> wiring.Component:
        """A component with the ports and contract of `Ram`."""

    def fanout(self, *, width: int, count: int) -> wiring.Component:
        """A component with the ports and contract of `FanoutRegister`, which synthesis leaves alone."""


class GenericTechnology:
    """Portable Amaranth; what simulators run.

    Parameters
    ----------
    distributed_ram
        As of the technology that this one stands for.
    """

    def __init__(self, *, distributed_ram: bool = True) -> None:
        self.distributed_ram = distributed_ram

    def multiplier(self, *, a_width: int, b_width: int) -> Multiplier:
        return Multiplier(a_width=a_width, b_width=b_width)

    def ram(self, *, width: int, depth: int) -> Ram:
        return Ram(width=width, depth=depth)

    def fanout(self, *, width: int, count: int) -> FanoutRegister:
        return FanoutRegister(width=width, count=count)
