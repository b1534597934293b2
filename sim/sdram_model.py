"""An SDR SDRAM at its pins, as its data sheet describes it, that complains of everything that the data sheet forbids.

One class for all simulators: `SdramModel.step` takes what the chip samples at a rising clock edge and gives what it
drives until the next one. It knows times in nanoseconds only, and nothing of any controller.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from nnloom.hw.sdram_pins import PRECHARGE_ALL, SdramCommand
from nnloom.hw.sdram_timing import SdramChip

__all__ = ["SdramModel", "SdramPinValues", "SdramViolation"]

INITIAL_REFRESHES = 8
"""AUTO REFRESH commands before the first row is opened."""
MOST_POSTPONED = 8
_NEVER = -(1 << 60)


class SdramViolation(Exception):
    """The chip is used in a way that its data sheet does not allow."""


@dataclass(frozen=True)
class SdramPinValues:
    """The pins of `nnloom.hw.sdram_pins.SdramPins` that the chip samples."""

    cke: int
    cs_n: int
    ras_n: int
    cas_n: int
    we_n: int
    ba: int
    a: int
    dqm: int
    dq: int
    dq_oe: int


@dataclass
class _Bank:
    row: int | None = None
    activated: int = _NEVER
    precharged: int = _NEVER
    written: int = _NEVER
    """Edge of the last word that was written."""


@dataclass
class _Write:
    """Words that are still to be sampled."""

    bank: int
    addresses: deque[int]


@dataclass(frozen=True)
class _Word:
    """A word that is sampled at an edge to come."""

    edge: int
    bank: int
    address: int


class SdramModel:
    """A chip and its contents.

    Parameters
    ----------
    chip
        Its data sheet.
    clock_hz
        Of its clock.
    strict_refresh
        Also complain if more than 8 refreshes are postponed; the data sheet only says how long a row may wait.

    Attributes
    ----------
    memory : bytearray; row after row, a row's banks one after the other: byte addresses of `SdramController`
    edge : clock edges seen
    words : data words read and written, for bandwidth
    """

    def __init__(self, chip: SdramChip, clock_hz: float, *, strict_refresh: bool = True) -> None:
        self.chip = chip
        self.period = 1e9 / clock_hz
        self.clock_hz = clock_hz
        self.strict_refresh = strict_refresh
        self.memory = bytearray(chip.size)
        self.edge = -1
        self.words = 0
        self._bytes = chip.data_bits // 8
        self._all_bytes = (1 << self._bytes) - 1
        self._banks = [_Bank() for _ in range(chip.banks)]
        self._activated = self._refreshed = self._mode_loaded = _NEVER
        self._cas_latency: int | None = None
        self._burst_length = 0
        self._write: _Write | None = None
        self._reads: deque[_Word] = deque()
        self._driving: int | None = None
        self._driven_before = False
        self._dqm_before = 0
        """DQM has a latency of two edges when words are read."""
        self._powered_up = self._initialised = False
        self._initialised_at = 0
        self._initial_refreshes = self._refreshes = self._next_row = 0
        self._row_refreshed = [0] * chip.refresh_commands
        self._refresh_cycles = chip.refresh_ms * 1e6 / self.period

    def _fail(self, rule: str) -> None:
        raise SdramViolation(f"edge {self.edge} ({self.edge * self.period / 1000:.3f} us): {rule}")

    def _require(self, name: str, since: int, ns: float) -> None:
        passed = (self.edge - since) * self.period
        if passed < ns - 1e-6:
            self._fail(f"{name}: {passed:.1f} ns instead of {ns:g} ns")

    def step(self, pins: SdramPinValues) -> int | None:
        """Clock the chip once.

        Returns
        -------
        What is on the data pins at the next edge; None: the chip does not drive them.

        Raises
        ------
        SdramViolation
            If the data sheet does not allow it.
        """
        self.edge += 1
        if not pins.cke:
            self._fail("CKE: power-down and self refresh are not modelled")
        if pins.dq_oe and self._driving is not None:
            self._fail("bus: the chip and the controller drive it")
        if pins.dq_oe and self._driven_before:
            self._fail("bus: no cycle between the chip's data and the controller's")
        self._driven_before = self._driving is not None
        code = pins.ras_n << 2 | pins.cas_n << 1 | pins.we_n
        if not pins.cs_n and code != SdramCommand.NOP:
            self._execute(SdramCommand(code), pins)
        if self._write is not None:
            self._sample(self._write, pins)
        self._check_refresh()
        self._driving = self._drive()
        self._dqm_before = pins.dqm
        if pins.dq_oe and self._driving is not None:
            self._fail("bus: no cycle between the controller's data and the chip's")
        return self._driving

    def _execute(self, command: SdramCommand, pins: SdramPinValues) -> None:
        if not self._powered_up:
            self._require("power-up", 0, self.chip.power_up_us * 1000)
            if command != SdramCommand.PRECHARGE or not pins.a >> PRECHARGE_ALL & 1:
                self._fail(f"power-up: {command.name} before PRECHARGE ALL")
            self._powered_up = True
        self._require(f"tRFC before {command.name}", self._refreshed, self.chip.t_rfc)
        if self.edge - self._mode_loaded < self.chip.t_mrd_cycles:
            self._fail(f"tMRD: {command.name} {self.edge - self._mode_loaded} cycles after LOAD MODE")
        if command == SdramCommand.ACTIVE:
            self._activate(pins)
        elif command in (SdramCommand.READ, SdramCommand.WRITE):
            self._column(command, pins)
        elif command == SdramCommand.PRECHARGE:
            everything = pins.a >> PRECHARGE_ALL & 1
            for bank in range(self.chip.banks) if everything else (pins.ba,):
                self._precharge(bank)
        elif command == SdramCommand.REFRESH:
            self._refresh()
        elif command == SdramCommand.LOAD_MODE:
            self._load_mode(pins)
        else:
            self._fail(f"{command.name} is not modelled")

    def _activate(self, pins: SdramPinValues) -> None:
        chip, bank = self.chip, self._banks[pins.ba]
        if self._cas_latency is None or self._initial_refreshes < INITIAL_REFRESHES:
            self._fail(f"initialisation: ACTIVE after {self._initial_refreshes} refreshes, mode {self._cas_latency}")
        if bank.row is not None:
            self._fail(f"ACTIVE: row {bank.row} of bank {pins.ba} is open")
        if pins.a >= chip.rows:
            self._fail(f"ACTIVE: there is no row {pins.a}")
        self._require("tRP", bank.precharged, chip.t_rp)
        self._require("tRC", bank.activated, chip.t_rc)
        self._require("tRRD", self._activated, chip.t_rrd)
        if not self._initialised:
            self._initialised, self._initialised_at = True, self.edge
            self._row_refreshed = [self.edge] * chip.refresh_commands
        bank.row = pins.a
        bank.activated = self._activated = self.edge

    def _column(self, command: SdramCommand, pins: SdramPinValues) -> None:
        chip, bank = self.chip, self._banks[pins.ba]
        if bank.row is None:
            self._fail(f"{command.name}: no row of bank {pins.ba} is open")
        self._require("tRCD", bank.activated, chip.t_rcd)
        self._check_open_time(bank)
        if pins.a >> PRECHARGE_ALL & 1:
            self._fail(f"{command.name}: auto precharge is not modelled")
        if pins.a >= chip.columns:
            self._fail(f"{command.name}: there is no column {pins.a}")
        assert bank.row is not None and self._cas_latency is not None
        length = self._burst_length
        first = pins.a - pins.a % length
        base = (bank.row * chip.banks + pins.ba) * chip.columns
        addresses = [base + first + (pins.a + i) % length for i in range(length)]
        # What is left of the burst before is cut off.
        self._cut_reads()
        self._write = None
        if command == SdramCommand.WRITE:
            self._write = _Write(pins.ba, deque(addresses))
        else:
            start = self.edge + self._cas_latency
            self._reads.extend(_Word(start + i, pins.ba, address) for i, address in enumerate(addresses))

    def _cut_reads(self) -> None:
        """The burst being read ends: the words of the latency still come."""
        assert self._cas_latency is not None
        while self._reads and self._reads[-1].edge >= self.edge + self._cas_latency:
            self._reads.pop()

    def _precharge(self, index: int) -> None:
        bank = self._banks[index]
        if bank.row is None:
            return
        self._require("tRAS", bank.activated, self.chip.t_ras)
        self._require("tWR", bank.written, self.chip.t_wr)
        self._check_open_time(bank)
        if self._write is not None and self._write.bank == index:
            self._fail(f"PRECHARGE: bank {index} is being written")
        if self._reads and self._reads[-1].bank == index:
            self._cut_reads()
        bank.row = None
        bank.precharged = self.edge

    def _check_open_time(self, bank: _Bank) -> None:
        passed = (self.edge - bank.activated) * self.period
        if passed > self.chip.t_ras_max:
            self._fail(f"tRAS(max): a row was open for {passed:.0f} ns, at most {self.chip.t_ras_max:g} ns")

    def _require_rest(self, name: str) -> None:
        for index, bank in enumerate(self._banks):
            if bank.row is not None:
                self._fail(f"{name}: a row of bank {index} is open")
            self._require(f"tRP before {name}", bank.precharged, self.chip.t_rp)

    def _refresh(self) -> None:
        self._require_rest("REFRESH")
        self._refreshed = self.edge
        if self._initialised:
            self._row_refreshed[self._next_row] = self.edge
            self._next_row = (self._next_row + 1) % self.chip.refresh_commands
            self._refreshes += 1
        else:
            self._initial_refreshes += 1

    def _check_refresh(self) -> None:
        if not self._initialised:
            return
        # Rows are refreshed in order, so the next one has waited longest.
        if self.edge - self._row_refreshed[self._next_row] > self._refresh_cycles:
            self._fail(f"refresh: a row was not refreshed for {self.chip.refresh_ms:g} ms")
        interval = self._refresh_cycles / self.chip.refresh_commands
        due = (self.edge - self._initialised_at) / interval
        if self.strict_refresh and due - self._refreshes > MOST_POSTPONED + 1:
            self._fail(f"refresh: {due - self._refreshes:.1f} refreshes are owed")

    def _load_mode(self, pins: SdramPinValues) -> None:
        self._require_rest("LOAD MODE")
        if self._reads or self._write:
            self._fail("LOAD MODE: a burst is under way")
        length, kind, latency, rest = pins.a & 7, pins.a >> 3 & 1, pins.a >> 4 & 7, pins.a >> 7
        if pins.ba or rest or kind or length > 3:
            self._fail(f"LOAD MODE: mode {pins.a:#x} of register {pins.ba} is not modelled")
        fastest = dict(self.chip.cas_latencies).get(latency)
        if fastest is None or self.clock_hz > fastest:
            self._fail(f"LOAD MODE: CAS latency {latency} at {self.clock_hz / 1e6:g} MHz")
        self._burst_length, self._cas_latency = 1 << length, latency
        self._mode_loaded = self.edge

    def _sample(self, write: _Write, pins: SdramPinValues) -> None:
        """A word of a WRITE."""
        if pins.dqm != self._all_bytes and not pins.dq_oe:
            self._fail("WRITE: nobody drives the data pins")
        self._banks[write.bank].written = self.edge
        self.words += 1
        offset = write.addresses.popleft() * self._bytes
        for i in range(self._bytes):
            if not pins.dqm >> i & 1:
                self.memory[offset + i] = pins.dq >> 8 * i & 255
        if not write.addresses:
            self._write = None

    def _drive(self) -> int | None:
        if not self._reads or self._reads[0].edge != self.edge + 1:
            return None
        word = self._reads.popleft()
        mask = self._dqm_before
        if mask == self._all_bytes:
            return None
        if mask:
            self._fail("READ: masking some bytes is not modelled")
        self.words += 1
        offset = word.address * self._bytes
        return int.from_bytes(self.memory[offset : offset + self._bytes], "little")
