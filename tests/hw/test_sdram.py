"""The SDRAM controller against the model of the chip: directed bursts, random traffic, faults, bandwidth."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest
from sdram import measure

from nnloom.hw.axi import AxiResponse
from nnloom.hw.sdram import SdramController
from nnloom.hw.sdram_ecp5 import READ_DELAY
from nnloom.hw.sdram_pins import SdramCommand
from nnloom.hw.sdram_timing import (
    AS4C16M16,
    AS4C32M16,
    GW2AR_18,
    INITIAL_REFRESHES,
    IS42S16160,
    ULX3S_SDRAM,
    SdramChip,
    SdramTiming,
)
from nnloom.sim.sdram_bench import Burst, Manager, Reference, Run, quick
from nnloom.sim.sdram_model import SdramModel, SdramPinValues
from tests.hw.benches import simulate

CONFIGURATIONS = [
    (ULX3S_SDRAM, 120e6, 32),
    (AS4C16M16, 143e6, 64),
    (AS4C32M16, 100e6, 128),
    (IS42S16160, 50e6, 32),
    (GW2AR_18, 108e6, 32),
    (GW2AR_18, 66e6, 64),
    (GW2AR_18, 100e6, 128),
]
STALLS = [
    {},
    {"aw": 0.3, "w": 0.3, "b": 0.3, "ar": 0.3, "r": 0.3},
    {"r": 0.9, "ar": 0.1},
    {"w": 0.8, "b": 0.8},
]


def names(value: object) -> str:
    if isinstance(value, SdramChip):
        return value.name
    return f"{value / 1e6:g}MHz" if isinstance(value, float) else str(value)


def setup(chip: SdramChip, clock_hz: float, data_width: int, **options: object) -> tuple[Run, Reference]:
    dut = SdramController(chip, clock_hz, data_width)
    manager = Manager(data_width, **options)
    return Run(dut, SdramModel(chip, clock_hz), manager), Reference(manager, chip.size)


def write(rng: random.Random, address: int, beats: int, data_width: int, *, masked: bool = False) -> Burst:
    full = (1 << data_width // 8) - 1
    return Burst(
        True,
        address,
        beats,
        id=rng.getrandbits(1),
        data=[rng.getrandbits(data_width) for _ in range(beats)],
        strobes=[rng.choice((full, 0, rng.randint(0, full))) if masked else full for _ in range(beats)],
    )


def random_burst(rng: random.Random, data_width: int, size: int) -> Burst:
    """Mostly in a few places, so that rows and banks collide; never across 4 KiB."""
    beat_bytes = data_width // 8
    base = rng.choice((0, 0x1000, size // 2, size - 0x1000, rng.randrange(0, size, 4096)))
    address = base + rng.randrange(0, 4096)
    most = (4096 - address % 4096 + beat_bytes - 1) // beat_bytes
    beats = min(most, rng.choice((1, 2, 3, 16, 16, rng.randint(1, 40), 256)))
    if rng.random() < 0.5:
        return write(rng, address, beats, data_width, masked=rng.random() < 0.5)
    return Burst(False, address, beats, id=rng.getrandbits(1))


def record(run: Run) -> list[tuple[int, SdramCommand, int, int]]:
    """Commands that the chip gets: edge, command, bank, address."""
    commands: list[tuple[int, SdramCommand, int, int]] = []
    execute = run.model._execute

    def note(command: SdramCommand, pins: SdramPinValues) -> None:
        commands.append((run.model.edge, command, pins.ba, pins.a))
        execute(command, pins)

    run.model._execute = note
    return commands


def check_random_traffic(
    chip: SdramChip, clock_hz: float, data_width: int, *, seed: int, bursts: int, stall: dict[str, float]
) -> None:
    rng = random.Random(seed)
    run, reference = setup(chip, clock_hz, data_width, rng=rng, stall=stall)
    run.manager.add(*(random_burst(rng, data_width, chip.size) for _ in range(bursts)))
    run.until(lambda: run.manager.idle)
    assert reference.checked == bursts
    # What is in the chip, also of what nobody read.
    assert run.model.memory == reference.contents


@pytest.mark.parametrize("index", range(len(CONFIGURATIONS)), ids=lambda i: "-".join(map(names, CONFIGURATIONS[i])))
def test_random_traffic(index: int) -> None:
    chip, clock_hz, data_width = CONFIGURATIONS[index]
    stall = STALLS[index % len(STALLS)]
    check_random_traffic(quick(chip), clock_hz, data_width, seed=index, bursts=12, stall=stall)


def test_registers_in_the_pads() -> None:
    chip, rng = quick(ULX3S_SDRAM), random.Random(5)
    dut, manager = SdramController(chip, 120e6, 32, read_delay=READ_DELAY), Manager(32, rng=rng)
    run, reference = Run(dut, SdramModel(chip, 120e6), manager, outward=1, inward=1), Reference(manager, chip.size)
    manager.add(*(random_burst(rng, 32, chip.size) for _ in range(12)))
    run.until(lambda: manager.idle)
    assert reference.checked == 12
    assert run.model.memory == reference.contents


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("chip", "clock_hz", "data_width"), CONFIGURATIONS, ids=names)
def test_much_random_traffic(chip: SdramChip, clock_hz: float, data_width: int, seed: int) -> None:
    """Refreshes come up to eight times as often as the chip needs them."""
    chip = quick(chip, refresh_ms=chip.refresh_ms / (2, 4, 1, 8 if clock_hz > 60e6 else 4)[seed])
    check_random_traffic(chip, clock_hz, data_width, seed=seed, bursts=80, stall=STALLS[seed])


def test_initialisation() -> None:
    """After a real chip's power-up, which the model checks; bursts sent before wait."""
    run, reference = setup(IS42S16160, 10e6, 32)
    commands = record(run)
    run.manager.add(write(random.Random(0), 64, 4, 32), Burst(False, 64, 4))
    run.until(lambda: run.manager.idle)
    assert reference.checked == 2
    names = [command.name for _, command, _, _ in commands]
    first = names.index("LOAD_MODE")
    assert names[0] == "PRECHARGE" and set(names[1:first]) == {"REFRESH"} and first > INITIAL_REFRESHES
    assert commands[first][3] == 0b010_0_001, "CAS latency 2, two columns"
    assert 200 < commands[0][0] / 10 < 225, "microseconds"


