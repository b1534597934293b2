"""The multipliers, adder trees and accumulators: `pixels` x `lanes` x `taps`, output stationary."""

import itertools

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.loopnest import maximum_taps, tree_levels

from .delay import SPREAD_LATENCY, delay, spread
from .technology import MULTIPLIER_LATENCY, Technology

__all__ = ["MacArray", "mac_latency"]

LANES_OF_A_COPY = 2
"""Lanes whose weights one copy of the choice between them selects."""


def mac_latency(config: AcceleratorConfig) -> int:
    """Cycles from operands to the updated accumulator."""
    return MULTIPLIER_LATENCY + config.product_registers + tree_levels(config.taps) + 1


class MacArray(wiring.Component):
    """acc = (first ? 0 : acc) + sum of operand * weight, per pixel and lane, one step a cycle.

    All pixels have the same weights; where the technology has `pairs` they share multipliers. Beside the accumulator of
    the first pixel a running maximum of the products of `maximum_taps` is kept (max pooling), if configured: of their
    low 8 bits, as int8. The accumulator wraps at 32 bits.

    With `config.elementwise_mul` two taps of the first pixel can have another weight than that of the memory: that of
    `config.newest_tap` the byte of `previous`, the next one the complement of that of `newest`.

    Members
    -------
    operands, weights : In; [lanes][taps] int8
    second_operands : In; [lanes][taps] int8, those of the second pixel
    multiply, first : In; with the operands; a step without `multiply` changes nothing
    newest, previous : In; [lanes] int8 with the operands; only with `config.elementwise_mul`, as are
    use_newest_ahead, use_previous_ahead : In; one cycle before the operands
    accumulators : Out; [pixels][lanes] int32, `mac_latency` cycles later
    maxima : Out; [lanes] int8, the same
    """

    def __init__(self, config: AcceleratorConfig, technology: Technology) -> None:
        self.config = config
        self.technology = technology
        bytes_layout = data.ArrayLayout(data.ArrayLayout(8, config.taps), config.lanes)
        super().__init__(
            {
                "operands": In(bytes_layout),
                "second_operands": In(bytes_layout),
                "weights": In(bytes_layout),
                "multiply": In(1),
                "first": In(1),
                "accumulators": Out(data.ArrayLayout(data.ArrayLayout(signed(32), config.lanes), config.pixels)),
                "maxima": Out(data.ArrayLayout(signed(8), config.lanes)),
                **({name: In(8 * config.lanes) for name in ("newest", "previous")} if config.elementwise_mul else {}),
                **({f"use_{n}_ahead": In(1) for n in ("newest", "previous")} if config.elementwise_mul else {}),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config

        ahead = mac_latency(config) - 1 - SPREAD_LATENCY
        # One copy for each lane: every accumulator bit depends on both.
        control = Cat(delay(m, self.multiply, ahead, "multiply", reset=True), delay(m, self.first, ahead, "first"))
        controls = spread(m, self.technology, control, config.lanes * config.pixels, "control")
        first_weights = self._weights_of_first_pixel(m)
        pairs = self._pairs(m, first_weights) if config.pixels == 2 and self.technology.pairs else []
        for pixel, lane in itertools.product(range(config.pixels), range(config.lanes)):
            name = f"{pixel}_{lane}"
            multiply, first = controls[pixel * config.lanes + lane]
            operands = (self.second_operands if pixel else self.operands)[lane]
            weights = self.weights[lane] if pixel else first_weights[lane]
            values = []
            for tap in range(config.taps):
                if pairs:
                    multiplier = pairs[lane][tap]
                    result = multiplier.p_second if pixel else multiplier.p
                else:
                    multiplier = self.technology.multiplier(a_width=8, b_width=8)
                    m.submodules[f"multiplier_{name}_{tap}"] = multiplier
                    m.d.comb += [
                        multiplier.a.eq(operands[tap].as_signed()),
                        multiplier.b.eq(weights[tap].as_signed()),
                    ]
                    result = multiplier.p
                product = result
                if config.product_registers:
                    product = Signal.like(result, name=f"product_{name}_{tap}", reset_less=True)
                    m.d.sync += product.eq(result)
                values.append(product)
            levels = tree_levels(config.taps)
            newest: list = [values[tap][:8].as_signed() for tap in maximum_taps(config)]
            for level in range(levels):
                # Products come from afar: they meet in a single carry chain.
                ways = 3 if level else 2
                sums = []
                for i in range(0, len(values), ways):
                    total = sum(values[i + 1 : i + ways], values[i])
                    register = Signal(total.shape(), name=f"sum_{name}_{level}_{i // ways}", reset_less=True)
                    m.d.sync += register.eq(total)
                    sums.append(register)
                values = sums
            accumulator = Signal(signed(32), name=f"accumulator_{name}", reset_less=True)
            with m.If(multiply):
                m.d.sync += accumulator.eq(Mux(first, 0, accumulator) + values[0])
            m.d.comb += self.accumulators[pixel][lane].eq(accumulator)
            if config.max_pool and pixel == 0:
                value = self._greatest(m, newest, levels, f"{lane}")
                # The comparison is one carry chain, and gates select: a multiplexer that keeps its value would become a
                # clock enable, on a longer path.
                maximum = Signal(signed(8), name=f"maximum_{lane}", reset_less=True)
                take = (first | (maximum - value)[8]).replicate(8)
                with m.If(multiply):
                    m.d.sync += maximum.eq((value & take) | (maximum & ~take))
                m.d.comb += self.maxima[lane].eq(maximum)
        return m

    def _pairs(self, m: Module, weights: list[list[Value]]) -> list[list[wiring.Component]]:
        """[lanes][taps] multipliers for both pixels. Where a tap of the first one has another weight, the second one
        has it, too: it has no results then."""
        pairs: list[list[wiring.Component]] = []
        for lane in range(self.config.lanes):
            pairs.append([])
            for tap in range(self.config.taps):
                multiplier = self.technology.multiplier_pair()
                m.submodules[f"multipliers_{lane}_{tap}"] = multiplier
                m.d.comb += [
                    multiplier.a.eq(self.operands[lane][tap].as_signed()),
                    multiplier.a_second.eq(self.second_operands[lane][tap].as_signed()),
                    multiplier.b.eq(weights[lane][tap].as_signed()),
                ]
                pairs[lane].append(multiplier)
        return pairs

    def _greatest(self, m: Module, values: list, latency: int, name: str) -> Signal:
        """The greatest of three int8, `latency` >= 2 cycles later.

        Products come from afar, so that they have the first cycle for themselves where there is one more than the two
        in which all pairs are compared, a carry chain each, and one is selected.
        """
        values = [delay(m, value, latency - 2, f"product_{name}_{i}") for i, value in enumerate(values)]
        a, b, c = registers = [Signal(signed(8), name=f"compared_{name}_{i}", reset_less=True) for i in range(3)]
        less = Signal(3, name=f"less_{name}", reset_less=True)
        m.d.sync += [register.eq(value) for register, value in zip(registers, values, strict=True)]
        for i, (one, other) in enumerate(itertools.combinations(values, 2)):
            m.d.sync += less[i].eq((one - other)[8])
        # a < b, a < c, b < c
        last = Mux(less[0], less[2], less[1])
        greatest = Signal(signed(8), name=f"greatest_{name}", reset_less=True)
        m.d.sync += greatest.eq(Mux(last, c, Mux(less[0], b, a)))
        return greatest

    def _weights_of_first_pixel(self, m: Module) -> list[list[Value]]:
        """[lanes][taps] of a byte each, those of products chosen by gates right before the multipliers."""
        config = self.config
        taps = range(config.taps)
        weights: list[list[Value]] = [[self.weights[lane][tap] for tap in taps] for lane in range(config.lanes)]
        if not config.elementwise_mul:
            return weights
        m.submodules.use = use = self.technology.fanout(width=2, count=config.lanes // LANES_OF_A_COPY)
        m.d.comb += use.value.eq(Cat(self.use_newest_ahead, self.use_previous_ahead))
        for lane, mine in enumerate(weights):
            use_newest, use_previous = use.copies[lane // LANES_OF_A_COPY]
            byte = slice(8 * lane, 8 * lane + 8)
            tap = config.newest_tap
            mine[tap] = Mux(use_previous, self.previous[byte], mine[tap])
            mine[tap + 1] = Mux(use_newest, ~self.newest[byte], mine[tap + 1])
        return weights
