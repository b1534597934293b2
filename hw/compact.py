"""The compact engine: the accelerator's programs and memory images, a tap a cycle, from memories with one port.

    sequencer -> slots -> activation memory -> operands -> accumulators -> requantizer -> activation memory
                     \\-> weight memory -----------^  (parameters) ^

The sequencer is that of the larger engine, which stands still while a step's taps go by: each slot reads a byte of
input and a byte of weight for every lane. Behind the slots is a pipeline without stalls. A result waits for a slot that
reads no activations: the first one of every result, which clears the accumulators, is one.
"""

from dataclasses import dataclass

from amaranth.hdl import Array, Cat, Const, EnableInserter, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import (
    ISA_VERSION,
    MAGIC,
    PROGRAM_COLUMNS,
    WATCHDOG_BITS,
    HostAddress,
    Kind,
    Register,
    weight_stride,
    weight_word_columns,
)
from nnloom.arch.loopnest import COMPACT_SPACING, write_stage

from .activation_memory import WritePort
from .compact_requantizer import SerialRequantizer, serial_requant_latency
from .compact_sequencer import CompactSequencer
from .delay import delay
from .descriptor import DescriptorFetch
from .host_bus import HostBus
from .program_control import ProgramControl
from .technology import GenericTechnology, Technology

__all__ = ["CompactAccelerator", "CompactActivationMemory", "CompactWeightMemory", "Slot"]

READ_LATENCY = 4
"""Cycles from a slot to its bytes."""

ACCUMULATE_LATENCY = READ_LATENCY + 2
"""Cycles from a slot to the accumulators with its products."""


def Slot(config: AcceleratorConfig) -> data.StructLayout:
    """What happens in a cycle: nothing, or one of `read`, `load` and `clear`."""
    return data.StructLayout(
        {
            "read": 1,  # read a byte for every lane, and its weights
            "load": 1,  # read a byte of parameters for every lane
            "clear": 1,  # the accumulators begin anew
            "multiply": 1,  # with `read`: the products count
            "last": 1,  # with `read`: the products complete a result
            "row": signed(config.field_bits + 2),
            "q": signed(config.field_bits + 3),
            "kernel_row": 9,
            "weight": config.field_bits,
            "tap": range(config.taps),
        }
    )


