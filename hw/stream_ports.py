"""The engine for other logic in the same device: the bytes of an inference's inputs in, those of its outputs out."""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nnloom.arch.artifact import Region, TensorLocation
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.dtypes import UINT8
from nnloom.arch.isa import HostAddress, Register, Status

from .accelerator import make_accelerator
from .host_bus import HostBus
from .technology import Technology
from .zynq import HostArbiter

__all__ = ["STREAM_MEMBERS", "StreamEngine", "StreamOctet", "StreamPorts"]

STREAM_MEMBERS = ("i", "o", "enable", "failed")
"""What systems with streams show of them"""


StreamOctet = data.StructLayout({"data": 8, "last": 1})
"""A byte of an output; `last`: that of the last output."""


class StreamPorts(wiring.Component):
    """Takes the input tensors of a region byte by byte, runs its program, gives the output tensors; then the next ones.

    A tensor's bytes come in the order of its values in C order, `TensorLocation.rows`, `columns`, `channels`, one
    tensor after the other; each is a value as the network has it (int8, or uint8). `i` waits while the program runs and
    until all outputs were taken. Program, weights and tables must be in the engine's memories.

    A byte takes a cycle, a word of four one or two more on the way in, some ten on the way out. No path leads from a
    ready to a valid. Reset: the inference under way is given up; what was taken of its inputs is forgotten.

    Parameters
    ----------
    region
        Without parts.

    Members
    -------
    i : In(stream of 8 bits)
    o : Out(stream of StreamOctet)
    enable : In; while low no inference begins
    failed : Out; the last program ended with an error (`Status.ERROR`): its outputs, which come all the same, are wrong
    host : Out(HostBus); to the accelerator
    busy : In; the accelerator's
    running : Out; its program is the one that runs
    """

    def __init__(self, config: AcceleratorConfig, region: Region) -> None:
        if region.parts:
            raise ValueError(f"{region.name} runs in parts, whose weights a host loads: it cannot have stream ports")
        self.config = config
        self.region = region
        super().__init__(
            {
                "i": In(stream.Signature(8)),
                "o": Out(stream.Signature(StreamOctet)),
                "enable": In(1, init=1),
                "failed": Out(1),
                "host": Out(HostBus),
                "busy": In(1),
                "running": Out(1),
            }
        )

    @property
    def _tensors(self) -> Sequence[TensorLocation]:
        return (*self.region.inputs, *self.region.outputs)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.walk = walk = _Walk(self.config, self._tensors)
        request, response = self.host.request, self.host.response
        inputs = len(self.region.inputs)
        draining = Signal()
        """Outputs are read; else inputs are written."""
        word = Signal(32, reset_less=True)
        octet = Signal(8)
        sign = Cat(Const(0, 7), walk.unsigned)
        writes_registers, register, value = Signal(), Signal(8), Signal(16)
        m.d.comb += [
            walk.first.eq(0),
            draining.eq(walk.tensor >= inputs),
            octet.eq(Mux(walk.is_data, self.i.payload ^ sign, 0)),
            self.o.payload.data.eq(word[:8] ^ sign),
            self.o.payload.last.eq(walk.last),
            request.payload.address.eq(Mux(writes_registers, HostAddress.REGISTERS + register, walk.address)),
            request.payload.data.eq(Mux(writes_registers, value, word)),
        ]

        def after_word() -> None:
            m.d.comb += walk.next_word.eq(1)
            m.next = "NEXT"

        def write_register(state: str, where: Register, number: int, then: str) -> None:
            with m.State(state):
                m.d.comb += [request.valid.eq(1), request.payload.write.eq(1)]
                m.d.comb += [writes_registers.eq(1), register.eq(where), value.eq(number)]
                with m.If(request.ready):
                    m.next = then

        with m.FSM():
            with m.State("BEGIN"), m.If(self.enable):
                m.d.comb += walk.first.eq(1)
                m.next = "ROW"
            with m.State("ROW"):
                m.d.comb += walk.begin_row.eq(1)
                m.next = "FILL"
                # A row that begins within a word: the row before it is in the other half.
                with m.If(draining | walk.within_word):
                    m.next = "ASK"
            with m.State("NEXT"):
                m.next = "FILL"
                with m.If(draining):
                    m.next = "ASK"
                with m.If(walk.row_ended):
                    m.d.comb += walk.next_row.eq(1)
                    m.next = "ROW"
                    with m.If(walk.tensor_ended & (walk.tensor == inputs - 1)):
                        m.next = "PROGRAM"
                    with m.If(walk.last_tensor_ended):
                        m.next = "BEGIN"
            with m.State("FILL"):
                m.d.comb += self.i.ready.eq(walk.is_data)
                with m.If(self.i.valid | ~walk.is_data):
                    m.d.comb += walk.step.eq(1)
                    m.d.sync += word.eq(Cat(word[8:], octet))
                    with m.If(walk.ends_word):
                        m.next = "STORE"
            with m.State("STORE"):
                m.d.comb += [request.valid.eq(1), request.payload.write.eq(1)]
                with m.If(request.ready):
                    after_word()
            write_register("PROGRAM", Register.PROGRAM_START, self.region.program_start, "START")
            write_register("START", Register.CONTROL, 1, "STARTED")
            with m.State("STARTED"):
                m.d.comb += self.running.eq(1)
                with m.If(self.busy):
                    m.next = "RUNS"
            with m.State("RUNS"):
                m.d.comb += self.running.eq(1)
                with m.If(~self.busy):
                    m.next = "ASK_STATUS"
            with m.State("ASK_STATUS"):
                m.d.comb += [request.valid.eq(1), writes_registers.eq(1), register.eq(Register.STATUS)]
                with m.If(request.ready):
                    m.next = "STATUS"
            with m.State("STATUS"):
                m.d.comb += response.ready.eq(1)
                with m.If(response.valid):
                    m.d.sync += self.failed.eq((response.payload.data & Status.ERROR).any())
                    m.next = "ROW"
            with m.State("ASK"):
                m.d.comb += request.valid.eq(1)
                with m.If(request.ready):
                    m.next = "ANSWER"
            with m.State("ANSWER"):
                m.d.comb += response.ready.eq(1)
                half = response.payload.data[:16]
                with m.If(response.valid & draining):
                    m.d.sync += word.eq(Mux(walk.upper_half, response.payload.data[16:], response.payload.data))
                    m.next = "DRAIN"
                with m.Elif(response.valid):
                    m.d.sync += word.eq(Cat(Const(0, 16), half))
                    m.next = "FILL"
            with m.State("DRAIN"):
                m.d.comb += self.o.valid.eq(walk.is_data)
                with m.If(self.o.ready | ~walk.is_data):
                    m.d.comb += walk.step.eq(1)
                    m.d.sync += word.eq(word >> 8)
                    with m.If(walk.ends_word):
                        after_word()
        return m


