"""The SDRAM controller: share of the chip's peak on the DMA engine's traffic, and its size by Yosys's estimate.

    python benchmarks/sdram.py              everything; some minutes
    python benchmarks/sdram.py --missing    what is not in the results yet

The traffic goes from an AXI4 manager through the RTL to a model of the chip at its pins, which complains of every
violation of the data sheet. A share is words on the data pins over cycles, from the first address to the last answer:
latency, refreshes, rows and changes of direction are all in it. Results go to benchmarks/results/sdram.json and
docs/sdram.md.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path

from nnloom.arch.files import Scratch, write_atomically
from nnloom.hw.emit import emit_rtlil, run_yosys
from nnloom.hw.sdram import SdramController
from nnloom.hw.sdram_timing import AS4C16M16, GW2AR_18, ULX3S_SDRAM, SdramChip
from nnloom.sim.sdram_bench import Burst, Manager, Run, quick
from nnloom.sim.sdram_model import SdramModel

BEGIN, END = "<!-- sdram: written by benchmarks/sdram.py -->", "<!-- end of sdram -->"
RESULTS = Path(__file__).parent / "results" / "sdram.json"
CELLS = ("LUT4", "CCU2C", "TRELLIS_FF", "TRELLIS_DPR16X4")
CYCLES = 10_000
"""Of each transfer: more than the longest time that refreshes are postponed."""
BURST_BEATS = 16
"""Of `nnloom.hw.dma.DmaEngine`."""
READS_UNDER_WAY = 4
"""Of `nnloom.hw.dma.DmaEngine`."""
CONFIGURATIONS = [
    (ULX3S_SDRAM, 120e6, 32),
    (GW2AR_18, 100e6, 64),
    (GW2AR_18, 100e6, 32),
    (ULX3S_SDRAM, 120e6, 64),
    (AS4C16M16, 143e6, 32),
]


@dataclass(frozen=True)
class Traffic:
    """Streams of bursts at the same time."""

    what: str
    reads: bool
    writes: bool
    writes_under_way: int = 4
    scattered: bool = False


TRAFFIC = {
    "reads": Traffic("one long read", True, False),
    "writes": Traffic("one long write", False, True),
    "mixed": Traffic("a long read and a long write at once, in other rows of the same banks", True, True),
    "mixed, one write at a time": Traffic("the same; writes wait for their answers", True, True, 1),
    "scattered reads": Traffic("read bursts anywhere", True, False, scattered=True),
}


@dataclass(frozen=True)
class Measurement:
    """Of one traffic."""

    words: int
    cycles: int

    @property
    def share(self) -> float:
        """Of a word in every cycle."""
        return self.words / self.cycles


def measure(chip: SdramChip, clock_hz: float, data_width: int, name: str, *, cycles: int) -> Measurement:
    """Simulate about so many cycles of traffic."""
    traffic, rng = TRAFFIC[name], random.Random(0)
    manager = Manager(data_width, reads_under_way=READS_UNDER_WAY, writes_under_way=traffic.writes_under_way)
    run = Run(SdramController(chip, clock_hz, data_width), SdramModel(chip, clock_hz), manager)
    size = BURST_BEATS * data_width // 8
    count = cycles * chip.data_bits // 8 // size // (traffic.reads + traffic.writes)
    for index in range(count):
        address = rng.randrange(chip.size // size) * size if traffic.scattered else index * size
        if traffic.reads:
            manager.add(Burst(False, address, BURST_BEATS))
        if traffic.writes:
            data = [rng.getrandbits(data_width) for _ in range(BURST_BEATS)]
            strobes = [(1 << data_width // 8) - 1] * BURST_BEATS
            manager.add(Burst(True, chip.size // 2 + address, BURST_BEATS, data=data, strobes=strobes))
    # The initialisation is not traffic.
    manager.may_start = lambda burst: run.ready_at is not None
    end = run.until(lambda: manager.idle)
    assert run.ready_at is not None
    return Measurement(run.model.words, end - run.ready_at)


def area(chip: SdramChip, clock_hz: float, data_width: int) -> dict[str, int]:
    """Cells after Yosys's `synth_ecp5`."""
    with Scratch("nnloom-sdram") as scratch:
        folder = scratch.path
        controller = SdramController(chip, clock_hz, data_width, read_delay=2)
        (folder / "design.il").write_text(emit_rtlil(controller, "top"))
        run_yosys("read_rtlil design.il\nsynth_ecp5 -top top\ntee -q -o area.json stat -json\n", folder=folder)
        cells = json.loads((folder / "area.json").read_text())["design"]["num_cells_by_type"]
    return {kind: cells.get(kind, 0) for kind in CELLS}


def table(results: dict[str, dict]) -> str:
    """Of `docs/sdram.md`."""
    head = ["chip, clock, beat", "peak", *TRAFFIC, "LUT4", "CCU2C", "flip-flops", "LUT memories"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for what, entry in results.items():
        row = [what, f"{entry['peak_mb_s']:g} MB/s"]
        row += [f"{entry['share'][name]:.1%}" if name in entry["share"] else "-" for name in TRAFFIC]
        row += [str(entry["cells"].get(kind, "-")) for kind in CELLS]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def main() -> None:
    from run import write_readme  # the tests that measure have no use for all that it imports

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--missing", action="store_true", help="keep what was measured before")
    missing = parser.parse_args().missing
    results = json.loads(RESULTS.read_text())["results"] if missing and RESULTS.exists() else {}
    for chip, clock_hz, data_width in CONFIGURATIONS:
        what = f"{chip.name}, {clock_hz / 1e6:g} MHz, {data_width} bits"
        peak = round(chip.peak_bytes_per_second(clock_hz) / 1e6, 1)
        entry = results.setdefault(what, {"peak_mb_s": peak, "share": {}, "cells": {}})
        for name in TRAFFIC:
            if name not in entry["share"]:
                measurement = measure(quick(chip), clock_hz, data_width, name, cycles=CYCLES)
                entry["share"][name] = round(measurement.share, 3)
                print(f"{what}, {name}: {measurement.share:.1%}", flush=True)
                write(results)
        if not entry["cells"]:
            entry["cells"] = area(chip, clock_hz, data_width)
            write(results)
    write_readme(table(results), RESULTS.parents[2] / "docs" / "sdram.md", begin_mark=BEGIN, end_mark=END)


def write(results: dict[str, dict]) -> None:
    """What was measured so far."""
    document = {
        "command": "python benchmarks/sdram.py",
        "cycles": CYCLES,
        "traffic": {name: traffic.what for name, traffic in TRAFFIC.items()},
        "results": results,
    }
    write_atomically(RESULTS, (json.dumps(document, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
