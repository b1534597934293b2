"""The SDRAM controller against the model of the chip: directed bursts, random traffic, faults, bandwidth."""

from __future__ import annotations

import random

import pytest

from nnloom.hw.sdram import SdramController
from nnloom.hw.sdram_timing import (
    AS4C16M16,
    AS4C32M16,
    GW2AR_18,
    IS42S16160,
    ULX3S_SDRAM,
    SdramChip,
)
from nnloom.sim.sdram_model import SdramModel
from tests.hw.sdram_benches import Burst, Manager, Reference, Run, quick

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
    return value.name if isinstance(value, SdramChip) else f"{value / 1e6:g}MHz" if value > 1e6 else str(value)


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


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("chip", "clock_hz", "data_width"), CONFIGURATIONS, ids=names)
def test_much_random_traffic(chip: SdramChip, clock_hz: float, data_width: int, seed: int) -> None:
    """Refreshes come up to eight times as often as the chip needs them."""
    chip = quick(chip, refresh_ms=chip.refresh_ms / (2, 4, 1, 8 if clock_hz > 60e6 else 4)[seed])
    check_random_traffic(chip, clock_hz, data_width, seed=seed, bursts=80, stall=STALLS[seed])
