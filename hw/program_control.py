"""Start and end of programs: the STATUS and CYCLES registers, and what ends a program before its time."""

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch.isa import ERROR_CAUSE_BIT, ERROR_CAUSE_BITS, WATCHDOG_BITS, ErrorCause

__all__ = ["ProgramControl"]


class ProgramControl(wiring.Component):
    """Remembers whether a program runs and how the last one ended.

    Parameters
    ----------
    watchdog_bits
        A program is ended after 2 ** watchdog_bits cycles.

    Members
    -------
    start : In; a program starts; only while not `busy`
    finished : In; it has ended, and everything of it
    access : In; the host has accessed a memory
    illegal : In; the program asks for what the engine does not have
    busy : Out
    stop : Out; from an error until the next start: the program is to end
    status : Out; the register, see `nnloom.arch.isa.Status`
    cycles : Out; the register
    """

    def __init__(self, *, watchdog_bits: int = WATCHDOG_BITS) -> None:
        self.watchdog_bits = watchdog_bits
        super().__init__(
            {
                "start": In(1),
                "finished": In(1),
                "access": In(1),
                "illegal": In(1),
                "busy": Out(1),
                "stop": Out(1),
                "status": Out(ERROR_CAUSE_BIT + ERROR_CAUSE_BITS),
                "cycles": Out(32),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        done, error = Signal(), Signal()
        cause = Signal(ERROR_CAUSE_BITS)
        unused = Const(0, ERROR_CAUSE_BIT - 3)
        m.d.comb += self.status.eq(Cat(self.busy, done, error, unused, cause))

        def fail(reason: ErrorCause) -> None:
            m.d.sync += error.eq(1)
            with m.If(~error):
                m.d.sync += cause.eq(reason)

        with m.If(self.busy):
            m.d.sync += self.cycles.eq(self.cycles + 1)
            with m.If(self.access):
                fail(ErrorCause.ACCESS)
            with m.If(self.cycles[self.watchdog_bits] & ~self.stop):
                m.d.sync += self.stop.eq(1)
                fail(ErrorCause.WATCHDOG)
            with m.If(self.illegal & ~self.stop):
                m.d.sync += self.stop.eq(1)
                fail(ErrorCause.PROGRAM)
        with m.If(self.finished):
            m.d.sync += [self.busy.eq(0), done.eq(1)]
        with m.If(self.start):
            m.d.sync += [self.busy.eq(1), done.eq(0), error.eq(0), cause.eq(0), self.stop.eq(0), self.cycles.eq(1)]
        return m
