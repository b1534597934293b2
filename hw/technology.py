"""How multipliers and memories are made: portable Amaranth for simulation, primitives for a device family.

Both kinds have the same ports, latencies and contract, so that the engine is written once.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from amaranth.hdl import Cat, Module, Signal, signed, unsigned
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

__all__ = [
    "LANES_OF_A_COPY",
    "MULTIPLIER_LATENCY",
    "RAM_LATENCY",
    "CompactParts",
    "FanoutRegister",
    "GenericTechnology",
    "Multiplier",
    "MultiplierPair",
    "MultiplyAccumulate",
    "Product",
    "Ram",
    "SinglePortRam",
    "Technology",
    "write_lane",
]

LANES_OF_A_COPY = 4
"""Lanes, or units that work for a lane, that one copy of a shared register drives."""

MULTIPLIER_LATENCY = 3
"""p(t + 3) = a(t) * b(t)"""
RAM_LATENCY = 2
"""r_data(t + 2) = the word at r_addr(t)"""


def write_lane(depth: int) -> int:
    """Bits that block RAMs of a depth write with an enable of their own: a byte, with its ninth bit if it has one."""
    return 9 if depth <= 2048 else 8


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


class MultiplierPair(wiring.Component):
    """Two products of signed bytes with one factor in common, from one multiplier of 25 x 8 bits; latency as that of
    `Multiplier`, no enable, no reset.

    a + 65536 * a_second times b is a * b + 65536 * a_second * b. The lowest 16 bits are a * b, which they always hold;
    the others are a_second * b, less one where a * b is negative.

    Members
    -------
    a, a_second, b : In(signed(8))
    p, p_second : Out(signed(16)); p(t + 3) = a(t) * b(t), p_second(t + 3) = a_second(t) * b(t)
    """

    attributes: ClassVar[dict[str, str]] = {}
    """of the product's register, for synthesis"""

    def __init__(self) -> None:
        inputs = {name: In(signed(8)) for name in ("a", "a_second", "b")}
        super().__init__({**inputs, "p": Out(signed(16)), "p_second": Out(signed(16))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        both, b = Signal(signed(25), reset_less=True), Signal(signed(8), reset_less=True)
        product = Signal(signed(33), reset_less=True, attrs=self.attributes)
        p = Signal.like(product)
        m.d.sync += [both.eq((self.a_second << 16) + self.a), b.eq(self.b), product.eq(both * b), p.eq(product)]
        m.d.comb += [self.p.eq(p[:16].as_signed()), self.p_second.eq(p[16:].as_signed() + p[15])]
        return m


class Ram(wiring.Component):
    """Memory with one write and one read port and a registered output.

    Reading an address in the cycle it is written gives an undefined word. Content is undefined at start.

    Parameters
    ----------
    lane
        Bits that are written with an enable of their own, `write_lane(depth)`; None: the whole word.

    Members
    -------
    w_en, w_addr, w_data : In; an enable for each lane
    r_addr : In; sampled every cycle
    r_data : Out; r_data(t + 2) = the word at r_addr(t)
    """

    attributes: ClassVar[dict[str, str]] = {}
    """of the memory, for synthesis"""

    def __init__(self, *, width: int, depth: int, lane: int | None = None) -> None:
        if width < 1 or depth < 2:
            raise ValueError(f"memory must have at least 1 bit and 2 words, not {width} x {depth}")
        if lane is not None and (lane != write_lane(depth) or width % lane):
            raise ValueError(f"lanes of {depth} words have {write_lane(depth)} bits, and words are of whole lanes")
        self.width = width
        self.depth = depth
        self.lane = lane
        address = unsigned((depth - 1).bit_length())
        super().__init__(
            {
                "w_en": In(width // lane if lane else 1),
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
        write = storage.write_port(granularity=self.lane)
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


class SinglePortRam(wiring.Component):
    """Memory that reads or writes one word a cycle. Content is undefined at start; no reset.

    Members
    -------
    address : In
    write : In(width // 8); bytes of `w_data` that are written; a cycle that writes nothing reads
    w_data : In(width)
    r_data : Out(width); r_data(t + 1) = the word at address(t); undefined after a write
    """

    def __init__(self, *, width: int, depth: int) -> None:
        if width < 8 or width % 8 or depth < 2:
            raise ValueError(f"memory must have whole bytes and at least 2 words, not {width} bits x {depth}")
        self.width = width
        self.depth = depth
        super().__init__(
            {
                "address": In(unsigned((depth - 1).bit_length())),
                "write": In(width // 8),
                "w_data": In(width),
                "r_data": Out(width),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.storage = storage = memory.Memory(shape=unsigned(self.width), depth=self.depth, init=[])
        write = storage.write_port(granularity=8)
        read = storage.read_port(domain="sync")
        m.d.comb += [
            write.en.eq(self.write),
            write.addr.eq(self.address),
            write.data.eq(self.w_data),
            read.en.eq(~self.write.any()),
            read.addr.eq(self.address),
            self.r_data.eq(read.data),
        ]
        return m


class Product(wiring.Component):
    """Product of 16 bits each, with one register; no enable, no reset.

    Parameters
    ----------
    signed_a
        Whether `a` is signed; `b` never is.

    Members
    -------
    a, b : In(16)
    p : Out(32), signed like `a`; p(t + 1) = a(t) * b(t)
    """

    def __init__(self, *, signed_a: bool) -> None:
        self.signed_a = signed_a
        shape = signed if signed_a else unsigned
        super().__init__({"a": In(shape(16)), "b": In(unsigned(16)), "p": Out(shape(32))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        product = Signal.like(self.p, reset_less=True)
        m.d.sync += product.eq(self.a * self.b)
        m.d.comb += self.p.eq(product)
        return m


class MultiplyAccumulate(wiring.Component):
    """Sum of products of two signed bytes; wraps at 32 bits. No reset.

    Members
    -------
    a, b : In(signed(8))
    add : In; add their product
    clear : In; the sum becomes zero (`add` does not count)
    total : Out(signed(32)); two cycles after `a`, `b`, `add` and `clear`
    """

    def __init__(self) -> None:
        super().__init__(
            {"a": In(signed(8)), "b": In(signed(8)), "add": In(1), "clear": In(1), "total": Out(signed(32))}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        a, b = Signal(signed(8), reset_less=True), Signal(signed(8), reset_less=True)
        add, clear = Signal(reset_less=True), Signal(reset_less=True)
        total = Signal(signed(32), reset_less=True)
        m.d.sync += [a.eq(self.a), b.eq(self.b), add.eq(self.add), clear.eq(self.clear)]
        with m.If(clear):
            m.d.sync += total.eq(0)
        with m.Elif(add):
            m.d.sync += total.eq(total + a * b)
        m.d.comb += self.total.eq(total)
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
    pairs: bool
    """Two products with one factor in common take one multiplier."""

    def multiplier_pair(self) -> wiring.Component:
        """With `pairs`: a component with the ports and contract of `MultiplierPair`."""

    def multiplier(self, *, a_width: int, b_width: int) -> wiring.Component:
        """A component with the ports and contract of `Multiplier`."""

    def ram(self, *, width: int, depth: int, lane: int | None = None) -> wiring.Component:
        """A component with the ports and contract of `Ram`."""

    def fanout(self, *, width: int, count: int) -> wiring.Component:
        """A component with the ports and contract of `FanoutRegister`, which synthesis leaves alone."""

    def single_port_ram(self, *, width: int, depth: int) -> wiring.Component:
        """A component with the ports and contract of `SinglePortRam`."""

    def product(self, *, signed_a: bool) -> wiring.Component:
        """A component with the ports and contract of `Product`."""

    def multiply_accumulate(self) -> wiring.Component:
        """A component with the ports and contract of `MultiplyAccumulate`."""


class CompactParts:
    """What the compact engine is made of, as portable Amaranth, for technologies that have nothing better; and the
    multiplier of two products."""

    def multiplier_pair(self) -> MultiplierPair:
        return MultiplierPair()

    def single_port_ram(self, *, width: int, depth: int) -> SinglePortRam:
        return SinglePortRam(width=width, depth=depth)

    def product(self, *, signed_a: bool) -> Product:
        return Product(signed_a=signed_a)

    def multiply_accumulate(self) -> MultiplyAccumulate:
        return MultiplyAccumulate()


class GenericTechnology(CompactParts):
    """Portable Amaranth; what simulators run.

    Parameters
    ----------
    distributed_ram, pairs
        As of the technology that this one stands for.
    """

    def __init__(self, *, distributed_ram: bool = True, pairs: bool = False) -> None:
        self.distributed_ram = distributed_ram
        self.pairs = pairs

    def multiplier(self, *, a_width: int, b_width: int) -> Multiplier:
        return Multiplier(a_width=a_width, b_width=b_width)

    def ram(self, *, width: int, depth: int, lane: int | None = None) -> Ram:
        return Ram(width=width, depth=depth, lane=lane)

    def fanout(self, *, width: int, count: int) -> FanoutRegister:
        return FanoutRegister(width=width, count=count)
