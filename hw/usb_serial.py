"""The host link as a USB device at full speed: CDC-ACM, made of LUNA's gateware, on plain pins of the FPGA.

Hosts have the driver: the device is a serial port (`/dev/ttyACM0`), whose bit rate does not matter. LUNA
(`pip install 'nnloom[usb]'`) brings the transceiver, the packets, enumeration and endpoints; what is here is the class
of device, the streams' way to the system's clock, and the packets' ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from amaranth.hdl import (
    ClockDomain,
    ClockSignal,
    Elaboratable,
    Instance,
    IOPort,
    Module,
    ResetInserter,
    Signal,
)
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import ResetSynchronizer
from amaranth.lib.fifo import AsyncFIFO
from amaranth.lib.wiring import In, Out, connect, flipped
from luna.gateware.usb.devices.acm import ACMRequestHandlers, USBSerialDevice
from luna.gateware.usb.usb2.device import USBDevice
from luna.gateware.usb.usb2.endpoints.stream import USBStreamInEndpoint, USBStreamOutEndpoint
from luna.gateware.usb.usb2.request import StallOnlyRequestHandler
from usb_protocol.types import USBRequestType

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.usb import MANUFACTURER, PORTS, PRODUCT, PRODUCT_ID, VENDOR_ID

from .ecp5 import UsbPll
from .soc import Line, LinkedSystem, SerialTop
from .technology import Technology

__all__ = ["PACKET_BYTES", "UsbPads", "UsbSerial", "UsbSystem", "UsbTop"]

PACKET_BYTES = 64
"""Largest packet of a bulk endpoint at full speed."""
_FRAME_END = 0
"""Each frame of `nnloom.arch.link` ends with this byte, and no other byte of it has this value."""
_FIFO_DEPTH = 8
"""Bytes between the clock domains: as many as they need to hand over one a cycle of USB's."""


class UsbPads(wiring.Signature):
    """A full-speed device's pads as the device sees them; both lines are driven or neither.

    Members
    -------
    dp_i, dn_i : In; the lines
    dp_o, dn_o : Out; what is driven while `oe`
    oe : Out
    pullup : Out; of D+, by which the host sees the device
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "dp_i": In(1, init=1),
                "dn_i": In(1),
                "dp_o": Out(1, init=1),
                "dn_o": Out(1),
                "oe": Out(1),
                "pullup": Out(1),
            }
        )


@dataclass
class _Pin:
    """A pin as LUNA's transceiver wants it."""

    name: str
    i: Signal = field(init=False)
    o: Signal = field(init=False)
    oe: Signal = field(init=False)

    def __post_init__(self) -> None:
        for part in ("i", "o", "oe"):
            setattr(self, part, Signal(name=f"{self.name}_{part}"))


@dataclass
class _Pins:
    """The pins of a bus; LUNA knows by their names that it needs its own transceiver."""

    d_p: _Pin = field(default_factory=lambda: _Pin("d_p"))
    d_n: _Pin = field(default_factory=lambda: _Pin("d_n"))
    pullup: _Pin = field(default_factory=lambda: _Pin("pullup"))


def _while_configured(endpoint: Elaboratable, inside: Module) -> Elaboratable:
    """An endpoint that begins anew with each configuration by the host, as USB has it: LUNA's go on counting."""
    return ResetInserter({"usb": endpoint.interface.active_config == 0})(inside)


# Classes of their own: LUNA names endpoints after them, or else after their addresses in memory.
class _Notifications(USBStreamInEndpoint):
    """Has nothing to say."""


class _FromHost(USBStreamOutEndpoint):
    def elaborate(self, platform: object) -> Elaboratable:
        return _while_configured(self, super().elaborate(platform))


class _ToHost(USBStreamInEndpoint):
    def elaborate(self, platform: object) -> Elaboratable:
        return _while_configured(self, super().elaborate(platform))


