"""The system in the fabric of a Zynq: AXI4-Lite control, DMA from and to DDR, accelerator, interrupt."""

from __future__ import annotations

from amaranth.hdl import ClockDomain, ClockSignal, Module, Mux, ResetInserter, ResetSignal, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.dma import APERTURE_BYTES, DMA_BASE

from .accelerator import make_accelerator
from .axi import AxiLiteSignature, AxiSignature
from .axi_lite import AxiLiteBridge
from .dma import DmaEngine
from .host_bus import HostBus
from .technology import Technology

__all__ = ["HostArbiter", "HostDecoder", "ZynqSystem", "ZynqTop"]

_APERTURE_BITS = (APERTURE_BYTES - 1).bit_length()
_DMA_BIT = (DMA_BASE - 1).bit_length()


class HostArbiter(wiring.Component):
    """Two hosts on one bus; `first` goes first. A read keeps the bus until it is answered.

    Members
    -------
    first, second : In(HostBus)
    bus : Out(HostBus)
    pause : In; no further request is passed on
    idle : Out; no read waits for its answer
    """

    def __init__(self) -> None:
        super().__init__(
            {"first": In(HostBus), "second": In(HostBus), "bus": Out(HostBus), "pause": In(1), "idle": Out(1)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        request, response = self.bus.request, self.bus.response
        reading, owner, held, choice = Signal(), Signal(), Signal(), Signal()
        # A request that was offered stays, whatever comes meanwhile.
        m.d.comb += choice.eq(Mux(held, owner, ~self.first.request.valid))
        m.d.sync += [held.eq(request.valid & ~request.ready & ~self.pause), owner.eq(Mux(reading, owner, choice))]
        for index, host in enumerate((self.first, self.second)):
            chosen = (choice == index) & ~reading & ~self.pause
            with m.If(chosen):
                m.d.comb += [
                    request.payload.eq(host.request.payload),
                    request.valid.eq(host.request.valid),
                    host.request.ready.eq(request.ready),
                ]
            m.d.comb += host.response.payload.eq(response.payload)
            with m.If(reading & (owner == index)):
                m.d.comb += [host.response.valid.eq(response.valid), response.ready.eq(host.response.ready)]
        with m.If(request.valid & request.ready & ~request.payload.write):
            m.d.sync += reading.eq(1)
        with m.If(reading & response.valid & response.ready):
            m.d.sync += reading.eq(0)
        m.d.comb += self.idle.eq(~reading)
        return m


class HostDecoder(wiring.Component):
    """One host, two address ranges: those with one address bit clear, and set. One read at a time.

    Parameters
    ----------
    bit
        The address bit; default: that of DMA_BASE.

    Members
    -------
    host : In(HostBus)
    low, high : Out(HostBus)
    """

    def __init__(self, *, bit: int = _DMA_BIT) -> None:
        self.bit = bit
        super().__init__({"host": In(HostBus), "low": Out(HostBus), "high": Out(HostBus)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        request = self.host.request
        upper = Signal()
        answers_high = Signal()
        m.d.comb += upper.eq(request.payload.address[self.bit])
        with m.If(request.valid & request.ready & ~request.payload.write):
            m.d.sync += answers_high.eq(upper)
        for index, target in enumerate((self.low, self.high)):
            m.d.comb += target.request.payload.eq(request.payload)
            with m.If(upper == index):
                m.d.comb += [target.request.valid.eq(request.valid), request.ready.eq(target.request.ready)]
            with m.If(answers_high == index):
                m.d.comb += [
                    self.host.response.valid.eq(target.response.valid),
                    self.host.response.payload.eq(target.response.payload),
                    target.response.ready.eq(self.host.response.ready),
                ]
        return m


class ZynqSystem(wiring.Component):
    """Everything in one clock domain.

    The AXI4-Lite aperture holds the engine's registers (`isa.Register`) at 0 and those of the DMA at `dma.DMA_BASE`;
    the accelerator's memories are reached by DMA alone.

    Parameters
    ----------
    data_width
        Bits of the AXI4 port: 64 for a Zynq-7000's HP ports, 64 or 128 for an UltraScale+'s.

    Members
    -------
    s_axi : In(AxiLiteSignature); control
    m_axi : Out(AxiSignature); DDR
    interrupt : Out; level
    """

    def __init__(self, config: AcceleratorConfig, *, data_width: int, technology: Technology | None = None) -> None:
        self.config = config
        self.data_width = data_width
        self.technology = technology
        super().__init__(
            {
                "s_axi": In(AxiLiteSignature(address_width=_APERTURE_BITS)),
                "m_axi": Out(AxiSignature(address_width=32, data_width=data_width)),
                "interrupt": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.bridge = bridge = AxiLiteBridge(address_width=_APERTURE_BITS)
        m.submodules.decoder = decoder = HostDecoder()
        m.submodules.dma = dma = DmaEngine(data_width=self.data_width)
        m.submodules.arbiter = arbiter = HostArbiter()
        reset = Signal()
        accelerator = make_accelerator(self.config, self.technology)
        m.submodules.accelerator = ResetInserter(reset)(accelerator)
        connect(m, flipped(self.s_axi), bridge.axi)
        connect(m, bridge.host, decoder.host)
        connect(m, decoder.low, arbiter.first)
        connect(m, decoder.high, dma.registers)
        connect(m, dma.host, arbiter.second)
        connect(m, arbiter.bus, accelerator.host)
        connect(m, dma.axi, flipped(self.m_axi))
        m.d.comb += [
            arbiter.pause.eq(dma.engine_reset),
            reset.eq(dma.engine_reset & arbiter.idle),
            dma.engine_reset_done.eq(reset),
            self.interrupt.eq(dma.interrupt),
        ]
        return m


class ZynqTop(wiring.Component):
    """Top of the block design's module: ports named so that Vivado finds the interfaces.

    Members
    -------
    aclk, aresetn : In; `aresetn` is synchronous to `aclk`
    s_axi_*, m_axi_*, interrupt : as those of `ZynqSystem`
    """

    def __init__(self, system: ZynqSystem) -> None:
        self.system = system
        super().__init__({"aclk": In(1), "aresetn": In(1), **dict(_ports(system.signature))})
        # Vivado finds AXI by its names; these it has to be told.
        for port, kind, parameters in (
            (self.aclk, "clock:1.0 aclk CLK", "ASSOCIATED_BUSIF s_axi:m_axi, ASSOCIATED_RESET aresetn"),
            (self.aresetn, "reset:1.0 aresetn RST", "POLARITY ACTIVE_LOW"),
            (self.interrupt, "interrupt:1.0 interrupt INTERRUPT", "SENSITIVITY LEVEL_HIGH"),
        ):
            port.attrs.update({"X_INTERFACE_INFO": f"xilinx.com:signal:{kind}", "X_INTERFACE_PARAMETER": parameters})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.domains.sync = ClockDomain()
        m.submodules.system = self.system
        m.d.comb += [ClockSignal().eq(self.aclk), ResetSignal().eq(~self.aresetn)]
        for path, member, inside in self.system.signature.flatten(self.system):
            outside = getattr(self, "_".join(map(str, path)))
            m.d.comb += outside.eq(inside) if member.flow is Out else inside.eq(outside)
        return m


def _ports(signature: wiring.Signature):
    """The signature's members under flat names."""
    for path, member in _leaves(signature.members, ()):
        yield "_".join(path), member


def _leaves(members, path):
    for name, member in members.items():
        if member.is_signature:
            yield from _leaves(member.signature.members, (*path, name))
        else:
            yield (*path, name), member
