"""The loop nest in hardware: one descriptor in, one step a cycle out."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import Counter, Kind
from nnloom.arch.loopnest import PARAMETER_SPACING, TABLE_STAGES, parameter_hold

from .descriptor import descriptor_layout
from .legality import DescriptorCheck

__all__ = ["Sequencer", "step_layout"]


def step_layout(config: AcceleratorConfig) -> data.StructLayout:
    """What `nnloom.arch.loopnest.steps` yields, as one word."""
    bits = config.field_bits
    return data.StructLayout(
        {
            "load": 1,  # read a word of parameters
            "load_last": 1,  # the last word of this set
            "step": 1,  # read operands
            "row": signed(bits + 1),
            "q": signed(bits + 2),
            "kernel_row": 8,
            "operand_x": 1,
            "multiply": 1,
            "first": 1,
            "result": 1,
            "to_addend": 1,
            "out_bank": 2,
            "out_granule": bits + 1,  # more than any address has: one beyond the memory is seen as such
            "half": 1,  # write the lower granule only
            "pair": 1,  # the second pixel has a result, too
            "weight": bits + 1,
        }
    )


_EVENT_LAYOUT = data.StructLayout(
    {
        "load": 1,
        "load_last": 1,
        "step": 1,
        "result": 1,
        "multiply": 1,
        "first": 1,
        "phase": 1,  # ADD, product: operand X
        "same": 1,  # operand Y of a product, from one place of the group
        "to_addend": 1,
        "half": 1,
        "pair": 1,
        "begin": 1,  # of a channel group
        "turn_kx": 1,
        "turn_ky": 1,
        "turn_ox": 1,
        "turn_oy": 1,
    }
)


class Sequencer(wiring.Component):
    """Runs descriptors: issues `nnloom.arch.loopnest.steps`, paced, one step a cycle.

    Two stages: the first counts the loops and decides what happens in a cycle, the second has the addresses. Counters
    keep their "this is the last" flag in a register, and each address keeps the value that the next turn of its loop
    will use, so that a cycle needs one addition behind one multiplexer.

    Members
    -------
    next : In; the prefetched descriptor, with `next_valid` and `take`; without `config.overlap` it is also the active
        one, and `take` asks for the next
    active : Out; the descriptor being run; it stays until the next one is taken, after its `start_delay`
    step : Out; registered; `load` or `step` is set in cycles that issue something
    row_ahead : Out; `step.row` one cycle before
    finished : Out; one cycle, `drain` cycles after the last step of the last descriptor, `TABLE_STAGES` later if it has
        a table
    completed : Out; descriptors finished since `start`
    probe : Out; in the cycle of `row_ahead`: it is the row of the last byte of the input (of two operands first of Y,
        then of X; with `broadcast` of X), which no step reads; `step.q` is that byte one cycle after
    illegal : Out; registered; the descriptor, or an address, is none that the engine has
    stop : In; end the program as if this were its last step, before any step that is not issued yet; a batch of an ADD
        goes to its end, so that the addend queue is empty
    waits : Out; registered; what a cycle without a step was spent on: `Counter` from WAITS_START on
    """

    def __init__(self, config: AcceleratorConfig, *, drain: int) -> None:
        self.config = config
        self.drain = drain
        super().__init__(
            {
                "start": In(1),
                "next": In(descriptor_layout(config)),
                "next_valid": In(1),
                "take": Out(1),
                "active": Out(descriptor_layout(config)),
                "step": Out(step_layout(config)),
                "row_ahead": Out(signed(config.field_bits + 1)),
                "finished": Out(1),
                "completed": Out(16),
                "probe": Out(1),
                "illegal": Out(1),
                "stop": In(1),
                "waits": Out(len(Counter) - 1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        if self.config.overlap:
            descriptor = Signal(descriptor_layout(self.config), reset_less=True)
            m.d.comb += self.active.eq(descriptor)
            # Registered, because it enables several hundred flip-flops.
            with m.If(self.take):
                m.d.sync += descriptor.eq(self.next)
            taken = self.take
        else:
            m.d.comb += self.active.eq(self.next)
            taken = Signal()
        is_add = Signal(reset_less=True)
        if not self.config.compact:
            m.d.sync += is_add.eq(self.active.kind == Kind.ADD)
        event = Signal(_EVENT_LAYOUT)
        malformed = Signal()
        self._elaborate_control(m, event, is_add, taken, malformed)
        beyond = self._elaborate_addresses(m, event, is_add, taken)
        m.d.sync += self.illegal.eq(malformed | beyond)
        return m

    def _elaborate_control(self, m: Module, event, is_add: Signal, taken: Signal, malformed: Signal) -> None:
        """Stage 1: loop counters, pacing, states. Says in `event` what happens, and which loops turn.

        malformed: set as the next descriptor is refused, in the state before it would begin.
        """
        config = self.config
        d = self.active

        # Loop counters: remaining turns after this one, and whether this is the last. What they start from is made of
        # the next descriptor, in the state before it is taken.
        settle = Signal()
        slide_first_zero, slide_step_one = Signal(reset_less=True), Signal(reset_less=True)
        with m.If(settle):
            m.d.sync += [slide_first_zero.eq(self.next.slide_first == 0), slide_step_one.eq(self.next.slide_step == 1)]

        class Loop:
            def __init__(self, name: str, count: Value) -> None:
                self.remaining = Signal(config.field_bits, name=f"{name}_remaining", reset_less=True)
                self.last = Signal(name=f"{name}_last", reset_less=True)
                self.top = Signal(config.field_bits, name=f"{name}_top", reset_less=True)
                self.single = Signal(name=f"{name}_single", reset_less=True)
                with m.If(settle):
                    m.d.sync += [self.top.eq(count - 1), self.single.eq(count == 1)]

            def reload(self) -> list:
                return [self.remaining.eq(self.top), self.last.eq(self.single)]

            def advance(self) -> list:
                return [self.remaining.eq(self.remaining - 1), self.last.eq(self.remaining == 1)]

        kx, ky, ox, oy, g = (Loop(name, self.next[f"n_{name}"]) for name in ("kx", "ky", "ox", "oy", "g"))
        first, phase = Signal(reset_less=True), Signal(reset_less=True)
        fire, fire_wait = Signal(reset_less=True), Signal(8, reset_less=True)
        product: Value = d.product if config.elementwise_mul else Const(0, 1)

        # Pacing.
        timer = Signal(8)
        busy = Signal()
        spacing = Signal(range(PARAMETER_SPACING + 1))
        spaced = Signal(init=1)
        load_index = Signal(range(max(2, config.parameter_words)))
        load_final = load_index == config.parameter_words - 1
        y_interval = Const(max(1, config.requant_slots), 8)
        paced = not config.compact  # which lets a step wait by itself
        if paced:
            with m.If(busy):
                m.d.sync += [timer.eq(timer - 1), busy.eq(timer > 1)]
            with m.If(~spaced):
                m.d.sync += [spacing.eq(spacing - 1), spaced.eq(spacing == 1)]

        result, run, issue = Signal(), Signal(), Signal()
        parameters_free: Value = ~busy
        hold = parameter_hold(config)
        if hold:
            # Counts from the end of the last result's interval.
            held = Signal(range(hold + 1))
            with m.If(busy | (issue & result)):
                m.d.sync += held.eq(hold)
            with m.Elif(held != 0):
                m.d.sync += held.eq(held - 1)
            parameters_free = ~busy & (held == 0)
        m.d.comb += [
            result.eq(Mux(d.slide, fire, is_add | (kx.last & ky.last))),
            issue.eq(run & ~(result & busy)),
        ]
        m.d.sync += [
            event.load.eq(0),
            event.load_last.eq(load_final),
            event.step.eq(issue),
            event.result.eq(result),
            event.multiply.eq(~d.slide | fire),
            event.first.eq(d.slide | is_add | first),
            event.phase.eq(phase),
            event.same.eq(d.broadcast & ~phase if config.elementwise_mul else 0),
            event.to_addend.eq(is_add & ~phase),
            event.half.eq(d.half_last & g.last),
            event.pair.eq(d.pixel_pair & ~(d.odd_rows & oy.last)),
            event.begin.eq(0),
            # Exactly one with each step: the loop that turns.
            event.turn_kx.eq(issue & ~kx.last),
            event.turn_ky.eq(issue & kx.last & ~ky.last),
            event.turn_ox.eq(issue & kx.last & ky.last & ~ox.last),
            event.turn_oy.eq(issue & kx.last & ky.last & ox.last),
        ]

        begin_row = [*kx.reload(), *ky.reload(), *ox.reload(), first.eq(1), phase.eq(0)]
        begin_row += [fire.eq(slide_first_zero), fire_wait.eq(d.slide_first)]
        completed = Signal()
        m.d.sync += completed.eq(0)
        with m.If(completed):
            m.d.sync += self.completed.eq(self.completed + 1)
        delay = Signal(8)
        delayed = Signal()
        drain = Signal(range(self.drain + 2 + TABLE_STAGES))
        until_drained: Value = Const(self.drain + 1)
        if config.tables:
            until_drained = Mux(d.table.any(), self.drain + 1 + TABLE_STAGES, self.drain + 1)
        starting, loading = Signal(), Signal()
        m.submodules.check = check = DescriptorCheck(config)
        begun = Signal()
        m.d.comb += [check.descriptor.eq(self.next), check.first.eq(~begun)]
        if config.tables:
            m.d.comb += check.after_table.eq(d.table.any())
        probe_x = Signal()
        m.d.sync += probe_x.eq(0)
        m.d.comb += self.probe.eq(probe_x)

        def end_program() -> None:
            m.d.sync += drain.eq(until_drained)
            m.next = "DRAIN"

        m.d.sync += self.waits.eq(Cat(starting, loading, run & ~issue))
        with m.FSM():
            with m.State("IDLE"), m.If(self.start):
                m.d.sync += [self.completed.eq(0), begun.eq(0)]
                m.next = "FETCH"
            with m.State("FETCH"):
                m.d.comb += starting.eq(1)
                m.d.sync += [delay.eq(self.next.start_delay), delayed.eq(self.next.start_delay == 0)]
                with m.If(self.next_valid):
                    m.next = "DELAY"
                with m.If(self.stop):
                    end_program()
            with m.State("DELAY"):
                m.d.comb += [starting.eq(1), settle.eq(1)]
                m.d.sync += [delay.eq(delay - 1), delayed.eq(delay == 1)]
                with m.If(delayed):
                    m.d.comb += malformed.eq(check.illegal)
                    with m.If(check.illegal | self.stop):
                        # Not taken: its `start_delay` may be too short for what is on its way.
                        end_program()
                    with m.Else():
                        m.d.sync += taken.eq(1)
                        m.next = "TAKE"
            with m.State("TAKE"):
                # The addresses of the first group are taken with the descriptor.
                m.d.comb += starting.eq(1)
                m.d.sync += [taken.eq(0), begun.eq(1)]
                m.d.sync += event.phase.eq(self.next.broadcast if config.elementwise_mul else 0)
                m.next = "BEGIN"
            with m.State("BEGIN"):
                m.d.comb += [starting.eq(1), self.probe.eq(1)]
                m.d.sync += [probe_x.eq(1), event.phase.eq((d.kind == Kind.ADD) | product)]
                m.d.sync += [*g.reload(), *oy.reload(), *begin_row, load_index.eq(0), event.begin.eq(1)]
                m.next = "LOAD"
            with m.State("LOAD"):
                m.d.comb += loading.eq(1)
                with m.If(parameters_free & (spaced | (load_index != 0))):
                    m.d.sync += event.load.eq(1)
                    if paced:
                        with m.If(load_index == 0):
                            m.d.sync += [spacing.eq(PARAMETER_SPACING - 1), spaced.eq(0)]
                    m.d.sync += load_index.eq(Mux(load_final, 0, load_index + 1))
                    with m.If(load_final):
                        m.next = "RUN"
            with m.State("RUN"):
                m.d.comb += run.eq(1)
                with m.If(issue):
                    with m.If(kx.last & (is_add | (ky.last & ox.last & oy.last))):
                        m.next = "LOAD"
                    with m.If(kx.last & ky.last & ox.last & oy.last & g.last):
                        m.d.sync += [completed.eq(1), drain.eq(until_drained)]
                        m.next = "FETCH" if config.overlap else "EMPTY"
                        with m.If(d.last):
                            m.next = "DRAIN"
                    with m.If(self.stop & (~is_add | (kx.last & ky.last))):
                        end_program()
            if not config.overlap:
                # The pipeline uses the descriptor until the last result is written.
                with m.State("EMPTY"):
                    m.d.comb += starting.eq(1)
                    m.d.sync += drain.eq(drain - 1)
                    with m.If(drain == 0):
                        m.d.sync += self.take.eq(1)
                        m.next = "REPLACE"
                with m.State("REPLACE"):
                    m.d.comb += starting.eq(1)
                    m.d.sync += self.take.eq(0)
                    m.next = "FETCH"
            with m.State("DRAIN"):
                m.d.sync += drain.eq(drain - 1)
                with m.If(drain == 0):
                    m.d.comb += self.finished.eq(1)
                    m.next = "IDLE"

        with m.If(issue):
            if paced:
                with m.If(result):
                    pace = Mux(is_add & ~phase, y_interval, d.interval)
                    m.d.sync += [timer.eq(pace - 1), busy.eq(pace > 1)]
            # Slide: loads until the window is complete.
            with m.If(fire):
                m.d.sync += [fire_wait.eq(d.slide_step - 1), fire.eq(slide_step_one)]
            with m.Else():
                m.d.sync += [fire_wait.eq(fire_wait - 1), fire.eq(fire_wait == 1)]
            m.d.sync += first.eq(kx.last & ky.last)
            with m.If(~kx.last):
                m.d.sync += kx.advance()
            with m.Else():
                m.d.sync += [*kx.reload(), phase.eq((is_add | product) & ~ky.last)]
                with m.If(~ky.last):
                    m.d.sync += ky.advance()
                with m.Else():
                    m.d.sync += ky.reload()
                    with m.If(~ox.last):
                        m.d.sync += ox.advance()
                    with m.Else():
                        m.d.sync += begin_row
                        with m.If(~oy.last):
                            m.d.sync += oy.advance()
                        with m.Else():
                            m.d.sync += [*oy.reload(), *g.advance()]
                            m.d.sync += event.begin.eq(~g.last)

    def _elaborate_addresses(self, m: Module, event, is_add: Signal, taken: Signal) -> Value:
        """Stage 2: addresses; each keeps the value that the next turn of its loop will use.

        Registers have a bit more than addresses, so that none comes back into its range unseen. Returns whether one has
        left it.
        """
        config = self.config
        d = self.active

        def state(shape: object, name: str) -> Signal:
            return Signal(shape, name=name, reset_less=True)

        bits = config.field_bits
        q = state(signed(bits + 3), "q")
        q_ox, q_ox_next = state(signed(bits + 3), "q_ox"), state(signed(bits + 3), "q_ox_next")
        q_row, q_row_next = state(signed(bits + 3), "q_row"), state(signed(bits + 3), "q_row_next")
        q_g, q_g_next = state(signed(bits + 3), "q_g"), state(signed(bits + 3), "q_g_next")
        row, row_oy, row_oy_next = (state(signed(bits + 2), n) for n in ("row", "row_oy", "row_oy_next"))
        kernel_row = state(9, "kernel_row")
        weight, weight_first = state(bits + 1, "weight"), state(bits + 1, "weight_first")
        group, group_next = state(bits + 1, "group"), state(bits + 1, "group_next")
        load = state(bits + 1, "load")
        out, out_row_next = state(bits + 1, "out"), state(bits + 1, "out_row_next")
        out_g, out_g_next = state(bits + 1, "out_g"), state(bits + 1, "out_g_next")
        out_bank = state(2, "out_bank")
        # Counted from the row in bank 0; the banks hold four rows.
        out_row = Signal(3)
        m.d.comb += out_row.eq(out_bank + d.out_row_step)
        m.d.sync += [
            # Settled two cycles after a change of group; parameter loads are further apart than that.
            q_g_next.eq(q_g + d.q_step_ox),
            group_next.eq(group + d.weight_step_g),
            out_g_next.eq(out_g + d.out_step_g),
        ]

        # The last byte of the input, for the probe.
        last_row, last_byte = state(bits, "last_row"), state(bits, "last_byte")
        m.d.sync += [last_row.eq(self.next.in_rows - 1), last_byte.eq(self.next.in_row_bytes - 1)]
        row_now = Signal(signed(bits + 1))
        m.d.comb += row_now.eq(Mux(self.probe, last_row, Mux(event.same, 0, row)))

        s = self.step
        m.d.comb += self.row_ahead.eq(row_now)
        m.d.sync += [
            s.load.eq(event.load),
            s.load_last.eq(event.load & event.load_last),
            s.step.eq(event.step),
            s.weight.eq(Mux(event.load, load, weight)),
            s.row.eq(row_now),
            s.q.eq(Mux(self.probe, last_byte, q)),
            s.kernel_row.eq(kernel_row),
            s.operand_x.eq(event.phase),
            s.multiply.eq(event.multiply),
            s.first.eq(event.first),
            s.result.eq(event.result),
            s.to_addend.eq(event.to_addend),
            s.out_bank.eq(out_bank),
            s.out_granule.eq(out),
            s.half.eq(event.half),
            s.pair.eq(event.pair),
        ]

        with m.If(event.load):
            m.d.sync += load.eq(load + 1)
        with m.If(event.step):
            with m.If(event.result & ~event.to_addend):
                m.d.sync += out.eq(out + d.out_step_ox)
            with m.If(d.weights_advance):
                m.d.sync += weight.eq(weight + 1)
        with m.If(event.turn_kx):
            m.d.sync += q.eq(q + d.q_step_kx)
        with m.If(event.turn_ky):
            m.d.sync += q.eq(q_ox)
            with m.If(~is_add):
                m.d.sync += [row.eq(row + d.row_step_ky), kernel_row.eq(kernel_row + d.row_step_ky)]
        with m.If(event.turn_ox):
            m.d.sync += [q.eq(q_ox_next), q_ox.eq(q_ox_next), q_ox_next.eq(q_ox_next + d.q_step_ox)]
            if config.elementwise_mul:
                with m.If(d.broadcast):
                    m.d.sync += q.eq(q_row)
        with m.If(event.turn_oy):
            m.d.sync += [q.eq(q_row), q_ox.eq(q_row), q_ox_next.eq(q_row_next)]
            m.d.sync += [row.eq(row_oy_next), row_oy.eq(row_oy_next), row_oy_next.eq(row_oy_next + d.row_step_oy)]
            m.d.sync += out_bank.eq(out_row)
            with m.If(out_row[2]):
                m.d.sync += [out.eq(out_row_next + d.out_row_stride), out_row_next.eq(out_row_next + d.out_row_stride)]
            with m.Else():
                m.d.sync += out.eq(out_row_next)
        with m.If(event.turn_ox):
            m.d.sync += row.eq(row_oy)
        with m.If(event.turn_ox | event.turn_oy):
            m.d.sync += [kernel_row.eq(0), weight.eq(weight_first)]
            with m.If(is_add):
                m.d.sync += load.eq(load - 2 * config.parameter_words)
        # Two sets of parameters stand before the weights of an ADD.
        weights = group + Mux(is_add, 2 * config.parameter_words, config.parameter_words)
        with m.If(event.begin):
            m.d.sync += [
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
                out_bank.eq(d.out_row_start),
                group.eq(group_next),
                q_g.eq(q_g + d.q_step_g),
                out_g.eq(out_g_next),
            ]
        # Is an address in use that the engine does not have? Results are watched where they are written.
        last_kernel_row: Value = kernel_row[8]
        if config.row_triples:
            beyond_triple = kernel_row[2:8].all() & kernel_row[:2].any()
            last_kernel_row = last_kernel_row | (d.row_triple & beyond_triple)
        beyond = Signal(2)
        m.d.sync += [
            beyond[0].eq(event.step & ((~q[-1] & q[-2]) | (~row[-1] & row[-2]) | last_kernel_row)),
            beyond[1].eq((s.load | s.step) & (s.weight >= config.weight_words)),
        ]
        with m.If(taken):
            m.d.sync += [q_g.eq(self.next.q_start), group.eq(self.next.weight_base), out_g.eq(self.next.out_base)]
        return beyond.any()
