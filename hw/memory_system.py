"""A serial board with external memory: the host link, the accelerator, and the DMA engine that executes lists."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import xor

from amaranth.hdl import Array, Cat, ClockDomain, ClockSignal, Const, DomainRenamer, Module, Mux, ResetSignal, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.dma import DmaControl, DmaRegister
from nnloom.arch.link import LARGEST_WORDS
from nnloom.arch.memory_system import CONTENT_WORDS, MEMORY_MAGIC, SELECT_BIT, MemoryRegister, MemoryStatus

from .accelerator import make_accelerator
from .axi import AxiResponse, AxiSignature
from .dma import DmaEngine
from .engine_top import observed_ports
from .host_bus import HostBus
from .host_link import HostLink
from .host_sharing import HostArbiter, HostDecoder
from .technology import Technology
from .uart import UartReceiver, UartTransmitter, baud_divisor

__all__ = ["AxiArbiter", "MemorySystem", "MemoryWindow"]

_NORMAL_MEMORY = 0b0011
_INCREMENTING = 1
_MOST_READS = 8
"""Read bursts that a manager may have under way."""


class AxiArbiter(wiring.Component):
    """Two managers on one AXI4 bus, which take turns where both want it.

    Reads: the bus changes hands while no burst is under way; a manager that waits holds off further bursts of the
    other. Writes: a burst at a time, from its address to its answer; `first` goes first. A manager must not ask for a
    second write burst before the first is answered, nor for more than `_MOST_READS` read bursts.

    Members
    -------
    first, second : In(AxiSignature)
    bus : Out(AxiSignature)
    """

    def __init__(self, *, address_width: int, data_width: int) -> None:
        signature = AxiSignature(address_width=address_width, data_width=data_width)
        super().__init__({"first": In(signature), "second": In(signature), "bus": Out(signature)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._reads(m)
        self._writes(m)
        return m

    def _pass_on(self, m: Module, channel: str, manager: wiring.PureInterface, *, back: bool = False) -> None:
        """Payload, valid and ready of a channel, from the manager or, with `back`, to it."""
        source, target = (self.bus, manager) if back else (manager, self.bus)
        for name, member in self.bus.signature.members.items():
            if name.startswith(channel) and name != f"{channel}ready" and (member.flow is In) == back:
                m.d.comb += getattr(target, name).eq(getattr(source, name))
        m.d.comb += getattr(source, f"{channel}ready").eq(getattr(target, f"{channel}ready"))

    def _reads(self, m: Module) -> None:
        bus, managers = self.bus, (self.first, self.second)
        owner, fresh, held = Signal(name="reader"), Signal(name="reader_fresh"), Signal(name="read_held")
        under_way = Signal(range(_MOST_READS + 1))
        others_wait, may_ask = Signal(), Signal()
        m.d.comb += [
            others_wait.eq(Array(manager.arvalid for manager in reversed(managers))[owner]),
            # What was offered stays; a new owner has one burst at least.
            may_ask.eq(held | fresh | ~others_wait),
        ]
        for index, manager in enumerate(managers):
            with m.If(owner == index):
                with m.If(may_ask):
                    self._pass_on(m, "ar", manager)
                self._pass_on(m, "r", manager, back=True)
        asked, ended = bus.arvalid & bus.arready, bus.rvalid & bus.rready & bus.rlast
        m.d.sync += [held.eq(bus.arvalid & ~bus.arready), under_way.eq(under_way + asked - ended)]
        with m.If(asked):
            m.d.sync += fresh.eq(0)
        with m.If(others_wait & ~may_ask & (under_way == 0)):
            m.d.sync += [owner.eq(~owner), fresh.eq(1)]

    def _writes(self, m: Module) -> None:
        bus = self.bus
        owner, locked = Signal(name="writer"), Signal(name="write_locked")
        with m.If(~locked):
            m.d.sync += [owner.eq(~self.first.awvalid), locked.eq(self.first.awvalid | self.second.awvalid)]
        with m.Elif(bus.bvalid & bus.bready):
            m.d.sync += locked.eq(0)
        for index, manager in enumerate((self.first, self.second)):
            with m.If(locked & (owner == index)):
                for channel in ("aw", "w"):
                    self._pass_on(m, channel, manager)
                self._pass_on(m, "b", manager, back=True)


class MemoryWindow(wiring.Component):
    """Words of a host bus as accesses to memory, one beat each.

    A request is taken when the memory has answered it, so what comes after it on the host bus comes after it in memory.
    (A beat takes some twenty cycles, and a word more than a hundred on the fastest serial line: longer bursts would
    gain nothing.) What is beyond the memory is not asked for; such reads and those answered with an error give 0.

    Parameters
    ----------
    size
        Bytes of the memory, a power of two.

    Members
    -------
    host : In(HostBus)
    axi : Out(AxiSignature)
    fault : Out; one cycle: an access failed
    """

    def __init__(self, *, size: int, data_width: int) -> None:
        if size & (size - 1):
            raise ValueError(f"external memory must have a power of two of bytes, not {size}")
        self.size = size
        self.data_width = data_width
        super().__init__(
            {
                "host": In(HostBus),
                "axi": Out(AxiSignature(address_width=32, data_width=data_width)),
                "fault": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        axi, request, response = self.axi, self.host.request, self.host.response
        beat_bytes = self.data_width // 8
        beat_bits, size_bits = (beat_bytes - 1).bit_length(), (self.size - 1).bit_length()
        address = request.payload.address[: SELECT_BIT - 1]
        lane = address[2:beat_bits] if beat_bytes > 4 else Const(0, 1)
        beat = Cat(Const(0, beat_bits), address[beat_bits:size_bits])
        word, failed = Signal(32), Signal()
        for c in ("aw", "ar"):
            m.d.comb += [
                getattr(axi, f"{c}addr").eq(beat),
                getattr(axi, f"{c}size").eq(beat_bits),
                getattr(axi, f"{c}burst").eq(_INCREMENTING),
                getattr(axi, f"{c}cache").eq(_NORMAL_MEMORY),
            ]
        m.d.comb += [
            axi.wdata.eq(request.payload.data.replicate(beat_bytes // 4)),
            axi.wstrb.eq(0xF << (lane << 2)),
            axi.wlast.eq(1),
            response.payload.data.eq(word),
        ]
        with m.FSM():
            with m.State("IDLE"), m.If(request.valid):
                with m.If(address[size_bits:].any()):
                    m.d.sync += [word.eq(0), failed.eq(1)]
                    m.next = "TAKE"
                with m.Elif(request.payload.write):
                    m.d.sync += [axi.awvalid.eq(1), axi.wvalid.eq(1)]
                    m.next = "WRITE"
                with m.Else():
                    m.d.sync += axi.arvalid.eq(1)
                    m.next = "READ"
            with m.State("WRITE"):
                with m.If(axi.awready):
                    m.d.sync += axi.awvalid.eq(0)
                with m.If(axi.wready):
                    m.d.sync += axi.wvalid.eq(0)
                m.d.comb += axi.bready.eq(~axi.awvalid & ~axi.wvalid)
                with m.If(axi.bvalid & axi.bready):
                    m.d.sync += failed.eq(axi.bresp[1])
                    m.next = "TAKE"
            with m.State("READ"):
                with m.If(axi.arready):
                    m.d.sync += axi.arvalid.eq(0)
                m.d.comb += axi.rready.eq(~axi.arvalid)
                with m.If(axi.rvalid & axi.rready):
                    m.d.sync += [
                        failed.eq(axi.rresp[1]),
                        word.eq(Mux(axi.rresp[1], 0, axi.rdata.word_select(lane, 32))),
                    ]
                    m.next = "TAKE"
            with m.State("TAKE"):
                m.d.comb += [request.ready.eq(1), self.fault.eq(failed)]
                m.d.sync += failed.eq(0)
                m.next = "IDLE"
                with m.If(~request.payload.write):
                    m.next = "ANSWER"
            with m.State("ANSWER"):
                m.d.comb += response.valid.eq(1)
                with m.If(response.ready):
                    m.next = "IDLE"
        return m


assert AxiResponse.SLVERR & AxiResponse.DECERR == 2  # bit 1 tells errors from the other responses


@dataclass(frozen=True)
class _Blocks:
    """What is connected with each other."""

    link: HostLink
    accelerator: wiring.Component
    dma: DmaEngine
    window: MemoryWindow
    engine_reset: Signal


class MemorySystem(wiring.Component):
    """`soc.SerialSystem` with external memory, everything in the system clock domain, UART pins included.

    The link reaches the accelerator, the memory and the registers of `arch.memory_system` and of the DMA engine; the
    addresses are those of `SystemAddress`. The notice of the link that a program has ended comes at the end of a list.
    The link's RESET ends a list, as `DmaControl.ABORT` does, then resets the accelerator; what the link asks for
    meanwhile waits.

    Parameters
    ----------
    clock_hz, baud
        Clock of the system and bit rate of the line.
    size
        Bytes of external memory, a power of two.
    data_width
        Bits of a beat of the memory's bus.
    observed
        Show the engine's writes to activation memory, for test benches.

    Members
    -------
    rx : In, tx : Out; the serial line
    busy : Out; a program or a list runs
    memory : Out(AxiSignature); external memory
    memory_ready : In; it has been initialised
    write_valid, write_bank, write_granule, write_enable, write_data : Out, if `observed`; as those of `EngineTop`
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        *,
        clock_hz: float,
        baud: int,
        size: int,
        data_width: int,
        technology: Technology | None = None,
        max_words: int = LARGEST_WORDS,
        observed: bool = False,
    ) -> None:
        self.config = config
        self.technology = technology
        self.clock_hz = clock_hz
        self.max_words = max_words
        self.size = size
        self.data_width = data_width
        self.observed = observed
        self.divisor = baud_divisor(clock_hz, baud)
        super().__init__(
            {
                "rx": In(1, init=1),
                "tx": Out(1, init=1),
                "busy": Out(1),
                "memory": Out(AxiSignature(address_width=32, data_width=data_width)),
                "memory_ready": In(1),
                **({k: v for k, v in observed_ports(config).items() if k != "busy"} if observed else {}),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.receiver = receiver = UartReceiver(divisor=self.divisor)
        m.submodules.transmitter = transmitter = UartTransmitter(divisor=self.divisor)
        m.submodules.link = link = HostLink(self.technology, clock_hz=self.clock_hz, max_words=self.max_words)
        m.submodules.dma = dma = DmaEngine(data_width=self.data_width, in_system=True)
        m.submodules.window = window = MemoryWindow(size=self.size, data_width=self.data_width)
        m.submodules.sharing = sharing = AxiArbiter(address_width=32, data_width=self.data_width)
        accelerator = make_accelerator(self.config, self.technology, loads_while_running=True)
        # A domain with the same clock: its reset comes from one register, not from a gate behind two.
        m.domains.engine = engine = ClockDomain(local=True)
        engine_reset = Signal(init=1, reset_less=True)
        m.d.comb += [engine.clk.eq(ClockSignal()), engine.rst.eq(engine_reset)]
        m.submodules.accelerator = DomainRenamer("engine")(accelerator)
        m.d.comb += [
            receiver.rx.eq(self.rx),
            self.tx.eq(transmitter.tx),
            self.busy.eq(accelerator.busy | dma.busy),
            link.busy.eq(self.busy),
            dma.engine_busy.eq(accelerator.busy),
        ]
        connect(m, receiver.octets, link.receive)
        connect(m, link.transmit, transmitter.octets)
        connect(m, window.axi, sharing.first)
        connect(m, dma.axi, sharing.second)
        connect(m, sharing.bus, flipped(self.memory))
        if self.observed:
            trace = accelerator.trace
            m.d.comb += [
                getattr(self, f"write_{name}").eq(trace[name]) for name in ("valid", "bank", "granule", "enable")
            ]
            m.d.comb += self.write_data.eq(trace.data)
        self._buses(m, _Blocks(link, accelerator, dma, window, engine_reset))
        return m

    def _buses(self, m: Module, blocks: _Blocks) -> None:
        """From the link to where its addresses lead."""
        link, dma = blocks.link, blocks.dma
        m.submodules.beyond = beyond = HostDecoder(bit=SELECT_BIT)
        m.submodules.windows = windows = HostDecoder(bit=SELECT_BIT - 1)
        m.submodules.registers = registers = HostDecoder()
        m.submodules.arbiter = arbiter = HostArbiter()
        hold = self._reset(m, blocks, registers.high, arbiter)
        m.d.comb += [
            beyond.host.request.payload.eq(link.host.request.payload),
            beyond.host.request.valid.eq(link.host.request.valid & ~hold),
            link.host.request.ready.eq(beyond.host.request.ready & ~hold),
            link.host.response.payload.eq(beyond.host.response.payload),
            link.host.response.valid.eq(beyond.host.response.valid),
            beyond.host.response.ready.eq(link.host.response.ready),
        ]
        connect(m, beyond.low, arbiter.first)
        connect(m, dma.host, arbiter.second)
        connect(m, arbiter.bus, blocks.accelerator.host)
        if not self.config.compact:
            m.d.comb += blocks.accelerator.from_dma.eq(arbiter.from_second)
        connect(m, beyond.high, windows.host)
        connect(m, windows.low, blocks.window.host)
        connect(m, windows.high, registers.host)
        self._registers(m, registers.low, dma, blocks.window.fault)

    def _reset(self, m: Module, blocks: _Blocks, registers: wiring.PureInterface, arbiter: HostArbiter) -> Signal:
        """The accelerator's reset, by the DMA or by the link, which has the DMA do it. Returns whether the link waits.

        `registers`: the link's bus to the registers of the DMA.
        """
        dma, engine_reset = blocks.dma, blocks.engine_reset
        m.submodules.control = control = HostArbiter()
        connect(m, registers, control.second)
        connect(m, control.bus, dma.registers)
        request = control.first.request
        m.d.comb += [
            request.payload.write.eq(1),
            request.payload.address.eq(DmaRegister.CONTROL),
            request.payload.data.eq(DmaControl.ABORT | DmaControl.RESET),
            arbiter.pause.eq(dma.engine_reset),
            dma.engine_reset_done.eq(engine_reset),
        ]
        m.d.sync += engine_reset.eq(ResetSignal() | (dma.engine_reset & arbiter.idle & ~engine_reset))
        hold, asked = Signal(), Signal()
        with m.If(blocks.link.reset):
            m.d.sync += hold.eq(1)
        with m.If(hold & ~asked):
            m.d.comb += request.valid.eq(1)
            with m.If(request.ready):
                m.d.sync += asked.eq(1)
        with m.Elif(hold):
            # A list that ends just then ends without an abort: then it is asked for again.
            with m.If(dma.engine_reset & engine_reset):
                m.d.sync += hold.eq(0)
            with m.If((dma.engine_reset & engine_reset) | (~dma.engine_reset & ~dma.busy)):
                m.d.sync += asked.eq(0)
        return hold

    def _registers(self, m: Module, bus: wiring.PureInterface, dma: DmaEngine, fault: Signal) -> None:
        """The registers of `arch.memory_system`, and what they count."""
        request, response = bus.request, bus.response
        beat_words = self.data_width // 32
        cycles, checksum, was_busy = Signal(32), Signal(32), Signal()
        content = [Signal(32, name=f"content_{i}") for i in range(CONTENT_WORDS)]
        ready, faulty = Signal(), Signal()
        folded = Signal(32)
        words = [dma.axi.rdata.word_select(i, 32).rotate_left(8 * i) for i in range(beat_words)]
        m.d.comb += folded.eq(reduce(xor, words))
        m.d.sync += [ready.eq(self.memory_ready), was_busy.eq(dma.busy)]
        with m.If(dma.busy):
            m.d.sync += cycles.eq(Mux(was_busy, cycles + 1, 1))
        with m.If(dma.busy & ~was_busy):
            m.d.sync += checksum.eq(0)
        with m.Elif(dma.axi.rvalid & dma.axi.rready & ~dma.reloading):
            m.d.sync += checksum.eq(checksum.rotate_left(1) ^ folded)
        answering, answer = Signal(), Signal(32)
        m.d.comb += [
            request.ready.eq(~answering),
            response.valid.eq(answering),
            response.payload.data.eq(answer),
        ]
        with m.If(response.valid & response.ready):
            m.d.sync += answering.eq(0)
        offset = request.payload.address[:12]
        first = MemoryRegister.CONTENT_0
        with m.If(request.valid & request.ready):
            with m.If(request.payload.write), m.Switch(offset):
                with m.Case(MemoryRegister.STATUS):
                    m.d.sync += faulty.eq(0)
                for index, word in enumerate(content):
                    with m.Case(first + 4 * index):
                        m.d.sync += word.eq(request.payload.data)
            with m.Else():
                m.d.sync += [answering.eq(1), answer.eq(0)]
                with m.Switch(offset):
                    for register, value in (
                        (MemoryRegister.ID, Const(MEMORY_MAGIC, 32)),
                        (MemoryRegister.SIZE, Const(self.size, 32)),
                        (MemoryRegister.STATUS, Cat(ready, faulty, Const(0, 6), Const(self.data_width // 8, 8))),
                        (MemoryRegister.CYCLES, cycles),
                        (MemoryRegister.CHECKSUM, checksum),
                        *((first + 4 * index, word) for index, word in enumerate(content)),
                    ):
                        with m.Case(register):
                            m.d.sync += answer.eq(value)
        with m.If(fault):
            m.d.sync += faulty.eq(1)


assert (MemoryStatus.READY, MemoryStatus.FAULT) == (1, 2)  # the order of the bits above
