"""The loop nest in hardware: one descriptor in, one step a cycle out."""

from amaranth.hdl import Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import Kind
from nnloom.arch.loopnest import PARAMETER_SPACING

from .descriptor import DESCRIPTOR_LAYOUT

__all__ = ["STEP_LAYOUT", "Sequencer"]

STEP_LAYOUT = data.StructLayout(
    {
        "load": 1,  # read a word of parameters
        "load_last": 1,  # the last word of this set
        "step": 1,  # read operands
        "row": signed(17),
        "q": signed(18),
        "kernel_row": 8,
        "operand_x": 1,
        "multiply": 1,
        "first": 1,
        "result": 1,
        "to_addend": 1,
        "out_bank": 2,
        "out_granule": 16,
        "half": 1,  # write the lower granule only
        "pair": 1,  # the second pixel has a result, too
        "weight": 16,
    }
)
"""What `nnloom.arch.loopnest.steps` yields, as one word."""


class Sequencer(wiring.Component):
    """Runs descriptors: issues `nnloom.arch.loopnest.steps`, paced, one step a cycle.

    Counters keep their "this is the last" flag in a register, and each address keeps the value that the next
    turn of its loop will use, so that a cycle needs one addition behind one multiplexer.

    Members
    -------
    next : In; the prefetched descriptor, with `next_valid` and `take`
    active : Out; the descriptor being run; it stays until the next one is taken, after its `start_delay`
    step : Out; registered; `load` or `step` is set in cycles that issue something
    row_ahead : Out; `step.row` one cycle before
    finished : Out; one cycle, `drain` cycles after the last step of the last descriptor
    completed : Out; descriptors finished since `start`
    """

    def __init__(self, config: AcceleratorConfig, *, drain: int) -> None:
        self.config = config
        self.drain = drain
        super().__init__(
            {
                "start": In(1),
                "next": In(DESCRIPTOR_LAYOUT),
                "next_valid": In(1),
                "take": Out(1),
                "active": Out(DESCRIPTOR_LAYOUT),
                "step": Out(STEP_LAYOUT),
                "row_ahead": Out(signed(17)),
                "finished": Out(1),
                "completed": Out(16),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        d = self.active
        add = d.kind == Kind.ADD
        is_add = Signal(reset_less=True)

        # Loop counters: remaining turns after this one, and whether this is the last.
        class Loop:
            def __init__(self, name: str, count: Value) -> None:
                self.remaining = Signal(16, name=f"{name}_remaining", reset_less=True)
                self.last = Signal(name=f"{name}_last", reset_less=True)
                self.top = Signal(16, name=f"{name}_top", reset_less=True)
                self.single = Signal(name=f"{name}_single", reset_less=True)
                m.d.sync += [self.top.eq(count - 1), self.single.eq(count == 1)]

            def reload(self) -> list:
                return [self.remaining.eq(self.top), self.last.eq(self.single)]

            def advance(self) -> list:
                return [self.remaining.eq(self.remaining - 1), self.last.eq(self.remaining == 1)]

        kx, ky = Loop("kx", d.n_kx), Loop("ky", d.n_ky)
        ox, oy, g = Loop("ox", d.n_ox), Loop("oy", d.n_oy), Loop("g", d.n_g)

        # Addresses: the current value, and the value at the next turn of each enclosing loop.
        def state(shape: object, name: str) -> Signal:
            return Signal(shape, name=name, reset_less=True)

        q = state(signed(18), "q")
        q_ox, q_ox_next = state(signed(18), "q_ox"), state(signed(18), "q_ox_next")
        q_row, q_row_next = state(signed(18), "q_row"), state(signed(18), "q_row_next")
        q_g, q_g_next = state(signed(18), "q_g"), state(signed(18), "q_g_next")
        row, row_oy, row_oy_next = (state(signed(17), n) for n in ("row", "row_oy", "row_oy_next"))
        kernel_row = state(8, "kernel_row")
        weight, weight_first = state(16, "weight"), state(16, "weight_first")
        group, group_next = state(16, "group"), state(16, "group_next")
        load = state(16, "load")
        out, out_row_next = state(16, "out"), state(16, "out_row_next")
        out_g, out_g_next = state(16, "out_g"), state(16, "out_g_next")
        out_bank = state(2, "out_bank")
        first = state(1, "first")
        phase = state(1, "phase")
        fire, fire_wait = state(1, "fire"), state(8, "fire_wait")
        slide_first_zero, slide_step_one = state(1, "slide_first_zero"), state(1, "slide_step_one")
        m.d.sync += [
            slide_first_zero.eq(d.slide_first == 0),
            slide_step_one.eq(d.slide_step == 1),
            is_add.eq(add),
            # Settled two cycles after a change of group; parameter loads are further apart than that.
            q_g_next.eq(q_g + d.q_step_ox),
            group_next.eq(group + d.weight_step_g),
            out_g_next.eq(out_g + d.out_step_g),
        ]

        # Pacing.
        timer = Signal(8)
        busy = Signal()
        spacing = Signal(range(PARAMETER_SPACING + 1))
        spaced = Signal(init=1)
        load_index = Signal(range(max(2, config.parameter_words)))
        load_final = load_index == config.parameter_words - 1

        def pace(cycles: Value) -> list:
            return [timer.eq(cycles - 1), busy.eq(cycles > 1)]

        with m.If(busy):
            m.d.sync += [timer.eq(timer - 1), busy.eq(timer > 1)]
        with m.If(~spaced):
            m.d.sync += [spacing.eq(spacing - 1), spaced.eq(spacing == 1)]

        s = self.step
        m.d.sync += [s.load.eq(0), s.load_last.eq(0), s.step.eq(0)]
        m.d.sync += [
            s.row.eq(row),
            s.q.eq(q),
            s.kernel_row.eq(kernel_row),
            s.operand_x.eq(phase),
            s.out_bank.eq(out_bank),
            s.out_granule.eq(out),
            s.half.eq(d.half_last & g.last),
            s.pair.eq(d.pixel_pair & ~(d.odd_rows & oy.last)),
            s.to_addend.eq(is_add & ~phase),
        ]

        m.d.comb += self.row_ahead.eq(row)
        result = Signal()
        m.d.comb += result.eq(Mux(d.slide, fire, is_add | (kx.last & ky.last)))
        y_interval = Const(max(1, config.requant_slots), 8)

        # Two sets of parameters stand before the weights of an ADD.
        weights = group + Mux(is_add, 2 * config.parameter_words, config.parameter_words)
        begin_group = [
            *kx.reload(),
            *ky.reload(),
            *ox.reload(),
            *oy.reload(),
            load.eq(group),
            weight.eq(weights),
            weight_first.eq(weights),
            q.eq(q_g),
            q_ox.eq(q_g),
            q_ox_next.eq(q_g_next),
            q_row.eq(q_g),
            q_row_next.eq(q_g_next),
            row.eq(d.row_start),
            row_oy.eq(d.row_start),
            row_oy_next.eq(d.row_start + d.row_step_oy),
            kernel_row.eq(0),
            out.eq(out_g),
            out_row_next.eq(out_g),
            out_bank.eq(0),
            first.eq(1),
            phase.eq(0),
            fire.eq(slide_first_zero),
            fire_wait.eq(d.slide_first),
            group.eq(group_next),
            q_g.eq(q_g + d.q_step_g),
            out_g.eq(out_g_next),
        ]

        delay = Signal(8)
        drain = Signal(range(self.drain + 1))
        running_last = d.last

        with m.FSM():
            with m.State("IDLE"), m.If(self.start):
                m.d.sync += self.completed.eq(0)
                m.next = "FETCH"
            with m.State("FETCH"):
                m.d.sync += delay.eq(self.next.start_delay)
                with m.If(self.next_valid):
                    m.next = "DELAY"
            with m.State("DELAY"):
                m.d.sync += delay.eq(delay - 1)
                with m.If(delay == 0):
                    m.d.comb += self.take.eq(1)
                    m.d.sync += d.eq(self.next)
                    m.next = "SETUP"
            with m.State("SETUP"):
                m.d.sync += [q_g.eq(d.q_start), group.eq(d.weight_base), out_g.eq(d.out_base)]
                m.next = "SETTLE"
            with m.State("SETTLE"):
                m.d.sync += [*g.reload(), load_index.eq(0)]
                m.next = "GROUP"
            with m.State("GROUP"):
                m.d.sync += begin_group
                m.next = "LOAD"
            with m.State("LOAD"), m.If(~busy & (spaced | (load_index != 0))):
                m.d.sync += [s.load.eq(1), s.load_last.eq(load_final), s.weight.eq(load), load.eq(load + 1)]
                with m.If(load_index == 0):
                    m.d.sync += [spacing.eq(PARAMETER_SPACING - 1), spaced.eq(0)]
                m.d.sync += load_index.eq(Mux(load_final, 0, load_index + 1))
                with m.If(load_final):
                    m.next = "RUN"
            with m.State("RUN"), m.If(~(result & busy)):
                m.d.sync += [
                    s.step.eq(1),
                    s.weight.eq(weight),
                    s.result.eq(result),
                    s.multiply.eq(~d.slide | fire),
                    s.first.eq(d.slide | is_add | first),
                ]
                with m.If(result):
                    m.d.sync += pace(Mux(is_add & ~phase, y_interval, d.interval))
                    with m.If(~is_add | phase):
                        m.d.sync += out.eq(out + d.out_step_ox)
                m.d.sync += first.eq(0)
                with m.If(d.weights_advance):
                    m.d.sync += weight.eq(weight + 1)
                # Slide: loads until the window is complete.
                with m.If(fire):
                    m.d.sync += [fire_wait.eq(d.slide_step - 1), fire.eq(slide_step_one)]
                with m.Else():
                    m.d.sync += [fire_wait.eq(fire_wait - 1), fire.eq(fire_wait == 1)]

                with m.If(~kx.last):
                    m.d.sync += [*kx.advance(), q.eq(q + d.q_step_kx)]
                with m.Else():
                    m.d.sync += [*kx.reload(), q.eq(q_ox)]
                    with m.If(~ky.last):
                        m.d.sync += ky.advance()
                        with m.If(is_add):
                            m.d.sync += phase.eq(1)
                            m.next = "LOAD"
                        with m.Else():
                            m.d.sync += [row.eq(row + d.row_step_ky), kernel_row.eq(kernel_row + d.row_step_ky)]
                    with m.Else():
                        m.d.sync += [*ky.reload(), row.eq(row_oy), kernel_row.eq(0), weight.eq(weight_first)]
                        m.d.sync += [first.eq(1), phase.eq(0)]
                        with m.If(is_add):
                            m.d.sync += load.eq(load - 2 * config.parameter_words)
                            m.next = "LOAD"
                        with m.If(~ox.last):
                            m.d.sync += [*ox.advance(), q.eq(q_ox_next), q_ox.eq(q_ox_next)]
                            m.d.sync += q_ox_next.eq(q_ox_next + d.q_step_ox)
                        with m.Else():
                            m.d.sync += [*ox.reload(), q.eq(q_row), q_ox.eq(q_row), q_ox_next.eq(q_row_next)]
                            m.d.sync += [fire.eq(slide_first_zero), fire_wait.eq(d.slide_first)]
                            m.d.sync += [row.eq(row_oy_next), row_oy.eq(row_oy_next)]
                            m.d.sync += row_oy_next.eq(row_oy_next + d.row_step_oy)
                            m.d.sync += out_bank.eq(out_bank + Mux(d.pixel_pair, 2, 1))
                            with m.If(out_bank[1] & (out_bank[0] | d.pixel_pair)):
                                m.d.sync += [
                                    out.eq(out_row_next + d.out_row_stride),
                                    out_row_next.eq(out_row_next + d.out_row_stride),
                                ]
                            with m.Else():
                                m.d.sync += out.eq(out_row_next)
                            with m.If(~oy.last):
                                m.d.sync += oy.advance()
                            with m.Else():
                                with m.If(~g.last):
                                    m.d.sync += [*g.advance(), *begin_group]
                                    m.next = "LOAD"
                                with m.Else():
                                    m.d.sync += [self.completed.eq(self.completed + 1), drain.eq(self.drain)]
                                    m.next = "DRAIN"
                                    with m.If(~running_last):
                                        m.next = "FETCH"
            with m.State("DRAIN"):
                m.d.sync += drain.eq(drain - 1)
                with m.If(drain == 0):
                    m.d.comb += self.finished.eq(1)
                    m.next = "IDLE"
        return m
