"""The engine for other people's tools: names of the netlist, Wishbone in front of the host bus."""

from __future__ import annotations

import re

import numpy as np
import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from nnloom.hw.emit import emit_portable_verilog
from nnloom.hw.naming import name_as_source
from nnloom.hw.wishbone import WishboneBridge
from tests.hw.benches import simulate


class _Inner(wiring.Component):
    def __init__(self):
        super().__init__({"start": In(1), "part": In(4), "begin": Out(1), "sum": Out(data.ArrayLayout(8, 2))})

    def elaborate(self, platform):
        m = Module()
        m.d.sync += [self.begin.eq(self.start), self.sum[0].eq(self.part), self.sum[1].eq(self.sum[0])]
        return m


class _Outer(wiring.Component):
    def __init__(self):
        super().__init__({"start": In(1), "word": In(8), "q": Out(8), "ready": Out(1)})

    def elaborate(self, platform):
        m = Module()
        start = Signal()  # a second one
        m.submodules.inner = inner = _Inner()
        m.d.sync += start.eq(self.start)
        m.d.comb += [inner.start.eq(start), inner.part.eq(self.word[2:6]), self.ready.eq(inner.begin)]
        m.d.comb += self.q.eq(inner.sum[1] ^ self.word)
        return m


def test_names_are_those_of_the_source():
    text = emit_portable_verilog(_Outer(), "outer")
    # No escaped name, none with a number of Amaranth's.
    assert not re.search(r"[\\$]", re.sub(r"\$signed|\$unsigned", "", text))
    modules = re.findall(r"^module (\w+)\(", text, re.MULTILINE)
    assert modules == ["outer", "outer__inner"]
    ports = set(re.findall(r"\.(\w+)\(", text))
    assert {"start", "begin_", "sum"} <= ports, "the submodule's own, keywords with an underscore"
    assert re.search(r"wire (\[7:0\] )?sum__0;", text), "parts of arrays beside the whole"


def test_names_of_ports_that_are_parts_of_signals():
    """Such a port is named by Amaranth after a net."""
    rtlil = r"""
module \inner
  wire width 2 input 0 \port$7$0
  wire width 2 output 1 \y
  connect \y [1:0] \port$7$0 [1:0]
end
module \top
  wire width 8 input 0 \word
  wire width 8 \word$3
  wire width 2 output 1 \y
  connect \word$3 [7:0] \word [7:0]
  cell \inner \inner
    connect \port$7$0 \word$3 [5:4]
    connect \y \y
  end
end
"""
    named = name_as_source(rtlil)
    assert r"connect \word_2_5_4 \word_2 [5:4]" in named
    assert r"wire width 2 input 0 \word_2_5_4" in named


class _Host:
    """What a host bus is behind a bridge: a memory that is now and then not ready."""

    def __init__(self, dut, rng, stall):
        self.dut, self.rng, self.stall = dut, rng, stall
        self.memory: dict[int, int] = {}
        self.writes: list[tuple[int, int]] = []

    async def serve(self, ctx):
        request, response = self.dut.host.request, self.dut.host.response
        while True:
            while self.rng.random() < self.stall:
                await ctx.tick()
            ctx.set(request.ready, 1)
            _, _, valid, payload = await ctx.tick().sample(request.valid, request.payload)
            ctx.set(request.ready, 0)
            if not valid:
                continue
            if payload.write:
                self.memory[payload.address] = payload.data
                self.writes.append((payload.address, payload.data))
                continue
            while self.rng.random() < self.stall:
                await ctx.tick()
            ctx.set(response.payload.data, self.memory.get(payload.address, 0xDEAD))
            ctx.set(response.valid, 1)
            await ctx.tick().until(response.ready)
            ctx.set(response.valid, 0)

    async def watch(self, ctx):
        """A request that is offered stays as it is until it is taken."""
        held = None
        async for _, reset, valid, ready, payload in ctx.tick().sample(
            self.dut.host.request.valid, self.dut.host.request.ready, self.dut.host.request.payload.as_value()
        ):
            if held is not None:
                assert valid and payload == held, "the offer changed"
            held = payload if valid and not ready and not reset else None


async def _cycle(ctx, bus, *, we, adr, dat=0, sel=15, give_up_after=None):
    """One cycle of the bus: (acknowledged, error, data), or None if it was given up."""
    for name, value in {"cyc": 1, "stb": 1, "we": we, "adr": adr, "dat_w": dat, "sel": sel}.items():
        ctx.set(getattr(bus, name), value)
    result = None
    for waited in range(200):
        if waited == give_up_after:
            break
        _, _, ack, err, read = await ctx.tick().sample(bus.ack, bus.err, bus.dat_r)
        if ack or err:
            result = (ack, err, read)
            break
    else:
        raise AssertionError("no end of the cycle")
    ctx.set(bus.stb, 0)
    ctx.set(bus.cyc, 0)
    return result


@pytest.mark.parametrize("stall", [0.0, 0.6])
def test_wishbone_cycles_reach_the_host_bus_once(stall):
    rng = np.random.default_rng(int(stall * 10))
    dut = WishboneBridge()
    host = _Host(dut, rng, stall)
    expected: list[tuple[int, int]] = []

    async def bench(ctx):
        memory: dict[int, int] = {}
        for _ in range(300):
            adr, dat = int(rng.integers(0, 8)) << 24, int(rng.integers(1 << 32))
            kind = rng.integers(4)
            if kind == 0:
                assert await _cycle(ctx, dut.bus, we=1, adr=adr, dat=dat) is not None
                memory[4 * adr] = dat
                expected.append((4 * adr, dat))
            elif kind == 1:
                ack, err, read = await _cycle(ctx, dut.bus, we=0, adr=adr, sel=int(rng.integers(16)))
                assert (ack, err) == (1, 0) and read == memory.get(4 * adr, 0xDEAD)
            elif kind == 2:  # parts of a word do nothing
                sel = int(rng.integers(15))
                ack, err, _ = await _cycle(ctx, dut.bus, we=1, adr=adr, dat=dat, sel=sel)
                assert (ack, err) == ((0, 1) if sel else (1, 0))
            for _ in range(int(rng.integers(3))):  # else back to back
                await ctx.tick()

    simulate(dut, bench, background=[host.serve, host.watch])
    assert host.writes == expected and len(expected) > 30


def test_a_cycle_that_was_given_up_is_not_acknowledged():
    rng = np.random.default_rng(3)
    dut = WishboneBridge()
    host = _Host(dut, rng, 0.7)
    given_up = 0

    async def bench(ctx):
        nonlocal given_up
        for index in range(200):
            # The first access is given up at some point; the next one gets its own answer.
            host.memory[4 * index] = index
            patience = int(rng.integers(1, 8))
            given_up += await _cycle(ctx, dut.bus, we=int(rng.integers(2)), adr=1000, give_up_after=patience) is None
            await ctx.tick().repeat(int(rng.integers(1, 3)))
            assert await _cycle(ctx, dut.bus, we=0, adr=index) == (1, 0, index)

    simulate(dut, bench, background=[host.serve, host.watch])
    assert given_up > 50
