"""The accelerator: host bus in, finished tensors in activation memory.

One feed-forward pipeline, no stalls: the sequencer paces the steps so that nothing downstream can overflow.

    sequencer -> activation memory -> operand fetch -> MAC array -> requantizer -> activation memory
             \\-> weight memory ------------------------^        (parameters) ^
"""

from dataclasses import dataclass, replace

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, fifo, memory, wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch import loopnest
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import (
    DESCRIPTOR_WORDS,
    ISA_VERSION,
    MAGIC,
    PROGRAM_COLUMNS,
    WATCHDOG_BITS,
    Counter,
    HostAddress,
    Kind,
    Register,
    granule_columns,
)

from .activation_memory import (
    ADDRESS_LATENCY,
    ROW_FETCH_LATENCY,
    ActivationMemory,
    MemoryWrite,
    WritePort,
    enabled_banks,
)
from .compact import CompactAccelerator
from .delay import SPREAD_LATENCY, delay, spread
from .descriptor import DescriptorFetch
from .host_bus import host_bus
from .host_sharing import MOST_READS
from .mac_array import MacArray, mac_latency
from .operand import OPERAND_LATENCY, OperandFetch, description_latency
from .program_control import ProgramControl
from .requantizer import REQUANT_LATENCY, Requantizer, mode_layout
from .sequencer import Sequencer
from .technology import RAM_LATENCY, GenericTechnology, Technology
from .weight_memory import WEIGHT_LATENCY, WeightMemory

__all__ = ["Accelerator", "make_accelerator"]

MOST_WRITES = 8
"""Of the DMA to activations, with a wide host bus, that wait for a cycle without a result: fewer than there are cycles
between two programs."""

WRITE_QUEUE_DEPTH = 32
"""As many as the results that the pipeline can hold from `queue_wait` after their issue until their write."""


def queue_wait(config: AcceleratorConfig) -> int:
    """Cycles that the place of a result waits before the write queue, which would be too short for the way to it."""
    return max(0, loopnest.write_stage(config, 1) - WRITE_QUEUE_DEPTH - 2)


def make_accelerator(
    config: AcceleratorConfig,
    technology: Technology | None = None,
    *,
    watchdog_bits: int = WATCHDOG_BITS,
    loads_while_running: bool = False,
    host_width: int = 32,
) -> "Accelerator | CompactAccelerator":
    """The engine of a configuration; all have the same members, but for `Accelerator.from_dma`.

    watchdog_bits: a program is ended after 2 ** watchdog_bits cycles. loads_while_running, host_width: see
    `Accelerator`; the compact engine's memories have one port of a few bits, so it has no such options.
    """
    if config.compact:
        return CompactAccelerator(config, technology, watchdog_bits=watchdog_bits)
    return Accelerator(
        config,
        technology,
        watchdog_bits=watchdog_bits,
        loads_while_running=loads_while_running,
        host_width=host_width,
    )


@dataclass(frozen=True)
class _Blocks:
    """What the host reaches, and the signals beside it."""

    program: wiring.Component
    activations: ActivationMemory
    weights: WeightMemory
    requantizer: Requantizer
    sequencer: Sequencer
    control: ProgramControl
    written: data.View
    """The engine's write to the activation memory."""
    start: Signal
    program_start: Signal


@dataclass(frozen=True)
class _Counters:
    """Counters at the end of each descriptor; without `config.layer_counters` there are none."""

    ram: wiring.Component | None
    waits: list[Signal]


@dataclass(frozen=True)
class _HostRequest:
    """A request of the host, a cycle after it was taken."""

    request: data.View
    valid: Signal
    reading: Signal
    """A read holds off the next request."""
    ready: Signal
    in_window: dict[HostAddress, Signal]
    writes_to: dict[HostAddress, Signal]
    offset: Value
    from_dma: Signal | None = None
    """With `loads_while_running`: it may write while a program runs."""
    held: Signal | None = None
    """With `loads_while_running`: a write to activations holds off the next request, on a bus of 32 bits."""
    waiting: Signal | None = None
    """With a wider bus: writes to activations that were taken and are in a queue, or on their way to it."""
    leaves: Signal | None = None
    """With `waiting`: one leaves the queue."""
    streams: Signal | None = None
    """With `loads_while_running`: what is offered is a read that does not hold off the next one."""
    streamed: Signal | None = None
    """With `loads_while_running`: that, a cycle after it was taken."""


@dataclass(frozen=True)
class _Place:
    """Where in the activation memory a request is."""

    columns: int
    """Accesses of the host to a granule, or to several."""
    column: Value
    granule: Value
    bank: Value


