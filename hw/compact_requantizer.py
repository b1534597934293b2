"""Requantization in the compact engine: one lane every two cycles, exactly as `nnloom.arch.numerics.requantize`."""

from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
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


@dataclass(frozen=True)
class _Shifted:
    """A number on its way through the shifts."""

    value: Value
    """its lowest bits; unless it is `beyond`, `sign` is what would be above them"""
    sign: Value
    lost: Value
    """bits below the lowest were not all zero"""
    beyond: Value
    """in the end it will not fit nine bits and a sign"""


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
        valid = [active & ~second_half]
        for cycle in range(1, LANE_LATENCY + 1):
            valid.append(delay(m, valid[-1], 1, f"valid_{cycle}", reset=True))
        shift = self._hold(m, now[fields["shift"]], valid, "shift", cycles=(1, 3))
        x = Signal(signed(32), reset_less=True)
        nudge = (self.double_rounding | (shift == 0)) & middle[14]
        m.d.sync += x.eq((upper << 1) + (middle >> 15) + nudge)
        # Cycles 5 and 6: shift, a half below the unit.
        halves = Cat(Const(0, 1), x).as_signed()
        coarse = self._shift(m, _Shifted(halves, x[-1], Const(0, 1), Const(0, 1)), shift, (4, 3), "coarse")
        fine = self._shift(m, coarse, self._hold(m, shift[:3], valid, "shift_fine", cycles=(5,)), (2, 1, 0), "fine")
        # Cycle 7: round, in double rounding ties away from zero; add the zero point. What does not fit nine bits is
        # beyond every clamp.
        whole = Signal(signed(10))
        m.d.comb += whole.eq(Cat(fine.value[1:], fine.sign).as_signed())
        with m.If(fine.beyond):
            m.d.comb += whole.eq(Cat((~fine.sign).replicate(9), fine.sign).as_signed())
        up = fine.value[0] & (~(self.double_rounding & fine.sign) | fine.lost)
        offset = Signal(signed(11), reset_less=True)
        m.d.sync += offset.eq(whole + self.out_zero_point + up)
        # Cycle 8: clamp.
        byte = Signal(8, reset_less=True)
        with m.If(offset < self.act_min):
            m.d.sync += byte.eq(self.act_min)
        with m.Elif(offset > self.act_max):
            m.d.sync += byte.eq(self.act_max)
        with m.Else():
            m.d.sync += byte.eq(offset[:8])
        # Cycle 9: the bytes of a result gather.
        word = Signal(8 * lanes, reset_less=True)
        count = Signal(range(lanes))
        m.d.sync += self.done.eq(valid[-1] & count.all())
        with m.If(valid[-1]):
            m.d.sync += [word.eq(Cat(word[8:], byte)), count.eq(count + 1)]
        m.d.comb += self.bytes.eq(word)
        return m

    @staticmethod
    def _hold(m: Module, value: Value, valid: list[Value], name: str, *, cycles: tuple[int, ...]) -> Value:
        """`value`, which a lane has for two cycles: registers take it from each other in `cycles` of the lane."""
        for cycle in cycles:
            held = Signal.like(value, name=f"{name}_{cycle}", reset_less=True)
            with m.If(valid[cycle]):
                m.d.sync += held.eq(value)
            value = held
        return value

    @staticmethod
    def _shift(m: Module, number: _Shifted, amount: Value, stages: tuple[int, ...], name: str) -> _Shifted:
        """A number shifted right by the powers of two of `amount` in `stages`, highest first; a register behind.

        Of its bits only those that can come into the lowest nine are left.
        """
        value, sign, lost, beyond = number.value, number.sign, number.lost, number.beyond
        for stage in stages:
            distance, width = 1 << stage, 8 + (1 << stage)
            selected = amount[stage]
            longer = Cat(value, sign.replicate(distance))
            lost = lost | (selected & value[:distance].any())
            beyond = beyond | (~selected & (value[width:] ^ sign.replicate(len(value) - width)).any())
            value = Mux(selected, longer[distance : distance + width], longer[:width])
        result = _Shifted(
            Signal(len(value), name=f"{name}_value", reset_less=True),
            *(Signal(name=f"{name}_{field}", reset_less=True) for field in ("sign", "lost", "beyond")),
        )
        m.d.sync += [result.value.eq(value), result.sign.eq(sign), result.lost.eq(lost), result.beyond.eq(beyond)]
        return result