class _Walk(wiring.Component):
    """Goes through tensors in activation memory, byte by byte, words and rows as they lie there.

    Members
    -------
    tensor : Out; its number
    first : In; to the first tensor
    begin_row : In; to the first byte of the row
    step : In; to the next byte
    next_word : In; to the next word, after its last byte
    next_row : In; to the next row, or the first of the next tensor
    address : Out; host bus address of the word
    is_data : Out; the byte is a value of the tensor, not padding
    unsigned : Out; the tensor is of unsigned values
    ends_word : Out; the byte is the last of its word
    upper_half : Out; the byte is in the upper half of its word
    within_word : Out; the row begins in the upper half of a word
    last : Out; the byte is the last value of the last tensor
    row_ended : Out; after `next_word`: all words of the row were visited
    tensor_ended, last_tensor_ended : Out; the same, and it was the last row
    """

    def __init__(self, config: AcceleratorConfig, tensors: Sequence[TensorLocation]) -> None:
        self.config = config
        self.tensors = tensors
        outputs = ("is_data", "unsigned", "ends_word", "upper_half", "within_word", "last")
        ends = ("row_ended", "tensor_ended", "last_tensor_ended")
        super().__init__(
            {name: In(1) for name in ("first", "begin_row", "step", "next_word", "next_row")}
            | {name: Out(1) for name in (*outputs, *ends)}
            | {"tensor": Out(range(max(2, len(tensors)))), "address": Out(32)}
        )

    def _constant(self, m: Module, name: str, values: Sequence[int]) -> Signal:
        """Of the tensor."""
        constant = Signal(range(max(values) + 1), name=name)
        with m.Switch(self.tensor):
            for index, value in enumerate(values):
                with m.Case(index):
                    m.d.comb += constant.eq(value)
        return constant

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, tensors = self.config, self.tensors
        granule_bits = (config.granule - 1).bit_length()
        bank_bits = (config.bank_granules * config.granule - 1).bit_length()
        last_row = self._constant(m, "last_row", [t.rows - 1 for t in tensors])
        last_column = self._constant(m, "last_column", [t.columns - 1 for t in tensors])
        last_channel = self._constant(m, "last_channel", [t.channels - 1 for t in tensors])
        last_byte = self._constant(m, "last_byte", [t.pixel_stride - 1 for t in tensors])
        row_stride = self._constant(m, "row_stride", [t.row_stride for t in tensors])
        base = self._constant(m, "base", [t.base for t in tensors])
        unsigned = self._constant(m, "of_uint8", [int(t.dtype == UINT8) for t in tensors])

        row, column, byte = Signal.like(last_row), Signal.like(last_column), Signal.like(last_byte)
        """`byte` of a pixel, padding included."""
        tail = Signal()
        """All pixels of the row were visited."""
        bank = Signal(range(config.row_banks))
        start, fresh = Signal(bank_bits - granule_bits), Signal()
        """First granule of the row within its bank; `fresh`: it is `base`."""
        place, lane = Signal(bank_bits, reset_less=True), Signal(2, reset_less=True)
        """Byte address of the word within the bank, and the byte within the word."""
        first_place = Signal(bank_bits)
        at_end = (row == last_row) & (self.tensor == len(tensors) - 1)
        m.d.comb += [
            first_place.eq(Mux(fresh, base, start) << granule_bits),
            self.address.eq(HostAddress.ACTIVATIONS | Cat(Const(0, 2), place[2:], bank)),
            self.is_data.eq(~tail & (byte <= last_channel)),
            self.unsigned.eq(unsigned),
            self.ends_word.eq(lane == 3),
            self.upper_half.eq(lane[1]),
            self.within_word.eq(first_place[1]),
            self.last.eq(at_end & (column == last_column) & (byte == last_channel)),
            # The last word of a granule has it written.
            self.row_ended.eq(tail & (place[:granule_bits] >> 2 == 0)),
            self.tensor_ended.eq(self.row_ended & (row == last_row)),
            self.last_tensor_ended.eq(self.row_ended & at_end),
        ]
        with m.If(self.first):
            m.d.sync += [self.tensor.eq(0), row.eq(0), bank.eq(0), fresh.eq(1)]
        with m.If(self.begin_row):
            m.d.sync += [place.eq(first_place), lane.eq(first_place[:2]), start.eq(Mux(fresh, base, start))]
            m.d.sync += [fresh.eq(0), tail.eq(0), column.eq(0), byte.eq(0)]
        with m.If(self.step):
            m.d.sync += lane.eq(lane + 1)
            with m.If(byte != last_byte):
                m.d.sync += byte.eq(byte + 1)
            with m.Elif(column != last_column):
                m.d.sync += [byte.eq(0), column.eq(column + 1)]
            with m.Else():
                m.d.sync += tail.eq(1)
        with m.If(self.next_word):
            m.d.sync += [place.eq(Cat(Const(0, 2), place[2:] + 1)), lane.eq(0)]
        with m.If(self.next_row):
            m.d.sync += [row.eq(row + 1), bank.eq(bank + 1)]
            with m.If(bank == config.row_banks - 1):
                m.d.sync += [bank.eq(0), start.eq(start + row_stride)]
            with m.If(row == last_row):
                m.d.sync += [row.eq(0), bank.eq(0), fresh.eq(1), self.tensor.eq(self.tensor + 1)]
        return m