@pytest.mark.parametrize("data_width", [32, 128])
def test_refused_bursts_touch_nothing(data_width: int) -> None:
    chip, rng = quick(ULX3S_SDRAM), random.Random(0)
    run, _ = setup(chip, 120e6, data_width)
    size = (data_width // 8 - 1).bit_length()
    strange = [
        (AxiResponse.DECERR, {"address": chip.size}),
        (AxiResponse.DECERR, {"address": 0xFFFF_F000}),
        (AxiResponse.SLVERR, {"kind": 0}),
        (AxiResponse.SLVERR, {"kind": 2}),
        (AxiResponse.SLVERR, {"size": size - 1}),
        (AxiResponse.OKAY, {"size": 0, "beats": 1}),
        (AxiResponse.OKAY, {}),
    ]
    expected = []
    for response, changes in strange:
        for make in (lambda: write(rng, 0x800, 7, data_width), lambda: Burst(False, 0x800, 7)):
            burst = dataclasses.replace(make(), **changes)
            run.manager.add(burst)
            expected.append((burst, response))
    run.manager.finished = lambda burst: None
    run.manager.may_start = lambda burst: True
    run.until(lambda: run.manager.idle)
    for burst, response in expected:
        assert burst.responses == [response] * (1 if burst.write else burst.beats), burst
    # The last write, and the first beat from the one before it.
    last = [burst for burst, _ in expected if burst.write][-1]
    contents = b"".join(beat.to_bytes(data_width // 8, "little") for beat in last.data)
    assert run.model.memory.strip(b"\0") == contents.strip(b"\0")
    assert run.model.memory[0x800 : 0x800 + len(contents)] == contents


def test_rows_are_opened_ahead() -> None:
    """A long transfer goes through four banks and into the next rows without a cycle lost."""
    chip = quick(ULX3S_SDRAM)
    run, _ = setup(chip, 120e6, 32)
    commands = record(run)
    run.manager.add(*(Burst(False, address, 16) for address in range(0, 6 * chip.row_bytes, 64)))
    run.until(lambda: run.manager.idle)
    activated = [(bank, row) for _, command, bank, row in commands if command == SdramCommand.ACTIVE]
    assert activated == [(0, 0), (1, 0), (2, 0), (3, 0), (0, 1), (1, 1)]
    reads = [edge for edge, command, _, _ in commands if command == SdramCommand.READ]
    assert len(reads) == 6 * chip.row_bytes // 4
    gaps = [after - before for before, after in itertools.pairwise(reads)]
    # The manager's first bursts fill the pipeline; a refresh may come.
    assert gaps.count(2) >= len(gaps) - 6


def test_refreshes_are_postponed_and_made_up_for() -> None:
    """The model checks that never more than eight are owed; here: that they are, and come in a row."""
    chip = quick(ULX3S_SDRAM, refresh_ms=8)
    run, _ = setup(chip, 120e6, 64)
    commands = record(run)
    run.manager.add(*(Burst(False, address, 16) for address in range(0, 0x3000, 128)))
    run.until(lambda: run.manager.idle, drain=1000)
    busy = [edge for edge, command, _, _ in commands if command == SdramCommand.READ]
    rows_of_refreshes: list[int] = []
    for (_, before, _, _), (edge, command, _, _) in itertools.pairwise(commands):
        if command == SdramCommand.REFRESH and busy[0] < edge < busy[-1]:
            if before == SdramCommand.REFRESH:
                rows_of_refreshes[-1] += 1
            else:
                rows_of_refreshes.append(1)
    assert len(rows_of_refreshes) >= 5 and set(rows_of_refreshes) <= {8, 9}
    # In idle time each on its own, when it is due.
    idle = [edge for edge, command, _, _ in commands if command == SdramCommand.REFRESH and edge > busy[-1] + 200]
    interval = SdramTiming.of(chip, 120e6).refresh_interval
    assert {after - before for before, after in itertools.pairwise(idle)} == {interval}


def test_no_path_from_ready_to_valid() -> None:
    """With bursts in both directions under way, the manager's readies change nothing in their own cycle."""
    dut, rng = SdramController(quick(ULX3S_SDRAM, refresh_ms=8), 120e6, 32), random.Random(0)
    axi = dut.axi
    seen: set[tuple[int, int]] = set()

    async def bench(ctx) -> None:
        for channel in ("aw", "ar"):
            for name, value in (("valid", 1), ("size", 2), ("burst", 1), ("len", 5)):
                ctx.set(getattr(axi, f"{channel}{name}"), value)
        ctx.set(axi.wvalid, 1)
        for _ in range(1500):
            valids = ctx.get(axi.rvalid), ctx.get(axi.bvalid)
            seen.add(valids)
            for readies in ((0, 0), (0, 1), (1, 0), (1, 1), (rng.getrandbits(1), rng.getrandbits(1))):
                ctx.set(axi.rready, readies[0])
                ctx.set(axi.bready, readies[1])
                assert (ctx.get(axi.rvalid), ctx.get(axi.bvalid)) == valids
            await ctx.tick()

    simulate(dut, bench)
    assert len(seen) == 4


def test_no_row_is_open_for_too_long() -> None:
    """Where tRAS(max) is shorter than eight refresh intervals, fewer refreshes are postponed; the model checks it."""
    chip = quick(ULX3S_SDRAM, refresh_ms=16, t_ras_max=10_000)
    assert SdramTiming.of(chip, 120e6).refreshes_owed == 4
    run, _ = setup(chip, 120e6, 32)
    run.manager.add(*(Burst(False, 64, 16) for _ in range(70)))
    assert run.until(lambda: run.manager.idle) > 2000
    with pytest.raises(ValueError, match="a row may be open no longer"):
        SdramTiming.of(quick(ULX3S_SDRAM, t_ras_max=10_000), 120e6)


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
@pytest.mark.parametrize(
    ("clock_hz", "data_width", "message"),
    [
        (150e6, 32, "GW2AR-18 runs at 143 MHz at most, not at 150 MHz"),
        (0.5e6, 32, "too slow"),
        (100e6, 48, "32, 64 or 128 bits"),
    ],
)
def test_impossible_controllers(clock_hz: float, data_width: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SdramController(GW2AR_18, clock_hz, data_width)
    with pytest.raises(ValueError, match="1, 2, 4 or 8 words of 8 bits, not 128"):
        SdramController(dataclasses.replace(GW2AR_18, data_bits=8), 100e6, 128)


def test_writes_that_wait_for_reads() -> None:
    """A manager that copies has its write data only when it has read: neither direction waits for the other."""
    run, _ = setup(quick(ULX3S_SDRAM), 120e6, 32)
    manager, runs = run.manager, run.manager._runs
    target = write(random.Random(0), 0x8000, 64, 32)
    reads = [Burst(False, address, 16) for address in range(0, 0x400, 64)]
    manager.add(target, *reads)

    def has_data(channel: str) -> bool:
        sent = target.beats - len(manager.beats)
        return channel != "w" or 4 * sum(bool(read.responses) for read in reads) > sent

    manager._runs = lambda channel: runs(channel) and has_data(channel)
    run.until(lambda: manager.idle, most=5000)
    assert target.responses == [AxiResponse.OKAY]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
@pytest.mark.parametrize(("chip", "data_width"), [(ULX3S_SDRAM, 32), (GW2AR_18, 64)], ids=names)
def test_reset_in_mid_stream(chip: SdramChip, data_width: int, seed: int) -> None:
    """After a reset the controller begins anew, whatever the chip was doing, and what was written before is there."""
    chip, rng = quick(chip), random.Random(seed)
    # More refreshes than ever are owed meanwhile; the data sheet's period is kept.
    model = SdramModel(chip, 100e6, strict_refresh=False)
    before, after = Manager(data_width), Manager(data_width)
    run = Run(SdramController(chip, 100e6, data_width), model, before)
    kept = write(rng, 0x3E0, 64, data_width)
    traffic = [random_burst(rng, data_width, chip.size // 2) for _ in range(150)]
    for burst in traffic:
        burst.address += chip.size // 2
    before.add(kept, *traffic)
    again = Burst(False, kept.address, kept.beats)
    more = write(rng, 0x1000, 16, data_width)
    more_again = Burst(False, more.address, more.beats)

    def reset() -> None:
        assert kept.responses and not before.idle
        run.manager = Manager(data_width, stall={"b": 1, "r": 1})

    def resume() -> None:
        run.manager = after
        after.add(again, more, more_again)
        after.may_start = lambda burst: burst is not more_again or bool(more.responses)

    at = int(SdramTiming.of(chip, 100e6).refresh_interval * 2.5) + rng.randrange(400, 1200)
    run.resets, run.events = {at}, {at: reset, at + 2: resume}
    run.until(lambda: run.manager is after and after.idle and bool(more_again.data))
    assert again.data == kept.data
    assert more_again.data == more.data


@pytest.mark.parametrize(
    ("chip", "clock_hz", "data_width", "traffic"),
    [
        (ULX3S_SDRAM, 120e6, 32, "reads"),
        (ULX3S_SDRAM, 120e6, 32, "writes"),
        (ULX3S_SDRAM, 120e6, 32, "mixed"),
        (GW2AR_18, 100e6, 64, "mixed, one write at a time"),
    ],
    ids=names,
)
def test_share_of_peak(chip: SdramChip, clock_hz: float, data_width: int, traffic: str) -> None:
    """benchmarks/results/sdram.json has longer measurements of more."""
    assert measure(quick(chip), clock_hz, data_width, traffic, cycles=2000).share >= 0.85
