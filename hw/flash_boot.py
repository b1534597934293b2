"""Loading from the board's SPI flash after a reset: the image of `nnloom.arch.flash_image` goes onto the host bus.

flash -> FlashReader -> FlashBoot -> host bus of the accelerator <- host link, once that is done
"""

from __future__ import annotations

from math import ceil

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.flash_image import (
    BOOT_BASE,
    BOOT_MAGIC,
    FLASH_MAGIC,
    HEADER_WORDS,
    BootOutcome,
    BootRegister,
    largest_flash_words,
)
from nnloom.arch.isa import TABLE_ENTRIES, HostAddress, weight_stride, weight_word_columns
from nnloom.arch.memory_system import CONTENT_WORDS

from .frames import SerialCrc
from .host_bus import HostBus
from .technology import RAM_LATENCY, GenericTechnology, Technology

__all__ = ["BootBus", "BootRegisters", "FlashBoot", "FlashPins", "FlashReader"]

MOST_HZ = 20e6
"""Clock of the flash at most: so slow that the ways to the flash and back need no timing of their own."""
REST_SECONDS = 100e-6
"""Before each command, and up to twice as long: what makers of such flashes ask for at most after the command to wake
up. So whatever a reset has interrupted, or an FPGA's own command to power down, is over before the first one, too."""
WAKE, FAST_READ = 0xAB, 0x0B
ADDRESS_BITS, DUMMY_BITS = 24, 8

FlashPins = wiring.Signature({"cs_n": Out(1, init=1), "sck": Out(1), "mosi": Out(1), "miso": In(1)})
"""The flash's pins as seen from the FPGA. Commands go out with the falling edge of `sck` (SPI mode 0)."""