class CompactActivationMemory(wiring.Component):
    """Row banks in two single-port memories: of any two neighbouring granules each has one.

    Granule g of bank b is word b * bank_granules / 2 + g // 2 of memory g mod 2. Accesses are of two granules, the
    lower and the next; one a cycle.

    Members
    -------
    bank, granule : In; of the lower granule
    write : In(2); granules to write, bit 0 the lower; a cycle that writes nothing reads
    w_data : In; both granules, the lower one lowest
    r_data : Out; both granules, two cycles after `bank` and `granule`
    """

    def __init__(self, config: AcceleratorConfig, technology: Technology) -> None:
        self.config = config
        self.technology = technology
        width = 8 * config.lanes
        super().__init__(
            {
                "bank": In(range(config.row_banks)),
                "granule": In(range(config.bank_granules)),
                "write": In(2),
                "w_data": In(width),
                "r_data": Out(width),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        width = 8 * config.granule
        odd = self.granule[0]
        lower, upper = self.w_data[:width], self.w_data[width:]
        words = []
        for parity, name in enumerate(("even", "odd")):
            m.submodules[name] = ram = self.technology.single_port_ram(
                width=width, depth=config.row_banks * config.bank_granules // 2
            )
            # The even memory has the upper granule if the lower one is odd.
            is_lower = odd == parity
            word = Signal(len(self.granule) - 1, name=f"word_{name}")
            m.d.comb += word.eq((self.granule >> 1) + (0 if parity else odd))
            address, value, write = (
                ram.address,
                Signal(width, name=f"w_data_{name}", reset_less=True),
                Signal(name=f"write_{name}"),
            )
            at = Signal.like(address, name=f"address_{name}", reset_less=True)
            m.d.sync += [
                at.eq(Cat(word, self.bank)),
                value.eq(Mux(is_lower, lower, upper)),
                write.eq(Mux(is_lower, self.write[0], self.write[1])),
            ]
            m.d.comb += [address.eq(at), ram.w_data.eq(value), ram.write.eq(write.replicate(config.granule))]
            words.append(ram.r_data)
        was_odd, is_odd = Signal(reset_less=True), Signal(reset_less=True)
        m.d.sync += [was_odd.eq(odd), is_odd.eq(was_odd)]
        m.d.comb += self.r_data.eq(Mux(is_odd, Cat(words[1], words[0]), Cat(*words)))
        return m


class CompactWeightMemory(wiring.Component):
    """Weight words as columns of one tap of every lane; the host writes the bytes of a word where they belong.

    Column t of weight word k is word 4 * k + t of the memory.

    Members
    -------
    weight, tap : In; a column
    column : Out; [lanes] bytes, one cycle after
    host : In; the host writes: its 32 bits `host_data` at byte `host_offset` of the WEIGHTS window are in as many
        columns as there are taps; those in column `tap` are written
    host_offset, host_data : In
    """

    def __init__(self, config: AcceleratorConfig, technology: Technology) -> None:
        self.config = config
        self.technology = technology
        super().__init__(
            {
                "weight": In(range(config.weight_words)),
                "tap": In(range(config.taps)),
                "column": Out(data.ArrayLayout(8, config.lanes)),
                "host": In(1),
                "host_offset": In(28),
                "host_data": In(32),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        lanes, taps = config.lanes, config.taps
        stride_bits = (weight_stride(config) - 1).bit_length()
        m.submodules.ram = ram = self.technology.single_port_ram(
            width=8 * lanes, depth=config.weight_words << len(self.tap)
        )
        word = self.host_offset[stride_bits : stride_bits + len(self.weight)]
        column = self.host_offset[2:stride_bits]
        m.d.comb += [
            ram.address.eq(Cat(self.tap, Mux(self.host, word, self.weight))),
            self.column.as_value().eq(ram.r_data),
        ]
        # Byte l * taps + t of a word is tap t of lane l.
        with m.Switch(self.tap):
            for tap in range(taps):
                with m.Case(tap):
                    for lane in range(lanes):
                        from_column, byte = divmod(lane * taps + tap, 4)
                        m.d.comb += [
                            ram.w_data[8 * lane : 8 * lane + 8].eq(self.host_data[8 * byte : 8 * byte + 8]),
                            ram.write[lane].eq(self.host & (column == from_column)),
                        ]
        assert weight_word_columns(config) <= 1 << len(column)
        return m


@dataclass(frozen=True)
class _Engine:
    """The blocks, and the signals that start a program."""

    program: list[wiring.Component]
    fetch: DescriptorFetch
    sequencer: CompactSequencer
    activations: CompactActivationMemory
    weights: CompactWeightMemory
    requantizer: SerialRequantizer
    start: Signal
    program_start: Signal


@dataclass(frozen=True)
class _Reading:
    """Which byte of which row a slot reads, two cycles after it."""

    reading: Value
    product: Value
    """With `column`, the granule."""
    column: Signal
    bank: Signal
    inside: Signal
    """The byte belongs to the tensor."""
    q: Value
    """A cycle after the slot."""
    beyond: Signal
    """The last byte of an input is beyond the memory."""


@dataclass(frozen=True)
class _Result:
    """A result that waits for a cycle in which nothing is read."""

    pending: Signal
    place: data.View
    result: Signal
    writing: Value


@dataclass(frozen=True)
class _HostAccess:
    """What the host does with the memories while no program runs."""

    access: Signal
    write: Signal
    weights: Signal
    tap: Signal


class CompactAccelerator(wiring.Component):
    """The compact engine with its memories, registers and host bus: as `Accelerator`, with `config.compact`.

    Reset clears the control state, not the memories. While a program runs the memories belong to the engine: host
    accesses to them are ignored (reads answer zero) and set `Status.ERROR`. Programs that it cannot run are ended, as
    `Accelerator` does.

    Members
    -------
    host : In(HostBus); one access at a time, a request is taken when it was executed
    trace : Out; every write of the engine to the activation memory, for simulation
    busy : Out
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        technology: Technology | None = None,
        *,
        watchdog_bits: int = WATCHDOG_BITS,
    ) -> None:
        assert config.compact
        self.config = config
        self.watchdog_bits = watchdog_bits
        self.technology: Technology = technology or GenericTechnology()
        super().__init__({"host": In(HostBus), "trace": Out(WritePort(config)), "busy": Out(1)})

    @property
    def _memory_bits(self) -> int:
        """Bits of a granule's number."""
        return (self.config.bank_granules - 1).bit_length()

    @property
    def _target(self) -> data.StructLayout:
        """Where a result goes."""
        return data.StructLayout({"bank": 2, "granule": self.config.field_bits, "enable": 2})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        tick = Signal()
        engine = self._elaborate_blocks(m, tick)
        sequencer = engine.sequencer
        slot = self._elaborate_slots(m, sequencer, tick)
        reading = self._elaborate_reading(m, engine, slot)
        result, host = self._elaborate_memories(m, engine, slot, reading)
        self._elaborate_lanes(m, engine, slot, reading)
        output_beyond = self._elaborate_write_back(m, engine, slot, result)
        m.submodules.control = control = ProgramControl(watchdog_bits=self.watchdog_bits)
        m.d.comb += [
            control.start.eq(engine.start),
            control.finished.eq(sequencer.finished),
            control.illegal.eq(sequencer.illegal | engine.fetch.illegal | reading.beyond | output_beyond),
            sequencer.stop.eq(control.stop),
        ]
        self._elaborate_host(m, engine, host, control)
        return m

    def _elaborate_blocks(self, m: Module, tick: Signal) -> _Engine:
        """The blocks, and the way of a program to the sequencer, which goes on with `tick`."""
        config = self.config
        column_depth = -(-config.program_words // PROGRAM_COLUMNS)
        program = [self.technology.ram(width=32, depth=column_depth) for _ in range(PROGRAM_COLUMNS)]
        for i, column in enumerate(program):
            m.submodules[f"program_{i}"] = column
        m.submodules.fetch = fetch = DescriptorFetch(config, address_width=len(program[0].r_addr))
        sequencer = CompactSequencer(config, drain=write_stage(config))
        m.submodules.sequencer = EnableInserter(tick)(sequencer)
        m.submodules.activations = activations = CompactActivationMemory(config, self.technology)
        m.submodules.weights = weights = CompactWeightMemory(config, self.technology)
        m.submodules.requantizer = requantizer = SerialRequantizer(config, self.technology)
        # A layer ends when the last result is in memory.
        assert ACCUMULATE_LATENCY + serial_requant_latency(config) + 3 <= write_stage(config)
        start, program_start = Signal(), Signal(16)
        m.d.comb += [
            fetch.start.eq(start),
            fetch.program_start.eq(program_start),
            fetch.word.eq(Cat(column.r_data for column in program)),
            *(column.r_addr.eq(fetch.address) for column in program),
            fetch.take.eq(sequencer.take),
            sequencer.start.eq(start),
            sequencer.next.eq(fetch.descriptor),
            sequencer.next_valid.eq(fetch.valid),
        ]
        # Not held by `tick`: a step's taps leave the time to compare.
        m.d.sync += sequencer.ended.eq(sequencer.ends)
        return _Engine(program, fetch, sequencer, activations, weights, requantizer, start, program_start)

    def _elaborate_reading(self, m: Module, engine: _Engine, slot: data.View) -> _Reading:
        """Cycle 1 of a slot: which byte of which row."""
        config = self.config
        active = engine.sequencer.active
        reading = delay(m, slot.read, 2, "read", reset=True)
        row, q, kernel_row = (delay(m, slot[name], 1, name) for name in ("row", "q", "kernel_row"))
        m.submodules.row_product = row_product = self.technology.product(signed_a=False)
        column, bank = Signal(config.field_bits + 1, reset_less=True), Signal(2, reset_less=True)
        inside = Signal(reset_less=True)
        m.d.comb += [row_product.a.eq((row >> 2)[: config.field_bits]), row_product.b.eq(active.in_row_stride)]
        m.d.sync += [
            column.eq(active.in_base + (q >> 1)),
            bank.eq(row[:2]),
            inside.eq(
                ~row[-1]
                & (row < active.in_rows)
                & (kernel_row < active.kernel_rows)
                & ~q[-1]
                & (q < active.in_row_bytes)
            ),
        ]
        # The probe: cycle 2 has the parts of its address, cycle 3 whether the sum is beyond the memory.
        memory_bits = self._memory_bits
        probed = delay(m, engine.sequencer.probe & ~slot.read, 3, "probe", reset=True)
        input_beyond = Signal()
        total = Signal(memory_bits + 1)
        m.d.comb += total.eq(row_product.p[:memory_bits] + column[:memory_bits])
        m.d.sync += input_beyond.eq(
            probed & (total[-1] | row_product.p[memory_bits:].any() | column[memory_bits:].any())
        )
        return _Reading(reading, row_product.p, column, bank, inside, q, input_beyond)

    def _elaborate_memories(
        self, m: Module, engine: _Engine, slot: data.View, reads: _Reading
    ) -> tuple[_Result, _HostAccess]:
        """Cycle 2: a result goes to memory where nothing is read, and the host has the memory while no program runs."""
        config = self.config
        activations, weights = engine.activations, engine.weights
        pending = Signal()
        place = Signal(self._target, reset_less=True)
        result = Signal(8 * config.lanes, reset_less=True)
        host_access, host_write = Signal(), Signal()
        writing = pending & ~reads.reading
        granule_bits = len(activations.granule)
        offset = self.host.request.payload.address[:28]
        word = offset[1 : 1 + granule_bits]
        m.d.comb += activations.w_data.eq(Mux(host_access, self.host.request.payload.data, result))
        with m.If(host_access):
            m.d.comb += [
                activations.bank.eq(offset[1 + granule_bits : 3 + granule_bits]),
                activations.granule.eq(word),
                activations.write.eq(host_write.replicate(2)),
            ]
        with m.Elif(reads.reading):
            m.d.comb += [activations.bank.eq(reads.bank), activations.granule.eq(reads.product + reads.column)]
        with m.Else():
            m.d.comb += [
                activations.bank.eq(place.bank),
                activations.granule.eq(place.granule),
                activations.write.eq(Mux(writing, place.enable, 0)),
            ]
        # Cycle 3: the memories; weights take one cycle less.
        host_weights, host_tap = Signal(), Signal(range(config.taps))
        m.d.comb += [
            weights.weight.eq(delay(m, slot.weight, READ_LATENCY - 1, "weight")),
            weights.tap.eq(Mux(host_weights, host_tap, delay(m, slot.tap, READ_LATENCY - 1, "tap"))),
            weights.host.eq(host_weights),
            weights.host_offset.eq(offset),
            weights.host_data.eq(self.host.request.payload.data),
        ]
        return _Result(pending, place, result, writing), _HostAccess(host_access, host_write, host_weights, host_tap)

    def _elaborate_lanes(self, m: Module, engine: _Engine, slot: data.View, reads: _Reading) -> None:
        """Cycle 4: padding, products; then the requantizer."""
        config, active = self.config, engine.sequencer.active
        activations, weights, requantizer = engine.activations, engine.weights, engine.requantizer
        valid, odd_byte = (
            delay(m, reads.inside, READ_LATENCY - 2, "inside"),
            delay(m, reads.q[0], READ_LATENCY - 1, "q_0"),
        )
        dense = active.kind == Kind.DENSE
        shared = Mux(odd_byte, activations.r_data[8:16], activations.r_data[:8])
        add = delay(m, slot.read & slot.multiply, READ_LATENCY, "add", reset=True)
        clear = delay(m, slot.clear, READ_LATENCY, "clear", reset=True)
        for lane in range(config.lanes):
            m.submodules[f"lane_{lane}"] = mac = self.technology.multiply_accumulate()
            own = activations.r_data[8 * lane : 8 * lane + 8]
            m.d.comb += [
                mac.a.eq(Mux(valid, Mux(dense, shared, own), active.pad_value)),
                mac.b.eq(weights.column[lane]),
                mac.add.eq(add),
                mac.clear.eq(clear),
                requantizer.accumulators[lane].eq(mac.total),
            ]
        m.d.comb += [
            requantizer.load.eq(delay(m, slot.load, READ_LATENCY, "load", reset=True)),
            requantizer.parameters.eq(weights.column),
            requantizer.capture.eq(delay(m, slot.read & slot.last, ACCUMULATE_LATENCY, "last", reset=True)),
            *(
                getattr(requantizer, name).eq(active[name])
                for name in ("double_rounding", "narrow", "out_zero_point", "act_min", "act_max")
            ),
        ]

    def _elaborate_write_back(self, m: Module, engine: _Engine, slot: data.View, waiting: _Result) -> Signal:
        """A result's address follows it: through the accumulators, through the requantizer, to the write.

        Returns whether a result is beyond the memory.
        """
        requantizer, memory_bits, target = engine.requantizer, self._memory_bits, self._target
        pending, place, result, writing = waiting.pending, waiting.place, waiting.result, waiting.writing
        step = engine.sequencer.step
        issued, finishing = Signal(target, reset_less=True), Signal(target, reset_less=True)
        output_beyond = Signal()
        out, lower_only = step.out_granule, step.half
        m.d.sync += output_beyond.eq(
            slot.read & slot.last & (out[memory_bits:].any() | (out[:memory_bits].all() & ~lower_only))
        )
        with m.If(slot.read & slot.last):
            m.d.sync += [
                issued.bank.eq(step.out_bank),
                issued.granule.eq(step.out_granule),
                issued.enable.eq(Mux(step.half, 1, 3)),
            ]
        with m.If(requantizer.capture):
            m.d.sync += finishing.eq(issued)
        with m.If(writing):
            m.d.sync += pending.eq(0)
        with m.If(requantizer.done):
            m.d.sync += [pending.eq(1), place.eq(finishing), result.eq(requantizer.bytes)]
        m.d.comb += [
            self.trace.valid.eq(writing),
            self.trace.bank.eq(place.bank),
            self.trace.granule.eq(place.granule),
            self.trace.enable.eq(place.enable),
            self.trace.data.eq(result),
        ]
        return output_beyond

    def _elaborate_slots(self, m: Module, sequencer: CompactSequencer, tick: Signal):
        """The slots of the sequencer's step; `tick` lets it go on to the next one."""
        config = self.config
        step, active = sequencer.step, sequencer.active
        slot = Signal(Slot(config))
        tap = Signal(range(config.taps))
        cleared = Signal()
        blocked = Signal(range(COMPACT_SPACING + 1))
        free = Signal(init=1)
        busy = step.step | step.load
        first_slot = (tap == 0) & ~cleared
        # The next result, or new parameters, wait until the requantizer needs neither accumulators nor parameters.
        wait = (step.load | step.result) & first_slot & ~free
        go = busy & ~wait
        dense = active.kind == Kind.DENSE
        # A step has its taps side by side, or below each other.
        below = Mux(dense, active.row_pair & (tap == 1), tap)
        m.d.comb += [
            slot.load.eq(step.load & go),
            slot.clear.eq(step.step & go & step.first & first_slot),
            slot.read.eq(step.step & go & ~slot.clear),
            slot.multiply.eq(step.multiply),
            slot.last.eq(step.result & (tap == config.taps - 1)),
            slot.row.eq(step.row + below),
            slot.kernel_row.eq(step.kernel_row + below),
            slot.q.eq(step.q + Mux(dense & ~(active.row_pair & (tap == 1)), tap, 0)),
            slot.weight.eq(step.weight),
            slot.tap.eq(tap),
            tick.eq(~busy | (go & (tap == config.taps - 1))),
        ]
        with m.If(tick):
            m.d.sync += [tap.eq(0), cleared.eq(0)]
        with m.Elif(slot.clear):
            m.d.sync += cleared.eq(1)
        with m.Elif(go):
            m.d.sync += tap.eq(tap + 1)
        with m.If(slot.read & slot.last):
            m.d.sync += [blocked.eq(COMPACT_SPACING), free.eq(0)]
        with m.Elif(~free):
            m.d.sync += [blocked.eq(blocked - 1), free.eq(blocked == 1)]
        return slot

    def _elaborate_host(self, m: Module, engine: _Engine, memories: _HostAccess, control: ProgramControl) -> None:
        """Registers and memory windows."""
        config = self.config
        request, response = self.host.request, self.host.response
        program, program_start, tap = engine.program, engine.program_start, memories.tap
        busy = control.busy
        m.d.comb += self.busy.eq(busy)

        offset = request.payload.address[:28]
        window = request.payload.address[28:]
        written = request.payload.data
        answer = Signal(32, reset_less=True)
        wait = Signal(2)
        register_value = Signal(32)
        with m.Switch(offset[:8]):
            for register, value in (
                (Register.MAGIC, Const(MAGIC, 32)),
                (Register.VERSION, Const(ISA_VERSION, 32)),
                (Register.CONFIG_HASH, Const(config.hash, 32)),
                (Register.STATUS, control.status),
                (Register.CYCLES, control.cycles),
                (Register.PROGRAM_START, program_start),
                (Register.LAYERS, engine.sequencer.completed),
            ):
                with m.Case(register):
                    m.d.comb += register_value.eq(value)
        column = offset[2:4]
        for ram in program:
            m.d.comb += [ram.w_addr.eq(offset[4:]), ram.w_data.eq(written)]
        program_write = Signal()
        m.d.comb += Array(ram.w_en for ram in program)[column].eq(program_write)

        # Registered, as it makes the engine's state.
        m.d.sync += engine.start.eq(0)
        # The payload stands until it is taken, so that it needs no register.
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [wait.eq(0), tap.eq(0), answer.eq(0)]
                # The host's way to `valid` may be long.
                with m.If(request.valid):
                    m.next = "DECODE"
            with m.State("DECODE"):
                m.next = "ACCEPT"
                with m.If(window == HostAddress.REGISTERS >> 28):
                    m.d.sync += answer.eq(register_value)
                    with m.If(request.payload.write), m.Switch(offset[:8]):
                        with m.Case(Register.PROGRAM_START):
                            m.d.sync += program_start.eq(written)
                        with m.Case(Register.CONTROL), m.If(written[0] & ~busy):
                            m.d.sync += engine.start.eq(1)
                with m.Elif(busy):
                    m.d.comb += control.access.eq(1)
                with m.Elif(window == HostAddress.ACTIVATIONS >> 28):
                    m.d.comb += [memories.access.eq(1), memories.write.eq(request.payload.write)]
                    with m.If(~request.payload.write):
                        m.next = "READ"
                with m.Elif(request.payload.write & (window == HostAddress.WEIGHTS >> 28)):
                    m.next = "WEIGHTS"
                with m.Elif(request.payload.write & (window == HostAddress.PROGRAM >> 28)):
                    m.d.comb += program_write.eq(1)
            with m.State("WEIGHTS"):
                m.d.comb += memories.weights.eq(1)
                m.d.sync += tap.eq(tap + 1)
                with m.If(tap == config.taps - 1):
                    m.next = "ACCEPT"
            with m.State("READ"):
                # The access was a cycle ago.
                m.d.sync += wait.eq(wait + 1)
                with m.If(wait == 1):
                    m.d.sync += answer.eq(engine.activations.r_data)
                    m.next = "ACCEPT"
            with m.State("ACCEPT"):
                m.d.comb += request.ready.eq(1)
                m.next = "IDLE"
                with m.If(~request.payload.write):
                    m.next = "RESPOND"
            with m.State("RESPOND"):
                m.d.comb += [response.valid.eq(1), response.payload.data.eq(answer)]
                with m.If(response.ready):
                    m.next = "IDLE"
