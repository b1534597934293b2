"""Requantization in the compact engine: one lane every two cycles, exactly as `nnloom.arch.numerics.requantize`."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import PARAMETER

from .delay import delay
from .technology import Technology

__all__ = ["SerialRequantizer", "serial_requant_latency"]

LANE_CYCLES = 2
"""A lane's 32 x 31 bits are four products of 16 x 16 bits, two at a time."""

LANE_LATENCY = 9
"""Cycles from a lane's turn to its byte."""


def serial_requant_latency(config: AcceleratorConfig) -> int:
    """Cycles from `capture` to `done`."""
    return 1 + LANE_CYCLES * (config.lanes - 1) + LANE_LATENCY + 1


class SerialRequantizer(wiring.Component):
    """Takes the accumulators of all lanes and turns them into bytes, lane after lane.

    Accumulators and parameters move on by a lane every two cycles and come round with the last one. Between two
    captures, and from a capture to the next parameters, there must be at least as many cycles. The mode stands from a
    capture to its `done`. Reset stops what is under way.

    Members
    -------
    load : In; `parameters` is the next byte of each lane's 72 bits (see `nnloom.arch.isa.PARAMETER`), lowest first
    parameters : In; [lanes] bytes
    capture : In; `accumulators` are a finished result
    double_rounding, narrow, out_zero_point, act_min, act_max : In; descriptor fields
    bytes : Out; [lanes] int8, with `done`
    done : Out; one cycle, `serial_requant_latency` cycles after `capture`
    """

    def __init__(self, config: AcceleratorConfig, technology: Technology) -> None:
        self.config = config
        self.technology = technology
        super().__init__(
            {
                "load": In(1),
                "parameters": In(data.ArrayLayout(8, config.lanes)),
                "capture": In(1),
                "accumulators": In(data.ArrayLayout(signed(32), config.lanes)),
                "double_rounding": In(1),
                "narrow": In(1),
                "out_zero_point": In(signed(8)),
                "act_min": In(signed(8)),
                "act_max": In(signed(8)),
                "bytes": Out(8 * config.lanes),
                "done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        lanes = self.config.lanes
        fields = {name: slice(low, low + width) for name, low, width in PARAMETER}

        # Lane 0 of these is the one whose turn it is.
        parameters = [Signal(72, name=f"parameters_{lane}", reset_less=True) for lane in range(lanes)]
        held = [Signal(signed(32), name=f"held_{lane}", reset_less=True) for lane in range(lanes)]
        turn, active = Signal(range(LANE_CYCLES * lanes)), Signal()
        second_half = turn[0]
        move = active & second_half
        for lane in range(lanes):
            after = (lane + 1) % lanes
            with m.If(self.load):
                m.d.sync += parameters[lane].eq(Cat(parameters[lane][8:], self.parameters[lane]))
            with m.Elif(move):
                m.d.sync += parameters[lane].eq(parameters[after])
            with m.If(self.capture):
                m.d.sync += held[lane].eq(self.accumulators[lane])
            with m.Elif(move):
                m.d.sync += held[lane].eq(held[after])
        with m.If(self.capture):
            m.d.sync += [active.eq(1), turn.eq(0)]
        with m.Elif(active):
            m.d.sync += turn.eq(turn + 1)
            with m.If(turn.all()):
                m.d.sync += active.eq(0)

        # Counted from the first cycle of a lane's turn. Cycle 0: the bias, and the limit of a narrow result.
        now = parameters[0]
        total = Signal(signed(32))
        m.d.comb += total.eq(held[0] + now[fields["bias"]].as_signed())
        biased = Signal(signed(32), reset_less=True)
        with m.If(self.narrow & ~(total[17:].all() | ~total[17:].any())):
            m.d.sync += biased.eq(Cat((~total[31]).replicate(17), total[31]).as_signed())
        with m.Else():
            m.d.sync += biased.eq(total)
        # Cycles 1 and 2: the products with the lower and the upper half of the multiplier.
        multiplier = now[fields["multiplier"]]
        factor = Signal(16, reset_less=True)
        m.d.sync += factor.eq(Mux(second_half, multiplier[16:], multiplier[:16]))
        m.submodules.low = low = self.technology.product(signed_a=False)
        m.submodules.high = high = self.technology.product(signed_a=True)
        m.d.comb += [low.a.eq(biased[:16]), high.a.eq(biased[16:]), low.b.eq(factor), high.b.eq(factor)]
        # Cycle 2, without the lowest 16 bits, which nothing is added to; cycle 3.
        lower = Signal(signed(33), reset_less=True)
        middle = Signal(signed(34), reset_less=True)
        upper = Signal(signed(32), reset_less=True)
        m.d.sync += [lower.eq(high.p + (low.p >> 16)), middle.eq(lower + low.p), upper.eq(high.p)]
        # Cycle 4: half of 2**31 is added before the upper half is taken; a single rounding rounds later.
        shift = delay(m, now[fields["shift"]], 4, "shift")
        x = Signal(signed(32), reset_less=True)
        nudge = (self.double_rounding | (shift == 0)) & middle[14]
        m.d.sync += x.eq((upper << 1) + (middle >> 15) + nudge)
        # Cycle 5: half of 2**shift; in double rounding ties go away from zero. The lane's turn had a second cycle, so
        # `shift` is still its own.
        half_less_one = Cat(shift > i + 1 for i in range(31))
        carry = (shift != 0) & ~(self.double_rounding & x[-1])
        rounded = Signal(signed(33), reset_less=True)
        m.d.sync += rounded.eq(x + half_less_one + carry)
        # Cycles 6, 7: shift; limit to 10 bits, beyond every clamp, and add the zero point.
        shifted = Signal(signed(33), reset_less=True)
        m.d.sync += shifted.eq(rounded >> delay(m, shift, 1, "shift_last"))
        limited = Signal(signed(10))
        m.d.comb += limited.eq(shifted[:10].as_signed())
        with m.If(~(shifted[9:].all() | ~shifted[9:].any())):
            m.d.comb += limited.eq(Cat((~shifted[-1]).replicate(9), shifted[-1]).as_signed())
        offset = Signal(signed(11), reset_less=True)
        m.d.sync += offset.eq(limited + self.out_zero_point)
        # Cycle 8: clamp.
        byte = Signal(8, reset_less=True)
        with m.If(offset < self.act_min):
            m.d.sync += byte.eq(self.act_min)
        with m.Elif(offset > self.act_max):
            m.d.sync += byte.eq(self.act_max)
        with m.Else():
            m.d.sync += byte.eq(offset[:8])
        # Cycle 9: the bytes of a result gather.
        valid = delay(m, active & ~second_half, LANE_LATENCY, "valid", reset=True)
        word = Signal(8 * lanes, reset_less=True)
        count = Signal(range(lanes))
        m.d.sync += self.done.eq(valid & count.all())
        with m.If(valid):
            m.d.sync += [word.eq(Cat(word[8:], byte)), count.eq(count + 1)]
        m.d.comb += self.bytes.eq(word)
        return m
