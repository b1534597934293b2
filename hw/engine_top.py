"""The engine as a module of its own, for simulators and other people's designs: plain ports, no records."""

from __future__ import annotations

from amaranth.hdl import ClockSignal, Instance, Module, ResetSignal, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch.config import AcceleratorConfig

from .accelerator import make_accelerator
from .axi import AxiLiteSignature
from .axi_lite import AxiLiteBridge
from .technology import Technology
from .wishbone import WishboneBridge, WishboneSignature

__all__ = ["ENGINE", "AxiLiteTop", "EngineTop", "WishboneTop", "engine_ports", "observed_ports"]

ENGINE = "nnloom_engine"
"""Name of the engine's module."""

_HOST_PORTS = {
    "req_valid": In(1),
    "req_ready": Out(1),
    "req_write": In(1),
    "req_address": In(32),
    "req_data": In(32),
    "rsp_valid": Out(1),
    "rsp_ready": In(1),
    "rsp_data": Out(32),
}


def observed_ports(config: AcceleratorConfig) -> dict[str, wiring.Member]:
    """The ports that show what the engine does: its writes to activation memory."""
    return {
        "busy": Out(1),
        "write_valid": Out(1),
        "write_bank": Out(2),
        "write_granule": Out(16),
        "write_enable": Out(2),
        "write_data": Out(8 * config.lanes),
    }


def engine_ports(config: AcceleratorConfig) -> dict[str, wiring.Member]:
    """The engine's ports besides clk and rst (synchronous, active high)."""
    return _HOST_PORTS | observed_ports(config)


class EngineTop(wiring.Component):
    """The engine with its host bus as plain ports.

    Members
    -------
    req_valid, req_ready, req_write, req_address, req_data : requests of the host bus, a transfer where valid and ready
        are both high; `req_data` counts for writes
    rsp_valid, rsp_ready, rsp_data : answers to reads, in their order; writes have none
    busy : Out; a program runs
    write_valid, write_bank, write_granule, write_enable, write_data : Out; every write of the engine to the activation
        memory, for test benches: `write_enable` tells which of the granules `write_granule` and the next one
    """

    def __init__(self, config: AcceleratorConfig, technology: Technology | None = None) -> None:
        self.config = config
        self.technology = technology
        super().__init__(engine_ports(config))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.accelerator = accelerator = make_accelerator(self.config, self.technology)
        request, response = accelerator.host.request, accelerator.host.response
        m.d.comb += [
            request.valid.eq(self.req_valid),
            request.payload.write.eq(self.req_write),
            request.payload.address.eq(self.req_address),
            request.payload.data.eq(self.req_data),
            self.req_ready.eq(request.ready),
            self.rsp_valid.eq(response.valid),
            self.rsp_data.eq(response.payload.data),
            response.ready.eq(self.rsp_ready),
            self.busy.eq(accelerator.busy),
            *(getattr(self, f"write_{n}").eq(accelerator.trace[n]) for n in ("valid", "bank", "granule", "enable")),
            self.write_data.eq(accelerator.trace.data),
        ]
        return m


class _Wrapper(wiring.Component):
    """A bus in front of the engine, which is instanced by the name of its module: that is another file.

    Members
    -------
    the bus's, behind `prefix`; busy, write_... : as those of `EngineTop`
    """

    prefix: str

    def __init__(self, config: AcceleratorConfig, signature: wiring.Signature) -> None:
        self.config = config
        self.bus_signature = signature
        bus = {f"{self.prefix}_{name}": member.flip() for name, member in signature.members.items()}
        super().__init__(bus | observed_ports(config))

    def put_engine(self, m: Module, bus: wiring.FlippedInterface, host: wiring.PureInterface) -> None:
        """Connect the ports with `bus`, and an engine with `host`, both a bridge's."""
        for name, member in self.bus_signature.members.items():
            outside, inside = getattr(self, f"{self.prefix}_{name}"), getattr(bus, name)
            m.d.comb += inside.eq(outside) if member.flow is Out else outside.eq(inside)
        request, response = host.request, host.response
        answer = Signal(32, name="rsp_data")
        m.d.comb += response.payload.data.eq(answer)
        m.submodules.engine = Instance(
            ENGINE,
            ("i", "clk", ClockSignal()),
            ("i", "rst", ResetSignal()),
            ("i", "req_valid", request.valid),
            ("o", "req_ready", request.ready),
            ("i", "req_write", request.payload.write),
            ("i", "req_address", request.payload.address),
            ("i", "req_data", request.payload.data),
            ("o", "rsp_valid", response.valid),
            ("i", "rsp_ready", response.ready),
            ("o", "rsp_data", answer),
            *(("o", name, getattr(self, name)) for name in observed_ports(self.config)),
        )


class AxiLiteTop(_Wrapper):
    """The engine behind AXI4-Lite: s_axi_awaddr and so on; `nnloom.hw.axi_lite` says how accesses are answered."""

    prefix = "s_axi"

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(config, AxiLiteSignature(address_width=32))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.bridge = bridge = AxiLiteBridge(address_width=32)
        self.put_engine(m, bridge.axi, bridge.host)
        return m


class WishboneTop(_Wrapper):
    """The engine behind Wishbone: wb_cyc and so on; `nnloom.hw.wishbone` says how cycles are answered."""

    prefix = "wb"

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(config, WishboneSignature(address_width=30))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.bridge = bridge = WishboneBridge(address_width=30)
        self.put_engine(m, bridge.bus, bridge.host)
        return m