class Accelerator(wiring.Component):
    """The engine with its memories, registers and host bus.

    Reset clears the control state, not the memories. While a program runs the memories belong to the engine:
    host accesses to them are ignored (reads answer zero) and set `Status.ERROR`. So does a program that the engine
    cannot run, or that runs for too long (`nnloom.arch.isa.ErrorCause`): it is ended, and what it has written until
    then is undefined.

    Parameters
    ----------
    loads_while_running
        The DMA may write program, weights and activations while a program runs, where it does not read or write: the
        first two have a write port of their own, results go first to the activations. Other accesses are as ever.
    host_width
        Bits of an access to program, weights and activations: 32, or with `loads_while_running` more of which their
        words consist (`nnloom.arch.dma.port_width`). `MOST_WRITES` of the DMA's to activations then wait in a queue.

    Members
    -------
    host : In(host_bus(host_width)); one write a cycle, reads one at a time; with `loads_while_running` the DMA's reads
        of activations follow each other, one a cycle, and while a program runs its writes to them wait for a cycle
        without a result
    from_dma : In, with `loads_while_running`; the request on `host` is the DMA's
    trace : Out; every write of the engine to the activation memory, for simulation
    busy : Out
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        technology: Technology | None = None,
        *,
        watchdog_bits: int = WATCHDOG_BITS,
        loads_while_running: bool = False,
        host_width: int = 32,
    ) -> None:
        assert not config.compact and (host_width == 32 or loads_while_running)
        self.host_width = host_width
        self.config = config
        self.watchdog_bits = watchdog_bits
        self.loads_while_running = loads_while_running
        self.technology: Technology = technology or GenericTechnology()
        members = {"host": In(host_bus(host_width)), "trace": Out(WritePort(config)), "busy": Out(1)}
        super().__init__(members | ({"from_dma": In(1)} if loads_while_running else {}))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        operand_stage = ROW_FETCH_LATENCY + OPERAND_LATENCY
        result_stage = operand_stage + mac_latency(config)
        # The compiler counts on these.
        assert operand_stage == loopnest.OPERAND_STAGE and result_stage == loopnest.result_stage(config)
        assert REQUANT_LATENCY == loopnest.REQUANT_STAGES

        m.submodules.program = program = self.technology.ram(
            width=32 * PROGRAM_COLUMNS, depth=-(-config.program_words // PROGRAM_COLUMNS)
        )
        address_width = len(program.r_addr)
        m.submodules.fetch = fetch = DescriptorFetch(config, address_width=address_width)
        m.submodules.sequencer = sequencer = Sequencer(config, drain=loopnest.write_stage(config, table=False))
        m.submodules.activations = activations = ActivationMemory(config, self.technology)
        m.submodules.weights = weights = WeightMemory(config, self.technology, host_width=self.host_width)
        m.submodules.operand = operand = OperandFetch(config, self.technology)
        m.submodules.mac = mac = MacArray(config, self.technology)
        m.submodules.requantizer = requantizer = Requantizer(config, self.technology)

        step = sequencer.step
        active = sequencer.active
        start = Signal()
        program_start = Signal(16)
        m.d.comb += [
            fetch.start.eq(start),
            fetch.program_start.eq(program_start),
            fetch.word.eq(program.r_data),
            program.r_addr.eq(fetch.address),
            fetch.take.eq(sequencer.take),
            sequencer.start.eq(start),
            sequencer.next.eq(fetch.descriptor),
            sequencer.next_valid.eq(fetch.valid),
        ]

        self._elaborate_operands(m, sequencer, activations, weights, operand)
        # Multiply, accumulate.
        m.d.comb += [
            mac.operands.eq(operand.operands),
            mac.second_operands.eq(operand.second_operands),
            mac.weights.as_value().eq(weights.word),
            mac.multiply.eq(delay(m, step.step & step.multiply, operand_stage, "multiply", reset=True)),
            mac.first.eq(delay(m, step.first, operand_stage, "first")),
        ]
        if config.elementwise_mul:
            m.d.comb += [
                mac.newest.eq(operand.newest),
                mac.previous.eq(operand.previous),
                mac.use_newest_ahead.eq(delay(m, active.product, operand_stage - 1, "use_newest")),
                mac.use_previous_ahead.eq(delay(m, active.product & step.operand_x, operand_stage - 1, "use_previous")),
            ]

        self._elaborate_parameters(m, sequencer, weights, requantizer)
        adds = config.elementwise_add
        m.d.comb += [
            *(requantizer.mode[name].eq(active[name]) for name, _ in mode_layout(config)),
            requantizer.accumulators.eq(mac.accumulators),
            requantizer.maxima.eq(mac.maxima),
            requantizer.valid.eq(delay(m, step.step & step.result, result_stage, "result", reset=True)),
            requantizer.pair.eq(delay(m, step.pair, result_stage, "pair") if config.pixels > 1 else 0),
            requantizer.to_addend_ahead.eq(
                delay(m, step.step & step.to_addend, result_stage - 1, "to_addend") if adds else 0
            ),
            requantizer.from_addend_ahead.eq(
                delay(m, step.step & step.operand_x & (active.kind == Kind.ADD), result_stage - 1, "from_addend")
                if adds
                else 0
            ),
        ]

        written, output_beyond = self._elaborate_write_back(m, sequencer, requantizer)
        m.submodules.control = control = ProgramControl(watchdog_bits=self.watchdog_bits)
        # A byte of the input beyond the memory.
        input_beyond = activations.beyond & delay(m, sequencer.probe, ADDRESS_LATENCY, "probe", reset=True)
        m.d.comb += [
            control.start.eq(start),
            control.finished.eq(sequencer.finished),
            control.illegal.eq(sequencer.illegal | fetch.illegal | input_beyond | output_beyond),
            sequencer.stop.eq(control.stop),
        ]
        self._elaborate_host(
            m,
            _Blocks(program, activations, weights, requantizer, sequencer, control, written, start, program_start),
        )
        return m

    def _elaborate_operands(
        self,
        m: Module,
        sequencer: Sequencer,
        activations: ActivationMemory,
        weights: WeightMemory,
        operand: OperandFetch,
    ) -> None:
        """Addresses of a step to the memories, and what is known of its bytes to the operands."""
        config = self.config
        step, active = sequencer.step, sequencer.active
        # The rows of a second pixel lie one stride, 1 or 2, below; row triples need all of the next rows.
        two_operands = config.elementwise_add or config.elementwise_mul
        second = Signal(2)
        neighbours = active.pixel_pair & ~active.row_triple if config.row_triples else active.pixel_pair
        m.d.comb += second.eq(Mux(neighbours, active.row_step_oy[1:3], 2) if config.pixels > 1 else 2)
        m.d.comb += [
            activations.request.row_ahead.eq(sequencer.row_ahead),
            activations.request.second.eq(second),
            activations.request.q.eq(step.q),
            activations.request.base.eq(
                Mux(step.operand_x, active.in2_base, active.in_base) if two_operands else active.in_base
            ),
            activations.request.row_stride.eq(active.in_row_stride),
        ]
        described = ROW_FETCH_LATENCY - description_latency(config)
        m.d.comb += [
            operand.rows.eq(activations.rows),
            operand.valid.eq(delay(m, step.step, described, "described_step", reset=True)),
            operand.row.eq(delay(m, step.row, described, "described_row")),
            operand.q.eq(delay(m, step.q, described, "described_q")),
            operand.kernel_row.eq(delay(m, step.kernel_row, described, "described_kernel_row")),
            operand.pad.eq(
                Mux(delay(m, step.operand_x, described, "described_x"), active.pad_value2, active.pad_value)
                if two_operands
                else active.pad_value
            ),
            operand.in_rows.eq(active.in_rows),
            operand.in_row_bytes.eq(active.in_row_bytes),
            operand.kernel_rows.eq(active.kernel_rows),
            operand.dense.eq(active.kind == Kind.DENSE),
            operand.row_pair.eq(active.row_pair),
            operand.second.eq(second),
            weights.address.eq(
                delay(m, step.weight[: config.field_bits], loopnest.OPERAND_STAGE - WEIGHT_LATENCY, "weight_address")
            ),
        ]

        if config.row_triples:
            m.d.comb += operand.row_triple.eq(active.row_triple)

    def _elaborate_parameters(
        self, m: Module, sequencer: Sequencer, weights: WeightMemory, requantizer: Requantizer
    ) -> None:
        """Requantization parameters from the weight memory to the requantizer."""
        config = self.config
        step = sequencer.step
        # The words of a set are shifted together; then they wait in `held` for the results before them to
        # pass, while the next set comes in.
        # Each of the two takes hundreds of bits.
        load = delay(m, step.load, loopnest.OPERAND_STAGE - SPREAD_LATENCY, "load", reset=True)
        loads = spread(m, self.technology, load, config.lanes, "parameter_loads")
        parts, held = (
            [
                Signal(8 * config.weight_word_bytes, name=f"{name}_{i}", reset_less=True)
                for i in range(config.parameter_words)
            ]
            for name in ("parameters", "held")
        )
        if config.overlap:
            hold = max(1, mac_latency(config) - loopnest.PARAMETER_SPACING)
            assert hold <= loopnest.PARAMETER_SPACING - config.parameter_words + 1
            ahead = loopnest.OPERAND_STAGE + hold - SPREAD_LATENCY
            load_last = delay(m, step.load & step.load_last, ahead, "load_last", reset=True)
            holds = spread(m, self.technology, load_last, config.lanes, "parameter_holds")
            until = mac_latency(config) - hold - 1 + SPREAD_LATENCY
            take_over = delay(m, load_last, until, "take_over", reset=True)
        else:
            take_over = Const(0, 1)
        lane_bits = 8 * config.taps
        for lane in range(config.lanes):
            mine = slice(lane * lane_bits, (lane + 1) * lane_bits)
            with m.If(loads[lane]):
                m.d.sync += [a[mine].eq(b[mine]) for a, b in zip(parts, [*parts[1:], weights.word], strict=True)]
            if config.overlap:
                with m.If(holds[lane]):
                    m.d.sync += [a[mine].eq(b[mine]) for a, b in zip(held, parts, strict=True)]
        if not config.overlap:
            held = parts
        for lane in range(config.lanes):
            together = Cat(part[lane * lane_bits : (lane + 1) * lane_bits] for part in held)
            m.d.comb += requantizer.parameters[lane].eq(together[:72])
        m.d.comb += requantizer.load_ahead.eq(take_over)

    def _elaborate_write_back(self, m: Module, sequencer: Sequencer, requantizer: Requantizer) -> tuple[Signal, Signal]:
        """Results to their places. Returns the write and whether a result is beyond the memory."""
        config = self.config
        step, active = sequencer.step, sequencer.active
        # Addresses wait in a queue, in the order of the results.
        target = data.StructLayout({"bank": 2, "granule": config.field_bits, "enable": 2})
        push = Signal()
        pushed = Signal(target, reset_less=True)
        remaining = active.in_row_bytes - step.q
        by_word: Value = active.kind == Kind.ADD
        if config.elementwise_mul:
            by_word = by_word | (active.product & ~active.broadcast)
        partial = Mux(
            by_word,
            Mux(remaining <= 0, 0, Mux(remaining <= config.granule, 1, 3)),
            Mux(step.half, 1, 3),
        )
        m.d.sync += [
            push.eq(step.step & step.result & ~step.to_addend),
            pushed.bank.eq(step.out_bank),
            pushed.granule.eq(step.out_granule),
            pushed.enable.eq(partial),
        ]
        distributed = self.technology.distributed_ram
        m.submodules.targets = targets = memory.Memory(
            shape=target,
            depth=WRITE_QUEUE_DEPTH,
            init=[],
            attrs={"ram_style": "distributed" if distributed else "block"},
        )
        targets_write = targets.write_port()
        targets_read = targets.read_port(domain="comb" if distributed else "sync")
        queued = delay(m, push, queue_wait(config), "push", reset=True)
        push_index, pop_index = Signal(range(WRITE_QUEUE_DEPTH)), Signal(range(WRITE_QUEUE_DEPTH))
        m.d.comb += [
            targets_write.en.eq(queued),
            targets_write.addr.eq(push_index),
            targets_write.data.eq(delay(m, pushed, queue_wait(config), "pushed")),
            targets_read.addr.eq(pop_index),
        ]
        with m.If(queued):
            m.d.sync += push_index.eq(push_index + 1)
        place = Signal(target, reset_less=True)
        above = Signal(config.field_bits, reset_less=True)
        first_banks = Signal(data.ArrayLayout(config.row_banks, 2), reset_less=True)
        front = targets_read.data
        # Without distributed memory the read port has the register.
        registered = m.d.sync if distributed else m.d.comb
        registered += [
            place.eq(front),
            above.eq(front.granule + 1),
            first_banks.eq(Cat(enabled_banks(config, front.bank, front.granule, front.enable))),
        ]
        with m.If(requantizer.done_ahead & requantizer.last_ahead):
            m.d.sync += pop_index.eq(pop_index + 1)
        # The rows of a pair are in banks 0 and 1, or 2 and 3.
        traced, written = Signal(WritePort(config)), Signal(MemoryWrite(config))
        m.d.comb += [
            traced.valid.eq(requantizer.done),
            traced.bank.eq(place.bank | requantizer.second),
            traced.granule.eq(place.granule),
            traced.enable.eq(place.enable),
            traced.data.eq(requantizer.bytes),
            self.trace.eq(traced),
            written.granule.eq(place.granule),
            written.above.eq(above),
            written.data.eq(requantizer.bytes),
        ]
        for banks, first in zip(written.enable, first_banks, strict=True):
            for b in range(0, config.row_banks, 2):
                m.d.comb += [
                    banks[b].eq(requantizer.done & first[b] & ~requantizer.second),
                    banks[b + 1].eq(requantizer.done & (first[b + 1] | (first[b] & requantizer.second))),
                ]
        # A result is beyond the memory, or its upper granule, which is known a cycle after the step.
        granule_bits = (config.bank_granules - 1).bit_length()
        high, edge = Signal(reset_less=True), Signal(reset_less=True)
        output_beyond = Signal()
        m.d.sync += [
            high.eq(step.out_granule[granule_bits:].any()),
            edge.eq(step.out_granule[:granule_bits].all()),
            output_beyond.eq(push & ((pushed.enable[0] & high) | (pushed.enable[1] & edge))),
        ]
        return written, output_beyond

    def _elaborate_host(self, m: Module, blocks: _Blocks) -> None:
        """Registers, memory windows, cycle counters."""
        m.d.comb += self.busy.eq(blocks.control.busy)
        counters = self._elaborate_counters(m, blocks)
        host = self._elaborate_request(m, blocks)
        self._elaborate_writes(m, blocks, counters, host)
        place = self._elaborate_activation_writes(m, blocks, host)
        self._elaborate_reads(m, blocks, counters, host, place)

    def _elaborate_counters(self, m: Module, blocks: _Blocks) -> _Counters:
        """Counters at the end of each descriptor.

        A start, which clears the count of descriptors, may write once too often: after the last, or at 0.
        """
        config, sequencer = self.config, blocks.sequencer
        if not config.layer_counters:
            return _Counters(None, [])
        m.submodules.counters = counters = self.technology.ram(
            width=32 * len(Counter), depth=max(2, config.program_words // DESCRIPTOR_WORDS)
        )
        waits = [Signal(32, name=f"waits_{i}") for i in range(len(Counter) - 1)]
        for count, happens in zip(waits, sequencer.waits, strict=True):
            with m.If(happens):
                m.d.sync += count.eq(count + 1)
        layer = Signal.like(counters.w_addr)
        m.d.sync += layer.eq(sequencer.completed)
        m.d.comb += [
            counters.w_en.eq(layer[0] != sequencer.completed[0]),
            counters.w_addr.eq(layer),
            counters.w_data.eq(Cat(blocks.control.cycles, waits)),
        ]
        return _Counters(counters, waits)

    def _elaborate_request(self, m: Module, blocks: _Blocks) -> _HostRequest:
        """A request is registered and decoded in the next cycle; a read holds off the next request."""
        host = self.host
        request = Signal.like(host.request.payload, reset_less=True)
        valid = Signal()
        reading, ready = Signal(), Signal(init=1)
        accepts: Value = ready
        reads_alone = ~host.request.payload.write
        if self.loads_while_running:
            # The DMA's reads of activations follow each other, as far as there is room for their words.
            accepts, streams = host.request.ready, Signal()
            window = host.request.payload.address[28:]
            activations = window == (HostAddress.ACTIVATIONS >> 28)
            m.d.comb += streams.eq(reads_alone & self.from_dma & ~blocks.control.busy & activations)
            reads_alone = reads_alone & ~streams
        else:
            m.d.comb += host.request.ready.eq(ready)
        m.d.sync += valid.eq(host.request.valid & accepts)
        with m.If(host.request.valid & accepts & reads_alone):
            m.d.sync += ready.eq(0)
        in_window = {w: Signal(name=f"in_{w.name.lower()}", reset_less=True) for w in HostAddress}
        writes_to = {w: Signal(name=f"writes_to_{w.name.lower()}", reset_less=True) for w in HostAddress}
        with m.If(ready):
            m.d.sync += request.eq(host.request.payload)
            for w in HostAddress:
                here = host.request.payload.address[28:] == (w >> 28)
                m.d.sync += [in_window[w].eq(here), writes_to[w].eq(here & host.request.payload.write)]
        offset = request.address[:28]
        memory_access = valid & ~in_window[HostAddress.REGISTERS]
        decoded = _HostRequest(request, valid, reading, ready, in_window, writes_to, offset)
        if self.loads_while_running:
            from_dma, held = Signal(reset_less=True), Signal(name="write_held")
            streamed = Signal(reset_less=True)
            taken = host.request.payload
            m.d.sync += [from_dma.eq(self.from_dma), streamed.eq(streams)]
            waiting = leaves = None
            if self.host_width > 32:
                # Those of a granule of several columns wait for the last one.
                waiting, leaves = Signal(range(MOST_WRITES + 1)), Signal()
                asked, commits = Signal(), self._commits(taken.address)
                m.d.comb += asked.eq(host.request.valid & accepts & taken.write & self.from_dma & activations & commits)
                m.d.sync += waiting.eq(waiting + asked - leaves)
            else:
                written = host.request.valid & accepts & taken.write & self.from_dma & blocks.control.busy
                with m.If(written), m.If(activations & self._commits(taken.address)):
                    m.d.sync += [held.eq(1), ready.eq(0)]
            memories = HostAddress.PROGRAM, HostAddress.WEIGHTS, HostAddress.ACTIVATIONS
            memory_access = memory_access & ~(from_dma & Cat(writes_to[w] for w in memories).any())
            decoded = replace(
                decoded,
                from_dma=from_dma,
                held=held,
                waiting=waiting,
                leaves=leaves,
                streams=streams,
                streamed=streamed,
            )
        m.d.comb += blocks.control.access.eq(memory_access)
        return decoded

    def _elaborate_writes(self, m: Module, blocks: _Blocks, counters: _Counters, host: _HostRequest) -> None:
        """Writes to the registers and to program, weights and tables."""
        config = self.config
        program, weights, requantizer = blocks.program, blocks.weights, blocks.requantizer
        busy = blocks.control.busy
        closed = busy if host.from_dma is None else busy & ~host.from_dma
        request, valid, writes_to, offset = host.request, host.valid, host.writes_to, host.offset
        with m.If(valid & writes_to[HostAddress.REGISTERS]), m.Switch(offset[:8]):
            with m.Case(Register.PROGRAM_START):
                m.d.sync += blocks.program_start.eq(request.data)
            with m.Case(Register.CONTROL), m.If(request.data[0] & ~busy):
                m.d.comb += blocks.start.eq(1)
                m.d.sync += [count.eq(0) for count in counters.waits]
        program_write = valid & writes_to[HostAddress.PROGRAM] & ~closed
        width = self.host_width
        columns = 32 * PROGRAM_COLUMNS // width
        below, above = (width // 8 - 1).bit_length(), (4 * PROGRAM_COLUMNS - 1).bit_length()
        program_shift = Signal(width * (columns - 1), reset_less=True)
        if columns > 1:
            with m.If(program_write):
                m.d.sync += program_shift.eq(Cat(program_shift, request.data)[width:])
        m.d.comb += [
            program.w_en.eq(program_write & offset[below:above].all() if columns > 1 else program_write),
            program.w_addr.eq(offset >> above),
            program.w_data.eq(Cat(program_shift, request.data)),
        ]
        m.d.comb += [
            weights.host_write.eq(valid & writes_to[HostAddress.WEIGHTS] & ~closed),
            weights.host_address.eq(offset),
            weights.host_data.eq(request.data),
        ]

        if config.tables:
            table_write = Signal.like(requantizer.table_write)
            m.d.sync += [
                table_write.enable.eq(valid & writes_to[HostAddress.TABLES] & ~busy),
                table_write.address.eq(offset >> 2),
                table_write.value.eq(request.data),
            ]
            m.d.comb += requantizer.table_write.eq(table_write)

    @property
    def _columns(self) -> int:
        """Accesses of the host to a granule, or to those of an access."""
        return 32 * granule_columns(self.config) // self.host_width

    @property
    def _below(self) -> int:
        """Address bits below those of a column."""
        return (self.host_width // 8 - 1).bit_length()

    def _commits(self, address: Value) -> Value:
        """Whether a write to activations is that of a granule's last column."""
        columns = self._columns
        return address[self._below : self._below + (columns - 1).bit_length()].all() if columns > 1 else Const(1)

    def _elaborate_activation_writes(self, m: Module, blocks: _Blocks, host: _HostRequest) -> _Place:
        """Activation memory: columns are shifted into a granule, the last one commits it."""
        config, activations, written = self.config, blocks.activations, blocks.written
        busy = blocks.control.busy
        closed = busy if host.from_dma is None else busy & ~host.from_dma
        request, valid, writes_to, offset = host.request, host.valid, host.writes_to, host.offset
        columns, width = self._columns, self.host_width
        column_bits = (columns - 1).bit_length()
        granule_bits = (config.granule - 1).bit_length()
        bank_bits = (config.bank_granules - 1).bit_length()
        column = offset[self._below : self._below + column_bits] if column_bits else Const(0, 1)
        granule = offset[granule_bits : granule_bits + bank_bits]
        bank = offset[granule_bits + bank_bits : granule_bits + bank_bits + 2]
        shift = Signal(width * columns, reset_less=True)
        commit = Signal()
        host_bank, host_granule = Signal(2, reset_less=True), Signal(config.field_bits, reset_less=True)
        activation_write = valid & writes_to[HostAddress.ACTIVATIONS] & ~closed
        with m.If(activation_write):
            m.d.sync += shift.eq(Cat(shift, request.data)[width:])
        m.d.sync += [
            commit.eq(activation_write & (column == columns - 1)),
            host_bank.eq(bank),
            host_granule.eq(granule),
        ]
        # A cycle for the way to the memories, also for the choice: neither side writes in the first cycles.
        engine_writes = Signal()
        host_write = Signal(MemoryWrite(config), reset_less=True)
        host_enable = Signal(data.ArrayLayout(config.row_banks, 2))
        host_banks = enabled_banks(
            config, host_bank, host_granule, Cat(commit, commit if config.host_granules > 1 else Const(0, 1))
        )
        if host.from_dma is None:
            m.d.sync += [
                engine_writes.eq(busy),
                host_enable.eq(Cat(host_banks)),
                host_write.granule.eq(host_granule),
                host_write.above.eq(host_granule + 1),
                host_write.data.eq(shift),
            ]
            m.d.comb += [
                activations.write.eq(Mux(engine_writes, written.as_value(), host_write.as_value())),
                activations.write.enable.eq(written.enable.as_value() | host_enable.as_value()),
            ]
        else:
            assert host.held is not None
            # A write waits for a cycle without a result, and while a program runs the next request for the write.
            result = blocks.requantizer.done
            if host.waiting is not None:
                assert host.leaves is not None
                place = host_bank, host_granule, shift
                m.d.comb += host.leaves.eq(self._queue_writes(m, commit, place, host_enable, host_write, result))
            else:
                with m.If(commit):
                    m.d.sync += [
                        host_enable.eq(Cat(host_banks)),
                        host_write.granule.eq(host_granule),
                        host_write.above.eq(host_granule + 1),
                        host_write.data.eq(shift),
                    ]
                with m.Elif(~result):
                    m.d.sync += host_enable.eq(0)
                    with m.If(host_enable.as_value().any() & host.held):
                        m.d.sync += [host.held.eq(0), host.ready.eq(1)]
            waiting = host_enable.as_value() & (~result).replicate(len(host_enable.as_value()))
            m.d.comb += [
                activations.write.eq(Mux(result, written.as_value(), host_write.as_value())),
                activations.write.enable.eq(written.enable.as_value() | waiting),
            ]
        return _Place(columns, column, granule, bank)

    def _queue_writes(
        self,
        m: Module,
        commit: Signal,
        write: tuple[Signal, Signal, Signal],
        enable: data.View,
        stage: data.View,
        result: Value,
    ) -> Value:
        """Writes to activations (bank, granule, data) in a queue, and the first one in `enable` and `stage` until a
        cycle without a result. Returns whether one leaves the queue."""
        layout = data.StructLayout({"bank": 2, "granule": self.config.field_bits, "data": len(write[2])})
        m.submodules.writes = writes = fifo.SyncFIFO(width=layout.size, depth=MOST_WRITES)
        first = data.View(layout, writes.r_data)
        banks = enabled_banks(self.config, first.bank, first.granule, Cat(writes.r_rdy, Const(0, 1)))
        free = ~result | ~enable.as_value().any()
        m.d.comb += [
            writes.w_en.eq(commit),
            writes.w_data.eq(Cat(write)),
            writes.r_en.eq(free),
        ]
        with m.If(free):
            m.d.sync += [
                enable.eq(Cat(banks)),
                stage.granule.eq(first.granule),
                stage.above.eq(first.granule + 1),
                stage.data.eq(first.data),
            ]
        return free & writes.r_rdy

    def _elaborate_reads(
        self, m: Module, blocks: _Blocks, counters: _Counters, host: _HostRequest, place: _Place
    ) -> None:
        """Reads of the registers, of activations and of counters."""
        config, activations, control = self.config, blocks.activations, blocks.control
        busy, response = control.busy, self.host.response
        request, valid, in_window, offset = host.request, host.valid, host.in_window, host.offset
        reading, ready = host.reading, host.ready
        columns, column = place.columns, place.column
        # A read comes after the write before it.
        read_wait = Signal(range(RAM_LATENCY + 5))
        read_column, read_counter = Signal.like(column, reset_less=True), Signal(range(len(Counter)), reset_less=True)
        read_activations, read_counters = Signal(reset_less=True), Signal(reset_less=True)
        if counters.ram is not None:
            m.d.comb += counters.ram.r_addr.eq(offset[4:])
        # Registered before it joins what else is read: STATUS and CYCLES lie far from the link.
        register_value, register_read = Signal(32), Signal(32, reset_less=True)
        m.d.sync += register_read.eq(register_value)
        with m.Switch(offset[:8]):
            for register, value in (
                (Register.MAGIC, Const(MAGIC, 32)),
                (Register.VERSION, Const(ISA_VERSION, 32)),
                (Register.CONFIG_HASH, Const(config.hash, 32)),
                (Register.STATUS, control.status),
                (Register.CYCLES, control.cycles),
                (Register.PROGRAM_START, blocks.program_start),
                (Register.LAYERS, blocks.sequencer.completed),
            ):
                with m.Case(register):
                    m.d.comb += register_value.eq(value)
        answer = Signal(32, reset_less=True)
        read = valid & ~request.write
        if host.streamed is not None:
            read = read & ~host.streamed
        with m.If(read):
            m.d.sync += [
                reading.eq(1),
                read_wait.eq(RAM_LATENCY + 4),
                read_column.eq(column),
                read_counter.eq(offset[2:]),
                read_activations.eq(in_window[HostAddress.ACTIVATIONS] & ~busy),
                read_counters.eq(in_window[HostAddress.COUNTERS] & ~busy),
            ]
        m.d.comb += [
            activations.host_read.eq(~busy),
            activations.host_bank.eq(place.bank),
            activations.host_granule.eq(place.granule),
        ]
        with m.If(reading & (read_wait != 0)):
            m.d.sync += read_wait.eq(read_wait - 1)
            with m.If(read_wait == RAM_LATENCY + 4):
                m.d.sync += answer.eq(Mux(in_window[HostAddress.REGISTERS], register_read, 0))
            with m.If((read_wait == 1) & read_activations):
                width = self.host_width
                words = [activations.host_data[width * i : width * i + width] for i in range(columns)]
                m.d.sync += answer.eq(Array(words)[read_column] if columns > 1 else words[0])
            if counters.ram is not None:
                with m.If((read_wait == 1) & read_counters):
                    m.d.sync += answer.eq(counters.ram.r_data.word_select(read_counter, 32))
        if host.streamed is not None:
            self._stream_reads(m, blocks, host, place, reading & (read_wait == 0), answer)
            return
        m.d.comb += [
            response.valid.eq(reading & (read_wait == 0)),
            response.payload.data.eq(answer),
        ]
        with m.If(response.valid & response.ready):
            m.d.sync += [reading.eq(0), ready.eq(1)]

    def _stream_reads(
        self, m: Module, blocks: _Blocks, host: _HostRequest, place: _Place, answered: Value, answer: Signal
    ) -> None:
        """Answers of the DMA's reads of activations, one a cycle, and behind them that of any other read.

        answered: that one has its `answer`.
        """
        assert host.streams is not None and host.streamed is not None
        request, response = self.host.request, self.host.response
        m.submodules.words = words = fifo.SyncFIFO(width=self.host_width, depth=MOST_READS)
        latency = RAM_LATENCY + 3
        arrives = delay(m, host.valid & host.streamed & ~host.request.write, latency, "stream", reset=True)
        column = delay(m, place.column, latency, "stream_column")
        data = blocks.activations.host_data
        width = self.host_width
        columns = [data[width * i : width * i + width] for i in range(place.columns)]
        m.d.sync += [
            words.w_en.eq(arrives),
            words.w_data.eq(Array(columns)[column] if place.columns > 1 else columns[0]),
        ]
        under_way, asked, taken = Signal(range(MOST_READS + 1)), Signal(), Signal()
        ready = host.ready & (under_way != MOST_READS)
        if host.waiting is not None:
            ready = ready & (host.waiting != MOST_WRITES)
        m.d.comb += [
            request.ready.eq(ready),
            asked.eq(request.valid & request.ready & host.streams),
            words.r_en.eq(response.ready),
            taken.eq(words.r_rdy & response.ready),
            response.valid.eq(words.r_rdy | (answered & (under_way == 0))),
            response.payload.data.eq(Mux(words.r_rdy, words.r_data, answer)),
        ]
        m.d.sync += under_way.eq(under_way + asked - taken)
        with m.If(answered & (under_way == 0) & response.ready):
            m.d.sync += [host.reading.eq(0), host.ready.eq(1)]
