"""An SPI flash at its pins, as its data sheet describes it, that complains of what the data sheet forbids.

`FlashModel.step` takes what the pins are from a moment on, and gives what the flash drives. It knows the commands that
reading needs: Read Data, Fast Read, JEDEC ID, Power-down and Release Power-down.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["W25Q128JV", "FlashCommand", "FlashModel", "FlashTiming", "FlashViolation"]


class FlashViolation(Exception):
    """The flash is used in a way that its data sheet does not allow."""


class FlashCommand(enum.IntEnum):
    """Commands that the model knows."""

    READ = 0x03
    FAST_READ = 0x0B
    JEDEC_ID = 0x9F
    RELEASE_POWER_DOWN = 0xAB
    POWER_DOWN = 0xB9


@dataclass(frozen=True, kw_only=True)
class FlashTiming:
    """Times in nanoseconds, and what else differs between flashes."""

    jedec_id: tuple[int, int, int]
    size: int
    """bytes; addresses wrap there"""
    period: float
    """least time from a rising edge of the clock to the next"""
    read_period: float
    """the same for READ, which is slower"""
    pulse: float
    """least time that the clock is high, and low"""
    select_setup: float
    """from the selection to the first rising edge"""
    select_hold: float
    """from the last rising edge to the deselection"""
    deselect: float
    """least time between two selections"""
    data_setup: float
    data_hold: float
    output: float
    """from a falling edge to the bit that the flash then drives"""
    release: float
    """from RELEASE_POWER_DOWN to the next command"""
    power_down: float
    """from POWER_DOWN to the next command"""


W25Q128JV = FlashTiming(
    jedec_id=(0xEF, 0x40, 0x18),
    size=1 << 24,
    period=1e3 / 133,
    read_period=1e3 / 50,
    pulse=0.45 * 1e3 / 133,
    select_setup=5,
    select_hold=3,
    deselect=50,
    data_setup=1,
    data_hold=2,
    output=6,
    release=3000,
    power_down=3000,
)
"""Winbond W25Q128JV."""

_ADDRESSED = {FlashCommand.READ: 0, FlashCommand.FAST_READ: 8}
"""Commands with an address, and their dummy bits."""
_NEVER = -1e18


class FlashModel:
    """A flash with some content.

    Parameters
    ----------
    content
        Its first bytes; those behind are 0xFF.
    powered_down
        It begins in the power-down state, in which an iCE40 leaves it.

    Attributes
    ----------
    commands : list of the commands that were begun
    aborted : int
        Commands that a deselection ended before their last bit: the flash ignores them.
    """

    def __init__(self, content: bytes, timing: FlashTiming = W25Q128JV, *, powered_down: bool = False) -> None:
        self.content = bytearray(content)
        self.timing = timing
        self.powered_down = powered_down
        self.commands: list[FlashCommand] = []
        self.aborted = 0
        self._pins = (1, 0, 0)
        self._ready = _NEVER
        self._deselected = self._selected = _NEVER
        self._rose = self._fell = self._mosi_changed = _NEVER
        self._bits = 0
        self._command: FlashCommand | None = None
        self._value = 0
        self._address = 0
        self._output: int | None = None
        self._next_output: tuple[float, int] | None = None

    def step(self, time: float, *, cs_n: int, sck: int, mosi: int) -> int | None:
        """The pins have these values from `time` (ns, ascending) on. Returns what the flash drives: None if nothing.

        Raises
        ------
        FlashViolation
        """
        was_cs_n, was_sck, was_mosi = self._pins
        self._pins = (cs_n, sck, mosi)
        if mosi != was_mosi:
            if not cs_n and time - self._rose < self.timing.data_hold and self._takes_data:
                self._complain("data changes right after the edge that takes them", time)
            self._mosi_changed = time
        if was_cs_n and not cs_n:
            self._select(time, sck)
        elif cs_n and not was_cs_n:
            self._deselect(time)
        elif not cs_n and sck != was_sck:
            (self._rise if sck else self._fall)(time)
        return self.output(time)

    def output(self, time: float) -> int | None:
        """What the flash drives at a time not before the last step."""
        if self._next_output is not None and time >= self._next_output[0]:
            self._output, self._next_output = self._next_output[1], None
        return None if self._pins[0] else self._output

    @property
    def _takes_data(self) -> bool:
        """Bits of a command or an address are expected."""
        if self._command in _ADDRESSED:
            return self._bits <= 32
        return self._bits <= 8

    def _complain(self, text: str, time: float) -> None:
        raise FlashViolation(f"flash at {time:.1f} ns: {text}")

    def _select(self, time: float, sck: int) -> None:
        if sck:
            self._complain("selected while the clock is high, which is not SPI mode 0", time)
        if time - self._deselected < self.timing.deselect:
            self._complain(f"deselected for {time - self._deselected:.1f} ns only", time)
        self._selected, self._bits, self._command, self._value = time, 0, None, 0
        self._output = self._next_output = None

    def _deselect(self, time: float) -> None:
        if self._bits and time - self._rose < self.timing.select_hold:
            self._complain("deselected right after an edge of the clock", time)
        self._deselected = time
        if self._bits == 0:
            return
        if self._bits < 8 or (self._command in _ADDRESSED and self._bits < 32):
            self.aborted += 1
        if self._command is FlashCommand.RELEASE_POWER_DOWN:
            self.powered_down, self._ready = False, time + self.timing.release
        if self._command is FlashCommand.POWER_DOWN:
            if self._bits != 8:
                self._complain("bits behind POWER_DOWN", time)
            self.powered_down, self._ready = True, time + self.timing.power_down

    def _rise(self, time: float) -> None:
        timing = self.timing
        period = timing.read_period if self._command is FlashCommand.READ else timing.period
        if self._bits == 0 and time - self._selected < timing.select_setup:
            self._complain("the clock rises right after the selection", time)
        if self._bits and (time - self._rose < period or time - self._fell < timing.pulse):
            self._complain(f"the clock is too fast: {time - self._rose:.1f} ns", time)
        self._bits += 1
        if self._takes_data and time - self._mosi_changed < timing.data_setup:
            self._complain("data changes with the edge that takes them", time)
        self._rose = time
        self._value = self._value << 1 | self._pins[2]
        if self._bits == 8:
            self._begin(time)
        elif self._command in _ADDRESSED and self._bits == 32:
            self._address = self._value & 0xFF_FFFF

    def _begin(self, time: float) -> None:
        if self._value not in set(FlashCommand):
            self._complain(f"command {self._value:#04x}, which this model does not know", time)
        command = FlashCommand(self._value)
        if self.powered_down and command is not FlashCommand.RELEASE_POWER_DOWN:
            self._complain(f"{command.name} in the power-down state", time)
        if time < self._ready:
            self._complain(f"{command.name} before the flash is awake or asleep", time)
        self._command = command
        self.commands.append(command)

    def _fall(self, time: float) -> None:
        if time - self._rose < self.timing.pulse:
            self._complain("the clock is high too shortly", time)
        self._fell = time
        first = 8
        if self._command in _ADDRESSED:
            first = 32 + _ADDRESSED[self._command]
        if self._bits < first or self._command in (None, FlashCommand.RELEASE_POWER_DOWN, FlashCommand.POWER_DOWN):
            return
        octet, bit = divmod(self._bits - first, 8)
        value = self.timing.jedec_id[octet % 3] if self._command is FlashCommand.JEDEC_ID else self._byte(octet)
        self._next_output = (time + self.timing.output, value >> (7 - bit) & 1)

    def _byte(self, index: int) -> int:
        place = (self._address + index) % self.timing.size
        return self.content[place] if place < len(self.content) else 0xFF