class FlashReader(wiring.Component):
    """Wakes an SPI flash up, then reads it from an address on (Fast Read, a bit at a time).

    The clock of the flash stands still while nobody takes what was read. Reset: the flash is deselected.

    Parameters
    ----------
    offset
        Byte address of the first octet.

    Members
    -------
    read : In; while high the flash is read; low ends the read, drops an octet that is offered, and the next one begins
        at `offset` again
    octets : Out(stream)
    pins : Out(FlashPins)
    """

    def __init__(self, *, clock_hz: float, offset: int) -> None:
        if not 0 <= offset < 1 << ADDRESS_BITS:
            raise ValueError(f"flash addresses are below 2 ** {ADDRESS_BITS}, not {offset:#x}")
        self.clock_hz = clock_hz
        self.offset = offset
        super().__init__({"read": In(1), "octets": Out(stream.Signature(8)), "pins": Out(FlashPins)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        half = max(1, ceil(self.clock_hz / (2 * MOST_HZ) - 1e-6))
        wake_up = Const(WAKE, 8)
        command = Cat(Const(0, DUMMY_BITS), Const(self.offset, ADDRESS_BITS), Const(FAST_READ, 8))
        rest = Signal(ceil(REST_SECONDS * self.clock_hz).bit_length() + 1)
        """Counts while the flash is deselected; its highest bit: for long enough."""
        timer, over = Signal(range(half)), Signal()
        """Half a period of the flash's clock."""
        waking, reading = Signal(init=1), Signal()
        bit = Signal(range(len(command)), reset_less=True)
        """Bits of command or octet that are left after this one."""
        cs_n, sck, octet = Signal(init=1), Signal(), Signal(8, reset_less=True)
        m.d.comb += [
            over.eq(timer == 0),
            self.pins.cs_n.eq(cs_n),
            self.pins.sck.eq(sck),
            self.pins.mosi.eq(Mux(waking, wake_up.bit_select(bit[:3], 1), command.bit_select(bit, 1)) & ~reading),
            self.octets.payload.eq(octet),
        ]
        m.d.sync += timer.eq(Mux(over, half - 1, timer - 1))
        with m.If(~cs_n):
            m.d.sync += rest.eq(0)
        with m.Elif(~rest[-1]):
            m.d.sync += rest.eq(rest + 1)
        # A read that ends for a cycle only has ended, too.
        ending, ended = Signal(), Signal()
        m.d.comb += ended.eq(ending | (~waking & ~self.read))
        m.d.sync += ending.eq(ended & ~cs_n)

        def wait_half(state: str) -> None:
            m.d.sync += timer.eq(half - 1)
            m.next = state

        with m.FSM():
            with m.State("REST"), m.If(rest[-1] & (waking | self.read)):
                m.d.sync += [cs_n.eq(0), reading.eq(0), bit.eq(Mux(waking, 7, len(command) - 1))]
                wait_half("LOW")
            with m.State("LOW"), m.If(over):
                m.d.sync += sck.eq(~ended)
                m.next = "HIGH"
                with m.If(ended):
                    m.next = "DESELECT"
            with m.State("HIGH"), m.If(over):
                # The flash has had all of a period for this bit.
                m.d.sync += [sck.eq(0), octet.eq(Cat(self.pins.miso, octet)), bit.eq(bit - 1)]
                m.next = "LOW"
                with m.If(bit == 0):
                    m.d.sync += [reading.eq(1), bit.eq(7)]
                    with m.If(waking):
                        m.next = "DESELECT"
                    with m.Elif(reading):
                        m.next = "OFFER"
            with m.State("OFFER"):
                m.d.comb += self.octets.valid.eq(~ended)
                with m.If(self.octets.ready | ended):
                    wait_half("LOW")
            with m.State("DESELECT"), m.If(over):
                m.d.sync += [cs_n.eq(1), waking.eq(0)]
                m.next = "REST"
        return m


def _bits(largest: int) -> int:
    return max(1, largest.bit_length())


class FlashBoot(wiring.Component):
    """Plays the image of a flash on the host bus, once after a reset.

    The image is read twice: the first time only to be checked, so that a wrong one changes nothing. Only then are
    its words written, and the CRC is looked at once more behind them.

    Parameters
    ----------
    offset
        Byte address of the image.

    Members
    -------
    pins : Out(FlashPins)
    host : Out(HostBus); writes only
    outcome : Out; a `BootOutcome`, LOADING until it is known; after that nothing happens until the next reset
    content : Out; one for each word of the content that the image names: `host` has it as its data now, which is no
        request; it counts only if the outcome is LOADED
    """

    def __init__(self, config: AcceleratorConfig, *, clock_hz: float, offset: int) -> None:
        self.config = config
        self.clock_hz = clock_hz
        self.offset = offset
        super().__init__(
            {
                "pins": Out(FlashPins),
                "host": Out(HostBus),
                "outcome": Out(range(max(BootOutcome) + 1)),
                "content": Out(CONTENT_WORDS),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        m.submodules.reader = reader = FlashReader(clock_hz=self.clock_hz, offset=self.offset)
        m.submodules.crc = crc = SerialCrc()
        connect(m, reader.pins, flipped(self.pins))
        octets, read, request = reader.octets, Signal(), self.host.request

        # Octets to words; each is kept until it was taken.
        word, count, take = Signal(32, reset_less=True), Signal(3), Signal()
        whole = count[2]
        m.d.comb += [
            reader.read.eq(read),
            octets.ready.eq(crc.idle & ~whole),
            crc.octet.eq(octets.payload),
            crc.valid.eq(octets.valid & octets.ready),
        ]
        with m.If(crc.valid):
            m.d.sync += [word.eq(Cat(word[8:], octets.payload)), count.eq(count + 1)]
        with m.If(take | ~read):
            m.d.sync += count.eq(0)

        most = HEADER_WORDS + largest_flash_words(config) + 1
        position, beyond = Signal(_bits(most) + 1), Signal()
        """Words that were taken; more than in any image: it has no end."""
        second = Signal()
        """The image is whole: its words are written."""
        # Windows differ in the highest bits; within one an address has no more bits than its memory needs.
        tables, program = 4 * TABLE_ENTRIES * config.tables, 4 * config.program_words
        sizes = (tables, program, config.weight_words * weight_stride(config))
        window = Signal(4, reset_less=True)
        place = Signal(_bits(max(sizes) // 4), reset_less=True)
        last = weight_word_columns(config) - 1
        run, column = (Signal(_bits(last), reset_less=True, name=name) for name in ("run", "column"))
        jump = Signal(_bits(weight_stride(config) // 4), reset_less=True)
        words, last_word = Signal(_bits(most), reset_less=True), Signal()
        """Words of the burst, or of the image that is only checked, from this one on."""
        m.d.comb += [
            read.eq(1),
            beyond.eq(position[-1]),
            last_word.eq(words == 1),
            request.payload.write.eq(1),
            request.payload.address.eq(Cat(Const(0, 2), place, Const(0, 26 - len(place)), window)),
            request.payload.data.eq(word),
        ]
        with m.If(take):
            m.d.sync += position.eq(position + 1)

        def finish(outcome: BootOutcome) -> None:
            m.d.sync += self.outcome.eq(outcome)
            m.next = "REST"

        def take_word(then: str) -> None:
            m.d.comb += take.eq(whole)
            with m.If(whole):
                m.next = then

        with m.FSM():
            with m.State("BEGIN"):
                m.d.comb += [read.eq(0), crc.start.eq(1)]
                m.d.sync += position.eq(0)
                m.next = "MAGIC"
            with m.State("MAGIC"):
                take_word("CONFIGURATION")
                with m.If(whole & (word != FLASH_MAGIC)):
                    finish(BootOutcome.EMPTY)
            with m.State("CONFIGURATION"):
                take_word("LENGTH")
                with m.If(whole & (word != config.hash)):
                    finish(BootOutcome.OTHER_CONFIGURATION)
            with m.State("LENGTH"):
                take_word("CONTENT_0")
                m.d.sync += words.eq(word)
            with m.State("CONTENT_0"):
                take_word("CONTENT_1")
                m.d.comb += self.content[0].eq(whole)
            with m.State("CONTENT_1"):
                take_word("CHECK")
                m.d.comb += self.content[1].eq(whole)
                with m.If(whole & second):
                    m.next = "ADDRESS"
            with m.State("CHECK"):
                take_word("CHECK")
                with m.If(whole):
                    m.d.sync += words.eq(words - 1)
                    with m.If(last_word):
                        m.next = "CRC"
                with m.If(beyond):
                    finish(BootOutcome.DAMAGED)
            with m.State("ADDRESS"):
                take_word("SHAPE")
                m.d.sync += [place.eq(word[2:28]), window.eq(word[28:])]
                with m.If(whole & word[28:].all()):
                    m.next = "CRC"
                with m.If(beyond):
                    finish(BootOutcome.DAMAGED)
            with m.State("SHAPE"):
                take_word("COUNT")
                m.d.sync += [run.eq(word[:16]), column.eq(word[:16]), jump.eq(word[16:])]
            with m.State("COUNT"):
                take_word("BURST")
                m.d.sync += words.eq(word)
            with m.State("BURST"):
                turn = column == 0
                m.d.comb += request.valid.eq(whole & ~beyond)
                with m.If(request.valid & request.ready):
                    m.d.comb += take.eq(1)
                    m.d.sync += [words.eq(words - 1), place.eq(place + Mux(turn, jump, 1))]
                    m.d.sync += column.eq(Mux(turn, run, column - 1))
                    with m.If(last_word):
                        m.next = "ADDRESS"
                with m.If(beyond):
                    finish(BootOutcome.DAMAGED)
            with m.State("CRC"), m.If(whole & crc.idle):
                m.d.sync += second.eq(1)
                m.next = "BEGIN"
                with m.If(~crc.match):
                    finish(BootOutcome.DAMAGED)
                with m.Elif(second):
                    finish(BootOutcome.LOADED)
            with m.State("REST"):
                m.d.comb += read.eq(0)
        return m


class BootRegisters(wiring.Component):
    """The registers of `nnloom.arch.flash_image`.

    Members
    -------
    host : In(HostBus); addresses from BOOT_BASE on
    outcome : In; as of `FlashBoot`
    content : In; the same: `host` has a word of the content as its data
    forget : In; the content is no longer what the memories hold
    """

    def __init__(self, technology: Technology) -> None:
        self.technology = technology
        super().__init__(
            {
                "host": In(HostBus),
                "outcome": In(range(max(BootOutcome) + 1)),
                "content": In(CONTENT_WORDS),
                "forget": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        request, response = self.host.request, self.host.response
        # Block RAM, of which every board has more to spare than of logic.
        m.submodules.words = words = self.technology.ram(width=32, depth=CONTENT_WORDS)
        known = Signal(CONTENT_WORDS)
        """Which words of the content have been written; others are zero."""
        register, selected = request.payload.address[2:4], Signal(2, reset_less=True)
        answering, age = Signal(), Signal(range(RAM_LATENCY + 1))
        taken = request.valid & request.ready
        # The content's registers are those with the higher address bit.
        number = Mux(self.content.any(), self.content[1], register[0])
        m.d.comb += [
            request.ready.eq(~answering),
            response.valid.eq(answering & (age == RAM_LATENCY)),
            words.w_en.eq(self.content.any() | (taken & request.payload.write & register[1])),
            words.w_addr.eq(number),
            words.w_data.eq(request.payload.data),
            words.r_addr.eq(selected[0]),
        ]
        m.d.sync += answering.eq(Mux(answering, ~(response.valid & response.ready), taken & ~request.payload.write))
        with m.If(~answering):
            m.d.sync += [selected.eq(register), age.eq(0)]
        with m.Elif(~response.valid):
            m.d.sync += age.eq(age + 1)
        with m.If(self.forget):
            m.d.sync += known.eq(0)
        with m.Elif(words.w_en):
            m.d.sync += known.bit_select(number, 1).eq(1)
        with m.If(known.bit_select(selected[0], 1)):
            m.d.comb += response.payload.data.eq(words.r_data)
        for constant, value in ((BootRegister.ID, BOOT_MAGIC), (BootRegister.STATUS, self.outcome)):
            with m.If(selected == constant >> 2):
                m.d.comb += response.payload.data.eq(value)
        return m


assert [register >> 2 for register in BootRegister] == [0, 1, 2, 3] and CONTENT_WORDS == 2


_WRITTEN = (HostAddress.PROGRAM, HostAddress.WEIGHTS, HostAddress.TABLES)
"""Windows that the content stands for."""


class BootBus(wiring.Component):
    """Between the link's host bus and the accelerator's: loads from the flash, then lets the link pass.

    The link's requests wait until the flash has been read. Its writes to program, weights and tables clear the content.

    Members
    -------
    link : In(HostBus)
    bus : Out(HostBus)
    flash : Out(FlashPins)
    busy : Out; the flash is being read: nothing else must touch the accelerator
    """

    def __init__(
        self, config: AcceleratorConfig, technology: Technology | None = None, *, clock_hz: float, offset: int
    ) -> None:
        self.boot = FlashBoot(config, clock_hz=clock_hz, offset=offset)
        self.technology: Technology = technology or GenericTechnology()
        super().__init__({"link": In(HostBus), "bus": Out(HostBus), "flash": Out(FlashPins), "busy": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.boot = boot = self.boot
        m.submodules.registers = registers = BootRegisters(self.technology)
        connect(m, boot.pins, flipped(self.flash))
        busy = Signal(init=1)
        m.d.sync += busy.eq(boot.outcome == BootOutcome.LOADING)
        m.d.comb += [
            self.busy.eq(busy),
            registers.outcome.eq(boot.outcome),
            registers.content.eq(boot.content),
        ]
        link, bus, own = self.link, self.bus, registers.host
        # The bits that no other address has all of.
        address = link.request.payload.address
        upper, from_registers = Signal(), Signal()
        m.d.comb += upper.eq(Cat(address[bit] for bit in range(32) if BOOT_BASE >> bit & 1).all())
        for target in (bus, own):
            m.d.comb += target.request.payload.eq(Mux(busy, boot.host.request.payload, link.request.payload))
        with m.If(busy):
            m.d.comb += [bus.request.valid.eq(boot.host.request.valid), boot.host.request.ready.eq(bus.request.ready)]
        with m.Elif(upper):
            m.d.comb += [own.request.valid.eq(link.request.valid), link.request.ready.eq(own.request.ready)]
        with m.Else():
            m.d.comb += [bus.request.valid.eq(link.request.valid), link.request.ready.eq(bus.request.ready)]
        taken = link.request.valid & link.request.ready
        with m.If(taken & ~link.request.payload.write):
            m.d.sync += from_registers.eq(upper)
        with m.If(from_registers):
            m.d.comb += [
                link.response.payload.eq(own.response.payload),
                link.response.valid.eq(own.response.valid),
                own.response.ready.eq(link.response.ready),
            ]
        with m.Else():
            m.d.comb += [
                link.response.payload.eq(bus.response.payload),
                link.response.valid.eq(bus.response.valid),
                bus.response.ready.eq(link.response.ready),
            ]
        written = Cat(address[28:] == (window >> 28) for window in _WRITTEN).any()
        # Whoever does not know of the flash does not tell what it has written instead.
        failed = (boot.outcome != BootOutcome.LOADING) & (boot.outcome != BootOutcome.LOADED) & busy
        m.d.comb += registers.forget.eq((taken & link.request.payload.write & written) | failed)
        return m
