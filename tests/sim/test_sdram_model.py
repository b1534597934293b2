"""The model of an SDRAM chip: what its data sheet allows works, and each thing that it forbids is found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
from amaranth.hdl import ResetInserter, Signal

from nnloom.hw.sdram_pins import SdramCommand
from nnloom.hw.sdram_timing import ULX3S_SDRAM, SdramChip
from nnloom.sim.sdram_checker import RULES, SdramChecker
from nnloom.sim.sdram_model import SdramModel, SdramPinValues, SdramViolation
from tests.hw.benches import simulate

CLOCK_HZ = 100e6
CHIP = dataclasses.replace(ULX3S_SDRAM, power_up_us=1, rows=64)
"""At 10 ns: tRP, tRCD 3 cycles, tRAS 5, tRC, tRFC 7, tWR, tRRD, tMRD 2."""
ALL = 1 << 10


class Driver:
    """Sends commands; `mode` is CAS latency 2 and a burst of 4 columns."""

    latest: ClassVar[Driver]

    def __init__(self, *, mode: int = 0x22, ready: bool = True, **changes: object) -> None:
        self.model = SdramModel(dataclasses.replace(CHIP, **changes), CLOCK_HZ)
        Driver.latest = self
        self.mode = mode
        self.sent: list[SdramPinValues] = []
        self.answers: list[int | None] = []
        if ready:
            self.wait(100).initialise()

    def send(self, command: SdramCommand = SdramCommand.NOP, ba: int = 0, a: int = 0, **pins: int) -> Driver:
        code = {"ras_n": command >> 2, "cas_n": command >> 1 & 1, "we_n": command & 1, "ba": ba, "a": a}
        rest = {"cke": 1, "cs_n": 0, "dqm": 0, "dq": 0, "dq_oe": 0}
        self.sent.append(SdramPinValues(**rest | code | pins))
        self.answers.append(self.model.step(self.sent[-1]))
        return self

    def wait(self, cycles: int) -> Driver:
        for _ in range(cycles):
            self.send()
        return self

    def initialise(self, refreshes: int = 8) -> Driver:
        self.precharge(a=ALL).wait(2)
        for _ in range(refreshes):
            self.refresh().wait(6)
        return self.load_mode(a=self.mode).wait(1)

    def precharge(self, ba: int = 0, a: int = 0) -> Driver:
        return self.send(SdramCommand.PRECHARGE, ba, a)

    def refresh(self) -> Driver:
        return self.send(SdramCommand.REFRESH)

    def load_mode(self, ba: int = 0, a: int = 0) -> Driver:
        return self.send(SdramCommand.LOAD_MODE, ba, a)

    def open(self, ba: int = 0, row: int = 0) -> Driver:
        return self.send(SdramCommand.ACTIVE, ba, row)

    def read(self, ba: int = 0, column: int = 0, **pins: int) -> Driver:
        return self.send(SdramCommand.READ, ba, column, **pins)

    def write(self, ba: int = 0, column: int = 0, words: tuple[int, ...] = (1, 2, 3, 4), dqm: int = 0) -> Driver:
        self.send(SdramCommand.WRITE, ba, column, dq=words[0], dq_oe=1, dqm=dqm)
        for word in words[1:]:
            self.send(dq=word, dq_oe=1, dqm=dqm)
        return self


def test_words_come_back() -> None:
    driver = Driver().open(ba=1, row=5).wait(2)
    driver.write(1, 6, (10, 11, 12, 13))  # from 6 to 7, then around to 4
    driver.write(1, 4, (99, 99, 99, 99), dqm=0b11).write(1, 0, (0x1234, 0, 0, 0), dqm=0b01)
    driver.answers.clear()
    driver.read(1, 4).wait(2).read(1, 0).wait(6)
    # CAS latency 2: the first word is there to be sampled two edges after READ. The second READ cuts off the first.
    assert driver.answers == [None, 12, 13, 10, 0x1200, 0, 0, 0, None, None]
    base = ((5 * 4 + 1) * 512 + 4) * 2
    assert driver.model.memory[base : base + 8] == bytes([12, 0, 13, 0, 10, 0, 11, 0])


def test_cas_latency_3_and_mask() -> None:
    driver = Driver(mode=0x33).open().wait(2).write(words=tuple(range(8)))
    driver.answers.clear()
    driver.read().send().send(dqm=3).wait(8)
    # The mask works two edges later: on the word that is sampled then.
    assert driver.answers == [None, None, 0, None, 2, 3, 4, 5, 6, 7, None]


def test_precharge_ends_a_read() -> None:
    driver = Driver().open().wait(2).write().wait(2)
    driver.answers.clear()
    driver.read().wait(1).precharge().wait(4)
    assert driver.answers == [None, 1, 2, None, None, None, None]
    driver.open(row=1)


def test_legal_sequence_at_the_limits() -> None:
    """Every command as early as it may be."""
    driver = Driver().open(0).wait(1).open(1).send().write(0).write(1).wait(1).precharge(a=ALL).wait(2)
    driver.refresh().wait(6).refresh().wait(6).open(0).wait(6).precharge().wait(2).open(0).wait(2).read().wait(3)
    driver.precharge().wait(2).load_mode(a=0x21).send().open(3)


def test_deselected_chip_ignores_commands() -> None:
    Driver().send(SdramCommand.READ, cs_n=1)


VIOLATIONS: dict[str, tuple[str, Callable[[], object]]] = {
    "early first command": ("power-up", lambda: Driver(ready=False).wait(99).precharge(a=ALL)),
    "no precharge first": ("power-up: REFRESH before PRECHARGE ALL", lambda: Driver(ready=False).wait(100).refresh()),
    "one bank precharged first": ("power-up", lambda: Driver(ready=False).wait(100).precharge()),
    "few initial refreshes": ("initialisation", lambda: Driver(ready=False).wait(100).initialise(7).open()),
    "no mode": ("initialisation", lambda: Driver(ready=False).wait(100).precharge(a=ALL).wait(200).open()),
    "tRP before REFRESH": ("tRP", lambda: Driver().open().wait(4).precharge().wait(1).refresh()),
    "tRP before ACTIVE": ("tRP", lambda: Driver().open().wait(7).precharge().wait(1).open()),
    "tRP before LOAD MODE": ("tRP", lambda: Driver().open().wait(7).precharge().wait(1).load_mode(a=0x22)),
    "tRCD before READ": ("tRCD", lambda: Driver().open().wait(1).read()),
    "tRCD before WRITE": ("tRCD", lambda: Driver().open().wait(1).write()),
    "tRAS": ("tRAS", lambda: Driver().open().wait(3).precharge()),
    "tRAS by PRECHARGE ALL": ("tRAS", lambda: Driver().open(2).wait(3).precharge(a=ALL)),
    "tRC": ("tRC", lambda: Driver(t_rc=90).open().wait(4).precharge().wait(2).open()),
    "tRRD": ("tRRD", lambda: Driver().open(0).open(1)),
    "tRFC before ACTIVE": ("tRFC", lambda: Driver().refresh().wait(5).open()),
    "tRFC before REFRESH": ("tRFC", lambda: Driver().refresh().wait(5).refresh()),
    "tWR": ("tWR", lambda: Driver().open().wait(2).write().precharge()),
    "tWR of a cut burst": ("tWR", lambda: Driver(t_wr=25).open().wait(2).write(words=(1, 2)).read().precharge()),
    "tMRD": ("tMRD", lambda: Driver().load_mode(a=0x22).open()),
    "open too long": ("tRAS(max)", lambda: Driver(t_ras_max=1000).open().wait(100).read()),
    "closed too late": ("tRAS(max)", lambda: Driver(t_ras_max=1000).open().wait(100).precharge()),
    "open twice": ("is open", lambda: Driver().open().wait(9).open(row=1)),
    "READ of a closed bank": ("no row of bank 1", lambda: Driver().open().wait(2).read(1)),
    "WRITE to a closed bank": ("no row of bank 1", lambda: Driver().open().wait(2).write(1)),
    "WRITE after PRECHARGE ALL": ("no row", lambda: Driver().open().wait(4).precharge(a=ALL).wait(2).write()),
    "REFRESH with an open row": ("a row of bank 2 is open", lambda: Driver().open(2).wait(9).refresh()),
    "LOAD MODE with an open row": ("a row of bank 2 is open", lambda: Driver().open(2).wait(9).load_mode(a=0x22)),
    "CAS latency of a slower clock": ("CAS latency 2", lambda: Driver(cas_latencies=((2, 99e6), (3, 143e6)))),
    "full page": ("LOAD MODE", lambda: Driver(mode=0x27)),
    "interleaved": ("LOAD MODE", lambda: Driver(mode=0x2A)),
    "single writes": ("LOAD MODE", lambda: Driver(mode=0x222)),
    "extended mode register": ("LOAD MODE", lambda: Driver().load_mode(ba=2, a=0x22)),
    "row beyond": ("no row", lambda: Driver().open(row=64)),
    "column beyond": ("no column", lambda: Driver().open().wait(2).read(column=512)),
    "auto precharge": ("auto precharge", lambda: Driver().open().wait(2).read(column=ALL)),
    "BURST STOP": ("BURST_STOP", lambda: Driver().send(SdramCommand.BURST_STOP)),
    "CKE": ("CKE", lambda: Driver().send(cke=0)),
    "both drive": ("bus", lambda: Driver().open().wait(2).read().send().send(dq_oe=1)),
    "drives at the chip's end": ("bus: no cycle", lambda: Driver().open().wait(2).read().wait(5).write()),
    "drives at the chip's begin": ("bus: no cycle", lambda: Driver().open().wait(2).read().send(dq_oe=1)),
    "a WRITE cuts a READ": ("bus", lambda: Driver().open().wait(2).read().wait(1).write()),
    "nobody drives": ("nobody", lambda: Driver().open().wait(2).send(SdramCommand.WRITE)),
    "drives too shortly": ("nobody", lambda: Driver().open().wait(2).write(words=(1, 2, 3)).send()),
    "PRECHARGE cuts a WRITE": ("is being written", lambda: Driver(t_wr=1).open().wait(5).write(words=(1,)).precharge()),
    "some bytes of a READ masked": ("not modelled", lambda: Driver().open().wait(2).read(dqm=1).wait(3)),
    "refreshes owed": ("refreshes are owed", lambda: Driver().open().wait(5).precharge().wait(7100)),
    "a row forgotten": (
        "a row was not refreshed",
        lambda: Driver(refresh_ms=0.05, refresh_commands=5).open().wait(5).precharge().wait(5000),
    ),
}


@pytest.mark.parametrize(("rule", "use"), VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_violation_is_found(rule: str, use: Callable[[], object]) -> None:
    with pytest.raises(SdramViolation) as error:
        use()
    assert rule in str(error.value)


CHECKED = {
    "no mode": "power_up",
    "tRP before REFRESH": "tRP",
    "tRP before ACTIVE": "tRP",
    "tRP before LOAD MODE": "tRP",
    "tRCD before READ": "tRCD",
    "tRCD before WRITE": "tRCD",
    "tRAS": "tRAS",
    "tRAS by PRECHARGE ALL": "tRAS",
    "tRC": "tRC",
    "tRRD": "tRRD",
    "tRFC before ACTIVE": "tRFC",
    "tRFC before REFRESH": "tRFC",
    "tWR": "tWR",
    "tMRD": "tMRD",
    "open twice": "open_twice",
    "READ of a closed bank": "closed_bank",
    "WRITE to a closed bank": "closed_bank",
    "WRITE after PRECHARGE ALL": "closed_bank",
    "REFRESH with an open row": "not_at_rest",
    "LOAD MODE with an open row": "not_at_rest",
    "full page": "mode",
    "interleaved": "mode",
    "single writes": "mode",
    "extended mode register": "mode",
    "auto precharge": "unknown",
    "BURST STOP": "unknown",
    "both drive": "bus",
    "drives at the chip's end": "bus",
    "drives at the chip's begin": "bus",
    "nobody drives": "undriven",
    "drives too shortly": "undriven",
    "PRECHARGE cuts a WRITE": "burst_cut",
}
"""Violations of `VIOLATIONS` that the logic for proofs knows, and its rules."""


def rules_broken(chip: SdramChip, sequences: Sequence[Sequence[SdramPinValues]]) -> list[list[set[str]]]:
    """By sequence and edge: what the checker says; it is reset before each."""
    checker, reset = SdramChecker(chip, CLOCK_HZ, burst=4, cas_latency=2), Signal()
    found: list[list[set[str]]] = []

    async def bench(ctx: Any) -> None:
        for sequence in sequences:
            ctx.set(reset, 1)
            await ctx.tick()
            ctx.set(reset, 0)
            found.append([])
            for pins in sequence:
                for name in ("cs_n", "ras_n", "cas_n", "we_n", "ba", "a", "dq_oe"):
                    ctx.set(getattr(checker, name), getattr(pins, name))
                broken = ctx.get(checker.violation)
                found[-1].append({rule for bit, rule in enumerate(RULES) if broken >> bit & 1})
                await ctx.tick()

    simulate(ResetInserter(reset)(checker), bench)
    return found


def test_checker_of_proofs_finds_the_same() -> None:
    """No rule is broken before the edge at which the model complains, and then the same rule."""
    legal = Driver().open(0).wait(2).write(0).wait(1).precharge(a=ALL).wait(2).refresh().wait(6).open(0).wait(2)
    legal.read().wait(6).write().wait(2).precharge().wait(2).open(1, 3)
    sequences: dict[SdramChip, dict[str, list[SdramPinValues]]] = {}
    for name in CHECKED:
        with pytest.raises(SdramViolation):
            VIOLATIONS[name][1]()
        sequences.setdefault(Driver.latest.model.chip, {})[name] = Driver.latest.sent
    for chip, by_name in sequences.items():
        for name, broken in zip(by_name, rules_broken(chip, list(by_name.values())), strict=True):
            assert not any(broken[:-1]), (name, broken)
            assert CHECKED[name] in broken[-1], name
    assert not any(rules_broken(CHIP, [legal.sent])[0])