class StreamEngine(wiring.Component):
    """The accelerator with `StreamPorts` beside its host bus, which loads it, and may look at its registers any time.

    What a host does with the memories while an inference is under way damages it (`ErrorCause.ACCESS` tells, if the
    program runs).

    Members
    -------
    host : In(HostBus)
    busy : Out; a program runs
    running : Out; one that the streams have started
    i, o, enable, failed : those of `StreamPorts`
    """

    def __init__(self, config: AcceleratorConfig, region: Region, technology: Technology | None = None) -> None:
        self.config = config
        self.technology = technology
        self.ports = StreamPorts(config, region)
        streams = {name: self.ports.signature.members[name] for name in STREAM_MEMBERS}
        super().__init__({"host": In(HostBus), "busy": Out(1), "running": Out(1), **streams})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        accelerator = make_accelerator(self.config, self.technology)
        m.submodules.accelerator = accelerator
        m.submodules.ports = ports = self.ports
        m.submodules.sharing = sharing = HostArbiter()
        connect(m, flipped(self.host), sharing.first)
        connect(m, ports.host, sharing.second)
        connect(m, sharing.bus, accelerator.host)
        connect(m, flipped(self.i), ports.i)
        connect(m, ports.o, flipped(self.o))
        m.d.comb += [
            ports.enable.eq(self.enable),
            ports.busy.eq(accelerator.busy),
            self.busy.eq(accelerator.busy),
            self.running.eq(ports.running),
            self.failed.eq(ports.failed),
        ]
        return m
