"""The loop nest in hardware: one descriptor in, one step a cycle out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import Counter, Kind
from nnloom.arch.loopnest import PARAMETER_SPACING, TABLE_STAGES, parameter_hold

from .descriptor import descriptor_layout
from .legality import DescriptorCheck

__all__ = ["Loop", "Loops", "Sequencer", "step_layout"]


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


class Loop:
    """A loop counter: remaining turns after this one, and whether this is the last.

    What it starts from is made of `count`, that of the next descriptor, while `settle`.
    """

    def __init__(self, m: Module, name: str, bits: int, count: Value, settle: Signal) -> None:
        self.remaining = Signal(bits, name=f"{name}_remaining", reset_less=True)
        self.last = Signal(name=f"{name}_last", reset_less=True)
        self.top = Signal(bits, name=f"{name}_top", reset_less=True)
        self.single = Signal(name=f"{name}_single", reset_less=True)
        with m.If(settle):
            m.d.sync += [self.top.eq(count - 1), self.single.eq(count == 1)]

    def reload(self) -> list:
        return [self.remaining.eq(self.top), self.last.eq(self.single)]

    def advance(self) -> list:
        return [self.remaining.eq(self.remaining - 1), self.last.eq(self.remaining == 1)]


@dataclass(frozen=True)
class Loops:
    """Where in the loop nest the next step is."""

    kx: Loop
    ky: Loop
    ox: Loop
    oy: Loop
    g: Loop
    settle: Signal
    """The next descriptor stands: what loops start from is made of it."""
    slide_first_zero: Signal
    slide_step_one: Signal
    first: Signal
    """The first step of a result."""
    phase: Signal
    """ADD, product: operand X."""
    fire: Signal
    """Slide: the window is complete."""
    fire_wait: Signal
    """Slide: loads until then."""
    product: Value

    def begin_row(self, descriptor: data.View) -> list:
        """Statements that go to the first step of an output row."""
        begin_row = [*self.kx.reload(), *self.ky.reload(), *self.ox.reload(), self.first.eq(1), self.phase.eq(0)]
        begin_row += [self.fire.eq(self.slide_first_zero), self.fire_wait.eq(descriptor.slide_first)]
        return begin_row


@dataclass(frozen=True)
class _Pacing:
    """Which steps are issued, and what keeps them apart."""

    timer: Signal
    busy: Signal
    """The interval of the last result is not over."""
    spacing: Signal
    spaced: Signal
    """The last set of parameters is far enough away."""
    load_index: Signal
    load_final: Value
    parameters_free: Value
    """Parameters may be loaded."""
    result: Signal
    """The step, if issued, completes a result."""
    run: Signal
    issue: Signal
    """A step is issued."""


@dataclass(frozen=True)
class _Addresses:
    """Addresses of the next step, and what the next turn of each loop will make of them."""

    q: Signal
    q_ox: Signal
    q_ox_next: Signal
    q_row: Signal
    q_row_next: Signal
    q_g: Signal
    q_g_next: Signal
    row: Signal
    row_oy: Signal
    row_oy_next: Signal
    kernel_row: Signal
    weight: Signal
    weight_first: Signal
    group: Signal
    group_next: Signal
    load: Signal
    out: Signal
    out_row: Signal
    """Counted from the row in bank 0: that of the next output row."""
    out_row_next: Signal
    out_g: Signal
    out_g_next: Signal
    out_bank: Signal


class Sequencer(wiring.Component):
    """Runs descriptors: issues `nnloom.arch.loopnest.steps`, paced, one step a cycle.

    Two stages: the first counts the loops and decides what happens in a cycle, the second has the addresses. Counters
    keep their "this is the last" flag in a register, and each address keeps the value that the next turn of its loop
    will use, so that a cycle needs one addition behind one multiplexer.

    Parameters
    ----------
    drain
        See `finished`.
    members
        Further ones, of a subclass.

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

    loop: ClassVar[type[Loop]] = Loop

    def __init__(
        self, config: AcceleratorConfig, *, drain: int, members: Mapping[str, wiring.Member] | None = None
    ) -> None:
        self.config = config
        self.drain = drain
        super().__init__(
            {
                **(members or {}),
                "start": In(1),
                "next": In(descriptor_layout(config)),
                "next_valid": In(1),
                "take": Out(1),
                "active": Out(descriptor_layout(config)),
                "step": Out(step_layout(config)),
                "row_ahead": Out(signed(config.field_bits + 1)),
                "finished": Out(1),
                "completed": Out(self.completed_bits),
                "probe": Out(1),
                "illegal": Out(1),
                "stop": In(1),
                "waits": Out(len(Counter) - 1),
            }
        )

    @property
    def completed_bits(self) -> int:
        """Width of `completed`."""
        return 16

    @property
    def _paced(self) -> bool:
        """The compact engine lets a step wait by itself."""
        return not self.config.compact

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
        loops = self._elaborate_loops(m)
        pacing = self._elaborate_pacing(m, is_add, loops)
        self._elaborate_event(m, event, is_add, loops, pacing)
        self._elaborate_states(m, event, is_add, taken, malformed, loops, pacing)
        self._elaborate_turns(m, event, is_add, loops, pacing)

    def _elaborate_loops(self, m: Module) -> Loops:
        """Loop counters. What they start from is made of the next descriptor, in the state before it is taken."""
        config = self.config
        d = self.active
        settle = Signal()
        slide_first_zero, slide_step_one = Signal(reset_less=True), Signal(reset_less=True)
        with m.If(settle):
            m.d.sync += [slide_first_zero.eq(self.next.slide_first == 0), slide_step_one.eq(self.next.slide_step == 1)]

        kx, ky, ox, oy, g = (
            self.loop(m, name, config.field_bits, self.next[f"n_{name}"], settle)
            for name in ("kx", "ky", "ox", "oy", "g")
        )
        first, phase = Signal(reset_less=True), Signal(reset_less=True)
        fire, fire_wait = Signal(reset_less=True), Signal(8, reset_less=True)
        product: Value = d.product if config.elementwise_mul else Const(0, 1)
        return Loops(
            kx, ky, ox, oy, g, settle, slide_first_zero, slide_step_one, first, phase, fire, fire_wait, product
        )

    def _elaborate_pacing(self, m: Module, is_add: Signal, loops: Loops) -> _Pacing:
        """When a step may be issued: results and parameters keep the distances that the pipeline needs."""
        config = self.config
        d = self.active
        kx, ky, fire = loops.kx, loops.ky, loops.fire
        timer = Signal(8)
        busy = Signal()
        spacing = Signal(range(PARAMETER_SPACING + 1))
        spaced = Signal(init=1)
        load_index = Signal(range(max(2, config.parameter_words)))
        load_final = load_index == config.parameter_words - 1
        if self._paced:
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
        completes: Value = kx.last & ky.last
        if config.partial_sums:
            completes = completes & ~d.keep
        m.d.comb += [
            result.eq(Mux(d.slide, fire, is_add | completes)),
            issue.eq(run & ~(result & busy)),
        ]
        return _Pacing(timer, busy, spacing, spaced, load_index, load_final, parameters_free, result, run, issue)

    def _elaborate_event(self, m: Module, event, is_add: Signal, loops: Loops, pacing: _Pacing) -> None:
        """What a step is, and which loop it turns."""
        config = self.config
        d = self.active
        kx, ky, ox, oy, g = loops.kx, loops.ky, loops.ox, loops.oy, loops.g
        first, phase, fire = loops.first, loops.phase, loops.fire
        load_final, result, issue = pacing.load_final, pacing.result, pacing.issue
        m.d.sync += [
            event.load.eq(0),
            event.load_last.eq(load_final),
            event.step.eq(issue),
            event.result.eq(result),
            event.multiply.eq(~d.slide | fire),
            event.first.eq(d.slide | is_add | (first & ~d.resume if config.partial_sums else first)),
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

    def _elaborate_states(
        self,
        m: Module,
        event,
        is_add: Signal,
        taken: Signal,
        malformed: Signal,
        loops: Loops,
        pacing: _Pacing,
    ) -> None:
        """From descriptor to descriptor, and from one set of parameters to the next."""
        config = self.config
        d = self.active
        kx, ky, ox, oy, g = loops.kx, loops.ky, loops.ox, loops.oy, loops.g
        load_index, load_final, run, issue = pacing.load_index, pacing.load_final, pacing.run, pacing.issue
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
                m.d.comb += [starting.eq(1), loops.settle.eq(1)]
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
                m.d.sync += [probe_x.eq(1), event.phase.eq((d.kind == Kind.ADD) | loops.product)]
                m.d.sync += [*g.reload(), *oy.reload(), *loops.begin_row(d), load_index.eq(0), event.begin.eq(1)]
                m.next = "LOAD"
            with m.State("LOAD"):
                m.d.comb += loading.eq(1)
                with m.If(pacing.parameters_free & (pacing.spaced | (load_index != 0))):
                    m.d.sync += event.load.eq(1)
                    if self._paced:
                        with m.If(load_index == 0):
                            m.d.sync += [pacing.spacing.eq(PARAMETER_SPACING - 1), pacing.spaced.eq(0)]
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

    def _elaborate_turns(self, m: Module, event, is_add: Signal, loops: Loops, pacing: _Pacing) -> None:
        """A step that is issued moves the loops on."""
        d = self.active
        kx, ky, ox, oy, g = loops.kx, loops.ky, loops.ox, loops.oy, loops.g
        first, phase, fire, fire_wait = loops.first, loops.phase, loops.fire, loops.fire_wait
        timer, busy = pacing.timer, pacing.busy
        y_interval = Const(max(1, self.config.requant_slots), 8)
        with m.If(pacing.issue):
            if self._paced:
                with m.If(pacing.result):
                    pace = Mux(is_add & ~phase, y_interval, d.interval)
                    m.d.sync += [timer.eq(pace - 1), busy.eq(pace > 1)]
            # Slide: loads until the window is complete.
            with m.If(fire):
                m.d.sync += [fire_wait.eq(d.slide_step - 1), fire.eq(loops.slide_step_one)]
            with m.Else():
                m.d.sync += [fire_wait.eq(fire_wait - 1), fire.eq(fire_wait == 1)]
            m.d.sync += first.eq(kx.last & ky.last)
            with m.If(~kx.last):
                m.d.sync += kx.advance()
            with m.Else():
                m.d.sync += [*kx.reload(), phase.eq((is_add | loops.product) & ~ky.last)]
                with m.If(~ky.last):
                    m.d.sync += ky.advance()
                with m.Else():
                    m.d.sync += ky.reload()
                    with m.If(~ox.last):
                        m.d.sync += ox.advance()
                    with m.Else():
                        m.d.sync += loops.begin_row(d)
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
        addresses = self._elaborate_step(m, event)
        self._turn_addresses(m, event, is_add, addresses)
        self._begin_addresses(m, event, is_add, addresses)
        return self._watch_addresses(m, event, taken, addresses)

    def _elaborate_step(self, m: Module, event) -> _Addresses:
        """The registers of the addresses, and the step that is made of them."""
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
        return _Addresses(
            q,
            q_ox,
            q_ox_next,
            q_row,
            q_row_next,
            q_g,
            q_g_next,
            row,
            row_oy,
            row_oy_next,
            kernel_row,
            weight,
            weight_first,
            group,
            group_next,
            load,
            out,
            out_row,
            out_row_next,
            out_g,
            out_g_next,
            out_bank,
        )

    def _turn_addresses(self, m: Module, event, is_add: Signal, addresses: _Addresses) -> None:
        """A step moves the addresses on, each by the loop that turns."""
        config = self.config
        d = self.active
        a = addresses
        q, q_ox, q_ox_next, q_row, q_row_next = a.q, a.q_ox, a.q_ox_next, a.q_row, a.q_row_next
        row, row_oy, row_oy_next, kernel_row = a.row, a.row_oy, a.row_oy_next, a.kernel_row
        weight, weight_first, load = a.weight, a.weight_first, a.load
        out, out_row, out_row_next, out_bank = a.out, a.out_row, a.out_row_next, a.out_bank
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

    def _begin_addresses(self, m: Module, event, is_add: Signal, addresses: _Addresses) -> None:
        """The addresses that a channel group begins with."""
        config = self.config
        d = self.active
        a = addresses
        # Two sets of parameters stand before the weights of an ADD.
        weights = a.group + Mux(is_add, 2 * config.parameter_words, config.parameter_words)
        with m.If(event.begin):
            m.d.sync += [
                a.load.eq(a.group),
                a.weight.eq(weights),
                a.weight_first.eq(weights),
                a.q.eq(a.q_g),
                a.q_ox.eq(a.q_g),
                a.q_ox_next.eq(a.q_g_next),
                a.q_row.eq(a.q_g),
                a.q_row_next.eq(a.q_g_next),
                a.row.eq(d.row_start),
                a.row_oy.eq(d.row_start),
                a.row_oy_next.eq(d.row_start + d.row_step_oy),
                a.kernel_row.eq(0),
                a.out.eq(a.out_g),
                a.out_row_next.eq(a.out_g),
                a.out_bank.eq(d.out_row_start),
                a.group.eq(a.group_next),
                a.q_g.eq(a.q_g + d.q_step_g),
                a.out_g.eq(a.out_g_next),
            ]

    def _watch_addresses(self, m: Module, event, taken: Signal, addresses: _Addresses) -> Value:
        """The addresses that a layer begins with. Returns whether a step has one that the engine does not have."""
        config = self.config
        d, s = self.active, self.step
        q, row, kernel_row = addresses.q, addresses.row, addresses.kernel_row
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
            m.d.sync += [
                addresses.q_g.eq(self.next.q_start),
                addresses.group.eq(self.next.weight_base),
                addresses.out_g.eq(self.next.out_base),
            ]
        return beyond.any()
