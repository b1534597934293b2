"""The sequencer of the compact engine: that of the larger one at a quarter of its clock, so with half its registers."""

from typing import cast

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib.wiring import In, Out

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import DESCRIPTOR_WORDS

from .sequencer import Loop, Loops, Sequencer

__all__ = ["CompactSequencer"]

LOOPS = 5
"""kx, ky, ox, oy, g"""


class _Turns(Loop):
    """Counts turns from 1 on. Whether they are all is compared outside, see `CompactSequencer.ends`."""

    def __init__(self, m: Module, name: str, bits: int, count: Value, settle: Signal) -> None:
        self.turn = Signal(bits, name=f"{name}_turn", reset_less=True)
        self.last = Signal(name=f"{name}_last")
        self.ends = self.turn == count

    def reload(self) -> list:
        return [self.turn.eq(1)]

    def advance(self) -> list:
        return [self.turn.eq(self.turn + 1)]


class CompactSequencer(Sequencer):
    """As `Sequencer`, cycle for cycle, where steps are at least two cycles apart.

    Addresses have no register for the value of the next turn, and are those of the step that is out, not of the next
    one: `row_ahead` stays zero. `completed` has as many bits as the program memory's descriptors need.

    Members
    -------
    those of `Sequencer`
    ends : Out; for each loop, whether this is its last turn
    ended : In; `ends` of the cycle before, whether the sequencer went on in it or not
    """

    loop = _Turns

    def __init__(self, config: AcceleratorConfig, *, drain: int) -> None:
        super().__init__(config, drain=drain, members={"ends": Out(LOOPS), "ended": In(LOOPS)})

    @property
    def completed_bits(self) -> int:
        return (self.config.program_words // DESCRIPTOR_WORDS).bit_length()

    def _elaborate_loops(self, m: Module) -> Loops:
        loops = super()._elaborate_loops(m)
        counted = cast(list[_Turns], [loops.kx, loops.ky, loops.ox, loops.oy, loops.g])
        m.d.comb += [
            self.ends.eq(Cat(loop.ends for loop in counted)),
            Cat(loop.last for loop in counted).eq(self.ended),
        ]
        return loops

    def _elaborate_addresses(self, m: Module, event, is_add: Signal, taken: Signal) -> Value:
        """Stage 2. The addresses move on with the step that has used them, a cycle after its `event`."""
        names = ("turn_kx", "turn_ky", "turn_ox", "turn_oy", "begin")
        turns = {name: Signal(name=name) for name in names}
        s = self.step
        m.d.sync += [turn.eq(event[name]) for name, turn in turns.items()]
        m.d.sync += [s[name].eq(event[name]) for name in ("load", "step", "multiply", "first", "result", "half")]
        m.d.sync += s.load_last.eq(event.load & event.load_last)
        beyond = self._elaborate_input(m, turns, taken)
        self._elaborate_output(m, turns, taken)
        return beyond | self._elaborate_weights(m, turns, taken)

    def _elaborate_input(self, m: Module, turns: dict[str, Signal], taken: Signal) -> Value:
        """Row and byte of the input. Returns whether a step has one that the engine does not have."""
        d, s, bits = self.active, self.step, self.config.field_bits
        q, q_ox, q_g = (Signal(signed(bits + 3), name=name, reset_less=True) for name in ("q", "q_ox", "q_g"))
        row, row_oy = (Signal(signed(bits + 2), name=name, reset_less=True) for name in ("row", "row_oy"))
        kernel_row = Signal(9, reset_less=True)
        next_ox, next_oy = Signal.like(q), Signal.like(row)
        m.d.comb += [next_ox.eq(q_ox + d.q_step_ox), next_oy.eq(row_oy + d.row_step_oy)]
        with m.If(turns["turn_kx"]):
            m.d.sync += q.eq(q + d.q_step_kx)
        with m.If(turns["turn_ky"]):
            m.d.sync += [q.eq(q_ox), row.eq(row + d.row_step_ky), kernel_row.eq(kernel_row + d.row_step_ky)]
        with m.If(turns["turn_ox"]):
            m.d.sync += [q.eq(next_ox), q_ox.eq(next_ox), row.eq(row_oy)]
        with m.If(turns["turn_oy"]):
            m.d.sync += [row.eq(next_oy), row_oy.eq(next_oy)]
        with m.If(turns["begin"]):
            m.d.sync += [row.eq(d.row_start), row_oy.eq(d.row_start)]
        with m.If(turns["turn_ox"] | turns["turn_oy"] | turns["begin"]):
            m.d.sync += kernel_row.eq(0)
        # A group but the first begins with the last step of the one before. Its own first step is further away than
        # the two cycles that its address takes.
        begun = Signal()
        m.d.sync += begun.eq(turns["begin"])
        with m.If(turns["begin"] & s.step):
            m.d.sync += q_g.eq(q_g + d.q_step_g)
        with m.If(taken):
            m.d.sync += q_g.eq(self.next.q_start)
        with m.If(turns["turn_oy"] | begun):
            m.d.sync += [q.eq(q_g), q_ox.eq(q_g)]

        # The last byte of the input, for the probe.
        probing = Signal()
        m.d.sync += probing.eq(self.probe)
        m.d.comb += [
            s.row.eq(Mux(probing, d.in_rows - 1, row)),
            s.q.eq(Mux(probing, d.in_row_bytes - 1, q)),
            s.kernel_row.eq(kernel_row),
        ]
        return s.step & ((~q[-1] & q[-2]) | (~row[-1] & row[-2]) | kernel_row[8])

    def _elaborate_output(self, m: Module, turns: dict[str, Signal], taken: Signal) -> None:
        """Where results go."""
        d, s, bits = self.active, self.step, self.config.field_bits
        out, out_row, out_g = (Signal(bits + 1, name=name, reset_less=True) for name in ("out", "out_row", "out_g"))
        bank = Signal(2, name="out_bank", reset_less=True)
        # Counted from the row in bank 0; the banks hold four rows.
        next_bank = Signal(3)
        next_row = Signal.like(out_row)
        m.d.comb += [
            next_bank.eq(bank + d.out_row_step),
            next_row.eq(Mux(next_bank[2], out_row + d.out_row_stride, out_row)),
            s.out_bank.eq(bank),
            s.out_granule.eq(out),
        ]
        with m.If(s.step & s.result):
            m.d.sync += out.eq(out + d.out_step_ox)
        with m.If(turns["turn_oy"]):
            m.d.sync += [bank.eq(next_bank), out.eq(next_row), out_row.eq(next_row)]
        with m.If(turns["begin"]):
            m.d.sync += [bank.eq(d.out_row_start), out.eq(out_g), out_row.eq(out_g), out_g.eq(out_g + d.out_step_g)]
        with m.If(taken):
            m.d.sync += out_g.eq(self.next.out_base)

    def _elaborate_weights(self, m: Module, turns: dict[str, Signal], taken: Signal) -> Value:
        """Parameters and weights, which follow each other. Returns whether a step has none of the memory's words."""
        d, s, bits = self.active, self.step, self.config.field_bits
        weight, first, group = (Signal(bits + 1, name=name, reset_less=True) for name in ("weight", "first", "group"))
        following = Signal.like(weight)
        m.d.comb += [following.eq(weight + 1), s.weight.eq(weight)]
        with m.If(s.load):
            m.d.sync += first.eq(following)
        with m.If(s.load | (s.step & d.weights_advance)):
            m.d.sync += weight.eq(following)
        with m.If(turns["turn_ox"] | turns["turn_oy"]):
            m.d.sync += weight.eq(first)
        with m.If(turns["begin"]):
            m.d.sync += [weight.eq(group), group.eq(group + d.weight_step_g)]
        with m.If(taken):
            m.d.sync += group.eq(self.next.weight_base)
        beyond = Signal()
        m.d.sync += beyond.eq((s.load | s.step) & (weight >= self.config.weight_words))
        return beyond
