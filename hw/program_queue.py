"""Programs that a list has started: they wait for their turn and run one after the other, beside transfers."""

from __future__ import annotations

from amaranth.hdl import Module, ResetInserter, Signal
from amaranth.lib import fifo, stream, wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch.dma import PROGRAM_QUEUE
from nnloom.arch.isa import HostAddress, Register, Status

from .host_bus import HostBus

__all__ = ["ProgramQueue"]


class ProgramQueue(wiring.Component):
    """Starts programs over the host bus as the accelerator becomes free, and looks at its status after each.

    Two counts of programs, those that came in and those that have ended, give `under_way`. A program that ends with an
    error ends the others that wait, and so does `stop`. A reset forgets everything.

    Members
    -------
    program : In; first word of a program
    host : Out(HostBus); to the accelerator
    engine_busy : In; a program runs
    under_way : Out; programs that have not ended
    failed : Out; one cycle: a program has ended with an error
    stop : In; no further program is started, those that wait are dropped
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "program": In(stream.Signature(16)),
                "host": Out(HostBus),
                "engine_busy": In(1),
                "under_way": Out(range(PROGRAM_QUEUE + 1)),
                "failed": Out(1),
                "stop": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        request, response = self.host.request, self.host.response
        drop = Signal()
        m.submodules.waiting = waiting = ResetInserter(drop)(fifo.SyncFIFO(width=16, depth=PROGRAM_QUEUE))
        pushed, ended, running = Signal(), Signal(), Signal()
        start = Signal(16)
        m.d.comb += [
            self.program.ready.eq((self.under_way != PROGRAM_QUEUE) & ~drop),
            pushed.eq(self.program.valid & self.program.ready),
            waiting.w_data.eq(self.program.payload),
            waiting.w_en.eq(pushed),
            drop.eq(self.stop | self.failed),
        ]
        with m.If(drop):
            m.d.sync += self.under_way.eq(running & ~ended)
        with m.Else():
            m.d.sync += self.under_way.eq(self.under_way + pushed - ended)
        registers = HostAddress.REGISTERS
        with m.FSM():
            with m.State("IDLE"), m.If(waiting.r_rdy & ~self.engine_busy & ~drop):
                m.d.comb += waiting.r_en.eq(1)
                m.d.sync += [start.eq(waiting.r_data), running.eq(1)]
                m.next = "PLACE"
            for state, register, value, following in (
                ("PLACE", Register.PROGRAM_START, start, "START"),
                ("START", Register.CONTROL, 1, "WAIT"),
            ):
                with m.State(state):
                    m.d.comb += [
                        request.valid.eq(1),
                        request.payload.write.eq(1),
                        request.payload.address.eq(registers + register),
                        request.payload.data.eq(value),
                    ]
                    with m.If(request.ready):
                        m.next = following
            # The first look may come before the accelerator is busy; it sees a start that was taken before.
            with m.State("WAIT"), m.If(~self.engine_busy):
                m.next = "LOOK"
            with m.State("LOOK"):
                m.d.comb += [request.valid.eq(1), request.payload.address.eq(registers + Register.STATUS)]
                with m.If(request.ready):
                    m.next = "STATUS"
            with m.State("STATUS"):
                m.d.comb += response.ready.eq(1)
                with m.If(response.valid):
                    with m.If((response.payload.data & Status.BUSY).any()):
                        m.next = "WAIT"
                    with m.Else():
                        m.d.comb += [ended.eq(1), self.failed.eq((response.payload.data & Status.ERROR).any())]
                        m.d.sync += running.eq(0)
                        m.next = "IDLE"
        return m
