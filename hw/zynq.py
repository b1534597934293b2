"""The system in the fabric of a Zynq: AXI4-Lite control, DMA from and to DDR, accelerator, interrupt."""

from __future__ import annotations

from amaranth.hdl import ClockDomain, ClockSignal, Module, ResetInserter, ResetSignal, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.dma import APERTURE_BYTES, port_width

from .accelerator import make_accelerator
from .axi import AxiLiteSignature, AxiSignature
from .axi_lite import AxiLiteBridge
from .dma import DmaEngine
from .engine_top import observed_ports
from .host_bus import HostWidener
from .host_sharing import HostArbiter, HostDecoder
from .technology import Technology

__all__ = ["ZynqSystem", "ZynqTop"]

_APERTURE_BITS = (APERTURE_BYTES - 1).bit_length()


class ZynqSystem(wiring.Component):
    """Everything in one clock domain.

    The AXI4-Lite aperture holds the engine's registers (`isa.Register`) at 0 and those of the DMA at `dma.DMA_BASE`;
    the accelerator's memories are reached by DMA alone, at the width of its beats where their words consist of such.

    Parameters
    ----------
    data_width
        Bits of the AXI4 port: 64 for a Zynq-7000's HP ports, 64 or 128 for an UltraScale+'s.
    observed
        Show the engine's writes to activation memory, for test benches.

    Members
    -------
    s_axi : In(AxiLiteSignature); control
    m_axi : Out(AxiSignature); DDR
    interrupt : Out; level
    write_valid, write_bank, write_granule, write_enable, write_data : Out, if `observed`; as those of `EngineTop`
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        *,
        data_width: int,
        technology: Technology | None = None,
        observed: bool = False,
    ) -> None:
        self.observed = observed
        self.config = config
        self.data_width = data_width
        self.technology = technology
        super().__init__(
            {
                "s_axi": In(AxiLiteSignature(address_width=_APERTURE_BITS)),
                "m_axi": Out(AxiSignature(address_width=32, data_width=data_width)),
                "interrupt": Out(1),
                **({k: v for k, v in observed_ports(config).items() if k != "busy"} if observed else {}),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.bridge = bridge = AxiLiteBridge(address_width=_APERTURE_BITS)
        m.submodules.decoder = decoder = HostDecoder()
        width = port_width(self.config, self.data_width)
        m.submodules.dma = dma = DmaEngine(data_width=self.data_width, port_width=width)
        m.submodules.arbiter = arbiter = HostArbiter(width=width)
        m.submodules.widener = widener = HostWidener(width=width)
        reset = Signal()
        accelerator = make_accelerator(self.config, self.technology, loads_while_running=True, host_width=width)
        m.submodules.accelerator = ResetInserter(reset)(accelerator)
        connect(m, flipped(self.s_axi), bridge.axi)
        connect(m, bridge.host, decoder.host)
        connect(m, decoder.low, widener.host)
        connect(m, widener.bus, arbiter.first)
        connect(m, decoder.high, dma.registers)
        connect(m, dma.host, arbiter.second)
        connect(m, arbiter.bus, accelerator.host)
        connect(m, dma.axi, flipped(self.m_axi))
        m.d.comb += [
            arbiter.pause.eq(dma.engine_reset),
            reset.eq(dma.engine_reset & arbiter.idle),
            dma.engine_reset_done.eq(reset),
            dma.engine_busy.eq(accelerator.busy),
            self.interrupt.eq(dma.interrupt),
        ]
        if not self.config.compact:
            m.d.comb += accelerator.from_dma.eq(arbiter.from_second)
        if self.observed:
            for name in ("valid", "bank", "granule", "enable", "data"):
                m.d.comb += getattr(self, f"write_{name}").eq(accelerator.trace[name])
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