class UsbSerial(wiring.Component):
    """Bytes from and to a USB host.

    A packet to the host ends with each frame, so that none waits for the next one. What the host sends waits on its
    side until it is taken; what goes to a host that has not configured the device is lost.

    Clock domains: `sync` of the streams, `usb_io` of 48 MHz, and `usb` of 12 MHz whose edges are edges of `usb_io`.

    Members
    -------
    receive : Out(stream of bytes), transmit : In(stream of bytes)
    pads : Out(UsbPads)
    """

    def __init__(self) -> None:
        super().__init__(
            {"receive": Out(stream.Signature(8)), "transmit": In(stream.Signature(8)), "pads": Out(UsbPads())}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        pins = _Pins()
        kind = USBSerialDevice(
            bus=None,
            idVendor=VENDOR_ID,
            idProduct=PRODUCT_ID,
            manufacturer_string=MANUFACTURER,
            product_string=PRODUCT,
            serial_number=0,  # none: every board has the same bitstream
            max_packet_size=PACKET_BYTES,
        )
        kind._MustUse__silence = True  # only its descriptors are
        m.submodules.device = device = USBDevice(bus=pins, handle_clocking=False)
        control = device.add_standard_control_endpoint(kind.create_descriptors(), avoid_blockram=False)
        control.add_request_handler(ACMRequestHandlers())
        control.add_request_handler(
            StallOnlyRequestHandler(
                lambda setup: (setup.type == USBRequestType.VENDOR) | (setup.type == USBRequestType.RESERVED)
            )
        )
        data = {"endpoint_number": kind._DATA_ENDPOINT_NUMBER, "max_packet_size": PACKET_BYTES}
        from_host, to_host = _FromHost(**data), _ToHost(**data)
        status = _Notifications(endpoint_number=kind._STATUS_ENDPOINT_NUMBER, max_packet_size=PACKET_BYTES)
        for endpoint in (status, from_host, to_host):
            device.add_endpoint(endpoint)

        m.submodules.receive_fifo = receive = AsyncFIFO(width=8, depth=_FIFO_DEPTH, w_domain="usb", r_domain="sync")
        m.submodules.transmit_fifo = transmit = AsyncFIFO(width=8, depth=_FIFO_DEPTH, w_domain="sync", r_domain="usb")
        connect(m, receive.r_stream, flipped(self.receive))
        connect(m, flipped(self.transmit), transmit.w_stream)
        incoming, outgoing = from_host.stream, to_host.stream
        m.d.comb += [
            device.connect.eq(1),
            receive.w_stream.payload.eq(incoming.payload),
            receive.w_stream.valid.eq(incoming.valid),
            incoming.ready.eq(receive.w_stream.ready),
            outgoing.payload.eq(transmit.r_stream.payload),
            outgoing.valid.eq(transmit.r_stream.valid),
            outgoing.last.eq(transmit.r_stream.payload == _FRAME_END),
            transmit.r_stream.ready.eq(outgoing.ready),
            pins.d_p.i.eq(self.pads.dp_i),
            pins.d_n.i.eq(self.pads.dn_i),
            self.pads.dp_o.eq(pins.d_p.o),
            self.pads.dn_o.eq(pins.d_n.o),
            self.pads.oe.eq(pins.d_p.oe),
            self.pads.pullup.eq(pins.pullup.o),
        ]
        return m


class UsbSystem(LinkedSystem):
    """`SerialSystem` with a USB device in place of the UART; clock domains as those of `UsbSerial`.

    Members
    -------
    pads : Out(UsbPads)
    busy : Out; a program runs
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        *,
        clock_hz: float,
        technology: Technology | None = None,
        flash_offset: int | None = None,
    ) -> None:
        line = {"pads": Out(UsbPads())}
        super().__init__(config, clock_hz=clock_hz, technology=technology, line=line, flash_offset=flash_offset)

    def add_line(self, m: Module) -> Line:
        """The USB device."""
        m.submodules.usb = usb = UsbSerial()
        connect(m, usb.pads, flipped(self.pads))
        return Line(receive=usb.receive, transmit=usb.transmit)


class UsbTop(SerialTop):
    """`SerialTop` of an ECP5 with the pads of a USB socket.

    Their ports are not among its members: `nnloom.arch.usb.PORTS`. A second PLL makes USB's clocks of the crystal's.
    """

    system: UsbSystem

    @staticmethod
    def line_ports() -> dict[str, wiring.Member]:
        """None that are members."""
        return {}

    def add_line(self, m: Module) -> Sequence[Any]:
        """The pads, and USB's clocks."""
        m.submodules.usb_pll = pll = UsbPll()
        statements = [pll.clk_in.eq(getattr(self, self.clock_port))]
        for name, clock in (("usb_io", pll.clk_48), ("usb", pll.clk_12)):
            m.domains += ClockDomain(name)
            statements.append(ClockSignal(name).eq(clock))
            m.submodules[f"{name}_reset"] = ResetSynchronizer(~pll.locked, domain=name)
        pads = self.system.pads
        pins = {PORTS[0]: (pads.dp_o, pads.dp_i), PORTS[1]: (pads.dn_o, pads.dn_i)}
        for port, (output, incoming) in pins.items():
            m.submodules[f"{port}_pad"] = Instance(
                "BB", i_I=output, i_T=~pads.oe, o_O=incoming, io_B=IOPort(1, name=port)
            )
        m.submodules.usb_pullup_pad = Instance("OB", i_I=pads.pullup, o_O=IOPort(1, name=PORTS[2]))
        return statements
